"""verify: a planted fault of every kind is named by file and step, row or tensor; a whole run has none."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.data.splits import make_split
from holdfast.errors import DataError
from holdfast.proof import verify
from holdfast.recipe import load_recipe
from holdfast.training.ledger import entry_hash
from holdfast.training.objective import Rows
from holdfast.training.order import read_rows, rows_root, write_rows
from holdfast.training.trace import trace_row, trace_step
from holdfast.training.verify import verify_run
from toy_objective import Toy, train_toy


def make_dataset(folder: Path) -> Dataset:
    said = [
        (
            Judgement(
                "pair", f"prompt {i // 2}", (f"good {i}", f"bad {i}"), annotator=f"ann{i % 3}", category="ab"[i % 2]
            ),
            "in.jsonl",
            i,
        )
        for i in range(120)
    ]
    return freeze_records(said, folder)


def make_run(folder: Path, dataset: Dataset, **kwargs) -> None:
    """A toy run on a real dataset and split, as the pipeline would lay it out."""
    train = {
        "batch": 8,
        "steps": 24,
        "lr": 3e-3,
        "checkpoint_every": 5,
        "warmup": 3,
        "eval_every": 6,
        "stop_on": "loss",
        "patience": 9,
    }
    said = {
        "data": {"dataset": str(dataset.path.resolve()), "split": {"seed": 3, "validation": 0.1, "test": 0.1}},
        "run": {"threads": 1},
        "model": {"path": "none"},
        "objective": {"kind": "toy"},
        "train": train,
    }
    recipe = load_recipe(said)
    split = make_split(dataset, recipe.data.split)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    split.save(folder)
    index = split.parts["train"]
    rows = Rows([dataset.row_id(i) for i in index.tolist()], dataset.prompt_of[index].astype(np.int64), index)
    facts = {"recipe": recipe.digest(), "dataset": dataset.root, "split": split.digest, "base": "ba" * 32}
    train_toy(folder, Toy(), rows, facts, held_out=split.parts["validation"], **train, **kwargs)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    at = tmp_path_factory.mktemp("made")
    dataset = make_dataset(at / "data")
    make_run(at / "run", dataset)
    return at


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, at: int, by: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= by
    path.write_bytes(raw)


def entries_of(run: Path) -> list[dict]:
    return [orjson.loads(line) for line in (run / "ledger.jsonl").read_bytes().splitlines()]


def write_entries(run: Path, entries: list[dict], recompute: bool = True) -> None:
    """A forger's ledger: with `recompute`, numbers, links and hashes all fit again."""
    before = "0" * 64
    for n, entry in enumerate(entries):
        if recompute:
            entry |= {"n": n, "prev": before}
            entry["hash"] = entry_hash(entry)
        before = entry["hash"]
    (run / "ledger.jsonl").write_bytes(b"".join(orjson.dumps(e, option=orjson.OPT_SORT_KEYS) + b"\n" for e in entries))


def test_a_whole_run_has_no_problem(run):
    found = verify_run(run)
    assert found.problems == [] and found.notes == [] and found.steps == 24
    assert verify(run, head=found.head) == []
    assert entries_of(run)[-1]["hash"] == found.head


def test_it_imports_no_torch_and_takes_seconds(run):
    code = (
        "import sys, time, holdfast.proof as v; t = time.perf_counter(); p = v.verify(sys.argv[1]); "
        "print(len(p), 'torch' in sys.modules, 'transformers' in sys.modules, time.perf_counter() - t < 5)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["0", "False", "False", "True"]


def test_verify_takes_a_dataset_too_and_says_when_it_is_neither(made, tmp_path):
    assert verify(made / "data") == []
    with pytest.raises(DataError, match="neither a run"):
        verify(tmp_path)
    with pytest.raises(DataError, match="head is a run's"):
        verify(made / "data", head="00")


@pytest.mark.parametrize("kind", ["open", "step", "figures", "checkpoint", "final"])
def test_a_byte_of_a_ledger_entry(run, kind):
    rng = random.Random(kind)
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for _ in range(4):
        n = rng.choice([i for i, e in enumerate(entries_of(run)) if e["kind"] == kind])
        at = sum(map(len, lines[:n])) + rng.randrange(len(lines[n]) - 1)
        flip(run / "ledger.jsonl", at, 1 << rng.randrange(8))
        problems = verify(run)
        assert problems and problems[0].where.startswith(f"ledger.jsonl line {n + 1}"), (at, problems)
        (run / "ledger.jsonl").write_bytes(b"".join(lines))
    assert verify(run) == []


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/step-000024/model.safetensors",
        "checkpoints/step-000024/optimiser.safetensors",
        "model/model.safetensors",
    ],
)
def test_a_byte_of_weights_names_the_tensor(run, name):
    path = run / name
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    rng = random.Random(name)
    for _ in range(6):
        tensor = rng.choice(sorted(header))
        at = 8 + length + rng.randrange(*header[tensor]["data_offsets"])
        flip(path, at, 1 << rng.randrange(8))
        (problem,) = verify(run)
        assert problem.where.startswith(name) and problem.where.endswith(f"tensor {tensor}"), problem
        assert ("step 24" in problem.where) == name.startswith("checkpoints") and (
            "final" in problem.where
        ) == name.startswith("model")
        path.write_bytes(raw)
    for at in range(0, 8 + length, 37):
        flip(path, at)
        assert {p.where.split(" (")[0] for p in verify(run)} == {name}
        path.write_bytes(raw)


@pytest.mark.parametrize("name", ["checkpoints/step-000024/state.json", "model/config.json"])
def test_a_byte_of_another_file(run, name):
    flip(run / name, 5)
    assert [p.where.split(" (")[0] for p in verify(run)] == [name]


def test_every_other_file_byte_by_byte(run):
    """Where any byte may be struck: the split, the rows, the recipe."""
    rng = random.Random(0)
    for name in ("split.json", "rows.parquet", "recipe.toml"):
        raw = (run / name).read_bytes()
        struck = 0
        for _ in range(20):
            at, bit = rng.randrange(len(raw)), 1 << rng.randrange(8)
            line = raw[: at + 1].splitlines()[-1]
            if name == "recipe.toml" and (line.startswith((b"dataset =", b"path ="))):
                continue  # where things lie is not part of what a run is: a moved dataset is the same one
            flip(run / name, at, bit)
            problems = verify(run)
            assert any(p.where.startswith(name) for p in problems), (name, at, bit, problems)
            (run / name).write_bytes(raw)
            struck += 1
        assert struck >= 10


def test_a_recipe_that_says_the_same_in_other_bytes(run):
    path = run / "recipe.toml"
    path.write_text(path.read_text().replace("lr = 0.003", "lr = 3e-3"))
    (problem,) = verify(run)
    assert problem.what == "the recipe says the same, but not as the run wrote it" and "lr = 3e-3" in problem.found
    path.write_text(path.read_text().replace("lr = 3e-3", "lr = 0.004"))
    (problem,) = verify(run)
    assert problem.where == "recipe.toml (settings.lr)"


@pytest.mark.parametrize(
    "name", ["split.json", "rows.parquet", "recipe.toml", "model/config.json", "checkpoints/step-000020", "model"]
)
def test_missing_files(run, name):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    problems = verify(run)
    assert problems and all(p.where.startswith(name) for p in problems), problems


def test_files_nobody_entered(run):
    (run / "model" / "evil.py").write_text("")
    (problem,) = verify(run)
    assert (problem.what, problem.where) == ("a file is not in the ledger", "model/evil.py")


def test_entries_removed_swapped_or_added(run):
    whole = entries_of(run)
    steps = [i for i, e in enumerate(whole) if e["kind"] == "step"]
    write_entries(run, whole[: steps[4]] + whole[steps[4] + 1 :], recompute=False)
    (problem,) = verify(run)
    assert problem.what == "entries are missing or out of order" and problem.where.startswith(
        f"ledger.jsonl line {steps[4] + 1} "
    )
    swapped = list(whole)
    swapped[steps[4]], swapped[steps[5]] = swapped[steps[5]], swapped[steps[4]]
    write_entries(run, swapped, recompute=False)
    assert verify(run)[0].where.startswith(f"ledger.jsonl line {steps[4] + 1} ")
    # with the chain made anew, what the entries say gives it away
    write_entries(run, whole[: steps[4]] + whole[steps[4] + 1 :])
    assert any(p.what == "steps do not follow one another" and "step 6" in p.where for p in verify(run))
    write_entries(run, [*entries_of(run), {"kind": "note", "text": "x"}])
    assert any(p.what == "entries follow the end of the run" for p in verify(run))


def test_a_cut_tail_shows_against_the_published_head(run):
    whole = entries_of(run)
    head = whole[-1]["hash"]
    write_entries(run, whole[:-6], recompute=False)
    assert any("not in the ledger" in p.what and p.expected == head for p in verify(run, head=head))
    notes = verify_run(run).notes
    assert any("not finished" in note for note in notes), (
        "without the head it can only be said that the run is not finished"
    )
    write_entries(run, whole, recompute=False)
    early = verify_run(run, head=whole[10]["hash"])
    assert early.problems == [] and early.notes == [f"the given head is entry 10; {len(whole) - 11} entries follow it"]


def test_a_torn_last_line(run):
    with (run / "ledger.jsonl").open("ab") as file:
        file.write(b'{"half')
    (problem,) = verify(run)
    assert "cut off" in problem.what
    raw = (run / "ledger.jsonl").read_bytes().removesuffix(b'{"half')
    (run / "ledger.jsonl").write_bytes(raw[:-1])  # the last line feed alone
    assert "cut off" in verify(run)[0].what


def test_row_ids_replaced_with_the_chain_made_anew(run):
    """The forger recomputes roots and hashes; the order, which follows from rows, seed and settings, does not go along."""
    whole = entries_of(run)
    rows = read_rows(run / "rows.parquet")
    step = next(e for e in whole if e["kind"] == "step" and e["step"] == 7)
    step["rows"][3] = next(row for row in rows.ids if row not in step["rows"])
    write_entries(run, whole)
    assert any("do not hash to its root" in p.what and "step 7" in p.where for p in verify(run))
    step["rows_root"] = rows_root(step["rows"])
    write_entries(run, whole)
    (problem,) = verify(run)
    assert problem.what == "the step's rows are not those of the order" and problem.where.endswith("step 7, row 4")
    assert problem.found == step["rows"][3]


def test_rows_that_are_not_the_datasets_or_not_for_training(run, made):
    """The forger goes further: rows.parquet and the whole ledger made anew. Dataset and split do not go along."""
    whole, rows = entries_of(run), read_rows(run / "rows.parquet")
    validation = [i for i in range(120) if i not in set(rows.index.tolist())]

    def forged(ids, index):
        write_rows(Rows(ids, rows.group, np.array(index)), run / "rows.parquet")
        whole[0]["rows"] |= {
            "root": rows_root(ids),
            "sha256": hashlib.sha256((run / "rows.parquet").read_bytes()).hexdigest(),
        }
        write_entries(run, whole)
        return [p.what for p in verify(run) if p.where.startswith("rows.parquet")]

    ids = list(rows.ids)
    ids[5] = "f" * 64
    assert forged(ids, rows.index) == ["a row is not the dataset's"]
    dataset = open_dataset(made / "data")
    ids[5], index = dataset.row_id(validation[0]), rows.index.copy()
    index[5] = validation[0]
    assert forged(ids, index) == ["1 rows are not in the split's part 'train'"]


def test_a_row_of_the_dataset(run, made, tmp_path):
    shutil.copytree(made / "data", tmp_path / "data")
    text = (run / "recipe.toml").read_text().replace(str((made / "data").resolve()), str(tmp_path / "data"))
    (run / "recipe.toml").write_text(text)
    assert verify(run) == [], "a moved dataset is the same dataset"
    raw = (tmp_path / "data" / "responses.parquet").read_bytes()
    flip(tmp_path / "data" / "responses.parquet", raw.index(b"good 17"))
    assert any("responses.parquet" in p.where and str(tmp_path / "data") in p.where for p in verify(run))
    shutil.rmtree(tmp_path / "data")
    found = verify_run(run)
    assert found.problems == [] and "its rows were not checked" in found.notes[0]


def test_final_weights_that_the_figures_do_not_lead_to(run):
    whole = entries_of(run)
    whole[-1]["step"] = 6
    write_entries(run, whole)
    (problem,) = verify(run)
    assert "figures lead to" in problem.what and problem.found == "6"


def test_entries_of_another_shape_are_no_traceback(run):
    whole = entries_of(run)
    for spoil in (
        lambda e: e.pop("facts"),
        lambda e: e.update(rows=7),
        lambda e: e.update(settings=[]),
        lambda e: e.pop("environment"),
    ):
        entries = [dict(e) for e in whole]
        spoil(entries[0])
        write_entries(run, entries)
        assert verify(run)
    for entries in ([{"kind": "x"}], [{"format": "y", "kind": "open"}]):
        write_entries(run, entries)
        assert "does not open a ledger" in verify(run)[0].what
    (run / "ledger.jsonl").write_bytes(b"")
    assert verify(run)


def test_a_run_cut_off_and_not_yet_resumed_is_whole_as_far_as_it_goes(made, tmp_path):
    class Interrupting(Toy):
        def after_step(self, step):
            if step == 13:
                signal.raise_signal(signal.SIGTERM)

    train_toy(tmp_path, Interrupting(), facts={})
    found = verify_run(tmp_path)
    assert found.problems == [] and found.notes == ["the run is not finished: 13 of 24 steps"]
    flip(tmp_path / "checkpoints" / "interrupted" / "model.safetensors", -1)
    assert "put aside" in verify(tmp_path)[0].where


def test_the_base_made_by_a_run_of_its_own_is_checked_too(run, made):
    shutil.copytree(made / "run", run / "base")
    assert verify(run) == []
    flip(run / "base" / "model" / "config.json", 3)
    assert [p.where.split(" (")[0] for p in verify(run)] == ["base/model/config.json"]


def test_trace_both_ways(run, made):
    whole = [e for e in entries_of(run) if e["kind"] == "step"]
    row = whole[6]["rows"][2]
    said = trace_row(run, row[:16])
    assert said["row"] == row
    assert said["steps"] == [{"step": e["step"], "loss": float.fromhex(e["loss"])} for e in whole if row in e["rows"]]
    assert 7 in [s["step"] for s in said["steps"]]

    said = trace_step(run, 7)
    assert said["step"] == 7 and [r["id"] for r in said["rows"]] == whole[6]["rows"]
    dataset = open_dataset(made / "data")
    for r in said["rows"]:
        ((name, line),) = r["origins"]
        i = dataset.find_row(r["id"])
        good, _ = dataset.response_contents(dataset.responses_of[i])
        assert name == "in.jsonl" and good == f"good {line}"
        assert r["annotator"] == f"ann{line % 3}" and r["category"] == "ab"[line % 2]


def test_the_lines_of_docs_ledger_md_verify_a_run(run):
    code = (Path(__file__).parents[1] / "docs" / "ledger.md").read_text().split("```python\n")[1].split("```")[0]
    check = [sys.executable, "-c", code, str(run)]
    assert (
        subprocess.run(check, capture_output=True, text=True, check=True).stdout.strip() == entries_of(run)[-1]["hash"]
    )
    flip(run / "model" / "model.safetensors", -1)
    assert "AssertionError: model.safetensors" in subprocess.run(check, capture_output=True, text=True).stderr
