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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast import pipeline
from holdfast.control.collect import Behaviour, collect
from holdfast.control.flow import relabel_log
from holdfast.control.label import label
from holdfast.control.policy import load_algorithm
from holdfast.control.simulate import play
from holdfast.control.store import Log, freeze_episodes, relabel

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


TITLES = {"bc": "cloning", "dqn": "double DQN", "cql": "CQL, alpha 1", "bcq": "BCQ, threshold 0.3"}
ROWS = {
    "bc": "cloning",
    "true": "true reward",
    "learnt": "learnt reward",
    "living": "learnt, with the true mean added",
    "zero": "zero",
    "random": "random (an untrained network's)",
    "shuffled": "shuffled",
    "negated": "negated",
}
HEAD = """# Control: a study

Made by `python bench/control_study.py page` from runs of the recipes in `recipes/control-*.toml`; no figure is typed. Returns are
undiscounted means of 20 episodes for each seed, played after training and never learnt from. Seeds train side by side in one batched
network (`[control] replicas`), each with the result it would have alone. Intervals are 95 % of a hierarchical bootstrap: datasets (the same
for every row), then query draws within a dataset, then seeds within a draw. Of three datasets a bootstrap sees little: the figure of each
dataset stands beside it."""
NARROW_SAID = """\
One scripted policy with epsilon .02 made the log, so it almost never shows what another action leads to. Hidden layers 64 x 64, batch 64,
learning rate 1e-3, 10,000 updates, discount 0.99; 10 seeds x 3 datasets. Nothing but the algorithm differs. Settings are the library's own
and those of `recipes/control-cartpole.toml`, tried on one other log of each task. The log's policy errs on purpose and met other starts, so
that what learns from it can be above it."""
PREFERENCE_SAID = """\
Pendulum5-v1 logged by uniformly random torques, 20,000 steps; 500 judgements of pairs of 25 steps, by an annotator of temperature 10 who
calls some even (nu 1.5), of which a fifth, with a segment in an episode that is held out, is not learnt from; a reward by Bradley-Terry, an
ensemble of five; the log relabelled with its mean; double DQN on that, with the same settings for every reward. Rewards of all rows are
divided by their standard deviation and centred, as relabelling does (no episode terminates, so this changes no policy's rank). `random` is
the reward of a network that was never trained, `shuffled` the true rewards dealt out over the steps anew.

Settings were chosen on set A, and on one log more: that rewards are scaled (Huber's gradient is too slow for values in the hundreds), and
double DQN, since a log of random torques leaves no action unseen. Set B is fresh, and nothing was changed after it.

A reward counts as learnt only where a wrong one does not do: **the gate** asks that the true reward beat zero, random, shuffled and negated
ones and cloning, with the whole interval above 0. CartPole, whose reward is the same at every step, is never used for preferences."""
ROWS_SAID = """\
The same rows on one fresh dataset each. What fails the gate is shown with its figures, and is used as evidence of nothing about learnt
rewards. Hopper's episodes end where it falls, so that a constant in the reward, which pays for living, is much of the task: a reward that is
only shuffled has it. Segments of one length cannot tell a constant, and a learnt reward does not have it; the row that has the true mean added shows
what it is worth."""


def cell(name: str, settings: dict[str, Any], compute: Callable[[Path], dict[str, Any]]) -> None:
    """Keep what `compute` gives in a file, unless it is there from before, of the same settings."""
    at, settings = RESULTS / f"{name}.json", json.loads(json.dumps(settings))
    if not at.exists() or json.loads(at.read_text()).get("settings") != settings:
        began = time.perf_counter()
        work = Path(tempfile.mkdtemp(prefix="control-study-"))
        try:
            said = compute(work)
        finally:
            shutil.rmtree(work)
        said = {**said, "seconds": round(time.perf_counter() - began, 1), "settings": settings}
        RESULTS.mkdir(parents=True, exist_ok=True)
        at.write_text(json.dumps(said))
        print(name, {k: v for k, v in said.items() if k != "settings"}, flush=True)


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

            settings = {**base, "objective": {"kind": kind, **said}, "steps": NARROW[env_id], "seed": seed}
            cell(f"narrow-{env_id}-{d}-{kind}", settings, compute)


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
    task, base, judging = TASKS[name], read(TASKS[name].recipe), read("pendulum5-reward")
    replicas = 1 if base["objective"]["kind"] == "fqi_trees" else 5
    said = {"task": asdict(task), "recipe": base}
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

        def learnt(work: Path, q: int, living: bool = False, seed: int = seed, logged: Any = logged) -> dict[str, Any]:
            log = logged(work)
            judged = freeze_episodes(
                log.episodes,
                work / "judged",
                segments=label(log, queries=500, seed=seed + 10 * q + 5, **(task.judged or {})),
                parent=log.root,
                facts=log.facts,
            )
            learn(judging, judged.path, seed + 10 * q + 5, 5, work / "reward")
            said = json.loads((work / "reward/evaluations/held-out/metrics.json").read_text())["validation"]
            made = relabel_log(work / "reward", judged.path, work / "learnt")
            true = rewards(task, log, seed)["true"]
            if living:
                paid = made.episodes.rewards - made.episodes.rewards.mean() + true.mean()
                made = relabel(made, paid, work / "living")
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
                cell(f"{name}-{set_}-{d}-{r}", {**said, "seed": seed}, lambda work, r=r, row=row: row(work, r))
        for q in draws if task.judged else ():
            key = {**said, "judge": judging, "seed": seed + 10 * q}
            if only is None or "learnt" in only:
                cell(f"{name}-{set_}-{d}-learnt-{q}", key, lambda work, q=q, learnt=learnt: learnt(work, q))
            if name == "hopper" and (only is None or "living" in only):
                cell(f"{name}-{set_}-{d}-living-{q}", key, lambda work, q=q, learnt=learnt: learnt(work, q, True))


def found(name: str, set_: str) -> tuple[dict[str, np.ndarray], dict[str, list[float]], list[float]]:
    """What was measured of a task: row -> (datasets, draws, seeds) mean returns, one draw where there is none; what
    the learnt rewards are; what the logs' own policies earn."""
    cells: dict[str, dict[int, list[Any]]] = {}
    facts: dict[str, list[float]] = {}
    behaviour = []
    for at in sorted(RESULTS.glob(f"{name}-{set_}-*.json")):
        d, row, *_ = at.stem.removeprefix(f"{name}-{set_}-").split("-")
        said = json.loads(at.read_text())
        cells.setdefault(row, {}).setdefault(int(d), []).append(said["returns"])
        behaviour += [said["behaviour"]] if row == "true" else []
        for fact in ("correlation", "agrees", "tied"):
            facts.setdefault(fact, []).extend([said[fact]] if said.get(fact) is not None else [])
    return {row: np.array([of[d] for d in sorted(of)]) for row, of in cells.items()}, facts, behaviour


def judge(of: dict[str, np.ndarray], reps: int = 10000) -> dict[str, Any]:
    """The gate (the true reward less the best of the wrong ones and cloning) and the learnt reward's share of the gap, with
    95 % intervals: datasets are resampled, the same for every row, then draws within a dataset, then seeds within a draw."""
    rng = np.random.default_rng(0)
    n = len(of["true"])
    names = [r for r in ("bc", "true", "learnt", "living", *WRONG) if r in of]
    means = np.empty((reps, len(names)))
    for i in range(reps):
        which = rng.integers(n, size=n)
        for j, row in enumerate(names):
            v = of[row][which]
            D, Q, S = v.shape
            v = v[np.arange(D)[:, None], rng.integers(Q, size=(D, Q))]
            means[i, j] = np.take_along_axis(v, rng.integers(S, size=(D, Q, S)), 2).mean()
    point = np.array([[of[row].mean() for row in names]])
    said: dict[str, Any] = {}

    def measure(m: np.ndarray) -> dict[str, np.ndarray]:
        by = dict(zip(names, m.T, strict=True))
        best = np.max([by[r] for r in WRONG if r in by], axis=0)
        out = {"gate": by["true"] - np.maximum(best, by["bc"])}
        if "learnt" in by:
            with np.errstate(divide="ignore", invalid="ignore"):
                out["share"] = (by["learnt"] - best) / (by["true"] - best)
        return {**by, **out}

    points = measure(point)
    for what, values in measure(means).items():
        said[what] = [float(points[what][0]), *np.quantile(values, [0.025, 0.975]).tolist()]
    return said


def page() -> None:
    """docs/control-study.md, and the figures as one file."""

    def row(*cells: Any) -> str:
        return "| " + " | ".join(str(c) for c in cells) + " |"

    def number(x: float) -> str:
        return f"{x:,.1f}" if abs(x) < 100 else f"{x:,.0f}"

    figures: dict[str, Any] = {"narrow": {}, "tasks": {}}
    short = []
    out = [HEAD, ""]
    out += ["## Narrow data", "", NARROW_SAID, ""]
    at = len(out) - 4
    out += [
        row("log", "behaviour", "learner", "mean of 3 x 10", "each dataset", "worst seed", "best seed"),
        "|---|---|---|---|---|---|---|",
    ]
    for env_id, steps in NARROW.items():
        for kind, title in TITLES.items():
            cells = [json.loads(at.read_text()) for at in sorted(RESULTS.glob(f"narrow-{env_id}-*-{kind}.json"))]
            if not cells:
                continue
            v = np.array([c["returns"] for c in cells])
            value = float(np.mean([c["behaviour"] for c in cells]))
            figures["narrow"].setdefault(env_id, {})[kind] = {"behaviour": value, "returns": v.tolist()}
            each = ", ".join(number(x) for x in v.mean(1))
            said = (f"{env_id}, {steps:,} steps", number(value)) if kind == "bc" else ("", "")
            out.append(row(*said, title, number(v.mean()), each, number(v.min()), number(v.max())))
    out += ["", "## A reward learnt from comparisons", "", PREFERENCE_SAID, ""]
    for set_, title in (("A", "Set A: settings were chosen here"), ("B", "Set B: fresh datasets, draws and seeds")):
        out += _task("pendulum5", set_, f"### {title}", figures)
    out += ["## The other recipes", "", ROWS_SAID, ""]
    for name, task in TASKS.items():
        if name != "pendulum5":
            out += _task(name, "B", f"### {task.env} (`recipes/control-{task.recipe}.toml`)", figures)
    for env_id, of in figures["narrow"].items():
        told = [f"{TITLES[k].split(',')[0]} {number(float(np.mean(of[k]['returns'])))}" for k in of]
        short.append(f"- {env_id}, narrow: the log's policy {number(of['bc']['behaviour'])}; {', '.join(told)}.")
    share = figures["tasks"].get("pendulum5-B", {}).get("share")
    if share:
        point, low, high = (100 * x for x in share)
        short.append(
            f"- A reward learnt from 500 comparisons has {point:.1f} % ({low:.1f} to {high:.1f}) of the gap from the best wrong "
            "reward to the true one, on fresh datasets, draws and seeds."
        )
    out[at:at] = [*short, ""]
    PAGE.write_text("\n".join(out).rstrip() + "\n")
    (RESULTS.parent / "control-study.json").write_text(json.dumps(figures, indent=1))
    print(PAGE)


def _task(name: str, set_: str, title: str, figures: dict[str, Any]) -> list[str]:
    of, facts, behaviour = found(name, set_)
    if "true" not in of or "bc" not in of:
        return []
    said = judge(of)
    figures["tasks"][f"{name}-{set_}"] = {**said, **facts, "behaviour": behaviour}
    D, _, S = of["true"].shape
    out = [title, "", "| row | mean return | 95 % interval | each dataset |", "|---|---|---|---|"]
    out.append(f"| behaviour | {np.mean(behaviour):,.0f} | | {', '.join(f'{b:,.0f}' for b in behaviour)} |")
    for r in ("bc", "true", "learnt", "living", *WRONG):
        if r in of:
            mean, low, high = said[r]
            each = ", ".join(f"{x:,.0f}" for x in of[r].mean((1, 2)))
            out.append(f"| {ROWS[r]} | {mean:,.0f} | {low:,.0f} to {high:,.0f} | {each} |")
    point, low, high = said["gate"]
    word = "passes" if low > 0 else "fails, and is no evidence for or against a learnt reward"
    out += [
        "",
        f"Gate: the true reward is {point:,.0f} ({low:,.0f} to {high:,.0f}) above the best of the others: the task {word}.",
    ]
    out[-1] += f" {D} dataset{'s' * (D > 1)} x {S} seed{'s' * (S > 1)}."
    if "share" in said and low > 0 and said["share"][0] < 0:
        best = max(said[r][0] for r in WRONG if r in said)
        out.append(
            f"The learnt reward is {best - said['learnt'][0]:,.0f} below the best wrong one: it has none of the gap."
        )
    elif "share" in said and low > 0:
        point, low, high = (100 * x for x in said["share"])
        Q = of["learnt"].shape[1]
        out.append(
            f"The learnt reward has **{point:.1f} %** ({low:.1f} to {high:.1f}) of the gap from the best wrong reward to the true one "
            f"({D} x {Q} draws x {of['learnt'].shape[2]} seeds)."
        )
    if facts.get("agrees"):
        agrees, tied = np.mean(facts["agrees"]), np.mean(facts["tied"])
        told = (
            f"The annotator agrees with its reward in {agrees:.1%} of the pairs that it decides; {tied:.1%} are ties."
        )
        if facts["correlation"]:
            c = facts["correlation"]
            told += f" Learnt and true reward correlate, step by step, by {np.mean(c):.3f} (least {min(c):.3f})."
        out.append(told)
    return [*out, ""]


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
    elif asked.what == "page":
        page()
    elif asked.what == "rows":
        for name in asked.task or [t for t in TASKS if t != "pendulum5"]:
            rows(name, asked.set, asked.datasets[:1], asked.draws[:1], asked.only)


if __name__ == "__main__":
    main()
