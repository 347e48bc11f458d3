"""A policy's value from logged episodes: every estimator, its intervals, and a plain word on what the log supports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from holdfast.control.episodes import Episodes
from holdfast.control.ope import fqe, intervals
from holdfast.control.ope.formulas import ESTIMATORS, MODEL, WEIGHTS, Table, mean_return
from holdfast.control.ope.intervals import Interval
from holdfast.control.ope.weights import OpeError, Support, behaviour, clone, model_support, policy_logp, support

CUBE = 1_000_000  # numbers in one array of resamples x episodes x steps


@dataclass(frozen=True)
class Value:
    estimator: str
    value: float
    se: float | None  # from the episodes' influences; None where these have not all of the error
    intervals: dict[str, Interval]

    def as_json(self) -> dict[str, Any]:
        shown = {k: [_json(x) for x in v] for k, v in self.intervals.items()}
        return {"value": _json(self.value), "se": self.se and _json(self.se), "intervals": shown}


@dataclass(frozen=True)
class PolicyValue:
    """What a policy is worth, in discounted reward per episode of at most `horizon` steps."""

    values: dict[str, Value]  # by estimator
    headline: str  # the estimator that the support allows, by rule and not by its figure
    support: Support  # of the weights
    reach: Support | None  # of the model
    baselines: dict[str, Value]  # "value of the behaviour policy", "behaviour cloning" (by the headline's estimator)
    gain: Value  # the headline less the value of the behaviour policy, on the same resamples
    propensities: str
    model: str
    horizon: int
    discount: float
    confidence: float
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        said = f"support of the weights: {self.support.verdict}: {self.support.why}"
        return said if self.reach is None else f"{said}\nsupport of the model: {self.reach.verdict}: {self.reach.why}"

    def as_json(self) -> dict[str, Any]:
        return {
            "headline": self.headline,
            "values": {k: v.as_json() for k, v in self.values.items()},
            "baselines": {k: v.as_json() | {"estimator": v.estimator} for k, v in self.baselines.items()},
            "gain": self.gain.as_json(),
            "support": self.support.as_json(),
            "reach": self.reach and self.reach.as_json(),
            "propensities": self.propensities,
            "model": self.model,
            "horizon": self.horizon,
            "discount": self.discount,
            "confidence": self.confidence,
            "notes": self.notes,
        }


def _json(x: float) -> float | None:
    return x if math.isfinite(x) else None


def evaluate_policy(
    policy: Any,
    log: Any,
    *,
    rewards: np.ndarray | None = None,
    discount: float = 1.0,
    horizon: int | None = None,
    estimators: Sequence[str] | None = None,
    model: str | Callable[[fqe.Material], fqe.Model] = "auto",
    propensities: str = "auto",
    return_range: Interval | None = None,
    cap: float | None = None,
    confidence: float = 0.95,
    resamples: int | None = None,
    folds: int = 5,
    seed: int = 0,
) -> PolicyValue:
    """The value of `policy` from a log of episodes (`Episodes`, or an opened log that has them).

    `policy` has `probs` (discrete) or `log_prob` and `sample` (continuous). `rewards`, (T,) or (K, T), stand for the
    logged ones: K guesses of a learned reward, whose disagreement then widens every interval. `horizon` is the number
    of steps that the value is of; by default those of the longest episode. `return_range` is the least and the most
    that an episode's discounted return can be, known and not looked up in the log: with it "is" has the intervals
    "hoeffding" and "bernstein", whose weights are cut at `cap`. `estimators`: of `ESTIMATORS`, by default all that the
    policy allows. `model`: auto, tabular, linear, or a function that makes a `fqe.Model` of a
    `fqe.Material`. `propensities`: auto, logged or estimated. The same seed gives the
    same figures.

    Raises `OpeError` for what these episodes cannot answer. Policies learned on the same episodes look better than they
    are: hold episodes out.
    """
    episodes: Episodes = getattr(log, "episodes", log)
    if len(episodes) < 2:
        raise OpeError(f"{len(episodes)} episode: no interval can be had of fewer than 2")
    if not 0 < discount <= 1:
        raise OpeError(f"discount {discount}: above 0, at most 1")
    if not 0 < confidence < 1:
        raise OpeError(f"confidence {confidence}: between 0 and 1, such as 0.95")
    if unknown := [e for e in estimators or () if e not in ESTIMATORS]:
        raise OpeError(f"estimator {unknown[0]!r}: one of {', '.join(ESTIMATORS)}")
    for name, given in (("resamples", resamples), ("folds", folds)):
        if given is not None and given < 2:
            raise OpeError(f"{name} {given}: at least 2")
    if horizon is not None and horizon < 1:
        raise OpeError(f"horizon {horizon}: at least one step")
    notes = []
    if rewards is None and (guesses := learned_rewards(log)) is not None:
        rewards = guesses
        notes.append(f"rewards are the mean of the {len(guesses)} learned guesses that the log was relabelled with")
    reward_KT = _rewards(episodes, rewards)
    if cap is not None and return_range is None:
        raise OpeError("cap is for the intervals of a stated return_range; give both")
    if return_range is not None and len(reward_KT) > 1:
        raise OpeError("a return_range gives exact intervals, which cannot hold for guesses of a reward; leave it out")
    if return_range is not None and not return_range[0] < return_range[1]:
        raise OpeError(f"return_range {return_range}: give the least and the most")

    horizon = int(np.diff(episodes.offsets).max()) if horizon is None else horizon
    n, names = len(episodes), list(dict.fromkeys(estimators or ESTIMATORS))
    dense = episodes.n_actions is not None or (hasattr(policy, "log_prob") and getattr(policy, "density", True))
    if not dense and estimators is None:
        names = ["fqe"]
        notes.append("the policy has no density at logged actions: the model alone can be asked")
    mu = behaviour(episodes, propensities)
    cut_E = ~episodes.terminated & (np.diff(episodes.offsets) < horizon)
    if mu.estimated:
        notes.append(f"{mu.how}: weights are right only as far as it is; exact intervals are not given")
    if cut_E.any():
        notes.append(
            f"{int(cut_E.sum())} of {n} episodes were cut before the horizon of {horizon}: is, wis, pdis, wpdis and the "
            "behaviour's value count nothing after the cut, the others take the model's word for it; exact intervals are "
            "not given"
        )
    if not dense and set(names) != {"fqe"}:
        raise OpeError(f"{type(policy).__name__} has no density at logged actions (log_prob): ask for fqe alone")
    logp_T = policy_logp(policy, episodes) if dense else np.full(len(episodes.actions), -np.inf)
    job = _Job(episodes, reward_KT, horizon, discount, mu.logp_T, model, resamples, folds, seed)
    found = job.estimate(policy, logp_T, names)
    p = found.table

    of_weights = support(p.logw_EH[:, -1])
    of_model = None
    if "fqe" in names and found.model is not None:
        unseen = found.model.unseen() if isinstance(found.model, fqe.Tabular) else 0.0
        weight_T = found.model.fit(reward_KT.mean(axis=0), np.ones((1, n)), seed).weight()[0]
        of_model = model_support(weight_T, n, unseen)
    if not dense:
        of_weights = replace(of_weights, why="without a density no logged episode can be weighed")
    headline = next(x for x in (*HEADLINE[of_weights.verdict], *names) if x in names)
    if of_weights.verdict == "none" and headline == "fqe":
        notes.append(
            "the weights do not reach: the headline rests on the model alone, whose form nothing here can check"
        )
    elif of_weights.verdict == "none":
        notes.append(f"the weights do not reach, and the headline, {headline}, needs them: ask for fqe")
    if headline == "fqe" and of_model is not None and of_model.verdict == "none":
        notes.append("the model does not reach either: this log cannot say what the policy is worth")

    def value(name: str, e: _Estimate) -> Value:
        se = None
        made: dict[str, Interval] = {}
        if e.influence_E is not None:
            se = float(np.sqrt((e.influence_E**2).sum()) / n)
            if "fqe" not in name:  # a fit's own misses are too small: 86 to 93 % by simulation
                made["student"] = intervals.student(e.value, e.influence_E, confidence)
        if len(e.value_B) < 100:
            made["bootstrap"] = intervals.spread(e.value, e.value_B, n, confidence)
        elif se is not None and e.se_B is not None:
            made["bootstrap"] = intervals.bootstrap_t(e.value, se, e.value_B, e.se_B, confidence)
        else:
            made["bootstrap"] = intervals.percentile(e.value_B, n, confidence)
        if len(reward_KT) > 1:
            sd = float(np.std(e.value_K, ddof=1))
            made = {k: intervals.widened(e.value, x, sd, len(reward_KT), confidence) for k, x in made.items()}
        if of_weights.largest == 0 and name.split(" - ")[0] in WEIGHTS:  # without any weight it says nothing
            made = dict.fromkeys(made, intervals.EVERYTHING)
        return Value(name, e.value, se, made)

    def exact(v: Value, logw_E: np.ndarray, cap: float | None) -> Value:
        """With the intervals that a stated range allows."""
        if return_range is None or cut_E.any():
            return v
        low, high = float(p.return_E.min()), float(p.return_E.max())
        if low < return_range[0] or high > return_range[1]:
            raise OpeError(
                f"return_range {return_range} is not one: returns from {low:.6g} to {high:.6g} were logged in {horizon} steps"
            )
        made = {
            kind: intervals.bounded(logw_E, p.return_E, return_range, kind, cap, confidence) for kind in intervals.BELOW
        }
        return Value(v.estimator, v.value, v.se, v.intervals | made)

    values = {x: value(x, found.of[x]) for x in names}
    if of_weights.verdict != "none" and "fqe" in names and "wdr" in names:
        apart = found.of["fqe - wdr"]
        if abs(apart.value) > 3 * np.std(apart.value_B):
            notes.append(
                f"the model and the weights disagree: fqe - wdr is {apart.value:.4g}, more than three standard errors; what "
                "is observed may not be all that matters, or the model's form is too simple"
            )
    if "is" in values and not mu.estimated:
        values["is"] = exact(values["is"], p.logw_EH[:, -1], cap)
    cloned = clone(episodes)
    copied = job.estimate(cloned, policy_logp(cloned, episodes), [headline])
    baselines = {
        BEHAVIOUR: exact(value("mean return", found.of["mean return"]), np.zeros(n), 1.0),
        CLONING: value(headline, copied.of[headline]),
    }
    return PolicyValue(
        values,
        headline,
        of_weights,
        of_model,
        baselines,
        value(f"{headline} - mean return", found.of[f"{headline} - mean return"]),
        mu.how,
        found.model.how if found.model is not None else "none",
        horizon,
        discount,
        confidence,
        notes,
    )


BEHAVIOUR, CLONING = "value of the behaviour policy", "behaviour cloning"
# By what the support allows, and never by the figures: the first that was asked for
HEADLINE = {
    "good": ("wdr", "dr", "wpdis", "pdis", "wis", "is"),
    "thin": ("magic", "wdr", "wpdis", "wis"),
    "none": ("fqe", "magic"),
}


@dataclass(frozen=True)
class _Estimate:
    value: float
    influence_E: np.ndarray | None  # None where it lacks what the refitted model adds
    value_B: np.ndarray
    se_B: np.ndarray | None
    value_K: np.ndarray  # by each guess of the reward


@dataclass(frozen=True)
class _Found:
    of: dict[str, _Estimate]
    table: Table
    model: fqe.Model | None


@dataclass(frozen=True)
class _Job:
    """One log and the way to ask it: the same resamples and folds for every policy."""

    episodes: Episodes
    reward_KT: np.ndarray
    horizon: int
    discount: float
    behaviour_T: np.ndarray  # log-probabilities
    form: str | Callable[[fqe.Material], fqe.Model]
    resamples: int | None
    folds: int
    seed: int

    def estimate(self, policy: Any, logp_T: np.ndarray, names: Sequence[str]) -> _Found:
        episodes, n, T = self.episodes, len(self.episodes), len(self.episodes.actions)
        # where each episode's steps and observations lie in an (E, H) table; T and T + E are beyond the end
        length_E1, t_H = np.diff(episodes.offsets)[:, None], np.arange(self.horizon)[None, :]
        step_EH = np.where(t_H < length_E1, episodes.offsets[:-1, None] + t_H, T)
        after_E1 = np.where(episodes.terminated, T + n, T + np.arange(n))[:, None]
        observation_EH = np.where(t_H < length_E1, step_EH, np.where(t_H == length_E1, after_E1, T + n))
        logw_EH = np.cumsum(np.append(logp_T - self.behaviour_T, 0.0)[step_EH], axis=1)

        model: fqe.Model | None = None
        if any(x in MODEL or x == "fqe" for x in names):
            model = fqe.make(self.form, fqe.material(policy, episodes, self.horizon, self.discount, seed=self.seed))
        folds = min(self.folds, n)
        fold_E = np.random.default_rng([self.seed, 1]).permutation(n) % folds

        def values(reward_T: np.ndarray, count_BE: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            p, B = Table(np.append(reward_T, 0.0)[step_EH], logw_EH, self.discount), len(count_BE)
            made = {"mean return": mean_return(p, count_BE)}
            made |= {x: WEIGHTS[x](p, count_BE) for x in names if x in WEIGHTS}
            if "fqe" in names and model is not None:
                made["fqe"] = model.fit(reward_T, count_BE, self.seed).value()
            if any(x in MODEL for x in names) and model is not None:
                # each episode is answered by the fit that left its fold out
                count_BFE = count_BE[:, None, :] * (fold_E[None, :] != np.arange(folds)[:, None])
                fitted = model.fit(reward_T, count_BFE.reshape(B * folds, n), self.seed)
                q_BEH, v_BEH = np.empty((B, n, self.horizon)), np.empty((B, n, self.horizon))
                for f in range(folds):
                    mine, xs = np.flatnonzero(fold_E == f), np.arange(B) * folds + f
                    q_BEH[:, mine] = fitted.q(xs, step_EH[mine])
                    v_BEH[:, mine] = fitted.v(xs, observation_EH[mine])
                made |= {x: MODEL[x](p, q_BEH, v_BEH, count_BE) for x in names if x in MODEL}
            apart = [(x, "mean return") for x in names] + ([("fqe", "wdr")] if {"fqe", "wdr"} <= set(names) else [])
            for x, y in apart:
                made[f"{x} - {y}"] = made[x][0] - made[y][0], made[x][1] - made[y][1]
            return made

        reward_T = self.reward_KT.mean(axis=0)
        point = values(reward_T, np.ones((1, n)))
        B = self.resamples or (model.resamples if model is not None else 1000)
        draw = np.random.default_rng([self.seed, 2])
        count_BE = draw.multinomial(n, np.full(n, 1 / n), size=B).astype(np.float64)
        size = max(n * self.horizon, n, model.size() * (folds + 1) if model is not None else 0)
        chunk = max(CUBE // size, 1)
        parts = []  # of each resample the value and its own standard error
        for count in (count_BE[b : b + chunk] for b in range(0, B, chunk)):
            made = values(reward_T, count)
            parts.append({x: (v, np.sqrt((count * i**2).sum(axis=1)) / n) for x, (v, i) in made.items()})
        guesses = [values(r, np.ones((1, n))) for r in self.reward_KT] if len(self.reward_KT) > 1 else []
        of = {}
        for x, (value_1, influence_1E) in point.items():
            refitted = any(y in MODEL for y in x.split(" - "))  # no influence has what this adds to the error
            of[x] = _Estimate(
                float(value_1[0]),
                influence_1E[0] if not x.startswith("magic") else None,
                np.concatenate([part[x][0] for part in parts]),
                np.concatenate([part[x][1] for part in parts]) if not refitted else None,
                np.array([g[x][0][0] for g in guesses]),
            )
        return _Found(of, Table(np.append(reward_T, 0.0)[step_EH], logw_EH, self.discount), model)


def learned_rewards(log: Any) -> np.ndarray | None:
    """(K, T): each ensemble member's rewards, where the log was relabelled by an ensemble."""
    path = getattr(log, "path", None)
    if path is None or not (path / "ensemble.npy").is_file():
        return None
    return np.asarray(np.load(path / "ensemble.npy", allow_pickle=False))


def _rewards(episodes: Episodes, rewards: np.ndarray | None) -> np.ndarray:
    """(K, T)."""
    if rewards is None and episodes.rewards is None:
        raise OpeError("the episodes have no rewards; give rewards=, (T,) or (K, T), one for each step")
    r = np.atleast_2d(np.asarray(episodes.rewards if rewards is None else rewards, np.float64))
    if r.ndim != 2 or r.shape[1] != len(episodes.actions):
        raise OpeError(f"rewards are {r.shape} for {len(episodes.actions)} steps; give (T,) or (K, T)")
    if not np.isfinite(r).all():
        raise OpeError("rewards hold a number that is not finite; mend them")
    return r
