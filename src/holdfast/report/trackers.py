"""A run's figures in TensorBoard, Weights & Biases or MLflow, under TRL's names: read from the run's files, so that no digest knows of it.

`fit` has no network. What shows a run while it trains is another process that reads its files: `holdfast track RUN --to wandb --follow`.
Each tool is written by its own library, which is asked for only here.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from holdfast.errors import HoldfastError, RecipeError
from holdfast.report.read import RunData, read_run

INSTALL = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}  # modules; any of them
RENAMED = {"lr": "learning_rate"}
REWARD = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}  # TRL's RewardTrainer has names of its own


@dataclass(frozen=True)
class Point:
    """Figures at one step. part: train, eval (held out while training), or a part of the final evaluation (test, ood, ...)."""

    step: int
    part: str
    figures: Mapping[str, float]
    seconds: float  # of computing until then


class Tracker(Protocol):
    """One tool, opened for one run."""

    where: str  # what to open to see it
    seen: int  # the last step that it holds already, -1 for none

    def log(self, point: Point) -> None: ...

    def close(self) -> None: ...


def require(tools: Sequence[str]) -> None:
    """Raises RecipeError where a tool's library is missing, saying how to install it."""
    for tool in tools:
        if tool not in INSTALL:
            raise RecipeError(f"tracker {tool!r} is unknown (known: {', '.join(INSTALL)})")
        if not any(importlib.util.find_spec(module) for module in INSTALL[tool]):
            raise RecipeError(
                f"[track] to = {tool!r} needs its library: pip install {' (or: pip install '.join(INSTALL[tool])}"
                + ")" * (len(INSTALL[tool]) - 1)
            )


def track(run: str | Path, to: Sequence[str], follow: bool = False, every: float = 5.0) -> dict[str, str]:
    """Write a run's figures with each tool of `to`; returns where each can be seen.

    follow: go on reading, every so many seconds, until the run has ended. A run that is tracked again is not doubled.
    Raises RecipeError where a library is missing, HoldfastError where there is no such run or a tool fails.
    """
    require(to)
    if not to:
        return {}
    data = read_run(run)
    while follow and not data.opened:  # the run has not taken its first step
        time.sleep(every)
        data = read_run(run)
    makers: dict[str, Callable[[RunData], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    open_: dict[str, Tracker] = {}
    tool = ""
    try:
        for tool in to:
            open_[tool] = makers[tool](data)
        done: set[tuple[int, str]] = set()
        while True:
            for point in points(data):
                for tool in open_:
                    if (point.step, point.part) not in done and point.step > open_[tool].seen:
                        open_[tool].log(point)
                done.add((point.step, point.part))
            if not follow or ended(data):
                break
            time.sleep(every)
            data = read_run(run)
        for tool in open_:
            open_[tool].close()
    except HoldfastError:
        raise
    except Exception as problem:
        raise HoldfastError(
            f"{run} is whole, but {tool} could not be written: {type(problem).__name__}: {problem}; again with: holdfast track {run} --to {tool}"
        ) from problem
    return {tool: tracker.where for tool, tracker in open_.items()}


def ended(data: RunData) -> bool:
    """Whether nothing more will come: trained and, where the recipe scores parts, evaluated."""
    return data.final is not None and (data.main is not None or (data.folder / "report.html").exists())


def points(data: RunData) -> Iterator[Point]:
    """Everything that a run has measured, in the order of its steps."""
    spent = _seconds(data.folder / "timing.jsonl")
    last = max([data.steps, *(s.step[-1] for s in data.metrics.values() if s.step)], default=0)
    for part, measured in (("train", data.metrics), ("eval", data.held_out)):
        figures: dict[int, dict[str, float]] = {}
        for name, series in measured.items():
            for step, value in zip(series.step, series.value, strict=True):
                figures.setdefault(step, {})[name] = value
        for step in sorted(figures):
            yield Point(step, part, names(figures[step], data.kind), spent.get(step, 0.0))
    if data.main is not None:
        for part, cells in data.main.figures["parts"].items():
            found = {n: f["value"] for n, f in cells["all"]["figures"].items() if f["value"] is not None}
            for n in ("lo", "hi"):
                found |= {f"{name}/{n}": f[n] for name, f in cells["all"]["figures"].items() if f.get(n) is not None}
            yield Point(
                last, part, names(found, "" if data.kind == "reward" else data.kind), max(spent.values(), default=0.0)
            )


def names(figures: Mapping[str, float], kind: str) -> dict[str, float]:
    """Figures under TRL's names; a reward model's also under those of TRL's RewardTrainer."""
    said = {RENAMED.get(name, name): value for name, value in figures.items()}
    if kind == "reward":
        said |= {REWARD[name]: value for name, value in figures.items() if name in REWARD}
        if {"rewards/chosen", "rewards/rejected"} <= set(figures):
            said["mean_reward"] = (figures["rewards/chosen"] + figures["rewards/rejected"]) / 2
    return {name: value for name, value in said.items() if math.isfinite(value)}


def facts(data: RunData) -> dict[str, str]:
    """What ties the figures to the run: digests, as tags."""
    said = {"dataset_root": data.fact("dataset"), "ledger_head": data.head, "recipe_digest": data.fact("recipe")}
    said |= {"split_digest": data.fact("split"), "base_digest": data.fact("base"), "run_id": data.opened.get("hash")}
    said |= {"weights_digest": (data.final or {}).get("weights"), "objective": data.kind}
    return {name: str(value) for name, value in said.items() if value is not None}


def settings(data: RunData) -> dict[str, Any]:
    """The recipe, flat: `train.lr` and so on."""

    def flat(said: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(said, Mapping):
            for key, value in said.items():
                yield from flat(value, f"{path}.{key}" if path else key)
        else:
            yield path, said if isinstance(said, bool | int | float | str) else orjson.dumps(said).decode()

    return dict(flat(data.recipe, ""))


def title(data: RunData) -> str:
    return str(data.recipe.get("run", {}).get("name") or data.folder.name)


class TensorBoard:
    """Event files in RUN/tensorboard, made anew each time: `tensorboard --logdir RUN`."""

    seen = -1

    def __init__(self, data: RunData):
        self.where = f"tensorboard --logdir {data.folder}"
        self.data, folder = data, data.folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        else:
            from tensorboardX import SummaryWriter  # type: ignore[no-redef]
            from tensorboardX.summary import hparams  # type: ignore[no-redef]
        self.writer: Any = SummaryWriter(str(folder))
        self.hparams: Any = hparams
        self.began = (data.folder / "recipe.toml").stat().st_mtime if (data.folder / "recipe.toml").exists() else 0.0
        self.last: dict[str, float] = {}

    def log(self, point: Point) -> None:
        for name, value in point.figures.items():
            self.writer.add_scalar(f"{point.part}/{name}", value, point.step, self.began + point.seconds)
            if point.part not in ("train", "eval"):
                self.last[f"{point.part}/{name}"] = value
        self.writer.flush()

    def close(self) -> None:
        data = read_run(self.data.folder)
        said = facts(data)
        self.writer.add_text("holdfast", "\n\n".join(f"{name}: `{value}`" for name, value in said.items()), 0)
        for summary in self.hparams({**settings(data), **said}, self.last):
            self.writer.file_writer.add_summary(summary)
        self.writer.close()


class WandB:
    """A run of Weights & Biases with the id of the ledger's first entry. Offline, to be sent with `wandb sync`, unless one is logged in;
    WANDB_MODE, WANDB_PROJECT and the like decide as always.
    """

    seen = -1

    def __init__(self, data: RunData):
        import wandb

        self.data = data
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        said = facts(data)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "holdfast",
            name=title(data),
            id=said.get("run_id", title(data))[:32],
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(data.folder),
            config={**settings(data), **said},
            tags=_short(said),
        )
        self.seen = int(getattr(self.run, "step", 0) or 0) - 1 if mode == "online" else -1
        self.where = self.run.url if mode == "online" else f"wandb sync {Path(self.run.dir).parent}"
        self.waiting: dict[int, dict[str, float]] = {}

    def log(self, point: Point) -> None:
        self.waiting.setdefault(point.step, {}).update({f"{point.part}/{n}": v for n, v in point.figures.items()})

    def close(self) -> None:
        for step in sorted(self.waiting):  # W&B takes steps in order only
            self.run.log({**self.waiting[step], "train/global_step": step}, step=step)
        said = facts(read_run(self.data.folder))
        self.run.config.update(said, allow_val_change=True)
        self.run.tags = tuple(_short(said))
        self.run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says; found again by the tag holdfast.run_id, and gone on with."""

    def __init__(self, data: RunData):
        from mlflow.tracking import MlflowClient

        self.data, self.client = data, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "holdfast"
        experiment = self.client.get_experiment_by_name(name)
        self.experiment = experiment.experiment_id if experiment is not None else self.client.create_experiment(name)
        identity = facts(data).get("run_id", title(data))
        found = self.client.search_runs([self.experiment], f"tags.`holdfast.run_id` = '{identity}'", max_results=1)
        run = found[0] if found else self.client.create_run(self.experiment, run_name=title(data))
        self.id = run.info.run_id
        self.seen = int(run.data.tags.get("holdfast.step", "-1"))
        self.where = f"mlflow ui, experiment {name}, run {self.id}"
        self.client.set_tag(self.id, "holdfast.run_id", identity)
        if not found:
            for key, value in settings(data).items():
                self.client.log_param(self.id, key, str(value)[:500])
        self.began = int(time.time() * 1000)
        self.step = self.seen

    def log(self, point: Point) -> None:
        """TRL's callback hands MLflow the bare names: `loss`, `eval_loss`."""
        from mlflow.entities import Metric

        prefix = "" if point.part == "train" else f"{point.part}_"
        when = self.began + int(point.seconds * 1000)
        metrics = [Metric(f"{prefix}{name}", value, when, point.step) for name, value in point.figures.items()]
        self.client.log_batch(self.id, metrics=metrics)
        self.step = max(self.step, point.step)

    def close(self) -> None:
        for name, value in facts(read_run(self.data.folder)).items():
            self.client.set_tag(self.id, f"holdfast.{name}", value)
        self.client.set_tag(self.id, "holdfast.step", str(self.step))
        self.client.set_terminated(self.id)


def _logged_in() -> bool:
    import netrc

    try:
        return bool(os.environ.get("WANDB_API_KEY")) or netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _short(said: Mapping[str, str]) -> list[str]:
    """Tags that W&B takes: up to 64 characters each."""
    return [f"{name}:{said[name][:16]}" for name in ("dataset_root", "ledger_head") if name in said]


def _seconds(path: Path) -> dict[int, float]:
    """Seconds of computing until each step was done."""
    spent, total = {}, 0.0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = orjson.loads(line)
            total += float(entry["seconds"])
            spent[int(entry["step"])] = total
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
            continue  # a line that a kill cut off
    return spent
