"""A tokenizer and a small decoder made from nothing but the dataset: `[model.scratch]`.

The tokenizer is byte-level BPE, so every text has ids and comes back from them exactly. Both are functions of their
arguments alone: the same texts and the same seed give the same bytes, in any process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from holdfast.data.dataset import Dataset
from holdfast.data.records import Content
from holdfast.data.views import preferred
from holdfast.errors import DataError
from holdfast.recipe import ScratchTable

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL = (PAD, END, *(f"<|{role}|>" for role in ROLES))

# One turn is <|role|>content<|end|>. Tools, where there are any, are a system turn of their own; tool calls follow the
# content.
TEMPLATE = """\
{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('role ' + message.role + ' is none of system, user, assistant, tool') }}
{%- endif %}
{{- '<|' + message.role + '|>' }}
{%- if message.content is string %}{{ message.content }}
{%- elif message.content %}
{%- for part in message.content %}
{%- if part.text is not string %}{{ raise_exception('content that is not text') }}{% endif %}
{{- part.text }}
{%- endfor %}
{%- endif %}
{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}
{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab` tokens (fewer where the texts have no more pairs to merge), with a chat
    template.

    The texts' order does not matter. Digits are single tokens, so that numbers are spelt one way. `<|end|>` is the
    stop token. DataError for a `vocab` that cannot hold the 256 bytes and the special tokens.
    """
    if vocab < 256 + len(SPECIAL):
        raise DataError(
            f"vocab = {vocab} is too small: 256 bytes and {len(SPECIAL)} special tokens need {256 + len(SPECIAL)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(scratch: ScratchTable, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama-shaped decoder, random fp32 weights, tied embeddings. The global random state is left as it was."""
    ffn = scratch.ffn or -(-scratch.hidden * 8 // (3 * 32)) * 32  # SwiGLU: 8/3 of hidden, rounded up to 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden,
        intermediate_size=ffn,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.kv_heads or scratch.heads,
        max_position_embeddings=scratch.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        try:
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def dataset_texts(ds: Dataset, rows: np.ndarray) -> Iterator[str]:
    """The texts to train a tokenizer on: each prompt of `rows` once, and each of their preferred responses once."""
    for table, indices in (("prompts", ds.prompt_of[rows]), ("responses", preferred(ds, rows).response)):
        wanted = set(indices.tolist())
        for start, contents in ds.iter_contents(table, 1024):
            for i, content in enumerate(contents, start):
                if i in wanted:
                    yield from _texts(content)


def _texts(content: Content) -> Iterator[str]:
    """What a template would show of a content: text, or the texts of its messages."""
    if isinstance(content, str):
        yield content
        return
    messages: Any = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise DataError("a dataset of segments has no text to train a tokenizer on")
    for message in messages:
        said = message.get("content")
        for part in said if isinstance(said, list) else [said]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text
