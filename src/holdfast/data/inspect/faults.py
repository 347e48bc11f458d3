"""Faults that can be planted in copies of a dataset, each with copies in which the null holds.

A *clean* copy is made so that what is measured is the detector and not what the dataset already has: which side wins
decided by coins, a split by whole clusters, annotators dealt anew. Copies are materials edited in memory: texts and
what was computed from them are shared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from holdfast.data.inspect.agreement import FEWEST
from holdfast.data.inspect.consistency import contradicting
from holdfast.data.inspect.coverage import prompt_map
from holdfast.data.inspect.finding import DETECTORS, Finding, missing
from holdfast.data.inspect.length import sizes
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.near import near_prompts
from holdfast.data.inspect.noise import flip_rate
from holdfast.data.inspect.outside import Outside
from holdfast.data.inspect.probe import best_margin, surface_difference
from holdfast.data.inspect.surface import NAMES
from holdfast.data.inspect.validity import KINDS, flags

HELD = 0.2  # of the clusters of prompts that are held out where a copy needs a split or an evaluation set
REWORDED = 0.05  # of the words of a near-duplicate that are replaced, one at least
Draw = np.random.Generator
Planted = tuple[
    Material, np.ndarray
]  # a copy with the fault, and the judgements that have it (empty: none can be named)
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Fault:
    """A fault that can be planted.

    finding: the finding that should alarm (or how its name begins); strengths: rising; unit: what a strength is, in
    words, with # for the number; plant: (clean copy, strength, draw) -> a copy with the fault, None where it has no room
    for that; clean: (dataset, draw) -> a clean copy, and `how` in words; without: why it cannot be planted in this
    material, or None; most: judgements up to which it is measured; alone: one judgement of each prompt is enough for it.
    """

    name: str
    finding: str
    unit: str
    strengths: tuple[float, ...]
    plant: Callable[[Material, float, Draw], Planted | None]
    clean: Callable[[Material, Draw], Material]
    how: str
    without: Callable[[Material], str | None] = lambda m: None
    most: int = 20_000
    alone: bool = False

    @property
    def detector(self) -> str:
        return self.finding.partition("/")[0]


def first_finding(m: Material, name: str) -> Finding | None:
    """The first finding whose name begins so; the detector runs no further than that."""
    one = DETECTORS[name.partition("/")[0]]
    if missing(one, m) is not None:
        return None
    return next((f for f in one.run(m) if f.name.startswith(name)), None)


# Copies.


def smaller(m: Material, most: int, seed: int = 0, *, alone: bool = False) -> Material:
    """Whole prompts at random up to `most` judgements (alone: one of each prompt), and only the texts that they name."""
    rows = m.first_rows[m.live_prompts] if alone else m.live
    if len(rows) == len(m.live) <= most:
        return m
    prompts, of = np.unique(m.row_prompt[rows], return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(prompts))
    reach = np.cumsum(np.bincount(rank[of]))
    keep = np.zeros(m.n_rows, bool)
    keep[rows[reach[rank[of]] <= max(most, reach[0])]] = True
    part = m.only(keep)
    prompts, responses = part.live_prompts, part.used
    rows = part.live
    return part.edit(
        prompts=part.prompts.copy(prompts),
        responses=part.responses.copy(responses),
        response_prompt=np.searchsorted(prompts, part.response_prompt[responses]).astype(np.int32),
        row=np.searchsorted(rows, part.row),
        prompt=np.searchsorted(prompts, part.prompt).astype(np.int32),
        a=np.searchsorted(responses, part.a).astype(np.int32),
        b=np.searchsorted(responses, part.b).astype(np.int32),
        row_prompt=np.searchsorted(prompts, part.row_prompt[rows]).astype(np.int32),
        row_category=part.row_category[rows],
        row_annotator=part.row_annotator[rows],
        prompt_part=part.prompt_part[prompts],
        row_id=lambda i: part.row_id(int(rows[i])),
    )


def turned(m: Material, which: np.ndarray) -> Material:
    """The other side preferred in these comparisons, (E,) bool."""
    return m.edit(p=np.where(which, 1 - m.p, m.p))


def judged_again(m: Material, at: np.ndarray, turn: np.ndarray) -> Planted:
    """These comparisons once more, each a judgement of its own by the same annotator, turned round where `turn`."""
    first = m.n_rows
    rows = np.arange(first, first + len(at))
    p = np.where(turn, 1 - m.p[at], m.p[at])
    more = {"row": rows, "p": p, "weight": np.ones(len(at))}
    columns = {}
    for name in ("row", "prompt", "a", "b", "p", "tie", "weight", "source_a", "source_b", "first"):
        old = getattr(m, name)
        columns[name] = np.concatenate([old, np.asarray(more.get(name, old[at]), old.dtype)])
    for name in ("row_prompt", "row_category", "row_annotator"):
        old = getattr(m, name)
        columns[name] = np.concatenate([old, old[m.row[at]]])
    return m.edit(**columns), rows


def asked_again(m: Material, prompts: np.ndarray, texts: Sequence[str], part: int = -1) -> Planted:
    """One comparison of each of these prompts once more, under a prompt of its own with this text."""
    order = np.argsort(m.prompt, kind="stable")
    at = order[np.searchsorted(m.prompt[order], prompts)]
    made, rows = judged_again(m, at, np.zeros(len(at), bool))
    n, r, e = len(m.prompts), len(m.responses), len(m)
    number = np.arange(n, n + len(prompts), dtype=np.int32)
    prompt, a, b, row_prompt = made.prompt.copy(), made.a.copy(), made.b.copy(), made.row_prompt.copy()
    prompt[e:], row_prompt[m.n_rows :] = number, number
    a[e:], b[e:] = np.arange(r, r + len(at)), np.arange(r + len(at), r + 2 * len(at))
    return made.edit(
        prompts=m.prompts.copy(np.arange(n), texts),
        responses=m.responses.copy(np.concatenate([np.arange(r), m.a[at], m.b[at]])),
        response_prompt=np.concatenate([m.response_prompt, number, number]),
        prompt=prompt,
        a=a,
        b=b,
        row_prompt=row_prompt,
        prompt_part=np.concatenate([m.prompt_part, np.full(len(prompts), part, np.int8)]),
    ), rows


def reworded(text: str, share: float, draw: random.Random) -> str:
    """A share of the words, one at least where the share is not 0, replaced by made-up ones."""
    words = text.split(" ")
    for i in draw.sample(range(len(words)), min(len(words), max(1, round(share * len(words))) if share else 0)):
        words[i] = "".join(draw.choices("abcdeiklmnoprstu", k=draw.randint(3, 8)))
    return " ".join(words)


def some_prompts(m: Material, draw: Draw) -> Material:
    """Four prompts in five, so that no two clean copies are the same."""
    kept = np.zeros(len(m.prompts) + 1, bool)
    kept[m.live_prompts] = draw.random(len(m.live_prompts)) < 0.8
    return m.only(kept[m.row_prompt])


def coin_per_prompt(m: Material, draw: Draw) -> Material:
    return turned(m, (draw.random(len(m.prompts)) < 0.5)[m.prompt])


COIN = "all comparisons of a prompt turned round or left, by a coin per prompt"


def _some(draw: Draw, among: np.ndarray, n: float) -> np.ndarray:
    """n of these at random, at least one where there are any."""
    return draw.permutation(among)[: min(len(among), max(1, round(n)))]


def _towards(m: Material, sign: np.ndarray, points: float, draw: Draw) -> Planted:
    """Comparisons turned so that the side of positive sign, (E,), is preferred `points` more often than half the time."""
    losing = np.flatnonzero(m.decided & (sign * (m.p - 0.5) < 0))
    at = _some(draw, losing, points * int((m.decided & (sign != 0)).sum()))
    which = np.zeros(len(m), bool)
    which[at] = True
    return turned(m, which), np.unique(m.row[at])


# Faults, each with its clean copies.


def _longer(m: Material, points: float, draw: Draw) -> Planted:
    a, b = sizes(m)
    return _towards(m, np.sign(a - b), points, draw)


def _feature(m: Material, points: float, draw: Draw) -> Planted | None:
    at = m.sampled
    x = np.zeros((len(m), len(NAMES)))
    x[at] = surface_difference(m)
    common = np.flatnonzero((x[at] != 0).mean(axis=0) > 0.3)
    return _towards(m, np.sign(x[:, draw.choice(common)]), points, draw) if len(common) else None


def _first(m: Material, points: float, draw: Draw) -> Planted:
    return _towards(m, m.first.astype(float), points, draw)


def _order_by_coin(m: Material, draw: Draw) -> Material:
    return m.edit(first=(m.first * np.where(draw.random(m.n_rows) < 0.5, 1, -1)[m.row]).astype(np.int8))


def _as_foretold(m: Material, draw: Draw) -> Material:
    """Labels drawn from the model that the detector fits, without its share of flips."""

    def chance(of: Material) -> np.ndarray:
        margin = best_margin(of)
        at = of.sampled
        _rate, scale = flip_rate(margin, of.p[at], of.weight[at])
        out = np.full(len(of), 0.5)
        out[at] = expit(scale * margin)
        return out

    # Judgements of the same two responses share a draw: whoever differs from the others is a flip.
    low, unit = _units(m)
    toward_low = np.where(m.a == low, 1, -1)
    stated = m.compute("chance without flips", chance)
    mean = np.bincount(unit, np.where(toward_low > 0, stated, 1 - stated)) / np.bincount(unit)
    drawn = np.where(draw.random(len(mean)) < mean, 1, -1)[unit] * toward_low
    return m.edit(p=np.where(m.decided, (drawn > 0).astype(float), m.p))


def _units(m: Material) -> tuple[np.ndarray, np.ndarray]:
    """(E,) the lower of the two responses, and a number for the two."""
    low, high = np.minimum(m.a, m.b).astype(np.int64), np.maximum(m.a, m.b)
    return low, np.unique(low * len(m.responses) + high, return_inverse=True)[1]


def _flipped(m: Material, share: float, draw: Draw) -> Planted:
    which = np.zeros(len(m), bool)
    which[_some(draw, np.flatnonzero(m.decided), share * int(m.decided.sum()))] = True
    return turned(m, which), np.unique(m.row[which])


def _consistent(m: Material, draw: Draw) -> Material:
    part = some_prompts(m, draw)
    found, _ = contradicting(part, np.arange(len(m.prompts)), np.arange(len(m.responses)), part.annotator)
    keep = np.ones(m.n_rows, bool)
    keep[part.row[found]] = False
    return part.only(keep & (part.row_prompt >= 0))


def _contradicted(m: Material, share: float, draw: Draw) -> Planted:
    at = _some(draw, np.flatnonzero(m.decided & (m.a != m.b)), share * len(m))
    made, rows = judged_again(m, at, np.ones(len(at), bool))
    return made, np.concatenate([m.row[at], rows])


def _transitive(m: Material, draw: Draw) -> Material:
    merit = draw.random(len(m.responses))
    return m.edit(p=np.where(m.decided, (merit[m.a] > merit[m.b]).astype(float), m.p))


def _dealt_anew(m: Material, draw: Draw) -> Material:
    """Annotators dealt anew among the judgements of the same two responses (of a ranking, by its first two)."""
    rows, first = np.unique(m.row, return_index=True)
    unit = _units(m)[1][first]
    old, new = rows[np.argsort(unit, kind="stable")], rows[np.lexsort((draw.random(len(rows)), unit))]
    annotator = m.row_annotator.copy()
    annotator[new] = m.row_annotator[old]
    return m.edit(row_annotator=annotator)


def _dealt_anywhere(m: Material, draw: Draw) -> Material:
    annotator = m.row_annotator.copy()
    annotator[m.live] = draw.permutation(annotator[m.live])
    return m.edit(row_annotator=annotator)


def _careless(m: Material, share: float, draw: Draw) -> Planted | None:
    _, unit = _units(m)
    shared = m.decided & (np.bincount(unit)[unit] > 1) & (m.annotator >= 0)
    shared = shared if shared.any() else m.decided & (m.annotator >= 0)
    counts = np.bincount(m.annotator[shared], minlength=len(m.annotators))
    if counts.max(initial=0) < FEWEST:
        return None
    who = draw.choice(np.flatnonzero(counts >= FEWEST))
    mine = np.flatnonzero(m.decided & (m.annotator == who))
    which = np.zeros(len(m), bool)
    which[mine] = (draw.random(len(mine)) < share) & (draw.random(len(mine)) < 0.5)
    return turned(m, which), np.unique(m.row[m.annotator == who])


def _said_once(m: Material, draw: Draw) -> Material:
    part = some_prompts(m, draw)
    toward = np.where(part.a < part.b, part.p, 1 - part.p)
    keys = np.stack([np.minimum(part.a, part.b), np.maximum(part.a, part.b), part.annotator, 4 * toward], axis=1)
    _, index = np.unique(keys, axis=0, return_index=True)
    keep = np.zeros(m.n_rows, bool)
    keep[part.row[index]] = True
    return part.only(keep)


def _said_twice(m: Material, share: float, draw: Draw) -> Planted:
    at = _some(draw, np.arange(len(m)), share * len(m))
    return judged_again(m, at, np.zeros(len(at), bool))


def _words_of(draw: Draw) -> random.Random:
    return random.Random(int(draw.integers(2**32)))


def _one_of_each(m: Material, draw: Draw) -> Material:
    part = some_prompts(m, draw)
    first = near_prompts(m).cluster == np.arange(len(m.prompts))
    return part.only((part.row_prompt >= 0) & first[np.maximum(part.row_prompt, 0)])


def _asked_twice(m: Material, share: float, draw: Draw) -> Planted:
    prompts = _some(draw, np.unique(m.prompt).astype(np.int64), share * len(m.live_prompts))
    words = _words_of(draw)
    return asked_again(m, prompts, [reworded(t, REWORDED, words) for t in m.prompts.at(prompts)])


def _clusters_held(m: Material, draw: Draw) -> np.ndarray:
    """(P,) bool: a fifth of the prompts, whole clusters of near-duplicates."""
    return (draw.random(len(m.prompts)) < HELD)[near_prompts(m).cluster]


def _split_by_cluster(m: Material, draw: Draw) -> Material:
    return m.edit(prompt_part=_clusters_held(m, draw).astype(np.int8), parts=["train", "held out"])


def _leaked(m: Material, share: float, draw: Draw) -> Planted:
    asked = np.unique(m.prompt).astype(np.int64)
    held = int((m.prompt_part[m.live_prompts] == 1).sum())
    prompts = _some(draw, asked[m.prompt_part[asked] == 0], share * held)
    words = _words_of(draw)
    return asked_again(m, prompts, [reworded(t, REWORDED, words) for t in m.prompts.at(prompts)], part=1)


def _evaluation_set(m: Material, draw: Draw) -> Material:
    held = _clusters_held(m, draw)
    prompts = m.live_prompts[held[m.live_prompts]][:500]
    rest = m.only((m.row_prompt >= 0) & ~held[np.maximum(m.row_prompt, 0)])
    return rest.edit(against=(Outside("planted", m.prompts.at(prompts)),))


def _contaminated(m: Material, n: float, draw: Draw) -> Planted:
    prompts = _some(draw, m.live_prompts, n)
    words = _words_of(draw)
    texts = [reworded(t, REWORDED, words) for t in m.prompts.at(prompts)]
    return m.edit(against=(Outside("planted", [*m.against[0].prompts, *texts]),)), m.asking(prompts)[0]


def _categories_dealt(m: Material, draw: Draw) -> Material:
    """Each prompt's category dealt anew among the prompts."""
    first = m.first_rows[m.live_prompts]
    of = np.full(len(m.prompts) + 1, -1, np.int32)
    of[m.live_prompts] = draw.permutation(m.row_category[first])
    return m.edit(row_category=of[m.row_prompt])


def _emptied(m: Material, usual: float, draw: Draw) -> Planted | None:
    """A category of which one length is missing, where `usual` prompts should be."""
    size = np.array([len(t) for t in m.prompts.at(m.live_prompts)])
    tercile = np.searchsorted(np.quantile(size, [1 / 3, 2 / 3]), size, side="left")
    held = np.flatnonzero(np.bincount(tercile, minlength=3) >= len(size) / 10)
    if len(held) < 2 or 3 * usual > len(size) / 2:
        return None
    gone = draw.choice(held)
    of = np.full(len(m.prompts) + 1, -1, np.int32)
    of[m.live_prompts] = m.row_category[m.first_rows[m.live_prompts]]
    of[_some(draw, m.live_prompts[tercile != gone], 3 * usual)] = len(m.categories)
    return m.edit(row_category=of[m.row_prompt], categories=[*m.categories, "planted"]), NONE


def _half_as_target(m: Material, draw: Draw) -> Material:
    other = draw.random(len(m.prompts) + 1) < 0.5
    rest = m.only((m.row_prompt >= 0) & ~other[m.row_prompt])
    made = rest.edit(target=Outside("planted", m.prompts.at(m.live_prompts[other[m.live_prompts]])))
    made.memo["places of all"] = m.compute("places of all", prompt_map)
    return made


def _kind_missing(m: Material, share: float, draw: Draw) -> Planted | None:
    """A cluster of at least that share of all prompts is taken out of the data; the target keeps its own."""
    of_all = m.memo["places of all"]
    if of_all is None:
        return None
    sizes_of = np.bincount(of_all.cluster) / len(of_all.cluster)
    large = np.flatnonzero(sizes_of >= share)
    if not len(large):
        return None
    smallest = large[np.argsort(sizes_of[large], kind="stable")][:3]
    gone = np.zeros(len(m.prompts) + 1, bool)
    gone[of_all.numbers[of_all.cluster == draw.choice(smallest)]] = True
    return m.only((m.row_prompt >= 0) & ~gone[m.row_prompt]), NONE


def _no_remnants(m: Material, draw: Draw) -> Material:
    part = some_prompts(m, draw)
    bad = part.responses.derive(flags)[:, KINDS.index("template")]
    keep = np.ones(m.n_rows, bool)
    keep[part.row[bad[part.a] | bad[part.b]]] = False
    return part.only(keep & (part.row_prompt >= 0))


def _remnants(m: Material, share: float, draw: Draw) -> Planted:
    used = m.used
    which = _some(draw, used, share * len(used))
    pieces = ["<|im_end|>", " [/INST]", "\n\n### Response:", "\n\nHuman: And then?", "</s>"]
    texts = [t + str(draw.choice(pieces)) for t in m.responses.at(which)]
    keep = np.arange(len(m.responses))
    number = keep.copy()
    number[which] = len(keep) + np.arange(len(which))
    made = m.edit(
        responses=m.responses.copy(keep, texts),
        response_prompt=np.concatenate([m.response_prompt, m.response_prompt[which]]),
        a=number[m.a].astype(np.int32),
        b=number[m.b].astype(np.int32),
    )
    return made, np.unique(m.row[np.isin(m.a, which) | np.isin(m.b, which)])


def _no_annotators(m: Material) -> str | None:
    known = m.annotator[m.annotator >= 0]
    if len(np.unique(known)) < 2:
        return "fewer than two annotators are named"
    return None if np.bincount(known).max() >= FEWEST else f"no annotator made {FEWEST} comparisons"


def _nobody_shares(m: Material) -> str | None:
    _, unit = _units(m)
    known = m.decided & (m.annotator >= 0)
    shared = known & (np.bincount(unit[known], minlength=int(unit.max(initial=0)) + 1)[unit] > 1)
    if _no_annotators(m) is not None:
        return _no_annotators(m)
    counts = np.bincount(m.annotator[shared], minlength=1)
    return None if counts.max() >= FEWEST else f"no annotator shares {FEWEST} comparisons with others"


def _no_triples(m: Material) -> str | None:
    return None if first_finding(m, "cycles") is not None else "no three responses to a prompt were all compared"


def _few_prompts(m: Material) -> str | None:
    return None if len(m.live_prompts) >= 40 else "fewer than 40 prompts"


POINTS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
OUT = "four prompts in five at random, without what the detector finds"

FAULTS = (
    Fault("remnants of a chat template", "validity/template", "# % of the responses", (0.002, 0.005, 0.01, 0.02, 0.05),
          _remnants, _no_remnants, OUT),
    Fault("the longer response wins", "length/longer-wins", "# points of the comparisons above half", POINTS, _longer,
          coin_per_prompt, COIN),
    Fault("a surface feature wins", "shortcut/surface", "# points of the comparisons above half", POINTS, _feature,
          coin_per_prompt, COIN, most=2000),
    Fault("the first shown wins", "position/first-wins", "# points of the comparisons above half", POINTS, _first, _order_by_coin,
          "the order shown by a coin per judgement"),
    Fault("contradictions", "contradictions/exact", "# % of the comparisons", (0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
          _contradicted, _consistent, OUT),
    Fault("circles", "cycles/triples", "# % of the labels turned round", (0.02, 0.05, 0.1, 0.2, 0.4), _flipped, _transitive,
          "every comparison decided by a merit drawn for each response", _no_triples, most=5000),
    Fault("an annotator at random", "agreement/annotators", "# % of one annotator's judgements by coins",
          (0.25, 0.5, 0.75, 1.0), _careless, _dealt_anew, "annotators dealt anew among the judgements of the same two responses",
          _nobody_shares),
    Fault("an annotator at random whom nobody shares pairs with", "agreement/foretold",
          "# % of one annotator's judgements by coins", (0.5, 0.75, 1.0), _careless, _dealt_anywhere,
          "annotators dealt anew among all judgements", _no_annotators, most=2000),
    Fault("flipped labels", "noise/flipped", "# % of the labels turned round", (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
          _flipped, _as_foretold, "labels drawn from the fitted model without its share of flips", most=2000),
    Fault("near-duplicate prompts", "duplicates/prompts", "# % of the prompts", (0.01, 0.02, 0.05, 0.1, 0.2), _asked_twice,
          _one_of_each, OUT, most=5000, alone=True),
    Fault("judgements said twice", "duplicates/judgements", "# % of the comparisons", (0.005, 0.01, 0.02, 0.05), _said_twice,
          _said_once, OUT, most=2000),
    Fault("near-duplicates across a split", "leakage/split", "# % of the held-out prompts", (0.005, 0.01, 0.02, 0.05, 0.1),
          _leaked, _split_by_cluster, "a fifth of the prompts held out by whole clusters of near-duplicates",
          _few_prompts, most=5000, alone=True),
    Fault("prompts of an evaluation set", "against/prompts", "# prompts", (1, 2, 5, 10, 20), _contaminated, _evaluation_set,
          "a fifth of the prompts, whole clusters, taken out and used as the evaluation set", _few_prompts,
          most=5000, alone=True),
    Fault("an emptied cell", "coverage/cells", "# prompts expected in it", (5, 10, 15, 20, 30, 50), _emptied,
          _categories_dealt, "categories dealt anew among the prompts",
          lambda m: None if len(m.categories) > 1 else "no two categories are named"),
    Fault("a kind of prompt that the target has and the data lacks", "target/uncovered", "a cluster of # % of the prompts or more",
          (0.02, 0.05, 0.1, 0.2), _kind_missing, _half_as_target, "one half of the prompts as the target of the other",
          lambda m: None if len(m.live_prompts) >= 100 else "fewer than 100 prompts", most=2000, alone=True),
)  # fmt: skip
