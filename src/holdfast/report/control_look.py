"""What the page of a control run is made of beside the run's own records: measured anew from the policy, the log that it
learnt from, the logs beside that one, and, where the recipe names an environment, from play.

The page must open on a run that was interrupted or damaged. So what cannot be had is None, and `Look.missing` says why.
The same folders give the same figures: every draw has a seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import torch
from scipy.spatial import cKDTree
from scipy.special import expit
from scipy.stats import rankdata, t

from holdfast.control.algorithms.base import Algorithm
from holdfast.control.algorithms.preference import CPL, SegmentReward
from holdfast.control.environments import make
from holdfast.control.episodes import Episodes
from holdfast.control.flow import _refer_to, predicted
from holdfast.control.networks import Draw, Still
from holdfast.control.ope.evaluate import PolicyValue, evaluate_policy, learned_rewards
from holdfast.control.ope.sources import take
from holdfast.control.policy import Policy, alone, load_algorithm
from holdfast.control.simulate import Rollout, rollouts
from holdfast.control.steps import PairData, Scale, StepData
from holdfast.control.store import Log, is_log, open_log, split_episodes
from holdfast.errors import HoldfastError
from holdfast.recipe import ControlRecipe, read_recipe
from holdfast.report.read import RunData
from holdfast.training.determinism import derive, deterministic

BASE, ASKED = 20_000, 1_000  # logged steps that neighbours are looked for among, and steps that are asked for
NEIGHBOURS = 20
NEAR = 0.1  # of an action's range, in every number of it: as near is the same
VALUED = 3  # members whose value is estimated from the log
VALUE_STEPS = 5_000  # held-out steps that it is estimated from, at most: a page must not wait; `holdfast ope` takes all
RESAMPLES = 50  # of its interval, for the same reason: their spread, not their quantiles
JUDGED = 4_000  # judgements of a part that are looked at
FRAMES = 8


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval (Student's)."""

    value: float
    lo: float | None
    hi: float | None

    @classmethod
    def of(cls, sample: np.ndarray) -> Mean:
        value = float(sample.mean())
        if len(sample) < 2:
            return cls(value, None, None)
        half = float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
        return cls(value, value - half, value + half)


@dataclass(frozen=True)
class Near:
    """What was done in the logged steps that are nearest to the ones asked for, none of the same episode."""

    states: int
    log: float  # share of logged actions that one of the neighbours took
    policy_K: np.ndarray  # the same of each member's best action
    differ: float | None  # how far members' best actions lie apart: see `differences`
    visited: float | None  # share of the states met in play that lie further from the log than 19 of 20 of its own
    plane: np.ndarray  # (n, 2) logged states on their two principal axes
    plane_visited: np.ndarray | None
    axes: tuple[str, str]


@dataclass(frozen=True)
class Preferred:
    """How a part's judgements are predicted."""

    judgements: int
    right_KJ: np.ndarray  # (K, decided) bool
    p_J: np.ndarray | None  # the members' mean probability of the label's first; None where margins are no log-odds
    label_J: np.ndarray

    @property
    def accuracy(self) -> Mean:
        """Of the members' mean. Wilson's interval, as if judgements were independent."""
        right, n = float(self.right_KJ.mean()), self.right_KJ.shape[1]
        z2 = 1.959964**2
        middle, half = right + z2 / 2 / n, (z2 * (right * (1 - right) / n + z2 / 4 / n**2)) ** 0.5
        return Mean(right, (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n))


@dataclass(frozen=True)
class Agreement:
    """A learned reward beside the true one, on the same steps."""

    learned_KT: np.ndarray
    true_T: np.ndarray
    pearson_K: np.ndarray
    pearson: float  # of the members' mean
    spearman: float
    episodes: float | None  # Pearson's, of the undiscounted returns of episodes of the same length or not
    where: str  # of which steps
    truth: str  # what the true reward is


@dataclass
class Look:
    """All of it. Axes: K members, E episodes, T steps."""

    run: RunData
    recipe: ControlRecipe | None = None
    log: Log | None = None
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    algorithm: Algorithm | None = None
    scale: Scale | None = None
    said: dict[str, Any] = field(default_factory=dict)  # policy.json
    evaluated: dict[str, dict[str, Any]] = field(default_factory=dict)  # metrics by evaluation
    true_T: np.ndarray | None = None  # the true rewards of the log's steps, as far as they are known
    truth: str = ""  # whose they are
    learned: bool = False  # whether the log's rewards were learnt from judgements
    played: list[list[Rollout]] | None = None
    returns_KE: np.ndarray | None = None  # undiscounted, of play
    start_K: np.ndarray | None = None  # what each member thinks the watched episodes' first observations are worth
    values: list[PolicyValue] = field(default_factory=list)
    valued: int = 0  # episodes that they are from
    near: Near | None = None
    preferred: dict[str, Preferred] = field(default_factory=dict)
    agreement: Agreement | None = None
    frames: list[tuple[str, np.ndarray]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def episodes(self) -> Episodes | None:
        return self.log.episodes if self.log is not None else None

    @property
    def members(self) -> int:
        return int(self.run.recipe.get("control", {}).get("replicas", 1))

    @property
    def held_out(self) -> np.ndarray:
        """Numbers of the episodes that nothing was learnt from."""
        return np.sort(np.concatenate([self.parts.get(p, np.zeros(0, np.int64)) for p in ("validation", "test")]))

    def discounted(self, rewards_T: np.ndarray, discount: float, episodes: np.ndarray, horizon: int) -> np.ndarray:
        """(len(episodes),): returns of the log's episodes, of at most `horizon` steps."""
        assert self.episodes is not None
        ends = self.episodes.offsets
        kept = [rewards_T[ends[e] : ends[e + 1]][:horizon] for e in episodes.tolist()]
        return np.array([float(r @ discount ** np.arange(len(r))) for r in kept])


def look(run: RunData) -> Look:
    """Everything that can be had of the run."""
    found = Look(run)

    def attempt(what: str, how: Callable[[], None]) -> None:
        try:
            how()
        except (HoldfastError, OSError) as problem:
            found.missing[what] = str(problem)

    def read() -> None:
        recipe = read_recipe(run.folder / "recipe.toml")
        assert isinstance(recipe, ControlRecipe)
        found.recipe = recipe

    attempt("recipe", read)
    for place in sorted((run.folder / "evaluations").glob("*/metrics.json")):
        try:
            said = orjson.loads(place.read_bytes())
            played = np.array(said["played"]["returns"], np.float64) if "played" in said else None
            found.evaluated[place.parent.name] = {k: v for k, v in said.items() if k != "played" and "rows" in v}
            if played is not None and played.ndim == 2 and place.parent.name == "held-out":
                found.returns_KE = played
        except (OSError, ValueError, TypeError, KeyError) as problem:
            run.unreadable.append(f"evaluations/{place.parent.name}: {problem}")
    if found.recipe is None:
        return found
    attempt("log", lambda: _open(found))
    if (run.folder / "model" / "policy.json").is_file():

        def load() -> None:
            found.algorithm, found.scale, found.said = load_algorithm(run.folder)

        attempt("policy", load)
    else:
        found.missing["policy"] = "the run has not ended, so that no policy has been kept"
    if found.log is None:
        return found
    attempt("truth", lambda: _truth(found))
    if found.algorithm is None:
        return found
    with deterministic(found.recipe.run), torch.no_grad():
        if found.recipe.control.reference is not None:
            attempt("reference", lambda: _refer(found))
            if "reference" in found.missing:
                return found
        attempt("start", lambda: _starts(found))
        if found.algorithm.acts:
            if found.recipe.control.simulate is None:
                found.missing["play"] = "the recipe names no environment ([control] simulate)"
            else:
                attempt("play", lambda: _play(found))
                attempt("frames", lambda: _film(found))
            attempt("value", lambda: _values(found))
            attempt("near", lambda: _near(found))
        if found.algorithm.reads == "judgements":
            attempt("preferred", lambda: _preferred(found))
        attempt("agreement", lambda: _agreement(found))
    return found


def _open(found: Look) -> None:
    assert found.recipe is not None
    data = found.recipe.data
    log = open_log(data.dataset, check=False)
    expected = found.run.fact("dataset")
    if expected is not None and log.root != expected:
        found.missing["log"] = f"{data.dataset} has root {log.root} now; the run was made from {expected}"
        return
    _ = log.episodes, log.segments  # what is damaged is found here
    found.log = log
    found.parts = split_episodes(log, data.split.validation, data.split.test, data.split.seed)
    found.learned = "reward" in log.facts


def _refer(found: Look) -> None:
    assert (
        found.recipe is not None and found.algorithm is not None and found.scale is not None and found.log is not None
    )
    where = str(found.recipe.control.reference)
    _refer_to(found.algorithm, load_algorithm(where), found.scale, StepData(found.log.episodes, found.scale), where)


def _truth(found: Look) -> None:
    """The log's rewards, or where those were learnt the rewards of the log that it was relabelled from, if that lies
    beside it."""
    assert found.log is not None
    log = found.log
    if log.episodes.rewards is None:
        found.missing["truth"] = "the log has no rewards"
        return
    beside = {}
    if found.learned:
        for place in sorted(log.path.absolute().parent.iterdir()):
            if is_log(place):
                try:
                    beside[orjson.loads((place / "manifest.json").read_bytes()).get("root")] = place
                except (OSError, ValueError):
                    continue
    while "reward" in log.facts:
        if log.parent not in beside:
            found.missing["truth"] = (
                f"the log's rewards were learnt, and the log that they were put into ({str(log.parent)[:12]}) does not lie "
                "beside it"
            )
            return
        log = open_log(beside[log.parent], check=False)
        if log.episodes.rewards is None or log.episode_ids != found.log.episode_ids:
            found.missing["truth"] = f"{log.path} has no rewards of these episodes"
            return
    found.true_T = log.episodes.rewards
    found.truth = "the log's own rewards" if log is found.log else f"the rewards of {log.path.name}"


def _play(found: Look) -> None:
    assert found.recipe is not None and found.algorithm is not None and found.scale is not None
    asked = found.recipe.control
    found.played = rollouts(found.algorithm, found.scale, str(asked.simulate), asked.episodes, found.recipe.run.seed)
    found.returns_KE = np.array([[r.rewards.cumsum()[-1] for r in row] for row in found.played])


def _film(found: Look) -> None:
    """Frames of member 0's first episode, at even distances: it is played again with a picture asked for."""
    assert found.recipe is not None
    if found.played is None:
        return
    rollout = found.played[0][0]
    shown = np.unique(np.linspace(0, len(rollout.actions), FRAMES).round().astype(int))
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on standard output
    asked = {"SDL_VIDEODRIVER": "dummy"}  # a picture needs no screen
    if "DISPLAY" not in os.environ and "MUJOCO_GL" not in os.environ:
        asked["MUJOCO_GL"] = "egl"
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        env = make(str(found.recipe.control.simulate), "rgb_array")
        try:
            env.reset(seed=rollout.seed)
            for step in range(len(rollout.actions) + 1):
                if step in shown:
                    frame = np.asarray(env.render(), np.uint8)
                    if frame.ndim != 3 or frame.shape[2] != 3:
                        raise ValueError(f"a frame of shape {frame.shape}")
                    found.frames.append((f"step {step}", frame))
                if step < len(rollout.actions):
                    env.step(rollout.actions[step] if rollout.actions.ndim > 1 else int(rollout.actions[step]))
        finally:
            env.close()
    except Exception as problem:  # whatever a missing display or package makes of it
        found.frames = []
        found.missing["frames"] = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    finally:
        for name, stood in before.items():
            os.environ.pop(name)
            if stood is not None:
                os.environ[name] = stood


def _starts(found: Look) -> None:
    """As held-out figures have it: of the validation episodes, else of those trained on."""
    assert found.algorithm is not None and found.log is not None and found.scale is not None
    watched = found.parts["validation"] if len(found.parts["validation"]) else found.parts["train"]
    episodes = found.log.episodes
    obs = torch.from_numpy(found.scale.observations(episodes.observations[episodes.offsets[watched]]))
    K = found.algorithm.task.members
    value = found.algorithm.value(obs.expand(K, *obs.shape), Draw(found.algorithm.task.seeds, -1))
    found.start_K = None if value is None else value.double().mean(1).numpy()


def _values(found: Look) -> None:
    """The first members' values, by their best actions, from the episodes that nothing was learnt from."""
    assert found.algorithm is not None and found.log is not None and found.scale is not None
    log, algorithm = found.log, found.algorithm
    rewards = found.true_T if found.true_T is not None else log.episodes.rewards
    guesses = learned_rewards(log) if found.true_T is None else None
    if rewards is None:
        found.missing["value"] = "the log has no rewards"
        return
    numbers = found.held_out
    if len(numbers) < 5:
        found.missing["value"] = (
            f"{len(numbers)} episodes were held out: of fewer than 5 no value can be told ([data.split] validation, test)"
        )
        return
    lengths = np.diff(log.episodes.offsets)[numbers]
    numbers = numbers[: max(5, int((lengths.cumsum() <= VALUE_STEPS).sum()))]
    episodes, steps = take(log.episodes, numbers)
    found.valued = len(numbers)
    for k in range(min(VALUED, algorithm.task.members)):
        policy = Policy(alone(algorithm, k), found.scale, greedy=True)
        found.values.append(
            evaluate_policy(
                policy,
                episodes,
                rewards=guesses[:, steps] if guesses is not None else rewards[steps],
                discount=discount_of(algorithm, k),
                estimators=("wis", "fqe") if episodes.n_actions is not None else ("fqe",),
                resamples=RESAMPLES,
            )
        )


def discount_of(algorithm: Algorithm, member: int) -> float:
    many = algorithm.task.discount
    return many[member if len(many) > 1 else 0]


def best_actions(algorithm: Algorithm, scale: Scale, observations: np.ndarray) -> np.ndarray:
    """(K, N) int64, or (K, N, A) float32 in the network's range."""
    seen = torch.from_numpy(scale.observations(observations))
    seen = seen.expand(algorithm.task.members, *seen.shape)
    if algorithm.task.n_actions is not None:
        return algorithm.probs(seen).argmax(-1).numpy()
    return algorithm.mode(seen, Still(algorithm.task.seeds)).clamp(-1, 1).numpy()


def differences(actions_KN: np.ndarray, discrete: bool) -> float | None:
    """How often two members drawn at random choose different actions; of continuous ones how far from their mean they
    lie (one standard deviation, the mean over numbers), as a share of the range."""
    K = len(actions_KN)
    if K < 2:
        return None
    if not discrete:
        return float(actions_KN.std(0, ddof=1).mean() / 2)
    same = (actions_KN[:, None] == actions_KN[None]).mean(2)
    return float(1 - (same.sum() - K) / (K * (K - 1)))


def _near(found: Look) -> None:
    assert found.algorithm is not None and found.log is not None and found.scale is not None
    episodes, algorithm, scale = found.log.episodes, found.algorithm, found.scale
    base_E, asked_E = found.parts["train"], found.held_out
    if not len(asked_E):  # neighbours must be of other episodes
        base_E, asked_E = base_E[: -max(1, len(base_E) // 10)], base_E[-max(1, len(base_E) // 10) :]
    if not len(base_E):
        found.missing["near"] = "one episode alone has no neighbours"
        return
    rng = np.random.default_rng(derive(0, "report", "near"))

    def some(of: np.ndarray, most: int) -> np.ndarray:
        rows = np.concatenate([np.arange(episodes.offsets[e], episodes.offsets[e + 1]) for e in of])
        return np.sort(rng.choice(rows, most, replace=False)) if len(rows) > most else rows

    base, asked = some(base_E, BASE), some(asked_E, ASKED)
    seen = episodes.observations[base].astype(np.float64)
    spread = np.where(seen.std(0) < 1e-6, 1.0, seen.std(0))
    tree = cKDTree(seen / spread)
    k = min(NEIGHBOURS, len(base))
    discrete = episodes.n_actions is not None
    did = episodes.actions if discrete else scale.to_network(episodes.actions)

    def taken(observations: np.ndarray, actions: np.ndarray) -> float:
        """Share of these actions that one of the nearest logged steps took."""
        _, near = tree.query(observations / spread, k)
        there = did[base[near.reshape(len(observations), k)]]
        if discrete:
            return float((there == actions[:, None]).any(1).mean())
        return float((np.abs(there - actions[:, None]).max(2) <= 2 * NEAR).any(1).mean())

    obs = episodes.observations[asked].astype(np.float64)
    best = best_actions(algorithm, scale, episodes.observations[asked])
    policy_K = np.array([taken(obs, a) for a in best])
    apart = tree.query(obs / spread, 1)[0]

    centred = seen / spread - (seen / spread).mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    part = np.maximum(values[::-1][:2], 0) / max(float(values.sum()), 1e-12)
    names = [
        f"{w} axis: {100 * p:.0f} % of the spread, most of it observation {int(np.abs(a).argmax())}"
        for w, p, a in zip(("first", "second"), part, axes.T, strict=False)
    ]

    def onto(observations: np.ndarray) -> np.ndarray:
        xy = (observations / spread - (seen / spread).mean(0)) @ axes
        return xy if xy.shape[1] == 2 else np.concatenate([xy, np.zeros_like(xy)], axis=1)

    visited = met = None
    if found.played is not None:
        met = np.concatenate([r.observations for row in found.played for r in row]).astype(np.float64)
        if len(met) > BASE:
            met = met[np.sort(rng.choice(len(met), BASE, replace=False))]
        sample = met if len(met) <= ASKED else met[np.sort(rng.choice(len(met), ASKED, replace=False))]
        visited = float((tree.query(sample / spread, 1)[0] > np.quantile(apart, 0.95) + 1e-9).mean())
    found.near = Near(
        len(asked),
        taken(obs, did[asked]),
        policy_K,
        differences(best, discrete),
        visited,
        onto(seen),
        None if met is None else onto(met),
        (names[0], names[1] if len(names) > 1 else ""),
    )


def _preferred(found: Look) -> None:
    assert (
        found.algorithm is not None and found.log is not None and found.scale is not None and found.recipe is not None
    )
    log, algorithm = found.log, found.algorithm
    if log.segments is None:
        found.missing["preferred"] = "the log has no judgements"
        return
    data = PairData(StepData(log.episodes, found.scale), log.episodes, log.segments, True)
    K = algorithm.task.members
    for part in ("test", "validation", "train"):
        rows = log.segments.within(found.parts.get(part, np.zeros(0, np.int64)))[:JUDGED]
        if not len(rows):
            continue
        margins = []
        for i in range(0, len(rows), 256):
            margins.append(algorithm.margin(data.batch(torch.from_numpy(rows[i : i + 256]).expand(K, -1))).double())
        margin_KJ = torch.cat(margins, 1).numpy()
        label = log.segments.p[rows]
        decided = label != 0.5
        odds = not isinstance(algorithm, CPL)
        found.preferred[part] = Preferred(
            len(rows),
            (margin_KJ[:, decided] > 0) == (label[decided] > 0.5),
            expit(margin_KJ).mean(0) if odds else None,
            label,
        )


def _agreement(found: Look) -> None:
    """Of a reward model on held-out steps, or of the rewards that the log was relabelled with on all of them."""
    assert found.algorithm is not None and found.log is not None and found.scale is not None
    log = found.log
    episodes = log.episodes
    if found.true_T is None:
        return
    if isinstance(found.algorithm, SegmentReward):
        learned = predicted(found.algorithm, StepData(episodes, found.scale))
        numbers = found.held_out if len(found.held_out) else found.parts["train"]
        where = "held-out steps" if len(found.held_out) else "steps trained on"
    elif found.learned:
        ensemble = learned_rewards(log)
        assert episodes.rewards is not None
        learned = ensemble if ensemble is not None else episodes.rewards[None]
        numbers, where = np.arange(len(log)), "steps of the log"
    else:
        return
    steps = np.concatenate([np.arange(episodes.offsets[e], episodes.offsets[e + 1]) for e in numbers])
    true_T, learned_KT = found.true_T[steps], learned[:, steps]
    mean_T = learned_KT.mean(0) if isinstance(found.algorithm, SegmentReward) else episodes.rewards[steps]  # type: ignore[index]
    ends = np.concatenate([[0], np.diff(episodes.offsets)[numbers].cumsum()])[:-1]
    returns = [np.add.reduceat(r, ends) for r in (mean_T, true_T)]
    found.agreement = Agreement(
        learned_KT,
        true_T,
        np.array([correlation(r, true_T) for r in learned_KT]),
        correlation(mean_T, true_T),
        correlation(rankdata(mean_T), rankdata(true_T)),
        correlation(*returns) if len(numbers) > 2 else None,
        where,
        found.truth,
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; nan where one of them never changes."""
    if a.std() < 1e-12 * (1 + np.abs(a).max()) or b.std() < 1e-12 * (1 + np.abs(b).max()):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
