"""The page of a control run: what was learnt on what, curves with a band over members, what the policies return and are
worth, where they leave the data, and rewards beside the true ones.

As on a language run's page, a section is a function to HTML (None: nothing to show), listed in SECTIONS, and a warning's
check gives its warnings, or None where there is nothing to look at. `control_look.look` measures; nothing here does.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from holdfast.control.ope.evaluate import BEHAVIOUR, CLONING, PolicyValue
from holdfast.report import control_charts as charts
from holdfast.report import page, plots
from holdfast.report.control_look import NEAR, NEIGHBOURS, Look, Mean, discount_of, look
from holdfast.report.page import HERE, SCRIPT, _facts, _kept_mark, _table, _whole
from holdfast.report.plots import Line, Mark, joined, markup, number
from holdfast.report.read import RunData
from holdfast.report.warnings import GOT_WORSE_LOSS, Warning, _fell

MOST_MEMBERS = 24
SUPERVISED = ("bc", "segment_reward", "cpl")  # whose held-out loss is a likelihood: rising, it over-fits
# Where a finding becomes a warning
OVER = 0.1  # a value beyond the best the log shows, as a share of that
NOT_TAKEN = 0.75  # the policy's share of neighbours' actions, against the log's own
OUTSIDE = 0.3  # share of the states met in play that are outside of the log
DIFFER = 0.25  # of pairs of members choose differently, or an eighth of a continuous range
WORST = 0.5  # of the way from the behaviour's return to the best member's that the worst member makes
TITLES = {
    "loss": "Loss",
    "actions/agreement": "Logged actions that the policy would take",
    "preference/accuracy": "Judgements predicted",
    "value/start": "Value of first observations, by the policy itself",
    "return/mean": "Return in the environment",
}


def render(run: RunData) -> str:
    """The page as a string."""
    found = look(run)
    shown = [
        (anchor, title, body if anchor == "recipe" else _whole(body))
        for anchor, title, section in SECTIONS
        if (body := section(found)) is not None
    ]
    checks = [(name, check(found)) for name, check in CHECKS]
    order = ("serious", "warning", "note")
    warned = sorted((w for _, several in checks for w in several or ()), key=lambda w: order.index(w.severity))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    css = "".join((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "control.css"))
    return environment.get_template("page.html").render(
        images=True,
        footer="Written by Holdfast from this run folder and the log that it names.",
        title=page._name(run),
        subtitle=summary(found),
        chips=page._chips(run),
        warnings=[(w.severity, w.title, _whole(w.detail), _whole(w.remedy)) for w in warned],
        unchecked=[name for name, several in checks if several is None],
        checked=[name for name, several in checks if several is not None],
        unreadable=run.unreadable,
        key_figures=key_figures(found),
        sections=shown,
        css=Markup(css),
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


# The top of the page.


def summary(found: Look) -> Markup:
    """What was learnt and on what, in a sentence or two."""
    run, K = found.run, found.members
    what = {
        "segment_reward": "A reward was learnt from judgements of segments",
        "fqe": "The value of another run's policy was learnt",
    }.get(run.kind, "A policy was learnt")
    said = markup("{} with <code>{}</code>", what, run.kind)
    said += markup(", <b>{}</b> members at once", K) if K > 1 else ""
    rows = "judgements" if run.kind in ("segment_reward", "cpl", "ipl") else "steps"
    if run.trained_on:
        said += markup(", from <b>{:,}</b> {}", run.trained_on, rows)
    root = run.fact("dataset")
    said += markup(" of log <code>{}</code>", root[:12]) if root else " of a log that the run does not name"
    if found.log is not None and (name := found.log.facts.get("environment")):
        said += markup(", collected in {}", name)
    updates = run.recipe.get("control", {}).get("updates", 100)
    said += markup(". {:,} steps of {:,} updates", run.steps, updates)
    if run.kept_step != run.steps:
        said += markup("; the result is the weights of step {:,}, the best on held-out data", run.kept_step)
    return said + "."


def key_figures(found: Look) -> list[dict[str, Any]]:
    """The tiles: {"name", "value", "interval", "note"}."""
    tiles: list[dict[str, Any]] = []

    def tile(name: str, value: str, interval: str = "", note: Any = "") -> None:
        tiles.append({"name": name, "value": value, "interval": interval, "note": note})

    if found.returns_KE is not None:
        mean_K = found.returns_KE.mean(1)
        spread = f"members {number(mean_K.min())} to {number(mean_K.max())}" if len(mean_K) > 1 else ""
        note = f"the log: {number(float(logged.mean()))}" if (logged := _logged_returns(found)) is not None else ""
        tile("Return in the environment", number(float(mean_K.mean())), spread, note)
    if found.values:
        v = found.values[0]
        row = v.values[v.headline]
        told = _reach(v) != "none"
        tile(
            "Value from held-out episodes",
            number(row.value) if told else "not told",
            _ends(*row.intervals["bootstrap"]) if told else "",
            f"{v.headline}, member 0; the log's own: {number(v.baselines[BEHAVIOUR].value)}"
            if told
            else "the log does not reach where the policy goes",
        )
    for part, p in list(found.preferred.items())[:1]:
        a = p.accuracy
        tile(
            f"Judgements predicted, {part}",
            _whole(f"{100 * a.value:.1f} %"),
            _whole(f"{100 * (a.lo or 0):.1f} to {100 * (a.hi or 0):.1f} %"),
            f"{p.right_KJ.shape[1]:,} that are no ties",
        )
    if found.agreement is not None:
        g = found.agreement
        tile("Correlation with the true reward", number(g.pearson), "", f"ranks {number(g.spearman)}; {g.where}")
    if found.near is not None:
        n = found.near
        tile(
            "Actions that the data took nearby",
            _whole(f"{100 * n.policy_K.mean():.0f} %"),
            "",
            _whole(f"the log's own: {100 * n.log:.0f} %"),
        )
    if not tiles and "loss" in found.run.held_out:
        losses = found.run.held_out["loss"]
        tile("Held-out loss", number(losses.at(found.run.kept_step), 4), "", f"best {number(min(losses.value), 4)}")
    elif not tiles and found.run.loss.value:
        loss = found.run.loss.value
        tile("Training loss", number(loss[-1], 4), "", f"first step {number(loss[0], 4)}")
    return tiles


# Sections.


def returns(found: Look) -> Markup | None:
    """What members' episodes return when they are played, beside the log's."""
    if found.returns_KE is None:
        return _because(found, "play", "The policy was not played")
    environment = found.run.recipe.get("control", {}).get("simulate")
    E = found.returns_KE.shape[1]
    rows: list[tuple[str, str, list[Mark]]] = []
    for k, of in enumerate(found.returns_KE[:MOST_MEMBERS]):
        m = Mean.of(of)
        rows.append(
            (f"member {k}", _seed(found, k), [Mark("played", m.value, m.lo, m.hi, "model", points=of.tolist())])
        )
    logged = _logged_returns(found)
    level = None
    if logged is not None:
        for name, of in _behaviours(found, logged):
            m = Mean.of(of)
            rows.append(
                (f"the log: {name}", f"{len(of):,} episodes", [Mark("logged", m.value, m.lo, m.hi, "longer", "square")])
            )
        level = (float(logged.max()), f"best episode of the log: {number(float(logged.max()))}")
    said = markup(
        "<p>{} episodes of each member in {}, by its best actions, from the same starts. Undiscounted; a light dot is an "
        "episode, the line a 95 % interval of the mean.{} Nothing was learnt from them.</p>",
        E,
        environment,
        " The dashed line is the best episode of the log." if level is not None else "",
    )
    if logged is None and found.log is not None:
        why = found.missing.get("truth") or "its rewards are of another environment"
        said += markup('<p class="reason">The log stands not beside them: {}.</p>', why)
    return said + plots.values("Return of an episode", rows, level=level) + _members(found)


def _members(found: Look) -> Markup:
    """A line for each member, with what tells it from the others."""
    if found.members < 2 or found.algorithm is None:
        return Markup("")
    task = found.algorithm.task
    varied = {name: v for name, v in sorted(found.algorithm.settings.items()) if isinstance(v, list)}
    if len(task.discount) > 1:
        varied = {"discount": list(task.discount), **varied}
    heads = ["member", "seed", *varied]
    columns: list[tuple[str, list[str]]] = []
    if found.returns_KE is not None:
        columns.append(("return played", [number(x) for x in found.returns_KE.mean(1)]))
    if found.start_K is not None:
        columns.append(("its own value of starts", [number(x) for x in found.start_K]))
    if found.near is not None:
        columns.append(("actions taken nearby", [_whole(f"{100 * x:.0f} %") for x in found.near.policy_K]))
    rows = [
        [str(k), str(task.seeds[k]), *(number(v[k]) for v in varied.values()), *(c[k] for _, c in columns)]
        for k in range(min(task.members, MOST_MEMBERS))
    ]
    heads += [name for name, _ in columns]
    return _table(heads, rows, numeric=tuple(range(len(heads))))


def value(found: Look) -> Markup | None:
    """What the policy is worth by the log, beside what it thinks itself and what play shows."""
    if not found.values:
        return _because(found, "value", "The policy's value was not estimated from the log")
    assert found.algorithm is not None
    first, far = found.values[0], 0.0
    comparable = found.true_T is not None
    shown = found.played is not None and _logged_returns(found) is not None
    rows: list[tuple[str, str, list[Mark]]] = []
    told: list[Sequence[Any]] = []
    for k, v in enumerate(found.values):
        row, supported = v.values[v.headline], _reach(v) != "none"
        base = v.baselines[BEHAVIOUR]
        sure = [Mark("", base.value, None, None, "")]
        if found.played is not None and shown:
            g = discount_of(found.algorithm, k)
            of = [float(r.rewards[: v.horizon] @ g ** np.arange(len(r.rewards[: v.horizon]))) for r in found.played[k]]
            m = Mean.of(np.array(of))
            sure.append(Mark("played: the truth", m.value, m.lo, m.hi, "longer", "square"))
        # An estimate without support, and the policy's own, can be anything: drawn where they lie among the others, and else
        # only told.
        ends = [x for m in sure for x in (m.value, m.lo, m.hi) if x is not None]
        far = 3 * max(max(ends) - min(ends), abs(base.value))
        marks, small = [], f"{v.headline}, discount {v.discount:g}"
        if supported or min(ends) - far <= row.value <= max(ends) + far:
            marks.append(Mark("from the log", row.value, *row.intervals["bootstrap"], "model"))
        small += "" if supported else "; the log does not reach"
        if found.start_K is not None and not found.learned:
            own = float(found.start_K[k])
            if min(ends) - far <= own <= max(ends) + far:
                marks.append(Mark("its own estimate, without end", own, None, None, "bow", "diamond"))
            else:
                small += f"; it thinks {number(own)}"
        rows.append((f"member {k}", small, marks + sure[1:]))
        for name, e in v.values.items():
            low, high = e.intervals["bootstrap"]
            told.append([f"member {k}", markup("<code>{}</code>", name), number(e.value), _ends(low, high)])
    for name, title in ((BEHAVIOUR, "the log's behaviour"), (CLONING, "its clone, by a simple model")):
        base = first.baselines[name]
        low, high = base.intervals["bootstrap"]
        if name == BEHAVIOUR or abs(base.value - first.baselines[BEHAVIOUR].value) <= far:
            small = "mean discounted return" if name == BEHAVIOUR else first.headline
            rows.append((title, small, [Mark("from the log", base.value, low, high, "model")]))
        told.append([title, markup("<code>{}</code>", base.estimator), number(base.value), _ends(low, high)])
    rewards = found.truth if comparable else "the log's learned rewards"
    said = markup(
        "<p>Discounted return of at most {:,} steps, by {}, of the policy's best actions; estimated from {:,} episodes that nothing "
        "was learnt from, values by a model: {}. 95 % intervals by the spread of a few resamples. {}</p>",
        first.horizon,
        rewards,
        found.valued,
        first.model,
        "Play has its own interval."
        if shown
        else "What play returns is in another unit."
        if found.played is not None
        else f"The truth is not known: {found.missing.get('play', 'it was not played')}.",
    )
    chart = plots.values("Value", rows)
    lines = joined(
        markup("<p>{}.</p>", line[:1].upper() + line[1:]) for line in (*first.verdict.splitlines(), *first.notes)
    )
    table = _table(["", "estimator", "value", "95 % interval"], told, numeric=(2, 3))
    return (
        said
        + chart
        + markup("<h4>How far the log reaches, member 0</h4>{}", lines)
        + markup("<details><summary>every estimate</summary>{}</details>", table)
    )


def curves(found: Look) -> Markup | None:
    """Training and held-out figures over steps, bands from the least to the most of the members."""
    run = found.run
    held, metrics, kept = run.held_out, run.metrics, _kept_mark(run)
    K = found.members

    def band(of: dict[str, Any], name: str, steps: Sequence[int]) -> dict[str, list[float]]:
        """The least and the most of `name/k`, where every member has the step."""
        members = [of[f"{name}/{k}"] for k in range(K) if f"{name}/{k}" in of]
        if len(members) < max(2, K):
            return {}
        at = [dict(zip(m.step, m.value, strict=True)) for m in members]
        if not all(s in a for s in steps for a in at):
            return {}
        return {"lo": [min(a[s] for a in at) for s in steps], "hi": [max(a[s] for a in at) for s in steps]}

    pieces = []
    ordered = ["return/mean", "preference/accuracy", "actions/agreement", "value/start", "loss"]
    losses = sorted({n for n in (*held, *metrics) if n.count("/") == 1 and n.startswith("loss/")})
    if len(losses) == 1:
        losses = []  # it is the loss
    for name in [n for n in ordered if n in held or n in metrics or n == "loss"] + losses:
        drawn = []
        if name in metrics or (name == "loss" and run.loss.step):
            m = metrics.get(name, run.loss)
            around = band(metrics, name, m.step)
            if name == "loss" and not around:
                only = [n for n in metrics if n.count("/") == 1 and n.startswith("loss/")]
                around = band(metrics, only[0], m.step) if len(only) == 1 else {}
            drawn.append(Line("training", m.step, m.value, "train", **around))  # type: ignore[arg-type]
        if name in held:
            h = held[name]
            inner = [held[f"return/{k}"] for k in range(K)] if name == "return/mean" and "return/0" in held else []
            around = band(held, "return", h.step) if name == "return/mean" else {}
            drawn += [Line("", s.step, s.value, "held", faint=True) for s in inner[:MOST_MEMBERS]]
            drawn.append(Line("played" if name == "return/mean" else "held out", h.step, h.value, "held", **around))  # type: ignore[arg-type]
        level = None
        if name == "return/mean" and (logged := _logged_returns(found)) is not None:
            level = float(logged.mean())
        elif name == "preference/accuracy":
            level = 0.5
        title = TITLES.get(name, f"Loss: {name.partition('/')[2]}")
        pieces.append(plots.lines(title, drawn, marks=kept, zero=level))
    if "grad_norm" in metrics:
        norm = metrics["grad_norm"]
        pieces.append(plots.lines("Gradient norm", [Line("Gradient norm", norm.step, norm.value, "train")]))
    pieces = [p for p in pieces if p]
    if not pieces:
        return None
    said = []
    if K > 1:
        said.append(f"Lines are means over {K} members; a band runs from the least of them to the most.")
    if "return/mean" in held and _logged_returns(found) is not None:
        said.append("The dashed line is the mean return of the log's episodes.")
    lead = markup("<p>{}</p>", " ".join(said)) if said else Markup("")
    return lead + markup('<div class="grid2">{}</div>', joined(pieces)) + _figures(found)


def _figures(found: Look) -> Markup:
    """Every figure of every part that was evaluated."""
    parts = {
        name if where == "held-out" else f"log {where}": said
        for where, inside in sorted(found.evaluated.items(), key=lambda e: (e[0] != "held-out", e[0]))
        for name, said in inside.items()
    }
    if not parts:
        return Markup("")
    names = dict.fromkeys(name for said in parts.values() for name in said)
    rows = [
        [
            markup("<code>{}</code>", name) if name != "rows" else "rows",
            *(f"{said[name]:,}" if name == "rows" else number(said.get(name), 4) for said in parts.values()),
        ]
        for name in names
    ]
    table = _table(["figure", *parts], rows, numeric=tuple(range(1, len(parts) + 1)))
    return markup("<details><summary>all figures of the result, by part</summary>{}</details>", table)


def coverage(found: Look) -> Markup | None:
    """Where the policy goes, and what it does there, against the log."""
    if found.near is None:
        return _because(found, "near", "The policy was not held against the log")
    n, episodes = found.near, found.episodes
    assert episodes is not None
    same = "took it" if episodes.n_actions is not None else f"took one within {100 * NEAR:.0f} % of the range"
    share = n.policy_K.mean()
    told: list[Sequence[Any]] = [
        [
            f"actions: of {NEIGHBOURS} nearest logged steps of other episodes, one at least {same}",
            _whole(f"{100 * share:.1f} %"),
            _whole(f"{100 * n.log:.1f} %"),
        ]
    ]
    if n.visited is not None:
        told.append(
            [
                "states: further from the log than 19 of 20 of its own",
                _whole(f"{100 * n.visited:.1f} %"),
                _whole(f"{5:.1f} %"),
            ]
        )
    if n.differ is not None:
        what = (
            "two members choose different actions"
            if episodes.n_actions is not None
            else "spread of members' actions, of the range"
        )
        told.append([what, _whole(f"{100 * n.differ:.1f} %"), "–"])
    agreed = found.run.held_out.get("actions/agreement")
    if agreed is not None:
        told.append(["the best action is the logged one", _whole(f"{100 * agreed.at(found.run.kept_step):.1f} %"), "–"])
    table = _table(
        [
            f"on {n.states:,} logged states" + ("; in play" if n.visited is not None else ""),
            "the policy",
            "the log itself",
        ],
        told,
        numeric=(1, 2),
    )
    lead = markup(
        "<p>What the log has not tried it cannot judge. Beside the policy stands the log itself, its held-out episodes asked the same "
        "of the others. {}</p>",
        "The plane shows logged states (the stronger the colour, the more), and as dots the states that were met in play."
        if n.plane_visited is not None
        else "The plane shows logged states, the stronger the colour the more; where the policy would go is not known without an environment.",
    )
    chart = charts.plane("States", n.plane, n.plane_visited, n.axes[0], n.axes[1] or "one number alone")
    return lead + table + chart


def rewards(found: Look) -> Markup | None:
    """A learned reward beside the true one."""
    if found.agreement is None:
        if found.run.kind == "segment_reward" or found.learned:
            return _because(found, "truth", "The learned reward stands beside no true one")
        return None
    g = found.agreement
    rows = [
        [
            "mean of members",
            number(g.pearson),
            number(g.spearman),
            number(g.episodes) if g.episodes is not None else "–",
        ]
    ]
    if len(g.pearson_K) > 1:
        rows += [[f"member {k}", number(r), "–", "–"] for k, r in enumerate(g.pearson_K[:MOST_MEMBERS])]
    lead = markup(
        "<p>On {:,} {}, the truth being {}. A correlation sees neither scale nor a constant; where episodes end early a constant "
        "does matter.</p>",
        len(g.true_T),
        g.where,
        g.truth,
    )
    table = _table(["", "correlation", "of ranks", "of episodes' returns"], rows, numeric=(1, 2, 3))
    xy = np.stack([g.true_T, g.learned_KT.mean(0)], 1)
    chart = charts.plane("Steps by true and learned reward", xy, None, "true reward", "learned reward, members' mean")
    return lead + markup('<div class="grid2"><div>{}</div>{}</div>', table, chart)


def preferences(found: Look) -> Markup | None:
    """How judgements are predicted: accuracy by part, and calibration."""
    if not found.preferred:
        return _because(found, "preferred", "Judgements were not predicted")
    rows = []
    for part, p in found.preferred.items():
        a = p.accuracy
        each = p.right_KJ.mean(1).tolist()
        rows.append(
            (
                part,
                f"{p.right_KJ.shape[1]:,} judgements",
                [Mark("members' mean", a.value, a.lo, a.hi, "model", points=each if len(each) > 1 else ())],
            )
        )
    part, p = next(iter(found.preferred.items()))
    lead = markup(
        "<p>Share of judgements, ties left out, whose winner has the higher sum. 95 % intervals as if judgements were independent; a light "
        "dot is a member. The dashed line is chance.{}</p>",
        _agrees(found),
    )
    drawn = [plots.intervals("Judgements predicted", rows)]
    if p.p_J is not None:
        bins, ece, floor = calibration(p.p_J, p.label_J)
        drawn.append(plots.reliability(f"Right, % of judgements, by how sure it was ({part})", bins))
        lead += markup(
            "<p>Calibration on {}: its probabilities miss the outcomes by {:.1f} points (chance alone: {:.1f}).</p>",
            part,
            100 * ece,
            100 * floor,
        )
    return lead + markup('<div class="grid2">{}</div>', joined(drawn))


def _agrees(found: Look) -> str:
    told = (found.log.facts.get("judgements") or {}) if found.log is not None else {}
    right = told.get("agrees")
    return (
        f" The simulated annotator itself agrees with the reward in {100 * right:.1f} %."
        if isinstance(right, float)
        else ""
    )


def calibration(p_J: np.ndarray, label_J: np.ndarray) -> tuple[list[tuple[float, float, float, int]], float, float]:
    """Ten bins of the favoured side (confidence, outcome, weight, n); the expected calibration error; and what it would be
    on so many judgements, were each outcome drawn by its probability."""
    sure = np.maximum(p_J, 1 - p_J)
    outcome = np.where(p_J >= 0.5, label_J, 1 - label_J)
    which = np.minimum(((sure - 0.5) * 20).astype(int), 9)
    count = np.bincount(which, minlength=10)

    def miss(of: np.ndarray) -> float:
        return float(np.abs(np.bincount(which, sure - of, 10)).sum() / len(sure))

    full = count > 0
    bins = [
        (float(c / n), float(o / n), float(n), int(n))
        for c, o, n in zip(
            np.bincount(which, sure, 10)[full], np.bincount(which, outcome, 10)[full], count[full], strict=True
        )
    ]
    rng = np.random.default_rng(0)
    return bins, miss(outcome), float(np.mean([miss((rng.random(len(sure)) < sure).astype(float)) for _ in range(200)]))


def frames(found: Look) -> Markup | None:
    if found.frames:
        return charts.film("Member 0, its first episode", found.frames)
    return _because(found, "frames", "No pictures of play")


def dataset(found: Look) -> Markup | None:
    """What the run learnt from."""
    log = found.log
    facts: list[tuple[str, Any]] = [("root", markup("<code>{}</code>", found.run.fact("dataset") or "–"))]
    if log is None:
        missing = markup('<p class="reason">The log could not be read: {}.</p>', found.missing.get("log", "no recipe"))
        return _facts(facts) + missing
    e = log.episodes
    ended = int(e.terminated.sum())
    lengths = np.diff(e.offsets)
    facts += [
        (
            "episodes",
            f"{len(e):,}, of {lengths.min():,} to {lengths.max():,} steps; {ended:,} ended, {len(e) - ended:,} were cut",
        ),
        ("steps", f"{len(e.observations):,}"),
        (
            "observations, actions",
            f"{e.observations.shape[1]} numbers; "
            + (f"{e.n_actions} actions" if e.n_actions is not None else f"{e.actions.shape[1]} numbers"),
        ),
        ("parts, by episode", ", ".join(f"{name} {len(part):,}" for name, part in found.parts.items())),
        ("propensities", "logged" if e.propensities is not None else "not logged"),
    ]
    if log.segments is not None:
        facts.append(("judgements of segments", f"{len(log.segments):,}"))
    if e.rewards is not None:
        r = e.rewards
        facts.append(
            (
                "reward of a step",
                f"mean {number(float(r.mean()))}, spread {number(float(r.std()))}, {number(float(r.min()))} to {number(float(r.max()))}"
                + (", learnt from judgements" if found.learned else ""),
            )
        )
    else:
        facts.append(("rewards", "none"))
    if log.parent:
        facts.append(("made from log", markup("<code>{}</code>", log.parent)))
    left = found.run.fact("left_out") or {}
    for reason, n in left.items():
        facts.append(("judgements left out", f"{n:,}: {reason}"))
    pieces = [_facts(facts)]
    rows = [
        [b.get("name", "–"), f"{b.get('episodes', 0):,}", f"{b.get('steps', 0):,}", number(b.get("return"))]
        for b in log.facts.get("behaviours", [])
    ]
    if rows:
        head = "mean return" + (", by the rewards it was collected with" if found.learned else "")
        pieces.append(_table(["behaviour", "episodes", "steps", head], rows, numeric=(1, 2, 3)))
    if e.rewards is not None and len(e) > 1:
        of = np.add.reduceat(e.rewards, e.offsets[:-1])
        if of.max() > of.min():
            weights, edges = np.histogram(of, 24)
            pieces.append(
                plots.histogram(
                    "Returns of the log's episodes",
                    edges.tolist(),
                    weights.tolist(),
                    x_label="undiscounted return",
                    words=None,
                )
            )
    return joined(pieces)


def recipe(found: Look) -> Markup | None:
    return page.recipe(found.run)


def proof(found: Look) -> Markup | None:
    return page.proof(found.run)


SECTIONS: list[tuple[str, str, Callable[[Look], Markup | None]]] = [
    ("returns", "Returns", returns),
    ("film", "What it looks like", frames),
    ("value", "Value from the log", value),
    ("preferences", "Judgements", preferences),
    ("rewards", "Learned and true reward", rewards),
    ("curves", "Curves", curves),
    ("coverage", "The policy against the data", coverage),
    ("dataset", "The log", dataset),
    ("recipe", "Recipe", recipe),
    ("proof", "Proof", proof),
]


# Warnings.


def over_estimated(found: Look) -> list[Warning] | None:
    """The policy's own value of first observations against the best that the log shows. A cut episode could have gone on: it
    is credited the log's largest reward for ever."""
    if found.start_K is None or found.algorithm is None or found.log is None or found.log.episodes.rewards is None:
        return None
    e, looked, beyond = found.log.episodes, False, []
    assert e.rewards is not None
    for k, own in enumerate(found.start_K.tolist()):
        g = discount_of(found.algorithm, k)
        lengths = np.diff(e.offsets)
        if g == 1 and not e.terminated.all():
            continue  # without end there is no best
        looked = True
        of = found.discounted(e.rewards, g, np.arange(len(e)), int(lengths.max()))
        after = np.where(e.terminated, 0.0, g**lengths * max(float(e.rewards.max()), 0.0) / max(1 - g, 1e-12))
        best = float((of + after).max())
        room = max(OVER * abs(best), float(of.std()))
        if not own <= best + room:  # a value that is no number is one, too
            most = max(float(e.rewards.max()), 0.0) / (1 - g) if g < 1 else math.inf
            beyond.append((own, k, best, most))
    if not looked:
        return None
    if not beyond:
        return []
    own, k, best, most = max(beyond, key=lambda b: (not math.isfinite(b[0]), b[0]))
    impossible = not own <= most * (1 + OVER) and most < math.inf
    detail = (
        f"Member {k} thinks first observations worth {number(own)}; the best episode of the log returned {number(best)} (discounted"
        + (f"), and no policy can have more than {number(most)}." if impossible else ").")
        + (f" {len(beyond) - 1} other members are as far out." if len(beyond) > 1 else "")
    )
    remedy = (
        "Values of actions that the data never took were believed. Take cql, bcq or iql, raise their caution, or log more of what the "
        "policy wants to do. Do not read these values as returns."
    )
    return [
        Warning("Values far above the best return in the log", detail, remedy, "serious" if impossible else "warning")
    ]


def members_disagree(found: Look) -> list[Warning] | None:
    returns_KE, near = found.returns_KE, found.near
    if found.members < 2 or (returns_KE is None and (near is None or near.differ is None)):
        return None
    told = []
    if near is not None and near.differ is not None and found.episodes is not None:
        discrete = found.episodes.n_actions is not None
        if near.differ > (DIFFER if discrete else DIFFER / 2):
            told.append(
                f"two of them choose different actions in {100 * near.differ:.0f} % of logged states"
                if discrete
                else f"their actions spread over {100 * near.differ:.0f} % of the range (one standard deviation)"
            )
    logged = _logged_returns(found)
    if returns_KE is not None and logged is not None and len(returns_KE) > 1:
        mean_K, base = returns_KE.mean(1), float(logged.mean())
        best, worst = int(mean_K.argmax()), int(mean_K.argmin())
        noise = (
            sum(x.var(ddof=1) / x.size for x in (returns_KE[best], returns_KE[worst]))
            if returns_KE.shape[1] > 1
            else 0.0
        )
        gain = mean_K[best] - base
        if gain > 0 and mean_K[worst] < base + (1 - WORST) * gain and mean_K[best] - mean_K[worst] > 2 * noise**0.5:
            told.append(
                f"member {best} returns {number(mean_K[best])} and member {worst} {number(mean_K[worst])}, where the log has {number(base)}"
            )
    if not told:
        return []
    detail = "The same data and the same recipe, another seed: " + "; ".join(told) + "."
    remedy = (
        "One run of one seed would have told you little. Give more data or more steps, a more cautious algorithm, and choose among "
        "members by data (`holdfast ope`), never by the play that you report."
    )
    return [Warning("Members disagree", detail, remedy, "warning")]


def off_the_data(found: Look) -> list[Warning] | None:
    n = found.near
    if n is None or found.episodes is None:
        return None
    warned = []
    share = float(n.policy_K.mean())
    if n.log > 0 and share < NOT_TAKEN * n.log:
        detail = (
            f"In {100 * (1 - share):.0f} % of {n.states:,} logged states the policy's best action was taken by none of the {NEIGHBOURS} nearest "
            f"logged steps; of the log's own actions by none in {100 * (1 - n.log):.0f} %."
        )
        remedy = (
            "What such actions do the data cannot say: the policy rests on the network's guess. Take an algorithm that stays near the log "
            "(bcq, iql, cql with a larger alpha), or log these actions."
        )
        severity: Any = "serious" if share < NOT_TAKEN * NOT_TAKEN * n.log else "warning"
        warned.append(Warning("Actions outside of the data", detail, remedy, severity))
    if n.visited is not None and n.visited > OUTSIDE:
        detail = f"{100 * n.visited:.0f} % of the states met in play lie further from the log than 19 of 20 of its own held-out states do."
        remedy = "Its value there rests on no data. If it returns well, log what it does and learn again; if not, keep it nearer to the log."
        warned.append(Warning("The policy leaves the states of the log", detail, remedy, "warning"))
    return warned


def constant_reward(found: Look) -> list[Warning] | None:
    if found.run.kind == "segment_reward":
        spread = (found.said.get("facts") or {}).get("reward_std")
        if not spread:
            return None
        flat = [k for k, s in enumerate(spread) if not s > 1e-6]
        if not flat:
            return []
        detail = f"Of {len(spread)} members {len(flat)} give every step of the log the same reward."
        remedy = "Nothing can be learnt from it. Lower the penalty, train longer, and look at the judgements."
        return [Warning("A learned reward that never changes", detail, remedy, "serious")]
    e = found.episodes
    if e is None or e.rewards is None or found.algorithm is None or not found.algorithm.needs_reward:
        return None
    if e.rewards.max() > e.rewards.min():
        return []
    r = float(e.rewards[0])
    ends = bool(e.terminated.any()) and r != 0
    detail = f"Every step of the log has the reward {number(r)}" + (
        ": all that can be learnt is to make episodes last longer, or end sooner."
        if ends
        else ", and so every policy has the same value."
    )
    remedy = ("If that is the task, well; if not, " if ends else "") + (
        "give the log its rewards, or learn one from judgements and relabel it."
        if ends
        else "Log episodes that end, where that is what matters; give the log its rewards, or learn one from judgements and relabel it."
    )
    return [Warning("A reward that never changes", detail, remedy, "note" if ends else "serious")]


def worse_than_the_log(found: Look) -> list[Warning] | None:
    logged = _logged_returns(found)
    if found.returns_KE is None or logged is None:
        return None
    played = Mean.of(found.returns_KE.mean(0))
    high = played.hi if played.hi is not None else played.value
    base = float(logged.mean())
    if high >= base:
        return []
    detail = f"The members return {number(played.value)} on average (95 %: at most {number(high)}); the log's episodes {number(base)}."
    remedy = (
        "Cloning the log would have done better. Look at the values and at the actions outside of the data; take a more cautious algorithm, "
        "or a reward that tells good episodes from bad ones."
    )
    return [Warning("Worse than the behaviour that made the log", detail, remedy, "serious")]


def judgements_not_learnt(found: Look) -> list[Warning] | None:
    held = [(part, p) for part, p in found.preferred.items() if part != "train"]
    if not held:
        return None
    warned = []
    for part, p in held[:1]:
        a = p.accuracy
        if a.lo is not None and a.lo <= 0.5:
            detail = (
                f"On {part}, {100 * a.value:.1f} % of {p.right_KJ.shape[1]:,} judgements are predicted "
                f"(95 %: {100 * a.lo:.1f} to {100 * (a.hi or 0):.1f} %)."
            )
            remedy = "Hold more judgements out, collect more, or look at whether annotators agree at all."
            warned.append(
                Warning(
                    "Judgements predicted no better than by chance",
                    detail,
                    remedy,
                    "serious" if (a.hi or 1) < 0.6 else "warning",
                )
            )
        if p.p_J is not None and len(p.p_J) >= 50:
            _, ece, floor = calibration(p.p_J, p.label_J)
            if ece > 0.1 and ece > 2 * floor:
                detail = f"On {part} its probabilities miss the outcomes by {100 * ece:.1f} points (chance alone: {100 * floor:.1f})."
                remedy = "Read its reward as an order, not as log-odds; train fewer steps, or give it a penalty."
                warned.append(Warning("Poorly calibrated on judgements", detail, remedy, "warning"))
    return warned


def held_out_got_worse(found: Look) -> list[Warning] | None:
    run = found.run
    series = run.held_out.get("loss")
    if run.kind not in SUPERVISED or series is None or len(series.step) < 3 or len(run.loss.step) < 3:
        return None
    best = min(range(len(series.step)), key=lambda i: series.value[i])
    step, least, kept = series.step[best], series.value[best], series.at(run.kept_step)
    if step >= run.kept_step or kept - least <= GOT_WORSE_LOSS * abs(least) or not _fell(run.loss, step, run.kept_step):
        return []
    detail = (
        f"Held-out loss was {least:.3f} at step {step} and is {kept:.3f} in the kept weights (step {run.kept_step}), "
        "while the training loss fell."
    )
    remedy = (
        'Set stop_on = "loss" in [train], so that the best weights are kept; train fewer steps; or give it more data.'
    )
    return [Warning("Over-fitted", detail, remedy, "serious")]


def judgements_left_out(found: Look) -> list[Warning] | None:
    left = found.run.fact("left_out")
    if (
        found.run.trained_on is None
        or not isinstance(left, dict)
        or found.run.kind not in ("segment_reward", "cpl", "ipl")
    ):
        return None
    held = int((found.run.opened.get("held_out") or {}).get("count", 0))
    lost = sum(left.values())
    total = found.run.trained_on + held + lost
    if lost <= 0.05 * total:
        return []
    detail = (
        f"{lost:,} of {total:,} judgements were not used: "
        + "; ".join(f"{why} ({n:,})" for why, n in left.items())
        + "."
    )
    remedy = "Hold fewer episodes out, or judge pairs of segments within fewer episodes."
    return [Warning("Many judgements were left out", detail, remedy, "serious" if lost > 0.5 * total else "note")]


CHECKS: list[tuple[str, Callable[[Look], list[Warning] | None]]] = [
    ("values against the log", over_estimated),
    ("agreement of members", members_disagree),
    ("actions and states outside of the data", off_the_data),
    ("constant reward", constant_reward),
    ("return against the log's", worse_than_the_log),
    ("judgements", judgements_not_learnt),
    ("over-fitting", held_out_got_worse),
    ("judgements left out", judgements_left_out),
]


# Small pieces.


def _logged_returns(found: Look) -> np.ndarray | None:
    """(E,) undiscounted true returns of the log's episodes, where they are in the environment's unit."""
    if found.log is None or found.true_T is None:
        return None
    asked, where = found.run.recipe.get("control", {}).get("simulate"), found.log.facts.get("environment")
    if asked is not None and where is not None and asked != where:
        return None
    return np.add.reduceat(found.true_T, found.log.episodes.offsets[:-1])


def _behaviours(found: Look, logged: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns by who behaved, all together first."""
    assert found.log is not None
    every = [("all", logged)]
    who, named = found.log.episodes.behaviour, found.log.facts.get("behaviours") or []
    if who is None or len(np.unique(who)) < 2:
        return every
    for i in np.unique(who).tolist()[:MOST_MEMBERS]:
        every.append((str(named[i].get("name", i)) if 0 <= i < len(named) else f"behaviour {i}", logged[who == i]))
    return every


def _because(found: Look, what: str, sentence: str) -> Markup | None:
    """A section that is not there, and why; None where nothing was tried."""
    why = found.missing.get(what)
    return markup('<p class="reason">{}: {}</p>', sentence, why if why.endswith(".") else f"{why}.") if why else None


def _seed(found: Look, k: int) -> str:
    return f"seed {found.algorithm.task.seeds[k]}" if found.algorithm is not None else ""


def _ends(lo: float, hi: float) -> str:
    return f"{number(lo)} to {number(hi)}"


def _reach(v: PolicyValue) -> str:
    """How far the log supports the headline: good, thin or none."""
    return (v.reach if v.headline == "fqe" and v.reach is not None else v.support).verdict
