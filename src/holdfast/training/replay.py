"""Recompute a window of a run's steps from the nearest state before it, and compare what comes out with the ledger, to
the byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.data.offline import offline
from holdfast.errors import DataError
from holdfast.recipe import RunTable, TrainTable
from holdfast.training.checkpoint import intact, load_checkpoint, trained_state, weights_digest
from holdfast.training.determinism import derive, deterministic, environment
from holdfast.training.fit import Trainer, held_out_rows, open_record
from holdfast.training.ledger import Entry, History, differences, exact, read_ledger
from holdfast.training.objective import Learner, Objective, Rows


def replay(
    objective: Objective | Learner,
    rows: Rows,
    settings: TrainTable,
    run: RunTable,
    folder: Path,
    first: int,
    last: int,
    *,
    facts: dict[str, Any],
    held_out: np.ndarray | None = None,
) -> dict[str, Any]:
    """Take steps `first` to `last` (both included) again and compare. Everything but the window is as for `fit`; the
    folder is only read.

    The result: `ok`; `steps`, how many of the window came out the same; `from`, the step whose state it started from
    (0: the base); `problems`, one line each: what this environment lacks, what is another run's, or which step and
    field came out different. Held-out figures and weights digests that the ledger has in the window are recomputed and
    compared as well.
    """
    entries, _ = read_ledger(folder / "ledger.jsonl")
    if not entries:
        raise DataError(f"{folder} has an empty ledger: nothing to replay")
    history = History.of(entries)
    if not 1 <= first <= last <= len(history.steps):
        raise DataError(f"steps {first}:{last} are not all in the ledger, which has steps 1:{len(history.steps)}")
    result: dict[str, Any] = {"ok": False, "steps": 0, "from": None, "problems": []}
    trainer = Trainer(objective, rows, settings, run)
    held = held_out_rows(held_out, settings, run.seed) if held_out is not None else None
    roots = [facts["dataset"]] if isinstance(facts.get("dataset"), str) else []
    with deterministic(run), offline(*roots):
        # Can the same bytes be expected here at all?
        at = next(i for i, e in enumerate(entries) if e["kind"] == "step" and e["step"] == last)
        then = History.of(entries[: at + 1]).environment
        for n, a, b in differences(then, exact({**environment(run), **trainer.ranks.facts})):
            as_then = "`holdfast replay`" if a == "absent" else f"`torchrun --nproc-per-node {a} -m holdfast replay`"
            how = f"; replay it with {as_then}" if n == "processes" else ""
            result["problems"].append(f"environment: {n} was {a}, here {b}{how}")
        torch.manual_seed(derive(run.seed, "begin"))
        record = exact({**open_record(trainer, facts, held), "objective": objective.begin()})
        record["rows"]["sha256"] = history.open["rows"]["sha256"]
        if held is None:
            record["held_out"] = history.open["held_out"]
        said = {name: history.open.get(name) for name in record}
        result["problems"] += [f"another run: {n} was {a}, here {b}" for n, a, b in differences(said, record)]
        if result["problems"]:
            return result

        usable = [e for e in history.checkpoints if not e["best"] and e["step"] < first]
        moved = max((e["step"] for e in entries if e["kind"] == "environment"), default=0)
        start = next(
            (
                e
                for e in reversed(usable)
                if intact(folder / "checkpoints" / e["folder"], e["files"]) and e["step"] >= moved
            ),
            None,
        )
        if start is None and moved:
            result["problems"].append(
                f"no checkpoint since the environment changed at step {moved} is left to start from"
            )
            return result
        if start is not None:
            load_checkpoint(folder / "checkpoints" / start["folder"], objective, trainer.optimiser)
        step = result["from"] = start["step"] if start is not None else 0

        def compare(entry: Entry, **now: Any) -> bool:
            differ = differences({name: entry[name] for name in now}, exact(now))
            result["problems"] += [
                f"step {step}, {entry['kind']}: {n} in the ledger {a}, recomputed {b}" for n, a, b in differ
            ]
            return not differ

        while step < last:
            step += 1
            same = compare(history.steps[step - 1], **trainer.step(step)[0])
            for entry in history.figures:
                if held is not None and entry["step"] == step >= first:
                    same &= compare(entry, figures=trainer.figures(step, held))
            for entry in history.checkpoints:
                if entry["step"] == step:
                    same &= compare(entry, weights=weights_digest(trained_state(objective.model)))
            if not same:  # what follows a difference differs too
                return result
            result["steps"] += step >= first
        result["ok"] = True
    return result
