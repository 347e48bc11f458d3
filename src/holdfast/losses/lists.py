"""Losses on rankings of two or more responses to one prompt, all rankings of a step in one flat tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.losses.registry import check, list_loss

# Axes: K responses of all rankings together, L rankings, M places of the longest ranking.


@list_loss(paper="2305.18290", equation="eq. 20")
def plackett_luce(r: Tensor, rank: Tensor, owner: Tensor, *, beta: float = 0.1) -> Tensor:
    """sum over responses i of ln(1 + sum over j ranked below i of exp(beta (r_j - r_i)))

    One value per ranking, (L,), a sum over its places: long rankings weigh more. Two responses give dpo. Responses of
    equal rank are not compared with one another, so a ranking of the best few, with all others tied at the last rank,
    is the Plackett-Luce likelihood of just those few choices; with ties elsewhere it is a composite likelihood, each
    response being chosen among itself and those below it. A response that was not ranked is left out by the caller.
    """
    check(beta > 0, "plackett_luce", "beta", beta, "beta > 0")
    order = torch.argsort(owner, stable=True)
    owner, rank, score = owner[order], rank[order], beta * r[order]
    length_L = torch.bincount(owner)
    place = torch.arange(len(owner), device=r.device) - (length_L.cumsum(0) - length_L)[owner]
    shape = (len(length_L), int(length_L.max()) if len(length_L) else 0)

    score_LM = score.new_zeros(shape).index_put((owner, place), score)
    rank_LM = score.new_full(shape, -torch.inf).index_put(
        (owner, place), rank.to(score.dtype)
    )  # padding is below nothing
    below_LMM = rank_LM[:, None, :] > rank_LM[:, :, None]
    below_LMM = below_LMM & torch.isfinite(rank_LM)[:, :, None]  # and nothing is below padding
    itself = torch.eye(shape[1], dtype=torch.bool, device=r.device)
    among_LMM = score_LM[:, None, :].masked_fill(~(below_LMM | itself), -torch.inf)
    return (torch.logsumexp(among_LMM, dim=-1) - score_LM).sum(-1)
