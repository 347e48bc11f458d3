"""What the ledger, the fingerprints and the determinism switches cost a step: `python bench/ledger.py`

Two workers of the speed bench take turns on the same steps of hh-harmless, one as it is, one without any of them. The bar: at most 2 %.
Writes bench/results/ledger.json.
"""

from __future__ import annotations

import json
import statistics
import sys

import workloads
from speed import HERE, RESULTS, Contender, machine

ROUNDS = workloads.STEPS - 1
BAR = 1.02


def main() -> None:
    workloads.prepare("hh")
    ours = [sys.executable, str(HERE / "ours.py"), "hh"]
    both = [Contender("on", ours), Contender("off", [*ours, "--bare"])]
    RESULTS.mkdir(exist_ok=True)
    try:
        for c in both:
            c.start(RESULTS / f"ledger-{c.name}.log")
        for n in range(ROUNDS):
            for c in both[:: 1 if n % 2 else -1]:
                c.rounds.append(c.ask("step"))
            print("  " + "  ".join(f"{c.name} {c.rounds[-1]['seconds']:.3f} s" for c in both), flush=True)
        for c in both:
            c.end()
    finally:
        for c in both:
            if c.process is not None and c.process.poll() is None:
                c.process.kill()
    on, off = (c.rounds[1:] for c in both)  # the first step warms up
    assert all(a["loss"] == b["loss"] for a, b in zip(on, off, strict=True)), "they do not compute the same"
    ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(on, off, strict=True))
    median = statistics.median(ratios)
    said = {
        "met": median <= BAR,
        "ratio": median,
        "ratios": ratios,
        "machine": machine(),
        "page": [
            f"A step with all of them takes {median:.3f} times as long as without any (median of {len(ratios)} rounds; "
            f"least {ratios[0]:.3f}, most {ratios[-1]:.3f}); the bar is {BAR}: {'met' if median <= BAR else 'missed'}."
        ],
    }
    (RESULTS / "ledger.json").write_text(json.dumps(said, indent=1) + "\n")
    print(said["page"][0])


if __name__ == "__main__":
    main()
