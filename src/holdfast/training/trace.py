"""Which steps used a row; which rows, annotators and lines of which files made a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.splits import load_split
from holdfast.errors import DataError, HoldfastError
from holdfast.recipe import read_recipe
from holdfast.training.ledger import History, read_ledger
from holdfast.training.objective import Rows
from holdfast.training.order import Draws, Order, order_of, read_rows


def trace_row(run: str | Path, prefix: str) -> dict[str, Any]:
    """`{"row": id, "steps": [{"step", "loss"}]}` for the row whose id starts with `prefix`; `loss` is the whole step's.

    Raises DataError when no row or several match, and says so when the row was left out of training, and why.
    """
    folder = Path(run)
    history, rows = _history(folder), read_rows(folder / "rows.parquet")
    ids = rows.ids
    found = [row for row in ids if row.startswith(prefix.lower())]
    if len(found) > 1:
        raise DataError(
            f"{len(found)} rows start with {prefix!r} ({found[0][:16]}.., {found[1][:16]}.., ...); give more characters"
        )
    if not found or not prefix:
        raise DataError(f"the run trained on no row that starts with {prefix!r}{_why_not(folder, prefix)}")
    row = found[0]
    if "draws" in history.open:  # too many to be listed: the order says them
        order, place = _order(history, rows), list(ids).index(row)
        used = [e for e in history.steps if (order.step(e["step"]) == place).any()]
    else:
        used = [e for e in history.steps if row in e["rows"]]
    return {"row": row, "steps": [{"step": e["step"], "loss": float.fromhex(e["loss"])} for e in used]}


def trace_step(run: str | Path, step: int, dataset: str | Path | None = None) -> dict[str, Any]:
    """`{"step", "loss", "rows": [{"id", ...}]}`: a step's rows in their order, with their annotator, category and
    `origins` (file, line).

    The latter need the dataset: the one given, else the one where the recipe says; where it is not, `note` says so.
    """
    folder = Path(run)
    history = _history(folder)
    if not 1 <= step <= len(history.steps):
        raise DataError(f"step {step} is not in the ledger, which has steps 1 to {len(history.steps)}")
    entry = history.steps[step - 1]
    ids = entry.get("rows")
    if ids is None:
        all_rows = read_rows(folder / "rows.parquet")
        ids = [all_rows.ids[i] for i in _order(history, all_rows).step(step).tolist()]
    rows: list[dict[str, Any]] = [{"id": row} for row in ids]
    said = {"step": step, "loss": float.fromhex(entry["loss"]), "rows": rows}
    try:
        held = _dataset(folder, dataset)
    except HoldfastError as problem:
        if dataset is not None:
            raise
        return {**said, "note": f"no annotators and files: {problem}"}
    columns = {name: held.column(name) for name in ("annotator", "annotator_kind", "category")}
    for row in rows:
        i = held.find_row(row["id"])
        row |= {name: values[i] for name, values in columns.items()}
        row["origins"] = [list(origin) for origin in held.origins(i)]
    return said


def _order(history: History, rows: Rows) -> Order | Draws:
    said = history.open["settings"]
    return order_of(rows, history.open["run"]["seed"], said["per_prompt"], said["batch"], history.open.get("draws"))


def _history(folder: Path) -> History:
    if not (folder / "ledger.jsonl").is_file():
        raise DataError(f"{folder} is no run: it has no ledger.jsonl")
    entries, _ = read_ledger(folder / "ledger.jsonl")
    if not entries:
        raise DataError(f"{folder} has an empty ledger")
    return History.of(entries)


def _dataset(folder: Path, dataset: str | Path | None) -> Dataset:
    return open_dataset(
        dataset if dataset is not None else read_recipe(folder / "recipe.toml").data.dataset, check=False
    )


def _why_not(folder: Path, prefix: str) -> str:
    """What became of a row that is in the dataset but not in the run."""
    path = folder / "left_out.jsonl"
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        said = orjson.loads(line)
        if said["row"].startswith(prefix.lower()):
            return f": row {said['row'][:16]}.. was left out: {said['reason']}"
    try:
        held = _dataset(folder, None)
        i = held.find_row(prefix)
        parts = [name for name, rows in load_split(folder, held).parts.items() if i in rows]
        return f": it is in the split's part {parts[0]!r}" if parts else ": it is in no part of the split"
    except HoldfastError:
        return ""
