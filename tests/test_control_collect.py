"""Collected logs: the same call gives the same bytes, propensities are those of what was done, limits are no endings."""

from dataclasses import fields
from math import exp, log

import numpy as np
import orjson
import pytest
from scipy import integrate, stats

from holdfast.control.collect import Behaviour, collect
from holdfast.control.environments import Around, Choice, Mixed, Space, Uniform, make, scripted, space_of
from holdfast.control.episodes import EpisodesError

pytest.importorskip("gymnasium", reason="the control extra is not installed")
BOX = Space((3,), None, np.array([-2.0], np.float32), np.array([2.0], np.float32))


def equal(a, b, episodes=None):
    n = len(a) if episodes is None else episodes
    steps = a.offsets[n]
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, np.ndarray):
            upto = n + 1 if f.name == "offsets" else n if len(x) == len(a) else steps
            assert x[:upto].tobytes() == y[:upto].tobytes(), f.name


def test_same_call_same_bytes_and_more_episodes_begin_alike():
    kinds = [Behaviour("scripted", epsilon=0.1), Behaviour("random", share=2)]
    a = collect("CartPole-v1", kinds, episodes=6, seed=3)
    equal(a, collect("CartPole-v1", kinds, episodes=6, seed=3))
    equal(a, collect("CartPole-v1", kinds, episodes=9, seed=3), 6)
    assert collect("CartPole-v1", kinds, episodes=6, seed=4).digest(0) != a.digest(0)
    assert set(a.behaviour.tolist()) == {0, 1}
    assert [b["name"] for b in a.facts["behaviours"]] == ["scripted,epsilon=0.1", "random"]
    assert [b["episodes"] for b in a.facts["behaviours"]] == [int((a.behaviour == i).sum()) for i in (0, 1)]


def test_replaying_the_actions_gives_what_was_logged():
    """An independent walk through the environment: rewards, observations, the true last one, and how it ended."""
    log = collect("MountainCar-v0", "scripted", episodes=2, seed=1, epsilon=0.5)
    env = make("MountainCar-v0")
    for e in range(2):
        span = slice(log.offsets[e], log.offsets[e + 1])
        env.reset(seed=0)
        env.unwrapped.state = log.observations[span][0].astype(np.float64)
        for t, action in enumerate(log.actions[span]):
            seen, reward, ended, cut, _ = env.step(action)
            assert reward == log.rewards[span][t]
            after = log.observations[span][t + 1] if t + 1 < span.stop - span.start else log.last[e]
            assert np.allclose(seen, after, atol=1e-4)
        assert (ended, cut and not ended) == (log.terminated[e], log.truncated[e])


def test_a_budget_of_steps_cuts_the_last_episode_and_says_so():
    log = collect("CartPole-v1", steps=700, seed=0)  # the script balances to the limit of 500
    assert np.diff(log.offsets).tolist() == [500, 200]
    assert log.truncated.tolist() == [True, True] and not log.terminated.any()
    assert "cut" in log.facts and "cut" not in collect("CartPole-v1", episodes=1).facts
    fallen = collect("CartPole-v1", "random", episodes=3)
    assert fallen.terminated.all() and not fallen.truncated.any()


def test_discrete_propensities_by_hand():
    log = collect("CartPole-v1", "scripted", steps=2000, seed=1, epsilon=0.3)
    greedy = scripted("CartPole-v1", Space((4,), 2)).probs(log.observations).argmax(axis=1)
    assert np.allclose(log.propensities, np.where(log.actions == greedy, 0.85, 0.15))  # 1 - .3 + .3/2, and .3/2
    assert np.allclose(log.action_probs[np.arange(2000), log.actions], log.propensities)
    assert abs((log.actions != greedy).mean() - 0.15) < 4 * (0.15 * 0.85 / 2000) ** 0.5


def test_density_of_a_cut_normal_is_scipys_and_integrates_to_one():
    for mean in (-5.0, -1.9, 0.3):
        policy = Around(lambda o, m=mean: np.full((len(o), 1), m), BOX, 0.5)
        inside = min(max(mean, -2.0), 2.0)
        known = stats.truncnorm((-2 - inside) / 0.5, (2 - inside) / 0.5, inside, 0.5)
        x = np.linspace(-1.99, 1.99, 9)[:, None]
        assert np.allclose(policy.log_prob(np.zeros((9, 3)), x), known.logpdf(x[:, 0]))
        drawn = policy.sample(np.zeros((4000, 3), np.float32), seed=1)[:, 0]
        assert stats.kstest(drawn, known.cdf).pvalue > 0.001
    mixed = Mixed(policy, 0.25, BOX)
    total, _ = integrate.quad(lambda v: exp(mixed.log_prob(np.zeros((1, 3)), np.array([[v]]))[0]), -2, 2, points=[0.3])
    assert total == pytest.approx(1, abs=1e-6)
    by_hand = log(0.75 * exp(policy.log_prob(np.zeros((1, 3)), np.array([[1.0]]))[0]) + 0.25 / 4)
    assert mixed.log_prob(np.zeros((1, 3)), np.array([[1.0]]))[0] == pytest.approx(by_hand)
    assert Uniform(BOX).log_prob(np.zeros((2, 3)), np.array([[1.0], [2.5]])).tolist() == [
        pytest.approx(-log(4)),
        -np.inf,
    ]


def test_continuous_log_has_the_density_of_what_was_done():
    log = collect("Pendulum-v1", "scripted", steps=400, seed=2, epsilon=0.2, noise=0.3)
    policy = Behaviour("scripted", epsilon=0.2, noise=0.3).build("Pendulum-v1", space_of(make("Pendulum-v1")))
    assert np.allclose(np.log(log.propensities), policy.log_prob(log.observations, log.actions))
    assert log.n_actions is None and abs(log.actions).max() <= 2 and log.facts["action_high"] == [2.0]
    still = collect("Pendulum-v1", "scripted", steps=10)
    assert still.propensities is None and "no density" in still.facts["propensities"]


def test_five_torques_are_pendulums():
    log = collect("Pendulum5-v1", "random", episodes=1, seed=5)
    env = make("Pendulum-v1")
    env.reset(seed=0)
    cos, sin, spin = log.observations[0].astype(float)
    env.unwrapped.state = np.array([np.arctan2(sin, cos), spin])
    for t in range(5):
        seen, reward, *_ = env.step(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0][log.actions[t]]], np.float32))
        assert np.allclose(seen, log.observations[t + 1], atol=1e-4) and reward == pytest.approx(
            log.rewards[t], abs=1e-3
        )
    assert log.n_actions == 5


@pytest.mark.parametrize(
    ("task", "at_least", "random_below"),
    [("CartPole-v1", 490, 60), ("Pendulum-v1", -400, -700), ("Pendulum5-v1", -400, -700), ("Acrobot-v1", -150, -300)],
)
def test_scripts_know_their_task(task, at_least, random_below):
    for policy, holds in (("scripted", lambda r: r >= at_least), ("random", lambda r: r < random_below)):
        log = collect(task, policy, episodes=4, seed=1)
        assert holds(log.rewards.sum() / 4), policy


def test_hopper_hops():
    pytest.importorskip("mujoco", reason="mujoco is not installed")
    log = collect("Hopper-v5", "scripted", episodes=2, seed=3)
    assert np.diff(log.offsets).tolist() == [1000, 1000] and log.rewards.sum() / 2 > 1800
    assert log.actions.shape == (2000, 3) and log.facts["action_low"] == [-1, -1, -1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"env_id": "Nothing-v0"}, "Nothing-v0"),
        ({"policy": "clever"}, "clever"),
        ({"policy": object()}, "probs"),
        ({"epsilon": 1.5}, "epsilon = 1.5"),
        ({"noise": 0.5}, "discrete"),
        ({"policy": "random", "noise": 0.5}, "noise"),
        ({"steps": 0}, "steps = 0"),
        ({"episodes": 3}, "one of the two"),
        ({"policy": [Behaviour(), Behaviour()]}, "name them"),
        ({"policy": []}, "at least one"),
        ({"policy": [Behaviour("random", member=2)]}, "member"),
        ({"policy": Choice(lambda o: np.zeros(len(o), int), 3)}, "has 2 actions; behaviour Choice has 3"),
        ({"env_id": "FrozenLake-v1"}, "vectors"),
    ],
)
def test_what_cannot_be_collected_is_said(given, said):
    with pytest.raises(EpisodesError, match=said):
        collect(**{"env_id": "CartPole-v1", "steps": 5, **given})


def test_a_behaviour_from_text():
    assert Behaviour.parse("scripted,epsilon=0.3,share=2") == Behaviour("scripted", epsilon=0.3, share=2)
    assert Behaviour.parse("runs/a,member=2").title == "runs/a,member=2"
    for text, said in (("random,speed=3", "speed=3"), ("random,share=many", "many"), ("random,share=0", "share = 0")):
        with pytest.raises(EpisodesError, match=said):
            Behaviour.parse(text)


def test_from_the_command_line(tmp_path):
    """Collect, label, freeze again from a file of judgements, verify: the roots agree, and the parent is named."""
    from typer.testing import CliRunner

    from holdfast.cli import app
    from holdfast.control.segments import named
    from holdfast.control.store import open_log

    def call(*words):
        done = CliRunner().invoke(app, [str(w) for w in ("control", *words, "--json")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return orjson.loads(done.stdout)

    behaviours = ("--policy", "scripted,epsilon=0.2", "--policy", "random,share=0.5")
    log = call("collect", "Pendulum5-v1", "-o", tmp_path / "log", *behaviours, "--episodes", 4)
    assert log["episodes"] == 4 and log["steps"] == 800 and log["judgements"] == 0
    made = call("label", tmp_path / "log", "-o", tmp_path / "judged", "--queries", 20, "--length", 10, "--ties", 1.5)
    assert made["parent"] == log["root"] and made["judgements"] == 20
    judged = open_log(tmp_path / "judged")
    rows = tmp_path / "judgements.jsonl"
    rows.write_bytes(b"\n".join(map(orjson.dumps, named(judged.segments, judged.episode_ids))))
    for source, judgements in ((tmp_path / "log", rows), (tmp_path / "judged", tmp_path / "judged")):
        again = call("freeze", source, "-o", tmp_path / f"from-{judgements.name}", "--judgements", judgements)
        assert again["root"] == made["root"]
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "judged")]).exit_code == 0
    (tmp_path / "judged" / "rewards.parquet").unlink()
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "judged")]).exit_code == 1


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_a_trained_policys_folder_collects(tmp_path, task):
    """Logged probabilities are the loaded policy's own of what was done; its weights' digest is in the facts."""
    from hashlib import sha256

    from holdfast.control.actors import Task
    from holdfast.control.policy import build, load_policy, save_policy
    from holdfast.control.steps import Scale

    some = collect(task, "random", steps=50)
    discrete = some.n_actions is not None
    shape = Task(some.observations.shape[1], some.n_actions, 0 if discrete else some.actions.shape[1], (1, 2), (8,))
    scale = Scale.of(some, np.arange(50), standardise=True)
    save_policy(build(shape, {"kind": "bc"}), {"kind": "bc"}, scale, tmp_path / "model")
    log = collect(task, [Behaviour(str(tmp_path), member=1, epsilon=0.1)], steps=60, seed=1)
    space, policy = space_of(make(task)), load_policy(tmp_path, 1)
    whole = Mixed(policy, 0.1, space)
    if discrete:
        wanted = whole.probs(log.observations)[np.arange(60), log.actions]
    else:
        wanted = np.exp(whole.log_prob(log.observations, log.actions))
    assert np.allclose(log.propensities, wanted, rtol=1e-4)
    weights = sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert log.facts["behaviours"][0]["weights"] == weights
    assert collect(task, [Behaviour(str(tmp_path))], steps=60, seed=1).digest(0) != log.digest(0)
