"""The contract between the one loop and everything it can train.

`fit` knows neither language nor control: it sees rows (numbers with an identity and a group), and an objective that
turns rows into a loss. All figures leave an objective as sums, so that accumulation over micro-batches, and later over
processes, is exact: the loop divides once, by the step's normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # `verify` reads rows on machines without torch
    import torch

# A metric on its way: (sum, weight). The figure is sum / weight, taken once, after everything was added up.
Sums = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Rows:
    """The rows a run may train on, in the dataset's own order.

    ids:   one 64-character hex digest per row; what the ledger records.
    group: (N,) int64, the row's prompt group (or episode); the order spreads a group over the epoch.
    index: (N,) int64, the row's number in the dataset.
    """

    ids: Sequence[str]
    group: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Trained(Protocol):
    """What the loop needs of everything that it trains."""

    @property
    def model(self) -> torch.nn.Module: ...

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        """Held-out figures over rows, without gradient: `loss` always, and what the objective adds
        (`rewards/accuracies`).
        """
        ...

    def begin(self) -> dict[str, Any]:
        """Checks before step 0 (raises on failure) and the facts the ledger's first entry commits to (JSON-able)."""
        ...

    def after_step(self, step: int) -> Mapping[str, Any] | None:
        """What follows an optimiser step: a moving reference. Most do nothing.

        What it returns (JSON-able), where it is not empty, stands in the ledger's entry of the step as `after`.
        """
        ...

    def extra_state(self) -> dict[str, torch.Tensor]:
        """State beyond parameters and buffers that a checkpoint must keep (a running mean, say). Most: empty."""
        ...

    def load_extra_state(self, state: dict[str, torch.Tensor]) -> None: ...


class Objective(Trained, Protocol):
    """model + rows -> loss and metrics. Holds the choice of loss; `fit` calls it and knows no more.

    Rows are numbers into the dataset (`Rows.index`), in the order in which the step takes them.
    """

    def batches(self, rows: np.ndarray) -> list[Any]:
        """Plan the step's micro-batches. A pure function of the rows and the recipe."""
        ...

    def normaliser(self, rows: np.ndarray) -> float:
        """What the step's summed loss is divided by: known from the data alone, before any forward."""
        ...

    def loss(self, batch: Any) -> tuple[torch.Tensor, Sums]:
        """The summed loss of one micro-batch (a scalar tensor with a graph), and metrics as sums."""
        ...


@runtime_checkable
class Learner(Trained, Protocol):
    """An objective that takes its steps itself: many small updates of several members, each with targets that follow.

    A step is then `draws["updates"]` updates on the rows that `training.order.Draws` gives. A member's loss must reach no
    other member's weights.
    """

    # members, updates, bootstrap: what `Draws` takes beside rows and seed; `batch` where it is not the recipe's
    draws: Mapping[str, Any]

    def take(
        self, step: int, index: np.ndarray, rate: float, optimiser: torch.optim.Optimizer | None
    ) -> tuple[float, float, Sums]:
        """Take step `step` on dataset rows `index` (updates * members * batch,), the optimiser's rate being `rate`.

        Gives the mean loss of the step's updates, the gradient norm of its last one, and metrics.
        """
        ...
