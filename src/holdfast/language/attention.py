"""Packed attention for any decoder of `transformers`, through its attention interface.

A model switched to "holdfast_packed" asks two functions registered here: one when it builds its masks, at the start of
a forward, and one in every layer. While a plan is active (`attending`), the first answers with the plan's masks instead
of a tensor, one set per pattern the model asks for (full, sliding window, ...), built once and shared by its layers;
they travel to the layers as the ordinary `attention_mask` argument, so they reach the attention function in every
family, through adapters, and again when gradient checkpointing recomputes a layer. On a GPU that FlexAttention
(2412.05496) supports, the masks are one block mask over the row instead and a layer makes one call. Without a plan both do what "sdpa"
(or, with a softcap, "eager") does, so that such a model still generates and scores as usual.

    T tokens of the row; H heads, G key-value heads, D head size; S segments of a bucket, Q and K their padded queries
    and keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from holdfast.errors import HoldfastError
from holdfast.language.packing import Plan

NAME = "holdfast_packed"

# The model's mask code has no place for a caller's own argument; a context variable does, and is right with threads.
_active: ContextVar[Plan | None] = ContextVar("holdfast_plan", default=None)


class CannotPack(HoldfastError):
    """This model needs something that prompt groups on one row cannot give it. The message is the reason."""


@dataclass(frozen=True)
class Masks:
    """A plan with one mask per bucket, (S, 1, Q, K) bool, or None for plain causal; or with one block mask of
    FlexAttention over the row. What the layers see as `attention_mask`.
    """

    plan: Plan
    masks: tuple[torch.Tensor | None, ...]
    block: Any = None


@contextmanager
def attending(plan: Plan) -> Iterator[None]:
    """Forwards of a "holdfast_packed" model inside this context read one packed row laid out by `plan`."""
    token = _active.set(plan)
    try:
        yield
    finally:
        _active.reset(token)


def _mask(*args: Any, **kwargs: Any) -> Any:
    """For AttentionMaskInterface: the plan's masks for the pattern asked for.

    The pattern comes as an index function (batch, head, query position, key position) -> allowed; evaluated at logical
    positions, which restart with every sequence, it is right for sliding windows and chunks as well as for plain causal
    attention.
    """
    plan = _active.get()
    if plan is None:
        if getattr(kwargs.get("config"), "attn_logit_softcapping", None) is not None:
            kwargs["allow_is_causal_skip"] = False  # the softcap branch below wants its mask written out
        return sdpa_mask(*args, **kwargs)
    allowed: Callable[..., torch.Tensor] = kwargs.get("mask_function", causal_mask_function)
    if kwargs.get("use_vmap"):
        raise CannotPack("the model adds a mask of its own making to causal attention")
    window = kwargs.get("local_size")
    plain = allowed is causal_mask_function or (window is not None and window >= plan.longest)
    if not plain:
        zero, one = plan.slot_T.new_zeros(()), plan.slot_T.new_ones(())
        if bool(allowed(zero, zero, zero, one)):
            raise CannotPack("the model attends to later tokens (bidirectional attention)")
    if _by_flex(plan.slot_T.device, kwargs.get("config")):
        return Masks(plan, (), _block_mask(plan, allowed))
    masks: list[torch.Tensor | None] = []
    for bucket in plan.buckets:
        q, k = bucket.q_position_SQ[:, None, :, None], bucket.k_position_SK[:, None, None, :]
        if plain:
            masks.append(None if bucket.causal else (k <= q) & (k >= 0))
        else:
            zero = torch.zeros_like(k[:1, :, :, :1])
            masks.append(allowed(zero, zero, q, k.clamp(min=0)) & (k >= 0))
    return Masks(plan, tuple(masks))


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """For AttentionInterface: query (1, H, T, D), key and value (1, G, T, D) -> (1, T, H, D)."""
    if not isinstance(attention_mask, Masks):
        if _active.get() is not None:
            raise CannotPack("a layer makes its own attention mask")
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        return _softcapped(query, key, value, attention_mask, scaling, softcap, dropout).transpose(
            1, 2
        ).contiguous(), None
    if dropout:
        raise CannotPack(f"attention dropout {dropout:g} in training")
    for name in ("s_aux", "sinks", "position_bias", "alibi"):
        if kwargs.get(name) is not None:
            raise CannotPack(f"attention with {name}")
    if kwargs.get("is_causal") is False:
        raise CannotPack("attention that is not causal")

    plan = attention_mask.plan
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, size)
    if q.shape[0] != plan.slot_T.shape[0] or k.shape[0] != q.shape[0]:
        raise CannotPack(
            f"a layer attends from {q.shape[0]} to {k.shape[0]} tokens where the row has {plan.slot_T.shape[0]}"
        )
    if attention_mask.block is not None:
        return _flex(query, key, value, attention_mask.block, scaling, softcap).transpose(1, 2).contiguous(), None
    # One gather for all buckets (its backward is one index_add); the pieces are views.
    shapes = [(b.q_position_SQ.shape, b.k_position_SK.shape) for b in plan.buckets]
    q_parts = q.index_select(0, plan.q_index).split([s.numel() for s, _ in shapes])
    k_parts = k.index_select(0, plan.k_index).split([s.numel() for _, s in shapes])
    v_parts = v.index_select(0, plan.k_index).split([s.numel() for _, s in shapes])
    out = []
    for q_part, k_part, v_part, (q_shape, k_shape), mask in zip(
        q_parts, k_parts, v_parts, shapes, attention_mask.masks, strict=True
    ):
        q_SHQD = q_part.view(*q_shape, *q.shape[1:]).transpose(1, 2)
        k_SGKD = k_part.view(*k_shape, *k.shape[1:]).transpose(1, 2)
        v_SGKD = v_part.view(*k_shape, *v.shape[1:]).transpose(1, 2)
        if softcap is not None:
            o_SHQD = _softcapped(q_SHQD, k_SGKD, v_SGKD, mask, scaling, softcap, 0.0)
        else:
            grouped = q.shape[1] != k.shape[1]
            if grouped and q.device.type != "cpu" and mask is not None:
                # Grouped heads together with a mask would fall back to the slow reference kernel there.
                k_SGKD, v_SGKD, grouped = *_repeat(q_SHQD, k_SGKD, v_SGKD), False
            o_SHQD = scaled_dot_product_attention(
                q_SHQD, k_SGKD, v_SGKD, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        out.append(o_SHQD.transpose(1, 2).reshape(-1, *o_SHQD.shape[1:2], o_SHQD.shape[-1]))
    return torch.cat(out).index_select(0, plan.slot_T)[None], None


def _by_flex(device: torch.device, config: Any) -> bool:
    """Whether one call of FlexAttention computes the row: on an NVIDIA GPU of at least the generation of the A100, for heads of 16 and more.
    Depends on nothing else, so the same machine takes the same way.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return bool(size >= 16)


def _block_mask(plan: Plan, allowed: Callable[..., torch.Tensor]) -> Any:
    """A token sees its own segment and its prompt, as far as `allowed` says at logical positions."""
    from torch.nn.attention.flex_attention import create_block_mask

    segment, prompt, position = plan.segment_T, plan.prompt_T, plan.position_T

    def sees(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        mine = (segment[k] == segment[q]) | (segment[k] == prompt[q])
        return mine & allowed(batch, head, position[q], position[k])

    return create_block_mask(sees, None, None, len(segment), len(segment), device=segment.device)


@cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block: Any,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """query (1, H, T, D), key and value (1, G, T, D) -> (1, H, T, D), in one call."""

    cap = softcap or 1.0

    def capped(score: torch.Tensor, *at: torch.Tensor) -> torch.Tensor:
        return cap * torch.tanh(score / cap)

    out = _compiled_flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=block,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out


def _repeat(q_SHQD: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Key-value heads repeated to as many as there are query heads."""
    return tuple(x.repeat_interleave(q_SHQD.shape[1] // x.shape[1], dim=1) for x in others)


def _softcapped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    """Attention with scores capped at +-softcap by tanh (Gemma 2, 2408.00118 section 2), written out: no fused kernel
    has it.
    """
    k, v = _repeat(q, k, v)
    scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(
            scores.shape[-1] - scores.shape[-2]
        )
    # The least number, not -inf: a row of padding may see nothing at all.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(torch.float32, q.dtype)).to(q.dtype)
    return torch.matmul(torch.nn.functional.dropout(weights, p=dropout), v)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
