"""Control, studied: does learning from a log hold where the log is narrow, and does a reward learnt from comparisons
do what the true one does? `python bench/control_study.py narrow|preference|rows|page`

    narrow       CartPole and Pendulum5, one policy with epsilon .02: cloning, double DQN, CQL, BCQ; 10 seeds x 3 datasets
    preference   Pendulum5, a random log: cloning, and the true, learnt, zero, random, shuffled and negated reward;
                 set A (what settings were chosen on) and set B (fresh datasets, draws and seeds): 3 x 3 x 5
    rows         the same rows for every other recipe's task, one dataset
    page         docs/control-study.md from the results

Every cell is a file in bench/results/control-study; one that is there is not computed again, so a run that was cut goes
on. A cell is a training of K seeds at once and 20 episodes played by each. Needs holdfast[control]; about an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast import pipeline
from holdfast.control.collect import Behaviour, collect
from holdfast.control.environments import make, scripted, space_of
from holdfast.control.flow import relabel_log
from holdfast.control.label import label
from holdfast.control.policy import load_algorithm
from holdfast.control.simulate import play
from holdfast.control.store import Log, freeze_episodes, open_log, relabel

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
RESULTS = HERE / "results" / "control-study"
PAGE = HERE.parent / "docs" / "control-study.md"
EPISODES = 20  # played by each seed
WRONG = ("zero", "random", "shuffled", "negated")
SETS = {"A": 1000, "B": 2000}  # the first seed of datasets, draws and members; nothing of A is met in B


@dataclass(frozen=True)
class Task:
    """What is logged, the recipe that learns from it, and how segments of it are judged (None: they are not)."""

    env: str
    behaviours: tuple[str, ...]
    steps: int
    recipe: str
    judged: dict[str, Any] | None = None


TASKS = {
    "pendulum5": Task(
        "Pendulum5-v1", ("random",), 20000, "pendulum5", {"length": 25, "temperature": 10.0, "ties": 1.5}
    ),
    "cartpole": Task("CartPole-v1", ("scripted,epsilon=0.02",), 5000, "cartpole"),
    "pendulum": Task(
        "Pendulum-v1",
        ("scripted,noise=0.5,epsilon=0.3", "random"),
        20000,
        "pendulum",
        {"length": 25, "temperature": 10.0, "ties": 1.5},
    ),
    "mountaincar": Task(
        "MountainCar-v0",
        ("scripted,epsilon=0.3", "random"),
        10000,
        "mountaincar",
        {"length": 25, "temperature": 2.0, "ties": 1.5, "reward": "mountaincar-energy"},
    ),
    "hopper": Task(
        "Hopper-v5",
        ("scripted,noise=0.1", "scripted,noise=0.3"),
        50000,
        "hopper",
        {"length": 25, "temperature": 5.0, "ties": 1.5, "short": "drop"},
    ),
}
NARROW = {
    "CartPole-v1": 5000,
    "Pendulum5-v1": 10000,
}
KINDS: dict[str, dict[str, Any]] = {"bc": {}, "dqn": {}, "cql": {"alpha": 1.0}, "bcq": {}}


def cell(name: str, compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` gives, from its file where it was computed before."""
    at = RESULTS / f"{name}.json"
    if not at.exists():
        began = time.perf_counter()
        work = Path(tempfile.mkdtemp(prefix="control-study-"))
        try:
            said = compute(work)
        finally:
            shutil.rmtree(work)
        said = {**said, "seconds": round(time.perf_counter() - began, 1)}
        RESULTS.mkdir(parents=True, exist_ok=True)
        at.write_text(json.dumps(said))
        print(name, {k: np.round(v, 2) for k, v in said.items()}, flush=True)
    found: dict[str, Any] = json.loads(at.read_text())
    return found


def learn(recipe: dict[str, Any], log: Path, seed: int, replicas: int, run: Path) -> None:
    """Train what the recipe says on a log, all of it, without looking at an environment."""
    control = {k: v for k, v in recipe["control"].items() if k not in ("simulate", "episodes")}
    train = {k: v for k, v in recipe["train"].items() if k != "eval_every"}
    said = {
        "run": {"seed": seed, "threads": 1},
        "data": {"dataset": str(log), "split": {"validation": 0.0}},
        "control": {**control, "replicas": replicas},
        "objective": recipe["objective"],
        "train": {**train, "checkpoint_every": 10**6},
    }
    if recipe["objective"]["kind"] == "segment_reward":
        said["data"]["split"]["validation"] = 0.1
    pipeline.train(said, run, quiet=True)


def returns(run: Path, env: str, seed: int) -> list[float]:
    """Each member's mean return over the same starts."""
    algorithm, scale, _ = load_algorithm(run)
    return play(algorithm, scale, env, EPISODES, seed).mean(1).tolist()


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((RECIPES / f"control-{name}.toml").read_text())


def narrow(datasets: Sequence[int], env_id: str, first: int = SETS["B"]) -> None:
    base = read("cartpole")
    for d in datasets:
        seed = first + 100 * d

        def logged(work: Path, seed: int = seed) -> Log:
            behaviour = Behaviour.parse("scripted,epsilon=0.02")
            return freeze_episodes(collect(env_id, behaviour, steps=NARROW[env_id], seed=seed), work / "log")

        for kind, said in KINDS.items():

            def compute(
                work: Path, kind: str = kind, said: dict[str, Any] = said, logged: Any = logged, seed: int = seed
            ) -> dict[str, Any]:
                log = logged(work)
                learn({**base, "objective": {"kind": kind, **said}}, log.path, seed, 10, work / "run")
                behaviour = log.facts["behaviours"][0]["return"]
                return {"returns": returns(work / "run", env_id, seed), "behaviour": behaviour}

            cell(f"narrow-{env_id}-{d}-{kind}", compute)


def rewards(task: Task, log: Log, seed: int) -> dict[str, np.ndarray]:
    """The rewards of every row but the learnt one, all in the scale that relabelling gives: divided by their standard
    deviation, less their mean where no episode terminates (that changes no policy's rank)."""
    centre = not log.episodes.terminated.any()

    def scaled(r: np.ndarray) -> np.ndarray:
        spread = r.std()
        return (r - (r.mean() if centre else 0)) / (spread if spread > 1e-9 else 1.0)

    rng = np.random.default_rng(seed)
    obs = log.episodes.observations.astype(np.float64)
    n = log.episodes.n_actions
    acted = np.eye(n)[log.episodes.actions] if n is not None else log.episodes.actions.astype(np.float64)
    x = np.concatenate([(obs - obs.mean(0)) / np.maximum(obs.std(0), 1e-6), acted], axis=1)
    hidden = np.maximum(
        x @ rng.normal(size=(x.shape[1], 64)) + rng.normal(size=64), 0
    )  # a network that was never trained
    true = scaled(log.episodes.rewards)
    return {
        "true": true,
        "zero": np.zeros_like(true),
        "random": scaled(hidden @ rng.normal(size=64)),
        "shuffled": rng.permutation(true),
        "negated": -true,
    }


def rows(
    name: str, set_: str, datasets: Sequence[int], draws: Sequence[int], only: Sequence[str] | None = None
) -> None:
    """All rows of a task. The learnt reward: 500 queries of each draw, an ensemble of five, the recipe's own settings."""
    task, base, judge = TASKS[name], read(TASKS[name].recipe), read("pendulum5-reward")
    replicas = 1 if base["objective"]["kind"] == "fqi_trees" else 5
    for d in datasets:
        seed = SETS[set_] + 100 * d

        def logged(work: Path, seed: int = seed) -> Log:
            behaviours = [Behaviour.parse(b) for b in task.behaviours]
            return freeze_episodes(collect(task.env, behaviours, steps=task.steps, seed=seed), work / "log")

        def row(work: Path, row: str, seed: int = seed, logged: Any = logged) -> dict[str, Any]:
            log = logged(work)
            recipe = base
            if row == "bc":
                keys = ("batch", "lr", "steps") if replicas > 1 else ()
                recipe = {
                    **base,
                    "objective": {"kind": "bc"},
                    "train": {k: base["train"][k] for k in keys} or {"batch": 128, "lr": 1e-3, "steps": 12},
                    "control": {"hidden": [64, 64], "updates": 500, "discount": 0.99},
                }
            else:
                log = relabel(log, rewards(task, log, seed)[row], work / row)
            learn(recipe, log.path, seed, 5 if row == "bc" else replicas, work / "run")
            by = log.facts["behaviours"]
            value = sum(b["return"] * b["episodes"] for b in by if b["episodes"]) / sum(b["episodes"] for b in by)
            return {"returns": returns(work / "run", task.env, seed), "behaviour": value}

        def learnt(work: Path, q: int, seed: int = seed, logged: Any = logged) -> dict[str, Any]:
            log = logged(work)
            judged = freeze_episodes(
                log.episodes,
                work / "judged",
                segments=label(log, queries=500, seed=seed + 10 * q + 5, **(task.judged or {})),
                parent=log.root,
                facts=log.facts,
            )
            learn(judge, judged.path, seed + 10 * q + 5, 5, work / "reward")
            said = json.loads((work / "reward/evaluations/held-out/metrics.json").read_text())["validation"]
            made = relabel_log(work / "reward", judged.path, work / "learnt")
            true = rewards(task, log, seed)["true"]
            assert judged.segments is not None
            learn(base, made.path, seed + 10 * q, replicas, work / "run")
            return {
                "returns": returns(work / "run", task.env, seed),
                "accuracy": said["preference/accuracy"],
                "correlation": float(np.corrcoef(true, made.episodes.rewards)[0, 1]) if true.std() else None,
                "agrees": judged.segments.facts["agrees"],
                "tied": judged.segments.facts["tied"],
            }

        for r in ("bc", "true", *WRONG):
            if only is None or r in only:
                cell(f"{name}-{set_}-{d}-{r}", lambda work, r=r, row=row: row(work, r))
        for q in draws if task.judged and (only is None or "learnt" in only) else ():
            cell(f"{name}-{set_}-{d}-learnt-{q}", lambda work, q=q, learnt=learnt: learnt(work, q))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["narrow", "preference", "rows", "page"])
    ask.add_argument("--task", action="append", help="narrow: an environment; rows: a recipe's name")
    ask.add_argument("--set", default="B", choices=list(SETS))
    ask.add_argument("--datasets", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--only", nargs="+", help="these rows alone")
    asked = ask.parse_args()
    if asked.what == "narrow":
        for env_id in asked.task or NARROW:
            narrow(asked.datasets, env_id)
    elif asked.what == "preference":
        rows("pendulum5", asked.set, asked.datasets, asked.draws, asked.only)
    elif asked.what == "rows":
        for name in asked.task or [t for t in TASKS if t != "pendulum5"]:
            rows(name, asked.set, asked.datasets[:1], asked.draws[:1], asked.only)


if __name__ == "__main__":
    main()
