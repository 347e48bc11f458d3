"""A small tabular process, logged at random, for the tests of control: frozen logs with rewards and judgements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from holdfast.control.mdp import TabularMDP, random_mdp
from holdfast.control.segments import Segments
from holdfast.control.store import freeze_episodes

DISCOUNT = 0.9
SMALL = {"hidden": [32], "updates": 25, "discount": DISCOUNT, "standardise": False}


def q_star(mdp: TabularMDP) -> np.ndarray:
    q = np.zeros_like(mdp.reward_SA)
    for _ in range(300):
        q = mdp.reward_SA + DISCOUNT * (1 - mdp.end_SA) * (mdp.next_SAS @ q.max(1))
    return q


def logged_q(log, policy: np.ndarray | None = None) -> np.ndarray:
    """The best values, or a policy's, in the process that the log's own frequencies are."""
    state, following = log.observations.argmax(1), np.roll(log.observations.argmax(1), -1)
    ends = log.offsets[1:] - 1
    following[ends] = log.last.argmax(1)
    goes_on = np.ones(len(state))
    goes_on[ends] = ~log.terminated
    q = np.zeros((4, log.n_actions))
    n = np.zeros_like(q)
    np.add.at(n, (state, log.actions), 1)
    for _ in range(300):
        v = q.max(1) if policy is None else (policy * q).sum(1)
        total = np.zeros_like(q)
        np.add.at(total, (state, log.actions), log.rewards + DISCOUNT * goes_on * v[following])
        q = total / n
    return q


def margin(mdp: TabularMDP) -> float:
    """The least gap between the best action's value and the next."""
    q = np.sort(q_star(mdp), axis=1)
    return float((q[:, -1] - q[:, -2]).min())


@cache
def world(actions: int = 3) -> TabularMDP:
    """The first of a hundred whose best actions stand out, and where looking one step ahead is not enough."""
    for seed in range(1000):
        mdp = random_mdp(seed, states=4, actions=actions, noise=0.0)
        greedy = (mdp.reward_SA.argmax(1) != q_star(mdp).argmax(1)).any()
        if greedy and margin(mdp) > 0.15:
            return mdp
    raise AssertionError("none")


def episodes(continuous: bool = False, n: int = 150, seed: int = 0):
    """Random behaviour. Continuous: an action of the sign that stands for one of two actions."""
    mdp = world(2 if continuous else 3)
    A = mdp.reward_SA.shape[1]
    log = mdp.log(np.full((4, A), 1 / A), n, 20, seed)
    if not continuous:
        return log
    size = np.random.default_rng(seed).uniform(0.1, 1.0, len(log.actions))
    actions = np.where(log.actions == 1, size, -size).astype(np.float32)[:, None]
    return replace(
        log, actions=actions, n_actions=None, propensities=None, facts={"action_low": -1.0, "action_high": 1.0}
    )


def part(log, which):
    """These episodes alone."""
    rows = np.concatenate([np.arange(log.offsets[e], log.offsets[e + 1]) for e in which])
    lengths = np.diff(log.offsets)[which]
    return replace(
        log,
        observations=log.observations[rows],
        actions=log.actions[rows],
        rewards=log.rewards[rows],
        propensities=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        **{name: getattr(log, name)[which] for name in ("last", "terminated", "truncated")},
    )


def judged(log, ids, length: int = 4, n: int = 600, by: str = "reward", seed: int = 1, continuous: bool = False):
    """Judgements without noise: by the sum of rewards, or of the best policy's advantages."""
    mdp = world(2 if continuous else 3)
    rng = np.random.default_rng(seed)
    lengths = np.diff(log.offsets)
    long = np.flatnonzero(lengths >= length)
    episode = rng.choice(long, (n, 2))
    start = rng.integers(0, lengths[episode] - length + 1)
    state = log.observations.argmax(1)
    action = (log.actions[:, 0] > 0).astype(int) if continuous else log.actions
    q = q_star(mdp)
    worth = log.rewards if by == "reward" else (q - q.max(1, keepdims=True))[state, action]
    at = log.offsets[episode] + start
    total = np.stack([worth[at + t] for t in range(length)]).sum(0)
    keep = total[:, 0] != total[:, 1]
    p = (total[:, 0] > total[:, 1]).astype(np.float64)
    return Segments.of(
        ids, episode[keep], start[keep], np.full((int(keep.sum()), 2), length), p[keep], ["rule"] * int(keep.sum())
    )


def frozen(folder, continuous: bool = False, by: str = "reward"):
    """The log as a folder, judgements included."""
    log = episodes(continuous)
    ids = [log.digest(e) for e in range(len(log))]
    return freeze_episodes(log, folder, segments=judged(log, ids, by=by, continuous=continuous))


def recipe(dataset, kind, steps=4, control=(), train=(), **objective):
    return {
        "run": {"threads": 1},
        "data": {"dataset": str(dataset)},
        "control": {**SMALL, **dict(control)},
        "objective": {"kind": kind, **objective},
        "train": {"steps": steps, "batch": 64, "lr": 3e-3, "checkpoint_every": 2, **dict(train)},
    }
