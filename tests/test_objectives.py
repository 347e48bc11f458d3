"""The language objective: every loss trains, packed as padded, under any micro-batching; quantities by an independent path; what each
refuses."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.data.views import comparisons
from holdfast.errors import HoldfastError, IntegrityError, RecipeError
from holdfast.language.objectives import LanguageObjective
from holdfast.language.planning import by_prompt, mismatched
from holdfast.language.policy import Policy, RewardModel, load_base, scorer_on
from holdfast.language.reference import Live, frozen, reference_logps
from holdfast.language.scoring import PolicyScorer, RewardScorer
from holdfast.language.scratch import dataset_texts, make_model, train_tokenizer
from holdfast.language.terms import fed, feed, kinds, read_objective, reward_losses
from holdfast.language.tokens import tokenise
from holdfast.losses import LOSSES
from holdfast.recipe import RunTable, ScratchTable, TextTable, TrainTable
from holdfast.training.fit import fit
from holdfast.training.objective import Rows
from holdfast.training.order import Order

POLICY = [k for k in kinds() if k != "reward" and k != "sum"]
ALL = [
    *({"kind": kind} for kind in POLICY),
    *({"kind": "reward", "loss": loss} for loss in reward_losses()),
    {"kind": "reward", "heads": 3},
    {"kind": "f_dpo", "divergence": "alpha", "alpha": 0.4},
    {"kind": "ld_dpo", "reference": "plain"},
    {
        "kind": "sum",
        "terms": [{"kind": "dpo", "beta": 0.2}, {"kind": "aot", "weight": 0.5}, {"kind": "sft", "weight": 0.1}],
    },
    {"kind": "sum", "terms": [{"kind": "bco"}, {"kind": "kto", "weight": 2.0}, {"kind": "plackett_luce"}]},
]
FAST = {"dpo", "tdpo2", "aot", "bco", "kto", "plackett_luce", "reward-3", "sum0", "sum1"}


def name_of(table):
    return "-".join([str(table["kind"]), *(str(v) for k, v in table.items() if k not in ("kind", "terms"))])


def every(table):
    """All of them; `make check` takes one of each sort."""
    name = name_of(table) if table["kind"] != "sum" else f"sum{ALL.index(table) - len(ALL) + 2}"
    return pytest.param(table, id=name, marks=[] if name in FAST else [pytest.mark.slow])


def says(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six prompts with three responses each: pairs, a tie, a soft preference, a ranking, scores and labels."""
    records = []
    for n in range(6):
        prompt = says(f"say number {n}")
        x, y, z = f"it is {n}", f"{n} and no more", f"number {n}, dear friend, said aloud"
        records += [
            Judgement("pair", prompt, (x, y), annotator="a", margin=0.5 if n % 2 else None),
            Judgement("pair", prompt, (z, x), annotator="b"),
            Judgement("tie", prompt, (y, z)),
            Judgement("soft", prompt, (x, y), value=0.8),
            Judgement("ranking", prompt, (x, y, z), ranks=(0, 1, 1) if n == 2 else (0, 1, 2)),
            *(Judgement("score", prompt, (r,), value=float(v)) for r, v in zip((z, y, x), (7, n, 3), strict=True)),
            Judgement("label", prompt, (y,), value=1.0),
            Judgement("label", prompt, (z,), value=0.0),
        ]
    ds = freeze_records(records, tmp_path_factory.mktemp("objectives") / "ds")
    rows = np.arange(ds.n_judgements)
    tokenizer = train_tokenizer(dataset_texts(ds, rows), 320)
    tokens = tokenise(ds, rows, tokenizer, TextTable(max_length=64))
    assert len(tokens.rows) == len(rows)
    return ds, rows, tokenizer, tokens


def model_of(tokenizer, seed=0):
    torch.set_num_threads(1)
    model = make_model(ScratchTable(vocab=320, hidden=16, layers=2, heads=2, context=64), tokenizer, seed)
    with torch.no_grad():  # away from the uniform start, so that no two log-probabilities are equal
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
    return model


def objective_of(world, table, micro=100, compute="auto", model=1, reference=2, dtype=torch.float64, term_rows=None):
    """An objective on the fixture, in float64, its reference another model (so that no log-ratio is 0) or, for None, its own start."""
    ds, rows, tokenizer, tokens = world
    asked = read_objective(table)
    rows = rows if term_rows is None else term_rows
    terms = [fed(t, feed(t, ds, rows, 0.0, tokens), tokens) for t in asked.terms]
    network = model_of(tokenizer, model).to(dtype)
    if asked.kind == "reward":
        wrapped = RewardModel(scorer_on(network, tokenizer, seed=3, heads=asked.ensemble.heads), compute)
        scorer = RewardScorer(wrapped, tokens, asked.judges, micro, asked.ensemble)
    else:
        policy, theirs = Policy(network, compute), None
        if asked.needs_reference:
            other = frozen(policy) if reference is None else Policy(model_of(tokenizer, reference).to(dtype), compute)
            theirs = Live(other, "w", is_start=reference is None)
        scorer = PolicyScorer(policy, tokens, asked.judges, theirs, micro)
    return LanguageObjective(scorer, terms, micro, seed=5, row_ids=ds.row_ids)


def value_and_gradient(objective, rows):
    total = 0.0
    for batch in objective.batches(rows):
        loss = objective.loss(batch)[0] / objective.normaliser(rows)
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])


def train(objective, steps, batch=8, lr=3e-3):
    """The losses of some steps of Adam, each on the next rows."""
    optimiser = torch.optim.AdamW(objective.model.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        rows = np.roll(objective.rows, -step * batch)[:batch]
        optimiser.zero_grad()
        losses.append(value_and_gradient(objective, rows)[0])
        optimiser.step()
        objective.after_step(step + 1)
    return losses


def logp_alone(model, tokens, prompt, response):
    """Token log-probabilities of one response by an ordinary forward of one sequence: independent of packing and padding."""
    logp = distribution_alone(model, tokens, prompt, response)
    return logp[torch.arange(len(logp)), torch.tensor(np.array(tokens.responses[response], dtype=np.int64))]


def distribution_alone(model, tokens, prompt, response, most=None):
    p, r = tokens.prompts[prompt], tokens.responses[response][:most]
    ids = torch.tensor(np.concatenate([p, r])[None].astype(np.int64))
    return model(input_ids=ids).logits[0].log_softmax(-1)[len(p) - 1 : -1]


# Every loss.


def test_every_loss_is_somebodys_kind():
    asked = {t.function.name for table in ALL for t in read_objective(table).terms}
    assert asked == set(LOSSES)


@pytest.mark.parametrize("table", list(map(every, ALL)))
def test_every_loss_trains_packed_as_padded(world, table):
    packed, padded = (train(objective_of(world, table, 4, compute), 3) for compute in ("packed", "padded"))
    assert packed == pytest.approx(padded, rel=1e-6) and all(map(math.isfinite, packed))
    again = objective_of(world, table, 4)
    before = again.figures(again.rows)["loss"]
    train(again, 5, batch=len(again.rows))
    # It learns what it minimises; but wpo's weights, through which no gradient flows, grow as it does.
    assert again.figures(again.rows)["loss"] < before or table["kind"] == "wpo"


@pytest.mark.parametrize("table", list(map(every, ALL)))
def test_accumulation_is_exact(world, table):
    """8 x 1, 4 x 2, 1 x 8 and up to 80 tokens: the same loss, gradients, metrics and state, whatever the micro-batch."""
    found = {}
    for micro in (1, 2, "tokens", 8):
        objective = objective_of(world, table, micro if micro != "tokens" else 8)
        rows = objective.rows[np.linspace(0, len(objective.rows) - 1, 8, dtype=int)]
        if micro == "tokens":
            objective.micro_tokens = 80
            batches = objective.batches(rows)
            assert 1 < len(batches) < 8 and any(len(b.rows) > 1 for b in batches)
            assert all(b.forward.n_tokens <= 80 or len(b.rows) == 1 for b in batches)
        else:
            batches = objective.batches(rows)
            assert (len(batches) == 1 if micro == 8 else len(batches) >= 4) and max(
                len(b.rows) for b in batches
            ) <= micro
        value, gradient = value_and_gradient(objective, rows)
        objective.after_step(1)
        figures = objective.figures(rows)
        assert figures["loss"] == pytest.approx(value, rel=1e-6) or objective.extra_state()  # the state went on
        found[micro] = (value, gradient, figures, {n: float(v) for n, v in objective.extra_state().items()})
    for micro in (1, 2, "tokens"):
        assert found[micro][0] == pytest.approx(found[8][0], rel=1e-6)
        assert float((found[micro][1] - found[8][1]).norm() / found[8][1].norm()) < 1e-6
        assert found[micro][2] == pytest.approx(found[8][2], rel=1e-5, abs=1e-9)
        assert found[micro][3] == pytest.approx(found[8][3], rel=1e-6)


@pytest.mark.parametrize("kind", ["sum", "reward", *POLICY])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.from_regex(r"[a-z_]{1,10}", fullmatch=True))
def test_an_unknown_key_of_any_kind_is_an_error_that_names_it_and_the_known_ones(kind, key):
    table = {"kind": kind, **({"terms": [{"kind": "dpo"}]} if kind == "sum" else {})}
    asked = read_objective(table)
    known = {"terms"} if kind == "sum" else {k for k in asked.terms[0].facts if k != "loss"}
    if kind == "reward":
        known |= {"loss", "heads", "bootstrap", "pessimism"}
    if key in known or key == "kind":
        return
    with pytest.raises(RecipeError) as error:
        read_objective({**table, key: 1})
    assert f"unknown key {key!r}" in str(error.value) and all(name in str(error.value) for name in known)


@pytest.mark.parametrize(
    "table,words",
    [
        ({"kind": "dop"}, r"kind = 'dop' is unknown \(known: sft, reward, sum, aot, .*wpo\)"),
        ({"kind": "dpo", "bta": 1}, "unknown key 'bta'; did you mean 'beta'"),
        ({"kind": "dpo", "beta": -1.0}, "beta"),
        ({"kind": "bco", "decay": 1.5}, "decay = 1.5"),
        ({"kind": "reward", "loss": "dpo"}, "loss = 'dpo' is unknown .known: bradley_terry, plackett_luce, rao_kupper"),
        ({"kind": "reward", "loss": "rao_kupper", "centre": 0.1}, "unknown key 'centre'"),
        ({"kind": "reward", "beta": 1}, "unknown key 'beta'"),
        ({"kind": "reward", "heads": 0}, "heads = 0"),
        ({"kind": "reward", "pessimism": 1.0}, "pessimism = 1.0 has no effect with one head"),
        ({"kind": "reward", "bootstrap": True}, "bootstrap = True has no effect with one head"),
        ({"kind": "reward", "heads": 2, "pessimism": "max"}, "pessimism = 'max' should be float or 'min'"),
        ({"kind": "reward", "heads": 2, "pessimism": -1.0}, "pessimism = -1.0"),
        ({"kind": "sum"}, "terms must be given"),
        ({"kind": "sum", "terms": []}, "needs terms"),
        ({"kind": "sum", "terms": [{"beta": 1.0}]}, "kind must be given"),
        ({"kind": "sum", "terms": [{"kind": "reward"}]}, "'reward' cannot be a term"),
        ({"kind": "sum", "terms": [{"kind": "dpo", "weight": 0.0}]}, "weight = 0.0 should be above 0"),
        (
            {"kind": "sum", "terms": [{"kind": "dpo"}, {"kind": "sft", "beta": 1.0}]},
            r"terms\]\] 2 of sft: unknown key 'beta'",
        ),
    ],
)
def test_what_objective_cannot_say(table, words):
    with pytest.raises(RecipeError, match=words):
        read_objective(table)


# Quantities and values by another path.


def test_sft_is_the_mean_negative_log_likelihood_per_token(world):
    _, _, _, tokens = world
    objective = objective_of(world, {"kind": "sft"}, 3)
    view = objective.fed[0].view
    value, _ = value_and_gradient(objective, objective.rows)
    pairs = list(zip(view.prompt.tolist(), view.response.tolist(), strict=True))
    with torch.no_grad():
        total = sum(float(logp_alone(objective.model, tokens, p, r).sum()) for p, r in pairs)
    assert value == pytest.approx(-total / sum(len(tokens.responses[r]) for _, r in pairs), rel=1e-9)
    assert objective.figures(objective.rows)["nll"] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("compute", ["packed", "padded"])
def test_dpo_uses_pairs_ties_soft_labels_rankings_and_scores(world, compute):
    _, _, _, tokens = world
    objective = objective_of(world, {"kind": "dpo", "beta": 0.3}, compute=compute)
    view, other = objective.fed[0].view, objective.reference.policy.model
    value, _ = value_and_gradient(objective, objective.rows)

    def ratio(prompt, response):
        return float(
            (logp_alone(objective.model, tokens, prompt, response) - logp_alone(other, tokens, prompt, response)).sum()
        )

    total = 0.0
    with torch.no_grad():
        for e in range(len(view)):
            d = ratio(int(view.prompt[e]), int(view.a[e])) - ratio(int(view.prompt[e]), int(view.b[e]))
            win, lose = math.log1p(math.exp(-0.3 * d)), math.log1p(math.exp(0.3 * d))
            total += view.weight[e] * (view.p[e] * win + (1 - view.p[e]) * lose)
    assert value == pytest.approx(total / len(objective.rows), rel=1e-6)
    assert {0.5, 0.8, 1.0} <= set(view.p.tolist()) and view.weight.sum() == pytest.approx(len(objective.rows))


def test_the_quantities_of_ld_dpo_wpo_and_tdpo2(world):
    """Tokens past the shorter length, alignment and KL, against whole softmaxes of one sequence at a time."""
    _, _, _, tokens = world
    needs = {"past_logp_w": "ld_dpo", "aligned_w": "wpo", "kl_w": "tdpo2"}
    for compute in ("packed", "padded"):
        for kind in needs.values():
            objective = objective_of(world, {"kind": kind}, compute=compute)
            (batch,) = objective.batches(objective.rows[:12])
            said = objective.scorer.say(batch.forward, objective.needs)
            (x,), f = batch.examples, objective.fed[0]
            q = {n: v.detach() for n, v in f.quantities(x, batch.forward, said, {}).items()}
            other, seen_past = objective.reference.policy.model, 0
            with torch.no_grad():
                for i, e in enumerate(x):
                    prompt, a, b = (int(v[e]) for v in (f.view.prompt, f.view.a, f.view.b))
                    shorter = min(len(tokens.responses[a]), len(tokens.responses[b]))
                    for side, response in (("w", a), ("l", b)):
                        mine = distribution_alone(objective.model, tokens, prompt, response)
                        theirs = distribution_alone(other, tokens, prompt, response)
                        own = logp_alone(objective.model, tokens, prompt, response)
                        if kind == "ld_dpo":
                            seen_past += len(own) > shorter
                            assert float(q[f"past_logp_{side}"][i]) == pytest.approx(
                                float(own[shorter:].sum()), abs=1e-9
                            )
                            past = logp_alone(other, tokens, prompt, response)[shorter:]
                            assert float(q[f"past_ref_logp_{side}"][i]) == pytest.approx(float(past.sum()), abs=1e-9)
                        elif kind == "wpo":
                            aligned = own - (mine.exp() ** 2).sum(-1).log()
                            assert float(q[f"aligned_{side}"][i]) == pytest.approx(float(aligned.mean()), rel=1e-9)
                        else:
                            kl = (theirs.exp() * (theirs - mine)).sum()
                            assert float(q[f"kl_{side}"][i]) == pytest.approx(float(kl), rel=1e-7)
            assert seen_past or kind != "ld_dpo"


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired", "dr_dpo"])
def test_losses_that_couple_rows_are_those_of_the_whole_step(world, kind):
    """In micro-batches of one, the formula on all of the step's pairs at once, by a plain forward of each."""
    _, _, _, tokens = world
    objective = objective_of(world, {"kind": kind, "beta": 0.4}, 1)
    rows = objective.rows[:10]
    value, gradient = value_and_gradient(objective, rows)
    view, other = objective.fed[0].view, objective.reference.policy.model
    x = objective.fed[0].examples(rows)
    objective.model.zero_grad()
    mine, theirs = {}, {}
    for side, responses in (("w", view.a[x]), ("l", view.b[x])):
        of = list(zip(view.prompt[x].tolist(), responses.tolist(), strict=True))
        mine[side] = torch.stack([logp_alone(objective.model, tokens, p, r).sum() for p, r in of])
        theirs[side] = torch.stack([logp_alone(other, tokens, p, r).sum().detach() for p, r in of])
    given = {f"logp_{s}": mine[s] for s in mine} | {f"ref_logp_{s}": theirs[s] for s in mine}
    given |= {f"r_{s}": mine[s] - theirs[s] for s in mine}
    function = LOSSES[kind]
    expected = function(*(given[n] for n in function.takes), beta=0.4).mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    own = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])
    assert float((own - gradient).norm() / own.norm()) < 1e-6


def test_kto_by_hand_with_its_estimate_over_the_whole_step(world):
    _, _, _, tokens = world
    for micro in (1, 100):
        objective = objective_of(world, {"kind": "kto", "beta": 0.5, "lam_good": 1.2}, micro, model=2, reference=1)
        rows = objective.rows[::2]
        value, _ = value_and_gradient(objective, rows)
        view, other = objective.fed[0].view, objective.reference.policy.model
        x = objective.fed[0].examples(rows)

        def ratio(prompt, response, models=(objective.model, other)):
            own = (float(logp_alone(model, tokens, int(prompt), int(response)).sum()) for model in models)
            return next(own) - next(own)

        with torch.no_grad():
            prompts, responses = mismatched(view.prompt[x], view.response[x])
            assert len(prompts) >= 8 and all(
                int(world[0].response_prompt[r]) != p for p, r in zip(prompts, responses, strict=True)
            )
            z0 = max(0.0, np.mean([ratio(p, r) for p, r in zip(prompts, responses, strict=True)]))
            total = 0.0
            for i in x:
                z = 0.5 * (ratio(view.prompt[i], view.response[i]) - z0)
                total += view.weight[i] * (1.2 / (1 + math.exp(z)) if view.good[i] else 1 / (1 + math.exp(-z)))
        assert z0 > 0 and value == pytest.approx(total / len(rows), rel=1e-6)
        figures = objective.figures(rows)
        assert figures["kl"] == pytest.approx(z0, rel=1e-6)
        assert figures["rewards/margins"] == pytest.approx(figures["rewards/chosen"] - figures["rewards/rejected"])


def test_mismatches_are_of_other_prompts_each_response_at_most_once():
    prompt, response = np.array([0, 0, 1, 2, 2, 0]), np.array([1, 2, 3, 4, 5, 1])
    prompts, responses = mismatched(prompt, response)
    pairs = sorted(zip(prompts.tolist(), responses.tolist(), strict=True))
    assert pairs == [
        (0, 3),
        (0, 4),
        (1, 5),
        (2, 1),
        (2, 2),
    ]  # a distance of two, the largest prompt's size, round the five
    none, _ = mismatched(np.array([3, 3]), np.array([1, 2]))
    assert len(none) == 0  # one prompt alone has no other
    most, _ = mismatched(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 4]))
    assert sorted(most.tolist()) == [0, 1]  # where one prompt has too many, what meets itself is left out


def test_a_long_response_under_a_longer_prompt_is_cut_to_the_room_there_is(world):
    _, _, _, tokens = world
    objective = objective_of(world, {"kind": "kto"})
    lengths = tokens.responses.lengths
    long = int(lengths.argmax())
    prompt = next(p for p in range(world[0].n_prompts) if p != world[0].response_prompt[long])
    room = int(lengths[long]) - 2
    tight = dataclasses.replace(tokens, facts={**tokens.facts, "max_length": len(tokens.prompts[prompt]) + room})
    objective.scorer.tokens = tight
    found = objective.scorer.mismatched(np.array([prompt]), np.array([long]))
    with torch.no_grad():
        own, other = (
            distribution_alone(m, tokens, prompt, long, room)
            for m in (objective.model, objective.reference.policy.model)
        )
        picked = torch.tensor(np.array(tokens.responses[long][:room], dtype=np.int64))
        expected = (own - other)[torch.arange(room), picked].sum()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-9)


def test_bcos_shift_goes_on_from_the_whole_steps_rewards(world):
    objective = objective_of(world, {"kind": "bco", "beta": 0.5, "decay": 0.8}, 2)
    rows, expected = objective.rows[:9], 0.0
    for step in (1, 2):
        batches = objective.batches(rows)
        for batch in batches:
            objective.loss(batch)
        x = objective.fed[0].examples(rows)
        said = objective.scorer.scores(objective.fed[0].view)
        mean = 0.5 * (said["r_a"][x].astype(np.float64).mean() + said["r_b"][x].astype(np.float64).mean()) / 2
        expected = 0.8 * expected + 0.2 * mean
        objective.figures(objective.rows)  # held-out rows are no part of it
        objective.after_step(step)
        assert float(objective.extra_state()["delta"]) == pytest.approx(expected, rel=1e-5)


def test_rankings_are_plackett_luce_and_of_two_dpo(world):
    ds, rows, _, tokens = world
    kind_of = np.array(ds.column("kind"))
    pairs = rows[kind_of == "pair"]
    alone = [objective_of(world, {"kind": k, "beta": 0.3}, term_rows=pairs) for k in ("plackett_luce", "dpo")]
    a, b = (value_and_gradient(o, pairs) for o in alone)
    assert a[0] == pytest.approx(b[0], rel=1e-9) and float((a[1] - b[1]).norm() / b[1].norm()) < 1e-9
    for table in ({"kind": "plackett_luce", "beta": 0.3}, {"kind": "reward", "loss": "plackett_luce"}):
        objective = objective_of(world, table, 4)
        value, _ = value_and_gradient(objective, objective.rows)
        view, total = objective.fed[0].view, 0.0
        score = objective.scorer.term.reward
        with torch.no_grad():
            for i in range(len(view)):
                forward = objective.wrapped.batch(tokens, [(int(view.prompt[i]), view.responses[i].tolist())])
                s = score(objective.scorer.say(forward).of).tolist()
                rank = view.ranks[i].tolist()
                for k, r in enumerate(rank):
                    below = [s[j] for j, q in enumerate(rank) if q > r]
                    total += math.log(sum(map(math.exp, [s[k], *below]))) - s[k]
        assert value == pytest.approx(total / len(view), rel=1e-6)
        assert {2, 3} == set(view.responses.lengths.tolist())


def test_reward_is_bradley_terry_on_the_last_token(world):
    _, _, _, tokens = world
    objective = objective_of(world, {"kind": "reward", "centre": 0.01}, 4)
    view = objective.fed[0].view
    value, _ = value_and_gradient(objective, objective.rows)

    def score(prompt, response):
        ids = np.concatenate([tokens.prompts[prompt], tokens.responses[response]])[None].astype(np.int64)
        return float(objective.model(input_ids=torch.tensor(ids)).logits[0, 0])  # transformers' own pooling

    total, margins = 0.0, np.nan_to_num(view.margin)
    with torch.no_grad():
        for e in range(len(view)):
            a, b = score(int(view.prompt[e]), int(view.a[e])), score(int(view.prompt[e]), int(view.b[e]))
            win, lose = math.log1p(math.exp(b - a + margins[e])), math.log1p(math.exp(a - b + margins[e]))
            total += view.weight[e] * (view.p[e] * win + (1 - view.p[e]) * lose + 0.01 * (a + b) ** 2)
    assert value == pytest.approx(total / len(objective.rows), rel=1e-6) and margins.any()


def test_a_sum_is_the_weighted_sum_of_its_terms_means(world):
    """Each term over the rows it can use, on one forward."""
    terms = [
        {"kind": "dpo", "beta": 0.2},
        {"kind": "exo", "weight": 3.0},
        {"kind": "sft", "weight": 0.5},
        {"kind": "dpo"},
    ]
    whole = objective_of(world, {"kind": "sum", "terms": terms}, 3)
    value, gradient = value_and_gradient(whole, whole.rows)
    expected, expected_gradient = 0.0, torch.zeros_like(gradient)
    for term in terms:
        alone = objective_of(world, {k: v for k, v in term.items() if k != "weight"}, 3)
        part, own = value_and_gradient(alone, alone.rows)
        expected += term.get("weight", 1.0) * part
        expected_gradient += term.get("weight", 1.0) * own
    assert value == pytest.approx(expected, rel=1e-6)
    assert float((gradient - expected_gradient).norm() / gradient.norm()) < 1e-6
    figures = whole.figures(whole.rows)
    assert {"loss", "dpo/loss", "exo/loss", "sft/nll", "dpo/rewards/accuracies", "dpo-4/rewards/margins"} <= set(
        figures
    )
    assert figures["loss"] == pytest.approx(value, rel=1e-6)
    assert figures["sft/loss"] == pytest.approx(figures["sft/nll"], rel=1e-9)
    assert len(whole.fed[1].rows) < len(whole.rows)  # exo takes neither ties nor probabilities


# What each takes of the dataset.


def test_ties_and_probabilities_go_to_the_losses_that_can_use_them(world):
    ds, rows, _, tokens = world
    kind_of = np.array(ds.column("kind"))

    def used(kind):
        (term,) = read_objective({"kind": kind}).terms
        view = feed(term, ds, rows, 0.0, tokens)
        why = {kind_of[r]: reason for r, reason in view.left_out}
        return view, {str(k) for k in kind_of[view.row]}, why

    view, of, _ = used("dpo")
    assert of == {"pair", "tie", "soft", "ranking", "score"} and (view.p[kind_of[view.row] == "tie"] == 0.5).all()
    view, of, why = used("exo")
    assert of == {"pair", "ranking", "score"} and set(view.p) == {1.0}
    assert why["tie"].startswith("a tie: exo has no place") and why["soft"].startswith("a probability: exo takes none")
    np.testing.assert_allclose(np.bincount(view.row, view.weight)[np.unique(view.row)], 1.0)
    tied = [np.unique(view.row[kind_of[view.row] == "ranking"], return_counts=True)[1].min()]
    assert tied == [2]  # of the ranking with two equal ranks, their comparison alone is gone
    view, of, _ = used("rao_kupper")
    assert of == {"pair", "tie", "soft", "ranking", "score"} and view.tie.sum() == 6 + 1
    view, of, why = used("kto")
    assert of == {"pair", "label"} and set(why) == {"tie", "soft", "ranking", "score"}
    view, of, why = used("plackett_luce")
    assert of == {"pair", "ranking", "score"} and set(why) == {"tie", "soft", "label", "score"}


def test_a_tie_is_an_outcome_of_its_own_to_rao_kupper_and_half_a_win_to_dpo(world):
    ds, rows, _, _ = world
    ties = rows[np.array(ds.column("kind")) == "tie"]
    for kind in ("rao_kupper", "dpo"):
        objective = objective_of(world, {"kind": kind, "beta": 0.3}, term_rows=ties)
        view = objective.fed[0].view
        said = objective.scorer.scores(view)
        z = 0.3 * (said["r_a"] - said["r_b"]).astype(np.float64)
        log_sigma = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
        if kind == "dpo":
            expected = -(log_sigma(z) + log_sigma(-z)) / 2
        else:
            expected = -(np.log(8) + log_sigma(z - np.log(3)) + log_sigma(-z - np.log(3)))
        assert value_and_gradient(objective, ties)[0] == pytest.approx(expected.mean(), rel=1e-5)
        assert "rewards/accuracies" not in objective.figures(ties)  # nothing there to be right about


def test_good_and_bad_are_mixed_within_steps(tmp_path):
    """Labels come as a file has them, good ones first; the order shuffles judgements, so every step has both."""
    said = [Judgement("label", f"p{n}", ("x" * (n + 1),), value=float(n < 100)) for n in range(200)]
    ds = freeze_records(said, tmp_path / "ds")
    rows = np.arange(200)
    values = np.array(ds.judgements["value"].to_pylist())
    order = Order(Rows([ds.row_id(i) for i in rows], ds.prompt_of.astype(np.int64), rows), 0, None, 20)
    shares = [values[order.step(s)].mean() for s in range(1, 51)]
    assert min(shares) > 0.1 and max(shares) < 0.9 and np.mean(shares) == pytest.approx(0.5)


def test_kto_wants_both_labels(world):
    ds, rows, _, _ = world
    good = rows[(np.array(ds.column("kind")) == "label") & (np.array(ds.judgements["value"].to_pylist()) == 1)]
    with pytest.raises(RecipeError, match="needs good and bad responses; there are 6 good and 0 bad"):
        objective_of(world, {"kind": "kto"}, term_rows=good, reference=None).begin()
    facts = objective_of(world, {"kind": "kto", "lam_good": 1.2}, reference=None).begin()
    assert (facts["good"], facts["bad"], facts["balance"]) == (12.0, 12.0, pytest.approx(1.2))


def test_scores_of_the_same_tokens_are_not_compared(world):
    ds, rows, _, tokens = world
    kind_of = np.array(ds.column("kind"))
    first = int(rows[kind_of == "score"][0])
    mine = [r for r in rows[kind_of == "score"] if ds.prompt_of[r] == ds.prompt_of[first]]
    same = tokens.responses[int(ds.responses_of[mine[0]][0])]
    lists = [
        same if i in {int(ds.responses_of[r][0]) for r in mine} else tokens.responses[i] for i in range(ds.n_responses)
    ]
    cut = dataclasses.replace(tokens, responses=type(tokens.responses).of(lists))
    for kind in ("dpo", "plackett_luce"):
        (term,) = read_objective({"kind": kind}).terms
        view = feed(term, ds, np.array(mine), 0.0, cut)
        assert len(view) == 0 and "its responses are the same tokens" in dict(view.left_out).values()


# Step 0, references, state.


def test_step_0_refuses_a_reference_that_is_another_model(world):
    facts = objective_of(world, {"kind": "dpo"}, 8, reference=None).begin()
    assert facts["loss"] == "dpo" and facts["beta"] == 0.1 and facts["reference"]["weights"] == "w"
    other = objective_of(world, {"kind": "dpo"}, 8, reference=2)
    assert "not checked" in other.begin()["reference"]["step 0"]
    object.__setattr__(other.reference, "is_start", True)
    with pytest.raises(IntegrityError, match="at step 0 the policy's log-ratio to its reference is"):
        other.begin()


def test_a_cached_reference_gives_what_a_live_one_gives(world, tmp_path):
    _, _, tokenizer, tokens = world
    live = objective_of(world, {"kind": "ld_dpo"}, 4, dtype=torch.float32)
    groups = by_prompt(*(m.tolist() for m in live.fed[0].mentions(np.arange(len(live.fed[0].view)))))
    cached = reference_logps(Policy(model_of(tokenizer, 2)), "w", tokens, groups, "env", tmp_path)
    value, _ = value_and_gradient(live, live.rows)
    live.scorer.reference = live.reference = cached
    assert value_and_gradient(live, live.rows)[0] == pytest.approx(value, rel=1e-5)
    with pytest.raises(RecipeError, match="'frozen'"):
        kto = objective_of(world, {"kind": "kto"})
        kto.scorer.reference = cached
        kto.loss(kto.batches(kto.rows)[0])


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "bco"},
        {"kind": "kto"},
        {"kind": "aot"},
        {"kind": "reward", "heads": 3},
        {"kind": "sum", "terms": [{"kind": "bco"}, {"kind": "bco", "beta": 0.3}]},
    ],
    ids=name_of,
)
def test_resume_is_exact(world, tmp_path, table, monkeypatch):
    """A run that dies at step 4 goes on from step 2's checkpoint to the bytes of one that did not: `delta` is in the checkpoint."""
    ds, _, _, _ = world
    held = np.arange(0, ds.n_judgements, 5)

    def run(name, dies_at=None):
        objective = objective_of(world, table, 3, reference=None, dtype=torch.float32)
        index = np.setdiff1d(objective.rows, held)
        rows = Rows([ds.row_id(int(i)) for i in index], ds.prompt_of[index].astype(np.int64), index)
        taken, after = [], objective.after_step
        if dies_at is not None:

            def die(step):
                taken.append(step)
                if step == dies_at:
                    raise KeyboardInterrupt
                return after(step)

            monkeypatch.setattr(objective, "after_step", die)
        settings = TrainTable(batch=8, steps=6, lr=1e-3, checkpoint_every=2, eval_every=3)
        done = fit(
            objective, rows, settings, RunTable(threads=1), tmp_path / name, facts={}, quiet=True,
            held_out=np.intersect1d(objective.rows, held), on_final=lambda folder: (folder / "x").write_text("x"),
        )  # fmt: skip
        return done, objective.extra_state()

    whole, state = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", dies_at=4)
    again, its_state = run("killed")
    assert (again.ledger_head, again.weights_digest) == (whole.ledger_head, whole.weights_digest)
    assert {n: float(v) for n, v in state.items()} == {n: float(v) for n, v in its_state.items()}
    names = {"bco": {"delta"}, "sum": {"bco/delta", "bco-2/delta"}}.get(table["kind"], set())
    assert set(state) == names and all(float(v) != 0 for v in state.values())


# Metrics, scores, ensembles.


def test_metrics_count_ties_in_no_accuracy_and_examples_add_up(world):
    objective = objective_of(world, {"kind": "dpo"}, 7, dtype=torch.float32)
    view, scorer = objective.fed[0].view, objective.scorer
    scores = scorer.scores(view, objective.reference.policy)
    gap = scores["reward_a"] - scores["reward_b"]
    decided = view.p != 0.5
    right = float((view.weight[decided] * (gap[decided] > 0)).sum() / view.weight[decided].sum())
    figures = objective.figures(objective.rows)
    assert figures["rewards/accuracies"] == pytest.approx(right)
    assert figures["rewards/margins"] == pytest.approx(float((gap * view.weight).sum() / view.weight.sum()), rel=1e-4)
    assert (scores["kl_a"] > 0).all() and scores["kl_a"].max() < 10
    parts = scorer.contributions(int(view.prompt[0]), int(view.a[0]))
    assert parts.sum() == pytest.approx(float(scores["reward_a"][0]), rel=1e-3, abs=1e-6)
    reward = objective_of(world, {"kind": "reward"}, 4, dtype=torch.float32).scorer
    assert reward.contributions(int(view.prompt[0]), int(view.a[0])).sum() == pytest.approx(
        float(reward.scores(view)["reward_a"][0]), rel=1e-4
    )


@pytest.mark.parametrize(
    "table,factor",
    [
        ({"kind": "dpo", "beta": 0.25}, lambda r, logp, n: 0.25 * r),
        ({"kind": "ipo", "tau": 0.3}, lambda r, logp, n: 0.3 * r),
        ({"kind": "ln_dpo", "beta": 4.0}, lambda r, logp, n: 4 * r / n),
        ({"kind": "simpo", "beta": 3.0}, lambda r, logp, n: 3 * logp / n),
        ({"kind": "cpo", "beta": 0.2}, lambda r, logp, n: 0.2 * logp),
        ({"kind": "sft"}, lambda r, logp, n: logp / n),
        ({"kind": "sum", "terms": [{"kind": "sft"}, {"kind": "hinge", "beta": 0.5}]}, lambda r, logp, n: 0.5 * r),
    ],
    ids=lambda x: name_of(x) if isinstance(x, dict) else "",
)
def test_rewards_are_the_losss_implicit_ones(world, table, factor):
    ds, rows, _, _ = world
    view = comparisons(ds, rows)
    objective = objective_of(world, table, 5)
    said = objective.scorer.scores(view)
    expected = factor(said.get("r_a"), said["logp_a"], said["n_a"])
    np.testing.assert_allclose(said["reward_a"], expected, rtol=1e-5)


def test_heads_are_drawn_apart_and_each_sees_its_own_resample(world):
    objective = objective_of(world, {"kind": "reward", "heads": 3}, 100)
    weight = objective.model.score.weight
    one = objective_of(world, {"kind": "reward"}).model.score.weight
    assert weight.shape == (3, 16) and torch.equal(weight[:1], one) and not torch.equal(weight[0], weight[1])
    f = objective.fed[0]
    x = np.arange(len(f.view))
    drawn = objective._bootstrap(f, x)
    assert drawn.shape == (3, len(x)) and not (drawn[0] == drawn[1]).all()
    for row in np.unique(f.view.row):
        assert (drawn[:, f.view.row == row].std(1) == 0).all()  # a judgement is drawn as a whole
    some = x[::3]
    assert (objective._bootstrap(f, some) == drawn[:, ::3]).all()  # and does not hang on the others
    # Poisson(1): mean and variance 1, over many made-up judgements
    objective._ids = [f"{n * 2654435761 % 2**64:016x}" + "0" * 48 for n in range(20000)]
    f.view = dataclasses.replace(f.view, row=np.arange(20000))
    counts = objective._bootstrap(f, np.arange(20000))
    assert counts.mean(1) == pytest.approx([1, 1, 1], abs=0.03) and counts.var(1) == pytest.approx([1, 1, 1], abs=0.06)


def test_the_mean_head_is_an_ordinary_model_and_all_heads_lie_beside_it(world, tmp_path):
    ds, rows, tokenizer, tokens = world
    objective = objective_of(world, {"kind": "reward", "heads": 3, "pessimism": 2.0}, 4, dtype=torch.float32)
    train(objective, 3)
    view = comparisons(ds, rows)
    said = objective.scorer.scores(view)
    objective.wrapped.save(tokenizer, tmp_path / "model")
    assert objective.model.score.weight.shape == (3, 16)  # saving leaves the model as it was
    model, _ = load_base(tmp_path / "model")
    assert type(model).__name__ == "LlamaForSequenceClassification" and model.config.num_labels == 1
    for e in (0, 7):
        ids = np.concatenate([tokens.prompts[int(view.prompt[e])], tokens.responses[int(view.a[e])]])[None]
        with torch.no_grad():
            plain = float(model(input_ids=torch.tensor(ids.astype(np.int64))).logits[0, 0])
        assert plain == pytest.approx(float(said["reward_a"][e]), abs=1e-5)
    wrapped = RewardModel.on(model, tokenizer)
    wrapped.load_heads(tmp_path / "model")
    prompt, response = int(view.prompt[0]), int(view.a[0])
    loaded = RewardScorer(wrapped, tokens, objective.scorer.term, 4, objective.scorer.ensemble)
    found = loaded.uncertainty(prompt, response)
    with torch.no_grad():
        heads = (
            objective.wrapped.head_scores(objective.wrapped.batch(tokens, [(prompt, [response])]))[0].double().numpy()
        )
    assert found["spread"] == pytest.approx(heads.std(), rel=1e-5) and found["spread"] > 0
    assert found["pessimistic"] == pytest.approx(heads.mean() - 2 * heads.std(), rel=1e-4, abs=1e-6)
    loaded.ensemble = dataclasses.replace(loaded.ensemble, pessimism="min")
    assert loaded.uncertainty(prompt, response)["pessimistic"] == pytest.approx(heads.min(), rel=1e-5)
    with pytest.raises(HoldfastError, match=r"heads\.safetensors is missing"):
        wrapped.load_heads(tmp_path)
