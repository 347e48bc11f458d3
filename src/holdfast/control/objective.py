"""An algorithm as what `fit` trains: many small updates per step, of all members at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.control.algorithms.base import Algorithm, Pairs
from holdfast.control.networks import Draw
from holdfast.control.steps import PairData, StepData
from holdfast.training.objective import Sums

_CHUNK = 4096  # rows of a held-out figure at a time


class ControlObjective:
    """See `training.objective.Learner`. data: `StepData` for an algorithm that reads steps, else `PairData`.

    starts: (E,) first steps of episodes, where a value is asked for; played: gives (members, episodes) returns of policies
    in an environment. Both are for held-out figures alone.
    """

    model: Algorithm

    def __init__(
        self,
        algorithm: Algorithm,
        data: StepData | PairData,
        updates: int,
        bootstrap: bool,
        starts: np.ndarray | None = None,
        played: Callable[[Algorithm], np.ndarray] | None = None,
    ):
        self.model, self.data, self.starts, self.played = algorithm, data, starts, played
        self.seeds: Sequence[int] = algorithm.task.seeds
        self.draws: Mapping[str, Any] = {"members": algorithm.task.members, "updates": updates, "bootstrap": bootstrap}

    def take(
        self, step: int, index: np.ndarray, rate: float, optimiser: torch.optim.Optimizer | None
    ) -> tuple[float, float, Sums]:
        assert optimiser is not None
        for group in optimiser.param_groups:
            group["lr"] = rate
        K, U = self.draws["members"], self.draws["updates"]
        algorithm, index_UKB = self.model, torch.from_numpy(index).view(U, K, -1)
        parameters, ones_K = list(algorithm.parameters()), torch.ones(K)
        total: dict[str, Tensor] = {}
        for u in range(U):
            update = (step - 1) * U + u
            algorithm.before(update, optimiser)
            for p in parameters:
                p.grad = None
            losses = algorithm.losses(self.data.batch(index_UKB[u]), Draw(self.seeds, update))
            torch.autograd.backward(list(losses.values()), [ones_K] * len(losses))
            optimiser.step()
            algorithm.after(update)
            for name, loss_K in losses.items():
                total[name] = total[name] + loss_K.detach() if u else loss_K.detach()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        sums: dict[str, tuple[float, float]] = {}
        for name, value_K in total.items():
            sums[f"loss/{name}"] = (float(value_K.double().sum()), K * U)
            if K > 1:
                sums |= {f"loss/{name}/{k}": (v, U) for k, v in enumerate(value_K.double().tolist())}
        return float(torch.stack(list(total.values())).double().sum()) / (K * U), norm, sums

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        """Held-out: each loss, and by what the algorithm is for the share of logged actions that the policy would take
        (`actions/agreement`), the value of the held-out episodes' first observations (`value/start`), or the share of
        judgements that are predicted (`preference/accuracy`, ties left out). Means over members."""
        K, algorithm = self.draws["members"], self.model
        sums: dict[str, float] = {}
        for begin in range(0, len(rows), _CHUNK):
            part = torch.from_numpy(rows[begin : begin + _CHUNK]).expand(K, -1)
            batch = self.data.batch(part)
            draw = Draw(self.seeds, -1 - begin)
            n = part.shape[1]
            for name, value in algorithm.losses(batch, draw).items():
                sums[f"loss/{name}"] = sums.get(f"loss/{name}", 0.0) + float(value.double().mean()) * n
            if isinstance(batch, Pairs):
                decided = batch.p != 0.5
                right = ((algorithm.margin(batch) > 0) == (batch.p > 0.5)) & decided
                sums["right"] = sums.get("right", 0.0) + float(right.sum()) / K
                sums["decided"] = sums.get("decided", 0.0) + float(decided.sum()) / K
            elif algorithm.task.n_actions is not None and algorithm.acts:
                same = algorithm.probs(batch.obs).argmax(-1) == batch.action
                sums["actions/agreement"] = sums.get("actions/agreement", 0.0) + float(same.sum()) / K
        n_right, n_decided = sums.pop("right", 0.0), sums.pop("decided", 0.0)
        said = {name: value / len(rows) for name, value in sums.items()}
        said["loss"] = sum(value for name, value in said.items() if name.startswith("loss/"))
        if n_decided:
            said["preference/accuracy"] = n_right / n_decided
        if self.starts is not None:
            steps = self.data if isinstance(self.data, StepData) else self.data.steps
            at = steps.obs[torch.from_numpy(self.starts)].expand(K, -1, -1)
            value_KB = algorithm.value(at, Draw(self.seeds, -1))
            if value_KB is not None:
                said["value/start"] = float(value_KB.double().mean())
        if self.played is not None:
            return_KE = self.played(algorithm)
            said["return/mean"] = float(return_KE.mean())
            said |= {f"return/{k}": float(r) for k, r in enumerate(return_KE.mean(1))} if K > 1 else {}
        return said

    def begin(self) -> dict[str, Any]:
        task = self.model.task
        return {"members": task.members, "observation": task.observation, "actions": task.n_actions or task.action}

    def after_step(self, step: int) -> Mapping[str, Any] | None:
        return None

    def extra_state(self) -> dict[str, Tensor]:
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        pass
