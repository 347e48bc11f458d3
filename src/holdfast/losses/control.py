"""Losses of learning from logged steps and from judgements of segments.

Axes: B rows; A discrete actions; C critics; S sampled actions; T steps of a segment. Leading axes (members that train
together) are free: every function works on the axes that it names, which are the last. Nothing is averaged over rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, logsigmoid


def td_target(reward_B: Tensor, terminated_B: Tensor, next_value_B: Tensor, discount: float | Tensor) -> Tensor:
    """r + g (1 - terminated) V(s'), a constant. A *truncated* episode goes on: its last observation has a value."""
    return (reward_B + discount * (1 - terminated_B) * next_value_B).detach()


def td_error(value: Tensor, target: Tensor, *, how: str = "mse") -> Tensor:
    """(Q - y)^2, or Huber's loss with threshold 1: d^2/2 within, |d| - 1/2 beyond."""
    if how == "huber":
        return huber_loss(value, target, reduction="none")
    return (value - target) ** 2


def double_q_value(online_BA: Tensor, target_BA: Tensor) -> Tensor:
    """Qt(s, argmax_a Q(s, a)): chosen by one network, valued by the other. 1509.06461, eq. 4."""
    return target_BA.gather(-1, online_BA.argmax(-1, keepdim=True)).squeeze(-1)


def cql_gap(q_BA: Tensor, action_B: Tensor) -> Tensor:
    """logsumexp_a Q(s, a) - Q(s, a_data). 2006.04779, eq. 4, CQL(H) with discrete actions."""
    return q_BA.logsumexp(-1) - q_BA.gather(-1, action_B.unsqueeze(-1)).squeeze(-1)


def cql_gap_sampled(q_BS: Tensor, log_density_BS: Tensor, q_data_B: Tensor) -> Tensor:
    """logsumexp_s (Q(s, a_s) - log p(a_s)) - Q(s, a_data), a_s drawn from p. 2006.04779, appendix F, less its constant log S.

    log p is a constant: the actor learns nothing from it.
    """
    importance = q_BS - log_density_BS.detach()
    return importance.logsumexp(-1) - q_data_B


def bcq_allowed(log_probs_BA: Tensor, threshold: float | Tensor) -> Tensor:
    """Where G(a|s) / max_a G(a|s) > tau; the most probable action always. 1910.01708, eq. 14.

    tau = 0 allows every action; tau = 1 only the most probable: cloning.
    """
    ratio_BA = (log_probs_BA - log_probs_BA.amax(-1, keepdim=True)).exp()
    return (ratio_BA > threshold) | (ratio_BA == 1)


def masked(q_BA: Tensor, allowed_BA: Tensor) -> Tensor:
    """Q where it is allowed, else -inf."""
    return q_BA.masked_fill(~allowed_BA, -torch.inf)


def bcq_value(q_CBS: Tensor, lam: float | Tensor) -> Tensor:
    """max over samples of lam min_c Q + (1 - lam) max_c Q, (B,). 1812.02900, eq. 13."""
    return (lam * q_CBS.amin(-3) + (1 - lam) * q_CBS.amax(-3)).amax(-1)


def expectile(difference_B: Tensor, tau: float | Tensor) -> Tensor:
    """|tau - 1(d < 0)| d^2 with d = Q - V. 2110.06169, eq. 5."""
    return torch.where(difference_B < 0, 1 - tau, tau * torch.ones_like(difference_B)) * difference_B**2


def advantage_weight(advantage_B: Tensor, beta: float | Tensor, most: float = 100.0) -> Tensor:
    """min(exp(beta A), 100), a constant. 2110.06169, eq. 7."""
    return (beta * advantage_B.detach()).exp().clamp(max=most)


def discounted(x_BT: Tensor, mask_BT: Tensor, discount: float | Tensor) -> Tensor:
    """sum_t g^t x_t over a segment's own steps."""
    power_T = torch.arange(x_BT.shape[-1], dtype=x_BT.dtype, device=x_BT.device)
    g = discount.unsqueeze(-1) if isinstance(discount, Tensor) else torch.tensor(discount, dtype=x_BT.dtype)
    return (x_BT * mask_BT * g**power_T).sum(-1)


def segment_bradley_terry(return_1_B: Tensor, return_2_B: Tensor, p_B: Tensor) -> Tensor:
    """-p log sigma(R_1 - R_2) - (1 - p) log sigma(R_2 - R_1); a tie is p = 1/2. 1706.03741, eq. 1."""
    d = return_1_B - return_2_B
    return -p_B * logsigmoid(d) - (1 - p_B) * logsigmoid(-d)


def cpl(advantage_1_B: Tensor, advantage_2_B: Tensor, p_B: Tensor, *, lam: float | Tensor = 0.5) -> Tensor:
    """-log sigma(A+ - lam A-), A = alpha sum_t g^t log pi(a_t | s_t). 2310.13639, eq. 5 and the conservative form, eq. 9.

    With log pi - log pi_ref in A and lam = 1 it is DPO on segments. A probability as label mixes the two outcomes.
    """
    return -p_B * logsigmoid(advantage_1_B - lam * advantage_2_B) - (1 - p_B) * logsigmoid(
        advantage_2_B - lam * advantage_1_B
    )
