"""Judgements of segments by a simulated annotator who knows a reward: for study, where the truth has to be known.

A pair's first segment has the return G_1, its second G_2, each sum_k g^k r_k from the segment's own first step. With
z = (G_1 - G_2) / temperature the annotator prefers the first with probability sigma(z - ln nu), the second with
sigma(-z - ln nu), and calls the rest a tie (Rao and Kupper 1967). nu = 1 is Bradley and Terry, without ties.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Literal

import numpy as np
from scipy.special import expit

from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.segments import Segments
from holdfast.control.store import Log

Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]
_CANDIDATES = 8  # pairs of which draw = "apart" keeps the one whose segments differ most


def acrobot_height(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """How high the tip hangs: -cos(a) - cos(a + b), from -2 to 2; above 1 the task is done."""
    cos_a, sin_a, cos_b, sin_b = observations.T[:4].astype(np.float64)
    return -cos_a - (cos_a * cos_b - sin_a * sin_b)


def mountaincar_energy(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The car's height and speed as one: sin(3 x) 0.0025 / 3 + v^2 / 2, in units of the height of the hill's side."""
    x, v = observations.T.astype(np.float64)
    return np.sin(3 * x) + v**2 / 2 * 3 / 0.0025


REWARDS: dict[str, Reward] = {"acrobot-height": acrobot_height, "mountaincar-energy": mountaincar_energy}


def label(
    log: Log | Episodes,
    *,
    queries: int,
    length: int | tuple[int, int],
    seed: int = 0,
    temperature: float = 1.0,
    ties: float = 1.0,
    discount: float = 1.0,
    reward: np.ndarray | Reward | str | None = None,
    draw: Literal["random", "apart"] = "random",
    short: Literal["refuse", "drop", "whole"] = "refuse",
    mixed: bool = False,
    annotator: str = "simulated",
) -> Segments:
    """`queries` judgements over pairs of segments. The same call gives the same; fewer queries are the first of more.

    length: steps of every segment. A range (least, most) draws each segment's own: mixed lengths, which `mixed` must ask
        for, because a sum then prefers the longer one.
    temperature: of the annotator, in units of a segment's return; 0 judges without fault, and calls equal returns a tie.
    ties: Rao and Kupper's nu, 1 or above; of even pairs (nu - 1) / (nu + 1) are called a tie.
    reward: what the annotator knows: (T,) numbers, a function of (observations, actions), or a name of `REWARDS`; by
        default the log's own rewards.
    draw: "random" draws every place where a segment can begin alike; "apart" keeps of 8 such pairs the one whose segments
        differ most in their mean observation and action. Neither asks a model or the reward.
    short: what becomes of episodes of fewer steps than the length: "refuse" them, "drop" them from the drawing, or take
        them "whole", which makes mixed lengths.

    Raises `EpisodesError` where nothing can be learned: a reward that is the same at every step, or pairs of which none
    differs.
    """
    episodes = log.episodes if isinstance(log, Log) else log
    ids = log.episode_ids if isinstance(log, Log) else [log.digest(e) for e in range(len(log))]
    low, high = length if isinstance(length, tuple) else (length, length)
    for name, fine, value, wanted in (
        ("queries", queries >= 1, queries, "1 or more"),
        ("length", 1 <= low <= high, length, "a number of steps, or the least and the most"),
        ("temperature", 0 <= temperature < np.inf, temperature, "0 or above"),
        ("ties", 1 <= ties < np.inf, ties, "1 (none) or above"),
        ("discount", 0 < discount <= 1, discount, "above 0, to 1"),
        ("draw", draw in ("random", "apart"), draw, "'random' or 'apart'"),
        ("short", short in ("refuse", "drop", "whole"), short, "'refuse', 'drop' or 'whole'"),
    ):
        if not fine:
            raise EpisodesError(f"label: {name} = {value!r} should be {wanted}")
    if temperature == 0 and ties > 1:
        raise EpisodesError(
            f"label: ties = {ties} with temperature 0: who judges without fault ties equal returns only"
        )
    if (low < high or short == "whole") and not mixed:
        asked = f"length = {length}" if low < high else "short = 'whole'"
        raise EpisodesError(f"label: {asked} makes segments of mixed lengths; ask for them by mixed = True")

    if low < high and short == "whole":
        raise EpisodesError(
            f"label: length = {length} with short = 'whole': give one length, or drop the short episodes"
        )

    # The reward that the annotator knows.
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise EpisodesError(f"label: reward = {reward!r} is not known; known are {', '.join(REWARDS)}")
        known, said = REWARDS[reward](episodes.observations, episodes.actions), reward
    elif callable(reward):
        known, said = reward(episodes.observations, episodes.actions), getattr(reward, "__name__", "a function")
    elif reward is not None:
        known, said = reward, "given"
    elif episodes.rewards is not None:
        known, said = episodes.rewards, "the log's"
    else:
        raise EpisodesError("label: the log has no rewards; give the reward that the annotator knows")
    known = np.asarray(known, np.float64)
    if known.shape != (len(episodes.observations),) or not np.isfinite(known).all():
        raise EpisodesError(f"label: the reward has shape {known.shape}; give {len(episodes.observations)} numbers")
    if known.min() == known.max():
        raise EpisodesError(
            f"label: the reward is {known[0]:g} at every step: a constant reward teaches nothing about segments, for "
            "equal lengths all have the same return. Choose another task, or a reward that differs between steps"
        )

    # Where segments can begin.
    steps = np.diff(episodes.offsets)
    brief = int((steps < high).sum())
    if brief and short == "refuse":
        raise EpisodesError(
            f"label: {brief} of {len(steps)} episodes have fewer than {high} steps (the shortest {steps.min()}); give a "
            "smaller length, or say short = 'drop' (they are not drawn from) or 'whole' (mixed lengths)"
        )
    sides = 2 * (_CANDIDATES if draw == "apart" else 1)
    lengths = np.full((queries, sides), low)
    if low < high:
        lengths = low + (_stream(seed, "length").random((queries, sides)) * (high - low + 1)).astype(np.int64)
    place = _stream(seed, "place").random((queries, sides))
    episode, start = np.zeros((queries, sides), np.int64), np.zeros((queries, sides), np.int64)
    for wanted in np.unique(lengths):
        room = np.maximum(steps - wanted + 1, int(short == "whole"))
        upto = np.cumsum(room)
        if upto[-1] < 2:
            raise EpisodesError(f"label: fewer than two segments of {wanted} steps can be drawn from these episodes")
        at = np.floor(place * upto[-1]).astype(np.int64)
        # the second of a pair is drawn from what the first leaves, so that nothing is compared with itself
        taken = at[:, 0::2]
        other = np.floor(place[:, 1::2] * (upto[-1] - 1)).astype(np.int64)
        alike = lengths[:, 0::2] == lengths[:, 1::2]
        at[:, 1::2] = np.where(alike, other + (other >= taken), at[:, 1::2])
        mine = lengths == wanted
        found = np.searchsorted(upto, at, "right")
        episode[mine] = found[mine]
        start[mine] = (at - (upto - room)[found])[mine]
    taken_length = np.minimum(lengths, steps[episode])
    first = episodes.offsets[episode] + start
    if draw == "apart":
        done = episodes.actions if episodes.n_actions is None else np.eye(episodes.n_actions)[episodes.actions]
        seen = np.concatenate([episodes.observations.reshape(len(known), -1), done], axis=1).astype(np.float64)
        seen = (seen - seen.mean(axis=0)) / np.maximum(seen.std(axis=0), 1e-9)
        sums = np.concatenate([np.zeros((1, seen.shape[1])), np.cumsum(seen, axis=0)])
        mean = (sums[first + taken_length] - sums[first]) / taken_length[..., None]
        pick = ((mean[:, 0::2] - mean[:, 1::2]) ** 2).sum(axis=2).argmax(axis=1)
        chosen = 2 * pick[:, None] + [0, 1]
        episode, start, taken_length, first = (
            np.take_along_axis(a, chosen, axis=1) for a in (episode, start, taken_length, first)
        )

    # What the annotator says.
    k = np.arange(int(taken_length.max()))
    inside = k < taken_length[..., None]
    rewards = np.where(inside, known[np.minimum(first[..., None] + k, len(known) - 1)], 0.0)
    returns = rewards @ discount**k
    gap = returns[:, 0] - returns[:, 1]
    gap[abs(gap) <= 1e-9 * (abs(rewards) @ discount**k).max(axis=1)] = 0.0  # apart by rounding alone
    if not gap.any():
        raise EpisodesError(
            f"label: in each of the {queries} pairs both segments have the same return: nothing can be learned from "
            f"segments of {high} steps. Choose longer segments, another task, or a reward that differs more often"
        )
    if temperature:
        won, lost = expit(gap / temperature - np.log(ties)), expit(-gap / temperature - np.log(ties))
        u = _stream(seed, "judge").random(queries)
        p = np.where(u < won, 1.0, np.where(u < won + lost, 0.0, 0.5))
        if ties == 1:
            p[p == 0.5] = 0.0  # won + lost is 1 but for rounding
    else:
        p = (np.sign(gap) + 1) / 2

    decided = (p != 0.5) & (gap != 0)
    facts = {
        "annotator": annotator,
        "reward": said,
        "queries": queries,
        "length": list(length) if isinstance(length, tuple) else length,
        "seed": seed,
        "temperature": temperature,
        "ties": ties,
        "discount": discount,
        "draw": draw,
        "short": {"episodes": brief, "handled": short},
        "returns": {"mean": float(returns.mean()), "sd": float(returns.std())},
        "equal": float((gap == 0).mean()),
        "tied": float((p == 0.5).mean()),
        "agrees": float(((p > 0.5) == (gap > 0))[decided].mean()) if decided.any() else None,
    }
    return Segments.of(ids, episode, start, taken_length, p, [annotator] * queries, facts)


def _stream(seed: int, purpose: str) -> np.random.Generator:
    """Numbers of one purpose. Drawn query by query, so that fewer queries are the first of more."""
    digest = sha256(f"holdfast/label/1 {seed} {purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
