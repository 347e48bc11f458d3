"""Does the longer response win? The commonest thing that preferences teach beside what they are meant to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from holdfast.data.inspect.finding import Finding, Rows, between, by_cells, detector, outside_band, share
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import Interval, Logistic, SignedAUC, logistic


def characters(texts: Sequence[str]) -> np.ndarray:
    """(n,) int64 characters."""
    return np.array([len(t) for t in texts], np.int64)


def sizes(material: Material) -> tuple[np.ndarray, np.ndarray]:
    """Characters of both sides of each comparison, (E,) each."""
    size = material.responses.derive(characters)
    return size[material.a], size[material.b]


def log_ratio(material: Material) -> np.ndarray:
    """(E,) the log of how many times longer a is than b; one character is added to both."""
    a, b = sizes(material)
    return np.log1p(a) - np.log1p(b)


@detector("length", "text", "comparisons")
def length(material: Material) -> Iterator[Finding]:
    a, b = sizes(material)
    sign = np.sign(a - b) * np.sign(material.p - 0.5)  # 1: the longer side is preferred
    below = material.weight * ((a != b) & material.decided)
    above = below * (sign > 0)
    figure = material.resamples.ratio(above, below)
    ratio = log_ratio(material)
    longer = (figure.value or 0.5) >= 0.5
    used = np.flatnonzero(below)
    mine = used[(sign[used] > 0) == longer]
    word = "longer" if longer else "shorter"
    verdict = (
        f"The {word} response is preferred in "
        f"{share(figure.value if longer else 1 - (figure.value or 0))} of the comparisons."
    )
    severity = outside_band(figure, (0.48, 0.52), (0.40, 0.60))
    if severity != "good":
        verdict += " A model can learn this rule instead of what the annotators meant."
    yield Finding(
        name="length/longer-wins",
        title="The longer response is preferred",
        definition="Share of the decided comparisons of unequal length (in characters) whose preferred response is "
        "the longer one.",
        source="Singhal et al., 2310.03716; Dubois et al., 2404.04475",
        figure=figure,
        unit="share",
        expected=0.5,
        alarm="warning: the interval lies outside 48 to 52 %; serious: outside 40 to 60 %",
        severity=severity,
        verdict=verdict,
        remedy="Report every accuracy beside this rule's; balance or re-weigh by length, or fit a length term "
        "and leave it out when scoring.",
        rows=Rows.ranked(material.row[mine], np.abs(ratio[mine]), f"the {word} wins: log of the ratio of lengths"),
        cells=by_cells(material, above, below),
        facts={
            "comparisons": len(used),
            "equal length": int(((a == b) & material.decided).sum()),
            **_bins(material, ratio),
        },
    )
    auc = SignedAUC(ratio, material.p)
    found = material.resamples.of(lambda w: auc(w * material.weight), times=200)
    yield Finding(
        name="length/auc",
        title="Length alone tells the preferred response",
        definition="Area under the ROC curve of the log ratio of lengths, each comparison both ways round; "
        "probabilities count as such.",
        source="Mann and Whitney 1947",
        figure=found,
        unit="number",
        expected=0.5,
        alarm="warning: the interval lies outside 0.47 to 0.53; serious: outside 0.35 to 0.65",
        severity=outside_band(found, (0.47, 0.53), (0.35, 0.65)),
        verdict=f"A model that sees nothing but lengths ranks a pair right with an AUC of {between(found, 'number')}.",
        remedy="A reward model must beat this on held-out prompts, and be looked at where the shorter response "
        "is better.",
    )
    spread = float(np.sqrt(np.average(ratio**2, weights=material.weight))) if len(ratio) else 0.0
    if spread > 0:
        fitted: Logistic = logistic(ratio[:, None] / spread, material.p, material.weight, groups=material.prompt)
        assert fitted.errors is not None
        slope, error = float(fitted.weights[0]), float(fitted.errors[0])
        yield Finding(
            name="length/slope",
            title="How much longer buys how much preference",
            definition="Slope of a logistic model of the preference on the log ratio of lengths, per root mean square "
            "of that ratio; error clustered by prompt.",
            source="Liang and Zeger 1986",
            figure=Interval(slope, slope - 1.96 * error, slope + 1.96 * error),
            unit="number",
            expected=0.0,
            alarm="none of its own: it says how strong length/longer-wins is",
            severity="note",
            verdict=f"Where one response is {np.exp(spread):.1f} times as long as the other (a usual difference "
            f"here), its odds are multiplied by {np.exp(slope):.2f}.",
            facts={"usual ratio of lengths": float(np.exp(spread))},
        )


def _bins(material: Material, ratio: np.ndarray) -> dict[str, object]:
    """How often the longer wins, by how much longer it is: quintiles of the ratio."""
    size = np.abs(ratio)
    use = (size > 0) & material.decided
    if use.sum() < 50:
        return {}
    edges = np.quantile(size[use], np.linspace(0, 1, 6))
    toward = np.where(ratio > 0, material.p, 1 - material.p) > 0.5
    out = []
    for lo, hi in pairwise(edges):
        inside = use & (size >= lo) & (size <= hi)
        figure = material.resamples.ratio(material.weight * (inside & toward), material.weight * inside)
        out.append(
            {
                "from": float(np.exp(lo)),
                "to": float(np.exp(hi)),
                "value": figure.value,
                "lo": figure.lo,
                "hi": figure.hi,
            }
        )
    return {"by ratio of lengths": out}
