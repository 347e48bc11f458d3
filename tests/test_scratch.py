"""A tokenizer and a model from nothing: exact round trip, the chat template, and the same bytes each time."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.errors import DataError
from holdfast.language.scratch import SPECIAL, dataset_texts, make_model, train_tokenizer
from holdfast.language.tokens import tokenizer_digest
from holdfast.recipe import ScratchTable

WORDS = [
    "kelp",
    "grips",
    "the",
    "rock",
    "and",
    "the",
    "rock",
    "holds",
    "in",
    "12",
    "or",
    "1234",
    "storms;",
    "naïve",
    "東京",
    "🙂",
]


def corpus(n: int = 400) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus(), 310)


@settings(deadline=None, max_examples=300)
@given(st.text() | st.lists(st.sampled_from([*SPECIAL, " ", "\n", "kelp", "\x00", "\ufffd", "é"])).map("".join))
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_vocabulary(tokenizer):
    assert len(tokenizer) == 310
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<|pad|>", "<|end|>", None)
    assert tokenizer.tokenize("kelp the rock") == ["kelp", "Ġthe", "Ġrock"], "common words are one token"
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert len(train_tokenizer(["ab ab"], 300)) < 300, "no more merges than the texts have"
    with pytest.raises(DataError, match=r"vocab = 261 is too small.*need 262"):
        train_tokenizer(["a"], 261)


def test_order_of_the_texts_does_not_matter(tokenizer):
    texts = corpus()
    random.Random(1).shuffle(texts)
    assert tokenizer_digest(train_tokenizer(iter(texts), 310)) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(train_tokenizer(texts[:200], 310)) != tokenizer_digest(tokenizer)


def test_chat_template(tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hold "}, {"type": "text", "text": "fast?"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "hold", "arguments": {"n": 1}}}]},
        {"role": "tool", "content": "held"},
    ]
    shown = tokenizer.apply_chat_template(
        messages, tools=[{"name": "hold"}], tokenize=False, add_generation_prompt=True
    )
    assert shown == (
        '<|system|>[{"name": "hold"}]<|end|><|system|>Be kind.<|end|><|user|>Hold fast?<|end|>'
        '<|assistant|>[{"function": {"name": "hold", "arguments": {"n": 1}}}]<|end|><|tool|>held<|end|><|assistant|>'
    )
    without = tokenizer.apply_chat_template(messages, tools=[{"name": "hold"}], tokenize=False)
    assert without == shown.removesuffix("<|assistant|>")
    with pytest.raises(TemplateError, match="content that is not text"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)


SCRATCH = ScratchTable(hidden=32, layers=2, heads=4, kv_heads=2, context=64)


def test_model_follows_the_table_and_the_seed(tokenizer):
    model = make_model(SCRATCH, tokenizer, seed=7)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.embed_tokens.weight.shape == (310, 32)
    # By hand: embedding; per layer q, o of 32*32, k, v of 32*16, three of 32*96 (8/3 of 32, rounded up to 32s) and two
    # norms; one norm.
    assert sum(p.numel() for p in model.parameters()) == 310 * 32 + 2 * (2 * 1024 + 2 * 512 + 3 * 32 * 96 + 64) + 32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    same, other = make_model(SCRATCH, tokenizer, seed=7), make_model(SCRATCH, tokenizer, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_global_random_state_neither_matters_nor_changes(tokenizer):
    torch.manual_seed(1)
    first = make_model(SCRATCH, tokenizer, seed=7)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn), "making the model drew nothing from the global generator"
    torch.set_default_dtype(torch.float64)
    try:
        second = make_model(SCRATCH, tokenizer, seed=7)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_saved_and_loaded(tmp_path, tokenizer):
    model = make_model(SCRATCH, tokenizer, seed=7)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, again = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)
    ids = torch.tensor([again("kelp grips the rock")["input_ids"]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_other_processes_make_the_same_bytes(tokenizer):
    code = (
        "from test_scratch import *; from hashlib import sha256\n"
        "t = train_tokenizer(corpus(), 310); m = make_model(SCRATCH, t, seed=7)\n"
        "print(tokenizer_digest(t), sha256(b''.join(p.detach().numpy().tobytes() for p in m.parameters())).hexdigest())"
    )
    said = set()
    for threads in ("1", "4"):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        folder = Path(__file__).parent
        said.add(
            subprocess.run(
                [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(said) == 1 and tokenizer_digest(tokenizer) in said.pop()


def test_texts_of_a_dataset(tmp_path):
    chat = [{"role": "user", "content": "p2"}, {"role": "assistant", "content": "q"}, {"role": "user", "content": "r"}]
    ds = freeze_records(
        [
            Judgement("pair", "p1", ("good", "bad")),
            Judgement("pair", "p1", ("good", "worse")),
            Judgement("pair", chat, ([{"role": "assistant", "content": [{"type": "text", "text": "kind"}]}], "rude")),
            Judgement("pair", "unasked", ("x", "y")),
        ],
        tmp_path / "ds",
    )
    prompts = ds.prompt_contents()
    rows = np.array([i for i in range(4) if prompts[ds.prompt_of[i]] != "unasked"])
    assert sorted(dataset_texts(ds, rows)) == sorted(["p1", "p2", "q", "r", "good", "kind"])
