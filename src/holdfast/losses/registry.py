"""What a loss is, the words in which it may ask, and the table of all of them.

A loss is a pure function. Its positional parameters are the quantities it needs, by the names in `QUANTITIES` and no
others; its keyword-only parameters are its hyper-parameters, bound from the recipe's [objective] table. It returns one
value per row, whose sum over the step's rows, divided by what `normaliser` says, is the loss.

Adding a loss: write the function under its decorator in the module of its family, and its tests.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor

from holdfast.errors import RecipeError

Family = Literal["sft", "pair", "list", "label", "reward"]
Normaliser = Literal["rows", "tokens"]

# Every quantity a loss may name. (E,): one per pair (w the preferred response, l the other) or per labelled response;
# (K,): one per response of a ranking, all rankings in one flat tensor; (): one number. Floating point but for `owner`.
# "With graph": the loss's gradient flows through it; all others are constants.
QUANTITIES: dict[str, str] = {
    "logp_w": "(E,) summed log-probability of w's response tokens under the policy, with graph",
    "logp_l": "(E,) the same for l",
    "ref_logp_w": "(E,) summed log-probability of w's response tokens under the reference",
    "ref_logp_l": "(E,) the same for l",
    "r_w": "(E,) log ratio logp_w - ref_logp_w, with graph",
    "r_l": "(E,) log ratio logp_l - ref_logp_l, with graph",
    "n_w": "(E,) number of response tokens of w, the stop token included",
    "n_l": "(E,) the same for l",
    "past_logp_w": "(E,) the part of logp_w on the tokens past the first min(n_w, n_l), with graph; 0 where none",
    "past_logp_l": "(E,) the same for l, with graph",
    "past_ref_logp_w": "(E,) the part of ref_logp_w on the tokens past the first min(n_w, n_l)",
    "past_ref_logp_l": "(E,) the same for l",
    "kl_w": "(E,) KL(reference || policy) of the next token, summed over the positions predicting w, with graph",
    "kl_l": "(E,) the same for l, with graph",
    "aligned_w": "(E,) mean over w's tokens of log pi(token) - log sum_v pi(v)^2, without graph",
    "aligned_l": "(E,) the same for l",
    "margin": "(E,) how much better w is, from the dataset's margin column; zeros where it has none",
    "tie": "(E,) 1.0 where the judgement is a tie (w and l then in any order), else 0.0",
    "delta": "() the running reward shift: state, 0 at first, see `bco_delta`",
    "logp": "(E,) summed log-probability of the row's response tokens under the policy, with graph",
    "r": "(E,), in list losses (K,): log ratio logp - ref_logp, with graph",
    "good": "(E,) 1.0 where the response was labelled good, 0.0 where bad",
    "z0": "() the batch's estimate of the KL to the reference, without graph, see `kto_z0`",
    "rank": "(K,) the response's rank in its ranking, lower is better, equal is a tie; any order-preserving numbers do",
    "owner": "(K,) int64, which ranking the response is in, from 0 to L - 1",
    "R_w": "(E,) the reward model's score of w, with graph",
    "R_l": "(E,) the same for l, with graph",
    "R": "(K,) the reward model's scores, with graph",
}


class Loss(Protocol):
    """A registered loss: the plain function, with these attributes."""

    name: str
    family: Family
    takes: tuple[str, ...]  # its quantities, in the order of its parameters
    needs: tuple[str, ...]  # what to compute for it: these and, for `soft`, the same of the other response
    couples_rows: bool  # its value for one row depends on the others: give it the whole step's rows in one call
    why_not_soft: str | None  # why a label with a probability makes no sense for it; None where it does
    uses_ties: bool  # ties are outcomes of their own to it (to others a tie is the probability 1/2)
    needs_reference: bool  # one of its quantities comes from a reference model
    per_token: bool  # its implicit reward is a mean over tokens, beta r / n or beta logp / n, not beta times the sum
    updates: Mapping[str, Callable[..., Tensor]]  # state it needs: the function that gives the next value after a step
    normaliser: Normaliser  # what the sum over rows is divided by: the number of rows, or of response tokens
    paper: str  # arXiv number, or another source
    equation: str
    __name__: str
    __doc__: str | None

    def __call__(self, *quantities: Tensor, **hyper_parameters: Any) -> Tensor: ...


LOSSES: dict[str, Loss] = {}
F = TypeVar("F", bound=Callable[..., Tensor])


def _register(
    family: Family,
    *,
    paper: str,
    equation: str,
    couples_rows: bool = False,
    per_token: bool = False,
    why_not_soft: str | None = None,
    normaliser: Normaliser = "rows",
    updates: Mapping[str, Callable[..., Tensor]] | None = None,
) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        takes = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        needs = tuple(dict.fromkeys([*takes, *([] if why_not_soft else map(_exchanged, takes))]))
        strange = [n for n in needs if n not in QUANTITIES]
        if strange or function.__name__ in LOSSES:
            raise TypeError(
                f"loss {function.__name__}: quantities {strange} are not in QUANTITIES, or the name is taken"
            )
        loss = cast(Loss, function)
        loss.name = function.__name__
        loss.family = family
        loss.takes = takes
        loss.needs = needs
        loss.couples_rows = couples_rows
        loss.why_not_soft = why_not_soft
        loss.uses_ties = "tie" in needs or "rank" in needs
        loss.needs_reference = any(re.match(r"r(_[wl])?$|ref_|past_ref_|kl_", n) for n in needs)
        loss.per_token = per_token
        loss.updates = updates or {}
        loss.normaliser = normaliser
        loss.paper = paper
        loss.equation = equation
        LOSSES[loss.name] = loss
        return function

    return decorate


def sft_loss(**said: Any) -> Callable[[F], F]:
    return _register("sft", **said, why_not_soft="it has no second response")


def pair_loss(**said: Any) -> Callable[[F], F]:
    return _register("pair", **said)


def list_loss(**said: Any) -> Callable[[F], F]:
    return _register("list", **said, why_not_soft="a ranking has no probability")


def label_loss(**said: Any) -> Callable[[F], F]:
    return _register("label", **said, why_not_soft="it has no second response")


def reward_loss(**said: Any) -> Callable[[F], F]:
    return _register("reward", **said)


def soft(loss: Callable[..., Tensor], p: Tensor, **given: Any) -> Tensor:
    """The loss under a label that is w with probability p and l otherwise: p L(w, l) + (1 - p) L(l, w), shape (E,).

    loss: a registered loss. p: (E,) in [0, 1]. given: its quantities and hyper-parameters, all by name. L(l, w)
    exchanges every quantity `x_w` with `x_l`; a quantity of the pair as a whole (`margin`, `delta`) stays as it is.

    A loss with `why_not_soft` is given as it is where every p is 1; any other p raises RecipeError.
    """
    said = cast(Loss, loss)
    hyper = {k: v for k, v in given.items() if k not in said.needs}
    straight = [given[n] for n in said.takes]
    if said.why_not_soft is not None:
        unsure = int((p != 1).sum())
        if unsure:
            raise RecipeError(
                f"[objective] {said.name} takes no probability as a label, since {said.why_not_soft}; {unsure} of "
                f"{p.numel()} comparisons here are soft labels or ties: leave them out, or take another loss"
            )
        return loss(*straight, **hyper)
    exchanged = [given[_exchanged(n)] for n in said.takes]
    return p * loss(*straight, **hyper) + (1 - p) * loss(*exchanged, **hyper)


def _exchanged(quantity: str) -> str:
    """The same quantity of the other response; itself where it is of the pair as a whole."""
    other = {"_w": "_l", "_l": "_w"}
    return quantity[:-2] + other.get(quantity[-2:], quantity[-2:])


def check(holds: bool, loss: str, name: str, value: object, allowed: str) -> None:
    """Refuse a hyper-parameter out of range, naming the loss, the key, its value and what is allowed."""
    if not holds:
        raise RecipeError(f"[objective] {name} = {value!r}: {loss} needs {allowed}")


def dry_run(loss: Callable[..., Tensor], **hyper: Any) -> None:
    """Call the loss on one made-up row: refuses a hyper-parameter out of range before anything is computed."""
    takes = cast(Loss, loss).takes
    loss(*(torch.zeros(1, dtype=torch.long) if n == "owner" else torch.ones(1) for n in takes), **hyper)
