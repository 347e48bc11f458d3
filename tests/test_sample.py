"""Sampling against `generate`, against a full forward, against the distribution; and independent of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from holdfast.errors import DataError
from holdfast.language.policy import Policy
from holdfast.language.sample import _draw, sample
from holdfast.language.scratch import train_tokenizer

LINE = "kelp grips the rock and the rock holds the kelp in twelve storms"
PROMPTS = [
    "kelp",
    "the rock grips the kelp and",
    "storms in the rock",
    "grips",
    "in twelve storms the kelp holds",
    "rock",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small gain nothing from a second thread, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([LINE] * 5, 300)


def tiny(family: str, tokenizer):
    """Random weights, spread wide, so that the next token is neither certain nor a coin toss."""
    torch.manual_seed(0)
    common = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
    }
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(**common, **shape, num_key_value_heads=2, max_position_embeddings=64)
        ).eval()
    if family == "mistral":
        return MistralForCausalLM(
            MistralConfig(**common, **shape, num_key_value_heads=2, max_position_embeddings=64, sliding_window=6)
        ).eval()
    return GPT2LMHeadModel(
        GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    ).eval()


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def model(request, tokenizer):
    return tiny(request.param, tokenizer)


def test_greedy_is_generate(model, tokenizer):
    """Ours in one left-padded batch, `generate` one prompt at a time; stop tokens planted where they would fall."""
    free = sample(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)
    said = [set(answer.ids.tolist()) for (answer,) in free]
    planted = next(t for t in sorted(set.union(*said)) if 2 <= sum(t in s for s in said) <= 4)
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, planted]
    try:
        answers = sample(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0, batch=4)
        for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
            assert answer.ids.tolist() == expected[0, ids.shape[1] :].tolist()
            assert answer.finished == (answer.ids[-1] in (tokenizer.eos_token_id, planted))
            assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True)
        assert {a.finished for (a,) in answers} == {True, False}, "the case is there: some stop early, some do not"
    finally:
        model.generation_config.eos_token_id = before


def test_logp_is_that_of_a_full_forward(model, tokenizer):
    answers = sample(model, tokenizer, PROMPTS, max_new_tokens=10, temperature=0.7, top_p=0.9, n=3, seed=5)
    for prompt, several in zip(PROMPTS, answers, strict=True):
        head = tokenizer(prompt)["input_ids"]
        assert len(several) == 3
        for answer in several:
            with torch.no_grad():
                logits = model(torch.tensor([[*head, *answer.ids.tolist()]])).logits[0]
            logp = logits[len(head) - 1 : -1].log_softmax(-1)
            expected = logp[torch.arange(len(answer.ids)), torch.from_numpy(answer.ids).long()]
            np.testing.assert_allclose(answer.logp, expected.numpy(), rtol=1e-4, atol=1e-5)
            assert answer.logp.dtype == np.float32 and answer.ids.dtype == np.int32


def test_answers_do_not_depend_on_the_batch(model, tokenizer):
    said = [
        [
            [a.ids.tolist() for a in several]
            for several in sample(model, tokenizer, PROMPTS, max_new_tokens=10, n=2, seed=3, batch=b)
        ]
        for b in (1, 2, 5, 100)
    ]
    assert said[0] == said[1] == said[2] == said[3]
    ids = said[0]
    assert ids[0][0] != ids[0][1] and len({str(i) for several in ids for i in several}) > 6, "the samples differ"
    shorter = sample(model, tokenizer, PROMPTS[:2], max_new_tokens=4, n=3, seed=3)
    assert [[a.ids.tolist() for a in s[:2]] for s in shorter] == [[i[:4] for i in s] for s in ids[:2]]
    twice = sample(model, tokenizer, [PROMPTS[0]] * 2, max_new_tokens=10, n=1, seed=3)
    assert twice[0][0].ids.tolist() == ids[0][0] != twice[1][0].ids.tolist(), "equal prompts have numbers of their own"
    other = sample(model, tokenizer, PROMPTS, max_new_tokens=10, n=2, seed=4)
    assert [[a.ids.tolist() for a in s] for s in other] != ids


def test_frequencies_are_the_models_probabilities(tokenizer):
    """8,000 first tokens against the softmax: chi-square over the tokens expected 5 times or more, and their logp."""
    model = tiny("llama", tokenizer)
    head = torch.tensor([tokenizer("the kelp")["input_ids"]])
    with torch.no_grad():
        logits = model(head).logits[0, -1].double()
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 12, 1.0), (1.0, 0, 0.6)):
        answers = sample(
            model,
            tokenizer,
            ["the kelp"],
            max_new_tokens=1,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            n=8000,
            seed=11,
        )[0]
        counts = np.bincount([int(a.ids[0]) for a in answers], minlength=len(logits))
        prob = (logits / temperature).softmax(-1).numpy()
        ranked = np.argsort(-prob, kind="stable")
        if top_k:
            prob[ranked[top_k:]] = 0
        if top_p < 1:
            enough = int(np.argmax(np.cumsum(prob[ranked]) >= top_p)) + 1
            prob[ranked[enough:]] = 0
        prob /= prob.sum()
        assert counts[prob == 0].sum() == 0
        expected = prob * 8000
        often = expected >= 5
        chi = ((counts - expected)[often] ** 2 / expected[often]).sum() + (counts - expected)[~often].sum() ** 2 / max(
            expected[~often].sum(), 5
        )
        freedom = int(often.sum())
        assert freedom > 4
        assert chi < freedom + 5 * np.sqrt(2 * freedom), (
            f"chi-square {chi:.1f} on {freedom}: not the model's distribution"
        )
        if temperature == 0.5:  # the planted fault: the test above would notice a forgotten temperature
            wrong = logits.softmax(-1).numpy() * 8000
            assert ((counts - wrong)[wrong >= 5] ** 2 / wrong[wrong >= 5]).sum() > 10 * freedom


def test_draw_at_the_ends_of_the_unit_interval():
    """By hand: probabilities .5 .25 .25 0; the numbers 0 and almost 1 give the first and the last that can be."""
    logits = torch.tensor([[np.log(0.5), np.log(0.25), np.log(0.25), -np.inf]]).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.76, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert _draw(logits, uniform, 1.0, 0, 1.0).tolist() == [0, 0, 1, 2, 2]
    assert _draw(logits, uniform, 1.0, 1, 1.0).tolist() == [0] * 5
    assert _draw(logits, uniform, 1.0, 0, 0.5).tolist() == [0] * 5, "the fewest that reach top_p"
    assert _draw(logits, uniform, 1.0, 0, 0.51).tolist() == [0, 0, 0, 1, 1]


def test_messages_are_rendered(tokenizer):
    model = tiny("llama", tokenizer)
    chat = sample(model, tokenizer, [[{"role": "user", "content": "kelp"}]], max_new_tokens=5, temperature=0)[0][0]
    ids = torch.tensor([tokenizer("<|user|>kelp<|end|><|assistant|>")["input_ids"]])
    assert chat.ids.tolist() == model.generate(ids, do_sample=False, max_new_tokens=5)[0, ids.shape[1] :].tolist()


def test_a_packed_policy_samples_as_its_model_does(tokenizer):
    settings = {"max_new_tokens": 8, "n": 2, "seed": 1}
    plain = sample(tiny("llama", tokenizer), tokenizer, PROMPTS, **settings)
    policy = Policy(tiny("llama", tokenizer), "packed")
    assert policy.compute == "packed"
    packed = sample(policy, tokenizer, PROMPTS, **settings)
    assert [[a.ids.tolist() for a in s] for s in packed] == [[a.ids.tolist() for a in s] for s in plain]


def test_model_is_left_as_it_was(tokenizer):
    model = tiny("llama", tokenizer).train()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    sample(model, tokenizer, ["kelp"], max_new_tokens=3)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert sample(model, tokenizer, [], max_new_tokens=3) == []


def test_settings_and_prompts_out_of_range(tokenizer):
    model = tiny("llama", tokenizer)
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"n": 0}, {"max_new_tokens": 0}):
        with pytest.raises(DataError, match=f"{next(iter(wrong))} = "):
            sample(model, tokenizer, ["kelp"], **{"max_new_tokens": 2, **wrong})
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        sample(model, tokenizer, ["kelp", ""], max_new_tokens=2)
    with pytest.raises(
        DataError, match=r"prompt 0 has 1 tokens, and with max_new_tokens = 64 more .* the model's 64 positions"
    ):
        sample(model, tokenizer, ["kelp"], max_new_tokens=64)
    with pytest.raises(DataError, match="prompt 0: the chat template refuses it"):
        sample(model, tokenizer, [[{"role": "narrator", "content": "x"}]], max_new_tokens=2)
