"""The main flow of control, top to bottom: open, split, scale, build, fit, play, write.

log -> split by episode -> scale -> rows -> algorithm -> fit -> policy
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from holdfast.control.actors import Task
from holdfast.control.algorithms import find
from holdfast.control.algorithms.base import Algorithm
from holdfast.control.algorithms.discrete import FQE
from holdfast.control.algorithms.preference import CPL, SegmentReward
from holdfast.control.algorithms.shared import Actor
from holdfast.control.algorithms.trees import TreeFQI, TreeObjective
from holdfast.control.objective import ControlObjective
from holdfast.control.policy import build, load_algorithm, save_policy
from holdfast.control.simulate import play
from holdfast.control.steps import PairData, Scale, StepData
from holdfast.control.store import Log, open_log, relabel, split_episodes, step_ids
from holdfast.errors import DataError, IntegrityError, RecipeError
from holdfast.recipe import ControlRecipe
from holdfast.training.checkpoint import weights_digest
from holdfast.training.determinism import deterministic
from holdfast.training.fit import Fitted, fit
from holdfast.training.objective import Rows
from holdfast.training.replay import replay as recompute


@dataclass(frozen=True)
class Prepared:
    """All that `fit` takes: what training and replay share."""

    recipe: ControlRecipe
    log: Log
    scale: Scale
    objective: ControlObjective
    rows: Rows
    held_out: np.ndarray | None
    facts: dict[str, Any]
    left_out: dict[str, int]


def train(p: Prepared, folder: Path, quiet: bool, allow_environment_change: bool) -> Fitted:
    """Train what was prepared into the folder, or go on with what is there."""
    recipe = p.recipe
    with deterministic(recipe.run):
        return fit(
            p.objective,
            p.rows,
            recipe.train,
            recipe.run,
            folder,
            facts=p.facts,
            held_out=p.held_out,
            on_final=lambda to: _save(p, to),
            quiet=quiet,
            allow_environment_change=allow_environment_change,
        )


def prepare(recipe: ControlRecipe) -> Prepared:
    """Everything before the first step. Raises RecipeError, DataError or IntegrityError naming what is wrong."""
    asked, control = recipe.objective, recipe.control
    log = open_log(recipe.data.dataset)
    if recipe.data.root not in (None, log.root):
        raise IntegrityError(f"log {log.path} has root {log.root}, the recipe wants {recipe.data.root}")
    episodes = log.episodes
    cls = find(str(asked["kind"]), episodes.n_actions is not None)
    if cls.needs_reward and episodes.rewards is None:
        raise DataError(
            f"{asked['kind']} learns from rewards, and {log.path} has none: learn one from its judgements "
            "(kind = 'segment_reward') and relabel it, or take bc, cpl or ipl"
        )
    parts = split_episodes(log, recipe.data.split.validation, recipe.data.split.test, recipe.data.split.seed)
    ids, numbers = step_ids(log.episode_ids, episodes.offsets, parts["train"])
    scale = Scale.of(episodes, numbers, control.standardise)
    start, reference = (None if at is None else load_algorithm(at) for at in (control.start, control.reference))
    if start is not None:  # a network keeps the scale that its weights were learnt in
        scale = start[1]
    seeds = tuple(recipe.run.seed + k for k in range(control.replicas))
    discount = control.discount if isinstance(control.discount, tuple) else (control.discount,)
    action = 0 if episodes.n_actions is not None else episodes.actions.shape[1]
    task = Task(episodes.observations.shape[-1], episodes.n_actions, action, seeds, control.hidden, discount)
    algorithm = build(task, asked)
    facts: dict[str, Any] = {}
    if start is not None:
        facts["start"] = weights_digest(start[0].kept())
        _begin_from(algorithm, start[0], str(control.start))
    steps = StepData(episodes, scale)
    if reference is not None:
        facts["reference"] = weights_digest(reference[0].kept())
        _refer_to(algorithm, reference, scale, steps, str(control.reference))
    elif isinstance(algorithm, FQE):
        raise RecipeError("fqe evaluates a policy: name its run in [control] reference")

    data: StepData | PairData = steps
    left_out: dict[str, int] = {}
    starts = None
    if cls.reads == "judgements":
        if log.segments is None or not len(log.segments):
            raise DataError(
                f"{asked['kind']} learns from judgements of segments, and {log.path} has none: `holdfast control label`"
            )
        within = {name: log.segments.within(part) for name, part in parts.items()}
        straddling = len(log.segments) - sum(len(w) for w in within.values())
        if straddling:
            left_out["its two episodes are in different parts of the split"] = straddling
        numbers, held_out = within["train"], within["validation"]
        if not len(numbers):
            raise DataError(
                f"no judgement of {log.path} has both its segments in episodes to train on: lower [data.split] shares"
            )
        data = PairData(steps, episodes, log.segments, control.unequal_lengths)
        rows = Rows(
            [log.segments.ids[j] for j in numbers.tolist()], log.segments.episode[numbers, 0].astype(np.int64), numbers
        )
    else:
        of_step = np.repeat(np.arange(len(episodes)), np.diff(episodes.offsets))
        rows = Rows(ids, of_step[numbers], numbers)
        held_out = np.flatnonzero(np.isin(of_step, parts["validation"])).astype(np.int64)
        watched = parts["validation"] if len(parts["validation"]) else parts["train"]
        starts = episodes.offsets[watched]

    record = {
        "recipe": recipe.digest(),
        "dataset": log.root,
        "scale": scale.said(),
        "parts": {name: len(part) for name, part in parts.items()},
        "left_out": left_out,
        **facts,
    }
    played = _player(recipe, scale) if control.simulate is not None and algorithm.acts else None
    made: ControlObjective
    if isinstance(algorithm, TreeFQI):
        assert isinstance(data, StepData)
        made = TreeObjective(algorithm, data, numbers, starts, played)
    else:
        made = ControlObjective(algorithm, data, control.updates, control.bootstrap, starts, played)
    return Prepared(recipe, log, scale, made, rows, held_out if len(held_out) else None, record, left_out)


def _player(recipe: ControlRecipe, scale: Scale) -> Any:
    env_id, episodes, seed = str(recipe.control.simulate), recipe.control.episodes, recipe.run.seed
    return lambda algorithm: play(algorithm, scale, env_id, episodes, seed)


@torch.no_grad()
def _begin_from(algorithm: Algorithm, start: Algorithm, where: str) -> None:
    """The networks that both have, from `start`; its members in turn where it has fewer."""
    mine, theirs = algorithm.state_dict(), start.state_dict()
    shared = [n for n in mine if n in theirs and mine[n].shape[1:] == theirs[n].shape[1:]]
    if not shared:
        raise RecipeError(
            f"[control] start = {where!r} has no network that this algorithm has: the same hidden widths, an actor"
        )
    for name in shared:
        mine[name].copy_(theirs[name][torch.arange(len(mine[name])) % len(theirs[name])])


def _refer_to(
    algorithm: Algorithm, reference: tuple[Algorithm, Scale, dict[str, Any]], scale: Scale, steps: StepData, where: str
) -> None:
    """Give the algorithm the policy that it is to be measured against, or is to measure."""
    other, its_scale, _ = reference
    K = algorithm.task.members
    if not algorithm.refers:
        raise RecipeError(
            "[control] reference has no effect on this algorithm: cpl takes a log-ratio to it, fqe evaluates it"
        )
    if other.task.members not in (1, K):
        raise RecipeError(f"[control] reference = {where!r} has {other.task.members} members; it must have 1 or {K}")
    if isinstance(algorithm, FQE):
        if not other.acts:
            raise RecipeError(f"[control] reference = {where!r} has no policy to evaluate")
        mean, spread = (torch.from_numpy(x) for x in (scale.mean, scale.spread))
        its_mean, its_spread = (torch.from_numpy(x) for x in (its_scale.mean, its_scale.spread))
        algorithm.refer_to(
            lambda obs: other.probs((obs[: other.task.members] * spread + mean - its_mean) / its_spread),
            steps.following,
        )
        return
    assert isinstance(algorithm, CPL)
    if not isinstance(other, Actor):
        raise RecipeError(f"[control] reference = {where!r} has no distribution over actions; take a run of bc or cpl")
    if its_scale.said() != scale.said():
        raise RecipeError(
            f"[control] reference = {where!r} reads observations in another scale; start from it too: start = {where!r}"
        )
    if other.task.members != K:
        wide = build(replace(other.task, seeds=other.task.seeds * K), {"kind": "bc"})
        wide.load_state_dict(
            {n: t.repeat_interleave(K, 0) for n, t in other.state_dict().items() if n.startswith("actor")}
        )
        other = wide
    assert isinstance(other, Actor)
    algorithm.refer_to(other.requires_grad_(False))


def _save(prepared: Prepared, folder: Path) -> None:
    """The policy, or the reward model with its constants over the steps that it was trained beside."""
    algorithm, said = prepared.objective.model, {"dataset": prepared.log.root}
    if isinstance(algorithm, SegmentReward):
        reward = predicted(algorithm, StepData(prepared.log.episodes, prepared.scale))
        said |= {"reward_mean": reward.mean(1).tolist(), "reward_std": reward.std(1).tolist()}
    save_policy(algorithm, prepared.recipe.objective, prepared.scale, folder, said)


@torch.no_grad()
def predicted(algorithm: SegmentReward, data: StepData, chunk: int = 8192) -> np.ndarray:
    """(K, T) float64: each member's reward of every step."""
    K, steps = algorithm.task.members, len(data.obs)
    return np.concatenate(
        [
            algorithm.reward(data.obs[i : i + chunk].expand(K, -1, -1), _members(data.action[i : i + chunk], K))
            .double()
            .numpy()
            for i in range(0, steps, chunk)
        ],
        axis=1,
    )


def _members(action: torch.Tensor, K: int) -> torch.Tensor:
    return action.expand(K, *action.shape)


def relabel_log(
    run: str | Path, log: str | Path, out: str | Path, pessimism: float = 0.0, centre: bool | None = None
) -> Log:
    """A log with learned rewards in place of its own, its parent the log it was.

    Each member's rewards are divided by its stored standard deviation, and less its stored mean where `centre`; then the
    ensemble's mean less `pessimism` standard deviations between members is taken. centre None: only where no episode of the
    log terminates, for where one does a constant added to every reward changes what is best.
    """
    algorithm, scale, said = load_algorithm(run)
    if not isinstance(algorithm, SegmentReward):
        raise DataError(f"{run} is {said['objective']['kind']}: relabelling needs a run of kind = 'segment_reward'")
    before = open_log(log)
    ends = bool(before.episodes.terminated.any())
    centre = not ends if centre is None else centre
    reward = predicted(algorithm, StepData(before.episodes, scale))
    mean, std = (np.array(said["facts"][f"reward_{k}"])[:, None] for k in ("mean", "std"))
    reward = (reward - (mean if centre else 0.0)) / np.maximum(std, 1e-8)
    facts: Mapping[str, Any] = {
        "reward": {
            "model": weights_digest(algorithm),
            "members": algorithm.task.members,
            "mean": said["facts"]["reward_mean"],
            "std": said["facts"]["reward_std"],
            "centred": centre,
            "pessimism": pessimism,
        }
    }
    made = relabel(before, reward.mean(0) - pessimism * reward.std(0), out, facts={**before.facts, **facts})
    np.save(made.path / "ensemble.npy", reward, allow_pickle=False)
    return made


def replay(recipe: ControlRecipe, folder: Path, first: int, last: int) -> dict[str, Any]:
    """Recompute steps `first` to `last` and compare them with the ledger."""
    with deterministic(recipe.run):
        p = prepare(recipe)
        return recompute(
            p.objective, p.rows, recipe.train, recipe.run, folder, first, last, facts=p.facts, held_out=p.held_out
        )


def evaluate(recipe: ControlRecipe, folder: Path, on: str | Path | None = None) -> dict[str, Any]:
    """Figures of the finished policy by part, or on all of another log; returns where the recipe says an environment.

    Writes evaluations/NAME/metrics.json; NAME is `held-out`, or the other log's root.
    """
    with deterministic(recipe.run):
        algorithm, scale, _ = load_algorithm(folder)
        log = open_log(recipe.data.dataset if on is None else on)
        if recipe.control.reference is not None:
            where = recipe.control.reference
            _refer_to(algorithm, load_algorithm(where), scale, StepData(log.episodes, scale), where)
        split = recipe.data.split
        parts = {"all": np.arange(len(log), dtype=np.int64)}
        if on is None:
            parts = split_episodes(log, split.validation, split.test, split.seed)
            parts = {name: part for name, part in parts.items() if name != "train" and len(part)}
        offsets, steps = log.episodes.offsets, StepData(log.episodes, scale)
        said: dict[str, Any] = {}
        for name, part in parts.items():
            data: StepData | PairData = steps
            rows = np.concatenate([np.arange(offsets[e], offsets[e + 1]) for e in part])
            if algorithm.reads == "judgements":
                if log.segments is None:
                    raise DataError(f"{log.path} has no judgements to evaluate {recipe.objective['kind']} on")
                data, rows = (
                    PairData(steps, log.episodes, log.segments, recipe.control.unequal_lengths),
                    log.segments.within(part),
                )
            if len(rows):
                measured = ControlObjective(algorithm, data, 1, False, offsets[part])
                with torch.no_grad():
                    said[name] = {"rows": len(rows), **measured.figures(rows.astype(np.int64))}
        if recipe.control.simulate is not None and algorithm.acts:
            return_KE = play(algorithm, scale, recipe.control.simulate, recipe.control.episodes, recipe.run.seed)
            said["played"] = {"environment": recipe.control.simulate, "returns": return_KE.tolist()}
        to = folder / "evaluations" / ("held-out" if on is None else log.root[:16])
        to.mkdir(parents=True, exist_ok=True)
        (to / "metrics.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
        return said
