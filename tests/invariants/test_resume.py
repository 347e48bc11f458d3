"""SIGKILL at any moment, resume, and the bytes are those of a run that nothing happened to.

Two ways to die: at a chosen one of all the calls that touch the disk (before it, in the middle of its bytes, or after
it), and at a random moment. A run is a forked child of one server process that has imported torch, so that a death
costs a tenth of a second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RUN: dict[str, Any] = {
    "steps": 12,
    "checkpoint_every": 4,
    "eval_every": 3,
    "stop_on": "loss",
    "patience": 9,
    "keep_checkpoints": 1,
}


def dying(die_at: int) -> list[int]:
    """Patch every call by which `fit` changes the disk, so that the process dies at the `die_at`-th (from 1; 0: never).
    Counts them.
    """
    import safetensors.torch

    count = [0]
    write, fsync, rename, replace, rmdir, save = (
        os.write, os.fsync, os.rename, os.replace, os.rmdir, safetensors.torch.save_file,
    )  # fmt: skip

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def now() -> bool:
        count[0] += 1
        return count[0] == die_at

    def half_write(file: int, data: bytes) -> int:
        if now():
            write(file, data[: len(data) // 2])
            die()
        return write(file, data)

    def half_save(state: Any, path: Any, **kwargs: Any) -> None:
        save(state, path, **kwargs)
        if now():
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    def before(call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if now():
                die()
            return call(*args, **kwargs)

        return wrapped

    os.write, os.fsync, os.rename, os.replace, os.rmdir = (
        half_write,
        before(fsync),
        before(rename),
        before(replace),
        before(rmdir),
    )
    safetensors.torch.save_file = half_save
    return count


def serve() -> None:
    """Take runs as JSON lines, each in a forked child; answer how each ended."""
    import numpy as np
    import pyarrow as pa
    import torch

    from toy_objective import Toy, train_toy

    torch.set_num_threads(1)
    # What is imported at first use is imported before the forks. (A backward here would forbid one in the children.)
    pa.array(np.zeros(1))
    toy = Toy()
    optimiser = torch.optim.AdamW(toy.model.parameters(), fused=True)
    for p in toy.model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    optimiser.zero_grad()
    print("ready", flush=True)
    for line in sys.stdin:
        said = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            count = dying(said["die_at"])
            done = train_toy(Path(said["folder"]), Toy(width=said["width"]), **RUN)
            answer = {
                "head": done.ledger_head,
                "weights": done.weights_digest,
                "stopped": done.stopped,
                "calls": count[0],
            }
            os.fdopen(write, "w").write(json.dumps(answer))
            os._exit(0)
        os.close(write)
        if said["kill_after"] is not None:
            time.sleep(said["kill_after"])
            os.kill(child, signal.SIGKILL)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"died": os.WIFSIGNALED(status), **(json.loads(answer) if answer else {})}), flush=True)


class Server:
    def __init__(self) -> None:
        path = [
            str(Path(__file__).parents[1]),
            str(Path(__file__).parents[2] / "src"),
            os.environ.get("PYTHONPATH", ""),
        ]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, folder: Path, die_at: int = 0, kill_after: float | None = None, width: int = 16) -> dict[str, Any]:
        said = {"folder": str(folder), "die_at": die_at, "kill_after": kill_after, "width": width}
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The run that nothing happened to: its folder, its result and how many calls it made."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = server.run(folder)
    assert done["stopped"] == "finished" and done["calls"] > 150
    return folder, done


def same(folder: Path, done: dict[str, Any], whole: tuple[Path, dict[str, Any]]) -> None:
    """Head, weights and every file, but for the times."""
    assert (done["head"], done["weights"]) == (whole[1]["head"], whole[1]["weights"])
    files = [{p.relative_to(at): p.read_bytes() for p in at.rglob("*") if p.is_file()} for at in (folder, whole[0])]
    for found in files:
        steps = [json.loads(line) for line in found.pop(Path("timing.jsonl")).splitlines()]
        assert [t["step"] for t in steps if t["what"] == "step"] == list(range(1, RUN["steps"] + 1))
    assert files[0] == files[1]


def points(calls: int, many: int) -> list[int]:
    """Spread over the run, first and last included."""
    return sorted({1 + round(i * (calls - 1) / (many - 1)) for i in range(many)})


def die_and_resume(server: Server, whole: tuple[Path, dict[str, Any]], tmp_path: Path, at: list[int]) -> None:
    for point in at:
        folder = tmp_path / f"at-{point}"
        assert server.run(folder, die_at=point)["died"], f"the run made fewer than {point} calls"
        same(folder, server.run(folder), whole)


def test_dying_at_a_call_that_touches_the_disk(server, whole, tmp_path):
    die_and_resume(server, whole, tmp_path, points(whole[1]["calls"], 8))


@pytest.mark.slow
def test_dying_at_every_call_that_touches_the_disk(server, whole, tmp_path):
    die_and_resume(server, whole, tmp_path, list(range(1, whole[1]["calls"] + 1)))


def test_dying_again_and_again_in_one_run(server, whole, tmp_path):
    """Each life a little longer than the last, and dying in its resume as well as in its steps."""
    deaths, done = 0, None
    for life in range(200):
        done = server.run(tmp_path / "run", die_at=23 + 9 * life)
        if not done["died"]:
            break
        deaths += 1
    assert deaths >= 5
    same(tmp_path / "run", done, whole)


def killed_at_random(server: Server, tmp_path: Path, times: int, width: int, seed: int) -> None:
    reference = tmp_path / "reference"
    began = time.monotonic()
    whole = (reference, server.run(reference, width=width))
    within = time.monotonic() - began
    rng = random.Random(seed)
    kills = 0
    for run in range(20 * times):
        folder = tmp_path / f"run-{run}"
        while (done := server.run(folder, kill_after=rng.uniform(0, within), width=width))["died"] and kills < times:
            kills += 1
        if done["died"]:
            done = server.run(folder, width=width)
        else:
            within *= 0.8  # it was through before the signal came: the machine has become faster
        same(folder, done, whole)
        if kills >= times:
            return
    raise AssertionError(f"only {kills} of {times} kills came in time")


def test_sigkill_at_random_moments(server, tmp_path):
    killed_at_random(server, tmp_path, 5, 16, seed=1)


@pytest.mark.slow
def test_sigkill_at_25_random_moments(server, tmp_path):
    """With a model of half a million parameters, most of the time goes into writing checkpoints."""
    killed_at_random(server, tmp_path, 25, 512, seed=2)


if __name__ == "__main__":
    serve()
