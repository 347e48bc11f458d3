"""Freezing: what the root depends on, worked out here a second time by hand, and what is left when it stops midway."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data import freeze as freezing
from holdfast.data import tables
from holdfast.data.dataset import verify_dataset
from holdfast.data.freeze import RowsRejected, freeze, freeze_records, write_rejects
from holdfast.data.records import Judgement, Reject, Segment
from holdfast.errors import DataError


def root_of(records: Any, **constants: int) -> str:
    """The root of these records, frozen with other bounds of memory than the usual where given."""
    folder = tempfile.mkdtemp()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(tables if hasattr(tables, name) else freezing, name, value)
            patch.setattr(freezing, "sync", lambda path: None)  # milliseconds each, and nothing here pulls the plug
            ds = freeze_records(records, Path(folder) / "ds")
        assert verify_dataset(ds.path) == []
        return ds.root
    finally:
        shutil.rmtree(folder)


# The root of a small dataset, worked out from the description alone.


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def plain(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def tree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return sha(b"\0", leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha(b"\1", tree(leaves[:k]), tree(leaves[k:]))


def test_the_root_by_hand(tmp_path: Path) -> None:
    records = [
        Judgement(
            "pair", "Why?", ("für immer", "no"), annotator="ann", sources=("m1", None), extra={"b": 1, "a": [0.5]}
        ),
        Judgement(
            "pair", "Why?", ("für immer", "no"), annotator="ann", sources=("m1", None), extra={"a": [0.5], "b": 1}
        ),
        Judgement("soft", "Why?", ("no", "für immer"), value=0.25, shown=(0, 1)),
        Judgement("score", [{"role": "user", "content": "Hi"}], ([{"role": "assistant", "content": "Ho"}],), value=3),
    ]
    why, hi = plain("Why?"), plain([{"role": "user", "content": "Hi"}])
    p_why, p_hi = sha(b"holdfast/prompt/1\0", why), sha(b"holdfast/prompt/1\0", hi)
    yes = sha(b"holdfast/response/1\0", p_why, plain("für immer"))
    no = sha(b"holdfast/response/1\0", p_why, plain("no"))
    ho = sha(b"holdfast/response/1\0", p_hi, plain([{"role": "assistant", "content": "Ho"}]))

    def judged(**said: Any) -> bytes:
        return sha(b"holdfast/judgement/1\0", plain(said))

    pair = {
        "kind": "pair",
        "prompt": p_why.hex(),
        "responses": [yes.hex(), no.hex()],
        "annotator": "ann",
        "sources": ["m1", None],
        "extra": '{"a":[0.5],"b":1}',
    }
    statements = {
        judged(**pair, copy=0): [judged(**pair, copy=0), judged(**pair, copy=1)],
    }
    soft = judged(kind="soft", prompt=p_why.hex(), responses=[yes.hex(), no.hex()], value=0.75, shown=[1, 0], copy=0)
    score = judged(kind="score", prompt=p_hi.hex(), responses=[ho.hex()], value=3.0, copy=0)
    statements |= {soft: [soft], score: [score]}
    rows = [row for first in sorted(statements) for row in statements[first]]
    tables = {
        "prompts": {"rows": 2, "root": tree(sorted([p_why, p_hi])).hex()},
        "responses": {"rows": 3, "root": tree(sorted([yes, no, ho])).hex()},
        "judgements": {"rows": 4, "root": tree(rows).hex()},
    }
    expected = sha(b"holdfast/dataset/1\0", plain({"kind": "text", "tables": tables})).hex()

    ds = freeze_records(records, tmp_path / "ds")
    assert ds.root == expected
    assert ds.row_ids == [row.hex() for row in rows]


# What content is, and what is not.

texts = st.sampled_from(["a", "b", "c", "ä ", "x\ny", "\U0001f600", '"'])
names = st.sampled_from([None, "n1", "n2"])


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    kind = draw(st.sampled_from(["pair", "tie", "soft", "ranking", "score", "label"]))
    n = {"score": 1, "label": 1}.get(kind, 2) if kind != "ranking" else draw(st.integers(2, 4))
    responses = tuple(draw(st.lists(texts, min_size=n, max_size=n, unique=True)))
    value = {
        "soft": st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
        "score": st.floats(-5, 5),
        "label": st.sampled_from([0, 1]),
    }
    return Judgement(
        kind,
        draw(st.one_of(texts, texts.map(lambda t: [{"role": "user", "content": t}])).filter(lambda p: p != "")),
        responses,
        value=draw(value[kind]) if kind in value else None,
        ranks=tuple(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))) if kind == "ranking" else None,
        annotator=draw(names),
        category=draw(names),
        shown=draw(st.one_of(st.none(), st.permutations(range(n)).map(tuple))),
        sources=draw(st.one_of(st.none(), st.lists(names, min_size=n, max_size=n).map(tuple))),
        margin=draw(st.sampled_from([None, 1.0])),
        extra=draw(st.sampled_from([None, {"k": 1, "j": [True, None]}, {"k": 2}])),
    )


def turned(j: Judgement, order: list[int]) -> Judgement:
    """The same statement with its responses named in another order; a pair's order is its meaning, and stays."""
    if j.kind == "pair":
        return j

    def turn(xs: Any) -> Any:
        return None if xs is None else tuple(xs[i] for i in order)

    value = 1 - j.value if j.kind == "soft" and order[0] != 0 and j.value is not None else j.value
    return replace(
        j, responses=turn(j.responses), ranks=turn(j.ranks), shown=turn(j.shown), sources=turn(j.sources), value=value
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(judgements(), min_size=1, max_size=12), st.data())
def test_neither_row_order_nor_orientation_nor_chunks_are_content(said: list[Judgement], data: st.DataObject) -> None:
    again = [turned(j, data.draw(st.permutations(range(len(j.responses))))) for j in data.draw(st.permutations(said))]
    small = {"_SPILL": 1, "_BLOCK": data.draw(st.sampled_from([1, 400])), "_FAN_IN": 2, "_GROUP_ROWS": 3}
    assert root_of(said) == root_of(again, **small)


@settings(max_examples=25, deadline=None)
@given(st.lists(judgements(), min_size=1, max_size=6), st.data())
def test_anything_else_is_content(said: list[Judgement], data: st.DataObject) -> None:
    before = root_of(said)
    at = data.draw(st.integers(0, len(said) - 1))
    j = said[at]
    other: list[Judgement] = [
        replace(j, prompt="another prompt"),
        replace(j, responses=("another response", *j.responses[1:])),
        replace(j, annotator="somebody else"),
        replace(j, annotator_kind="rule"),
        replace(j, category="elsewhere"),
        replace(j, rubric="kindness"),
        replace(j, licence="MIT"),
        replace(j, margin=7.5),
        replace(j, extra={"k": 3}),
        replace(j, sources=("s9",) * len(j.responses)),
    ]
    if j.kind == "pair":
        other.append(replace(j, responses=j.responses[::-1], shown=None, sources=None))
    if j.kind == "ranking" and j.ranks is not None and len(set(j.ranks)) > 1:
        other.append(replace(j, ranks=tuple(max(j.ranks) - r for r in j.ranks), shown=None, sources=None))
    changed = [*said[:at], data.draw(st.sampled_from(other)), *said[at + 1 :]]
    assert root_of(changed) != before
    assert root_of([*said, j]) != before  # saying it once more is saying more


def test_ranks_count_by_their_order_alone() -> None:
    def ranking(*ranks: int) -> str:
        return root_of([Judgement("ranking", "p", ("a", "b", "c"), ranks=ranks)])

    assert ranking(1, 2, 2) == ranking(0, 1, 1) == ranking(3, 9, 9)
    assert len({ranking(0, 1, 1), ranking(0, 0, 1), ranking(0, 1, 2), ranking(0, 0, 0)}) == 4


def test_rankings_are_stored_best_first_with_what_belongs_to_each(tmp_path: Path) -> None:
    said = Judgement("ranking", "p", ("a", "b", "c"), ranks=(7, 2, 5), shown=(0, 1, 2), sources=("A", "B", None))
    ds = freeze_records([said], tmp_path / "ds")
    row = ds.judgements.to_pylist()[0]
    assert ds.response_contents(ds.responses_of[0]) == ["b", "c", "a"]
    assert (row["ranks"], row["shown"], row["sources"]) == ([0, 1, 2], [1, 2, 0], ["B", None, "A"])


def test_copies_are_counted_apart_and_keep_their_origins(tmp_path: Path) -> None:
    same, other = Judgement("tie", "p", ("a", "b")), Judgement("tie", "p", ("a", "c"))
    records = [(same, "x.jsonl", 1), (other, "x.jsonl", 2), (replace(same, responses=("b", "a")), "y.jsonl", 1)]
    ds = freeze_records(records, tmp_path / "ds")
    assert ds.n_judgements == 3 and ds.n_responses == 3
    copies = {(i, c): ds.origins(i) for i, c in enumerate(ds.column("copy"))}
    assert sorted(c for _, c in copies) == [0, 0, 1]
    both = [origin for (i, _), origin in copies.items() if set(ds.response_contents(ds.responses_of[i])) == {"a", "b"}]
    assert both == [[("x.jsonl", 1)], [("y.jsonl", 1)]]
    assert len(set(ds.row_ids)) == 3


def test_many_copies_of_one_statement_over_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_SPILL": 5000, "_BLOCK": 600, "_FAN_IN": 3}.items():
        monkeypatch.setattr(tables if hasattr(tables, name) else freezing, name, value)
    records = [Judgement("pair", "p", ("a", "b" if i % 10 else "c")) for i in range(200)]
    ds = freeze_records(records, tmp_path / "ds")
    copies: dict[int, list[int]] = {}
    for responses, copy in zip(ds.responses_of, ds.column("copy"), strict=True):
        copies.setdefault(int(responses[1]), []).append(copy)
    assert sorted(copies.values(), key=len) == [list(range(20)), list(range(180))]
    assert sorted(row for i in range(200) for _, row in ds.origins(i)) == list(range(200))
    assert verify_dataset(ds.path) == []


def test_how_the_rows_are_held_leaves_no_trace_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs or one, small blocks or large: the same bytes; pages of parquet (1 MB) and copies' origins among them."""
    draw = random.Random(1)
    texts = [f"{i} " + "words " * draw.randrange(3000) for i in range(300)]
    records = [(Judgement("pair", f"p{i % 3}", (texts[i % 300], "no")), "in.jsonl", i) for i in range(900)]
    freeze_records(records, tmp_path / "whole")
    for name, value in {"_SPILL": 100_000, "_BLOCK": 30_000, "_FAN_IN": 3}.items():
        monkeypatch.setattr(tables if hasattr(tables, name) else freezing, name, value)
    ds = freeze_records(records, tmp_path / "pieces")
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "pieces" / file.name).read_bytes(), file.name
    copies: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, responses) in enumerate(zip(ds.prompt_of, ds.responses_of, strict=True)):
        copies.setdefault((prompt, *responses), []).append(ds.origins(i)[0][1])
    assert max(map(len, copies.values())) > 1
    assert all(rows == sorted(rows) for rows in copies.values())  # copy 0 is the one that came first


def test_a_row_that_json_cannot_carry_leaves_nothing_of_itself(tmp_path: Path) -> None:
    """No prompt or answer of a row that is refused half-way, also where an accepted one shares its texts."""
    odd = Judgement("pair", "q", ("a", "b"), extra={"when": object()})
    with freezing._Freezer(tmp_path / "ds") as work:
        work.rows.add([Judgement("pair", "p", ("a", "b"))], "x", 1)
        for said in (
            [odd],
            [Judgement("pair", "r", ("a", "b")), odd],
            [replace(odd, prompt="p", responses=("a", "c"))],
        ):
            with pytest.raises(Reject, match="cannot be written as JSON"):
                work.rows.add(said, "x", 2)
        work.rows.add([Judgement("pair", "p", ("b", "d")), Judgement("pair", "q", ("a", "b"))], "x", 3)
        ds = work.finish()
    assert ds.root == root_of(
        [Judgement("pair", "p", ("a", "b")), Judgement("pair", "p", ("b", "d")), Judgement("pair", "q", ("a", "b"))]
    )
    assert (ds.n_prompts, ds.n_responses) == (2, 5)


def test_freezing_does_not_import_pandas(tmp_path: Path) -> None:
    """pyarrow does, at the first value of Python's that it is given, and takes longer for it than most files do."""
    program = (
        "import sys; from pathlib import Path; from holdfast.data.freeze import freeze; "
        "freeze(sys.argv[1], sys.argv[2], on_error='skip'); assert 'pandas' not in sys.modules"
    )
    said = [{**row, "annotator": "a", "shown": [0, 1]} for row in rows(3)]
    file = write(tmp_path / "in.jsonl", [*said, *said, *BAD])
    subprocess.run([sys.executable, "-c", program, str(file), str(tmp_path / "ds")], check=True)


def test_segments(tmp_path: Path) -> None:
    a, b = Segment("e1", 0, 5), Segment("e2", 10, 5)
    ds = freeze_records(
        [Judgement("pair", None, (a, b)), Judgement("tie", None, (a, Segment("e1", 3, 5)))], tmp_path / "ds"
    )
    assert (ds.kind, ds.n_prompts, ds.n_responses) == ("segments", 1, 3)
    assert ds.prompt_contents() == [None]
    pair = ds.column("kind").index("pair")
    assert ds.response_contents(ds.responses_of[pair]) == [a, b]
    assert verify_dataset(ds.path) == []
    with pytest.raises(DataError, match=r"records, row 1: segments and text cannot be one dataset"):
        freeze_records([Judgement("pair", None, (a, b)), Judgement("pair", "p", ("a", "b"))], tmp_path / "mixed")


# Files, rejects, and what is in the way.


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(start, start + n)]


def write(path: Path, said: list[Any]) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in said)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_one_file_or_three_in_any_order(tmp_path: Path) -> None:
    said = rows(20)
    whole = freeze(write(tmp_path / "all.jsonl", said), tmp_path / "a")
    random.Random(1).shuffle(said)
    parts = [write(tmp_path / f"{i}.jsonl{'.gz' if i else ''}", said[i::3]) for i in range(3)]
    split = freeze(parts, tmp_path / "b")
    assert whole.root == split.root
    assert (split.accepted, split.rejected, len(split.rejects)) == (20, 0, 0)
    by_name = {Path(f["name"]).name: f for f in split.dataset.manifest["files"]}
    for part in parts:
        assert by_name[part.name]["sha256"] == hashlib.sha256(part.read_bytes()).hexdigest()
    assert sum(f["rows"] for f in by_name.values()) == 20
    named = {origin for i in range(20) for origin, _ in split.dataset.origins(i)}
    assert {Path(n).name for n in named} == {p.name for p in parts}


BAD = [
    {"prompt": "q", "chosen": "same", "rejected": "same"},
    '{"prompt": "q", "chosen": ',
    {"prompt": "q", "chosen": "", "rejected": "x"},
]


def test_stop_lists_everything_and_freezes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [*rows(3), *BAD, *rows(2, 3)])
    with pytest.raises(RowsRejected, match="3 of 8 input rows were rejected; nothing was frozen") as stopped:
        freeze(file, tmp_path / "ds")
    message, rejects = str(stopped.value), list(stopped.value.rejects)
    assert len(rejects) == len(stopped.value.rejects) == 3 and stopped.value.accepted == 5
    assert all(r["reason"] in message for r in rejects)
    assert "1 x identical responses" in message
    assert str(tmp_path / "ds.rejects.jsonl") in message
    assert [json.loads(line) for line in (tmp_path / "ds.rejects.jsonl").open()] == rejects
    assert stopped.value.rejects[-1] == rejects[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ds.rejects.jsonl", "in.jsonl"]
    with pytest.raises(DataError):  # skipping everything leaves nothing to freeze
        freeze(write(tmp_path / "bad.jsonl", BAD[:1]), tmp_path / "ds", format=None, on_error="skip")


def test_skip_freezes_the_others_and_keeps_the_rejects(tmp_path: Path) -> None:
    clean = freeze(write(tmp_path / "clean.jsonl", rows(5)), tmp_path / "clean")
    file = write(tmp_path / "in.jsonl", [*rows(3), *BAD, *rows(2, 3)])
    with pytest.raises(RowsRejected):
        freeze(file, tmp_path / "ds")
    frozen = freeze(file, tmp_path / "ds", on_error="skip")
    assert (frozen.accepted, frozen.rejected, frozen.root) == (5, 3, clean.root)
    kept = [json.loads(line) for line in (tmp_path / "ds" / "rejects.jsonl").open()]
    assert kept == list(frozen.rejects) and {r["row"] for r in kept} == {4, 5, 6}
    assert frozen.dataset.manifest["rejects"] == 3
    assert not (tmp_path / "ds.rejects.jsonl").exists()  # the earlier attempt's list is out of date
    again = freeze(
        file, tmp_path / "clean", on_error="skip"
    )  # same content into a folder that has it, but other rejects
    assert again.root == clean.root and list(again.rejects) == list(frozen.rejects)
    assert (tmp_path / "clean" / "rejects.jsonl").read_bytes() == b""


def test_defaults_fill_only_what_is_not_said(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", rows(2))
    ds = freeze(file, tmp_path / "ds", annotator="crowd", annotator_kind="human", licence="MIT").dataset
    assert ds.column("annotator") == ["crowd"] * 2 and ds.column("licence") == ["MIT"] * 2
    assert ds.column("annotator_kind") == ["human"] * 2


def test_the_same_again_is_nothing_new_and_nothing_is_overwritten(tmp_path: Path) -> None:
    said = [Judgement("pair", "p", ("a", "b"))]
    out = tmp_path / "deep" / "ds"
    first = freeze_records(said, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert freeze_records(said, out).root == first.root
    with pytest.raises(DataError, match=f"{out} holds another dataset \\({first.root[:12]}"):
        freeze_records([Judgement("pair", "p", ("b", "a"))], out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / "responses.parquet").write_bytes(before["responses.parquet"].replace(b'"b"', b'"c"'))
    with pytest.raises(DataError, match=r"damaged \(responses.parquet, row"):
        freeze_records(said, out)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds other files"):
        freeze_records(said, full)
    with pytest.raises(DataError, match="is a file"):
        freeze_records(said, full / "thesis.tex")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert freeze_records(said, empty).root == first.root


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "nothing to freeze"),
        ([Judgement("pair", "p", ("a", "a"))], "record 0: identical responses"),
        ([Judgement("pair", "p", ("a", "b")), Judgement("soft", "p", ("a", "b"), value=float("nan"))], "record 1: "),
        ([Judgement("pair", "p", ("a", "\ud800"))], "record 0: .*surrogate"),
        ([Judgement("pair", "p", ("a", "b"), extra={"n": 2**70})], "record 0: "),
    ],
)
def test_what_cannot_be_frozen(said: list[Judgement], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        freeze_records(said, tmp_path / "ds")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", rows(1))
    with pytest.raises(DataError, match="on_error = 'ignore'"):
        freeze(file, tmp_path / "ds", on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="every judgement: bad annotator kind: 'robot'"):
        freeze(file, tmp_path / "ds", annotator_kind="robot")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no files"):
        freeze([], tmp_path / "ds")
    with pytest.raises(DataError, match=r"no\.jsonl: no such file"):
        freeze(tmp_path / "no.jsonl", tmp_path / "ds")
    with pytest.raises(DataError, match="named twice"):
        freeze([file, tmp_path / "." / "in.jsonl"], tmp_path / "ds")


def test_a_reject_may_quote_what_is_not_text(tmp_path: Path) -> None:
    assert write_rejects([("a", 1, "bad \udcff byte"), ("b", 2, "dull")], tmp_path / "r") == 2
    lines = [json.loads(line) for line in (tmp_path / "r").open()]
    assert [(r["file"], r["row"]) for r in lines] == [("a", 1), ("b", 2)]


# Several processes.


def frozen_by(of: int, files: list[Path], out: Path, **constants: int) -> Any:
    """What freezing these files with so many processes gives, and what it leaves in the folder `out` is in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freezing, "_processes", lambda paths: of)
        patch.setattr(freezing, "sync", lambda path: None)
        for name, value in constants.items():
            patch.setattr(f"holdfast.data.{'read' if name in ('CHUNK', 'SAMPLE') else 'freeze'}.{name}", value)
        try:
            frozen = freeze(files, out, on_error="skip")
            said: Any = (frozen.accepted, frozen.rejected, frozen.root, list(frozen.rejects.by_reason.items()))
        except DataError as problem:
            said = str(problem)
    found = {p.relative_to(out.parent): p.read_bytes() for p in sorted(out.parent.rglob("*")) if p.is_file()}
    shutil.rmtree(out.parent)
    assert not multiprocessing.active_children()
    return said, found


good_lines = st.builds(
    lambda p, c, r, a: json.dumps({"prompt": f"p{p}", "chosen": f"yes {c}", "rejected": f"no {r}", "annotator": a}),
    st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["n1", None]),
)  # fmt: skip
bad_lines = st.sampled_from(
    [json.dumps(BAD[0]), str(BAD[1]), json.dumps(BAD[2]), "", "[1]", '{"prompt": "q", "prompt": "r"}', "\udcff"]
)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_how_many_processes_leaves_no_trace(data: st.DataObject) -> None:
    """Files of good, bad and repeated rows, whole or broken off: the same bytes in every file, the same rejects in the
    same order, the same words about what cannot be frozen at all.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        files = []
        for n in range(data.draw(st.integers(1, 2))):
            name = data.draw(st.sampled_from(["jsonl", "jsonl.gz", "json", "csv"]))
            lines = data.draw(st.lists(st.one_of(good_lines, good_lines, bad_lines), max_size=25))
            text = "\n".join(lines).encode("utf-8", "surrogateescape")
            if name == "json":
                text = b"[" + b",".join(line for line in text.split(b"\n") if line) + b"]"
            elif name == "csv":
                text = b"prompt,chosen,rejected\n" + text.replace(b'"', b"").replace(b"{", b"").replace(b"}", b"")
            elif name == "jsonl.gz":
                text = gzip.compress(text)[: -data.draw(st.sampled_from([1, 6, 40])) or None]
            files.append(folder / f"{n}.{name}")
            files[-1].write_bytes(text)
        constants = {
            "CHUNK": data.draw(st.sampled_from([64, 300])),
            "SAMPLE": data.draw(st.sampled_from([1, 3])),
            "_SPILL": data.draw(st.sampled_from([1, 4000, 1 << 20])),
        }
        alone = frozen_by(1, files, folder / "out" / "ds", **constants)
        for of in (2, 3):
            assert frozen_by(of, files, folder / "out" / "ds", **constants) == alone
    finally:
        shutil.rmtree(folder)


def many(path: Path) -> Path:
    return write(path, [*rows(300), *BAD, *rows(300, 200), *BAD])


def test_rows_divided_among_processes(tmp_path: Path) -> None:
    """Enough rows that each has some of every kind; and what cannot be one dataset is named as one process names it."""
    files = [many(tmp_path / "a.jsonl"), many(tmp_path / "b.jsonl.gz")]
    alone = frozen_by(1, files, tmp_path / "o" / "ds")
    assert alone[0][:2] == (1200, 12)
    for of in (2, 3):
        with pytest.MonkeyPatch.context() as patch:
            told: list[int] = []
            hear = freezing._Freezer._hear

            def listen(self: Any, helper: Any, pipe: Any, told: list[int] = told, hear: Any = hear) -> Any:
                said = hear(self, helper, pipe)
                if isinstance(said, freezing._Report):
                    told.append(said.accepted)
                return said

            patch.setattr(freezing._Freezer, "_hear", listen)
            assert frozen_by(of, files, tmp_path / "o" / "ds", CHUNK=4096) == alone
            assert len(told) == of - 1 and all(n > 100 for n in told)  # not one that does it all
    segment = {"kind": "pair", "responses": [{"episode": e, "start": 0, "length": 5} for e in ("e1", "e2")]}
    text = {"kind": "pair", "prompt": "q", "responses": ["a", "b"]}
    mixed = write(tmp_path / "mixed.jsonl", [text] * 40 + [segment] * 40)
    said, left = frozen_by(1, [mixed], tmp_path / "o" / "ds")
    assert said == f"{mixed}, row 41: segments and text cannot be one dataset; freeze them apart" and not left
    for of in (2, 3):
        assert frozen_by(of, [mixed], tmp_path / "o" / "ds", CHUNK=256, SAMPLE=2) == (said, left)


def test_a_process_that_ends_ends_the_freeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, out of disk, or interrupted by the user: a clear error, no process and no file left behind."""
    file = many(tmp_path / "in.jsonl")
    spill, here = freezing._Rows.spill, os.getpid()

    def killed(self: Any, keep: Any = ()) -> None:
        if self.share.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        spill(self, keep)

    def full(self: Any, keep: Any = ()) -> None:
        if os.getpid() != here:
            raise OSError(errno.ENOSPC, "No space left on device")
        spill(self, keep)

    def interrupted(self: Any, keep: Any = ()) -> None:
        if os.getpid() == here:
            raise KeyboardInterrupt
        time.sleep(60)

    monkeypatch.setattr(freezing, "_processes", lambda paths: 3)
    for fault, kind, words in (
        (killed, DataError, rf"cannot freeze into {tmp_path}/ds: a process that read rows .* ended with status -9"),
        (full, DataError, f"cannot freeze into {tmp_path}/ds: .*No space left"),
        (interrupted, KeyboardInterrupt, None),
    ):
        monkeypatch.setattr(freezing._Rows, "spill", fault)
        with pytest.raises(kind, match=words):
            freeze(file, tmp_path / "ds", on_error="skip")
        assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
        assert not multiprocessing.active_children()


def test_when_one_process_freezes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(freezing, "_FORKLESS", {"no_such_module"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    file = many(tmp_path / "in.jsonl")
    assert freezing._processes([file]) == 1
    monkeypatch.setattr(freezing, "_ALONE", file.stat().st_size)
    assert freezing._processes([file]) == freezing._processes([tmp_path]) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert freezing._processes([file]) == 4
    with monkeypatch.context() as patch:
        patch.setattr(threading, "active_count", lambda: 2)
        assert freezing._processes([file]) == 1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "no_such_module", sys)
        assert freezing._processes([file]) == 1


TOGETHER = """
import os, sys
from holdfast.data import freeze as freezing
freezing._processes = lambda paths: 3
spill = freezing._Rows.spill
def spilled(self, keep=()):
    os.write(1, b"%d\\n" % os.getpid())  # whole: three processes write to one pipe
    import time; time.sleep(60)
freezing._Rows.spill = spilled
freezing.freeze(sys.argv[1], sys.argv[2], on_error="skip")
"""


def test_no_process_outlives_the_one_that_freezes(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", TOGETHER, str(many(tmp_path / "in.jsonl")), str(tmp_path / "ds")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    there = {int(child.stdout.readline()) for _ in range(3)}
    assert child.pid in there and len(there) == 3
    child.kill()
    child.wait()
    since = time.monotonic()
    assert child.stdout.read() == b"" and time.monotonic() - since < 30  # it ends when the last of them is gone
    child.stdout.close()
    freeze(tmp_path / "in.jsonl", tmp_path / "ds", on_error="skip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ds", "in.jsonl"]


# Stopped in the middle.


def test_interrupted_at_any_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [Judgement("pair", f"p{i}", ("a", "b")) for i in range(5)]
    calls = 0

    def sync(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(freezing, "sync", sync)
    stop = 0
    freeze_records(said, tmp_path / "whole")
    n = calls
    assert n >= 7
    shutil.rmtree(tmp_path / "whole")
    for at in range(1, n):  # the last one follows the renaming: there the dataset stands
        stop, calls = at, 0
        with pytest.raises(KeyboardInterrupt):
            freeze_records(said, tmp_path / "ds")
        assert list(tmp_path.iterdir()) == []


FREEZE = """
import sys
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
print("ready", flush=True)
freeze_records((Judgement("pair", f"question {i}", ("yes " * 30, "no " * 30)) for i in range(3000)), sys.argv[1])
"""


@pytest.mark.slow
def test_killed_at_any_moment_no_half_dataset_opens(tmp_path: Path) -> None:
    out = tmp_path / "ds"

    def run(seconds: float | None) -> float:
        """Freeze in another process, killed after so many seconds; how long it ran."""
        child = subprocess.Popen([sys.executable, "-c", FREEZE, str(out)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        start = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        return time.monotonic() - start

    whole = run(None)
    assert verify_dataset(out) == []
    draw, opened = random.Random(3), 0
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        run(draw.uniform(0, 1.2 * whole))
        if out.exists():
            assert verify_dataset(out) == []
            opened += 1
    assert opened < 20
    shutil.rmtree(out, ignore_errors=True)
    freeze_records([Judgement("pair", "p", ("a", "b"))], out)
    assert [p.name for p in tmp_path.iterdir()] == ["ds"]  # what the killed ones left is swept away


PEAK = """
import random, resource, sys
from pathlib import Path
from holdfast.data.freeze import freeze
out, files = Path(sys.argv[1]), sys.argv[2:]
freeze(files, out)
print(sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Ten times the input in at most 1.5 times the memory: 20,000 and 200,000 rows of about a kilobyte."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    peak = {}
    for n in (20_000, 200_000):
        draw, file = random.Random(n), tmp_path / f"{n}.jsonl"
        with file.open("w") as out:
            for i in range(n):
                text = " ".join(draw.choices(words, k=60))
                out.write(
                    json.dumps({"prompt": f"{i // 2} {text}", "chosen": f"{i} {text}", "rejected": f"{text} {i}"})
                    + "\n"
                )
        run = [sys.executable, "-c", PEAK, str(tmp_path / f"ds{n}"), str(file)]
        peak[n] = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert peak[200_000] <= 1.5 * peak[20_000], peak
