"""Planning micro-batches: every row once, groups whole where they fit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from holdfast.language.planning import by_prompt, micro_batches


def test_by_hand():
    rows, prompt = np.array([10, 11, 12, 13, 14]), np.array([7, 3, 7, 3, 9])
    assert [m.tolist() for m in micro_batches(rows, prompt, 8)] == [[10, 12, 11, 13, 14]]
    assert [m.tolist() for m in micro_batches(rows, prompt, 3)] == [[10, 12], [11, 13, 14]]
    assert [m.tolist() for m in micro_batches(rows, prompt, 1)] == [[10], [12], [11], [13], [14]]
    assert by_prompt([7, 7, 3, 7], [1, 2, 5, 1]) == [(7, [1, 2]), (3, [5])]


@given(prompt=st.lists(st.integers(0, 6), min_size=1, max_size=40), most=st.integers(1, 45))
def test_every_row_once_none_too_large_and_only_large_groups_are_cut(prompt, most):
    rows, prompt = np.arange(len(prompt)) * 3, np.array(prompt)
    plan = micro_batches(rows, prompt, most)
    assert sorted(np.concatenate(plan).tolist()) == rows.tolist()
    assert all(0 < len(m) <= most for m in plan)
    for group in np.unique(prompt):
        holders = [i for i, m in enumerate(plan) if (prompt[m // 3] == group).any()]
        if (prompt == group).sum() <= most and len(holders) > 1:
            # a group that fits may be cut only where it was joined to the tail of one that did not fit
            raise AssertionError(f"group {group} was cut over micro-batches {holders}")
