"""Moving over: every argument of TRL becomes what its table says, and nothing unknown passes."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.errors import RecipeError
from holdfast.language.terms import read_objective
from holdfast.moving import from_trl
from holdfast.moving.fields import FIELDS, OLDER, READ_IN, SCRIPT, Field, known
from holdfast.moving.read import read_arguments
from holdfast.recipe import load_recipe

TRL = json.loads((Path(__file__).parent / "trl_fields.json").read_text())  # bench/conformance/fields.py made it
BASE = {"model_name_or_path": "./model", "dataset_name": "pairs.jsonl"}


def moved(tmp_path, said, **asked):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({**BASE, **said}))
    return from_trl(path, **asked)


def kinds(made, name):
    return [line.kind for line in made.lines if name in line.trl.split(", ")]


# --- the tables


@pytest.mark.parametrize("group", TRL["fields"])
def test_every_field_of_trl_is_in_the_table_with_its_default(group):
    table = SCRIPT if group == "script" else FIELDS[group]
    expected = TRL["fields"][group] | ({"config": None} if group == "script" else {})
    assert {name: field.default for name, field in table.items()} == expected
    assert {name: TRL[name] for name in READ_IN} == READ_IN


@pytest.mark.parametrize("method", FIELDS)
def test_a_dump_of_all_of_trls_defaults_becomes_trls_defaults(method, tmp_path):
    """As TrainingArguments.to_dict writes it: every field, and each gets its line."""
    said = {
        **TRL["fields"][method],
        **{k: v for k, v in TRL["fields"]["script"].items() if v is not None and k not in BASE},
    }
    made = moved(tmp_path, {**said, "output_dir": "out"}, method=method)
    spoken = {name for line in made.lines for name in line.trl.split(", ")}
    assert set(said) - {n for n, v in said.items() if v is None} <= spoken | {"streaming"}
    recipe = load_recipe(made.recipe)
    assert (recipe.train.batch, recipe.train.epochs, recipe.run.seed, recipe.train.schedule) == (8, 3.0, 42, "linear")
    assert recipe.train.lr == (1e-4 if method == "reward" else 1e-6)
    assert recipe.text.max_length == 1024
    assert recipe.text.too_long == ("drop" if method == "reward" else "truncate-response-right")


@pytest.mark.parametrize("method", FIELDS)
def test_nothing_said_and_everything_said_are_the_same_recipe(method, tmp_path):
    short = moved(tmp_path, {}, method=method).recipe
    full = {
        k: v for k, v in TRL["fields"][method].items() if k != "save_steps"
    }  # else Holdfast's own, which loses less
    full = moved(tmp_path, full, method=method).recipe
    assert load_recipe(short) == load_recipe(full)


@pytest.mark.parametrize("method", FIELDS)
def test_each_argument_by_itself_is_carried_over_explained_or_refused(method, tmp_path):
    """Set to something else than its default, no argument vanishes."""
    other = {
        "int": 7,
        "float": 0.25,
        "bool": None,
        "str": "word",
        "list": ["word"],
        "floats": [0.5],
        "dict": {"a": 1},
        "any": "word",
    }
    for name, field in known(method).items():
        value = not field.default if field.type == "bool" else other[field.type]
        try:
            made = moved(tmp_path, {name: value}, method=method)
        except RecipeError as refusal:
            assert name in str(refusal), name
            continue
        assert kinds(made, name), f"{name} = {value!r} left no line"


@pytest.mark.parametrize("method", FIELDS)
def test_older_names_do_not_hide_newer_ones(method):
    assert not {n for n, f in OLDER[method].items() if n in FIELDS[method] and f.way != FIELDS[method][n].way}
    assert all(isinstance(f, Field) and f.name == n for n, f in known(method).items())


# --- losses

D = {"beta": 0.1}


@pytest.mark.parametrize(
    ("method", "said", "objective"),
    [
        ("dpo", {}, {"kind": "dpo", **D}),
        ("dpo", {"loss_type": "hinge", "beta": 0.3}, {"kind": "hinge", "beta": 0.3}),
        ("dpo", {"loss_type": "ipo", "beta": 0.2}, {"kind": "ipo_avg", "tau": 0.2}),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.2}, {"kind": "rdpo", **D, "e": 0.2}),
        ("dpo", {"loss_type": "exo_pair", "label_smoothing": 1e-3}, {"kind": "exo", **D, "e": 1e-3}),
        ("dpo", {"loss_type": ["nca_pair"]}, {"kind": "nca", **D}),
        ("dpo", {"loss_type": "bco_pair"}, {"kind": "bco", **D}),
        ("dpo", {"loss_type": "sppo_hard", "beta": 0.001}, {"kind": "sppo", "beta": 0.001}),
        ("dpo", {"loss_type": "aot_unpaired"}, {"kind": "aot_unpaired", **D}),
        ("dpo", {"loss_type": "apo_down"}, {"kind": "apo_down", **D}),
        ("dpo", {"loss_type": "discopop", "discopop_tau": 0.1}, {"kind": "discopop", **D, "tau": 0.1}),
        ("dpo", {"loss_type": "sigmoid_norm"}, {"kind": "ln_dpo", **D}),
        ("dpo", {"loss_type": "sft"}, {"kind": "sft"}),
        ("dpo", {"ld_alpha": 0.5}, {"kind": "ld_dpo", **D, "alpha": 0.5}),
        ("dpo", {"use_weighting": True}, {"kind": "wpo", **D, "cap": float("inf")}),
        ("dpo", {"f_divergence_type": "js_divergence"}, {"kind": "f_dpo", **D, "divergence": "js"}),
        (
            "dpo",
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25},
            {"kind": "f_dpo", **D, "divergence": "alpha", "alpha": 0.75},
        ),
        (
            "dpo",
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
            {
                "kind": "sum",
                "terms": [{"kind": "dpo", "weight": 0.8, **D}, {"kind": "bco", "weight": 0.2, **D}, {"kind": "sft", "weight": 1.0}],
            },
        ),
        ("dpo", {"rpo_alpha": 0.5}, {"kind": "sum", "terms": [{"kind": "dpo", "weight": 1.0, **D}, {"kind": "sft", "weight": 0.5}]}),
        ("kto", {"desirable_weight": 1.3}, {"kind": "kto", **D, "lam_good": 1.3, "lam_bad": 1.0}),
        ("reward", {"center_rewards_coefficient": 0.01}, {"kind": "reward", "centre": 0.01}),
        ("reward", {}, {"kind": "reward", "centre": 0.0}),
        ("cpo", {"loss_type": "simpo", "cpo_alpha": 0, "simpo_gamma": 0.3, "beta": 2}, {"kind": "simpo", "beta": 2.0, "gamma": 0.3}),
        (
            "cpo",
            {"cpo_alpha": 0.5},
            {"kind": "sum", "terms": [{"kind": "cpo", "weight": 1.0, **D, "lam": 0.0}, {"kind": "sft", "weight": 0.5}]},
        ),
        ("cpo", {"cpo_alpha": 0}, {"kind": "cpo", **D, "lam": 0.0}),
        ("orpo", {"beta": 0.2}, {"kind": "orpo", "lam": 0.2}),
    ],
)  # fmt: skip
def test_losses(method, said, objective, tmp_path):
    made = moved(tmp_path, said, method=method).recipe["objective"]
    assert made == objective
    read_objective(made)  # the objective binds it


@pytest.mark.parametrize(
    ("method", "said", "words"),
    [
        ("dpo", {"betta": 1}, "unknown argument 'betta'; did you mean beta"),
        ("dpo", {"loss_type": "sigmod"}, "did you mean 'sigmoid'"),
        ("dpo", {"loss_type": "exo_pair"}, "exo_pair needs it above 0"),
        ("dpo", {"loss_type": "aot", "label_smoothing": 0.1}, "no place"),
        ("dpo", {"ld_alpha": 0.5, "use_weighting": True}, "no loss of Holdfast"),
        ("dpo", {"loss_type": "hinge", "f_divergence_type": "forward_kl"}, "no loss of Holdfast"),
        ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2}, r"lies in \[0, 1\]"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1]}, "one weight for each"),
        ("dpo", {"optim": "adafactor"}, "AdamW is the optimiser"),
        ("dpo", {"lr_scheduler_type": "polynomial"}, "known: linear, cosine"),
        ("dpo", {"load_in_4bit": True}, "float32 or bfloat16"),
        ("dpo", {"max_prompt_length": 512}, "one limit, text.max_length"),
        ("dpo", {"reference_free": True}, "a loss without reference"),
        ("dpo", {"disable_dropout": False}, "dropout is off"),
        ("dpo", {"eval_strategy": "steps", "eval_steps": 0.1}, "say whole steps"),
        ("dpo", {"load_best_model_at_end": True}, "must be measured"),
        ("dpo", {"learning_rate": "fast"}, "learning_rate = 'fast' should be float"),
        ("dpo", {"per_device_train_batch_size": 1.5}, "should be int"),
        ("dpo", {"bf16": "perhaps"}, "should be bool"),
        ("kto", {"loss_type": "apo_zero_unpaired"}, "kto is the one here"),
        ("cpo", {"loss_type": "hinge"}, "slic"),
        ("cpo", {"loss_type": "alphapo"}, "AlphaPO"),
        ("cpo", {"label_smoothing": 0.1}, "each row's label"),
        ("kto", {"ld_alpha": 0.5}, "unknown argument 'ld_alpha'"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_say_is_refused(method, said, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        moved(tmp_path, said, method=method)


def test_every_problem_is_named_at_once_and_one_can_be_left_out_on_purpose(tmp_path):
    said = {"optim": "adafactor", "load_in_4bit": True, "neftune_noise_alpha": 5}
    with pytest.raises(RecipeError) as refusal:
        moved(tmp_path, said, method="dpo")
    assert all(name in str(refusal.value) for name in said)
    made = moved(tmp_path, said, method="dpo", without=list(said))
    assert [kinds(made, name) for name in said] == [["left out"]] * 3
    with pytest.raises(RecipeError, match="--without lora_r"):
        moved(tmp_path, {}, method="dpo", without=["lora_r"])


@pytest.mark.parametrize(
    ("method", "said", "silent"),
    [
        ("dpo", {"label_smoothing": 0.1}, "label_smoothing"),
        ("dpo", {"label_smoothing": 0.1, "loss_type": "hinge"}, "label_smoothing"),
        ("dpo", {"discopop_tau": 0.1}, "discopop_tau"),
        ("dpo", {"f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef"),
        ("dpo", {"ref_model_mixup_alpha": 0.3}, "ref_model_mixup_alpha"),
        ("dpo", {"padding_free": True}, "padding_free"),
        ("dpo", {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ("dpo", {"lora_r": 8}, "lora_r"),
        ("dpo", {"eval_steps": 5}, "eval_steps"),
        ("dpo", {"warmup_steps": 5, "lr_scheduler_type": "constant"}, "warmup_steps"),
        ("dpo", {"num_train_epochs": 5, "max_steps": 10}, "num_train_epochs"),
        ("cpo", {"simpo_gamma": 0.3}, "simpo_gamma"),
    ],
)
def test_what_had_no_effect_in_trl_is_said(method, said, silent, tmp_path):
    assert kinds(moved(tmp_path, said, method=method), silent) == ["no effect"]


# --- the loop


def test_batches_multiply_and_rates_are_carried_over(tmp_path):
    said = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "warmup_ratio": 0.1,
        "lr_scheduler_type": "cosine_with_min_lr",
    }
    said |= {
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "max_steps": 100,
        "eval_strategy": "steps",
        "eval_steps": 0.1,
        "save_steps": 25,
    }
    said |= {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_rewards/accuracies",
        "save_total_limit": 3,
        "adam_beta2": 0.95,
    }
    made = moved(tmp_path, said, method="dpo", processes=4)
    t = load_recipe(made.recipe).train
    assert (t.batch, t.micro_batch, t.steps, t.epochs) == (64, 2, 100, None)
    assert (t.warmup, t.schedule, t.lr_end, t.betas) == (0.1, "cosine", 0.1, (0.9, 0.95))
    assert (t.eval_every, t.stop_on, t.checkpoint_every, t.keep_checkpoints) == (10, "rewards/accuracies", 25, 3)
    assert t.patience > 10**5  # TRL does not stop early without a callback


def test_the_text_says_the_same_as_the_recipe_and_names_the_arguments(tmp_path):
    made = moved(
        tmp_path, {"loss_type": ["sigmoid", "sft"], "use_peft": True, "lora_r": 8, "sync_ref_model": True}, method="dpo"
    )
    assert tomllib.loads(made.toml) == json.loads(json.dumps(made.recipe))
    assert "learning_rate: TRL's default" in made.toml and "# lora_r" in made.toml
    assert load_recipe(made.recipe).adapter == {"kind": "lora", "r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
    assert load_recipe(made.recipe).reference.model_dump(exclude_none=True) == {
        "kind": "moving",
        "alpha": 0.6,
        "tau": 512,
    }


@pytest.mark.parametrize(
    ("said", "device", "dtype"),
    [
        ({}, "cuda", "bfloat16"),  # TRL's default
        ({"use_cpu": True}, "cpu", "float32"),
        ({"use_cpu": True, "bf16": True}, "cpu", "bfloat16"),
        ({"bf16": False}, "cuda", "float32"),
        ({"fp16": True}, "cuda", "bfloat16"),
        ({"bf16": False, "dtype": "bfloat16"}, "cuda", "bfloat16"),
        ({"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}}, "cuda", "bfloat16"),
    ],
)
def test_precision(said, device, dtype, tmp_path):
    made = moved(tmp_path, said, method="dpo")
    assert (load_recipe(made.recipe).run.device, load_recipe(made.recipe).run.dtype) == (device, dtype)
    assert all(kinds(made, name) for name in said)


# --- kinds of file

SHELL = r"""
#!/bin/bash
export CUDA_VISIBLE_DEVICES=0
LR=5.0e-7
# the run of March
accelerate launch --config_file fsdp.yaml --num_processes 4 \
    trl/scripts/dpo.py --model_name_or_path org/model \
    --dataset_name org/pairs --learning_rate $LR --loss_type sigmoid sft --loss_weights 1 0.5 \
    --bf16 False --no_remove_unused_columns --gradient-accumulation-steps=2 --output_dir out | tee log
"""


def test_a_shell_script(tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(SHELL)
    made = from_trl(path)
    recipe = load_recipe(made.recipe)
    assert made.method == "dpo" and recipe.model.hub == "org/model" and recipe.data.dataset == "data/pairs"
    assert (recipe.train.lr, recipe.train.batch, recipe.train.micro_batch) == (5e-7, 8 * 2 * 4, 8)
    assert [t["weight"] for t in recipe.objective["terms"]] == [1.0, 0.5]
    assert kinds(made, "remove_unused_columns") == ["left out"]
    path.write_text(SHELL.replace("--num_processes 4", ""))
    with pytest.raises(RecipeError, match="say --processes N"):
        from_trl(path)
    assert from_trl(path, processes=2).recipe["train"]["batch"] == 32
    path.write_text(SHELL.replace("LR=5.0e-7", ""))
    with pytest.raises(RecipeError, match=r"'\$LR' is only known when the script runs"):
        from_trl(path)
    path.write_text(SHELL + SHELL)
    with pytest.raises(RecipeError, match="holds 2 commands"):
        from_trl(path)


def test_a_command_with_a_yaml_file_beside_it(tmp_path):
    (tmp_path / "dpo.yaml").write_text(
        "learning_rate: 1e-5\nbeta: 0.3\nmodel_name_or_path: ./m\ndataset_name: d\neval_strategy: no\n"
    )
    path = tmp_path / "run.txt"
    path.write_text("trl kto --config dpo.yaml --beta 0.2 --num_processes 2")
    made = from_trl(path)
    assert made.method == "kto" and made.recipe["objective"]["beta"] == 0.2
    assert made.recipe["train"]["lr"] == 1e-5  # YAML reads 1e-5 as text; TRL's parser makes a number of it
    assert made.recipe["train"]["batch"] == 16
    path.write_text("trl kto --config other.yaml")
    with pytest.raises(RecipeError, match="which does not exist"):
        from_trl(path)


SCRIPT_PY = """
import torch
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer
name = "org/model"
model = AutoModelForCausalLM.from_pretrained(name)
args = DPOConfig("out", beta=0.2, loss_type=["sigmoid"], model_init_kwargs={"dtype": torch.bfloat16}, learning_rate=RATE)
trainer = DPOTrainer(model=model, args=args, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
"""


def test_a_python_script_is_read_and_never_run(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("raise SystemExit\n" + SCRIPT_PY.replace("RATE", "1e-6"))
    recipe = load_recipe(from_trl(path, data="data/x").recipe)
    assert (recipe.run.name, recipe.model.hub, recipe.run.dtype) == ("out", "org/model", "bfloat16")
    assert recipe.objective == {"kind": "dpo", "beta": 0.2}
    assert recipe.adapter["target_modules"] == ["q_proj", "v_proj"] and recipe.adapter["r"] == 4
    path.write_text(SCRIPT_PY.replace("RATE", "rate * 2"))
    with pytest.raises(RecipeError, match=r"line 7: learning_rate = rate \* 2 is only known when the script runs"):
        from_trl(path, data="data/x")
    assert from_trl(path, data="data/x", settings=["learning_rate=3e-6"]).recipe["train"]["lr"] == 3e-6
    path.write_text("x = 1")
    with pytest.raises(RecipeError, match="builds 0 of DPOConfig"):
        from_trl(path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "[1]", "one mapping"),
        ("a.json", "{", "cannot be read"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.yaml", "", "one mapping"),
        ("a.py", "def", "is not Python"),
        ("a.sh", "echo hello", "holds 0 commands"),
        ("a.sh", "trl dpo --output_dir 'x", "cannot be read as a shell command"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(name, text, words, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_arguments(path)


def test_which_method_is_asked_for_only_where_the_file_does_not_show_it(tmp_path):
    assert moved(tmp_path, {"center_rewards_coefficient": 0.01}).method == "reward"
    assert moved(tmp_path, {"ld_alpha": 0.5}).method == "dpo"
    with pytest.raises(RecipeError, match="say it with --method"):
        moved(tmp_path, {"beta": 0.1})
    with pytest.raises(RecipeError, match="no model"):
        moved(tmp_path, {"model_name_or_path": None}, method="dpo")
    with pytest.raises(RecipeError, match="no dataset"):
        moved(tmp_path, {"dataset_name": None}, method="dpo")


def test_the_verb_writes_a_recipe_and_refuses_to_write_over_one(tmp_path):
    args, recipe = tmp_path / "a.yaml", tmp_path / "recipe.toml"
    args.write_text("model_name_or_path: ./m\ndataset_name: d\nld_alpha: 0.5\nlabel_smoothing: 0.1\n")
    run = CliRunner()
    done = run.invoke(app, ["recipe", "--from-trl", str(args), "-o", str(recipe)])
    assert done.exit_code == 0 and "had no effect in TRL" in done.output
    assert load_recipe(recipe).objective == {"kind": "ld_dpo", "beta": 0.1, "alpha": 0.5}
    again = run.invoke(app, ["recipe", "--from-trl", str(args), "-o", str(recipe)])
    assert again.exit_code != 0 and "exists" in str(again.exception)
    said = json.loads(run.invoke(app, ["recipe", "--from-trl", str(args), "--json"]).stdout)
    assert said["recipe"]["objective"]["alpha"] == 0.5 and any(line["kind"] == "no effect" for line in said["lines"])
