"""Two shortcuts that any model must beat: "the longer response wins", and a bag of words that never sees the prompt.

A preference file often gives the answer away without its meaning: annotators like length, or certain words. An
accuracy says something only beside what these two reach on the same comparisons.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.data.records import Content, Segment
from holdfast.data.text import plain_text
from holdfast.data.text import transcript as transcript

# scikit-learn is imported where it is used: a run that trains should not wait for it.
if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from holdfast.data.dataset import Dataset
    from holdfast.data.views import Comparisons

BATCH = 4096  # responses held in memory at once


def longer(ds: Dataset, comparisons: Comparisons) -> np.ndarray:
    """Which side is longer: (E,) int8, +1 where `a` has more characters (steps, for segments), -1 where `b` has, 0
    where equal.
    """
    used = np.union1d(comparisons.a, comparisons.b)
    size = np.empty(len(used), np.int64)
    for start, contents in _batches(ds, used):
        for i, content in enumerate(contents, start):
            size[i] = content.length if isinstance(content, Segment) else len(plain_text(content) or "")
    a, b = np.searchsorted(used, comparisons.a), np.searchsorted(used, comparisons.b)
    return np.sign(size[a] - size[b]).astype(np.int8)


@dataclass
class BagOfWords:
    """A linear score of a response's words; a comparison's margin is the difference of the two scores, so it has no
    side to favour.

    Logistic regression on TF-IDF differences without an intercept: exactly the fit on symmetrised pairs (each pair
    both ways round) at half the cost. `facts` says what it was fitted on, and whether it could be fitted at all.
    """

    facts: dict[str, Any]
    vectoriser: TfidfVectorizer | None = None
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(
        cls,
        ds: Dataset,
        comparisons: Comparisons,
        *,
        seed: int = 0,
        max_comparisons: int = 20_000,
        max_features: int = 30_000,
        strengths: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0),
        folds: int = 3,
    ) -> BagOfWords:
        """Fit on the training comparisons; `p` enters as a soft label: weight p for "a wins" and 1 - p for "b wins".

        Whole prompts are drawn (seeded) until `max_comparisons` is reached, so time and memory stay bounded on any
        dataset. The regularisation is chosen by log-loss in cross-validation grouped by prompt. Deterministic on one
        machine.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold

        facts: dict[str, Any] = {"fitted": False, "comparisons": 0, "of": len(comparisons.row), "seed": seed}
        prompts, prompt_of = np.unique(comparisons.prompt, return_inverse=True)
        rank = np.random.default_rng(seed).permutation(len(prompts))
        by_prompt = np.argsort(rank[prompt_of], kind="stable")
        chosen = np.sort(by_prompt[:max_comparisons])
        if len(prompts) < folds:
            return cls(facts | {"why": f"{len(prompts)} training prompts are too few to choose its strength on"})
        a, b, p = comparisons.a[chosen], comparisons.b[chosen], comparisons.p[chosen]
        used = np.union1d(a, b)
        texts = [plain_text(content) for _, contents in _batches(ds, used) for content in contents]
        if any(text is None for text in texts):
            return cls(facts | {"why": "the responses are not text"})
        vectoriser = TfidfVectorizer(
            token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=max_features, dtype=np.float32
        )
        try:
            words = vectoriser.fit_transform(texts)
        except ValueError:  # an empty vocabulary
            return cls(facts | {"why": "the responses hold no words"})
        difference = words[np.searchsorted(used, a)] - words[np.searchsorted(used, b)]

        # Every other pair is turned round, only so that scikit-learn sees both classes; without an intercept the loss
        # is the same.
        turn = np.where(np.arange(len(p)) % 2, -1.0, 1.0)
        x = difference.multiply(turn[:, None]).tocsr()
        y = turn > 0
        weight = comparisons.weight[chosen]
        group = comparisons.prompt[chosen]

        def soft(rows: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
            """Each row as its label with weight p and, where p < 1, as the opposite label with weight 1 - p."""
            other = rows[p[rows] < 1]
            both = np.concatenate([rows, other])
            labels = np.concatenate([y[rows], ~y[other]])
            return x[both], labels, np.concatenate([weight[rows] * p[rows], weight[other] * (1 - p[other])])

        losses = np.zeros(len(strengths))
        everything = np.arange(len(p))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for train, test in GroupKFold(folds).split(everything, groups=group):
                x_train, y_train, w_train = soft(train)
                if len(np.unique(y_train)) < 2:
                    return cls(facts | {"why": "too few comparisons to choose its strength on"})
                model = LogisticRegression(fit_intercept=False, warm_start=True, max_iter=200)
                for k, strength in enumerate(strengths):
                    model.set_params(C=strength).fit(x_train, y_train, sample_weight=w_train)
                    z = turn[test] * (x[test] @ model.coef_[0])
                    losses[k] += np.sum(weight[test] * (np.logaddexp(0, -z) + (1 - p[test]) * z))
            best = int(np.argmin(losses))
            x_all, y_all, w_all = soft(everything)
            model = LogisticRegression(fit_intercept=False, C=strengths[best], max_iter=500).fit(
                x_all, y_all, sample_weight=w_all
            )
        facts |= {
            "fitted": True,
            "comparisons": len(p),
            "prompts": len(np.unique(group)),
            "words": len(vectoriser.vocabulary_),
            "strength": strengths[best],
            "cross-validated log-loss": float(losses[best] / weight.sum()),
        }
        return cls(facts, vectoriser, model.coef_[0].astype(np.float64))

    def margins(self, ds: Dataset, comparisons: Comparisons) -> np.ndarray:
        """Score of `a` less score of `b`: (E,) float64; NaN throughout where the shortcut could not be fitted."""
        if self.vectoriser is None:
            return np.full(len(comparisons.row), np.nan)
        used = np.union1d(comparisons.a, comparisons.b)
        score = np.full(len(used), np.nan)
        for start, contents in _batches(ds, used):
            texts = [plain_text(content) for content in contents]
            if any(text is None for text in texts):
                return np.full(len(comparisons.row), np.nan)
            score[start : start + len(texts)] = self.vectoriser.transform(texts) @ self.weights
        return score[np.searchsorted(used, comparisons.a)] - score[np.searchsorted(used, comparisons.b)]


def _batches(ds: Dataset, responses: np.ndarray) -> Iterator[tuple[int, list[Content]]]:
    for start in range(0, len(responses), BATCH):
        yield start, ds.response_contents(responses[start : start + BATCH])
