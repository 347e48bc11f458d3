"""Inspection on the three real sets: what it finds, and whether it finds what is planted. `python bench/inspection.py`

    real      the findings that alarm on each set, time and peak memory of a full inspection
    planted   copies of each set with one fault: is the finding an alarm (or worse than before), and precision and recall of its rows

Prints tables, writes bench/results/inspect.json and docs/inspect.md. Needs ../shared/data.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.diff import moved
from holdfast.data.export import records
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.inspect.faults import FAULTS, Fault, judged_again
from holdfast.data.inspect.finding import SEVERITIES, Finding, between
from holdfast.data.inspect.inspection import Inspection, inspect_dataset
from holdfast.data.inspect.material import Material, material
from holdfast.data.inspect.power import BLIND, measure
from holdfast.data.inspect.ranking import rank_sources
from holdfast.data.records import Judgement
from holdfast.data.splits import make_split
from holdfast.data.text import plain_text
from holdfast.recipe import SplitTable

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
SETS = {"hh-harmless": "hh-harmless.jsonl.gz", "alpaca-eval": "alpaca-eval.parquet", "pandalm": "pandalm.jsonl.gz"}
Rows = list[Judgement]
CLEAN = 60  # clean copies of each set and fault
# Length-controlled win rates, in per cent, from the leaderboard in AlpacaEval's repository (weighted_alpaca_eval_gpt4_turbo).
PUBLISHED = {
    "claude": 27.29, "claude-2.1": 25.25, "Mixtral-8x7B-Instruct-v0.1_concise": 22.96, "claude-2.1_concise": 18.21,
    "humpback-llama2-70b": 16.25, "OpenHermes-2.5-Mistral-7B": 16.25, "openbuddy-llama2-70b-v10.1": 12.57, "Qwen-14B-Chat": 12.38,
    "gpt4_gamed": 12.19, "vicuna-13b-v1.5-togetherai": 11.69, "vicuna-13b-v1.5": 10.48, "gemma-7b-it": 10.43, "nous-hermes-13b": 9.72,
    "text_davinci_001": 9.03, "vicuna-7b-v1.3": 7.16, "alpaca-7b": 5.88, "minichat-3b": 5.73, "alpaca-7b_concise": 4.47,
    "phi-2": 4.40, "chatglm2-6b": 4.36, "falcon-7b-instruct": 4.04,
}  # fmt: skip


def turned(j: Judgement) -> Judgement:
    if j.kind == "soft":
        return replace(j, value=1 - (j.value or 0.0))
    back = {
        n: None if v is None else tuple(reversed(v))
        for n, v in (("responses", j.responses), ("shown", j.shown), ("sources", j.sources))
    }
    return replace(j, **back)  # type: ignore[arg-type]


def decided(j: Judgement) -> bool:
    return j.kind == "pair" or (j.kind == "soft" and j.value != 0.5)


def longer_wins(j: Judgement) -> int:
    """1 where the longer response is preferred, -1 where the shorter, 0 where neither."""
    a, b = (len(plain_text(r) or "") for r in j.responses)
    return (np.sign(a - b) * (1 if j.kind == "pair" or (j.value or 0) > 0.5 else -1)) if decided(j) else 0


# Faults: (rows, draw) -> (rows with the fault, which of them are planted, options of the inspection).


def flipped(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    mine = set(draw.sample([i for i, j in enumerate(rows) if decided(j)], len(rows) // 10))
    return [turned(j) if i in mine else j for i, j in enumerate(rows)], mine, {}


def duplicated(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    by_prompt: dict[str, int] = {}
    for i, j in enumerate(rows):
        text = plain_text(j.prompt) or ""
        if len(text.split()) >= 15:
            by_prompt.setdefault(text, i)
    picked = draw.sample(sorted(by_prompt.values()), min(200, len(by_prompt)))
    more = [replace(rows[i], prompt=f"{plain_text(rows[i].prompt)} Thanks.") for i in picked]
    return [*rows, *more], set(range(len(rows), len(rows) + len(more))), {"split": True}


def lengthened(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    """Ten points more of the pairs go to the longer one (turned round where the shorter one won)."""
    some = [i for i, j in enumerate(rows) if longer_wins(j) == -1]
    mine = set(draw.sample(some, min(len(some), sum(longer_wins(j) != 0 for j in rows) // 10)))
    return [turned(j) if i in mine else j for i, j in enumerate(rows)], mine, {}


def evened(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    """Each prompt's labels turned round by a coin, so that length decides nothing; then ten points more for the longer one."""
    coin = {prompt: draw.random() < 0.5 for prompt in sorted({plain_text(j.prompt) or "" for j in rows})}
    return lengthened([turned(j) if coin[plain_text(j.prompt) or ""] else j for j in rows], draw, folder)


def careless(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    """A new annotator repeats 150 judged pairs, at random; two others repeat them as they were."""
    picked = draw.sample([i for i, j in enumerate(rows) if decided(j)], 150)
    more = [
        replace(rows[i] if name != "planted" or draw.random() < 0.5 else turned(rows[i]), annotator=name)
        for i in picked
        for name in ("one", "two", "planted")
    ]
    mine = {len(rows) + k for k, j in enumerate(more) if j.annotator == "planted"}
    return [*rows, *more], mine, {}


def contradicted(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    picked = draw.sample([i for i, j in enumerate(rows) if decided(j)], len(rows) // 50)
    more = [turned(rows[i]) for i in picked]
    return [*rows, *more], set(picked) | set(range(len(rows), len(rows) + len(more))), {}


def first_favoured(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    """The display order becomes known, and seven in ten choose what was shown first."""
    out = []
    for j in rows:
        best = 0 if j.kind != "soft" or (j.value or 0) >= 0.5 else 1
        first = best if draw.random() < 0.7 else 1 - best
        out.append(replace(j, shown=(0, 1) if first == 0 else (1, 0)) if decided(j) else j)
    return out, set(), {}


def contaminated(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    prompts = sorted({plain_text(j.prompt) or "" for j in rows})
    asked = set(draw.sample(prompts, 50))
    (folder / "eval.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in sorted(asked)))
    return rows, {i for i, j in enumerate(rows) if plain_text(j.prompt) in asked}, {"against": [folder / "eval.jsonl"]}


def emptied(rows: Rows, draw: random.Random, folder: Path) -> tuple[Rows, set[int], dict[str, Any]]:
    """Half of the target prompts are of a kind that was taken out."""
    words = sorted({w for j in rows[:400] for w in (plain_text(j.prompt) or "").split() if w.isalpha() and len(w) > 6})
    target = [
        f"Prove by induction that the {draw.choice(words)} lemma holds for tensor {n} over a ring." for n in range(40)
    ]
    (folder / "target.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in target))
    return rows, set(), {"target": folder / "target.jsonl"}


PLANTED: dict[str, tuple[Callable[[Rows, random.Random, Path], tuple[Rows, set[int], dict[str, Any]]], str, str]] = {
    "10 % of the labels turned round": (flipped, "noise", "noise/flipped"),
    "200 near-duplicates across a split": (duplicated, "leakage", "leakage/split"),
    "10 points more to the longer one": (lengthened, "length", "length/longer-wins"),
    "10 points more to the longer one, from even": (evened, "length", "length/longer-wins"),
    "an annotator who answers at random": (careless, "agreement", "agreement/annotators"),
    "2 % contradictions": (contradicted, "contradictions", "contradictions/exact"),
    "a judge who favours the first": (first_favoured, "position", "position/first-wins"),
    "50 prompts of an evaluation set": (contaminated, "against", "against/prompts:eval.jsonl"),
    "target prompts of an empty kind": (emptied, "target", "target/uncovered"),
}  # fmt: skip


def planted(name: str, ds: Dataset, before: Inspection, folder: Path) -> list[dict[str, Any]]:
    rows = [j for _, j in records(ds, np.arange(ds.n_judgements))]
    out = []
    for fault, (plant, detector, finding) in PLANTED.items():
        place = Path(tempfile.mkdtemp(dir=folder))
        changed, mine, options = plant(rows, random.Random(f"{name} {fault}"), place)
        made = freeze_records(((j, "planted", i) for i, j in enumerate(changed)), place / "data")
        truth = {i for i in range(made.n_judgements) if made.origins(i)[0][1] in mine}
        either = truth
        if options.pop("split", False):
            split = make_split(made, SplitTable(validation=0.2, test=0.2))
            split.save(place)
            options["split"] = place
            side = {i: part == "train" for part, at in split.parts.items() for i in at.tolist()}
            asked = [(plain_text(p) or "").removesuffix(" Thanks.") for p in made.prompt_contents(made.prompt_of)]
            twins: dict[str, list[int]] = {}
            for i, text in enumerate(asked):
                twins.setdefault(text, []).append(i)
            # A pair that crosses is found by naming both: the copy and what it was copied from.
            pairs = [(i, k) for i in truth for k in twins[asked[i]] if side[i] != side[k]]
            truth = {i for i, _ in pairs}
            either = truth | {k for _, k in pairs}
        found = inspect_dataset(made, only=[detector], times=100, **options)
        f = next((f for f in found.findings if f.name == finding), None)
        old = None if plant is evened else next((g for g in before.findings if g.name == finding), None)
        row: dict[str, Any] = {
            "set": name,
            "fault": fault,
            "finding": finding,
            "alarm": f is not None and worse(f, old),
            "moved": f is not None and old is not None and moved(_three(old), _three(f)),
        }
        row["found"] = row["alarm"] or row["moved"]
        if f is not None:
            row |= {
                "figure": between(f.figure, f.unit),
                "before": between(old.figure, old.unit) if old else "-",
                "severity": f.severity,
            }
            if truth and len(f.rows):
                rows_listed = f.rows.number[: len(truth)] if detector == "noise" else f.rows.number
                listed = {int(n) for n in rows_listed}
                both = listed | {int(n) for n in f.rows.other if n >= 0}
                row |= {"recall": len(both & truth) / len(truth), "precision": len(listed & either) / len(listed)}
        out.append(row)
        print(f"  {'found ' if row['found'] else 'MISSED'} {name}: {fault}  {row}", flush=True)
    return out


def worse(now: Finding, before: Finding | None) -> bool:
    """An alarm where there was none before, or a graver one, or one whose figure has left the interval before and lies
    further from what would be if nothing were wrong.
    """
    if not now.alarmed:
        return False
    if before is None or SEVERITIES.index(now.severity) < SEVERITIES.index(before.severity) or not before.alarmed:
        return True
    if now.figure.value is None or before.figure.value is None:
        return False
    usual = now.expected or 0.0
    further = abs(now.figure.value - usual) > abs(before.figure.value - usual)
    return further and moved(_three(before), _three(now))


def _three(f: Finding) -> tuple[float | None, ...]:
    return (f.figure.value, f.figure.lo, f.figure.hi)


# What would have been found, and how often clean copies alarm.


def prepared(m: Material, fault: Fault) -> Material:
    """A set that says too little for a fault gets what it lacks: orders by coins; three annotators of 150 pairs, wrong
    in 15 of 100.
    """
    if fault.detector == "position" and not m.first.any():
        coins = np.random.default_rng(0).choice([-1, 1], len(m))
        return m.edit(first=coins.astype(np.int8))
    if fault.finding == "agreement/annotators" and len(m.annotators) < 2:
        rng = np.random.default_rng(0)
        at = np.repeat(rng.choice(np.flatnonzero(m.decided), 150, replace=False), 3)
        made, rows = judged_again(m, at, rng.random(450) < 0.15)
        who = np.full(made.n_rows, -1, np.int32)
        who[rows] = np.arange(450) % 3
        return made.edit(row_annotator=who, annotators=["one", "two", "three"])
    return m


def sight(name: str, ds: Dataset) -> list[dict[str, Any]]:
    """Every fault planted in copies of a set, and 60 clean copies of each."""
    looked_at = material(ds)
    out = []
    for fault in FAULTS:
        found = measure(fault, prepared(looked_at, fault), clean=CLEAN)
        out.append({"set": name, **found.as_json()})
        print(f"  {name}: {fault.name}: {found.said()}; {found.alarms} of {found.clean} clean copies alarm", flush=True)
    return out


def ranked(ds: Dataset) -> dict[str, Any]:
    found = rank_sources(material(ds)).as_json()
    known = [
        (s["at equal length"]["value"], s["wins"]["value"], PUBLISHED[s["source"]])
        for s in found["sources"]
        if s["source"] in PUBLISHED
    ]
    even, wins, published = zip(*known, strict=True)
    found["rank correlation with the published rates"] = {
        "of": len(known),
        "at equal length": float(spearmanr(even, published).statistic),
        "wins": float(spearmanr(wins, published).statistic),
    }
    return found


def timed(folder: Path) -> dict[str, Any]:
    """A full inspection in a process of its own: seconds and peak memory."""
    program = (
        "import sys, time, json, resource\nbegan = time.perf_counter()\n"
        "from holdfast.data.dataset import open_dataset\nfrom holdfast.data.inspect.inspection import inspect_dataset\n"
        "found = inspect_dataset(open_dataset(sys.argv[1]))\n"
        "print(json.dumps({'seconds': time.perf_counter() - began, 'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def large(pairs: int = 1_000_000) -> dict[str, Any]:
    """A full inspection of as many pairs as asked, on a prompt each, made of the sentences of the real sets' texts: as long as
    these (responses up to 1,500 characters), with their words, three annotators, two categories and four sources.
    """
    draw = random.Random(0)
    asked: list[str] = []
    said: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for which, file in SETS.items():
            freeze(DATA / file, folder / which, on_error="skip")
            ds = open_dataset(folder / which)
            asked += [plain_text(c) or "" for c in ds.prompt_contents()]
            said += [t for c in ds.response_contents() if (t := plain_text(c) or "").strip()]
        sentences = [x for t in draw.sample(said, 12_000) for x in t.split(". ") if 3 < len(x.split()) < 40]
        questions = [x for t in asked for x in t.split(". ") if 3 < len(x.split()) < 40]
        sizes = [min(len(t), 1500) for t in said]

        def text(of: list[str], size: int) -> str:
            out: list[str] = []
            while sum(map(len, out)) < size:
                out.append(draw.choice(of))
            return ". ".join(out) + "."

        def rows() -> Iterator[tuple[Judgement, str, int]]:
            for n in range(pairs):
                one = other = text(sentences, draw.choice(sizes))
                while other == one:
                    other = text(sentences, draw.choice(sizes))
                who = draw.sample(("ant", "bee", "cat", "dog"), 2)
                yield Judgement(
                    "pair", text(questions, draw.randint(40, 300)), (one, other), sources=tuple(who),
                    annotator=f"annotator {n % 3}", category=("advice", "facts")[n % 2],
                ), "made", n  # fmt: skip

        began = time.perf_counter()
        freeze_records(rows(), folder / "data")
        print(f"{pairs:,} pairs frozen in {time.perf_counter() - began:.0f} s", flush=True)
        cost = {"pairs": pairs, **timed(folder / "data")}
    print(f"{pairs:,} pairs: {cost['seconds']:.0f} s, {cost['peak'] / 2**30:.2f} GiB", flush=True)
    return cost


def main() -> None:
    path = HERE / "results" / "inspect.json"
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else {}
    if sys.argv[1:2] == ["large"]:
        found = {**old, "large": large(*map(int, sys.argv[2:]))}
    else:
        found = {"sets": {}, "planted": [], "power": [], **{k: v for k, v in old.items() if k == "large"}}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for which, file in SETS.items():
                freeze(DATA / file, folder / which, on_error="skip")
                began = time.perf_counter()
                ds = open_dataset(folder / which)
                before = inspect_dataset(ds)
                cost = timed(folder / which)
                alarms = [
                    {
                        "finding": f.name,
                        "severity": f.severity,
                        "figure": between(f.figure, f.unit),
                        "verdict": f.verdict,
                    }
                    for f in before.findings
                    if f.alarmed
                ]
                found["sets"][which] = {
                    "judgements": ds.n_judgements,
                    **cost,
                    "alarms": alarms,
                    "digest": before.digest,
                }
                print(
                    f"{which}: {cost['seconds']:.1f} s, {cost['peak'] / 2**30:.2f} GiB, {len(alarms)} alarms",
                    flush=True,
                )
                found["planted"] += planted(which, ds, before, folder)
                found["power"] += sight(which, ds)
                if which == "alpaca-eval":
                    found["ranking"] = ranked(ds)
                print(f"  {time.perf_counter() - began:.0f} s in all", flush=True)
        missed = [p for p in found["planted"] if not p["found"]]
        print(f"{len(found['planted']) - len(missed)} of {len(found['planted'])} planted faults found")
    path.write_text(json.dumps(found, indent=1) + "\n")
    (HERE.parent / "docs" / "inspect.md").write_text(page(found), encoding="utf-8")


def page(found: dict[str, Any]) -> str:
    out = [
        "# Inspection",
        "",
        "`holdfast inspect DATASET -o FOLDER` runs every detector that has something to look at. Each finding is one statistic with its",
        "definition, a 95 % interval (bootstrap over prompts), what it would be if nothing were wrong, a verdict, a remedy, the same figure",
        "per category, annotator and source, and the rows behind it, the worst first, in `inspect.json` and on a page, `inspect.html`, with",
        "a map of the prompts, a heat map of cells and the graph of sources. More to look at, where it is named:",
        "",
        "| | |",
        "|---|---|",
        "| `--split RUN` | leaks across a split |",
        "| `--against FILE` | an evaluation set that it must not overlap: near-duplicates, shared wording, rejected here and chosen there |",
        "| `--target FILE` | prompts that the model is meant for, and which of them the data does not cover |",
        "| `--samples FILE` | what the policy itself writes: is the data about that? |",
        "| `--tokenizer FOLDER` | lengths in tokens, pairs whose difference is cut away |",
        "| `--embedder FOLDER` | a sentence-transformers folder: meanings in place of words |",
        "| `--model FOLDER` | a language model, or a run that made one: the pairs alike to it (CHES), whose preferred side [may fall](remedies.md) |",
        "| `--column NAME` | a licence, a rubric, any key of the rows to count by |",
        "| `--power` | what it could not have seen: below |",
        "",
        "`holdfast rank` ranks the sources with and without length, `holdfast card` writes a dataset card and Croissant metadata whose numbers",
        "are an inspection's, `holdfast check` makes a gate of it, `holdfast diff` compares two datasets, `holdfast curate`",
        "[acts on it](curation.md).",
        "",
        "## What the three real sets teach",
        "",
        "Made by `python bench/inspection.py`; times are one thread's on a machine busy with other work. What alarms:",
        "",
    ]
    for name, said in found["sets"].items():
        out += [
            f"### {name}",
            "",
            f"{said['judgements']:,} judgements; {said['seconds']:.0f} s and {said['peak'] / 2**30:.2f} GiB with imports.",
            "",
            "| | finding | figure | |",
            "|---|---|---|---|",
            *(f"| {a['severity']} | `{a['finding']}` | {a['figure']} | {a['verdict']} |" for a in said["alarms"]),
            "",
        ]
    out += [
        "## Planted faults",
        "",
        "Copies of the same sets with one fault each. *Alarm*: the finding alarms where it did not, or more gravely, or its figure has",
        "left the interval before on the bad side. *Compared*: against the original, by `holdfast diff`, neither interval holds the other's",
        "figure. A fault that brings a set nearer to what would be if nothing were wrong can only be seen by comparison: hh-harmless prefers",
        "the shorter one, and ten points more for the longer one bring it from 44 to 54 %; planted into the same set made even it alarms.",
        "",
        "Precision and recall are of the rows that the finding lists (label noise: of as many as were turned round, the most suspicious",
        "first; near-duplicates: both of a pair). Where the longer one wins too often, nothing tells the planted rows from the others of",
        "the same kind, so precision is their share.",
        "",
        "| set | fault | finding | before | with the fault | alarm | compared | precision | recall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for p in found["planted"]:
        rates = " | ".join(f"{p[k]:.2f}" if k in p else "-" for k in ("precision", "recall"))
        seen = " | ".join("yes" if p[k] else "-" if p["found"] else "**no**" for k in ("alarm", "moved"))
        out.append(
            f"| {p['set']} | {p['fault']} | `{p['finding']}` | {p.get('before', '-')} | {p.get('figure', '-')} | {seen} | {rates} |"
        )
    missed = [p for p in found["planted"] if not p["found"]]
    out += [
        "",
        f"{len(found['planted']) - len(missed)} of {len(found['planted'])} are found."
        + "".join(f" Missed: {p['fault']} on {p['set']}." for p in missed)
        + " On hh-harmless nothing in words, surface or sources foretells the label beyond an AUC of 0.65, so a wrong label and a hard",
        "pair look the same: the next table says that no share of flips up to 40 % would be found there, and the finding says of itself",
        "how little it is sure of.",
        "",
        "## What would have been found, and false alarms",
        "",
        "`holdfast inspect DATASET --power` plants each fault in copies of *that* dataset at rising strengths and reports the smallest that is",
        "found in nine copies of ten, of 20. Copies are first made clean: a copy in which the null holds (labels turned round by a coin per",
        "prompt, a split by whole clusters, annotators dealt anew, labels drawn from the fitted model without flips). A dataset above a fault's",
        f"bound is measured on a part of it, and the table says so. False alarms here: of {CLEAN} clean copies each. A set that names no order or",
        "no annotators was given some.",
        "",
        "| fault | finding | " + " | ".join(found["sets"]) + " | false alarms |",
        "|---|---|" + "---|" * (len(found["sets"]) + 1),
    ]
    for fault in FAULTS:
        mine = [p for p in found["power"] if p["fault"] == fault.name]
        false = [p["false alarms"] for p in mine if not p["not measured"]]
        said = " | ".join(p["verdict"] for p in mine)
        alarms = f"{sum(x['alarms'] for x in false)} of {sum(x['copies'] for x in false)}"
        out.append(f"| {fault.name} | `{fault.finding}` | {said} | {alarms} |")
    most = max(
        (p["false alarms"]["alarms"] / p["false alarms"]["copies"], p["fault"], p["set"])
        for p in found["power"]
        if not p["not measured"]
    )
    out += [
        "",
        f"The most false alarms on any set: {100 * most[0]:.1f} % of the clean copies ({most[1]}, {most[2]}).",
        "",
    ]
    reached = [f"{name}: {what}" for name, what in BLIND.items()]
    out += ["What each detector cannot see, however much data there is:", "", *(f"- {x}" for x in reached), ""]
    rank = found["ranking"]
    fit = rank["rank correlation with the published rates"]
    out += [
        "## The models of alpaca-eval at equal length",
        "",
        f"`holdfast rank DATASET`. The judge prefers the longer response in 88 % of the pairs; all models were compared with {rank['baseline']}.",
        "A logistic model with a strength and a slope of length per model is fitted to the comparisons, and the length is left out when",
        "scoring (Dubois et al., 2404.04475). Of the models with a published length-controlled rate,",
        f"{fit['of']}, the order here has a rank correlation of {fit['at equal length']:.3f} with the published one",
        f"(the plain win rate: {fit['wins']:.3f}).",
        "The rates themselves are higher for terse models than the published ones, which are drawn towards made-up terse baselines that",
        "are not in this file; where a model never writes at length, what it would win if it did is the fit's guess, and the interval is wide.",
        "",
        "| place | model | at equal length | wins | place by wins | characters |",
        "|---|---|---|---|---|---|",
        *(
            f"| {s['rank at equal length']} | {s['source']} | {_rate(s['at equal length'])} | {_rate(s['wins'])} "
            f"| {s['rank']} | {s['characters']:,.0f} |"
            for s in rank["sources"]
        ),
        "",
    ]
    if "large" in found:
        big = found["large"]
        out += [
            "## Large sets",
            "",
            f"`python bench/inspection.py large {big['pairs']}`: {big['pairs']:,} pairs on a prompt each,",
            "made of the real sets' sentences. A full inspection takes",
            f"{big['seconds']:,.0f} s and {big['peak'] / 2**30:.1f} GiB at its peak, on one thread of a busy machine.",
            "Fitted probes look",
            "at 20,000 comparisons; everything else looks at every row, in time and memory that grow with their number.",
            "",
        ]
    return "\n".join(out)


def _rate(x: dict[str, float]) -> str:
    return f"{100 * x['value']:.1f} % ({100 * x['lo']:.1f} to {100 * x['hi']:.1f})"


if __name__ == "__main__":
    main()
