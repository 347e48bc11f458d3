"""Log-probabilities of given tokens from hidden states, a chunk of the vocabulary's logits at a time.

Only response tokens come here. A full (N, V) tensor is not made unless it is asked for (`keep`): the forward keeps one number per token (the
log-sum-exp), the backward makes each chunk's logits again. Sums over the vocabulary are in fp32 (fp64 stays fp64).
Every sum has one order, so the same input gives the same bytes.

    N response tokens, H hidden size, V vocabulary, C tokens of a chunk
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from holdfast.training.products import even, linear, product

# A chunk has this many logits (8 MiB of fp32: they stay in the cache between passes), but at least so many tokens: with
# fewer, reading the head's weights would take longer than the product with them.
CHUNK_LOGITS = 1 << 21
CHUNK_TOKENS = 256
BLOCK_TOKENS = 4096  # of the vocabulary, whose rows of the head's gradient are made at a time


@dataclass(frozen=True)
class Head:
    """From hidden state to logits: z = h W^T + b, times `scale`, then softcap * tanh(z / softcap).

    weight: (V, H); bias: (V,) or None.
    direct: `weight` is a parameter, and a backward of `token_logps` adds its gradient to `weight.grad` itself instead of handing it on.
    That saves a tensor of its size, and a pass over it.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    direct: bool = False

    def logits(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        """(C, V), fp32 (fp64 for fp64)."""
        z = linear(hidden_CH, self.weight, self.bias)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            z = torch.tanh(z / self.softcap) * self.softcap
        return z


def chunk_tokens(vocabulary: int) -> int:
    """Tokens per chunk unless the caller says otherwise."""
    return max(CHUNK_TOKENS, CHUNK_LOGITS // vocabulary)


def token_logps(
    hidden_NH: torch.Tensor, head: Head, target_N: torch.Tensor, chunk: int | None = None, keep: bool = False
) -> torch.Tensor:
    """log p(target_n | hidden_n), (N,) fp32 (fp64 for fp64). Differentiable in hidden, weight and bias, once.

    keep: the softmax of every token stays in memory, (N, V) of the weight's type, and the backward has no second pass.
    """
    n = len(target_N)
    if fill := -n % even(hidden_NH):
        hidden_NH = torch.nn.functional.pad(hidden_NH, (0, 0, 0, fill))
        target_N = torch.nn.functional.pad(target_N, (0, fill))
    out: torch.Tensor = _TokenLogps.apply(
        hidden_NH, head.weight, head.bias, target_N, head, chunk or chunk_tokens(len(head.weight)), keep
    )
    return out[:n]


class _TokenLogps(torch.autograd.Function):
    """With p the softmax and t the target, d logp / d z = onehot(t) - p; a softcap bends both by dz'/dz = 1 - (z' / softcap)^2.

    A head that is trained needs p again in the backward, for its own gradient. One that is not (adapters) needs no second pass: what a
    token's log-probability pulls at its hidden state, `pull_NH`, is made in the forward, while p is there. With `keep`
    p stays, where there is memory for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
        head: Head,
        chunk: int,
        keep: bool,
    ) -> torch.Tensor:
        scale, softcap = head.scale, head.softcap
        head = replace(head, weight=weight_VH, bias=bias_V)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        ctx.frozen = not (wants_weight or wants_bias)
        keep = keep and not ctx.frozen
        logp, lse, kept = [], [], []
        pull_NH = torch.empty_like(hidden_NH) if ctx.frozen and wants_hidden else None
        for part in _parts(len(hidden_NH), chunk):
            target_C1 = target_N[part, None]
            z_CV = head.logits(hidden_NH[part])
            logit_C1, most_C1 = z_CV.gather(1, target_C1), z_CV.amax(-1, keepdim=True)
            bend_CV = None if softcap is None or (pull_NH is None and not keep) else 1 - (z_CV / softcap) ** 2
            e_CV = z_CV.sub_(most_C1).exp_()
            sum_C1 = e_CV.sum(-1, keepdim=True)
            lse.append((most_C1 + sum_C1.log())[:, 0])
            logp.append(logit_C1[:, 0] - lse[-1])
            if pull_NH is None and not keep:
                continue
            p_CV, own_C1 = e_CV.div_(sum_C1), torch.full_like(sum_C1, scale)
            if bend_CV is not None:
                p_CV.mul_(bend_CV)
                own_C1 *= bend_CV.gather(1, target_C1)
            if keep:
                kept += [p_CV.to(weight_VH.dtype), own_C1]
            if pull_NH is not None:
                pull_NH[part] = weight_VH[target_N[part]] * own_C1 - _times(p_CV, weight_VH) * scale
        if ctx.frozen:
            ctx.save_for_backward(pull_NH)
        else:
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, torch.cat(lse), *kept)
        ctx.settings = (scale, softcap, head.direct, chunk)
        return torch.cat(logp)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.frozen:
            (pull_NH,) = ctx.saved_tensors
            return (pull_NH * grad_N[:, None]).to(pull_NH.dtype), *[None] * 6
        hidden_NH, weight_VH, bias_V, target_N, lse_N, *kept = ctx.saved_tensors
        scale, softcap, direct, chunk = ctx.settings
        head = Head(weight_VH, bias_V, scale, softcap)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Low precision is not added up over chunks; the sum is made in fp32 and rounded once.
        wide = lse_N.dtype
        hidden_grad = torch.empty_like(hidden_NH) if wants_hidden else None
        weight_grad: torch.Tensor | None = None
        direct = direct and wants_weight and weight_VH.dtype == wide
        if direct:
            weight_grad = weight_VH.grad
        bias_grad = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        # The two terms of the gradient go apart, so that the chunk's only passes over (C, V) are those that make p.
        for i, part in enumerate(_parts(len(hidden_NH), chunk)):
            h_CH, target_C = hidden_NH[part], target_N[part]
            g_C1 = (grad_N[part].to(wide) * scale)[:, None]
            if kept:
                p_CV, t_C1 = kept[2 * i].to(wide), grad_N[part].to(wide)[:, None] * kept[2 * i + 1]
            else:
                z_CV = head.logits(h_CH)
                bend_CV = None if softcap is None else 1 - (z_CV / softcap) ** 2
                p_CV, t_C1 = z_CV.sub_(lse_N[part, None]).exp_(), g_C1
                if bend_CV is not None:
                    p_CV.mul_(bend_CV)
                    t_C1 = g_C1 * bend_CV.gather(1, target_C[:, None])
            narrow_CV = p_CV.to(weight_VH.dtype)
            if hidden_grad is not None:
                hidden_grad[part] = weight_VH[target_C] * t_C1 - _times(narrow_CV, weight_VH) * g_C1
            if wants_weight:
                h_wide_CH = h_CH.to(wide)
                weight_grad = _add_outer(weight_grad, narrow_CV, (h_wide_CH * -g_C1).to(weight_VH.dtype), wide)
                weight_grad.index_add_(0, target_C, h_wide_CH * t_C1)
            if bias_grad is not None:
                bias_grad -= (g_C1.T @ p_CV)[0]
                bias_grad.index_add_(0, target_C, t_C1[:, 0])
        if direct:
            weight_VH.grad = weight_grad
        return (
            hidden_grad,
            None if weight_grad is None or direct else weight_grad.to(weight_VH.dtype),
            None if bias_grad is None or bias_V is None else bias_grad.to(bias_V.dtype),
            *[None] * 4,
        )


def _times(p_CV: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """p W, (C, H)."""
    return product(p_CV.to(weight_VH.dtype), weight_VH.T)


def _add_outer(so_far: torch.Tensor | None, p_CV: torch.Tensor, h_CH: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """so_far + p^T h, (V, H) in the wide type; in place where there is something so far.

    A block of the vocabulary at a time: what is added is then in the cache, and never in memory beside the sum.
    """
    sum_VH = p_CV.new_empty(p_CV.shape[1], h_CH.shape[1], dtype=wide) if so_far is None else so_far
    for block in _parts(len(sum_VH), BLOCK_TOKENS):
        made = product(p_CV[:, block].contiguous().T, h_CH.T)
        if so_far is None:
            sum_VH[block] = made
        else:
            sum_VH[block].add_(made)
    return sum_VH


Logits = Callable[[slice], torch.Tensor]


@torch.no_grad()
def token_kl(logits: Logits, reference: Logits, n: int, chunk: int) -> torch.Tensor:
    """KL(pi || ref) = sum_v pi(v) (log pi(v) - log ref(v)) at each of n positions, (N,); chunk by chunk, without
    gradient.

    `logits(part)` and `reference(part)` give (C, V) logits of the same positions.
    """
    out = []
    for part in _parts(n, chunk):
        logp_CV = logits(part).log_softmax(-1)
        out.append((logp_CV.exp() * (logp_CV - reference(part).log_softmax(-1))).sum(-1))
    return torch.cat(out)


@torch.no_grad()
def token_squares(logits: Logits, n: int, chunk: int) -> torch.Tensor:
    """log sum_v pi(v)^2 at each of n positions, (N,): the log-probability that two draws agree; without gradient."""
    out = []
    for part in _parts(n, chunk):
        z_CV = logits(part)
        out.append((2 * z_CV).logsumexp(-1) - 2 * z_CV.logsumexp(-1))
    return torch.cat(out)


def kl_from(reference: Logits, hidden_NH: torch.Tensor, head: Head, chunk: int | None = None) -> torch.Tensor:
    """KL(ref || pi) = sum_v ref(v) (log ref(v) - log pi(v)) at each position, (N,) fp32 (fp64 for fp64), pi = softmax of
    head(hidden).

    Differentiable in hidden, weight and bias, once; `reference(part)` gives (C, V) logits without gradient. Chunk by
    chunk, the logits of both made again in the backward.
    """
    chunk = chunk or chunk_tokens(len(head.weight))
    return _KLFrom.apply(hidden_NH, head.weight, head.bias, reference, head.scale, head.softcap, chunk)


class _KLFrom(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        reference: Logits,
        scale: float,
        softcap: float | None,
        chunk: int,
    ) -> torch.Tensor:
        head = Head(weight_VH, bias_V, scale, softcap)
        kl = []
        for part in _parts(len(hidden_NH), chunk):
            logq_CV = reference(part).log_softmax(-1)
            kl.append((logq_CV.exp() * (logq_CV - head.logits(hidden_NH[part]).log_softmax(-1))).sum(-1))
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.settings = (reference, scale, softcap, chunk)
        return torch.cat(kl)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        reference, scale, softcap, chunk = ctx.settings
        head = Head(weight_VH, bias_V, scale, softcap)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = grad_N.dtype
        hidden_grad = torch.empty_like(hidden_NH) if wants_hidden else None
        weight_grad: torch.Tensor | None = None
        bias_grad = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        for part in _parts(len(hidden_NH), chunk):  # d KL / d z = pi - ref, bent by a softcap
            z_CV = head.logits(hidden_NH[part])
            d_CV = z_CV.softmax(-1) - reference(part).softmax(-1).to(wide)
            if softcap is not None:
                d_CV *= 1 - (z_CV / softcap) ** 2
            d_CV *= (grad_N[part] * scale)[:, None]
            narrow_CV = d_CV.to(weight_VH.dtype)
            if hidden_grad is not None:
                hidden_grad[part] = _times(narrow_CV, weight_VH)
            if wants_weight:
                weight_grad = _add_outer(weight_grad, narrow_CV, hidden_NH[part], wide)
            if bias_grad is not None:
                bias_grad += d_CV.sum(0)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight_VH.dtype),
            None if bias_grad is None or bias_V is None else bias_grad.to(bias_V.dtype),
            None,
            None,
            None,
            None,
        )


def _parts(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, n)) for start in range(0, n, chunk))
