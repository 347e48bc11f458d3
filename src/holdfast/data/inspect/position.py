"""Was the response that was shown first preferred because it was shown first?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.data.inspect.finding import Finding, Rows, by_cells, detector, outside_band, share
from holdfast.data.inspect.material import Material


@detector("position", "shown", "comparisons")
def position(material: Material) -> Iterator[Finding]:
    known = (material.first != 0) & material.decided
    toward = np.sign(material.p - 0.5) * material.first > 0
    below = material.weight * known
    above = below * toward
    figure = material.resamples.ratio(above, below)
    first = (figure.value or 0.5) >= 0.5
    mine = np.flatnonzero(known & (toward == first))
    word = "first" if first else "second"
    yield Finding(
        name="position/first-wins",
        title="The response shown first is preferred",
        definition="Share of the decided comparisons whose display order is known in which the response shown "
        "first is preferred.",
        source="Wang et al., 2305.17926",
        figure=figure,
        unit="share",
        expected=0.5,
        alarm="warning: the interval lies outside 48 to 52 %; serious: outside 40 to 60 %",
        severity=outside_band(figure, (0.48, 0.52), (0.40, 0.60)),
        verdict=f"The response shown {word} is preferred in "
        f"{share(figure.value if first else 1 - (figure.value or 0))} of {int(known.sum()):,} "
        "comparisons whose order is known.",
        remedy="Judge every pair in both orders, or weigh the two orders equally; an annotator's own share is below.",
        rows=Rows.ranked(material.row[mine], np.abs(material.p[mine] - 0.5) * 2, f"the one shown {word} wins"),
        cells=by_cells(material, above, below),
    )
    yield from _swapped(material, known, toward)


def _swapped(material: Material, known: np.ndarray, toward: np.ndarray) -> Iterator[Finding]:
    """The same annotator, the same two responses, both orders."""
    at = np.flatnonzero(known)
    low, high = np.minimum(material.a[at], material.b[at]), np.maximum(material.a[at], material.b[at])
    shown_low_first = (material.first[at] > 0) == (material.a[at] == low)
    keys = np.stack([low, high, material.annotator[at]], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.ravel()
    n = int(group.max(initial=-1)) + 1
    has = [np.bincount(group[shown_low_first == order], minlength=n) > 0 for order in (True, False)]
    both = has[0] & has[1]
    if both.sum() < 10:
        return
    wins_low = (material.p[at] > 0.5) == (material.a[at] == low)
    share_low = [
        np.bincount(group[mine], wins_low[mine], n) / np.maximum(np.bincount(group[mine], minlength=n), 1)
        for mine in (shown_low_first, ~shown_low_first)
    ]
    agree = share_low[0] * share_low[1] + (1 - share_low[0]) * (1 - share_low[1])
    count = np.bincount(group, minlength=n)
    inside = both[group]
    below, above = np.zeros(len(material)), np.zeros(len(material))
    below[at] = inside / count[group]
    above[at] = below[at] * agree[group]
    figure = material.resamples.ratio(above, below)
    torn = inside & (agree[group] < 1)
    yield Finding(
        name="position/swapped-agrees",
        title="The same preference with the order swapped",
        definition="Of the pairs that one annotator judged in both orders: share in which the same response is "
        "preferred.",
        source="Zheng et al., 2306.05685",
        figure=figure,
        unit="share",
        expected=1.0,
        alarm="warning: the whole interval is below 80 %; serious: below 65 %",
        severity=outside_band(figure, (0.80, 1.0), (0.65, 1.0)),
        verdict=f"Of {int(both.sum()):,} pairs judged in both orders, {share(figure.value)} keep their winner.",
        remedy="Drop or turn into ties the pairs whose winner hangs on the order.",
        rows=Rows.ranked(material.row[at[torn]], 1 - agree[group[torn]], "share of orders that disagree"),
    )
