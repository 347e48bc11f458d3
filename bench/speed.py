"""Side by side with TRL: seconds per step, peak memory, tokens and floating-point operations, losses. One command:

    make bench                                      every workload (about an hour on four cores)
    python bench/speed.py hh alpaca --rounds 5      some

Every contender is a process of its own that stands still until it is its turn, so the rounds alternate within one run and what the
machine does beside hits all alike. Medians of the rounds and their ratios are reported, never single times. Peers run in an
environment of their own, made from bench/peers/trl.txt on first use. Results: bench/results/speed-WORKLOAD.json, and docs/benchmarks.md
from all of bench/results (bench/page.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workloads
from workloads import BETA, LR, MAX_LENGTH, STEPS, THREADS, WORKLOADS

HERE = Path(__file__).resolve().parent

RESULTS = HERE / "results"
SAME = 1e-3  # between the losses of the contenders, relative


def peer(name: str) -> Path:
    """The Python of a peer's environment, made from its pinned file where it is not there yet."""
    pins = HERE / "peers" / f"{name}.txt"
    cache = Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")
    folder = cache / "peers" / f"{name}-{workloads.digest(pins)}"
    if not (folder / "ready").exists():
        print(f"making the environment of {name} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "-r", pins], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


@dataclass
class Contender:
    """One process; `command` starts it. rounds: what it answered, step by step."""

    name: str
    command: list[str]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self, log: Path) -> None:
        threads = {k: str(THREADS) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, **threads, **quiet},
        )
        self.ready = self.answer(log)

    def answer(self, log: Path | None = None) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: see {log or 'its log'}\n{log.read_text()[-3000:] if log else ''}")
        return json.loads(line)

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer() if what != "end" else {}

    def end(self) -> None:
        if self.process is not None:
            self.ask("end")
            self.process.wait(60)


def contenders(name: str) -> list[Contender]:
    w = WORKLOADS[name]
    steps = workloads.prepare(name)
    base = workloads.home() / ("scorer" if w.objective == "reward" else "base")
    ours = [sys.executable, str(HERE / "ours.py"), name]
    trl = [str(peer("trl")), str(HERE / "peers" / "trl_worker.py"), str(steps), str(base), w.objective]
    trl += ["--threads", str(THREADS), "--lr", str(LR), "--beta", str(BETA), "--max-length", str(MAX_LENGTH)]
    found = [Contender("holdfast", ours), Contender("TRL, defaults", trl), Contender("TRL, best", [*trl, "--best"])]
    if name == "hh":
        found.insert(1, Contender("holdfast, in little memory", [*ours, "--lean"]))
    if w.per_prompt:
        found.insert(1, Contender("holdfast, pair by pair", [*ours, "--apart"]))
    return found


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One warm-up step, `rounds` timed ones in turn, one counted; then every contender's figures and ratios to ours."""
    if rounds + 2 > STEPS:
        raise SystemExit(f"--rounds {rounds}: a run has {STEPS} steps, of which the first and the last are not timed")
    every = contenders(name)
    RESULTS.mkdir(exist_ok=True)
    # Beside them the machine's own products, in the shapes of a step; and, after them, our steps again to count their operations.
    rate = Contender("matrix products", [sys.executable, str(HERE / "products.py"), "2048", "1024"])
    counted = Contender("holdfast, counted", every[0].command)
    try:
        for c in every:
            c.start(RESULTS / f"speed-{name}-{c.name.replace(', ', '-').replace(' ', '-')}.log")
            print(f"  {c.name}: ready after {c.ready['ready']:.1f} s", flush=True)
        rate.start(RESULTS / f"speed-{name}-products.log")
        for n in range(rounds + 2):
            rate.rounds.append(rate.ask("step"))
            # The one that begins a round changes, so that nobody always follows the same neighbour.
            turn = every[n % len(every) :] + every[: n % len(every)]
            for c in turn:
                c.rounds.append(c.ask("count" if n == rounds + 1 else "step"))
            print("  " + "  ".join(f"{c.name} {c.rounds[-1]['seconds']:.2f} s" for c in every), flush=True)
        for c in (*every, rate):
            c.end()
        counted.start(RESULTS / f"speed-{name}-counted.log")
        for _ in range(rounds + 1):
            counted.rounds.append(counted.ask("count"))
        counted.end()
    finally:
        for c in (*every, rate, counted):
            if c.process is not None and c.process.poll() is None:
                c.process.kill()
    ours = every[0]
    figures = {}
    for c in every:
        timed = range(1, rounds + 1)
        ratio = [c.rounds[i]["seconds"] / ours.rounds[i]["seconds"] for i in timed]
        apart = max(
            abs(a["loss"] - b["loss"]) / max(abs(b["loss"]), 1e-9) for a, b in zip(ours.rounds, c.rounds, strict=True)
        )
        last, timed_last = c.rounds[-1], c.rounds[-2]  # counting takes memory of its own
        figures[c.name] = {
            "seconds": [r["seconds"] for r in c.rounds[1:-1]],
            "median": statistics.median(c.rounds[i]["seconds"] for i in timed),
            "times ours": {"median": statistics.median(ratio), "least": min(ratio), "most": max(ratio)},
            "peak": timed_last["peak"],
            "peak over ours": timed_last["peak"] / ours.rounds[-2]["peak"],
            "tokens": [r["tokens"] for r in c.rounds],
            "tokens per step": statistics.mean(r["tokens"] for r in c.rounds),
            "flops": last["flops"],
            "losses": [r["loss"] for r in c.rounds],
            "losses apart": apart,
            "same work": apart <= SAME,
            "ready": c.ready["ready"],
        }  # fmt: skip
    timed = range(1, rounds + 1)
    reached = [counted.rounds[i]["flops"] / ours.rounds[i]["seconds"] for i in timed]
    shares = {
        by: [r / (rate.rounds[i]["flops"] / rate.rounds[i][by]) for i, r in zip(timed, reached, strict=True)]
        for by in ("seconds", "plain")
    }

    def spread(x: list[float]) -> dict[str, float]:
        return {"median": statistics.median(x), "least": min(x), "most": max(x)}

    return {
        "workload": name,
        "share of the products' rate": spread(shares["seconds"]),
        "share of the plain products' rate": spread(shares["plain"]),
        "products, GFLOP/s": statistics.median(r["flops"] / r["seconds"] for r in rate.rounds[1:]) / 1e9,
        "plain products, GFLOP/s": statistics.median(r["flops"] / r["plain"] for r in rate.rounds[1:]) / 1e9,
        "says": WORKLOADS[name].says,
        "rounds": rounds,
        "machine": machine(),
        "contenders": figures,
    }


def machine() -> dict[str, Any]:
    said = {"cpu": platform.processor(), "cores": os.cpu_count(), "threads": THREADS, "system": platform.platform()}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            said["cpu"] = line.partition(":")[2].strip()
            break
    said["date"] = time.strftime("%Y-%m-%d")
    said["load at the end"] = round(os.getloadavg()[0], 1)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    unknown = [w for w in args.workloads if w not in WORKLOADS]
    if unknown:
        raise SystemExit(f"unknown workload {unknown[0]!r} (known: {', '.join(WORKLOADS)})")
    for name in args.workloads or WORKLOADS:
        print(f"{name}: {WORKLOADS[name].says}", flush=True)
        found = measure(name, args.rounds)
        (RESULTS / f"speed-{name}.json").write_text(json.dumps(found, indent=1))
        share = found["share of the products' rate"]["median"]
        print(
            f"  {share:.2f} of the rate of the machine's matrix products ({found['products, GFLOP/s']:.0f} GFLOP/s)",
            flush=True,
        )
        for c, f in found["contenders"].items():
            print(
                f"  {c}: {f['median']:.2f} s a step, {f['times ours']['median']:.2f}x ours; peak {f['peak'] / 2**30:.2f} GiB; "
                f"{f['tokens per step']:.0f} tokens, {f['flops'] / 1e9:.0f} GFLOP; losses apart {f['losses apart']:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
