"""`python -m holdfast.losses > docs/formulas.md`: the table of all losses, made of their signatures and docstrings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from holdfast.losses import LOSSES, QUANTITIES, bco_delta, kto_z0, pessimistic

FAMILIES = {
    "pair": "Pairs, for a policy",
    "list": "Rankings, for a policy",
    "label": "Good and bad labels, for a policy",
    "sft": "Imitation",
    "reward": "Reward models",
}


def table() -> str:
    """docs/formulas.md as one string."""
    out = [
        "# Losses",
        "",
        "Made by `python -m holdfast.losses` from the docstrings in `src/holdfast/losses`; a test keeps the two equal.",
        "",
        "w is the preferred response, l the other; sigma is the logistic function; d = r_w - r_l. A source's number is",
        "that of the paper on arXiv. A loss is one value per row; a step minimises their weighted sum over its rows,",
        "divided by the number of rows (`sft_nll`: of response tokens). Under a label that is right with probability",
        "p, a loss is p L(w, l) + (1 - p) L(l, w); a tie is p = 1/2 to every loss that has no place for ties.",
        "",
    ]
    for family, heading in FAMILIES.items():
        losses = [loss for loss in LOSSES.values() if loss.family == family]
        out += [f"## {heading}", "", "| loss | formula | settings | source | notes |", "|---|---|---|---|---|"]
        for loss in losses:
            formula, notes = _said(loss)
            if loss.couples_rows:
                notes += " Couples rows: computed over the whole step at once."
            if loss.why_not_soft and family in ("pair", "reward"):
                notes += f" No probability as a label: {loss.why_not_soft}."
            settings = _settings(loss, *loss.updates.values())
            out.append(_row(f"`{loss.name}`", f"`{formula}`", settings, f"{loss.paper}, {loss.equation}", notes))
        out.append("")
    out += ["## Beside the losses", "", "| function | formula | settings | notes |", "|---|---|---|---|"]
    for function in (bco_delta, kto_z0, pessimistic):
        formula, notes = _said(function)
        out.append(_row(f"`{function.__name__}`", f"`{formula}`", _settings(function), notes))
    out += [
        "",
        "## Quantities",
        "",
        "What a loss may ask for; nothing else is computed.",
        "",
        "| name | meaning | asked by |",
    ]
    out.append("|---|---|---|")
    for name, meaning in QUANTITIES.items():
        out.append(_row(f"`{name}`", meaning, ", ".join(loss.name for loss in LOSSES.values() if name in loss.takes)))
    return "\n".join(out) + "\n"


def _said(function: Callable[..., Any]) -> tuple[str, str]:
    """The docstring's first paragraph and the rest, each on one line."""
    formula, *rest = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return " ".join(formula.split()), " ".join(" ".join(rest).split())


def _settings(*functions: Callable[..., Any]) -> str:
    """The keyword-only parameters with their defaults, as a recipe would say them."""
    parameters = {
        n: p for f in functions for n, p in inspect.signature(f).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    said = [n if p.default is None else f"{n} = {json.dumps(p.default)}" for n, p in parameters.items()]
    return f"`{', '.join(said)}`" if said else "none"


def _row(*cells: str) -> str:
    """One row of a Markdown table; what stands in backticks stays as it is, but for the bar."""
    parts = [cell.replace("|", "\\|").split("`") for cell in cells]
    said = ["`".join(p if i % 2 else p.replace("_", "\\_") for i, p in enumerate(cell)) for cell in parts]
    return f"| {' | '.join(said)} |"


if __name__ == "__main__":
    print(table(), end="")
