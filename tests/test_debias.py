"""The nuisance term: fitted as an independent library fits it, in the loss as log-odds, out of every score, exact when resumed."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import orjson
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from holdfast import pipeline
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.data.views import comparisons
from holdfast.errors import HoldfastError, RecipeError
from holdfast.language.debias import KNOWN, LOG_ODDS, REWARD, RIDGE, Nuisance, leaning, nuisance
from holdfast.language.terms import read_objective
from holdfast.losses import LOSSES
from holdfast.proof import verify
from holdfast.recipe import DebiasTable, Recipe, load_recipe
from holdfast.report.plots import number
from test_objectives import objective_of, value_and_gradient, world  # noqa: F401  (a fixture)
from test_report import Page


def pairs(n=400, seed=0):
    """(phi, p, weight): three features, one of them nearly another, and preferences by known weights of them."""
    draw = np.random.default_rng(seed)
    phi = draw.normal(size=(n, 3)) * [3.0, 0.2, 1.0]
    phi[:, 2] = phi[:, 0] / 3 + 0.5 * phi[:, 2]
    p = (draw.random(n) < 1 / (1 + np.exp(-(0.5 * phi[:, 0] - 4 * phi[:, 1])))).astype(float)
    p[::7] = 0.8
    return phi, p, draw.uniform(0.5, 2, n)


def test_the_first_fit_is_logistic_regression():
    phi, p, weight = pairs()
    train = np.arange(len(p)) % 5 > 0
    found = Nuisance(["words", "lines", "code"], phi, p, weight, train, share=0.5)
    mass = (weight * train) / (weight * train).sum()
    scale = np.sqrt((mass[:, None] * phi**2).sum(0))
    assert found.scale == pytest.approx(scale)
    # A probability as label is two rows; the ridge on the mean loss is sklearn's 1 / C on its sum.
    x = np.concatenate([phi, phi]) / scale
    y = np.r_[np.ones(len(p)), np.zeros(len(p))]
    both = np.r_[mass * p, mass * (1 - p)]
    fit = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=1000)
    fit.fit(x, y, sample_weight=both)
    assert found.first == pytest.approx(fit.coef_[0], rel=1e-4)
    assert found.coef.numpy() == pytest.approx(0.5 * fit.coef_[0], rel=1e-4)
    assert found.facts["pairs"] == int(train.sum()) and found.facts["share"] == 0.5


def test_beside_a_reward_it_goes_to_the_likeliest():
    """The reward already knows half of the first feature: what is left for the nuisance is found by an optimiser as well."""
    phi, p, weight = pairs()
    found = Nuisance(["words", "lines", "code"], phi, p, weight, np.ones(len(p), bool), rate=0.2)
    margin = 0.25 * phi[:, 0]
    mass, unit = weight / weight.sum(), phi / found.scale

    def loss(coef):
        z = margin + unit @ coef
        return float((mass * (np.logaddexp(0, z) - p * z)).sum() + RIDGE / 2 * coef @ coef)

    best = minimize(loss, np.zeros(3), tol=1e-12).x
    for _ in range(200):
        said = found.learn(np.arange(len(p)), torch.tensor(margin))
    assert found.coef.numpy() == pytest.approx(best, abs=1e-4) and list(said.values()) == found.coef.tolist()
    held = Nuisance(["words", "lines", "code"], phi, p, weight, np.ones(len(p), bool), rate=0.0)
    held.learn(np.arange(len(p)), torch.tensor(margin))
    assert held.coef.tolist() == held.first.tolist()


@pytest.mark.parametrize("name", sorted(LOG_ODDS | REWARD))
def test_it_stands_in_the_loss_as_log_odds(name):
    """Its voice raises the margin of the implicit reward by so much, and nothing else of the loss: these losses are functions of it."""
    kind = {"kind": name} if name in LOG_ODDS else {"kind": "reward", "loss": name.removeprefix("reward_")}
    (term,) = read_objective(kind).terms
    loss, draw = LOSSES[name], torch.Generator().manual_seed(1)
    q = {n: torch.randn(5, generator=draw, dtype=torch.float64) for n in loss.needs}
    q |= {n: 3.0 + torch.arange(5, dtype=torch.float64) for n in q if n in ("n_w", "n_l")}
    q |= {"tie": torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)} if "tie" in q else {}
    phi = np.array([[1.0], [-2.0], [0.5], [0.0], [4.0]])
    beside = Nuisance(["words"], phi, np.ones(5), np.ones(5), np.ones(5, bool), rate=0.0)
    leant = beside.lean(q, np.arange(5), term)

    def margin(of):
        sides = [{n[:-2]: v for n, v in of.items() if n.endswith(side)} for side in ("_w", "_l")]
        for s in sides:
            s.setdefault("n", torch.ones(5))
        return term.reward(sides[0]) - term.reward(sides[1])

    voice = torch.from_numpy(beside.phi[:, 0] * beside.first[0])
    assert torch.allclose(margin(leant), margin(q) + voice) and voice.abs().max() > 0.5
    # With the whole of it given to w instead of half to each the loss is the same, but for centring and imitation.
    own = "R" if "R_w" in q else "r" if "r_w" in q else "logp"
    unit = (1.0 if own == "R" else 1 / term.scale) * (q["n_w"] if term.function.per_token else 1.0)
    told = {**q, f"{own}_w": q[f"{own}_w"] + voice * unit}
    values = [loss(*(given[n] for n in loss.takes), **term.keys) for given in (leant, told)]
    assert torch.allclose(*values)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "ipo"}, r"the margin of ipo is no log-odds .* it can with cdpo, .*and with reward"),
        ({"kind": "hinge"}, "the margin of hinge is no log-odds"),
        ({"kind": "kto"}, "the margin of kto is no log-odds"),
        ({"kind": "plackett_luce"}, "the margin of plackett_luce"),
        ({"kind": "dr_dpo"}, "the margin of dr_dpo"),
        ({"kind": "reward", "loss": "plackett_luce"}, "the margin of reward_plackett_luce"),
        ({"kind": "sft"}, r"needs one loss that compares responses; \[objective\] has 0"),
        ({"kind": "sum", "terms": [{"kind": "dpo"}, {"kind": "simpo"}]}, r"\[objective\] has 2"),
    ],
)
def test_refused_by_name_elsewhere(table, words):
    with pytest.raises(RecipeError, match=words):
        leaning(read_objective(table))


def test_beside_imitation_it_leans_on_the_pairs():
    table = {"kind": "sum", "terms": [{"kind": "sft", "weight": 0.1}, {"kind": "dpo"}]}
    assert leaning(read_objective(table)) == 1


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """160 prompts, two answers: one says the right word, and either may be padded. Judges like the right word a little and length a lot."""
    draw, made = random.Random(0), []
    filler = ["well", "then", "so", "and", "also", "indeed", "thus", "now"]
    for n in range(160):
        two = []
        for word in ("right", "wrong"):
            pad = " ".join(draw.choices(filler, k=draw.choice([1, 2, 14, 16])))
            two.append((f"{word} {pad}", len(pad), word == "right"))
        z = 0.6 * (two[0][2] - two[1][2]) + 0.03 * (two[0][1] - two[1][1])
        first = draw.random() < 1 / (1 + np.exp(-z))
        texts = [t for t, _, _ in (two if first else two[::-1])]
        made.append(Judgement("pair", f"say {n}", tuple(texts), shown=(0, 1) if draw.random() < 0.7 else (1, 0)))
    return freeze_records(made, tmp_path_factory.mktemp("biased") / "ds")


def test_features_are_differences_of_the_two_sides(biased):
    view = comparisons(biased, np.arange(biased.n_judgements))
    found = nuisance(DebiasTable(features=("length", "characters", "position")), biased, view, view.weight, view.row)
    texts = [biased.response_contents([int(a), int(b)]) for a, b in zip(view.a, view.b, strict=True)]
    more = np.array([len(a) - len(b) for a, b in texts])
    length = np.tanh(more / np.sqrt((more**2).mean()))
    logs = np.array([np.log1p(len(a)) - np.log1p(len(b)) for a, b in texts])
    first = np.array([1.0 if s == [0, 1] else -1.0 for s in biased.column("shown")])
    assert found.phi * found.scale == pytest.approx(np.stack([length, logs, first], axis=1), abs=1e-5)
    assert (
        found.first[0] > 0.5 and found.first[2] > 0.2
    )  # the longer one wins, and so does the one that was shown first
    for features, words in [
        (("lenght",), r"'lenght' is unknown \(known: length, characters, words"),
        (("words", "words"), "names one of them twice"),
        (("links",), "'links' is the same for both responses of every training pair; leave it out"),
    ]:
        with pytest.raises(RecipeError, match=words):
            nuisance(DebiasTable(features=features), biased, view, view.weight, view.row)
    assert len(KNOWN) == len(set(KNOWN)) == 27


def leant_objective(world, micro=100, table=None, **keys):  # noqa: F811
    objective = objective_of(world, table or {"kind": "dpo"}, micro)
    f = objective.fed[0]
    beside = nuisance(
        DebiasTable(features=("length", "words"), **keys), world[0], f.view, f.weights(np.arange(len(f.view))), f.rows
    )
    objective.lean(0, beside)
    return objective


def test_any_micro_batching_and_metrics_without_it(world):  # noqa: F811
    plain = objective_of(world, {"kind": "dpo"})
    whole, cut = leant_objective(world), leant_objective(world, 2)
    rows = whole.rows[:9]
    (one, gradient), (other, same) = value_and_gradient(whole, rows), value_and_gradient(cut, rows)
    assert one == pytest.approx(other, rel=1e-12) and torch.allclose(gradient, same, rtol=1e-7, atol=1e-8)
    assert one != pytest.approx(value_and_gradient(plain, rows)[0], rel=1e-4)
    assert whole.after_step(1)["debias"] == pytest.approx(cut.after_step(1)["debias"], rel=1e-9)
    assert whole.nuisance.coef.tolist() != whole.nuisance.first.tolist()
    figures, bare = whole.figures(rows), plain.figures(rows)
    assert figures["loss"] != bare["loss"]  # a held-out loss is the loss that is trained
    assert {n: v for n, v in figures.items() if n != "loss"} == {n: v for n, v in bare.items() if n != "loss"}


SMALL = {
    "run": {"threads": 1},
    "data": {"split": {"validation": 0.1, "test": 0.1}},
    "model": {"scratch": {"vocab": 330, "hidden": 16, "layers": 1, "heads": 2, "train": {"steps": 1, "batch": 16}}},
    "text": {"max_length": 192},
    "objective": {"kind": "reward"},
    "debias": {"features": ["length"]},
    "train": {"steps": 6, "batch": 16, "lr": 3e-3, "checkpoint_every": 2, "eval_every": 3},
    "evaluate": {"bootstrap": 20, "examples": 1},
}


def recipe(ds, *settings, **tables):
    return load_recipe({**SMALL, **tables, "data": {**SMALL["data"], "dataset": str(ds.path)}}, settings)


def test_a_run_says_what_it_took_out_and_resumes_to_the_byte(biased, tmp_path, monkeypatch):
    done = pipeline.train(recipe(biased), tmp_path / "whole", quiet=True)
    entries = [orjson.loads(line) for line in (done.folder / "ledger.jsonl").read_bytes().splitlines()]
    assert entries[0]["objective"]["debias"]["features"] == ["length"]
    said = [float.fromhex(e["after"]["debias"]["length"]) for e in entries if e["kind"] == "step"]
    assert len(set(said)) == 6 and verify(done.folder) == [] and pipeline.replay(done.folder, 3, 6)["ok"]
    assert "debias" not in Recipe.model_validate({**recipe(biased).model_dump(), "debias": None}).to_toml()
    page = " ".join(Page((done.folder / "report.html").read_text(encoding="utf-8")).text.split()).replace("\u00a0", " ")
    assert (
        f"length {number(float.fromhex(entries[0]['objective']['debias']['first fit'][0]))} {number(said[-1])}" in page
    )
    assert "prefers the longer response" in page
    base = orjson.loads((done.folder / "base" / "ledger.jsonl").read_bytes().splitlines()[0])
    assert "debias" not in base["objective"]

    learn, count = Nuisance.learn, []

    def die(self, *given):
        count.append(1)
        if len(count) == 5:
            raise HoldfastError("cut off")
        return learn(self, *given)

    monkeypatch.setattr(Nuisance, "learn", die)
    with pytest.raises(HoldfastError, match="cut off"):
        pipeline.train(recipe(biased), tmp_path / "cut", quiet=True)
    monkeypatch.setattr(Nuisance, "learn", learn)
    again = pipeline.resume(tmp_path / "cut", quiet=True)
    assert (again.ledger_head, again.weights_digest) == (done.ledger_head, done.weights_digest)
    with pytest.raises(RecipeError, match="the margin of ipo is no log-odds"):
        pipeline.train(recipe(biased, objective={"kind": "ipo"}), tmp_path / "ipo", quiet=True)
    assert not (tmp_path / "ipo" / "base").exists()  # said before anything is computed


@pytest.mark.slow
def test_what_length_explains_is_no_longer_the_rewards(biased, tmp_path):
    """Judges who like length: with the term beside it the reward agrees with length less, and with the right word more."""
    found = {}
    for name, tables in (("off", {"debias": None}), ("on", {})):
        keys = {k: v for k, v in tables.items() if v is not None}
        table = {k: v for k, v in SMALL.items() if k not in tables} | keys
        table = {**table, "data": {**SMALL["data"], "dataset": str(biased.path)}}
        done = pipeline.train(
            load_recipe(table, ["train.steps=150", "train.eval_every=150"]), tmp_path / name, quiet=True
        )
        probe = tmp_path / f"{name}.jsonl"
        texts = ["right well then", "wrong well then", "right" + " well then" * 7, "wrong" + " well then" * 7]
        probe.write_bytes(b"\n".join(orjson.dumps({"prompt": "say 3", "response": t}) for t in texts))
        short_right, short_wrong, long_right, long_wrong = (s["reward"] for s in pipeline.score(done.folder, probe))
        found[name] = ((long_right + long_wrong - short_right - short_wrong) / 2, short_right - long_wrong)
    (off, across), (on, across_on) = found["off"], found["on"]
    assert off > 0.5 and abs(on) < off / 2  # what a longer text gains
    assert across < 0 < across_on  # the right word, said briefly, against the wrong one at length


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_two_processes_fit_the_same_and_weigh_the_same(biased, tmp_path, parallel):
    """A step's pairs come from both processes to the one nuisance term; the same with weights beside it."""
    data = {**SMALL["data"], "dataset": str(biased.path), "weights": {"balance": ["longer"]}}
    found = []
    for world_size in (1, 2):
        table = {
            **SMALL,
            "run": {"threads": 1, "parallel": parallel},
            "data": data,
            "debias": {"features": ["length", "words"]},
        }
        path = tmp_path / f"{world_size}.toml"
        path.write_text(load_recipe(table, ["train.micro_batch=3"]).to_toml())
        torchrun = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"] if world_size > 1 else []
        )
        command = [
            sys.executable,
            *torchrun,
            "-m",
            "holdfast",
            "train",
            str(path),
            "-o",
            str(tmp_path / f"run{world_size}"),
            "--json",
        ]
        environment = {**os.environ, "HOLDFAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        entries = [
            orjson.loads(line) for line in (tmp_path / f"run{world_size}" / "ledger.jsonl").read_bytes().splitlines()
        ]
        steps = [e for e in entries if e["kind"] == "step"]
        found.append([[float.fromhex(x) for x in (s["loss"], *s["after"]["debias"].values())] for s in steps])
    assert np.array(found[0]) == pytest.approx(np.array(found[1]), rel=1e-5)
