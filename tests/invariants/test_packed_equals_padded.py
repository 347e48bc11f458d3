"""The same log-probabilities and gradients whether a prompt is computed once for all its responses or once for each."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_models as tiny
from holdfast.language.policy import Policy, RewardModel

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt")
_models: dict[str, tuple] = {}


@st.composite
def batches(draw):
    """Prompts with some of their responses, judgements (edges) over them that share responses, and group boundaries
    anywhere: a prompt may come back in a later group, and a response too.
    """
    prompts = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    owner = [p for p in range(len(prompts)) for _ in range(draw(st.integers(1, 4)))]
    responses = draw(st.lists(st.integers(1, 11), min_size=len(owner), max_size=len(owner)))
    edges = draw(st.lists(st.tuples(*[st.integers(0, len(owner) - 1)] * 2), min_size=1, max_size=8))
    groups = [(owner[r], [r]) for edge in edges for r in edge]
    if draw(st.booleans()):
        groups = [(p, [r for q, (r,) in groups if q == p]) for p in dict.fromkeys(p for p, _ in groups)]
    return draw(st.integers(0, 2**31)), prompts, responses, owner, edges, groups


def _pair(family):
    """A packed policy and an untouched copy of its model, made once per family."""
    if family not in _models:
        plain = tiny.model(family)
        policy = Policy(copy.deepcopy(plain).train(), "packed")
        _models[family] = (policy, plain.train())
    return _models[family]


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _assert_close(got, expected):
    """Per parameter within 1e-4 relative; a gradient that is zero by symmetry (a key's bias) is measured by the whole."""
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        apart = (got[name] - gradient).norm()
        assert apart <= 1e-4 * gradient.norm() + 1e-6 * whole, (name, float(apart), float(gradient.norm()))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(batch=batches())
def test_policy(family, batch):
    _agree(family, batch)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(batch=batches())
def test_policy_at_length(family, batch):
    _agree(family, batch)


def _agree(family, batch):
    seed, prompts, responses, owner, edges, groups = batch
    tokens = tiny.random_tokens(seed, prompts, responses)
    policy, plain = _pair(family)

    packed = policy.batch(tokens, groups)
    named = list(dict.fromkeys(r for edge in edges for r in edge))
    assert sorted(packed.response_index.tolist()) == sorted(named)
    assert packed.n_tokens == sum(prompts[p] for p in {owner[r] for r in named}) + sum(responses[r] for r in named)

    got = policy.logps(packed)
    expected = tiny.oracle_logps(plain, tokens, [(owner[r], r) for r in packed.response_index])
    torch.testing.assert_close(got.token_N, torch.cat(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sum_R, torch.stack([e.sum() for e in expected]), atol=1e-5, rtol=1e-6)

    # A loss over judgements that share responses, DPO's shape.
    a, b = (packed.where([edge[side] for edge in edges]) for side in (0, 1))
    loss = -torch.nn.functional.logsigmoid(0.1 * (got.sum_R[a] - got.sum_R[b])).sum() - 0.1 * got.sum_R[a].sum()
    of = {r: e.sum() for r, e in zip(packed.response_index.tolist(), expected, strict=True)}
    plain_loss = sum(-torch.nn.functional.logsigmoid(0.1 * (of[a] - of[b])) - 0.1 * of[a] for a, b in edges)
    _assert_close(_gradients(policy.model, loss), _gradients(plain, plain_loss))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "mistral", "qwen2"])
def test_reward_model(family):
    rng = np.random.default_rng(3)
    for _ in range(2):
        prompts, responses = rng.integers(1, 14, 4).tolist(), rng.integers(1, 11, 9).tolist()
        tokens = tiny.random_tokens(int(rng.integers(1 << 30)), prompts, responses)
        groups = [(0, [0, 1, 2]), (1, [3]), (2, [4, 5, 6, 7]), (3, [8])]
        base = tiny.model(family)
        packed = RewardModel.on(copy.deepcopy(base), compute="packed")
        padded = RewardModel.on(base, compute="padded")
        a, b = (r.scores(r.batch(tokens, groups)) for r in (packed, padded))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        weight = torch.from_numpy(rng.normal(size=len(a))).float()
        _assert_close(_gradients(packed.model, (a * weight).sum()), _gradients(padded.model, (b * weight).sum()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_nothing(family):
    """The layout must reach a layer that is computed again in the backward, outside the forward's context."""
    tokens = tiny.random_tokens(0, [7, 3], [4, 6, 2])
    results = []
    for checkpointing in (False, True):
        policy = Policy(tiny.model(family).train(), "packed")
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        out = policy.logps(policy.batch(tokens, [(0, [0, 1]), (1, [2])]))
        results.append((out.token_N.detach(), _gradients(policy.model, out.sum_R.sum())))
    torch.testing.assert_close(results[0][0], results[1][0], atol=0, rtol=0)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=0, rtol=0)


def test_lora_packs_and_agrees():
    peft = pytest.importorskip("peft")
    tokens = tiny.random_tokens(1, [7, 3], [4, 6, 2])
    groups = [(0, [0, 1]), (1, [2])]
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.0)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny.model("llama"), config)
    plain = copy.deepcopy(adapted)
    policy = Policy(adapted, "packed")
    got = policy.logps(policy.batch(tokens, groups))
    expected = tiny.oracle_logps(plain, tokens, [(0, 0), (0, 1), (1, 2)])
    torch.testing.assert_close(got.token_N, torch.cat(expected), atol=1e-5, rtol=0)
    _assert_close(_gradients(adapted, got.sum_R.sum()), _gradients(plain, torch.cat(expected).sum()))


def test_packed_is_the_same_to_the_byte_twice():
    """Two threads, deterministic kernels: forward and backward give the same bits."""
    tokens = tiny.random_tokens(5, [40, 31, 22, 35], [20, 25, 9, 30, 18, 7, 22, 28])
    groups = [(0, [0, 1]), (1, [2, 3]), (2, [4, 5]), (3, [6, 7])]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        for family in ("llama", "gemma2", "gpt2"):
            runs = []
            policy = Policy(tiny.model(family).train(), "packed")
            for _ in range(3):
                out = policy.logps(policy.batch(tokens, groups))
                runs.append((out.sum_R.detach().clone(), _gradients(policy.model, (out.sum_R**2).sum())))
            for sums, gradients in runs[1:]:
                assert torch.equal(sums, runs[0][0])
                assert all(torch.equal(g, runs[0][1][name]) for name, g in gradients.items())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
