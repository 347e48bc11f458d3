"""Cards: every number is the manifest's or the inspection's, the front is YAML, the metadata has what Croissant asks for."""

import hashlib
import json
from dataclasses import replace

import orjson
import pytest
import yaml
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.card import COLUMNS, About, make_card
from holdfast.data.dataset import SCHEMAS, verify_dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.inspect.inspection import inspect_dataset
from holdfast.errors import DataError
from test_inspect import clean


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    said = [replace(j, licence="mit") for j in clean()[:360]]
    said = [j if len(j.responses[0]) > len(j.responses[1]) else replace(j, responses=j.responses[::-1]) for j in said]
    ds = freeze_records(said, folder / "words | <b>")
    found = inspect_dataset(ds, times=50, power=1, only=["length", "agreement", "validity", "position"])
    return ds, found.as_json()


def test_the_card_says_what_was_measured(made):
    ds, inspection = made
    card = make_card(ds, inspection, About(description="Made-up words."))
    front = yaml.safe_load(card.readme.split("---\n")[1])
    assert front["license"] == "mit" and front["size_categories"] == ["n<1K"] and front["pretty_name"] == "words | <b>"
    assert front["holdfast"] == {"root": ds.root, "inspection": inspection["digest"]}
    assert [c["data_files"] for c in front["configs"]] == ["judgements.parquet", "prompts.parquet", "responses.parquet"]
    assert "| judgements | 360 |" in card.readme and "| prompts | 120 |" in card.readme
    wins = next(f for f in inspection["findings"] if f["name"] == "length/longer-wins")
    shown = f"{100 * wins['value']:.1f} % ({100 * wins['lo']:.1f} % to {100 * wins['hi']:.1f} %)"
    assert f"| `length/longer-wins` | {wins['severity']} | {shown} |" in card.readme
    assert f"**{wins['title']}** ({wins['severity']}" in card.readme
    for p in inspection["power"]["faults"]:
        assert f"| {p['fault']} | {p['verdict']} |" in card.readme
    # A table's row has as many cells as its head.
    heads = None
    for line in card.readme.splitlines():
        cells = line.replace("\\|", "").count("|") if line.startswith("|") else None
        heads = cells if heads is None else heads if cells is not None else None
        assert cells == heads or heads is None
    assert make_card(ds, inspection, About(description="Made-up words.")).readme == card.readme


def test_the_metadata_has_what_croissant_asks_for(made):
    """Required by the Croissant 1.0 specification (mlcroissant 1.1.1 validates the same file with no error)."""
    ds, inspection = made
    about = About("w", "d", "mit", ("en",), "A. Person", "https://example.org/w", "2026-01-02", "A. Person 2026")
    card = make_card(ds, inspection, about)
    said = card.croissant
    assert not card.unsaid
    for key in ("@context", "@type", "conformsTo", "name", "description", "license", "url", "creator", "datePublished"):
        assert said[key]
    assert said["@type"] == "sc:Dataset" and "http://mlcommons.org/croissant/1.0" in said["conformsTo"]
    files = {f["@id"]: f for f in said["distribution"]}
    assert set(files) == {"prompts.parquet", "responses.parquet", "judgements.parquet"}
    for name, f in files.items():
        raw = (ds.path / name).read_bytes()
        assert f["sha256"] == hashlib.sha256(raw).hexdigest() and f["contentSize"] == f"{len(raw)} B"
        assert f["contentUrl"] == name and f["encodingFormat"] and f["@type"] == "cr:FileObject"
    for record in said["recordSet"]:
        assert [f["name"] for f in record["field"]] == SCHEMAS[record["name"]].names == list(COLUMNS[record["name"]])
        for f in record["field"]:
            assert f["source"]["fileObject"]["@id"] in files and f["source"]["extract"] == {"column": f["name"]}
            assert f.get("repeated", False) == str(SCHEMAS[record["name"]].field(f["name"]).type).startswith("list")
    ids = [x for r in said["recordSet"] for x in (r["@id"], *(f["@id"] for f in r["field"]))] + list(files)
    assert len(ids) == len(set(ids))
    measured = {p["name"]: p for p in said["additionalProperty"]}
    for f in inspection["findings"]:
        if f["value"] is not None:
            assert (
                measured[f["name"]]["value"] == f["value"]
                and inspection["digest"] in measured[f["name"]]["measurementTechnique"]
            )
    assert any("longer response is preferred" in b for b in said["rai:dataBiases"])


def test_nothing_is_made_up(made):
    ds, inspection = made
    card = make_card(ds, inspection)
    assert {u.split(" (")[0] for u in card.unsaid} == {
        "description",
        "language",
        "creator",
        "address",
        "date of publication",
    }
    assert not {"url", "creator", "datePublished", "inLanguage", "citeAs"} & set(card.croissant)
    with pytest.raises(DataError, match="inspect it again"):
        make_card(ds, {**inspection, "dataset": "0" * 64})


def test_two_licences_are_counted_and_none_is_chosen(tmp_path):
    said = [replace(j, licence=("mit", "cc-by-4.0")[n % 2]) for n, j in enumerate(clean()[:60])]
    ds = freeze_records(said, tmp_path / "data")
    card = make_card(ds, inspect_dataset(ds, only=["length"], times=10).as_json())
    assert "license" not in card.croissant and "licence (--license)" in card.unsaid
    assert "| licence cc-by-4.0 | 30 |" in card.readme and "| licence mit | 30 |" in card.readme


def test_the_command_writes_beside_a_dataset_that_still_holds(tmp_path):
    ds = freeze_records(clean()[:90], tmp_path / "data")
    done = CliRunner().invoke(app, ["card", str(ds.path), "-o", str(ds.path), "--license", "mit", "--json"])
    said = json.loads(done.output)
    assert done.exit_code == 0 and len(said["written"]) == 3 and verify_dataset(ds.path) == []
    croissant = orjson.loads((ds.path / "croissant.json").read_bytes())
    assert (
        said["inspection"] in (ds.path / "README.md").read_text()
        and f"holdfast:inspection/{said['inspection']}" in croissant["identifier"]
    )
    first = (ds.path / "README.md").read_bytes()
    again = CliRunner().invoke(
        app,
        ["card", str(ds.path), "-o", str(ds.path), "--license", "mit", "--inspection", str(ds.path / "inspect.json")],
    )
    assert again.exit_code == 0 and "not said" in again.output and (ds.path / "README.md").read_bytes() == first
    (tmp_path / "other.json").write_text("{}")
    bad = CliRunner().invoke(
        app, ["card", str(ds.path), "-o", str(tmp_path / "x"), "--inspection", str(tmp_path / "other.json")]
    )
    assert bad.exit_code != 0 and not (tmp_path / "x").exists()
