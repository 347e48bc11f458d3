"""Algorithms that are the same for discrete and continuous actions but for the actor: cloning, IQL."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.control.actors import Categorical, Critic, Gaussian, Task, actor
from holdfast.control.algorithms.base import Algorithm, Batch, Each, algorithm, mean
from holdfast.control.networks import MLP, Draw
from holdfast.losses.control import advantage_weight, expectile, td_error, td_target


class Actor(Algorithm):
    """An algorithm whose policy is a distribution: `self.actor`."""

    def __init__(self, task: Task):
        super().__init__(task)
        self.actor = actor(task)

    def log_prob(self, obs_KBd: Tensor, action: Tensor) -> Tensor:
        return self.actor.log_prob(obs_KBd, action)

    def probs(self, obs_KBd: Tensor) -> Tensor:
        assert isinstance(self.actor, Categorical)
        return self.actor.log_probs(obs_KBd).exp()

    def mode(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        assert isinstance(self.actor, Gaussian)
        return self.actor.mode(obs_KBd)

    def sample(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        assert isinstance(self.actor, Gaussian)
        return self.actor.sample(obs_KBd, draw.normal("act", obs_KBd.shape[1], self.task.action))


@algorithm("bc", ["discrete", "continuous"], "Pomerleau 1991")
class Cloning(Actor):
    """Behaviour cloning: the likelihood of the logged actions."""

    needs_reward = False

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        return {"clone": -mean(self.actor.log_prob(batch.obs, batch.action))}


@algorithm("iql", ["discrete", "continuous"], "2110.06169")
class IQL(Actor):
    """Implicit Q-learning: V an upper expectile of Q over logged actions, the policy by advantage-weighted cloning."""

    def __init__(
        self,
        task: Task,
        *,
        expectile: Each = 0.7,
        beta: Each = 3.0,
        most: float = 100.0,
        critics: int = 2,
        tau: float = 0.005,
    ):
        super().__init__(task)
        self.expectile, self.beta = self.each("expectile", expectile), self.each("beta", beta)
        self.most, self.tau = most, tau
        self.q = Critic(task, critics)
        self.v = MLP((task.observation, *task.hidden, 1), task.seeds, "v")

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        v_KB = self.v(batch.obs).squeeze(-1)
        with torch.no_grad():
            low_KB = self.q.of(batch.obs, batch.action, target=True).amin(1)
            next_KB = self.v(batch.following).squeeze(-1)
        y_KB = td_target(batch.reward, batch.terminated, next_KB, self.discount)
        q_KCB = self.q.of(batch.obs, batch.action)
        weight_KB = advantage_weight(low_KB - v_KB, self.beta, self.most)
        return {
            "td": mean(td_error(q_KCB, y_KB.unsqueeze(1))).sum(1),
            "value": mean(expectile(low_KB - v_KB, self.expectile)),
            "actor": -mean(weight_KB * self.actor.log_prob(batch.obs, batch.action)),
        }

    def after(self, update: int) -> None:
        self.q.follow(self.tau)

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.v(obs_KBd).squeeze(-1)
