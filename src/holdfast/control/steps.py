"""What algorithms read of a log: its steps as tensors, in the scale that networks see, and judgements over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.control.algorithms.base import Batch, Pairs
from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.segments import Segments
from holdfast.errors import DataError


@dataclass(frozen=True)
class Scale:
    """How a task's numbers and a network's stand to each other: kept with the policy.

    Observations: (o - mean) / spread. Continuous actions: from [low, high] to [-1, 1].
    """

    mean: np.ndarray  # (d,) float32
    spread: np.ndarray  # (d,) float32
    low: np.ndarray | None  # (A,) float32
    high: np.ndarray | None

    @classmethod
    def of(cls, episodes: Episodes, rows: np.ndarray, standardise: bool) -> Scale:
        """From the steps `rows` alone. A number that never changes has spread 1. The actions' range is the task's where
        the log says it (facts `action_low`, `action_high`), else what was logged."""
        seen = episodes.observations[rows].astype(np.float64)
        d = seen.shape[1]
        mean, spread = (seen.mean(0), seen.std(0)) if standardise else (np.zeros(d), np.ones(d))
        spread = np.where(spread < 1e-6, 1.0, spread)
        low = high = None
        if episodes.n_actions is None:
            logged = episodes.actions[rows]
            low, high = (
                np.broadcast_to(np.asarray(episodes.facts.get(name, extreme), np.float32), logged.shape[1:]).copy()
                for name, extreme in (("action_low", logged.min(0)), ("action_high", logged.max(0)))
            )
            if not (high > low).all():
                raise EpisodesError(
                    f"action dimension {int(np.argmin(high - low))} never changes: leave it out, or say the task's range "
                    "in the log's facts action_low and action_high"
                )
        return cls(mean.astype(np.float32), spread.astype(np.float32), low, high)

    def observations(self, raw: np.ndarray) -> np.ndarray:
        return ((raw - self.mean) / self.spread).astype(np.float32)

    def to_network(self, action: np.ndarray) -> np.ndarray:
        assert self.low is not None and self.high is not None
        return (2 * (action - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def to_task(self, action: np.ndarray) -> np.ndarray:
        """Clipped to the task's range."""
        assert self.low is not None and self.high is not None
        return (self.low + (np.clip(action, -1, 1) + 1) / 2 * (self.high - self.low)).astype(np.float32)

    def log_slope(self) -> float:
        """log of the volume that the task's actions take per volume of the network's."""
        assert self.low is not None and self.high is not None
        return float(np.log((self.high - self.low) / 2).sum())

    def said(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {k: None if v is None else v.tolist() for k, v in vars(self).items()}

    @classmethod
    def read(cls, said: dict[str, Any]) -> Scale:
        mean, spread, low, high = (
            None if said[k] is None else np.asarray(said[k], np.float32) for k in ("mean", "spread", "low", "high")
        )
        assert mean is not None and spread is not None
        return cls(mean, spread, low, high)


class StepData:
    """All steps of a log as tensors; a batch is a look-up."""

    def __init__(self, episodes: Episodes, scale: Scale, reward: np.ndarray | None = None):
        if episodes.observations.ndim != 2:
            raise EpisodesError(
                f"observations have shape {episodes.observations.shape[1:]}; algorithms here read vectors: flatten them"
            )
        steps = len(episodes.observations)
        obs = scale.observations(episodes.observations)
        following = np.empty_like(obs)
        following[:-1] = obs[1:]
        ends = episodes.offsets[1:] - 1
        following[ends] = scale.observations(episodes.last)
        terminated = np.zeros(steps, np.float32)
        terminated[ends] = episodes.terminated
        rewards = reward if reward is not None else episodes.rewards
        self.n_actions = episodes.n_actions
        self.obs, self.following, self.terminated = (torch.from_numpy(x) for x in (obs, following, terminated))
        self.reward = torch.from_numpy((rewards if rewards is not None else np.zeros(steps)).astype(np.float32))
        self.action = torch.from_numpy(
            episodes.actions if self.n_actions is not None else scale.to_network(episodes.actions)
        )

    def batch(self, index_KB: Tensor) -> Batch:
        flat = index_KB.reshape(-1)
        columns = (self.obs, self.action, self.reward, self.following, self.terminated)
        looked_up = [x.index_select(0, flat).view(*index_KB.shape, *x.shape[1:]) for x in columns]
        return Batch._make([*looked_up, index_KB, self.following])


class PairData:
    """Judgements of segments as look-ups into the steps."""

    def __init__(self, steps: StepData, episodes: Episodes, segments: Segments, unequal: bool):
        uneven = np.flatnonzero(segments.length[:, 0] != segments.length[:, 1])
        if len(uneven) and not unequal:
            j = int(uneven[0])
            raise DataError(
                f"{len(uneven)} judgements compare segments of unequal length (the first, {segments.ids[j][:12]}: "
                f"{segments.length[j, 0]} and {segments.length[j, 1]} steps): a sum of rewards then prefers the longer. Label equal "
                "ones, or say [control] unequal_lengths = true"
            )
        first = episodes.offsets[segments.episode] + segments.start  # (J, 2)
        longest = int(segments.length.max())
        t = np.arange(longest)
        mask = t < segments.length[:, :, None]
        self.steps = steps
        self.index = torch.from_numpy(first[:, :, None] + np.where(mask, t, 0))  # (J, 2, T)
        self.mask = torch.from_numpy(mask.astype(np.float32))
        self.p = torch.from_numpy(segments.p.astype(np.float32))

    def batch(self, index_KB: Tensor) -> Pairs:
        K = len(index_KB)
        return Pairs(self.steps.batch(self.index[index_KB].view(K, -1)), self.mask[index_KB], self.p[index_KB])
