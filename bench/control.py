"""Control side by side with d3rlpy and imitation: seconds per update in turn within one run, and losses on the same rows and weights.

    python bench/control.py                 all (about ten minutes on four quiet cores)
    python bench/control.py cql bcq         some

Peers run in environments of their own, made from bench/peers/*.txt on first use. Results: bench/results/control-speed.json and, from it,
docs/control-speed.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from holdfast.training.products import product
from speed import RESULTS, Contender, peer

HERE = Path(__file__).resolve().parent
THREADS = 2
# kind -> (what is compared, members at once, the ratio to reach); the losses that should be equal, and why others are not
BARS = [
    ("dqn", "double DQN", 1, 3.0),
    ("cql", "discrete CQL", 1, 3.0),
    ("bcq", "discrete BCQ", 1, 3.0),
    ("fqe", "FQE", 1, 3.0),
    ("dqn", "double DQN", 10, 15.0),
    ("cql", "discrete CQL", 10, 15.0),
    ("bcq", "discrete BCQ", 10, 15.0),
    ("fqe", "FQE", 10, 15.0),
    ("cql-continuous", "continuous CQL", 1, 1.0),
    ("iql-continuous", "IQL", 1, 2.0),
    ("bcq-continuous", "continuous BCQ", 1, 2.0),
    ("preferences", "256 pairs of 50 steps", 1, 30.0),
]
# Products of 256 x 256 x 256 that no update of a member can do without: forward on s, two backward; double DQN chooses by a forward on s',
# and BCQ has a second network. A target that is looked up has none.
PRODUCTS = {"dqn": 4, "cql": 4, "bcq": 8, "fqe": 3}
DIFFERENCES = {
    "bcq": "clone differs by the penalty: d3rlpy squares the normalised log-probabilities (torch's Categorical normalises its logits), ours "
    "the logits, as the authors' code does; d3rlpy is run with share_encoder = False, as the two networks are apart here",
    "cql-continuous": "not compared: d3rlpy's target takes the mode of the policy at the next observation, the paper's code and ours "
    "a sample of it; both draw ten actions of each kind for the gap",
    "bcq-continuous": "not compared: every term holds samples",
}


def measure(kind: str, what: str, members: int, bar: float, rounds: int) -> dict[str, Any]:
    data = RESULTS / f"control-{kind}.npz"
    ours = Contender(
        "holdfast",
        [sys.executable, str(HERE / "control_ours.py"), str(data), kind, str(members), str(THREADS), "write"],
    )
    name = "imitation" if kind == "preferences" else "d3rlpy"
    command = [str(peer(name)), str(HERE / "peers" / f"{name}_worker.py"), str(data)]
    theirs = Contender(name, [*command, *([kind, str(members)] if name == "d3rlpy" else []), str(THREADS)])
    both = [ours, theirs]
    try:
        for c in both:
            c.start(RESULTS / f"control-{kind}-{members}-{c.name}.log")
        losses = [c.ask("losses")["losses"] for c in both] if members == 1 else [{}, {}]  # before anything has learnt
        for n in range(rounds + 1 if rounds else 0):
            for c in both:
                answer = c.ask("step")
                if n:  # the first warms up
                    c.rounds.append(answer)
    finally:
        for c in both:
            c.end()
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours.rounds, theirs.rounds, strict=True)] or [0.0]
    return {
        "kind": kind,
        "what": what,
        "members": members,
        "bar": bar,
        "peer": name,
        "version": theirs.ready.get("version"),
        "ours_ms": _median(ours),
        "theirs_ms": _median(theirs),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "products_ms": members * PRODUCTS[kind] * one_product() if kind in PRODUCTS else None,
        "losses": {n: [losses[0][n], losses[1][n]] for n in losses[1]},
    }


def one_product() -> float:
    """Milliseconds of one product of 256 x 256 x 256 by the library that training takes, its operands at hand."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(2, 256, 256)
    seconds = []
    for _ in range(1000):
        began = time.perf_counter()
        product(a, b)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def _median(c: Contender) -> float:
    """Milliseconds per update."""
    return statistics.median(r["seconds"] for r in c.rounds) * 1e3 if c.rounds else 0.0


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        "# Control, side by side",
        "",
        "Made by `python bench/control.py`: contenders take turns within one run, each in an environment of its own; every figure is a ratio",
        f"of the same turn. {THREADS} threads, batch 256, hidden layers 256 x 256 (preferences: 32 x 32), {platform.machine()}, {date.today()}.",
        "Ours are whole steps of the loop: order, fingerprint and digests included. Ten at once are ten seeds: ours in one batched network,",
        "the peer's one after another. `products alone`: what the matrix products of 256 x 256 x 256 of an update take on this machine and as",
        "many threads with their operands at hand, and how many times as fast an update would be that did nothing else.",
        "",
        "| | peer | at once | ours, ms an update | theirs | times as fast: median [least, most] | to reach | | products alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        met = "met" if r["ratio"] >= r["bar"] else "**missed**"
        least = r.get("products_ms")
        floor = f"{least:.2f} ms, {r['theirs_ms'] / least:.1f} times" if least else ""
        lines.append(
            f"| {r['what']} | {r['peer']} {r['version'] or ''} | {r['members']} | {r['ours_ms']:.2f} | {r['theirs_ms']:.2f} | "
            f"{r['ratio']:.1f} [{r['least']:.1f}, {r['most']:.1f}] | {r['bar']:g} | {met} | {floor} |"
        )
    lines += [
        "",
        "## Losses on the same rows and weights",
        "",
        "| | loss | ours | theirs | apart |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        for name, (a, b) in r["losses"].items():
            lines.append(f"| {r['what']} | {name} | {a:.7f} | {b:.7f} | {abs(a - b) / max(abs(b), 1e-12):.1e} |")
    for kind, why in DIFFERENCES.items():
        if any(r["kind"] == kind for r in results):
            lines.append(f"| {next(w for k, w, *_ in BARS if k == kind)} | | | | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="0: losses alone")
    asked = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / "control-speed.json"
    results = {(r["kind"], r["members"]): r for r in (json.loads(kept.read_text()) if kept.exists() else [])}
    for kind, what, members, bar in BARS:
        if (asked.kinds and kind not in asked.kinds) or (members > 1 and not asked.rounds):
            continue
        found = measure(kind, what, members, bar, asked.rounds)
        results[kind, members] = found
        print(
            f"{what}, {members}: {found['ratio']:.1f} [{found['least']:.1f}, {found['most']:.1f}], to reach {bar:g}",
            flush=True,
        )
        kept.write_text(json.dumps(list(results.values()), indent=1))
    ordered = [results[k, m] for k, _, m, _ in BARS if (k, m) in results]
    (HERE.parent / "docs" / "control-speed.md").write_text(page(ordered))


if __name__ == "__main__":
    main()
