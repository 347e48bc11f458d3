"""Tiny random models of many families, and an oracle that shares no code with the packed path."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import transformers

from holdfast.data.ragged import Ragged
from holdfast.language.policy import quiet

VOCABULARY = 61
STOP = 2

_SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=96,
    bos_token_id=1,
    eos_token_id=STOP,
)
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED, sliding_window=5),
    "gemma": lambda: transformers.GemmaConfig(**_GROUPED, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(
        **_GROUPED,
        head_dim=8,
        sliding_window=4,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=4),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=96,
        bos_token_id=1,
        eos_token_id=STOP,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SHAPE, rotary_pct=0.5, use_parallel_residual=True),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        word_embed_proj_dim=32,
        dropout=0.0,
        bos_token_id=1,
        eos_token_id=STOP,
    ),
    "phi3": lambda: transformers.Phi3Config(**_GROUPED, pad_token_id=0),
    "granite": lambda: transformers.GraniteConfig(**_GROUPED, logits_scaling=4.0),
    "cohere": lambda: transformers.CohereConfig(**_GROUPED, logit_scale=0.25),
}


def model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A causal model with weights large enough that attention, softcaps and positions all show in its output."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        made = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return made.to(dtype)


def tokens(prompts, responses) -> SimpleNamespace:
    return SimpleNamespace(prompts=Ragged.of(prompts), responses=Ragged.of(responses))


def random_tokens(seed: int, prompt_lengths, response_lengths) -> SimpleNamespace:
    """Ids from 3 on, each response ended by the stop token."""
    rng = np.random.default_rng(seed)
    return tokens(
        [rng.integers(3, VOCABULARY, n) for n in prompt_lengths],
        [np.append(rng.integers(3, VOCABULARY, n - 1), STOP) for n in response_lengths],
    )


def oracle_logps(causal, tokens, pairs) -> list[torch.Tensor]:
    """Token log-probabilities of each (prompt, response), by plain right-padded forwards and a full log-softmax."""
    rows = [(tokens.prompts[p].tolist(), tokens.responses[r].tolist()) for p, r in pairs]
    longest = max(len(p) + len(r) for p, r in rows)
    ids = torch.tensor([p + r + [0] * (longest - len(p) - len(r)) for p, r in rows])
    mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (longest - len(p) - len(r)) for p, r in rows])
    logp = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
    return [torch.stack([logp[b, len(p) + i - 1, token] for i, token in enumerate(r)]) for b, (p, r) in enumerate(rows)]
