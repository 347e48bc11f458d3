"""Inspect a dataset before a step is taken: run every detector that has something to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson

# Detectors register themselves when their module is read, and run in this order.
from holdfast.data.inspect import (  # isort: skip
    validity as validity,
    tokens as tokens,
    length as length,
    shortcuts as shortcuts,
    position as position,
    consistency as consistency,
    sources as sources,
    agreement as agreement,
    noise as noise,
    duplicates as duplicates,
    coverage as coverage,
    similarity as similarity,
    samples as samples,
)
from holdfast.data.dataset import Dataset, canonical_json
from holdfast.data.inspect.finding import DETECTORS, Finding, missing
from holdfast.data.inspect.material import Material, material
from holdfast.data.inspect.power import COPIES, Sight
from holdfast.data.inspect.power import power as measure_power
from holdfast.data.inspect.stats import Interval
from holdfast.errors import DataError

FORMAT = "holdfast-inspection/1"
LISTED = 1000  # rows of a finding that the file lists; all of them are counted, and in `Finding.rows`


@dataclass(frozen=True)
class Inspection:
    """What the detectors found in a dataset.

    root: the dataset's; options: what was asked; facts: sizes; findings: in the detectors' order; skipped: detectors
    that had nothing to look at, with the reason; material: what they looked at; power: what they could not have seen,
    where that was measured.
    """

    root: str
    options: dict[str, Any]
    facts: dict[str, Any]
    findings: list[Finding]
    skipped: dict[str, str]
    material: Material = field(repr=False)
    power: Sight | None = None

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name. KeyError if there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"no finding {name!r}; there are: {', '.join(f.name for f in self.findings)}")

    @property
    def alarms(self) -> list[Finding]:
        return [f for f in self.findings if f.alarmed]

    @property
    def digest(self) -> str:
        """SHA-256 over all that the file says."""
        return _digest(self._said())

    def as_json(self) -> dict[str, Any]:
        said = self._said()
        return {**said, "digest": _digest(said)}

    def save(self, path: str | Path) -> Path:
        """Write it as a JSON file that holds its own digest; the same inspection is the same bytes."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(self.as_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return path

    def _said(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dataset": self.root,
            "options": self.options,
            "facts": self.facts,
            "findings": [_finding(f, self.material) for f in self.findings],
            "skipped": self.skipped,
            **({} if self.power is None else {"power": _plain(self.power.as_json())}),
        }


def _digest(said: dict[str, Any]) -> str:
    return sha256(b"holdfast/inspection/1\0" + canonical_json(said)).hexdigest()


def read_inspection(path: str | Path) -> dict[str, Any]:
    """An inspection's file, checked against its digest. DataError if it is none, or was changed."""
    try:
        said = orjson.loads(Path(path).read_bytes())
    except (OSError, orjson.JSONDecodeError) as problem:
        raise DataError(f"{path} cannot be read as an inspection: {problem}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise DataError(f"{path} is no inspection; `holdfast inspect DATASET -o FOLDER` writes inspect.json")
    digest = said.pop("digest", None)
    if digest != _digest(said):
        raise DataError(f"{path} was changed: it hashes to {_digest(said)[:12]}, and says {str(digest)[:12]}")
    return {**said, "digest": digest}


def inspect_dataset(
    ds: Dataset,
    *,
    split: str | Path | None = None,
    against: Sequence[str | Path] = (),
    target: str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_length: int = 2048,
    seed: int = 0,
    times: int = 400,
    sample: int = 20_000,
    columns: Sequence[str] = (),
    samples: str | Path | None = None,
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
    embedder: str | None = None,
    ches: Callable[[Dataset, np.ndarray, np.ndarray, int], np.ndarray] | None = None,
    model: str | None = None,
    only: Iterable[str] | None = None,
    power: bool | int = False,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Run the detectors over a frozen dataset.

    split: a folder with a split of it, to look for leaks across it. against: files or datasets that it must not
    overlap. target: prompts that the model is meant for. tokenizer: a tokenizer.json or a model's folder; max_length:
    tokens of prompt and response at which training will cut. columns: of the judgements, or keys of what else their rows
    said, to count by beside category, annotator and source. samples: a file of what the policy itself wrote. embed: texts
    to (n, d) unit vectors, in place of TF-IDF; embedder: its name, for the record. ches, model: the score of pairs under a language
    model and its name, as `language.displacement.load_ches` gives them. seed: of the bootstrap, folds and
    samples; times: resamples; sample: comparisons that fitted probes look at. only: names of detectors (default: all).
    power: plant each fault in copies of the dataset (20 at each strength, or that many), to say what would have been found.

    The same dataset and options give the same findings. Raises DataError for what cannot be read and for an unknown
    detector.
    """
    wanted = list(DETECTORS) if only is None else list(only)
    if unknown := [name for name in wanted if name not in DETECTORS]:
        raise DataError(f"no detector {unknown[0]!r}; there are: {', '.join(DETECTORS)}")
    if times < 2 or sample < 100 or max_length < 1:
        raise DataError(f"times {times}, sample {sample}, max_length {max_length}: should be at least 2, 100 and 1")
    if power is not True and not 0 <= power <= 1000:
        raise DataError(f"power {power}: should be a number of copies up to 1,000")
    if not ds.n_judgements:
        raise DataError(f"dataset {ds.path} holds no judgements; there is nothing to inspect")
    looked_at = material(
        ds,
        split=split,
        against=against,
        target=target,
        tokenizer=tokenizer,
        max_length=max_length,
        seed=seed,
        times=times,
        sample=sample,
        columns=columns,
        samples=samples,
        embed=embed,
        ches=ches,
    )
    findings, skipped = examine(looked_at, wanted, progress)
    options = {
        "split": None if split is None else Path(split).name,
        "against": [o.name for o in looked_at.against],
        "target": None if looked_at.target is None else looked_at.target.name,
        "tokenizer": None if tokenizer is None else Path(tokenizer).name,
        "max_length": max_length if tokenizer is not None or ches is not None else None,
        "seed": seed,
        "times": times,
        "sample": sample,
        "detectors": wanted,
        **({"embedder": embedder or "unnamed"} if embed else {}),
        **({"model": model or "unnamed"} if ches else {}),
        **({"columns": list(columns)} if columns else {}),
        **({"samples": looked_at.samples.name} if looked_at.samples else {}),
    }
    facts = {
        "prompts": ds.n_prompts,
        "responses": ds.n_responses,
        "judgements": ds.n_judgements,
        "comparisons": len(looked_at),
        "ties": int(looked_at.tie.sum()),
        "undecided": int((~looked_at.decided & ~looked_at.tie).sum()),
        "compared with itself": int((looked_at.a == looked_at.b).sum()),
        "make no comparison": looked_at.left_out,
        "categories": len(looked_at.categories),
        "annotators": len(looked_at.annotators),
        "sources": len(looked_at.sources),
    }
    sight = None
    if power:
        copies = COPIES if power is True else power
        options["copies"] = copies
        sight = measure_power(looked_at, wanted, copies=copies, seed=seed, progress=progress)
    return Inspection(ds.root, options, facts, findings, skipped, looked_at, sight)


def examine(
    looked_at: Material, wanted: Iterable[str] | None = None, progress: Callable[[str], None] | None = None
) -> tuple[list[Finding], dict[str, str]]:
    """The findings of these detectors (default: all), and for those with nothing to look at the reason."""
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    names = DETECTORS if wanted is None else set(wanted)
    for name, one in DETECTORS.items():
        if name not in names:
            continue
        why = missing(one, looked_at)
        if why is not None:
            skipped[name] = why
            continue
        if progress is not None:
            progress(name)
        found = list(one.run(looked_at))
        findings += found
        if not found:
            skipped[name] = "too few rows of the kind it looks at"
    return findings, skipped


def _finding(f: Finding, looked_at: Material) -> dict[str, Any]:
    rows = [
        {"row": looked_at.row_id(int(n)), "score": _number(s)} | ({"other": looked_at.row_id(int(o))} if o >= 0 else {})
        for n, s, o in zip(f.rows.number[:LISTED], f.rows.score[:LISTED], f.rows.other[:LISTED], strict=True)
    ]
    return {
        "name": f.name,
        "title": f.title,
        "definition": f.definition,
        "source": f.source,
        "unit": f.unit,
        **_interval(f.figure),
        "expected": f.expected,
        "severity": f.severity,
        "alarm": f.alarm,
        "verdict": f.verdict,
        "remedy": f.remedy,
        "rows": {"count": len(f.rows), "score": f.rows.what, "listed": rows},
        "cells": {k: [{"name": c.name, "n": c.n, **_interval(c.figure)} for c in v] for k, v in f.cells.items()},
        "facts": _plain(f.facts),
    }


def _interval(x: Interval) -> dict[str, float | None]:
    return {"value": _number(x.value), "lo": _number(x.lo), "hi": _number(x.hi)}


def _number(x: float | None) -> float | None:
    return None if x is None or not np.isfinite(x) else float(x)


def _plain(said: Any) -> Any:
    """The same in what JSON can carry."""
    if isinstance(said, dict):
        return {str(k): _plain(v) for k, v in said.items()}
    if isinstance(said, list | tuple):
        return [_plain(v) for v in said]
    if isinstance(said, np.generic):
        said = said.item()
    return _number(said) if isinstance(said, float) else said
