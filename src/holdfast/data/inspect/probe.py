"""What small models can learn from the comparisons, always asked on prompts they have not seen.

Features of a comparison are differences between its sides, so nothing depends on which side is called a. All of it
on whole prompts at random up to `Material.sample` comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import folds, out_of_fold
from holdfast.data.inspect.surface import surface

FOLDS = 5
TOPICS = 64
MOST_WORDS = 30_000


@dataclass(frozen=True)
class Words:
    """TF-IDF of the sampled comparisons' responses: matrix (n, V); a, b: (S,) rows of it per sampled comparison."""

    matrix: csr_array
    a: np.ndarray
    b: np.ndarray
    vocabulary: list[str]


def words(material: Material) -> Words | None:
    """None where the responses hold no words."""

    def make(m: Material) -> Words | None:
        at = m.sampled
        used, places = np.unique(np.concatenate([m.a[at], m.b[at]]), return_inverse=True)

        def fit() -> tuple[csr_array, list[str]] | None:
            vectoriser = TfidfVectorizer(
                token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=MOST_WORDS, dtype=np.float32, min_df=2
            )
            texts = (text for _, batch in m.responses.batches(used) for text in batch)
            try:
                made = csr_array(vectoriser.fit_transform(texts))
            except ValueError:  # an empty vocabulary
                return None
            return made, list(vectoriser.get_feature_names_out())

        fitted = m.responses.remember(("words", used.tobytes()), fit)
        if fitted is None:
            return None
        return Words(fitted[0], places[: len(at)], places[len(at) :], fitted[1])

    return material.compute("words", make)


def topics(material: Material) -> np.ndarray:
    """(S, 64) differences of the responses' coordinates in a truncated SVD of TF-IDF (or of the embedder's vectors): texts, not
    labels, decide it.
    """

    def make(m: Material) -> np.ndarray:
        if m.embed is not None:
            at = m.sampled
            used, places = np.unique(np.concatenate([m.a[at], m.b[at]]), return_inverse=True)
            vectors = m.responses.embedded(used.astype(np.int64), m.embed)
            n = min(TOPICS, min(vectors.shape) - 1)
            if n > 0:
                vectors = TruncatedSVD(n, algorithm="randomized", n_iter=3, random_state=0).fit_transform(vectors)
            return vectors[places[: len(at)]] - vectors[places[len(at) :]]
        found = words(m)
        if found is None or min(found.matrix.shape) < 3:
            return np.zeros((len(m.sampled), 0))

        def fit() -> np.ndarray:
            n = min(TOPICS, min(found.matrix.shape) - 1)
            return TruncatedSVD(n, algorithm="randomized", n_iter=3, random_state=0).fit_transform(found.matrix)

        at = m.sampled
        used = np.unique(np.concatenate([m.a[at], m.b[at]]))
        placed = m.responses.remember(("topics", used.tobytes()), fit)
        return placed[found.a] - placed[found.b]

    return material.compute("topics", make)


def surface_difference(material: Material) -> np.ndarray:
    """(S, 25) differences of surface features over the sampled comparisons."""
    at = material.sampled
    if len(at) == len(material):
        of, a, b = material.responses.derive(surface), material.a, material.b
    else:  # of a large dataset, only the texts that are looked at
        used, places = np.unique(np.concatenate([material.a[at], material.b[at]]), return_inverse=True)
        key = ("surface", used.tobytes())
        batches = material.responses.batches
        of = material.responses.remember(key, lambda: np.concatenate([surface(texts) for _, texts in batches(used)]))
        a, b = places[: len(at)], places[len(at) :]
    return of[a].astype(np.float64) - of[b]


def source_difference(material: Material) -> np.ndarray:
    """(S, M) +1 in the column of a's source, -1 in that of b's."""
    at = material.sampled
    out = np.zeros((len(at), len(material.sources)))
    for codes, sign in ((material.source_a[at], 1.0), (material.source_b[at], -1.0)):
        known = codes >= 0
        out[np.flatnonzero(known), codes[known]] += sign
    return out[:, np.abs(out).any(axis=0)] if len(out) else out


def sampled_folds(material: Material) -> np.ndarray:
    """(S,) the fold of each sampled comparison, by prompt."""
    return folds(material.prompt[material.sampled], FOLDS, material.seed)


def held_out_margin(material: Material, x: np.ndarray, ridge: float = 10.0) -> np.ndarray:
    """(S,) out-of-fold margins of a ridge logistic model on feature differences x (S, D)."""
    at = material.sampled
    return out_of_fold(x, material.p[at], material.weight[at], sampled_folds(material), ridge=ridge)


def others_say(material: Material) -> np.ndarray:
    """(S, 1) what the other judgements of the same two responses say: the sum of their p - 1/2, toward a."""
    at = material.sampled
    low, high = np.minimum(material.a, material.b), np.maximum(material.a, material.b)
    _, group = np.unique(low.astype(np.int64) * len(material.responses) + high, return_inverse=True)
    toward = np.where(material.a == low, 1.0, -1.0)
    said = toward * (material.p - 0.5)
    total = np.bincount(group, said)
    return (toward * (total[group] - said))[at][:, None]


def everything(material: Material) -> np.ndarray:
    """(S, D) all that a small model can use: surface, topics, sources, other judgements of the same pair."""

    def make(m: Material) -> np.ndarray:
        blocks = [source_difference(m), others_say(m)]
        if m.text:
            blocks += [surface_difference(m), topics(m)]
        return np.concatenate([b for b in blocks if b.shape[1]], axis=1)

    return material.compute("everything", make)


def best_margin(material: Material) -> np.ndarray:
    """(S,) out-of-fold margins of the model that may use everything."""
    return material.compute("best margin", lambda m: held_out_margin(m, everything(m)))
