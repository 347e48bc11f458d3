"""Playing policies in an environment, to measure them: nothing that is seen here is ever learnt from."""

from __future__ import annotations

import numpy as np
import torch

from holdfast.control.algorithms.base import Algorithm
from holdfast.control.environments import make
from holdfast.control.networks import Still
from holdfast.control.steps import Scale
from holdfast.training.determinism import derive


@torch.no_grad()
def play(algorithm: Algorithm, scale: Scale, env_id: str, episodes: int, seed: int) -> np.ndarray:
    """(K, episodes) float64: undiscounted returns of each member's best actions. All members play the same starts."""
    K = algorithm.task.members
    envs = [[make(env_id) for _ in range(episodes)] for _ in range(K)]
    starts = [derive(seed, "play", e) % 2**31 for e in range(episodes)]
    obs = np.stack([[env.reset(seed=s)[0] for env, s in zip(row, starts, strict=True)] for row in envs])
    obs = obs.astype(np.float32)
    returns, live = np.zeros((K, episodes)), np.ones((K, episodes), bool)
    still = Still(algorithm.task.seeds)
    while live.any():
        seen = torch.from_numpy(scale.observations(obs))
        if algorithm.task.n_actions is not None:
            actions = algorithm.probs(seen).argmax(-1).numpy()
        else:
            actions = scale.to_task(algorithm.mode(seen, still).numpy())
        for k, e in np.argwhere(live):
            action = int(actions[k, e]) if algorithm.task.n_actions is not None else actions[k, e]
            obs[k, e], reward, terminated, truncated, _ = envs[k][e].step(action)
            returns[k, e] += float(reward)
            live[k, e] = not (terminated or truncated)
    for row in envs:
        for env in row:
            env.close()
    return returns
