"""One self-contained HTML page from a run folder: no network, no fonts or scripts from elsewhere, light and dark,
print, narrow.

A section is a function from the run's data to HTML (None: nothing to show), listed in SECTIONS with its title. To add
one, write the function and put it in the list. HTML is made with `markup`, which escapes every value it is given.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from holdfast.report import plots
from holdfast.report.plots import Line, Mark, joined, markup, number
from holdfast.report.read import RunData, _number, read_run
from holdfast.report.warnings import CHECKS, unchecked, warnings

HERE = Path(__file__).parent
MOST_CATEGORIES = 24
MOST_TOKENS = 400  # of a response in an example; the rest is counted
SCRIPT = """
document.querySelectorAll("button[data-copy]").forEach(b => b.addEventListener("click", () => {
  navigator.clipboard.writeText(b.dataset.copy).then(() => {
    b.textContent = "copied";
    setTimeout(() => b.textContent = "copy", 1200);
  });
}));
"""


def write_report(run_folder: str | Path) -> Path:
    """Read the run folder (nothing else but the frozen dataset its recipe names) and write `report.html` into it;
    returns its path. A control run has a page of its own: `report.control`.

    Works on whatever is there: an interrupted or never evaluated run has a shorter page. Raises HoldfastError where the
    folder is no run. The same folder gives the same bytes.
    """
    run = read_run(run_folder)
    if "control" in run.recipe:
        from holdfast.report.control import render as render_control

        page = render_control(run)
    else:
        page = render(run)
    path = run.folder / "report.html"
    aside = path.with_name("report.html.tmp")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return path


def render(run: RunData) -> str:
    """The page as a string."""
    shown = [(anchor, title, body) for anchor, title, section in SECTIONS if (body := section(run)) is not None]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=_name(run),
        subtitle=summary(run),
        chips=_chips(run),
        warnings=[(w.severity, w.title, _whole(w.detail), _whole(w.remedy)) for w in warnings(run)],
        unchecked=unchecked(run),
        checked=[name for name, _ in CHECKS if name not in unchecked(run)],
        unreadable=run.unreadable,
        key_figures=key_figures(run),
        sections=shown,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(SCRIPT),
        # The page may run this one script and load nothing: even a hole in the escaping could do no harm.
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


# The top of the page.


def summary(run: RunData) -> Markup:
    """What was learned and on what, in a sentence or two."""
    what = {
        "sft": "A base model was fitted to the preferred responses",
        "reward": "A reward model was learned",
    }.get(run.kind, markup("A policy was learned with <code>{}</code>", run.kind))
    used, root = run.trained_on, run.fact("dataset")
    said = markup("{} from {}", what, markup("<b>{:,}</b> judgements", used) if used else "judgements")
    if run.dataset.get("prompts"):
        said += markup(" on up to {:,} prompts", run.dataset["prompts"])
    said += (
        markup(" of dataset <code>{}</code>", root[:12]) if root else markup(" of a dataset that the run does not name")
    )
    model = run.recipe.get("model", {})
    source = model.get("path") or model.get("hub")
    if source:
        said += markup(", starting from <code>{}</code>", source)
    elif model.get("scratch") and run.kind != "sft":
        said += markup(", starting from a small base made on the preferred responses")
    elif model.get("scratch"):
        said += markup(", from nothing")
    said += markup(". {:,} steps", run.steps)
    if run.kept_step != run.steps:
        said += markup("; the result is the weights of step {:,}, the best on held-out data", run.kept_step)
    return said + "."


def _chips(run: RunData) -> list[tuple[str, str]]:
    planned = run.opened.get("steps")
    if run.final is None:
        state = (
            f"not finished: step {run.steps:,}" + (f" of {planned:,}" if isinstance(planned, int) else ""),
            "warning",
        )
    elif run.stop is not None:
        state = (f"stopped early: {run.stop.get('why')}", "good")
    else:
        state = ("finished", "good")
    chips = [state, (f"objective {run.kind}", "")]
    chips += [(f"seed {run.recipe['run']['seed']}", "")] if "seed" in run.recipe.get("run", {}) else []
    if run.seconds:
        speed = f", {run.tokens / run.step_seconds:,.0f} tokens/s" if run.tokens and run.step_seconds else ""
        chips.append((_duration(run.seconds) + speed, ""))
    return chips


def key_figures(run: RunData) -> list[dict[str, Any]]:
    """The tiles: {"name", "value", "interval", "note"}."""
    tiles: list[dict[str, Any]] = []

    def tile(name: str, value: str, interval: str = "", note: Any = "") -> None:
        tiles.append({"name": name, "value": value, "interval": interval, "note": note})

    rows = (run.gold or {}).get("rows") or []
    for row in [r for r in rows if r.get("win_rate") is not None and r.get("name") != "base"][:1]:
        tile(
            f"True reward: wins over its base, {row['part']}",
            f"{100 * row['win_rate']:.0f} %",
            _range(row.get("win_lo"), row.get("win_hi"), 100, 0, " %"),
            f"gold reward {row['gold_mean']:.3f}",
        )
    if run.headline is not None:
        name, part = run.headline
        f = part["all"]["figures"]
        accuracy = f["rewards/accuracies"]
        if accuracy["value"] is not None:
            beside = [
                _whole(f"{plain} {100 * f[k + '/accuracies']['value']:.1f} %")
                for k, plain in (("longer", "longer wins"), ("bag of words", "bag of words"))
                if f.get(f"{k}/accuracies", {}).get("value") is not None
            ]
            tile(
                f"Accuracy, {name}",
                f"{100 * accuracy['value']:.1f} %",
                _range(accuracy["lo"], accuracy["hi"], 100, 1, " %"),
                Markup("<br>").join(beside) or f"{part['all']['n']:,} comparisons",
            )
        ood = next((p for n, p in run.parts if n == "ood"), None)
        if ood is not None and name != "ood" and ood["all"]["figures"]["rewards/accuracies"]["value"] is not None:
            there = ood["all"]["figures"]["rewards/accuracies"]
            unseen = ", ".join(ood["categories"]) or "held-out categories"
            tile(
                "Accuracy, out of distribution",
                f"{100 * there['value']:.1f} %",
                _range(there["lo"], there["hi"], 100, 1, " %"),
                unseen,
            )
        if f["ece"]["value"] is not None and run.kind != "sft":
            floor = f["ece/floor"]["value"]
            tile(
                f"Calibration error, {name}",
                f"{100 * f['ece']['value']:.1f} pt",
                "",
                f"chance alone: {100 * floor:.1f} pt",
            )
        drift = f.get("drift/chosen/token")
        if drift and drift["value"] is not None:
            tile(
                "Chosen log-probability, against the reference",
                f"{drift['value']:+.3f}".replace("-", "−"),
                _range(drift["lo"], drift["hi"], 1, 3, ""),
                "nats per token",
            )
        kl = f.get("kl")
        if kl and kl["value"] is not None:
            tile(
                "KL to the reference",
                number(kl["value"]),
                _range(kl["lo"], kl["hi"], 1, 3, ""),
                f"nats per token, {name}",
            )
    if run.headline is not None and run.kind != "sft":
        return tiles
    if "loss" in run.held_out:
        losses = run.held_out["loss"]
        tile("Held-out loss", number(losses.at(run.kept_step), 4), "", f"best {number(min(losses.value), 4)}")
    elif run.loss.value:
        tile("Training loss", number(run.loss.value[-1], 4), "", f"first step {number(run.loss.value[0], 4)}")
    return tiles


# Sections.


def gold(run: RunData) -> Markup | None:
    """Samples scored by the true reward, where the world is built in and its reward is known."""
    rows = (run.gold or {}).get("rows") or []
    if not rows and not (run.gold or {}).get("curve"):
        return None
    assert run.gold is not None
    said = joined([markup("<p>{}</p>", run.gold["measure"])] if run.gold.get("measure") else [])
    wins = [
        (
            r["name"],
            r["part"],
            [Mark("wins over the base (ties half)", r["win_rate"], r.get("win_lo"), r.get("win_hi"), "model")],
        )
        for r in rows
        if r.get("win_rate") is not None
    ]
    pieces = [plots.intervals("How often a sample beats the base's sample on the same prompt", wins)] if wins else []
    curve = [c for c in run.gold.get("curve") or [] if c.get("gold") is not None]
    if len(curve) > 1:
        steps = [c["step"] for c in curve]
        drawn = [Line("gold reward of samples", steps, [c["gold"] for c in curve], "model")]
        for bound in ("lo", "hi"):
            if all(c.get(bound) is not None for c in curve):
                drawn.append(Line(bound, steps, [c[bound] for c in curve], "model", faint=True))
        pieces.append(plots.lines("Gold reward over training", drawn, marks=_kept_mark(run)))
    cells = [
        [
            r["name"],
            r["part"],
            _interval(r.get("gold_mean"), r.get("lo"), r.get("hi"), 1, 3),
            _interval(r.get("win_rate"), r.get("win_lo"), r.get("win_hi"), 100, 1, " %"),
            r.get("n", "–"),
        ]
        for r in rows
    ]  # fmt: skip
    table = (
        _table(["", "part", "mean gold reward", "wins over the base", "prompts"], cells, numeric=(2, 3, 4))
        if cells
        else ""
    )
    return said + markup('<div class="grid2">{}</div>{}', joined(pieces), table)


def accuracy(run: RunData) -> Markup | None:
    """Per part and category, the model beside both shortcuts."""
    charts: list[Markup] = []
    others: list[Markup] = []
    for name, part in run.parts:
        if name == "train" or part["all"]["figures"]["rewards/accuracies"]["value"] is None:
            continue
        cells = sorted(part["categories"].items(), key=lambda c: -c[1]["n"])
        rows = [(f"all of {name}", _sizes(part["all"]), _marks(part["all"]))]
        if len(cells) > 1 or name == "ood":
            rows += [(category, _sizes(cell), _marks(cell)) for category, cell in cells[:MOST_CATEGORIES]]
        chart = plots.intervals(f"Accuracy on {name}", rows)
        hidden = max(0, len(cells) - MOST_CATEGORIES) + part["not shown"].get("categories", 0)
        if hidden:
            chart += markup('<p class="small">{} smaller categories are not drawn.</p>', hidden)
        # What the page is about stands open: the headline part, what is out of distribution, other data.
        (others if charts and name == "validation" else charts).append(markup("<div>{}</div>", chart))
        if len(part["annotators"]) > 1:
            people = sorted(part["annotators"].items(), key=lambda c: -c[1]["n"])[:MOST_CATEGORIES]
            rows = [(annotator, _sizes(cell), _marks(cell)) for annotator, cell in people]
            others.append(markup("<div>{}</div>", plots.intervals(f"Agreement with each annotator, {name}", rows)))
    if not charts:
        return None
    lead = markup(
        "<p>Share of comparisons in which the preferred response has the higher reward. Lines are {} % intervals from "
        "a bootstrap over prompts. The dashed line is chance. A model that does not clear both shortcuts may have "
        "learned no more than they know.</p>",
        round(100 * run.evaluations[0].figures["level"]),
    )
    said = lead + markup('<div class="grid2">{}</div>', joined(charts))
    if run.kind == "sft":
        said = (
            markup("<p>A base is not taught to prefer; its score here is a response's mean log-probability.</p>") + said
        )
    if others:
        said += markup(
            '<details><summary>other parts and annotators</summary><div class="grid2">{}</div></details>',
            joined(others),
        )
    return said + _all_figures(run)


def curves(run: RunData) -> Markup | None:
    """Training and held-out figures over steps."""
    held, metrics = run.held_out, run.metrics
    charts = []
    kept = _kept_mark(run)
    if run.loss.step:
        raw = run.loss
        drawn = [Line("each step", raw.step, raw.value, "train", faint=True)] if len(raw.step) > 20 else []
        smooth = plots.smooth(raw.step, raw.value) if len(raw.step) > 20 else raw.value
        drawn.append(Line("training", raw.step, smooth, "train"))
        if "loss" in held:
            drawn.append(Line("held out", held["loss"].step, held["loss"].value, "held"))
        charts.append(plots.lines("Loss", drawn, marks=kept))
    shown = {"loss", "nll", "tokens"}
    for title, pairs in (
        ("Accuracy", [("rewards/accuracies", "")]),
        ("Log-probability of responses", [("logps/chosen", "chosen"), ("logps/rejected", "rejected")]),
        ("Reward of responses", [("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")]),
        ("Reward margin", [("rewards/margins", "")]),
    ):
        drawn = []
        for name, side in pairs:
            shown.add(name)
            if name in metrics and not (side and name in held):  # two sides, training and held-out, would be four lines
                m = metrics[name]
                drawn.append(Line(f"{side} training".strip(), m.step, plots.smooth(m.step, m.value), side or "train"))
            if name in held:
                drawn.append(Line(f"{side} held out".strip(), held[name].step, held[name].value, side or "held"))
        zero = 0.5 if title == "Accuracy" else None
        if drawn:
            charts.append(plots.lines(title, drawn, marks=kept, zero=zero))
    for name in sorted(held.keys() - shown)[:4]:
        charts.append(plots.lines(name, [Line("held out", held[name].step, held[name].value, "held")], marks=kept))
    if "grad_norm" in metrics:
        norm = metrics["grad_norm"]
        drawn = [Line("before clipping", norm.step, plots.smooth(norm.step, norm.value), "train")]
        charts.append(plots.lines("Gradient norm", drawn))
    charts = [c for c in charts if c]
    return markup('<div class="grid2">{}</div>', joined(charts)) if charts else None


def calibration(run: RunData) -> Markup | None:
    """Reliability and margins of the headline part."""
    if run.headline is None or run.kind == "sft":  # a base's scores are no probabilities of preference
        return None
    name, part = run.headline
    cell = part["all"]
    bins = [(b["confidence"], b["outcome"], b["weight"], b["n"]) for b in cell["reliability"] if b["weight"]]
    if not bins or cell["figures"]["rewards/accuracies"]["value"] is None:
        return None
    f = cell["figures"]
    lead = markup(
        "<p>Of each comparison in {}, the side the model favours: how sure it is (the logistic of the reward margin), "
        "and how often people agreed. Expected calibration error {:.1f} points (a perfectly calibrated model would "
        "show {:.1f} on so many comparisons), Brier score {}, log-loss {}.</p>",
        name,
        100 * f["ece"]["value"],
        100 * f["ece/floor"]["value"],
        number(f["brier"]["value"]),
        number(f["log_loss"]["value"]),
    )
    reliability = plots.reliability("Right, % of comparisons, by how sure it was", bins)
    margins = plots.histogram(
        "Reward margins",
        cell["margins"]["edges"],
        cell["margins"]["weights"],
        x_label="chosen less rejected",
        height=250,
    )
    return lead + markup('<div class="grid2">{}{}</div>', reliability, margins)


def examples(run: RunData) -> Markup | None:
    """A few comparisons, each token coloured by what it adds to the reward."""
    shown = run.main.examples if run.main else []
    if not shown:
        return None
    if run.kind == "reward":
        meaning = "A token's contribution is the score with it less the score before it."
    elif run.main and any("drift/chosen" in p["all"]["figures"] for p in run.main.figures["parts"].values()):
        meaning = "A token's contribution is its log-ratio to the reference, times beta."
    else:
        meaning = "A token's contribution is its part of the response's log-probability."
    lead = markup(
        '<p>Tokens in <span class="tok" style="{}">blue</span> raise the reward of their response, in '
        '<span class="tok neg" style="{}">orange</span> lower it; the scale is one for each pair. {} '
        "Hover for the number. Texts stand as they are in the data; some may offend.</p>",
        _shade(0.6),
        _shade(-0.6),
        meaning,
    )
    pieces = []
    for e in shown:
        values = sorted(abs(t["value"]) for side in ("chosen", "rejected") for t in e[side]["tokens"])
        scale = (values[int(0.95 * (len(values) - 1))] if values else 0.0) or 1.0
        margin = e["chosen"]["reward"] - e["rejected"]["reward"]
        right = margin > 0 if e["p"] > 0.5 else margin < 0
        verdict = markup(
            '<span class="chip {}">{}</span>', "good" if right else "serious", "right" if right else "wrong"
        )
        agreed = f"preferred with {100 * e['p']:.0f} %" if e["p"] < 1 else None
        where = " · ".join(str(x) for x in (e.get("part"), e.get("category"), agreed) if x)
        sides = []
        for side, word in (("chosen", "Preferred"), ("rejected", "Not preferred")):
            tokens = [_token(t["piece"], t["value"], scale) for t in e[side]["tokens"][:MOST_TOKENS]]
            more = len(e[side]["tokens"]) - MOST_TOKENS
            rest = markup(' <span class="small">and {:,} more tokens</span>', more) if more > 0 else ""
            text = joined(tokens) if tokens else markup("{}", e[side]["text"])
            sides.append(
                markup(
                    '<div class="side"><h4>{} <span>reward {}</span></h4><div class="text">{}{}</div></div>',
                    word,
                    number(e[side]["reward"]),
                    text,
                    rest,
                )
            )
        pieces.append(
            markup(
                '<article class="example"><header>{} <span class="small">{} · margin {} · <code>{}</code></span>'
                "</header>"
                '<div class="prompt">{}</div><div class="grid2">{}</div></article>',
                verdict, where, number(margin), str(e["judgement"])[:12], e["prompt_text"], joined(sides),
            )
        )  # fmt: skip
    return lead + joined(pieces)


def dataset(run: RunData) -> Markup | None:
    """What the run learned from."""
    d = run.dataset
    facts: list[tuple[str, Any]] = [("root", markup("<code>{}</code>", run.fact("dataset") or "–"))]
    if d:
        facts += [
            ("prompts", f"{d['prompts']:,}"),
            ("responses", f"{d['responses']:,}"),
            ("judgements", f"{d['judgements']:,}"),
        ]
        facts.append(("input rows rejected when it was frozen", f"{d['rejects']:,}"))
        facts.append(("files", joined(markup("<div>{}</div>", f["name"]) for f in d["files"])))
    if used := run.trained_on:
        facts.append(("judgements trained on", f"{used:,}"))
    split = run.recipe.get("data", {}).get("split", {})
    if split:
        out = ", ".join(split.get("holdout", ())) or "none"
        facts.append(
            (
                f"split, by {' and '.join(['prompt', *([split['group']] if split.get('group') else [])])}",
                f"validation {split.get('validation')}, test {split.get('test')}; held-out categories: {out}",
            )
        )
    counts = joined(_counts(title, d[name]) for name, title in _COUNTED if d.get(name))
    missing = (
        ""
        if d
        else markup(
            '<p class="small">The dataset folder is not where the recipe says, so its own counts are not shown.</p>'
        )
    )
    return _facts(facts) + markup('<div class="grid3">{}</div>{}', counts, missing)


_COUNTED = (
    ("kind", "Kind of judgement"),
    ("category", "Category"),
    ("annotator", "Annotator"),
    ("annotator_kind", "Kind of annotator"),
    ("licence", "Licence"),
)


def remedies(run: RunData) -> Markup | None:
    """What judgements weighed, what stood beside the reward, and how far the result follows length."""
    said: list[Markup] = []
    weights = run.fact("weights")
    if isinstance(weights, dict):
        n, effective = weights.get("judgements"), _number(weights.get("effective"))
        if effective is not None and isinstance(n, int):
            said.append(
                markup(
                    "<p>{:,} judgements were weighed by {}; they tell as much as <b>{:,.0f}</b> that weigh the same. The heaviest weighs {}, "
                    "the lightest {}, the mean 1; {:,} weigh nothing and were left out.</p>",
                    n,
                    ", ".join(k for k in ("annotators", "cells", "column") if k in weights),
                    effective,
                    number(_number(weights.get("most")) or 0.0),
                    number(_number(weights.get("least")) or 0.0),
                    int(weights.get("of no weight", 0)),
                )
            )
        for name, title in (("annotators", "annotator"), ("cells", "cell")):
            if listed := weights.get(name):
                cells = sorted(listed.items(), key=lambda c: -c[1].get("judgements", 0))[:MOST_CATEGORIES]
                rows = [[k, f"{c.get('judgements', 0):,}", number(_number(c.get("weight")) or 0.0)] for k, c in cells]
                said.append(_table([title, "judgements", "weight before scaling"], rows, numeric=(1, 2)))
    nuisance = (run.opened.get("objective") or {}).get("debias")
    if isinstance(nuisance, dict):
        first = dict(zip(nuisance.get("features", ()), map(_number, nuisance.get("first fit", ())), strict=False))
        last = {name: values.at(run.kept_step) for name, values in run.debias.items() if values.step}
        said.append(
            markup(
                "<p>Beside the reward stood a term of surface features, which is in no score. A weight is log-odds for a usual difference "
                "(root mean square) in that feature between two responses.</p>"
            )
        )
        rows = [
            [name, number(w) if w is not None else "–", number(last[name]) if name in last else "–"]
            for name, w in first.items()
        ]
        said.append(_table(["feature", "fitted alone", "at the end"], rows, numeric=(1, 2)))
        moving = [(name, v) for name, v in run.debias.items() if len(set(v.value)) > 1][:4]
        drawn = [
            plots.lines(f"Weight of {name}", [Line("", v.step, v.value, "model")], marks=_kept_mark(run))
            for name, v in moving
        ]
        said += [markup('<div class="grid2">{}</div>', joined(drawn))] if drawn else []
    if not said:
        return None
    if run.main is not None and (follows := _follows_length(run.main.table())):
        said.append(
            markup(
                "<p>What came of it, on comparisons that were held out:</p>{}",
                _table(["", "share", "comparisons"], follows, numeric=(1, 2)),
            )
        )
    return joined(said)


def _follows_length(table: Any) -> list[list[str]]:
    """How often the model prefers the longer response, and is right where the longer, or the shorter one, is preferred."""
    if table["longer"].null_count:
        return []
    gap = table["reward_a"].to_numpy() - table["reward_b"].to_numpy()
    side, longer = np.sign(table["p"].to_numpy() - 0.5), table["longer"].to_numpy()
    right, agrees = (np.sign(gap) * side + 1) / 2, (np.sign(gap) * longer + 1) / 2
    decided = side != 0
    rows = []
    for title, share, at in (
        ("prefers the longer response", agrees, longer != 0),
        ("right where the longer one is preferred", right, decided & (longer == side)),
        ("right where the shorter one is preferred", right, decided & (longer == -side)),
    ):
        if at.any():
            rows.append([title, _whole(f"{100 * share[at].mean():.1f} %"), f"{int(at.sum()):,}"])
    return rows


def left_out(run: RunData) -> Markup | None:
    """Which judgements were not used, and why."""
    if not run.left_out:
        if run.final is None and not run.steps:
            return None
        return markup("<p>Nothing: every judgement of the training and validation parts was used.</p>")
    rows = [[reason, f"{n:,}"] for reason, n in run.reasons.most_common(20)]
    table = _table(["reason", "judgements"], rows, numeric=(1,))
    lines = [[markup("<code>{}</code>", str(x.get("row", "–"))[:16]), x.get("reason", "")] for x in run.left_out[:25]]
    first = markup(
        '<details><summary>the first {} of {:,}</summary>{}<p class="small">All of them are in '
        "<code>left_out.jsonl</code>.</p></details>",
        len(lines),
        len(run.left_out),
        _table(["judgement", "reason"], lines),
    )
    return table + first


def base(run: RunData) -> Markup | None:
    """The run that made the model this one started from."""
    if run.base is None:
        return None
    link = ""
    if (run.base.folder / "report.html").exists():
        link = markup(' <a href="base/report.html">Its own report.</a>')
    return markup("<p>{}{}</p>", summary(run.base), link) + (curves(run.base) or Markup(""))


def recipe(run: RunData) -> Markup | None:
    """The resolved recipe, as it stands in the folder."""
    path = run.folder / "recipe.toml"
    if not run.recipe:
        return None
    return markup('<pre class="code recipe">{}</pre>', path.read_text(encoding="utf-8"))


def proof(run: RunData) -> Markup | None:
    """What the run commits to, and how anyone can check it."""
    final = run.final or {}
    digests = [
        ("dataset root", run.fact("dataset")),
        ("split", run.fact("split")),
        ("recipe", run.fact("recipe")),
        ("base weights", run.fact("base")),
        ("ledger head", run.head),
        ("weights", final.get("weights")),
    ]
    rows = [
        markup('<tr><th>{}</th><td><code class="digest">{}</code> {}</td></tr>', name, digest, _copy(str(digest)))
        for name, digest in digests
        if digest
    ]
    folder = str(run.folder)
    quoted = folder if re.fullmatch(r"[\w./-]+", folder) else "'" + folder.replace("'", "'\\''") + "'"
    end = max(1, run.steps)
    commands = [
        (f"holdfast verify {quoted}", "everything hashes to what it says (seconds, no model code)"),
        (
            f"holdfast replay {quoted} --steps {max(1, end - 4)}:{end}",
            "the last steps recomputed and compared to the byte",
        ),
        (f"holdfast trace {quoted} --step {end}", "which rows, annotators and files made a step"),
    ]
    if run.main is not None and run.main.examples:
        row = str(run.main.examples[0]["judgement"])[:12]
        commands.append(
            (f"holdfast trace {quoted} --row {row}", "which steps used a judgement (here: the first example's)")
        )
    lines = [
        markup('<div class="command"><code>{}</code>{}<small>{}</small></div>', c, _copy(c), why) for c, why in commands
    ]
    lead = markup(
        "<p>The ledger is tamper-evident from its published head on: keep the head somewhere else and no step before "
        "it can be changed unseen. On the environment that the ledger states, any window of steps can be recomputed "
        "to the byte.</p>"
    )
    return lead + markup('<table class="facts">{}</table>{}', joined(rows), joined(lines))


SECTIONS: list[tuple[str, str, Callable[[RunData], Markup | None]]] = [
    ("gold", "Against the true reward", gold),
    ("accuracy", "Accuracy beside the shortcuts", accuracy),
    ("curves", "Curves", curves),
    ("calibration", "Calibration", calibration),
    ("examples", "Examples", examples),
    ("dataset", "The data", dataset),
    ("remedies", "Weights and biases", remedies),
    ("left-out", "What was left out", left_out),
    ("base", "The base it started from", base),
    ("recipe", "Recipe", recipe),
    ("proof", "Proof", proof),
]


# Small pieces of HTML.


def _all_figures(run: RunData) -> Markup:
    """Every figure of every part, for those who want the numbers."""
    parts = run.parts
    names = list(dict.fromkeys(name for _, part in parts for name in part["all"]["figures"]))
    rows: list[Sequence[Any]] = [
        ["comparisons", *[f"{p['all']['n']:,}" for _, p in parts]],
        ["prompts", *[f"{p['all']['prompts']:,}" for _, p in parts]],
    ]
    rows.append(["ties (not in accuracies)", *[f"{p['all']['ties']:,}" for _, p in parts]])
    for name in names:
        found = [p["all"]["figures"].get(name, {"value": None, "lo": None, "hi": None}) for _, p in parts]
        rows.append([markup("<code>{}</code>", name), *[_interval(x["value"], x["lo"], x["hi"], 1, 3) for x in found]])
    heads = ["figure", *[name for name, _ in parts]]
    table = _table(heads, rows, numeric=tuple(range(1, len(heads))))
    return markup("<details><summary>all figures, by part</summary>{}</details>", table)


def _marks(cell: dict[str, Any]) -> list[Mark]:
    f = cell["figures"]
    said = (
        ("model", "rewards/accuracies", "model", "circle"),
        ("the longer one", "longer/accuracies", "longer", "square"),
        ("bag of words", "bag of words/accuracies", "bow", "diamond"),
    )
    return [Mark(plain, f[k]["value"], f[k]["lo"], f[k]["hi"], css, shape) for plain, k, css, shape in said if k in f]


def _sizes(cell: dict[str, Any]) -> str:
    return f"{cell['n']:,} on {cell['prompts']:,} prompts"


def _token(piece: str, value: float, scale: float) -> Markup:
    share = max(-1.0, min(1.0, value / scale))
    title = f"{value:+.3f}"
    if abs(share) < 0.04:
        return markup('<span title="{}">{}</span>', title, piece)
    return markup(
        '<span class="tok{}" style="{}" title="{}">{}</span>', " neg" if share < 0 else "", _shade(share), title, piece
    )


def _shade(share: float) -> str:
    return f"--a:{min(1.0, abs(share)) * 0.55:.2f}"


def _kept_mark(run: RunData) -> list[tuple[float, str]]:
    return [(run.kept_step, "kept")] if run.kept_step != run.steps else []


def _facts(rows: Iterable[tuple[str, Any]]) -> Markup:
    return markup(
        '<table class="facts">{}</table>', joined(markup("<tr><th>{}</th><td>{}</td></tr>", k, v) for k, v in rows)
    )


def _counts(title: str, counted: Sequence[tuple[str, int]]) -> Markup:
    total = sum(n for _, n in counted)
    bars = [
        markup(
            '<div class="count"><span>{}</span><i style="--w:{:.1f}%"></i><b>{:,}</b></div>',
            name,
            100 * n / counted[0][1],
            n,
        )
        for name, n in counted[:12]
    ]
    more = (
        markup(
            '<p class="small">and {} more, {:,} judgements</p>',
            len(counted) - 12,
            total - sum(n for _, n in counted[:12]),
        )
        if len(counted) > 12
        else ""
    )
    return markup("<div><h4>{}</h4>{}{}</div>", title, joined(bars), more)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = ()) -> Markup:
    def line(cells: Sequence[Any], tag: str) -> Markup:
        return joined(
            markup("<{0}{2}>{1}</{0}>", Markup(tag), c, Markup(' class="num"') if i in numeric else "")
            for i, c in enumerate(cells)
        )

    body = joined(markup("<tr>{}</tr>", line(cells, "td")) for cells in rows)
    return markup(
        '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>', line(heads, "th"), body
    )


def _interval(
    value: float | None, lo: float | None, hi: float | None, times: float, digits: int, unit: str = ""
) -> Markup:
    if value is None:
        return markup("–")
    said = markup("{}{}", f"{times * value:.{digits}f}".replace("-", "−"), unit)
    return said if lo is None else said + markup(" <small>{}</small>", _range(lo, hi, times, digits, ""))


def _range(lo: float | None, hi: float | None, times: float, digits: int, unit: str) -> str:
    return (
        ""
        if lo is None or hi is None
        else f"{times * lo:.{digits}f} to {times * hi:.{digits}f}{unit}".replace("-", "−")
    )


def _whole(text: str) -> str:
    """A number and its % sign stay on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _copy(text: str) -> Markup:
    return markup('<button type="button" data-copy="{}">copy</button>', text)


def _name(run: RunData) -> str:
    name = run.recipe.get("run", {}).get("name")
    folder = run.folder.resolve()
    if not name or name == "run":
        return folder.name
    return f"{name}: {folder.name}" if run.kind == "sft" and folder.name == "base" else str(name)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
