"""No input, however broken, ends in a traceback, and every row of it is accounted for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data.formats import FORMATS, judge
from holdfast.data.read import read_files
from holdfast.data.records import Reject
from holdfast.errors import DataError
from malformed_corpus import CASES, GOOD, Case
from test_formats import EXAMPLES


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corpus(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    if case.error is not None:
        with pytest.raises(DataError) as caught:
            list(read_files([path], format=case.format, mapping=case.mapping))
        assert case.error in str(caught.value)
        assert path.name in str(caught.value) or case.format == "trll" or case.mapping == {"promt": "prompt"}
        return
    rows = list(read_files([path], format=case.format, mapping=case.mapping))
    assert sum(row.reason is None for row in rows) == case.accepted
    rejects = [(row.row, row.reason) for row in rows if row.reason is not None]
    assert [row for row, _ in rejects] == [row for row, _ in case.rejects]
    for (_, reason), (_, begins) in zip(rejects, case.rejects, strict=True):
        assert reason is not None and reason.startswith(begins)
    assert all(bool(row.judgements) == (row.reason is None) for row in rows)


COLUMNS = [
    *GOOD, "completion", "label", "response", "score", "responses", "ranks", "kind", "value", "margin", "tools",
    "winner", "response_a", "response_b", "shown", "extra", "annotator_kind",
]  # fmt: skip
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls"]), st.text(max_size=4) | st.none(), max_size=3
)
VALUE = st.none() | st.text(max_size=6) | st.integers() | st.floats() | st.lists(MESSAGE, max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def test_every_reason_is_in_the_docs() -> None:
    docs = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    table = docs.split("## Reasons for a reject")[1].split("\n## ")[0]
    known = [
        phrase for line in table.splitlines() for phrase in line.split("|")[1:2] for phrase in phrase.split("`")[1::2]
    ]
    for case in CASES:
        for _, reason in case.rejects:
            assert any(reason.startswith(phrase) for phrase in known), (
                f"{reason!r} is not in the table of docs/formats.md"
            )


LINES = st.one_of(
    st.binary(max_size=40).map(lambda junk: junk.replace(b"\n", b"")),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(COLUMNS), VALUE, max_size=6).map(lambda value: json.dumps(value).encode()),
)


def _account(name: str, content: bytes, format: str | None = None) -> list[int] | None:
    """The row numbers in the order read, or None for a DataError; anything else that is raised fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            rows = list(read_files([path], format=format))
        except DataError:
            return None
    assert all(bool(row.judgements) == (row.reason is None) for row in rows)
    assert all(row.reason is None or row.reason.strip() for row in rows)
    return [row.row for row in rows]


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=6), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_any_lines_are_accounted_for(lines: list[bytes], end: bytes, good: bool) -> None:
    if good:
        lines = [json.dumps(GOOD).encode(), *lines]
    got = _account("rows.jsonl", end.join(lines))
    if got is not None:
        text = b"\n".join(line.removesuffix(b"\r") for line in end.join(lines).split(b"\n"))
        assert got == [n for n, line in enumerate(text.split(b"\n"), 1) if line.strip(b" \t\n\r\x0b\x0c")]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LINES, min_size=1, max_size=5),
    st.sampled_from(["trl", "holdfast", "ranked", "compared", "hh", "unpaired"]),
)
def test_any_rows_in_a_named_format(lines: list[bytes], format: str) -> None:
    _account("rows.jsonl", b"\n".join(lines), format)


JUNK = st.sampled_from([None, True, 0, 2.5, -1, 10**30, "", " ", "x", "{}", "[1]", [], [None], ["x"], [[]], [3], {}, {"role": "user"},
    {"value": ["x"], "rank": 3}, {"from": "gpt"}, {"response": None}, {"rank": None, "completion": []}])  # fmt: skip


def spoilt(value: Any, draw: Any) -> Any:
    """The value with something in it replaced by junk, taken out, or put in."""
    inside = list(value) if type(value) is dict else list(range(len(value))) if type(value) is list else []
    if not inside or draw(st.integers(0, 3)) == 0:
        return draw(JUNK)
    at = draw(st.sampled_from(inside))
    how = draw(st.integers(0, 5))
    if type(value) is dict:
        rest = {k: v for k, v in value.items() if k != at}
        return rest if how == 0 else {**rest, at: spoilt(value[at], draw)}
    return [*value[:at], *([] if how == 0 else [spoilt(value[at], draw)]), *value[at + (how != 1) :]]


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(EXAMPLES))
def test_a_row_of_any_format_with_junk_in_it(data: st.DataObject, example: Any) -> None:
    """Whatever stands in a row's place, or deep inside it: judgements or a reason, never a traceback."""
    name, row, _ = example
    for _ in range(data.draw(st.integers(1, 2))):
        row = spoilt(row, data.draw)
        if type(row) is not dict:
            row = {"x": row}
    try:
        assert judge(FORMATS[name], json.loads(json.dumps(row)))
    except Reject as reason:
        assert str(reason).split(":")[0].strip()


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60) | st.text(alphabet='[]{},:" \\\n1a', max_size=40).map(str.encode),
    st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.arrow", "x.jsonl.gz", "x.json.zst", "x"]),
)
def test_any_bytes_in_any_file(content: bytes, name: str) -> None:
    _account(name, content)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(LINES, st.sampled_from([b"", b" ", b"\n"])), max_size=5), st.integers(0, 400))
def test_an_array_cut_anywhere(elements: list[tuple[bytes, bytes]], cut: int) -> None:
    whole = b"[" + b",".join([json.dumps(GOOD).encode(), *(space + e for e, space in elements)]) + b"]"
    got = _account("rows.json", whole[:cut])
    if got is not None:
        assert got == list(range(1, len(got) + 1))
