"""replay: any window comes out to the byte, and what does not is named, by step and field."""

from __future__ import annotations

import shutil
import signal

import pytest

from holdfast.errors import DataError
from holdfast.recipe import RunTable, TrainTable
from holdfast.training import replay as module
from holdfast.training.ledger import read_ledger
from toy_objective import FACTS, HELD_OUT, Toy, toy_rows, train_toy

SAID = {"eval_every": 4, "stop_on": "loss", "patience": 9, "keep_checkpoints": 3}
SETTINGS = TrainTable(batch=8, steps=24, lr=3e-3, checkpoint_every=5, warmup=3, **SAID)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "run"
    train_toy(folder, **SAID)
    return folder


def replay(folder, first, last, objective=None, **changes):
    arguments = {
        "rows": toy_rows(),
        "settings": SETTINGS,
        "run": RunTable(threads=1),
        "facts": FACTS,
        "held_out": HELD_OUT,
        **changes,
    }
    facts, held_out = arguments.pop("facts"), arguments.pop("held_out")
    return module.replay(objective or Toy(), *arguments.values(), folder, first, last, facts=facts, held_out=held_out)


@pytest.mark.parametrize(
    ("first", "last", "start"), [(1, 24, 0), (1, 1, 0), (15, 15, 0), (16, 16, 15), (17, 23, 15), (24, 24, 20)]
)
def test_a_window_comes_out_the_same(run, first, last, start):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert replay(run, first, last) == {"ok": True, "steps": last - first + 1, "from": start, "problems": []}
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before, "the folder is only read"


def test_held_out_figures_are_left_out_where_there_are_no_held_out_rows(run):
    assert replay(run, 3, 9, held_out=None)["ok"]


def test_what_does_not_come_out_is_named(run):
    class Drifting(Toy):
        step = 0

        def after_step(self, step):
            self.step = step

        def loss(self, batch):
            total, sums = super().loss(batch)
            return (total * (1 + 1e-6) if self.step + 1 >= 18 else total), sums

    said = replay(run, 16, 20, Drifting())
    assert (said["ok"], said["steps"], said["from"]) == (False, 2, 15)
    assert all(problem.startswith("step 18, step: ") for problem in said["problems"])
    assert any("step 18, step: loss in the ledger 0." in problem for problem in said["problems"])

    class Flattering(Toy):
        def figures(self, rows):
            return {**super().figures(rows), "loss": 0.0}

    (problem,) = replay(run, 16, 20, Flattering())["problems"]
    assert problem.startswith("step 16, figures: figures.loss in the ledger 0.") and problem.endswith(
        "recomputed 0.0 (0x0.0p+0)"
    )


def test_a_checkpoint_that_is_damaged_is_not_started_from(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000015" / "model.safetensors").write_bytes(b"")
    assert replay(tmp_path / "run", 17, 18) == {"ok": True, "steps": 2, "from": 0, "problems": []}


def test_why_this_environment_cannot(run, monkeypatch):
    real = module.environment
    monkeypatch.setattr(module, "environment", lambda r: {**real(r), "torch": "9.9", "cpu_capability": "NEON"})
    said = replay(run, 1, 2)
    assert (said["ok"], said["steps"], said["from"]) == (False, 0, None)
    assert len(said["problems"]) == 2 and said["problems"][0].endswith("here NEON")
    assert said["problems"][1].startswith("environment: torch was 2.") and said["problems"][1].endswith("here 9.9")


def test_threads_are_part_of_the_environment(run):
    problems = replay(run, 1, 2, run=RunTable(threads=2))["problems"]
    assert "environment: threads was 1, here 2" in problems and "another run: run.threads was 1, here 2" in problems


def test_another_run_is_not_replayed(run):
    said = replay(run, 1, 2, facts={**FACTS, "recipe": "00" * 32}, rows=toy_rows(100))
    named = [problem.split(" was ")[0] for problem in said["problems"]]
    assert named == ["another run: facts.recipe", "another run: rows.count", "another run: rows.root"]


def test_windows_that_are_not_there(run, tmp_path):
    for first, last in ((0, 3), (3, 2), (20, 25)):
        with pytest.raises(DataError, match=f"steps {first}:{last} are not all in the ledger, which has steps 1:24"):
            replay(run, first, last)
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(DataError, match="empty ledger"):
        replay(tmp_path, 1, 2)


def test_a_run_that_is_not_finished_can_be_replayed(tmp_path):
    class Interrupting(Toy):
        def after_step(self, step):
            if step == 13:
                signal.raise_signal(signal.SIGTERM)

    train_toy(tmp_path, Interrupting(), **SAID)
    assert replay(tmp_path, 12, 13) == {"ok": True, "steps": 2, "from": 10, "problems": []}
    assert [e["kind"] for e in read_ledger(tmp_path / "ledger.jsonl")[0]].count("step") == 13
