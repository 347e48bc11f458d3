"""A gate for anyone's CI: what an inspection may find at most, and where it finds more.

    [limits."length/longer-wins"]
    at_most = 0.6              # the figure; or at_least
    [limits."contradictions/*"]
    severity = "note"          # the worst that is allowed: good, note, warning or serious
    at_most = 0.01

A limit holds for every finding that its name matches. One that matches no finding is not met: what was not measured is not known to be
within a budget.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from holdfast.data.inspect.finding import SEVERITIES, Finding, between
from holdfast.data.inspect.inspection import Inspection
from holdfast.errors import RecipeError
from holdfast.recipe import unknown_key

KEYS = ("at_most", "at_least", "severity")


@dataclass(frozen=True)
class Excess:
    """A limit that does not hold: its name, what was asked, and the finding (None: there is none of that name)."""

    limit: str
    asked: str
    finding: Finding | None
    why: str

    def __str__(self) -> str:
        return f"{self.finding.name if self.finding else self.limit}: {self.why}"


def read_budget(path: str | Path) -> dict[str, dict[str, Any]]:
    """The limits of a budget file, by name. RecipeError for one that cannot be read or cannot be meant."""
    try:
        said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise RecipeError(f"budget {path} cannot be read: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise RecipeError(f"budget {path} is not TOML: {problem}") from None
    for key in said:
        if key != "limits":
            raise RecipeError(f"budget {path}: {unknown_key(key, ['limits'])}")
    limits = said.get("limits")
    if not isinstance(limits, dict) or not limits:
        raise RecipeError(f'budget {path} has no limits: write [limits."length/longer-wins"] with at_most = 0.6, say')
    for name, limit in limits.items():
        where = f"budget {path}, {name}"
        if not isinstance(limit, dict) or not limit:
            raise RecipeError(f"{where}: say at_most, at_least or severity")
        for key, value in limit.items():
            if key not in KEYS:
                raise RecipeError(f"{where}: {unknown_key(key, list(KEYS))}")
            if key == "severity":
                if value not in SEVERITIES:
                    raise RecipeError(f"{where}: severity = {value!r} should be one of {', '.join(SEVERITIES)}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RecipeError(f"{where}: {key} = {value!r} should be a number")
    return limits


def exceeded(found: Inspection, limits: dict[str, dict[str, Any]]) -> list[Excess]:
    """The limits that do not hold, in the budget's order and then the findings'."""
    out: list[Excess] = []
    for name, limit in limits.items():
        asked = ", ".join(f"{key} {value}" for key, value in limit.items())
        mine = [f for f in found.findings if fnmatchcase(f.name, name)]
        if not mine:
            reason = found.skipped.get(name.partition("/")[0], "no finding has this name")
            out.append(Excess(name, asked, None, f"not measured: {reason}"))
        for f in mine:
            figure, value = between(f.figure, f.unit), f.figure.value
            if "severity" in limit and SEVERITIES.index(f.severity) < SEVERITIES.index(limit["severity"]):
                out.append(
                    Excess(name, asked, f, f"is {f.severity}, the budget allows {limit['severity']}: {f.verdict}")
                )
            elif ("at_most" in limit or "at_least" in limit) and value is None:
                out.append(Excess(name, asked, f, "has no figure"))
            elif value is not None and value > limit.get("at_most", math.inf):
                out.append(
                    Excess(name, asked, f, f"is {figure}, the budget allows {limit['at_most']:g} at most: {f.verdict}")
                )
            elif value is not None and value < limit.get("at_least", -math.inf):
                out.append(
                    Excess(
                        name, asked, f, f"is {figure}, the budget asks for {limit['at_least']:g} at least: {f.verdict}"
                    )
                )
    return out


def sarif(dataset: str, found: Inspection, over: list[Excess], version: str) -> dict[str, Any]:
    """The excesses as a SARIF 2.1.0 log (OASIS), which code hosts show beside a change."""
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for e in over:
        name = e.finding.name if e.finding else e.limit
        rules.setdefault(
            name,
            {
                "id": name,
                "shortDescription": {"text": e.finding.title if e.finding else "A limit that was not measured"},
                **(
                    {"fullDescription": {"text": e.finding.definition}, "help": {"text": e.finding.remedy or "-"}}
                    if e.finding
                    else {}
                ),
            },
        )
        result: dict[str, Any] = {
            "ruleId": name,
            "level": "error",
            "message": {"text": f"{e} (limit: {e.asked})"},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": f"{dataset}/manifest.json"}}}],
            "partialFingerprints": {"limit/v1": f"{found.root[:16]}:{name}"},
        }
        if e.finding and len(e.finding.rows):
            listed = [found.material.row_id(int(n)) for n in e.finding.rows.number[:20]]
            result["properties"] = {"rows": len(e.finding.rows), "first": listed}
        results.append(result)
    driver = {
        "name": "holdfast",
        "version": version,
        "informationUri": "https://pypi.org/project/holdfast/",
        "rules": list(rules.values()),
    }
    run = {
        "tool": {"driver": driver},
        "results": results,
        "properties": {"dataset": found.root, "inspection": found.digest},
    }
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
