"""Which data feeds which loss. The schema decides, not the user's reshaping; what a view cannot use is listed with
its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from holdfast.data.dataset import Dataset, check_rows_exist

LeftOut = list[tuple[int, str]]


@dataclass(frozen=True)
class Comparisons:
    """Judgements as edges between two responses to one prompt, E in all, in the order of the rows asked for.

    row:    (E,) int64, the judgement.
    prompt: (E,) int32; a, b: (E,) int32 responses.
    p:      (E,) float64, the stated probability that a is preferred to b: 1 for a pair, 1/2 for a tie, a soft
        preference's own value.
    margin: (E,) float64, nan where none was given.
    weight: (E,) float64; the edges of one judgement sum to 1, so that a ranking of ten counts as one judgement.
    left_out: judgements that make no comparison: (row, reason).
    """

    row: np.ndarray
    prompt: np.ndarray
    a: np.ndarray
    b: np.ndarray
    p: np.ndarray
    margin: np.ndarray
    weight: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Preferred:
    """Distinct preferred responses, E in all: row (E,) int64, prompt and response (E,) int32.

    A response that several judgements prefer stands once, under the first of their rows; the others are in `left_out`.
    """

    row: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.row)


def comparisons(ds: Dataset, rows: Iterable[int] | np.ndarray) -> Comparisons:
    """The comparisons that these judgements state.

    A ranking gives every two of its responses as an edge, p = 1 where their ranks differ and 1/2 where they are equal,
    each with weight one over the number of edges (InstructGPT, 2203.02155, section 3.4, normalises over a prompt's
    comparisons likewise).
    """
    rows = check_rows_exist(ds, rows)
    kinds = _kinds(ds)[rows]
    of = ds.responses_of
    margins = _floats(ds, "margin")
    values = _floats(ds, "value")
    reasons = {"score": "a score alone makes no comparison", "label": "a label alone makes no comparison"}
    left_out = [(int(r), reasons[k]) for r, k in zip(rows, kinds, strict=True) if k in reasons] if len(rows) else []

    two = np.flatnonzero(np.isin(kinds, ("pair", "tie", "soft")))
    at = rows[two]
    first = of.offsets[at]
    places = [two]
    edges = [at]
    a, b = [of.flat[first]], [of.flat[first + 1]]
    p = [np.where(kinds[two] == "pair", 1.0, np.where(kinds[two] == "tie", 0.5, values[at]))]
    weight = [np.ones(len(two))]
    ranked = np.flatnonzero(kinds == "ranking")
    if len(ranked):
        ranks = ds.judgements["ranks"]
        for place in ranked:
            responses, rank = of[rows[place]], np.array(ranks[int(rows[place])].as_py())
            i, j = np.triu_indices(len(responses), 1)  # rows are stored best first
            places.append(np.full(len(i), place))
            edges.append(np.full(len(i), rows[place]))
            a.append(responses[i])
            b.append(responses[j])
            p.append(np.where(rank[i] < rank[j], 1.0, 0.5))
            weight.append(np.full(len(i), 1 / len(i)))
    order = np.argsort(np.concatenate(places), kind="stable")
    row = np.concatenate(edges)[order]
    return Comparisons(
        row=row,
        prompt=ds.prompt_of[row],
        a=np.concatenate(a)[order],
        b=np.concatenate(b)[order],
        p=np.concatenate(p)[order],
        margin=margins[row],
        weight=np.concatenate(weight)[order],
        left_out=left_out,
    )


def preferred(ds: Dataset, rows: Iterable[int] | np.ndarray) -> Preferred:
    """The responses that these judgements prefer: a pair's winner, the likelier of a soft preference, a ranking's
    first, a good label's.

    Each distinct response once.
    """
    rows = check_rows_exist(ds, rows)
    kinds = _kinds(ds)[rows]
    values = _floats(ds, "value")
    ranks = ds.judgements["ranks"] if (kinds == "ranking").any() else None
    seen: set[int] = set()
    kept: list[tuple[int, int]] = []
    left_out: LeftOut = []
    for r, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        best = int(ds.responses_of.flat[ds.responses_of.offsets[r]])
        reason = None
        if kind == "tie":
            reason = "a tie prefers neither"
        elif kind == "soft" and values[r] == 0.5:
            reason = "a preference of 1/2 prefers neither"
        elif kind == "score":
            reason = "a score alone prefers none"
        elif kind == "label" and values[r] != 1:
            reason = "labelled bad"
        elif kind == "ranking" and ranks is not None and ranks[r].as_py()[1] == 0:
            reason = "the best rank is shared"
        elif best in seen:
            reason = "same response"
        if reason is None:
            seen.add(best)
            kept.append((r, best))
        else:
            left_out.append((r, reason))
    row = np.array([r for r, _ in kept], dtype=np.int64)
    response = np.array([x for _, x in kept], dtype=np.int32)
    return Preferred(row=row, prompt=ds.response_prompt[response], response=response, left_out=left_out)


def _kinds(ds: Dataset) -> np.ndarray:
    return np.array(ds.column("kind"), dtype="U8")


def _floats(ds: Dataset, name: str) -> np.ndarray:
    """(N,) float64, nan for null."""
    return pc.fill_null(ds.judgements[name], float("nan")).to_numpy()
