"""Encoders as reward models: a pair of texts in, one number out, the same as plain transformers gives from our folder."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import tiny_models as tiny
from holdfast import pipeline
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.records import Judgement
from holdfast.demo.world import World
from holdfast.errors import DataError, HoldfastError
from holdfast.language.policy import Policy, RewardModel, fresh_weights, load_base, longest_input, quiet, save_model
from holdfast.language.tokens import PairCoder, tokenise
from holdfast.proof import verify
from holdfast.recipe import TextTable, load_recipe
from holdfast.training import fit
from test_adapters import head_of

TEXTS = [
    "what is two plus two ? it is four .",
    "name a fruit , please . pear",
    "sort these words : b a c . a b c",
    "user : assistant : tools",
]
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


def bert_tokenizer():
    """A vocabulary written out: the trainer of WordPiece breaks ties as its hash map falls, so each process would have its own."""
    words = sorted({word for text in TEXTS for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.BertTokenizer(tokenizer_object=tokenizer)


def byte_tokenizer(cls, start, end, pad, doubled):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [start, pad, end, "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    between = f"{end} {end}" if doubled else end
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=f"{start} $A {between} $B {end}", special_tokens=[(start, 0), (end, 2)]
    )
    ends = {"bos_token": start, "eos_token": end} if doubled else {}
    marks = {
        "cls_token": start,
        "sep_token": end,
        "pad_token": pad,
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        **ends,
    }
    return cls(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **marks)


def make(family, positions=128):
    fast = transformers.PreTrainedTokenizerFast
    if family == "bert":
        tokenizer = bert_tokenizer()
        config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **SHAPE)
    elif family == "roberta":
        tokenizer = byte_tokenizer(fast, "<s>", "</s>", "<pad>", True)
        config = transformers.RobertaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=130,
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            **SHAPE,
        )
    else:
        tokenizer = byte_tokenizer(fast, "[CLS]", "[SEP]", "[PAD]", False)
        config = transformers.ModernBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            pad_token_id=1,
            cls_token_id=0,
            sep_token_id=2,
            bos_token_id=0,
            eos_token_id=2,
            local_attention=16,
            global_attn_every_n_layers=2,
            **SHAPE,
        )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForMaskedLM.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.1)
    return model, tokenizer


FAMILIES = ("bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta", "modernbert")))


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    """A folder of a masked language model, as they are published."""
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = make(request.param)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def plain_scores(folder, pairs):
    """What the folder's model says by transformers alone, one pair at a time."""
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    with torch.no_grad():
        return [float(model(**tokenizer(p, r, return_tensors="pt")).logits[0, 0]) for p, r in pairs]


def test_the_ids_are_the_tokenizers_own_for_a_pair(encoder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    coder = PairCoder(tokenizer)
    pairs = [("what is two ?", "it is four ."), ("name a fruit", "pear, or so"), ("a  b", " a")]
    prompts = coder.encode_prompts([p for p, _ in pairs], [False] * 3)
    responses = coder.encode_responses([r for _, r in pairs], [False] * 3)
    for (p, r), head, tail in zip(pairs, prompts, responses, strict=True):
        whole = tokenizer(p, r)
        assert head + tail == whole["input_ids"]
        if "token_type_ids" in whole:
            assert whole["token_type_ids"] == [0] * len(head) + [1] * len(tail)


def test_our_scores_are_those_of_plain_transformers(encoder, tmp_path):
    """Padded together, under weights that spread: scores differ by tenths, ours from theirs by less than 1e-5."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(encoder)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for n, p in model.named_parameters():
            if "classifier" in n or n.startswith("head"):
                p.add_(torch.randn_like(p) * 0.5)
    pairs = [("what is two ?", "it is four ."), ("name a fruit , please . " * 4, "pear"), ("sort", "a b c " * 9)]
    reward, coder = RewardModel(model), PairCoder(tokenizer)
    tokens = tiny.tokens(
        coder.encode_prompts([p for p, _ in pairs], [False] * 3),
        coder.encode_responses([r for _, r in pairs], [False] * 3),
    )
    with torch.no_grad():
        ours = reward.scores(reward.batch(tokens, [(i, [i]) for i in range(3)]))
    save_model(model, tokenizer, tmp_path / "saved")
    plain = plain_scores(tmp_path / "saved", pairs)
    assert ours.tolist() == pytest.approx(plain, abs=1e-5) and np.ptp(plain) > 0.02


def test_a_fresh_head_comes_from_the_seed(encoder):
    torch.manual_seed(1)
    one, _ = load_base(encoder, seed=3)
    torch.manual_seed(2)
    same, other = load_base(encoder, seed=3)[0], load_base(encoder, seed=4)[0]
    fresh = fresh_weights(one)
    assert fresh and all("classifier" in n or "pooler" in n for n in fresh)
    states = [m.state_dict() for m in (one, same, other)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert (
        not torch.equal(states[0]["classifier.weight"], states[2]["classifier.weight"])
        if "classifier.weight" in states[0]
        else fresh
    )
    assert all(torch.equal(states[0][n], states[2][n]) for n in states[0] if n not in fresh)
    with pytest.raises(HoldfastError, match="policy needs a causal language model"):
        Policy(one)


def test_positions_that_there_are(encoder):
    model, _ = load_base(encoder)
    assert longest_input(model) == 128  # RoBERTa's config says 130: two stand for padding
    ids = torch.full((1, 128), 5)
    model(input_ids=ids)
    if type(model).__name__ != "ModernBertForSequenceClassification":  # rotary: beyond is bad, but no error
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 129), 5))


def recipe(folder, base, *settings, **tables):
    said = {
        "run": {"threads": 1},
        "data": {"dataset": str(folder / "data"), "split": {"holdout": ["ends"]}},
        "model": {"path": str(base)},
        "text": {"max_length": 128, "too_long": "drop"},
        "objective": {"kind": "reward"},
        "train": {"steps": 4, "batch": 8, "lr": 1e-3, "eval_every": 2, "eval_rows": 10, "checkpoint_every": 2},
        "evaluate": {"bootstrap": 20, "examples": 2},
        **tables,
    }
    return load_recipe(said, settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    World(0).write_jsonl(folder / "world.jsonl", 60, seed=0)
    freeze(folder / "world.jsonl", folder / "data")
    return folder


LORA = pytest.param({"kind": "lora", "r": 2, "target_modules": "all-linear"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
def test_train_evaluate_report_score(place, encoder, tmp_path, adapter):
    if encoder.name.startswith("modernbert") and adapter:
        adapter = {**adapter, "target_modules": ["Wqkv"]}
    tables = {"adapter": {**adapter, "merge": True}} if adapter else {}
    run = pipeline.train(recipe(place, encoder, **tables), tmp_path / "run", quiet=True)
    assert verify(run.folder) == [] and (run.folder / "report.html").exists()
    again = pipeline.train(recipe(place, encoder, **tables), tmp_path / "again", quiet=True)
    assert head_of(run) == head_of(again)
    assert pipeline.replay(run.folder, 3, 4)["ok"]

    examples = json.loads((run.folder / "evaluations" / "held-out" / "examples.json").read_bytes())
    table = pq.read_table(run.folder / "evaluations" / "held-out" / "rows.parquet").to_pydict()
    rewards: dict[str, set[float]] = {}
    for judgement, a, b in zip(*(table[k] for k in ("judgement", "reward_a", "reward_b")), strict=True):
        rewards.setdefault(judgement, set()).update((a, b))
    assert examples
    for example in examples:
        for side in ("chosen", "rejected"):
            assert sum(t["value"] for t in example[side]["tokens"]) == pytest.approx(example[side]["reward"], abs=1e-5)
            assert min(abs(r - example[side]["reward"]) for r in rewards[example["judgement"]]) < 1e-5

    asked = [
        ("what is two plus two ?", "it is four ."),
        ("name a fruit", "pear"),
        ("name a fruit", "a b c ? please , pear"),
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "response": r}) for p, r in asked))
    scored = pipeline.score(run.folder, file)
    plain = plain_scores(run.folder / "model" / ("merged" if adapter else ""), asked)
    assert [s["reward"] for s in scored] == pytest.approx(plain, abs=1e-5)
    assert len(set(plain)) == 3


@pytest.mark.slow
def test_a_run_that_dies_goes_on_to_the_same_bytes(place, encoder, tmp_path, monkeypatch):
    whole = pipeline.train(recipe(place, encoder), tmp_path / "whole", quiet=True)
    step = fit.Trainer.step

    def dies(self, n):
        if n == 4:
            raise MemoryError
        return step(self, n)

    monkeypatch.setattr(fit.Trainer, "step", dies)
    with pytest.raises(MemoryError):
        pipeline.train(recipe(place, encoder), tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert head_of(pipeline.resume(tmp_path / "cut", quiet=True)) == head_of(whole)


def test_too_long_for_the_positions_is_said_before_the_first_step(encoder, tmp_path):
    some = [Judgement("pair", f"name {i}", ("pear " * 130, "a fruit")) for i in range(20)]
    freeze_records(some, tmp_path / "data")
    place = tmp_path
    with pytest.raises(DataError, match="reads at most 128: set text.max_length = 128"):
        pipeline.train(
            recipe(place, encoder, "text.max_length=2000", "data.split.holdout=[]"), tmp_path / "run", quiet=True
        )


def test_messages_are_plain_text_and_a_cut_keeps_the_end(tmp_path, encoder):
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "name a fruit"}]
    alone = [{"role": "user", "content": "name a fruit"}]
    reply = [{"role": "assistant", "content": "pear please"}]
    ds = freeze_records(
        [
            Judgement("pair", talk, (reply, [{"role": "assistant", "content": "four"}])),
            Judgement("pair", alone, ("pear please", "four words" + " a b c" * 12)),
        ],
        tmp_path / "ds",
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    coder = PairCoder(tokenizer)
    tokens = tokenise(ds, np.arange(2), tokenizer, TextTable(max_length=64), pair=True)
    prompts = {tuple(tokens.prompts[i].tolist()) for i in range(ds.n_prompts)}
    assert prompts == {
        tuple(coder.encode_prompts([text], [False])[0])
        for text in ("system: be brief\n\nuser: name a fruit", "name a fruit")
    }
    said = {tuple(tokens.responses[i].tolist()) for i in range(ds.n_responses)}
    assert tuple(coder.encode_responses(["pear please"], [False])[0]) in said
    longest = max(len(tokens.prompts[i]) for i in range(ds.n_prompts))
    cut = tokenise(
        ds, np.arange(2), tokenizer, TextTable(max_length=longest + 4, too_long="truncate-response-right"), pair=True
    )
    assert cut.cuts and all(
        cut.responses[i][-1] == coder.closing[-1] for i in range(ds.n_responses) if len(cut.responses[i])
    )
    assert cut.key != tokens.key


def test_a_tokenizer_that_joins_without_a_mark_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"x": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="post-processor for pairs"):
        PairCoder(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))


def test_training_has_no_dropout_left(encoder):
    model, _ = load_base(encoder)
    reward = RewardModel(model)
    model.train()
    ids = torch.arange(5, 25)[None]
    one, two = (reward.model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(one, two)
