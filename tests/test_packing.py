from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import DataError
from holdfast.language.packing import _runs, pack, pad
from tiny_models import random_tokens, tokens


def test_pack_by_hand():
    some = tokens([[10, 11, 12], [20]], [[30, 31], [40], [50, 51, 52], [60]])
    # prompt 0 comes twice and response 0 twice; response 3 is not asked for
    packed = pack(some, [(0, [0, 1]), (1, [2]), (0, [0])])
    assert packed.ids_BL.tolist() == [[10, 11, 12, 30, 31, 40, 20, 50, 51, 52]]
    assert packed.position_BL.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3]]
    assert packed.response_index.tolist() == [0, 1, 2]
    assert packed.place_N.tolist() == [3, 4, 5, 7, 8, 9]
    assert packed.source_N.tolist() == [2, 3, 2, 6, 7, 8]  # the first token of a response comes from its prompt's last
    assert packed.target_N.tolist() == [30, 31, 40, 50, 51, 52]
    assert packed.owner_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.last_R.tolist() == [4, 5, 9]
    assert packed.length_R.tolist() == [2, 1, 3]
    assert packed.longest == 5
    assert packed.n_tokens == 10
    assert packed.where([2, 0, 2]).tolist() == [2, 0, 2]


def test_a_long_row_is_filled_up_to_an_even_length():
    some = tokens([[10, 11] * 12, [20, 21, 22]], [[30] * 5, [40, 41]])
    groups = [(0, [0]), (1, [1])]
    assert pack(some, groups, even=5).n_tokens == 34  # too short a row: the filler could be a large part of it
    plain, filled = (pack(some, groups, even=even) for even in (1, 4))
    assert filled.ids_BL[0].tolist() == [*plain.ids_BL[0].tolist(), 10, 10]
    assert filled.position_BL[0].tolist() == [*plain.position_BL[0].tolist(), 0, 1]
    for name in ("place_N", "source_N", "target_N", "owner_N", "last_R", "length_R"):
        assert getattr(filled, name).tolist() == getattr(plain, name).tolist()
    assert filled.longest == plain.longest
    assert filled.plan.segment_T.tolist() == [0] * 24 + [24] * 5 + [29] * 3 + [32] * 2 + [34] * 2
    assert filled.plan.prompt_T.tolist() == [0] * 29 + [29] * 5 + [34] * 2  # it sees nothing of the others


def test_pad_by_hand():
    some = tokens([[10, 11, 12], [20]], [[30, 31], [40], [50, 51, 52]])
    padded = pad(some, [(0, [0, 1]), (1, [2])], padding=9)
    assert padded.ids_BL.tolist() == [[10, 11, 12, 30, 31], [10, 11, 12, 40, 9], [20, 50, 51, 52, 9]]
    assert padded.mask_BL.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert padded.place_N.tolist() == [3, 4, 8, 11, 12, 13]
    assert padded.source_N.tolist() == [2, 3, 7, 10, 11, 12]
    assert padded.target_N.tolist() == [30, 31, 40, 50, 51, 52]
    assert padded.owner_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert padded.last_R.tolist() == [4, 8, 13]
    assert padded.n_tokens == 15


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    k=st.integers(1, 5),
    width=st.sampled_from([1, 64, 512, 10**9]),
)
def test_plan_is_each_tokens_own_past(seed, prompts, k, width):
    """What the gathers and masks let each token see, spelt out, is its prompt and itself up to itself: for any bucketing,
    from one call for all segments (width 1) to one call each.
    """
    some = random_tokens(seed, prompts, np.random.default_rng(seed).integers(1, 30, k * len(prompts)))
    packed = pack(some, [(p, range(p * k, p * k + k)) for p in range(len(prompts))], width=width)
    plan, n = packed.plan, packed.n_tokens

    start, expected = 0, {}
    for p in range(len(prompts)):
        length = len(some.prompts[p])
        for i in range(length):
            expected[start + i] = list(range(start, start + i + 1))
        at = start + length
        for r in range(p * k, p * k + k):
            for i in range(len(some.responses[r])):
                expected[at + i] = [*range(start, start + length), *range(at, at + i + 1)]
            at += len(some.responses[r])
        start = at

    seen, query_of_slot = [], []
    q_at = k_at = 0
    for bucket in plan.buckets:
        (s, nq), nk = bucket.q_position_SQ.shape, bucket.k_position_SK.shape[1]
        q = plan.q_index[q_at : q_at + s * nq].view(s, nq)
        keys = plan.k_index[k_at : k_at + s * nk].view(s, nk)
        q_at, k_at = q_at + s * nq, k_at + s * nk
        for i in range(s):
            for j in range(nq):
                allowed = (bucket.k_position_SK[i] >= 0) & (bucket.k_position_SK[i] <= bucket.q_position_SQ[i, j])
                if bucket.causal:  # computed without a mask, as query j seeing keys 0..j: the same for every real query
                    real = bool((bucket.q_position_SQ[i] == j).any())
                    assert not real or allowed.tolist() == [x <= j for x in range(nk)]
                seen.append(keys[i][allowed].tolist())
                query_of_slot.append(int(q[i, j]))
    assert q_at == len(plan.q_index) and k_at == len(plan.k_index)
    assert len(plan.slot_T) == n
    for t, slot in enumerate(plan.slot_T.tolist()):
        assert query_of_slot[slot] == t
        assert seen[slot] == expected[t]
    assert all(seen)  # a padding query sees something too: no softmax over nothing


def test_bucketing_weighs_calls_against_padding():
    n = np.array([10, 11, 100, 10])
    assert sorted(map(sorted, _runs(n, n, call_cost=500))) == [[0, 1, 3], [2]]
    assert len(_runs(n, n, call_cost=0)) >= 2  # only segments of one size share a call
    assert [sorted(run) for run in _runs(n, n, call_cost=1e9)] == [[0, 1, 2, 3]]


def test_bucketing_is_optimal_on_one_axis():
    """Against all ways to cut the sorted list."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = np.sort(rng.integers(1, 60, 8))
        cost = float(rng.integers(0, 3000))

        def price(cuts, n=n, cost=cost):
            edges = [0, *cuts, len(n)]
            return sum(cost + (b - a) * int(n[b - 1]) ** 2 for a, b in itertools.pairwise(edges))

        every = [[i + 1 for i in range(7) if mask >> i & 1] for mask in range(1 << 7)]
        runs = _runs(n, n, cost)
        assert sum(cost + len(run) * int(n[run].max()) ** 2 for run in runs) == min(map(price, every))


@pytest.mark.parametrize(
    ("prompts", "responses", "groups", "names"),
    [
        ([[]], [[5]], [(0, [0])], "prompt 0 has no tokens"),
        ([[5]], [[5], []], [(0, [0, 1])], "response 1 has no tokens"),
        ([[5]], [[5]], [(0, [])], "at least one response"),
        ([[5]], [[5]], [], "at least one response"),
    ],
)
def test_nothing_to_predict_is_an_error(prompts, responses, groups, names):
    for make in (pack, pad):
        with pytest.raises(DataError, match=names):
            make(tokens(prompts, responses), groups)


def test_to_moves_every_tensor():
    packed = pack(tokens([[5, 6]], [[7], [8, 9]]), [(0, [0, 1])]).to("meta")
    tensors = [v for v in vars(packed).values() if isinstance(v, torch.Tensor)]
    tensors += [packed.plan.q_index, packed.plan.k_index, packed.plan.slot_T]
    tensors += [t for b in packed.plan.buckets for t in (b.q_position_SQ, b.k_position_SK)]
    assert len(tensors) >= 13
    assert {str(t.device) for t in tensors} == {"meta"}
