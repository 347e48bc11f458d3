"""What a format is; how it is told from a file's columns; the way in (`judge`) and out (`say`) that all formats share.

**In.** A format's reader gets a row as a dict and *takes out* (pops) the columns that it understands; what it leaves
becomes `extra`. It returns one or more judgements, or raises Reject with the reason that the user will read. Columns of
the common names (`COMMON`: category, annotator, margin, ...) are filled in afterwards for every format, and every
judgement passes `validate`.

**Out.** Its writer gets judgements and *takes out* (`take`) the fields that it can say; what it leaves of the common
fields and of `extra` travels as columns of those names, which the reader takes back. It returns the row, or raises
Unsayable with the reason. Whether a row says exactly what was meant is not left to the writer: `holdfast.data.export`
reads each row back before it is written.

The general formats (`trl`, `unpaired`, `compared`, `ranked`, `scored`) are also what a column map leads to: `--map
prompt=question` renames a column before the format is detected, no more."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from holdfast.data.formats.columns import PROMPTS, label_text, number, tidy
from holdfast.data.records import AnnotatorKind, Judgement, Segment
from holdfast.data.validate import validate
from holdfast.errors import DataError

Row = dict[str, Any]

# Columns that any format may carry, filled in where the format itself has not said.
COMMON = ("category", "annotator", "annotator_kind", "rubric", "licence", "license", "margin")
GENERAL = ("trl", "trl-implicit", "unpaired", "compared", "ranked", "scored", "holdfast")  # what a column map leads to


NAMES = {"soft": "soft preference", "label": "good or bad label"}  # of kinds, where a message needs a fuller one


class Unsayable(Exception):
    """Raised by a writer: the format has no way to say this judgement. The message is the reason a user reads."""


def _says_nothing(judgements: list[Judgement]) -> Row:
    raise Unsayable("the format can only be read")


@dataclass(frozen=True)
class Format:
    """One way in which people keep preferences.

    needs, takes:   columns; `a|b` means one of the two, `*` and `[0-9]` are as in file names.
    read, looks:    the way in; `looks` tells apart, by a row's values, formats that need the same columns.
    annotator_kind: who judged, where the row does not say.
    write:          the way out: one row that says all of the given judgements.
    kinds:          the kinds of judgement that it can say.
    gather:         judgements of one prompt and of one key here may share a row; None: each has a row of its own.
    """

    name: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    read: Callable[[Row], list[Judgement]]
    looks: Callable[[Row], bool]
    doc: str
    annotator_kind: AnnotatorKind | None = None
    write: Callable[[list[Judgement]], Row] = _says_nothing
    kinds: tuple[str, ...] = ()
    gather: Callable[[Judgement], Hashable] | None = None

    def missing(self, columns: Iterable[str]) -> list[str]:
        have = set(columns)
        return [need for need in self.needs if not any(_there(name, have) for name in need.split("|"))]

    @property
    def columns(self) -> set[str]:
        return {c for need in self.needs for c in need.split("|")} | set(self.takes) | set(COMMON)


def _there(name: str, have: set[str]) -> bool:
    return name in have or (("*" in name or "[" in name) and any(fnmatchcase(column, name) for column in have))


FORMATS: dict[str, Format] = {}


def reader(
    name: str,
    needs: str,
    takes: str = "",
    looks: Callable[[Row], bool] = lambda row: True,
    annotator_kind: AnnotatorKind | None = None,
) -> Any:
    """Register a format with the function that reads it."""

    def register(read: Callable[[Row], list[Judgement]]) -> Callable[[Row], list[Judgement]]:
        doc = read.__doc__ or ""
        FORMATS[name] = Format(name, tuple(needs.split()), tuple(takes.split()), read, looks, doc, annotator_kind)
        return read

    return register


def writer(name: str, kinds: str, gather: Callable[[Judgement], Hashable] | None = None) -> Any:
    """Register the function that writes a format: it gets one judgement, or with `gather` a list of them."""

    def register(write: Callable[[Any], Row]) -> Callable[[Any], Row]:
        whole = write if gather is not None else lambda judgements: write(judgements[0])
        FORMATS[name] = replace(FORMATS[name], write=whole, kinds=tuple(kinds.split()), gather=gather)
        return write

    return register


def judge(form: Format, row: Row, aside: Row | None = None) -> list[Judgement]:
    """The validated judgements of one row, which is used up. What is left of it, and `aside`, becomes `extra`. Raises
    Reject."""
    judgements = form.read(row)
    for column in COMMON:
        if column not in row:
            continue
        name = "licence" if column == "license" else column
        for j in judgements:
            if getattr(j, name) is not None:
                break  # the format knows better; the column stays with the user's own
        else:
            value = row.pop(column)
            value = number(value, column) if name == "margin" else label_text(value, column)
            for j in judgements:
                setattr(j, name, value)
    if form.annotator_kind is not None:
        for j in judgements:
            if j.annotator_kind is None:
                j.annotator_kind = form.annotator_kind
    if row or aside:
        extra = tidy({**row, **aside} if aside else row)
        if extra:
            for j in judgements:
                j.extra = {**extra, **j.extra} if j.extra else extra
    for j in judgements:
        validate(j)
    return judgements


def say(form: Format, judgements: Sequence[Judgement]) -> Row:
    """One row of this format that says all of these judgements, as far as it can. Raises Unsayable."""
    for j in judgements:
        if j.kind not in form.kinds:
            raise Unsayable(f"a {NAMES.get(j.kind, j.kind)} has no place")
        if isinstance(j.responses[0], Segment) and "segment" not in form.kinds:
            raise Unsayable("a segment has no place")
    left = [replace(j, extra=dict(j.extra) if j.extra else None) for j in judgements]
    row = form.write(left)
    first, *others = left
    for name in ("category", "annotator", "annotator_kind", "rubric", "licence", "margin"):
        value = getattr(first, name)
        if any(getattr(j, name) != value for j in others):
            raise Unsayable(f"{name} differs within a row")
        if value is not None:
            if name in row:
                raise Unsayable(f"{name}: the column says something else here")
            row[name] = value
    if any((j.extra or {}) != (first.extra or {}) for j in others):
        raise Unsayable("extra differs within a row")
    for column, value in (first.extra or {}).items():
        if column in row:
            raise Unsayable(f"extra: column {column!r} says something else here")
        row[column] = value
    return row


def take(j: Judgement, field: str) -> Any:
    """A field's value, taken out: the writer says it, so it does not travel as a common column as well."""
    value = getattr(j, field)
    setattr(j, field, None)
    return value


def by(j: Judgement, *columns: str) -> Row:
    """Who wrote the responses, taken out into these columns."""
    names = take(j, "sources")
    return {column: name for column, name in zip(columns, names or (), strict=False) if name is not None}


def shared(judgements: Sequence[Judgement]) -> Row:
    """What is the same in the `extra` of all of them, taken out of each (it stands once, in the row)."""
    first = judgements[0].extra or {}
    same = {k: v for k, v in first.items() if all(_same(v, (j.extra or {}).get(k)) for j in judgements)}
    for j in judgements:
        j.extra = {k: v for k, v in (j.extra or {}).items() if k not in same} or None
    return same


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def detect(sample: Sequence[Row], file: str, mapped: Iterable[str] = ()) -> Format:
    """The one format that the rows of `sample` are in. Raises DataError that names the columns and the remedy."""
    columns = list(dict.fromkeys(c for row in sample for c in row))
    shown = ", ".join(repr(c) for c in columns[:20]) + (", ..." if len(columns) > 20 else "") or "none"
    votes: dict[str, int] = {}
    for form in FORMATS.values():
        if form.missing(columns):
            continue
        fitting = sum(not form.missing(row) and form.looks(row) for row in sample)
        if fitting:
            votes[form.name] = fitting
    # A few odd rows do not make a format. One whose columns are some of another's says less about the file
    # (trl-implicit within trl). Formats over the same columns are told apart by the rows' values (hh, trl-implicit):
    # the more frequent.
    found = [f for f in votes if 2 * votes[f] >= max(votes.values())]
    found = [f for f in found if not any(set(FORMATS[f].needs) < set(FORMATS[g].needs) for g in found)]
    found = [f for f in found if all(FORMATS[f].needs != FORMATS[g].needs or votes[f] >= votes[g] for g in found)]
    if len(found) == 1:
        form = FORMATS[found[0]]
        for field in mapped:
            if field not in form.columns:
                takes = ", ".join(sorted(form.columns))
                raise DataError(f"{file}: --map {field}=...: format {form.name} takes no {field!r}; it takes {takes}")
        return form
    if found:
        fits = " and ".join(f"{f} ({', '.join(FORMATS[f].needs)})" for f in found)
        raise DataError(f"{file}: ambiguous format: the columns fit {fits}; say which with --format")
    question = next((c for c in columns if c.lower() in PROMPTS), None)
    if question and {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"{file}: is {question!r} the prompt? Columns: {shown}. If so, --map prompt={question}; "
            "if the prompt is what 'chosen' and 'rejected' share, --format trl-implicit"
        )
    near = min(FORMATS.values(), key=lambda form: (len(form.missing(columns)), -len(form.needs)))
    hint = ""
    if len(near.missing(columns)) < len(near.needs):
        hint = f" Nearest is {near.name}, which also needs {', '.join(near.missing(columns))}."
    raise DataError(
        f"{file}: no known format has these columns: {shown}.{hint} Name yours with --map "
        f"(such as --map prompt=question), or a format with --format ({', '.join(FORMATS)})"
    )


def named(name: str) -> Format:
    """The format called `name`. Raises DataError naming the ones there are."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown format {name!r}{hint} (known: {', '.join(FORMATS)})")
    return FORMATS[name]


def check_mapping(mapping: Mapping[str, str], form: Format | None) -> None:
    """Raise DataError unless each key of `mapping` is a column that a format (or the named one) takes."""
    known = form.columns if form else set().union(*(FORMATS[f].columns for f in GENERAL))
    for field in mapping:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            whose = f"format {form.name} takes" if form else "known"
            raise DataError(
                f"--map {field}={mapping[field]}: unknown field {field!r}{hint} ({whose}: {', '.join(sorted(known))})"
            )
