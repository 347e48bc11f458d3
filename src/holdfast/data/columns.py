"""What each row of a dataset says in a column, whatever the column is: for rules, splits and weights that go by one."""

from __future__ import annotations

from typing import Any

import orjson

from holdfast.data.dataset import Dataset
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
