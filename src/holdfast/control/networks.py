"""Several small networks as one: M members in stacked weights, each with the result it would have alone.

A member's initial weights come from its own seed, its products from its own matrices; nothing of it depends on the
others. Forward and backward of the whole perceptron are written out: at these sizes the bookkeeping of every single
operation would cost as much as the arithmetic.

    M members, B rows, I inputs, O outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.training.determinism import derive
from holdfast.training.products import product, quicker


class MLP(nn.Module):
    """M perceptrons of one shape: linear layers with ReLU between. Weights start as `torch.nn.Linear`'s do.

    sizes: (inputs, hidden..., outputs); seeds: one per member; name: sets apart the networks of one algorithm; trained
    False: a target; shift False: the last layer's bias stays 0.
    """

    def __init__(self, sizes: Sequence[int], seeds: Sequence[int], name: str, trained: bool = True, shift: bool = True):
        super().__init__()
        self.sizes, self.name, self.members = tuple(sizes), name, len(seeds)
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            for kind, shape in (("weight", (len(seeds), outputs, inputs)), ("bias", (len(seeds), 1, outputs))):
                last = i == len(sizes) - 2
                if trained and (shift or not last or kind == "weight"):
                    self.register_parameter(f"{kind}_{i}", nn.Parameter(torch.empty(shape)))
                else:  # no gradient reaches it, and a checkpoint keeps it as state
                    self.register_buffer(f"{kind}_{i}", torch.zeros(shape))
        if trained:
            self.reset(seeds)

    @property
    def weights(self) -> list[Tensor]:
        return [getattr(self, f"weight_{i}") for i in range(len(self.sizes) - 1)]

    @property
    def biases(self) -> list[Tensor]:
        return [getattr(self, f"bias_{i}") for i in range(len(self.sizes) - 1)]

    @torch.no_grad()
    def reset(self, seeds: Sequence[int], *purpose: str | int) -> None:
        """Fresh weights."""
        for m, seed in enumerate(seeds):
            draw = torch.Generator().manual_seed(derive(seed, "init", self.name, *purpose))
            for weight, bias in zip(self.weights, self.biases, strict=True):
                bound = weight.shape[2] ** -0.5
                weight[m].uniform_(-bound, bound, generator=draw)
                if bias.requires_grad:
                    bias[m].uniform_(-bound, bound, generator=draw)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """(M', B, I) -> (M, B, O). M' divides M: the members of one group of M / M' read the same input.

        frozen: gradients flow to the input alone.
        """
        if len(x) != self.members:
            x = x.repeat_interleave(self.members // len(x), dim=0)
        if not torch.is_grad_enabled():
            return _forward(x, self.weights, self.biases)[0]
        parameters = [*self.weights, *self.biases]
        if frozen:
            parameters = [p.detach() for p in parameters]
        out: Tensor = _Perceptron.apply(x, *parameters)
        return out

    @torch.no_grad()
    def follow(self, other: MLP, tau: float) -> None:
        """Move towards another network of the same shape: a share of tau, all of the way where it is 1."""
        mine, theirs = [*self.weights, *self.biases], [*other.weights, *other.biases]
        if tau == 1:
            torch._foreach_copy_(mine, theirs)
        else:
            torch._foreach_lerp_(mine, theirs, tau)

    def copy(self) -> MLP:
        """A target network: the same weights, to follow these."""
        twin = MLP(self.sizes, [0] * self.members, self.name, trained=False)
        twin.follow(self, 1.0)
        return twin


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        n = len(parameters) // 2
        weights = parameters[:n]
        h, inputs = _forward(x, weights, parameters[n:])
        ctx.save_for_backward(*inputs, *weights)
        ctx.n = n
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        n, saved = ctx.n, ctx.saved_tensors
        inputs, weights = saved[:n], saved[n:]
        wants_x, wants_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        to_w: list[Tensor | None] = [None] * n
        to_b: list[Tensor | None] = [None] * n
        for i in range(n - 1, -1, -1):
            if i < n - 1:
                g = torch.ops.aten.threshold_backward(g, inputs[i + 1], 0)
            if wants_w:
                to_w[i] = _product(g.mT, inputs[i].mT)
                to_b[i] = g.sum(1, keepdim=True)
            if i or wants_x:
                g = _product(g, weights[i].mT)
        return (g if wants_x else None, *to_w, *to_b)


def _forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and every layer's input."""
    inputs = []
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        inputs.append(x)
        x = _affine(x, w, b)
        if i < len(weights) - 1:
            x = x.relu_()
    return x, inputs


def _affine(x_MBI: Tensor, w_MOI: Tensor, b_M1O: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and quicker(x_MBI[0], w_MOI[0]):
        return _product(x_MBI, w_MOI).add_(b_M1O)
    return torch.baddbmm(b_M1O, x_MBI, w_MOI.mT)


def _product(a_MRI: Tensor, b_MOI: Tensor) -> Tensor:
    """a b^T for each member."""
    if quicker(a_MRI[0], b_MOI[0]):
        if len(a_MRI) == 1:
            return product(a_MRI[0], b_MOI[0]).unsqueeze(0)
        return torch.stack([product(a, b) for a, b in zip(a_MRI, b_MOI, strict=True)])
    return torch.bmm(a_MRI, b_MOI.mT)


class Draw:
    """Random numbers of one update: a pure function of (member's seed, update, purpose), for each member its own."""

    def __init__(self, seeds: Sequence[int], update: int):
        self.seeds, self.update = seeds, update

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(M, *shape), standard normal."""
        return torch.stack([torch.randn(shape, generator=self._generator(s, purpose)) for s in self.seeds])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(M, *shape), uniform in [-1, 1)."""
        return torch.stack([torch.rand(shape, generator=self._generator(s, purpose)) for s in self.seeds]) * 2 - 1

    def _generator(self, seed: int, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(seed, "noise", purpose, self.update))


class Still(Draw):
    """Numbers that were drawn once: for acting the same each time, and in a program that is exported."""

    def __init__(self, seeds: Sequence[int]):
        super().__init__(seeds, -1)
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def normal(self, purpose: str, *shape: int) -> Tensor:
        key = (purpose, *shape)
        if key not in self._kept:
            self._kept[key] = super().normal(purpose, *shape)
        return self._kept[key]
