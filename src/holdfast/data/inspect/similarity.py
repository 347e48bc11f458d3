"""Pairs whose two responses are nearly the same, in words or to a model: there, preference losses push both down (likelihood
displacement).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import spearmanr

from holdfast.data.inspect.finding import Finding, Rows, by_cells, detector, graded, share
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import quantiles
from holdfast.data.inspect.surface import WORD

CLOSE = 0.9
MOST_WORDS = 1000  # of each response that are compared


def edit_distance(one: list[str], other: list[str]) -> int:
    """Levenshtein's distance between two lists of words, bit-parallel (Myers 1999; Hyyro 2003, figure 4)."""
    if not one or not other:
        return max(len(one), len(other))
    m = len(one)
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    mask, last = (1 << m) - 1, 1 << (m - 1)
    up, down, distance = mask, 0, m
    for word in other:
        eq = places.get(word, 0)
        diagonal = (((eq & up) + up) ^ up) | eq | down
        right_up = down | ~(diagonal | up)
        right_down = up & diagonal
        if right_up & last:
            distance += 1
        if right_down & last:
            distance -= 1
        right_up = (right_up << 1) | 1
        up = ((right_down << 1) | ~(diagonal | right_up)) & mask
        down = right_up & diagonal & mask
    return distance


def edit_similarity(one: str, other: str) -> float:
    """1 less the edit distance over the longer one's words; 1 for the same words."""
    a, b = WORD.findall(one)[:MOST_WORDS], WORD.findall(other)[:MOST_WORDS]
    longest = max(len(a), len(b))
    return 1.0 if not longest else 1 - edit_distance(a, b) / longest


def _edit(material: Material) -> np.ndarray:
    """(n,) the edit similarity of each of the comparisons at `material.sampled`."""
    at = material.sampled

    def measure() -> np.ndarray:
        out = np.zeros(len(at))
        for start in range(0, len(at), 1024):
            mine = at[start : start + 1024]
            pairs = zip(
                material.responses.at(material.a[mine].astype(np.int64)),
                material.responses.at(material.b[mine].astype(np.int64)),
                strict=True,
            )
            out[start : start + 1024] = [edit_similarity(x, y) for x, y in pairs]
        return out

    pairs = np.stack([material.a[at], material.b[at]]).tobytes()
    return material.responses.remember(("edit", pairs), measure)


def _looked(material: Material) -> str:
    """How many comparisons were looked at, where it was not all."""
    n, every = len(material.sampled), len(material)
    return "" if n == every else f" (of {n:,} of {every:,} comparisons, whole prompts at random)"


@detector("similarity", "text", "comparisons")
def similarity(material: Material) -> Iterator[Finding]:
    at, alike = material.sampled, _edit(material)
    below, above = np.zeros(len(material)), np.zeros(len(material))
    below[at] = material.weight[at] * material.decided[at]
    above[at] = below[at] * (alike >= CLOSE)
    figure = material.resamples.ratio(above, below)
    value = figure.value or 0.0
    near = np.flatnonzero((alike >= CLOSE) & material.decided[at])
    if len(near) < 20:
        near = np.argsort(-alike, kind="stable")[:20]
    counts, edges = np.histogram(alike, bins=20, range=(0, 1))
    yield Finding(
        name="similarity/pairs",
        title="Pairs whose responses are nearly the same",
        definition=f"Share of the decided comparisons whose two responses have an edit similarity of {CLOSE} or "
        f"more: 1 less the word edit distance over the longer one's words{_looked(material)}.",
        source="Razin et al., 2410.08847; Pal et al., 2402.13228",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 5 % or more; serious: 20 % or more",
        severity=graded(value, warning=0.05, serious=0.2, note=bool(value)),
        verdict=f"{share(value)} of the pairs differ in a tenth of their words or less (median similarity "
        f"{np.median(alike):.2f}). On such pairs preference losses can push both responses down.",
        remedy="Use a loss that holds the chosen response up (dpop, rpo), or drop the closest pairs.",
        rows=Rows.ranked(material.row[at[near]], alike[near], "edit similarity"),
        cells=by_cells(material, above, below),
        facts={"quantiles": quantiles(alike), "histogram": {"edges": edges.tolist(), "counts": counts.tolist()}},
    )


@detector("displacement", "text", "comparisons", "ches")
def displacement(material: Material) -> Iterator[Finding]:
    assert material.ches is not None
    at = material.sampled[material.decided[material.sampled]]
    turned = material.p[at] < 0.5
    preferred = np.where(turned, material.b[at], material.a[at]).astype(np.int64)
    other = np.where(turned, material.a[at], material.b[at]).astype(np.int64)
    both = material.ches(preferred, other, material.max_length)
    known = np.isfinite(both).all(axis=1)
    at, both = at[known], both[known]
    if len(at) < 2:
        return
    unscored = int((~known).sum())
    alike = _edit(material)[np.isin(material.sampled, at)]
    below = np.zeros(len(material))
    below[at] = material.weight[at]
    for score, name, what, vectors, source in (
        (both[:, 0], "ches", "by length", "means", "section 6"),
        (both[:, 1], "ches-sums", "over all tokens", "sums", "definition 2"),
    ):
        above = np.zeros(len(material))
        above[at] = below[at] * (score > 0)
        figure = material.resamples.ratio(above, below)
        high = np.flatnonzero(score > 0)
        if len(high) < 20:
            high = np.argsort(-score, kind="stable")[:20]
        lo, hi = np.quantile(score, (0.01, 0.99))
        lo, hi = min(lo, -hi / 2, 0.0), max(hi, -lo / 2, 0.0)  # room for words on either side of 0
        bar = float(hi - lo) / 32 or 1.0
        edges = bar * np.arange(np.floor(lo / bar), np.ceil(hi / bar) + 1)  # 0 is between two bars
        counts, _ = np.histogram(np.clip(score, edges[0], edges[-1]), bins=edges)
        order = spearmanr(score, alike).statistic if np.ptp(score) and np.ptp(alike) else float("nan")
        yield Finding(
            name=f"displacement/{name}",
            title=f"Pairs alike to the model, {what}",
            definition="Share of the decided comparisons whose centred hidden embedding similarity is above 0: <m+, m-> - |m+|^2, "
            f"with m+ and m- the {vectors}, over the tokens of the preferred and of the other response, of the model's last hidden "
            f"states that predict them. Rows by falling score{_looked(material)}."
            + (
                f" {unscored:,} comparisons have none: more tokens than {material.max_length:,} or the model reads, the same tokens on "
                "both sides, or turns that its chat template does not take."
                if unscored
                else ""
            ),
            source=f"Razin et al., 2410.08847, {source}",
            figure=figure,
            unit="share",
            alarm="never, for no line is known: the score compares the pairs of one dataset under one model; note: any",
            severity="note" if figure.value else "good",
            verdict=f"In {share(figure.value)} of the {len(at):,} pairs scored the rejected response reaches further along the preferred one, in the "
            f"model's hidden states, than the preferred one itself (median score {np.median(score):.3g}). By the paper, training on the "
            "pairs with the highest scores is likeliest to push their preferred responses down; whether it does hangs on the loss, "
            "the step size and the other pairs too.",
            remedy="Drop the first rows or weigh them down, or use a loss that holds the preferred response up (dpop, rpo).",
            rows=Rows.ranked(material.row[at[high]], score[high], f"CHES {what}"),
            cells=by_cells(material, above, below),
            facts={
                "rank correlation with the edit similarity": float(order),
                "comparisons without a score": unscored,
                "quantiles": quantiles(score),
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            },
        )
