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
MARK = "<!-- from here on made by bench/remedies.py -->\n"
MANY = ["length", "lines", "bullets", "numbered items", "headings", "bold"]


def held(share: float, features: list[str]) -> dict[str, Any]:
    return {"debias": {"features": features, "share": share, "rate": 0.0}}


# A remedy: rules of curation on the training rows, and tables of the recipe.
REMEDIES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "none": ([], {}),
    "debias length, all of it": ([], held(1.0, ["length"])),
    "debias length, three quarters": ([], held(0.75, ["length"])),
    "debias length, half": ([], held(0.5, ["length"])),
    "debias length, a quarter": ([], held(0.25, ["length"])),
    "weights: longer = shorter": ([], {"data": {"weights": {"balance": ["longer"]}}}),
    "counterfactual: padded": ([{"kind": "counterfactual", "how": "padded", "share": 0.5}], {}),
    "counterfactual: other prompt": ([{"kind": "counterfactual", "how": "other-prompt", "share": 0.5}], {}),
    "balance: longer = shorter": ([{"kind": "balance", "column": "longer"}], {}),
    "debias length, fitted beside": ([], {"debias": {"features": ["length"], "rate": 0.05}}),
    "debias length and lists, half": ([], held(0.5, MANY)),
    "padded + debias, three quarters": (
        [{"kind": "counterfactual", "how": "padded", "share": 0.5}],
        held(0.75, ["length"]),
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


def measure(out: Path, seeds: int, steps: int, threads: int, only: list[str] | None) -> None:
    for name, file in SETS.items():
        if not (out / "data" / name / "manifest.json").exists():
            freeze(DATA / file, out / "data" / name, on_error="skip")
    alpaca = open_dataset(out / "data" / "alpaca test")
    for seed in range(seeds):
        here = out / str(seed)
        here.mkdir(exist_ok=True)
        parts = make_split(alpaca, SplitTable(seed=seed, validation=0.0, test=0.2)).parts
        train, test = part(alpaca, parts["train"], here / "train"), part(alpaca, parts["test"], here / "test")
        if not (here / "base" / "model" / "config.json").exists():
            pipeline.train(recipe(seed, 250, threads, train, None, {}), here / "base", quiet=True)
        for name, (rules, tables) in REMEDIES.items():
            run, started = here / name, time.time()
            if (run / "scored.json").exists() or (only and name not in only):
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
    its difference to `none` on the same seeds. Only what is done.
    """
    seeds_of = {
        name: [s for s in range(seeds) if all((out / str(s) / n / "scored.json").exists() for n in ("none", name))]
        for name in REMEDIES
    }
    done = {name: of for name, of in seeds_of.items() if of}
    found: dict[str, Any] = {"seeds": done, "steps": None, "sets": {}, "debias": {}, "weights": {}, "by seed": {}}
    for on in SETS:
        tables: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        for name, of in done.items():
            for seed in of:
                run = out / str(seed) / name
                said = orjson.loads((run / "scored.json").read_bytes())
                found["steps"] = said["steps"]
                rows = pq.read_table(run / "evaluations" / said["sets"][on] / "rows.parquet")
                gap = rows["reward_a"].to_numpy() - rows["reward_b"].to_numpy()
                side, longer = np.sign(rows["p"].to_numpy() - 0.5), rows["longer"].to_numpy().astype(float)
                decided, shorter, unequal = side != 0, longer * side < 0, (longer != 0) & (side != 0)
                right, agrees = (np.sign(gap) * side + 1) / 2, (np.sign(gap) * longer + 1) / 2
                rule = (longer * side + 1) / 2
                each = [decided, right * decided, shorter, right * shorter, unequal, agrees * unequal, rule * decided]
                table = np.stack(each, axis=1).astype(float)
                tables[name, seed] = np.array(rows["prompt"].to_pylist()), table
                found["by seed"].setdefault(name, {}).setdefault(on, []).append(_ratios(table.sum(0))[:3].tolist())
        cell: dict[str, Any] = {"remedies": {}}
        for name, of in done.items():
            prompts, at = np.unique(np.concatenate([tables[name, s][0] for s in of]), return_inverse=True)
            both = np.concatenate(
                [np.concatenate([tables[name, s][1], tables["none", s][1]], axis=1) for s in of]
            )  # scored on the same rows
            sums = np.stack([np.bincount(at, both[:, k], minlength=len(prompts)) for k in range(14)], axis=1)
            drawn = resample(sums, 2000, f"remedies|{on}")
            value, draws = _ratios(sums.sum(0)[:7]), _ratios(drawn[:, :7])
            gain, gains = value - _ratios(sums.sum(0)[7:]), draws - _ratios(drawn[:, 7:])
            cell["remedies"][name] = {
                what: {**_with(value[k], draws[:, k]), "gain": _with(gain[k], gains[:, k])}
                for k, what in enumerate(("accuracy", "shorter", "agreement"))
            }
            if name == "none":
                cell |= {
                    "prompts": len(prompts),
                    "comparisons": int(sums[:, 0].sum()),
                    "shorter": int(sums[:, 2].sum()),
                }
                cell["rule"] = _with(value[3], draws[:, 3])
        found["sets"][on] = cell
    for name, of in done.items():
        entries = map(orjson.loads, (out / str(of[0]) / name / "ledger.jsonl").read_bytes().splitlines())
        opened, *rest = entries
        steps = [e["after"]["debias"] for e in rest if e["kind"] == "step" and "debias" in e.get("after", {})]
        if steps:
            found["debias"][name] = [{k: float.fromhex(v) for k, v in s.items()} for s in (steps[0], steps[-1])]
        if facts := opened["facts"].get("weights"):
            found["weights"][name] = [float.fromhex(facts["effective"]), facts["judgements"]]
    return found


def _ratios(t: np.ndarray) -> np.ndarray:
    """(..., 4): accuracy, on the shorter, agreement with the length rule, the rule's own accuracy; from (..., 7) sums."""
    return np.stack(
        [t[..., 1] / t[..., 0], t[..., 3] / t[..., 2], t[..., 5] / t[..., 4], t[..., 6] / t[..., 0]], axis=-1
    )


def page(found: dict[str, Any]) -> str:
    """The measured part of docs/remedies.md: a table per set, the bar, and what stood beside the reward."""
    sets, steps = found["sets"], found["steps"]
    lines = [
        "Made by `python bench/remedies.py`. A seed is a split of the prompts, a base and an order of its own; the seeds' "
        "comparisons are pooled. Each run takes "
        f"{steps} steps of 32 judgements. In parentheses 95 % intervals, from a bootstrap over prompts; the second "
        "figure in a cell is the difference to `none` on the same resamples, in bold where its interval does not hold 0. `shorter` is the "
        "accuracy on the pairs in which the shorter response is preferred; `agrees` how often the model prefers the longer of two "
        "responses, whoever is right.",
        "",
    ]
    for name, cell in sets.items():
        lines += [
            f"### {name}: {cell['comparisons']:,} comparisons on {cell['prompts']:,} prompts, {cell['shorter']:,} with the shorter one preferred",
            "",
            f"“The longer one wins” is right for {_percent(cell['rule'])}.",
            "",
            "| remedy | seeds | accuracy | shorter | agrees |",
            "|---|---|---|---|---|",
        ]
        for remedy, f in cell["remedies"].items():
            said = [_cell(f[what], remedy == "none") for what in ("accuracy", "shorter", "agreement")]
            lines.append(f"| {remedy} | {len(found['seeds'][remedy])} | {' | '.join(said)} |")
        lines.append("")
    remedies = [r for r in found["seeds"] if r != "none"]
    pandalm = sets["pandalm"]["remedies"]
    cheap = [r for r in remedies if pandalm[r]["accuracy"]["gain"]["value"] >= -0.02]
    gains = {r: [cell["remedies"][r]["shorter"]["gain"] for cell in sets.values()] for r in cheap}
    better = [r for r in cheap if gains[r][0]["value"] > 0 and gains[r][1]["value"] > 0]
    lines += ["### The bar", ""]
    if better:
        best = max(better, key=lambda r: sum(g["value"] for g in gains[r]))
        said = ", ".join(f"{name} {_points(g)}" for name, g in zip(sets, gains[best], strict=True))
        lines.append(
            f"Of the remedies that lose no more than 2 points of accuracy on pandalm, **{best}** gains most where the shorter response is preferred: "
            f"{said}. On pandalm as a whole it is {_points(pandalm[best]['accuracy']['gain'])}."
        )
        by_seed = {}
        for name in sets:
            none = dict(zip(found["seeds"]["none"], found["by seed"]["none"][name], strict=True))
            own = dict(zip(found["seeds"][best], found["by seed"][best][name], strict=True))
            by_seed[name] = [f"{100 * (own[s][1] - none[s][1]):+.1f}".replace("-", "−") for s in own]
        lines.append(
            "The intervals know of the prompts that were drawn and not of the chance in training: seed by seed the gain on the shorter is "
            + "; ".join(f"{name} {', '.join(each)}" for name, each in by_seed.items())
            + "."
        )
    else:
        lines.append(
            "No remedy gains where the shorter response is preferred without losing more than 2 points of accuracy on pandalm."
        )
    lines += ["", "### What stood beside the reward, and what weights left", "", "| remedy | |", "|---|---|"]
    for remedy, (first, last) in found["debias"].items():
        said = "; ".join(
            f"{k} {first[k]:.2f}" + (f" → {last[k]:.2f}" if abs(last[k] - first[k]) > 0.005 else "") for k in first
        )
        lines.append(f"| {remedy} | log-odds per usual difference, after the first step (→ the last): {said} |")
    for remedy, (effective, n) in found.get("weights", {}).items():
        lines.append(f"| {remedy} | {n:,} judgements tell as much as {effective:,.0f} that weigh the same |")
    return "\n".join([*lines, ""])


def _percent(f: dict[str, float]) -> str:
    return f"{100 * f['value']:.1f} % ({100 * f['lo']:.1f} to {100 * f['hi']:.1f})"


def _points(f: dict[str, float]) -> str:
    return f"{100 * f['value']:+.1f} points ({100 * f['lo']:+.1f} to {100 * f['hi']:+.1f})".replace("-", "−")


def _cell(f: dict[str, Any], none: bool) -> str:
    if none:
        return f"{100 * f['value']:.1f} ({100 * f['lo']:.1f} to {100 * f['hi']:.1f})"
    gain = f["gain"]
    said = f"{100 * gain['value']:+.1f}".replace("-", "−")
    sure = gain["lo"] > 0 or gain["hi"] < 0
    return f"{100 * f['value']:.1f}, {f'**{said}**' if sure else said} ({100 * gain['lo']:+.1f} to {100 * gain['hi']:+.1f})".replace(
        "-", "−"
    )


def _with(value: float, draws: np.ndarray) -> dict[str, float]:
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return {"value": float(value), "lo": float(lo), "hi": float(hi)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "remedies")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", metavar="REMEDY", help="these remedies alone; `none` is what they are compared with"
    )
    parser.add_argument("--page", action="store_true", help="only the page, from what is done")
    asked = parser.parse_args()
    os.environ.setdefault("HOLDFAST_CACHE", str(asked.out / "cache"))
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.page:
        measure(asked.out, asked.seeds, asked.steps, asked.threads, asked.only)
    found = figures(asked.out, asked.seeds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    before, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(before + mark + "\n" + page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
