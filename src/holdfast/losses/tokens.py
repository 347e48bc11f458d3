"""Losses on single responses that imitate."""

from __future__ import annotations

from torch import Tensor

from holdfast.losses.registry import sft_loss


@sft_loss(paper="maximum likelihood", equation="-log p(y | x)", normaliser="tokens")
def sft_nll(logp: Tensor) -> Tensor:
    """-logp

    Every response token of a step weighs the same: the sum over rows is divided by the step's response tokens.
    """
    return -logp
