"""What a stranger asks of a folder: does everything in it hash to what it says? Needs no model code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from holdfast.control.store import is_log, verify_log
from holdfast.data.dataset import Problem
from holdfast.errors import DataError
from holdfast.evaluation.table import verify_evaluation
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
    for run in (folder, folder / "base"):
        for evaluation in sorted((run / "evaluations").glob("*")):
            if evaluation.is_dir():
                problems = verify_evaluation(evaluation)
                found.problems += [replace(p, where=p.where.replace(f"{folder}/", "", 1)) for p in problems]
    return found
