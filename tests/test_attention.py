from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function, sliding_window_overlay

from holdfast.language import attention
from holdfast.language.attention import NAME, CannotPack, Masks, attending
from holdfast.language.packing import pack
from holdfast.language.policy import Policy
from tiny_models import VOCABULARY, model, random_tokens


def _plan(prompts=(3,), responses=(2, 3), width=1):
    some = random_tokens(0, prompts, responses)
    return pack(some, [(0, range(len(responses)))], width=width).plan


def _ask(plan, **kwargs):
    with attending(plan):
        return attention._mask(batch_size=1, q_length=8, kv_length=8, **kwargs)


def test_masks_by_hand():
    plan = _plan()  # one call for the prompt (3 tokens), one for both responses (2 and 3 tokens after it)
    prompt, responses = _ask(plan, mask_function=causal_mask_function).masks
    assert prompt is None  # plain causal
    # responses of 2 and 3 tokens at positions 3, 4 and 3, 4, 5; keys 0..2 are the prompt's; the first is padded
    x, _ = True, False
    assert responses[:, 0].tolist() == [
        [[x, x, x, x, _, _], [x, x, x, x, x, _], [x, x, x, x, x, _]],
        [[x, x, x, x, _, _], [x, x, x, x, x, _], [x, x, x, x, x, x]],
    ]


def test_patterns_are_evaluated_at_logical_positions():
    plan, x, _ = _plan(), True, False

    def window(*at):
        return causal_mask_function(*at) & sliding_window_overlay(2)(*at)

    prompt, responses = _ask(plan, mask_function=window, local_size=2).masks
    assert prompt[0, 0].tolist() == [[x, _, _], [x, x, _], [_, x, x]]
    # every response goes on from position 3, wherever on the row it lies
    assert responses[:, 0].tolist() == [
        [[_, _, x, x, _, _], [_, _, _, x, x, _], [_, _, _, x, x, _]],
        [[_, _, x, x, _, _], [_, _, _, x, x, _], [_, _, _, _, x, x]],
    ]
    # wider than the longest sequence, the window is plain causal attention
    assert _ask(plan, mask_function=window, local_size=6).masks[0] is None

    def chunks(*at):
        return causal_mask_function(*at) & chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))(*at)

    prompt, responses = _ask(plan, mask_function=chunks, local_size=4).masks
    assert prompt[0, 0].tolist() == [[x, _, _], [x, x, _], [x, x, x]]
    assert responses[1, 0].tolist() == [[x, x, x, x, _, _], [_, _, _, _, x, _], [_, _, _, _, x, x]]


def test_one_set_of_masks_per_pattern_shared_by_the_layers(monkeypatch):
    made = []
    monkeypatch.setattr(attention, "Masks", lambda *a: made.append(Masks(*a)) or made[-1])
    causal = model("gemma2", num_hidden_layers=2)  # one sliding, one full layer
    causal.set_attn_implementation(NAME)
    seen = []
    monkeypatch.setattr(attention, "isinstance", lambda a, b: True, raising=False)
    monkeypatch.setattr(attention, "_softcapped", lambda q, k, v, mask, *_: seen.append(mask) or q)
    packed = pack(random_tokens(0, [9], [4, 4]), [(0, [0, 1])], width=1)
    with attending(packed.plan):
        causal.model(input_ids=packed.ids_BL, attention_mask=torch.ones_like(packed.ids_BL), use_cache=False)
    assert len(made) == 2  # full and sliding
    assert [m is None for m in seen] == [False, False, True, False]  # per layer: prompt bucket, response bucket


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"use_vmap": True}, "mask of its own"),
        ({"mask_function": lambda b, h, q, k: k >= 0}, "later tokens"),
    ],
)
def test_masks_that_a_row_cannot_have_are_refused(asked, names):
    with pytest.raises(CannotPack, match=names):
        _ask(_plan(), **asked)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"dropout": 0.1}, "dropout 0.1"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"position_bias": torch.zeros(2)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
        ({"tokens": 9}, "9 tokens"),
    ],
)
def test_attention_that_a_row_cannot_have_is_refused(asked, names):
    plan = _plan()
    n = asked.pop("tokens", 8)
    q = torch.randn(1, 2, n, 4)
    with pytest.raises(CannotPack, match=names):
        attention._attend(torch.nn.Module(), q, q, q, Masks(plan, (None, None)), **asked)


def test_a_layer_with_a_mask_of_its_own_is_refused():
    q = torch.randn(1, 2, 8, 4)
    with attending(_plan()), pytest.raises(CannotPack, match="own attention mask"):
        attention._attend(torch.nn.Module(), q, q, q, None)


def test_softcap_by_hand():
    # one query, two keys: scores 2 and 0, capped at 1: tanh(2) and 0
    q, k = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0], [0.0]]]])
    v = torch.tensor([[[[1.0], [0.0]]]])
    got = attention._softcapped(q, k, v, torch.ones(1, 1, 1, 2, dtype=torch.bool), 1.0, 1.0, 0.0)
    cap = math.exp(math.tanh(2.0))
    torch.testing.assert_close(got.item(), cap / (cap + 1))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_without_a_plan_the_model_is_what_it_was(family):
    """A switched model still scores padded batches and generates as it did: for sampling, and for whoever uses it next."""
    before = model(family).eval()
    after = copy.deepcopy(before)
    after.set_attn_implementation(NAME)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, 12), generator=generator)
    left = torch.ones_like(ids)
    left[0, :5] = left[1, :2] = 0
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        for mask in (None, left.flip(1), left):
            a, b = (m(input_ids=ids, attention_mask=mask).logits for m in (before, after))
            real = slice(None) if mask is None else mask.bool()
            torch.testing.assert_close(a[real], b[real], atol=2e-6, rtol=1e-5)
        assert torch.equal(
            before.generate(ids, attention_mask=left, **asked), after.generate(ids, attention_mask=left, **asked)
        )


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
def test_one_call_of_flex_attention_is_the_buckets(family, monkeypatch):
    """The block mask and the softcap of the GPU's way, computed here without a kernel: values and gradients."""
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(flex, "_validate_device", lambda *a: None)  # it trains on no CPU, but its written-out form does
    changes = {} if family == "gpt2" else {"head_dim": 16}
    policy = Policy(model(family, **changes), "packed")
    packed = policy.batch(random_tokens(3, [7, 1, 12], [5, 9, 1, 4, 6]), [(0, [0, 1]), (1, [2]), (2, [3, 4])])

    def found():
        policy.model.zero_grad()
        token_N = policy.logps(packed).token_N
        token_N.sum().backward()
        return token_N.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}

    buckets, their = found()
    asked = []
    monkeypatch.setattr(attention, "_by_flex", lambda *a: asked.append(a) or True)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex.flex_attention)
    at_once, ours = found()
    assert asked
    torch.testing.assert_close(at_once, buckets, atol=1e-5, rtol=0)
    for name, gradient in their.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-4, rtol=1e-4)


def test_where_flex_attention_computes():
    assert not attention._by_flex(torch.device("cpu"), None)
