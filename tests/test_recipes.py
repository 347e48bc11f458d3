"""The recipes that are shipped do what they say, on a small dataset and small models."""

import tomllib
from pathlib import Path

import pytest

from holdfast import pipeline
from holdfast.data.freeze import freeze
from holdfast.demo.world import World
from holdfast.language.policy import save_model
from holdfast.language.scratch import make_model, train_tokenizer
from holdfast.proof import verify
from holdfast.recipe import ScratchTable, load_recipe
from test_encoders import make as encoder

EVERY = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
RECIPES = [path for path in EVERY if not path.name.startswith("control-")]  # those: test_control_recipes.py
SHORT = {"steps": 4, "batch": 8, "lr": 1e-3, "warmup": 1, "eval_every": 2, "eval_rows": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A frozen dataset, a decoder and an encoder."""
    folder = tmp_path_factory.mktemp("recipes")
    World(0).write_jsonl(folder / "world.jsonl", 120, seed=0)
    dataset = freeze(folder / "world.jsonl", folder / "data").dataset
    texts = [m["content"] for messages in dataset.response_contents() for m in messages]
    tokenizer = train_tokenizer(texts, 400)
    save_model(
        make_model(ScratchTable(vocab=400, hidden=32, layers=2, heads=4), tokenizer, seed=1),
        tokenizer,
        folder / "decoder",
    )
    save_model(*encoder("bert", positions=256), folder / "encoder")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_trains_and_verifies(path, folder, tmp_path):
    said = tomllib.loads(path.read_text(encoding="utf-8"))
    said["data"] = {"dataset": str(folder / "data"), "split": {"holdout": ["ends"]}}
    if "scratch" in said["model"]:
        said["model"] = {
            "scratch": {"vocab": 400, "hidden": 32, "layers": 2, "heads": 4, "train": {"steps": 6, "batch": 8}}
        }
    else:
        said["model"] = {"path": str(folder / ("encoder" if "encoder" in path.name else "decoder"))}
    kept = {k: v for k, v in said["train"].items() if k in ("micro_batch", "per_prompt", "stop_on")}
    said["train"] = SHORT | kept
    run = pipeline.train(load_recipe(said), tmp_path / "run", quiet=True)
    assert run.steps == 4 and not verify(run.folder)
    table = pipeline.evaluate(run.folder)
    assert table is not None
    made = {p.name for p in (run.folder / "model").iterdir()}
    assert ("adapter_config.json" in made) == ("adapter" in said)
