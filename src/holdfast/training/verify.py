"""Does everything in a run folder hash to what its ledger says, and is the ledger one that its recipe and data lead to?

No model is built and no torch is imported: a stranger needs the files and a minute. What this can show is in
docs/ledger.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import tomli_w

from holdfast.data.dataset import Dataset, Problem, open_dataset, verify_dataset
from holdfast.data.splits import load_split, verify_split
from holdfast.errors import DataError, HoldfastError, IntegrityError
from holdfast.recipe import ControlRecipe, Recipe, digest_of, read_recipe
from holdfast.training.checkpoint import file_digests, file_sha256, tensors_root
from holdfast.training.ledger import FORMAT, Entry, History, check_chain, differences, exact, split_lines
from holdfast.training.objective import Rows
from holdfast.training.order import order_of, read_rows, rows_root

_LISTED = 20  # problems of one kind that are listed before the rest is only counted


@dataclass
class Verified:
    """What was found: problems, and notes on what could not be checked or is worth knowing."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    entries: int = 0
    steps: int = 0
    head: str | None = None

    def say(self, what: str, where: str, found: Any, expected: Any) -> None:
        self.problems.append(Problem(what, where, str(found), str(expected)))


def verify_dataset_folder(folder: Path, head: str | None = None) -> Verified | None:
    """What was found in a dataset folder; None where the folder is not one. Raises DataError for a `head`, which only a run has."""
    if not (folder / "manifest.json").is_file() or (folder / "ledger.jsonl").exists():
        return None
    if head is not None:
        raise DataError(f"{folder} is a dataset; a ledger head is a run's")
    return Verified(verify_dataset(folder))


def verify_run(folder: Path, head: str | None = None) -> Verified:
    """Check a run folder: chain, recipe, split, rows, order, checkpoints, final model and, where it is there, the
    dataset.

    Damage is listed, not raised. Raises DataError when the folder is no run.
    """
    path = folder / "ledger.jsonl"
    if not path.is_file():
        raise DataError(f"{folder} is neither a run (no ledger.jsonl) nor a dataset (no manifest.json)")
    found = Verified()

    # The chain. An entry that does not hold is named once, and taken for nothing further.
    lines, torn = split_lines(path.read_bytes())
    breaks = check_chain(lines, path.name)
    for one in breaks:
        found.say(one.what, one.where, one.found, one.expected)
    if torn:
        found.say(
            "last entry was cut off in writing; resume drops it",
            f"{path.name} line {len(lines) + 1}",
            f"{len(torn)} bytes",
            "a whole line",
        )
    broken = {one.line for one in breaks}
    entries = [orjson.loads(line) for i, line in enumerate(lines) if i not in broken]
    found.entries = len(lines)
    found.head = entries[-1]["hash"] if entries else None
    if head is not None:
        hashes = [e["hash"] for e in entries]
        if head not in hashes:
            found.say("the published head is not in the ledger: it was cut, or is another", path.name, found.head, head)
        elif head != hashes[-1]:
            found.notes.append(
                f"the given head is entry {hashes.index(head)}; {len(hashes) - 1 - hashes.index(head)} entries follow it"
            )
    if 0 in broken or not entries or entries[0].get("kind") != "open" or entries[0].get("format") != FORMAT:
        if 0 not in broken:
            found.say(
                "the first entry does not open a ledger",
                f"{path.name} line 1",
                entries[0].get("kind") if entries else "nothing",
                FORMAT,
            )
        found.notes.append("without the first entry, recipe, split, rows and order cannot be checked")
        return found
    try:
        _check_run(folder, entries, not breaks, found)
    except (LookupError, TypeError, ValueError, AttributeError) as problem:  # whole, but not what `fit` writes
        found.say("the entries lack what this version needs to check them", path.name, repr(problem), FORMAT)
    if (folder / "base" / "ledger.jsonl").is_file():  # a base made from nothing is a run of its own
        base = verify_run(folder / "base")
        found.problems += [Problem(p.what, f"base/{p.where}", p.found, p.expected) for p in base.problems]
        found.notes += [f"base: {note}" for note in base.notes]
    return found


def _check_run(folder: Path, entries: list[Entry], whole: bool, found: Verified) -> None:
    """All that the entries speak of. `whole`: no entry is missing, so what they say together can be checked as well."""
    opened = entries[0]
    facts = opened["facts"]
    history = History.of(entries)
    found.steps = len(history.steps)
    if history.final is None:
        found.notes.append(f"the run is not finished: {found.steps} of {opened['steps']} steps")
    recipe = _check_recipe(folder, opened, found) if "recipe" in facts else None
    split_problems = verify_split(folder, facts.get("dataset")) if "split" in facts else []
    found.problems += split_problems
    if "split" in facts and not split_problems:
        digest = orjson.loads((folder / "split.json").read_bytes())["digest"]
        if digest != facts["split"]:
            found.say("the split is another than the run was trained on", "split.json", digest, facts["split"])
    rows = _check_rows(folder, opened, found)
    _check_steps(entries, opened, rows, whole, found)
    _check_files(folder, history, entries[-1], whole, found)
    if isinstance(recipe, Recipe) and "dataset" in facts:
        _check_dataset(folder, recipe, facts, rows, "split" in facts and not split_problems, found)


def _check_recipe(folder: Path, opened: Entry, found: Verified) -> Recipe | ControlRecipe | None:
    path = folder / "recipe.toml"
    try:
        recipe = read_recipe(path)
        text = path.read_text(encoding="utf-8")
    except (HoldfastError, OSError) as problem:
        found.say(
            "the recipe cannot be read", path.name, str(problem).splitlines()[0], f"digest {opened['facts']['recipe']}"
        )
        return None
    digest = digest_of(tomllib.loads(text))
    if digest != opened["facts"]["recipe"]:
        at = [name for name, _, _ in _against_recipe(recipe, opened)]
        where = path.name + (f" ({', '.join(at)})" if at else "")
        found.say("the recipe is another than the run was trained with", where, digest, opened["facts"]["recipe"])
    elif text != (written := tomli_w.dumps(tomllib.loads(text))):
        for n, (a, b) in enumerate(zip([*text.splitlines(), ""], [*written.splitlines(), ""], strict=False), 1):
            if a != b or n > min(text.count("\n"), written.count("\n")):
                found.say(
                    "the recipe says the same, but not as the run wrote it", f"{path.name} line {n}", repr(a), repr(b)
                )
                break
    else:
        for name, old, new in _against_recipe(recipe, opened):
            found.say("the run was not trained as its recipe says", f"ledger.jsonl line 1, {name}", old, new)
    return recipe


def _against_recipe(recipe: Recipe | ControlRecipe, opened: Entry) -> list[tuple[str, str, str]]:
    said = {"settings": recipe.train, "run": recipe.run}
    return [
        d
        for name, table in said.items()  # a key of [run] that is not set stands in no ledger
        for d in differences(opened[name], exact(table.model_dump(mode="json", exclude_none=name == "run")), name)
    ]


def _check_rows(folder: Path, opened: Entry, found: Verified) -> Rows | None:
    """rows.parquet, where it is what the ledger committed to."""
    path, said = folder / "rows.parquet", opened["rows"]
    if not path.is_file():
        found.say("a file is missing", path.name, "nothing", f"sha256 {said['sha256']}")
        return None
    digest = file_sha256(path)
    if digest == said["sha256"]:
        return read_rows(path)
    try:
        rows = read_rows(path)
        same = (
            "its row ids are the same"
            if rows_root(rows.ids) == said["root"]
            else f"its row ids have root {rows_root(rows.ids)}"
        )
    except IntegrityError:
        same = "it cannot be read"
    found.say(
        "the file's bytes are others",
        path.name,
        f"sha256 {digest}; {same}",
        f"sha256 {said['sha256']}, root {said['root']}",
    )
    return None


def _check_steps(entries: list[Entry], opened: Entry, rows: Rows | None, whole: bool, found: Verified) -> None:
    """Every step's rows: their root, and that the order leads to them. Steps follow one another, and nothing follows
    the end.
    """
    order = None
    if rows is None:
        found.notes.append("without rows.parquet, the rows of the steps cannot be recomputed")
    else:
        try:
            settings = opened["settings"]
            order = order_of(
                rows, opened["run"]["seed"], settings["per_prompt"], settings["batch"], opened.get("draws")
            )
        except HoldfastError as problem:
            found.say(
                "no order follows from these settings",
                "ledger.jsonl line 1",
                str(problem),
                "settings that training can follow",
            )
    wrong: list[Problem] = []
    before = 0
    for entry in entries:
        where = f"ledger.jsonl entry {entry['n']}, step {entry.get('step')}"
        if entry["kind"] == "environment":
            before = entry["step"]
        if entry["kind"] != "step":
            continue
        step, ids = entry["step"], entry.get("rows")
        if whole and step != before + 1:
            wrong.append(Problem("steps do not follow one another", where, f"step {step}", f"step {before + 1}"))
        before = step
        if ids is None:  # drawn rows, too many to list: their digest alone
            drawn = order.record(order.step(step)) if order is not None else entry
            if any(entry.get(name) != value for name, value in drawn.items()):
                a, b = (f"{x.get('drawn')} rows, sha256 {x.get('rows_sha256')}" for x in (entry, drawn))
                wrong.append(Problem("the step's rows are not those of the order", where, a, b))
            continue
        try:
            root = rows_root(ids)
        except (ValueError, TypeError):
            root = "row ids that are not hexadecimal"
        if root != entry["rows_root"]:
            wrong.append(Problem("the step's rows do not hash to its root", where, root, entry["rows_root"]))
        if order is not None and rows is not None:
            right = [rows.ids[i] for i in order.step(step).tolist()]
            if ids != right:
                place = next(
                    (i for i, (a, b) in enumerate(zip(ids, right, strict=False)) if a != b), min(len(ids), len(right))
                )
                a, b = (str(x[place]) if place < len(x) else "no row" for x in (ids, right))
                wrong.append(Problem("the step's rows are not those of the order", f"{where}, row {place + 1}", a, b))
    found.problems += wrong[:_LISTED]
    if len(wrong) > _LISTED:
        found.notes.append(f"{len(wrong) - _LISTED} more steps do not hold")


def _check_files(folder: Path, history: History, last: Entry, whole: bool, found: Verified) -> None:
    """Checkpoints that should be there or are, and the final model, to the tensor."""
    checkpoints = folder / "checkpoints"
    kept = {e["folder"] for e in history.kept(history.open["settings"]["keep_checkpoints"])}
    entered = {e["folder"]: e for e in history.checkpoints}
    for name, entry in entered.items():
        at = checkpoints / name
        if not at.is_dir():
            if whole and name in kept:
                found.say("a checkpoint is missing", f"checkpoints/{name}", "nothing", f"weights {entry['weights']}")
            continue
        tensors = {}
        if (at / "state.json").is_file() and file_sha256(at / "state.json") == entry["files"]["state.json"]:
            tensors = orjson.loads((at / "state.json").read_bytes())["tensors"]
        _check_folder(at, f"checkpoints/{name}", entry["files"], tensors, found, f"step {entry['step']}")
        if tensors and tensors_root(tensors["model.safetensors"]) != entry["weights"]:
            root = tensors_root(tensors["model.safetensors"])
            found.say("the tensors do not give the weights digest", f"checkpoints/{name}", root, entry["weights"])
    for other in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        if other.is_dir() and other.name not in entered and not other.name.endswith(".tmp"):
            if other.name == "interrupted":
                _check_aside(checkpoints, found)
            else:
                found.notes.append(f"checkpoints/{other.name} is not in the ledger")
    final = history.final
    if final is not None:
        _check_folder(folder / "model", "model", final["files"], final["tensors"], found, "final weights")
        if last["kind"] != "final":
            found.say(
                "entries follow the end of the run",
                f"ledger.jsonl entry {last['n']}",
                last["kind"],
                "nothing after final",
            )
        best = history.best(history.open["settings"]["stop_on"])
        due = best["step"] if best is not None else history.steps[-1]["step"]
        if whole and final["step"] != due:
            found.say(
                "the final weights are not of the step that the figures lead to",
                f"ledger.jsonl entry {final['n']}",
                final["step"],
                due,
            )


def _check_folder(
    folder: Path,
    where: str,
    files: Mapping[str, str],
    tensors: Mapping[str, Mapping[str, str]],
    found: Verified,
    of: str,
) -> None:
    """Every file of a folder against its digest; in a damaged safetensors file, the tensors that differ."""
    for name, digest in files.items():
        path, at = folder / name, f"{where}/{name} ({of})"
        if not path.is_file():
            found.say("a file is missing", at, "nothing", f"sha256 {digest}")
        elif (now := file_sha256(path)) != digest:
            if name not in tensors:
                found.say("the file's bytes are others", at, f"sha256 {now}", f"sha256 {digest}")
                continue
            try:
                held = file_digests(path)[1]
            except IntegrityError as problem:
                found.say("the header is damaged", at, str(problem).partition(": ")[2], f"sha256 {digest}")
                continue
            differ = [t for t in sorted(held.keys() | tensors[name].keys()) if held.get(t) != tensors[name].get(t)]
            for tensor in differ[:_LISTED]:
                found.say(
                    "a tensor's bytes are others", f"{at}, tensor {tensor}", held.get(tensor), tensors[name].get(tensor)
                )
            if not differ:
                found.say("the header is damaged; every tensor is whole", at, f"sha256 {now}", f"sha256 {digest}")
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files:
            found.say("a file is not in the ledger", f"{where}/{name}", f"sha256 {file_sha256(path)}", "no such file")


def _check_aside(checkpoints: Path, found: Verified) -> None:
    """The state put aside at an interruption: not in the chain, and not needed; resume takes it only if it is whole."""
    try:
        files = orjson.loads((checkpoints / "interrupted.json").read_bytes())["files"]
    except (OSError, ValueError, LookupError, TypeError):
        found.notes.append(
            "checkpoints/interrupted has no readable interrupted.json; resume will go on from the checkpoint before it"
        )
        return
    _check_folder(checkpoints / "interrupted", "checkpoints/interrupted", files, {}, found, "put aside, off the ledger")


def _check_dataset(
    folder: Path, recipe: Recipe, facts: Mapping[str, Any], rows: Rows | None, split: bool, found: Verified
) -> None:
    """The dataset, where it lies where the recipe says; that the rows are its rows, and of the part to train on."""
    path = Path(recipe.data.dataset)
    if not path.is_dir():
        found.notes.append(f"the dataset is not at {path}: its rows were not checked (root {facts['dataset']})")
        return
    problems = verify_dataset(path)
    found.problems += [Problem(p.what, f"{path}/{p.where}", p.found, p.expected) for p in problems]
    if problems:
        return
    dataset: Dataset = open_dataset(path, check=False)
    if dataset.root != facts["dataset"]:
        found.say("the dataset is another than the run was trained on", str(path), dataset.root, facts["dataset"])
        return
    if rows is None:
        return
    for i, (index, row) in enumerate(zip(rows.index.tolist(), rows.ids, strict=True)):
        if not 0 <= index < dataset.n_judgements or dataset.row_id(index) != row:
            there = dataset.row_id(index) if 0 <= index < dataset.n_judgements else "no such row"
            found.say("a row is not the dataset's", f"rows.parquet row {i}, dataset row {index}", row, there)
            return
    if split:
        held = set(rows.index.tolist()) - set(load_split(folder, dataset).parts["train"].tolist())
        if held:
            first = min(held)
            found.say(
                f"{len(held)} rows are not in the split's part 'train'",
                "rows.parquet",
                f"dataset row {first}",
                "rows of 'train' only",
            )
