"""What each judgement weighs in training, as the recipe's [data.weights] says it: how reliable its annotator is, how full its
cell is, a column of the user's own.

Everything is found from the rows that are trained on, so nothing of what is held out is looked at.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from holdfast.data.columns import COLUMNS, longer, values
from holdfast.data.dataset import Dataset
from holdfast.data.text import plain_text
from holdfast.data.views import comparisons
from holdfast.errors import DataError, RecipeError
from holdfast.recipe import WeightTable

ZERO = "its weight is 0"
FEWEST = 30  # judgements on pairs that three annotators judged, below which an annotator's reliability is not estimated
CELLS = ("length", "longer")  # what `balance` knows beside columns


@dataclass(frozen=True)
class Weights:
    """of: (N,) float64, what each judgement of the dataset weighs: a mean of 1 over the rows trained on that weigh anything, and
    1 for all others. facts: how they came about, with their digest and the effective number of judgements.
    """

    of: np.ndarray
    facts: dict[str, Any]


def judgement_weights(ds: Dataset, rows: np.ndarray, table: WeightTable) -> Weights:
    """The weights of these rows: the product of what the table names.

    Raises RecipeError for what the table cannot mean, DataError where the rows do not say enough.
    """
    weight = np.ones(len(rows))
    facts: dict[str, Any] = {}
    if table.reliability is not None:
        own, facts["annotators"] = _reliability(ds, rows)
        weight *= own
    if table.balance:
        own, facts["cells"] = _balance(ds, rows, table.balance)
        weight *= own
    if table.column is not None:
        own, facts["column"] = _column(ds, rows, table.column)
        weight *= own
    heavy = weight > 0
    if not heavy.any():
        raise DataError(f"[data.weights] give every one of {len(rows):,} judgements the weight 0")
    weight /= weight[heavy].mean()
    of = np.ones(ds.n_judgements)
    of[rows] = weight
    hashed = sha256(b"holdfast/weights/1\0")
    for row, w in zip(rows.tolist(), weight, strict=True):
        hashed.update(bytes.fromhex(ds.row_id(row)) + np.float64(w).tobytes())
    facts |= {
        "digest": hashed.hexdigest(),
        "judgements": int(heavy.sum()),
        "effective": effective(weight),
        "least": float(weight[heavy].min()),
        "most": float(weight.max()),
        "of no weight": int((~heavy).sum()),
    }
    return Weights(of, facts)


def effective(weight: np.ndarray) -> float:
    """How many equally weighted judgements have as little noise as these: (sum w)^2 / sum w^2 (Kish 1965, section 11.7)."""
    return float(weight.sum() ** 2 / (weight**2).sum())


def _reliability(ds: Dataset, rows: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """2 q - 1 for an annotator who picks the right side with chance q (of judgements that pick one), by Dawid and Skene's model.

    A label that is turned round with chance 1 - q gives 2 q - 1 times the gradient of a right one, in expectation (Natarajan et al.
    2013, lemma 1), and about as much noise; so its weight. Coin flips weigh nothing. Annotators of whom too little is known weigh
    the mean of the others.
    """
    from holdfast.data.inspect.stats import dawid_skene

    low, tie, high = 0, 1, 2
    names = ds.column("annotator")
    view = comparisons(ds, rows)
    first = np.minimum(view.a, view.b).astype(np.int64)
    _, unit = np.unique(first * ds.n_responses + np.maximum(view.a, view.b), return_inverse=True)
    toward = np.sign(view.p - 0.5) * np.where(view.a == first, 1, -1)
    value = np.where(toward == 0, tie, np.where(toward > 0, low, high))
    people = sorted({names[r] for r in rows.tolist()} - {None})
    number = {name: n for n, name in enumerate(people)}
    who = np.array([number.get(names[r], -1) for r in view.row.tolist()], dtype=np.int64)
    known = np.flatnonzero(who >= 0)
    judges = np.unique(np.stack([unit[known], who[known]], axis=1), axis=0)[:, 0]
    at = known[(np.bincount(judges, minlength=len(unit) + 1) >= 3)[unit[known]]]
    count = np.bincount(who[at], minlength=len(people))
    if not (count >= FEWEST).any():
        raise DataError(
            f"[data.weights] reliability: no annotator has {FEWEST} judgements on pairs that three annotators judged (the most is "
            f"{int(count.max(initial=0))}), so whose are right cannot be told; leave it out, or weigh by a column"
        )
    _, item = np.unique(unit[at], return_inverse=True)
    fit = dawid_skene(item, who[at], value[at], 3, smooth=0.5, mirror=np.array([high, tie, low]))
    right = fit.confusion[:, low, low] / (fit.confusion[:, low, low] + fit.confusion[:, low, high])
    own = np.where(count >= FEWEST, np.maximum(2 * right - 1, 0.0), np.nan)
    usual = float(np.nanmean(own))
    own = np.where(np.isnan(own), usual, own)
    said = {
        name: {
            "judgements": int(count[n]),
            "right": float(right[n]) if count[n] >= FEWEST else None,
            "weight": float(own[n]),
        }
        for name, n in number.items()
    }
    return np.array([own[number[name]] if (name := names[r]) is not None else usual for r in rows.tolist()]), said


def _balance(ds: Dataset, rows: np.ndarray, columns: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Any]]:
    """The same weight in all for each cell of these columns that has any row; a row that says nothing in one of them weighs 1."""
    said = [_cell(ds, rows, name) for name in columns]
    cells = [None if None in each else " | ".join(map(str, each)) for each in zip(*said, strict=True)]
    count = Counter(cell for cell in cells if cell is not None)
    if len(count) < 2:
        raise DataError(
            f"[data.weights] balance = {list(columns)!r}: the rows fall into {len(count)} cell; there is nothing to balance"
        )
    whole = sum(count.values())
    weight = np.array([1.0 if cell is None else whole / (len(count) * count[cell]) for cell in cells])
    return weight, {cell: {"judgements": n, "weight": whole / (len(count) * n)} for cell, n in sorted(count.items())}


def _cell(ds: Dataset, rows: np.ndarray, name: str) -> list[Any]:
    if name == "longer":
        side = longer(ds, rows)
        return [side[r] for r in rows.tolist()]
    if name == "length":
        prompts = np.unique(ds.prompt_of[rows])
        size = np.zeros(ds.n_prompts, np.int64)
        size[prompts] = [len(plain_text(c) or "") for c in ds.prompt_contents(prompts)]
        edges = np.quantile(size[prompts], [1 / 3, 2 / 3])
        tercile = np.searchsorted(edges, size, side="left")
        return [("short", "medium", "long")[tercile[p]] for p in ds.prompt_of[rows].tolist()]
    if name not in COLUMNS and not name.startswith("extra."):
        raise RecipeError(
            f"[data.weights] balance: unknown column {name!r} (known: {', '.join([*CELLS, *COLUMNS])}, extra.NAME)"
        )
    column = values(ds, name)
    return [" and ".join(map(str, column[r])) or None for r in rows.tolist()]


def _column(ds: Dataset, rows: np.ndarray, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The numbers of a column; a row that says nothing there weighs 1."""
    column = values(ds, name)
    weight = np.ones(len(rows))
    silent = 0
    for n, row in enumerate(rows.tolist()):
        if not column[row]:
            silent += 1
            continue
        said = column[row][0]
        if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said < float("inf"):
            raise DataError(
                f"[data.weights] column = {name!r}: judgement {ds.row_id(row)[:16]} says {said!r}, which is no weight; 0 or more is"
            )
        weight[n] = said
    return weight, {"name": name, "without": silent}
