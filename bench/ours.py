"""Holdfast as a worker of the speed bench: `holdfast.train`, stopped before every step until the conductor says go.

    python bench/ours.py WORKLOAD [--apart] [--padded] [--lean] [--bare] ...

--apart: every pair carries its own prompt and responses, as in a trainer of pairs; --padded: the plain padded path; --lean: in
little memory, a step cut into forwards of 512 tokens whose layers are computed again in the backward; --bare: no ledger, no
fingerprints, no figures written and no determinism switches.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import meter
import workloads


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--padded", action="store_true")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--lean", action="store_true")
    parser.add_argument("--threads", type=int, default=workloads.THREADS)
    args = parser.parse_args()

    from holdfast import pipeline
    from holdfast.training.fit import Trainer

    began = time.perf_counter()
    said = workloads.recipe(workloads.WORKLOADS[args.workload], args.threads)
    if args.padded:
        said["model"]["compute"] = "padded"
    if args.lean:
        said["train"]["micro_tokens"], said["run"]["checkpointing"] = 512, True
    if args.apart:
        _apart()
    if args.bare:
        _bare(args.threads)
    state: dict[str, Any] = {}
    take = Trainer.step

    def step(self: Trainer, number: int) -> Any:
        """A step ends where the loop asks for the next one, so that what it writes of it is inside."""
        if "meter" not in state:
            state["meter"] = meter.Meter(self.objective.model)
            meter.say(ready=time.perf_counter() - began, peak=meter.peak())
        else:
            state["meter"].end(**state["last"])
        if state["meter"].begin() == "end":
            os._exit(0)
        recorded, metrics, tokens = take(self, number)
        state["last"] = {"loss": recorded["loss"], "norm": recorded["grad_norm"]}
        return recorded, metrics, tokens

    Trainer.step = step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="holdfast-speed-") as folder:
        pipeline.train(said, Path(folder) / "run", quiet=True)


def _apart() -> None:
    """Packing without sharing between judgements: each pair brings its own prompt (once) and its own two responses. A response that
    several pairs name is then computed several times, to the same numbers. What sharing is worth is measured against this.
    """
    import numpy as np

    from holdfast.language import objectives, packing

    def pair_by_pair(prompts: Any, responses: Any) -> list[tuple[int, list[int]]]:
        return [(int(prompts[i]), [int(responses[i]), int(responses[i + 1])]) for i in range(0, len(prompts), 2)]

    def unjoined(tokens: Any, groups: Any) -> Any:
        def ids(ragged: Any, i: int) -> Any:
            return np.asarray(ragged[i], dtype=np.int64)

        return [(ids(tokens.prompts, p), [(r, ids(tokens.responses, r)) for r in rs]) for p, rs in groups]

    objectives.by_prompt = pair_by_pair  # type: ignore[assignment]
    packing._join = unjoined  # type: ignore[assignment]


def _bare(threads: int) -> None:
    """The loop without what proves it: what that costs is measured against this."""
    from contextlib import nullcontext

    import torch

    from holdfast.training import fit
    from holdfast.training.ledger import Ledger

    def nothing(self: Ledger, kind: str, **fields: Any) -> Any:
        self.n += 1
        return {"n": self.n, "kind": kind, "hash": "", **fields}

    torch.set_num_threads(threads)
    fit.deterministic = lambda run: nullcontext()  # type: ignore[assignment]
    fit.fingerprint = lambda *said: ""  # type: ignore[assignment]
    Ledger.append = nothing  # type: ignore[method-assign]
    Ledger.sync = lambda self: None  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
