"""What the processes of tests/test_ranks.py run: a toy that several ranks can train, and recipes for the real flow.

python ranks_worker.py FOLDER {"parallel": ..., "runs": [{"name": ..., [train] keys}]}
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

import holdfast.training.ranks
from holdfast.errors import HoldfastError
from holdfast.recipe import RunTable
from holdfast.training.objective import Sums
from holdfast.training.ranks import here, together
from toy_objective import Toy, train_toy


class SharedToy(Toy):
    """The toy without what couples its batches, its rows divided by group, in micro-batches of 2; every parameter may be divided."""

    def __init__(self, dropout: float = 0.0, micro_batch: int = 2):
        super().__init__(dropout=dropout, micro_batch=micro_batch)
        self.cut_off: int | None = None
        self.silent_from: int | None = None
        self.ranks = here()
        self.seen: list[list[int]] = []  # each step's rows on this rank
        self._root = self.ranks.shard(self.model)

    def batches(self, rows: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        shares = self.ranks.shares(rows, rows % 30, lambda: np.ones(len(rows)))
        plans = [super(SharedToy, self).batches(s) if len(s) else [] for s in shares]
        mine = plans[self.ranks.rank]
        self.seen.append([int(r) for part in mine for r in part])
        idle = max(map(len, plans)) - len(mine) if self.ranks.sharded else 0
        return [(part, True) for part in mine] + [(rows[:1], False)] * idle

    def loss(self, batch: tuple[np.ndarray, bool]) -> tuple[torch.Tensor, Sums]:
        rows, counts = batch
        logit = self._forward(self.x[rows])
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logit, self.y[rows], reduction="none")
        loss = (losses * self.weight[rows]).sum()
        right = float(((logit > 0) == (self.y[rows] > 0.5)).sum())
        return (loss, {"accuracy": (right, len(rows))}) if counts else (loss * 0, {})

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        logit = self._forward(self.x[rows])
        return {"loss": float(torch.nn.functional.binary_cross_entropy_with_logits(logit, self.y[rows]))}

    def after_step(self, step: int) -> None:
        if step == self.cut_off:
            raise HoldfastError("cut off")
        if step == self.silent_from and self.ranks.rank:
            time.sleep(600)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) if self._root is None else self._root(lambda: self.model(x))


def run(folder: Path, asked: dict[str, Any]) -> None:
    holdfast.training.ranks.PATIENCE = timedelta(seconds=asked.get("patience", 120))
    with together(RunTable(threads=1, parallel=asked.get("parallel"))) as ranks:
        for said in asked["runs"]:
            name, toy = said.pop("name"), SharedToy(said.pop("dropout", 0.0))
            toy.cut_off, toy.silent_from = said.pop("cut_off", None), said.pop("silent_from", None)
            torch.manual_seed(ranks.rank)  # what a process drew before must not matter
            try:
                train_toy(folder / name, toy, **said)
            except HoldfastError as problem:
                if str(problem) != "cut off":
                    raise
            seen = ranks.tell(toy.seen)
            if ranks.writes:
                (folder / f"{name}.json").write_text(json.dumps({"seen": seen, "sharded": ranks.sharded}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(Path(sys.argv[1]), json.loads(sys.argv[2]))
