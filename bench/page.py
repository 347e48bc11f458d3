"""docs/benchmarks.md from bench/results: `python bench/page.py`. What was not measured is not on the page."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import workloads

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"

# (workload, contender, at least so many times as fast as it)
BARS = [
    ("hh", "TRL, defaults", 8.0),
    ("hh", "TRL, best", 6.0),
    ("alpaca", "TRL, best", 6.0),
    ("alpaca", "holdfast, pair by pair", 1.6),
    ("unshared", "TRL, best", 3.0),
    ("reward", "TRL, best", 4.0),
    ("kto", "TRL, best", 4.0),
]


def page() -> str:
    found = {name: _read(f"speed-{name}") for name in workloads.WORKLOADS}
    runs = {name: run for name, run in found.items() if run}
    out = [
        "# Benchmarks",
        "",
        "Made by `make bench` from what was measured; every figure is a ratio within one run, or says that it is not.",
        "",
    ]
    if runs:
        machine = next(iter(runs.values()))["machine"]
        out += [
            f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads for everybody, {machine['system']}.",
            "",
            *_shape(),
            "",
            "## Bars",
            "",
            "| workload | against | times as fast: median [least, most] | to reach | |",
            "|---|---|---|---|---|",
        ]
        for workload, contender, bar in BARS:
            if workload in runs:
                t = runs[workload]["contenders"][contender]["times ours"]
                met = "met" if t["median"] >= bar else "missed"
                out.append(
                    f"| {workload} | {contender} | {t['median']:.1f} [{t['least']:.1f}, {t['most']:.1f}] | {bar:g} | {met} |"
                )
        if "hh" in runs:
            lean = runs["hh"]["contenders"]["holdfast, in little memory"]["seconds"]
            for theirs, bar in (("TRL, defaults", 8), ("TRL, best", 6)):
                seconds = runs["hh"]["contenders"][theirs]["seconds"]
                t = [b / a for a, b in zip(lean, seconds, strict=True)]
                middle = statistics.median(t)
                met = "met" if middle >= bar else "missed"
                out.append(
                    f"| hh, in little memory | {theirs} | {middle:.1f} [{min(t):.1f}, {max(t):.1f}] | {bar} | {met} |"
                )
            peak = {name: f["peak"] for name, f in runs["hh"]["contenders"].items()}
            for ours in ("holdfast", "holdfast, in little memory"):
                for theirs in ("TRL, defaults", "TRL, best"):
                    share = peak[ours] / peak[theirs]
                    met = "met" if share <= 0.25 else "missed"
                    out.append(f"| hh, {ours} | {theirs} | peak memory {share:.3f} of theirs | 0.25 | {met} |")
            if "share of the products' rate" in runs["hh"]:
                s = runs["hh"]["share of the products' rate"]
                plain = runs["hh"].get("share of the plain products' rate")
                for what, rate, of in (
                    ("PyTorch's matrix products", "plain products, GFLOP/s", plain),
                    ("the quicker library's (decision 6), which we use", "products, GFLOP/s", s),
                ):
                    if of:
                        met = "met" if of["median"] >= 0.8 else "missed"
                        out.append(
                            f"| hh | {what}, in the shapes of a step ({runs['hh'][rate]:.0f} GFLOP/s) | {of['median']:.2f} "
                            f"[{of['least']:.2f}, {of['most']:.2f}] of their FLOP/s | 0.8 | {met} |"
                        )
        out += _others()
        for name, run in runs.items():
            out += [
                "",
                f"## {name}",
                "",
                f"{run['says'][0].upper()}{run['says'][1:]}. {run['rounds']} rounds, {run['machine']['date']}.",
                "",
            ]
            out += [
                "| | seconds a step | times ours | peak memory, GiB | tokens a step | GFLOP, one step | losses apart |",
                "|---|---|---|---|---|---|---|",
            ]
            for contender, f in run["contenders"].items():
                t = f["times ours"]
                out.append(
                    f"| {contender} | {f['median']:.2f} | {t['median']:.2f} [{t['least']:.2f}, {t['most']:.2f}] | {f['peak'] / 2**30:.2f} | "
                    f"{f['tokens per step']:,.0f} | {f['flops'] / 1e9:,.0f} | {f['losses apart']:.0e} |"
                )
    else:
        out += _others()
    return "\n".join(out) + "\n"


def _shape() -> list[str]:
    s = workloads.SHAPE
    return [
        f"The model is Llama-shaped: hidden {s['hidden']}, {s['layers']} layers, {s['heads']} heads, {s['kv_heads']} key heads, vocabulary "
        f"{workloads.VOCAB:,}, random weights, float32. A step is {workloads.BATCH} judgements,",
        f"at most {workloads.MAX_LENGTH} tokens a sequence. All contenders start from the same weights and token ids and take turns within one run;",
        "`losses apart` is the largest relative difference of a step's loss from ours, so that all provably do the same work. `TRL, best` has",
        "precomputed reference log-probabilities, no gradient checkpointing and, where it works, padding-free batches.",
        "OpenRLHF is not among them: pip cannot build the flash-attn 2.8.3 that it needs on a machine without CUDA.",
    ]


def _others() -> list[str]:
    out = []
    if freeze := _read("freeze"):
        out += ["", "## Freezing", "", *_facts(freeze)]
    if ledger := _read("ledger"):
        out += ["", "## Ledger, fingerprints and determinism switches", "", *_facts(ledger)]
    if start := _read("start"):
        out += ["", "## From the command to the first step", "", *_facts(start)]
    if large := _read("large"):
        out += ["", "## Two million pairs", "", *_facts(large)]
    if ranks := _read("ranks"):
        out += ["", "## Several processes", "", *_facts(ranks)]
    return out


def _facts(said: dict[str, Any]) -> list[str]:
    """The figures that are meant for the page, as a list: `page`, written by the bench that measured them."""
    return [f"- {line}" for line in said.get("page", [])]


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
