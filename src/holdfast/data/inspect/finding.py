"""What a detector says: one statistic, what it would be if nothing were wrong, and the rows behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from holdfast.data.inspect.stats import Interval

if TYPE_CHECKING:
    from holdfast.data.inspect.material import Material

Severity = Literal["serious", "warning", "note", "good"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "note", "good")
MOST_CELLS = 40  # categories, annotators and sources that get a figure of their own; those with most comparisons


@dataclass(frozen=True)
class Rows:
    """Judgements that a finding rests on, the worst first: number (n,) int64, score (n,), and where it takes two, the
    other judgement (n,) int64 (-1: none). `what` says what the score is.
    """

    number: np.ndarray
    score: np.ndarray
    other: np.ndarray
    what: str = ""

    @classmethod
    def ranked(
        cls, number: np.ndarray, score: np.ndarray, what: str, other: np.ndarray | None = None, once: bool = True
    ) -> Rows:
        """By falling score; a judgement named twice stands once, under its highest, unless it is told otherwise."""
        number, score = np.asarray(number, np.int64), np.asarray(score, np.float64)
        other = np.full(len(number), -1, np.int64) if other is None else np.asarray(other, np.int64)
        order = np.lexsort((number, -score))
        number, score, other = number[order], score[order], other[order]
        if once and len(number):
            _, first = np.unique(number, return_index=True)
            keep = np.sort(first)
            number, score, other = number[keep], score[keep], other[keep]
        return cls(number, score, other, what)

    def __len__(self) -> int:
        return len(self.number)


NO_ROWS = Rows(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Cell:
    """The statistic within one category, annotator or source."""

    name: str
    n: int
    figure: Interval


@dataclass(frozen=True)
class Finding:
    """One statistic of a dataset.

    name: of the detector and the statistic, `length/longer-wins`. definition: what is computed; source: who says so.
    figure: the value and its 95 % interval over prompts; expected: its value if nothing were wrong; alarm: in words,
    when it is a warning and when it is serious. verdict: what it means, in a sentence or two; remedy: what to do.
    cells: the same statistic by "category", "annotator", "source". facts: further numbers, JSON-able.
    """

    name: str
    title: str
    definition: str
    figure: Interval
    unit: Literal["share", "number", "count"]
    severity: Severity
    verdict: str
    alarm: str
    expected: float | None = None
    source: str = ""
    remedy: str = ""
    rows: Rows = NO_ROWS
    cells: dict[str, list[Cell]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def alarmed(self) -> bool:
        return self.severity in ("serious", "warning")


@dataclass(frozen=True)
class Detector:
    """A function from material to findings. `needs` names what it cannot do without; see `missing`."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[Material], Iterable[Finding]]


DETECTORS: dict[str, Detector] = {}

WITHOUT: dict[str, tuple[Callable[[Material], bool], str]] = {
    "comparisons": (lambda m: bool(m.decided.any()), "no comparison prefers a side"),
    "text": (lambda m: m.text, "its responses are no text"),
    "shown": (lambda m: bool((m.first != 0).any()), "no row says in which order the responses were shown"),
    "annotators": (lambda m: len(m.annotators) > 1, "fewer than two annotators are named"),
    "sources": (lambda m: len(m.sources) > 1, "no row says who wrote the responses"),
    "split": (lambda m: len(m.parts) > 1, "no split was given (--split FOLDER)"),
    "against": (lambda m: bool(m.against), "no evaluation set was named (--against FILE)"),
    "tokenizer": (lambda m: m.tokenizer is not None, "no tokenizer was named (--tokenizer FOLDER)"),
    "samples": (lambda m: m.samples is not None, "no samples of the policy were named (--samples FILE)"),
    "ches": (lambda m: m.ches is not None, "no language model was named (--model FOLDER)"),
    "target": (lambda m: m.target is not None, "no target prompts were named (--target FILE)"),
}


def detector(name: str, *needs: str) -> Callable[[Callable[[Material], Iterable[Finding]]], Detector]:
    """Register a detector: its findings are named `name/...`."""
    assert set(needs) <= WITHOUT.keys() and name not in DETECTORS

    def register(run: Callable[[Material], Iterable[Finding]]) -> Detector:
        DETECTORS[name] = Detector(name, needs, run)
        return DETECTORS[name]

    return register


def missing(of: Detector, material: Material) -> str | None:
    """Why a detector has nothing to look at in this material; None if it has."""
    reasons = [why for need in of.needs for has, why in [WITHOUT[need]] if not has(material)]
    return "; ".join(reasons) or None


def outside_band(figure: Interval, warn: tuple[float, float], serious: tuple[float, float]) -> Severity:
    """Serious or a warning where the whole interval lies outside the band; good where it does not."""
    if not figure.known:
        return "note"
    assert figure.lo is not None and figure.hi is not None
    for band, severity in ((serious, "serious"), (warn, "warning")):
        if figure.lo > band[1] or figure.hi < band[0]:
            return severity  # type: ignore[return-value]
    return "good"


def graded(value: float, *, warning: float, serious: float, note: bool = False) -> Severity:
    """Serious or a warning from these values on; below them a note where there is something to say."""
    return "serious" if value >= serious else "warning" if value >= warning else "note" if note else "good"


def share(x: float | None, digits: int = 1) -> str:
    """A share in per cent, for a sentence."""
    return "-" if x is None else f"{100 * x:.{digits}f} %"


def between(figure: Interval, unit: str = "share") -> str:
    """A figure with its interval, for a sentence."""
    show = share if unit == "share" else (lambda x: "-" if x is None else f"{x:.3g}")
    return show(figure.value) + (f" ({show(figure.lo)} to {show(figure.hi)})" if figure.known else "")


def by_cells(material: Material, above: np.ndarray, below: np.ndarray) -> dict[str, list[Cell]]:
    """The ratio sum(above) / sum(below), (E,) each, within each category, annotator, source and value of the user's columns."""
    cells: dict[str, list[Cell]] = {}
    groups: list[tuple[str, list[str], list[np.ndarray]]] = [
        ("category", material.categories, [material.category]),
        ("annotator", material.annotators, [material.annotator]),
        ("source", material.sources, [material.source_a, material.source_b]),
        *((name, values, [codes[material.row]]) for name, codes, values in material.columns),
    ]
    for kind, names, codes in groups:
        if len(names) < 2:
            continue
        counts = np.zeros(len(names), np.int64)
        for c in codes:
            counts += np.bincount(c[(c >= 0) & (below > 0)], minlength=len(names))
        largest = sorted(range(len(names)), key=lambda k: (-int(counts[k]), names[k]))[:MOST_CELLS]
        listed = []
        for k in sorted(largest, key=lambda k: names[k]):
            if not counts[k]:
                continue
            mine = np.any([c == k for c in codes], axis=0)
            listed.append(Cell(names[k], int(counts[k]), material.resamples.ratio(above * mine, below * mine)))
        cells[kind] = listed
    return cells
