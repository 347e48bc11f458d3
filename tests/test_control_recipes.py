"""The recipes of control: each is read, and runs from the lines at its top."""

import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.control.algorithms import ALGORITHMS
from holdfast.proof import verify
from holdfast.recipe import ControlRecipe, read_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
FOUND = sorted(RECIPES.glob("control-*.toml"))


def lines(recipe: Path) -> list[list[str]]:
    """The commands of the comment at the top."""
    said = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#   holdfast ")]
    return [shlex.split(line)[1:] for line in said]


@pytest.mark.parametrize("recipe", FOUND, ids=[r.stem for r in FOUND])
def test_a_recipe_says_how_its_log_is_made(recipe):
    made = read_recipe(recipe)
    assert isinstance(made, ControlRecipe)
    assert made.objective["kind"] in ALGORITHMS and made.run.name == recipe.stem
    commands = lines(recipe)
    written = [c[c.index("-o") + 1] for c in commands if "-o" in c]
    assert made.data.dataset in written
    assert ["train", f"recipes/{recipe.name}"] in commands
    if made.objective["kind"] != "segment_reward":
        collected = next(c for c in commands if c[:2] == ["control", "collect"])
        assert made.control.simulate == collected[2]


def test_there_is_a_recipe_for_each_task():
    assert {r.stem.removeprefix("control-") for r in FOUND} >= {
        "cartpole", "pendulum5", "pendulum5-reward", "pendulum", "mountaincar", "hopper",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FOUND, ids=[r.stem for r in FOUND])
def test_a_recipe_runs_from_its_lines(recipe, tmp_path, monkeypatch):
    """Shorter logs and a step or two, but every line as it stands otherwise."""
    if "Hopper" in recipe.read_text():
        pytest.importorskip("mujoco", reason="Hopper needs mujoco")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(RECIPES)
    runner = CliRunner()
    for command in lines(recipe):
        if command[:2] == ["control", "collect"]:
            command[command.index("--steps") + 1] = "3000"
        if command[0] == "train":
            said = tomllib.loads((tmp_path / command[1]).read_text())
            command += ["--set", "train.steps=2", "--set", "train.eval_every=2", "--quiet"]
            if said["objective"]["kind"] != "fqi_trees":
                command += ["--set", "control.updates=3"]
            if "simulate" in said["control"]:
                command += ["--set", "control.episodes=1"]
        result = runner.invoke(app, command)
        assert result.exit_code == 0, (command, result.output)
    assert verify(tmp_path / "runs" / recipe.stem) == []
