"""Intervals for a policy's value. Each is a pure function; what it assumes is in its docstring.

The exact ones (Hoeffding, empirical Bernstein) need a range that is known and not taken from the sample.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

Interval = tuple[float, float]
EVERYTHING = (-np.inf, np.inf)


def student(value: float, influence_E: np.ndarray, confidence: float = 0.95) -> Interval:
    """value +- t s / sqrt n, s^2 the sum of squared influences over n - 1. Assumes that the mean of the influences is
    nearly normal: enough episodes for how skewed they are."""
    n = len(influence_E)
    if n < 2 or not np.isfinite(influence_E).all():
        return EVERYTHING
    half = student_t.ppf((1 + confidence) / 2, n - 1) * np.sqrt((influence_E**2).sum() / (n - 1) / n)
    return value - float(half), value + float(half)


def bootstrap_t(value: float, se: float, value_B: np.ndarray, se_B: np.ndarray, confidence: float = 0.95) -> Interval:
    """value - se times the quantiles of (value_b - value) / se_b over resamples of episodes: it follows the skew that
    `student` does not (Efron 1981). Assumes that the sample has met what makes the skew."""
    if not np.isfinite(se):
        return EVERYTHING
    z_B = np.divide(value_B - value, se_B, out=np.zeros_like(value_B), where=~(se_B <= 0))
    tail = (1 - confidence) / 2
    return value + se * _lower(-z_B, tail), value - se * _lower(z_B, tail)


def percentile(value_B: np.ndarray, episodes: int, confidence: float = 0.95) -> Interval:
    """The expanded quantiles of the resamples' values (Hesterberg 2015): for what is refitted, whose standard error no
    formula here has in full. Resamples of n episodes have sqrt((n - 1) / n) of the spread that they stand for, and
    their quantiles take it for known. At levels Phi(-+ sqrt(n / (n - 1)) t) both are made good, and resamples that are
    normal give Student's interval: 2.2 % at each end for 2.5 % of 64 episodes. Very few episodes ask for a level that
    the resamples do not reach: that end is infinite."""
    t = student_t.ppf((1 + confidence) / 2, episodes - 1)
    level = float(norm.cdf(-t * np.sqrt(episodes / (episodes - 1))))
    return _lower(value_B, level), -_lower(-value_B, level)


def spread(value: float, value_B: np.ndarray, episodes: int, confidence: float = 0.95) -> Interval:
    """value +- t sqrt(n / (n - 1)) sd of the resamples' values: for resamples too few for quantiles. The degrees of
    freedom are those of an sd that B resamples of n episodes know: 1 / df = 1 / (B - 1) + 1 / (n - 1)."""
    if not np.isfinite(value_B).all():
        return EVERYTHING
    n, B = episodes, len(value_B)
    t = student_t.ppf((1 + confidence) / 2, 1 / (1 / (B - 1) + 1 / (n - 1)))
    half = t * np.sqrt(n / (n - 1)) * np.std(value_B, ddof=1)
    return value - float(half), value + float(half)


def _lower(x_B: np.ndarray, p: float) -> float:
    """The p-quantile, p below a half: at p (B + 1) among the sorted B, linear in between. An undefined one could lie
    anywhere, so it lies below; so does the quantile where p is below 1 / (B + 1)."""
    at = round(p * (len(x_B) + 1), 9)
    k, part = int(at), at % 1
    x_B = np.sort(np.where(np.isnan(x_B), -np.inf, x_B))
    if k < 1 or x_B[k - 1] == -np.inf:
        return -np.inf
    return float((1 - part) * x_B[k - 1] + part * x_B[k] if part else x_B[k - 1])


def hoeffding_below(x_E: np.ndarray, ceiling: float, delta: float) -> float:
    """A lower bound of the mean of x in [0, ceiling], wrong with probability delta at most. Hoeffding 1963."""
    return float(x_E.mean() - ceiling * np.sqrt(np.log(1 / delta) / (2 * len(x_E))))


def bernstein_below(x_E: np.ndarray, ceiling: float, delta: float) -> float:
    """The same from the sample's variance: mean - sqrt(2 V ln(2/delta) / n) - 7 c ln(2/delta) / (3 (n - 1)).
    Maurer and Pontil 2009, theorem 4."""
    n = len(x_E)
    if n < 2:
        return -np.inf
    log = np.log(2 / delta)
    return float(x_E.mean() - np.sqrt(2 * x_E.var(ddof=1) * log / n) - 7 * ceiling * log / (3 * (n - 1)))


BELOW = {"hoeffding": hoeffding_below, "bernstein": bernstein_below}
# Where weights are cut if the user does not say: of the order that keeps the cut's bias as large as the bound's width
CAP = {"hoeffding": lambda n: max(1.0, n**0.25), "bernstein": lambda n: max(1.0, (n / 10) ** 0.5)}


def bounded(
    logw_E: np.ndarray,
    return_E: np.ndarray,
    returns: Interval,
    kind: str,
    cap: float | None = None,
    confidence: float = 0.95,
) -> Interval:
    """An interval of the policy's value that holds for any number of episodes, from a stated range of returns.

    A weight has no known bound, so it is cut at `cap`, which lowers the mean of a quantity that is never negative: of
    w (G - low) for the lower end, of w (high - G) for the upper. Each end is a one-sided bound at half the error, cut
    to the range (Thomas, Theocharous and Ghavamzadeh 2015 for the cut). Assumes known propensities, that the behaviour
    could do all that the policy does, independent episodes, and a `cap` that was not chosen by these weights.
    """
    low, high = returns
    cap = CAP[kind](len(logw_E)) if cap is None else cap
    w_E = np.exp(np.minimum(logw_E, np.log(cap)))
    below, delta = BELOW[kind], (1 - confidence) / 2
    bottom = below(w_E * (return_E - low), cap * (high - low), delta)
    top = below(w_E * (high - return_E), cap * (high - low), delta)
    return max(low, low + bottom), min(high, high - top)


def widened(value: float, interval: Interval, other_sd: float, members: int, confidence: float = 0.95) -> Interval:
    """The interval with an independent error added in quadrature: that of a reward known only by `members` guesses of
    it, whose values differ by `other_sd` and whose mean reward gave `value`. Assumes that the guesses differ from one
    another as they do from the truth."""
    half = student_t.ppf((1 + confidence) / 2, members - 1) * other_sd * np.sqrt(1 + 1 / members)
    low, high = interval
    return value - float(np.hypot(max(value - low, 0.0), half)), value + float(np.hypot(max(high - value, 0.0), half))
