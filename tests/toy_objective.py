"""A small objective for the loop's own tests: an MLP with dropout on synthetic rows, so that random numbers matter.

It has what can go wrong in a resume: dropout, a frozen parameter, a tied one, a buffer that training changes, and state
of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.recipe import RunTable, TrainTable
from holdfast.training.checkpoint import trained_state
from holdfast.training.fit import Fitted, fit
from holdfast.training.objective import Rows, Sums

ROWS, HELD = 120, 24
FACTS = {"recipe": "ab" * 32, "beta": 0.1}


class Net(nn.Module):
    def __init__(self, width: int, dropout: float, dtype: torch.dtype):
        super().__init__()
        self.first = nn.Linear(6, width, dtype=dtype)
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.frozen = nn.Linear(width, width, dtype=dtype).requires_grad_(False)
        self.middle = nn.Linear(width, width, dtype=dtype)
        self.tied = nn.Linear(width, width, dtype=dtype)
        self.tied.weight = self.middle.weight
        self.last = nn.Linear(width, 1, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("seen", torch.zeros((), dtype=dtype))

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = self.seen + len(x_BF)  # a new tensor each time, as modules do
        h = self.dropout(torch.relu(self.norm(self.first(x_BF))))
        h = torch.relu(self.middle(h)) + self.frozen(h)
        return self.last(self.dropout(torch.tanh(self.tied(h)))).squeeze(-1)


class Toy:
    """Logistic regression on whether a row's features add up to more than 0, a tenth of the labels flipped."""

    def __init__(
        self,
        seed: int = 0,
        width: int = 16,
        dropout: float = 0.2,
        micro_batch: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        rng = np.random.default_rng(7)
        x = rng.normal(size=(ROWS + HELD, 6))
        label = (x.sum(1) > 0) ^ (rng.random(ROWS + HELD) < 0.1)
        self.x, self.y = torch.tensor(x, dtype=dtype), torch.tensor(label, dtype=dtype)
        self.weight = torch.tensor(rng.random(ROWS + HELD) + 0.5, dtype=dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: Any = Net(width, dropout, dtype)
        self.micro_batch = micro_batch
        self.mean = torch.zeros((), dtype=torch.float64)  # a running mean: state beyond the model

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.micro_batch or len(rows)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def normaliser(self, rows: np.ndarray) -> float:
        return float(self.weight[rows].double().sum())

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, Sums]:
        logit = self.model(self.x[batch])
        loss = (
            nn.functional.binary_cross_entropy_with_logits(logit, self.y[batch], reduction="none") * self.weight[batch]
        ).sum()
        self.mean = 0.9 * self.mean + 0.1 * float(logit.detach().mean())
        right = float(((logit > 0) == (self.y[batch] > 0.5)).sum())
        return loss + 0.01 * self.mean.to(loss.dtype) * logit.sum(), {
            "accuracy": (right, len(batch)),
            "tokens": (6.0 * len(batch), 1.0),
        }

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        logit = self.model(self.x[rows])
        loss = nn.functional.binary_cross_entropy_with_logits(logit, self.y[rows])
        return {"loss": float(loss), "rewards/accuracies": float(((logit > 0) == (self.y[rows] > 0.5)).double().mean())}

    def begin(self) -> dict[str, Any]:
        return {"kind": "toy", "dropout": float(self.model.dropout.p)}

    def after_step(self, step: int) -> None:
        return None

    def extra_state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def load_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        self.mean = state.get("mean", torch.zeros((), dtype=torch.float64))


def row_id(i: int) -> str:
    return hashlib.sha256(f"row {i}".encode()).hexdigest()


def toy_rows(n: int = ROWS, groups: int = 30) -> Rows:
    return Rows([row_id(i) for i in range(n)], np.arange(n, dtype=np.int64) % groups, np.arange(n, dtype=np.int64))


HELD_OUT = np.arange(ROWS, ROWS + HELD)


def train_toy(
    folder: Path,
    objective: Toy | None = None,
    rows: Rows | None = None,
    facts: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Fitted:
    """One run with small defaults; [train] and [run] keys by name, `fit`'s own arguments too."""
    mine = {k: kwargs.pop(k) for k in ("allow_environment_change", "on_final", "held_out") if k in kwargs}
    run = RunTable(**{"threads": 1, **{k: kwargs.pop(k) for k in ("seed", "threads", "name") if k in kwargs}})
    settings = TrainTable(**{"batch": 8, "steps": 24, "lr": 3e-3, "checkpoint_every": 5, "warmup": 3, **kwargs})
    toy = objective or Toy()

    def save(folder: Path) -> None:
        save_file(
            {n: t.detach().contiguous() for n, t in trained_state(toy.model).items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        (folder / "config.json").write_text('{"toy": true}\n')

    arguments: dict[str, Any] = {"held_out": HELD_OUT, "on_final": save, **mine}
    return fit(
        toy,
        rows or toy_rows(),
        settings,
        run,
        folder,
        facts=facts if facts is not None else FACTS,
        quiet=True,
        **arguments,
    )
