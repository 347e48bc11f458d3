"""Every policy loss trained on the built-in world, and what its policy is worth by the gold reward: docs/losses.md.

    python bench/losses.py --seeds 5 --losses all            all of it (hours); what is done already is skipped
    python bench/losses.py --seeds 1 --losses dpo,simpo      some of it
    python bench/losses.py --page                            only the page, from what is done

A seed is a world, its file, a base trained on its preferred answers, and then one run per loss from that base, each with the loss's own
default settings (`VARIANTS` lists what stands beside them) and otherwise the demo's recipe. Nothing is tuned per loss, so the table says
what a loss does out of the box and not how well it could do. Every run goes on where it was cut off. Needs no network.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from scipy import stats

from holdfast import pipeline
from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.freeze import freeze
from holdfast.data.splits import load_split
from holdfast.demo import main as demo
from holdfast.demo.world import World, win_rate
from holdfast.language.policy import load_base
from holdfast.language.sample import sample
from holdfast.language.terms import kinds
from holdfast.losses import LOSSES
from holdfast.recipe import Recipe, load_recipe
from holdfast.training.determinism import deterministic

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "losses.md"

# Settings that make another method of a loss.
VARIANTS: dict[str, dict[str, Any]] = {
    "f_dpo forward_kl": {"kind": "f_dpo", "divergence": "forward_kl"},
    "f_dpo js": {"kind": "f_dpo", "divergence": "js"},
    "f_dpo alpha 0.5": {"kind": "f_dpo", "divergence": "alpha", "alpha": 0.5},
    "dpo + 0.1 sft": {"kind": "sum", "terms": [{"kind": "dpo"}, {"kind": "sft", "weight": 0.1}]},
}
# A reverse-KL f_dpo is dpo.
OBJECTIVES = {k: {"kind": k} for k in kinds() if k not in ("reward", "sum", "f_dpo")} | VARIANTS


def recipes(
    out: Path, seed: int, steps: int | None, base_steps: int | None, threads: int | None
) -> tuple[Recipe, dict[str, Recipe]]:
    """(the base's, each loss's): the demo's recipes with another objective."""
    said = demo.recipes(out / "data", out, seed)
    table = said["dpo"].model_dump(mode="json", exclude_none=True)
    if steps is not None:
        table["train"] |= {"steps": steps, "eval_every": min(table["train"]["eval_every"], steps)}
    # The last weights count, so that every loss has as many steps. In a shorter proof (60 steps) simpo's held-out loss rose at first, and
    # stop_on kept the base itself: a gain of exactly 0.
    table["train"].pop("stop_on", None)
    table["evaluate"]["parts"] = ["test", "ood"]
    if threads is not None:
        table["run"]["threads"] = threads
    found = {name: load_recipe({**table, "objective": objective}) for name, objective in OBJECTIVES.items()}
    base = said["base"]
    if threads is not None:
        base = base.model_copy(update={"run": base.run.model_copy(update={"threads": threads})})
    if base_steps is not None:
        base = base.model_copy(update={"train": base.train.model_copy(update={"steps": base_steps})})
    return base, found


def gold(world: World, folder: Path, recipe: Recipe, dataset: Dataset, prompts: dict[str, int]) -> dict[str, Any]:
    """The gold reward of sampled answers to the held-out prompts, (prompts, samples), and how long the answers are."""
    split = load_split(folder, dataset)
    model, tokenizer = load_base(folder)
    found: dict[str, Any] = {}
    for part, most in prompts.items():
        asked = sorted(set(dataset.prompt_of[split.parts[part]].tolist()))[:most]
        contents = dataset.prompt_contents(asked)
        with deterministic(recipe.run):
            answers = sample(
                model, tokenizer, contents, max_new_tokens=demo.MAX_NEW_TOKENS, n=demo.SAMPLES, seed=recipe.run.seed
            )
        found[part] = [
            [world.gold(cast(list[dict[str, Any]], p), answer.text).total for answer in several]
            for p, several in zip(contents, answers, strict=True)
        ]
        found[f"{part}/words"] = float(np.mean([len(a.text.split()) for several in answers for a in several]))
    return found


def run(out: Path, seed: int, names: list[str], args: argparse.Namespace) -> None:
    """One seed: the world, the base, and a run for each name that is not done."""
    out.mkdir(parents=True, exist_ok=True)
    world = World(seed)
    if not (out / "data" / "manifest.json").exists():
        world.write_jsonl(
            out / "world.jsonl",
            args.prompts,
            seed=seed,
            responses_per_prompt=demo.RESPONSES,
            judgements_per_prompt=demo.JUDGEMENTS,
        )
        freeze(out / "world.jsonl", out / "data")
    dataset = open_dataset(out / "data")
    base, losses = recipes(out, seed, args.steps, args.base_steps, args.threads)
    for name, recipe in [("base", base), *((n, losses[n]) for n in names)]:
        folder = out / name.replace(" ", "_")
        done = folder / "gold.json"
        if done.exists():
            continue
        began = time.monotonic()
        trained = pipeline.train(recipe, folder, quiet=True)
        took = time.monotonic() - began
        if trained.stopped == "interrupted":
            raise SystemExit("interrupted; the same command goes on")
        found = gold(world, folder, recipe, dataset, {part: args.sampled or n for part, n in demo.SAMPLED.items()})
        facts = {"seconds": took, "steps": trained.steps, "stopped": trained.stopped, "head": trained.ledger_head}
        done.with_suffix(".tmp").write_bytes(orjson.dumps({**facts, **found}))
        done.with_suffix(".tmp").rename(done)
        shutil.rmtree(folder / "checkpoints")  # the model, the ledger and the evaluation stay
        mean = {part: float(np.mean(found[part])) for part in demo.SAMPLED}
        print(f"seed {seed}  {name:18} {took:6.0f} s + {time.monotonic() - began - took:4.0f} s  {mean}", flush=True)


def table(out: Path) -> dict[str, Any]:
    """Per loss, over the seeds that are done: gold reward, its gain over the base and over dpo of the same seed, win rate, answer length."""
    seeds = sorted(out.glob("seed-*"), key=lambda p: int(p.name.removeprefix("seed-")))
    rows: list[dict[str, Any]] = []
    bases: list[dict[str, Any]] = []
    for name in ["base", *OBJECTIVES]:
        said: list[tuple[dict[str, Any], dict[str, Any]]] = []
        paired: list[tuple[dict[str, Any], Path]] = []
        for seed in seeds:
            mine, start = seed / name.replace(" ", "_") / "gold.json", seed / "base" / "gold.json"
            if mine.exists() and start.exists():
                said.append((orjson.loads(mine.read_bytes()), orjson.loads(start.read_bytes())))
                paired.append((said[-1][0], seed / "dpo" / "gold.json"))
        if not said:
            continue
        row: dict[str, Any] = {
            "name": name,
            "seeds": len(said),
            "seconds": float(np.mean([m["seconds"] for m, _ in said])),
        }
        row["words"] = float(np.mean([m["test/words"] for m, _ in said]))
        for part in demo.SAMPLED:
            row[part] = float(np.mean([np.mean(m[part]) for m, _ in said]))
            row[f"{part}/gain"] = interval([np.mean(m[part], axis=1) - np.mean(b[part], axis=1) for m, b in said])
            row[f"{part}/win"] = float(np.mean([win_rate(m[part], b[part], bootstrap=1).rate for m, b in said]))
        beside = [(m, orjson.loads(dpo.read_bytes())) for m, dpo in paired if dpo.exists()]
        row["against dpo"] = interval([np.mean(m["test"], axis=1) - np.mean(d["test"], axis=1) for m, d in beside])
        (bases if name == "base" else rows).append(row)
    rows.sort(key=lambda r: -r["test/gain"][0])
    return {"base": bases[0] if bases else None, "losses": rows}


def interval(gains: list[np.ndarray]) -> tuple[float, float, float]:
    """(mean, low, high), 95 %: Student's t over the seeds; of one seed the normal interval over its prompts."""
    means = np.array([g.mean() for g in gains])
    if len(means) == 1:
        half = 1.96 * gains[0].std(ddof=1) / math.sqrt(len(gains[0]))
    else:
        half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    return float(means.mean()), float(means.mean() - half), float(means.mean() + half)


# What the table cannot say by itself. Figures stand in the table alone, so that more seeds make no sentence here wrong unless they
# change what it is about: read it again then.
GUIDE = """
| you have | begin with | why |
|---|---|---|
| pairs, and no special wish | `dpo`; then `chipo` | one setting, understood best, and among the leaders here; chipo gained a little more in every world, with another measure of how far a policy strays |
| judgements that are sometimes wrong | `cdpo` | no worse than `dpo` here, where annotators do err, and its optimum is finite |
| preferred answers that must not become less likely | `rpo`, or `sum` of `dpo` and a little `sft` | imitation holds them up |
| answers of uneven length, and length must not win | `ld_dpo`; `ln_dpo`, `ipo_avg` | ld_dpo gave up nothing here; the two that average per token gained less at their defaults |
| ties | `dpo`, a tie being half a win | `rao_kupper` and `davidson` model ties as an outcome of their own, and gained less here at their defaults |
| rankings | `plackett_luce` | the whole ranking in one term; of two it is dpo |
| labels, good or bad | `kto`; of pairs taken apart `bco` | kto is made for labels alone; given pairs it takes them apart, and gained no more here than losses that use the pairing |
| a reference that you cannot afford | a cached one: `dpo` | `cpo`, `orpo` and `simpo` need none, and gained nothing here at their defaults and this rate: tune both before judging them |

Not without a reason: `apo_down` lowers the preferred answers too, for a base that is better than its data; this base is not, and the
policy is ruined, as it must be. `discopop` starts on the wrong slope: at a log-ratio of 0 its derivative is (1 - ln 2)/(4 tau) - 3/4,
above 0 at tau = 0.05, so that a policy first learns to prefer the loser and stays in the second low point that its paper describes.
`slic` has no reference and a gap of 1 in summed log-probabilities, which most pairs exceed at the start: what is left to it are the pairs
that the base has most wrong. `sppo` wants log-ratios of 500 and -500 at its beta, so nothing holds the policy back at any distance from its base.
`dr_dpo` weighs rows by exp(-loss) and `aot_unpaired` compares sorted answers of different prompts: both came out anywhere from a little
above the base to far below it, world by world, and their intervals say so. `dpop` with lam = 50 gives nearly all of its gradient to keeping the winner where it was.
"""  # noqa: E501


def page(found: dict[str, Any], settings: dict[str, Any]) -> str:
    base, rows = found["base"], found["losses"]
    seeds = sorted({r["seeds"] for r in rows})
    many = f"{seeds[0]} worlds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} worlds, as the table says"
    over = (
        "Student's t over the worlds"
        if seeds[0] > 1
        else "where there is one world, over its prompts: how worlds differ is not in it"
    )
    asked = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in settings.items() if v is not None)

    def told(key: str) -> list[str]:
        """Names whose interval lies above 0, holds it, lies below."""
        sides = [
            [r["name"] for r in rows if r[key][1] > 0],
            [
                r["name"]
                for r in rows
                if r[key][1] <= 0 <= r[key][2] and not (key == "against dpo" and r["name"] == "dpo")
            ],
            [r["name"] for r in rows if r[key][2] < 0],
        ]
        return [", ".join(f"`{n}`" for n in names) or "none" for names in sides]

    better, even, worse = told("test/gain")
    over_dpo, as_dpo, under_dpo = told("against dpo")
    out = [
        "# Losses on the built-in world",
        "",
        f"Made by `python bench/losses.py {asked}`:",
        f"{many} (seeds). In each a base is trained on preferred answers, and from it one run per loss, with the loss's own",
        "defaults and one recipe for all (the demo's: batch 64, one rate), nothing tuned. So the table says what a loss does out of the box on",
        "this task, and not how well it could do. Gold reward of sampled answers to held-out prompts, in [-1, 1]",
        "([world.md](world.md)); its gain over the base that the run started from, and over the same world's `dpo`, with 95 % intervals",
        f"({over}); and how often the policy's answer beats the base's (ties half). No judgement was about the held-out categories.",
        "What each loss computes: [formulas.md](formulas.md); which data feeds it: [objectives.md](objectives.md).",
        "",
        f"The base: {base['test']:+.3f} in distribution, {base['ood']:+.3f} in held-out categories, {base['words']:.1f} words an answer.",
        "",
        "| loss | seeds | gold | gain over the base | wins | against `dpo` | held-out categories: gain | wins | words |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        (g, lo, hi), (g2, lo2, hi2), (d, dlo, dhi) = r["test/gain"], r["ood/gain"], r["against dpo"]
        beside = "-" if r["name"] == "dpo" else f"{d:+.3f} [{dlo:+.3f}, {dhi:+.3f}]"
        out.append(
            f"| `{r['name']}` | {r['seeds']} | {r['test']:+.3f} | {g:+.3f} [{lo:+.3f}, {hi:+.3f}] | {r['test/win']:.3f} | {beside} | "
            f"{g2:+.3f} [{lo2:+.3f}, {hi2:+.3f}] | {r['ood/win']:.3f} | {r['words']:.1f} |"
        )
    out += [
        "",
        f"**Over the base**, by the interval: better {better}; not told from it {even}; worse {worse}.",
        "",
        f"**Against `dpo`**: better {over_dpo}; not told from it {as_dpo}; worse {under_dpo}. Of so many intervals",
        "of 95 % one or two miss the truth: a single one that barely leaves 0 is no finding.",
        "",
        "The world's judgements are pairs and ties, so `plackett_luce` sees rankings of two and is dpo without the ties; `sft` goes on",
        "imitating what the base imitated. Losses that couple rows take the whole step together. The last step's weights count for every loss:",
        "held-out loss is no common measure (`simpo`'s falls in each world while its answers get shorter and their gold reward lower).",
        "",
        "## Which to use when",
        GUIDE,
    ]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--seed", type=int, default=None, help="this seed alone (several processes can share an --out)")
    parser.add_argument("--losses", default="all", help="names separated by commas, or all")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "losses", help="where runs are kept")
    parser.add_argument("--prompts", type=int, default=demo.PROMPTS, help="of the world")
    parser.add_argument("--steps", type=int, default=None, help="of each loss; default: the demo's")
    parser.add_argument("--base-steps", type=int, default=None, help="of the base; default: the demo's")
    parser.add_argument("--sampled", type=int, default=None, help="prompts answered per part; default: the demo's")
    parser.add_argument("--threads", type=int, default=None, help="of each run; default: the demo's")
    parser.add_argument("--page", action="store_true", help="train nothing; write the page from what is done")
    parser.add_argument("--no-page", action="store_true", help="leave docs/losses.md as it is")
    args = parser.parse_args()
    names = list(OBJECTIVES) if args.losses == "all" else args.losses.split(",")
    unknown = [n for n in names if n not in OBJECTIVES]
    if unknown:
        raise SystemExit(f"unknown {', '.join(unknown)} (known: {', '.join(OBJECTIVES)})")
    assert {k["kind"] for k in OBJECTIVES.values()} | {"sft"} >= {
        n for n, f in LOSSES.items() if f.family in ("pair", "list", "label")
    }
    os.environ.setdefault("HOLDFAST_CACHE", str(args.out / "cache"))  # losses on the same rows share their reference
    settings = {k: getattr(args, k) for k in ("prompts", "steps", "base_steps", "sampled", "threads")}
    kept = args.out / "settings.json"
    if args.page and kept.exists():
        settings = orjson.loads(kept.read_bytes())
    if kept.exists() and orjson.loads(kept.read_bytes()) != settings:
        raise SystemExit(f"{args.out} was begun with other settings ({kept.read_text()}); choose another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(orjson.dumps(settings))
    for seed in () if args.page else range(args.seeds) if args.seed is None else (args.seed,):
        run(args.out / f"seed-{seed}", seed, names, args)
    found = table(args.out)
    (args.out / "table.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    written = page(found, settings)
    print(written)
    if not args.no_page:
        PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
