"""The main flow from file to report, as a user drives it, on a small stretch of the built-in world."""

import json
import shutil
import tomllib

import orjson
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from holdfast import pipeline
from holdfast.cli import app, main
from holdfast.data.freeze import freeze
from holdfast.demo.world import World
from holdfast.errors import DataError, HoldfastError, IntegrityError, RecipeError
from holdfast.proof import verify
from holdfast.recipe import load_recipe
from holdfast.training.ledger import entry_hash

SMALL = {
    "run": {"threads": 1},
    "data": {"split": {"holdout": ["ends"]}},
    "model": {
        "scratch": {"vocab": 400, "hidden": 32, "layers": 2, "heads": 2, "train": {"steps": 6, "batch": 16, "lr": 3e-3}}
    },
    "text": {"max_length": 192, "too_long": "drop"},
    "objective": {"kind": "dpo", "beta": 0.2},
    "train": {"steps": 6, "batch": 16, "lr": 1e-3, "eval_every": 3, "eval_rows": 30, "checkpoint_every": 2},
    "evaluate": {"bootstrap": 50, "examples": 2},
}


def recipe(dataset, *settings):
    return load_recipe({**SMALL, "data": {**SMALL["data"], "dataset": str(dataset)}}, settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A frozen dataset and a finished DPO run with its base."""
    folder = tmp_path_factory.mktemp("flow")
    World(0).write_jsonl(folder / "world.jsonl", 120, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    run = pipeline.train(recipe(folder / "data"), folder / "run", quiet=True)
    return folder, run


def copy_of(place, tmp_path):
    shutil.copytree(place[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_complete(place):
    folder, run = place
    assert run.stopped == "finished" and run.steps == 6 and len(run.ledger_head) == 64
    names = {p.name for p in run.folder.iterdir()}
    assert {
        "recipe.toml",
        "ledger.jsonl",
        "split.json",
        "rows.parquet",
        "model",
        "evaluations",
        "report.html",
        "base",
        "left_out.jsonl",
    } <= names
    assert verify(run.folder) == [] and verify(folder / "data") == [] and verify(run.folder / "base") == []
    resolved = tomllib.loads((run.folder / "recipe.toml").read_text())
    assert resolved["train"]["patience"] == 3 and resolved["data"]["dataset"] == str((folder / "data").resolve())


def test_the_same_recipe_gives_the_same_bytes(place, tmp_path):
    again = pipeline.train(recipe(place[0] / "data"), tmp_path / "again", quiet=True)
    assert (again.ledger_head, again.weights_digest) == (place[1].ledger_head, place[1].weights_digest)
    assert (tmp_path / "again" / "ledger.jsonl").read_bytes() == (place[1].folder / "ledger.jsonl").read_bytes()
    other = pipeline.train(recipe(place[0] / "data", "run.seed=1"), tmp_path / "other", quiet=True)
    assert other.weights_digest != again.weights_digest


def test_layers_computed_again_give_the_same_bytes(place, tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward, grads = LlamaMLP.forward, []
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: grads.append(self.training and x.requires_grad) or forward(self, x)
    )
    counts = []
    for name, more in (("kept", []), ("again", ["run.checkpointing=true"])):
        grads.clear()
        run = pipeline.train(recipe(place[0] / "data", *more), tmp_path / name, quiet=True)
        assert run.weights_digest == place[1].weights_digest
        counts.append(sum(grads))
    assert counts[1] > counts[0] > 0


def test_the_saved_model_is_an_ordinary_transformers_folder(place):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place[1].folder / "model")
    kept = load_file(place[1].folder / "model" / "model.safetensors")
    assert model.config.hidden_size == 32 and {"model.embed_tokens.weight"} <= set(kept)


def test_figures_come_from_the_table_and_shortcuts_stand_beside(place):
    folder = place[1].folder / "evaluations" / "held-out"
    table = pq.read_table(folder / "rows.parquet").to_pydict()
    figures = json.loads((folder / "metrics.json").read_bytes())["figures"]["parts"]
    assert set(table["part"]) == {"validation", "test", "ood"} == set(figures)
    assert {c for c, part in zip(table["category"], table["part"], strict=True) if part == "ood"} == {"ends"}
    right = total = 0.0
    for part, p, w, a, b in zip(*(table[k] for k in ("part", "p", "weight", "reward_a", "reward_b")), strict=True):
        if part == "test" and p != 0.5:
            right += w * (0.5 if a == b else (a > b) == (p > 0.5))
            total += w
    found = figures["test"]["all"]["figures"]
    assert found["rewards/accuracies"]["value"] == pytest.approx(right / total)
    assert {"longer/accuracies", "bag of words/accuracies", "kl", "drift/chosen", "brier", "ece"} <= set(found)
    examples = json.loads((folder / "examples.json").read_bytes())
    assert len(examples) == 2 and examples[0]["chosen"]["tokens"]


def test_replay_trace_and_evaluate_on_another_dataset(place, tmp_path):
    _, run = place
    done = pipeline.replay(run.folder, 2, 5)
    assert done["ok"], done
    World(1).write_jsonl(tmp_path / "other.jsonl", 30, seed=5)
    freeze(tmp_path / "other.jsonl", tmp_path / "other")
    metrics = run.evaluate(tmp_path / "other")
    assert set(metrics["figures"]["parts"]) == {"all"} and metrics["facts"]["ledger_head"] == run.ledger_head


def test_replay_names_what_came_out_different(place, tmp_path):
    run = copy_of(place, tmp_path)
    entries = [orjson.loads(line) for line in (run / "ledger.jsonl").read_bytes().splitlines()]
    previous = ""
    for entry in entries:  # a forger's ledger: another loss at step 4, the chain made whole again
        if entry["kind"] == "step" and entry["step"] == 4:
            entry["loss"] = "0x1.0p+0"
        entry["prev"] = previous if entry["n"] else entry["prev"]
        entry["hash"] = previous = entry_hash(entry)
    (run / "ledger.jsonl").write_bytes(b"".join(orjson.dumps(e, option=orjson.OPT_SORT_KEYS) + b"\n" for e in entries))
    done = pipeline.replay(run, 3, 5)
    assert not done["ok"] and "step 4" in " ".join(done["problems"]) and "loss" in " ".join(done["problems"])


@pytest.mark.parametrize("kind", ["reward", "sft"])
def test_reward_models_and_sft_on_the_base_of_another_run(place, tmp_path, kind):
    folder, run = place
    said = recipe(folder / "data").model_dump(mode="json")
    said |= {"model": {"path": str(run.folder / "base")}, "objective": {"kind": kind}}
    done = pipeline.train(load_recipe(json.loads(json.dumps(said))), tmp_path / kind, quiet=True)
    assert verify(done.folder) == []
    figures = json.loads((done.folder / "evaluations" / "held-out" / "metrics.json").read_bytes())["figures"]
    assert 0 <= figures["parts"]["test"]["all"]["figures"]["rewards/accuracies"]["value"] <= 1
    if kind == "reward":
        from transformers import AutoModelForSequenceClassification

        assert AutoModelForSequenceClassification.from_pretrained(done.folder / "model").config.num_labels == 1


def test_scores_of_given_responses(place, tmp_path):
    asked = [{"role": "user", "content": "What is two plus two?"}]
    rows = [
        {"prompt": asked, "response": "It is four."},
        {"prompt": asked, "completion": ""},
        {"prompt": asked, "response": "Five."},
    ]
    (tmp_path / "asked.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    scored = pipeline.score(place[1].folder, tmp_path / "asked.jsonl")
    by_row = {s["row"]: s for s in scored}
    assert isinstance(by_row[1]["reward"], float) and by_row[1]["reward"] != by_row[3]["reward"]
    assert by_row[2]["reward"] is None and "empty" in by_row[2]["reason"]


def test_what_cannot_be_is_said_before_the_first_step(place, tmp_path):
    folder, run = place
    for settings, error, words in [
        (["objective.bta=1"], RecipeError, "unknown key 'bta'"),
        (["objective.kind=dop"], RecipeError, "kind = 'dop' is unknown"),
        (["data.root=" + "0" * 64], IntegrityError, "the recipe wants 000"),
        (["text.too_long=refuse", "text.max_length=12"], DataError, "text.max_length = 12"),
        (["data.split.holdout=['nowhere']"], RecipeError, "nowhere"),
    ]:
        with pytest.raises(error, match=words):
            pipeline.train(recipe(folder / "data", *settings), tmp_path / "never", quiet=True)
        assert not (tmp_path / "never" / "ledger.jsonl").exists()
        shutil.rmtree(tmp_path / "never", ignore_errors=True)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        pipeline.train(recipe(folder / "data", "run.seed=7"), run.folder, quiet=True)
    with pytest.raises(DataError, match="not a run folder"):
        pipeline.evaluate(folder)


def test_every_row_left_out_is_listed_with_its_reason_and_its_line(place, tmp_path):
    done = pipeline.train(recipe(place[0] / "data", "text.max_length=60"), tmp_path / "short", quiet=True)
    lines = [orjson.loads(line) for line in (done.folder / "left_out.jsonl").read_bytes().splitlines()]
    assert lines and {"row", "reason", "origins"} == set(lines[0])
    assert any("longer than 60 tokens" in line["reason"] for line in lines)
    assert lines[0]["origins"][0][0].endswith("world.jsonl")


def run_cli(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_the_command_line_prints_one_json_object(place, tmp_path):
    folder, run = place
    for words, keys in [
        (("verify", run.folder), {"ok", "problems"}),
        (("trace", run.folder, "--step", 2), {"step", "rows"}),
        (("evaluate", run.folder), {"metrics"}),
        (("compare", run.folder, run.folder), {"comparisons"}),
        (("report", run.folder), {"report"}),
        (("resume", run.folder), {"run", "steps", "ledger_head", "weights_digest"}),
        (("split", folder / "data", "-o", tmp_path / "split"), {"digest", "parts"}),
        (("freeze", folder / "world.jsonl", "-o", tmp_path / "again"), {"root", "accepted", "rejected", "rejects"}),
    ]:
        done = run_cli(*words, "--json")
        assert done.exit_code == 0, (words, done.output)
        assert keys <= set(json.loads(done.stdout)), words
    row = json.loads(run_cli("trace", run.folder, "--step", 2, "--json").stdout)["rows"][0]
    assert row["annotator"] and row["origins"][0][1] > 0
    steps = json.loads(run_cli("trace", run.folder, "--row", row["id"][:12], "--json").stdout)["steps"]
    assert 2 in [s["step"] for s in steps]


def test_exit_status_1_where_it_does_not_hold_and_2_for_mistakes(place, tmp_path, monkeypatch, capsys):
    run = copy_of(place, tmp_path)
    weights = run / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    done = run_cli("verify", run, "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 1 and not said["ok"] and "model.safetensors" in said["problems"][0]["where"]
    for words in [
        ("train", tmp_path / "none.toml"),
        ("replay", run, "--steps", "x"),
        ("trace", run),
        ("freeze", tmp_path / "none.jsonl", "-o", tmp_path / "o"),
        ("evaluate", tmp_path),
        ("compare", run),
        ("score", run, tmp_path / "none.jsonl"),
    ]:
        monkeypatch.setattr("sys.argv", ["holdfast", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2, words
        shown = capsys.readouterr()
        assert "holdfast: " in shown.err and "Traceback" not in shown.err and not shown.out


def test_rejects_stop_a_freeze_and_json_still_lists_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "b"}\n{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    )
    monkeypatch.setattr(
        "sys.argv", ["holdfast", "freeze", str(tmp_path / "bad.jsonl"), "-o", str(tmp_path / "o"), "--json"]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    said = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 2 and said["root"] is None and (said["accepted"], said["rejected"]) == (1, 1)
    assert said["rejects"][0]["row"] == 1 and not (tmp_path / "o").exists()


def test_the_public_names_are_there():
    import holdfast as hf

    for name in hf.__all__:
        assert getattr(hf, name) is not None
    assert hf.train is pipeline.train and hf.evaluate is pipeline.evaluate
    assert issubclass(RecipeError, HoldfastError)


def test_generated_pages_are_fresh():
    import runpy
    from pathlib import Path

    docs = Path(__file__).parent.parent / "docs"
    for name, make in runpy.run_path(str(docs / "make.py"))["PAGES"].items():
        assert (docs / name).read_text(encoding="utf-8") == make(), f"docs/{name} is stale: run `make docs`"
