"""Losses on pairs of responses, for a policy. Shapes (E,), one per pair; beta and the like are plain numbers.

Written so that values and gradients stay finite in float32 for log ratios up to +-1e4: the logistic only as
`logsigmoid`, the product of an exponential and a vanishing factor as one exponential of a sum.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.losses.registry import check, pair_loss


@pair_loss(paper="2305.18290", equation="eq. 7")
def dpo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigma(beta (r_w - r_l))

    ln 2 where policy and reference agree.
    """
    check(beta > 0, "dpo", "beta", beta, "beta > 0")
    return -logsigmoid(beta * (r_w - r_l))
