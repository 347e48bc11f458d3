"""Estimators of a policy's value from logged episodes: pure functions of one padded table.

E episodes, H steps, B resamples of the episodes: `count_BE` says how often each counts. Every formula gives a value
for each resample and each episode's influence on it, whose mean square over n is the estimate's variance: exact for a
mean, the delta method for a ratio.

An ended episode keeps its weight and earns nothing more: beyond its end the log-ratios, rewards, q and v are 0. One
that was cut before the horizon has v of its last observation in the first column after the cut: the model says what
the log does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm

Estimate = tuple[np.ndarray, np.ndarray]  # value_B, influence_BE


@dataclass(frozen=True)
class Table:
    reward_EH: np.ndarray  # 0 beyond the end
    logw_EH: np.ndarray  # log of the product of policy / behaviour up to and with step t; constant beyond the end
    discount: float

    @cached_property
    def discount_H(self) -> np.ndarray:
        return np.asarray(self.discount ** np.arange(self.reward_EH.shape[1]))

    @cached_property
    def return_E(self) -> np.ndarray:
        return np.asarray(self.reward_EH @ self.discount_H)

    @cached_property
    def weight_EH(self) -> np.ndarray:
        return np.exp(np.minimum(self.logw_EH, 690.0))  # finite, so that 0 x weight is 0

    @cached_property
    def before_EH(self) -> np.ndarray:
        """The weight before step t; 1 before the first."""
        return _shift(self.weight_EH)

    @cached_property
    def scaled_EH(self) -> np.ndarray:
        """The weight over the step's largest: for ratios, where it cancels."""
        top = self.logw_EH.max(axis=0)
        return np.exp(self.logw_EH - np.where(np.isfinite(top), top, 0.0))


def _shift(w_EH: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(w_EH), 1)), w_EH[:, :-1]], axis=1)


def _mean(x_BE: np.ndarray, count_BE: np.ndarray) -> Estimate:
    value_B = (count_BE * x_BE).sum(axis=1) / count_BE.sum(axis=1)
    return value_B, x_BE - value_B[:, None]


def _over(x: np.ndarray, y: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(x, y, out=np.full(np.broadcast_shapes(x.shape, y.shape), otherwise), where=y > 0)


def mean_return(p: Table, count_BE: np.ndarray) -> Estimate:
    """What the behaviour earned."""
    return _mean(p.return_E[None], count_BE)


def importance(p: Table, count_BE: np.ndarray) -> Estimate:
    """IS: mean of w_H G."""
    return _mean((p.weight_EH[:, -1] * p.return_E)[None], count_BE)


def weighted(p: Table, count_BE: np.ndarray) -> Estimate:
    """WIS: sum of w_H G over sum of w_H. Not a number where no episode has any weight."""
    w_E, n_B1 = p.scaled_EH[:, -1], count_BE.sum(axis=1, keepdims=True)
    norm_B = count_BE @ w_E
    value_B = _over(count_BE @ (w_E * p.return_E), norm_B, np.nan)
    return value_B, n_B1 * _over(w_E * (p.return_E - value_B[:, None]), norm_B[:, None], np.nan)


def per_decision(p: Table, count_BE: np.ndarray) -> Estimate:
    """PDIS: mean of sum_t g^t w_t r_t."""
    return _mean(((p.weight_EH * p.reward_EH) @ p.discount_H)[None], count_BE)


def weighted_per_decision(p: Table, count_BE: np.ndarray) -> Estimate:
    """WPDIS: sum_t g^t (sum of w_t r_t over sum of w_t). An ended episode stays in the normaliser."""
    w_EH, n_B1 = p.scaled_EH, count_BE.sum(axis=1, keepdims=True)
    earned_EH, norm_BH = w_EH * p.reward_EH, count_BE @ w_EH
    value_BH = _over(count_BE @ earned_EH, norm_BH, np.nan)
    a_BH = _over(np.broadcast_to(p.discount_H, norm_BH.shape), norm_BH, np.nan)
    return value_BH @ p.discount_H, n_B1 * (a_BH @ earned_EH.T - (a_BH * value_BH) @ w_EH.T)


def direct(p: Table, v_BEH: np.ndarray, count_BE: np.ndarray) -> Estimate:
    """The model's value of the true first observations. The influence leaves out that the model was fitted."""
    return _mean(v_BEH[:, :, 0], count_BE)


def doubly_robust(p: Table, q_BEH: np.ndarray, v_BEH: np.ndarray, count_BE: np.ndarray) -> Estimate:
    """DR: mean of sum_t g^t (w_t (r_t - q_t) + w_{t-1} v_t), w_{-1} = 1. Jiang and Li 2016, eq. 10 unrolled."""
    x_BEH = p.weight_EH * (p.reward_EH - q_BEH) + p.before_EH * v_BEH
    return _mean(x_BEH @ p.discount_H, count_BE)


def _normalised(
    p: Table, q_BEH: np.ndarray, v_BEH: np.ndarray, count_BE: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The value of each step's gain and v under weights over their sum, and each episode's influence on them. Beyond
    what any episode has weight for, nothing: there the model's v of the last step that has some stands for the rest."""
    w_EH, n_B11 = p.scaled_EH, count_BE.sum(axis=1)[:, None, None]
    before_EH = _shift(w_EH)
    gain_BEH = p.reward_EH - q_BEH
    norm_BH = count_BE @ w_EH
    before_norm_BH = count_BE @ before_EH
    gain_BH = _over(np.einsum("be,beh->bh", count_BE, w_EH * gain_BEH), norm_BH, 0.0)
    v_BH = _over(np.einsum("be,beh->bh", count_BE, before_EH * v_BEH), before_norm_BH, 0.0)
    a_B1H = _over(np.broadcast_to(p.discount_H, norm_BH.shape), norm_BH, 0.0)[:, None]
    b_B1H = _over(np.broadcast_to(p.discount_H, norm_BH.shape), before_norm_BH, 0.0)[:, None]
    gain_on_BEH = n_B11 * a_B1H * w_EH * (gain_BEH - gain_BH[:, None])
    v_on_BEH = n_B11 * b_B1H * before_EH * (v_BEH - v_BH[:, None])
    return p.discount_H * gain_BH, p.discount_H * v_BH, gain_on_BEH, v_on_BEH


def weighted_doubly_robust(p: Table, q_BEH: np.ndarray, v_BEH: np.ndarray, count_BE: np.ndarray) -> Estimate:
    """WDR: DR with each step's weights over their sum. Thomas and Brunskill 2016, eq. 10."""
    gain_BH, v_BH, gain_on_BEH, v_on_BEH = _normalised(p, q_BEH, v_BEH, count_BE)
    return (gain_BH + v_BH).sum(axis=1), (gain_on_BEH + v_on_BEH).sum(axis=2)


def magic(
    p: Table, q_BEH: np.ndarray, v_BEH: np.ndarray, count_BE: np.ndarray, *, parts: int = 10, confidence: float = 0.9
) -> Estimate:
    """MAGIC: the blend of partial returns of least estimated squared error. Thomas and Brunskill 2016, section 8.

    The j-th partial return is WDR for the first j steps and the model's v beyond: the model alone at 0, WDR at H;
    `parts` of them, evenly spaced in log j. A part's bias is its distance to a `confidence` interval of WDR. Here the
    covariance of the parts and that interval are by the delta method; in the paper by the terms and by a bootstrap.
    The influence takes the blend as given.
    """
    gain_BH, v_BH, gain_on_BEH, v_on_BEH = _normalised(p, q_BEH, v_BEH, count_BE)
    B, H = gain_BH.shape
    j = np.unique(np.concatenate([[0], np.geomspace(1, H, parts - 1).round().astype(int)])) if H > 1 else np.arange(2)

    def partial(step: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Sums of the first j steps, and v of the step after them."""
        nought = np.zeros((*step.shape[:-1], 1))
        return np.concatenate([nought, np.cumsum(step, axis=-1)], -1)[..., j] + np.concatenate([v, nought], -1)[..., j]

    value_BJ = partial(gain_BH + v_BH, v_BH)
    on_BEJ = partial(gain_on_BEH + v_on_BEH, v_on_BEH)
    n_B = count_BE.sum(axis=1)
    covariance_BJJ = np.einsum("be,bei,bej->bij", count_BE, on_BEJ, on_BEJ) / (n_B**2)[:, None, None]
    whole_B1, se_B1 = value_BJ[:, -1:], np.sqrt(covariance_BJJ[:, -1, -1])[:, None]
    half_B1 = norm.ppf((1 + confidence) / 2) * se_B1
    bias_BJ = value_BJ - np.clip(value_BJ, whole_B1 - half_B1, whole_B1 + half_B1)
    error_BJJ = covariance_BJJ + bias_BJ[:, :, None] * bias_BJ[:, None, :]
    # min x'Mx with x >= 0 and sum 1: scaling makes it least squares without the sum, then x over its sum
    x_BJ = np.zeros((B, len(j)))
    aim = np.append(np.zeros(len(j)), 1.0)
    for b, error in enumerate(error_BJJ):
        scale = max(float(np.trace(error)), 1e-300)
        root = np.linalg.cholesky(error / scale + 1e-10 * np.eye(len(j))).T
        x_BJ[b] = nnls(np.vstack([root, np.ones(len(j))]), aim)[0]
    x_BJ /= x_BJ.sum(axis=1, keepdims=True)
    return (value_BJ * x_BJ).sum(axis=1), np.einsum("bej,bj->be", on_BEJ, x_BJ)


WEIGHTS: dict[str, Callable[[Table, np.ndarray], Estimate]] = {
    "is": importance,
    "wis": weighted,
    "pdis": per_decision,
    "wpdis": weighted_per_decision,
}
MODEL: dict[str, Callable[[Table, np.ndarray, np.ndarray, np.ndarray], Estimate]] = {
    "dr": doubly_robust,
    "wdr": weighted_doubly_robust,
    "magic": magic,
}
ESTIMATORS: tuple[str, ...] = (*WEIGHTS, *MODEL, "fqe")
