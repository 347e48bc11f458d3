"""Losses on single responses that were labelled good or bad."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.losses.registry import check, label_loss


def kto_z0(r_mismatched: Tensor) -> Tensor:
    """max(0, mean of log ratios of responses put under prompts that are not theirs)

    An estimate of the KL to the reference, (), without graph. Give it the mismatched responses of the whole step: the
    estimate of one micro-batch is another, and noisier, loss. 0 where there are none.
    """
    return r_mismatched.detach().sum().clamp(min=0) / max(r_mismatched.numel(), 1)


@label_loss(paper="2402.01306", equation="eq. 7")
def kto(
    r: Tensor, good: Tensor, z0: Tensor, *, beta: float = 0.1, lam_good: float = 1.0, lam_bad: float = 1.0
) -> Tensor:
    """good: lam_good (1 - sigma(beta (r - z0))); bad: lam_bad (1 - sigma(beta (z0 - r)))

    The paper keeps lam_good n_good / (lam_bad n_bad) between 1 and 4/3. A step wants both labels: rows in blocks of one
    label, as TRL's sequential sampling gives them with paired data, are another training.
    """
    check(beta > 0, "kto", "beta", beta, "beta > 0")
    check(lam_good >= 0, "kto", "lam_good", lam_good, "lam_good >= 0")
    check(lam_bad >= 0, "kto", "lam_bad", lam_bad, "lam_bad >= 0")
    z = beta * (r - z0)
    return good * lam_good * torch.sigmoid(-z) + (1 - good) * lam_bad * torch.sigmoid(z)
