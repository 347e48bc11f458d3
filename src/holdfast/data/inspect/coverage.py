"""What the prompts cover, what they leave empty, and how far the prompts a model is meant for lie from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binom, poisson
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from holdfast.data.inspect.finding import Finding, detector, share
from holdfast.data.inspect.length import characters
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import Interval, Resamples

TOPICS = 64
MOST_PROMPTS = 20_000  # prompts that clusters are fitted on
FINE = 30  # prompts in a small cluster, on average
LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True)
class Map:
    """Prompts by topic. numbers: (n,) the prompts looked at; places: (n, d) unit vectors; cluster: (n,) and its names;
    target, target_cluster: the same of the target prompts. words: TF-IDF of both, (n + t, V), of this vocabulary.
    """

    numbers: np.ndarray
    places: np.ndarray
    cluster: np.ndarray
    names: list[str]
    target: np.ndarray
    target_cluster: np.ndarray
    words: csr_array = field(repr=False)
    vocabulary: np.ndarray = field(repr=False)


def cluster_names(words: csr_array, cluster: np.ndarray, vocabulary: np.ndarray) -> list[str]:
    """Each cluster by the three words that stand out in it, of TF-IDF rows (n, V)."""
    mean = np.asarray(words.mean(axis=0)).ravel()
    names = []
    for c in range(int(cluster.max()) + 1):
        mine = np.asarray(words[np.flatnonzero(cluster == c)].mean(axis=0)).ravel()
        names.append(", ".join(vocabulary[t] for t in np.argsort(-(mine - mean), kind="stable")[:3]))
    return names


def prompt_map(material: Material) -> Map | None:
    """TF-IDF and a truncated SVD (or the embedder given), then k-means, of the prompts and the target prompts together. None of
    fewer than 20.
    """

    def make(m: Material) -> Map | None:
        numbers = m.live_prompts
        if len(numbers) > MOST_PROMPTS:
            numbers = np.sort(np.random.default_rng(m.seed).permutation(numbers)[:MOST_PROMPTS])
        texts = [text for _, batch in m.prompts.batches(numbers) for text in batch]
        target = m.target.prompts[:MOST_PROMPTS] if m.target else []
        if len(texts) < 20:
            return None
        vectoriser = TfidfVectorizer(
            stop_words=list(ENGLISH_STOP_WORDS), sublinear_tf=True, max_features=20_000, dtype=np.float32,
            min_df=2 if len(texts) > 100 else 1,
        )  # fmt: skip
        try:
            words = csr_array(vectoriser.fit_transform([*texts, *target]))
        except ValueError:
            return None
        n = min(TOPICS, min(words.shape) - 1)
        if n < 2:
            return None
        if m.embed is not None:
            placed = np.concatenate([m.prompts.embedded(numbers, m.embed), *([m.embed(target)] if target else [])])
        else:
            placed = TruncatedSVD(n, n_iter=3, random_state=m.seed).fit_transform(words)
        placed /= np.maximum(np.linalg.norm(placed, axis=1, keepdims=True), 1e-9)
        k = int(np.clip(round(np.sqrt(len(texts) / 6)), 4, 24))
        cluster = KMeans(k, n_init=3, random_state=m.seed).fit_predict(placed)
        vocabulary = vectoriser.get_feature_names_out()
        names = cluster_names(words, cluster, vocabulary)
        m_, t_ = slice(0, len(texts)), slice(len(texts), None)
        return Map(numbers, placed[m_], cluster[m_], names, placed[t_], cluster[t_], words, vocabulary)

    return material.compute("map", make)


def _places(material: Material) -> str:
    return "TF-IDF, truncated SVD" if material.embed is None else "the embedder given"


def _lengths(material: Material) -> tuple[np.ndarray, tuple[float, float]]:
    """(P,) tercile of each prompt's length among those there are, and its two edges."""
    size = material.prompts.derive(characters)
    edges = np.quantile(size[material.live_prompts], [1 / 3, 2 / 3])
    return np.searchsorted(edges, size, side="left"), (float(edges[0]), float(edges[1]))


def prompt_categories(material: Material) -> np.ndarray:
    """(P,) category code of each prompt, -1 where none was said."""
    return _of_prompt(material, material.row_category)


def _of_prompt(material: Material, codes: np.ndarray) -> np.ndarray:
    """(P,) what the first judgement of each prompt says, of codes (J,); -1 where there is none."""
    first = material.first_rows
    return np.where(first >= 0, codes[np.maximum(first, 0)], -1)


@detector("coverage", "text")
def coverage(material: Material) -> Iterator[Finding]:
    live = material.live_prompts
    if len(live) < 20:
        return
    tercile, edges = _lengths(material)
    category = prompt_categories(material)
    known = live[category[live] >= 0]
    if len(np.unique(category[known])) > 1:
        usual = np.bincount(category[known], minlength=len(material.categories)) / len(known)
        yield _cells(material, known, category, material.categories, usual, tercile, edges)
    for name, codes, values in material.columns:
        value = _of_prompt(material, codes)
        there = live[value[live] >= 0]
        if len(np.unique(value[there])) < 2:
            continue
        if len(np.unique(category[there])) > 1:  # category by value, then
            there = there[category[there] >= 0]
            names = [f"{c} / {v}" for c in material.categories for v in values]
            usual = np.outer(*(np.bincount(x[there], minlength=n) / len(there) for x, n in
                               ((category, len(material.categories)), (value, len(values))))).ravel()  # fmt: skip
            value = category * len(values) + value
        else:
            names, usual = values, np.bincount(value[there], minlength=len(values)) / max(len(there), 1)
        yield _cells(material, there, value, names, usual, tercile, edges, column=name)
    found = prompt_map(material)
    if found is None:
        return
    spread = np.linalg.eigvalsh(found.places.T @ found.places / len(found.places))
    spread = spread[spread > 1e-12] / spread.sum()
    vendi = float(np.exp(-(spread * np.log(spread)).sum()))
    sizes = np.bincount(found.cluster, minlength=len(found.names))
    order = np.argsort(-sizes, kind="stable")
    yield Finding(
        name="coverage/diversity",
        title="How many kinds of prompts",
        definition=f"Vendi score of the prompts in {found.places.shape[1]} dimensions ({_places(material)}): the "
        "effective number of unlike prompts, at most that many.",
        source="Friedman and Dieng, 2210.02410",
        figure=Interval(vendi),
        unit="number",
        expected=None,
        alarm="none: compare it with another dataset's",
        severity="note",
        verdict=f"{len(live):,} prompts are about as varied as {vendi:.1f} that have nothing in common. The "
        f"largest cluster is “{found.names[order[0]]}” with "
        f"{share(float(sizes[order[0]] / sizes.sum()))}.",
        facts={"clusters": [{"name": found.names[c], "prompts": int(sizes[c])} for c in order.tolist()]},
    )


def _cells(
    material: Material,
    known: np.ndarray,
    kind: np.ndarray,
    names: list[str],
    usual: np.ndarray,
    tercile: np.ndarray,
    edges: tuple[float, float],
    column: str | None = None,
) -> Finding:
    """Kinds (P,) of the prompts `known`, of these names and usual shares, by tercile of length."""
    counts = np.zeros((len(names), 3))
    np.add.at(counts, (kind[known], tercile[known]), 1.0)
    expected = usual[:, None] * counts.sum(axis=0, keepdims=True)
    what = "category" if column is None else f"category, {column}" if " / " in names[0] else column
    judged = np.bincount(material.row_prompt[material.live], minlength=len(material.prompts))
    weights = np.zeros((len(names), 3))
    squares = np.zeros((len(names), 3))
    np.add.at(weights, (kind[known], tercile[known]), judged[known])
    np.add.at(squares, (kind[known], tercile[known]), judged[known].astype(float) ** 2)
    # With many cells some are thin by chance: asked is a chance below one in a hundred over all cells together.
    cells = int((expected >= 5).sum())
    thin = (poisson.cdf(counts, expected) * max(cells, 1) < 0.01) & (counts < expected / 4)
    empty = thin & (counts == 0)
    listed = [
        {
            "category": names[c], "length": LENGTHS[t], "prompts": int(counts[c, t]), "expected": float(expected[c, t]),
            "judgements": int(weights[c, t]), "effective": float(weights[c, t] ** 2 / max(squares[c, t], 1e-9)),
        }
        for c in range(len(names)) for t in range(3) if usual[c] > 0
    ]  # fmt: skip
    named = [
        f"{names[c]}, {LENGTHS[t]} prompts ({int(counts[c, t])} where {expected[c, t]:.0f} would be usual)"
        for c, t in np.argwhere(thin)
    ]
    share_thin = float(expected[thin].sum() / counts.sum())
    return Finding(
        name="coverage/cells" if column is None else f"coverage/cells:{column}",
        title="Cells that are empty or nearly so" + ("" if column is None else f", by {column}"),
        definition=f"Cells of {what} by length of the prompt (terciles) that hold less than a quarter of what "
        "these would give if they had nothing to do with each other, and that few not by chance (Poisson, 1 % over all "
        "cells). The figure is the share of prompts expected there.",
        figure=Interval(share_thin),
        unit="share",
        expected=0.0,
        alarm="note: a thin cell; warning: an empty one; serious: empty cells in which 10 % of the prompts would be",
        severity="serious"
        if expected[empty].sum() / counts.sum() >= 0.1
        else "warning"
        if empty.any()
        else "note"
        if thin.any()
        else "good",
        verdict=f"{int(empty.sum())} of {cells} cells are empty and {int(thin.sum() - empty.sum())} thin: "
        f"{'; '.join(named[:4])}{' and more' if len(named) > 4 else ''}."
        if thin.any()
        else f"None of {cells} cells of {what} by length is empty or thin.",
        remedy="Collect there, or do not claim to have trained for it.",
        facts={
            "cells": listed,
            "lengths": {"short": f"up to {edges[0]:.0f} characters", "medium": f"up to {edges[1]:.0f}", "long": "more"},
        },
    )


@detector("target", "text", "target")
def target(material: Material) -> Iterator[Finding]:
    """Do the dataset's prompts cover those the model is meant for?"""
    assert material.target is not None
    found = prompt_map(material)
    if found is None or len(found.target) < 10:
        return
    n, t = len(found.numbers), len(found.target)
    tested: list[dict[str, Any]] = []
    groups: list[tuple[str, str, int, int, np.ndarray]] = []
    both, words = np.concatenate([found.places, found.target]), found.words
    fine = KMeans(int(np.clip((n + t) // FINE, 4, 200)), n_init=1, random_state=material.seed).fit_predict(both)
    for kind, cluster in (("cluster", np.concatenate([found.cluster, found.target_cluster])), ("small cluster", fine)):
        k = int(cluster.max()) + 1
        have, want = (np.bincount(part, minlength=k) for part in (cluster[:n], cluster[n:]))
        named = found.names if kind == "cluster" else cluster_names(words, fine, found.vocabulary)
        for c in range(k):
            groups.append((kind, named[c], int(have[c]), int(want[c]), cluster[n:] == c))
    names = {c: i for i, c in enumerate(material.categories)}
    said = list(material.target.categories[:t]) if material.target.categories else []
    if said and names and set(said) & set(names):
        counts = np.bincount(np.maximum(prompt_categories(material)[material.live_prompts], 0), minlength=len(names))
        scale = n / len(material.live_prompts)
        for name in sorted({c for c in said if c is not None}):
            mine = np.array([c == name for c in said])
            groups.append(
                ("category", name, int(counts[names[name]] * scale) if name in names else 0, int(mine.sum()), mine)
            )
    empty = np.zeros(t, bool)
    for kind, name, h, w, mine in groups:
        # Given their sum, h is binomial if both come from the same mixture of prompts.
        chance = float(binom.cdf(h, h + w, n / (n + t))) if h + w else 1.0
        lacking = chance * len(groups) < 0.01 and h * t < 0.25 * w * n
        if lacking or kind != "small cluster":
            tested.append({"kind": kind, "name": name, "prompts": h, "target prompts": w, "lacking": bool(lacking)})
        if lacking:
            empty |= mine
    closest = nearest(found.target, found.places)
    usual = nearest(found.places, found.places, own=True)
    far = closest < np.quantile(usual, 0.05)
    figure = Resamples(np.arange(t), times=material.times, seed=material.seed).ratio(empty.astype(float), np.ones(t))
    lacking_names = [
        f"{g['name']} ({g['prompts']} here, {g['target prompts']} of {t} in the target)" for g in tested if g["lacking"]
    ]
    listed = sorted(np.flatnonzero(empty | far).tolist(), key=lambda i: (not empty[i], closest[i]))[:50]
    yield Finding(
        name="target/uncovered",
        title="Target prompts that the data does not cover",
        definition="Share of the target prompts in clusters (large and small, of target and dataset together) or categories of "
        "which the dataset holds less than a quarter of what the target's share would give, and that "
        "few not by chance (binomial, 1 % over all of them).",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="warning: any such cluster or category; serious: with 10 % of the target prompts",
        severity="serious" if (figure.value or 0) >= 0.1 else "warning" if lacking_names else "good",
        verdict=f"The dataset hardly covers {'; '.join(lacking_names[:5])}."
        if lacking_names
        else f"Every cluster of the target is covered; {share(float(far.mean()))} of its prompts lie further "
        "from the data than 95 % of the data's own (5 % would be usual).",
        remedy="Collect comparisons there; the uncovered prompts are listed.",
        facts={
            "groups": tested,
            "further than 95 % of the data's own": float(far.mean()),
            "uncovered prompts": [
                {"prompt": material.target.prompts[i][:200], "similarity": float(closest[i])} for i in listed
            ],
        },
    )


def nearest(of: np.ndarray, among: np.ndarray, own: bool = False) -> np.ndarray:
    """(n,) cosine similarity to the nearest other."""
    out = np.empty(len(of))
    for start in range(0, len(of), 1024):
        similarity = of[start : start + 1024] @ among.T
        if own:
            mine = np.arange(len(similarity))
            similarity[mine, start + mine] = -np.inf
        out[start : start + len(similarity)] = similarity.max(axis=1)
    return out
