"""The ledger: an outsider's few lines reproduce its hashes, and no change of it goes unnamed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import DataError, IntegrityError
from holdfast.training.ledger import (
    START,
    History,
    Ledger,
    better,
    check_chain,
    differences,
    exact,
    read_head,
    read_ledger,
    split_lines,
)


def write(path: Path, steps: int = 6) -> list[bytes]:
    ledger = Ledger(path)
    ledger.append("open", format="holdfast-ledger/1", facts={"beta": 0.1, "name": "Grüße"}, environment={"torch": "2"})
    for step in range(1, steps + 1):
        ledger.append("step", step=step, rows=[f"{step:064x}"], loss=1 / step)
    ledger.append("final", step=steps)
    ledger.close()
    return path.read_bytes().splitlines()


def test_a_stranger_checks_the_chain_with_a_json_library_and_sha256(tmp_path):
    lines = write(tmp_path / "ledger.jsonl")
    before = "0" * 64
    for n, line in enumerate(lines):
        entry = json.loads(line)
        said = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == said
        assert entry["prev"] == before and entry["n"] == n
        before = said
    assert read_head(tmp_path) == before


def test_floats_stand_exactly_and_nothing_else_gets_in():
    assert exact({"a": 0.1, "b": [1, 2.5, None, True, "x"], 3: (0.5,)}) == {
        "a": "0x1.999999999999ap-4",
        "b": [1, "0x1.4000000000000p+1", None, True, "x"],
        "3": ["0x1.0000000000000p-1"],
    }
    assert exact(float("nan")) == "nan"
    with pytest.raises(TypeError, match="set"):
        exact({"a": {1}})


@given(st.floats(allow_nan=False))
def test_a_float_comes_back_to_the_bit(x):
    assert float.fromhex(exact(x)) == x


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte_is_named_by_its_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    lines = write(path)
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    struck = path.read_bytes()[:at].count(b"\n")
    found, torn = split_lines(bytes(raw))
    problems = check_chain(found, "ledger.jsonl")
    if struck == len(lines) - 1 and (torn or len(found) < len(lines)):
        return  # the last line feed: the entry is torn, which verify says
    assert problems and problems[0].line == struck
    assert f"line {struck + 1}" in problems[0].where


def test_entries_removed_swapped_doubled_or_added_are_named(tmp_path):
    lines = write(tmp_path / "ledger.jsonl")
    assert check_chain(lines, "l") == []
    removed = check_chain(lines[:3] + lines[4:], "l")
    assert [(p.what, p.found, p.expected) for p in removed] == [
        ("entries are missing or out of order", "entry 4", "entry 3")
    ]
    swapped = check_chain([*lines[:3], lines[4], lines[3], *lines[5:]], "l")
    assert swapped[0].where == "l line 4 (entry 4, step 4)" and swapped[0].expected == "entry 3"
    assert check_chain([*lines[:3], lines[2], *lines[3:]], "l")[0].where.startswith("l line 4")
    assert check_chain(lines[1:], "l")[0].found == "entry 1"
    # an entry rewritten with its hash made anew: the next one gives it away
    entry = json.loads(lines[3])
    entry["rows"] = ["f" * 64]
    del entry["hash"]
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    entry["hash"] = hashlib.sha256(text.encode()).hexdigest()
    forged = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    problems = check_chain([*lines[:3], forged, *lines[4:]], "l")
    assert [(p.line, p.what) for p in problems] == [(4, "entry does not follow the one before")]
    for junk in (b"", b"[]", b"{}", b"7", b'{"n":3,"hash":[],"prev":{}}', b"\xff\xfe"):
        assert check_chain([*lines[:3], junk, *lines[4:]], "l")[0].line == 3


def test_going_on_compares_what_is_there_and_names_what_differs(tmp_path):
    path = tmp_path / "ledger.jsonl"
    write(path)
    raw, (entries, _) = path.read_bytes(), read_ledger(path)
    ledger = Ledger(path, entries, at=4)
    assert ledger.repeating
    for step in (4, 5, 6):
        ledger.append("step", step=step, rows=[f"{step:064x}"], loss=1 / step)
    ledger.append("final", step=6)
    assert not ledger.repeating and ledger.head == entries[-1]["hash"] and path.read_bytes() == raw

    ledger = Ledger(path, entries, at=5)
    with pytest.raises(IntegrityError, match=r"entry 5, step 5: .*loss: ledger 0\.2 \(0x1\.9.*\), now 0\.25 \(0x"):
        ledger.append("step", step=5, rows=[f"{5:064x}"], loss=0.25)
    assert path.read_bytes() == raw


@pytest.mark.parametrize("torn", [b'{"half', b"\0\0\0\0", b'{"a":1}', b'{"x"\0\0'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "ledger.jsonl"
    write(path)
    raw = path.read_bytes()
    path.write_bytes(raw + torn)
    entries, rest = read_ledger(path)
    assert len(entries) == 8 and rest == torn.rstrip(b"\0")
    ledger = Ledger(path, entries)
    ledger.append("more")
    lines = path.read_bytes().splitlines()
    assert path.read_bytes().startswith(raw) and len(lines) == 9 and check_chain(lines, "l") == []


def test_a_broken_chain_is_not_gone_on_with(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = write(path)
    path.write_bytes(b"\n".join([*lines[:2], *lines[3:]]) + b"\n")
    with pytest.raises(IntegrityError, match=r"line 3 \(entry 3, step 3\): entries are missing.*entry 2"):
        read_ledger(path)
    with pytest.raises(DataError, match="no ledger"):
        read_head(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "ledger.jsonl").touch()
    assert read_head(tmp_path / "empty") == START


def test_history_sets_aside_what_another_environment_takes_again():
    entries = [{"n": 0, "kind": "open", "environment": {"torch": "2"}}]
    entries += [{"kind": "step", "step": s} for s in range(1, 8)]
    entries += [{"kind": "figures", "step": s, "figures": {"loss": (0.1 * s).hex()}} for s in (0, 5)]
    entries += [{"kind": "checkpoint", "step": s, "best": False} for s in (3, 6)]
    entries += [{"kind": "environment", "step": 3, "environment": {"torch": "3"}}, {"kind": "step", "step": 4}]
    history = History.of(entries)
    assert [e["step"] for e in history.steps] == [1, 2, 3, 4]
    assert [e["step"] for e in history.figures] == [0] and [e["step"] for e in history.checkpoints] == [3]
    assert history.environment == {"torch": "3"}


def test_best_and_kept():
    history = History(open={})
    for step, value in enumerate([0.5, 0.3, float("nan"), 0.3, 0.4]):
        history.add(
            {"kind": "figures", "step": step, "figures": {"loss": value.hex(), "rewards/accuracies": value.hex()}}
        )
    assert history.best("loss")["step"] == 1, "lower is better, the earliest of equals"
    assert history.best("rewards/accuracies")["step"] == 0, "higher is better"
    assert history.best(None) is None
    for step, best in [(1, False), (1, True), (2, False), (3, False), (3, True)]:
        history.add({"kind": "checkpoint", "step": step, "best": best})
    assert [(e["step"], e["best"]) for e in history.kept(2)] == [(2, False), (3, False), (3, True)]
    assert better("eval_nll", 1.0, 2.0) and better("brier", 1.0, 2.0) and better("rewards/margins", 2.0, 1.0)
    assert not better("loss", 2.0, 2.0) and not better("rewards/margins", 2.0, 2.0)


def test_differences_name_the_place():
    a = {"settings": {"lr": (0.1).hex(), "batch": 8}, "x": [1, 2], "gone": 1}
    b = {"settings": {"lr": (0.2).hex(), "batch": 8}, "x": [1, 3], "new": None}
    assert differences(a, b) == [
        ("gone", "1", "absent"),
        ("new", "absent", "null"),
        ("settings.lr", "0.1 (0x1.999999999999ap-4)", "0.2 (0x1.999999999999ap-3)"),
        ("x", "[1,2]", "[1,3]"),
    ]
    assert differences(a, a) == []
