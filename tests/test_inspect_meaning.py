"""With an embedder: what means the same in other words; and the embedder itself against one text at a time, unpadded."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.freeze import freeze_records
from holdfast.data.inspect.inspection import inspect_dataset
from holdfast.data.inspect.power import power
from holdfast.data.splits import make_split
from holdfast.errors import HoldfastError
from holdfast.language.embedding import load_embedder
from holdfast.recipe import SplitTable
from test_inspect import WORDS, clean


def by_number(texts):
    """A stand-in: the vector hangs on the number in a text, whatever its words."""
    out = np.zeros((len(texts), 48), np.float32)
    for i, t in enumerate(texts):
        digits = "".join(c for c in t if c.isdigit())
        out[i] = np.random.default_rng(int(digits or 0) + 1).normal(size=48)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def test_meanings_are_found_where_no_word_is_shared(tmp_path):
    draw, said = random.Random(0), [replace(j, annotator=None) for j in clean()[::3]]
    again = [
        replace(j, prompt=f"Otherwise {n}: " + " ".join(draw.choices(WORDS, k=11))) for n, j in enumerate(said[:60])
    ]
    ds = freeze_records([*said, *again], tmp_path / "data")
    make_split(ds, SplitTable(validation=0.2, test=0.2)).save(tmp_path)
    plain = inspect_dataset(ds, only=["duplicates", "leakage"], split=tmp_path, times=20)
    assert (
        "duplicates/semantic" not in {f.name for f in plain.findings} and plain["duplicates/prompts"].figure.value == 0
    )
    found = inspect_dataset(ds, only=["duplicates", "leakage", "coverage"], split=tmp_path, times=20, embed=by_number)
    same = found["duplicates/semantic"]
    assert same.alarmed and same.facts["pairs"] == 60 and same.figure.value == pytest.approx(120 / 460)
    listed = {int(n) for n in same.rows.number} | {int(n) for n in same.rows.other}
    texts = ds.prompt_contents(ds.prompt_of)
    assert {texts[i].split(":")[0].split()[1] for i in listed} == {str(n) for n in range(60)}
    part = found.material.prompt_part[ds.prompt_of]
    twins = {}
    for i, t in enumerate(texts):
        twins.setdefault(t.split(":")[0].split()[1], []).append(i)
    crossing = {i for two in twins.values() if len({part[i] == 0 for i in two}) > 1 for i in two if part[i] > 0}
    assert found["leakage/semantic"].alarmed and {int(n) for n in found["leakage/semantic"].rows.number} == crossing
    assert found.as_json()["options"]["embedder"] == "unnamed"
    # Planting faults computes vectors of new texts alone.
    asked = []

    def counted(texts):
        asked.extend(texts)
        return by_number(texts)

    looked_at = found.material.edit(embed=counted)
    power(looked_at, ["target"], copies=2)
    assert len(asked) <= 2 * 460 + 4 * 460


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_a_batch_is_each_text_alone(encoder, tmp_path, pooling):
    folder = tmp_path / "st"
    (folder / "1_Pooling").mkdir(parents=True)
    for file in encoder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
                for i, (k, p) in enumerate(kinds)
            ]
        )
    )
    # As version 6 of sentence-transformers writes it, and as those before did.
    old = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}[pooling]
    said = (
        {"pooling_mode": pooling}
        if pooling in ("mean", "max")
        else {f"pooling_mode_{old}": True, "pooling_mode_x": False}
    )
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 16, **said}))
    embed, name = load_embedder(folder)
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(50)]
    got = embed(texts)
    model = BertModel.from_pretrained(encoder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder)
    for text, vector in zip(texts, got, strict=True):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=32)["input_ids"]])
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0).values, "lasttoken": hidden[-1]}[
            pooling
        ]
        assert vector == pytest.approx((pooled / pooled.norm()).numpy(), abs=1e-5)
    assert name.startswith("st ") and name.endswith(pooling)


def test_the_command_takes_a_folder_and_refuses_what_it_cannot_use(encoder, tmp_path):
    ds = freeze_records(clean()[:120], tmp_path / "data")
    done = CliRunner().invoke(
        app, ["inspect", str(ds.path), "--embedder", str(encoder), "--only", "duplicates", "--json"]
    )
    said = json.loads(done.output)
    assert said["options"]["embedder"].endswith(" mean") and "duplicates/semantic" in {
        f["name"] for f in said["findings"]
    }
    with pytest.raises(HoldfastError, match="holds no encoder"):
        load_embedder(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(HoldfastError, match="module Dense"):
        load_embedder(tmp_path)
