"""Algorithms of control: the best policy of a tabular process, their limits, members, resuming, folders."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor

from control_world import DISCOUNT, episodes, frozen, logged_q, part, q_star, recipe, world
from holdfast import pipeline
from holdfast.control import flow
from holdfast.control.actors import Task
from holdfast.control.algorithms import ALGORITHMS, trees
from holdfast.control.networks import Draw
from holdfast.control.objective import ControlObjective
from holdfast.control.policy import alone, build, load_algorithm, load_policy
from holdfast.control.steps import PairData, Scale, StepData
from holdfast.control.store import open_log, split_episodes
from holdfast.errors import DataError, HoldfastError, RecipeError
from holdfast.proof import verify
from holdfast.training.checkpoint import weights_digest
from holdfast.training.ledger import Ledger, read_ledger
from holdfast.training.trace import trace_row, trace_step

BOTH = [(name, kind) for name, kinds in sorted(ALGORITHMS.items()) for kind in sorted(kinds)]
IDS = [f"{name}-{kind}" for name, kind in BOTH]
FAST = {("cql", "discrete"), ("iql", "continuous"), ("cpl", "discrete")}  # the others are for `make test`


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return {
        "discrete": frozen(folder / "discrete").path,
        "continuous": frozen(folder / "continuous", continuous=True).path,
        "discrete-advantage": frozen(folder / "da", by="advantage").path,
        "continuous-advantage": frozen(folder / "ca", continuous=True, by="advantage").path,
    }


def greedy(policy, continuous):
    """The action in each state."""
    acts = policy(np.eye(4, dtype=np.float32))
    return (acts[:, 0] > 0).astype(int).tolist() if continuous else acts.tolist()


BEST = [
    ("fqi_trees", "discrete", 40, {"trees": 10}),
    ("fqi", "discrete", 320, {"every": 200, "lr": 2e-2}),
    ("dqn", "discrete", 30, {"tau": 0.05}),
    ("cql", "discrete", 30, {"tau": 0.05, "alpha": 0.1}),
    ("bcq", "discrete", 30, {"tau": 0.05, "threshold": 0.1}),
    ("iql", "discrete", 60, {"tau": 0.05, "expectile": 0.9, "beta": 10.0}),
    ("cql", "continuous", 30, {"tau": 0.05, "alpha": 0.1, "samples": 4}),
    ("bcq", "continuous", 100, {"tau": 0.05, "lam": 1.0, "samples": 4}),
    ("iql", "continuous", 60, {"tau": 0.05, "expectile": 0.9, "beta": 20.0}),
    ("cpl", "discrete", 20, {"lam": 1.0, "alpha": 1.0}),
    ("cpl", "continuous", 20, {"lam": 1.0, "alpha": 0.3}),
    ("ipl", "discrete", 60, {"expectile": 0.9, "beta": 10.0, "tau": 0.05, "penalty": 0.01}),
    ("ipl", "continuous", 60, {"expectile": 0.9, "beta": 20.0, "tau": 0.05, "penalty": 0.01}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "actions", "steps", "said"), BEST, ids=[f"{k}-{a}" for k, a, *_ in BEST])
def test_the_best_policy_of_a_tabular_process(logs, tmp_path, kind, actions, steps, said):
    said, continuous = dict(said), actions == "continuous"
    log = logs[f"{actions}-advantage" if kind == "cpl" else actions]
    train = {"lr": said.pop("lr")} if "lr" in said else {}
    pipeline.train(recipe(log, kind, steps, train=train, **said), tmp_path / "run", quiet=True)
    best = q_star(world(2 if continuous else 3)).argmax(1).tolist()
    assert greedy(load_policy(tmp_path / "run"), continuous) == best


@pytest.mark.slow
def test_fitted_q_evaluation_is_the_policys_value(logs, tmp_path):
    """Of a cloned policy, which is close to the even one that logged: against the exact value in the log's frequencies."""
    pipeline.train(recipe(logs["discrete"], "bc", 10), tmp_path / "bc", quiet=True)
    pi = load_policy(tmp_path / "bc").probs(np.eye(4, dtype=np.float32))
    train = split_episodes(open_log(logs["discrete"]), 0.1, 0.0, 0)["train"]
    q = logged_q(part(open_log(logs["discrete"]).episodes, train), pi)
    control = {"reference": str(tmp_path / "bc")}
    run = tmp_path / "fqe"
    pipeline.train(recipe(logs["discrete"], "fqe", 60, control, tau=0.05), run, quiet=True)
    found = load_algorithm(run)[0].q.all(torch.eye(4).unsqueeze(0))[0, 0].detach().numpy()
    assert np.abs(found - q).max() < 0.15
    log = open_log(logs["discrete"]).episodes
    starts = log.observations[log.offsets[:-1]].argmax(1)
    said = json.loads((run / "evaluations/held-out/metrics.json").read_text())["validation"]["value/start"]
    assert said == pytest.approx(float((pi * q).sum(1)[starts].mean()), abs=0.15)
    with pytest.raises(RecipeError, match="fqe evaluates a policy"):
        pipeline.train(recipe(logs["discrete"], "fqe", 2), tmp_path / "no", quiet=True)


@pytest.mark.slow
def test_the_values_of_fitted_q_iteration_are_the_true_ones(logs, tmp_path):
    pipeline.train(recipe(logs["discrete"], "fqi_trees", 80, trees=5, leaf=1), tmp_path / "run", quiet=True)
    algorithm, _, _ = load_algorithm(tmp_path / "run")
    q = algorithm.all(torch.eye(4).unsqueeze(0))[0].numpy()
    train = split_episodes(open_log(logs["discrete"]), 0.1, 0.0, 0)["train"]
    assert np.abs(q - logged_q(part(open_log(logs["discrete"]).episodes, train))).max() < 0.01


def weights(log, tmp_path, kind, name="run", **said):
    folder = tmp_path / f"{name}-{kind}"
    pipeline.train(recipe(log, kind, 4, **said), folder, quiet=True)
    return load_algorithm(folder)[0]


def test_limits_are_their_parents(logs, tmp_path):
    """CQL at alpha 0 and BCQ at threshold 0 take the very updates of double DQN; BCQ at threshold 1 acts as cloning."""
    log = logs["discrete"]
    parent = weights(log, tmp_path, "dqn").q.state_dict()
    for kind, said in (("cql", {"alpha": 0.0}), ("bcq", {"threshold": 0.0})):
        child = weights(log, tmp_path, kind, **said).q.state_dict()
        assert all(torch.allclose(child[n], parent[n], atol=1e-6) for n in parent)
    obs = torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0))
    cloned = weights(log, tmp_path, "bcq", "one", threshold=1.0)
    assert torch.equal(cloned.probs(obs).argmax(-1), cloned.clone.log_probs(obs).argmax(-1))
    free = weights(log, tmp_path, "bcq", "free", threshold=0.0)
    assert torch.equal(free.probs(obs).argmax(-1), free.q.all(obs)[:, 0].argmax(-1))


def objective(logs, kind, actions, seeds, **said):
    log = open_log(logs[actions])
    discrete = actions == "discrete"
    task = Task(4, 3 if discrete else None, 0 if discrete else 1, tuple(seeds), (32,), (DISCOUNT,))
    # Beside the state, noise: among few distinct inputs a unit is on for all of them, its bias then a constant that no
    # comparison of segments can tell, and its gradient a rounding error.
    noise = np.random.default_rng(0).normal(0, 3, log.episodes.observations.shape).astype(np.float32)
    seen = replace(log.episodes, observations=log.episodes.observations + noise)
    steps = StepData(seen, Scale.of(seen, np.arange(len(noise)), False))
    algorithm = build(task, {"kind": kind, **said})
    if kind == "fqe":
        even = torch.full((1, 1, 3), 1 / 3)
        algorithm.refer_to(lambda obs: even.expand(len(obs), obs.shape[1], -1), steps.following)
    data = steps if algorithm.reads == "steps" else PairData(steps, log.episodes, log.segments, False)
    return ControlObjective(algorithm, data, 50, False)


@pytest.mark.parametrize(
    ("kind", "actions"),
    [
        pytest.param(*b, marks=() if b in FAST else pytest.mark.slow, id=i)
        for b, i in zip(BOTH, IDS, strict=True)
        if b[0] != "fqi_trees"
    ],
)
def test_a_member_is_what_its_seed_gives_alone(logs, kind, actions):
    """Member 3 of four after 200 updates, against a run of its seed alone on the same rows."""
    together, single = objective(logs, kind, actions, (5, 6, 7, 8)), objective(logs, kind, actions, (8,))
    rng = np.random.default_rng(0)
    made = [torch.optim.AdamW(o.model.parameters(), lr=1e-3, weight_decay=0) for o in (together, single)]
    for step in range(1, 5):
        index = rng.integers(0, 300, (50, 4, 16))
        together.take(step, index.reshape(-1), 1e-3, made[0])
        single.take(step, index[:, 3].reshape(-1), 1e-3, made[1])
    mine, other = alone(together.model, 3).state_dict(), single.model.state_dict()
    assert max(float((mine[n] - other[n]).abs().max()) for n in other) < 1e-5
    assert any(float((together.model.state_dict()[n][0] - other[n][0]).abs().max()) > 1e-3 for n in other)


def test_draws_of_a_member_are_those_of_its_seed_alone(logs, tmp_path):
    """The same through whole runs: member 1 of seed 0, and seed 1."""
    pipeline.train(recipe(logs["discrete"], "dqn", control={"replicas": 2}), tmp_path / "two", quiet=True)
    said = recipe(logs["discrete"], "dqn")
    said["run"]["seed"] = 1
    pipeline.train(said, tmp_path / "one", quiet=True)
    mine, other = (
        alone(load_algorithm(tmp_path / "two")[0], 1).state_dict(),
        load_algorithm(tmp_path / "one")[0].state_dict(),
    )
    assert max(float((mine[n] - other[n]).abs().max()) for n in other) < 1e-5


def test_hyper_parameters_by_member(logs, tmp_path):
    run = tmp_path / "run"
    pipeline.train(
        recipe(logs["discrete"], "cql", control={"replicas": 2, "discount": [0.9, 0.5]}, alpha=[0.0, 2.0]),
        run,
        quiet=True,
    )
    said = recipe(logs["discrete"], "cql", control={"discount": 0.5}, alpha=2.0)
    said["run"]["seed"] = 1
    pipeline.train(said, tmp_path / "alone", quiet=True)
    mine, other = alone(load_algorithm(run)[0], 1).state_dict(), load_algorithm(tmp_path / "alone")[0].state_dict()
    assert max(float((mine[n] - other[n]).abs().max()) for n in other) < 1e-5
    with pytest.raises(RecipeError, match=r"alpha = \[1.0\]: give one number, or one for each of the 2 replicas"):
        pipeline.train(
            recipe(logs["discrete"], "cql", control={"replicas": 2}, alpha=[1.0]), tmp_path / "no", quiet=True
        )


@pytest.mark.parametrize("kind", ["dqn", "bcq", "fqe"])
def test_targets_that_are_looked_up_are_those_that_are_computed(logs, kind):
    """The slow copy is replaced within steps and between them; what a checkpoint brings is seen at once."""
    looks_up, computes = (objective(logs, kind, "discrete", (5, 6), target_every=30) for _ in range(2))
    log, batch, called = looks_up.data, computes.data.batch, []
    computes.data.batch = lambda index: batch(index)._replace(log=None)
    looks_up.model.q.target.register_forward_pre_hook(lambda *_: called.append(1))
    rng = np.random.default_rng(0)
    made = [torch.optim.AdamW(o.model.parameters(), lr=1e-3, weight_decay=0) for o in (looks_up, computes)]
    for step in range(1, 4):
        index = rng.integers(0, len(log.obs), (50, 2, 128))
        for each, optimiser in zip((looks_up, computes), made, strict=True):
            each.take(step, index.reshape(-1), 1e-3, optimiser)
    assert len(log.obs) < 30 * 128 and len(called) == 150 / 30
    mine, other = looks_up.model.state_dict(), computes.model.state_dict()
    assert max(float((mine[n] - other[n]).abs().max()) for n in other) < 1e-5
    model, before = looks_up.model, {n: t.clone() for n, t in mine.items()}
    rows = log.batch(torch.arange(len(log.obs)).expand(2, -1))
    model.load_state_dict({n: t * 1.5 for n, t in before.items()})
    assert torch.equal(model.slow(rows), model.q.all(rows.following, target=True)[:, 0])
    model.every = 1  # no longer worth it for a small batch
    few = log.batch(torch.tensor([[3], [4]]))
    assert torch.equal(model.slow(few), model.q.all(few.following, target=True)[:, 0])


HARD = ("dqn", "discrete", {"target_every": 60})  # replaced within a step; the run dies between two replacements


@pytest.mark.parametrize(
    ("kind", "actions", "more"),
    [
        *(
            pytest.param(*b, {}, marks=() if b in FAST else pytest.mark.slow, id=i)
            for b, i in zip(BOTH, IDS, strict=True)
        ),
        pytest.param(*HARD, id="dqn-discrete-hard"),
    ],
)
def test_a_run_that_dies_goes_on_to_the_same_bytes(logs, tmp_path, monkeypatch, kind, actions, more):
    control = {"replicas": 2, "bootstrap": kind != "fqi_trees"}
    if kind == "fqe":
        control["reference"] = str(tmp_path / "policy")
        pipeline.train(recipe(logs[actions], "bc", 2), tmp_path / "policy", quiet=True)
    said = recipe(logs[actions], kind, 6, control=control, train={"eval_every": 3}, **more)
    pipeline.train(said, tmp_path / "whole", quiet=True)
    append = Ledger.append

    def dying(self, what, **entry):
        if what == "step" and entry["step"] == 5:
            raise KeyboardInterrupt
        return append(self, what, **entry)

    monkeypatch.setattr(Ledger, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(said, tmp_path / "died", quiet=True)
    monkeypatch.undo()
    pipeline.resume(tmp_path / "died", quiet=True)
    for name in ("ledger.jsonl", "model/policy.json", "model/model.safetensors", "metrics.jsonl", "rows.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "died" / name).read_bytes(), name
    assert verify(tmp_path / "died") == []
    assert pipeline.replay(tmp_path / "died", 5, 6)["ok"]


def test_verify_and_trace_know_drawn_rows(logs, tmp_path):
    run = tmp_path / "run"
    pipeline.train(recipe(logs["discrete"], "bc"), run, quiet=True)
    rows = trace_step(run, 2)["rows"]
    assert len(rows) == 25 * 64
    assert {s["step"] for s in trace_row(run, rows[0]["id"])["steps"]} >= {2}
    entries, _ = read_ledger(run / "ledger.jsonl")
    assert all("rows" not in e and e["drawn"] == 1600 for e in entries if e["kind"] == "step")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    forged = open_log(logs["discrete"]).path
    at = forged / "episodes.parquet"
    data = bytearray(at.read_bytes())
    data[2000] ^= 1
    at.write_bytes(bytes(data))
    try:
        assert any("episodes" in p.where for p in verify(copy))
    finally:
        data[2000] ^= 1
        at.write_bytes(bytes(data))
    assert verify(copy) == []


@pytest.mark.slow
def test_a_policy_is_a_folder_that_is_a_function(logs, tmp_path):
    for kind, actions in (("cql", "discrete"), ("bc", "continuous"), ("bcq", "continuous"), ("bcq", "discrete")):
        run = tmp_path / f"{kind}-{actions}"
        pipeline.train(recipe(logs[actions], kind, 2, control={"replicas": 2}), run, quiet=True)
        policy, other = load_policy(run), load_policy(run / "model", member=1)
        obs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
        acts = policy(obs)
        assert np.allclose([policy(o) for o in obs], acts, atol=1e-6)
        assert not np.array_equal(acts, other(obs)) or kind == "cql"
        program = tmp_path / f"{kind}-{actions}.pt2"
        policy.export(program)
        outside = torch.export.load(program).module()
        assert np.allclose(outside(torch.from_numpy(obs)).numpy(), acts, atol=1e-5)
        assert np.allclose(outside(torch.from_numpy(obs[:1])).numpy(), acts[:1], atol=1e-5)
        if actions == "discrete":
            assert np.array_equal(policy.probs(obs).argmax(1), acts) and np.allclose(policy.probs(obs).sum(1), 1)
    stochastic = load_policy(tmp_path / "bc-continuous")
    drawn = stochastic.sample(np.repeat(obs[:1], 4000, 0), 3)
    assert np.array_equal(drawn, stochastic.sample(np.repeat(obs[:1], 4000, 0), 3))
    grid = np.linspace(-8, 8, 4001, dtype=np.float32)[:, None]
    density = np.exp(stochastic.log_prob(np.repeat(obs[:1], len(grid), 0), grid))
    assert density.sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(HoldfastError, match="no density"):
        load_policy(tmp_path / "bcq-continuous").log_prob(obs, np.zeros((6, 1), np.float32))
    with pytest.raises(HoldfastError, match="members 0 to 1; there is no member 2"):
        load_policy(tmp_path / "bc-continuous", member=2)
    with pytest.raises(DataError, match=r"no policy.json"):
        load_policy(tmp_path)


def test_scale():
    log = episodes(continuous=True)
    scale = Scale.of(log, np.arange(len(log.observations)), True)
    seen = scale.observations(log.observations)
    assert np.allclose(seen.mean(0), 0, atol=1e-4) and np.allclose(seen.std(0), 1, atol=1e-3)
    assert np.allclose(scale.to_task(scale.to_network(log.actions)), log.actions, atol=1e-6)
    wide = Scale(
        np.zeros(1, np.float32), np.ones(1, np.float32), np.array([-2.0], np.float32), np.array([2.0], np.float32)
    )
    assert wide.to_network(np.array([[1.0]])).tolist() == [[0.5]] and wide.log_slope() == pytest.approx(math.log(2))
    assert Scale.read(json.loads(json.dumps(wide.said()))).said() == wide.said()


def test_following_is_the_true_last_observation():
    log = episodes()
    data = StepData(log, Scale.of(log, np.arange(len(log.observations)), False))
    ends = log.offsets[1:] - 1
    assert np.array_equal(data.following[ends].numpy(), log.last)
    assert data.terminated[ends].numpy().tolist() == log.terminated.astype(float).tolist()
    assert data.terminated.sum() == log.terminated.sum() and log.truncated.any() and log.terminated.any()
    inner = np.setdiff1d(np.arange(len(log.observations) - 1), ends)
    assert np.array_equal(data.following[inner].numpy(), log.observations[inner + 1])


def test_trees_are_scikit_learns():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)).astype(np.float32), rng.normal(size=300)
    forest = ExtraTreesRegressor(7, min_samples_leaf=3, random_state=1).fit(x, y)
    fresh = rng.normal(size=(50, 4)).astype(np.float32)
    assert np.allclose(trees.predict(trees.arrays(forest), fresh), forest.predict(fresh), atol=1e-12)


def test_a_reward_is_learnt_and_a_log_relabelled(logs, tmp_path):
    run = tmp_path / "reward"
    pipeline.train(
        recipe(logs["discrete"], "segment_reward", 20, control={"replicas": 3, "discount": 1.0}), run, quiet=True
    )
    said = json.loads((run / "evaluations/held-out/metrics.json").read_text())
    assert said["validation"]["preference/accuracy"] > 0.9
    log = open_log(logs["discrete"])
    made = flow.relabel_log(run, log.path, tmp_path / "relabelled")
    assert made.parent == log.root and made.episode_ids == log.episode_ids and made.root != log.root
    assert np.corrcoef(made.episodes.rewards, log.episodes.rewards)[0, 1] > 0.95
    assert made.facts["reward"]["members"] == 3 and made.facts["reward"]["centred"] is False  # episodes terminate
    low = flow.relabel_log(run, log.path, tmp_path / "low", pessimism=1.0)
    assert (low.episodes.rewards <= made.episodes.rewards + 1e-12).all()
    with pytest.raises(HoldfastError, match="reward model: it has no policy"):
        load_policy(run)


def test_cpl_with_a_reference_starts_from_dpo_of_zero(logs, tmp_path):
    """The log-ratio to the policy it starts from is 0: the loss is ln 2."""
    bc = tmp_path / "bc"
    pipeline.train(recipe(logs["discrete"], "bc", 4), bc, quiet=True)
    control = {"start": str(bc), "reference": str(bc), "replicas": 2, "updates": 1}
    run = tmp_path / "cpl"
    pipeline.train(recipe(logs["discrete"], "cpl", 2, control, lam=1.0), run, quiet=True)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    entries, _ = read_ledger(run / "ledger.jsonl")
    assert entries[0]["facts"]["reference"] == weights_digest(load_algorithm(bc)[0].kept())
    with pytest.raises(RecipeError, match="has no effect on this algorithm"):
        pipeline.train(recipe(logs["discrete"], "bc", 2, {"reference": str(bc)}), tmp_path / "no", quiet=True)


def test_what_is_refused(logs, tmp_path):
    def refused(match, said, error=HoldfastError):
        with pytest.raises(error, match=match):
            pipeline.train(said, tmp_path / "no", quiet=True)

    log = logs["discrete"]
    refused("'cqll' is no algorithm of control; there are: bc, bcq", recipe(log, "cqll"))
    refused("'dqn' has no form for continuous actions", recipe(logs["continuous"], "dqn"))
    refused("unknown key 'alfa'; did you mean 'alpha'", recipe(log, "cql", alfa=1.0))
    refused("tau and target_every both", recipe(log, "dqn", tau=0.1, target_every=3))
    refused("micro_batch has no effect", recipe(log, "bc", train={"micro_batch": 2}))
    refused("clip", recipe(log, "bc", train={"clip": 1.0}))
    refused("discount .* should be one number", recipe(log, "bc", control={"discount": [0.9, 0.8]}))
    refused("has root .* the recipe wants", recipe(log, "bc") | {"data": {"dataset": str(log), "root": "ab" * 32}})
    said = recipe(log, "bc")
    said["run"]["device"] = "cuda"
    refused("computes on the cpu", said)
    with pytest.raises(RecipeError, match="has a table \\[control\\]"):
        from holdfast.recipe import load_recipe

        load_recipe(recipe(log, "bc"))


def test_noise_is_a_members_own():
    draw = Draw((3, 4), 1)
    assert torch.equal(draw.normal("a", 2)[1], Draw((4,), 1).normal("a", 2)[0])
