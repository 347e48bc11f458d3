"""The bars of the spine, each measured by one command: `python bench/bars.py NAME` (or `all`).

    twice       the same recipe in two processes: weights digest and ledger head
    kill        SIGKILL at 25 random moments, checkpoint writes among them, resume, compare with the uninterrupted run
    flip        one byte flipped in seven kinds of file, 20 tries each: named by verify
    packed      packed against padded, six model families
    accumulate  8 x 1 = 4 x 2 = 1 x 8
    malformed   broken files and rows
    demo        gold win rate of the DPO policy over its base, five seeds
    real        hh and alpaca-eval end to end
    ranks       one run in 1, 2 and 4 processes: losses against one process, and the same bytes twice

Each prints its figures and whether the bar is met, and writes them to bench/results/NAME.json. Needs no network.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = ROOT.parent / "shared" / "data"
HOLDFAST = [sys.executable, "-m", "holdfast.cli"]

RECIPE = """
[run]
name = "bar"
threads = 1
[data]
dataset = "{dataset}"
[data.split]
holdout = ["ends"]
[model.scratch]
vocab = 512
hidden = 48
layers = 2
heads = 4
[model.scratch.train]
steps = 30
batch = 16
lr = 3e-3
checkpoint_every = 7
[text]
max_length = 192
too_long = "drop"
[objective]
kind = "dpo"
[train]
steps = 60
batch = 16
lr = 5e-4
warmup = 5
eval_every = 10
eval_rows = 40
stop_on = "loss"
patience = 10
checkpoint_every = 4
[evaluate]
bootstrap = 100
"""


def holdfast(*words: str | Path, check: bool = True) -> dict[str, Any]:
    """A `holdfast` command in a process of its own, with --json."""
    done = subprocess.run([*HOLDFAST, *map(str, words), "--json"], capture_output=True, text=True)
    if check and done.returncode not in (0, 1):
        raise SystemExit(f"holdfast {' '.join(map(str, words))} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout) if done.stdout.strip() else {"error": done.stderr}


def small_world(folder: Path) -> Path:
    """A small frozen world and the recipe that trains on it."""
    from holdfast.data.freeze import freeze
    from holdfast.demo.world import World

    World(0).write_jsonl(folder / "world.jsonl", 300, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(dataset=folder / "data"))
    return recipe


def twice(folder: Path) -> dict[str, Any]:
    recipe = small_world(folder)
    a, b = (holdfast("train", recipe, "-o", folder / name) for name in ("a", "b"))
    same = {key: a[key] == b[key] for key in ("weights_digest", "ledger_head")}
    return {
        "met": all(same.values()),
        "same": same,
        "weights_digest": a["weights_digest"],
        "ledger_head": a["ledger_head"],
    }


def kill(folder: Path, tries: int = 25) -> dict[str, Any]:
    recipe = small_world(folder)
    began = time.monotonic()
    whole = holdfast("train", recipe, "-o", folder / "whole")
    length = time.monotonic() - began
    rng = random.Random(0)
    equal, inside, before_end, steps = 0, 0, 0, []
    for n in range(tries):
        run = folder / f"run-{n}"
        process = subprocess.Popen(
            [*HOLDFAST, "train", str(recipe), "-o", str(run), "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # A third of the kills comes at a random moment of the clock, start-up included; the others after a random number
        # of steps, and every other one of these waits for a checkpoint in the making.
        if n % 3 == 2:
            until = time.monotonic() + rng.uniform(0.15, 0.95) * length
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.0005)
        else:
            least = rng.randrange(90)
            while process.poll() is None and _steps_taken(run) < least:
                time.sleep(0.0005)
            while n % 3 == 0 and process.poll() is None and not _in_the_making(run):
                pass
        before_end += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        inside += _in_the_making(run)
        steps.append(_steps_taken(run))
        resume = "resume" if (run / "recipe.toml").exists() else "train"
        done = holdfast("resume", run) if resume == "resume" else holdfast("train", recipe, "-o", run)
        same = all(done[key] == whole[key] for key in ("weights_digest", "ledger_head"))
        same = same and (run / "ledger.jsonl").read_bytes() == (folder / "whole" / "ledger.jsonl").read_bytes()
        same = same and holdfast("verify", run)["ok"]
        equal += same
        print(
            f"  {n + 1:2} of {tries}: killed after {steps[-1]} steps, {'same bytes' if same else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(run)
    return {
        "met": equal == tries,
        "equal": equal,
        "of": tries,
        "inside a checkpoint write": inside,
        "before the end": before_end,
        "steps at the kill": steps,
    }


def control(folder: Path) -> dict[str, Any]:
    """Every algorithm of control, killed (SIGKILL) after a random number of steps and resumed: same bytes; verified, replayed."""
    from holdfast.control.algorithms import ALGORITHMS

    logs = {}
    for actions, env in (("discrete", "Pendulum5-v1"), ("continuous", "Pendulum-v1")):
        made = (
            "control",
            "collect",
            env,
            "-o",
            folder / env,
            "--policy",
            "scripted,epsilon=0.5",
            "--steps",
            3000,
        )
        holdfast(*made)
        logs[actions] = folder / f"{env}-judged"
        holdfast("control", "label", folder / env, "-o", logs[actions], "--queries", 200, "--length", 20)
    rng, equal, said = random.Random(0), 0, []
    every = [(kind, actions) for kind, forms in sorted(ALGORITHMS.items()) for actions in sorted(forms)]
    for kind, actions in [("bc", "discrete"), *(e for e in every if e != ("bc", "discrete"))]:
        settings = {"updates": 10, "replicas": 3, "hidden": [32, 32]}
        if kind == "fqe":
            settings["reference"] = str(folder / "whole-bc-discrete")
        recipe = folder / f"{kind}-{actions}.toml"
        table = "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items())
        trees = "trees = 5\n" if kind == "fqi_trees" else ""
        recipe.write_text(
            f'[data]\ndataset = "{logs[actions]}"\n[control]\n{table}[objective]\nkind = "{kind}"\n{trees}'
            "[train]\nsteps = 40\nbatch = 64\ncheckpoint_every = 4\n"
        )
        whole, run = folder / f"whole-{kind}-{actions}", folder / f"killed-{kind}-{actions}"
        done = holdfast("train", recipe, "-o", whole)
        process = subprocess.Popen(
            [*HOLDFAST, "train", str(recipe), "-o", str(run), "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        least = rng.randrange(1, 39)
        while process.poll() is None and _steps_taken(run) < least:
            time.sleep(0.0005)
        before_end = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps = _steps_taken(run)
        again = holdfast("resume", run)
        files = ("ledger.jsonl", "metrics.jsonl", "model/model.safetensors", "model/policy.json")
        same = (
            all((whole / f).read_bytes() == (run / f).read_bytes() for f in files)
            and again["ledger_head"] == done["ledger_head"]
        )
        same = same and holdfast("verify", run)["ok"] and holdfast("replay", run, "--steps", "37:40")["ok"]
        equal += same
        said.append([kind, actions, steps, before_end, same])
        print(
            f"  {kind}, {actions}: killed after {steps} of 40 steps, {'same bytes' if same else 'DIFFERENT'}",
            flush=True,
        )
    return {
        "met": equal == len(every),
        "equal": equal,
        "of": len(every),
        "before the end": sum(x[3] for x in said),
        "rows": said,
    }


def _steps_taken(run: Path) -> int:
    """Of the base and of the run, as their ledgers say."""
    ledgers = [p for p in (run / "base" / "ledger.jsonl", run / "ledger.jsonl") if p.exists()]
    return sum(p.read_bytes().count(b'"kind":"step"') for p in ledgers)


def _in_the_making(run: Path) -> bool:
    """Is a checkpoint (of the run or of its base) being written?"""
    try:
        return any(
            p.name.endswith(".tmp") or p.name.startswith(".")
            for c in (run, run / "base")
            for p in (c / "checkpoints").iterdir()
        )
    except OSError:
        return False


def flip(folder: Path, tries: int = 20) -> dict[str, Any]:
    from holdfast.proof import verify

    recipe = small_world(folder)
    holdfast("train", recipe, "-o", folder / "run")
    run, data = folder / "run", folder / "data"
    newest = sorted((run / "checkpoints").iterdir())[-1]
    kinds: dict[str, tuple[list[Path], Path]] = {
        "row": ([data / "prompts.parquet", data / "responses.parquet"], data),
        "label": ([data / "judgements.parquet"], data),
        "manifest": ([data / "manifest.json"], data),
        "split": (sorted(run.glob("split*")), run),
        "ledger entry": ([run / "ledger.jsonl"], run),
        "checkpoint": ([p for p in newest.iterdir() if p.is_file()], run),
        "final weights": (sorted((run / "model").glob("*.safetensors")), run),
    }
    rng = random.Random(0)
    assert not verify(run) and not verify(data), "verify finds fault with an untouched run"
    found: dict[str, int] = {}
    examples = {}
    for kind, (paths, where) in kinds.items():
        found[kind] = 0
        for _ in range(tries):
            path = rng.choice(paths)
            whole = path.read_bytes()
            at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            problems = verify(where)
            path.write_bytes(whole)
            stem = path.name.split(".")[0]
            named = [p for p in problems if stem in f"{p.what} {p.where}"]
            found[kind] += bool(named)
            examples.setdefault(
                kind, str(named[0]) if named else f"NOT NAMED at byte {at}: {[str(p) for p in problems]}"
            )
    return {"met": all(n == tries for n in found.values()), "named": found, "of": tries, "examples": examples}


def packed(folder: Path) -> dict[str, Any]:
    return _pytest("tests/invariants/test_packed_equals_padded.py")


def accumulate(folder: Path) -> dict[str, Any]:
    return _pytest("tests/test_objectives.py", "-k", "accumulation")


def malformed(folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    from malformed_corpus import CASES

    return {**_pytest("tests/test_malformed.py"), "broken inputs": len(CASES)}


def _pytest(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    return {
        "met": done.returncode == 0,
        "pytest": [line for line in done.stdout.splitlines() if " passed" in line or " failed" in line][-1],
        "command": " ".join(["pytest", *words]),
    }


def demo(folder: Path, seeds: int = 5) -> dict[str, Any]:
    rows = []
    for seed in range(seeds):
        said = holdfast("demo", "-o", folder / f"seed-{seed}", "--seed", str(seed))
        rows += [{**row, "seed": seed, "seconds": said["seconds"]} for row in said["gold"]]
        for row in rows:
            if row["seed"] == seed and row["name"] == "dpo":
                print(
                    f"  seed {seed} {row['part']:5} win rate {row['win_rate']:.3f} [{row['win_lo']:.3f}, {row['win_hi']:.3f}]",
                    flush=True,
                )
    lows = [r["win_lo"] for r in rows if r["name"] == "dpo" and r["part"] == "test"]
    return {"met": min(lows) > 0.6, "lowest lower end": min(lows), "rows": rows}


def real(folder: Path) -> dict[str, Any]:
    if not DATA.exists():
        return {"met": False, "skipped": f"{DATA} is not there"}
    results: dict[str, Any] = {}
    for data, recipes in {"hh": ("hh-dpo",), "alpaca": ("alpaca-reward", "alpaca-dpo")}.items():
        source = DATA / {"hh": "hh-harmless.jsonl.gz", "alpaca": "alpaca-eval.parquet"}[data]
        frozen = holdfast("freeze", source, "-o", folder / data, "--on-error", "skip")
        results[data] = {"root": frozen["root"], "accepted": frozen["accepted"], "rejected": frozen["rejected"]}
        for name in recipes:
            began = time.monotonic()
            run = folder / name
            words = (
                "train",
                ROOT / "recipes" / f"{name}.toml",
                "-o",
                run,
                "--set",
                f"data.dataset={json.dumps(str(folder / data))}",
            )
            done = holdfast(*words)
            parts = holdfast("evaluate", run)["metrics"]["figures"]["parts"]
            results[name] = {
                "steps": done["steps"],
                "seconds": round(time.monotonic() - began),
                "verify": holdfast("verify", run)["ok"],
                "replay 1:2": holdfast("replay", run, "--steps", "1:2")["ok"],
                **{
                    part: {
                        shown: parts[part]["all"]["figures"][f"{key}/accuracies"]
                        for shown, key in (("model", "rewards"), ("longer", "longer"), ("bag of words", "bag of words"))
                    }
                    for part in parts
                },
            }
            for part in parts:
                figures = ", ".join(
                    f"{k} {v['value']:.3f} [{v['lo']:.3f}, {v['hi']:.3f}]"
                    for k, v in results[name][part].items()
                    if v["value"] is not None
                )
                print(f"  {name} {part}: {figures}", flush=True)
    return {"met": all(r.get("verify", True) and r.get("replay 1:2", True) for r in results.values()), **results}


def ranks(folder: Path) -> dict[str, Any]:
    from ranks import ranks as measured

    found = measured(folder)
    page = f"{len(found['runs'])} runs in 1, 2 and 4 processes: losses of 20 steps within {found['worst']:.1e} of one process (bar: 1e-5)"
    return {**found, "page": [f"{page}, each twice to the same bytes: {'met' if found['met'] else 'missed'}."]}


BARS: dict[str, Callable[[Path], dict[str, Any]]] = {
    f.__name__: f for f in (twice, kill, flip, packed, accumulate, malformed, demo, real, ranks, control)
}


def main() -> None:
    wanted = sys.argv[1:] or ["all"]
    unknown = [w for w in wanted if w not in (*BARS, "all")]
    if unknown:
        raise SystemExit(f"unknown bar {unknown[0]!r} (known: all, {', '.join(BARS)})")
    sys.path.insert(0, str(ROOT))
    missed = []
    for name in BARS if "all" in wanted else wanted:
        print(f"{name}: {(BARS[name].__doc__ or '').strip()}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"holdfast-{name}-") as folder:
            os.environ["HOLDFAST_CACHE"] = str(Path(folder) / "cache")
            began = time.monotonic()
            result = BARS[name](Path(folder))
        result |= {
            "seconds": round(time.monotonic() - began),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        }
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        short = {
            k: v
            for k, v in result.items()
            if k not in ("rows", "examples", "steps at the kill") and not isinstance(v, dict)
        }
        print(f"{name}: {'MET' if result['met'] else 'MISSED'}  {short}", flush=True)
        missed += [] if result["met"] else [name]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
