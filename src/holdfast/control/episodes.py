"""Episodes in columns, and what a policy over them is.

T steps in all, E episodes; episode e is the steps `offsets[e]:offsets[e + 1]`. An episode *terminated* where the
environment ended it, and was *truncated* where a limit cut it: only the first has no value beyond its end, so the true
last observation of every episode is kept apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from holdfast.errors import HoldfastError


class EpisodesError(HoldfastError):
    """Columns that are not episodes: names the column, what was found and what is wanted."""


@dataclass(frozen=True)
class Episodes:
    """All steps of all episodes, in columns. Raises `EpisodesError` where the columns do not fit one another."""

    observations: np.ndarray  # (T, *obs) float32
    actions: np.ndarray  # (T,) int64 discrete, or (T, A) float32 continuous
    rewards: np.ndarray | None  # (T,) float64
    offsets: np.ndarray  # (E + 1,) int64
    last: np.ndarray  # (E, *obs) float32: the true last observation of each episode
    terminated: np.ndarray  # (E,) bool: ended by the environment
    truncated: np.ndarray  # (E,) bool: cut by a limit (bootstraps)
    propensities: np.ndarray | None = None  # (T,) float64: behaviour's probability (density) of the logged action
    action_probs: np.ndarray | None = None  # (T, n) float64, where the whole distribution was logged
    behaviour: np.ndarray | None = None  # (E,) int32: which behaviour policy
    n_actions: int | None = None  # discrete; None = continuous
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps, n, obs = len(self.observations), len(self.terminated), self.observations.shape[1:]
        actions = ("int64", (steps,)) if self.n_actions is not None else ("float32", (steps, *self.actions.shape[1:2]))
        if self.n_actions is None and self.actions.ndim != 2:
            raise EpisodesError(f"actions have shape {self.actions.shape}: continuous ones are (steps, dimensions)")
        wanted = {
            "observations": ("float32", (steps, *obs)),
            "actions": actions,
            "rewards": ("float64", (steps,)),
            "offsets": ("int64", (n + 1,)),
            "last": ("float32", (n, *obs)),
            "terminated": ("bool", (n,)),
            "truncated": ("bool", (n,)),
            "propensities": ("float64", (steps,)),
            "action_probs": ("float64", (steps, self.n_actions or 0)),
            "behaviour": ("int32", (n,)),
        }
        for name, (dtype, shape) in wanted.items():
            column = getattr(self, name)
            if column is None and name in ("rewards", "propensities", "action_probs", "behaviour"):
                continue
            if str(column.dtype) != dtype or column.shape != shape:
                raise EpisodesError(f"{name} is {column.dtype} {column.shape}; give {dtype} {shape}")
            if column.dtype.kind == "f" and not np.isfinite(column).all():
                raise EpisodesError(f"{name} holds a number that is not finite; drop or mend its episode")
        if self.offsets[0] != 0 or self.offsets[-1] != steps or (np.diff(self.offsets) < 1).any():
            raise EpisodesError(f"offsets must rise from 0 to {steps} by at least one step per episode")
        if (self.terminated & self.truncated).any():
            first = int(np.flatnonzero(self.terminated & self.truncated)[0])
            raise EpisodesError(
                f"episode {first} is both terminated and truncated; an ended episode is terminated only"
            )
        if (
            self.n_actions is not None
            and steps
            and not (0 <= self.actions.min() <= self.actions.max() < self.n_actions)
        ):
            raise EpisodesError(f"actions reach outside 0..{self.n_actions - 1}; set n_actions to what the task has")
        if self.propensities is not None and (self.propensities <= 0).any():
            raise EpisodesError("propensities must be above 0: a logged action had some probability")

    def __len__(self) -> int:
        return len(self.terminated)

    def digest(self, episode: int) -> str:
        """The identity of one episode: SHA-256 over its observations, actions and how it ended.

        Rewards are left out, so that a relabelled episode keeps its identity and the judgements of its segments.
        """
        span = slice(int(self.offsets[episode]), int(self.offsets[episode + 1]))
        sha = hashlib.sha256(f"holdfast episode 1 {self.n_actions}".encode())
        for column in (self.observations[span], self.actions[span], self.last[episode]):
            little = np.ascontiguousarray(column, column.dtype.newbyteorder("<"))
            sha.update(f"{little.dtype.str}{little.shape}".encode())
            sha.update(little.tobytes())
        sha.update(bytes([bool(self.terminated[episode]), bool(self.truncated[episode])]))
        return sha.hexdigest()


class DiscretePolicy(Protocol):
    def probs(self, observations: np.ndarray) -> np.ndarray:
        """(N, *obs) -> (N, n) float64, each row a distribution."""
        ...

    def __call__(self, observation: np.ndarray) -> Any:
        """The action for one observation, or the actions for several."""
        ...


class ContinuousPolicy(Protocol):
    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        """(N, *obs) -> (N, A): one draw for each, a pure function of the seed."""
        ...

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """(N, *obs), (N, A) -> (N,) log density."""
        ...

    def __call__(self, observation: np.ndarray) -> Any: ...
