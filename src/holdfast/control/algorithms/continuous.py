"""Algorithms for continuous actions that learn a value: CQL on SAC, BCQ."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from holdfast.control.actors import Critic, Squashed, Task
from holdfast.control.algorithms.base import Algorithm, Batch, Each, algorithm, mean
from holdfast.control.networks import MLP, Draw
from holdfast.errors import HoldfastError
from holdfast.losses.control import bcq_value, cql_gap_sampled, td_error, td_target


@algorithm("cql", ["continuous"], "2006.04779, appendix F, on SAC 1812.05905")
class ContinuousCQL(Algorithm):
    """Conservative Q-learning with sampled actions: uniform ones, the policy's at s, and the policy's at s' scored at s.

    alpha: weight of the gap. gap: with it the weight is learnt (the Lagrange form, the authors' own: alpha' (alpha gap - tau));
    `gap` is that tau. entropy: whether targets hold the policy's entropy (the authors' code: no).
    """

    def __init__(
        self,
        task: Task,
        *,
        alpha: Each = 5.0,
        gap: float | None = None,
        samples: int = 10,
        critics: int = 2,
        entropy: bool = False,
        target_entropy: float | None = None,
        tau: float = 0.005,
    ):
        super().__init__(task)
        self.alpha, self.gap, self.samples, self.entropy, self.tau = (
            self.each("alpha", alpha),
            gap,
            samples,
            entropy,
            tau,
        )
        self.target_entropy = float(-task.action) if target_entropy is None else target_entropy
        self.q = Critic(task, critics)
        self.actor = Squashed(task)
        self.log_temperature = nn.Parameter(torch.zeros(task.members))
        if gap is not None:
            self.log_multiplier = nn.Parameter(torch.zeros(task.members))

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        K, B, A, S = *batch.obs.shape[:2], self.task.action, self.samples
        temperature_K = self.log_temperature.exp()
        # One pass of the actor over s and s': its own action at s has a gradient, all others are constants.
        own_K1BA, own_logp_K1B = self.actor.draw(batch.obs, draw.normal("own", 1, B, A))
        with torch.no_grad():
            here_KSBA, here_logp_KSB = self.actor.draw(batch.obs, draw.normal("here", S, B, A))
            there_KSBA, there_logp_KSB = self.actor.draw(batch.following, draw.normal("there", S + 1, B, A))
            next_KB = self.q.of(batch.following, there_KSBA[:, S], target=True).amin(1)
            if self.entropy:
                next_KB = next_KB - temperature_K[:, None] * there_logp_KSB[:, S]
        y_KB = td_target(batch.reward, batch.terminated, next_KB, self.discount)
        q_KCB = self.q.of(batch.obs, batch.action)
        td_K = mean(td_error(q_KCB, y_KB.unsqueeze(1))).sum(1)

        random_KSBA = draw.uniform("random", S, B, A)
        q_KCSB = self.q.of_several(batch.obs, torch.cat([random_KSBA, here_KSBA, there_KSBA[:, :S]], 1))
        density_KSB = torch.cat([torch.full((K, S, B), -A * math.log(2)), here_logp_KSB, there_logp_KSB[:, :S]], 1)
        gap_KCB = cql_gap_sampled(q_KCSB.mT, density_KSB.mT.unsqueeze(1), q_KCB)
        gap_K = self.alpha[:, 0] * gap_KCB.mean(-1).sum(1)

        own_q_KB = self.q.of(batch.obs, own_K1BA[:, 0], frozen=True).amin(1)
        said = {
            "td": td_K,
            "actor": mean(temperature_K.detach()[:, None] * own_logp_K1B[:, 0] - own_q_KB),
            "temperature": -temperature_K * (mean(own_logp_K1B[:, 0]).detach() + self.target_entropy),
        }
        if self.gap is None:
            return {**said, "conservative": gap_K}
        multiplier_K = self.log_multiplier.exp().clamp(0, 1e6)
        over_K = gap_K - self.gap * self.q.critics
        return {**said, "conservative": multiplier_K.detach() * over_K, "multiplier": -multiplier_K * over_K.detach()}

    def after(self, update: int) -> None:
        self.q.follow(self.tau)

    def mode(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.actor.mode(obs_KBd)

    def sample(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.actor.sample(obs_KBd, draw.normal("act", obs_KBd.shape[1], self.task.action))

    def log_prob(self, obs_KBd: Tensor, action_KBA: Tensor) -> Tensor:
        return self.actor.log_prob(obs_KBd, action_KBA)

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.q.of(obs_KBd, self.mode(obs_KBd, draw)).amin(1)


@algorithm("bcq", ["continuous"], "1812.02900")
class ContinuousBCQ(Algorithm):
    """Batch-constrained Q-learning: actions that a variational autoencoder of the log proposes, a little perturbed.

    lam: how much of the minimum of the critics is in a target; samples: proposals at s' while learning; act: when acting.
    """

    greedy = True

    def __init__(
        self,
        task: Task,
        *,
        lam: Each = 0.75,
        perturbation: float = 0.05,
        samples: int = 10,
        act: int = 100,
        kl: float = 0.5,
        critics: int = 2,
        tau: float = 0.005,
    ):
        super().__init__(task)
        self.lam, self.perturbation, self.samples, self.proposals = self.each("lam", lam), perturbation, samples, act
        self.kl, self.tau, self.latent = kl, tau, 2 * task.action
        self.q = Critic(task, critics)
        wide = (task.observation + task.action, *task.hidden)
        self.encoder = MLP((*wide, 2 * self.latent), task.seeds, "encoder")
        self.decoder = MLP((task.observation + self.latent, *task.hidden, task.action), task.seeds, "decoder")
        self.nudge = MLP((*wide, task.action), task.seeds, "nudge")
        self.slow_nudge = self.nudge.copy()

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        B, S, L = batch.obs.shape[1], self.samples, self.latent
        mean_KBL, log_std_KBL = self.encoder(torch.cat([batch.obs, batch.action], -1)).chunk(2, -1)
        log_std_KBL = log_std_KBL.clamp(-4, 15)
        z_KBL = mean_KBL + log_std_KBL.exp() * draw.normal("latent", B, L)
        again_KBA = self.decoder(torch.cat([batch.obs, z_KBL], -1)).tanh()
        divergence_KBL = -0.5 * (1 + 2 * log_std_KBL - mean_KBL**2 - (2 * log_std_KBL).exp())
        vae_K = ((again_KBA - batch.action) ** 2).mean((-1, -2)) + self.kl * divergence_KBL.mean((-1, -2))
        with torch.no_grad():
            rows = batch.following.repeat_interleave(S, dim=1)
            proposed = self._moved(rows, self._proposed(rows, draw.normal("next", B * S, L)), self.slow_nudge)
            q_KCBS = self.q.of(rows, proposed, target=True).unflatten(-1, (B, S))
            next_KB = bcq_value(q_KCBS, self.lam.unsqueeze(-1))
            raw_KBA = self._proposed(batch.obs, draw.normal("own", B, L))
        y_KB = td_target(batch.reward, batch.terminated, next_KB, self.discount)
        moved_KBA = self._moved(batch.obs, raw_KBA, self.nudge)
        return {
            "td": mean(td_error(self.q.of(batch.obs, batch.action), y_KB.unsqueeze(1))).sum(1),
            "vae": vae_K,
            "actor": -mean(self.q.of(batch.obs, moved_KBA, frozen=True)[:, 0]),
        }

    def after(self, update: int) -> None:
        self.q.follow(self.tau)
        self.slow_nudge.follow(self.nudge, self.tau)

    def mode(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        S = self.proposals
        noise_KSL = draw.normal("act", S, self.latent)  # the same proposals for every observation
        rows_KBSd = obs_KBd.unsqueeze(2).expand(-1, -1, S, -1)
        rows = rows_KBSd.flatten(1, 2)
        noise = noise_KSL.unsqueeze(1).expand(-1, obs_KBd.shape[1], -1, -1).flatten(1, 2)
        proposed = self._moved(rows, self._proposed(rows, noise), self.nudge)
        best_KB = self.q.of(rows, proposed)[:, 0].unflatten(-1, (-1, S)).argmax(-1)
        index_KB1A = best_KB[:, :, None, None].expand(-1, -1, 1, self.task.action)
        return proposed.unflatten(1, (-1, S)).gather(2, index_KB1A).squeeze(2)

    def sample(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.mode(obs_KBd, draw)

    def log_prob(self, obs_KBd: Tensor, action_KBA: Tensor) -> Tensor:
        raise HoldfastError(
            "BCQ's continuous policy has no density: evaluate it by fitted Q-evaluation, or take cql or iql"
        )

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.q.of(obs_KBd, self.mode(obs_KBd, draw)).amin(1)

    def _proposed(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.decoder(torch.cat([obs, noise.clamp(-0.5, 0.5)], -1)).tanh()

    def _moved(self, obs: Tensor, action: Tensor, by: MLP) -> Tensor:
        step = self.perturbation * by(torch.cat([obs, action], -1)).tanh()
        return (action + step).clamp(-1, 1)
