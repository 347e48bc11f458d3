"""Matrix products of float32 on a CPU by the library that is quickest there.

PyTorch multiplies float32 matrices with MKL. On processors that are not Intel's, MKL leaves the wide vector units unused: on an AMD EPYC
with AVX-512 it reaches half the speed of oneDNN, which comes with PyTorch as well. There, and for products large enough to be worth the
call, `linear` asks oneDNN; everywhere else it is `torch.nn.functional.linear`. Both round as float32 does, in another order. Which of the
two computes is a function of the processor and the shapes, never of a timing, so the same machine gives the same bytes.

    M rows, I inputs, O outputs
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LEAST = 1 << 23  # multiply-adds; below about so many the call costs more than it saves
EVEN = 32  # rows

_plain = torch.nn.functional.linear


@cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """x W^T by oneDNN, strides as they come; None where PyTorch's own choice is as good."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        op = torch.ops.mkldnn._linear_pointwise.default
    except (OSError, AttributeError):
        return None
    if intel:
        return None
    return lambda x, w: op(x, w, None, "none", [], "")


def product(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    """a b^T, (M, O). Not differentiable."""
    quick = _onednn() if _suits(a_MI) and _suits(b_OI) else None
    if quick is None or len(a_MI) * b_OI.numel() < LEAST:
        return a_MI @ b_OI.T
    # A transposed and far the longer, as in the gradient of a head: quicker the other way round.
    if a_MI.stride(0) == 1 and len(a_MI) > 8 * len(b_OI):
        return quick(b_OI, a_MI).T.contiguous()
    return quick(a_MI, b_OI)


def even(x: Tensor) -> int:
    """What the rows of large products with numbers like these are best a multiple of. oneDNN compiles a kernel for each number of rows
    that it meets and keeps it: with any number, a training run would compile all the time, and its memory grow with every step.
    """
    return EVEN if _suits(x) and _onednn() is not None else 1


def quicker(a_MI: Tensor, b_OI: Tensor) -> bool:
    """Whether `product` asks oneDNN for these."""
    return len(a_MI) * b_OI.numel() >= LEAST and _suits(a_MI) and _suits(b_OI) and _onednn() is not None


def affine(x_MI: Tensor, weight_OI: Tensor, bias_1O: Tensor, relu: bool) -> Tensor:
    """x W^T + b, (M, O), negative numbers as 0 where `relu`. Not differentiable."""
    if not torch.compiler.is_compiling() and quicker(x_MI, weight_OI):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_MI, weight_OI, bias_1O[0], "relu" if relu else "none", [], ""
        )
        return out
    out = torch.addmm(bias_1O, x_MI, weight_OI.T)
    return out.relu_() if relu else out


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b over the last axis. Differentiable, once where oneDNN computes it."""
    rows = x.numel() // weight_OI.shape[1]
    if (
        rows * weight_OI.numel() < LEAST
        or not (_suits(x) and _suits(weight_OI))
        or _onednn() is None
        or torch.is_autocast_enabled("cpu")
    ):
        return _plain(x, weight_OI, bias_O)
    out: Tensor = _Product.apply(x.reshape(rows, -1), weight_OI)
    out = out.view(*x.shape[:-1], -1)
    return out if bias_O is None else out + bias_O


class Linear(nn.Linear):
    """`nn.Linear` by `linear`: the same parameters under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def quicken(model: nn.Module) -> None:
    """Every plain linear layer of the model computes by `linear` from now on. Nothing that is saved of it changes."""
    if _onednn() is None:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def _suits(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return product(x_MI, weight_OI)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_MI, weight_OI = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        return (
            product(grad_MO, weight_OI.T) if wants_x else None,
            product(grad_MO.T, x_MI.T) if wants_weight else None,
        )
