"""Opening a dataset: everything comes back as it went in, and numbers mean what they say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from holdfast.data import tables
from holdfast.data.dataset import Dataset, Problem, canonical_json, manifest_bytes, open_dataset, verify_dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.errors import DataError, IntegrityError

TOOLS = {"messages": [{"role": "user", "content": "Weather?"}], "tools": [{"name": "sky"}]}
SAID = [
    Judgement(
        "pair", "Why is the sky blue?", ("Rayleigh", "Magic"), category="science", margin=2.0, extra={"k": [1, None]}
    ),
    Judgement("tie", "Why is the sky blue?", ("Magic", "God"), annotator="ann", annotator_kind="human", licence="MIT"),
    Judgement(
        "soft", TOOLS, ([{"role": "assistant", "content": "Rain"}], "Sun"), value=0.75, category="tools", rubric="r"
    ),
    Judgement(
        "ranking", "Count", ("one", "two", "three"), ranks=(1, 0, 0), sources=("m1", None, "m3"), shown=(2, 1, 0)
    ),
    Judgement("score", "Count", ("one",), value=-0.0),
    Judgement("label", "Zähle\n\U0001f600", ("eins",), value=1),
]


@pytest.fixture
def ds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(tables, "_GROUP_ROWS", 2)  # several row groups, so that reading some is not reading all
    return freeze_records([(j, "in.jsonl", n + 1) for n, j in enumerate(SAID)], tmp_path / "ds")


def test_every_judgement_comes_back(ds: Dataset) -> None:
    assert (ds.n_judgements, ds.n_prompts, ds.n_responses) == (6, 4, 9)
    for i, row in enumerate(ds.judgements.to_pylist()):
        [(file, line)] = ds.origins(i)
        said = SAID[line - 1]
        assert file == "in.jsonl"
        assert row["kind"] == said.kind
        assert ds.prompt_contents([ds.prompt_of[i]]) == [said.prompt]
        found = ds.response_contents(ds.responses_of[i])
        assert sorted(map(canonical_json, found)) == sorted(map(canonical_json, said.responses))
        order = [said.responses.index(r) for r in found]
        if said.kind == "pair":
            assert order == [0, 1]
        for name in ("ranks", "shown", "sources"):
            given = getattr(said, name)
            assert row[name] == (None if given is None else [given[n] for n in order])
        for name in ("margin", "annotator", "annotator_kind", "licence", "rubric", "category"):
            assert row[name] == getattr(said, name)
        assert row["extra"] == (None if said.extra is None else orjson.dumps(said.extra).decode())
        assert row["value"] == said.value and str(row["value"]) != "-0.0"
        assert (ds.response_prompt[ds.responses_of[i]] == ds.prompt_of[i]).all()
        assert ds.categories[i] == said.category
    assert ds.kind == "text" and ds.column("copy") == [0] * 6


def test_numbers_and_ids(ds: Dataset) -> None:
    for i, row in enumerate(ds.judgements.to_pylist()):
        assert ds.row_id(i) == row["id"].hex() == ds.row_ids[i]
        assert ds.prompt_id(ds.prompt_of[i]) == row["prompt"].hex() == ds.prompt_ids[ds.prompt_of[i]]
        assert [ds.response_id(r) for r in ds.responses_of[i]] == [r.hex() for r in row["responses"]]
        for n in (9, 10, 64):
            assert ds.find_row(ds.row_id(i)[:n].upper()) == i
    assert ds.prompt_of.dtype == ds.response_prompt.dtype == ds.responses_of.flat.dtype == np.int32
    assert ds.response_ids == sorted(ds.response_ids) and ds.prompt_ids == sorted(ds.prompt_ids)


@pytest.mark.parametrize("prefix", ["", "xyz", "g", "0" * 65])
def test_what_is_no_prefix(ds: Dataset, prefix: str) -> None:
    with pytest.raises(DataError, match="first hex digits"):
        ds.find_row(prefix)


def test_a_prefix_of_none_or_of_many(ds: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row starts with"):
        ds.find_row("0" * 20)
    many = freeze_records([Judgement("pair", str(i), ("a", "b")) for i in range(17)], tmp_path / "many")
    firsts = [r[0] for r in many.row_ids]
    shared = next(c for c in firsts if firsts.count(c) > 1)  # 17 rows, 16 digits
    with pytest.raises(DataError, match=f"{shared}: {firsts.count(shared)} rows do: .*give more digits"):
        many.find_row(shared)


def test_texts_in_any_order_and_in_pieces(ds: Dataset) -> None:
    everything = ds.response_contents()
    assert len(everything) == 9
    assert ds.response_contents([7, 0, 7, 3]) == [everything[7], everything[0], everything[7], everything[3]]
    assert ds.response_contents(np.array([], np.int32)) == []
    for batch in (1, 2, 100):
        walked = list(ds.iter_contents("responses", batch))
        assert [c for _, contents in walked for c in contents] == everything
        assert [start for start, _ in walked] == np.cumsum([0, *(len(c) for _, c in walked)])[:-1].tolist()
    assert [c for _, contents in ds.iter_contents("prompts") for c in contents] == ds.prompt_contents()
    for index in (-1, 9):
        with pytest.raises(IndexError, match="numbered 0 to 8"):
            ds.response_contents([index])
    with pytest.raises(IndexError):
        ds.origins(6)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; `holdfast freeze"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        open_dataset(tmp_path)
    assert [p.what for p in verify_dataset(tmp_path / "none")] == ["there is no dataset folder"]


def test_open_names_the_row_and_unchecked_opening_does_not_look(ds: Dataset) -> None:
    path = ds.path / "responses.parquet"
    row = ds.response_contents().index("Magic")
    path.write_bytes(path.read_bytes().replace(b'"Magic"', b'"Tragic"'[:7]))
    with pytest.raises(IntegrityError, match=rf"responses\.parquet, row {row}: a row does not hash to its id"):
        open_dataset(ds.path)
    assert open_dataset(ds.path, check=False).root == ds.root


def test_a_missing_file_is_named(ds: Dataset) -> None:
    for name in ("origins.parquet", "rejects.jsonl", "prompts.parquet"):
        kept = (ds.path / name).read_bytes()
        (ds.path / name).unlink()
        assert {p.where for p in verify_dataset(ds.path)} == {name}
        with pytest.raises(IntegrityError, match=name):
            open_dataset(ds.path)
        (ds.path / name).write_bytes(kept)
    assert verify_dataset(ds.path) == []


def test_whole_files_of_another_dataset_do_not_pass(ds: Dataset, tmp_path: Path) -> None:
    """Each row of the foreign table hashes to its id: only the table's root gives it away."""
    other = freeze_records([*SAID[:5], Judgement("label", "Zähle\n\U0001f600", ("zwei",), value=1)], tmp_path / "other")
    for name in ("responses", "judgements"):
        kept = (ds.path / f"{name}.parquet").read_bytes()
        shutil.copy(other.path / f"{name}.parquet", ds.path)
        [problem] = verify_dataset(ds.path)
        assert (problem.what, problem.where) == ("the rows are others, or in another order", f"{name}.parquet")
        (ds.path / f"{name}.parquet").write_bytes(kept)


def test_a_manifest_that_was_sealed_again_does_not_pass(ds: Dataset, tmp_path: Path) -> None:
    """Whoever changes the manifest and reseals it meets the tables' roots, and then the root, which is the name."""
    manifest = ds.path / "manifest.json"
    said = orjson.loads(manifest.read_bytes())
    for edit, message in [
        ({"root": "0" * 64}, "the tables' roots do not give the dataset's root"),
        ({"kind": "segments"}, "the tables' roots do not give the dataset's root"),
        ({"format": "holdfast-dataset/9"}, "of a format this version does not read"),
        ({"beside": {}}, "the manifest lists other files"),
        ({"tables": {}}, "the manifest lists other files"),
        ({"tables": None}, "the manifest cannot be understood"),
    ]:
        manifest.write_bytes(manifest_bytes({**said, **edit}))
        [problem] = verify_dataset(ds.path)
        assert problem.where == "manifest.json" and message in problem.what
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            open_dataset(ds.path)
    manifest.write_bytes(manifest_bytes(said).replace(b"  ", b" "))
    assert verify_dataset(ds.path)[0].what == "the manifest's bytes have changed"
    manifest.write_bytes(b'{"format": "holdfast-dataset/1"}')
    assert verify_dataset(ds.path)[0].where == "manifest.json"


def test_tables_that_do_not_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forger who hashes everything anew, but leaves a judgement without its response."""
    spill = tables.Sorter.spill

    def forgetful(self: tables.Sorter, table: pa.Table, keep: bool) -> None:
        spill(self, table.slice(1) if self.name == "responses" else table, keep)

    monkeypatch.setattr(tables.Sorter, "spill", forgetful)
    ds = freeze_records(SAID[:1], tmp_path / "ds")
    [problem] = verify_dataset(ds.path)
    assert problem.what == "the tables do not fit together" and "names a response" in problem.found
    with pytest.raises(IntegrityError, match=r"judgements\.parquet names a response [0-9a-f]{64} that is not there"):
        _ = ds.responses_of


def test_a_problem_reads_as_a_sentence() -> None:
    problem = Problem("a row does not hash to its id", "prompts.parquet, row 3", "aa", "bb")
    assert str(problem) == "prompts.parquet, row 3: a row does not hash to its id (found aa, expected bb)"
