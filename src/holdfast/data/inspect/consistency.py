"""Does the dataset contradict itself? The same two responses judged both ways, and preferences that go in a circle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.data.inspect.finding import Finding, Rows, by_cells, detector, graded, share
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.near import near_prompts, near_responses


def contradicting(
    material: Material, key_prompt: np.ndarray, key_response: np.ndarray, annotator: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(E,) bool: the comparison is contradicted; (E,) int64: a comparison that contradicts it, -1 if none.

    Comparisons of the same key (prompt, the two responses, annotator) and opposite preference contradict each other.
    """
    first, second = key_response[material.a], key_response[material.b]
    low, high = np.minimum(first, second), np.maximum(first, second)
    at = np.flatnonzero(material.decided & (low != high))
    other = np.full(len(material), -1, np.int64)
    if not len(at):
        return np.zeros(len(material), bool), other
    keys = np.stack([key_prompt[material.prompt[at]], low[at], high[at], annotator[at]], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.ravel()
    toward = (material.p[at] > 0.5) == (first[at] == low[at])
    n = int(group.max(initial=-1)) + 1
    one = np.full((n, 2), -1, np.int64)
    one[group, toward.astype(int)] = at
    other[at] = one[group, (~toward).astype(int)]
    return other >= 0, other


@detector("contradictions", "comparisons")
def contradictions(material: Material) -> Iterator[Finding]:
    """By one annotator, or by annotators who are not named: two named ones may differ, and `agreement` looks at that."""
    same, other = contradicting(
        material, np.arange(len(material.prompts)), np.arange(len(material.responses)), material.annotator
    )
    yield _contradictions(
        material,
        same,
        other,
        name="contradictions/exact",
        title="The same pair, judged both ways",
        what="the same two responses to the same prompt",
    )
    if not material.text:
        return
    prompts, responses = near_prompts(material), near_responses(material)
    nearly, other = contradicting(material, prompts.cluster, responses.cluster, material.annotator)
    nearly &= ~same
    yield _contradictions(
        material,
        nearly,
        other,
        name="contradictions/near",
        title="Nearly the same pair, judged both ways",
        what="near-duplicates of the same two responses to a near-duplicate of the prompt (and not exactly the same)",
    )


def _contradictions(
    material: Material, found: np.ndarray, other: np.ndarray, *, name: str, title: str, what: str
) -> Finding:
    below = material.weight * material.decided
    above = below * found
    figure = material.resamples.ratio(above, below)
    n = int(found.sum())
    value = figure.value or 0.0
    at = np.flatnonzero(found)
    against = np.where(other[at] >= 0, material.row[other[at]], -1)
    return Finding(
        name=name,
        title=title,
        definition="Share of the decided comparisons for which the same annotator (or another who is not named) "
        f"prefers the other response of {what}.",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 0.5 % of the comparisons or more; serious: 5 % or more",
        severity=graded(value, warning=0.005, serious=0.05, note=bool(n)),
        verdict=f"{n:,} comparisons ({share(value, 2)}) are contradicted by another."
        if n
        else "No comparison is contradicted by another.",
        remedy="Read them; keep the judgement you trust, make ties of them, or drop both.",
        rows=Rows.ranked(material.row[at], np.ones(len(at)), "contradicted", against),
        cells=by_cells(material, above, below) if n else {},
    )


@detector("cycles", "comparisons")
def cycles(material: Material) -> Iterator[Finding]:
    """Triples of responses to one prompt of which each two were compared: does any go in a circle?"""
    (per_prompt_all, per_prompt_cyclic, rows), n_triples, n_cyclic = _triples(material)
    if not n_triples:
        return
    # As comparisons: each prompt's counts on the first of its comparisons.
    prompts, first = np.unique(material.prompt, return_index=True)
    below, above = np.zeros(len(material)), np.zeros(len(material))
    for p, at in zip(prompts.tolist(), first.tolist(), strict=True):
        below[at], above[at] = per_prompt_all.get(p, 0), per_prompt_cyclic.get(p, 0)
    figure = material.resamples.ratio(above, below)
    lo = figure.lo or 0.0
    yield Finding(
        name="cycles/triples",
        title="Preferences that go in a circle",
        definition="Of the triples of responses to one prompt of which every two were compared (majority of "
        "judgements, ties left out): share in which A beats B, B beats C and C beats A. Coin flips give "
        "25 %.",
        source="Kendall and Babington Smith 1940",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="warning: the whole interval is above 5 %; serious: above 15 %",
        severity="serious" if lo > 0.15 else "warning" if lo > 0.05 else "note" if n_cyclic else "good",
        verdict=f"{n_cyclic:,} of {n_triples:,} triples go in a circle: no reward can agree with all three of "
        "their comparisons.",
        remedy="Read them: often one label is wrong, or the three are judged by different standards.",
        rows=Rows.ranked(
            np.array(list(rows), np.int64), np.array(list(rows.values()), np.float64), "circles it is part of"
        ),
    )


def _triples(material: Material) -> tuple[tuple[dict[int, int], dict[int, int], dict[int, int]], int, int]:
    """Triples and circles per prompt, and how many circles each judgement is part of."""
    order = np.argsort(material.prompt, kind="stable")
    bounds = np.flatnonzero(np.r_[True, np.diff(material.prompt[order]) != 0, True])
    per_all: dict[int, int] = {}
    per_cyclic: dict[int, int] = {}
    rows: dict[int, int] = {}
    for lo, hi in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        at = order[lo:hi]
        if len(at) < 3:
            continue
        names, ends = np.unique(np.concatenate([material.a[at], material.b[at]]), return_inverse=True)
        k = len(names)
        if k < 3 or len(at) < k:  # a tree has no triangle
            continue
        i, j = ends[: len(at)], ends[len(at) :]
        lead = np.zeros((k, k))
        np.add.at(lead, (i, j), material.p[at] - 0.5)
        net = lead - lead.T
        beats = (net > 0).astype(np.int64)
        joined = beats + beats.T
        triples = int(np.trace(joined @ joined @ joined)) // 6
        if not triples:
            continue
        prompt = int(material.prompt[at[0]])
        back = beats @ beats  # back[j, i]: ways j > x > i
        circles = beats * back.T  # circles that the edge i > j closes
        cyclic = int(circles.sum()) // 3
        per_all[prompt], per_cyclic[prompt] = triples, cyclic
        if cyclic:
            both = circles + circles.T
            for edge, x, y in zip(at.tolist(), i.tolist(), j.tolist(), strict=True):
                if both[x, y]:
                    row = int(material.row[edge])
                    rows[row] = max(rows.get(row, 0), int(both[x, y]))
    return (per_all, per_cyclic, rows), sum(per_all.values()), sum(per_cyclic.values())
