"""CHES: worked by hand; against plain transformers, a sequence at a time; pairs made alike come out on top, and a plan can drop them."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import torch
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.dataset import open_dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.inspect.inspection import inspect_dataset
from holdfast.errors import DataError, HoldfastError
from holdfast.language.displacement import ches, load_ches
from holdfast.language.packing import pack
from holdfast.language.policy import Policy, save_model, scorer_on
from holdfast.language.scratch import dataset_texts, make_model, train_tokenizer
from holdfast.recipe import ScratchTable
from test_inspect import WORDS, clean
from tiny_models import model, random_tokens, tokens


def test_by_hand():
    """A model whose hidden state is its last token's row: 5 -> (1, 0), 6 -> (0, 2), 7 -> (3, 1), 8 -> (9, 9)."""
    row = torch.zeros(10, 2)
    row[5], row[6], row[7], row[8] = (torch.tensor(x) for x in ([1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [9.0, 9.0]))
    reads = SimpleNamespace(batch=pack, hidden=lambda batch: row[batch.ids_BL[0][batch.source_N]])
    some = tokens([[8, 5]], [[6, 8], [7, 6, 7]])
    # The states that predict 6, 8 are those of 5, 6: mean (1/2, 1). Those of 7, 6, 7 are of 5, 7, 6: mean (4/3, 1).
    preferred, other = np.array([0, 1]), np.array([1, 0])
    found = ches(reads, some, np.array([0, 0]), preferred, other)
    assert found[:, 0] == pytest.approx([2 / 3 + 1 - 1.25, 2 / 3 + 1 - 25 / 9])
    assert found[:, 1] == pytest.approx([4 + 6 - 5, 4 + 6 - 25])  # the sums (1, 2) and (4, 3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "granite"])
def test_packed_is_padded_is_plain_transformers(family):
    some = random_tokens(0, (7, 3, 1), (5, 9, 2, 6, 4, 8, 1))
    prompt = np.array([0, 0, 0, 1, 2, 2])
    preferred, other = np.array([0, 1, 2, 4, 5, 6]), np.array([1, 2, 0, 3, 6, 5])
    plain, states = model(family).eval(), {}
    for p, r in {*zip(prompt, preferred, strict=True), *zip(prompt, other, strict=True)}:
        ids = torch.tensor([[*some.prompts[p], *some.responses[r]]])
        with torch.no_grad():
            hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        states[r] = hidden[len(some.prompts[p]) - 1 : -1].double()
    wanted = [
        [
            float(x @ y - x @ x)
            for x, y in ((states[a].mean(0), states[b].mean(0)), (states[a].sum(0), states[b].sum(0)))
        ]
        for a, b in zip(preferred, other, strict=True)
    ]
    for compute, budget in (("packed", 8192), ("packed", 12), ("padded", 8192)):
        policy = Policy(model(family).eval(), compute)
        found = ches(policy, some, prompt, preferred, other, budget)
        assert found == pytest.approx(np.array(wanted), rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """400 prompts with two responses of their own, and 20 whose second is the first but for a word of 15; a run with a small model."""
    folder, draw = tmp_path_factory.mktemp("ches"), random.Random(3)
    said = [replace(j, annotator=None) for j in clean()[::3]]
    for n in range(20):
        words = draw.choices(WORDS, k=15)
        again = [*words[:7], draw.choice(WORDS), *words[8:]]
        prompt = f"Question {n + 400}: " + " ".join(draw.choices(WORDS, k=9)) + "?"
        pair = (" ".join(words) + ".", " ".join(again) + ".")
        said.append(replace(said[0], prompt=prompt, responses=pair, category="alike"))
    ds = freeze_records(said, folder / "data")
    tokenizer = train_tokenizer(dataset_texts(ds, np.arange(ds.n_judgements)), 400)
    shape = ScratchTable(hidden=128, layers=2, heads=4, context=128)
    save_model(make_model(shape, tokenizer, 0), tokenizer, folder / "run" / "model")
    return folder, ds, tokenizer


def look(folder, tmp_path, *more):
    done = CliRunner().invoke(
        app, ["inspect", str(folder / "data"), "--only", "displacement", "-o", str(tmp_path), "--json", *more]
    )
    assert done.exit_code == 0, done.output
    return orjson.loads(done.stdout)


def test_pairs_made_alike_come_first_and_a_plan_drops_them(planted, tmp_path):
    folder, ds, _ = planted
    found = look(folder, tmp_path, "--model", str(folder / "run"))
    assert found["options"]["model"].startswith("run ") and found["options"]["max_length"] == 2048
    by_length, plain = found["findings"]
    listed = by_length["rows"]["listed"]
    category = ds.column("category")
    mine = [category[ds.find_row(x["row"])] == "alike" for x in listed[:20]]
    assert sum(mine) >= 15  # the others are distinct, and the rejected one lies further along the preferred one
    scores = [x["score"] for x in listed]
    assert scores == sorted(scores, reverse=True) and len(scores) >= 20
    (cell,) = (c for c in by_length["cells"]["category"] if c["name"] == "alike")
    assert cell["n"] == 20 and cell["value"] > 3 * by_length["value"] > 0
    assert by_length["lo"] < by_length["value"] < by_length["hi"]
    assert {f["severity"] for f in (by_length, plain)} == {"note"}
    assert sum(by_length["facts"]["histogram"]["counts"]) == ds.n_judgements == 420
    # What the two say apart: sums grow with length, so a longer rejected response lies further along.
    assert plain["value"] > 5 * by_length["value"]
    html = (tmp_path / "inspect.html").read_text()
    assert html.count("<b>CHES by length</b>") == html.count("<b>CHES over all tokens</b>") == 1

    (tmp_path / "rows.txt").write_text("\n".join(x["row"] for x in listed[:20]))
    (tmp_path / "plan.toml").write_text(
        f'[[rule]]\nkind = "drop"\nrows = "{tmp_path / "rows.txt"}"\nwhy = "displacement/ches"\n'
    )
    done = CliRunner().invoke(
        app, ["curate", str(folder / "data"), "--plan", str(tmp_path / "plan.toml"), "-o", str(tmp_path / "less")]
    )
    assert done.exit_code == 0, done.output
    less = open_dataset(tmp_path / "less")
    assert less.n_judgements == 400 and less.column("category").count("alike") == 20 - sum(mine)


def test_what_cannot_be_scored_is_counted(planted, tmp_path):
    folder, ds, tokenizer = planted
    without = look(folder, tmp_path)
    assert without["skipped"] == {"displacement": "no language model was named (--model FOLDER)"}
    assert without["options"].get("model") is None
    score, name = load_ches(folder / "run")
    rows = np.arange(ds.n_judgements)
    two = np.array([ds.responses_of[i] for i in rows]).astype(np.int64)
    prompts, responses = ds.prompt_contents(ds.prompt_of), ds.response_contents(two.ravel())
    size = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (*prompts, *responses)]
    long = np.array(size[:420]) + np.reshape(size[420:], (420, 2)).max(axis=1) + 1 > 36  # the stop token
    whole, some = (score(ds, *two.T, most) for most in (2048, 36))
    assert 0 < long.sum() < 420 and np.isfinite(whole).all()
    assert np.isnan(some[long]).all() and some[~long] == pytest.approx(whole[~long], rel=1e-5, abs=1e-5)
    found = inspect_dataset(ds, only=["displacement"], times=20, ches=score, model=name, max_length=36)
    found = found["displacement/ches"]
    assert found.facts["comparisons without a score"] == long.sum()
    assert f"{long.sum()} comparisons have none: " in found.definition
    assert found.figure.value == pytest.approx((whole[~long, 0] > 0).mean())
    # A response against itself: nothing to learn, so no score.
    assert np.isnan(score(ds, two[:1, 0], two[:1, 0], 2048)).all()
    with pytest.raises(DataError, match="longer than 8 tokens"):
        inspect_dataset(ds, only=["displacement"], ches=score, max_length=8)


def test_a_reward_model_is_refused(planted, tmp_path):
    *_, tokenizer = planted
    shape = ScratchTable(hidden=32, layers=1, heads=4, context=64)
    save_model(scorer_on(make_model(shape, tokenizer, 0), tokenizer), tokenizer, tmp_path / "reward")
    with pytest.raises(HoldfastError, match="a policy needs a causal language model; LlamaForSequenceClassification"):
        load_ches(tmp_path / "reward")
