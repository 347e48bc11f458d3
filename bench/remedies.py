"""What each remedy against a biased dataset does to a reward model: docs/remedies.md.

    python bench/remedies.py --out OUT --seeds 2        all of it; what is done already is skipped
    python bench/remedies.py --out OUT --page           only the page, from what is done

A seed splits alpaca-eval's prompts (an AI judge's preferences, in which the longer answer wins nine times in ten) into training and test, makes a
small base from nothing on the training answers, and trains one reward model per remedy from that base, for as many steps each. Every
model scores the test prompts, pandalm and hh-harmless (people's preferences). Intervals: 95 %, from a bootstrap over prompts, of the seeds' rows
pooled; differences to `none` on the same resamples. Needs ../shared/data and no network.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from holdfast import pipeline
from holdfast.data.curate import curate
from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.freeze import freeze
from holdfast.data.splits import make_split
from holdfast.evaluation.figures import resample
from holdfast.recipe import SplitTable, load_recipe

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
PAGE, RESULTS = ROOT / "docs" / "remedies.md", ROOT / "bench" / "results" / "remedies.json"
SETS = {"alpaca test": "alpaca-eval.parquet", "pandalm": "pandalm.jsonl.gz", "hh": "hh-harmless.jsonl.gz"}
MANY = ["length", "lines", "bullets", "numbered items", "headings", "bold"]


def held(share: float, features: list[str]) -> dict[str, Any]:
    return {"debias": {"features": features, "share": share, "rate": 0.0}}


# A remedy: rules of curation on the training rows, and tables of the recipe.
REMEDIES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "none": ([], {}),
    "debias length, all of it": ([], held(1.0, ["length"])),
    "debias length, half": ([], held(0.5, ["length"])),
    "debias length, a quarter": ([], held(0.25, ["length"])),
    "weights: longer = shorter": ([], {"data": {"weights": {"balance": ["longer"]}}}),
    "counterfactual: padded": ([{"kind": "counterfactual", "how": "padded", "share": 0.5}], {}),
    "counterfactual: other prompt": ([{"kind": "counterfactual", "how": "other-prompt", "share": 0.5}], {}),
    "balance: longer = shorter": ([{"kind": "balance", "column": "longer"}], {}),
    "debias length, fitted beside": ([], {"debias": {"features": ["length"], "rate": 0.05}}),
    "debias length and lists, half": ([], held(0.5, MANY)),
    "other prompt + debias, a quarter": (
        [{"kind": "counterfactual", "how": "other-prompt", "share": 0.5}],
        held(0.25, ["length"]),
    ),
    "weights: category x length": ([], {"data": {"weights": {"balance": ["category", "length"]}}}),
}


def recipe(seed: int, steps: int, threads: int, dataset: Path, base: Path | None, tables: dict[str, Any]) -> Any:
    said: dict[str, Any] = {
        "run": {"threads": threads, "seed": seed},
        "data": {"dataset": str(dataset), "split": {"validation": 0.0, "test": 0.0}},
        "model": {"scratch": {"vocab": 4096, "hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2, "context": 384}},
        "text": {"max_length": 384, "too_long": "truncate-response-right"},
        "objective": {"kind": "sft"},
        "train": {"batch": 16, "steps": steps, "lr": 2e-3, "warmup": 20, "checkpoint_every": 1000},
        "evaluate": {"bootstrap": 20, "examples": 0},
    }
    if base is not None:
        said["model"] = {"path": str(base)}
        said["objective"] = {"kind": "reward", "centre": 0.01}
        said["train"] |= {"batch": 32, "per_prompt": 8, "lr": 5e-4}
        said["data"] |= tables.get("data", {})
        said |= {name: table for name, table in tables.items() if name != "data"}
    return load_recipe(said)


def part(ds: Dataset, rows: np.ndarray, out: Path) -> Path:
    """These rows as a dataset of their own."""
    if not (out / "manifest.json").exists():
        listed = out.with_suffix(".rows")
        listed.write_text("\n".join(ds.row_id(r) for r in rows.tolist()))
        curate(ds, [{"kind": "keep", "rows": str(listed)}], out)
    return out


def measure(out: Path, seeds: int, steps: int, threads: int) -> None:
    for name, file in SETS.items():
        if not (out / "data" / name / "manifest.json").exists():
            freeze(DATA / file, out / "data" / name, on_error="skip")
    alpaca = open_dataset(out / "data" / "alpaca test")
    for seed in range(seeds):
        here = out / str(seed)
        here.mkdir(exist_ok=True)
        parts = make_split(alpaca, SplitTable(seed=seed, validation=0.0, test=0.2)).parts
        train, test = part(alpaca, parts["train"], here / "train"), part(alpaca, parts["test"], here / "test")
        pipeline.train(recipe(seed, 250, threads, train, None, {}), here / "base", quiet=True)
        for name, (rules, tables) in REMEDIES.items():
            run, started = here / name, time.time()
            if (run / "scored.json").exists():
                continue
            data = train
            if rules:
                data = here / f"{name} data"
                if not (data / "manifest.json").exists():
                    curate(open_dataset(train), rules, data)
            pipeline.train(recipe(seed, steps, threads, data, here / "base", tables), run, quiet=True)
            where = {}
            for on in SETS:
                said = pipeline.evaluate(run, test if on == "alpaca test" else out / "data" / on)
                where[on] = said["facts"]["dataset_root"][:16]
            took = time.time() - started
            (run / "scored.json").write_bytes(orjson.dumps({"sets": where, "seconds": took, "steps": steps}))
            print(f"seed {seed}  {name}  {took:.0f} s", flush=True)


def figures(out: Path, seeds: int) -> dict[str, Any]:
    """Per set and remedy: accuracy, accuracy where the shorter is better, agreement with the length rule; each with its interval and
    its difference to `none`.
    """
    found: dict[str, Any] = {"seeds": 0, "steps": None, "sets": {}, "debias": {}}
    done = [s for s in range(seeds) if all((out / str(s) / name / "scored.json").exists() for name in REMEDIES)]
    found["seeds"] = len(done)
    for on in SETS:
        sums: dict[str, np.ndarray] = {}
        for name in REMEDIES:
            columns = []
            for seed in done:
                run = out / str(seed) / name
                said = orjson.loads((run / "scored.json").read_bytes())
                found["steps"] = said["steps"]
                rows = pq.read_table(run / "evaluations" / said["sets"][on] / "rows.parquet")
                gap = rows["reward_a"].to_numpy() - rows["reward_b"].to_numpy()
                side, longer = np.sign(rows["p"].to_numpy() - 0.5), rows["longer"].to_numpy().astype(float)
                decided, shorter, unequal = side != 0, longer * side < 0, (longer != 0) & (side != 0)
                right, agrees = (np.sign(gap) * side + 1) / 2, (np.sign(gap) * longer + 1) / 2
                each = [
                    decided,
                    right * decided,
                    shorter,
                    right * shorter,
                    unequal,
                    agrees * unequal,
                    (longer * side + 1) / 2 * decided,
                ]
                columns.append((rows["prompt"].to_pylist(), np.stack(each, axis=1).astype(float)))
            prompts, of = np.unique([p for names, _ in columns for p in names], return_inverse=True)
            table = np.concatenate([c for _, c in columns])
            sums[name] = np.stack(
                [np.bincount(of, table[:, k], minlength=len(prompts)) for k in range(table.shape[1])], axis=1
            )
        everything = np.concatenate(list(sums.values()), axis=1)
        drawn = resample(everything, 2000, f"remedies|{on}")

        def ratios(t: np.ndarray) -> np.ndarray:
            """(..., remedies, 4): accuracy, on the shorter, agreement with the rule, the rule's own accuracy."""
            t = t.reshape(*t.shape[:-1], len(REMEDIES), 7)
            return np.stack(
                [t[..., 1] / t[..., 0], t[..., 3] / t[..., 2], t[..., 5] / t[..., 4], t[..., 6] / t[..., 0]], axis=-1
            )

        value, draws = ratios(everything.sum(0)), ratios(drawn)
        gain, gains = value - value[:1], draws - draws[:, :1]
        cell: dict[str, Any] = {
            "prompts": len(everything),
            "comparisons": int(everything[:, 0].sum()),
            "shorter": int(everything[:, 2].sum()),
        }
        cell["rule"] = _with(value[0, 3], draws[:, 0, 3])
        cell["remedies"] = {
            name: {
                what: {**_with(value[i, k], draws[:, i, k]), "gain": _with(gain[i, k], gains[:, i, k])}
                for k, what in enumerate(("accuracy", "shorter", "agreement"))
            }
            for i, name in enumerate(REMEDIES)
        }
        found["sets"][on] = cell
    for name, (_, tables) in REMEDIES.items():
        if "debias" in tables and done:
            lines = (out / str(done[0]) / name / "ledger.jsonl").read_bytes().splitlines()
            steps = [e["after"]["debias"] for e in map(orjson.loads, lines) if e["kind"] == "step"]
            found["debias"][name] = [{k: float.fromhex(v) for k, v in s.items()} for s in (steps[0], steps[-1])]
        if "data" in tables and done:
            opened = orjson.loads((out / str(done[0]) / name / "ledger.jsonl").read_bytes().splitlines()[0])
            facts = opened["facts"]["weights"]
            found.setdefault("weights", {})[name] = [float.fromhex(facts["effective"]), facts["judgements"]]
    return found


def _with(value: float, draws: np.ndarray) -> dict[str, float]:
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return {"value": float(value), "lo": float(lo), "hi": float(hi)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "remedies-out")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="only the page, from what is done")
    asked = parser.parse_args()
    os.environ.setdefault("HOLDFAST_CACHE", str(asked.out / "cache"))
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.page:
        measure(asked.out, asked.seeds, asked.steps, asked.threads)
    RESULTS.write_bytes(
        orjson.dumps(figures(asked.out, asked.seeds), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    )


if __name__ == "__main__":
    main()
