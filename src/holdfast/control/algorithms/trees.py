"""Fitted Q-iteration with extra-trees: a step refits every member's forest on the whole log.

What goes from one iteration to the next is a number per step of the log, the value of its next observation. So that is
the state that a checkpoint keeps; forests are kept as arrays, never pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.control.actors import Task
from holdfast.control.algorithms.base import Algorithm, algorithm
from holdfast.control.networks import Draw
from holdfast.control.objective import ControlObjective
from holdfast.control.steps import StepData
from holdfast.training.determinism import derive
from holdfast.training.objective import Sums

COLUMNS = ("left", "right", "feature", "threshold", "value", "root")


@algorithm("fqi_trees", ["discrete"], "Ernst et al. 2005, JMLR 6, figure 1 with extra-trees")
class TreeFQI(Algorithm):
    """Q by a forest of extremely randomised trees over (observation, action as one of n)."""

    greedy = True

    def __init__(self, task: Task, *, trees: int = 50, leaf: int = 2):
        super().__init__(task)
        self.trees, self.leaf = trees, leaf
        self.forests: list[dict[str, np.ndarray]] = []  # one per member

    def all(self, obs_KBd: Tensor) -> Tensor:
        """(K, B, A)"""
        K, B = obs_KBd.shape[:2]
        n = self.task.n_actions or 0
        if not self.forests:
            return torch.zeros(K, B, n)
        each = np.eye(n, dtype=np.float32)
        return torch.from_numpy(
            np.stack(
                [
                    predict(forest, np.concatenate([np.repeat(obs, n, 0), np.tile(each, (B, 1))], axis=1)).reshape(B, n)
                    for forest, obs in zip(self.forests, obs_KBd.numpy(), strict=True)
                ]
            ).astype(np.float32)
        )

    def probs(self, obs_KBd: Tensor) -> Tensor:
        q = self.all(obs_KBd)
        return one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        return self.all(obs_KBd).amax(-1)

    def losses(self, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Of held-out steps: (Q - y)^2, y by the forest itself."""
        following = self.all(batch.following).amax(-1)
        y = batch.reward + self.discount * (1 - batch.terminated) * following
        return {"td": ((self.all(batch.obs).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1) - y) ** 2).mean(-1)}

    def kept(self) -> dict[str, Tensor]:
        return {f"{c}.{k}": torch.from_numpy(f[c]) for k, f in enumerate(self.forests) for c in COLUMNS}

    def restore(self, kept: dict[str, Tensor]) -> None:
        members = 1 + max((int(name.split(".")[1]) for name in kept), default=-1)
        self.forests = [{c: kept[f"{c}.{k}"].numpy() for c in COLUMNS} for k in range(members)]

    def alone(self, member: int) -> dict[str, Tensor]:
        return {f"{c}.0": torch.from_numpy(self.forests[member][c]) for c in COLUMNS}


class TreeObjective(ControlObjective):
    """A step is one iteration over the rows to train on."""

    model: TreeFQI

    def __init__(
        self,
        algorithm: TreeFQI,
        data: StepData,
        rows: np.ndarray,
        starts: np.ndarray | None,
        played: Callable[[Algorithm], np.ndarray] | None,
    ):
        super().__init__(algorithm, data, 1, False, starts, played)
        self.rows = rows
        self.draws = {"members": algorithm.task.members, "updates": 1, "bootstrap": False, "batch": len(rows)}
        self.following = np.zeros((algorithm.task.members, len(rows)))  # what the next observation is worth, so far

    def take(
        self, step: int, index: np.ndarray, rate: float, optimiser: torch.optim.Optimizer | None
    ) -> tuple[float, float, Sums]:
        from sklearn.ensemble import ExtraTreesRegressor

        assert isinstance(self.data, StepData)
        model, rows = self.model, torch.from_numpy(self.rows)
        n = model.task.n_actions or 0
        batch = self.data.batch(rows.unsqueeze(0))
        x = np.concatenate([batch.obs[0].numpy(), np.eye(n, dtype=np.float32)[batch.action[0].numpy()]], axis=1)
        model.forests, errors = [], []
        for k, seed in enumerate(model.task.seeds):
            goes_on = model.discount[k].item() * (1 - batch.terminated[0].double().numpy())
            y = batch.reward[0].double().numpy() + goes_on * self.following[k]
            forest = ExtraTreesRegressor(
                model.trees, min_samples_leaf=model.leaf, random_state=derive(seed, "trees", step) % 2**31
            ).fit(x, y)
            model.forests.append(arrays(forest))
            errors.append(float(np.mean((predict(model.forests[-1], x) - y) ** 2)))
        value = model.all(batch.following.expand(model.task.members, -1, -1)).amax(-1)
        self.following = value.double().numpy()
        return float(np.mean(errors)), 0.0, {"loss/td": (sum(errors), len(errors))}

    def extra_state(self) -> dict[str, Tensor]:
        return {"following": torch.from_numpy(self.following), **self.model.kept()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        if state:
            self.following = state["following"].numpy()
            self.model.restore({n: t for n, t in state.items() if n != "following"})


def arrays(forest: Any) -> dict[str, np.ndarray]:
    """A fitted forest's trees one after another: children, split feature (negative: a leaf), threshold, value, roots."""
    trees = [t.tree_ for t in forest.estimators_]
    root = np.cumsum([0, *(t.node_count for t in trees[:-1])]).astype(np.int64)
    return {
        "left": np.concatenate(
            [np.where(t.children_left < 0, 0, t.children_left) + r for t, r in zip(trees, root, strict=True)]
        ),
        "right": np.concatenate(
            [np.where(t.children_right < 0, 0, t.children_right) + r for t, r in zip(trees, root, strict=True)]
        ),
        "feature": np.concatenate([t.feature for t in trees]).astype(np.int64),
        "threshold": np.concatenate([t.threshold for t in trees]),
        "value": np.concatenate([t.value[:, 0, 0] for t in trees]),
        "root": root,
    }


def predict(forest: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """(N, features) float32 -> (N,): the mean over trees, as scikit-learn has it."""
    node = np.repeat(forest["root"][:, None], len(x), axis=1)  # (trees, N)
    at = np.arange(len(x))
    while True:
        feature = forest["feature"][node]
        inner = feature >= 0
        if not inner.any():
            return forest["value"][node].mean(axis=0)
        left = x[at, np.where(inner, feature, 0)] <= forest["threshold"][node]
        node = np.where(inner, np.where(left, forest["left"][node], forest["right"][node]), node)
