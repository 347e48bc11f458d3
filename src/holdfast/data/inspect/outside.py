"""Texts from outside the dataset: evaluation sets that it must not overlap, prompts that the model is meant for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from holdfast.data.dataset import open_dataset
from holdfast.data.read import raw_rows, read_files
from holdfast.data.text import plain_text
from holdfast.data.views import comparisons
from holdfast.errors import DataError

PROMPT_COLUMNS = ("prompt", "instruction", "question", "query", "input", "text", "messages")
RESPONSE_COLUMNS = ("response", "completion", "output", "answer", "generation", "sample")
CATEGORY_COLUMNS = ("category", "subset", "dataset", "cmp_key")


@dataclass(frozen=True)
class Outside:
    """The distinct prompts of an outside file, and where it has them the responses that were preferred there and that
    were not.

    name: the file's; prompts, chosen, rejected: texts; categories: of each prompt, or None.
    """

    name: str
    prompts: list[str]
    chosen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    categories: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Samples:
    """What a policy wrote: the file's name, and a prompt and a response for each sample."""

    name: str
    prompts: list[str]
    responses: list[str]


def read_samples(path: str | Path) -> Samples:
    """Read a file with a column of prompts and one of responses (texts, or chat messages). DataError if there are none."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file of the policy's samples, with columns prompt and response")
    prompts, responses = [], []
    for row in raw_rows(path):
        asked = next((t for c in PROMPT_COLUMNS if row.get(c) and (t := plain_text(row[c]))), None)
        said = next((t for c in RESPONSE_COLUMNS if row.get(c) and (t := plain_text(row[c]))), None)
        if asked and said:
            prompts.append(asked)
            responses.append(said)
    if not prompts:
        raise DataError(
            f"{path} has no rows with a prompt ({', '.join(PROMPT_COLUMNS)}) and a response ({', '.join(RESPONSE_COLUMNS)})"
        )
    return Samples(path.name, prompts, responses)


def read_outside(path: str | Path) -> Outside:
    """Read a frozen dataset, a preference file in any format that freeze reads, a file with a column of prompts, or a
    text file with a prompt per line. DataError if there is none of these at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file of prompts, a preference file or a frozen dataset")
    if (path / "manifest.json").is_file():
        return _frozen(path)
    if path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return _distinct(path.name, ((line, None) for line in lines if line))
    chosen: dict[str, None] = {}
    rejected: dict[str, None] = {}

    def judged() -> Iterator[tuple[str, str | None]]:
        for row in read_files([path]):
            for j in row.judgements:
                yield plain_text(j.prompt) or "", j.category
                texts = [plain_text(r) or "" for r in j.responses]
                if j.kind == "pair" or (j.kind == "soft" and j.value != 0.5):
                    best = 0 if j.kind == "pair" or (j.value or 0) > 0.5 else 1
                    chosen.setdefault(texts[best])
                    rejected.setdefault(texts[1 - best])

    try:
        found = _distinct(path.name, judged())
        return Outside(found.name, found.prompts, list(chosen), list(rejected), found.categories)
    except DataError as problem:
        rows = list(_column_of_prompts(path))
        if not rows:
            raise DataError(
                f"{problem}\n{path} has no column of prompts either ({', '.join(PROMPT_COLUMNS)})"
            ) from None
        return _distinct(path.name, iter(rows))


def _column_of_prompts(path: Path) -> Iterator[tuple[str, str | None]]:
    for row in raw_rows(path):
        column = next((c for c in PROMPT_COLUMNS if row.get(c)), None)
        if column is None:
            continue
        text = plain_text(row[column])
        more = row.get("input") if column == "instruction" else None
        category = next((str(row[c]) for c in CATEGORY_COLUMNS if row.get(c)), None)
        if text:
            yield (f"{text}\n\n{more}" if isinstance(more, str) and more else text), category


def _frozen(path: Path) -> Outside:
    ds = open_dataset(path)
    if ds.kind != "text":
        raise DataError(f"{path} holds segments of episodes; there are no texts in it to compare with")
    names: dict[int, str | None] = dict(zip(ds.prompt_of.tolist(), ds.categories, strict=True))
    prompts = [plain_text(c) or "" for c in ds.prompt_contents()]
    found = _distinct(path.name, ((text, names.get(n)) for n, text in enumerate(prompts)))
    view = comparisons(ds, np.arange(ds.n_judgements))
    decided = view.p != 0.5
    up = np.where(view.p > 0.5, view.a, view.b)[decided]
    down = np.where(view.p > 0.5, view.b, view.a)[decided]
    chosen, rejected = (
        list(dict.fromkeys(plain_text(c) or "" for c in ds.response_contents(np.unique(side)))) for side in (up, down)
    )
    return Outside(path.name, found.prompts, chosen, rejected, found.categories)


def _distinct(name: str, rows: Iterator[tuple[str, str | None]]) -> Outside:
    seen: dict[str, str | None] = {}
    for text, category in rows:
        if text and text not in seen:
            seen[text] = category
    if not seen:
        raise DataError(f"{name} holds no prompts")
    return Outside(name, list(seen), categories=list(seen.values()))
