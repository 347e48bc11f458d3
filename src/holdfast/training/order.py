"""Which rows each step sees: a pure function of (rows, seed, epoch). There is no data-loader state.

Epochs follow one another without a gap, and step s (from 1) takes positions [(s-1) B, s B) of that endless sequence. In
each epoch every row comes exactly once, and the visits to one group are spread evenly over it. The keys are mixed from
the rows' own digests by integer arithmetic, not by a library's generator: the order is the same under any version of
numpy, and a group's keys do not depend on which other groups there are.
"""

# N rows, B rows per step, p = per_group.

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.data.merkle import merkle_root
from holdfast.errors import IntegrityError, RecipeError
from holdfast.recipe import TrainTable
from holdfast.training.determinism import derive
from holdfast.training.objective import Rows


def total_steps(settings: TrainTable, n_rows: int) -> int:
    """How long a run is: `steps`, or what `epochs` need (the last step may reach into the next epoch). One epoch where
    neither is said.
    """
    if settings.steps is not None:
        return settings.steps
    epochs = Fraction(repr(settings.epochs)) if settings.epochs is not None else Fraction(1)
    return math.ceil(epochs * n_rows / settings.batch)


class Order:
    """The order of a run.

    Raises RecipeError where no such order exists: no rows, a batch larger than the rows, or a group that has more rows
    than the steps of an epoch may take of it.
    """

    def __init__(self, rows: Rows, seed: int, per_group: int | None, batch: int):
        if not len(rows):
            raise RecipeError("there is no row to train on")
        if batch > len(rows):
            raise RecipeError(
                f"[train] batch {batch} is larger than the {len(rows)} rows to train on: a step would take a row twice; lower batch"
            )
        self.n, self.batch, self.per_group, self.seed = len(rows), batch, per_group, seed
        self._ids = rows.ids
        digests = np.frombuffer(bytes.fromhex("".join([row[:16] for row in rows.ids])), dtype=">u8").astype(np.uint64)
        self._row_key = digests
        _, self._group = np.unique(rows.group, return_inverse=True)
        self._group_size = np.bincount(self._group)
        # A group is known by its smallest row digest: its number in the dataset would change with other groups.
        self._group_key = np.full(len(self._group_size), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(self._group_key, self._group, digests)
        self._cache: dict[int, np.ndarray] = {}

    def step(self, s: int) -> np.ndarray:
        """(B,) int64: positions into the rows that step `s` takes, in order. Steps count from 1."""
        first, last = (s - 1) * self.batch, s * self.batch
        parts = []
        for epoch in range(first // self.n, (last - 1) // self.n + 1):
            start = epoch * self.n
            parts.append(self.epoch(epoch)[max(first - start, 0) : last - start])
        return np.concatenate(parts)

    def record(self, positions: np.ndarray) -> dict[str, Any]:
        """What the ledger says of a step's rows."""
        ids = [self._ids[i] for i in positions.tolist()]
        return {"rows": ids, "rows_root": rows_root(ids)}

    def epoch(self, epoch: int) -> np.ndarray:
        """(N,) int64: every row's position once, in the order of this epoch (from 0)."""
        if epoch not in self._cache:
            order = self._within(epoch)
            head = -epoch * self.n % self.batch  # rows by which this epoch fills the last step of the one before
            if head and epoch:
                self._mend_seam(order, head, self._within(epoch - 1)[-(self.batch - head) :], epoch)
            for old in [e for e in self._cache if e < epoch - 1]:
                del self._cache[old]
            self._cache[epoch] = order
        return self._cache[epoch]

    def _within(self, epoch: int) -> np.ndarray:
        """An epoch's order by itself: shuffled within groups, a group's visits evenly spread, at most p rows of a group
        in a step.
        """
        shuffled = np.argsort(mix(self._row_key, derive(self.seed, "order", epoch, "row")), kind="stable")
        by_group = shuffled[np.argsort(self._group[shuffled], kind="stable")]
        group = self._group[by_group]
        size = self._group_size[group]
        rank = np.arange(self.n) - (np.cumsum(self._group_size) - self._group_size)[group]
        visits = -(-size // self.per_group) if self.per_group else np.ones_like(size)
        visit = rank * visits // size
        offset = ((mix(self._group_key, derive(self.seed, "order", epoch, "group")) >> np.uint64(11)) + 0.5) * 2.0**-53
        key = (visit + offset[group]) / visits
        order = by_group[np.lexsort((rank, self._group_key[group], key))]
        if self.per_group:
            self._spread(order, epoch)
        return order

    def _spread(self, order: np.ndarray, epoch: int) -> None:
        """Swap rows, in place, until no step holds more than p rows of a group within this epoch.

        Visits are an even distance apart, so few steps need it: those whose group is so large that nearly every step
        must take of it.
        """
        p, first = self.per_group or self.n, epoch * self.n
        step = (np.arange(self.n) + first) // self.batch
        step -= step[0]
        n_steps = int(step[-1]) + 1
        largest = int(self._group_size.argmax())
        if self._group_size[largest] > p * n_steps:
            raise self._impossible(largest, n_steps)
        group = self._group[order]
        by = np.lexsort((step, group))
        new = np.r_[True, (np.diff(group[by]) != 0) | (np.diff(step[by]) != 0)]
        start = np.flatnonzero(new)
        nth = np.arange(self.n) - np.repeat(start, np.diff(np.r_[start, self.n]))
        excess = np.sort(by[nth >= p])
        if not len(excess):
            return
        count: dict[tuple[int, int], int] = {}
        taken, n = np.unique(step * len(self._group_size) + group, return_counts=True)
        for at, many in zip(taken.tolist(), n.tolist(), strict=True):
            count[divmod(at, len(self._group_size))] = many
        bounds = np.searchsorted(step, np.arange(n_steps + 1))
        for i in excess.tolist():
            here, g = int(step[i]), int(group[i])
            if count[here, g] <= p:
                continue
            for there in np.argsort(np.abs(np.arange(n_steps) - here), kind="stable").tolist():
                if count.get((there, g), 0) >= p:
                    continue
                k = next(
                    (k for k in range(bounds[there], bounds[there + 1]) if count.get((here, int(group[k])), 0) < p),
                    None,
                )
                if k is None:
                    continue
                other = int(group[k])
                for at, change in (((here, g), -1), ((there, g), 1), ((there, other), -1), ((here, other), 1)):
                    count[at] = count.get(at, 0) + change
                order[i], order[k] = order[k], order[i]
                group[i], group[k] = other, g
                break
            else:
                raise self._impossible(g, n_steps)

    def _mend_seam(self, order: np.ndarray, head: int, tail: np.ndarray, epoch: int) -> None:
        """Swap rows out of this epoch's first `head`, in place, that clash with the tail of the epoch before in their
        common step.

        A clash is the same row twice, or more than p rows of a group. Only rows of this epoch's whole steps come in
        exchange: its own tail stays, so the next epoch can be known without this one. (Where an epoch has no whole
        step, a row may stand twice in the step between.)
        """
        p = self.per_group or self.n
        in_tail = set(tail.tolist())
        count = np.bincount(self._group[tail], minlength=len(self._group_size))
        count += np.bincount(self._group[order[:head]], minlength=len(self._group_size))
        whole = head + (self.n - head) // self.batch * self.batch
        for i in range(head):
            row, g = int(order[i]), int(self._group[order[i]])
            if row not in in_tail and count[g] <= p:
                continue
            for k in range(head, whole):
                other, h = int(order[k]), int(self._group[order[k]])
                if other in in_tail or (h != g and count[h] >= p) or (h == g and count[g] > p):
                    continue
                begin = head + (k - head) // self.batch * self.batch
                if h != g and int((self._group[order[begin : begin + self.batch]] == g).sum()) >= p:
                    continue
                order[i], order[k] = other, row
                count[g] -= 1
                count[h] += 1
                break
            else:
                if count[g] > p:
                    raise self._impossible(g, -(-self.n // self.batch))

    def _impossible(self, group: int, n_steps: int) -> RecipeError:
        first = min(self._ids[i] for i in np.flatnonzero(self._group == group).tolist())
        return RecipeError(
            f"[train] per_prompt {self.per_group} cannot hold: the group of row {first[:12]}.. has {self._group_size[group]} rows, and an epoch "
            f"of {self.n} rows is {n_steps} steps of {self.batch}; raise per_prompt or lower batch"
        )


class Draws:
    """The order of a run whose steps are many small updates of several members: each member an order of its own.

    Member k of a run with seed s draws as the only member of a run with seed s + k would: its epochs follow one
    another without a gap, each the rows shuffled by a key of (row, seed, epoch), and update u (from 0) takes positions
    [u B, (u + 1) B) of them. With `bootstrap` a member's rows are those of as many groups as there are, drawn with
    replacement once.

    Raises RecipeError where there is no row.
    """

    def __init__(self, rows: Rows, seed: int, members: int, updates: int, batch: int, bootstrap: bool = False):
        if not len(rows):
            raise RecipeError("there is no row to train on")
        self.members, self.updates, self.batch, self.seed = members, updates, batch, seed
        self._digests = np.frombuffer(bytes.fromhex("".join(rows.ids)), dtype=np.uint8).reshape(-1, 32)
        self._row_key = self._digests[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)
        self._of_member = [self._resampled(rows.group, seed + k) if bootstrap else None for k in range(members)]
        self._cache: list[dict[int, np.ndarray]] = [{} for _ in range(members)]

    def step(self, s: int) -> np.ndarray:
        """(updates * members * batch,) int64: positions into the rows; update by update, in each member by member."""
        each = [self._of(k, (s - 1) * self.updates, s * self.updates) for k in range(self.members)]
        return np.stack(each, axis=1).reshape(-1)

    def record(self, positions: np.ndarray) -> dict[str, Any]:
        """What the ledger says of a step's rows: too many to list, they are hashed, and follow from the order."""
        return {"drawn": len(positions), "rows_sha256": hashlib.sha256(self._digests[positions].tobytes()).hexdigest()}

    def _of(self, k: int, first: int, last: int) -> np.ndarray:
        """(last - first, batch): the positions of member k's updates first to last."""
        start, end, parts = first * self.batch, last * self.batch, []
        n = len(self._epoch(k, 0))
        for epoch in range(start // n, (end - 1) // n + 1):
            parts.append(self._epoch(k, epoch)[max(start - epoch * n, 0) : end - epoch * n])
        return np.concatenate(parts).reshape(-1, self.batch)

    def _epoch(self, k: int, epoch: int) -> np.ndarray:
        cache = self._cache[k]
        if epoch not in cache:
            own = self._of_member[k]
            keys = self._row_key if own is None else mix(self._row_key[own], 0) + np.arange(len(own), dtype=np.uint64)
            shuffled = np.argsort(mix(keys, derive(self.seed + k, "draws", epoch)), kind="stable")
            for old in [e for e in cache if 0 < e < epoch - 1]:
                del cache[old]
            cache[epoch] = shuffled if own is None else own[shuffled]
        return cache[epoch]

    def _resampled(self, group: np.ndarray, seed: int) -> np.ndarray:
        """The positions of the rows of as many groups as there are, drawn with replacement."""
        _, of = np.unique(group, return_inverse=True)
        n = int(of.max()) + 1
        by_group = np.argsort(of, kind="stable")
        start = np.searchsorted(of[by_group], np.arange(n + 1))
        drawn = mix(np.arange(n, dtype=np.uint64), derive(seed, "bootstrap")) % np.uint64(n)
        return np.concatenate([by_group[start[g] : start[g + 1]] for g in drawn.astype(np.int64).tolist()])


def order_of(
    rows: Rows, seed: int, per_prompt: int | None, batch: int, draws: Mapping[str, Any] | None = None
) -> Order | Draws:
    """The order of a run: one of single steps, or where the objective says so (`Learner.draws`) one of draws, which may say
    a batch of their own."""
    return Order(rows, seed, per_prompt, batch) if draws is None else Draws(rows, seed, **{"batch": batch, **draws})


def mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014) over keys and a seed: uint64 in, uint64 out, a
    bijection for each seed.
    """
    with np.errstate(over="ignore"):
        z = (keys ^ np.uint64(seed)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def rows_root(ids: Sequence[str]) -> str:
    """The Merkle root of row ids, in their order."""
    return merkle_root(bytes.fromhex(row) for row in ids).hex()


def write_rows(rows: Rows, path: Path) -> None:
    """The rows a run trains on, in order: id (32 bytes), group, index. The same rows give the same bytes."""
    raw = b"".join(bytes.fromhex(row) for row in rows.ids)
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(rows), [None, pa.py_buffer(raw)])
    table = pa.table({"id": ids, "group": pa.array(rows.group, pa.int64()), "index": pa.array(rows.index, pa.int64())})
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary, compression="none", use_dictionary=False, row_group_size=1 << 16)
    temporary.replace(path)


def read_rows(path: Path) -> Rows:
    """What `write_rows` wrote. Raises IntegrityError where the file cannot be read as that."""
    try:
        table = pq.read_table(path, memory_map=False)
        ids = [row.hex() for row in table["id"].to_pylist()]
        return Rows(ids, table["group"].to_numpy(), table["index"].to_numpy())
    except (pa.ArrowException, OSError, KeyError, AttributeError, ValueError) as problem:
        raise IntegrityError(f"{path} cannot be read: {str(problem).splitlines()[0]}") from None
