"""`holdfast ope`: policies and a log from their folders, and the episodes that the policies may be judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.control.episodes import Episodes
from holdfast.control.ope.evaluate import learned_rewards
from holdfast.control.ope.selection import Selection, select
from holdfast.control.ope.weights import OpeError, clone
from holdfast.errors import HoldfastError


def judge(
    policies: Sequence[str],
    on: str | Path,
    *,
    everything: bool = False,
    member: int = 0,
    greedy: bool = False,
    rewards: Path | None = None,
    **asked: Any,
) -> tuple[Selection, list[str]]:
    """Every policy's value on the same episodes of the log at `on`: those that none of them learnt from, or, asked for,
    `everything`. `rewards`: a .npy of (T,) or (K, T) in place of the log's. `asked` goes to `select`. And notes."""
    from holdfast.control.store import open_log

    log = open_log(on)
    mine, notes = np.arange(len(log)), []
    for source in policies:
        fresh, note = unlearnt(source, log)
        notes += [note] if note else []
        if everything and len(fresh) < len(log):
            notes.append(f"{source} learnt from {len(log) - len(fresh)} of these episodes: its values are too good")
        elif len(fresh) < len(log):
            notes.append(f"{len(log) - len(fresh)} of {len(log)} episodes left out: {source} learnt from them")
            mine = np.intersect1d(mine, fresh)
    if len(mine) < 2:
        raise OpeError(f"the policies learnt from all but {len(mine)} episodes of {on}: give another log, or --all")
    reward_KT = learned_rewards(log)
    if rewards is not None:
        try:
            reward_KT = np.load(rewards, allow_pickle=False)
        except (OSError, ValueError) as problem:
            raise OpeError(f"{rewards} is no array of rewards: {problem}") from None
    elif reward_KT is not None:
        notes.append(f"rewards are the mean of the {len(reward_KT)} learned guesses that the log was relabelled with")
    if reward_KT is not None and reward_KT.shape[-1:] != log.episodes.actions.shape[:1]:
        raise OpeError(
            f"rewards are {reward_KT.shape}; give one for each of the log's {len(log.episodes.actions)} steps"
        )
    episodes, steps = take(log.episodes, mine)
    made = {source: read_policy(source, episodes, member, greedy) for source in policies}
    chosen = None if reward_KT is None else reward_KT[..., steps]
    return select(made, episodes, rewards=chosen, **asked), notes


class TableFile:
    """A policy as a table: .npz with `observations` (M, *obs) and `probs` (M, n), no pickle. It knows no others."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as held:
                observations, probs = (
                    np.asarray(held["observations"], np.float32),
                    np.asarray(held["probs"], np.float64),
                )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise OpeError(
                f"{path} is no table of a policy: {problem}; give arrays `observations` and `probs`"
            ) from None
        if probs.ndim != 2 or len(probs) != len(observations):
            raise OpeError(f"{path}: observations {observations.shape} and probs {probs.shape} do not go together")
        self.path, self.probs_MA = path, probs
        self.row = {o.tobytes(): i for i, o in enumerate(_flat(observations))}

    def probs(self, observations: np.ndarray) -> np.ndarray:
        try:
            return self.probs_MA[[self.row[o.tobytes()] for o in _flat(observations)]]
        except KeyError:
            missing = next(o for o in _flat(observations) if o.tobytes() not in self.row)
            raise OpeError(f"{self.path} has no row for the logged observation {missing[:8].tolist()}") from None

    def __call__(self, observation: np.ndarray) -> int:
        return int(self.probs(np.asarray(observation)[None])[0].argmax())


def _flat(observations: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(observations.reshape(len(observations), -1), np.float32) + np.float32(0)  # -0 is 0


def read_policy(source: str, episodes: Episodes, member: int = 0, greedy: bool = False) -> Any:
    """A run or policy folder, a .npz table, or "behaviour": the clone of these episodes."""
    if source == "behaviour":
        return clone(episodes)
    path = Path(source)
    if path.suffix == ".npz":
        return TableFile(path)
    from holdfast.control.policy import load_policy

    return load_policy(path, member, greedy)


def take(episodes: Episodes, numbers: np.ndarray) -> tuple[Episodes, np.ndarray]:
    """These episodes alone, and which steps they are."""
    steps = np.concatenate([np.arange(episodes.offsets[e], episodes.offsets[e + 1]) for e in numbers])

    def some(column: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
        return None if column is None else column[rows]

    taken = replace(
        episodes,
        observations=episodes.observations[steps],
        actions=episodes.actions[steps],
        rewards=some(episodes.rewards, steps),
        offsets=np.concatenate([[0], np.cumsum(np.diff(episodes.offsets)[numbers])]).astype(np.int64),
        last=episodes.last[numbers],
        terminated=episodes.terminated[numbers],
        truncated=episodes.truncated[numbers],
        propensities=some(episodes.propensities, steps),
        action_probs=some(episodes.action_probs, steps),
        behaviour=some(episodes.behaviour, numbers),
    )
    return taken, steps


def unlearnt(source: str, log: Any) -> tuple[np.ndarray, str | None]:
    """The numbers of the log's episodes that the run at `source` did not learn from, and a note where that is not sure.

    Told by the episodes' digests, so that a relabelled or a longer log is seen through.
    """
    everything = np.arange(len(log))
    recipe_file = Path(source) / "recipe.toml"
    if source == "behaviour" or source.endswith(".npz"):
        return everything, None
    if not recipe_file.is_file():
        return everything, f"{source} says not what it learnt from: if from these episodes, its values are too good"
    from holdfast.control.store import open_log, split_episodes
    from holdfast.recipe import ControlRecipe, read_recipe

    try:
        recipe = read_recipe(recipe_file)
        assert isinstance(recipe, ControlRecipe)
        learnt, parts = open_log(recipe.data.dataset, check=False), recipe.data.split
        train = split_episodes(learnt, parts.validation, parts.test, parts.seed)["train"]
    except (HoldfastError, OSError, AssertionError) as problem:
        return (
            everything,
            f"what {source} learnt from cannot be read ({problem}): if these episodes, its values are too good",
        )
    seen = {learnt.episode_ids[e] for e in train.tolist()}
    return np.array([e for e, i in enumerate(log.episode_ids) if i not in seen], np.int64), None
