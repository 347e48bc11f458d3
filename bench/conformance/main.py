"""`python bench/conformance/main.py`, in the environment that run.sh makes: every comparison with TRL, into docs/conformance.md.

Exit status 1 where a row differs that is not explained, or one that is explained is equal.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch

import fields
from losses import all_rows
from rows import TOLERANCE, Row, number
from steps import WEIGHTS, Compared, all_cases

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]] + [""]


def percent(value: float) -> str:
    return f"{value:.1e}" if value == value else "nan"


def page(rows: list[Row], steps: list[Compared]) -> str:
    same, other = [r for r in rows if r.equal], [r for r in rows if not r.equal]
    versions = (
        f"TRL {version('trl')}, transformers {version('transformers')}, torch {torch.__version__.partition('+')[0]}"
    )
    out = [
        "# Beside TRL",
        "",
        f"Made by `bench/conformance/run.sh`, which makes TRL's environment from a pinned file and compares there: {versions}, on a CPU in float32.",
        "",
        "**Losses.** TRL's own code and ours on the same made-up log-probabilities: 48 pairs with responses of 1 to 15 tokens, the worst of four",
        "draws. Relative difference of the batch's loss, and of its derivative by every token's log-probability (the norm of the difference over",
        f"the norm). Equal: both at most {TOLERANCE:.0e}. {len(same)} of {len(rows)} are; each of the others has its reason below.",
        "",
        "**Steps.** TRL's trainer and a Holdfast run whose recipe `holdfast recipe --from-trl` made of the same arguments: the same random",
        "weights (two layers, tied embeddings), the same 24 rows of the built-in world tokenised by each, four steps of AdamW. Largest relative",
        f"difference of a step's loss and gradient norm (equal: {TOLERANCE:.0e}), and the distance between the final weights as a share of",
        f"the way that they went (equal: {WEIGHTS:.0e}, for AdamW magnifies the last digit of gradients near its eps).",
        "",
        "## Losses that are equal",
        "",
    ]
    out += table(
        ["TRL", "Holdfast", "value", "apart", "derivatives apart", ""],
        [
            [cell(r.trl), f"`{r.holdfast}`", number(r.ours), percent(r.apart), percent(r.slope), cell(r.note)]
            for r in same
        ],
    )
    out += ["## Losses that are not, and who is right", ""]
    out += table(
        ["TRL", "Holdfast", "TRL's value", "ours", "why"],
        [[cell(r.trl), f"`{r.holdfast}`", number(r.theirs), number(r.ours), cell(r.note)] for r in other],
    )
    out += ["## Whole steps", ""]
    out += table(
        ["TRL", "steps", "loss apart", "gradient norm apart", "weights apart", "", ""],
        [
            [
                cell(c.case.name),
                str(c.steps),
                percent(c.loss),
                percent(c.norm),
                percent(c.weights),
                "equal" if c.equal else "not equal",
                cell(c.case.note),
            ]
            for c in steps
        ],
    )
    return "\n".join(out)


def unexplained(rows: list[Row], steps: list[Compared]) -> list[str]:
    """Differences without a reason, and reasons for a difference where there is none."""
    wrong = [
        f"{r.trl} / {r.holdfast}: {r.theirs} and {r.ours}, apart {r.apart}, {r.slope}"
        for r in rows
        if not r.equal and not r.note
    ]
    return wrong + [
        f"{c.case.name}: loss {c.loss}, norm {c.norm}, weights {c.weights}"
        for c in steps
        if c.equal == (c.case.equal == 0)
    ]


if __name__ == "__main__":
    found = fields.listed()
    stored = json.loads(fields.STORED.read_text())
    wrong = (
        []
        if found == stored
        else ["TRL's fields are not those of tests/trl_fields.json: python bench/conformance/fields.py --check"]
    )
    rows, steps = all_rows(), all_cases()
    PAGE.write_text(page(rows, steps), encoding="utf-8")
    wrong += unexplained(rows, steps)
    print(
        f"{sum(r.equal for r in rows)} of {len(rows)} losses and {sum(c.equal for c in steps)} of {len(steps)} runs are equal: {PAGE}"
    )
    print("\n".join(wrong))
    sys.exit(bool(wrong))
