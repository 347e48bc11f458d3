"""Inspection on the three real sets: what it finds, and whether it finds what is planted. `python bench/inspection.py`

    real      the findings that alarm on each set, time and peak memory of a full inspection
    planted   copies of each set with one fault: is the finding an alarm (or worse than before), and precision and recall of its rows

Prints tables, writes bench/results/inspect.json and docs/inspect.md. Needs ../shared/data.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.export import records
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.inspect.finding import SEVERITIES, Finding, between
from holdfast.data.inspect.inspection import Inspection, inspect_dataset
from holdfast.data.records import Judgement
from holdfast.data.splits import make_split
from holdfast.data.text import plain_text
from holdfast.recipe import SplitTable

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
SETS = {"hh-harmless": "hh-harmless.jsonl.gz", "alpaca-eval": "alpaca-eval.parquet", "pandalm": "pandalm.jsonl.gz"}
Rows = list[Judgement]


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


FAULTS: dict[str, tuple[Callable[[Rows, random.Random, Path], tuple[Rows, set[int], dict[str, Any]]], str, str]] = {
    "10 % of the labels turned round": (flipped, "noise", "noise/flipped"),
    "200 near-duplicates across a split": (duplicated, "leakage", "leakage/split"),
    "10 points more to the longer one": (lengthened, "length", "length/longer-wins"),
    "an annotator who answers at random": (careless, "agreement", "agreement/annotators"),
    "2 % contradictions": (contradicted, "contradictions", "contradictions/exact"),
    "a judge who favours the first": (first_favoured, "position", "position/first-wins"),
    "50 prompts of an evaluation set": (contaminated, "against", "against/prompts:eval.jsonl"),
    "target prompts of an empty kind": (emptied, "target", "target/uncovered"),
}  # fmt: skip


def planted(name: str, ds: Dataset, before: Inspection, folder: Path) -> list[dict[str, Any]]:
    rows = [j for _, j in records(ds, np.arange(ds.n_judgements))]
    out = []
    for fault, (plant, detector, finding) in FAULTS.items():
        place = Path(tempfile.mkdtemp(dir=folder))
        changed, mine, options = plant(rows, random.Random(f"{name} {fault}"), place)
        made = freeze_records(((j, "planted", i) for i, j in enumerate(changed)), place / "data")
        truth = {i for i in range(made.n_judgements) if made.origins(i)[0][1] in mine}
        if options.pop("split", False):
            split = make_split(made, SplitTable(validation=0.2, test=0.2))
            split.save(place)
            options["split"] = place
            side = {i: part == "train" for part, at in split.parts.items() for i in at.tolist()}
            asked = [(plain_text(p) or "").removesuffix(" Thanks.") for p in made.prompt_contents(made.prompt_of)]
            twins: dict[str, list[int]] = {}
            for i, text in enumerate(asked):
                twins.setdefault(text, []).append(i)
            crossing = {i for i in truth if any(side[i] != side[k] for k in twins[asked[i]])}
            truth = crossing
        found = inspect_dataset(made, only=[detector], times=100, **options)
        f = next((f for f in found.findings if f.name == finding), None)
        old = next((g for g in before.findings if g.name == finding), None)
        row: dict[str, Any] = {
            "set": name,
            "fault": fault,
            "finding": finding,
            "found": f is not None and worse(f, old),
        }
        if f is not None:
            row |= {
                "figure": between(f.figure, f.unit),
                "before": between(old.figure, old.unit) if old else "-",
                "severity": f.severity,
            }
            if truth and len(f.rows):
                listed = [int(n) for n in f.rows.number] + [int(n) for n in f.rows.other if n >= 0]
                top = set(listed[: len(truth)]) if detector == "noise" else set(listed)
                row |= {"recall": len(top & truth) / len(truth), "precision": len(top & truth) / len(top)}
        out.append(row)
        print(f"  {'found ' if row['found'] else 'MISSED'} {name}: {fault}  {row}", flush=True)
    return out


def worse(now: Finding, before: Finding | None) -> bool:
    """An alarm where there was none before, or one whose interval lies apart from the figure before on the bad side."""
    if not now.alarmed:
        return False
    if before is None or SEVERITIES.index(now.severity) < SEVERITIES.index(before.severity) or not before.alarmed:
        return True
    return bool(
        now.figure.known
        and before.figure.value is not None
        and not now.figure.lo <= before.figure.value <= now.figure.hi
    )  # type: ignore[operator]


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


def main() -> None:
    found: dict[str, Any] = {"sets": {}, "planted": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for which, file in SETS.items():
            freeze(DATA / file, folder / which, on_error="skip")
            began = time.perf_counter()
            ds = open_dataset(folder / which)
            before = inspect_dataset(ds)
            cost = timed(folder / which)
            alarms = [
                {"finding": f.name, "severity": f.severity, "figure": between(f.figure, f.unit), "verdict": f.verdict}
                for f in before.findings
                if f.alarmed
            ]
            found["sets"][which] = {"judgements": ds.n_judgements, **cost, "alarms": alarms, "digest": before.digest}
            print(f"{which}: {cost['seconds']:.1f} s, {cost['peak'] / 2**30:.2f} GiB, {len(alarms)} alarms", flush=True)
            found["planted"] += planted(which, ds, before, folder)
            print(
                f"  {time.perf_counter() - began:.0f} s in all; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
                flush=True,
            )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "inspect.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE.parent / "docs" / "inspect.md").write_text(page(found), encoding="utf-8")
    missed = [p for p in found["planted"] if not p["found"]]
    print(f"{len(found['planted']) - len(missed)} of {len(found['planted'])} planted faults found")


def page(found: dict[str, Any]) -> str:
    out = [
        "# Inspection",
        "",
        "`holdfast inspect DATASET [-o FOLDER] [--split RUN] [--against FILE] [--target FILE] [--tokenizer FOLDER]` runs every detector",
        "that has something to look at. Each finding is one statistic with its definition, a 95 % interval (bootstrap over prompts), what it",
        "would be if nothing were wrong, a verdict, a remedy, the same figure per category, annotator and source, and the rows behind it, the",
        "worst first, in `inspect.json` and on a page, `inspect.html`. `holdfast check` makes a gate of it; `holdfast curate`",
        "[acts on it](curation.md).",
        "",
        "## What the three real sets teach",
        "",
        "Made by `python bench/inspection.py`. What alarms:",
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
        "Copies of the same sets with one fault each. Found: the finding alarms, and where it did before, its interval has left the figure",
        "before. Precision and recall are of the rows that it lists (label noise: of as many as were turned round, the most suspicious first).",
        "",
        "| set | fault | finding | before | with the fault | found | precision | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in found["planted"]:
        rates = " | ".join(f"{p[k]:.2f}" if k in p else "-" for k in ("precision", "recall"))
        out.append(
            f"| {p['set']} | {p['fault']} | `{p['finding']}` | {p.get('before', '-')} | {p.get('figure', '-')} | "
            f"{'yes' if p['found'] else '**no**'} | {rates} |"
        )
    return "\n".join([*out, ""])


if __name__ == "__main__":
    main()
