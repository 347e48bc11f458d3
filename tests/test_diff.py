"""Two datasets side by side, by hand."""

import json

from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.curate import curate
from holdfast.data.diff import diff, moved
from holdfast.data.freeze import freeze_records
from test_inspect import clean


def test_by_hand(tmp_path):
    a = freeze_records(clean()[:300], tmp_path / "a")
    b = freeze_records(clean()[150:330], tmp_path / "b")
    found = diff(a, b, times=20)
    assert found.rows == {"both": 150, "only a": 150, "only b": 30}
    assert found.prompts == {"both": 50, "only a": 50, "only b": 10}
    assert found.strata["annotator"] == dict.fromkeys(("ann", "bob", "eve"), (100, 60))
    assert found.strata["kind"] == {"pair": (300, 180)} and "licence" not in found.strata
    assert len(found.only_a) == 150 and set(found.only_a) <= set(a.row_ids) - set(b.row_ids)
    same = diff(a, a, times=20)
    assert same.rows["only a"] == same.rows["only b"] == 0 and all(x == y for x, y in same.findings.values())
    assert not any(moved(x, y) for x, y in same.findings.values())


def test_what_curation_changed_is_seen(tmp_path):
    a = freeze_records(clean(), tmp_path / "a")
    fewer = curate(a, [{"kind": "drop", "where": {"annotator": "eve"}}], tmp_path / "b").dataset
    texts = a.response_contents()
    longer = [len(texts[w]) > len(texts[loser]) for w, loser in a.responses_of]
    ids = [a.row_id(i) for i, wins in enumerate(longer) if not wins]
    (tmp_path / "rows.txt").write_text("\n".join(ids))
    biased = curate(a, [{"kind": "drop", "rows": str(tmp_path / "rows.txt")}], tmp_path / "c").dataset
    assert diff(a, fewer, times=20).strata["annotator"]["eve"] == (400, 0)
    x, y = diff(a, biased, times=50).findings["length/longer-wins"]
    assert moved(x, y) and y[0] == 1.0


def test_the_command(tmp_path):
    freeze_records(clean()[:150], tmp_path / "a")
    freeze_records(clean()[:90], tmp_path / "b")
    words = ["diff", str(tmp_path / "a"), str(tmp_path / "b")]
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["rows"] == {
        "both": 90,
        "only a": 60,
        "only b": 0,
    }
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "judgements" in done.output and "length/longer-wins" in done.output
