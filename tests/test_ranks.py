"""Several processes are one run: rows divided, gradients summed, one ledger; and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.recipe import RunTable, TrainTable
from holdfast.training.checkpoint import file_digests
from holdfast.training.fit import Trainer
from holdfast.training.ledger import History, read_ledger
from holdfast.training.ranks import Ranks, Several, divide, here, together
from holdfast.training.verify import verify_run
from ranks_worker import run
from toy_objective import Toy, toy_rows

HERE = Path(__file__).parent


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_ledger(folder / "ledger.jsonl")[0] if e["kind"] == kind]


def losses(folder: Path) -> list[float]:
    """Of the steps that stand: where another number of processes went on, steps before that are set aside."""
    return [float.fromhex(e["loss"]) for e in History.of(read_ledger(folder / "ledger.jsonl")[0]).steps]


def processes(world: int, *command: str, **environment: str) -> list[subprocess.Popen[str]]:
    """As torchrun starts them, without an agent that would end the others when one dies."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **said, "RANK": str(r), "LOCAL_RANK": str(r), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]


def all_well(started: list[subprocess.Popen[str]], seconds: float = 240) -> list[str]:
    """What each printed. Whatever happens, none is left behind."""
    try:
        said = [p.communicate(timeout=seconds) for p in started]
    finally:
        for p in started:
            p.kill()
    assert [p.returncode for p in started] == [0] * len(started), "\n".join(err[-3000:] for _, err in said)
    return [out for out, _ in said]


def train_toys(folder: Path, world: int, parallel: str | None, *runs: dict[str, Any]) -> None:
    asked = {"parallel": parallel, "runs": list(runs)}
    if world == 1:
        run(folder, asked)
    else:
        all_well(processes(world, str(HERE / "ranks_worker.py"), str(folder), json.dumps(asked)))


@given(
    said=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), min_size=1, max_size=40),
    world=st.integers(1, 9),
    even=st.booleans(),
)
def test_rows_are_divided_and_none_is_lost(said, world, even):
    group, work = np.array(said).T
    work = np.ones_like(work) if even else work
    rows = np.arange(len(group)) * 7 + 3
    shares = divide(rows, group, work, world)
    assert len(shares) == world
    assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
    ideal = work.sum() / world
    of_row = dict(zip(rows.tolist(), zip(group.tolist(), work.tolist(), strict=True), strict=True))
    assert max(sum(of_row[r][1] for r in share.tolist()) for share in shares) <= 2 * ideal + work.max()
    if even and len(set(group.tolist())) == len(group):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for g in set(group.tolist()):
        on = [i for i, share in enumerate(shares) if g in {of_row[r][0] for r in share.tolist()}]
        assert len(on) == 1 or work[group == g].sum() > ideal - 1e-9, "a group smaller than a share stays whole"
    assert [s.tolist() for s in divide(rows, group, work, world)] == [s.tolist() for s in shares]


def test_a_division_by_hand():
    rows, group = np.array([10, 11, 12, 13, 14, 15]), np.array([5, 2, 5, 2, 8, 5])
    # In groups, by their first row: 10 12 15 | 11 13 | 14.
    even, long_last = np.ones(6), np.array([1, 1, 1, 1, 20, 1])

    def divided(work: np.ndarray, world: int, n: int = 6) -> list[list[int]]:
        return [share.tolist() for share in divide(rows[:n], group[:n], work[:n], world)]

    assert divided(even, 2) == [[10, 12, 15], [11, 13, 14]]
    assert divided(even, 3) == [[10, 12, 15], [11, 13], [14]]
    assert divided(even, 3, n=1) == [[], [10], []]
    assert divided(long_last, 2) == [[10, 12, 15, 11, 13], [14]]


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with together(RunTable()) as ranks:
        assert type(ranks) is Ranks and ranks is here()
        tensor = torch.arange(3.0)
        assert ranks.gather(tensor)[0] is tensor and ranks.merge(tensor) is tensor and ranks.mine(tensor) is tensor
        assert ranks.tell({"a": 1}) == [{"a": 1}] and ranks.first(lambda: 5) == 5
        assert ranks.facts == {} and ranks.purpose == () and ranks.writes


def test_ranks_that_nobody_can_find(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(HoldfastError, match="start the processes with torchrun"), together(RunTable()):
        pass


def test_an_objective_that_knows_of_no_ranks_is_refused(monkeypatch):
    monkeypatch.setattr("holdfast.training.fit.here", lambda: Several(0, 2, False))
    with pytest.raises(HoldfastError, match="does not divide a step among processes"):
        Trainer(Toy(), toy_rows(), TrainTable(batch=8, steps=2), RunTable(threads=1))


def test_two_processes_are_one_run(tmp_path):
    """Batches of 7 over 2 processes, and of 1, which leaves one of them without rows."""
    runs: list[dict[str, Any]] = [
        {"name": "uneven", "batch": 7, "steps": 20, "clip": 0.05, "eval_every": 10},
        {"name": "single", "batch": 1, "steps": 4},
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    train_toys(tmp_path / "one", 1, None, *[dict(r) for r in runs])
    train_toys(tmp_path / "two", 2, None, *[dict(r) for r in runs])
    for name in ("uneven", "single"):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert losses(two) == pytest.approx(losses(one), rel=1e-5)
        assert [e["rows"] for e in entries(one, "step")] == [e["rows"] for e in entries(two, "step")]
        assert entries(two, "open")[0]["environment"]["processes"] == 2
        assert "processes" not in entries(one, "open")[0]["environment"]
        assert [p.where for p in verify_run(two).problems] == ["recipe.toml"], "a toy has none"
    first, second = json.loads((tmp_path / "two" / "uneven.json").read_text())["seen"]
    whole = json.loads((tmp_path / "one" / "uneven.json").read_text())["seen"][0]
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(rows) for rows in whole]
    assert all(first) and all(second)
    single = json.loads((tmp_path / "two" / "single.json").read_text())["seen"]
    assert sorted(len(a) + len(b) for a, b in zip(*single, strict=True)) == [1] * 4
    figures = [
        [float.fromhex(e["figures"]["loss"]) for e in entries(tmp_path / w / "uneven", "figures")]
        for w in ("one", "two")
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_the_same_number_of_processes_gives_the_same_bytes(tmp_path, parallel):
    """Also where it died on the way. With dropout, which each rank draws for itself; a matrix of 16 rows divides unevenly by three."""
    said = {"batch": 7, "steps": 20, "dropout": 0.2, "clip": 0.05}
    train_toys(tmp_path, 3, parallel, {"name": "a", **said}, {"name": "b", **said, "cut_off": 12})
    assert steps_taken(tmp_path / "b") == 11
    train_toys(tmp_path, 3, parallel, {"name": "b", **said})
    a, b = (tmp_path / name for name in ("a", "b"))
    assert (a / "ledger.jsonl").read_bytes() == (b / "ledger.jsonl").read_bytes()
    assert len(losses(a)) == 20


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_resumed_by_another_number_of_processes(tmp_path, parallel):
    """Cut off under 2, on under 1, on under 4: the losses are those of one process, and the ledger says who was there."""
    said = {"batch": 7, "steps": 24, "checkpoint_every": 4, "eval_every": 12}
    (tmp_path / "one").mkdir()
    train_toys(tmp_path / "one", 1, None, {"name": "run", **said})
    folder = tmp_path / "run"
    for world, until in ((2, 9), (1, 17), (4, None)):
        train_toys(tmp_path, world, parallel, {"name": "run", **said, "cut_off": until})
    assert losses(folder) == pytest.approx(losses(tmp_path / "one" / "run"), rel=1e-5)
    told = entries(folder, "environment")
    assert [e["changed"] for e in told] == [{"processes": ["2", "absent"]}, {"processes": ["absent", "4"]}]
    assert [p.where for p in verify_run(folder).problems] == ["recipe.toml"], "a toy has none"
    whole = file_digests(tmp_path / "one" / "run" / "checkpoints" / "step-000024" / "optimiser.safetensors")[1]
    assert file_digests(folder / "checkpoints" / "step-000024" / "optimiser.safetensors")[1].keys() == whole.keys()


@pytest.mark.slow
def test_a_silent_rank_is_not_waited_for_for_ever(tmp_path):
    asked = {"patience": 4, "runs": [{"name": "run", "batch": 7, "silent_from": 6}]}
    started = processes(2, str(HERE / "ranks_worker.py"), str(tmp_path), json.dumps(asked))
    try:
        err = started[0].communicate(timeout=100)[1]
    finally:
        for p in started:
            p.kill()
            p.communicate()
    assert "HoldfastError: process 1 of 2: another process of this run ended or no longer answers" in err
    assert steps_taken(tmp_path / "run") == 6
    train_toys(tmp_path, 1, None, {"name": "run", "batch": 7})
    assert len(losses(tmp_path / "run")) == 24


RECIPE = """
[run]
threads = 1
{parallel}
[data]
dataset = "{folder}/data"
[model.scratch]
vocab = 512
hidden = 48
layers = 2
heads = 4
[model.scratch.train]
steps = 4
batch = 16
lr = 3e-3
[text]
max_length = 192
too_long = "drop"
[objective]
kind = "dpo"
[train]
steps = {steps}
batch = 13
micro_batch = 4
lr = 5e-4
checkpoint_every = 3
[evaluate]
bootstrap = 20
examples = 2
"""


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    from holdfast.data.freeze import freeze
    from holdfast.demo.world import World

    folder = tmp_path_factory.mktemp("ranks")
    World(0).write_jsonl(folder / "world.jsonl", 200, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    return folder


def steps_taken(run: Path) -> int:
    path = run / "ledger.jsonl"
    return path.read_bytes().count(b'"kind":"step"') if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "killed"), [("replicated", 1), ("sharded", 1), ("replicated", 0)])
def test_a_dead_rank_ends_the_run_and_one_process_goes_on(tmp_path, small_world, parallel, killed):
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(folder=small_world, steps=400, parallel=f'parallel = "{parallel}"'))
    cache = {"HOLDFAST_CACHE": str(tmp_path / "cache")}
    started = processes(2, "-m", "holdfast", "train", str(recipe), "-o", str(folder), "--quiet", **cache)
    try:
        until = time.monotonic() + 200
        while steps_taken(folder) < 5 and time.monotonic() < until and all(p.poll() is None for p in started):
            time.sleep(0.01)
        started[killed].send_signal(signal.SIGKILL)
        died = time.monotonic()
        err = started[1 - killed].communicate(timeout=60)[1]
        assert time.monotonic() - died < 30
    finally:
        for p in started:
            p.kill()
            p.wait()
    assert started[1 - killed].returncode == 2 and "Traceback" not in err, err[-3000:]
    assert "another process of this run ended" in err and "holdfast resume" in err
    taken = steps_taken(folder)
    assert 5 <= taken < 400

    # On under one process: it takes up the last checkpoint, and says that there were two.
    done = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "resume", str(folder), "--quiet"],
        env={**os.environ, **cache}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 200
    while steps_taken(folder) < taken + 6 and time.monotonic() < until and done.poll() is None:
        time.sleep(0.01)
    done.send_signal(signal.SIGTERM)
    err = done.communicate(timeout=60)[1]
    assert done.returncode == 0, err
    (told,) = entries(folder, "environment")
    assert told["changed"] == {"processes": ["2", "absent"]} and told["step"] >= 3 and told["step"] % 3 == 0
    assert verify_run(folder).problems == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "device"),
    [("replicated", "cpu"), ("sharded", "cpu"), ("replicated", "cuda"), ("sharded", "cuda")],
)
def test_torchrun_trains_evaluates_scores_and_replays(tmp_path, small_world, parallel, device):
    """The whole main job in two processes; one process computes the same figures, and two the same bytes."""
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("two ranks over NCCL need two GPUs")
    said = f'parallel = "{parallel}"\ndevice = "{device}"'
    text = RECIPE.format(folder=small_world, steps=6, parallel=said)
    if parallel == "sharded":  # whole again when it ends, to be merged
        text += '[adapter]\nkind = "lora"\nr = 4\nmerge = true\n'
    recipe.write_text(text)
    environment = {**os.environ, "HOLDFAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def holdfast(world: int, *words: str) -> dict[str, Any]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
        command = [sys.executable, *torchrun, "-m", "holdfast", *words, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert done.stdout, done.stderr[-3000:]
        return json.loads(done.stdout)

    holdfast(2, "train", str(recipe), "-o", str(folder))
    if parallel == "sharded":
        assert (folder / "model" / "merged" / "model.safetensors").exists()
    two = json.loads((folder / "evaluations" / "held-out" / "metrics.json").read_bytes())["figures"]
    one = holdfast(1, "evaluate", str(folder))["metrics"]["figures"]
    assert_close(one, two)
    assert holdfast(2, "replay", str(folder), "--steps", "2:5") == {"ok": True, "steps": 4, "from": 0, "problems": []}
    if parallel == "replicated":
        alone = holdfast(1, "replay", str(folder), "--steps", "2:5")
        assert not alone["ok"] and "processes was 2" in alone["problems"][0]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"prompt": f"p {n}", "response": f"an answer {n}"}) + "\n" for n in range(5)))
    one, two = (holdfast(w, "score", str(folder), str(texts)) for w in (1, 2))
    assert_close(one, two)


def assert_close(a: Any, b: Any) -> None:
    """Two JSON values, their floats to float error."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    else:
        assert a == b
