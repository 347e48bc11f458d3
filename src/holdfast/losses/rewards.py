"""Losses for reward models, on their scores: no policy, no reference. And what an ensemble of them says together."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.losses.lists import plackett_luce
from holdfast.losses.pairs import rao_kupper
from holdfast.losses.registry import check, reward_loss


@reward_loss(paper="2203.02155", equation="eq. 1; margin 2307.09288 eq. 2; centring 2312.09244 eq. 2")
def bradley_terry(R_w: Tensor, R_l: Tensor, margin: Tensor, *, centre: float = 0.0) -> Tensor:
    """-log sigma(R_w - R_l - margin) + centre (R_w + R_l)^2

    Centring takes away the freedom to add a constant to all scores of a prompt; 0.01 does. With a probability as label
    the margin is the statement's strength and holds for either winner.
    """
    check(centre >= 0, "bradley_terry", "centre", centre, "centre >= 0")
    return -logsigmoid(R_w - R_l - margin) + centre * (R_w + R_l) ** 2


@reward_loss(paper="2305.18290", equation="eq. 18", why_not_soft="a ranking has no probability")
def reward_plackett_luce(R: Tensor, rank: Tensor, owner: Tensor) -> Tensor:
    """sum over responses i of ln(1 + sum over j ranked below i of exp(R_j - R_i))

    One value per ranking, (L,); see `plackett_luce` for partial rankings and ties.
    """
    return plackett_luce(R, rank, owner, beta=1.0)


@reward_loss(paper="2409.17431", equation="Rao-Kupper")
def reward_rao_kupper(R_w: Tensor, R_l: Tensor, tie: Tensor, *, nu: float = 3.0) -> Tensor:
    """win: -log sigma(R_w - R_l - ln nu); tie: -log((nu^2 - 1) sigma(R_w - R_l - ln nu) sigma(R_l - R_w - ln nu))

    Bradley-Terry with ties as an outcome of their own; see `rao_kupper`.
    """
    return rao_kupper(R_w, R_l, tie, beta=1.0, nu=nu)


def pessimistic(
    R_HE: Tensor, *, how: Literal["mean-variance", "mean-sd", "min"] = "mean-variance", k: float | None = None
) -> Tensor:
    """mean - k variance over the ensemble; "mean-sd": mean - k standard deviations; "min": the least

    The score to optimise against where the members of an ensemble disagree, (E,), from (H, E) scores of H members.
    2310.02743: "mean-variance" is its uncertainty-weighted optimisation (k its lambda), "min" its worst case. Both
    spreads divide by H, as there. k is 1 unless given; "min" takes none.
    """
    if how == "min":
        check(k is None, "pessimistic", "k", k, "no k with how = 'min'")
        return R_HE.min(0).values
    k = 1.0 if k is None else k
    check(k >= 0, "pessimistic", "k", k, "k >= 0")
    variance = R_HE.var(0, correction=0)
    return R_HE.mean(0) - k * (variance if how == "mean-variance" else variance.sqrt())
