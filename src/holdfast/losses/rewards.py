"""Losses for reward models, on their scores: no policy, no reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.losses.registry import check, reward_loss


@reward_loss(paper="2203.02155", equation="eq. 1; margin 2307.09288 eq. 2; centring 2312.09244 sec. 2")
def bradley_terry(R_w: Tensor, R_l: Tensor, margin: Tensor, *, centre: float = 0.0) -> Tensor:
    """-log sigma(R_w - R_l - margin) + centre (R_w + R_l)^2

    Centring takes away the freedom to add a constant to all scores of a prompt; 0.01 does. With a probability as label
    the margin is the statement's strength and holds for either winner.
    """
    check(centre >= 0, "bradley_terry", "centre", centre, "centre >= 0")
    return -logsigmoid(R_w - R_l - margin) + centre * (R_w + R_l) ** 2
