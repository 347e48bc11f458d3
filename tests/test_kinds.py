"""Recipes of every sort of objective, from file to report: trained, verified, replayed, scored."""

import json

import orjson
import pyarrow.parquet as pq
import pytest

from holdfast import pipeline
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.records import Judgement
from holdfast.data.views import READ_WITH
from holdfast.demo.world import World
from holdfast.errors import DataError, RecipeError
from holdfast.proof import verify
from holdfast.recipe import load_recipe
from test_pipeline import SMALL

TRAIN = {"steps": 4, "batch": 12, "micro_batch": 5, "lr": 1e-3, "eval_every": 2, "eval_rows": 20, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The world's file, the same pairs as labels and as scores (three of a prompt, one too close to call), and a base."""
    folder = tmp_path_factory.mktemp("kinds")
    World(0).write_jsonl(folder / "world.jsonl", 100, seed=0)
    freeze(folder / "world.jsonl", folder / "all")
    rows = [orjson.loads(line) for line in (folder / "world.jsonl").read_bytes().splitlines()]
    pairs = [(r["prompt"], *r["responses"]) for r in rows if r["kind"] == "pair"]
    labels = [Judgement("label", p, (x,), value=v) for p, good, bad in pairs for x, v in ((good, 1.0), (bad, 0.0))]
    freeze_records(labels, folder / "labels")
    seen, scores = set(), []
    for p, good, bad in pairs:
        if json.dumps(p) not in seen:
            seen.add(json.dumps(p))
            said = ((good, 4.0), (bad, 1.0), ([{"role": "assistant", "content": "I would rather not say."}], 1.25))
            scores += [Judgement("score", p, (x,), value=v, annotator="m") for x, v in said]
    freeze_records(scores, folder / "scores")
    pipeline.train(recipe(folder, "all", {"kind": "sft"}), folder / "base", quiet=True)
    return folder


def recipe(folder, data, objective, **of_data):
    said = {**SMALL, "objective": objective, "train": TRAIN, "evaluate": {"bootstrap": 20, "examples": 1}}
    said["data"] = {"dataset": str(folder / data), **of_data}
    if (folder / "base").exists():
        said["model"] = {"path": str(folder / "base")}
    return load_recipe(said)


def check(run):
    assert run.stopped == "finished" and verify(run.folder) == [] and pipeline.replay(run.folder, 3, 4)["ok"]
    assert (run.folder / "report.html").stat().st_size > 1000
    return [orjson.loads(line) for line in (run.folder / "metrics.jsonl").read_bytes().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kto", "aot", "bco", "tdpo2", "wpo", "ld_dpo", "simpo", "plackett_luce"])
def test_policies(place, tmp_path, kind):
    metrics = check(pipeline.train(recipe(place, "all", {"kind": kind}), tmp_path / "run", quiet=True))
    names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
    assert (
        names <= set(metrics[0])
        and ("kl" in metrics[0]) == (kind == "kto")
        and ("delta" in metrics[0]) == (kind == "bco")
    )
    figures = json.loads((tmp_path / "run/evaluations/held-out/metrics.json").read_bytes())["figures"]["parts"]
    assert 0 <= figures["test"]["all"]["figures"]["rewards/accuracies"]["value"] <= 1


def test_labels_alone_train_kto_and_are_not_evaluated_as_comparisons(place, tmp_path):
    check(pipeline.train(recipe(place, "labels", {"kind": "kto"}), tmp_path / "run", quiet=True))
    assert not (tmp_path / "run" / "evaluations").exists()
    with pytest.raises(DataError, match="nothing in .* compares two responses"):
        pipeline.evaluate(tmp_path / "run")
    done = pipeline.evaluate(tmp_path / "run", on=place / "all")
    assert done["figures"]["parts"]["all"]["all"]["figures"]["rewards/accuracies"]["value"] > 0
    with pytest.raises(DataError, match="left to train dpo on: .'a label alone makes no comparison'"):
        pipeline.train(recipe(place, "labels", {"kind": "dpo"}), tmp_path / "dpo", quiet=True)


def test_scores_are_compared_above_the_margin(place, tmp_path):
    both = {"kind": "sum", "terms": [{"kind": "dpo"}, {"kind": "plackett_luce", "weight": 0.5}]}
    run = pipeline.train(recipe(place, "scores", both, score_margin=0.5), tmp_path / "run", quiet=True)
    metrics = check(run)
    assert {"dpo/loss", "dpo/rewards/accuracies", "plackett_luce/loss"} <= set(metrics[0])
    table = pq.read_table(run.folder / "evaluations/held-out/rows.parquet").to_pydict()
    assert set(table["kind"]) == {"score"} and set(table["weight"]) == {0.5} and set(table["p"]) == {1.0}
    reasons = [orjson.loads(x)["reason"] for x in (run.folder / "left_out.jsonl").read_bytes().splitlines()]
    assert reasons.count(READ_WITH) == len(reasons) > 0
    for kind, data in (("sft", "scores"), ("dpo", "all")):
        with pytest.raises(RecipeError, match=r"score_margin = 0\.5 has no effect"):
            pipeline.train(recipe(place, data, {"kind": kind}, score_margin=0.5), tmp_path / kind, quiet=True)


def test_an_ensemble_says_how_unsure_it_is(place, tmp_path):
    objective = {"kind": "reward", "loss": "rao_kupper", "heads": 3, "pessimism": "min"}
    run = pipeline.train(recipe(place, "all", objective), tmp_path / "run", quiet=True)
    check(run)
    asked = [{"role": "user", "content": "What is two plus two?"}]
    (tmp_path / "asked.jsonl").write_bytes(orjson.dumps({"prompt": asked, "response": "It is four."}))
    (scored,) = pipeline.score(run.folder, tmp_path / "asked.jsonl")
    assert scored["spread"] > 0 and scored["pessimistic"] < scored["reward"]
    assert {"model.safetensors", "heads.safetensors"} <= {p.name for p in (run.folder / "model").iterdir()}
    (run.folder / "model" / "heads.safetensors").unlink()
    assert any("heads.safetensors" in problem.where for problem in verify(run.folder))
