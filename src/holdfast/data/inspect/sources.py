"""Who wrote the responses, and who wins: strengths with ties, the graph of comparisons, lengths taken out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from holdfast.data.inspect.finding import Finding, Rows, between, detector, share
from holdfast.data.inspect.length import characters, log_ratio
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import Interval, components, davidson

REFITS = 100


@detector("sources", "sources", "comparisons")
def sources(material: Material) -> Iterator[Finding]:
    at = np.flatnonzero((material.source_a >= 0) & (material.source_b >= 0) & (material.source_a != material.source_b))
    if not len(at):
        return
    seen = np.unique(np.concatenate([material.source_a[at], material.source_b[at]]))
    a, b = np.searchsorted(seen, material.source_a[at]), np.searchsorted(seen, material.source_b[at])
    names = [material.sources[k] for k in seen.tolist()]
    p, tie, weight = material.p[at], material.tie[at], material.weight[at]
    yield _graph(material, at, a, b, names)
    yield from _strengths(material, at, a, b, names, p, tie, weight)


def _graph(material: Material, at: np.ndarray, a: np.ndarray, b: np.ndarray, names: list[str]) -> Finding:
    n = len(names)
    part = components(n, a, b)
    pieces = int(part.max()) + 1
    edges = np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1), axis=0)
    loops = len(edges) - n + pieces
    each = np.bincount(a, minlength=n) + np.bincount(b, minlength=n)
    common = int(np.argmax(each))
    there = (a == common) | (b == common)
    below = np.zeros(len(material))
    below[at] = material.weight[at]
    above = below.copy()
    above[at] *= there
    figure = material.resamples.ratio(above, below)
    star = n > 2 and (figure.value or 0) > 0.9
    severity = "serious" if pieces > 1 else "warning" if star else "good"
    return Finding(
        name="sources/graph",
        title="Which sources were compared",
        definition="Share of the comparisons that have the commonest source on one side; and whether the graph of "
        "sources hangs together.",
        figure=figure,
        unit="share",
        expected=2 / n,
        alarm="serious: the graph falls apart; warning: more than 90 % of the comparisons have the same "
        "source on one side",
        severity=severity,  # type: ignore[arg-type]
        verdict=(
            f"The {n} sources fall into {pieces} groups that were never compared with each other: strengths "
            "across groups mean nothing."
            if pieces > 1
            else f"{names[common]} is on one side of {share(figure.value)} of the comparisons: the others were "
            f"hardly compared with each other, and telling {names[common]} apart is most of the task."
            if star
            else f"{n} sources, {len(edges)} of {n * (n - 1) // 2} pairs of them compared; the graph hangs together."
        ),
        remedy="Compare across the groups; in training, hold out pairs that do not have the common source.",
        facts={
            "sources": n,
            "groups": pieces,
            "pairs compared": len(edges),
            "independent loops": int(loops),
            "commonest": names[common],
        },
    )


def _strengths(
    material: Material,
    at: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    names: list[str],
    p: np.ndarray,
    tie: np.ndarray,
    weight: np.ndarray,
) -> Iterator[Finding]:
    n = len(names)
    # Comparisons of the same two sources are pooled: the likelihood depends on nothing else.
    low, high = np.minimum(a, b), np.maximum(a, b)
    toward = np.where(a == low, p, 1 - p)
    pairs, of = np.unique(low * n + high, return_inverse=True)
    i, j = pairs // n, pairs % n

    def fit(w: np.ndarray) -> tuple[np.ndarray, float]:
        won = np.bincount(of, w * toward * ~tie, len(pairs))
        lost = np.bincount(of, w * (1 - toward) * ~tie, len(pairs))
        tied = np.bincount(of, w * tie, len(pairs))
        total = np.maximum(won + lost, 1e-300)
        two = np.concatenate([np.arange(len(pairs)), np.arange(len(pairs))])
        fitted = davidson(
            i[two], j[two],
            np.concatenate([won / total, np.full(len(pairs), 0.5)]),
            np.repeat([False, True], len(pairs)),
            np.concatenate([won + lost, tied]),
            n,
        )  # fmt: skip
        return fitted.strength, fitted.tie

    strength, log_tie = fit(weight)
    counts = material.resamples.counts[:REFITS]
    refits = np.array([fit(row[material.resamples.group[at]] * weight)[0] for row in counts])
    lo, hi = np.quantile(refits, [0.025, 0.975], axis=0) if len(refits) > 1 else (strength, strength)
    points = np.bincount(a, weight * p, n) + np.bincount(b, weight * (1 - p), n)
    played = np.bincount(a, weight, n) + np.bincount(b, weight, n)
    order = np.argsort(-strength, kind="stable")

    # What strengths leave unexplained: for each pair of sources, how far its wins are from what they say.
    d = strength[i] - strength[j]
    nu = np.exp(log_tie)
    bottom = np.exp(d / 2) + np.exp(-d / 2) + nu
    said = (np.exp(d / 2) + nu / 2) / bottom
    score_variance = (np.exp(d / 2) + nu / 4) / bottom - said**2
    seen = np.bincount(of, weight * toward, len(pairs))
    games = np.bincount(of, weight, len(pairs))
    residual = (seen - games * said) / np.sqrt(np.maximum(games * score_variance, 1e-9))
    worst = np.argsort(-np.abs(residual), kind="stable")[:10]
    table = [
        {"source": names[k], "strength": float(strength[k]), "lo": float(lo[k]), "hi": float(hi[k]),
         "win rate": float(points[k] / played[k]), "comparisons": float(played[k])}
        for k in order.tolist()
    ]  # fmt: skip
    surprise = np.where(p > 0.5, 1, -1) * (strength[b] - strength[a])
    odd = np.flatnonzero((p != 0.5) & (surprise > 0))
    facts: dict[str, Any] = {
        "strengths": table,
        "tie": None if not np.isfinite(log_tie) else float(nu),
        "residuals": [
            {"one": names[int(i[k])], "other": names[int(j[k])], "comparisons": float(games[k]), "one wins": float(seen[k] / games[k]),
             "strengths say": float(said[k]), "standard deviations": float(residual[k])}
            for k in worst.tolist()
        ],
        "pairs": [
            {"one": names[int(x)], "other": names[int(y)], "comparisons": float(g), "one wins": float(s / g)}
            for x, y, g, s in zip(i, j, games, seen, strict=True)
        ],
    }  # fmt: skip
    curl = _curl(n, i, j, seen, games)
    if curl is not None:
        facts["share of the graph's flow that goes in circles"] = curl
    gap = Interval(float(strength[order[0]] - strength[order[-1]]), *_gap(refits, int(order[0]), int(order[-1])))
    yield Finding(
        name="sources/strengths",
        title="Who wins",
        definition="Bradley-Terry strengths with ties (Davidson): odds of a win are e to the difference. The "
        "figure is the strongest less the weakest.",
        source="Bradley and Terry 1952; Davidson 1970; curl: Jiang, Lim, Yao and Ye 2011",
        figure=gap,
        unit="number",
        expected=None,
        alarm="none: it says who wrote the preferred responses",
        severity="note",
        verdict=f"{names[int(order[0])]} wins most ({share(float(points[order[0]] / played[order[0]]))} of its "
        f"comparisons), {names[int(order[-1])]} least "
        f"({share(float(points[order[-1]] / played[order[-1]]))}).",
        rows=Rows.ranked(material.row[at[odd]], surprise[odd], "strength by which the loser is the stronger"),
        facts=facts,
    )
    if not material.text:
        return
    ratio = log_ratio(material)[at]
    spread = float(np.std(ratio)) or 1.0
    controlled = davidson(a, b, p, tie, weight, n, extra=np.tanh(ratio / spread)[:, None])
    again = np.argsort(-controlled.strength, kind="stable")
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    same = [
        x
        for x in range(n)
        for y in range(n)
        if x != y and (strength[x] > strength[y]) == (controlled.strength[x] > controlled.strength[y])
    ]
    kept = len(same) / (n * (n - 1)) if n > 1 else 1.0
    size = material.responses.derive(characters)
    long = np.bincount(a, size[material.a[at]] * weight, n) + np.bincount(b, size[material.b[at]] * weight, n)
    effect = float(controlled.extra[0])
    yield Finding(
        name="sources/length-controlled",
        title="Who wins at equal length",
        definition="The same model with a term for length, tanh of the standardised log ratio, left out of the "
        "strengths. The figure is the share of pairs of sources that keep their order.",
        source="Dubois et al., 2404.04475 (there with a term per model)",
        figure=Interval(kept),
        unit="share",
        expected=1.0,
        alarm="none: compare the two rankings",
        severity="note",
        verdict=f"With length taken out, {between(Interval(kept))} of the pairs of sources keep their order; "
        f"being much the longer one is worth {effect:.2f} in strength.",
        facts={
            "length": effect,
            "ranking": [
                {"source": names[k], "controlled": float(controlled.strength[k]), "plain": float(strength[k]),
                 "place": r + 1, "plain place": int(place[k]) + 1, "characters": float(long[k] / played[k])}
                for r, k in enumerate(again.tolist())
            ],
        },
    )  # fmt: skip


def _gap(refits: np.ndarray, top: int, bottom: int) -> tuple[float | None, float | None]:
    if len(refits) < 2:
        return None, None
    gaps = refits[:, top] - refits[:, bottom]
    lo, hi = np.quantile(gaps, [0.025, 0.975])
    return float(lo), float(hi)


def _curl(n: int, i: np.ndarray, j: np.ndarray, wins: np.ndarray, games: np.ndarray) -> float | None:
    """Share of the squared log-odds on the graph's edges, weighed by games, that no strengths explain (HodgeRank): what
    goes in circles, and sampling noise. None on a graph without loops.
    """
    if len(i) - n + int(components(n, i, j).max()) + 1 <= 0:
        return None
    odds = np.log((wins + 0.5) / (games - wins + 0.5))
    x = np.zeros((len(i), n))
    x[np.arange(len(i)), i] = 1.0
    x[np.arange(len(i)), j] = -1.0
    root = np.sqrt(games)
    fitted = np.linalg.lstsq(x * root[:, None], odds * root, rcond=None)[0]
    left = odds - x @ fitted
    total = float(games @ odds**2)
    return float(games @ left**2) / total if total > 0 else None
