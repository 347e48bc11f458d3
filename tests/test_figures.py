"""Figures against hand computation, scikit-learn, and simulation."""

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from holdfast.errors import DataError
from holdfast.evaluation.figures import BINS, figures


def make(margin, p=None, prompt=None, **columns):
    """A table from margins (reward_a - reward_b), one prompt per row unless said."""
    n = len(margin)
    said = {
        "judgement": [f"{i:064x}" for i in range(n)],
        "prompt": [f"p{i}" for i in (range(n) if prompt is None else prompt)],
        "p": np.ones(n) if p is None else np.asarray(p, float),
        "weight": np.ones(n),
        "part": ["test"] * n,
        "category": pa.nulls(n, pa.string()),
        "annotator": pa.nulls(n, pa.string()),
        "reward_a": np.asarray(margin, float),
        "reward_b": np.zeros(n),
        "n_a": np.ones(n, int),
        "n_b": np.ones(n, int),
        "longer": pa.nulls(n, pa.int8()),
        "bow": pa.nulls(n, pa.float64()),
    }
    return pa.table(said | columns)


def whole(table, **how):
    return figures(table, **how)["parts"]["test"]["all"]


def value(cell, name):
    return cell["figures"][name]["value"]


def test_by_hand():
    # Right, wrong, undecided (half), tie (out of the accuracy), and a row whose preferred side is b (p = .2: right).
    table = make(
        [2.0, -1.0, 0.0, 5.0, -3.0],
        p=[1.0, 1.0, 1.0, 0.5, 0.2],
        weight=[1.0, 0.5, 1.0, 1.0, 2.0],
        reward_a=[1.0, 0.0, 4.0, 5.0, -1.0],
        reward_b=[-1.0, 1.0, 4.0, 0.0, 2.0],
    )
    cell = whole(table)
    assert (cell["n"], cell["judgements"], cell["prompts"], cell["ties"]) == (5, 5, 5, 1)
    assert value(cell, "rewards/accuracies") == pytest.approx((1 + 0 + 0.5 + 2) / 4.5)
    assert value(cell, "rewards/margins") == pytest.approx((2 - 0.5 + 0 + 2 * 3) / 4.5)
    assert value(cell, "rewards/chosen") == pytest.approx((1 + 0 + 4 + 2 * 2) / 4.5)
    assert value(cell, "rewards/rejected") == pytest.approx((-1 + 0.5 + 4 - 2) / 4.5)

    def q(x):
        return 1 / (1 + math.exp(-x))

    brier = (1 - q(2)) ** 2 + 0.5 * (1 - q(-1)) ** 2 + 0.25 + (q(5) - 0.5) ** 2 + 2 * (q(-3) - 0.2) ** 2
    assert value(cell, "brier") == pytest.approx(brier / 5.5)
    loss = -math.log(q(2)) - 0.5 * math.log(q(-1)) + math.log(2)
    loss += -0.5 * math.log(q(5)) - 0.5 * math.log(q(-5)) - 2 * (0.2 * math.log(q(-3)) + 0.8 * math.log(q(3)))
    assert value(cell, "log_loss") == pytest.approx(loss / 5.5)
    # The sides the model favours: q(2) right, q(1) wrong, .5 half, q(5) half, q(3) .8 (weight 2). Bins of .05:
    # q(2) = .881 is alone, q(1) = .731 is alone, .5 is alone; q(5) = .993 and q(3) = .953 share the last.
    ece = abs(q(2) - 1) + 0.5 * q(1) + 0 + abs((q(5) - 0.5) + 2 * (q(3) - 0.8))
    assert value(cell, "ece") == pytest.approx(ece / 5.5)
    last = cell["reliability"][-1]
    assert (last["n"], last["weight"]) == (2, 3.0)
    assert last["confidence"] == pytest.approx((q(5) + 2 * q(3)) / 3)
    assert last["outcome"] == pytest.approx((0.5 + 2 * 0.8) / 3)


def test_policy_figures_by_hand():
    table = make(
        [1.0, -1.0],
        p=[1.0, 0.1],
        n_a=[2, 5],
        n_b=[4, 10],
        logp_a=[-3.0, -10.0],
        logp_b=[-6.0, -20.0],
        ref_logp_a=[-4.0, -9.0],
        ref_logp_b=[-5.0, -16.0],
        kl_a=[0.1, 0.2],
        kl_b=[0.3, 0.6],
    )
    cell = whole(table)
    assert value(cell, "logps/chosen") == pytest.approx((-3 - 20) / 2)  # of the second row b is the chosen one
    assert value(cell, "logps/rejected") == pytest.approx((-6 - 10) / 2)
    assert value(cell, "drift/chosen") == pytest.approx((1 - 4) / 2)
    assert value(cell, "drift/rejected") == pytest.approx((-1 - 1) / 2)
    assert value(cell, "drift/chosen/token") == pytest.approx((1 - 4) / (2 + 10))
    assert value(cell, "drift/rejected/token") == pytest.approx((-1 - 1) / (4 + 5))
    assert value(cell, "kl/chosen") == pytest.approx((0.1 + 0.6) / 2)
    assert value(cell, "kl") == pytest.approx((0.1 + 0.3 + 0.2 + 0.6) / 4)


def test_brier_and_log_loss_equal_scikit_learn():
    rng = np.random.default_rng(0)
    margin, p, weight = rng.normal(size=300), rng.random(300), rng.random(300)
    cell = whole(make(margin, p=p, weight=weight))
    q = 1 / (1 + np.exp(-margin))
    # A soft label is two rows of opposite label; the Brier score of those exceeds ours by p(1-p).
    y, twice, w = np.r_[np.ones(300), np.zeros(300)], np.r_[q, q], np.r_[weight * p, weight * (1 - p)]
    spread = np.average(p * (1 - p), weights=weight)
    assert value(cell, "log_loss") == pytest.approx(log_loss(y, twice, sample_weight=w), abs=1e-12)
    assert value(cell, "brier") == pytest.approx(brier_score_loss(y, twice, sample_weight=w) - spread, abs=1e-12)


def test_ece_equals_a_loop_over_bins():
    rng = np.random.default_rng(1)
    margin = rng.normal(scale=2, size=500)
    p = rng.choice([0.0, 1.0], 500)
    cell = whole(make(margin, p=p))
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin > 0, p, 1 - p)
    ece = 0.0
    for low, high in itertools.pairwise(BINS):
        here = (confidence >= low) & (confidence < high if high < 1 else True)
        if here.any():
            ece += here.mean() * abs(confidence[here].mean() - right[here].mean())
    assert value(cell, "ece") == pytest.approx(ece, abs=1e-12)


def test_floor_is_the_ece_of_a_calibrated_model():
    rng = np.random.default_rng(2)
    margin = rng.normal(scale=1.5, size=400)
    q = 1 / (1 + np.exp(-margin))
    simulated = []
    for _ in range(60):
        cell = whole(make(margin, p=(rng.random(400) < q).astype(float)), bootstrap=1)
        simulated.append(value(cell, "ece"))
    assert value(cell, "ece/floor") == pytest.approx(np.mean(simulated), rel=0.1)


def test_swapping_the_sides_of_a_row_changes_nothing():
    rng = np.random.default_rng(3)
    n = 80
    said = {name: rng.normal(size=n) for name in ("reward", "logp", "ref_logp", "kl")}
    other = {name: rng.normal(size=n) for name in said}
    tokens, other_tokens = rng.integers(1, 9, n), rng.integers(1, 9, n)
    p, longer, bow = rng.random(n), rng.integers(-1, 2, n), rng.normal(size=n)
    swap = rng.random(n) < 0.5
    straight = make(
        np.zeros(n), p=p, longer=longer, bow=bow, n_a=tokens, n_b=other_tokens,
        **{f"{k}_a": v for k, v in said.items()}, **{f"{k}_b": v for k, v in other.items()},
    )  # fmt: skip
    turned = make(
        np.zeros(n), p=np.where(swap, 1 - p, p), longer=np.where(swap, -longer, longer), bow=np.where(swap, -bow, bow),
        n_a=np.where(swap, other_tokens, tokens), n_b=np.where(swap, tokens, other_tokens),
        **{f"{k}_a": np.where(swap, other[k], v) for k, v in said.items()},
        **{f"{k}_b": np.where(swap, v, other[k]) for k, v in said.items()},
    )  # fmt: skip
    one, two = whole(straight)["figures"], whole(turned)["figures"]
    assert one.keys() == two.keys()
    for name, found in one.items():
        assert found["value"] == pytest.approx(two[name]["value"], abs=1e-12), name


def test_shortcuts_and_paired_gain():
    margin = [1.0, 1.0, -1.0, 1.0]
    table = make(margin, longer=pa.array([1, -1, 1, 0], pa.int8()), bow=pa.array([1.0, 2.0, 3.0, 4.0]))
    cell = whole(table)
    assert value(cell, "longer/accuracies") == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert value(cell, "longer/gain") == pytest.approx(0.75 - 0.625)
    assert value(cell, "bag of words/accuracies") == 1.0
    assert value(cell, "bag of words/gain") == pytest.approx(-0.25)
    # Paired: a model that repeats the shortcut has a difference of exactly zero in every resample.
    rng = np.random.default_rng(0)
    margin = rng.normal(size=200)
    same = whole(make(margin, bow=margin))["figures"]
    assert (same["bag of words/gain"]["lo"], same["bag of words/gain"]["hi"]) == (0.0, 0.0)
    assert same["rewards/accuracies"]["hi"] - same["rewards/accuracies"]["lo"] > 0.1


def test_a_shortcut_that_was_not_computed_is_absent():
    names = whole(make([1.0, -1.0]))["figures"].keys()
    assert not any(name.startswith(("longer", "bag of words", "logps", "kl", "drift")) for name in names)


@pytest.mark.parametrize("prompts,per_prompt", [(40, 1), (60, 8)])
def test_intervals_cover_at_their_level(prompts, per_prompt):
    """200 data sets drawn with a known truth; comparisons of a prompt agree with each other, as real ones do."""
    rng = np.random.default_rng(4)
    hits, naive, rounds = 0, 0, 200
    for _ in range(rounds):
        difficulty = rng.beta(1.5, 0.8, prompts)  # share right of each prompt: mean 1.5/2.3
        right = rng.random((prompts, per_prompt)) < difficulty[:, None]
        cell = whole(
            make(np.where(right, 1.0, -1.0).ravel(), prompt=np.repeat(np.arange(prompts), per_prompt)), bootstrap=300
        )
        found = cell["figures"]["rewards/accuracies"]
        hits += found["lo"] <= 1.5 / 2.3 <= found["hi"]
        naive += abs(right.mean() - 1.5 / 2.3) <= 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / right.size)
    assert hits / rounds >= 0.90
    if per_prompt > 1:  # what resampling rows would have claimed: the test is not so lax that anything passes
        assert naive / rounds < 0.80


def test_interval_equals_the_textbook_one_for_independent_rows():
    rng = np.random.default_rng(5)
    right = rng.random(2000) < 0.7
    found = whole(make(np.where(right, 1.0, -1.0)), bootstrap=2000)["figures"]["rewards/accuracies"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / 2000)
    assert found["hi"] - found["value"] == pytest.approx(half, rel=0.1)
    assert found["value"] - found["lo"] == pytest.approx(half, rel=0.1)


def test_all_right_is_not_certainty():
    found = whole(make([1.0] * 10))["figures"]["rewards/accuracies"]
    assert found["value"] == 1.0 and found["hi"] == 1.0
    assert found["lo"] == pytest.approx(0.6915, abs=1e-4)  # Clopper-Pearson, 10 of 10
    found = whole(make([-1.0] * 10))["figures"]["rewards/accuracies"]
    assert (found["lo"], round(found["hi"], 4)) == (0.0, 0.3085)


def test_one_prompt_has_no_interval_and_only_ties_no_accuracy():
    found = whole(make([1.0, -1.0, 2.0], prompt=[0, 0, 0]))["figures"]["rewards/accuracies"]
    assert (round(found["value"], 6), found["lo"], found["hi"]) == (0.666667, None, None)
    cell = whole(make([1.0, -1.0], p=[0.5, 0.5]))
    assert cell["figures"]["rewards/accuracies"] == {"value": None, "lo": None, "hi": None}
    assert cell["margins"]["quartiles"] is None and value(cell, "log_loss") > 0
    json.dumps(cell, allow_nan=False)


def test_cells_and_their_independence():
    table = make(
        np.linspace(-1, 3, 40),
        category=["x", "y"] * 20,
        annotator=["ann", "bob", None, "ann"] * 10,
        part=["test"] * 30 + ["ood"] * 10,
    )
    parts = figures(table)["parts"]
    assert set(parts) == {"test", "ood"}
    assert set(parts["test"]["categories"]) == {"x", "y"} and set(parts["test"]["annotators"]) == {"ann", "bob"}
    assert parts["test"]["annotators"]["bob"]["n"] == 8  # rows 1, 5, ..., 29
    # A cell's interval does not depend on what else is in the table.
    alone = figures(table.filter(pa.compute.equal(table["part"], "ood")))["parts"]
    assert alone["ood"] == parts["ood"]
    json.dumps(parts, allow_nan=False)
    # Nor on the order of the rows.
    turned = figures(table.take(np.random.default_rng(0).permutation(40)))["parts"]
    for name, found in parts["test"]["all"]["figures"].items():
        assert turned["test"]["all"]["figures"][name] == pytest.approx(found, abs=1e-12), name


def test_same_seed_same_bytes_other_seed_other_interval():
    table = make(np.random.default_rng(0).normal(size=100))
    assert figures(table, seed=1) == figures(table, seed=1)
    assert (
        figures(table, seed=1)["parts"]["test"]["all"]["figures"]
        != figures(table, seed=2)["parts"]["test"]["all"]["figures"]
    )


def test_only_the_largest_cells_are_shown_and_the_rest_counted(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["holdfast.evaluation.figures"], "MOST_CELLS", 2)
    part = figures(make([1.0] * 6, category=["a", "b", "b", "c", "c", "d"]), bootstrap=10)["parts"]["test"]
    assert set(part["categories"]) == {"b", "c"} and part["not shown"]["categories"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_score_is_named(bad):
    with pytest.raises(DataError, match=r"score reward_a of judgement 0+1 is (nan|inf)"):
        figures(make([1.0, bad]))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(-50, 50), st.floats(0, 1), st.integers(0, 4), st.floats(0.01, 3)), min_size=1, max_size=30
    )
)
def test_figures_stay_in_their_ranges(rows):
    margin, p, prompt, weight = (list(x) for x in zip(*rows, strict=True))
    cell = whole(make(margin, p=p, prompt=prompt, weight=weight), bootstrap=20)
    for name in ("rewards/accuracies", "brier", "ece"):
        found = cell["figures"][name]
        assert found["value"] is None or -1e-12 <= found["value"] <= 1 + 1e-12
        assert found["lo"] is None or found["lo"] <= found["hi"]
    assert sum(b["n"] for b in cell["reliability"]) == len(rows)
    assert sum(cell["margins"]["weights"]) == pytest.approx(sum(w for w, q in zip(weight, p, strict=True) if q != 0.5))
    json.dumps(cell, allow_nan=False)
