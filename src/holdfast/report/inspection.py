"""One self-contained HTML page from an inspection, in the form of a run's report: what alarms first, then every finding with its interval,
its cells and the rows behind it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from holdfast.data.dataset import Dataset
from holdfast.data.inspect.finding import SEVERITIES, Cell, Finding, between
from holdfast.data.inspect.inspection import Inspection
from holdfast.data.inspect.power import Sight
from holdfast.data.inspect.stats import Interval
from holdfast.data.inspect.validity import masked
from holdfast.data.text import plain_text, transcript
from holdfast.report import inspection_charts as charts
from holdfast.report import plots
from holdfast.report.page import HERE, SCRIPT, _copy, _facts, _table, _whole
from holdfast.report.plots import Mark, joined, markup, number

SHOWN = 5  # rows of an alarming finding that the page shows with their texts
MOST_CELLS = 12
TITLES = {
    "validity": "Responses as they are", "tokens": "Lengths in tokens", "length": "Length", "shortcut": "Shortcuts",
    "position": "Position", "contradictions": "Contradictions", "cycles": "Cycles", "sources": "Sources", "agreement": "Agreement",
    "noise": "Label noise", "duplicates": "Duplicates", "leakage": "Leaks across the split", "against": "Evaluation sets",
    "coverage": "Coverage", "target": "Target prompts", "similarity": "How alike the two responses are",
    "displacement": "How alike the two responses are to the model",
    "samples": "The policy's own samples",
}  # fmt: skip
KEY = (
    "length/longer-wins",
    "shortcut/surface",
    "noise/flipped",
    "agreement/alpha",
    "contradictions/exact",
    "duplicates/prompts",
)


def write_inspection(found: Inspection, dataset: Dataset, folder: str | Path) -> Path:
    """Write `inspect.html` into the folder; returns its path. The same inspection gives the same bytes."""
    path = Path(folder) / "inspect.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name("inspect.html.tmp")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(render(found, dataset))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return path


def render(found: Inspection, dataset: Dataset) -> str:
    """The page as a string."""
    groups: dict[str, list[Finding]] = {}
    for f in found.findings:
        groups.setdefault(f.name.partition("/")[0], []).append(f)
    worst = sorted(found.alarms, key=lambda f: SEVERITIES.index(f.severity))
    sections = [
        (
            name,
            TITLES.get(name, name.capitalize()),
            _pictures(name, several, found) + joined([_finding(f, dataset) for f in several]),
        )
        for name, several in groups.items()
    ]
    if found.power is not None:
        sections.append(("power", "What it could not have seen", _power(found.power)))
    sections.append(("dataset", "The dataset", _dataset(found)))
    named = {f.name: f for f in found.findings}
    shown = [named[n] for n in KEY if n in named]
    tiles = [{"name": f.title, "value": _value(f), "interval": _range(f), "note": ""} for f in shown]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    alarms = {s: sum(f.severity == s for f in found.findings) for s in SEVERITIES}
    return environment.get_template("page.html").render(
        brand="Holdfast inspection",
        subject="inspection",
        footer="Written by Holdfast from the frozen dataset alone.",
        title=dataset.path.name,
        subtitle=markup(
            "What <b>{:,}</b> judgements on {:,} prompts can and cannot teach. Intervals are 95 %, from a bootstrap over prompts.",
            found.facts["judgements"],
            found.facts["prompts"],
        ),
        chips=[(f"{n} {s}", s) for s, n in alarms.items() if n] + [(f"dataset {found.root[:12]}", "")],
        warnings=[(f.severity, f.title, _whole(f.verdict), _whole(f.remedy or "Look at the rows.")) for f in worst],
        checked=list(groups),
        unchecked=[f"{TITLES.get(name, name).lower()} ({why})" for name, why in found.skipped.items()],
        unreadable=[],
        key_figures=tiles,
        sections=sections,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


def _pictures(name: str, findings: Sequence[Finding], found: Inspection) -> Markup:
    named = {f.name: f for f in findings}
    if name == "length":
        return charts.lengths(found.material)
    if name == "similarity":
        return charts.similarities(named["similarity/pairs"])
    if name == "displacement":
        return markup('<div class="grid2">{}</div>', joined([charts.ches(f) for f in findings]))
    if name == "sources" and "sources/strengths" in named:
        return charts.sources_graph(named["sources/strengths"])
    if name == "coverage":
        cells = joined([charts.cells(f) for name, f in named.items() if name.startswith("coverage/cells")])
        return charts.prompts_map(found.material) + cells
    return Markup("")


def _power(sight: Sight) -> Markup:
    """What was planted, from where on it is found, how often clean copies alarm, and what no data would show."""
    head = markup(
        "<p>Each fault was planted in {} copies of this dataset at rising strengths, until it was found in nine of ten. The copies "
        "were first made clean, so that an alarm on one of those is false.</p>",
        sight.copies,
    )
    rows = []
    for p in sight.faults:
        false = p.false_alarms
        alarms = (
            "–" if p.why else markup("{} of {} <small>up to {:.0f} %</small>", p.alarms, p.clean, 100 * (false.hi or 0))
        )
        tried = _whole("; ".join(f"{p.number(t['strength'])}: {t['found']} of {t['copies']}" for t in p.strengths))
        rates = "–" if p.recall is None else f"{p.recall:.2f} / {p.precision:.2f}"
        said = markup('{}<br><small title="{}">{}</small>', _whole(p.said()), p.fault.how, tried)
        rows.append((p.fault.name, said, rates, alarms))
    table = _table(["planted", "found nine times in ten from", "its rows: recall / precision", "false alarms"], rows)
    small = []
    for title, listed in (
        (
            "Near-duplicates recognised, by the words replaced",
            [(n["words replaced"], n["recognised"]) for n in sight.near],
        ),
        (
            "Labels a small model foretells, by the labels turned round",
            [(n["flipped"], n["accuracy"]) for n in sight.probe],
        ),
    ):
        if listed:
            rows_of = [(_whole(f"{100 * x:g} %"), _whole(f"{100 * y:.0f} %")) for x, y in listed]
            small.append(markup("<div><h3>{}</h3>{}</div>", title, _facts(rows_of)))
    reach = markup('<div class="grid2">{}</div>', joined(small)) if small else Markup("")
    blind = _facts([(TITLES.get(k, k), v) for k, v in sight.blind.items()])
    return head + table + reach + markup("<h3>What no amount of data would show</h3>{}", blind)


def _value(f: Finding) -> str:
    if f.figure.value is None:
        return "–"
    return _whole(f"{100 * f.figure.value:.1f} %") if f.unit == "share" else number(f.figure.value)


def _range(f: Finding) -> str:
    if f.figure.lo is None or f.figure.hi is None:
        return ""
    if f.unit == "share":
        return f"{100 * f.figure.lo:.1f} to {100 * f.figure.hi:.1f}"
    return f"{number(f.figure.lo)} to {number(f.figure.hi)}"


def _finding(f: Finding, dataset: Dataset) -> Markup:
    expected = (
        "" if f.expected is None else f"; {between(Interval(f.expected, None, None), f.unit)} if nothing were wrong"
    )
    head = markup(
        '<h3><span class="chip {}">{}</span> {} <span class="small">{}{}</span></h3><p>{}</p>'
        '<details class="more small"><summary>what is computed</summary><p>{} {}. Alarms: {}.</p></details>',
        f.severity,
        f.severity,
        f.title,
        _whole(between(f.figure, f.unit)),
        _whole(expected),
        _whole(f.verdict),
        f.definition,
        f.source,
        f.alarm,
    )
    body = [head]
    if f.unit == "share":
        charts = [_cells(kind, cells) for kind, cells in f.cells.items() if len(cells) > 1]
        if charts:
            body.append(markup('<div class="grid2">{}</div>', joined(charts)))
    facts = [(k, v) for k, v in f.facts.items() if isinstance(v, str | int | float)]
    if facts:
        shown = [(k, number(v) if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v) for k, v in facts]
        body.append(markup('<details class="more"><summary>figures behind it</summary>{}</details>', _facts(shown)))
    if len(f.rows):
        body.append(_rows(f, dataset))
    return joined(body)


def _cells(kind: str, cells: Sequence[Cell]) -> Markup:
    rows = [
        (
            c.name or "(nothing said)",
            f"{c.n:,} comparisons",
            [Mark(kind, c.figure.value, c.figure.lo, c.figure.hi, "model")],
        )
        for c in cells[:MOST_CELLS]
    ]
    return plots.intervals(f"by {kind}", rows, chance=None)


def _rows(f: Finding, dataset: Dataset) -> Markup:
    if f.name == "validity/personal":
        return markup("<p>{:,} rows; inspect.json points to them, and no page shows them.</p>", len(f.rows))
    pieces = []
    for n, score in zip(f.rows.number[:SHOWN].tolist(), f.rows.score[:SHOWN].tolist(), strict=True):
        prompt = dataset.prompt_contents([int(dataset.prompt_of[n])])[0]
        texts = [plain_text(c) or "" for c in dataset.response_contents(np.asarray(dataset.responses_of[n]))]
        sides = [
            markup('<div class="side"><h4>{}</h4><div class="text">{}</div></div>', word, masked(text)[:1200])
            for word, text in zip(("First (preferred where one is)", "Second", "Third", "Fourth"), texts, strict=False)
        ]
        pieces.append(
            markup(
                '<article class="example"><header><span class="small">{} {} · <code>{}</code> {}</span></header>'
                '<div class="prompt">{}</div><div class="grid2">{}</div></article>',
                f.rows.what, number(score), dataset.row_id(n)[:16], _copy(dataset.row_id(n)), masked(transcript(prompt))[:1500], joined(sides),
            )
        )  # fmt: skip
    return markup(
        '<details class="more"><summary>{:,} rows, the worst first; {} shown</summary>'
        "<p>All are in inspect.json. Texts stand as they are in the data, but for patterns of personal data; some may offend.</p>{}</details>",
        len(f.rows),
        len(pieces),
        joined(pieces),
    )


def _dataset(found: Inspection) -> Markup:
    every = _facts([(k, f"{v:,}" if isinstance(v, int) else v) for k, v in found.facts.items()])
    root = _facts([("dataset root", markup('<code class="digest">{}</code> {}', found.root, _copy(found.root)))])
    own = _facts([("inspection", markup('<code class="digest">{}</code> {}', found.digest, _copy(found.digest)))])
    listed = [
        (
            markup('<a href="#{}">{}</a>', f.name.partition("/")[0], f.name),
            f.severity,
            _whole(between(f.figure, f.unit)),
            f"{len(f.rows):,}",
        )
        for f in found.findings
    ]
    return every + root + own + _table(["finding", "", "figure", "rows"], listed, numeric=(3,))
