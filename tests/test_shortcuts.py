"""The two shortcuts: on planted data they find what was planted, and only that."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement, Segment
from holdfast.evaluation.shortcuts import BagOfWords, longer, plain_text, transcript


class Texts:
    """As much of a dataset as the shortcuts use."""

    def __init__(self, contents):
        self.contents = contents

    def response_contents(self, indices):
        return [self.contents[i] for i in indices]


def pairs(a, b, prompt=None, p=None):
    n = len(a)
    return SimpleNamespace(
        row=np.arange(n),
        a=np.asarray(a, np.int32),
        b=np.asarray(b, np.int32),
        prompt=np.arange(n) if prompt is None else np.asarray(prompt),
        p=np.ones(n) if p is None else np.asarray(p, float),
        weight=np.ones(n),
    )


def planted(n, rng, good=("kind", "clear"), bad=("rude", "vague"), p=None):
    """Pairs whose winner holds a good word and whose loser holds a bad one, among words that say nothing."""
    noise = [f"w{i}" for i in range(40)]
    texts = []
    for i in range(n):
        texts.append(" ".join([*rng.choice(noise, 8), good[i % 2]]))
        texts.append(" ".join([*rng.choice(noise, 8), bad[i % 2]]))
    return Texts(texts), pairs(np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2), p=p)


def test_plain_text():
    assert plain_text("as it is") == "as it is"
    assert plain_text([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == "a\nb"
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert plain_text(call) == '\n[{"name": "f"}]'
    assert plain_text({"messages": [{"role": "user", "content": "a"}], "tools": []}) == "a"
    assert plain_text(None) is None and plain_text(Segment("e", 0, 4)) is None


def test_transcript_says_who_speaks():
    assert transcript("as it is") == "as it is" and transcript(None) == ""
    user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}
    assert transcript([user]) == "hi"
    assert transcript({"messages": [user, assistant], "tools": []}) == "User: hi\n\nAssistant: yes?"


def test_longer_counts_characters_and_steps():
    ds = Texts(["aa", "a", "bb", [{"role": "assistant", "content": "four"}]])
    assert longer(ds, pairs([0, 1, 0, 3], [1, 0, 2, 0])).tolist() == [1, -1, 0, 1]
    segments = Texts([Segment("e", 0, 10), Segment("e", 5, 3)])
    assert longer(segments, pairs([0, 1], [1, 0])).tolist() == [1, -1]


def test_longer_on_a_frozen_dataset(tmp_path: Path):
    said = [("pair", "p1", ("long answer", "short")), ("pair", "p2", ("x", "yy")), ("tie", "p3", ("ab", "cd"))]
    ds = freeze_records([Judgement(k, p, r) for k, p, r in said], tmp_path / "d")
    found = {}
    for i in range(ds.n_judgements):
        a, b = ds.responses_of[i]
        found[ds.prompt_contents([ds.prompt_of[i]])[0]] = int(longer(ds, pairs([a], [b]))[0])
    assert found == {"p1": 1, "p2": -1, "p3": 0}


def test_bag_of_words_finds_planted_words_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    train, test = planted(300, rng), planted(200, rng)
    bag = BagOfWords.fit(*train)
    assert bag.facts["fitted"] and bag.facts["comparisons"] == 300
    assert (bag.margins(*test) > 0).mean() > 0.98
    blank = planted(300, rng, good=("w1", "w2"), bad=("w3", "w1"))
    empty = planted(400, rng, good=("w5", "w6"), bad=("w5", "w6"))
    assert abs((BagOfWords.fit(*blank).margins(*empty) > 0).mean() - 0.5) < 0.1


def test_bag_of_words_has_no_side():
    ds, comparisons = planted(100, np.random.default_rng(1))
    bag = BagOfWords.fit(ds, comparisons)
    turned = pairs(comparisons.b, comparisons.a)
    np.testing.assert_allclose(bag.margins(ds, turned), -bag.margins(ds, comparisons), atol=1e-12)


def test_turned_and_soft_labels_mean_what_they_say():
    ds, straight = planted(120, np.random.default_rng(2))
    fitted = BagOfWords.fit(ds, straight, strengths=(1.0,)).margins(ds, straight)
    # "b is preferred with 0" is the same statement as "a with 1", for any of the rows.
    swap = np.arange(120) % 3 == 0
    turned = pairs(
        np.where(swap, straight.b, straight.a), np.where(swap, straight.a, straight.b), p=np.where(swap, 0.0, 1.0)
    )
    np.testing.assert_allclose(BagOfWords.fit(ds, turned, strengths=(1.0,)).margins(ds, straight), fitted, atol=2e-3)
    # An uncertain label pulls the fitted log-odds towards its own: with p = .7 the margins' mean sigmoid is about .7.
    soft = pairs(straight.a, straight.b, p=np.full(120, 0.7))
    margins = BagOfWords.fit(ds, soft, strengths=(1000.0,)).margins(ds, straight)
    assert np.mean(1 / (1 + np.exp(-margins))) == pytest.approx(0.7, abs=0.02)


def test_bag_of_words_is_deterministic_and_bounded():
    ds, comparisons = planted(200, np.random.default_rng(3))
    one, two = (BagOfWords.fit(ds, comparisons, max_comparisons=60, max_features=10) for _ in range(2))
    assert one.facts == two.facts and np.array_equal(one.weights, two.weights)
    assert one.facts["comparisons"] == 60 and one.facts["of"] == 200 and one.facts["words"] == 10


def test_what_cannot_be_fitted_says_why():
    segments = Texts([Segment("e", 0, 10), Segment("e", 5, 3)])
    bag = BagOfWords.fit(segments, pairs([0] * 4, [1] * 4))
    assert not bag.facts["fitted"] and "not text" in bag.facts["why"]
    assert np.isnan(bag.margins(segments, pairs([0], [1]))).all()
    assert "too few" in BagOfWords.fit(Texts(["a b", "c d"]), pairs([0], [1])).facts["why"]
    assert "no words" in BagOfWords.fit(Texts(["!", "?"]), pairs([0] * 4, [1] * 4)).facts["why"]
