"""Flip any one byte of any file of a dataset: verify names the file, and in a content table the row."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from holdfast.data import tables
from holdfast.data.dataset import CONTENT, Dataset, open_dataset, verify_dataset
from holdfast.data.freeze import freeze
from holdfast.errors import IntegrityError

TRIES = 20


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Texts of all lengths, and a reject; more than one row group in each content table."""
    folder = tmp_path_factory.mktemp("damage")
    draw = random.Random(5)

    def text() -> str:
        return "".join(draw.choices("abc de\u00e9", k=draw.choice([1, 10, 300])))

    lines = ['{"prompt": "p", "chosen": "same", "rejected": "same"}\n']
    for i in range(230):
        extra = f', "source": "s{i % 3}"' if i % 2 else ""
        lines.append(f'{{"prompt": "{i} {text()}", "chosen": "{i} {text()}", "rejected": "{text()} {i}"{extra}}}\n')
    (folder / "in.jsonl").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_GROUP_ROWS", 100)
        return freeze(folder / "in.jsonl", folder / "ds", on_error="skip", annotator="ann").dataset


def flip(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def first_changed_row(good: Path, damaged: Path) -> int | None:
    """An oracle that knows no digest: the first row that reads otherwise than before, None if none does or none can."""
    try:
        before, after = pq.read_table(good).to_pydict(), pq.read_table(damaged).to_pydict()
        return min(
            (i for name in before for i, (a, b) in enumerate(zip(before[name], after[name], strict=True)) if a != b),
            default=None,
        )
    except Exception:
        return None


@pytest.mark.parametrize(
    "name",
    ["prompts.parquet", "responses.parquet", "judgements.parquet", "origins.parquet", "rejects.jsonl", "manifest.json"],
)
def test_any_flipped_byte_is_named(ds: Dataset, name: str, tmp_path: Path) -> None:
    path = ds.path / name
    raw = path.read_bytes()
    (tmp_path / "good.parquet").write_bytes(raw)
    draw = random.Random(name)
    rows_named = 0
    # anywhere in the file, and in a table's footer and magic numbers besides
    places = [draw.randrange(len(raw)) for _ in range(TRIES)] + [
        0,
        len(raw) - 1,
        max(0, len(raw) - draw.randrange(9, 400)),
    ]
    try:
        for at in places:
            path.write_bytes(flip(raw, at, draw.randrange(8)))
            problems = verify_dataset(ds.path)
            assert problems, f"byte {at} of {name} was flipped unseen"
            assert all(p.where.split(",")[0] == name for p in problems), (at, problems)
            truth = (
                first_changed_row(tmp_path / "good.parquet", path) if name.removesuffix(".parquet") in CONTENT else None
            )
            if truth is not None:
                assert f"row {truth}" in problems[0].where.replace(" (", ",").split(", ")[1].split(",")[0]
                rows_named += 1
            with pytest.raises(IntegrityError, match=name):
                open_dataset(ds.path)
    finally:
        path.write_bytes(raw)
    assert rows_named >= (TRIES // 2 if name.removesuffix(".parquet") in CONTENT else 0)
    assert verify_dataset(ds.path) == []


@pytest.mark.parametrize("table", ["prompts", "responses"])
def test_a_flipped_text_names_its_row(ds: Dataset, table: str) -> None:
    """By construction: the byte belongs to a known row's text, or to the length that stands before it."""
    path = ds.path / f"{table}.parquet"
    raw = path.read_bytes()
    texts = pq.read_table(path, columns=["content"])["content"].to_pylist()
    draw = random.Random(table)
    try:
        for _ in range(TRIES):
            row = draw.randrange(len(texts))
            text = texts[row].encode()
            at = raw.index(len(text).to_bytes(4, "little") + text)
            for place in (at + draw.randrange(4), at + 4 + draw.randrange(len(text))):
                path.write_bytes(flip(raw, place, draw.randrange(8)))
                where = verify_dataset(ds.path)[0].where
                assert where == f"{table}.parquet, row {row}" or where.startswith(f"{table}.parquet, row {row} ("), (
                    where
                )
    finally:
        path.write_bytes(raw)


def test_a_flipped_label_names_its_judgement(ds: Dataset) -> None:
    """Whoever turns a preference round (the winner's digest for the loser's) is caught at that row."""
    path = ds.path / "judgements.parquet"
    raw = path.read_bytes()
    try:
        for row in random.Random(1).sample(range(ds.n_judgements), 5):
            winner, loser = (bytes.fromhex(ds.response_id(r)) for r in ds.responses_of[row])
            assert raw.count(winner + loser) == 1
            path.write_bytes(raw.replace(winner + loser, loser + winner))
            [problem] = verify_dataset(ds.path)
            assert problem.where == f"judgements.parquet, row {row}"
            assert problem.expected == ds.row_id(row)
    finally:
        path.write_bytes(raw)


def test_a_file_cut_short_or_emptied_is_named(ds: Dataset) -> None:
    for path in sorted(ds.path.iterdir()):
        raw = path.read_bytes()
        try:
            for cut in (raw[: len(raw) // 2], raw[:-1], b"", raw + b"x"):
                path.write_bytes(cut)
                assert {p.where.split(",")[0] for p in verify_dataset(ds.path)} == {path.name}
        finally:
            path.write_bytes(raw)
