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
from holdfast.training.products import affine, product, quicker


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

    def forward(self, x: Tensor, frozen: bool = False, learnt: int | None = None) -> Tensor:
        """(M', B, I) -> (M, B, O). M' divides M: the members of one group of M / M' read the same input.

        frozen: gradients flow to the input alone. learnt: only the first so many rows have a gradient, the others are
        constants; of an input that has none itself.
        """
        if len(x) != self.members:
            x = x.repeat_interleave(self.members // len(x), dim=0)
        if not torch.is_grad_enabled():
            return _forward(x, self.weights, self.biases)[0]
        parameters = [*self.weights, *self.biases]
        if frozen:
            parameters = [p.detach() for p in parameters]
        out: Tensor = _Perceptron.apply(x, x.shape[1] if learnt is None else learnt, *parameters)
        return out

    def both(self, x: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs for two inputs of as many rows, by one product a layer. Gradients are those of the first alone."""
        out = self(torch.cat([x, constant], 1), learnt=x.shape[1])
        return out[:, : x.shape[1]], out[:, x.shape[1] :].detach()

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
    """Member by member, so that what a member computes is still in the cache when it is needed next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, learnt: int, *parameters: Tensor) -> Tensor:
        n = len(parameters) // 2
        outputs, inputs = _forward(x, parameters[:n], parameters[n:])
        ctx.learnt = learnt
        ctx.save_for_backward(*parameters[:n], *(h[:learnt] for each in inputs for h in each))
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_MBO: Tensor) -> tuple[Tensor | None, ...]:
        n = (len(ctx.needs_input_grad) - 2) // 2
        weights, saved = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        wants_x, wants_w = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        assert not wants_x or ctx.learnt == g_MBO.shape[1]
        to_w = [torch.empty_like(w) for w in weights] if wants_w else [None] * n
        to_b = [w.new_empty(len(w), 1, w.shape[1]) for w in weights] if wants_w else [None] * n

        to_x: list[Tensor] = []
        for m in range(len(g_MBO)):
            g, inputs = g_MBO[m, : ctx.learnt], saved[m * n : (m + 1) * n]
            for i in range(n - 1, -1, -1):
                if i < n - 1:  # g is ours alone by now
                    torch.ops.aten.threshold_backward.grad_input(g, inputs[i + 1], 0, grad_input=g)
                w, b = to_w[i], to_b[i]
                if w is not None and b is not None:
                    _product_of_rows(g, inputs[i], out=w[m])
                    torch.sum(g, 0, keepdim=True, out=b[m])
                if i:
                    g = product(g, weights[i][m].T)
            if wants_x:
                to_x.append(g @ weights[0][m])
        return (torch.stack(to_x) if wants_x else None, None, *to_w, *to_b)


def _forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
    """(M, B, O) the outputs; each member's inputs, layer by layer."""
    outputs, inputs = [], []
    for m in range(len(x)):
        h, mine = x[m], []
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            mine.append(h)
            h = affine(h, w[m], b[m], relu=i < len(weights) - 1)
        inputs.append(mine)
        outputs.append(h)
    return torch.stack(outputs), inputs


def _product_of_rows(g_BO: Tensor, x_BI: Tensor, out: Tensor) -> None:
    """g^T x, (O, I), into `out`, by whichever way is quick for the shapes."""
    if 1 < x_BI.shape[1] < 16:  # to so few columns MKL multiplies at a quarter of the speed that it has for so few rows
        out.copy_(torch.mm(x_BI.T, g_BO).T)
    # Over many rows to few weights the other library would first bring both into its order.
    elif len(g_BO) <= 8 * max(out.shape) and quicker(g_BO.T, x_BI.T):
        out.copy_(product(g_BO.T, x_BI.T))
    else:
        torch.mm(g_BO.T, x_BI, out=out)


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
