"""Small charts as inline SVG: no script, readable at any width, in print, and in light and dark.

Positions are percentages and text is in pixels, so a chart can be as narrow as a telephone without its words
shrinking; lines live in a nested picture that stretches (their strokes do not). Colours are CSS classes of the page:
`model`, `longer`, `bow`, `chosen`, `rejected`, `train`, `held`. Every mark has a title to hover over. All text passes
through markupsafe, hence escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

MOST_POINTS = 300  # per line; longer ones are averaged over stretches of steps
MOST_HOVERS = 100


@dataclass(frozen=True)
class Line:
    """One line of a chart. `css` picks colour and dash; a `faint` one is drawn behind, without a place in the
    legend. `lo` and `hi`, where they are given, are a band around it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    css: str
    faint: bool = False
    lo: Sequence[float] = ()
    hi: Sequence[float] = ()


@dataclass(frozen=True)
class Mark:
    """A value with its interval, in an interval chart. Shapes differ besides colours: circle, square or diamond."""

    name: str
    value: float | None
    lo: float | None
    hi: float | None
    css: str
    shape: str = "circle"
    points: Sequence[float] = ()  # what the value sums up, drawn behind it


def markup(template: str, *values: object, **named: object) -> Markup:
    """The template with its values escaped, unless they are markup already."""
    return Markup(template).format(*values, **named)


def joined(pieces: Iterable[Markup]) -> Markup:
    return Markup("").join(pieces)


def number(x: float | None, digits: int = 3) -> str:
    """A number for people: `digits` significant ones, no exponent where it can be helped."""
    if x is None or not math.isfinite(x):
        return "–" if x is None else str(x)
    if x == 0:
        return "0"
    size = math.floor(math.log10(abs(x)))
    said = f"{abs(x):.{digits - 1}e}" if size < -4 or size > 6 else f"{abs(x):,.{max(0, digits - 1 - size)}f}"
    return said if x > 0 else f"−{said}"


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round values (1, 2, 5 times a power of ten) that cover [lo, hi], about as many as asked."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / max(1, about)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [k * step + 0.0 for k in range(first, math.floor(hi / step + 1e-9) + 1)]


def tick_text(values: Sequence[float], unit: str = "") -> list[str]:
    """The ticks with just as many decimals as their distance needs."""
    gap = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [f"{v:,.{decimals}f}{unit}".replace("-", "−") for v in values]


def lines(
    title: str,
    series: Sequence[Line],
    *,
    x_label: str = "step",
    marks: Sequence[tuple[float, str]] = (),
    zero: float | None = None,
    height: int = 210,
) -> Markup:
    """A line chart over steps. `marks` are vertical lines with a word; `zero` is a level drawn as a reference."""
    series = [_thin(s) for s in series if len(s.x)]
    values = [y for s in series for y in (*s.y, *s.lo, *s.hi) if math.isfinite(y)] + (
        [zero] if zero is not None else []
    )
    if not values:
        return Markup("")
    lo, hi = min(values), max(values)
    pad = 0.06 * (hi - lo) or abs(hi) * 0.1 or 1.0
    lo, hi = lo - pad, hi + pad
    left, right = min(min(s.x) for s in series), max(max(s.x) for s in series)
    right = right if right > left else left + 1

    def px(x: float) -> float:
        return round(100 * (x - left) / (right - left), 2)

    def py(y: float) -> float:
        return round(100 * (hi - y) / (hi - lo), 2)

    drawn = []
    if zero is not None:
        drawn.append(markup('<line class="level" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>', py(zero)))
    for at, word in marks:
        anchor = "end" if px(at) > 60 else "start"
        drawn.append(
            markup(
                '<line class="mark" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>'
                '<text class="word" x="{0}%" y="0" dx="{1}" dy="11" text-anchor="{2}">{3}</text>',
                px(at), -5 if anchor == "end" else 5, anchor, word,
            )
        )  # fmt: skip
    paths = []
    for s in series:
        edge = [(x, y) for x, y in zip(s.x, s.hi, strict=False) if math.isfinite(y)]
        edge += [(x, y) for x, y in zip(s.x, s.lo, strict=False) if math.isfinite(y)][::-1]
        if edge:
            d = "L".join(f"{px(x):g} {py(y):g}" for x, y in edge)
            paths.append(markup('<path class="band {}" d="M{}Z"/>', s.css, d))
    for s in sorted(series, key=lambda s: not s.faint):
        steps, pen = [], "M"
        for x, y in zip(s.x, s.y, strict=True):
            if not math.isfinite(y):
                pen = "M"
                continue
            steps.append(f"{pen}{px(x):g} {py(y):g}")
            pen = "L"
        if steps:
            paths.append(markup('<path class="line {}{}" d="{}"/>', s.css, " faint" if s.faint else "", "".join(steps)))
    drawn.append(
        markup(
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{}</svg>',
            joined(paths),
        )
    )
    for s in series:
        if not s.faint and len(s.x) <= 40:
            drawn += [
                markup('<circle class="dot {}" cx="{}%" cy="{}%" r="3"/>', s.css, px(x), py(y))
                for x, y in zip(s.x, s.y, strict=True)
                if math.isfinite(y)
            ]

    # Hovering anywhere over a step says every line's value there.
    told = [s for s in series if not s.faint]
    stops = sorted({x for s in told for x in s.x})
    stops = stops[:: max(1, math.ceil(len(stops) / MOST_HOVERS))]
    for i, x in enumerate(stops):
        begin = 0.0 if i == 0 else (px(stops[i - 1]) + px(x)) / 2
        end = 100.0 if i == len(stops) - 1 else (px(x) + px(stops[i + 1])) / 2
        says = [f"{x_label} {x:g}"]
        for s in told:
            near = min(range(len(s.x)), key=lambda k: abs(s.x[k] - x))
            if abs(s.x[near] - x) <= (right - left) / 50:
                band = f" ({number(s.lo[near], 4)} to {number(s.hi[near], 4)})" if s.lo else ""
                says.append(f"{s.name}: {number(s.y[near], 4)}{band}")
        drawn.append(
            markup(
                '<rect class="hover" x="{:.2f}%" width="{:.2f}%" y="0" height="100%"><title>{}</title></rect>',
                begin,
                end - begin,
                "\n".join(says),
            )
        )
    shown = ticks(lo, hi, 4)
    across = [t for t in ticks(left, right, 5) if px(t) <= 100]
    legend = [(s.name, s.css, "line") for s in series if not s.faint]
    frame = _frame(
        title, joined(drawn), height,
        [(px(t), w) for t, w in zip(across, tick_text(across), strict=True)],
        [(py(t), w) for t, w in zip(shown, tick_text(shown), strict=True)],
        x_label,
    )  # fmt: skip
    return _figure(title, frame, legend if len(legend) > 1 or (legend and legend[0][0] != title) else [])


def intervals(title: str, rows: Sequence[tuple[str, str, Sequence[Mark]]], *, chance: float | None = 0.5) -> Markup:
    """Shares with their intervals, one block per row: (label, small print, marks), each mark on a line of its own. The
    axis is in %.
    """
    every = [v for _, _, marks in rows for m in marks for v in (m.lo, m.value, m.hi) if v is not None]
    if not every:
        return Markup("")
    lo = max(0.0, math.floor(10 * (min([*every, chance if chance is not None else 1.0]) - 0.02)) / 10)
    hi = min(1.0, math.ceil(10 * (max(every) + 0.005)) / 10)
    hi = hi if hi > lo else lo + 0.1

    at = (chance, "chance: 50 %") if chance is not None else None
    return _blocks(title, rows, lo, hi, _share, lambda lo, hi: f"{100 * lo:.0f}–{100 * hi:.0f}", _hundredths, at)


def values(
    title: str, rows: Sequence[tuple[str, str, Sequence[Mark]]], *, level: tuple[float, str] | None = None
) -> Markup:
    """Values of any size with their intervals, as `intervals` draws shares. An interval many times as wide as the values
    lie apart runs off the edge, and one ten thousand times as wide has no ends. level: a reference, and what it is.
    """
    marks = [m for _, _, found in rows for m in found if m.value is not None]
    core = [v for m in marks for v in (m.value, *m.points) if v is not None and math.isfinite(v)]
    core += [level[0]] if level is not None else []
    if not marks or not core:
        return Markup("")
    lo, hi = min(core), max(core)
    most = 1.5 * ((hi - lo) or 0.25 * abs(hi) or 1.0)
    ends = [e for m in marks for e in (m.lo, m.hi) if e is not None and math.isfinite(e)]
    lo, hi = max(min([lo, *ends]), lo - most), min(max([hi, *ends]), hi + most)
    pad = 0.04 * (hi - lo) or 0.1 * abs(hi) or 1.0

    def end(x: float) -> str:
        return number(x) if abs(x) < 1e4 * (hi - lo + 2 * pad) else "∞" if x > 0 else "−∞"

    return _blocks(title, rows, lo - pad, hi + pad, number, lambda lo, hi: f"{end(lo)} … {end(hi)}", tick_text, level)


def _hundredths(values: Sequence[float]) -> list[str]:
    return [f"{100 * t:.0f} %" for t in values]


def _blocks(
    title: str,
    rows: Sequence[tuple[str, str, Sequence[Mark]]],
    lo: float,
    hi: float,
    say: Callable[[float | None], str],
    say_range: Callable[[float, float], str],
    say_ticks: Callable[[Sequence[float]], list[str]],
    level: tuple[float, str] | None,
) -> Markup:
    def px(x: float) -> float:
        return round(min(100.0, max(0.0, 100 * (x - lo) / (hi - lo))), 2)

    shown = ticks(lo, hi, 4)
    grid = joined(markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>', px(t)) for t in shown)
    if level is not None and lo < level[0] < hi:
        grid += markup(
            '<line class="level" x1="{0}%" x2="{0}%" y1="0" y2="100%"><title>{1}</title></line>', px(level[0]), level[1]
        )
    blocks: list[Markup] = []
    for label, small, marks in rows:
        marks = [m for m in marks if m.value is not None]
        drawn = [grid]
        for i, m in enumerate(marks):
            y = 10 + 15 * i
            says = f"{label} · {m.name}: {say(m.value)}" + (
                f" ({say(m.lo)} to {say(m.hi)})" if m.lo is not None else ""
            )
            for point in m.points:
                drawn.append(markup('<circle class="point {}" cx="{}%" cy="{}" r="3"/>', m.css, px(point), y))
            whisker = Markup("")
            if m.lo is not None and m.hi is not None:
                whisker = markup(
                    '<line class="whisker {}" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>', m.css, px(m.lo), px(m.hi), y=y
                )
            shape = markup('<svg x="{}%" y="{}" class="open">{}</svg>', px(m.value or 0), y, _shape(m.shape, m.css))
            drawn.append(markup("<g>{}{}<title>{}</title></g>", whisker, shape, says))
        value = Markup("")
        if marks:
            value = markup("<b>{}</b>", say(marks[0].value))
            if marks[0].lo is not None:
                value += markup(" <span>{}</span>", say_range(marks[0].lo, marks[0].hi or 0))
        blocks.append(
            markup(
                '<div class="iv"><div class="iv-label">{} <small>{}</small></div>'
                '<svg class="track" height="{}" role="img" aria-label="{}">{}</svg>'
                '<div class="iv-value">{}</div></div>',
                label,
                small,
                5 + 15 * max(1, len(marks)),
                label,
                joined(drawn),
                value,
            )
        )
    words = [(px(t), "end" if px(t) > 97 else "middle", w) for t, w in zip(shown, say_ticks(shown), strict=True)]
    axis = joined(markup('<text x="{}%" y="12" text-anchor="{}">{}</text>', *word) for word in words)
    blocks.append(
        markup(
            '<div class="iv axis"><div></div><svg class="track" height="18" aria-hidden="true">{}</svg>'
            "<div></div></div>",
            axis,
        )
    )
    named = {m.name: (m.name, m.css, m.shape) for _, _, marks in rows for m in marks}
    return _figure(title, markup('<div class="intervals">{}</div>', joined(blocks)), list(named.values()))


def reliability(title: str, bins: Sequence[tuple[float, float, float, int]], height: int = 250) -> Markup:
    """A reliability diagram over the favoured side: (confidence, outcome, weight, n) per bin, dots as large as their
    share.
    """
    if not bins:
        return Markup("")
    floor = min(0.5, math.floor(10 * min(o for _, o, _, _ in bins)) / 10)
    most = max(w for _, _, w, _ in bins)

    def px(x: float) -> float:
        return round(100 * (x - 0.5) / 0.5, 2)

    def py(y: float) -> float:
        return round(100 * (1 - y) / (1 - floor), 2)

    drawn = [markup('<line class="level" x1="0" y1="{}%" x2="100%" y2="0"/>', py(0.5))]
    drawn.append(markup('<text class="word" x="0" y="0" dx="8" dy="14">above the line: less sure than right</text>'))
    drawn.append(
        markup('<text class="word" x="100%" y="100%" dx="-6" dy="-8" text-anchor="end">below: surer than right</text>')
    )
    for confidence, outcome, weight, n in bins:
        says = f"{n:,} comparisons: {_share(confidence)} sure, right for {_share(outcome)}"
        drawn.append(
            markup(
                '<line class="miss" x1="{x}%" x2="{x}%" y1="{}%" y2="{}%"/>',
                py(confidence),
                py(outcome),
                x=px(confidence),
            )
        )
        drawn.append(
            markup(
                '<circle class="dot model" cx="{}%" cy="{}%" r="{:.1f}"><title>{}</title></circle>',
                px(confidence),
                py(outcome),
                3 + 8 * math.sqrt(weight / most),
                says,
            )
        )
    across, up = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], ticks(floor, 1.0, 5)
    frame = _frame(
        title, joined(drawn), height,
        [(px(t), f"{100 * t:.0f}") for t in across], [(py(t), f"{100 * t:.0f}") for t in up],
        "how sure the model is of its choice, %",
    )  # fmt: skip
    return _figure(title, frame, [])


def histogram(
    title: str,
    edges: Sequence[float],
    weights: Sequence[float],
    *,
    x_label: str,
    height: int = 210,
    words: tuple[str, str] | None = ("wrong", "right"),
) -> Markup:
    """A histogram over signed values, those below zero in another colour: they are the comparisons the model has
    wrong, or what `words` calls the two sides (None: the values have no sides).
    """
    if not edges or not sum(weights):
        return Markup("")
    lo, hi, most, total = edges[0], edges[-1], max(weights), sum(weights)

    def px(x: float) -> float:
        return round(100 * (x - lo) / (hi - lo), 2)

    drawn = []
    for i, w in enumerate(weights):
        tall = 96 * w / most
        wrong = (edges[i] + edges[i + 1]) / 2 < 0
        says = f"{number(edges[i])} to {number(edges[i + 1])}: {100 * w / total:.1f} %"
        drawn.append(
            markup(
                '<rect class="bar {}" x="{}%" width="{:.2f}%" y="{:.2f}%" height="{:.2f}%"><title>{}</title></rect>',
                "rejected" if wrong else "chosen",
                px(edges[i]),
                max(0.3, px(edges[i + 1]) - px(edges[i]) - 0.35),
                100 - tall,
                tall,
                says,
            )
        )
    if words is not None:
        drawn.append(markup('<line class="level" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>', px(0)))
        below = sum(w for i, w in enumerate(weights) if (edges[i] + edges[i + 1]) / 2 < 0)
        drawn.append(
            markup('<text class="word" x="2%" y="0" dy="11">{} {:.0f} %</text>', words[0], 100 * below / total)
        )
        drawn.append(
            markup(
                '<text class="word" x="98%" y="0" dy="11" text-anchor="end">{} {:.0f} %</text>',
                words[1],
                100 - 100 * below / total,
            )
        )
    across = ticks(lo, hi, 6)
    up = ticks(0, 100 * most / total / 0.96, 4)
    frame = _frame(
        title, joined(drawn), height,
        [(px(t), w) for t, w in zip(across, tick_text(across), strict=True)],
        [(100 - 96 * t / (100 * most / total), w) for t, w in zip(up, tick_text(up, " %"), strict=True)], x_label,
    )  # fmt: skip
    return _figure(title, frame, [])


def smooth(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """A centred running mean over a twelfth of the steps: for the eye, with the raw values behind it."""
    half = max(1, len(y) // 25)
    return [sum(y[max(0, i - half) : i + half + 1]) / len(y[max(0, i - half) : i + half + 1]) for i in range(len(y))]


def _thin(s: Line) -> Line:
    size = math.ceil(len(s.x) / MOST_POINTS)
    if size <= 1:
        return s

    def means(values: Sequence[float]) -> list[float]:
        return [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]

    return Line(s.name, [round(v) for v in means(s.x)], means(s.y), s.css, s.faint, means(s.lo), means(s.hi))


def _frame(
    title: str,
    drawn: Markup,
    height: int,
    across: Sequence[tuple[float, str]],
    up: Sequence[tuple[float, str]],
    x_label: str,
) -> Markup:
    axes = [
        markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
            '<text x="0" y="{0:.2f}%" dx="-7" dy=".34em" text-anchor="end">{1}</text>',
            y,
            w,
        )
        for y, w in up
    ]
    axes += [markup('<text x="{}%" y="100%" dy="17" text-anchor="middle">{}</text>', x, w) for x, w in across]
    axes.append(markup('<text class="axis" x="100%" y="100%" dy="34" text-anchor="end">{}</text>', x_label))
    axes.append(markup('<line class="base" x1="0" x2="100%" y1="100%" y2="100%"/>'))
    return markup(
        '<svg class="chart" height="{}" role="img" aria-label="{}">{}{}</svg>',
        height,
        title,
        joined(axes),
        drawn,
    )


def _figure(title: str, inside: Markup, legend: Sequence[tuple[str, str, str]]) -> Markup:
    keys = [
        markup(
            '<span class="key"><svg width="18" height="10" viewBox="-9 -5 18 10" aria-hidden="true">{}</svg>{}</span>',
            _shape(shape, css),
            name,
        )
        for name, css, shape in legend
    ]
    return markup("<figure><figcaption><b>{}</b>{}</figcaption>{}</figure>", title, joined(keys), inside)


def _shape(shape: str, css: str) -> Markup:
    drawings: dict[str, str] = {
        "circle": '<circle class="dot {}" r="4.5"/>',
        "square": '<rect class="dot {}" x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
        "diamond": '<path class="dot {}" d="M0-4.8L4.8 0L0 4.8L-4.8 0z"/>',
        "line": '<path class="line {}" d="M-9 0H9"/>',
    }
    return markup(drawings[shape], css)


def _share(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.1f} %"
