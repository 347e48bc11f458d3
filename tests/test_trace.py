"""trace says no as clearly as yes. (The way both ways down to file and line is in test_verify, on its dataset.)"""

from __future__ import annotations

import orjson
import pytest

from holdfast.errors import DataError
from holdfast.training.objective import Rows
from holdfast.training.trace import trace_row, trace_step
from toy_objective import row_id, toy_rows, train_toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "run"
    rows = toy_rows(100)
    ids = ["ab" + "0" * 61 + "1", "ab" + "0" * 61 + "2", *rows.ids[2:]]
    train_toy(folder, rows=Rows(ids, rows.group, rows.index), steps=9)
    left_out = {"row": "cd" * 32, "reason": "the response alone is too long", "origins": [["in.jsonl", 4]]}
    (folder / "left_out.jsonl").write_bytes(orjson.dumps(left_out) + b"\n")
    return folder


def test_a_row_is_named_by_its_first_characters(run):
    assert trace_row(run, row_id(50)[:10].upper())["row"] == row_id(50)
    assert trace_row(run, "ab" + "0" * 61 + "2")["row"].endswith("2")
    with pytest.raises(DataError, match="2 rows start with 'ab00'"):
        trace_row(run, "ab00")
    with pytest.raises(DataError, match="no row that starts with 'zz'"):
        trace_row(run, "zz")
    with pytest.raises(DataError, match="give more characters|no row"):
        trace_row(run, "")


def test_a_row_left_out_says_why(run):
    with pytest.raises(DataError, match=r"row cdcdcdcdcdcdcdcd\.\. was left out: the response alone is too long"):
        trace_row(run, "cdcd")


def test_rows_not_yet_used_have_no_step(run):
    steps = [len(trace_row(run, row)["steps"]) for row in [row_id(i) for i in range(2, 100)]]
    assert set(steps) == {0, 1} and 70 <= sum(steps) <= 72  # 9 steps of 8, of 100 rows


def test_a_step_without_its_dataset_still_has_its_rows(run):
    said = trace_step(run, 3)
    assert len(said["rows"]) == 8 and set(said["rows"][0]) == {"id"} and "no annotators and files" in said["note"]
    with pytest.raises(DataError):
        trace_step(run, 3, dataset=run)
    for step in (0, 10):
        with pytest.raises(DataError, match=f"step {step} is not in the ledger, which has steps 1 to 9"):
            trace_step(run, step)


def test_what_is_no_run(tmp_path):
    for call in (lambda: trace_row(tmp_path, "ab"), lambda: trace_step(tmp_path, 1)):
        with pytest.raises(DataError, match=r"no run: it has no ledger\.jsonl"):
            call()
