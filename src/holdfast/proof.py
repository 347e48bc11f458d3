"""What a stranger asks of a folder: does everything in it hash to what it says? Needs no model code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from holdfast.control.store import is_log, open_log, split_episodes, step_ids, verify_log
from holdfast.data.dataset import Problem
from holdfast.errors import DataError, HoldfastError
from holdfast.evaluation.table import verify_evaluation
from holdfast.recipe import ControlRecipe, read_recipe
from holdfast.training.ledger import read_ledger
from holdfast.training.order import read_rows
from holdfast.training.verify import Verified, verify_dataset_folder, verify_run


def verify(path: str | Path, head: str | None = None) -> list[Problem]:
    """The problems of a run folder, a dataset folder or a log of episodes; none: it holds.

    head: the run's ledger head as it was published, which also shows a ledger that was cut short or made anew.
    Raises DataError when the folder is none of them.
    """
    return verified(path, head).problems


def verified(path: str | Path, head: str | None = None) -> Verified:
    """`verify` with notes: what could not be checked, and what is worth knowing. Evaluations are recomputed from their tables."""
    folder = Path(path)
    if is_log(folder):
        if head is not None:
            raise DataError(f"{folder} is a log of episodes; a ledger head is a run's")
        return Verified(verify_log(folder))
    dataset = verify_dataset_folder(folder, head)
    if dataset is not None:
        return dataset
    found = verify_run(folder, head)
    recipe = _control_recipe(folder)
    if recipe is not None:
        _check_log(folder, recipe, found)
        return found
    for run in (folder, folder / "base"):
        for evaluation in sorted((run / "evaluations").glob("*")):
            if evaluation.is_dir():
                problems = verify_evaluation(evaluation)
                found.problems += [replace(p, where=p.where.replace(f"{folder}/", "", 1)) for p in problems]
    return found


def _control_recipe(folder: Path) -> ControlRecipe | None:
    try:
        recipe = read_recipe(folder / "recipe.toml")
    except HoldfastError:  # which `verify_run` has said
        return None
    return recipe if isinstance(recipe, ControlRecipe) else None


def _check_log(folder: Path, recipe: ControlRecipe, found: Verified) -> None:
    """The log of a control run, where it lies where the recipe says; that the rows are its rows, and of the part to train on."""
    at = Path(recipe.data.dataset)
    facts = read_ledger(folder / "ledger.jsonl")[0][0]["facts"] if found.entries and not found.problems else None
    if facts is None:
        return
    if not is_log(at):
        found.notes.append(f"the log is not at {at}: its rows were not checked (root {facts['dataset']})")
        return
    damage = verify_log(at)
    found.problems += [replace(p, where=f"{at}/{p.where}") for p in damage]
    if damage:
        return
    log = open_log(at, check=False)
    if log.root != facts["dataset"]:
        found.say("the log is another than the run was trained on", str(at), log.root, facts["dataset"])
        return
    split, rows = recipe.data.split, read_rows(folder / "rows.parquet")
    train = split_episodes(log, split.validation, split.test, split.seed)["train"]
    offsets = log.episodes.offsets
    if log.segments is not None and set(rows.ids) <= set(log.segments.ids):
        right = {log.segments.ids[j] for j in log.segments.within(train).tolist()}
    else:
        right = set(step_ids(log.episode_ids, offsets, train)[0])
    wrong = [row for row in rows.ids if row not in right]
    if wrong:
        found.say(
            f"{len(wrong)} rows are not of the part to train on", "rows.parquet", wrong[0], "rows of 'train' only"
        )
