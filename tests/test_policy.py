from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

import tiny_models as tiny
from holdfast.errors import HoldfastError
from holdfast.language import policy as module
from holdfast.language.packing import Packed, Padded, pad
from holdfast.language.policy import Policy, RewardModel, load_base, padding_id, save_model

TOKENS = tiny.random_tokens(0, [9, 1, 14], [1, 7, 12, 4, 4, 9])
GROUPS = [(0, [0, 1, 2]), (2, [3]), (1, [4, 5])]
PAIRS = [(0, 0), (0, 1), (0, 2), (2, 3), (1, 4), (1, 5)]


def _tokenizer(**special):
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(tiny.VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **({"bos_token": "t1", "eos_token": "t2"} | special))


# --- which way is computed, and why


def test_auto_packs_where_it_can():
    policy = Policy(tiny.model("llama"))
    assert policy.compute == "packed" and "trial" in policy.why
    assert isinstance(policy.batch(TOKENS, GROUPS), Packed)
    policy = Policy(tiny.model("llama"), "padded")
    assert (policy.compute, policy.why) == ("padded", "asked for")
    assert isinstance(policy.batch(TOKENS, GROUPS), Padded)


def _sinks():
    shape = {k: v for k, v in tiny._GROUPED.items() if k != "intermediate_size"}
    with module.quiet():
        return transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **shape, intermediate_size=16, num_local_experts=2, num_experts_per_tok=1, head_dim=8
            )
        )


def _logits_of_its_own():
    causal = tiny.model("llama")
    causal.config.logits_bend = 3.0
    return causal


def _head_of_its_own():
    causal = tiny.model("llama")
    causal.lm_head = torch.nn.Sequential(causal.lm_head)
    return causal


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: tiny.model("llama", attention_dropout=0.1), "attention dropout 0.1 in training"),
        (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1)), "dropout 0.1"),
        (_sinks, "s_aux"),
        (
            lambda: transformers.BloomForCausalLM(
                transformers.BloomConfig(vocab_size=61, hidden_size=8, n_layer=1, n_head=1)
            ),
            "attention interface",
        ),
        (_logits_of_its_own, "logits_bend"),
        (_head_of_its_own, "Sequential"),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=61, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
            ),
            "encoder-decoder",
        ),
    ],
    ids=["dropout", "gpt2-dropout", "sinks", "alibi", "config", "head", "t5"],
)
def test_what_cannot_pack_falls_back_and_says_why(make, why):
    causal = make()
    before = causal.config._attn_implementation
    policy = Policy(causal)
    assert policy.compute == "padded"
    assert why in policy.why
    assert causal.config._attn_implementation == before
    with pytest.raises(HoldfastError, match="compute = 'packed' does not work for") as raised:
        Policy(make(), "packed")
    assert why in str(raised.value)


@pytest.mark.parametrize("fault", ["tokens meet", "logits"])
def test_the_trial_finds_a_planted_fault(fault, monkeypatch):
    """A model that mixes neighbouring tokens outside attention, or bends its logits, without a word in its config."""
    causal = tiny.model("llama")
    if fault == "tokens meet":
        mlp = causal.model.layers[1].mlp
        plain = mlp.forward
        monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + 0.1 * x.roll(1, dims=1))
    else:
        plain_logits = causal.forward

        def bent(*args, **kwargs):
            out = plain_logits(*args, **kwargs)
            out.logits = out.logits * 1.05
            return out

        monkeypatch.setattr(causal, "forward", bent)
    policy = Policy(causal)
    assert policy.compute == "padded"
    assert "differ by" in policy.why


def test_making_a_policy_leaves_mode_and_random_state():
    for training in (True, False):
        causal = tiny.model("gpt2").train(training)
        state = torch.get_rng_state()
        Policy(causal)
        assert torch.equal(torch.get_rng_state(), state)
        assert causal.training is training


def test_a_token_that_doubles_as_padding_learns():
    causal = tiny.model("phi3")  # its config pads with id 0
    assert causal.get_input_embeddings().padding_idx == 0
    policy = Policy(causal)
    some = tiny.tokens([[0, 5]], [[0, 2]])
    policy.logps(policy.batch(some, [(0, [0])])).sum_R.sum().backward()
    assert causal.get_input_embeddings().weight.grad[0].abs().max() > 0


# --- policies


@pytest.mark.parametrize("compute", ["packed", "padded"])
@pytest.mark.parametrize("family", ["granite", "cohere", "phi3", "gemma2"])
def test_log_probabilities_of_heads_with_scales_and_caps(family, compute):
    causal = tiny.model(family)
    expected = tiny.oracle_logps(copy.deepcopy(causal), TOKENS, PAIRS)
    policy = Policy(causal, compute)
    got = policy.logps(policy.batch(TOKENS, GROUPS))
    torch.testing.assert_close(got.token_N, torch.cat(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sum_R, torch.stack([e.sum() for e in expected]), atol=1e-5, rtol=1e-6)
    assert got.length_R.tolist() == [len(e) for e in expected]
    assert got.sum_R.dtype == torch.float32


def test_float64_agrees_to_float64():
    causal = tiny.model("llama", dtype=torch.float64)
    expected = tiny.oracle_logps(copy.deepcopy(causal), TOKENS, PAIRS)
    policy = Policy(causal, "packed")
    got = policy.logps(policy.batch(TOKENS, GROUPS))
    torch.testing.assert_close(got.token_N, torch.cat(expected), atol=1e-12, rtol=0)


def test_chunk_changes_nothing_beyond_float_error():
    causal = tiny.model("llama")
    policy = Policy(causal, "packed", chunk=3)
    batch = policy.batch(TOKENS, GROUPS)
    a = policy.logps(batch).token_N
    policy.chunk = 1000
    torch.testing.assert_close(a, policy.logps(batch).token_N, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mine", ["packed", "padded"])
@pytest.mark.parametrize("theirs", ["packed", "padded"])
def test_token_kl_is_exact(mine, theirs):
    a, b = tiny.model("llama", seed=1), tiny.model("llama", seed=2)
    packed = pad(TOKENS, GROUPS)
    with torch.no_grad():
        la, lb = (
            m(input_ids=packed.ids_BL, attention_mask=packed.mask_BL).logits.flatten(0, 1)[packed.source_N].double()
            for m in (a, b)
        )
    la, lb = la.log_softmax(-1), lb.log_softmax(-1)
    expected = (la.exp() * (la - lb)).sum(-1)
    policy, reference = Policy(a, mine, chunk=4), Policy(b, theirs)
    if (mine, theirs) == ("packed", "padded"):
        with pytest.raises(HoldfastError, match="the same compute"):
            policy.token_kl(policy.batch(TOKENS, GROUPS), reference)
        return
    # padded batch, packed reference: a model that was switched still reads a padded batch as any other does
    got = policy.token_kl(policy.batch(TOKENS, GROUPS), reference)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)
    assert not got.requires_grad
    assert policy.token_kl(policy.batch(TOKENS, GROUPS), policy).abs().max() == 0


def test_token_kl_needs_one_vocabulary():
    a, b = Policy(tiny.model("llama")), Policy(tiny.model("llama", vocab_size=70))
    with pytest.raises(HoldfastError, match="61 ids, the reference 70"):
        a.token_kl(a.batch(TOKENS, GROUPS), b)


def test_too_long_for_the_model_names_the_lengths():
    for compute in ("packed", "padded"):
        policy = Policy(tiny.model("gpt2"), compute)
        with pytest.raises(HoldfastError, match="has 101 tokens, GPT2LMHeadModel reads at most 96.*max_length = 96"):
            policy.batch(tiny.random_tokens(0, [91], [10]), [(0, [0])])


def test_a_reward_model_is_no_policy():
    with pytest.raises(HoldfastError, match="no output head over the vocabulary"):
        Policy(RewardModel.on(tiny.model("llama")).model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_direct_gradients_and_filled_rows_are_plain_ones(family, tied, monkeypatch):
    """Two backwards, as of two micro-batches, against the padded path."""
    found = []
    for compute, direct, even in (("padded", False, 1), ("packed", True, 3)):
        monkeypatch.setattr(module, "even", lambda x, even=even: even)
        model = tiny.model(family, tie_word_embeddings=tied)
        policy = Policy(model, compute, direct=direct)
        embedding = model.get_input_embeddings()
        assert embedding.sparse == (direct and tied)
        for groups, n in ((GROUPS, 3), (GROUPS[:1], 2)):
            batch = policy.batch(TOKENS, groups)
            assert compute == "padded" or batch.n_tokens % 3 == 0
            (policy.logps(batch).sum_R / n).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in found[0].items():
        assert not found[1][name].is_sparse
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-5)


# --- reward models


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_plain_transformers_reads_the_same_score(family, tmp_path):
    tokenizer = _tokenizer()
    reward = RewardModel.on(tiny.model(family), tokenizer, seed=3)
    assert reward.compute == "packed"
    with torch.no_grad():
        reward.model.score.weight.mul_(10)
    scores = reward.scores(reward.batch(TOKENS, GROUPS))
    save_model(reward.model, tokenizer, tmp_path / "m")

    with module.quiet():
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert plain.config.num_labels == 1
    assert plain.config.pad_token_id == tokenizer.pad_token_id != tiny.STOP
    ids = [[*TOKENS.prompts[p].tolist(), *TOKENS.responses[r].tolist()] for p, r in PAIRS]
    inputs = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        expected = plain(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits[:, 0]
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("compute", ["packed", "padded"])
def test_the_last_token_is_found_by_length_not_by_padding(compute):
    """Where the padding id (here 1) ends a response, or stands in it, the score is still read at the last token."""
    reward = RewardModel.on(tiny.model("llama"), compute=compute)
    assert reward.model.config.pad_token_id == 1
    some = tiny.tokens([[5, 1, 6]], [[7, 1, 1], [7, 8, 9, 10, 2]])
    scores = reward.scores(reward.batch(some, [(0, [0, 1])]))
    with torch.no_grad():
        hidden = reward.model.model(input_ids=torch.tensor([[5, 1, 6, 7, 1, 1]])).last_hidden_state
        torch.testing.assert_close(scores[0], reward.model.score(hidden[0, -1])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("compute", ["packed", "padded"])
def test_prefix_scores_are_the_scores_of_prefixes(compute):
    reward = RewardModel.on(tiny.model("llama"), compute=compute)
    batch = reward.batch(TOKENS, GROUPS)
    got = reward.prefix_scores(batch)
    torch.testing.assert_close(got[torch.cumsum(batch.length_R, 0) - 1], reward.scores(batch))
    whole = TOKENS.responses[2]
    prefixes = tiny.tokens([TOKENS.prompts[0]], [whole[: i + 1] for i in range(len(whole))])
    expected = reward.scores(reward.batch(prefixes, [(0, range(len(whole)))]))
    torch.testing.assert_close(got[batch.owner_N == 2], expected, atol=1e-6, rtol=0)


def test_a_fresh_head_is_small_and_comes_from_its_seed():
    state = torch.get_rng_state()
    heads = [RewardModel.on(tiny.model("llama"), seed=seed).model.score.weight.detach() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    # one draw of 32 numbers with standard deviation 0.1 / sqrt(32): its norm is near 0.1
    assert all(0.06 < float(head.norm()) < 0.14 for head in heads)


def test_a_reward_model_takes_the_backbone_over():
    causal = tiny.model("llama")
    reward = RewardModel.on(causal)
    assert reward.model.model is causal.model
    assert RewardModel.on(reward.model).model is reward.model


@pytest.mark.parametrize(
    ("eos", "pad", "tokenizer", "expected"),
    [
        (2, 9, None, 9),  # the config's own
        (2, 2, None, 1),  # a stop token cannot fill: BOS can
        ([2, 1], None, None, 60),  # nothing named is left: the last id
        (2, None, {"pad_token": "t7"}, 7),
        (2, None, {"pad_token": "t2", "unk_token": "t0"}, 0),
        (2, None, {"bos_token": "t2", "unk_token": "t2"}, 60),  # GPT-2's way
        (2, None, {"bos_token": "t2", "additional_special_tokens": ["t5"]}, 5),
    ],
)
def test_padding_ends_no_response(eos, pad, tokenizer, expected):
    config = tiny.CONFIGS["llama"]()
    config.eos_token_id, config.pad_token_id = eos, pad
    assert padding_id(config, None if tokenizer is None else _tokenizer(**tokenizer)) == expected


def test_an_encoder_scores_padded():
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(config).eval()
    reward = RewardModel(bert)
    assert reward.compute == "padded" and "encoder" in reward.why
    got = reward.scores(reward.batch(TOKENS, GROUPS))
    for (p, r), score in zip(PAIRS, got, strict=True):
        torch.testing.assert_close(_pair_score(bert, TOKENS.prompts[p], TOKENS.responses[r]), score, atol=1e-6, rtol=0)
    # The score were the response to end earlier: its beginning, closed by its last token.
    batch = reward.batch(TOKENS, GROUPS)
    prefixes = iter(reward.prefix_scores(batch))
    for p, r in PAIRS:
        response = TOKENS.responses[r].tolist()
        for k in range(1, len(response) + 1):
            cut = response[:k] if k == len(response) else [*response[:k], response[-1]]
            torch.testing.assert_close(_pair_score(bert, TOKENS.prompts[p], cut), next(prefixes), atol=1e-6, rtol=0)
    assert next(prefixes, None) is None


def _pair_score(bert, prompt, response):
    ids = torch.tensor([[*prompt, *response]])
    types = torch.tensor([[0] * len(prompt) + [1] * len(response)])
    return bert(input_ids=ids, token_type_ids=types).logits[0, 0]


def test_two_labels_are_no_reward():
    config = tiny.CONFIGS["llama"]()
    config.num_labels = 2
    with pytest.raises(HoldfastError, match="with 2"):
        RewardModel(transformers.LlamaForSequenceClassification(config))


# --- loading and saving


@pytest.fixture
def folder(tmp_path):
    save_model(tiny.model("llama"), _tokenizer(), tmp_path / "base")
    return tmp_path / "base"


def test_saved_and_loaded_is_the_same_to_the_byte(folder, tmp_path):
    model, tokenizer = load_base(folder)
    original = tiny.model("llama").state_dict()
    assert model.state_dict().keys() == original.keys()
    assert all(torch.equal(v, original[k]) for k, v in model.state_dict().items())
    assert tokenizer.eos_token_id == 2
    save_model(Policy(model, "packed").model, tokenizer, tmp_path / "again")
    files = sorted(p.name for p in folder.iterdir())
    assert files == sorted(p.name for p in (tmp_path / "again").iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for name in files:  # the packed path leaves no trace, in the config or elsewhere
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_run_folder_is_its_model(folder, tmp_path):
    folder.rename(tmp_path / "model")
    model, _ = load_base(tmp_path)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_reward_models_folder_loads_as_one(tmp_path):
    reward = RewardModel.on(tiny.model("gpt2"), tokenizer := _tokenizer())
    save_model(reward.model, tokenizer, tmp_path / "m")
    model, _ = load_base(tmp_path / "m")
    again = RewardModel(model)
    torch.testing.assert_close(
        again.scores(again.batch(TOKENS, GROUPS)), reward.scores(reward.batch(TOKENS, GROUPS)), atol=0, rtol=0
    )


def test_dropout_is_off_unless_kept(tmp_path):
    torch.manual_seed(0)
    causal = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    )
    save_model(causal, _tokenizer(), tmp_path / "m")
    model, tokenizer = load_base(tmp_path / "m")
    assert Policy(model.train()).compute == "packed"
    save_model(model, tokenizer, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["attn_pdrop"] == 0.1  # as the base has it
    model, _ = load_base(tmp_path / "m", dropout=True)
    assert "dropout 0.1" in Policy(model.train()).why


def test_loading_is_silent(folder, capfd):
    load_base(folder)
    RewardModel.on(load_base(folder)[0])
    out, err = capfd.readouterr()
    assert out == err == ""


def _remove(folder, *names):
    for name in names:
        (folder / name).unlink()


def _pickle(folder):
    _remove(folder, "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")


def _lose_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _remote(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda f: f.rename(f.parent / "elsewhere"), "does not exist"),
        (lambda f: _remove(f, "config.json"), "no config.json"),
        (lambda f: _remove(f, "model.safetensors"), r"no \*\.safetensors"),
        (_pickle, "pytorch_model.bin, a pickle"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "does not load"),
        (lambda f: (f / "config.json").write_text("{"), "does not load"),
        (_lose_a_weight, r"lacks 1 weights .*model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda f: _remove(f, "tokenizer.json", "tokenizer_config.json"), "tokenizer"),
        (_remote, "does not load"),
    ],
)
def test_what_is_missing_is_named(folder, damage, names, capfd):
    damage(folder)
    with pytest.raises(HoldfastError, match=names) as raised:
        load_base(folder)
    assert raised.value.__cause__ is None
    assert "remote code ran" not in str(raised.value)


def test_saving_is_whole_or_not_at_all(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(module, "sync_tree", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny.model("llama", seed=9), _tokenizer(), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    monkeypatch.undo()
    save_model(tiny.model("llama", seed=9), _tokenizer(), folder)
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["base"]  # nothing left beside it
