"""Does the data hold what the policy itself would say? A classifier that tries to tell them apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from holdfast.data.inspect.finding import Finding, Rows, between, detector, outside_band
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.near import whole
from holdfast.data.inspect.stats import Resamples, TwoClassAUC, folds

MOST = 5000  # texts of either side
FOLDS = 5
SHOWN = 12


@detector("samples", "text", "samples")
def samples(material: Material) -> Iterator[Finding]:
    assert material.samples is not None
    rng = np.random.default_rng(material.seed)
    used = np.sort(rng.permutation(material.used)[:MOST])
    taken = np.sort(rng.permutation(len(material.samples.responses))[:MOST])
    if min(len(used), len(taken)) < 50:
        return
    theirs = [material.samples.responses[i] for i in taken.tolist()]
    texts = [*material.responses.at(used), *theirs]
    # Texts of one prompt are on one side of a fold, whichever of the two files they come from.
    asked = whole([material.samples.prompts[i] for i in taken.tolist()])
    group = np.concatenate([material.prompts.derive(whole)[material.response_prompt[used]], asked])
    label = np.arange(len(texts)) >= len(used)
    try:
        vectoriser = TfidfVectorizer(
            token_pattern=r"(?u)\b\w+\b|[^\w\s]", sublinear_tf=True, max_features=30_000, min_df=2, dtype=np.float32
        )
        words = csr_array(vectoriser.fit_transform(texts))
    except ValueError:
        return
    fold = folds(group, FOLDS, material.seed)
    margin, weights = np.zeros(len(texts)), np.zeros(words.shape[1])
    for k in range(FOLDS):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(np.unique(label[train])) < 2 or not len(test):
            return
        model = LogisticRegression(C=10.0, solver="liblinear", class_weight="balanced").fit(words[train], label[train])
        margin[test] = model.decision_function(words[test])
        weights += model.coef_[0] / FOLDS
    told = TwoClassAUC(margin, label)
    figure = Resamples(group, times=min(material.times, 200), seed=material.seed).of(told)
    names = vectoriser.get_feature_names_out()
    order = np.argsort(weights, kind="stable")
    own = margin[: len(used)]
    unlike = np.argsort(own, kind="stable")[: max(20, len(used) // 20)]
    rows, place = material.naming(used[unlike])
    yield Finding(
        name="samples/told-apart",
        title="How well the policy's own samples are told from the data",
        definition=f"Out-of-fold AUC ({FOLDS} folds by prompt) of a logistic model on TF-IDF words and marks that tells "
        f"{len(taken):,} samples of {material.samples.name} from {len(used):,} responses of the dataset.",
        source="classifier two-sample test, Lopez-Paz and Oquab, 1610.06545",
        figure=figure,
        unit="number",
        expected=0.5,
        alarm="warning: the whole interval is above 0.9",
        severity=outside_band(figure, (0.0, 0.9), (-1.0, 2.0)),
        verdict=f"The policy's samples are told from the data with an AUC of {between(figure, 'number')}"
        + (
            ": preferences between responses that it would not write say little about those that it would."
            if (figure.lo or 0) > 0.9
            else "."
        ),
        remedy="Sample from the policy and have those responses judged, or start with supervised training on the preferred ones.",
        rows=Rows.ranked(rows, -own[unlike][place], "how surely it is not the policy's"),
        facts={
            "words of the data": [str(names[k]) for k in order[:SHOWN]],
            "words of the policy": [str(names[k]) for k in order[::-1][:SHOWN]],
            "responses that pass for the policy's": float((own > 0).mean()),
        },
    )
