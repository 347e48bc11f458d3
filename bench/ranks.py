"""One run in 1, 2 and 4 processes: `python bench/ranks.py` (or `bench/bars.py ranks`).

Every objective is trained for 20 steps from the same base in 1, 2 and 4 processes (gloo, one thread each), with weights replicated and
sharded (FSDP2), each twice. Measured: the largest relative difference of a step's loss to the run in one process, and whether the two runs
of a kind have the same ledger to the byte. The batch (13) divides by no number of processes, and a step holds several micro-batches.
Needs no network. About ten minutes on four cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BOUND = 1e-5
WORLDS = (1, 2, 4)
MODES = ("replicated", "sharded")
LORA = {"adapter": {"kind": "lora", "r": 4}}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"objective": {"kind": "sft"}},
    "reward": {"objective": {"kind": "reward"}},
    "dpo": {"objective": {"kind": "dpo"}},
    "kto": {"objective": {"kind": "kto"}},
    "bco": {"objective": {"kind": "bco"}},
    "aot": {"objective": {"kind": "aot"}},
    "dpo + lora": {"objective": {"kind": "dpo"}, **LORA},
    "reward + lora": {"objective": {"kind": "reward"}, **LORA},
}


def said(folder: Path, mode: str, base: str | None, **more: Any) -> dict[str, Any]:
    """A recipe; without a base the one that makes it."""
    train = {"steps": 20, "batch": 13, "micro_batch": 4, "lr": 5e-4, "warmup": 3, "eval_every": 10, "eval_rows": 30}
    return {
        "run": {"threads": 1, **({"parallel": mode} if mode == "sharded" else {})},
        "data": {"dataset": str(folder / "data")},
        "model": {"path": base} if base else {"scratch": {"vocab": 512, "hidden": 48, "layers": 2, "heads": 4}},
        "text": {"max_length": 192, "too_long": "drop"},
        "train": {**train, "checkpoint_every": 20},
        "evaluate": {"bootstrap": 50, "examples": 2},
        **more,
    }


def worker(folder: Path, mode: str, to: str) -> None:
    """Train every run: in one of the processes that torchrun starts."""
    from holdfast.pipeline import train
    from holdfast.recipe import RunTable, load_recipe
    from holdfast.training.ranks import together

    with together(RunTable(threads=1, parallel=mode if mode == "sharded" else None)):
        for name, more in RUNS.items():
            train(load_recipe(said(folder, mode, str(folder / "base"), **more)), folder / to / name, quiet=True)


def launch(folder: Path, mode: str, world: int, to: str) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    words = ["--worker", str(folder), mode, to]
    if world == 1:
        command = [sys.executable, __file__, *words]
    else:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world),
            __file__,
        ]
        command += words
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOLDFAST_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{mode}, {world} processes failed:\n{done.stderr[-6000:]}")
    return time.monotonic() - began


def steps(run: Path) -> list[float]:
    entries = map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
    return [float.fromhex(e["loss"]) for e in entries if e["kind"] == "step"]


def ranks(folder: Path) -> dict[str, Any]:
    from holdfast.data.freeze import freeze
    from holdfast.demo.world import World
    from holdfast.pipeline import train

    World(0).write_jsonl(folder / "world.jsonl", 300, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    train(said(folder, "replicated", None, objective={"kind": "sft"}), folder / "base", quiet=True)
    rows, seconds = [], {}
    for mode in MODES:
        for world in WORLDS if mode == "replicated" else WORLDS[1:]:
            taken = [launch(folder, mode, world, f"{mode}-{world}-{again}") for again in (1, 2)]
            seconds[f"{mode}, {world}"] = [round(s, 1) for s in taken]
            for name in RUNS:
                one = steps(folder / "replicated-1-1" / name)
                here, again = (folder / f"{mode}-{world}-{n}" / name for n in (1, 2))
                apart = max(abs(a - b) / abs(b) for a, b in zip(steps(here), one, strict=True))
                same = (here / "ledger.jsonl").read_bytes() == (again / "ledger.jsonl").read_bytes()
                rows.append(
                    {"run": name, "mode": mode, "processes": world, "steps": len(one), "apart": apart, "same": same}
                )
                print(
                    f"  {name:14} {mode:10} {world} process{'es' if world > 1 else '  '}: {len(one)} losses within {apart:.1e}, "
                    f"twice {'the same bytes' if same else 'DIFFERENT BYTES'}",
                    flush=True,
                )
    worst = max(r["apart"] for r in rows)
    met = worst <= BOUND and all(r["same"] for r in rows)
    return {"met": met, "worst": worst, "bound": BOUND, "runs": rows, "seconds of each launch": seconds}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(ranks(Path(temporary)), indent=2))
