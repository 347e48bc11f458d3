"""A run in several processes (ranks), as `torchrun` starts them, that is one run: one ledger, one set of checkpoints, one console.

What a rank computes is a pure function of (order, step, rank): there is no sampler state. Every rank takes the same decisions from the same
figures, because whatever decides (losses, gradients, held-out figures) is added up over all ranks in one fixed order; rank 0 alone writes.

`Ranks` is a single process: every operation on it is the identity, and the bytes of a run are those of a run that never heard of ranks.
`Several` has the same face. `together` is what the main flow enters; `here` says which of the two this process is part of.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from holdfast.errors import HoldfastError, IntegrityError
from holdfast.recipe import RunTable
from holdfast.training.objective import Sums

T = TypeVar("T")

# How long a rank waits for another that is alive and silent: rank 0 may be tokenising a large dataset. One that died is noticed at once.
PATIENCE = timedelta(minutes=30)


class Ranks:
    """One process: it has all rows, and what it knows is all there is to know."""

    rank, world = 0, 1
    sharded = False

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and speaks to the console."""
        return self.rank == 0

    @property
    def facts(self) -> dict[str, int]:
        """What the ledger says of it beside the environment: sums of another number of processes have other bytes."""
        return {"processes": self.world} if self.world > 1 else {}

    @property
    def purpose(self) -> tuple[int, ...]:
        """What sets this rank's random numbers apart from the others', for `derive`."""
        return (self.rank,) if self.rank else ()

    def share(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        """This rank's rows of a step; see `shares`."""
        return rows

    def deal(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        """This rank's parts of work that was planned as a whole, the first to the first rank and so on around; False marks one that it must
        compute as well and not count, for sharded weights need all ranks in each forward.
        """
        return [(part, True) for part in parts]

    def first(self, do: Callable[[], T]) -> T:
        """What `do` gives on rank 0, where alone it is called, on every rank; JSON-able."""
        return do()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 first, then the others at once: what it has put into a cache they find there."""
        yield

    def tell(self, value: T) -> list[T]:
        """Every rank's value, by rank; JSON-able."""
        return [value]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, by rank; they may differ in their first axis. Without graph."""
        return [tensor]

    def sums(self, mine: Sums) -> dict[str, tuple[float, float]]:
        """Metrics as sums, of all ranks."""
        return dict(mine)

    def merge(self, filled: Tensor) -> Tensor:
        """One tensor of tensors of which each element is filled on one rank at most and 0 on the others: to the bit."""
        return filled

    def add(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over ranks, in place. Sums, not means: the loop divides by the whole step's normaliser."""

    def whole(self, model: nn.Module) -> None:
        """Give rank 0 the whole of a model that was divided. It trains no more."""

    def shard(self, model: nn.Module) -> Callable[[Callable[[], Any]], Any] | None:
        """Divide a model's weights among the ranks. The result runs what it is given with the weights at hand; None: nothing to divide."""
        return None


class Several(Ranks):
    """One of `world` processes. Raises HoldfastError where another is lost."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world

    def share(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        return shares(rows, group, self.world)[self.rank]

    def first(self, do: Callable[[], T]) -> T:
        said: Any = None
        if self.rank == 0:
            try:
                said = {"value": do()}
            except HoldfastError as problem:  # the others must not go on, nor wait
                self._from_first(json.dumps({"error": str(problem)}).encode())
                raise
            self._from_first(json.dumps(said, default=_plain).encode())
            return said["value"]
        said = json.loads(self._from_first(b""))
        if "error" in said:
            raise HoldfastError(said["error"])
        return said["value"]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        if self.rank:
            self.first(lambda: None)
        yield
        if not self.rank:
            self.first(lambda: None)

    def tell(self, value: T) -> list[T]:
        sent = torch.frombuffer(bytearray(json.dumps(value, default=_plain).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.numpy())) for part in self.gather(sent)]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        mine = tensor.detach().to("cpu").contiguous()
        size = torch.tensor([len(mine)])
        sizes = [torch.zeros_like(size) for _ in range(self.world)]
        dist.all_gather(sizes, size)
        most = max(int(s) for s in sizes)
        room = [mine.new_zeros((most, *mine.shape[1:])) for _ in range(self.world)]
        padded = mine.new_zeros((most, *mine.shape[1:]))
        padded[: len(mine)] = mine
        if most:
            dist.all_gather(room, padded)
        return [part[: int(n)].to(tensor.device) for part, n in zip(room, sizes, strict=True)]

    def merge(self, filled: Tensor) -> Tensor:
        bits = filled.detach().to("cpu", copy=True).contiguous().view(torch.int32)
        dist.all_reduce(bits)  # as integers: 0 + x is x to the bit, where -0.0 would come out of a sum of floats as 0.0
        return bits.view(filled.dtype).to(filled.device)

    def sums(self, mine: Sums) -> dict[str, tuple[float, float]]:
        added: dict[str, tuple[float, float]] = {}
        for theirs in self.tell(dict(mine)):
            for name, (value, weight) in theirs.items():
                before = added.get(name, (0.0, 0.0))
                added[name] = (before[0] + value, before[1] + weight)
        return added

    def deal(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        return [(part, True) for part in parts[self.rank :: self.world]]

    def add(self, parameters: Sequence[Tensor]) -> None:
        """In buckets, each a sum along a ring whose order hangs on the number of ranks alone: the same ranks give the same bytes."""
        device = parameters[0].device
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        dist.all_reduce(has, op=dist.ReduceOp.MAX)
        wanted = [p for p, anyone in zip(parameters, has.tolist(), strict=True) if anyone]
        for bucket in _buckets(wanted):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            # In float32 at least: bfloat16 has eight bits, and a sum of sums is rounded once.
            wide = torch.promote_types(torch.float32, grads[0].dtype)
            flat = torch.cat([g.reshape(-1).to(wide) for g in grads]).to(device)
            dist.all_reduce(flat)
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = part.view_as(p).to(p.dtype)

    def _from_first(self, said: bytes) -> bytes:
        size = torch.tensor([len(said)])
        dist.broadcast(size, src=0)
        sent = (
            torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else torch.zeros(int(size), dtype=torch.uint8)
        )
        dist.broadcast(sent, src=0)
        return bytes(sent.numpy())


def shares(rows: np.ndarray, group: np.ndarray, world: int) -> list[np.ndarray]:
    """A step's rows divided among `world` ranks: about as many to each, prompt groups whole where they are no larger than a share.

    rows, group: (B,) the step's rows and the group of each. Groups stay in the order of their first row. A pure function: every rank knows
    every rank's rows. A rank may have none.
    """
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    order = np.lexsort((np.arange(len(rows)), first[number]))
    borders = np.r_[0, np.cumsum(np.bincount(np.argsort(np.argsort(first))[number]))]
    cuts = [0]
    for k in range(1, world):
        ideal = k * len(rows) / world
        near = int(borders[np.argmin(np.abs(borders - ideal))])
        # A group that reaches far beyond a share is cut: its prompt is then computed on two ranks.
        cuts.append(max(cuts[-1], near if abs(near - ideal) <= len(rows) / world / 2 else round(ideal)))
    return [rows[order[a:b]] for a, b in zip(cuts, [*cuts[1:], len(rows)], strict=True)]


def here() -> Ranks:
    """What this process is part of: the ranks that `together` has brought together, else itself alone."""
    return _here


_here: Ranks = Ranks()


@contextmanager
def together(run: RunTable) -> Iterator[Ranks]:
    """As one of the processes that `torchrun` started (its environment variables say so), else alone. May be nested.

    Raises HoldfastError naming what to do where another process of the run is lost.
    """
    global _here
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or _here.world > 1 or "RANK" not in os.environ:
        yield _here
        return
    with _named_loss(int(os.environ["RANK"]), world):
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if run.device.startswith("cuda") else "gloo", timeout=PATIENCE)
        _here = Several(dist.get_rank(), dist.get_world_size())
        try:
            yield _here
        finally:
            _here = Ranks()
            if sys.exc_info()[0] is None:
                dist.destroy_process_group()


@contextmanager
def _named_loss(rank: int, world: int) -> Iterator[None]:
    """What PyTorch says of a lost connection, in words that say what to do."""
    try:
        yield
    except HoldfastError:
        raise
    except RuntimeError as problem:
        said = str(problem)
        if not isinstance(problem, dist.DistError) and not any(w in said for w in ("gloo", "Gloo", "NCCL", "TCPStore")):
            raise
        raise HoldfastError(
            f"process {rank + 1} of {world}: another process of this run ended or no longer answers ({said.splitlines()[0][:160]}). "
            "Nothing is lost but the steps since the last checkpoint: `holdfast resume RUN` goes on, with any number of processes"
        ) from None


def agreed(ranks: Ranks, value: T, what: str) -> T:
    """`value`, which must be the same on every rank. Raises IntegrityError where it is not."""
    for rank, other in enumerate(ranks.tell(value)):
        if other != value:
            raise IntegrityError(
                f"{what} is {value} on process {ranks.rank + 1} and {other} on process {rank + 1} of {ranks.world}"
            )
    return value


def _buckets(parameters: Sequence[Tensor], most: int = 1 << 23) -> Iterator[list[Tensor]]:
    """Runs of parameters of one type and together about `most` elements."""
    bucket: list[Tensor] = []
    filled = 0
    for p in parameters:
        if bucket and (p.dtype != bucket[0].dtype or filled + p.numel() > most):
            yield bucket
            bucket, filled = [], 0
        bucket.append(p)
        filled += p.numel()
    if bucket:
        yield bucket


def _plain(value: Any) -> Any:
    """What JSON does not know: a number of numpy's, a path."""
    return float(value) if hasattr(value, "__float__") else str(value)
