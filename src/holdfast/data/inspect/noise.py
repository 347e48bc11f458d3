"""Label noise: preferences that contradict what the rest of the dataset says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from holdfast.data.inspect.finding import Finding, Rows, between, detector, share
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.probe import best_margin
from holdfast.data.inspect.stats import Interval, SignedAUC

REFITS = 200
SURE = (
    0.1  # share of the comparisons the model must be sure of: a weaker one cannot tell a wrong label from a hard pair
)


def flip_rate(margin: np.ndarray, p: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """(share of labels flipped, scale of the margins) by maximum likelihood: P(a preferred) = e + (1 - 2e) sigma(s z).

    However sure a model of the rest is, a share e of the labels says the opposite; a weak model is not blamed on the
    labels, for a scale near zero explains its errors as well. margin: (n,) out of fold; p: soft labels.
    """

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        e, s = 0.5 * expit(at[0]), np.exp(at[1])
        sig = expit(s * margin)
        q = np.clip(e + (1 - 2 * e) * sig, 1e-9, 1 - 1e-9)
        value = -float(weight @ (p * np.log(q) + (1 - p) * np.log(1 - q)))
        outer = weight * (q - p) / (q * (1 - q))
        slope_e = float(outer @ (1 - 2 * sig)) * e * (1 - 2 * e)
        slope_s = float(outer @ ((1 - 2 * e) * sig * (1 - sig) * margin)) * s
        return value, np.array([slope_e, slope_s])

    best = min(
        (
            minimize(loss, np.array([e0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(-12, 6), (-6, 6)])
            for e0 in (-4.0, -1.0)
        ),
        key=lambda found: float(found.fun),
    )
    return float(0.5 * expit(best.x[0])), float(np.exp(best.x[1]))


def flip_chances(margin: np.ndarray, p: np.ndarray, rate: float, scale: float) -> np.ndarray:
    """(n,) the posterior chance that each label is one of the flipped ones."""
    toward = np.where(p > 0.5, margin, -margin)
    agree = expit(scale * toward)
    return rate * (1 - agree) / np.maximum(rate * (1 - agree) + (1 - rate) * agree, 1e-12)


@detector("noise", "comparisons")
def noise(material: Material) -> Iterator[Finding]:
    at = material.sampled
    margin = best_margin(material)
    p, weight = material.p[at], material.weight[at]
    if len(at) < 100 or not material.decided[at].any():
        return
    rate, scale = flip_rate(margin, p, weight)
    group = material.resamples.group[at]
    found = np.array(
        [flip_rate(margin, p, row[group] * weight)[0] for row in material.resamples.counts[:REFITS]]
        if len(at) <= 5000
        else _binned_rates(material, margin, p, weight, group)
    )
    lo, hi = (float(x) for x in np.quantile(found, [0.025, 0.975]))
    figure = Interval(rate, lo, hi)
    chance = flip_chances(margin, p, rate, scale)
    toward = margin * np.sign(p - 0.5)
    auc = SignedAUC(margin, p)(weight)
    known = np.flatnonzero((p != 0.5) & (toward < 0))
    reach = float(weight[scale * np.abs(margin) > 3].sum() / weight.sum())
    likely = int((chance[known] > 0.5).sum())
    kept = known[chance[known] > 0.2] if (chance[known] > 0.2).sum() > 20 else known[np.argsort(toward[known])[:20]]
    if lo > 0.1 and reach >= SURE:
        severity = "serious"
    elif lo > 0.03 and reach >= SURE:
        severity = "warning"
    else:
        severity = "good" if hi < 0.1 else "note"
    looked = (
        ""
        if len(at) == len(material)
        else f"; on {len(at):,} of {len(material):,} comparisons, whole prompts at random"
    )
    yield Finding(
        name="noise/flipped",
        title="Labels that contradict the rest",
        definition="The share e of labels that say the opposite of what a model fitted on other prompts is sure "
        "of: P = e + (1 - 2e) sigma(s margin), margins out of fold (surface, topics, sources, other "
        f"judgements of the same pair){looked}.",
        source="Natarajan et al. 2013 for the noise model; Northcutt et al., 1911.00068, for ranking by "
        "out-of-fold confidence",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="warning: the whole interval is above 3 %; serious: above 10 %; neither where the model is sure of less "
        f"than {share(SURE, 0)} of the comparisons",
        severity=severity,  # type: ignore[arg-type]
        verdict=f"About {between(figure)} of the labels say the opposite of what the rest foretells; {likely:,} "
        "are more likely wrong than not."
        + (
            f" The model is sure of only {share(reach)} of the comparisons (AUC {auc:.2f}), so this says little."
            if reach < 0.2 and auc is not None
            else ""
        ),
        remedy="Read the ranked rows first; relabel or drop what is wrong, or train with a loss that expects "
        "this rate.",
        rows=Rows.ranked(material.row[at[kept]], chance[kept], "chance that the label is flipped"),
        facts={"out-of-fold AUC": auc, "share the model is sure of": reach, "more likely wrong than not": likely},
    )


def _binned_rates(
    material: Material, margin: np.ndarray, p: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> list[float]:
    """The same refits on 400 bins of equal margins: the likelihood needs no more than each bin's weight and mean label."""
    edges = np.quantile(margin, np.linspace(0, 1, 401)[1:-1])
    of = np.searchsorted(edges, margin)
    middle = np.bincount(of, margin, 400) / np.maximum(np.bincount(of, minlength=400), 1)
    out = []
    for row in material.resamples.counts[:REFITS]:
        w = np.bincount(of, row[group] * weight, 400)
        said = np.bincount(of, row[group] * weight * p, 400) / np.maximum(w, 1e-12)
        out.append(flip_rate(middle, said, w)[0])
    return out
