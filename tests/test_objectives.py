"""Language objectives: values by an independent path, exact accumulation, step 0, and what each refuses."""

import math

import numpy as np
import pytest
import torch

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.data.views import comparisons, preferred
from holdfast.errors import IntegrityError, RecipeError
from holdfast.language.objectives import Preference, Reward, Sft, needs_reference, pair_losses
from holdfast.language.planning import by_prompt
from holdfast.language.policy import Policy, RewardModel
from holdfast.language.reference import Cached, reference_logps
from holdfast.language.scratch import dataset_texts, make_model, train_tokenizer
from holdfast.language.tokens import tokenise
from holdfast.recipe import ScratchTable, TextTable


def says(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four prompts with three responses each: pairs, a tie, a soft preference and a ranking."""
    records = []
    for n in range(4):
        prompt, (x, y, z) = (
            says(f"say number {n}"),
            (f"it is {n}", f"{n} and no more", f"number {n}, dear friend, said aloud"),
        )
        records += [
            Judgement("pair", prompt, (x, y), annotator="a"),
            Judgement("pair", prompt, (x, z), annotator="b"),
            Judgement("tie", prompt, (y, z)),
            Judgement("soft", prompt, (x, y), value=0.8),
            Judgement("ranking", prompt, (x, y, z), ranks=(0, 1, 2)),
        ]
    ds = freeze_records(records, tmp_path_factory.mktemp("objectives") / "ds")
    rows = np.arange(ds.n_judgements)
    tokenizer = train_tokenizer(dataset_texts(ds, rows), 320)
    tokens = tokenise(ds, rows, tokenizer, TextTable(max_length=64))
    return ds, rows, tokenizer, tokens


def model_of(tokenizer, seed=0):
    torch.set_num_threads(1)
    model = make_model(ScratchTable(vocab=320, hidden=16, layers=2, heads=2, context=64), tokenizer, seed)
    with torch.no_grad():  # away from the uniform start, so that no two log-probabilities are equal
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
    return model


def groups_of(view):
    return by_prompt(np.repeat(view.prompt, 2).tolist(), np.stack([view.a, view.b], 1).ravel().tolist())


def logp_alone(model, tokens, prompt, response):
    """Log-probability of one response by an ordinary forward of one sequence: independent of packing and padding."""
    p, r = tokens.prompts[prompt], tokens.responses[response]
    ids = torch.tensor(np.concatenate([p, r])[None].astype(np.int64))
    logp = model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(logp[len(p) - 1 + i, int(t)] for i, t in enumerate(r))


def test_sft_is_the_mean_negative_log_likelihood_per_token(world):
    ds, rows, tokenizer, tokens = world
    view = preferred(ds, rows)
    model = model_of(tokenizer)
    objective = Sft(Policy(model), tokens, view, 3)
    value = sum(float(objective.loss(b)[0].detach()) for b in objective.batches(view.row)) / objective.normaliser(
        view.row
    )
    with torch.no_grad():
        total = sum(
            float(logp_alone(model, tokens, int(p), int(r))) for p, r in zip(view.prompt, view.response, strict=True)
        )
    n = sum(len(tokens.responses[int(r)]) for r in view.response)
    assert value == pytest.approx(-total / n, rel=1e-5)
    assert objective.figures(view.row)["nll"] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("compute", ["packed", "padded"])
def test_dpo_uses_pairs_ties_soft_labels_and_rankings(world, compute):
    ds, rows, tokenizer, tokens = world
    view = comparisons(ds, rows)
    model, other = model_of(tokenizer, 1), model_of(tokenizer, 2)
    reference = reference_logps(Policy(other, compute), "w", tokens, groups_of(view), "env", ds.path.parent / compute)
    objective = Preference(
        Policy(model, compute), tokens, view, reference, loss="dpo", table={"beta": 0.3}, micro_batch=100
    )
    value = sum(float(objective.loss(b)[0].detach()) for b in objective.batches(rows)) / objective.normaliser(rows)

    def ratio(prompt, response):
        return float(logp_alone(model, tokens, prompt, response) - logp_alone(other, tokens, prompt, response))

    total = 0.0
    with torch.no_grad():
        for e in range(len(view)):
            d = ratio(int(view.prompt[e]), int(view.a[e])) - ratio(int(view.prompt[e]), int(view.b[e]))
            win, lose = math.log1p(math.exp(-0.3 * d)), math.log1p(math.exp(0.3 * d))
            total += view.weight[e] * (view.p[e] * win + (1 - view.p[e]) * lose)
    assert value == pytest.approx(total / len(rows), rel=1e-4)
    assert {0.5, 0.8, 1.0} <= set(view.p.tolist()) and view.weight.sum() == pytest.approx(len(rows))


def test_reward_is_bradley_terry_on_the_last_token(world):
    ds, rows, tokenizer, tokens = world
    view = comparisons(ds, rows)
    wrapped = RewardModel.on(model_of(tokenizer), tokenizer, seed=3)
    objective = Reward(wrapped, tokens, view, table={"centre": 0.01}, micro_batch=4)
    value = sum(float(objective.loss(b)[0].detach()) for b in objective.batches(rows)) / objective.normaliser(rows)

    def score(prompt, response):
        ids = np.concatenate([tokens.prompts[prompt], tokens.responses[response]])[None].astype(np.int64)
        return float(wrapped.model(input_ids=torch.tensor(ids)).logits[0, 0])  # transformers' own pooling

    total = 0.0
    with torch.no_grad():
        for e in range(len(view)):
            a, b = score(int(view.prompt[e]), int(view.a[e])), score(int(view.prompt[e]), int(view.b[e]))
            win, lose = math.log1p(math.exp(b - a)), math.log1p(math.exp(a - b))
            total += view.weight[e] * (view.p[e] * win + (1 - view.p[e]) * lose + 0.01 * (a + b) ** 2)
    assert value == pytest.approx(total / len(rows), rel=1e-4)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_accumulation_is_exact(world, kind):
    """8 x 1, 4 x 2 and 1 x 8: the same loss and gradients to 1e-6 relative, whatever the micro-batch."""
    ds, rows, tokenizer, tokens = world
    view = preferred(ds, rows) if kind == "sft" else comparisons(ds, rows)
    rows = view.row if kind == "sft" else rows[:8]
    found = {}
    for micro in (1, 2, 8):
        model = model_of(tokenizer).double()
        if kind == "sft":
            objective = Sft(Policy(model), tokens, view, micro)
        elif kind == "reward":
            objective = Reward(RewardModel.on(model, tokenizer, seed=0), tokens, view, table={}, micro_batch=micro)
        else:
            base = reference_logps(
                Policy(model_of(tokenizer, 9)), "w9", tokens, groups_of(view), "env", ds.path.parent / "acc"
            )
            objective = Preference(Policy(model), tokens, view, base, loss="dpo", table={}, micro_batch=micro)
        batches = objective.batches(rows)
        assert len(batches) == 1 if micro == 8 else len(batches) >= len(rows) // micro
        assert max(len(batch.rows) for batch in batches) <= micro
        total = 0.0
        for batch in batches:
            loss = objective.loss(batch)[0] / objective.normaliser(rows)
            loss.backward()
            total += float(loss.detach())
        gradient = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])
        found[micro] = (total, gradient)
    for micro in (1, 2):
        assert found[micro][0] == pytest.approx(found[8][0], rel=1e-6)
        difference = (found[micro][1] - found[8][1]).norm() / found[8][1].norm()
        assert float(difference) < 1e-6


def test_step_0_refuses_a_reference_that_is_another_model(world):
    ds, rows, tokenizer, tokens = world
    view = comparisons(ds, rows)
    model = model_of(tokenizer, 1)
    folder = ds.path.parent / "step0"
    own = reference_logps(Policy(model), "one", tokens, groups_of(view), "env", folder)
    facts = Preference(Policy(model), tokens, view, own, loss="dpo", table={}, micro_batch=8).begin()
    assert facts["loss"] == "dpo" and facts["beta"] == 0.1 and facts["reference"]["digest"] == own.digest
    other = reference_logps(Policy(model_of(tokenizer, 2)), "two", tokens, groups_of(view), "env", folder)
    with pytest.raises(IntegrityError, match="at step 0 the policy's log-ratio to its reference is"):
        Preference(Policy(model), tokens, view, other, loss="dpo", table={}, micro_batch=8).begin()


def test_the_reference_is_kept_under_its_key_and_checked_when_loaded(world):
    ds, rows, tokenizer, tokens = world
    view = comparisons(ds, rows)
    policy, folder = Policy(model_of(tokenizer, 5)), ds.path.parent / "kept"

    def made(weights="w", environment="env"):
        return reference_logps(policy, weights, tokens, groups_of(view), environment, folder)

    first = made()
    (path,) = folder.glob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    again = made()
    assert again.digest == first.digest and again.token == first.token and path.stat().st_mtime_ns == stamp
    assert made(weights="v").key != first.key and made(environment="other").key != first.key
    data = bytearray(path.read_bytes())
    flat = np.frombuffer(data, dtype=np.float32, offset=len(data) - first.token.flat.nbytes)
    planted = data.find(first.token.flat.tobytes())
    assert planted > 0 and len(flat)
    for i in range(0, first.token.flat.nbytes, 4):  # halve every value: a stale artefact under the right name
        at = planted + i
        data[at : at + 4] = (np.frombuffer(data[at : at + 4], np.float32) / 2).tobytes()
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="disagrees with the reference"):
        made()


def test_unknown_keys_and_values_out_of_range_are_errors_before_anything_is_computed(world):
    ds, rows, tokenizer, tokens = world
    view = comparisons(ds, rows)
    policy = Policy(model_of(tokenizer))
    nothing = Cached(tokens.responses, "", "")
    for table, words in [({"bta": 1}, "unknown key 'bta'; did you mean 'beta'"), ({"beta": -1.0}, "beta")]:
        with pytest.raises(RecipeError, match=words):
            Preference(policy, tokens, view, nothing, loss="dpo", table=table, micro_batch=8)
    with pytest.raises(RecipeError, match="unknown key 'beta'"):
        Reward(RewardModel.on(model_of(tokenizer), tokenizer), tokens, view, table={"beta": 1}, micro_batch=8)


def test_a_reference_is_asked_for_only_by_losses_that_name_it():
    assert "dpo" in pair_losses() and needs_reference("dpo")


def test_metrics_count_ties_in_no_accuracy_and_examples_add_up(world):
    ds, rows, tokenizer, tokens = world
    view = comparisons(ds, rows)
    model, other = model_of(tokenizer, 1), model_of(tokenizer, 2)
    reference = reference_logps(Policy(other), "w2", tokens, groups_of(view), "env", ds.path.parent / "metrics")
    objective = Preference(Policy(model), tokens, view, reference, loss="dpo", table={}, micro_batch=7)
    scores = objective.scores(rows, Policy(other))
    order = np.argsort(scores["edge"])
    assert scores["edge"][order].tolist() == list(range(len(view)))
    gap = (scores["reward_a"] - scores["reward_b"])[order]
    decided = view.p != 0.5
    right = float((view.weight[decided] * (gap[decided] > 0)).sum() / view.weight[decided].sum())
    figures = objective.figures(rows)
    assert figures["rewards/accuracies"] == pytest.approx(right)
    assert figures["rewards/margins"] == pytest.approx(float((gap * view.weight).sum() / view.weight.sum()), rel=1e-4)
    assert (scores["kl_a"] > 0).all() and scores["kl_a"].max() < 10
    e = int(order[0])
    parts = objective.contributions(int(view.prompt[0]), int(view.a[0]))
    assert parts.sum() == pytest.approx(float(scores["reward_a"][e]), rel=1e-3, abs=1e-6)
    reward = Reward(RewardModel.on(model_of(tokenizer), tokenizer, seed=3), tokens, view, table={}, micro_batch=4)
    of = reward.scores(rows)
    assert reward.contributions(int(view.prompt[0]), int(view.a[0])).sum() == pytest.approx(
        float(of["reward_a"][np.argsort(of["edge"])[0]]), rel=1e-4
    )
