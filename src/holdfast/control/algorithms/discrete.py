"""Algorithms for discrete actions that learn a value: fitted Q-iteration, (double) DQN, CQL, BCQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.control.actors import Categorical, Critic, Task
from holdfast.control.algorithms.base import Algorithm, Batch, Each, algorithm, mean
from holdfast.control.networks import Draw
from holdfast.errors import RecipeError
from holdfast.losses.control import bcq_allowed, cql_gap, double_q_value, masked, td_error, td_target


@algorithm("dqn", ["discrete"], "1312.5602; double: 1509.06461")
class DQN(Algorithm):
    """Q by temporal differences against a slow copy. `double`: the action by the one, its value by the other.

    tau: the share by which the slow copy follows after each update; or `target_every`: it is replaced after so many.
    """

    greedy = True

    def __init__(
        self,
        task: Task,
        *,
        double: bool = True,
        td: Literal["huber", "mse"] = "huber",
        tau: float | None = None,
        target_every: int | None = None,
    ):
        super().__init__(task)
        if tau is not None and target_every is not None:
            raise RecipeError("[objective] tau and target_every both say how the target follows; give one")
        self.doubled, self.td, self.every = double, td, target_every
        self.tau = 1.0 if target_every is not None else 0.005 if tau is None else tau
        self.q = Critic(task, 1)
        self._known: tuple[Tensor, list[int], Tensor] | None = None  # see `slow`

    def restrict(self, q_KBA: Tensor, obs_KBd: Tensor) -> Tensor:
        """Q, -inf where the algorithm forbids an action."""
        return q_KBA

    def slow(self, batch: Batch) -> Tensor:
        """(K, B, A): the slow copy's values of the next observations, a constant.

        Where the updates between two replacements of it draw no fewer rows than the log has, those of all its steps are
        computed once and looked up from then on.
        """
        log, K = batch.log, self.task.members
        if log is None or self.every is None or self.every * batch.place.shape[1] < len(log):
            with torch.no_grad():
                return self.q.all(batch.following, target=True)[:, 0]
        # torch counts the writes to a tensor: by a replacement, or a checkpoint that is loaded.
        written = [t._version for t in self.q.target.buffers()]
        if self._known is None or self._known[0] is not log or self._known[1] != written:
            with torch.no_grad():
                parts = [self.q.all(x.expand(K, -1, -1), target=True)[:, 0] for x in log.split(4096)]
                self._known = log, written, torch.cat(parts, 1)
        return at(self._known[2], batch.place)

    def td_loss(self, batch: Batch, allowed_KBA: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(K,) the loss, and (K, B, A) all values of the batch's observations. allowed: which actions may come next."""
        target_KBA = self.slow(batch)
        if self.doubled:
            q_KBA, chooser_KBA = self.q.net.both(batch.obs, batch.following)
        else:
            q_KBA, chooser_KBA = self.q.all(batch.obs)[:, 0], target_KBA
        if allowed_KBA is not None:
            chooser_KBA = masked(chooser_KBA, allowed_KBA)
        next_KB = double_q_value(chooser_KBA, target_KBA)
        y_KB = td_target(batch.reward, batch.terminated, next_KB, self.discount)
        chosen_KB = q_KBA.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        return mean(td_error(chosen_KB, y_KB, how=self.td)), q_KBA

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        return {"td": self.td_loss(batch)[0]}

    def after(self, update: int) -> None:
        if self.every is None or (update + 1) % self.every == 0:
            self.q.follow(self.tau)

    def best(self, obs_KBd: Tensor) -> Tensor:
        return self.restrict(self.q.all(obs_KBd)[:, 0], obs_KBd)

    def probs(self, obs_KBd: Tensor) -> Tensor:
        best = self.best(obs_KBd)
        return one_hot(best.argmax(-1), best.shape[-1]).to(best.dtype)

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.best(obs_KBd).amax(-1)


@algorithm("cql", ["discrete"], "2006.04779, eq. 4")
class CQL(DQN):
    """Conservative Q-learning: TD + alpha (logsumexp_a Q - Q of the logged action). alpha = 0 is (double) DQN."""

    def __init__(
        self,
        task: Task,
        *,
        alpha: Each = 1.0,
        double: bool = True,
        td: Literal["huber", "mse"] = "huber",
        tau: float | None = None,
        target_every: int | None = None,
    ):
        super().__init__(task, double=double, td=td, tau=tau, target_every=target_every)
        self.alpha = self.each("alpha", alpha)

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        td, q_KBA = self.td_loss(batch)
        return {"td": td, "conservative": self.alpha[:, 0] * mean(cql_gap(q_KBA, batch.action))}


@algorithm("bcq", ["discrete"], "1910.01708")
class BCQ(DQN):
    """Batch-constrained Q-learning: only actions that cloning gives at least tau times the most probable one's share.

    threshold = 0 is (double) DQN, threshold = 1 is cloning. penalty: of squared logits of the cloning network.
    """

    def __init__(
        self,
        task: Task,
        *,
        threshold: Each = 0.3,
        penalty: float = 0.01,
        double: bool = True,
        td: Literal["huber", "mse"] = "huber",
        tau: float | None = None,
        target_every: int | None = None,
    ):
        super().__init__(task, double=double, td=td, tau=tau, target_every=target_every)
        self.threshold, self.penalty = self.each("threshold", threshold), penalty
        self.clone = Categorical(task, "clone")

    def restrict(self, q_KBA: Tensor, obs_KBd: Tensor) -> Tensor:
        with torch.no_grad():
            return masked(q_KBA, self.allowed(self.clone.net(obs_KBd)))

    def allowed(self, logits_KBA: Tensor) -> Tensor:
        return bcq_allowed(logits_KBA.log_softmax(-1), self.threshold[:, :, None])

    def losses(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        logits, next_logits = self.clone.net.both(batch.obs, batch.following)
        nll = -logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        return {
            "td": self.td_loss(batch, self.allowed(next_logits))[0],
            "clone": mean(nll) + self.penalty * (logits**2).mean((-1, -2)),
        }


@algorithm("fqi", ["discrete"], "Ernst et al. 2005, JMLR 6, figure 1; network: Riedmiller 2005")
class FQI(DQN):
    """Fitted Q-iteration with a network: every `every` updates a fresh one is begun on the targets of the last."""

    def __init__(self, task: Task, *, every: int = 500, td: Literal["huber", "mse"] = "mse"):
        super().__init__(task, double=False, td=td, target_every=every)

    def before(self, update: int, optimiser: torch.optim.Optimizer) -> None:
        assert self.every is not None
        if update and update % self.every == 0:  # `after` has made the last regressor the target
            self.q.net.reset(self.task.seeds, update // self.every)
            optimiser.state.clear()


@algorithm("fqe", ["discrete"], "1903.08738, algorithm 1")
class FQE(DQN):
    """Fitted Q-evaluation of the policy that [control] reference names: what its actions are worth, not the best ones'.

    The expectation is over the policy itself. As it does not change, its probabilities are computed once for every step.
    """

    acts = False
    refers = True

    def __init__(
        self,
        task: Task,
        *,
        td: Literal["huber", "mse"] = "mse",
        tau: float | None = None,
        target_every: int | None = None,
    ):
        super().__init__(task, double=False, td=td, tau=tau, target_every=target_every)
        self.next_probs_KTA: Tensor | None = None

    @torch.no_grad()
    def refer_to(self, probs: Callable[[Tensor], Tensor], following_Td: Tensor) -> None:
        """probs: (K, B, d) observations in this algorithm's scale -> (K or 1, B, A)."""
        self.policy = probs
        parts = following_Td.split(8192)
        self.next_probs_KTA = torch.cat([probs(x.expand(self.task.members, -1, -1)) for x in parts], 1)

    def td_loss(self, batch: Batch, allowed_KBA: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert self.next_probs_KTA is not None
        q_KBA = self.q.all(batch.obs)[:, 0]
        next_KB = (at(self.next_probs_KTA, batch.place) * self.slow(batch)).sum(-1)
        y_KB = td_target(batch.reward, batch.terminated, next_KB, self.discount)
        chosen_KB = q_KBA.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        return mean(td_error(chosen_KB, y_KB, how=self.td)), q_KBA

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return (self.policy(obs_KBd) * self.q.all(obs_KBd)[:, 0]).sum(-1)


def at(table_KTA: Tensor, place_KB: Tensor) -> Tensor:
    """(K, B, A): each member's rows of a table over the log's steps; a table of one member is everyone's."""
    K, T, A = table_KTA.shape
    if K == 1:
        return table_KTA[0].index_select(0, place_KB.reshape(-1)).view(*place_KB.shape, A)
    own = place_KB + T * torch.arange(K)[:, None]
    return table_KTA.view(K * T, A).index_select(0, own.view(-1)).view(*place_KB.shape, A)
