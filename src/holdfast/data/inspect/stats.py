"""The statistics that detectors share: pure functions of arrays, each with its source.

A comparison has two sides, and which one is called `a` says nothing. So every score of a comparison here is a margin
that changes its sign when the sides are exchanged, and `p` is the stated probability that `a` is preferred.

E comparisons, G groups (prompts), B resamples, D features, M sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import beta

BLOCKS = 2000  # a bootstrap resamples prompts, or where there are more of them this many blocks of prompts
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; None where there is nothing to compute it from."""

    value: float | None
    lo: float | None = None
    hi: float | None = None

    @property
    def known(self) -> bool:
        return self.value is not None and self.lo is not None and self.hi is not None


NOTHING = Interval(None)


class Resamples:
    """A bootstrap over groups: B weightings of the same comparisons, shared by all figures that are to be compared.

    Comparisons of one prompt share its difficulty and often a response; resampling them one by one gives intervals
    that are too narrow. More than 2,000 groups are first put together at random into 2,000 blocks: the resampled
    variance of a mean has the same expectation, and memory stays bounded.

    group: (E,) int64, the block of each comparison; counts: (B, G) float32.
    """

    def __init__(self, groups: np.ndarray, *, times: int = 400, seed: int = 0):
        rng = np.random.default_rng(seed)
        _, group = np.unique(groups, return_inverse=True)
        self.n = int(group.max(initial=-1)) + 1
        if self.n > BLOCKS:
            block = rng.permutation(self.n) % BLOCKS
            group = block[group]
        self.group = group
        self.blocks = min(self.n, BLOCKS)
        draws = rng.integers(0, max(self.blocks, 1), size=(times, self.blocks))
        self.counts = np.zeros((times, self.blocks), np.float32)
        for b in range(times):
            self.counts[b] = np.bincount(draws[b], minlength=self.blocks)

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Interval:
        """sum(above) / sum(below) over comparisons, (E,) each, 0 <= above <= below where it is a share.

        Where the share is exactly 0 or 1 there is nothing to resample, and the interval is the exact binomial one on
        the number of groups (Clopper and Pearson).
        """
        total = float(below.sum())
        if total <= 0:
            return NOTHING
        value = float(above.sum()) / total
        mine = len(np.unique(self.group[below > 0]))
        if mine < 2:
            return Interval(value)
        if value in (0.0, 1.0) and (above >= 0).all() and (above <= below).all():
            edge = (1 - LEVEL) / 2
            lo = 0.0 if value == 0 else float(beta.ppf(edge, mine, 1))
            hi = 1.0 if value == 1 else float(beta.ppf(1 - edge, 1, mine))
            return Interval(value, lo, hi)
        tops = self.counts @ np.bincount(self.group, above, self.blocks)
        bottoms = self.counts @ np.bincount(self.group, below, self.blocks)
        kept = bottoms > 0
        return Interval(value, *_middle(tops[kept] / bottoms[kept]))

    def of(self, statistic: Callable[[np.ndarray], float | None], *, times: int | None = None) -> Interval:
        """Any statistic of comparison weights, (E,) -> number; the first `times` resamples only, where it is slow."""
        value = statistic(np.ones(len(self.group)))
        if value is None or self.blocks < 2:
            return Interval(value)
        found = [statistic(row[self.group]) for row in self.counts[:times]]
        return Interval(value, *_middle(np.array([x for x in found if x is not None])))


def _middle(values: np.ndarray) -> tuple[float | None, float | None]:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None, None
    lo, hi = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(lo), float(hi)


class SignedAUC:
    """Area under the ROC curve of a margin over comparisons, each taken both ways round.

    The chance that a preferred side's margin is above that of a side not preferred, ties half (Mann-Whitney). `p` counts
    as p of "a is preferred" and 1 - p of the reverse. Sorted once, so that a bootstrap costs one pass per resample.
    """

    def __init__(self, margin: np.ndarray, p: np.ndarray):
        both = np.concatenate([margin, -margin])
        self.order = np.argsort(both, kind="stable")
        ranked = both[self.order]
        self.ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # of runs of equal margins
        self.p = p
        self.e = len(margin)

    def __call__(self, weight: np.ndarray) -> float | None:
        """weight: (E,)."""
        positive = np.concatenate([weight * self.p, weight * (1 - self.p)])[self.order]
        negative = np.concatenate([weight * (1 - self.p), weight * self.p])[self.order]
        pos = np.diff(np.r_[0.0, np.cumsum(positive)[self.ends]])
        neg = np.diff(np.r_[0.0, np.cumsum(negative)[self.ends]])
        total = float(pos.sum()) * float(neg.sum())
        if total <= 0:
            return None
        return float(pos @ (np.cumsum(neg) - neg / 2)) / total


class TwoClassAUC:
    """Area under the ROC curve of a margin (E,) for a label (E,) bool, ties half; called with weights (E,)."""

    def __init__(self, margin: np.ndarray, label: np.ndarray):
        self.order = np.argsort(margin, kind="stable")
        ranked = margin[self.order]
        self.ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
        self.label = label[self.order]

    def __call__(self, weight: np.ndarray) -> float | None:
        w = weight[self.order]
        pos = np.diff(np.r_[0.0, np.cumsum(w * self.label)[self.ends]])
        neg = np.diff(np.r_[0.0, np.cumsum(w * ~self.label)[self.ends]])
        total = float(pos.sum()) * float(neg.sum())
        return float(pos @ (np.cumsum(neg) - neg / 2)) / total if total > 0 else None


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic model: weights (D,), their cluster-robust standard errors (D,) where asked for."""

    weights: np.ndarray
    errors: np.ndarray | None = None


def logistic(
    x: np.ndarray,
    p: np.ndarray,
    weight: np.ndarray,
    *,
    ridge: float | np.ndarray = 1e-6,
    groups: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> Logistic:
    """Logistic regression without an intercept on feature differences x (E, D), soft labels p, by Newton's method.

    Without an intercept the fit is that on symmetrised comparisons. With `groups`, errors are the sandwich's,
    clustered by group, times sqrt(G / (G - 1)) (Liang and Zeger 1986).
    """
    n = x.shape[1]
    penalty = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (n,))
    w = np.zeros(n) if start is None else start.copy()

    def loss(at: np.ndarray) -> float:
        z = x @ at
        return float(weight @ (np.logaddexp(0, z) - p * z) + 0.5 * penalty @ at**2)

    now = loss(w)
    for _ in range(50):
        q = expit(x @ w)
        slope = x.T @ (weight * (q - p)) + penalty * w
        curve = (x * (weight * q * (1 - q))[:, None]).T @ x + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while (then := loss(w - size * step)) > now + 1e-12 * abs(now) and size > 1e-6:
            size /= 2
        w = w - size * step
        done = abs(now - then) <= 1e-10 * (abs(now) + 1e-10)
        now = then
        if done:
            break
    if groups is None:
        return Logistic(w)
    q = expit(x @ w)
    bread = np.linalg.pinv((x * (weight * q * (1 - q))[:, None]).T @ x + np.diag(penalty))
    score = x * (weight * (q - p))[:, None]
    _, of = np.unique(groups, return_inverse=True)
    count = int(of.max(initial=0)) + 1
    sums = np.zeros((count, n))
    np.add.at(sums, of, score)
    cover = bread @ (sums.T @ sums) @ bread * (count / max(count - 1, 1))
    return Logistic(w, np.sqrt(np.maximum(np.diag(cover), 0)))


def folds(groups: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(E,) the fold of each comparison: whole groups, dealt at random, so that no prompt is on both sides."""
    _, of = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(of.max(initial=-1)) + 1)
    return order[of] % n


def out_of_fold(
    x: np.ndarray, p: np.ndarray, weight: np.ndarray, fold: np.ndarray, *, ridge: float = 10.0
) -> np.ndarray:
    """(E,) margins of a ridge logistic model on x (E, D), each from a fit that has not seen the comparison's prompt.

    Features are scaled by their root mean square among those of the training folds (a difference has no mean).
    """
    margin = np.zeros(len(p))
    start = None
    for k in range(int(fold.max(initial=-1)) + 1):
        held = fold == k
        scale = np.sqrt(np.mean(x[~held] ** 2, axis=0))
        scale = np.where(scale > 1e-9, scale, 1.0)
        fitted = logistic(x[~held] / scale, p[~held], weight[~held], ridge=ridge, start=start)
        start = fitted.weights
        margin[held] = (x[held] / scale) @ fitted.weights
    return margin


# Agreement.


def krippendorff(values: np.ndarray, unit: np.ndarray, kinds: int, weight: np.ndarray | None = None) -> float | None:
    """Krippendorff's alpha for nominal values: 1 for full agreement, 0 for chance.

    values: (R,) ints below `kinds`, one per rating; unit: (R,) what was rated; weight: (U,) how often each unit counts
    (a bootstrap). Units rated once say nothing. alpha = 1 - Do/De with the coincidence matrix of Krippendorff,
    *Computing Krippendorff's alpha-reliability* (2011), section E. None where all values are the same.
    """
    units = int(unit.max(initial=-1)) + 1
    counts = np.zeros((units, kinds))
    np.add.at(counts, (unit, values), 1.0)
    rated = counts.sum(axis=1)
    several = rated >= 2
    c, m = counts[several], rated[several]
    w = np.ones(len(m)) if weight is None else weight[several]
    observed = float((w * (m**2 - (c**2).sum(axis=1)) / (m - 1)).sum())  # off the diagonal, both orders
    totals = (w[:, None] * c).sum(axis=0)
    n = float(totals.sum())
    expected = n**2 - float((totals**2).sum())
    if n < 2 or expected <= 0:
        return None
    return 1 - (n - 1) * observed / expected


@dataclass(frozen=True)
class DawidSkene:
    """truth: (U, K) posterior of each item's class; confusion: (A, K, K) P(annotator says column | truth is row);
    prior: (K,); steps taken.
    """

    truth: np.ndarray
    confusion: np.ndarray
    prior: np.ndarray
    steps: int


def dawid_skene(
    item: np.ndarray,
    annotator: np.ndarray,
    value: np.ndarray,
    kinds: int,
    *,
    smooth: float = 0.0,
    most_steps: int = 200,
    mirror: np.ndarray | None = None,
) -> DawidSkene:
    """Annotators' error rates without a known truth, by EM (Dawid and Skene 1979, equations 2.3 to 2.5).

    item, annotator, value: (R,) ints, one per rating. Starts from each item's shares of votes. `smooth` is added to
    every cell of a confusion matrix. `mirror`: (K,) the class that each class becomes when a comparison is read the
    other way round; the confusion and the prior are then made the same both ways, for which side is called first says
    nothing.
    """
    items, people = int(item.max()) + 1, int(annotator.max()) + 1
    votes = np.zeros((items, kinds))
    np.add.at(votes, (item, value), 1.0)
    truth = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1e-300)
    confusion, prior = np.zeros((people, kinds, kinds)), np.zeros(kinds)
    step = 0
    while step < most_steps:
        step += 1
        confusion = np.full((people, kinds, kinds), smooth)
        for k in range(kinds):
            np.add.at(confusion[:, k, :], (annotator, value), truth[item, k])
        prior = truth.mean(axis=0)
        if mirror is not None:
            confusion = confusion + confusion[:, mirror][:, :, mirror]
            prior = (prior + prior[mirror]) / 2
        confusion = confusion / np.maximum(confusion.sum(axis=2, keepdims=True), 1e-300)
        logs = np.log(np.maximum(confusion, 1e-300))
        joint = np.tile(np.log(np.maximum(prior, 1e-300)), (items, 1))
        np.add.at(joint, item, logs[annotator, :, value])
        joint -= joint.max(axis=1, keepdims=True)
        new = np.exp(joint)
        new /= new.sum(axis=1, keepdims=True)
        moved = float(np.abs(new - truth).max())
        truth = new
        if moved < 1e-6:
            break
    return DawidSkene(truth, confusion, prior, step)


# Sources.


@dataclass(frozen=True)
class Strengths:
    """strength: (M,) log-strengths of mean 0 within each connected part; tie: the log of Davidson's nu (-inf without
    ties); extra: weights of further features; component: (M,) which connected part each is in.
    """

    strength: np.ndarray
    tie: float
    extra: np.ndarray
    component: np.ndarray


def components(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) the connected part of each node, numbered by its first node."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    return np.asarray(connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)[1])


def davidson(
    a: np.ndarray,
    b: np.ndarray,
    p: np.ndarray,
    tie: np.ndarray,
    weight: np.ndarray,
    n: int,
    *,
    extra: np.ndarray | None = None,
    ridge: float = 1e-4,
) -> Strengths:
    """Bradley-Terry with ties: P(a wins) : P(tie) : P(b wins) = e^{d/2} : nu : e^{-d/2}, d = s_a - s_b + extra . w.

    Davidson 1970, equation 2.2. a, b: (E,) sources below n; p: (E,) probability that a wins, of the comparisons that
    are no ties; tie: (E,) bool; extra: (E, D) differences of further features (length, say). Without ties it is
    Bradley-Terry's model. `ridge` holds strengths together where one side always wins. By L-BFGS with the gradient.
    """
    from scipy.optimize import minimize

    d_extra = 0 if extra is None else extra.shape[1]
    has_ties = bool((tie & (weight > 0)).any())
    win_a, win_b, tied = weight * p * ~tie, weight * (1 - p) * ~tie, weight * tie

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        s, w, t = at[:n], at[n : n + d_extra], at[-1]
        d = s[a] - s[b]
        if extra is not None:
            d = d + extra @ w
        parts = np.stack([d / 2, -d / 2, np.full(len(d), t if has_ties else -np.inf)])
        top = np.logaddexp.reduce(parts, axis=0)
        value = float((weight * top).sum() - (win_a - win_b) @ d / 2 - (tied.sum() * t if has_ties else 0.0))
        q = np.exp(parts - top)
        slope_d = weight * (q[0] - q[1]) / 2 - (win_a - win_b) / 2
        slope = np.zeros_like(at)
        slope[:n] = np.bincount(a, slope_d, n) - np.bincount(b, slope_d, n) + ridge * s
        if extra is not None:
            slope[n : n + d_extra] = extra.T @ slope_d + ridge * w
        slope[-1] = (weight @ q[2] - tied.sum()) if has_ties else 0.0
        return value + 0.5 * ridge * float(at[: n + d_extra] @ at[: n + d_extra]), slope

    found = minimize(
        loss,
        np.zeros(n + d_extra + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-9},
    ).x
    part = components(n, a, b)
    strength = found[:n].copy()
    for k in range(int(part.max(initial=-1)) + 1):
        strength[part == k] -= strength[part == k].mean()
    return Strengths(strength, float(found[-1]) if has_ties else -np.inf, found[n : n + d_extra], part)


def quantiles(values: np.ndarray, at: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> dict[str, float]:
    """Named quantiles of some numbers; {} of none."""
    if not len(values):
        return {}
    return {f"{100 * q:g} %": float(v) for q, v in zip(at, np.quantile(values, at), strict=True)}
