"""Two or more runs on the same comparisons: paired differences, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import DataError
from holdfast.evaluation.figures import LEVEL, resample
from holdfast.evaluation.table import Evaluation, read_evaluation


def compare(runs: Sequence[str | Path], *, bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Accuracy of each run against the first, on the comparisons that both were evaluated on.

    Runs are matched by evaluation folder (`held-out`, or another dataset's root), part, and judgement; a pair of right and wrong on the same
    comparison is one observation, so the interval of the difference is narrower than two intervals suggest. Prompts are resampled.

    Returns {"level", "comparisons": [{"run", "against", "evaluation", "part", "n", "prompts", "accuracy", "accuracy_against",
    "difference": {"value", "lo", "hi"}}]}. Raises DataError where runs have no comparison in common.
    """
    if len(runs) < 2:
        raise DataError(f"compare needs two runs or more, got {len(runs)}")
    found = [_evaluations(Path(run)) for run in runs]
    lines: list[dict[str, Any]] = []
    for run, evaluations in zip(runs[1:], found[1:], strict=True):
        shared = [name for name in found[0] if name in evaluations]
        before = len(lines)
        for name in shared:
            lines += [
                {"run": str(run), "against": str(runs[0]), "evaluation": name, **line}
                for line in _paired(found[0][name], evaluations[name], bootstrap, f"{seed}|{name}")
            ]
        if len(lines) == before:
            raise DataError(
                f"{runs[0]} and {run} were evaluated on no comparison in common; evaluate both --on one dataset"
            )
    return {"level": LEVEL, "comparisons": lines}


def _evaluations(run: Path) -> dict[str, Evaluation]:
    folders = sorted(p.parent for p in (run / "evaluations").glob("*/metrics.json"))
    if not folders:
        raise DataError(f"{run} has no evaluation; run `holdfast evaluate {run}` first")
    return {folder.name: read_evaluation(folder) for folder in folders}


def _paired(first: Evaluation, other: Evaluation, bootstrap: int, seed: str) -> list[dict[str, Any]]:
    columns = ["judgement", "edge", "part", "prompt", "p", "weight", "reward_a", "reward_b"]
    tables = [e.table().select(columns).to_pydict() for e in (first, other)]
    at = [{key: i for i, key in enumerate(zip(t["judgement"], t["edge"], t["part"], strict=True))} for t in tables]
    shared = [key for key in at[0] if key in at[1]]
    lines = []
    for part in sorted({key[2] for key in shared}):
        places = [[a[key] for key in shared if key[2] == part] for a in at]
        p, weight = (np.array(tables[0][name], dtype=float)[places[0]] for name in ("p", "weight"))
        side = np.sign(p - 0.5)
        right = [
            0.5 + 0.5 * side * np.sign(np.array(t["reward_a"])[i] - np.array(t["reward_b"])[i])
            for t, i in zip(tables, places, strict=True)
        ]
        weight = weight * (side != 0)
        _, prompt_of = np.unique(np.array(tables[0]["prompt"])[places[0]], return_inverse=True)
        sums_PK = np.stack([np.bincount(prompt_of, w) for w in (weight, weight * right[0], weight * right[1])], axis=1)
        if not sums_PK[:, 0].sum():
            continue
        total, ours, theirs = sums_PK.sum(0)
        drawn = resample(sums_PK, bootstrap, f"{seed}|{part}")
        with np.errstate(invalid="ignore"):
            low, high = np.nanquantile((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        lines.append(
            {
                "part": part,
                "n": int((side != 0).sum()),
                "prompts": len(sums_PK),
                "accuracy": float(theirs / total),
                "accuracy_against": float(ours / total),
                "difference": {"value": float((theirs - ours) / total), "lo": float(low), "hi": float(high)},
            }
        )
    return lines
