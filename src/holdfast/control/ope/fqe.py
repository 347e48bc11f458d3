"""Fitted Q-evaluation: the value of observations and actions under a policy, fitted to logged steps.

One question in every form: what the policy earns in the k steps to go,
`Q_k(s, a) = r + discount (1 - terminated) E_{a' ~ policy} Q_{k-1}(s', a')`, `Q_0 = 0`. The expectation is over the
policy itself, and a cut episode goes on from its true last observation. Step t of an episode has horizon - t to go.

A form is made once from the episodes and fitted many times: `fit(reward_T, count_XE, seed)` makes X fits, each of which
counts each episode so often (a bootstrap's multiplicities, 0 for the fold left out). `Fitted.q(xs, steps)` and
`.v(xs, observations)` then answer, a row for each of the fits `xs`. Observations are numbered 0 .. N-1, N = T + E: the
steps', then the episodes' last. Step T and observation N stand for "beyond the end", of value 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from holdfast.control.episodes import Episodes
from holdfast.control.ope.weights import OpeError, distinct, policy_probs


@dataclass(frozen=True)
class Material:
    """Steps and what the policy would do, at N = T + E observations: the steps', then the episodes' last."""

    observation_Nd: np.ndarray
    action_T: np.ndarray  # (T,) int64, or (T, A) float64
    next_T: np.ndarray  # which observation comes next
    goes_on_T: np.ndarray  # 0 where the environment ended the episode, else 1
    togo_N: np.ndarray  # (N + 1,) steps to go; 0 for the one beyond the end
    episode_T: np.ndarray
    n_actions: int | None
    probs_Nn: np.ndarray | None  # discrete: the policy
    draws_NmA: np.ndarray | None  # continuous: draws from it, by `seed`
    horizon: int
    discount: float

    @property
    def first_E(self) -> np.ndarray:
        return np.searchsorted(self.episode_T, np.arange(self.n_episodes))

    @property
    def togo_T(self) -> np.ndarray:
        """(T + 1,)"""
        return np.append(self.togo_N[: len(self.next_T)], 0)

    @property
    def n_episodes(self) -> int:
        return len(self.observation_Nd) - len(self.next_T)


def material(policy: Any, episodes: Episodes, horizon: int, discount: float, draws: int = 8, seed: int = 0) -> Material:
    steps, length_E = len(episodes.observations), np.diff(episodes.offsets)
    everything = np.concatenate([episodes.observations, episodes.last])
    next_T = np.arange(1, steps + 1)
    next_T[episodes.offsets[1:] - 1] = steps + np.arange(len(episodes))
    goes_on_T = np.ones(steps)
    goes_on_T[episodes.offsets[1:][episodes.terminated] - 1] = 0.0
    episode_T = np.repeat(np.arange(len(episodes)), length_E)
    age_N = np.concatenate([np.arange(steps) - episodes.offsets[episode_T], length_E])
    probs = sampled = None
    if episodes.n_actions is not None:
        probs = policy_probs(policy, everything, episodes.n_actions)
    else:
        sampled = np.stack([np.asarray(policy.sample(everything, seed + i), np.float64) for i in range(draws)], axis=1)
    return Material(
        everything.reshape(len(everything), -1).astype(np.float64),
        episodes.actions if episodes.n_actions is not None else episodes.actions.astype(np.float64),
        next_T,
        goes_on_T,
        np.append(np.maximum(horizon - age_N, 0), 0),
        episode_T,
        episodes.n_actions,
        probs,
        sampled,
        horizon,
        discount,
    )


class Fitted(Protocol):
    def q(self, xs: np.ndarray, steps: np.ndarray) -> np.ndarray: ...
    def v(self, xs: np.ndarray, observations: np.ndarray) -> np.ndarray: ...
    def value(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean of v over the true first observations, (X,), and each episode's influence on it, (X, E): through
        the first observation, and through the fit by how far its steps miss, weighted by how often the policy would
        come there (the derivative of the fit by an episode's count)."""
        ...

    def weight(self) -> np.ndarray:
        """(X, T): the derivative of the value by each step's reward, times the episodes: how often the policy would
        come by where the step is, over how often the log does."""
        ...


class Model(Protocol):
    how: str
    resamples: int  # how many refits are reasonable

    def fit(self, reward_T: np.ndarray, count_XE: np.ndarray, seed: int = 0) -> Fitted: ...
    def size(self) -> int:
        """Numbers that one fit holds."""
        ...


@dataclass(frozen=True)
class _Tables:
    form: Tabular
    count_XE: np.ndarray
    n_XP: np.ndarray
    edge_X: np.ndarray  # discount x probability of each logged transition
    got_EP: Any
    q_XKP: np.ndarray
    v_XKS: np.ndarray

    def q(self, xs: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return self.q_XKP.reshape(len(self.q_XKP), -1)[xs].take(self.form.at_T[steps], axis=1)

    def v(self, xs: np.ndarray, observations: np.ndarray) -> np.ndarray:
        return self.v_XKS.reshape(len(self.v_XKS), -1)[xs].take(self.form.at_N[observations], axis=1)

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        f, n = self.form, self.count_XE.sum(axis=1, keepdims=True)
        first_XE = self.v_XKS[:, -1, f.first_E]
        value_X = (self.count_XE * first_XE).sum(axis=1) / n[:, 0]
        come_XKP, per_XP = self.come_XKP, self.per_XP
        onward = f.m.discount * np.einsum("xke,xke->xe", come_XKP[:, 1:, f.edge_from], self.v_XKS[:, :-1, f.edge_to])
        by_edge = f.moved_E @ (onward * per_XP[:, f.edge_from]).T
        by_reward = self.got_EP @ (come_XKP.sum(axis=1) * per_XP).T
        expected = f.seen_EP @ ((come_XKP * self.q_XKP).sum(axis=1) * per_XP).T
        return value_X, first_XE - value_X[:, None] + (by_edge + by_reward - expected).T

    def weight(self) -> np.ndarray:
        return np.asarray((self.come_XKP.sum(axis=1) * self.per_XP)[:, self.form.pair_T])

    @property
    def per_XP(self) -> np.ndarray:
        n = self.count_XE.sum(axis=1, keepdims=True)
        return np.divide(n, self.n_XP, out=np.zeros_like(self.n_XP), where=self.n_XP > 0)

    @cached_property
    def come_XKP(self) -> np.ndarray:
        """How often the policy comes by each pair with k steps to go, discounted, by the fit."""
        f, X = self.form, len(self.count_XE)
        come_XS = self.count_XE @ f.starts_ES / self.count_XE.sum(axis=1, keepdims=True)
        come_XKP = np.zeros_like(self.q_XKP)
        for k in range(f.m.horizon, 0, -1):
            come_XKP[:, k] = (come_XS[:, :, None] * f.probs_SA).reshape(X, f.P)
            come_XS = (come_XKP[:, k, f.edge_from] * self.edge_X) @ f.into_S
        return come_XKP


class Tabular:
    """Frequencies and mean rewards of distinct observations, solved exactly. An observation-action pair that the
    counted episodes lack takes the mean value of the pairs they have, each as often as it was logged."""

    resamples = 400

    def __init__(self, m: Material, limit: int = 3000) -> None:
        if m.n_actions is None or m.probs_Nn is None:
            raise OpeError("the tabular form needs discrete actions; use linear or network")
        first_S, row_N = distinct(m.observation_Nd)
        if len(first_S) > limit:
            raise OpeError(
                f"{len(first_S):,} distinct observations are too many for a table ({limit:,}); use linear or network"
            )
        self.m, self.S, self.A, self.probs_SA = m, len(first_S), m.n_actions, m.probs_Nn[first_S]
        steps, self.P = len(m.next_T), len(first_S) * m.n_actions
        self.pair_T = row_N[:steps] * self.A + m.action_T
        self.at_T = m.togo_T * self.P + np.append(self.pair_T, 0)
        self.at_N = m.togo_N * self.S + np.append(row_N, 0)
        self.seen_EP = sparse.csr_matrix((np.ones(steps), (m.episode_T, self.pair_T)), (m.n_episodes, self.P))
        on = m.goes_on_T > 0
        # only transitions that were logged have an edge; they lie sorted by the pair that they leave
        edges, edge_T = np.unique(self.pair_T[on] * self.S + row_N[m.next_T[on]], return_inverse=True)
        self.moved_E = sparse.csr_matrix((np.ones(on.sum()), (m.episode_T[on], edge_T)), (m.n_episodes, len(edges)))
        self.edge_from, self.edge_to = np.divmod(edges, self.S)
        self.into_S = sparse.csr_matrix(
            (np.ones(len(edges)), (np.arange(len(edges)), self.edge_to)), (len(edges), self.S)
        )
        self.first_E = row_N[m.first_E]
        self.starts_ES = sparse.csr_matrix(
            (np.ones(m.n_episodes), (np.arange(m.n_episodes), self.first_E)), (m.n_episodes, self.S)
        )
        self.from_pairs, self.first_edge = np.unique(self.edge_from, return_index=True)
        self.how = f"tabular, {self.S} observations"

    def size(self) -> int:
        return (self.m.horizon + 1) * self.P * 2

    def fit(self, reward_T: np.ndarray, count_XE: np.ndarray, seed: int = 0) -> Fitted:
        m, X = self.m, len(count_XE)
        n_XP = count_XE @ self.seen_EP
        got_EP = sparse.csr_matrix((reward_T, (m.episode_T, self.pair_T)), self.seen_EP.shape)
        known_XP = n_XP > 0
        per_XP = np.where(known_XP, 1 / np.maximum(n_XP, 1e-300), 0.0)
        reward_XP = (count_XE @ got_EP) * per_XP
        edge_X = (count_XE @ self.moved_E) * per_XP[:, self.edge_from] * m.discount
        weight_XP, complete = n_XP / np.maximum(n_XP.sum(axis=1, keepdims=True), 1e-300), bool(known_XP.all())
        q_XKP, v_XKS = np.zeros((X, m.horizon + 1, self.P)), np.zeros((X, m.horizon + 1, self.S))
        for k in range(1, m.horizon + 1):
            q = reward_XP.copy()
            if len(self.edge_to):
                q[:, self.from_pairs] += np.add.reduceat(
                    edge_X * v_XKS[:, k - 1, self.edge_to], self.first_edge, axis=1
                )
            if not complete:
                q = np.where(known_XP, q, (weight_XP * q).sum(axis=1, keepdims=True))
            q_XKP[:, k] = q
            v_XKS[:, k] = (q.reshape(X, self.S, self.A) * self.probs_SA).sum(axis=2)
        return _Tables(self, count_XE, n_XP, edge_X, got_EP, q_XKP, v_XKS)

    def unseen(self) -> float:
        """The policy's probability, over logged steps, of actions that nobody logged at that observation."""
        n_P = np.bincount(self.pair_T, minlength=self.P).reshape(self.S, self.A)
        return float((n_P.sum(axis=1)[:, None] * self.probs_SA * (n_P == 0)).sum() / n_P.sum())


@dataclass(frozen=True)
class _Lines:
    form: Linear
    reward_T: np.ndarray
    count_XE: np.ndarray
    theta_XKD: np.ndarray
    low_K: np.ndarray
    high_K: np.ndarray

    def q(self, xs: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return self._read(self.form.phi_TD, self.form.m.togo_T, xs, steps)

    def v(self, xs: np.ndarray, observations: np.ndarray) -> np.ndarray:
        return self._read(self.form.expected_ND, self.form.m.togo_N, xs, observations)

    def _read(self, features: np.ndarray, togo: np.ndarray, xs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        flat = rows.ravel()
        k, feature = togo[flat], features[np.minimum(flat, len(features) - 1)]
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.stack(
                [np.einsum("rd,rd->r", feature, self.theta_XKD[x][k]) for x in np.arange(len(self.theta_XKD))[xs]]
            )
        found = np.clip(np.nan_to_num(found, nan=0.0, posinf=np.inf, neginf=-np.inf), self.low_K[k], self.high_K[k])
        return found.reshape(-1, *rows.shape)

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        f, m, n = self.form, self.form.m, self.count_XE.sum(axis=1)
        first_XE = self.v(np.arange(len(n)), m.first_E)
        value_X = (self.count_XE * first_XE).sum(axis=1) / n
        influence_XE = first_XE - value_X[:, None]
        after_TD = m.discount * m.goes_on_T[:, None] * f.expected_ND[m.next_T]
        with np.errstate(over="ignore", invalid="ignore"):
            for x, (pull_KD, theta_KD) in enumerate(zip(self.pull_XKD, self.theta_XKD, strict=True)):
                pull_TD = f.phi_TD @ (pull_KD[1:].T @ theta_KD[:-1])  # sum over k of (pull_k . phi) theta_{k-1}
                own_TD = f.phi_TD @ (pull_KD[1:].T @ theta_KD[1:])
                miss_T = (f.phi_TD @ pull_KD.sum(axis=0)) * self.reward_T
                miss_T = miss_T + (pull_TD * after_TD).sum(axis=1) - (own_TD * f.phi_TD).sum(axis=1)
                influence_XE[x] += np.bincount(m.episode_T, miss_T, m.n_episodes)
        return value_X, influence_XE

    def weight(self) -> np.ndarray:
        return np.asarray(self.pull_XKD.sum(axis=1) @ self.form.phi_TD.T)

    @cached_property
    def pull_XKD(self) -> np.ndarray:
        """n times the derivative of the value by what is fitted with k steps to go, for each unit of features."""
        f, m = self.form, self.form.m
        after_TD = m.discount * m.goes_on_T[:, None] * f.expected_ND[m.next_T]
        pull_XKD = np.zeros_like(self.theta_XKD)
        for x, count_E in enumerate(self.count_XE):
            gram, come_KD = f.gram(count_E), np.zeros_like(self.theta_XKD[x])
            onward_DD = np.linalg.solve(gram, (f.phi_TD * count_E[m.episode_T][:, None]).T @ after_TD)
            come_KD[-1] = count_E @ f.expected_ND[m.first_E]  # the derivative of the value by theta_k, times n
            with np.errstate(over="ignore", invalid="ignore"):
                for k in range(m.horizon, 1, -1):
                    come_KD[k - 1] = onward_DD.T @ come_KD[k]
            pull_XKD[x] = np.linalg.solve(gram, come_KD.T).T
        return pull_XKD


class Linear:
    """Least squares on 1, the standardised observation, its squares and (up to 12 numbers) products: for each discrete
    action apart, or with the continuous action as further numbers. A small ridge. Answers are cut to what the logged
    rewards could add up to, for the iteration may diverge."""

    resamples = 200

    def __init__(self, m: Material, ridge: float = 1e-4, limit: int = 3000) -> None:
        self.m, self.ridge = m, ridge
        if (numbers := m.observation_Nd.shape[1] * max(m.n_actions or 0, 1)) > limit:
            raise OpeError(
                f"{numbers:,} numbers are too many for the linear form ({limit:,}); use estimators without a model"
            )
        steps = len(m.next_T)
        x = _standard(m.observation_Nd)
        if m.n_actions is not None:
            assert m.probs_Nn is not None
            f = _squares(x)
            self.phi_TD = (np.eye(m.n_actions)[m.action_T][:, :, None] * f[:steps, None, :]).reshape(steps, -1)
            self.expected_ND = (m.probs_Nn[:, :, None] * f[:, None, :]).reshape(len(x), -1)
        else:
            assert m.draws_NmA is not None
            centre, scale = m.action_T.mean(axis=0), m.action_T.std(axis=0) + 1e-8
            self.phi_TD = _squares(np.concatenate([x[:steps], (m.action_T - centre) / scale], axis=1))
            draws = [(m.draws_NmA[:, i] - centre) / scale for i in range(m.draws_NmA.shape[1])]
            self.expected_ND = np.mean([_squares(np.concatenate([x, a], axis=1)) for a in draws], axis=0)
        self.how = f"linear, {self.phi_TD.shape[1]} features"

    def size(self) -> int:
        return (self.m.horizon + 1) * self.phi_TD.shape[1]

    def gram(self, count_E: np.ndarray) -> np.ndarray:
        count_T, D = count_E[self.m.episode_T], self.phi_TD.shape[1]
        ridge = self.ridge * max(count_T.sum(), 1.0) / max(self.m.n_actions or 1, 1)
        return np.asarray((self.phi_TD * count_T[:, None]).T @ self.phi_TD + ridge * np.eye(D))

    def fit(self, reward_T: np.ndarray, count_XE: np.ndarray, seed: int = 0) -> Fitted:
        m, D = self.m, self.phi_TD.shape[1]
        after = m.discount * m.goes_on_T[:, None] * self.expected_ND[m.next_T]
        target = np.column_stack([reward_T, after])
        theta_XKD = np.zeros((len(count_XE), m.horizon + 1, D))
        for theta_KD, count_E in zip(theta_XKD, count_XE, strict=True):
            count_T = count_E[m.episode_T]
            weighted = self.phi_TD * count_T[:, None]
            solved = np.linalg.solve(self.gram(count_E), weighted.T @ target)
            with np.errstate(over="ignore", invalid="ignore"):
                for k in range(1, m.horizon + 1):
                    theta_KD[k] = solved[:, 0] + solved[:, 1:] @ theta_KD[k - 1]
        # k rewards between the least and the most logged (or an ended episode's 0) could sum to this
        times_K = np.cumsum(np.append(0.0, m.discount ** np.arange(m.horizon)))
        low_K, high_K = min(reward_T.min(), 0.0) * times_K, max(reward_T.max(), 0.0) * times_K
        return _Lines(self, reward_T, count_XE, theta_XKD, low_K, high_K)


FORMS: dict[str, type] = {"tabular": Tabular, "linear": Linear}


def make(form: str | Callable[[Material], Model], m: Material) -> Model:
    """The form of that name, or one of the user's. "auto": a table where there are discrete actions and at least 20 steps for each distinct
    observation, else linear."""
    if callable(form):
        return form(m)
    if form == "auto":
        few = m.n_actions is not None and len(distinct(m.observation_Nd)[0]) * 20 <= len(m.next_T)
        form = "tabular" if few else "linear"
    if form not in FORMS:
        raise OpeError(f"model {form!r}: one of auto, {', '.join(FORMS)}")
    made: Model = FORMS[form](m)
    return made


def _standard(x: np.ndarray) -> np.ndarray:
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 1e-8, spread, 1.0)


def _squares(z: np.ndarray) -> np.ndarray:
    d = z.shape[1]
    if d <= 12:
        i, j = np.triu_indices(d)
        return np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], axis=1)
    return np.concatenate([np.ones((len(z), 1)), z, z**2], axis=1)
