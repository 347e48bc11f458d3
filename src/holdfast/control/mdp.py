"""Small tabular decision processes whose truth is known, to try methods on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.control.episodes import Episodes


@dataclass(frozen=True)
class TablePolicy:
    """Acts on a one-hot observation by a row of a table."""

    probs_OA: np.ndarray

    def probs(self, observations: np.ndarray) -> np.ndarray:
        """(N, O) -> (N, A)."""
        return np.asarray(self.probs_OA[np.asarray(observations).argmax(axis=1)], np.float64)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The likeliest action."""
        return np.asarray(self.probs_OA[np.asarray(observation).argmax(axis=-1)].argmax(axis=-1))


@dataclass(frozen=True)
class TabularMDP:
    """S states, A actions. A step from s by a earns `reward_SA`, give or take up to `noise`, and ends the episode with
    probability `end_SA`. One sees `alias_S[s]`, one-hot: where two states look the same, observations are not Markov."""

    start_S: np.ndarray
    next_SAS: np.ndarray
    reward_SA: np.ndarray
    end_SA: np.ndarray
    noise: float
    alias_S: np.ndarray

    @property
    def n_observations(self) -> int:
        return int(self.alias_S.max()) + 1

    def value(self, policy_OA: np.ndarray, horizon: int, discount: float = 1.0) -> float:
        """What the policy earns from the start in `horizon` steps, exactly."""
        return float(self.start_S @ self.q(policy_OA, horizon, discount)[1][horizon])

    def q(self, policy_OA: np.ndarray, horizon: int, discount: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """(horizon + 1, S, A) and (horizon + 1, S): with k steps to go, and under the policy."""
        act_SA = policy_OA[self.alias_S]
        q, v = np.zeros((horizon + 1, *self.reward_SA.shape)), np.zeros((horizon + 1, len(self.start_S)))
        for k in range(1, horizon + 1):
            q[k] = self.reward_SA + discount * (1 - self.end_SA) * (self.next_SAS @ v[k - 1])
            v[k] = (act_SA * q[k]).sum(axis=1)
        return q, v

    def optimal(self, horizon: int, discount: float = 1.0) -> np.ndarray:
        """(S, A) the greedy policy with `horizon` steps to go; needs states that look different."""
        q = np.zeros_like(self.reward_SA)
        for _ in range(horizon):
            q = self.reward_SA + discount * (1 - self.end_SA) * (self.next_SAS @ q.max(axis=1))
        return np.eye(q.shape[1])[q.argmax(axis=1)]

    def log(self, policy_OA: np.ndarray, n: int, horizon: int, seed: int, propensities: bool = True) -> Episodes:
        """n episodes of the policy, cut after `horizon` steps: a pure function of the seed."""
        draw = np.random.default_rng(seed)
        act_SA = np.cumsum(policy_OA[self.alias_S], axis=1)
        go_SAS, S = np.cumsum(self.next_SAS, axis=2), len(self.start_S)
        s = draw.choice(S, n, p=self.start_S)
        seen, acted, earned = [], [], []
        alive = np.ones(n, bool)
        length, last = np.full(n, horizon), np.zeros(n, np.int64)
        for t in range(horizon):
            a = np.minimum((draw.random(n)[:, None] > act_SA[s]).sum(axis=1), act_SA.shape[1] - 1)
            seen.append(s)
            acted.append(a)
            earned.append(self.reward_SA[s, a] + self.noise * draw.uniform(-1, 1, n))
            ended = alive & (draw.random(n) < self.end_SA[s, a])
            s = np.minimum((draw.random(n)[:, None] > go_SAS[s, a]).sum(axis=1), S - 1)
            last[alive] = s[alive]
            length[ended] = t + 1
            alive &= ~ended
            if not alive.any():
                break
        mine = np.arange(len(seen))[None, :] < length[:, None]
        s_T, a_T, r_T = (np.stack(x, axis=1)[mine] for x in (seen, acted, earned))
        see = np.eye(self.n_observations, dtype=np.float32)
        return Episodes(
            observations=see[self.alias_S[s_T]],
            actions=a_T,
            rewards=r_T,
            offsets=np.concatenate([[0], np.cumsum(length)]).astype(np.int64),
            last=see[self.alias_S[last]],
            terminated=~alive,
            truncated=alive,
            propensities=policy_OA[self.alias_S[s_T], a_T] if propensities else None,
            n_actions=len(self.reward_SA[0]),
        )


def random_mdp(
    seed: int,
    states: int = 8,
    actions: int = 3,
    branching: int = 3,
    end: float = 0.02,
    noise: float = 0.5,
    alias: int | None = None,
) -> TabularMDP:
    """Garnet: each action leads to `branching` states; rewards uniform in [0, 1); each pair ends the episode with a
    probability up to 2 `end`. With `alias`, states look the same modulo that number."""
    draw = np.random.default_rng([seed, 0x6D6470])
    next_SAS = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            next_SAS[s, a, draw.choice(states, branching, replace=False)] = draw.dirichlet(np.ones(branching))
    return TabularMDP(
        draw.dirichlet(np.ones(states)),
        next_SAS,
        draw.random((states, actions)),
        2 * end * draw.random((states, actions)),
        noise,
        np.arange(states) % (alias or states),
    )
