"""A run in several processes (ranks), as `torchrun` starts them, that is one run: one ledger, one set of checkpoints, one console.

What a rank computes is a pure function of (order, step, rank): there is no sampler state. Every rank takes the same decisions from the same
figures, because whatever decides (losses, gradients, held-out figures) is added up over all ranks in one fixed order; rank 0 alone writes.

`Ranks` is a single process: every operation on it is the identity, and the bytes of a run are those of a run that never heard of ranks.
`Several` has the same face. `together` is what the main flow enters; `here` says which of the two this process is part of.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

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

    def shares(self, rows: np.ndarray, group: np.ndarray, work: Callable[[], np.ndarray]) -> list[np.ndarray]:
        """Every rank's rows of a step; see `divide`. work: found where there is something to divide."""
        return [rows]

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

    # Weights that are divided among ranks (FSDP2). Everywhere else a parameter is the whole of itself.

    def shard(self, model: nn.Module) -> Callable[[Callable[[], T]], T] | None:
        """Divide a model's weights among the ranks. The result calls what it is given with the weights at hand, and every forward has to go
        through it; None: nothing was divided.
        """
        return None

    def mine(self, parameter: Tensor) -> Tensor:
        """What this rank holds of a parameter, and updates: always the same tensor for the same parameter."""
        return parameter

    def part(self, parameter: Tensor, value: Tensor) -> Tensor:
        """What this rank holds of a whole tensor that belongs to a parameter: a loaded weight, a moment."""
        return value

    def full(self, parameter: Tensor, value: Tensor) -> Tensor:
        """The whole of what every rank has its part of. All ranks must call."""
        return value

    def sample(self, parameter: Tensor, start: int, stride: int) -> Tensor:
        """Every `stride`-th element of a parameter from `start` on; of a divided one those that this rank holds, and 0 for the others."""
        return parameter.detach().reshape(-1)[start::stride]

    def norms(self, norm_P: Tensor) -> Tensor:
        """The norms of all parts, of those of what this rank holds."""
        return norm_P

    def whole(self, model: nn.Module) -> None:
        """Give rank 0 the whole of a model that was divided; to the others it is lost. It computes no more."""


class Several(Ranks):
    """One of `world` processes. Raises HoldfastError where another is lost."""

    def __init__(self, rank: int, world: int, sharded: bool, device: str = "cpu"):
        self.rank, self.world, self.sharded, self._device = rank, world, sharded, torch.device(device)
        self._mine: dict[int, tuple[Tensor, Tensor]] = {}

    def shares(self, rows: np.ndarray, group: np.ndarray, work: Callable[[], np.ndarray]) -> list[np.ndarray]:
        return divide(rows, group, work(), self.world)

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
        raw = filled.detach().to("cpu").contiguous().view(torch.uint8).reshape(-1)
        bits = torch.cat([raw, raw.new_zeros(-len(raw) % 4)]).view(torch.int32)
        dist.all_reduce(bits)  # as integers: 0 + x is x to the bit, where -0.0 would come out of a sum of floats as 0.0
        return bits.view(torch.uint8)[: len(raw)].view(filled.dtype).reshape(filled.shape).to(filled.device)

    def sums(self, mine: Sums) -> dict[str, tuple[float, float]]:
        added: dict[str, tuple[float, float]] = {}
        for theirs in self.tell(dict(mine)):
            for name, (value, weight) in theirs.items():
                before = added.get(name, (0.0, 0.0))
                added[name] = (before[0] + value, before[1] + weight)
        return added

    def deal(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        mine = [(part, True) for part in parts[self.rank :: self.world]]
        most = -(-len(parts) // self.world) if self.sharded else 0
        return mine + [(parts[0], False)] * (most - len(mine))

    def add(self, parameters: Sequence[Tensor]) -> None:
        """In buckets, each a sum along a ring whose order hangs on the number of ranks alone: the same ranks give the same bytes."""
        if self.sharded:  # summed in each backward
            for p in parameters:
                self.mine(p).grad = None if p.grad is None else cast(DTensor, p.grad).to_local()
            return
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

    def shard(self, model: nn.Module) -> Callable[[Callable[[], T]], T] | None:
        if not self.sharded:
            return None
        mesh = init_device_mesh(self._device.type, (self.world,))
        root = _Root(model)
        # A unit is gathered for its own computation alone: the blocks that a model repeats, and what is left.
        blocks = [b for m in model.modules() if isinstance(m, nn.ModuleList) for b in m if _has_weights(b)]
        inside = {id(m) for b in blocks for m in b.modules() if m is not b}
        for unit in [*(b for b in blocks if id(b) not in inside), root]:
            made = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
            made.set_gradient_divide_factor(1.0)  # a sum, not a mean
            made.set_force_sum_reduction_for_comms(True)
        return root

    def mine(self, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return parameter
        if id(parameter) not in self._mine:
            local = nn.Parameter(parameter.to_local().detach(), requires_grad=parameter.requires_grad)
            self._mine[id(parameter)] = (parameter, local)  # with the parameter, so that its id is not given again
        return self._mine[id(parameter)][1]

    def part(self, parameter: Tensor, value: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value
        first = first_row(parameter, self.rank)
        return value[first : first + len(parameter.to_local())]

    def full(self, parameter: Tensor, value: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or value.shape != parameter.to_local().shape:
            return value
        return torch.cat(self.gather(value))

    def sample(self, parameter: Tensor, start: int, stride: int) -> Tensor:
        if not isinstance(parameter, DTensor):
            return super().sample(parameter, start, stride)
        local = parameter.to_local().detach().reshape(-1)
        first = first_row(parameter, self.rank) * (parameter.numel() // parameter.shape[0])
        found = local.new_zeros(len(range(start, parameter.numel(), stride)))
        before = len(range(start, first, stride))
        held = local[start + before * stride - first :: stride]
        found[before : before + len(held)] = held
        return found

    def norms(self, norm_P: Tensor) -> Tensor:
        return torch.cat(self.gather(norm_P)) if self.sharded else norm_P

    def whole(self, model: nn.Module) -> None:
        full: dict[int, tuple[Tensor, nn.Parameter]] = {}
        for module in model.modules():
            for name, p in list(module._parameters.items()):
                if not isinstance(p, DTensor):
                    continue
                if id(p) not in full:
                    value = self.full(p, p.to_local()).to("cpu" if self.writes else "meta")
                    full[id(p)] = (p, nn.Parameter(value, requires_grad=p.requires_grad))
                module._parameters[name] = full[id(p)][1]
            if isinstance(module, FSDPModule):
                module._forward_pre_hooks.clear()
                module._forward_hooks.clear()
                for kept in [key for key in vars(module) if key.startswith("__composable_api")]:
                    del module.__dict__[kept]  # what FSDP knows of it, which no copy of the model could have
                module.__class__ = type(module).__mro__[2]  # what it was before it was divided

    def _from_first(self, said: bytes) -> bytes:
        size = torch.tensor([len(said)])
        dist.broadcast(size, src=0)
        sent = (
            torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else torch.zeros(int(size), dtype=torch.uint8)
        )
        dist.broadcast(sent, src=0)
        return bytes(sent.numpy())


class _Root(nn.Module):
    """What FSDP takes for the outermost module: our forwards call into a model at several places, and its own `forward` at none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        out = compute()  # no views: FSDP puts its hooks on what comes out
        return tuple(map(_no_view, out)) if isinstance(out, tuple) else _no_view(out)


def _no_view(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value._is_view() else value


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def first_row(parameter: DTensor, rank: int) -> int:
    """Where along the first axis the part of a rank begins: FSDP gives each the same number of rows, the last what is left."""
    rows = parameter.shape[0]
    return min(rank * -(-rows // parameter.device_mesh.size()), rows)


def divide(rows: np.ndarray, group: np.ndarray, work: np.ndarray, world: int) -> list[np.ndarray]:
    """A step's rows divided among `world` ranks: about as much work to each, prompt groups whole where they are no larger than a share.

    rows, group, work: (B,) the step's rows, the group of each, and how much there is to compute for it. Groups stay in the order of their first
    row. A pure function: every rank knows every rank's rows. A rank may have none.
    """
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    order = np.lexsort((np.arange(len(rows)), first[number]))
    borders = np.cumsum(np.bincount(np.argsort(np.argsort(first))[number]))  # where groups end
    done = np.r_[0, np.cumsum(work[order])]  # before each row
    share = done[-1] / world
    cuts = [0]
    for k in range(1, world):
        ahead = borders[borders > cuts[-1]]
        near = int(ahead[np.argmin(np.abs(done[ahead] - k * share))]) if len(ahead) else len(rows)
        if (
            abs(done[near] - k * share) > share / 2
        ):  # a group far beyond a share is cut: its prompt is then computed on two ranks
            near = max(cuts[-1], int(np.argmin(np.abs(done - k * share))))
        cuts.append(near)
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
    if "MASTER_ADDR" not in os.environ and not dist.is_initialized():
        raise HoldfastError(
            f"WORLD_SIZE is {world} and RANK is set, but not MASTER_ADDR: start the processes with torchrun, or unset WORLD_SIZE"
        )
    with _named_loss(int(os.environ["RANK"]), world):
        if run.device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if run.device.startswith("cuda") else "gloo", timeout=PATIENCE)
        _here = Several(dist.get_rank(), dist.get_world_size(), run.parallel == "sharded", run.device)
        try:
            yield _here
        finally:
            _here = Ranks()
            # Divided models hold the connections in cycles, and a connection that is left to the interpreter's end aborts the process.
            atexit.register(gc.collect)
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
