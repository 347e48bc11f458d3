"""Holdfast's side of the bench of control: updates through the loop's own steps, and losses on the rows and weights of the bench.

control_ours.py DATA.npz KIND MEMBERS THREADS [write]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.control.actors import Task
from holdfast.control.algorithms.preference import SegmentReward
from holdfast.control.episodes import Episodes
from holdfast.control.networks import MLP, Draw
from holdfast.control.objective import ControlObjective
from holdfast.control.policy import build
from holdfast.control.segments import Segments
from holdfast.control.steps import PairData, Scale, StepData
from holdfast.recipe import ControlTrain, RunTable
from holdfast.training.determinism import deterministic
from holdfast.training.fit import Trainer
from holdfast.training.objective import Rows
from meter import order, peak, say

STEPS, LENGTH, OBS = 20000, 200, 4
HARD = {"target_every": 8000}
SAID: dict[str, dict[str, Any]] = {
    "dqn": {"kind": "dqn", **HARD},
    "cql": {"kind": "cql", **HARD},
    "bcq": {"kind": "bcq", "penalty": 0.5, **HARD},
    "fqe": {"kind": "fqe", "td": "huber", "target_every": 100},
    "cql-continuous": {"kind": "cql"},
    "iql-continuous": {"kind": "iql"},
    "bcq-continuous": {"kind": "bcq"},
    "preferences": {"kind": "segment_reward"},
}
UPDATES = {"cql-continuous": 20, "bcq-continuous": 10, "iql-continuous": 60, "preferences": 20}


def log(discrete: bool) -> Episodes:
    """A log of noise: what is timed does not hang on what is learnt."""
    rng = np.random.default_rng(0)
    n = STEPS // LENGTH
    obs = rng.normal(size=(STEPS, OBS)).astype(np.float32)
    action = rng.integers(0, 2, STEPS) if discrete else rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32)
    return Episodes(
        obs,
        action,
        rng.normal(size=STEPS),
        np.arange(n + 1) * LENGTH,
        rng.normal(size=(n, OBS)).astype(np.float32),
        np.ones(n, bool),
        np.zeros(n, bool),
        n_actions=2 if discrete else None,
        facts={} if discrete else {"action_low": -1.0, "action_high": 1.0},
    )


def made(kind: str, members: int) -> tuple[ControlObjective, Episodes]:
    discrete = "continuous" not in kind
    episodes = log(discrete)
    scale = Scale.of(episodes, np.arange(STEPS), standardise=False)
    steps = StepData(episodes, scale)
    hidden = (32, 32) if kind == "preferences" else (256, 256)
    discount = (1.0,) if kind == "preferences" else (0.99,)
    task = Task(OBS, 2 if discrete else None, 0 if discrete else 1, tuple(range(members)), hidden, discount)
    algorithm = build(task, SAID[kind])
    if kind == "fqe":
        policy = build(task, SAID["dqn"])
        algorithm.refer_to(policy.probs, steps.following)  # type: ignore[operator]
        POLICY.append(policy)
    data: StepData | PairData = steps
    if kind == "preferences":
        data = PairData(steps, episodes, judged(episodes), False)
    return ControlObjective(algorithm, data, UPDATES.get(kind, 200), False), episodes


def judged(episodes: Episodes, n: int = 256, length: int = 50) -> Segments:
    rng = np.random.default_rng(1)
    episode, start = rng.integers(0, len(episodes), (n, 2)), rng.integers(0, LENGTH - length, (n, 2))
    p = rng.choice([0.0, 0.5, 1.0], n)
    return Segments.of([f"{e:064x}" for e in range(len(episodes))], episode, start, np.full((n, 2), length), p)


def weights(net: MLP, name: str, member: int = 0) -> dict[str, np.ndarray]:
    said = {}
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        said |= {f"{name}.weight_{i}": w[member].detach().numpy(), f"{name}.bias_{i}": b[member, 0].detach().numpy()}
    return said


def shared(objective: ControlObjective, episodes: Episodes, kind: str) -> dict[str, Any]:
    """What a peer needs to compute the same: the log, rows, and weights (targets moved away from their networks)."""
    algorithm = objective.model
    steps = objective.data if isinstance(objective.data, StepData) else objective.data.steps
    terminal = np.zeros(STEPS)
    terminal[LENGTH - 1 :: LENGTH] = 1
    said: dict[str, Any] = {
        "obs": steps.obs.numpy(),
        "action": episodes.actions,
        "reward": np.asarray(episodes.rewards).astype(np.float32),
        "following": steps.following.numpy(),
        "terminated": steps.terminated.numpy(),
        "terminal": terminal,
        "rows": ROWS,
    }
    if isinstance(algorithm, SegmentReward):
        assert isinstance(objective.data, PairData)
        first = objective.data.index[:, :, 0].numpy()
        return said | weights(algorithm.net, "net") | {"first": first, "length": 50, "p": objective.data.p.numpy()}
    critics = getattr(algorithm, "q", None)
    if critics is not None:
        apart = MLP(critics.net.sizes, [90 + c for c in range(critics.net.members)], "apart")
        critics.target.follow(apart, 1.0)
        names = ("q", "target") if critics.critics == 1 else ("q0", "target0", "q1", "target1")
        for c in range(critics.critics):
            said |= weights(critics.net, names[2 * c], c) | weights(critics.target, names[2 * c + 1], c)
    for attribute, name in (("clone", "clone"), ("actor", "actor")):
        if (actor := getattr(algorithm, attribute, None)) is not None:
            said |= weights(actor.net, name)
    if kind == "fqe":
        said |= weights(POLICY[0].q.net, "policy")
    if kind == "iql-continuous":
        said |= weights(algorithm.v, "v") | {"log_std": float(algorithm.actor.log_std[0, 0, 0].detach())}
    return said


POLICY: list[Any] = []  # that fqe evaluates
ROWS = np.random.default_rng(2).integers(0, STEPS, 256)


def main() -> None:
    path, kind, members, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    objective, episodes = made(kind, members)
    if "write" in sys.argv:
        np.savez(path, **shared(objective, episodes, kind))
    n = STEPS if isinstance(objective.data, StepData) else len(objective.data.p)
    rows = Rows([f"{i:064x}" for i in range(n)], np.zeros(n, np.int64), np.arange(n))
    run = RunTable(threads=threads)
    trainer = Trainer(objective, rows, ControlTrain(batch=256, steps=1000, lr=1e-4), run)
    say(ready=time.perf_counter() - begun)
    step = 0
    with deterministic(run):
        while (what := order()) != "end":
            if what == "losses":
                place = ROWS if isinstance(objective.data, StepData) else np.arange(n)
                with torch.no_grad():
                    batch = objective.data.batch(torch.from_numpy(place).unsqueeze(0))
                    found = objective.model.losses(batch, Draw(objective.seeds, 0))
                say(losses={name: float(value[0]) for name, value in found.items()})
                continue
            step += 1
            began = time.perf_counter()
            trainer.step(step)
            say(seconds=(time.perf_counter() - began) / objective.draws["updates"], peak=peak())


if __name__ == "__main__":
    main()
