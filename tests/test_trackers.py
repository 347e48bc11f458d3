"""A run's figures elsewhere: read back from what the tool's own library wrote."""

import json
import threading
import time

import orjson
import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.errors import HoldfastError, RecipeError
from holdfast.proof import verify
from holdfast.report import trackers
from holdfast.report.read import read_run
from holdfast.report.trackers import names, points, require, settings, track
from toy_objective import train_toy

RECIPE = """
[run]
name = "toy"
[data]
dataset = "nowhere"
[objective]
kind = "{kind}"
[train]
lr = 0.003
betas = [0.9, 0.999]
"""


@pytest.fixture
def run(tmp_path):
    train_toy(tmp_path / "run", eval_every=6)
    (tmp_path / "run" / "recipe.toml").write_text(RECIPE.format(kind="dpo"))
    return tmp_path / "run"


def events(folder):
    """{tag: [(step, value, wall time)]} as TensorBoard itself reads them, and the text and hparams beside them."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = loader.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    scalars = {tag: [(e.step, e.value, e.wall_time) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    return scalars, read


def test_every_figure_is_in_the_event_file_under_trls_name(run):
    before, problems = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}, verify(run)
    assert track(run, ["tensorboard"]) == {"tensorboard": f"tensorboard --logdir {run}"}
    scalars, _ = events(run / "tensorboard")
    lines = [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    for theirs, ours in {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}.items():
        found = scalars[f"train/{theirs}"]
        assert [step for step, _, _ in found] == [line["step"] for line in lines] == list(range(1, 25))
        assert [value for _, value, _ in found] == pytest.approx([line[ours] for line in lines], rel=1e-6)
    assert [step for step, _, _ in scalars["eval/loss"]] == [0, 6, 12, 18, 24]
    walls = [wall for _, _, wall in scalars["train/loss"]]
    assert walls == sorted(walls) and walls[-1] > walls[0]  # time of computing
    assert {p: p.read_bytes() for p in before} == before and verify(run) == problems


def test_the_dataset_and_the_ledger_head_stand_beside_the_figures(run):
    track(run, ["tensorboard"])
    _, read = events(run / "tensorboard")
    data = read_run(run)
    texts = [t for tag in read.Tags()["tensors"] for t in read.Tensors(tag)]
    text = b"".join(s for t in texts for s in t.tensor_proto.string_val).decode()
    assert data.head in text
    plugin = json.dumps(sorted(read.summary_metadata)) + str(read.PluginTagToContent("hparams"))
    assert data.head in plugin and "train.lr" in plugin and "toy" in plugin


def test_tracking_again_doubles_nothing(run):
    track(run, ["tensorboard"])
    once = events(run / "tensorboard")[0]
    track(run, ["tensorboard"])
    assert events(run / "tensorboard")[0] == once


def test_following_sees_what_comes_later_and_ends_with_the_run(run):
    """Half of a run's files first; the rest while it is being followed."""
    whole = {name: (run / name).read_bytes().splitlines(keepends=True) for name in ("metrics.jsonl", "ledger.jsonl")}
    half = {
        "metrics.jsonl": 9,
        "ledger.jsonl": next(i for i, line in enumerate(whole["ledger.jsonl"]) if b'"step":10' in line),
    }
    for name, n in half.items():
        (run / name).write_bytes(b"".join(whole[name][:n]) + whole[name][n][:20])  # and a line that is being written

    def go_on():
        time.sleep(0.3)
        for name, all_lines in whole.items():
            (run / name).write_bytes(b"".join(all_lines))
        (run / "report.html").write_text("done")

    writer = threading.Thread(target=go_on)
    writer.start()
    track(run, ["tensorboard"], follow=True, every=0.05)
    writer.join()
    assert [step for step, _, _ in events(run / "tensorboard")[0]["train/loss"]] == list(range(1, 25))


def test_names_of_a_reward_model():
    said = {
        "rewards/chosen": 2.0,
        "rewards/rejected": 1.0,
        "rewards/accuracies": 0.75,
        "rewards/margins": 1.0,
        "lr": 1e-4,
        "x": float("nan"),
    }
    assert names(said, "reward") == {
        "rewards/chosen": 2.0,
        "rewards/rejected": 1.0,
        "rewards/accuracies": 0.75,
        "rewards/margins": 1.0,
        "learning_rate": 1e-4,
        "accuracy": 0.75,
        "margin": 1.0,
        "mean_reward": 1.5,
    }
    assert "accuracy" not in names(said, "dpo")


def test_the_last_evaluation_has_its_own_part(run, monkeypatch):
    cell = {
        "figures": {
            "rewards/accuracies": {"value": 0.7, "lo": 0.6, "hi": 0.8},
            "kl": {"value": None, "lo": None, "hi": None},
        }
    }
    data = read_run(run)
    monkeypatch.setattr(
        type(data), "main", property(lambda _: type("E", (), {"figures": {"parts": {"test": {"all": cell}}}}))
    )
    last = list(points(data))[-1]
    assert (last.step, last.part) == (24, "test")
    assert last.figures == {"rewards/accuracies": 0.7, "rewards/accuracies/lo": 0.6, "rewards/accuracies/hi": 0.8}


def test_settings_are_flat(run):
    assert settings(read_run(run)) == {
        "run.name": "toy",
        "data.dataset": "nowhere",
        "objective.kind": "dpo",
        "train.lr": 0.003,
        "train.betas": "[0.9,0.999]",
    }


def test_a_missing_library_is_said_before_training_and_how_to_install_it(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"needs its library: pip install tensorboard \(or: pip install tensorboardX\)"
    ):
        require(["tensorboard"])
    with pytest.raises(RecipeError, match=r"pip install wandb$"):
        require(["wandb"])
    with pytest.raises(RecipeError, match="'comet' is unknown"):
        require(["comet"])
    require([])


def test_a_tool_that_fails_says_that_the_run_is_whole(run, monkeypatch):
    class Broken:
        def __init__(self, data):
            raise ConnectionError("no route")

    monkeypatch.setattr(trackers, "TensorBoard", Broken)
    with pytest.raises(
        HoldfastError, match=r"is whole, but tensorboard could not be written: ConnectionError: no route; again with"
    ):
        track(run, ["tensorboard"])


def test_the_verb(run):
    pytest.importorskip("tensorboard")
    done = CliRunner().invoke(app, ["track", str(run), "--to", "tensorboard", "--json"])
    assert json.loads(done.stdout)["tracked"] == {"tensorboard": f"tensorboard --logdir {run}"}


def test_wandb_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    where = track(run, ["wandb"])["wandb"]
    written = list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 1 and where.startswith("wandb sync ")
    assert read_run(run).head.encode() in written[0].read_bytes()


def test_mlflow_goes_on_with_its_run(run, monkeypatch, tmp_path):
    client = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    for _ in range(2):
        track(run, ["mlflow"])
    api = client.MlflowClient()
    (found,) = api.search_runs([api.get_experiment_by_name("holdfast").experiment_id])
    assert found.data.tags["holdfast.ledger_head"] == read_run(run).head and found.data.params["train.lr"] == "0.003"
    history = api.get_metric_history(found.info.run_id, "loss")
    lines = [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    assert sorted((m.step, m.value) for m in history) == [(line["step"], line["loss"]) for line in lines]
    assert len(api.get_metric_history(found.info.run_id, "eval_loss")) == 5
