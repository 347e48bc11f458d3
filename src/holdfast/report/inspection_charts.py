"""The pictures of an inspection: a map of the prompts, a heat map of cells, the graph of sources, a histogram of lengths.

Inline SVG and tables without a script, in the page's colours. What a point or an edge stands for is in its title.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from holdfast.data.inspect.coverage import Map, nearest, prompt_categories, prompt_map
from holdfast.data.inspect.finding import Finding, share
from holdfast.data.inspect.length import log_ratio
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.validity import masked
from holdfast.report import plots
from holdfast.report.plots import joined, markup, number

POINTS = 1000  # prompts on the map
KINDS = 7  # colours of the map; the last one is for all others
MOST_SOURCES = 32
FIRST_CELLS, MOST_CELLS = 10, 40  # categories of the heat map that stand open, and all of them


def prompts_map(material: Material) -> Markup:
    """The prompts in the plane (t-SNE of their 64 topics), coloured by category or cluster, agreement, and coverage: which of
    the three is chosen by a radio button. Target prompts are diamonds. Nothing of fewer than 20 prompts.
    """
    found = prompt_map(material)
    if found is None:
        return Markup("")
    rng = np.random.default_rng(material.seed)
    # A prompt none of whose words another one uses has no place.
    able, able_target = (np.flatnonzero(np.linalg.norm(of, axis=1) > 0.5) for of in (found.places, found.target))
    shown = np.sort(rng.permutation(able)[:POINTS])
    target = np.sort(rng.permutation(able_target)[: POINTS // 4])
    if len(shown) < 20:
        return Markup("")
    x = np.concatenate([found.places[shown], found.target[target]])
    where = _plane(x, material.seed)
    numbers = found.numbers[shown]
    layers = [
        *_categories(material, found, shown, target),
        _layer("Cluster", "k", found.names, np.concatenate([found.cluster[shown], found.target_cluster[target]]), ""),
        _agreement(material, numbers, len(target)),
        _coverage(found, shown, target),
    ]
    texts = [masked(t)[:90] for t in material.prompts.at(numbers)]
    if len(target):
        assert material.target is not None
        texts += [masked(material.target.prompts[i])[:90] for i in target.tolist()]
    names = [found.names[c] for c in (*found.cluster[shown], *found.target_cluster[target])]
    dots = []
    for i, (at, text, name) in enumerate(zip(where, texts, names, strict=True)):
        css = " ".join(f"{layer.letter}{layer.of[i]}" for layer in layers)
        says = f"{text}\n{name}" + "".join(f"\n{layer.title.lower()}: {layer.names[layer.of[i]]}" for layer in layers)
        if i < len(shown):
            mark = markup('<circle class="pt {}" cx="{:.1f}%" cy="{:.1f}%" r="3.4">', css, *at)
            dots.append(mark + markup("<title>{}</title></circle>", says))
        else:
            inside = markup('<path class="pt {}" d="M0-5L5 0L0 5L-5 0z"><title>target: {}</title></path>', css, says)
            dots.append(markup('<svg x="{:.1f}%" y="{:.1f}%" class="open">{}</svg>', *at, inside))
    radios, legends = [], []
    for k, layer in enumerate(layers):
        radios.append(
            markup(
                '<input type="radio" name="map" id="map-{0}"{1}><label for="map-{0}">{2}</label>',
                layer.letter,
                Markup(" checked") if k == 0 else "",
                layer.title,
            )
        )
        keys = [
            markup(
                '<span class="key"><svg width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true">'
                '<circle class="{}{}" r="4.5"/></svg>{}</span>',
                f"pt {layer.letter}",
                n,
                name,
            )
            for n, name in enumerate(layer.names)
            if (layer.of == n).any()
        ]
        legends.append(markup('<p class="legend {}">{}</p>', layer.letter, joined(keys)))
    some = (
        "" if len(shown) == len(found.places) else f", {len(shown):,} of {len(material.live_prompts):,} drawn at random"
    )
    diamonds = "; diamonds are target prompts" if len(target) else ""
    return markup(
        '<figure class="map"><figcaption><b>Map of the prompts</b> <span class="small">near each other where they use the same '
        "words{}{}; a point says its prompt</span></figcaption>{}{}"
        '<svg class="plane" height="460" role="img" aria-label="Map of the prompts">{}</svg></figure>',
        some, diamonds, joined(radios), joined(legends), joined(dots),
    )  # fmt: skip


class _Layer:
    """A way to colour the points: title, the letter of its classes, names of the classes, and the class of each point."""

    def __init__(self, title: str, letter: str, names: list[str], of: np.ndarray):
        self.title, self.letter, self.names, self.of = title, letter, names, of


def _plane(x: np.ndarray, seed: int) -> np.ndarray:
    """(n, 2) places in per cent of the picture."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    made = TSNE(2, init="pca", perplexity=perplexity, max_iter=500, random_state=seed, metric="cosine").fit_transform(x)
    lo, hi = np.quantile(made, [0.01, 0.99], axis=0)
    return np.clip(4 + 92 * (made - lo) / np.maximum(hi - lo, 1e-9), 1, 99)


def _categories(material: Material, found: Map, shown: np.ndarray, target: np.ndarray) -> list[_Layer]:
    category = prompt_categories(material)[found.numbers[shown]]
    if len(np.unique(category[category >= 0])) < 2:
        return []
    number = {c: i for i, c in enumerate(material.categories)}
    said = list(material.target.categories) if material.target is not None else []
    theirs = np.array([number.get(said[i] or "", -1) if said else -1 for i in target.tolist()], np.int64)
    return [_layer("Category", "c", material.categories, np.concatenate([category, theirs]), "none said")]


def _layer(title: str, letter: str, names: list[str], codes: np.ndarray, none: str) -> _Layer:
    """The commonest kinds in a colour each; codes (n,), -1 where there is none."""
    size = np.bincount(codes[codes >= 0], minlength=len(names))
    there = int((size > 0).sum())
    top = np.argsort(-size, kind="stable")[: min(KINDS - 1, there)]
    place = np.full(len(names) + 1, len(top))
    place[top] = np.arange(len(top))
    rest = [f"{there - len(top)} others"] * (there > len(top)) + [none] * bool(none and (codes < 0).any())
    return _Layer(title, letter, [*(names[k] for k in top), " or ".join(rest)], place[codes])


def _agreement(material: Material, numbers: np.ndarray, targets: int) -> _Layer:
    low = np.minimum(material.a, material.b).astype(np.int64)
    _, unit = np.unique(low * len(material.responses) + np.maximum(material.a, material.b), return_inverse=True)
    value = np.where(material.decided, np.where((material.p > 0.5) == (material.a == low), 2, 0), 1)
    votes = np.zeros((int(unit.max(initial=-1)) + 1, 3))
    np.add.at(votes, (unit, value), 1.0)
    several = votes.sum(axis=1)[unit] > 1
    with_most = (votes.max(axis=1) / np.maximum(votes.sum(axis=1), 1))[unit]
    n = len(material.prompts)
    below = np.bincount(material.prompt[several], minlength=n)
    above = np.bincount(material.prompt[several], with_most[several], n)
    mean = (above / np.maximum(below, 1))[numbers]
    of = np.where(below[numbers] == 0, 3, np.where(mean > 0.9, 0, np.where(mean > 0.7, 1, 2)))
    names = ["nine in ten or more with the majority", "seven in ten or more", "fewer", "judged once"]
    return _Layer("Agreement", "a", names, np.concatenate([of, np.full(targets, 3)]))


def _coverage(found: Map, shown: np.ndarray, target: np.ndarray) -> _Layer:
    own = nearest(found.places, found.places, own=True)[shown]
    theirs = nearest(found.target[target], found.places) if len(target) else np.zeros(0)
    near = np.concatenate([own, theirs])
    of = np.where(near > 0.8, 0, np.where(near > 0.5, 1, 2))
    names = ["another prompt is much like it (cosine over 0.8)", "somewhat like it (over 0.5)", "alone"]
    return _Layer("Coverage", "d", names, of)


def cells(finding: Finding) -> Markup:
    """Category by length of the prompt: how many prompts, how many would be usual; empty and thin cells stand out."""
    listed: list[dict[str, Any]] = finding.facts["cells"]
    lengths = finding.facts["lengths"]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for c in listed:
        rows.setdefault(c["category"], {})[c["length"]] = c
    most = max(c["prompts"] for c in listed) or 1
    body = []
    by_size = sorted(rows.items(), key=lambda kv: (-sum(c["prompts"] for c in kv[1].values()), kv[0]))
    for name, of in by_size[:MOST_CELLS]:
        line = []
        for length in lengths:
            c = of[length]
            thin = c["prompts"] < c["expected"] / 4 and c["expected"] >= 5
            line.append(
                markup(
                    '<td class="cell{}" style="--a:{:.2f}" title="{}"><b>{:,}</b> <small>{:.0f} usual</small></td>',
                    " thin" if thin else "",
                    0.06 + 0.5 * c["prompts"] / most,
                    f"{name}, {length}: {c['prompts']:,} prompts, {c['judgements']:,} judgements (worth {c['effective']:.0f} of equal weight)",
                    c["prompts"],
                    c["expected"],
                )
            )
        body.append(markup("<tr><th>{}</th>{}</tr>", name or "(nothing said)", joined(line)))
    heads = joined(markup("<th>{}<br><small>{}</small></th>", k, v) for k, v in lengths.items())
    more = (
        f" The {len(by_size) - MOST_CELLS} smallest categories are in inspect.json."
        if len(by_size) > MOST_CELLS
        else ""
    )
    tables = [
        markup(
            '<div class="scroll"><table class="heat"><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table></div>',
            heads,
            joined(part),
        )
        for part in (body[:FIRST_CELLS], body[FIRST_CELLS:])
        if part
    ]
    if len(tables) > 1:
        tables[1] = markup(
            '<details class="more"><summary>{:,} smaller categories</summary>{}</details>',
            len(body) - FIRST_CELLS,
            tables[1],
        )
    by = "" if finding.name == "coverage/cells" else f" by {finding.name.partition(':')[2]}"
    return markup(
        '<figure><figcaption><b>Cells{}</b> <span class="small">prompts by kind and length; usual: if these had nothing to '
        "do with each other.{}</span></figcaption>{}</figure>",
        by,
        more,
        joined(tables),
    )


def sources_graph(finding: Finding) -> Markup:
    """Which sources were compared, how often, and who wins: a node as large as its comparisons, an edge as wide."""
    table = finding.facts["strengths"]
    pairs = finding.facts["pairs"]
    if len(table) < 2:
        return Markup("")
    kept = sorted(table, key=lambda s: -s["comparisons"])[:MOST_SOURCES]
    names = [s["source"] for s in sorted(kept, key=lambda s: -s["strength"])]
    total = sum(s["comparisons"] for s in table) / 2
    star = len(names) > 3 and kept[0]["comparisons"] > 0.9 * total
    ring = [n for n in names if not (star and n == kept[0]["source"])]
    wide, tall = 1000, 780
    turns = {n: 2 * math.pi * i / len(ring) - math.pi / 2 for i, n in enumerate(ring)}
    place = {n: (wide / 2 + 190 * math.cos(t), tall / 2 + 190 * math.sin(t)) for n, t in turns.items()}
    if star:
        place[kept[0]["source"]] = (wide / 2, tall / 2)
    most = max(p["comparisons"] for p in pairs)
    drawn = []
    for p in sorted(pairs, key=lambda p: p["comparisons"]):
        if p["one"] in place and p["other"] in place:
            (x1, y1), (x2, y2) = place[p["one"]], place[p["other"]]
            says = f"{p['one']} against {p['other']}: {p['comparisons']:,.0f} comparisons, the first wins {share(p['one wins'])}"
            drawn.append(
                markup(
                    '<line class="edge" x1="{:.0f}" y1="{:.0f}" x2="{:.0f}" y2="{:.0f}" style="stroke-width:{:.1f}"><title>{}</title></line>',
                    x1, y1, x2, y2, 1 + 7 * p["comparisons"] / most, says,
                )
            )  # fmt: skip
    said = {s["source"]: s for s in kept}
    size = max(s["comparisons"] for s in kept)
    for n, (x, y) in place.items():
        s = said[n]
        radius = 7 + 13 * math.sqrt(s["comparisons"] / size)
        rate = s["win rate"]
        css = "model" if rate >= 0.5 else "longer"
        turn = math.degrees(turns.get(n, math.pi / 2))
        left = n in turns and abs(turn) > 90.001
        drawn.append(
            markup(
                '<g><circle class="node {}" cx="{x:.0f}" cy="{y:.0f}" r="{:.1f}" style="--f:{:.2f}"/>'
                '<text x="{x:.0f}" y="{y:.0f}" dx="{:.0f}" dy="5" text-anchor="{}" transform="rotate({:.1f} {x:.0f} {y:.0f})">{} {:.0f} %</text>'
                "<title>{}</title></g>",
                css, radius, 0.15 + 1.6 * abs(rate - 0.5), -radius - 6 if left else radius + 6, "end" if left else "start",
                0 if n not in turns else turn + 180 if left else turn, n if len(n) < 34 else n[:32] + "…",
                100 * rate, f"{n}: wins {share(rate)} of {s['comparisons']:,.0f}, strength {number(s['strength'])}", x=x, y=y,
            )
        )  # fmt: skip
    more = f" The {len(table) - len(kept)} with fewest comparisons are left out." if len(table) > len(kept) else ""
    return markup(
        '<figure><figcaption><b>Graph of the sources</b> <span class="small">an edge as wide as two were often compared; share of '
        "wins beside the name, blue from half on; round the clock from the strongest.{}</span></figcaption>"
        '<div class="scroll"><svg class="graph" viewBox="0 0 {} {}" role="img" aria-label="Graph of the sources">{}</svg></div></figure>',
        more, wide, tall, joined(drawn),
    )  # fmt: skip


def lengths(material: Material) -> Markup:
    """How much longer the preferred response is than the other, in doublings."""
    at = material.decided
    if not material.text or not at.any():
        return Markup("")
    toward = (log_ratio(material) * np.sign(material.p - 0.5))[at] / math.log(2)
    reach = max(1.0, float(np.ceil(np.quantile(np.abs(toward), 0.99))))
    edges = np.linspace(-reach, reach, 33)
    counts, _ = np.histogram(np.clip(toward, -reach, reach), bins=edges, weights=material.weight[at])
    return plots.histogram(
        "How much longer the preferred response is",
        edges.tolist(),
        counts.tolist(),
        x_label="doublings of the length",
        words=("shorter", "longer"),
    )


def similarities(finding: Finding) -> Markup:
    """How alike the two responses of a pair are."""
    said = finding.facts["histogram"]
    edges, counts = said["edges"], said["counts"]
    return plots.histogram(finding.title, edges, counts, x_label="edit similarity", words=None)


def ches(finding: Finding) -> Markup:
    """How the scores lie about 0, where a response is as alike to the other as to itself; the outermost bars hold what is beyond."""
    said = finding.facts["histogram"]
    return plots.histogram(
        finding.rows.what, said["edges"], said["counts"], x_label="score", words=("below 0", "above 0")
    )
