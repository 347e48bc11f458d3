"""How far do shortcuts go? Small models that cannot understand anything, asked on prompts they have not seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import diags_array
from sklearn.linear_model import LogisticRegression

from holdfast.data.inspect.finding import Finding, Rows, between, detector, outside_band
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.probe import (
    FOLDS,
    held_out_margin,
    sampled_folds,
    source_difference,
    surface_difference,
    topics,
    words,
)
from holdfast.data.inspect.stats import Interval, SignedAUC, logistic
from holdfast.data.inspect.surface import NAMES, WORD

ALARM = "warning: the whole interval is above 0.60; serious: above 0.75"
SHOWN = 12


def _auc(material: Material, margin: np.ndarray) -> Interval:
    """AUC of margins over the sampled comparisons, with the shared bootstrap."""
    at = material.sampled
    of = SignedAUC(margin, material.p[at])
    return material.resamples.of(lambda w: of(w[at] * material.weight[at]), times=200)


def _ceiling(material: Material, margin: np.ndarray, **said: object) -> Finding:
    at = material.sampled
    figure = _auc(material, margin)
    toward = margin * np.sign(material.p[at] - 0.5)
    right = np.flatnonzero(toward > 0)
    return Finding(
        figure=figure,
        unit="number",
        expected=0.5,
        alarm=ALARM,
        severity=outside_band(figure, (0.0, 0.60), (0.0, 0.75)),
        rows=Rows.ranked(material.row[at[right]], toward[right], "how surely the shortcut has it right"),
        **said,  # type: ignore[arg-type]
    )


@detector("shortcut", "text", "comparisons")
def shortcut(material: Material) -> Iterator[Finding]:
    at = material.sampled
    x = surface_difference(material)
    margin = held_out_margin(material, x)
    scale = np.maximum(np.sqrt(np.mean(x**2, axis=0)), 1e-9)
    weights = logistic(x / scale, material.p[at], material.weight[at], ridge=10.0).weights
    top = np.argsort(-np.abs(weights), kind="stable")[:SHOWN]
    looked = (
        ""
        if len(at) == len(material)
        else f" (on {len(at):,} of {len(material):,} comparisons, whole prompts at random)"
    )
    figure = _auc(material, margin)
    yield _ceiling(
        material,
        margin,
        name="shortcut/surface",
        title="How far the surface goes",
        definition="Out-of-fold AUC (5 folds by prompt) of a ridge logistic model on the differences of "
        f"{len(NAMES)} surface features: length, lists, code, punctuation, refusals and so on{looked}.",
        source="Poliak et al. 2018, hypothesis-only baselines",
        verdict="Without reading a word for its meaning, a model ranks unseen pairs with an AUC of "
        f"{between(figure, 'number')}.",
        remedy="An accuracy means something only above this. Counter it by balancing, re-weighing, or a nuisance term.",
        facts={"weights": {NAMES[k]: float(weights[k]) for k in top}},
    )
    found = words(material)
    if found is not None:
        difference = found.matrix[found.a] - found.matrix[found.b]
        fold = sampled_folds(material)
        margin = np.zeros(len(at))
        turn = np.where(np.arange(len(at)) % 2, -1.0, 1.0)  # only so that scikit-learn sees both classes
        turned = diags_array(turn) @ difference
        label = turn * (material.p[at] - 0.5) > 0
        weight = material.weight[at] * 2 * np.abs(material.p[at] - 0.5)
        for k in range(FOLDS):
            train, test = (fold != k) & (weight > 0), fold == k
            if len(np.unique(label[train])) < 2 or not test.any():
                continue
            model = LogisticRegression(C=10.0, fit_intercept=False, solver="liblinear", max_iter=100)
            model.fit(turned[train], label[train], sample_weight=weight[train])
            margin[test] = difference[test] @ model.coef_[0]
            coefficients = model.coef_[0]
        order = np.argsort(coefficients, kind="stable")
        figure = _auc(material, margin)
        yield _ceiling(
            material,
            margin,
            name="shortcut/words",
            title="How far a bag of words goes",
            definition="Out-of-fold AUC (5 folds by prompt) of a logistic model on TF-IDF differences of the "
            f"responses' words, the prompt never seen{looked}.",
            source="Poliak et al. 2018",
            verdict="The responses' words alone, in any order and to any prompt, rank unseen pairs with an AUC of "
            f"{between(figure, 'number')}.",
            remedy="Words that give a preference away are listed; a model that has only learned them fails on "
            "other data.",
            facts={
                "for": [found.vocabulary[k] for k in order[::-1][:SHOWN]],
                "against": [found.vocabulary[k] for k in order[:SHOWN]],
            },
        )
    if len(material.sources) > 1:
        margin = held_out_margin(material, source_difference(material), ridge=1.0)
        figure = _auc(material, margin)
        yield _ceiling(
            material,
            margin,
            name="shortcut/source",
            title="How far it goes to know who wrote them",
            definition="Out-of-fold AUC (5 folds by prompt) of a model that sees nothing but the names of the two "
            "sources.",
            source="Bradley and Terry 1952",
            verdict="Knowing only which model wrote each response ranks unseen pairs with an AUC of "
            f"{between(figure, 'number')}.",
            remedy="A model can learn to recognise a writer's style. Test it on pairs of responses by the same source.",
        )
    yield from _prompt_needed(material, x)


def _overlaps(prompts: list[str], responses: list[str]) -> np.ndarray:
    """(n, 4): shares of the prompt's words in the response, of the response's in the prompt, of the prompt's in the
    response's first forty words, and of the last twenty words of the prompt in the response.
    """
    out = np.zeros((len(prompts), 4))
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        asked = [w.lower() for w in WORD.findall(prompt)]
        said = [w.lower() for w in WORD.findall(response)]
        a, s, head, tail = set(asked), set(said), set(said[:40]), set(asked[-20:])
        out[i] = (
            len(a & s) / max(len(a), 1),
            len(a & s) / max(len(s), 1),
            len(a & head) / max(len(a), 1),
            len(tail & s) / max(len(tail), 1),
        )
    return out


def _prompt_needed(material: Material, surface: np.ndarray) -> Iterator[Finding]:
    """Does a probe that may compare response and prompt gain by it, beyond one given another prompt?"""
    at = material.sampled
    asked = np.unique(material.prompt[at])
    if len(asked) < 20:
        return
    shuffled = np.random.default_rng(material.seed).permutation(len(asked))
    # A permuted prompt stands for another everywhere, so that the two probes differ in nothing else.
    base = np.concatenate([surface, topics(material)], axis=1)
    gains = []
    for take in (np.arange(len(asked)), shuffled):
        given = asked[take[np.searchsorted(asked, material.prompt[at])]]
        parts = []
        for start in range(0, len(at), 2048):
            batch = slice(start, start + 2048)
            prompts = material.prompts.at(given[batch].astype(np.int64))
            a, b = (material.responses.at(side[at[batch]].astype(np.int64)) for side in (material.a, material.b))
            parts.append(_overlaps(prompts, a) - _overlaps(prompts, b))
        gains.append(held_out_margin(material, np.concatenate([base, np.concatenate(parts)], axis=1)))
    mine, other = (SignedAUC(margin, material.p[at]) for margin in gains)

    def gain(w: np.ndarray) -> float | None:
        weight = w[at] * material.weight[at]
        one, two = mine(weight), other(weight)
        return None if one is None or two is None else one - two

    figure = material.resamples.of(gain, times=200)
    seen = figure.lo is not None and figure.lo > 0
    yield Finding(
        name="shortcut/prompt-gain",
        title="What knowing the prompt adds",
        definition="Out-of-fold AUC of a model on surface, topics and how much of the prompt's wording the "
        "response takes up, less the AUC of the same model given the prompts in another order.",
        figure=figure,
        unit="number",
        expected=None,
        alarm="none: a small model that gains nothing does not prove that the prompt is not needed",
        severity="note",
        verdict=(
            f"A small model gains {between(figure, 'number')} AUC by seeing the right prompt."
            if seen
            else "A small model gains nothing it could show by seeing the right prompt: "
            f"{between(figure, 'number')} AUC."
        ),
        facts={"with the prompt": mine(material.weight[at]), "with another prompt": other(material.weight[at])},
    )
