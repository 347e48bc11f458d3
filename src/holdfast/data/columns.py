"""What each row of a dataset says in a column, whatever the column is: for rules, splits and weights that go by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from holdfast.data.dataset import Dataset
from holdfast.data.text import plain_text
from holdfast.errors import DataError, RecipeError

PLAIN = ("kind", "annotator", "annotator_kind", "category", "licence", "rubric")
COLUMNS = (*PLAIN, "source")


def values(ds: Dataset, name: str) -> list[tuple[Any, ...]]:
    """What each row says: a tuple of one value, of a source per response, or empty where it says nothing.

    name: one of COLUMNS, or `extra.NAME` for a column of the user's own. RecipeError for an unknown column, DataError for
    an extra one that no row has.
    """
    if name in PLAIN:
        return [() if v is None else (v,) for v in ds.column(name)]
    if name == "source":
        return [() if v is None else tuple(dict.fromkeys(s for s in v if s)) for v in ds.column("sources")]
    if not name.startswith("extra."):
        raise RecipeError(f"unknown column {name!r} (known: {', '.join(COLUMNS)}, extra.NAME)")
    key, column = name.removeprefix("extra."), []
    for text in ds.column("extra"):
        said = orjson.loads(text) if text else {}
        column.append((said[key],) if said.get(key) is not None else ())
    if not any(column):
        raise DataError(f"no row has an extra column {key!r}")
    return column


def longer(ds: Dataset, rows: np.ndarray) -> dict[int, str | None]:
    """Whether each of these rows prefers the "longer" or the "shorter" response (characters); None where neither."""
    kinds, said = ds.column("kind"), ds.column("value")
    decided = [
        r
        for r in np.asarray(rows).tolist()
        if kinds[r] == "pair" or (kinds[r] == "soft" and said[r] != 0.5)  # frozen with the likelier one first
    ]
    used = np.unique(ds.responses_of.take(np.array(decided, np.int64)).flat)
    length = np.zeros(ds.n_responses, np.int64)
    length[used] = [len(plain_text(c) or "") for c in ds.response_contents(used)]
    found: dict[int, str | None] = dict.fromkeys(np.asarray(rows).tolist())
    for row in decided:
        a, b = length[ds.responses_of[row]].tolist()
        if a != b:
            found[row] = "longer" if a > b else "shorter"
    return found
