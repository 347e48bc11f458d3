"""Playing policies in an environment, to measure them: nothing that is seen here is ever learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from holdfast.control.actors import Task
from holdfast.control.algorithms.base import Algorithm
from holdfast.control.environments import make, space_of
from holdfast.control.episodes import EpisodesError
from holdfast.control.networks import Still
from holdfast.control.steps import Scale
from holdfast.training.determinism import derive


def fits(task: Task, env_id: str, env: Any) -> None:
    """Raises `EpisodesError` where an environment's observations or actions are not those that the policy learnt on."""
    space = space_of(env)
    there = (space.observation[0], space.n_actions, 0 if space.low is None else len(space.low))
    if there != (task.observation, task.n_actions, task.action):

        def said(observation: int, n_actions: int | None, action: int) -> str:
            actions = f"{n_actions} actions" if n_actions is not None else f"actions of {action} numbers"
            return f"observations of {observation} numbers and {actions}"

        mine = said(task.observation, task.n_actions, task.action)
        raise EpisodesError(f"{env_id} has {said(*there)}; the policy learnt on {mine}")


@dataclass(frozen=True)
class Rollout:
    """One episode played."""

    observations: np.ndarray  # (T, d) float32: what was seen before each action
    actions: np.ndarray  # (T,) int64, or (T, A) float32
    rewards: np.ndarray  # (T,) float64
    seed: int  # of the environment's reset


def play(algorithm: Algorithm, scale: Scale, env_id: str, episodes: int, seed: int) -> np.ndarray:
    """(K, episodes) float64: undiscounted returns of each member's best actions. All members play the same starts.

    Raises `EpisodesError` where the environment cannot be made, or is another task than the policy's.
    """
    return np.array(
        [[played.rewards.cumsum()[-1] for played in row] for row in rollouts(algorithm, scale, env_id, episodes, seed)]
    )


@torch.no_grad()
def rollouts(algorithm: Algorithm, scale: Scale, env_id: str, episodes: int, seed: int) -> list[list[Rollout]]:
    """The episodes that `play` sums up: a list for each member."""
    K = algorithm.task.members
    envs = [[make(env_id) for _ in range(episodes)] for _ in range(K)]
    fits(algorithm.task, env_id, envs[0][0])
    starts = [derive(seed, "play", e) % 2**31 for e in range(episodes)]
    obs = np.stack([[env.reset(seed=s)[0] for env, s in zip(row, starts, strict=True)] for row in envs])
    obs = obs.astype(np.float32)
    seen_KE: list[list[list[np.ndarray]]] = [[[] for _ in range(episodes)] for _ in range(K)]
    done_KE: list[list[list[Any]]] = [[[] for _ in range(episodes)] for _ in range(K)]
    reward_KE: list[list[list[float]]] = [[[] for _ in range(episodes)] for _ in range(K)]
    live = np.ones((K, episodes), bool)
    still = Still(algorithm.task.seeds)
    while live.any():
        seen = torch.from_numpy(scale.observations(obs))
        if algorithm.task.n_actions is not None:
            actions = algorithm.probs(seen).argmax(-1).numpy()
        else:
            actions = scale.to_task(algorithm.mode(seen, still).numpy())
        for k, e in np.argwhere(live):
            action = int(actions[k, e]) if algorithm.task.n_actions is not None else actions[k, e]
            seen_KE[k][e].append(obs[k, e].copy())
            done_KE[k][e].append(action)
            obs[k, e], reward, terminated, truncated, _ = envs[k][e].step(action)
            reward_KE[k][e].append(float(reward))
            live[k, e] = not (terminated or truncated)
    for row in envs:
        for env in row:
            env.close()
    return [
        [
            Rollout(np.stack(seen_KE[k][e]), np.array(done_KE[k][e]), np.array(reward_KE[k][e]), starts[e])
            for e in range(episodes)
        ]
        for k in range(K)
    ]
