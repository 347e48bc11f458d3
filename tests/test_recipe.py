"""Recipes: nothing configured is silently ignored."""

import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import RecipeError
from holdfast.recipe import Recipe, SplitTable, Table, bind, load_recipe, parse, read_recipe

BASE = {"data": {"dataset": "d"}, "model": {"path": "m"}, "objective": {"kind": "dpo", "beta": 0.1}}
RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_shipped_recipes_are_valid_and_survive_their_resolved_form(path):
    recipe = read_recipe(path)
    again = read_recipe(tomllib.loads(recipe.to_toml()))
    assert again == recipe and again.digest() == recipe.digest()


def tables(schema: type[Table] = Recipe, path: tuple[str, ...] = ()):
    yield path, schema
    for name, field in schema.model_fields.items():
        options = getattr(field.annotation, "__args__", (field.annotation,))
        for option in options:
            if isinstance(option, type) and issubclass(option, Table):
                yield from tables(option, (*path, name))


@pytest.mark.parametrize("path,schema", list(tables()), ids=lambda x: ".".join(x) if isinstance(x, tuple) else "")
@given(key=st.from_regex(r"[a-z_]{1,12}", fullmatch=True))
def test_an_unknown_key_in_any_table_is_an_error_that_names_it_and_the_known_ones(path, schema, key):
    if key in schema.model_fields:
        return
    said = {**BASE, "model": {"scratch": {}}} if "scratch" in path else BASE
    with pytest.raises(RecipeError) as error:
        load_recipe(said, [f"{'.'.join([*path, key])}=1"])
    assert repr(key) in str(error.value)
    assert all(name in str(error.value) for name in schema.model_fields)


def test_every_problem_is_listed_at_once():
    with pytest.raises(RecipeError) as error:
        load_recipe(BASE, ["train.lrr=1", "train.batch=0", "text.too_long=cut"])
    text = str(error.value)
    assert "did you mean 'lr'" in text and "batch = 0" in text and "'truncate-prompt-left'" in text


@pytest.mark.parametrize(
    "settings,words",
    [
        (["train.steps=3", "train.epochs=2"], "steps and epochs"),
        (['train.stop_on="loss"'], "stop_on needs eval_every"),
        (["train.batch=4", "train.micro_batch=8"], "micro_batch 8 is larger than batch 4"),
        (["model.hub=a/b"], "exactly one of path, hub, scratch; given: path, hub"),
        (["model.revision=main"], "revision goes with hub"),
        (["data.split.test=0.6", "data.split.validation=0.5"], "nothing is left to train on"),
        (["train.warmup=1.5"], "warmup 1.5 is neither whole steps nor a share below 1"),
        (["train.lr"], "key=value"),
        (["data.dataset.x=1"], "'dataset' is a value"),
    ],
)
def test_contradictions_are_named(settings, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(BASE, settings)


def test_settings_are_toml_values_and_bare_words_are_strings():
    recipe = load_recipe(
        BASE, ["train.lr=1e-3", "run.name=abc", 'data.split.holdout=["x", "y"]', "data.split.stratify=false"]
    )
    assert (recipe.train.lr, recipe.run.name, recipe.data.split.holdout, recipe.data.split.stratify) == (
        1e-3,
        "abc",
        ("x", "y"),
        False,
    )


def test_files_that_are_no_recipe(tmp_path):
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "latin.toml").write_bytes(b'a = "\xff"')
    for name, words in [
        ("none.toml", "does not exist"),
        ("bad.toml", "not TOML"),
        ("latin.toml", "not TOML"),
        (".", "folder"),
    ]:
        with pytest.raises(RecipeError, match=words):
            load_recipe(tmp_path / name)


def test_the_digest_is_of_what_is_said_and_not_of_where_things_lie():
    digest = load_recipe(BASE).digest()
    assert load_recipe(BASE, ["data.dataset=elsewhere", "model.path=moved"]).digest() == digest
    assert load_recipe(BASE, ["train.lr=1e-4"]).digest() != digest
    assert load_recipe(BASE, ["objective.beta=0.2"]).digest() != digest


def test_bind_fills_defaults_and_refuses_what_the_function_does_not_take():
    def loss(x, *, beta: float = 0.1, form: Literal["a", "b"] = "a", steps: int | None = None): ...

    assert bind(loss, {"beta": 1}, "[objective]") == {"beta": 1.0, "form": "a", "steps": None}
    for table, words in [
        ({"bta": 1}, r"unknown key 'bta'; did you mean 'beta'\? \(known: beta, form, steps\)"),
        ({"form": "c"}, "form = 'c' should be 'a' | 'b'"),
        ({"beta": "x"}, "beta = 'x' should be float"),
        ({"beta": True}, "beta = True should be float"),
        ({"steps": 1.5}, "steps = 1.5 should be int or NoneType"),
        ({"x": 1}, "unknown key 'x'"),
    ]:
        with pytest.raises(RecipeError, match=words):
            bind(loss, table, "[objective]")

    def needy(*, k: int): ...

    with pytest.raises(RecipeError, match="k must be given"):
        bind(needy, {}, "[objective]")


def test_a_table_alone_can_be_parsed():
    assert parse(SplitTable, {"test": 0.2, "holdout": ["x"]}, "split").holdout == ("x",)
    with pytest.raises(RecipeError, match="split: test = 1.5"):
        parse(SplitTable, {"test": 1.5}, "split")
