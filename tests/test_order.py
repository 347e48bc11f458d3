"""The order of rows: exactly once per epoch, groups spread and capped, and the same under any library's version."""

from __future__ import annotations

import hashlib
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import IntegrityError, RecipeError
from holdfast.recipe import TrainTable
from holdfast.training.determinism import derive
from holdfast.training.objective import Rows
from holdfast.training.order import Order, mix, read_rows, rows_root, total_steps, write_rows


def rows_of(groups: list[int] | np.ndarray, start: int = 0) -> Rows:
    ids = [hashlib.sha256(f"row {start + i}".encode()).hexdigest() for i in range(len(groups))]
    return Rows(ids, np.asarray(groups, dtype=np.int64), np.arange(len(groups), dtype=np.int64))


def test_mix_is_splitmix64():
    # The published first outputs of SplitMix64 for the seed 1234567: its state grows by the golden gamma at each.
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + i * gamma) % 2**64 for i in range(5)]
    assert mix(np.array(states, dtype=np.uint64), 0).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def mixed(x: int, seed: int) -> int:
    z = ((x ^ seed) + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def by_hand(rows: Rows, seed: int, epoch: int, per_group: int | None) -> list[int]:
    """The definition, in exact arithmetic: visit j of group g stands at (j + u_g) / m_g."""
    key = [int(row[:16], 16) for row in rows.ids]
    members: dict[int, list[int]] = {}
    for i, g in enumerate(rows.group.tolist()):
        members.setdefault(g, []).append(i)
    placed = []
    for inside in members.values():
        inside.sort(key=lambda i: mixed(key[i], derive(seed, "order", epoch, "row")))
        name = min(key[i] for i in inside)
        u = Fraction((mixed(name, derive(seed, "order", epoch, "group")) >> 11) * 2 + 1, 2**54)
        visits = math.ceil(len(inside) / per_group) if per_group else 1
        for rank, i in enumerate(inside):
            placed.append(((rank * visits // len(inside) + u) / visits, name, rank, i))
    return [i for *_, i in sorted(placed)]


@pytest.mark.parametrize("per_group", [None, 1, 3])
def test_an_epoch_is_what_its_definition_says(per_group):
    rows = rows_of([0] * 7 + [1, 2, 3, 4, 5] + [6] * 4 + list(range(10, 60)))
    order = Order(rows, 5, per_group, 2)
    for epoch in range(3):
        # with a batch of 2 and these groups nothing needs to be swapped in epoch 0; later seams may swap a few
        expected = by_hand(rows, 5, epoch, per_group)
        found = order.epoch(epoch).tolist()
        assert sum(a != b for a, b in zip(found, expected, strict=True)) <= (0 if epoch == 0 else 4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4)
)
def test_every_row_once_an_epoch_and_the_cap_holds_in_every_step(groups, seed, batch, cap):
    rows = rows_of(groups)
    largest, n = max(np.bincount(groups)), len(groups)
    try:
        order = Order(rows, seed, cap, batch)
        steps = [order.step(s).tolist() for s in range(1, 4 * n // batch + 2)]
    except RecipeError:
        assert n < 4 * batch or largest * 2 > cap * (n // batch), "refused though half the steps' room would do"
        return
    endless = [i for step in steps for i in step]
    for epoch in range(len(endless) // n):
        assert sorted(endless[epoch * n : (epoch + 1) * n]) == list(range(n))
    for step in steps:
        assert max(np.bincount([groups[i] for i in step])) <= cap


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 60), st.integers(2, 7), st.integers(0, 1000))
def test_no_row_twice_in_a_step_between_two_epochs(n, batch, seed):
    order = Order(rows_of(np.arange(n) % 11), seed, None, batch)
    for s in range(1, 5 * n // batch):
        assert len(set(order.step(s).tolist())) == batch


def test_a_step_is_a_function_of_its_number_alone():
    rows = rows_of(np.arange(50) % 7)
    forward = Order(rows, 3, 2, 8)
    steps = {s: forward.step(s).tolist() for s in range(1, 40)}
    for s in (39, 1, 20, 7, 33):
        assert Order(rows, 3, 2, 8).step(s).tolist() == steps[s]
    backward = Order(rows, 3, 2, 8)
    assert {s: backward.step(s).tolist() for s in reversed(range(1, 40))} == steps
    assert Order(rows, 4, 2, 8).step(1).tolist() != steps[1]
    assert forward.epoch(0).tolist() != forward.epoch(1).tolist()


def test_a_groups_visits_are_spread_evenly():
    groups = np.r_[np.zeros(20, dtype=int), np.arange(1, 381)]
    at = np.flatnonzero(groups[Order(rows_of(groups), 1, 1, 4).epoch(0)] == 0)
    gaps = np.diff(at)
    # 20 apart, give or take the others between (binomial, sd 4.2); placed at random, the gaps' sd would be about 20
    assert gaps.std() < 7 and gaps.min() >= 6 and gaps.max() <= 34


def test_without_a_cap_a_group_comes_at_once():
    groups = np.arange(60) // 3
    seen = groups[Order(rows_of(groups), 1, None, 6).epoch(0)]
    assert (seen.reshape(-1, 3) == seen[::3, None]).all()


def test_other_groups_do_not_move_a_group():
    rows = rows_of(np.arange(60) % 20)
    kept = [i for i in range(60) if i % 20 != 7]
    fewer = Rows([rows.ids[i] for i in kept], rows.group[kept] + 100, np.arange(len(kept)))
    order = [rows.ids[i] for i in Order(rows, 9, None, 4).epoch(0)]
    assert [fewer.ids[i] for i in Order(fewer, 9, None, 4).epoch(0)] == [row for row in order if row in set(fewer.ids)]


def test_what_cannot_be_ordered_is_refused():
    with pytest.raises(RecipeError, match="no row"):
        Order(rows_of([]), 0, None, 1)
    with pytest.raises(RecipeError, match=r"batch 9 is larger than the 8 rows"):
        Order(rows_of([0] * 8), 0, None, 9)
    rows = rows_of([0] * 10 + list(range(1, 7)))
    with pytest.raises(RecipeError, match=rf"per_prompt 2 .* {min(rows.ids[:10])[:12]}.. has 10 rows.* 4 steps of 4"):
        Order(rows, 0, 2, 4).step(1)
    assert (np.bincount(rows.group[Order(rows, 0, 3, 4).step(1)]) <= 3).all()


def test_steps_of_a_run():
    def steps(n: int, **said) -> int:
        return total_steps(TrainTable(batch=8, **said), n)

    assert steps(100, steps=7) == 7
    assert steps(100, epochs=1) == 13 and steps(96, epochs=1) == 12
    assert steps(100, epochs=0.1) == 2 and steps(80, epochs=0.1) == 1  # 0.1 as said, not as a binary float
    assert steps(80, epochs=2.5) == 25
    assert steps(100) == 13  # one epoch


def test_rows_on_disk(tmp_path):
    rows = rows_of(np.arange(30) % 4)
    write_rows(rows, tmp_path / "a.parquet")
    write_rows(rows, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = read_rows(tmp_path / "a.parquet")
    assert back.ids == rows.ids and (back.group == rows.group).all() and (back.index == rows.index).all()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(IntegrityError, match=r"a\.parquet cannot be read"):
        read_rows(tmp_path / "a.parquet")
    one, two = (hashlib.sha256(b"\0" + bytes.fromhex(row)).digest() for row in rows.ids[:2])
    assert rows_root(rows.ids[:2]) == hashlib.sha256(b"\1" + one + two).hexdigest()


@pytest.mark.slow
def test_two_million_rows_in_seconds():
    rng = np.random.default_rng(0)
    n = 2_000_000
    raw = rng.bytes(32 * n)
    ids = [raw[i : i + 32].hex() for i in range(0, 32 * n, 32)]
    rows = Rows(ids, rng.integers(0, 500_000, n), np.arange(n))
    began = time.perf_counter()
    order = Order(rows, 0, 2, 64)
    assert len(order.step(1)) == 64
    assert time.perf_counter() - began < 20
