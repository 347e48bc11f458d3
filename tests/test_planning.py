"""Planning micro-batches: every row once, groups whole where they fit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from holdfast.language.planning import by_prompt, micro_batches, within_tokens


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


def test_tokens_by_hand():
    rows, prompt = np.array([10, 11, 12, 13]), np.array([0, 1, 0, 2])
    named = [[0, 1], [2], [1, 3], [4]]
    prompts, responses = np.array([5, 2, 4]), np.array([3, 4, 6, 7, 1])
    # Prompt 0 has 5 + 3 + 4 + 7 = 19 tokens (response 1 once), prompt 1 has 8, prompt 2 has 5.
    assert [m.tolist() for m in within_tokens(rows, prompt, named, prompts, responses, 100)] == [[10, 12, 11, 13]]
    assert [m.tolist() for m in within_tokens(rows, prompt, named, prompts, responses, 24)] == [[10, 12, 13], [11]]
    assert [m.tolist() for m in within_tokens(rows, prompt, named, prompts, responses, 16)] == [[10], [11, 13], [12]]
    assert [m.tolist() for m in within_tokens(rows, prompt, named, prompts, responses, 1)] == [[10], [11], [12], [13]]


@given(data=st.data())
def test_every_row_once_within_the_tokens(data):
    prompt = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=25)))
    responses = np.array(data.draw(st.lists(st.integers(1, 30), min_size=12, max_size=12)))
    prompts = np.array(data.draw(st.lists(st.integers(1, 40), min_size=6, max_size=6)))
    named = [data.draw(st.lists(st.sampled_from([2 * p, 2 * p + 1]), min_size=1, max_size=2)) for p in prompt.tolist()]
    most = data.draw(st.integers(1, 200))
    rows = np.arange(len(prompt)) * 3
    plan = within_tokens(rows, prompt, named, prompts, responses, most)
    assert sorted(np.concatenate(plan).tolist()) == rows.tolist()

    def size(places):
        of = {(p, r) for i in places for p, r in zip([int(prompt[i])] * len(named[i]), named[i], strict=True)}
        return sum(prompts[p] for p in {p for p, _ in of}) + sum(responses[r] for _, r in of)

    sizes = [size((m // 3).tolist()) for m in plan]
    assert all(s <= most or len(m) == 1 for s, m in zip(sizes, plan, strict=True))
    whole = [g for g in np.unique(prompt) if size(np.flatnonzero(prompt == g).tolist()) <= most]
    assert all(sum((prompt[m // 3] == g).any() for m in plan) == 1 for g in whole)
    assert sum(2 * s <= most for s in sizes) <= 1  # two halves would have gone together
