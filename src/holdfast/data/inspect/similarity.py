"""Pairs whose two responses are nearly the same: there, preference losses push both down (likelihood displacement)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

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


@detector("similarity", "text", "comparisons")
def similarity(material: Material) -> Iterator[Finding]:
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
    alike = material.responses.remember(("edit", pairs), measure)
    below, above = np.zeros(len(material)), np.zeros(len(material))
    below[at] = material.weight[at] * material.decided[at]
    above[at] = below[at] * (alike >= CLOSE)
    figure = material.resamples.ratio(above, below)
    value = figure.value or 0.0
    near = np.flatnonzero((alike >= CLOSE) & material.decided[at])
    if len(near) < 20:
        near = np.argsort(-alike, kind="stable")[:20]
    counts, edges = np.histogram(alike, bins=20, range=(0, 1))
    looked = (
        ""
        if len(at) == len(material)
        else f" (of {len(at):,} of {len(material):,} comparisons, whole prompts at random)"
    )
    yield Finding(
        name="similarity/pairs",
        title="Pairs whose responses are nearly the same",
        definition=f"Share of the decided comparisons whose two responses have an edit similarity of {CLOSE} or "
        f"more: 1 less the word edit distance over the longer one's words{looked}.",
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
