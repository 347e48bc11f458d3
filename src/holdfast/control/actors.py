"""Policies and critics that algorithms are made of, each for M members at once.

    K members, B rows, A actions or action dimensions, C critics, d observation numbers, S sampled actions

Continuous actions are in [-1, 1]; scaling to a task's own range is the policy folder's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot, softplus

from holdfast.control.networks import MLP, Draw


@dataclass(frozen=True)
class Task:
    """What an algorithm is built for. `n_actions` None: continuous, of `action` dimensions."""

    observation: int
    n_actions: int | None
    action: int
    seeds: tuple[int, ...]  # one per member
    hidden: tuple[int, ...] = (256, 256)
    discount: tuple[float, ...] = (0.99,)  # one per member, or one for all

    @property
    def members(self) -> int:
        return len(self.seeds)


class Categorical(nn.Module):
    """A distribution over discrete actions."""

    def __init__(self, task: Task, name: str = "actor"):
        super().__init__()
        assert task.n_actions is not None
        self.net = MLP((task.observation, *task.hidden, task.n_actions), task.seeds, name)

    def log_probs(self, obs_KBd: Tensor) -> Tensor:
        """(K, B, A)"""
        return log_softmax(self.net(obs_KBd), -1)

    def log_prob(self, obs_KBd: Tensor, action_KB: Tensor) -> Tensor:
        return self.log_probs(obs_KBd).gather(-1, action_KB.unsqueeze(-1)).squeeze(-1)


class Gaussian(nn.Module):
    """A normal distribution round tanh of the network, its spread one parameter per dimension. Not squashed, so the
    logged action at the edge of the range has a density."""

    def __init__(self, task: Task, name: str = "actor"):
        super().__init__()
        self.net = MLP((task.observation, *task.hidden, task.action), task.seeds, name)
        self.log_std = nn.Parameter(torch.full((task.members, 1, task.action), -0.5))

    def mode(self, obs_KBd: Tensor) -> Tensor:
        return self.net(obs_KBd).tanh()

    def log_prob(self, obs_KBd: Tensor, action_KBA: Tensor) -> Tensor:
        log_std = self.log_std.clamp(-5, 2)
        z = (action_KBA - self.mode(obs_KBd)) * (-log_std).exp()
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, obs_KBd: Tensor, noise_KBA: Tensor) -> Tensor:
        return self.mode(obs_KBd) + self.log_std.clamp(-5, 2).exp() * noise_KBA


class Squashed(nn.Module):
    """tanh of a normal distribution whose mean and spread the network gives: the actor of SAC, 1812.05905, appendix C."""

    def __init__(self, task: Task, name: str = "actor"):
        super().__init__()
        self.net = MLP((task.observation, *task.hidden, 2 * task.action), task.seeds, name)

    def _of(self, obs_KBd: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(obs_KBd).chunk(2, -1)
        return mean, log_std.clamp(-20, 2)

    def mode(self, obs_KBd: Tensor) -> Tensor:
        return self._of(obs_KBd)[0].tanh()

    def sample(self, obs_KBd: Tensor, noise_KBA: Tensor) -> Tensor:
        mean, log_std = self._of(obs_KBd)
        return (mean + log_std.exp() * noise_KBA).tanh()

    def draw(self, obs_KBd: Tensor, noise_KSBA: Tensor) -> tuple[Tensor, Tensor]:
        """S actions for each row and their log density: (K, S, B, A), (K, S, B)."""
        mean, log_std = (x.unsqueeze(1) for x in self._of(obs_KBd))
        u = mean + log_std.exp() * noise_KSBA
        normal = -0.5 * noise_KSBA**2 - log_std - 0.5 * math.log(2 * math.pi)
        return u.tanh(), (normal - _log_slope(u)).sum(-1)

    def log_prob(self, obs_KBd: Tensor, action_KBA: Tensor) -> Tensor:
        mean, log_std = self._of(obs_KBd)
        u = torch.atanh(action_KBA.clamp(-1 + 1e-6, 1 - 1e-6))
        z = (u - mean) * (-log_std).exp()
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi) - _log_slope(u)).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), without cancellation."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


def actor(task: Task) -> Categorical | Gaussian:
    return Gaussian(task) if task.n_actions is None else Categorical(task)


class Critic(nn.Module):
    """C functions Q(s, a) per member and their slow copies."""

    def __init__(self, task: Task, critics: int, name: str = "q"):
        super().__init__()
        self.discrete, self.critics, self.members = task.n_actions is not None, critics, task.members
        # A critic has a seed of its own: member k's c-th is the same whatever the other members are.
        seeds = [seed + (c << 32) for seed in task.seeds for c in range(critics)]
        sizes = (
            (task.observation, *task.hidden, task.n_actions)
            if task.n_actions is not None
            else (task.observation + task.action, *task.hidden, 1)
        )
        self.net = MLP(sizes, seeds, name)
        self.target = self.net.copy()

    def all(self, obs_KBd: Tensor, frozen: bool = False, target: bool = False) -> Tensor:
        """(K, C, B, A): every discrete action's value."""
        net = self.target if target else self.net
        out = net(obs_KBd, frozen)
        return out.view(self.members, self.critics, *out.shape[1:])

    def of(self, obs_KBd: Tensor, action: Tensor, frozen: bool = False, target: bool = False) -> Tensor:
        """(K, C, B): the value of one action for each row; action is (K, B) or (K, B, A)."""
        if self.discrete:
            q = self.all(obs_KBd, frozen, target)
            index = action[:, None, :, None].expand(-1, self.critics, -1, 1)
            return q.gather(-1, index).squeeze(-1)
        net = self.target if target else self.net
        out = net(torch.cat([obs_KBd, action], -1), frozen)
        return out.view(self.members, self.critics, -1)

    def of_several(self, obs_KBd: Tensor, action_KSBA: Tensor, frozen: bool = False, target: bool = False) -> Tensor:
        """(K, C, S, B): S continuous actions for each row."""
        K, S, B, A = action_KSBA.shape
        rows = obs_KBd.unsqueeze(1).expand(-1, S, -1, -1).reshape(K, S * B, -1)
        return self.of(rows, action_KSBA.reshape(K, S * B, A), frozen, target).view(K, self.critics, S, B)

    def follow(self, tau: float) -> None:
        self.target.follow(self.net, tau)


def features(obs_KBd: Tensor, action: Tensor, n_actions: int | None) -> Tensor:
    """Observation and action side by side, a discrete action as one of n."""
    if n_actions is not None:
        action = one_hot(action, n_actions).to(obs_KBd.dtype)
    return torch.cat([obs_KBd, action], -1)


__all__ = ["Categorical", "Critic", "Draw", "Gaussian", "Squashed", "Task", "actor", "features"]
