"""How much more, or less, likely the policy was to act as logged: in log space, with what that weighting can support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.control.episodes import Episodes
from holdfast.errors import HoldfastError


class OpeError(HoldfastError):
    """What was asked cannot be estimated from these episodes: names the thing, what was found and the remedy."""


def distinct(observation_Nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first number of each distinct observation, and which of them each is."""
    flat = np.ascontiguousarray(observation_Nd.reshape(len(observation_Nd), -1), np.float64) + 0.0  # -0 is 0
    _, first, which = np.unique(
        flat.view([("", np.void, flat.shape[1] * 8)])[:, 0], return_index=True, return_inverse=True
    )
    return first, which


def policy_probs(policy: Any, observations: np.ndarray, n_actions: int) -> np.ndarray:
    """(N, n) float64, checked: each row a distribution."""
    if not hasattr(policy, "probs"):
        raise OpeError(f"{type(policy).__name__} has no probs(observations): these episodes have discrete actions")
    probs = np.asarray(policy.probs(observations), np.float64)
    if probs.shape != (len(observations), n_actions):
        raise OpeError(
            f"the policy gives probabilities {probs.shape} for {len(observations)} observations and {n_actions} actions"
        )
    if not (probs >= 0).all() or not np.allclose(probs.sum(axis=1), 1.0, atol=1e-5):
        raise OpeError("the policy's probabilities are not distributions: each row must be >= 0 and sum to 1")
    return probs / probs.sum(axis=1, keepdims=True)


def policy_logp(policy: Any, episodes: Episodes) -> np.ndarray:
    """(T,) the policy's log-probability (density) of each logged action; -inf where it would never act so."""
    if episodes.n_actions is None:
        if not hasattr(policy, "log_prob"):
            raise OpeError(f"{type(policy).__name__} has no log_prob(observations, actions): ask for estimators = fqe")
        logp = np.asarray(policy.log_prob(episodes.observations, episodes.actions), np.float64)
        if logp.shape != episodes.actions.shape[:1] or np.isnan(logp).any() or np.isposinf(logp).any():
            raise OpeError(
                f"log_prob gave {logp.shape}, or what is no density, for {len(episodes.actions)} steps; wanted one finite "
                "number, or -inf, each"
            )
        return logp
    probs = policy_probs(policy, episodes.observations, episodes.n_actions)
    with np.errstate(divide="ignore"):
        return np.log(probs[np.arange(len(probs)), episodes.actions])


class Frequencies:
    """How often each action was taken at each distinct observation; alike where the observation was never seen."""

    def __init__(self, episodes: Episodes) -> None:
        assert episodes.n_actions is not None
        first, which = distinct(episodes.observations)
        count = np.zeros((len(first), episodes.n_actions))
        np.add.at(count, (which, episodes.actions), 1.0)
        flat = episodes.observations.reshape(len(which), -1).astype(np.float64) + 0.0
        self.row = {flat[i].tobytes(): r for r, i in enumerate(first)}
        self.table = np.concatenate([count / count.sum(axis=1, keepdims=True), np.full((1, episodes.n_actions), 1.0)])
        self.table[-1] /= episodes.n_actions
        self.how = f"frequencies at {len(first)} observations"

    def probs(self, observations: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(observations.reshape(len(observations), -1), np.float64) + 0.0
        return self.table[[self.row.get(o.tobytes(), -1) for o in flat]]


class Logistic:
    """Multinomial logistic regression on the standardised observation and its squares."""

    def __init__(self, episodes: Episodes) -> None:
        from sklearn.linear_model import LogisticRegression

        assert episodes.n_actions is not None
        self.features = _Features(episodes.observations)
        self.n, self.taken = episodes.n_actions, np.unique(episodes.actions)
        self.fitted = None
        if len(self.taken) > 1:
            self.fitted = LogisticRegression(max_iter=1000).fit(self.features(episodes.observations), episodes.actions)
        self.how = "logistic regression"

    def probs(self, observations: np.ndarray) -> np.ndarray:
        p = np.zeros((len(observations), self.n))
        p[:, self.taken] = self.fitted.predict_proba(self.features(observations)) if self.fitted is not None else 1.0
        return p


class LinearNormal:
    """Normal with a mean linear in the standardised observation and its squares, and one spread for each number."""

    def __init__(self, episodes: Episodes) -> None:
        from sklearn.linear_model import Ridge

        self.features = _Features(episodes.observations)
        a = episodes.actions.astype(np.float64)
        self.fitted = Ridge(alpha=1.0).fit(self.features(episodes.observations), a)
        self.spread = (a - self._mean(episodes.observations)).std(axis=0) + 1e-6
        self.how = "linear-normal regression"

    def _mean(self, observations: np.ndarray) -> np.ndarray:
        return np.asarray(self.fitted.predict(self.features(observations))).reshape(len(observations), -1)

    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, 0x6F7065])
        mean = self._mean(observations)
        return np.asarray(mean + self.spread * draw.standard_normal(mean.shape))

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        miss = (actions - self._mean(observations)) / self.spread
        return np.asarray((-0.5 * miss**2 - np.log(self.spread) - 0.5 * np.log(2 * np.pi)).sum(axis=1))


class _Features:
    def __init__(self, observations: np.ndarray) -> None:
        x = observations.reshape(len(observations), -1).astype(np.float64)
        self.centre, self.scale = x.mean(axis=0), np.where(x.std(axis=0) > 1e-8, x.std(axis=0), 1.0)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        z = (observations.reshape(len(observations), -1).astype(np.float64) - self.centre) / self.scale
        return np.concatenate([z, z**2], axis=1)


def clone(episodes: Episodes) -> Any:
    """Behaviour cloning: the policy that most likely logged these episodes. Frequencies where there are discrete actions
    and at least 20 steps for each distinct observation, else a logistic or a linear-normal regression."""
    if episodes.n_actions is None:
        return LinearNormal(episodes)
    few = len(distinct(episodes.observations)[0]) * 20 <= len(episodes.observations)
    return Frequencies(episodes) if few else Logistic(episodes)


@dataclass(frozen=True)
class Behaviour:
    """The behaviour's log-probability (density) of each logged action."""

    logp_T: np.ndarray
    estimated: bool
    how: str


def behaviour(episodes: Episodes, source: str = "auto") -> Behaviour:
    """The logged propensities, or those of `clone`. `source`: "logged", "estimated", or "auto": logged where there are any.

    The estimate is fitted to the very steps that it weighs, which is better than the truth to first order where its
    form is right (Hanna, Niekum and Stone 2019).
    """
    if source not in ("auto", "logged", "estimated"):
        raise OpeError(f"propensities {source!r}: one of auto, logged, estimated")
    if source != "estimated" and episodes.propensities is not None:
        return Behaviour(np.log(episodes.propensities), False, "logged propensities")
    if source != "estimated" and episodes.action_probs is not None:
        logged = episodes.action_probs[np.arange(len(episodes.actions)), episodes.actions]
        if (logged <= 0).any():
            raise OpeError(f"action_probs is 0 for the logged action of step {int(np.argmin(logged))}; mend the log")
        return Behaviour(np.log(logged), False, "logged action probabilities")
    if source == "logged":
        raise OpeError("the episodes have no propensities; log them, or ask for estimated ones")
    cloned = clone(episodes)
    logp_T = policy_logp(cloned, episodes)
    return Behaviour(logp_T, True, f"behaviour policy estimated by {cloned.how}")


@dataclass(frozen=True)
class Support:
    """How far the data reach: what weights of whole episodes have, or a model's weights of steps."""

    episodes: int
    ess: float  # Kish's (sum w)^2 / sum w^2, in episodes
    largest: float  # the largest weight's share of the sum
    verdict: str  # "good", "thin" or "none"
    why: str

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "why": self.why,
            "episodes": self.episodes,
            "effective_episodes": self.ess,
            "largest_share": self.largest,
        }


def enough(n: int, ess: float) -> bool:
    """Whether so many effective episodes of n are enough for the usual intervals: (n / ess)^2 <= sqrt(n) / 4, chosen by
    simulation. The skew of a mean of log-normal weights is about (n / ess)^1.5 / sqrt(n)."""
    return ess >= 10 and (n / ess) ** 2 <= np.sqrt(n) / 4


def support(logw_E: np.ndarray) -> Support:
    """Kish's effective sample size, the largest share and a verdict, from the episodes' final log-weights.

    "none" below 10 effective episodes or where one has over 30 % of the weight. "good" where there are `enough` and the
    mean weight is within two standard errors of the 1 that it is in expectation: weights that are heavy-tailed but have
    not yet shown it fail one of the two. Else "thin". docs/ope.md shows what each verdict is worth.
    """
    n, top = len(logw_E), logw_E.max()
    if np.isneginf(top):
        return Support(n, 0.0, 0.0, "none", "no logged episode is one that the policy could have made")
    w_E = np.exp(logw_E - top)
    ess, largest = float(w_E.sum() ** 2 / (w_E**2).sum()), float(w_E.max() / w_E.sum())
    raw_E = np.exp(np.minimum(logw_E, 690.0))
    off = abs(float(raw_E.mean()) - 1) / max(float(np.std(raw_E, ddof=1)) / np.sqrt(n), 1e-9)
    why = f"{ess:.1f} effective of {n} episodes, the largest weight is {largest:.0%} of the sum"
    if ess < 10 or largest > 0.3:
        return Support(n, ess, largest, "none", f"{why}; weights cannot say what the policy is worth")
    if not enough(n, ess):
        return Support(n, ess, largest, "thin", f"{why}; intervals may be too narrow")
    if off > 2:
        why = f"{why}; the mean weight is {raw_E.mean():.3g}, {off:.1f} standard errors from 1"
        cause = "rare large weights are missing, the propensities are wrong, or the policy learnt from these episodes"
        return Support(n, ess, largest, "thin", f"{why}: {cause}")
    return Support(n, ess, largest, "good", why)


def model_support(weight_T: np.ndarray, episodes: int, unseen: float) -> Support:
    """The same of the weights that a fitted model gives to steps, as a part of the episodes; with the policy's
    probability, over logged steps, of actions that nobody logged there.

    "good" from 20 effective episodes and up to 1 % unseen, "none" below 10 or above 10 %.
    """
    total, squares = float(weight_T.sum()), float((weight_T**2).sum())
    ess = episodes * total**2 / (squares * len(weight_T)) if squares > 0 else 0.0
    largest = float(np.abs(weight_T).max() / abs(total)) if total else 1.0
    why = f"{ess:.1f} effective of {episodes} episodes where the policy goes"
    if unseen:
        why = f"{why}; nobody did {unseen:.1%} of what it would do at logged observations, there the model guesses"
    if ess < 10 or unseen > 0.1:
        return Support(episodes, ess, largest, "none", f"{why}: the model cannot say what the policy is worth")
    if ess < 20 or unseen > 0.01:
        return Support(episodes, ess, largest, "thin", f"{why}: intervals may be too narrow")
    return Support(episodes, ess, largest, "good", why)
