"""Files of every kind give the same rows; the real files give exact counts; memory does not grow with the file."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from holdfast.data.read import ReadRow, Share, read_files
from holdfast.data.records import Judgement

DATA = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {n}: ä, \"quoted\", {{braces}} and\nlines?", "chosen": f"yes {n} 🪨", "rejected": "no",
     "category": "even" if n % 2 == 0 else "odd", "margin": n + 0.5, "site": f"s,{n}"}
    for n in range(700)
]  # fmt: skip


def judgements(rows: list[ReadRow]) -> list[Judgement]:
    assert all(row.reason is None for row in rows)
    return [j for row in rows for j in row.judgements]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_ipc(path: Path, new: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(ROWS)
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda p: p.write_bytes(jsonl(ROWS)),
    "bom-crlf-blanks.jsonl": lambda p: p.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS).replace(b"\n", b"\r\n\r\n")),
    "no-line-feed-at-the-end.ndjson": lambda p: p.write_bytes(jsonl(ROWS)[:-1]),
    "compact.json": lambda p: p.write_text(json.dumps(ROWS, ensure_ascii=False, separators=(",", ":"))),
    "spread.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "under-a-key.json": lambda p: p.write_text(json.dumps({"version": 1, "about": {"rows": ["]}"]}, "data": ROWS})),
    "parts.json": lambda p: p.write_text(json.dumps({"train": ROWS[:500], "z": [], "test": ROWS[500:]})),
    "lines.json": lambda p: p.write_bytes(jsonl(ROWS)),
    "bom.json": lambda p: p.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()),
    "a.csv": write_csv,
    "a.tsv": lambda p: write_csv(p, "\t"),
    "bom.csv": lambda p: (write_csv(p), p.write_bytes(b"\xef\xbb\xbf" + p.read_bytes())),
    "a.parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p, row_group_size=300),
    "stream.arrow": lambda p: write_ipc(p, pa.ipc.new_stream),
    "file.arrow": lambda p: write_ipc(p, pa.ipc.new_file),
    "array-without-ending": lambda p: p.write_text(json.dumps(ROWS)),
    "lines-without-ending": lambda p: p.write_bytes(jsonl(ROWS)),
    "parquet-without-ending": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", "hidden gzip"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_judgements(tmp_path: Path, name: str, packed: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    if packed == "hidden gzip":  # compressed, and its name does not say so
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif packed:
        plain = path.read_bytes()
        half = len(plain) // 2
        pack = gzip.compress if packed == ".gz" else zstandard.compress
        path = Path(f"{path}{packed}")
        path.write_bytes(pack(plain[:half]) + pack(plain[half:]))  # two members, as `cat a.gz b.gz` makes them
    rows = list(read_files([path]))
    got = judgements(rows)
    assert [(j.prompt, j.responses, j.category, j.margin, j.extra) for j in got] == [
        (r["prompt"], (r["chosen"], r["rejected"]), r["category"], r["margin"], {"site": r["site"]}) for r in ROWS
    ]
    assert {row.file for row in rows} == {str(path)}


def test_rows_are_numbered_as_an_editor_numbers_them(tmp_path: Path) -> None:
    good = b'{"prompt": "x", "chosen": "a", "rejected": "b"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n" + good + b"\r\n  \n{\n" + good)
    got = [(r.row, r.reason is None) for r in read_files([tmp_path / "a.jsonl"])]
    assert got == [(2, True), (4, False), (5, True)]
    (tmp_path / "a.csv").write_bytes(b'prompt,chosen,rejected\n"two\nlines",a,b\n\nx,a,b\nx,a\n')
    got = [(r.row, r.reason is None) for r in read_files([tmp_path / "a.csv"])]
    assert got == [(2, True), (5, True), (6, False)]
    (tmp_path / "a.json").write_bytes(b"[\n\n" + good + b",\n1," + good + b"]")
    got = [(r.row, r.reason is None) for r in read_files([tmp_path / "a.json"])]
    assert got == [(1, True), (2, False), (3, True)]


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("name", ["a.jsonl", "compact.json", "spread.json", "under-a-key.json", "parts.json", "a.csv"])
def test_where_the_chunks_fall_does_not_matter(
    tmp_path: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_read.ROWS", ROWS[:12])
    WRITERS[name](tmp_path / name)
    whole = judgements(list(read_files([tmp_path / name])))
    monkeypatch.setattr("holdfast.data.read.CHUNK", chunk)
    assert judgements(list(read_files([tmp_path / name]))) == whole
    assert len(whole) == 12


def test_a_row_too_long_to_hold_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.data.read.MAX_ROW", 1000)
    monkeypatch.setattr("holdfast.data.read.CHUNK", 256)
    long = {**ROWS[0], "chosen": "x" * 5000}
    (tmp_path / "a.jsonl").write_bytes(jsonl([ROWS[1], long, ROWS[2]]))
    got = list(read_files([tmp_path / "a.jsonl"]))
    assert [r.row for r in got if r.reason is None] == [1, 3]
    assert got[1].reason is not None and got[1].reason.startswith("row too long")
    (tmp_path / "a.json").write_text(json.dumps([ROWS[1], long, ROWS[2]]))
    got = list(read_files([tmp_path / "a.json"]))
    assert got[0].reason is None
    assert got[1].reason is not None and got[1].reason.startswith("file breaks off: more than")
    assert len(got) == 2


def test_a_truncated_file_gives_every_row_before_the_break(tmp_path: Path) -> None:
    plain = jsonl(ROWS)
    packed = gzip.compress(plain)
    for share in (0.3, 0.6, 0.95):
        cut = packed[: int(len(packed) * share)]
        (tmp_path / "a.jsonl.gz").write_bytes(cut)
        *rows, last = read_files([tmp_path / "a.jsonl.gz"])
        unpacker = __import__("zlib").decompressobj(wbits=31)
        whole_lines = (unpacker.decompress(cut) + unpacker.flush()).count(b"\n")
        assert len(rows) == whole_lines > 0
        assert all(row.reason is None for row in rows)
        assert (last.row, last.judgements) == (whole_lines + 1, [])
        assert last.reason == "file breaks off: truncated gzip; the rest of it is not read"


def test_several_files_each_in_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_bytes(jsonl(ROWS[:2]))
    (tmp_path / "two.jsonl").write_bytes(jsonl([{"prompt": "x", "completion": "y", "label": False}]))
    rows = list(read_files([str(tmp_path / "two.jsonl"), tmp_path / "one.jsonl"]))
    assert [(Path(r.file).name, r.row, r.judgements[0].kind) for r in rows] == [
        ("two.jsonl", 1, "label"),
        ("one.jsonl", 1, "pair"),
        ("one.jsonl", 2, "pair"),
    ]


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / ".hidden.jsonl").write_bytes(b"junk")
    (tmp_path / "data" / "README.md").write_text("junk")
    (tmp_path / "data" / "dataset_infos.json").write_text("{}")
    (tmp_path / "data" / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[:3])))
    (tmp_path / "data" / "deep" / "c.csv").write_text("prompt,chosen,rejected\nx,a,b\n")
    rows = list(read_files([tmp_path / "data"]))
    assert [r.file.removeprefix(str(tmp_path)) for r in rows] == ["/data/b.jsonl.gz"] * 3 + ["/data/deep/c.csv"]
    assert len(judgements(rows)) == 4


CHAT = [
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}],
        "chosen": [
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {"a": 1}}}],
            }
        ],
        "rejected": [{"role": "assistant", "content": "No idea."}],
        "tools": [{"type": "function", "function": {"name": "now", "parameters": {"a": {"type": "integer"}}}}],
    },
    {
        "prompt": [{"role": "user", "content": "Time?", "name": "ann"}],
        "chosen": [
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"b": "x"}}}],
            }
        ],
        "rejected": [{"role": "assistant", "content": "Late."}],
    },
]


@pytest.mark.parametrize("typed", ["structs", "json"])
def test_a_datasets_folder_gives_what_its_json_lines_give(tmp_path: Path, typed: str) -> None:
    """The real `datasets` library writes; in structs it adds a null for every key that another row has."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "chat.jsonl").write_bytes(jsonl(CHAT))
    want = judgements(list(read_files([tmp_path / "chat.jsonl"])))
    if typed == "json":
        message = [{"role": datasets.Value("string"), "content": datasets.Value("string"),
                    "name": datasets.Value("string"), "tool_calls": datasets.Json()}]  # fmt: skip
        features = datasets.Features(prompt=message, chosen=message, rejected=message, tools=datasets.Json())
        rows = [{**row, **{c: [{"content": None, "name": None, "tool_calls": None, **m} for m in row[c]]
                           for c in ("prompt", "chosen", "rejected")}, "tools": row.get("tools")}
                for row in CHAT]  # fmt: skip
        made = datasets.Dataset.from_list(rows, features=features)
    else:
        made = datasets.Dataset.from_list(CHAT)
    made.save_to_disk(tmp_path / "flat", num_shards=2)
    rows = list(read_files([tmp_path / "flat"]))
    assert judgements(rows) == want
    assert [Path(r.file).name for r in rows] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    datasets.DatasetDict(train=made, test=made.select([1])).save_to_disk(tmp_path / "parts")
    rows = list(read_files([tmp_path / "parts"]))
    assert judgements(rows) == [*want, want[1]]
    assert [Path(r.file).parent.name for r in rows] == ["train", "train", "test"]
    made.to_parquet(tmp_path / "flat.parquet")
    assert judgements(list(read_files([tmp_path / "flat.parquet"]))) == want


def test_a_mapping_is_laid_over_the_columns(tmp_path: Path) -> None:
    row = {"question": "Q", "best": "a", "worst": "b", "prompt": "not this", "topic": "sea", "who": 7, "size": "0.5"}
    (tmp_path / "a.jsonl").write_bytes(jsonl([row]))
    mapping = {"prompt": "question", "chosen": "best", "rejected": "worst", "category": "topic", "annotator": "who",
               "margin": "size"}  # fmt: skip
    (got,) = judgements(list(read_files([tmp_path / "a.jsonl"], mapping=mapping)))
    assert got == Judgement(
        "pair", "Q", ("a", "b"), margin=0.5, annotator="7", category="sea", extra={"prompt": "not this"}
    )


# ----------------------------------------------------------------------------------------------------------- real files


def lines_of(name: str) -> list[bytes]:
    return gzip.decompress((DATA / name).read_bytes()).splitlines()


@real
def test_real_hh() -> None:
    """Expected reasons are worked out here with `rfind`, as people usually split these transcripts."""
    rows = [json.loads(line) for line in lines_of("hh-harmless.jsonl.gz")]
    want = []
    for row in rows:
        (before, answer), (before_too, other) = (
            (t[: (at := t.rfind("\n\nAssistant:"))], t[at + len("\n\nAssistant:") :])
            for t in (row["chosen"], row["rejected"])
        )
        if before != before_too:
            want.append("no shared prompt")
        elif not answer.strip() or not other.strip():
            want.append("empty response")
        else:
            want.append("ok" if answer != other else "identical responses")
    got = list(read_files([DATA / "hh-harmless.jsonl.gz"]))
    assert [(r.reason or "ok").split(":")[0] for r in got] == want
    assert Counter(want) == {"ok": 1792, "no shared prompt": 5, "empty response": 3}
    for row, read in zip(rows, got, strict=True):
        for (
            j
        ) in read.judgements:  # nothing is lost: the transcripts can be written again, but for a space after a colon
            for response, text in zip(j.responses, (row["chosen"], row["rejected"]), strict=True):
                says = {"user": "Human", "assistant": "Assistant"}
                again = "".join(f"\n\n{says[m['role']]}: {m['content']}" for m in [*j.prompt, *response])  # type: ignore[misc, list-item]
                assert again == text


@real
def test_real_alpaca_eval() -> None:
    rows = pq.read_table(DATA / "alpaca-eval.parquet").to_pylist()
    got = list(read_files([DATA / "alpaca-eval.parquet"]))
    want = ["identical responses" if r["output_1"] == r["output_2"] else None for r in rows]
    assert [r.reason for r in got] == want
    assert Counter(want) == {None: 14_895, "identical responses": 679}
    for row, read in zip(rows, got, strict=True):
        for j in read.judgements:
            assert j == Judgement(
                "soft",
                row["instruction"],
                (row["output_1"], row["output_2"]),
                value=2 - row["preference"],
                annotator="weighted_alpaca_eval_gpt4_turbo",
                annotator_kind="ai",
                category=row["dataset"],
                sources=("gpt4_1106_preview", row["generator_2"]),
            )


@real
def test_real_pandalm() -> None:
    rows = [json.loads(line) for line in lines_of("pandalm.jsonl.gz")]
    got = list(read_files([DATA / "pandalm.jsonl.gz"]))
    want = [None if r["response1"].strip() and r["response2"].strip() else "empty response" for r in rows]
    assert [r.reason for r in got] == want
    assert Counter(want) == {None: 945, "empty response": 54}
    assert sum(len(r.judgements) for r in got) == 3 * 945
    votes: Counter[Any] = Counter()
    for row, read in zip(rows, got, strict=True):
        for j in read.judgements:
            assert j.annotator is not None
            label = row[j.annotator]
            assert (j.kind == "tie") == (label == 0)
            assert j.responses == (
                (row["response2"], row["response1"]) if label == 2 else (row["response1"], row["response2"])
            )
            assert j.sources is not None
            assert "_".join(j.sources[::-1] if label == 2 else j.sources) == row["cmp_key"]  # type: ignore[arg-type]
            votes[j.annotator, label] += 1
    assert votes == Counter(
        (a, row[a])
        for row, w in zip(rows, want, strict=True)
        if w is None
        for a in ("annotator1", "annotator2", "annotator3")
    )


def test_texts_that_look_like_keys_are_no_keys(tmp_path: Path) -> None:
    row = {
        "prompt": 'say "no": \\',
        "chosen": ": a",
        "rejected": 'b" : c',
        "k\\": {'"': [{":": 1}]},
        "": ['":', '\\":'],
    }
    for name, text in {
        "a": json.dumps(row),
        "b": json.dumps(row, separators=(" ,\t", "\t : ")),
        "c": "[" + json.dumps(row) + "]",
    }.items():
        (tmp_path / f"{name}.json{'' if name == 'c' else 'l'}").write_text(text)
    for found in read_files([tmp_path]):
        (j,) = found.judgements
        assert j.extra == {k: row[k] for k in ("k\\", "")}


@pytest.mark.parametrize("of", [1, 2, 3])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "lines.json"])
def test_shares_make_the_whole(name: str, of: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every row in exactly one share, as without shares; files numbered alike in each."""
    monkeypatch.setattr("holdfast.data.read.CHUNK", 4096)
    text = jsonl(ROWS).replace(b"Question 41", b"Question \xff").replace(b"\n", b"\n\n", 7)
    (tmp_path / "b.jsonl").write_bytes(text[:-40])
    plain = {"a.json": json.dumps(ROWS).encode(), "a.csv": None}.get(name, text)
    if plain is None:
        write_csv(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress(plain)[:-4] if name.endswith(".gz") else plain)
    files = [tmp_path / name, tmp_path / "b.jsonl"]
    whole = list(read_files(files))
    shares = [Share(k, of) for k in range(of)]
    parts = [list(read_files(files, share=share)) for share in shares]
    assert sorted((r.file, r.row) for part in parts for r in part) == sorted((r.file, r.row) for r in whole)
    by_place = {(r.file, r.row): r for r in whole}
    assert all(by_place[r.file, r.row] == r for part in parts for r in part)
    assert all(share.files == shares[0].files for share in shares) and len(shares[0].files) == 2
    assert all(len(part) > 100 for part in parts)


# --------------------------------------------------------------------------------------------------------------- memory

MEASURE = """
import resource, sys
from holdfast.data.read import read_files
rows = sum(r.reason is None for r in read_files([sys.argv[1]]))
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.parquet.gz"]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(n: int) -> int:
        rows = [
            {"prompt": f"question {i} " * 40, "chosen": f"a {i} " * 200, "rejected": f"b {i} " * 200} for i in range(n)
        ]
        path = tmp_path / name
        plain = tmp_path / name.removesuffix(".gz").removesuffix(".zst")
        if plain.suffix == ".jsonl":
            plain.write_bytes(jsonl(rows))
        elif plain.suffix == ".json":
            plain.write_text(json.dumps(rows))
        elif plain.suffix == ".csv":
            with plain.open("w", newline="") as out:
                writer = csv.DictWriter(out, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), plain)
        if path != plain:
            path.write_bytes((gzip.compress if path.suffix == ".gz" else zstandard.compress)(plain.read_bytes()))
        done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
        count, kilobytes = map(int, done.stdout.split())
        assert count == n
        return kilobytes

    assert peak(30_000) < 1.5 * peak(3_000)
