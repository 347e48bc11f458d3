"""`holdfast demo`: the whole main job on the built-in world, as a user would do it.

    world -> file -> freeze -> base (sft) -> reward model -> DPO policy -> evaluate -> sample -> gold -> report

Only the last step knows more than a user does: the world's gold reward scores sampled answers, so that what training claims can be held
against the truth.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from holdfast import pipeline
from holdfast.data.dataset import Dataset
from holdfast.data.freeze import freeze
from holdfast.data.splits import Split, load_split
from holdfast.demo.world import World, win_rate
from holdfast.language.policy import load_base
from holdfast.language.sample import sample
from holdfast.recipe import Recipe, load_recipe
from holdfast.report.page import write_report
from holdfast.training.determinism import deterministic

PROMPTS, RESPONSES, JUDGEMENTS = 20_000, 3, 2  # in all; to a prompt; on a prompt
SAMPLED = {"test": 500, "ood": 300}  # prompts answered and scored by gold, at most
SAMPLES = 4  # answers to each, drawn from the policy as it is: temperature 1
MAX_NEW_TOKENS = 48

MODEL = {"vocab": 1024, "hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2, "context": 192}


def recipes(dataset: Path, out: Path, seed: int) -> dict[str, Recipe]:
    """The three runs of the demo. Rates, beta and stopping were chosen on held-out figures; see docs/world.md."""
    common: dict[str, Any] = {
        "run": {"seed": seed, "threads": 2},
        "data": {
            "dataset": str(dataset),
            "split": {"seed": seed, "validation": 0.03, "test": 0.05, "holdout": list(World.held_out)},
        },
        "text": {"max_length": 192, "too_long": "drop"},
    }
    base: dict[str, Any] = {"model": {"path": str(out / "base")}}
    stopping = {"eval_every": 50, "eval_rows": 500, "stop_on": "loss"}  # the best held-out loss is the result
    said: dict[str, dict[str, Any]] = {
        "base": {
            "model": {"scratch": MODEL},
            "objective": {"kind": "sft"},
            "train": {"batch": 32, "steps": 1500, "lr": 3e-3, "warmup": 50, "betas": [0.9, 0.98]}
            | {"eval_every": 300, "eval_rows": 300, "checkpoint_every": 300},
        },
        "reward": base
        | {
            "objective": {"kind": "reward", "centre": 0.01},
            "train": {"batch": 64, "steps": 150, "lr": 1e-3, "warmup": 15} | stopping,
        },
        "dpo": base
        | {
            "objective": {"kind": "dpo", "beta": 0.1},
            "train": {"batch": 64, "steps": 450, "lr": 3e-4, "warmup": 15} | stopping,
        },
    }
    return {
        name: load_recipe({**common, **table, "run": {**common["run"], "name": name}}) for name, table in said.items()
    }


def demo(out: Path, *, seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Run the demo into the folder `out`; a demo that was interrupted goes on. Returns its figures, and a table to print."""
    console = Console(stderr=True, quiet=quiet)
    began = time.monotonic()

    def say(what: str) -> None:
        console.print(f"[bold]{what}[/]  [dim]{time.monotonic() - began:.0f} s[/]", highlight=False)

    world = World(seed)
    out.mkdir(parents=True, exist_ok=True)
    say(f"world {seed}: simulated writers and annotators write {out / 'world.jsonl'}")
    world.write_jsonl(
        out / "world.jsonl", PROMPTS, seed=seed, responses_per_prompt=RESPONSES, judgements_per_prompt=JUDGEMENTS
    )
    frozen = freeze(out / "world.jsonl", out / "data")
    say(
        f"frozen {frozen.dataset.n_judgements:,} judgements of {frozen.dataset.n_responses:,} responses, root {frozen.root[:16]}.."
    )
    said = recipes(out / "data", out, seed)
    for name, what in (
        ("base", "a base model from nothing, on preferred responses"),
        ("reward", "a reward model"),
        ("dpo", "a DPO policy"),
    ):
        say(f"train {what}")
        pipeline.train(said[name], out / name, quiet=quiet)
    say("sample answers, and score them by the gold reward")
    gold = _gold(world, out, said, frozen.dataset)
    (out / "dpo" / "gold.json").write_bytes(orjson.dumps(gold, option=orjson.OPT_INDENT_2))
    page = write_report(out / "dpo")
    say("done")
    results = {
        name: orjson.loads((out / name / "evaluations" / pipeline.HELD_OUT / "metrics.json").read_bytes())["figures"][
            "parts"
        ]
        for name in ("base", "reward", "dpo")
    }
    return {
        "gold": gold["rows"],
        "report": str(page),
        "seconds": time.monotonic() - began,
        "table": _table(gold["rows"], results, page),
    }


def _gold(world: World, out: Path, said: dict[str, Recipe], dataset: Dataset) -> dict[str, Any]:
    """Gold reward of sampled answers to held-out prompts: base and policy, in distribution and in held-out categories."""
    split = load_split(out / "dpo", dataset)
    rows = []
    for part, most in SAMPLED.items():
        contents = dataset.prompt_contents(_prompts(dataset, split, part, most))
        scores: dict[str, list[list[float]]] = {}
        for name in ("base", "dpo"):
            model, tokenizer = load_base(out / name)
            with deterministic(said[name].run):
                answers = sample(
                    model, tokenizer, contents, max_new_tokens=MAX_NEW_TOKENS, n=SAMPLES, seed=said[name].run.seed
                )
            scores[name] = [
                [world.gold(cast(list[dict[str, Any]], prompt), answer.text).total for answer in several]
                for prompt, several in zip(contents, answers, strict=True)
            ]
        for name, golds in scores.items():
            of_prompt = np.array(golds).mean(axis=1)
            spread = 1.96 * of_prompt.std(ddof=1) / len(of_prompt) ** 0.5
            wins = None if name == "base" else win_rate(golds, scores["base"])
            rows.append(
                {
                    "name": name,
                    "part": part,
                    "n": len(of_prompt),
                    "gold_mean": float(of_prompt.mean()),
                    "lo": float(of_prompt.mean() - spread),
                    "hi": float(of_prompt.mean() + spread),
                    "win_rate": wins and wins.rate,
                    "win_lo": wins and wins.low,
                    "win_hi": wins and wins.high,
                }
            )
    return {
        "measure": f"the gold reward of {SAMPLES} sampled answers to each held-out prompt, in [-1, 1]",
        "rows": rows,
    }


def _prompts(dataset: Dataset, split: Split, part: str, most: int) -> list[int]:
    """Distinct prompts of a part, in the dataset's order (which is by digest, so a first stretch is a fair draw)."""
    return sorted(set(dataset.prompt_of[split.parts[part]].tolist()))[:most]


def _table(rows: list[dict[str, Any]], results: dict[str, Any], page: Path) -> Table:
    table = Table(
        title="The built-in world: gold reward of sampled answers",
        title_justify="left",
        caption=f"report: {page}",
        caption_justify="left",
    )
    for column in ("prompts", "n", "base", "DPO policy", "win rate over base, 95 %"):
        table.add_column(column, justify="left" if column == "prompts" else "right")
    by = {(r["name"], r["part"]): r for r in rows}
    for part, named in (("test", "in distribution"), ("ood", "held-out categories")):
        b, d = by["base", part], by["dpo", part]
        table.add_row(
            named,
            str(d["n"]),
            f"{b['gold_mean']:+.3f}",
            f"{d['gold_mean']:+.3f}",
            f"{d['win_rate']:.3f} [{d['win_lo']:.3f}, {d['win_hi']:.3f}]",
        )
    table.add_section()
    for name, called in (("reward", "reward model"), ("dpo", "DPO, implicit reward")):
        figures = results[name]["test"]["all"]["figures"]
        accuracy, long, words = (figures[f"{k}/accuracies"]["value"] for k in ("rewards", "longer", "bag of words"))
        table.add_row(called, "", "", f"{accuracy:.3f}", f"accuracy; longer {long:.3f}, bag of words {words:.3f}")
    return table
