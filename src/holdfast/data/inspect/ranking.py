"""Sources ranked by how often they win, and by how often they would win at equal length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from holdfast.data.inspect.length import characters, sizes
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import Interval, components, logistic
from holdfast.errors import DataError

REFITS = 100
STAR = 0.9  # share of the comparisons from which on one source is the baseline of all others
RIDGE = 1e-3  # on strengths: holds them where one side always wins
POOL = 1.0  # on how much a source's own slope of length may differ from the common one, in log-odds


@dataclass(frozen=True)
class Place:
    """One source: share of its comparisons that it wins (probabilities and ties count as such), the same at equal
    length, its rank by either (1 is best), mean characters of its responses, its comparisons.
    """

    source: str
    wins: Interval
    controlled: Interval
    rank: int
    controlled_rank: int
    characters: float
    comparisons: int


@dataclass(frozen=True)
class Ranking:
    """places: by the controlled rate, the best first. baseline: the source that all others were compared with, which has
    no place of its own, or None: rates are then against the other sources, each counting the same. slope: what the
    longer side gains in log-odds where lengths differ by much more than usual.
    """

    places: list[Place]
    baseline: str | None
    slope: float
    comparisons: int

    def as_json(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline,
            "length slope": self.slope,
            "comparisons": self.comparisons,
            "sources": [
                {
                    "source": p.source,
                    "wins": p.wins.__dict__,
                    "at equal length": p.controlled.__dict__,
                    "rank": p.rank,
                    "rank at equal length": p.controlled_rank,
                    "characters": p.characters,
                    "comparisons": p.comparisons,
                }
                for p in self.places
            ],
        }


def rank_sources(material: Material) -> Ranking:
    """Rank the sources of a dataset with and without length.

    A logistic model log-odds(a over b) = s_a - s_b + (c + d_a + d_b) tanh((len_a - len_b) / sd), sd of the differences
    between these two sources, is fitted to the comparisons; at equal length the last term is left out. The d are drawn
    towards 0, so that a source whose responses are always the shorter ones borrows the slope of the rest. After Dubois et
    al., 2404.04475, equation 2, without its term for the prompt's difficulty and with pooling in place of its made-up
    baselines. Intervals: bootstrap over prompts. DataError where fewer than two sources are named or compared.
    """
    at = np.flatnonzero((material.source_a >= 0) & (material.source_b >= 0) & (material.source_a != material.source_b))
    if not len(at) or not material.text:
        raise DataError(
            "no comparison names the sources of both responses; freeze with a column of sources to rank them"
        )
    seen = np.unique(np.concatenate([material.source_a[at], material.source_b[at]]))
    a, b = np.searchsorted(seen, material.source_a[at]), np.searchsorted(seen, material.source_b[at])
    n = len(seen)
    if int(components(n, a, b).max()) > 0:
        raise DataError(
            f"the {n} sources fall into groups that were never compared with each other: no ranking joins them"
        )
    p, weight = material.p[at], material.weight[at]
    longer, shorter = (side[at].astype(float) for side in sizes(material))
    pair = np.minimum(a, b) * n + np.maximum(a, b)
    _, of = np.unique(pair, return_inverse=True)
    toward = np.where(a < b, 1.0, -1.0) * (longer - shorter)
    count = np.bincount(of)
    mean = np.bincount(of, toward) / count
    spread = np.sqrt(np.bincount(of, toward**2) / count - mean**2)
    usual = float(np.std(toward)) or 1.0
    ratio = np.tanh((longer - shorter) / np.where((count > 9) & (spread > 0), spread, usual)[of])

    rows = np.arange(len(at))
    x = np.zeros((len(at), 2 * n + 1))
    x[rows, a], x[rows, b] = 1.0, -1.0
    x[:, n] = ratio
    x[rows, n + 1 + a] = ratio
    x[rows, n + 1 + b] += ratio
    ridge = np.concatenate([np.full(n, RIDGE), [RIDGE], np.full(n, POOL)])

    played = np.bincount(a, weight, n) + np.bincount(b, weight, n)
    common = int(np.argmax(played))
    star = n > 2 and played[common] / weight.sum() > STAR
    others = np.array([k for k in range(n) if not (star and k == common)])

    def rates(w: np.ndarray, start: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        fitted = logistic(x, p, w * weight, ridge=ridge, start=start).weights
        s = fitted[:n]
        games = np.bincount(a, w * weight, n) + np.bincount(b, w * weight, n)
        won = np.bincount(a, w * weight * p, n) + np.bincount(b, w * weight * (1 - p), n)
        against = expit(s[:, None] - s[None, :])
        even = against[:, common] if star else (against.sum(axis=1) - 0.5) / max(n - 1, 1)
        return won / np.maximum(games, 1e-300), even, fitted

    wins, even, fitted = rates(np.ones(len(at)), None)
    group = material.resamples.group[at]
    draws = [rates(row[group].astype(float), fitted)[:2] for row in material.resamples.counts[:REFITS]]
    bounds = np.quantile(np.array(draws), [0.025, 0.975], axis=0) if len(draws) > 1 else np.full((2, 2, n), np.nan)
    size = material.responses.derive(characters)
    long = np.bincount(a, size[material.a[at]] * weight, n) + np.bincount(b, size[material.b[at]] * weight, n)
    order, again = (others[np.argsort(-rate[others], kind="stable")].tolist() for rate in (wins, even))
    places = [
        Place(
            material.sources[int(seen[k])],
            Interval(float(wins[k]), float(bounds[0, 0, k]), float(bounds[1, 0, k])),
            Interval(float(even[k]), float(bounds[0, 1, k]), float(bounds[1, 1, k])),
            order.index(k) + 1,
            r + 1,
            float(long[k] / played[k]),
            round(float(np.bincount(a, minlength=n)[k] + np.bincount(b, minlength=n)[k])),
        )
        for r, k in enumerate(again)
    ]
    return Ranking(places, material.sources[int(seen[common])] if star else None, float(fitted[n]), len(at))
