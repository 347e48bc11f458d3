"""Weights of judgements: by hand, from the training rows alone, exactly a weighted mean in the loss, in the run's record."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import orjson
import pytest
import torch

from holdfast import pipeline
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.records import Judgement
from holdfast.data.weights import ZERO, effective, judgement_weights
from holdfast.demo.world import World
from holdfast.errors import DataError, RecipeError
from holdfast.language.terms import read_objective, refuse_weights
from holdfast.proof import verify
from holdfast.recipe import Recipe, WeightTable, load_recipe
from test_objectives import objective_of, value_and_gradient, world  # noqa: F401  (a fixture)
from test_report import Page

SMALL = {
    "run": {"threads": 1},
    "data": {"split": {"validation": 0.1, "test": 0.1}, "weights": {"balance": ["longer"]}},
    "model": {
        "scratch": {"vocab": 400, "hidden": 16, "layers": 1, "heads": 2, "train": {"steps": 2, "batch": 16, "lr": 3e-3}}
    },
    "text": {"max_length": 192, "too_long": "drop"},
    "objective": {"kind": "reward"},
    "train": {"steps": 6, "batch": 16, "lr": 1e-3, "checkpoint_every": 2},
    "evaluate": {"bootstrap": 20, "examples": 1},
}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """150 pairs judged by four annotators whose chances of being right are known, and by `new`, who judged only four."""
    draw, records = random.Random(1), []
    for n in range(150):
        for who, right in (("sure", 0.97), ("good", 0.85), ("fair", 0.7), ("coin", 0.5)):
            two = ("better " * 3, "worse") if draw.random() < right else ("worse", "better " * 3)
            records.append(
                Judgement(
                    "pair",
                    f"q{n}",
                    two,
                    annotator=who,
                    category="rare" if n < 15 else "common",
                    extra={"w": n % 3} if n % 2 else None,
                )
            )
        if n < 4:
            records.append(Judgement("tie", f"q{n}", ("better " * 3, "worse"), annotator="new"))
    records.append(Judgement("pair", "nobody", ("x", "yy")))
    return freeze_records(records, tmp_path_factory.mktemp("weights") / "ds")


def weigh(ds, rows=None, **table):
    rows = np.arange(ds.n_judgements) if rows is None else rows
    return rows, judgement_weights(ds, rows, WeightTable(**table))


def test_reliability_is_found_and_weighs(crowd):
    rows, weights = weigh(crowd, reliability="dawid-skene")
    said = weights.facts["annotators"]
    for who, right in (("sure", 0.97), ("good", 0.85), ("fair", 0.7), ("coin", 0.5)):
        assert said[who]["right"] == pytest.approx(right, abs=0.08) and said[who]["judgements"] == 150
        assert said[who]["weight"] == pytest.approx(max(0, 2 * said[who]["right"] - 1))
    # Of whom four judgements are known, and who is not named, weigh what the others do on average.
    usual = np.mean([said[who]["weight"] for who in ("sure", "good", "fair", "coin")])
    assert said["new"] == {"judgements": 4, "right": None, "weight": pytest.approx(usual)}
    own = {crowd.column("annotator")[r]: weights.of[r] for r in rows.tolist()}
    assert own["sure"] / own["fair"] == pytest.approx(said["sure"]["weight"] / said["fair"]["weight"])
    assert own[None] / own["new"] == pytest.approx(1.0)
    assert weights.of[rows][weights.of[rows] > 0].mean() == pytest.approx(1.0)
    with pytest.raises(
        DataError, match=r"no annotator has 30 judgements on pairs that three annotators judged \(the most is"
    ):
        weigh(crowd, rows[:60], reliability="dawid-skene")


def test_cells_weigh_the_same_and_the_silent_one(crowd):
    rows, weights = weigh(crowd, balance=("category", "longer"))
    category, sides = crowd.column("category"), crowd.column("kind")
    total: Counter[tuple[str | None, str]] = Counter()
    for r in rows.tolist():
        first = crowd.response_contents([int(crowd.responses_of[r][0])])[0]
        side = "none" if sides[r] == "tie" else "longer" if first.startswith("better") or first == "yy" else "shorter"
        total[category[r], side] += weights.of[r]
    cells = [v for (c, side), v in total.items() if c is not None and side != "none"]
    assert len(cells) == 4 and max(cells) == pytest.approx(min(cells))
    # Ties and the row without a category say nothing of a cell: one each, before the mean is made 1.
    silent = [weights.of[r] for r in rows.tolist() if category[r] is None or sides[r] == "tie"]
    assert max(silent) == pytest.approx(min(silent))
    assert weights.of[rows].mean() == pytest.approx(1.0)
    assert weights.facts["effective"] == pytest.approx(weights.of.sum() ** 2 / (weights.of**2).sum())
    assert effective(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    lengths = weigh(crowd, balance=("length",))[1].facts["cells"]
    assert set(lengths) <= {"short", "medium", "long"} and sum(c["judgements"] for c in lengths.values()) == len(rows)


def test_a_column_and_what_is_not_weighed(crowd):
    train = np.arange(0, crowd.n_judgements, 2)
    rows, weights = weigh(crowd, train, column="extra.w")
    outside = np.setdiff1d(np.arange(crowd.n_judgements), rows)
    assert (weights.of[outside] == 1).all()  # held out: as they are
    extra = [orjson.loads(e)["w"] if (e := crowd.column("extra")[r]) else 1 for r in rows.tolist()]
    by_hand = np.array(extra) / np.mean([x for x in extra if x])
    assert weights.of[rows] == pytest.approx(by_hand)
    assert weights.facts["of no weight"] == extra.count(0) and weights.facts["judgements"] == len(extra) - extra.count(
        0
    )
    assert weights.facts["digest"] == weigh(crowd, train, column="extra.w")[1].facts["digest"]
    assert weights.facts["digest"] != weigh(crowd, train[1:], column="extra.w")[1].facts["digest"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"column": "category"}, "says '(rare|common)', which is no weight; 0 or more is"),
        ({"column": "extra.v"}, "no row has an extra column 'v'"),
        ({"balance": ("colour",)}, r"unknown column 'colour' \(known: length, longer, kind, annotator"),
        ({"balance": ("licence",)}, "the rows fall into 0 cell; there is nothing to balance"),
    ],
)
def test_what_cannot_weigh_is_said(crowd, table, words):
    with pytest.raises((DataError, RecipeError), match=words):
        weigh(crowd, **table)


def test_the_recipe_says_it_or_nothing_does():
    plain = {"data": {"dataset": "d"}, "model": {"path": "m"}, "objective": {"kind": "dpo"}}
    assert "weights" not in Recipe.model_validate(plain).to_toml()
    with pytest.raises(RecipeError, match="name what to weigh by: reliability, balance or column"):
        load_recipe({**plain, "data": {"dataset": "d", "weights": {}}})
    with pytest.raises(RecipeError, match=r"\[data.weights\]: dr_dpo compares the rows of a whole step"):
        refuse_weights(read_objective({"kind": "sum", "terms": [{"kind": "dpo"}, {"kind": "dr_dpo"}]}).terms)


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "dpo"},
        {"kind": "reward"},
        {"kind": "reward", "heads": 2, "bootstrap": False},
        {"kind": "plackett_luce"},
        {"kind": "sft"},
        {"kind": "nca"},
    ],
    ids=lambda t: "-".join(map(str, t.values())),
)
def test_the_loss_is_the_weighted_mean_under_any_micro_batching(world, table):  # noqa: F811
    plain, whole, cut = (objective_of(world, table, micro) for micro in (100, 100, 3))
    rows = plain.rows[:: max(1, len(plain.rows) // 9)]
    weight = np.ones(world[0].n_judgements)
    weight[rows] = 0.25 + np.arange(len(rows)) % 3
    alone = [
        (value_and_gradient(plain, rows[i : i + 1])[0], plain.normaliser(rows[i : i + 1])) for i in range(len(rows))
    ]
    for objective in (whole, cut):
        for f in objective.fed:
            f.row_weight = weight
    expected = sum(w * v * n for w, (v, n) in zip(weight[rows], alone, strict=True)) / sum(
        w * n for w, (_, n) in zip(weight[rows], alone, strict=True)
    )
    (one, gradient), (other, same) = value_and_gradient(whole, rows), value_and_gradient(cut, rows)
    assert one == pytest.approx(expected, rel=1e-6) and other == pytest.approx(one, rel=1e-9)
    assert torch.allclose(gradient, same, rtol=1e-8, atol=1e-12)


def test_a_weighted_sum_of_losses(world):  # noqa: F811
    table = {"kind": "sum", "terms": [{"kind": "dpo", "beta": 0.2}, {"kind": "sft", "weight": 0.1}]}
    objective, alone = (
        objective_of(world, table),
        [objective_of(world, {"kind": "dpo", "beta": 0.2}), objective_of(world, {"kind": "sft"})],
    )
    rows = np.intersect1d(alone[0].rows, alone[1].rows)
    weight = 0.5 + np.arange(world[0].n_judgements) % 4
    for o in (objective, *alone):
        for f in o.fed:
            f.row_weight = weight
    dpo, sft = (value_and_gradient(o, rows)[0] for o in alone)
    assert value_and_gradient(objective, rows)[0] == pytest.approx(dpo + 0.1 * sft, rel=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighted")
    World(0).write_jsonl(folder / "world.jsonl", 60, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    recipe = load_recipe({**SMALL, "data": {**SMALL["data"], "dataset": str(folder / "data")}})
    return folder, recipe, pipeline.train(recipe, folder / "run", quiet=True)


def test_a_run_commits_to_its_weights(run, tmp_path):
    _, recipe, done = run
    opened = orjson.loads((done.folder / "ledger.jsonl").read_bytes().splitlines()[0])
    facts = opened["facts"]["weights"]
    assert set(facts["cells"]) == {"longer", "shorter"} and math.isclose(
        float.fromhex(facts["effective"]), facts["judgements"], rel_tol=0.9
    )
    assert verify(done.folder) == []
    assert pipeline.replay(done.folder, 4, 6)["ok"]
    page = " ".join(Page((done.folder / "report.html").read_text(encoding="utf-8")).text.split())
    assert (
        f"{facts['judgements']:,} judgements were weighed by cells; they tell as much as {float.fromhex(facts['effective']):,.0f} that"
        in page
    )
    plain = pipeline.train(
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"weights": None})}),
        tmp_path / "plain",
        quiet=True,
    )
    assert plain.weights_digest != done.weights_digest
    base = orjson.loads((done.folder / "base" / "ledger.jsonl").read_bytes().splitlines()[0])
    assert "weights" not in base["facts"]  # what it starts from is taught on the data as it is


def test_rows_of_no_weight_are_left_out_and_listed(tmp_path):
    flagged = freeze_records(
        (
            Judgement("pair", f"why {i}?", (f"because {i} is so", f"no {i}"), extra={"weight": float(i % 2)})
            for i in range(60)
        ),
        tmp_path / "data",
    )
    table = {**SMALL, "data": {"dataset": str(flagged.path), "weights": {"column": "extra.weight"}}}
    done = pipeline.train(load_recipe(table, ["train.steps=2"]), tmp_path / "run", quiet=True)
    lines = [orjson.loads(line) for line in (done.folder / "left_out.jsonl").read_bytes().splitlines()]
    assert {line["reason"] for line in lines} == {ZERO}
    opened = orjson.loads((done.folder / "ledger.jsonl").read_bytes().splitlines()[0])
    assert len(lines) == opened["facts"]["weights"]["of no weight"] and opened["rows"]["count"] + len(lines) == 51
