"""Answers drawn from a model: batched, with a key-value cache, and each the same whatever else is in its batch.

A sequence's random numbers derive from (seed, prompt index, sample index) alone: one uniform number per token, turned
into a token by the inverse of the cumulative distribution. Batches are made of prompts of like length; a finished
sequence leaves its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from holdfast.data.records import Content
from holdfast.errors import DataError
from holdfast.language.tokens import Coder

# Axes: B sequences of a batch, V vocabulary, T tokens so far.


@dataclass(frozen=True)
class Sampled:
    """One answer.

    text:     less special tokens.
    ids:      (T,) int32, the stop token included where there is one.
    logp:     (T,) float32, each token's log-probability under the model itself: temperature 1, no token shut out.
    finished: it ended with a stop token, not at max_new_tokens.
    """

    text: str
    ids: np.ndarray
    logp: np.ndarray
    finished: bool


def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Content],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    n: int = 1,
    seed: int = 0,
    batch: int = 128,
) -> list[list[Sampled]]:
    """`n` answers to each prompt, drawn from a causal language model (or a Policy that holds one).

    temperature 0 takes the likeliest token. top_k keeps the k likeliest tokens (0: all), then top_p the fewest of
    those that together reach that probability. `batch` is the most sequences at a time; the answers do not depend on
    it, but for rounding in the model. A stop token is the tokenizer's eos or one of the model's generation config.
    DataError: a setting out of range, a prompt that has no tokens or leaves no room among the model's positions.
    """
    for name, value, good in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1),
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_p", top_p, 0 < top_p <= 1),
        ("top_k", top_k, top_k >= 0),
        ("n", n, n >= 1),
        ("batch", batch, batch >= 1),
    ):
        if not good:
            raise DataError(f"sample: {name} = {value} is out of range")
    model = model.model if hasattr(model, "logps") else model  # a Policy
    coder = Coder(tokenizer, model.generation_config.eos_token_id)
    ids = coder.prompts(prompts)
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for i, mine in enumerate(ids):
        if not mine:
            raise DataError(f"prompt {i} has no tokens, so there is nothing to predict an answer from")
        if most and len(mine) + max_new_tokens > most:
            raise DataError(
                f"prompt {i} has {len(mine)} tokens, and with max_new_tokens = {max_new_tokens} more it does not fit "
                f"the model's {most} positions; shorten either"
            )
    answers: list[list[Sampled]] = [[] for _ in prompts]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    at_once = max(1, batch // n)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for k in range(0, len(order), at_once):
                some = order[k : k + at_once]
                keys = [(i, j) for i in some for j in range(n)]
                uniform = (
                    None if temperature == 0 else np.stack([_uniform(seed, i, j, max_new_tokens) for i, j in keys])
                )
                drawn = _batch(
                    model, [ids[i] for i in some], n, uniform, coder.stops, max_new_tokens, temperature, top_k, top_p
                )
                for (i, _), (tokens, logp, finished) in zip(keys, drawn, strict=True):
                    answers[i].append(Sampled(coder.decode(tokens), tokens, logp, finished))
    finally:
        model.train(training)
    return answers


def _uniform(seed: int, prompt: int, sample: int, count: int) -> np.ndarray:
    """The numbers in [0, 1) that draw one sequence's tokens. A longer answer begins with the same ones."""
    name = f"holdfast/sample/1\0{seed}\0{prompt}\0{sample}".encode()
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def _batch(
    model: Any,
    prompts: list[list[int]],
    n: int,
    uniform_BT: np.ndarray | None,
    stops: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """(ids, logp, finished) of n answers to each prompt, prompt by prompt."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(
        len(prompts), longest, dtype=torch.long
    )  # padded on the left; what is hidden by the mask is never read
    mask_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        ids_BT[b, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[b, longest - len(prompt) :] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    stop = torch.tensor(stops, device=device)
    uniform = None if uniform_BT is None else torch.from_numpy(uniform_BT).to(device)

    cache = DynamicCache(config=model.config)
    position_B = mask_BT.sum(1)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    logits_BV = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    if n > 1:  # the prompts were computed once for all their answers
        cache.batch_repeat_interleave(n)
        logits_BV, mask_BT, position_B = (x.repeat_interleave(n, 0) for x in (logits_BV, mask_BT, position_B))

    total = len(prompts) * n
    tokens = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    logps = torch.zeros(total, max_new_tokens, device=device)
    length = torch.full((total,), max_new_tokens, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    alive = torch.arange(total, device=device)  # which answer each row of the batch is
    for t in range(max_new_tokens):
        logits_BV = logits_BV.float()
        if uniform is None:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = _draw(logits_BV, uniform[alive, t], temperature, top_k, top_p)
        tokens[alive, t] = token_B
        logps[alive, t] = logits_BV.gather(1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
        ended_B = torch.isin(token_B, stop)
        length[alive[ended_B]] = t + 1
        finished[alive[ended_B]] = True
        going = (~ended_B).nonzero()[:, 0]
        if len(going) == 0 or t + 1 == max_new_tokens:
            break
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, token_B, mask_BT, position_B = alive[going], token_B[going], mask_BT[going], position_B[going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
        logits_BV = model(
            input_ids=token_B[:, None],
            attention_mask=mask_BT,
            position_ids=position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        position_B = position_B + 1
    ids, logp, ends = tokens.int().cpu().numpy(), logps.cpu().numpy(), length.tolist()
    return [
        (ids[b, :e].copy(), logp[b, :e].copy(), done)
        for b, (e, done) in enumerate(zip(ends, finished.tolist(), strict=True))
    ]


def _draw(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """One token per row: the first at which the cumulative distribution passes the row's number. (B,) int64.

    In float64: in float32 the running sum over a large vocabulary loses the small probabilities.
    """
    logits_BV = logits_BV.double() / temperature
    if 0 < top_k < logits_BV.shape[1]:
        least = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    prob_BV = logits_BV.softmax(-1)
    if top_p < 1:
        ranked, index = prob_BV.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked  # a token stays while those above it do not yet reach top_p
        prob_BV = torch.zeros_like(prob_BV).scatter(1, index, ranked.masked_fill(before >= top_p, 0))
    cumulative_BV = prob_BV.cumsum(-1)
    whole_B = cumulative_BV[:, -1]
    aim_B = torch.minimum(uniform_B * whole_B, torch.nextafter(whole_B, torch.zeros_like(whole_B)))
    return torch.searchsorted(cumulative_BV, aim_B[:, None], right=True)[:, 0]
