"""A run folder, read for its report: everything that is there, and a word on what is not.

The report must open on a run that was interrupted, damaged or never evaluated, for that is when it is needed. So
nothing but a folder that is no run at all raises; what cannot be read is listed in `RunData.unreadable` and shown.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from holdfast.errors import HoldfastError
from holdfast.evaluation.table import Evaluation, read_evaluation

PART_ORDER = ("test", "validation", "ood", "train")


@dataclass(frozen=True)
class Series:
    """A figure over steps."""

    step: list[int]
    value: list[float]

    def at(self, step: int) -> float:
        """The value at the last measured step not after `step` (the first one, if all are after)."""
        return self.value[max(0, sum(s <= step for s in self.step) - 1)]


@dataclass
class RunData:
    """What a run folder says. Files read, all optional but one of the first two:

    recipe.toml, ledger.jsonl, metrics.jsonl ({"step", name: value}), timing.jsonl ({"step", "what", "seconds",
    "tokens"}), left_out.jsonl ({"row", "reason"}), evaluations/*/, gold.json, base/ (a run), and the frozen dataset the
    recipe names, if it still lies there.

    gold.json, where the true reward is known (the built-in world):
        {"measure": "what the gold reward measures",
         "rows": [{"name", "part", "n", "gold_mean", "lo", "hi", "win_rate", "win_lo", "win_hi"}, ...],   # win_*:
         against "base", or null "curve": [{"step", "gold", "lo", "hi"}, ...]}
         # optional; lo, hi optional
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)  # the ledger's first entry
    final: dict[str, Any] | None = None
    stop: dict[str, Any] | None = None
    head: str | None = None
    steps: int = 0
    loss: Series = field(default_factory=lambda: Series([], []))
    held_out: dict[str, Series] = field(default_factory=dict)
    metrics: dict[str, Series] = field(default_factory=dict)
    debias: dict[str, Series] = field(default_factory=dict)  # the nuisance term's weight per feature, after each step
    seconds: float = 0.0  # steps, held-out figures and checkpoints together
    step_seconds: float = 0.0
    tokens: int = 0
    left_out: list[dict[str, Any]] = field(default_factory=list)
    dataset: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    gold: dict[str, Any] | None = None
    base: RunData | None = None
    unreadable: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.recipe.get("objective", {}).get("kind", "unknown"))

    @property
    def kept_step(self) -> int:
        """The step whose weights are the result: the best one where the run stopped on a held-out figure, else the
        last.
        """
        return int((self.final or {}).get("step", self.steps))

    def fact(self, name: str) -> Any:
        """A fact that the ledger's first entry commits to: `dataset`, `split`, `recipe`, `base` (digests), `tokens`,
        ...
        """
        facts = self.opened.get("facts")
        return facts.get(name) if isinstance(facts, Mapping) else None

    @property
    def trained_on(self) -> int | None:
        """Judgements in the part that was trained on."""
        rows = self.opened.get("rows")
        return rows.get("count") if isinstance(rows, Mapping) else None

    @property
    def reasons(self) -> Counter[str]:
        """Why judgements were left out, with how many. Reasons that differ only in their numbers are one."""
        return Counter(re.sub(r"\d[\d,.]*", "…", str(line.get("reason", "no reason given"))) for line in self.left_out)

    @property
    def main(self) -> Evaluation | None:
        """The evaluation on the run's own held-out parts: the one whose facts name the split."""
        own = [e for e in self.evaluations if e.facts.get("split_digest")] or self.evaluations
        return min(own, key=lambda e: (not {"test", "validation"} & set(e.figures["parts"]), e.path.name), default=None)

    @property
    def parts(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, figures) of every evaluated part that has comparisons, held-out ones of the main evaluation first."""
        found = []
        for evaluation in sorted(self.evaluations, key=lambda e: (e is not self.main, e.path.name)):
            inside = evaluation.figures["parts"]
            for part in sorted(inside, key=lambda p: (PART_ORDER.index(p) if p in PART_ORDER else 2.5, p)):
                elsewhere = f"data {evaluation.path.name}" + ("" if part == "all" else f": {part}")
                found.append((part if evaluation is self.main else elsewhere, inside[part]))
        return found

    @property
    def headline(self) -> tuple[str, dict[str, Any]] | None:
        """The part that the page's key figures are taken from: held-out, in distribution where there is one."""
        return next((p for p in self.parts if p[0] != "train"), None)


def read_run(folder: str | Path) -> RunData:
    """Read a run folder. Raises HoldfastError where there is neither a recipe nor a ledger."""
    folder = Path(folder)
    run = RunData(folder)
    if not (folder / "recipe.toml").exists() and not (folder / "ledger.jsonl").exists():
        raise HoldfastError(
            f"{folder} is not a run folder: it holds neither recipe.toml nor ledger.jsonl; name the folder given to "
            "`-o`"
        )
    try:
        run.recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        run.unreadable.append(f"recipe.toml: {problem}")

    held_out: dict[str, dict[int, float]] = {}
    debias: dict[str, dict[int, float]] = {}
    loss: dict[int, float] = {}
    for entry in _json_lines(run, "ledger.jsonl"):
        run.head = entry.get("hash", run.head)
        match entry.get("kind"):
            case "open":
                run.opened = entry
            case "step":
                run.steps = int(entry["step"]) if isinstance(entry.get("step"), int) else run.steps
                if (value := _number(entry.get("loss"))) is not None:
                    loss[run.steps] = value
                for name, said in ((entry.get("after") or {}).get("debias") or {}).items():
                    if (value := _number(said)) is not None:
                        debias.setdefault(name, {})[run.steps] = value
            case "figures":
                for name, said in (entry.get("figures") or {}).items():
                    if (value := _number(said)) is not None:
                        held_out.setdefault(name, {})[int(entry.get("step", run.steps))] = value
            case "environment":  # resumed elsewhere from this step: what stands after it was set aside
                since = int(entry.get("step", 0))
                for values in (loss, *held_out.values(), *debias.values()):
                    for step in [k for k in values if k > since]:
                        del values[step]
            case "stop":
                run.stop = entry
            case "final":
                run.final = entry
    run.loss = _series(loss)
    run.held_out = {name: _series(values) for name, values in held_out.items()}
    run.debias = {name: _series(values) for name, values in debias.items()}

    metrics: dict[str, dict[int, float]] = {}
    for line in _json_lines(run, "metrics.jsonl"):
        for name, said in line.items():
            if name != "step" and (value := _number(said)) is not None:
                metrics.setdefault(name, {})[int(line.get("step", 0))] = value
    run.metrics = {name: _series(values) for name, values in metrics.items()}
    if not run.loss.step and "loss" in run.metrics:
        run.loss = run.metrics["loss"]
        run.steps = max(run.loss.step)
    for line in _json_lines(run, "timing.jsonl"):
        seconds = _number(line.get("seconds")) or 0.0
        run.seconds += seconds
        if line.get("what") == "step":
            run.step_seconds += seconds
            run.tokens += int(_number(line.get("tokens")) or 0)
    run.left_out = list(_json_lines(run, "left_out.jsonl"))

    control = "control" in run.recipe  # its evaluations and its log are others: report.control reads them
    for place in [] if control else sorted((folder / "evaluations").glob("*/")):
        try:
            run.evaluations.append(read_evaluation(place))
        except (HoldfastError, KeyError, TypeError) as problem:
            run.unreadable.append(f"evaluations/{place.name}: {problem}")
    if (folder / "gold.json").exists():
        try:
            run.gold = orjson.loads((folder / "gold.json").read_bytes())
        except (OSError, orjson.JSONDecodeError) as problem:
            run.unreadable.append(f"gold.json: {problem}")
    run.dataset = {} if control else _dataset_facts(run)
    if (folder / "base" / "recipe.toml").exists() or (folder / "base" / "ledger.jsonl").exists():
        run.base = read_run(folder / "base")
    return run


def _dataset_facts(run: RunData) -> dict[str, Any]:
    """Counts of the frozen dataset, if it still lies where the recipe says and still is the one the ledger names."""
    place = run.recipe.get("data", {}).get("dataset")
    if not place or not (Path(place) / "manifest.json").exists():
        return {}
    from holdfast.data.dataset import open_dataset

    try:
        ds = open_dataset(place, check=False)
        expected = run.fact("dataset")
        if expected is not None and ds.root != expected:
            run.unreadable.append(f"dataset {place}: its root is {ds.root} now, the run was made from {expected}")
            return {}
        facts: dict[str, Any] = {"path": str(place), "root": ds.root}
        facts |= {"prompts": ds.n_prompts, "responses": ds.n_responses, "judgements": ds.n_judgements}
        facts["rejects"] = ds.manifest["rejects"]
        facts["files"] = ds.manifest["files"]
        for name in ("kind", "category", "annotator", "annotator_kind", "licence"):
            counted = Counter(v for v in ds.judgements[name].to_pylist() if v is not None)
            facts[name] = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        return facts
    except (HoldfastError, OSError, KeyError, ValueError) as problem:
        run.unreadable.append(f"dataset {place}: {problem}")
        return {}


def _json_lines(run: RunData, name: str) -> Iterator[dict[str, Any]]:
    path = run.folder / name
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                torn = not line.endswith(b"\n")  # the line a kill cut off: the next resume drops it
                run.unreadable.append(f"{name}, line {number}: {'cut off in the middle' if torn else 'not JSON'}")
                continue
            if isinstance(entry, dict):
                yield entry


def _number(said: Any) -> float | None:
    """A number as JSON has it, or as the ledger writes it (float.hex())."""
    if isinstance(said, bool) or said is None:
        return None
    if isinstance(said, int | float):
        return float(said)
    try:
        return float.fromhex(said) if "0x" in said or said in ("nan", "inf", "-inf") else None
    except (TypeError, ValueError):
        return None


def _series(values: dict[int, float]) -> Series:
    steps = sorted(values)
    return Series(steps, [values[s] for s in steps])
