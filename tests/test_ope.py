"""Off-policy evaluation: values by hand, an independent loop, exact derivatives, planted faults for each verdict."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from scipy.stats import t as student_t
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.control.episodes import Episodes
from holdfast.control.mdp import TablePolicy, TabularMDP, random_mdp
from holdfast.control.ope import OpeError, clone, evaluate_policy, fqe, intervals, select
from holdfast.control.ope.formulas import (
    MODEL,
    WEIGHTS,
    Table,
    direct,
    doubly_robust,
    magic,
    mean_return,
    weighted_doubly_robust,
)
from holdfast.control.ope.sources import judge, take, unlearnt
from holdfast.control.ope.weights import model_support, support
from holdfast.control.store import freeze_episodes, open_log, split_episodes

# Two steps, discount 1/2. Ratios (2, 1/2), (1/2, 2), and 2 for the third episode, which ended after one step.
HAND = Table(np.array([[1.0, 2.0], [0.0, 4.0], [3.0, 0.0]]), np.log([[2.0, 1.0], [0.5, 1.0], [2.0, 2.0]]), 0.5)
Q = np.array([[[1.0, 1.0], [1.0, 2.0], [2.0, 0.0]]])
V = np.array([[[2.0, 1.0], [1.0, 2.0], [2.0, 0.0]]])
ONES = np.ones((1, 3))


def test_two_steps_by_hand() -> None:
    assert float(mean_return(HAND, ONES)[0][0]) == pytest.approx((2 + 2 + 3) / 3)
    by_hand = {"is": 10 / 3, "wis": 10 / 4, "pdis": (3 + 2 + 6) / 3, "wpdis": 8 / 4.5 + 0.5 * 6 / 4}
    assert {x: float(f(HAND, ONES)[0][0]) for x, f in WEIGHTS.items()} == pytest.approx(by_hand)
    assert float(direct(HAND, V, ONES)[0][0]) == pytest.approx(5 / 3)
    # first episode: 2 (1-1) + 2, then half of 1 (2-1) + 2 x 1; second: 1/2 (0-1) + 1, 1 (4-2) + 1/2 x 2; third: 2 (3-2) + 2
    assert float(doubly_robust(HAND, Q, V, ONES)[0][0]) == pytest.approx((3.5 + 2 + 4) / 3)
    weighted = (0 - 0.5 + 2) / 4.5 + 5 / 3 + 0.5 * ((1 + 2 + 0) / 4 + (2 + 1 + 0) / 4.5)
    assert float(weighted_doubly_robust(HAND, Q, V, ONES)[0][0]) == pytest.approx(weighted)


def plainly(p: Table, q: np.ndarray, v: np.ndarray) -> dict[str, float]:
    """The same estimators, an episode and a step at a time, from the papers."""
    E, H = p.reward_EH.shape
    w = [[float(np.exp(p.logw_EH[e, t])) for t in range(H)] for e in range(E)]
    g = [p.discount**t for t in range(H)]
    total = [sum(w[e][t] for e in range(E)) for t in range(H)]
    before = [E if t == 0 else total[t - 1] for t in range(H)]
    found = dict.fromkeys(("is", "wis", "pdis", "wpdis", "dr", "wdr"), 0.0)
    for e in range(E):
        ret = sum(g[t] * p.reward_EH[e, t] for t in range(H))
        found["is"] += w[e][-1] * ret / E
        found["wis"] += w[e][-1] * ret / total[-1]
        backwards = 0.0
        for t in reversed(range(H)):  # Jiang and Li's recursion
            ratio = w[e][t] / (w[e][t - 1] if t else 1.0)
            backwards = v[e, t] + ratio * (p.reward_EH[e, t] + p.discount * backwards - q[e, t])
        found["dr"] += backwards / E
        for t in range(H):
            w_before = w[e][t - 1] if t else 1.0
            found["pdis"] += g[t] * w[e][t] * p.reward_EH[e, t] / E
            found["wpdis"] += g[t] * w[e][t] * p.reward_EH[e, t] / total[t]
            found["wdr"] += g[t] * (w[e][t] * (p.reward_EH[e, t] - q[e, t]) / total[t] + w_before * v[e, t] / before[t])
    return found


def drawn(seed: int, n: int = 12, horizon: int = 5) -> tuple[Table, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    length = draw.integers(1, horizon + 1, n)
    alive = np.arange(horizon) < length[:, None]
    logw = np.cumsum(np.where(alive, draw.normal(0, 0.7, (n, horizon)), 0.0), axis=1)
    r, q, v = (np.where(alive, draw.normal(1, 1, (n, horizon)), 0.0) for _ in range(3))
    return Table(r, logw, 0.9), q, v


def every(p: Table, q: np.ndarray, v: np.ndarray, count_BE: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    q, v = (np.broadcast_to(x, (len(count_BE), *x.shape)) for x in (q, v))
    return {x: f(p, count_BE) for x, f in WEIGHTS.items()} | {x: f(p, q, v, count_BE) for x, f in MODEL.items()}


@pytest.mark.parametrize("seed", range(5))
def test_as_an_independent_loop_has_it(seed: int) -> None:
    p, q, v = drawn(seed)
    found = {x: float(value[0]) for x, (value, _) in every(p, q, v, np.ones((1, 12))).items()}
    assert {x: found[x] for x in found if x != "magic"} == pytest.approx(plainly(p, q, v))


def test_a_resample_is_the_log_with_episodes_repeated() -> None:
    p, q, v = drawn(7)
    count_BE = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=4).astype(float)
    found = every(p, q, v, count_BE)
    for b, count in enumerate(count_BE.astype(int)):
        rows = np.repeat(np.arange(12), count)
        again = every(
            replace(p, reward_EH=p.reward_EH[rows], logw_EH=p.logw_EH[rows]), q[rows], v[rows], np.ones((1, 12))
        )
        assert {x: y[0][b] for x, y in found.items()} == pytest.approx({x: y[0][0] for x, y in again.items()})


@pytest.mark.parametrize("name", [x for x in (*WEIGHTS, *MODEL) if x != "magic"])  # whose blend is taken as given
def test_an_influence_is_the_derivative_by_how_often_an_episode_counts(name: str) -> None:
    p, q, v = drawn(3)
    step = 1e-6 * np.eye(12)
    up, down = (every(p, q, v, 1 + sign * step)[name][0] for sign in (1, -1))
    assert every(p, q, v, np.ones((1, 12)))[name][1][0] == pytest.approx((up - down) / 2e-6 * 12, rel=1e-4, abs=1e-6)


def test_magic_blends_as_a_general_solver_does() -> None:
    p, q, v = drawn(11, n=40, horizon=4)
    value, _ = magic(p, q[None], v[None], np.ones((1, 40)), parts=5)
    w, before = np.exp(p.logw_EH), np.concatenate([np.ones((40, 1)), np.exp(p.logw_EH[:, :-1])], axis=1)
    part, influence = [], []
    for j in (0, 1, 2, 3, 4):  # geomspace(1, 4, 4) rounds to 1, 2, 3, 4
        total, on = 0.0, np.zeros(40)
        for t in range(min(j + 1, 4)):
            share_b = before[:, t] / before[:, t].sum()
            mean_v = share_b @ v[:, t]
            total += p.discount**t * mean_v
            on += p.discount**t * 40 * share_b * (v[:, t] - mean_v)
            if t < j:
                share = w[:, t] / w[:, t].sum()
                gain = p.reward_EH[:, t] - q[:, t]
                total += p.discount**t * (share @ gain)
                on += p.discount**t * 40 * share * (gain - share @ gain)
        part.append(total)
        influence.append(on)
    parts, on_J = np.array(part), np.array(influence)
    covariance = on_J @ on_J.T / 40**2
    half = 1.6448536269514722 * np.sqrt(covariance[-1, -1])
    bias = parts - np.clip(parts, parts[-1] - half, parts[-1] + half)
    error = covariance + np.outer(bias, bias)
    best = minimize(
        lambda x: x @ error @ x / np.trace(error),
        np.full(5, 0.2),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert float(value[0]) == pytest.approx(float(parts @ best.x), abs=1e-3)


def test_weights_beyond_float_and_weights_of_nobody() -> None:
    p = Table(np.ones((3, 1)), np.array([[900.0], [900.0], [-np.inf]]), 1.0)
    assert float(WEIGHTS["wis"](p, ONES)[0][0]) == 1.0
    nobody = Table(np.ones((3, 2)), np.array([[0.0, -np.inf]] * 3), 1.0)
    assert np.isnan(WEIGHTS["wis"](nobody, ONES)[0][0]) and np.isnan(WEIGHTS["wpdis"](nobody, ONES)[0][0])
    # one step can be weighed, and v stands for the rest: gain 1 - 0.25, v 0.5 before it and 2 after
    q, v = np.full((1, 3, 2), 0.25), np.broadcast_to([0.5, 2.0], (1, 3, 2))
    assert float(weighted_doubly_robust(nobody, q, v, ONES)[0][0]) == pytest.approx(0.75 + 0.5 + 2.0)


# The fitted model.


def chain(rewards: list[list[float]], actions: list[list[int]], ends: list[bool], n_actions: int = 2) -> Episodes:
    """Episodes that walk along observations 0, 1, 2, .. whatever is done."""
    length = [len(r) for r in rewards]
    seen = np.concatenate([np.arange(n) for n in length]).astype(np.float32)[:, None]
    terminated = np.array(ends)
    return Episodes(
        observations=seen,
        actions=np.concatenate(actions).astype(np.int64),
        rewards=np.concatenate(rewards).astype(np.float64),
        offsets=np.concatenate([[0], np.cumsum(length)]).astype(np.int64),
        last=np.array(length, np.float32)[:, None],
        terminated=terminated,
        truncated=~terminated,
        propensities=np.full(sum(length), 0.5),
        n_actions=n_actions,
    )


class Constant:
    def __init__(self, *probs: float) -> None:
        self.p = np.array(probs)

    def probs(self, observations: np.ndarray) -> np.ndarray:
        return np.tile(self.p, (len(observations), 1))


def test_the_model_goes_on_where_an_episode_was_cut_and_not_where_it_ended() -> None:
    # at 1: action 0 earns 10, action 1 earns 2. The third episode is cut before it, the fourth ends there
    log = chain([[0, 10], [0, 2], [0], [0]], [[0, 0], [0, 1], [0], [1]], [True, True, False, True])
    m = fqe.material(Constant(0.25, 0.75), log, 2, 0.5)
    fitted = fqe.Tabular(m).fit(log.rewards, np.ones((1, 4)))
    # under the policy itself: 1/4 x 10 + 3/4 x 2 = 4 at 1, not the 10 of the best action
    last = len(log.actions) + np.arange(4)
    assert fitted.v(np.array([0]), last)[0].tolist() == [0.0, 0.0, 4.0, 4.0]
    # at 0 action 0 always goes on: 0 + 4/2; action 1 ended: 0. So 1/4 x 2
    assert float(fitted.value()[0][0]) == pytest.approx(0.5)
    assert fitted.q(np.array([0]), np.arange(len(log.actions)))[0].tolist() == [2, 10, 2, 2, 2, 0]


def empirical(log: Episodes, policy: TablePolicy, horizon: int, discount: float) -> float:
    """The exact value in the process of observed frequencies, by plain loops."""
    seen, after = log.observations.argmax(axis=1), log.last.argmax(axis=1)
    O, A = policy.probs_OA.shape
    n, earned, went = np.zeros((O, A)), np.zeros((O, A)), np.zeros((O, A, O))
    for e in range(len(log)):
        for t in range(log.offsets[e], log.offsets[e + 1]):
            s, a, ends = seen[t], log.actions[t], t + 1 == log.offsets[e + 1]
            n[s, a] += 1
            earned[s, a] += log.rewards[t]
            if not (ends and log.terminated[e]):
                went[s, a, after[e] if ends else seen[t + 1]] += 1
    v = np.zeros(O)
    for _ in range(horizon):
        v = (policy.probs_OA * (earned / n + discount * np.einsum("sap,p->sa", went / n[:, :, None], v))).sum(axis=1)
    return float(v[seen[log.offsets[:-1]]].mean())


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    m = random_mdp(5, states=5, actions=2, branching=2)
    mu = np.full((5, 2), 0.5)
    near = TablePolicy(0.7 * mu + 0.3 * m.optimal(6))
    return {"mdp": m, "mu": mu, "near": near, "log": m.log(mu, 300, 6, seed=1)}


def test_the_table_is_the_exact_value_of_what_was_observed(world: dict[str, Any]) -> None:
    log, near = world["log"], world["near"]
    m = fqe.material(near, log, 6, 0.9)
    value, influence = fqe.Tabular(m).fit(log.rewards, np.ones((1, 300))).value()
    assert float(value[0]) == pytest.approx(empirical(log, near, 6, 0.9))
    assert abs(influence.sum()) < 1e-9
    lines = fqe.Linear(m, ridge=1e-10).fit(log.rewards, np.ones((1, 300)))
    assert float(lines.value()[0][0]) == pytest.approx(float(value[0]), rel=1e-6)  # one-hot: the same regression
    assert lines.weight()[0] == pytest.approx(fqe.Tabular(m).fit(log.rewards, np.ones((1, 300))).weight()[0], rel=1e-4)


@pytest.mark.parametrize("form", [fqe.Tabular, fqe.Linear])
def test_the_model_s_influence_is_its_derivative(world: dict[str, Any], form: Any) -> None:
    log = world["log"]
    made = form(fqe.material(world["near"], log, 6, 0.9))
    if form is fqe.Linear:
        made.ridge = 1e-10
    e = np.array([0, 17, 123, 299])
    step = 1e-4 * np.eye(300)[e]
    up, down = (made.fit(log.rewards, 1 + sign * step).value()[0] for sign in (1, -1))
    assert made.fit(log.rewards, np.ones((1, 300))).value()[1][0, e] == pytest.approx(
        (up - down) / 2e-4 * 300, rel=1e-4
    )


def test_a_pair_that_nobody_logged_takes_the_mean_of_those_that_were() -> None:
    log = chain([[4.0], [0.0], [1.0]], [[0], [0], [1]], [True, True, True], n_actions=3)
    v = fqe.Tabular(fqe.material(Constant(0, 0, 1), log, 1, 1.0)).fit(log.rewards, np.ones((1, 3))).value()[0]
    assert float(v[0]) == pytest.approx((2 * 2.0 + 1.0) / 3)


def test_a_model_of_one_s_own(world: dict[str, Any]) -> None:
    own = evaluate_policy(world["near"], world["log"], resamples=100, model=lambda m: fqe.Linear(m, ridge=1e-10))
    table = evaluate_policy(world["near"], world["log"], resamples=100, model="tabular")
    assert own.values["dr"].value == pytest.approx(table.values["dr"].value, rel=1e-5) and own.model.startswith(
        "linear"
    )


# Reductions and unbiasedness.


def test_the_behaviour_itself_is_worth_what_it_earned(world: dict[str, Any]) -> None:
    log = world["log"]
    found = evaluate_policy(TablePolicy(world["mu"]), log, discount=0.9, resamples=100)
    earned = found.baselines["value of the behaviour policy"]
    for name in WEIGHTS:
        assert found.values[name].value == pytest.approx(earned.value)
        assert found.values[name].intervals["student"] == pytest.approx(earned.intervals["student"])
    assert found.support.verdict == "good" and found.support.ess == pytest.approx(300) and found.headline == "wdr"


def test_an_exact_model_makes_dr_the_direct_value() -> None:
    # where all is certain, r + v' = q at each step, and every correction is 0, whatever the weights
    m = replace(random_mdp(2, branching=1, noise=0.0), end_SA=np.zeros((8, 3)))
    mu = np.full((8, 3), 1 / 3)
    pi = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    log = m.log(mu, 40, 6, seed=3)
    q_KSA, v_KS = m.q(pi, 6, 0.9)
    s, a = log.observations.argmax(axis=1).reshape(40, 6), log.actions.reshape(40, 6)
    q, v = (x[None] for x in (q_KSA[6 - np.arange(6), s, a], v_KS[6 - np.arange(6), s]))
    p = Table(log.rewards.reshape(40, 6), np.cumsum(np.log(pi[s, a] * 3), axis=1), 0.9)
    value, influence = direct(p, v, np.ones((1, 40)))
    for formula in (doubly_robust, weighted_doubly_robust, magic):
        found = formula(p, q, v, np.ones((1, 40)))
        assert found[0] == pytest.approx(value) and found[1][0] == pytest.approx(influence[0], abs=1e-9)


def test_is_pdis_and_dr_are_unbiased(world: dict[str, Any]) -> None:
    m, near = world["mdp"], world["near"]
    truth = m.value(near.probs_OA, 4)
    found: dict[str, list[float]] = {"is": [], "pdis": [], "dr": []}
    for seed in range(150):
        got = evaluate_policy(near, m.log(world["mu"], 25, 4, seed), estimators=list(found), resamples=2, seed=seed)
        for name, values in found.items():
            values.append(got.values[name].value)
    for values in found.values():
        assert abs(np.mean(values) - truth) < 3.5 * np.std(values) / np.sqrt(150)
    assert np.std(found["dr"]) < 0.7 * np.std(found["is"])


def test_the_truth_by_all_paths() -> None:
    m = random_mdp(1, states=2, actions=2, branching=2, end=0.1)
    pi = np.array([[0.3, 0.7], [0.6, 0.4]])
    value = 0.0
    for s, a in itertools.product(range(2), repeat=2):
        value += m.start_S[s] * pi[s, a] * m.reward_SA[s, a]
        for s1, a1 in itertools.product(range(2), repeat=2):
            on = m.start_S[s] * pi[s, a] * (1 - m.end_SA[s, a]) * m.next_SAS[s, a, s1] * pi[s1, a1]
            value += 0.9 * on * m.reward_SA[s1, a1]
    assert m.value(pi, 2, 0.9) == pytest.approx(value)
    log = m.log(pi, 4000, 2, seed=0)
    age = np.arange(len(log.rewards)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    earned = np.add.reduceat(log.rewards * 0.9**age, log.offsets[:-1])
    assert abs(earned.mean() - value) < 4 * earned.std() / np.sqrt(4000)
    ended = m.start_S @ (pi * m.end_SA).sum(axis=1)
    assert abs((np.diff(log.offsets) == 1).mean() - ended) < 4 * np.sqrt(ended / 4000)


# Intervals.


def test_intervals_by_hand() -> None:
    x = np.array([0.0, 1.0, 0.5, 0.5])
    low, high = intervals.student(0.5, x - 0.5)
    half = student_t.ppf(0.975, 3) * np.sqrt(0.5 / 3 / 4)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))
    assert intervals.hoeffding_below(x, 2.0, 0.05) == pytest.approx(0.5 - 2 * np.sqrt(np.log(20) / 8))
    variance = 0.5 / 3
    assert intervals.bernstein_below(x, 2.0, 0.05) == pytest.approx(
        0.5 - np.sqrt(2 * variance * np.log(40) / 4) - 7 * 2 * np.log(40) / 9
    )
    # the 1st and the 39th of 39 resamples: 39 + 1 = 40 times 0.025 and 0.975
    B = np.arange(1.0, 40.0)
    assert intervals.bootstrap_t(10.0, 2.0, 10 + B - 20, np.full(39, 4.0)) == (10 - 2 * 19 / 4, 10 + 2 * 19 / 4)
    half = student_t.ppf(0.975, 3) * 0.1 * np.sqrt(1.25)
    assert intervals.widened(1.0, (0.0, 1.5), 0.1, 4) == pytest.approx((1 - np.hypot(1, half), 1 + np.hypot(0.5, half)))


def test_quantiles_of_resamples_are_expanded_for_few_episodes() -> None:
    # 64 episodes: t of 63 degrees is 1.998341, times sqrt(64 / 63) 2.014139, of which Phi(-x) is 0.0219975
    draw = np.random.default_rng(0)
    B = draw.permutation(np.arange(1.0, 10_000.0))  # the k-th of 9,999 is k, so a quantile at p is 10,000 p
    assert intervals.percentile(B, 64) == pytest.approx((219.975, 10_000 - 219.975), abs=0.01)
    assert intervals.percentile(B, 512) == pytest.approx((246.182, 10_000 - 246.182), abs=0.01)
    assert intervals.percentile(B, 10**9) == pytest.approx((250.0, 9750.0), abs=0.01)  # many: the plain quantiles
    assert intervals.percentile(B, 64, 0.5)[0] == pytest.approx(2470.6, abs=0.1)  # t 0.678404: 0.683767
    # 119 resamples: 120 x 0.0219975 = 2.6397, so 0.6397 of the way from the 2nd to the 3rd
    few = np.r_[10.0, 20.0, 40.0, np.full(113, 50.0), 60.0, 80.0, 90.0]
    assert intervals.percentile(few, 64) == pytest.approx((20 + 0.6397 * 20, 80 - 0.6397 * 20), abs=0.01)
    # what is not defined could lie anywhere; and 39 resamples do not reach the 0.4 % that 7 episodes ask for
    few[50] = np.nan
    assert intervals.percentile(few, 64) == pytest.approx((10 + 0.6397 * 10, 90 - 0.6397 * 10), abs=0.01)
    few[51:53] = np.nan
    assert intervals.percentile(few, 64) == (-np.inf, np.inf)
    assert intervals.percentile(np.arange(39.0), 7) == (-np.inf, np.inf)
    # normal resamples of the spread that n episodes give: Student's interval
    n, x = 16, draw.normal(size=16)
    normal = x.mean() + norm.ppf(np.arange(1, 20_000) / 20_000) * x.std() / np.sqrt(n)
    assert intervals.percentile(normal, n) == pytest.approx(intervals.student(x.mean(), x - x.mean()), abs=1e-4)
    # and where there are few: 20 resamples of 5 episodes have 1 / (1/19 + 1/4) = 3.304 degrees of freedom
    low, high = intervals.spread(1.0, normal[::1000], 5)
    assert (1 - low, high - 1) == pytest.approx(
        [student_t.ppf(0.975, 3.3043) * np.sqrt(1.25) * normal[::1000].std(ddof=1)] * 2, rel=1e-4
    )


def test_exact_intervals_cut_weights_and_keep_to_the_range() -> None:
    logw, g = np.log(np.array([0.5, 8.0, 1.0, 1.0] * 500)), np.array([0.0, 1.0, 0.5, 0.5] * 500)
    low, high = intervals.bounded(logw, g, (0.0, 1.0), "hoeffding", cap=2.0)
    # weights cut at 2: w G has mean (0 + 2 + .5 + .5) / 4, w (1 - G) has (.5 + 0 + .5 + .5) / 4
    half = 2.0 * np.sqrt(np.log(40) / 4000)
    assert low == pytest.approx(0.75 - half) and high == pytest.approx(min(1.0, 1 - (0.375 - half)))
    assert intervals.bounded(logw[:4], g[:4], (0.0, 1.0), "bernstein", cap=2.0) == (0.0, 1.0)


def test_exact_intervals_only_for_a_range_that_is_one(world: dict[str, Any]) -> None:
    log, near = world["log"], world["near"]
    plain = evaluate_policy(near, log, resamples=100)
    assert all("hoeffding" not in v.intervals for v in plain.values.values())
    stated = evaluate_policy(near, log, resamples=100, return_range=(-5.0, 10.0))
    assert set(stated.values["is"].intervals) == {"student", "bootstrap", "hoeffding", "bernstein"}
    truth = world["mdp"].value(near.probs_OA, 6)
    for kind in ("hoeffding", "bernstein"):
        low, high = stated.values["is"].intervals[kind]
        assert -5 <= low <= truth <= high <= 10
    with pytest.raises(OpeError, match="not one: returns from"):
        evaluate_policy(near, log, resamples=100, return_range=(0.0, 1.0))
    with pytest.raises(OpeError, match="guesses of a reward"):
        evaluate_policy(near, log, rewards=np.stack([log.rewards] * 2), return_range=(-5.0, 10.0))
    unlogged = evaluate_policy(near, replace(log, propensities=None), resamples=100, return_range=(-5.0, 10.0))
    assert "hoeffding" not in unlogged.values["is"].intervals


def test_what_guesses_of_a_reward_disagree_on_widens_every_interval(world: dict[str, Any]) -> None:
    log, near = world["log"], world["near"]
    alone = evaluate_policy(near, log, resamples=100)
    same = evaluate_policy(near, log, rewards=np.stack([log.rewards] * 4), resamples=100)
    apart = evaluate_policy(
        near, log, rewards=np.stack([log.rewards + d for d in (-0.3, -0.1, 0.1, 0.3)]), resamples=100
    )
    steps = np.mean(np.diff(log.offsets))
    for name, v in alone.values.items():
        for kind, (low, high) in v.intervals.items():
            assert same.values[name].intervals[kind] == pytest.approx((low, high))
            wide = apart.values[name].intervals[kind]
            assert wide[0] < low and wide[1] > high
    # a constant shifts the behaviour's value by itself times the mean length
    sd = np.std([-0.3, -0.1, 0.1, 0.3], ddof=1) * steps
    base = "value of the behaviour policy"
    low, high = apart.baselines[base].intervals["student"]
    half = alone.baselines[base].value - alone.baselines[base].intervals["student"][0]
    assert (high - low) / 2 == pytest.approx(np.hypot(half, student_t.ppf(0.975, 3) * sd * np.sqrt(1.25)))


# Verdicts, each on a planted fault.


def test_no_support() -> None:
    draw = np.random.default_rng(0)
    log = chain(draw.normal(size=(50, 3)).tolist(), [[0, 0, 0]] * 50, [True] * 50)
    found = evaluate_policy(Constant(0.0, 1.0), log, resamples=100)
    assert found.support.verdict == "none" and "no logged episode" in found.support.why and found.headline == "fqe"
    assert found.values["is"].intervals["student"] == (-np.inf, np.inf) and np.isnan(found.values["wis"].value)
    assert found.reach is not None and found.reach.verdict == "none" and "nobody did 100.0%" in found.reach.why
    assert orjson.loads(orjson.dumps(found.as_json()))["values"]["wis"]["value"] is None
    assert any("this log cannot say" in note for note in found.notes)


def test_one_weight_has_it_all() -> None:
    logw = np.zeros(400)
    logw[7] = np.log(400.0)
    seen = support(logw)
    assert seen.verdict == "none" and seen.largest == pytest.approx(400 / 799) and "50% of the sum" in seen.why
    assert seen.ess == pytest.approx(799**2 / (399 + 400**2))


def test_few_effective_episodes_and_a_mean_weight_that_is_not_one() -> None:
    draw = np.random.default_rng(0)
    fair = draw.normal(0, 0.3, 1000)
    fair -= np.log(np.exp(fair).mean())
    assert support(fair).verdict == "good"
    wrong = support(fair + np.log(1.1))
    assert wrong.verdict == "thin" and "mean weight is 1.1" in wrong.why
    heavy = draw.normal(0, 1.6, 1000)
    heavy -= np.log(np.exp(heavy).mean())
    assert support(heavy).verdict == "thin" and "too narrow" in support(heavy).why


def test_the_model_s_own_reach() -> None:
    assert model_support(np.ones(500), 100, 0.0).verdict == "good"
    few = np.r_[np.full(25, 20.0), np.full(475, 1e-3)]
    assert model_support(few, 100, 0.0).verdict == "none" and model_support(few, 100, 0.0).ess == pytest.approx(
        5, abs=0.1
    )
    assert model_support(np.ones(500), 100, 0.05).verdict == "thin"


def test_propensities_that_nobody_logged_are_named_as_estimated(world: dict[str, Any]) -> None:
    log, near = replace(world["log"], propensities=None), world["near"]
    found = evaluate_policy(near, log, resamples=100)
    assert "estimated by frequencies at 5 observations" in found.propensities and found.propensities in found.notes[0]
    logged = evaluate_policy(near, world["log"], resamples=100)
    assert found.values["wdr"].value == pytest.approx(logged.values["wdr"].value, abs=0.1)
    with pytest.raises(OpeError, match="no propensities"):
        evaluate_policy(near, log, propensities="logged")
    whole = replace(log, action_probs=np.full((len(log.actions), 2), 0.5))
    assert evaluate_policy(near, whole, resamples=100).values["is"].value == pytest.approx(logged.values["is"].value)


def test_observations_that_hide_the_state_set_the_model_against_the_weights() -> None:
    # two hidden roads, seen as one: from the first, action 1 at the second step earns; from the other, action 0
    m = TabularMDP(
        start_S=np.array([0.5, 0.5, 0, 0]),
        next_SAS=np.stack([np.eye(4)[[2, 3, 2, 3]], np.eye(4)[[3, 2, 3, 2]]], axis=1),
        reward_SA=np.array([[0, 0], [0, 0], [0, 4], [0, 4]], float) * np.array([[1], [1], [1], [0]]),
        end_SA=np.zeros((4, 2)),
        noise=0.1,
        alias_S=np.array([0, 1, 2, 2]),
    )
    # observation 0 leads to the state that pays by action 0, observation 1 by action 1; both then look alike
    pi = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    mu = np.full((3, 2), 0.5)
    found = evaluate_policy(TablePolicy(pi), m.log(mu, 2000, 3, seed=0), resamples=200)
    truth = m.value(pi, 3)
    assert any("disagree" in note for note in found.notes)
    low, high = found.values["wdr"].intervals["bootstrap"]
    assert low < truth < high
    low, high = found.values["fqe"].intervals["bootstrap"]
    assert not low < truth < high
    markov = replace(m, alias_S=np.arange(4))
    seen = evaluate_policy(TablePolicy(pi[[0, 1, 2, 2]]), markov.log(mu[[0, 1, 2, 2]], 2000, 3, seed=0), resamples=200)
    assert not any("disagree" in note for note in seen.notes)


def test_episodes_cut_before_the_horizon_are_said(world: dict[str, Any]) -> None:
    m, near = world["mdp"], world["near"]
    short = m.log(world["mu"], 400, 3, seed=2)
    found = evaluate_policy(near, short, horizon=6, resamples=100)
    assert any("cut before the horizon of 6" in note for note in found.notes)
    truth, three = m.value(near.probs_OA, 6), m.value(near.probs_OA, 3)
    assert abs(found.values["wdr"].value - truth) < 0.25 < truth - three  # the model goes on
    assert abs(found.values["pdis"].value - three) < 0.25  # weights alone cannot
    longer = evaluate_policy(near, m.log(world["mu"], 400, 8, seed=2), horizon=3, resamples=100)
    assert abs(longer.values["wdr"].value - three) < 0.25 and longer.horizon == 3


def test_two_episodes_and_wide_observations() -> None:
    two = chain([[1, 2], [3]], [[0, 1], [1]], [True, False])
    for form in ("linear", "tabular"):
        found = evaluate_policy(Constant(0.5, 0.5), two, resamples=100, model=form)
        assert all(np.isfinite(v.value) for v in found.values.values()) and found.support.verdict == "none"
    wide = replace(two, observations=np.zeros((3, 2000), np.float32), last=np.zeros((2, 2000), np.float32))
    with pytest.raises(OpeError, match="4,000 numbers are too many"):
        evaluate_policy(Constant(0.5, 0.5), wide, model="linear")
    assert evaluate_policy(Constant(0.5, 0.5), wide, estimators=["wis"]).model == "none"


# Policies with numbers for actions.


class Normal:
    """a ~ N(slope x, 0.5^2)."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        return self.slope * observations + 0.5 * np.random.default_rng(seed).standard_normal((len(observations), 1))

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        z = (actions - self.slope * observations)[:, 0] / 0.5
        return -0.5 * z**2 - np.log(0.5 * np.sqrt(2 * np.pi))


def test_continuous_actions() -> None:
    draw = np.random.default_rng(0)
    n = 3000
    x = draw.standard_normal((n, 1)).astype(np.float32)
    mu, pi = Normal(0.3), Normal(0.5)
    a = mu.sample(x, 1).astype(np.float32)
    reward = (x * a)[:, 0] - a[:, 0] ** 2 + 0.1 * draw.standard_normal(n)
    ends = np.ones(n, bool)
    log = Episodes(x, a, reward.astype(np.float64), np.arange(n + 1), x, ends, ~ends, np.exp(mu.log_prob(x, a)))
    truth = 0.5 - (0.25 + 0.25)  # E x a - E a^2
    found = evaluate_policy(pi, log, resamples=100)
    for name, v in found.values.items():
        low, high = v.intervals["bootstrap"]
        assert low < truth < high, name
    assert abs(found.values["fqe"].value - truth) < 0.05 and found.model.startswith("linear")
    copied = clone(log)
    assert np.mean(np.abs(np.exp(copied.log_prob(x, a) - mu.log_prob(x, a)) - 1)) < 0.1
    estimated = evaluate_policy(pi, replace(log, propensities=None), resamples=100)
    assert "linear-normal" in estimated.propensities and abs(estimated.values["wis"].value - truth) < 0.1

    class Best:
        def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
            return 0.5 * observations

    best = evaluate_policy(Best(), log, resamples=100)
    assert set(best.values) == {"fqe"} and abs(best.values["fqe"].value - 0.25) < 0.05
    assert "no density" in best.notes[0] and "density" in best.support.why
    with pytest.raises(OpeError, match="ask for fqe alone"):
        evaluate_policy(Best(), log, estimators=["is"])


def test_cloning_by_regression() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((4000, 2)).astype(np.float32)
    p = 1 / (1 + np.exp(-(x[:, 0] - 0.5)))
    ends = np.ones(4000, bool)
    log = Episodes(
        x, (draw.random(4000) < p).astype(np.int64), np.zeros(4000), np.arange(4001), x, ends, ~ends, n_actions=2
    )
    assert np.abs(clone(log).probs(x)[:, 1] - p).mean() < 0.03


# Choosing, folders, the command line.


def test_selection_and_its_regret(world: dict[str, Any]) -> None:
    m, log = world["mdp"], world["log"]
    best, worst = m.optimal(6), 1 - m.optimal(6)
    made = {n: TablePolicy(0.6 * world["mu"] + 0.4 * x) for n, x in (("good", best), ("bad", worst))}
    truth = {n: m.value(p.probs_OA, 6) for n, p in made.items()}
    found = select(made, log, truth=truth, resamples=100)
    assert found.chosen == "good" and found.regret == 0.0 and found.better and list(found.found) == ["good", "bad"]
    lied = select(made, log, truth={"good": 1.0, "bad": 3.5}, by="value", resamples=100)
    assert lied.regret == 2.5
    alone = select({"bad": made["bad"]}, log, resamples=100)
    assert not alone.better
    for wrong, match in (({"by": "luck"}, "one of lower, value"), ({"truth": {"good": 1.0}}, "no value for 'bad'")):
        with pytest.raises(OpeError, match=match):
            select(made, log, **wrong)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"estimators": ["magik"]}, "estimator 'magik': one of is, wis"),
        ({"model": "forest"}, "model 'forest': one of auto, tabular, linear"),
        ({"propensities": "guessed"}, "one of auto, logged, estimated"),
        ({"discount": 1.5}, "discount 1.5"),
        ({"horizon": 0}, "horizon 0"),
        ({"confidence": 95.0}, "such as 0.95"),
        ({"cap": 3.0}, "give both"),
        ({"rewards": np.zeros(3)}, "for 1,?[0-9]* steps"),
        ({"return_range": (1.0, 0.0)}, "the least and the most"),
        ({"resamples": 1}, "resamples 1"),
        ({"folds": 1}, "folds 1"),
    ],
)
def test_what_cannot_be_asked(world: dict[str, Any], asked: dict[str, Any], match: str) -> None:
    with pytest.raises(OpeError, match=match):
        evaluate_policy(world["near"], world["log"], **asked)


def test_a_policy_that_is_none(world: dict[str, Any]) -> None:
    class Halves:
        def probs(self, observations: np.ndarray) -> np.ndarray:
            return np.full((len(observations), 2), 0.4)

    for policy, match in ((Halves(), "sum to 1"), (Constant(0.2, 0.3, 0.5), r"\(.*3\) for"), (object(), "no probs")):
        with pytest.raises(OpeError, match=match):
            evaluate_policy(policy, world["log"])


def test_the_same_seed_gives_the_same_figures(world: dict[str, Any]) -> None:
    once, again, other = (
        evaluate_policy(world["near"], world["log"], resamples=100, seed=s).as_json() for s in (3, 3, 4)
    )
    assert once == again != other


def test_the_command(world: dict[str, Any], tmp_path: Path) -> None:
    log = freeze_episodes(world["log"], tmp_path / "log")
    np.savez(tmp_path / "near.npz", observations=np.eye(5, dtype=np.float32), probs=world["near"].probs_OA)
    asked = ["ope", str(tmp_path / "near.npz"), "behaviour", "--on", str(log.path), "--resamples", "100"]
    said = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    found = orjson.loads(said.stdout)
    name = str(tmp_path / "near.npz")
    assert set(found["policies"]) == {name, "behaviour"} and found["chosen"] in found["policies"]
    straight = evaluate_policy(world["near"], world["log"], resamples=100)
    assert found["policies"][name]["values"]["wdr"]["value"] == pytest.approx(straight.values["wdr"].value)
    assert set(found["policies"][name]["baselines"]) == {"value of the behaviour policy", "behaviour cloning"}
    shown = CliRunner().invoke(app, [*asked, "--range", "-5", "10"], catch_exceptions=False)
    assert shown.exit_code == 0 and "support of the weights" in shown.stdout and "chosen by lower" in shown.stdout

    np.savez(tmp_path / "few.npz", observations=np.eye(5, dtype=np.float32)[:2], probs=world["near"].probs_OA[:2])
    with pytest.raises(OpeError, match="no row for the logged observation"):
        judge([str(tmp_path / "few.npz")], log.path)
    np.savez(tmp_path / "pickled.npz", observations=np.array([{}], dtype=object), probs=np.eye(1))
    with pytest.raises(OpeError, match="no table of a policy"):
        judge([str(tmp_path / "pickled.npz")], log.path)


def test_guesses_that_a_log_was_relabelled_with(world: dict[str, Any], tmp_path: Path) -> None:
    log = freeze_episodes(world["log"], tmp_path / "log")
    guesses = world["log"].rewards + np.array([[-0.3], [0.3]])
    np.save(log.path / "ensemble.npy", guesses)
    straight = evaluate_policy(world["near"], world["log"], rewards=guesses, resamples=100)
    found = evaluate_policy(world["near"], open_log(log.path, check=False), resamples=100)
    assert found.values["wdr"] == straight.values["wdr"] and "2 learned guesses" in found.notes[0]


def test_episodes_that_a_run_learnt_from_are_left_out(world: dict[str, Any], tmp_path: Path) -> None:
    log = freeze_episodes(world["log"], tmp_path / "log")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(
        f'[data]\ndataset = "{log.path}"\nsplit = {{validation = 0.2, test = 0.1, seed = 3}}\n[control]\n[objective]\nkind = "bc"\n'
    )
    fresh, note = unlearnt(str(run), log)
    parts = split_episodes(log, 0.2, 0.1, 3)
    assert note is None and fresh.tolist() == sorted([*parts["validation"], *parts["test"]])
    assert unlearnt("behaviour", log)[0].tolist() == list(range(300))
    (tmp_path / "policy").mkdir()
    assert "says not what it learnt from" in str(unlearnt(str(tmp_path / "policy"), log)[1])
    episodes, steps = take(world["log"], np.array([7, 2]))
    offsets = world["log"].offsets
    assert steps.tolist() == [*range(offsets[7], offsets[8]), *range(offsets[2], offsets[3])]
    assert episodes.digest(0) == world["log"].digest(7) and episodes.digest(1) == world["log"].digest(2)


@pytest.mark.slow
def test_intervals_cover_where_the_support_is_good() -> None:
    """By simulation, other seeds than the bench's: 95 % intervals of 300 logs, at least 91 % (2.5 standard errors off)."""
    m = random_mdp(77)
    mu = np.full((8, 3), 1 / 3)
    pi = TablePolicy(0.8 * mu + 0.2 * m.optimal(5))
    truth = m.value(pi.probs_OA, 5)
    hits: dict[tuple[str, str], list[bool]] = {}
    for seed in range(300):
        found = evaluate_policy(pi, m.log(mu, 200, 5, seed), resamples=200, seed=seed, return_range=(-10.0, 15.0))
        for name, v in found.values.items():
            for kind, (low, high) in v.intervals.items():
                hits.setdefault((name, kind), []).append(low <= truth <= high)
    assert {k: np.mean(h) for k, h in hits.items() if np.mean(h) < 0.91} == {}
    assert np.mean(hits["is", "hoeffding"]) == np.mean(hits["is", "bernstein"]) == 1.0
