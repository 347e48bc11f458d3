"""Algorithms that learn from judgements of segments: a reward (Bradley-Terry), or a policy without one (CPL, IPL)."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.control.actors import Critic, Task, features
from holdfast.control.algorithms.base import Algorithm, Each, Pairs, algorithm, mean
from holdfast.control.algorithms.shared import Actor
from holdfast.control.networks import MLP, Draw
from holdfast.losses.control import advantage_weight, cpl, expectile, segment_bradley_terry


@algorithm("segment_reward", ["discrete", "continuous"], "1706.03741, eq. 1")
class SegmentReward(Algorithm):
    """r(s, a) by Bradley-Terry on discounted sums over segments. Members are an ensemble: their spread is uncertainty.

    The last layer has no bias: equal lengths cannot tell a constant, and a gradient of rounding errors would move it.
    """

    reads = "judgements"
    needs_reward = False
    acts = False

    def __init__(self, task: Task, *, penalty: float = 0.0):
        super().__init__(task)
        self.penalty = penalty
        self.net = MLP(
            (task.observation + (task.n_actions or task.action), *task.hidden, 1), task.seeds, "reward", shift=False
        )

    def reward(self, obs_KBd: Tensor, action: Tensor) -> Tensor:
        """(K, B)"""
        return self.net(features(obs_KBd, action, self.task.n_actions)).squeeze(-1)

    def margin(self, pairs: Pairs) -> Tensor:
        """(K, B): the first segment's return less the second's."""
        first, second = pairs.returns(self.reward(pairs.steps.obs, pairs.steps.action), self.discount)
        return first - second

    def losses(self, pairs: Pairs, draw: Draw) -> dict[str, Tensor]:
        r_KN = self.reward(pairs.steps.obs, pairs.steps.action)
        first, second = pairs.returns(r_KN, self.discount)
        said = {"preference": mean(segment_bradley_terry(first, second, pairs.p))}
        if self.penalty:
            own = pairs.mask.flatten(1)
            said["penalty"] = self.penalty * (r_KN**2 * own).sum(-1) / own.sum(-1)
        return said


@algorithm("cpl", ["discrete", "continuous"], "2310.13639")
class CPL(Actor):
    """Contrastive preference learning: the judgements' likelihood, advantages being alpha log pi.

    lam: below 1 it is conservative. With [control] reference the log-ratio to that policy stands for log pi, and lam = 1
    makes it DPO on segments. clone: weight of the likelihood of all actions in the segments.
    """

    reads = "judgements"
    needs_reward = False
    refers = True

    def __init__(self, task: Task, *, alpha: Each = 0.1, lam: Each = 0.5, clone: float = 0.0):
        super().__init__(task)
        self.alpha, self.lam, self.clone = self.each("alpha", alpha), self.each("lam", lam), clone
        self.reference: tuple[Actor, ...] = ()  # in a tuple it is no part of this module: its weights are not kept here

    def refer_to(self, policy: Actor) -> None:
        self.reference = (policy,)

    def margin(self, pairs: Pairs) -> Tensor:
        with torch.no_grad():
            first, second = self._advantages(pairs)[0]
            return first - second

    def _advantages(self, pairs: Pairs) -> tuple[tuple[Tensor, Tensor], Tensor]:
        logp_KN = self.actor.log_prob(pairs.steps.obs, pairs.steps.action)
        ratio_KN = logp_KN
        if self.reference:
            with torch.no_grad():
                base_KN = self.reference[0].actor.log_prob(pairs.steps.obs, pairs.steps.action)
            ratio_KN = logp_KN - base_KN
        return pairs.returns(self.alpha * ratio_KN, self.discount), logp_KN

    def losses(self, pairs: Pairs, draw: Draw) -> dict[str, Tensor]:
        (first, second), logp_KN = self._advantages(pairs)
        said = {"preference": mean(cpl(first, second, pairs.p, lam=self.lam))}
        if self.clone:
            own = pairs.mask.flatten(1)
            said["clone"] = -self.clone * (logp_KN * own).sum(-1) / own.sum(-1)
        return said


@algorithm("ipl", ["discrete", "continuous"], "2305.15363")
class IPL(Actor):
    """Inverse preference learning: the reward is what Q says it must be, r = Q(s, a) - g V(s').

    V is an upper expectile of Q as in IQL and a constant in r; the policy is cloned by advantage.
    """

    reads = "judgements"
    needs_reward = False

    def __init__(
        self,
        task: Task,
        *,
        expectile: Each = 0.7,
        beta: Each = 3.0,
        penalty: float = 0.05,
        most: float = 100.0,
        tau: float = 0.005,
    ):
        super().__init__(task)
        self.expectile, self.beta = self.each("expectile", expectile), self.each("beta", beta)
        self.penalty, self.most, self.tau = penalty, most, tau
        self.q = Critic(task, 1)
        self.v = MLP((task.observation, *task.hidden, 1), task.seeds, "v")

    def _reward(self, pairs: Pairs) -> Tensor:
        steps = pairs.steps
        with torch.no_grad():
            next_KN = self.v(steps.following).squeeze(-1)
        return self.q.of(steps.obs, steps.action)[:, 0] - self.discount * (1 - steps.terminated) * next_KN

    def margin(self, pairs: Pairs) -> Tensor:
        first, second = pairs.returns(self._reward(pairs), torch.ones_like(self.discount))
        return first - second

    def losses(self, pairs: Pairs, draw: Draw) -> dict[str, Tensor]:
        steps, own = pairs.steps, pairs.mask.flatten(1)
        r_KN = self._reward(pairs)
        first, second = pairs.returns(r_KN, torch.ones_like(self.discount))
        v_KN = self.v(steps.obs).squeeze(-1)
        with torch.no_grad():
            q_KN = self.q.of(steps.obs, steps.action, target=True)[:, 0]
        weight_KN = advantage_weight(q_KN - v_KN, self.beta, self.most)
        n_K = own.sum(-1)
        return {
            "preference": mean(segment_bradley_terry(first, second, pairs.p)),
            "penalty": self.penalty * (r_KN**2 * own).sum(-1) / n_K,
            "value": (expectile(q_KN - v_KN, self.expectile) * own).sum(-1) / n_K,
            "actor": -(weight_KN * self.actor.log_prob(steps.obs, steps.action) * own).sum(-1) / n_K,
        }

    def after(self, update: int) -> None:
        self.q.follow(self.tau)

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.v(obs_KBd).squeeze(-1)
