"""The same thing twice: prompts, responses and statements; and across a split, or in an evaluation set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.data.inspect.finding import Finding, Rows, detector, graded, share
from holdfast.data.inspect.material import Material, Texts
from holdfast.data.inspect.near import Near, across, near_prompts, near_responses, ngrams, whole
from holdfast.data.inspect.outside import Outside
from holdfast.data.inspect.stats import Interval, Resamples

ALIKE = 0.9  # cosine from which two prompts mean the same
MOST = 20_000  # prompts whose meanings are compared
RUN = 13  # words in a row that a text must share with an evaluation set (Brown et al. 2020, appendix C)
NEAR = "words and pairs of words, Jaccard similarity at least 0.7"


def _of_prompts(material: Material, found: np.ndarray, of: np.ndarray) -> Interval:
    """Share of prompts `of` that are in `found`, (P,) bool each, with the bootstrap over prompts."""
    numbers = np.flatnonzero(of)
    shares = Resamples(numbers, times=material.times, seed=material.seed)
    return shares.ratio(found[numbers].astype(float), np.ones(len(numbers)))


@detector("duplicates", "text")
def duplicates(material: Material) -> Iterator[Finding]:
    near = near_prompts(material)
    alone = np.bincount(near.cluster, minlength=len(near.cluster))[near.cluster] == 1
    live = np.zeros(len(material.prompts), bool)
    live[material.live_prompts] = True
    figure = _of_prompts(material, ~alone & live, live)
    value = figure.value or 0.0
    exact = int((near.similarity == 1).sum())
    rows, pair = material.asking(near.other)
    clusters = len(np.unique(near.cluster[~alone & live]))
    yield Finding(
        name="duplicates/prompts",
        title="Prompts that are near-duplicates of others",
        definition=f"Share of the prompts that nearly equal another prompt ({NEAR}); a prompt judged several times "
        "counts once.",
        source="Broder 1997; Lee et al., 2107.06499",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 5 % of the prompts or more; serious: 20 % or more",
        severity=graded(value, warning=0.05, serious=0.2, note=bool(value)),
        verdict=f"{int((~alone & live).sum()):,} of {int(live.sum()):,} prompts ({share(value)}) are "
        f"near-duplicates, in {clusters:,} clusters; a split by prompt can put them on both sides."
        if value
        else "No prompt is a near-duplicate of another.",
        remedy="Split by cluster, or keep one prompt of each.",
        rows=Rows.ranked(rows, near.similarity[pair], "similarity of the prompts", material.first_rows[near.one[pair]]),
        facts={
            "pairs listed": len(near.one),
            "of them the same but for case and punctuation": exact,
            "clusters": clusters,
        },
    )
    yield from _semantic(material, near)
    near = near_responses(material)
    prompt = material.response_prompt
    within = prompt[near.one] == prompt[near.other]
    used = np.zeros(len(material.responses), bool)
    used[material.used] = True
    copied = np.zeros(len(material.responses), bool)
    copied[near.one[~within]] = True
    copied[near.other[~within]] = True
    numbers = np.flatnonzero(used)
    figure = Resamples(prompt[numbers], times=material.times, seed=material.seed).ratio(
        copied[numbers].astype(float), np.ones(len(numbers))
    )
    value = figure.value or 0.0
    rows, pair = material.naming(near.other)
    said, of = material.naming(near.one)
    first = np.full(len(near.one), -1, np.int64)
    first[of[::-1]] = said[::-1]
    yield Finding(
        name="duplicates/responses",
        title="Responses given to several prompts",
        definition=f"Share of the responses that nearly equal a response to another prompt ({NEAR}).",
        source="Lee et al., 2107.06499",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 10 % of the responses or more; serious: 30 % or more",
        severity=graded(value, warning=0.1, serious=0.3, note=bool(len(near.one))),
        verdict=f"{share(value)} of the responses are given to more than one prompt; {int(within.sum()):,} pairs "
        "of near-duplicates answer the same prompt.",
        remedy="Canned answers teach a style and not an answer: cap them, or drop the pairs whose two "
        "responses nearly equal each other.",
        rows=Rows.ranked(rows, near.similarity[pair], "similarity of the responses", first[pair]),
        facts={"pairs within a prompt": int(within.sum()), "pairs across prompts": int((~within).sum())},
    )
    if len(material):
        keys = np.stack(
            [np.minimum(material.a, material.b), np.maximum(material.a, material.b), material.annotator], axis=1
        )
        toward = np.where(material.a < material.b, material.p, 1 - material.p)
        keys = np.concatenate([keys.astype(np.float64), toward[:, None]], axis=1)
        _, index, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        again = index[group.ravel()] != np.arange(len(material))
        figure = material.resamples.ratio(material.weight * again, material.weight)
        value = figure.value or 0.0
        at = np.flatnonzero(again)
        yield Finding(
            name="duplicates/judgements",
            title="Judgements said twice",
            definition="Share of the comparisons that repeat another: same responses, same annotator (or none named), "
            "same preference.",
            figure=figure,
            unit="share",
            expected=0.0,
            alarm="note: any; warning: 1 % or more; serious: 10 % or more",
            severity=graded(value, warning=0.01, serious=0.1, note=bool(value)),
            verdict=f"{len(at):,} comparisons ({share(value, 2)}) repeat another."
            if len(at)
            else "No comparison repeats another.",
            remedy="Two unnamed annotators may have said the same; if it is a copy, drop it: it counts twice in "
            "training.",
            rows=Rows.ranked(material.row[at], np.ones(len(at)), "said before", material.row[index[group.ravel()[at]]]),
        )


def alike(material: Material) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(one, other, similarity), each (n,): pairs of prompts, up to MOST of them, whose vectors have a cosine of at least ALIKE."""

    def find(m: Material) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert m.embed is not None
        numbers = m.live_prompts
        if len(numbers) > MOST:
            numbers = np.sort(np.random.default_rng(m.seed).permutation(numbers)[:MOST])
        vectors = m.prompts.embedded(numbers, m.embed)
        pairs = []
        for start in range(0, len(numbers), 1024):
            close = vectors[start : start + 1024] @ vectors.T
            i, j = np.nonzero(close >= ALIKE)
            keep = i + start < j
            pairs.append(np.stack([numbers[i[keep] + start], numbers[j[keep]], close[i[keep], j[keep]]], axis=1))
        found = np.concatenate(pairs)
        return found[:, 0].astype(np.int64), found[:, 1].astype(np.int64), found[:, 2]

    return material.compute("alike", find)


def _semantic(material: Material, near: Near) -> Iterator[Finding]:
    """Prompts that mean the same in other words, where an embedder is given."""
    if material.embed is None:
        return
    one, other, similarity = alike(material)
    new = near.cluster[one] != near.cluster[other]
    one, other, similarity = one[new], other[new], similarity[new]
    live = np.zeros(len(material.prompts), bool)
    live[material.live_prompts] = True
    found = np.zeros(len(live), bool)
    found[one] = found[other] = True
    figure = _of_prompts(material, found, live)
    value = figure.value or 0.0
    rows, pair = material.asking(other)
    yield Finding(
        name="duplicates/semantic",
        title="Prompts that mean the same in other words",
        definition=f"Share of the prompts with another one whose vector, by the embedder given, has a cosine of at least {ALIKE} "
        f"with theirs, near-duplicates in wording left out (up to {MOST:,} prompts, at random).",
        source="Abbas et al., 2303.09540",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 10 % of the prompts or more. How near is too near hangs on the embedder: read some",
        severity=graded(value, warning=0.1, serious=1.1, note=bool(value)),
        verdict=f"{int(found.sum()):,} prompts ({share(value)}) have another of the same meaning, in {len(one):,} pairs."
        if value
        else "No prompt means the same as another, as far as the embedder can tell.",
        remedy="Split so that these stay together, or keep one of each.",
        rows=Rows.ranked(rows, similarity[pair], "cosine of the prompts", material.first_rows[one[pair]]),
        facts={"pairs": len(one)},
    )


@detector("leakage", "text", "split")
def leakage(material: Material) -> Iterator[Finding]:
    near = near_prompts(material)
    part = material.prompt_part
    inside = part >= 0
    held = (part > 0) & inside
    cross = inside[near.one] & inside[near.other] & ((part[near.one] == 0) != (part[near.other] == 0))
    one, other, similarity = near.one[cross], near.other[cross], near.similarity[cross]
    left = np.where(part[one] == 0, other, one)
    right = np.where(part[one] == 0, one, other)
    # A cluster may cross although the pair that joins it was not listed.
    train_clusters = np.unique(near.cluster[part == 0])
    leaked = held & np.isin(near.cluster, train_clusters)
    more = np.setdiff1d(np.flatnonzero(leaked), left)
    figure = _of_prompts(material, leaked, held)
    value = figure.value or 0.0
    first = material.first_rows
    rows, pair = material.asking(np.concatenate([left, more]))
    near_of = np.concatenate([similarity, np.full(len(more), 0.7)])
    source = np.concatenate([first[right], np.full(len(more), -1)])
    yield Finding(
        name="leakage/split",
        title="Held-out prompts that are near-duplicates of training prompts",
        definition=f"Share of the prompts outside `{material.parts[0]}` whose cluster of near-duplicates reaches "
        f"into it ({NEAR}).",
        source="Lee et al., 2107.06499",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 0.5 % of the held-out prompts or more; serious: 5 % or more",
        severity=graded(value, warning=0.005, serious=0.05, note=bool(value)),
        verdict=f"{int(leaked.sum()):,} of {int(held.sum()):,} held-out prompts ({share(value)}) are "
        "near-duplicates of training prompts: what they measure was seen in training."
        if value
        else f"None of {int(held.sum()):,} held-out prompts is a near-duplicate of a training prompt.",
        remedy="Split by cluster of near-duplicates, or drop the held-out ones.",
        rows=Rows.ranked(rows, near_of[pair], "similarity of the prompts", source[pair]),
        facts={"pairs": int(cross.sum())},
    )
    if material.embed is None:
        return
    one, other, similarity = alike(material)
    cross = (
        inside[one]
        & inside[other]
        & ((part[one] == 0) != (part[other] == 0))
        & (near.cluster[one] != near.cluster[other])
    )
    one, other, similarity = one[cross], other[cross], similarity[cross]
    left, right = np.where(part[one] == 0, other, one), np.where(part[one] == 0, one, other)
    leaked = np.zeros(len(part), bool)
    leaked[left] = True
    figure = _of_prompts(material, leaked, held)
    value = figure.value or 0.0
    rows, pair = material.asking(left)
    yield Finding(
        name="leakage/semantic",
        title="Held-out prompts that mean the same as training prompts",
        definition=f"Share of the prompts outside `{material.parts[0]}` with one in it whose vector, by the embedder given, has a "
        f"cosine of at least {ALIKE} with theirs, near-duplicates in wording left out.",
        source="Abbas et al., 2303.09540",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 5 % of the held-out prompts or more",
        severity=graded(value, warning=0.05, serious=1.1, note=bool(value)),
        verdict=f"{int(leaked.sum()):,} held-out prompts ({share(value)}) mean the same as a training prompt."
        if value
        else "No held-out prompt means the same as a training prompt, as far as the embedder can tell.",
        remedy="Split by cluster of meaning, or read what is measured on them with care.",
        rows=Rows.ranked(rows, similarity[pair], "cosine of the prompts", material.first_rows[right[pair]]),
    )


@detector("against", "text", "against")
def against(material: Material) -> Iterator[Finding]:
    for outside in material.against:
        yield from _against(material, outside)


def _against(material: Material, outside: Outside) -> Iterator[Finding]:
    theirs = Texts.of(outside.prompts)
    mine, other, similarity = across(material.prompts, material.live_prompts, theirs)
    hit = len(np.unique(other))
    n = len(outside.prompts)
    value = hit / n
    asked, pair = material.asking(mine)
    yield Finding(
        name=f"against/prompts:{outside.name}",
        title=f"Prompts that are in {outside.name}",
        definition=f"Share of the {n:,} prompts of {outside.name} of which the dataset holds a near-duplicate "
        f"({NEAR}).",
        source="Brown et al., 2005.14165, appendix C; Yang et al., 2311.04850",
        figure=Resamples(np.arange(n), times=material.times, seed=material.seed).ratio(
            np.isin(np.arange(n), other).astype(float), np.ones(n)
        ),
        unit="share",
        expected=0.0,
        alarm="warning: any; serious: 5 % of its prompts or more",
        severity="serious" if value >= 0.05 else "warning" if hit else "good",
        verdict=f"{hit:,} of the {n:,} prompts of {outside.name} ({share(value)}) are in the dataset, under "
        f"{len(np.unique(mine)):,} prompts. What is measured on them is no longer unseen."
        if hit
        else f"None of the {n:,} prompts of {outside.name} is in the dataset.",
        remedy="Drop these rows before training, or do not report that evaluation set.",
        rows=Rows.ranked(asked, similarity[pair], f"similarity to a prompt of {outside.name}"),
    )
    runs = [ngrams(text, RUN) for text in (*outside.prompts, *outside.chosen)]
    pool = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)
    if len(pool):
        hits, shared = _sharing(material.responses, material.used, pool)
        prompts, theirs_shared = _sharing(material.prompts, material.live_prompts, pool)
        rows = np.concatenate([material.naming(hits)[0], material.asking(prompts)[0]])
        found = np.union1d(shared, theirs_shared)
        touched = sum(bool(np.isin(r, found).any()) for r in runs[:n])
        yield Finding(
            name=f"against/runs:{outside.name}",
            title=f"Wording of {outside.name}",
            definition=f"Share of the prompts of {outside.name} that share a run of {RUN} words with a prompt or "
            "response of the dataset.",
            source="Brown et al., 2005.14165, appendix C",
            figure=Interval(touched / n),
            unit="share",
            expected=0.0,
            alarm="note: any; warning: 1 % of its prompts or more; serious: 10 % or more",
            severity=graded(touched / n, warning=0.01, serious=0.1, note=bool(len(found))),
            verdict=f"{touched:,} of its prompts, and {len(hits):,} responses and {len(prompts):,} prompts here, "
            f"share a run of {RUN} words."
            if len(found)
            else f"Nothing here shares a run of {RUN} words with it.",
            remedy="Runs that many texts share are boilerplate; read the rows before dropping any.",
            rows=Rows.ranked(rows, np.ones(len(rows)), "shares a run of words"),
        )
    if outside.chosen and len(material):
        chosen = Texts.of(outside.chosen)
        lost = np.where(material.p > 0.5, material.b, material.a)
        at = np.flatnonzero(material.decided)
        known = np.isin(material.responses.derive(whole)[lost[at]], chosen.derive(whole))
        rows = material.row[at[known]]
        yield Finding(
            name=f"against/reversed:{outside.name}",
            title=f"Rejected here, chosen in {outside.name}",
            definition=f"Comparisons whose rejected response is, word for word, one that {outside.name} prefers.",
            figure=Interval(float(len(rows))),
            unit="count",
            expected=0.0,
            alarm="warning: any",
            severity="warning" if len(rows) else "good",
            verdict=f"{len(rows):,} comparisons reject a response that {outside.name} prefers."
            if len(rows)
            else f"Nothing that {outside.name} prefers is rejected here.",
            remedy="Either one label is wrong, or the two were judged by different standards.",
            rows=Rows.ranked(rows, np.ones(len(rows)), "preferred there"),
        )


def _sharing(texts: Texts, numbers: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts that share a run of words with the pool of hashes (sorted), and the hashes they share."""
    hits, shared = [], []
    for start, batch in texts.batches(numbers):
        for i, text in enumerate(batch, start):
            runs = ngrams(text, RUN)
            if not len(runs):
                continue
            place = np.minimum(np.searchsorted(pool, runs), len(pool) - 1)
            same = pool[place] == runs
            if same.any():
                hits.append(int(numbers[i]))
                shared.append(np.unique(runs[same]))
    return np.array(hits, np.int64), np.unique(np.concatenate(shared)) if shared else np.zeros(0, np.uint64)
