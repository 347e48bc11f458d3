"""Do the annotators agree, and is one of them unlike the others?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import norm

from holdfast.data.inspect.finding import Cell, Finding, Rows, between, detector, share
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.probe import best_margin
from holdfast.data.inspect.stats import dawid_skene, krippendorff

LOW, TIE, HIGH = 0, 1, 2  # the response with the lower number is preferred, neither, the other
MIRROR = np.array([HIGH, TIE, LOW])
TELLS = 0.6  # share of the comparisons that a model must get right before it can say who is unlike the others
FEWEST = 30  # comparisons below which an annotator is not judged


def _units(material: Material) -> tuple[np.ndarray, np.ndarray]:
    """(E,) which two responses were compared, and what was said of them: LOW, TIE or HIGH."""
    low = np.minimum(material.a, material.b).astype(np.int64)
    _, unit = np.unique(low * len(material.responses) + np.maximum(material.a, material.b), return_inverse=True)
    toward_a = np.sign(material.p - 0.5)
    value = np.where(toward_a == 0, TIE, np.where((toward_a > 0) == (material.a == low), LOW, HIGH))
    return unit, value


@detector("agreement", "comparisons")
def agreement(material: Material) -> Iterator[Finding]:
    unit, value = _units(material)
    names = material.annotator
    several = np.bincount(unit)[unit] > 1
    if several.any() and len(material.annotators) > 1:
        yield from _alpha(material, unit, value, several)
    yield from _repeats(material, unit, value)
    if len(material.annotators) > 1 and several.any():
        yield from _people(material, unit, value, names)
    if len(material.annotators) > 1:
        yield from _against_probe(material)


def _alpha(material: Material, unit: np.ndarray, value: np.ndarray, several: np.ndarray) -> Iterator[Finding]:
    at = np.flatnonzero(several)
    _, dense = np.unique(unit[at], return_inverse=True)
    first = np.zeros(int(dense.max()) + 1, np.int64)
    first[dense[::-1]] = at[::-1]

    def alpha(weight: np.ndarray) -> float | None:
        return krippendorff(value[at], dense, 3, weight[first])

    figure = material.resamples.of(alpha)
    hi = figure.hi if figure.hi is not None else 1.0
    counts = np.zeros((int(dense.max()) + 1, 3))
    np.add.at(counts, (dense, value[at]), 1.0)
    split = (counts[:, LOW] > 0) & (counts[:, HIGH] > 0)
    even = 1 - counts.max(axis=1) / counts.sum(axis=1)
    torn = split[dense]
    yield Finding(
        name="agreement/alpha",
        title="How far annotators agree",
        definition="Krippendorff's alpha over the pairs judged more than once (which is better, or a tie, as "
        "nominal values): 1 is full agreement, 0 what chance gives.",
        source="Krippendorff 2011, Computing Krippendorff's alpha-reliability",
        figure=figure,
        unit="number",
        expected=None,
        alarm="warning: the whole interval is below 0.4; serious: below 0.2",
        severity="serious" if hi < 0.2 else "warning" if hi < 0.4 else "good",
        verdict=f"On {len(first):,} pairs judged more than once, alpha is {between(figure, 'number')}; on "
        f"{int(split.sum()):,} ({share(float(split.mean()))}) annotators prefer opposite sides.",
        remedy="Where annotators are of two minds, train on the share of votes (a soft label) instead of a winner.",
        rows=Rows.ranked(material.row[at[torn]], even[dense[torn]], "share of votes against the majority"),
        facts={"pairs": len(first), "opposite": int(split.sum()), "ties": float((value[at] == TIE).mean())},
    )


def _repeats(material: Material, unit: np.ndarray, value: np.ndarray) -> Iterator[Finding]:
    """The same annotator, the same pair, again."""
    known = np.flatnonzero(material.annotator >= 0)
    if not len(known):
        return
    _, group = np.unique(np.stack([unit[known], material.annotator[known]], axis=1), axis=0, return_inverse=True)
    group = group.ravel()
    size = np.bincount(group)
    again = size[group] > 1
    if len(np.unique(group[again])) < 10:
        return
    counts = np.zeros((len(size), 3))
    np.add.at(counts, (group, value[known]), 1.0)
    same = (counts * (counts - 1)).sum(axis=1) / np.maximum(size * (size - 1), 1)
    below, above = np.zeros(len(material)), np.zeros(len(material))
    below[known] = again / size[group]
    above[known] = below[known] * same[group]
    figure = material.resamples.ratio(above, below)
    hi = figure.hi if figure.hi is not None else 1.0
    torn = np.flatnonzero(again & (same[group] < 1))
    yield Finding(
        name="agreement/repeats",
        title="The same annotator says the same again",
        definition="Of the pairs that one annotator judged more than once: chance that two of these judgements are "
        "the same.",
        figure=figure,
        unit="share",
        expected=1.0,
        alarm="warning: the whole interval is below 80 %; serious: below 65 %",
        severity="serious" if hi < 0.65 else "warning" if hi < 0.8 else "good",
        verdict=f"Asked again, an annotator repeats the judgement in {between(figure)} of the cases.",
        rows=Rows.ranked(material.row[known[torn]], 1 - same[group[torn]], "share of repeats that differ"),
    )


def _people(material: Material, unit: np.ndarray, value: np.ndarray, names: np.ndarray) -> Iterator[Finding]:
    """Each annotator against the others on the same pairs: how often two decided judgements agree."""
    at = np.flatnonzero((names >= 0) & (value != TIE))
    n_units = int(unit.max()) + 1
    votes = np.zeros((n_units, 2))
    np.add.at(votes, (unit[at], (value[at] == HIGH).astype(int)), 1.0)
    # An annotator's own repeats are no other opinion.
    key = unit[at] * len(material.annotators) + names[at]
    _, own = np.unique(key, return_inverse=True)
    mine = np.zeros((int(own.max(initial=-1)) + 1, 2))
    np.add.at(mine, (own, (value[at] == HIGH).astype(int)), 1.0)
    others = votes[unit[at]] - mine[own]
    total = others.sum(axis=1)
    agree = others[np.arange(len(at)), (value[at] == HIGH).astype(int)] / np.maximum(total, 1)
    below, above = np.zeros(len(material)), np.zeros(len(material))
    below[at], above[at] = total > 0, agree * (total > 0)
    cells, people = [], []
    for k, name in enumerate(material.annotators):
        own_rows = (names == k) & (below > 0)
        if own_rows.sum() >= FEWEST:
            figure = material.resamples.ratio(above * own_rows, below * own_rows)
            cells.append(Cell(name, int(own_rows.sum()), figure))
            people.append(k)
    if not people:
        return
    values = np.array([c.figure.value for c in cells])
    usual = float(np.median(values)) if len(values) > 2 else float(values.max())
    bar = 0.5 + 0.5 * (usual - 0.5)
    odd = [k for k, c in zip(people, cells, strict=True) if _below(c, bar, len(people))]
    worst = min(cells, key=lambda c: (c.figure.value, c.name))
    whose = np.flatnonzero(np.isin(names, odd))
    yield Finding(
        name="agreement/annotators",
        title="An annotator unlike the others",
        definition="Of an annotator's decided judgements on pairs that others decided too: chance of agreeing with "
        "one of the others. Coin flips give 50 %. The figure is the lowest annotator's.",
        source="leave-one-out agreement; Dawid and Skene 1979 for the error rates",
        figure=worst.figure,
        unit="share",
        expected=usual,
        alarm="serious: an annotator's whole interval, widened for the lowest of several, is less than half as far above 50 % "
        "as the usual annotator",
        severity="serious" if odd else "good",
        verdict=(
            f"{', '.join(material.annotators[k] for k in odd)} agrees with the others little more than coin "
            f"flips would ({share(worst.figure.value)}, usually {share(usual)})."
            if odd
            else f"The lowest of {len(people):,} annotators, {worst.name}, agrees with the others in "
            f"{between(worst.figure)} (usually {share(usual)})."
        ),
        remedy="Read a sample; drop the annotator, or weigh by reliability.",
        rows=Rows.ranked(material.row[whose], np.ones(len(whose)), "by that annotator"),
        cells={"annotator": cells},
        facts=_error_rates(material, unit, value, names),
    )


def _below(cell: Cell, bar: float, people: int) -> bool:
    """Whether an annotator's interval, widened because the lowest of several is looked at (Bonferroni), lies below a bar."""
    value, hi = cell.figure.value, cell.figure.hi
    return value is not None and hi is not None and value + (hi - value) * norm.ppf(1 - 0.025 / people) / 1.96 < bar


def _error_rates(material: Material, unit: np.ndarray, value: np.ndarray, names: np.ndarray) -> dict[str, object]:
    """Dawid and Skene's error rates, where enough pairs have three judgements by different annotators."""
    at = np.flatnonzero(names >= 0)
    seen = np.unique(np.stack([unit[at], names[at]], axis=1), axis=0)
    three = np.bincount(seen[:, 0], minlength=int(unit.max()) + 1) >= 3
    at = at[three[unit[at]]]
    if three.sum() < 50:
        return {}
    _, item = np.unique(unit[at], return_inverse=True)
    fit = dawid_skene(item, names[at], value[at], 3, smooth=0.5, mirror=MIRROR)
    rates = {}
    for k, name in enumerate(material.annotators):
        if (names[at] == k).any():
            c = fit.confusion[k]
            rates[name] = {
                "right": float(c[LOW, LOW]),
                "tie for a winner": float(c[LOW, TIE]),
                "other side": float(c[LOW, HIGH]),
            }
    return {"Dawid-Skene error rates": rates, "pairs with three annotators": int(three.sum())}


def _against_probe(material: Material) -> Iterator[Finding]:
    """Annotators who never judged the same pair: whose preferences can a model of all the others foretell?"""
    at = material.sampled
    margin = best_margin(material)
    use = material.decided[at] & (margin != 0) & (material.annotator[at] >= 0)
    right = (margin > 0) == (material.p[at] > 0.5)
    below, above = np.zeros(len(material)), np.zeros(len(material))
    below[at], above[at] = use, use & right
    whole = material.resamples.ratio(above, below)
    cells, people = [], []
    for k, name in enumerate(material.annotators):
        own = (material.annotator == k) & (below > 0)
        if own.sum() >= FEWEST:
            cells.append(Cell(name, int(own.sum()), material.resamples.ratio(above * own, below * own)))
            people.append(k)
    if len(people) < 2 or whole.value is None:
        return
    values = np.array([c.figure.value for c in cells])
    usual = float(np.median(values)) if len(values) > 2 else float(values.max())
    bar = 0.5 + 0.5 * (usual - 0.5)
    odd = [k for k, c in zip(people, cells, strict=True) if usual >= TELLS and _below(c, bar, len(people))]
    worst = min(cells, key=lambda c: (c.figure.value, c.name))
    whose = np.flatnonzero(np.isin(material.annotator, odd))
    yield Finding(
        name="agreement/foretold",
        title="An annotator whose preferences nothing foretells",
        definition="Share of an annotator's decided comparisons that a model fitted on the other prompts gets "
        "right (surface, topics, sources, what others say of the same pair). The figure is the lowest "
        "annotator's.",
        figure=worst.figure,
        unit="share",
        expected=usual,
        alarm="warning: the usual annotator is foretold in 60 % or more, and one's whole interval, widened for the lowest of "
        "several, is less than half as far above 50 %",
        severity="warning" if odd else "good",
        verdict=(
            f"Nothing foretells what {', '.join(material.annotators[k] for k in odd)} prefers "
            f"({share(worst.figure.value)} right, usually {share(usual)})."
            if odd
            else f"A model of the others gets every annotator right about equally often: lowest {worst.name}, "
            f"{between(worst.figure)}."
        ),
        remedy="A random annotator looks like this, and so does one who judged harder pairs: read a sample.",
        rows=Rows.ranked(material.row[whose], np.ones(len(whose)), "by that annotator"),
        cells={"annotator": cells},
    )
