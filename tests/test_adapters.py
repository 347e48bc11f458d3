"""Adapters: every kind starts as its base, trains alone, packs, and comes out of its folder as plain peft reads it; runs with one are exact."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers

import tiny_models as tiny
from holdfast import pipeline
from holdfast.data.freeze import freeze
from holdfast.demo.world import World
from holdfast.errors import HoldfastError, IntegrityError, RecipeError
from holdfast.language.adapters import KINDS, adapter_base, attach, bind_adapter, merged, save_adapter
from holdfast.language.policy import Policy, RewardModel, base_digest, load_base, quiet, save_model, scorer_on
from holdfast.language.reference import without_adapter
from holdfast.proof import verify
from holdfast.recipe import Recipe, load_recipe
from holdfast.training import fit
from holdfast.training.checkpoint import trained_state, weights_digest
from test_pipeline import SMALL
from test_policy import _tokenizer

TOKENS = tiny.random_tokens(0, [4, 6], [3, 5, 2, 4])
GROUPS = [(0, [0, 1]), (1, [2, 3])]
IDS = torch.arange(3, 15)[None]

# What a tiny model needs said, where peft's defaults are for large ones.
SMALLER = {"miss": {"r": 4}, "gralora": {"r": 4, "gralora_k": 2}, "oft": {"r": 0, "oft_block_size": 8}}
TARGETS = {"ln_tuning": ["input_layernorm"]}


def said(kind, **more):
    keys = {"target_modules": TARGETS.get(kind, ["q_proj", "v_proj"]), **SMALLER.get(kind, {})}
    if kind == "ia3":
        keys["feedforward_modules"] = []
    return {"kind": kind, **keys, **more}


def moved(model, seed=0):
    """Trained a little: every trainable weight is elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    "kind", [k if k in ("lora", "dora", "vera") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
@pytest.mark.filterwarnings("ignore")
def test_every_kind(kind, tmp_path):
    torch.set_num_threads(1)
    save_model(tiny.model("llama"), _tokenizer(), tmp_path / "base")
    base, tokenizer = load_base(tmp_path / "base")
    digest, start = base_digest(base), logits(base)
    adapter = bind_adapter(said(kind))

    # It starts as the base, from the seed alone.
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    model = attach(base, adapter, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(logits(model), start, atol=1e-5, rtol=0)
    torch.manual_seed(2)
    again = attach(load_base(tmp_path / "base")[0], adapter, seed=5)
    assert weights_digest(trained_state(again)) == weights_digest(trained_state(model))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(n in trained or "lora" in n or "vera" in n for n in trained_state(model))
    assert (
        sum(p.numel() for p in model.parameters() if p.requires_grad) < sum(p.numel() for p in model.parameters()) / 2
    )

    # Packed equals padded, and off is the base where its weights were kept.
    moved(model)
    assert float((logits(model) - start).abs().max()) > 1e-3
    packed = Policy(model, "packed")
    out = packed.logps(packed.batch(TOKENS, GROUPS)).token_N.detach()
    if adapter.keeps_base:
        requires = [p.requires_grad for p in model.parameters()]
        off = without_adapter(packed)
        torch.testing.assert_close(
            off.logps(off.batch(TOKENS, GROUPS)).token_N.detach(),
            Policy(tiny.model("llama"), "padded")
            .logps(Policy(tiny.model("llama"), "padded").batch(TOKENS, GROUPS))
            .token_N.detach(),
            atol=1e-5,
            rtol=0,
        )
        assert [p.requires_grad for p in model.parameters()] == requires
    padded = Policy(model, "padded")
    torch.testing.assert_close(padded.logps(padded.batch(TOKENS, GROUPS)).token_N.detach(), out, atol=1e-5, rtol=0)

    # Its folder: plain peft reads it, and so do we; the same weights give the same bytes.
    ours = logits(model)
    for name in ("adapter", "again"):
        save_model(
            model, tokenizer, tmp_path / name, write=lambda f: save_adapter(model, f, str(tmp_path / "base"), digest)
        )
    assert {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }
    plain = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits(plain), ours, atol=1e-5, rtol=0)
    kept, _ = load_base(tmp_path / "adapter", keep_adapter=True)
    assert weights_digest(trained_state(kept)) == weights_digest(trained_state(model))
    torch.testing.assert_close(logits(kept), ours, atol=1e-5, rtol=0)
    added, _ = load_base(tmp_path / "adapter")
    assert type(added).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(added), ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(merged(model)), ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model), ours, atol=0, rtol=0)  # merging made a copy


def test_a_config_is_written_in_one_order(tmp_path):
    model = attach(
        tiny.model("llama"), bind_adapter(said("lora", target_modules=["v_proj", "q_proj", "o_proj", "k_proj"])), seed=0
    )
    with quiet():
        save_adapter(model, tmp_path, "../base", "d")
    config = json.loads((tmp_path / "adapter_config.json").read_bytes())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"] and list(config) == sorted(config)
    assert config["base_model_name_or_path"] == "../base" and not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    "table, words",
    [
        ({"kind": "lora", "rank": 8}, "unknown key 'rank'.*known: .*lora_alpha.*merge.*target_modules"),
        ({"kind": "lora", "lora_alfa": 8}, "did you mean 'lora_alpha'"),
        ({"kind": "loar"}, "kind = 'loar' is unknown .known: lora, dora"),
        ({"kind": "lora", "r": "8"}, "r = '8' should be int"),
        ({"kind": "lora", "r": True}, "r = True should be int"),
        ({"kind": "lora", "r": 0}, "lora"),
        ({"kind": "lora", "merge": 1}, "merge = 1 should be true or false"),
        ({"kind": "dora", "use_dora": False}, "unknown key 'use_dora'"),
        ({"kind": "lora", "init_lora_weights": "eva"}, "true or 'gaussian'"),
        ({"kind": "loha", "init_weights": False}, "would not start as the base"),
        ({"kind": "lora", "task_type": "CAUSAL_LM"}, "unknown key 'task_type'"),
        ({"kind": "lora", "layer_replication": [[0, 1]]}, "unknown key"),
    ],
)
def test_a_table_that_cannot_be_is_refused(table, words):
    with pytest.raises(RecipeError, match=words):
        attach(tiny.model("llama"), bind_adapter(table), seed=0)


def test_the_recipe_names_every_kind():
    said = Recipe.model_fields["adapter"].description
    assert said.partition("(")[2].partition(")")[0].split(", ") == list(KINDS)


def test_no_such_module_is_refused():
    with pytest.raises(RecipeError, match="does not fit LlamaForCausalLM.*no_proj"):
        attach(tiny.model("llama"), bind_adapter({"kind": "lora", "target_modules": ["no_proj"]}), seed=0)


def test_a_reward_models_head_trains_and_is_saved(tmp_path):
    torch.set_num_threads(1)
    save_model(tiny.model("llama"), _tokenizer(), tmp_path / "base")
    base, tokenizer = load_base(tmp_path / "base")
    digest = base_digest(base)
    model = attach(scorer_on(base, tokenizer, seed=3), bind_adapter(said("lora")), seed=0)
    assert any("score" in n and p.requires_grad for n, p in model.named_parameters())
    moved(model)
    packed = RewardModel(model, "packed")
    scores = packed.scores(packed.batch(TOKENS, GROUPS)).detach()
    padded = RewardModel(model, "padded")
    torch.testing.assert_close(padded.scores(padded.batch(TOKENS, GROUPS)).detach(), scores, atol=1e-5, rtol=0)
    save_model(model, tokenizer, tmp_path / "a", write=lambda f: save_adapter(model, f, "../base", digest))

    loaded, _ = load_base(tmp_path / "a", keep_adapter=True)
    again = RewardModel(loaded, "packed")
    torch.testing.assert_close(again.scores(again.batch(TOKENS, GROUPS)).detach(), scores, atol=0, rtol=0)
    with quiet():
        plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    plain = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
    for i, (p, r) in enumerate([(0, 0), (0, 1), (1, 2), (1, 3)]):
        ids = torch.tensor(np.concatenate([TOKENS.prompts[p], TOKENS.responses[r]])[None].astype(np.int64))
        with torch.no_grad():
            torch.testing.assert_close(plain(input_ids=ids).logits[0, 0], scores[i], atol=1e-5, rtol=0)


def test_another_base_is_found_out(tmp_path):
    save_model(tiny.model("llama"), _tokenizer(), tmp_path / "base")
    base, tokenizer = load_base(tmp_path / "base")
    digest = base_digest(base)
    model = attach(base, bind_adapter(said("lora")), seed=0)
    save_model(model, tokenizer, tmp_path / "a", write=lambda f: save_adapter(model, f, "../base", digest))
    save_model(tiny.model("llama", seed=1), _tokenizer(), tmp_path / "base")  # planted: another model in its place
    with pytest.raises(IntegrityError, match="was trained on a base"):
        load_base(tmp_path / "a")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(HoldfastError):
        load_base(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(HoldfastError, match="does not name the adapter's base"):
        adapter_base(tmp_path / "a")


# --- runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A frozen dataset and a base to put adapters on."""
    folder = tmp_path_factory.mktemp("adapters")
    World(0).write_jsonl(folder / "world.jsonl", 100, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    pipeline.train(recipe(folder, objective={"kind": "sft"}, model=SMALL["model"]), folder / "base", quiet=True)
    return folder


def recipe(folder, *settings, **tables):
    data = {**SMALL["data"], "dataset": str(folder / "data")}
    return load_recipe({**SMALL, "data": data, "model": {"path": str(folder / "base")}, **tables}, settings)


def head_of(run):
    return (run.ledger_head, run.weights_digest, (run.folder / "ledger.jsonl").read_bytes())


LORA = {"kind": "lora", "r": 4, "lora_alpha": 16, "lora_dropout": 0.1}
CASES = {
    "lora": {"adapter": {**LORA, "merge": True}},
    "adapter-off": {"adapter": LORA, "reference": {"kind": "adapter-off"}},
    "moving": {"adapter": LORA, "reference": {"kind": "moving", "tau": 2, "alpha": 0.5}},
    "all-moving": {"reference": {"kind": "moving", "tau": 3}},
    "frozen": {"reference": {"kind": "frozen"}},
    "pissa": {"adapter": {"kind": "pissa", "r": 4}},
    "reward": {"adapter": LORA, "objective": {"kind": "reward"}},
}


FAST = ("lora", "moving")


@pytest.mark.parametrize("case", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_a_run_that_dies_goes_on_to_the_same_bytes(place, tmp_path, monkeypatch, case):
    whole = pipeline.train(recipe(place, **CASES[case]), tmp_path / "whole", quiet=True)
    assert verify(whole.folder) == []
    step = fit.Trainer.step

    def dies(self, n):
        if n == 4:  # one past a checkpoint
            raise MemoryError
        return step(self, n)

    monkeypatch.setattr(fit.Trainer, "step", dies)
    with pytest.raises(MemoryError):
        pipeline.train(recipe(place, **CASES[case]), tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert head_of(pipeline.resume(tmp_path / "cut", quiet=True)) == head_of(whole)
    done = pipeline.replay(whole.folder, 5, 6)
    assert done["ok"] and done["from"] == 4, done
    metrics = json.loads((whole.folder / "evaluations" / "held-out" / "metrics.json").read_bytes())
    assert metrics["facts"]["weights_digest"] == whole.weights_digest


def entries(run):
    return [json.loads(line) for line in (run.folder / "ledger.jsonl").read_text().splitlines()]


def test_an_adapter_run_says_and_keeps_what_it_trained(place, tmp_path):
    run = pipeline.train(
        recipe(place, adapter={**LORA, "lora_dropout": 0.0, "merge": True}), tmp_path / "run", quiet=True
    )
    opened = entries(run)[0]
    base, _ = load_base(place / "base")
    assert opened["facts"]["base"] == base_digest(base)
    adapter = opened["facts"]["adapter"]
    assert (
        adapter["kind"] == "lora"
        and adapter["config"]["r"] == 4
        and adapter["trained"] == 2 * 2 * 2 * 4 * 32 < adapter["of"]
    )
    checkpoint = next((run.folder / "checkpoints").glob("step-*"))
    held = json.loads((checkpoint / "state.json").read_bytes())["tensors"]["model.safetensors"]
    assert held and all("lora_" in name for name in held)
    # Plain peft, and the merged folder with plain transformers, say the same.
    kept, _ = load_base(run.folder, keep_adapter=True)
    ours = logits(kept)
    with quiet():
        plain = peft.AutoPeftModelForCausalLM.from_pretrained(run.folder / "model")
        whole = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "model" / "merged")
    torch.testing.assert_close(logits(plain), ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(whole), ours, atol=1e-5, rtol=0)
    rows = [{"prompt": [{"role": "user", "content": "What is two plus two?"}], "response": "It is four."}]
    (tmp_path / "asked.jsonl").write_text(json.dumps(rows[0]))
    assert len(pipeline.score(run.folder, tmp_path / "asked.jsonl")) == 1
    # The next run starts from what this one made.
    following = recipe(place, model={"path": str(run.folder)}, objective={"kind": "simpo"})
    following = pipeline.train(following, tmp_path / "next", quiet=True)
    assert verify(following.folder) == []
    # A changed byte of the adapter is found.
    file = run.folder / "model" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert any("adapter_model" in str(p.where) for p in verify(run.folder))


@pytest.mark.slow
def test_a_base_made_by_the_run_is_found_wherever_the_run_lies(place, tmp_path):
    made = recipe(place, adapter=LORA, model=SMALL["model"])
    one, two = (pipeline.train(made, tmp_path / name, quiet=True) for name in ("one", "two"))
    assert head_of(one) == head_of(two)
    shutil.move(tmp_path / "one", tmp_path / "elsewhere")
    assert pipeline.evaluate(tmp_path / "elsewhere")["figures"]


def test_a_moving_reference_is_in_the_ledger(place, tmp_path):
    run = pipeline.train(
        recipe(place, reference={"kind": "moving", "tau": 2, "alpha": 0.5}), tmp_path / "run", quiet=True
    )
    steps = [e for e in entries(run) if e["kind"] == "step"]
    assert [e["step"] for e in steps if "after" in e] == [2, 4, 6]
    assert len({e["after"]["reference"] for e in steps if "after" in e}) == 3
    assert entries(run)[0]["objective"]["reference"]["kind"] == "moving"
    # Up to the first update it is the base, after it another model.
    plain = pipeline.train(recipe(place), tmp_path / "plain", quiet=True)
    losses = [[float.fromhex(e["loss"]) for e in entries(r) if e["kind"] == "step"] for r in (run, plain)]
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=2e-6) and abs(losses[0][2] - losses[1][2]) > 1e-4
    held = json.loads((run.folder / "checkpoints" / "step-000006" / "state.json").read_bytes())["tensors"]
    assert all(name.startswith("reference/") for name in held["extra.safetensors"])


@pytest.mark.slow
def test_a_reference_from_elsewhere(place, tmp_path):
    other = pipeline.train(recipe(place, objective={"kind": "simpo"}), tmp_path / "other", quiet=True)
    for kind in ("cached", "frozen"):
        run = pipeline.train(
            recipe(place, reference={"kind": kind, "path": str(other.folder)}), tmp_path / kind, quiet=True
        )
        said = entries(run)[0]["objective"]["reference"]
        assert "not checked" in said["step 0"]
        first = next(e for e in entries(run) if e["kind"] == "step")
        assert abs(float.fromhex(first["loss"]) - np.log(2)) > 1e-4
    # The base under another name is still the base.
    shutil.copytree(place / "base" / "model", tmp_path / "copy")
    run = pipeline.train(recipe(place, reference={"path": str(tmp_path / "copy")}), tmp_path / "same", quiet=True)
    assert "step 0" not in entries(run)[0]["objective"]["reference"]
    words = {"scratch": {**SMALL["model"]["scratch"], "vocab": 390}}
    made = pipeline.train(recipe(place, objective={"kind": "sft"}, model=words), tmp_path / "words", quiet=True)
    with pytest.raises(RecipeError, match="another tokenizer"):
        pipeline.train(recipe(place, reference={"path": str(made.folder)}), tmp_path / "x", quiet=True)


@pytest.mark.parametrize(
    "tables, words",
    [
        ({"objective": {"kind": "simpo"}, "reference": {"kind": "frozen"}}, "compares to no reference"),
        ({"objective": {"kind": "reward"}, "reference": {"kind": "cached"}}, "compares to no reference"),
        ({"objective": {"kind": "sft"}, "reference": {}}, "compares to no reference"),
        ({"reference": {"kind": "none"}}, "compares to a reference"),
        ({"reference": {"kind": "adapter-off"}}, "needs an .adapter."),
        ({"adapter": {"kind": "pissa", "r": 4}, "reference": {"kind": "adapter-off"}}, "changes the base's weights"),
        ({"adapter": {"kind": "lora", "rank": 4}}, "unknown key 'rank'"),
        ({"adapter": {"r": 4}}, "needs kind"),
        ({"adapter": LORA, "objective": {"kind": "reward", "heads": 2}}, "one head"),
        ({"adapter": LORA, "objective": {"kind": "sft"}, "model": SMALL["model"]}, "learnt something"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(place, tmp_path, tables, words):
    with pytest.raises(RecipeError, match=words):
        pipeline.train(recipe(place, **tables), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
