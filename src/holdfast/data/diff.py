"""Two datasets side by side: which rows they share, and how their strata, biases and agreement differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.data.dataset import Dataset
from holdfast.data.inspect.inspection import inspect_dataset

COLUMNS = ("kind", "category", "annotator", "licence", "source")
FIGURES = ("length", "contradictions", "sources", "agreement", "duplicates")  # detectors whose findings are compared


@dataclass(frozen=True)
class Difference:
    """rows: {"both", "only a", "only b"}, judgements by their digests; prompts, responses: the same of theirs.

    strata: {column: {value: (rows in a, rows in b)}}, "" where a row says nothing; findings: {name: (figure in a, in b)}, each
    (value, lo, hi) or None where the dataset has no such finding.
    """

    a: str
    b: str
    rows: dict[str, int]
    prompts: dict[str, int]
    responses: dict[str, int]
    only_a: list[str]
    only_b: list[str]
    strata: dict[str, dict[str, tuple[int, int]]]
    findings: dict[str, tuple[tuple[float | None, ...] | None, tuple[float | None, ...] | None]]

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__}


def diff(a: Dataset, b: Dataset, *, seed: int = 0, times: int = 200) -> Difference:
    """What is in one dataset and not in the other, and what inspection says of both. The same two give the same difference."""

    def shared(x: list[str], y: list[str]) -> dict[str, int]:
        one, other = set(x), set(y)
        return {"both": len(one & other), "only a": len(one - other), "only b": len(other - one)}

    strata: dict[str, dict[str, tuple[int, int]]] = {}
    for column in COLUMNS:
        counts = [_counts(ds, column) for ds in (a, b)]
        if set(counts[0]) | set(counts[1]) != {""}:
            strata[column] = {v: (counts[0][v], counts[1][v]) for v in sorted(set(counts[0]) | set(counts[1]))}
    said = []
    for ds in (a, b):
        found = inspect_dataset(ds, only=FIGURES, seed=seed, times=times)
        said.append({f.name: (f.figure.value, f.figure.lo, f.figure.hi) for f in found.findings})
    names = list(dict.fromkeys([*said[0], *said[1]]))
    mine, theirs = a.row_ids, b.row_ids
    return Difference(
        a.root,
        b.root,
        shared(mine, theirs),
        shared(a.prompt_ids, b.prompt_ids),
        shared(a.response_ids, b.response_ids),
        sorted(set(mine) - set(theirs)),
        sorted(set(theirs) - set(mine)),
        strata,
        {n: (said[0].get(n), said[1].get(n)) for n in names},
    )


def _counts(ds: Dataset, column: str) -> Counter[str]:
    """Rows by what they say in a column; of sources a row counts for each of its own."""
    if column == "source":
        return Counter(
            s for said in ds.column("sources") for s in (dict.fromkeys(x or "" for x in said) if said else [""])
        )
    return Counter("" if v is None else str(v) for v in ds.column(column))


def moved(x: tuple[float | None, ...] | None, y: tuple[float | None, ...] | None) -> bool:
    """Whether two figures with intervals lie apart: neither interval holds the other's value."""
    if x is None or y is None or None in (*x, *y):
        return False
    (v, lo, hi), (w, low, high) = np.array(x, float), np.array(y, float)
    return bool(not lo <= w <= hi and not low <= v <= high)
