"""Curation: every rule by hand, every row accounted for, the parent untouched, the same plan the same root."""

import hashlib
import json
import random
from collections import Counter

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.curate import RULES, curate
from holdfast.data.dataset import open_dataset, verify_dataset
from holdfast.data.export import records
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.errors import DataError, RecipeError


def said():
    draw, made = random.Random(0), []
    for n in range(24):
        two = (f"long answer number {n} " + "word " * (n % 5), f"short {n}")
        two = two if n % 4 else two[::-1]
        made.append(
            Judgement(
                "pair", f"prompt {n // 2} " + " ".join(draw.choices("abcdefgh", k=9)) if n % 2 == 0 else made[-1].prompt, two,
                annotator=("ann", "bob")[n % 2], category=("x", "y", "y")[n % 3], licence=None if n % 6 else "nc", sources=("m1", f"m{n % 3 + 2}"),
                extra={"lang": "de" if n % 8 == 0 else "en"},
            )
        )  # fmt: skip
    made.append(Judgement("soft", "soft?", ("s1", "s2"), value=0.8, annotator="bob"))
    made.append(Judgement("ranking", "rank?", ("r1", "r2", "r3"), ranks=(0, 1, 2), annotator="bob"))
    made.append(Judgement("label", "label?", ("l1",), value=1.0, annotator="bob"))
    made.append(Judgement("score", "score?", ("c1",), value=3.0, annotator="bob"))
    return made


@pytest.fixture
def parent(tmp_path):
    return freeze_records(said(), tmp_path / "parent")


def of(ds):
    return [j for _, j in records(ds, range(ds.n_judgements))]


def test_rules_by_hand(parent, tmp_path):
    def after(**rule):
        made = curate(parent, [rule], tmp_path / hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:8])
        assert made.parent == parent.root and not verify_dataset(made.dataset.path)
        return made.dataset

    assert Counter(j.annotator for j in of(after(kind="drop", where={"annotator": "ann"}))) == {"bob": 16}
    assert all(j.licence is None for j in of(after(kind="drop", where={"licence": "nc"})))
    assert len(of(after(kind="keep", where={"category": ["x", ""], "annotator": "bob"}))) == 4 + 4
    assert after(kind="drop", where={"extra.lang": "de"}).n_judgements == 28 - 3
    assert after(kind="drop", where={"source": "m3"}).n_judgements == 28 - 8
    capped = of(after(kind="cap", per="category", most=3))
    assert Counter(j.category for j in capped) == {"x": 3, "y": 3, None: 4}
    assert max(Counter(j.prompt for j in of(after(kind="cap", per="prompt", most=1))).values()) == 1
    assert Counter(j.category for j in of(after(kind="balance", column="category"))) == {"x": 8, "y": 8, None: 4}
    longer = [
        len(j.responses[0]) > len(j.responses[1])
        for j in of(after(kind="balance", column="longer"))
        if j.kind == "pair"
    ]
    assert sum(longer) * 2 == len(longer) > 0
    strata = Counter(j.category for j in of(after(kind="stratify", column="category", rows=14)))
    assert strata == {"x": 4, "y": 8, None: 2}


def test_relabelling(parent, tmp_path):
    before = {json.dumps(j.prompt) + str(j.responses): j for j in of(parent)}
    swapped = curate(
        parent,
        [
            {
                "kind": "relabel",
                "to": "swap",
                "where": {"annotator": "bob", "kind": ["pair", "soft", "ranking", "label"]},
            }
        ],
        tmp_path / "s",
    )
    got = {j.kind: j for j in of(swapped.dataset) if j.annotator == "bob"}
    assert got["soft"].value == pytest.approx(0.8) and got["soft"].responses == ("s2", "s1")
    assert got["ranking"].responses == ("r3", "r2", "r1") and got["label"].value == 0.0
    pairs = [j for j in of(swapped.dataset) if j.kind == "pair"]
    assert sum(json.dumps(j.prompt) + str(j.responses) in before for j in pairs) == 12  # ann's
    turned = [j for j in pairs if j.annotator == "bob"]
    assert all(before[json.dumps(j.prompt) + str(j.responses[::-1])].sources == j.sources[::-1] for j in turned)
    # Turned round twice it is what it was.
    twice = curate(
        swapped.dataset,
        [
            {
                "kind": "relabel",
                "to": "swap",
                "where": {"annotator": "bob", "kind": ["pair", "soft", "ranking", "label"]},
            }
        ],
        tmp_path / "t",
    )
    assert twice.root == parent.root
    ties = curate(parent, [{"kind": "relabel", "to": "tie", "where": {"kind": "pair"}}], tmp_path / "u")
    assert Counter(j.kind for j in of(ties.dataset))["tie"] == 24
    with pytest.raises(DataError, match=r"rule 1 \(relabel\): row \w+ is a score: only pairs"):
        curate(parent, [{"kind": "relabel", "to": "swap", "where": {"kind": "score"}}], tmp_path / "v")


def test_what_is_there_several_times(tmp_path):
    some = said()[:6]
    again = Judgement("pair", some[0].prompt, some[0].responses, annotator="eve")
    near = Judgement("pair", some[2].prompt + " please", ("other", "thing"), annotator="eve")
    ds = freeze_records([*some, some[0], again, near], tmp_path / "p")
    left = [
        curate(ds, [{"kind": "deduplicate", "by": by}], tmp_path / by).dataset.n_judgements
        for by in ("judgement", "comparison", "prompt")
    ]
    assert left == [8, 7, 8]
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": some[4].prompt.upper()}) + "\n")
    clean = curate(ds, [{"kind": "decontaminate", "against": str(tmp_path / "eval.jsonl")}], tmp_path / "d").dataset
    assert clean.n_judgements == 7 and some[4].prompt not in clean.prompt_contents()


def test_every_row_is_accounted_for_and_the_parent_stays(parent, tmp_path):
    before = {p.name: p.read_bytes() for p in parent.path.iterdir()}
    (tmp_path / "rows.txt").write_text(f"{parent.row_id(3)}\n{parent.row_id(5)[:12]}  flipped\n")
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
[[rule]]
kind = "drop"
rows = "{tmp_path / "rows.txt"}"
why = "looked at by hand"
[[rule]]
kind = "relabel"
to = "swap"
where = {{annotator = "ann"}}
[[rule]]
kind = "cap"
per = "prompt"
most = 1
"""
    )
    made = curate(parent, plan, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "curated.jsonl").read_text().splitlines()]
    report = json.loads((tmp_path / "out" / "curation.json").read_text())
    dropped = {line["row"] for line in lines if not line["did"].startswith("turned")}
    assert len(dropped) + made.dataset.n_judgements == parent.n_judgements == report["rows"]["parent"]
    assert [line["why"] for line in lines if line["rule"] == 1] == ["looked at by hand"] * 2
    kept = set(made.dataset.row_ids)
    became = {line["row"]: line["became"] for line in lines if "became" in line}
    assert kept == (set(parent.row_ids) - dropped - set(became)) | set(became.values())
    assert report["parent"] == parent.root and [s["rows"] for s in report["steps"]] == [28, 26, 26]
    assert {p.name: p.read_bytes() for p in parent.path.iterdir()} == before
    assert curate(open_dataset(parent.path), plan, tmp_path / "again").root == made.root
    damaged = tmp_path / "out" / "curated.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"drop", b"DROP", 1))
    assert any("curated.jsonl" in str(p) for p in verify_dataset(tmp_path / "out"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"kind": "dorp"}, r"rule 1: kind = 'dorp' \(known: drop, keep, relabel"),
        ({"kind": "drop"}, r"rule 1 \(drop\): needs `where"),
        ({"kind": "drop", "wher": {}}, "unknown key 'wher'; did you mean 'where'"),
        ({"kind": "drop", "where": {"annotator": "zoe"}}, "no row says annotator = 'zoe'; they say ann, bob"),
        ({"kind": "drop", "where": {"colour": "red"}}, "unknown column 'colour'"),
        ({"kind": "drop", "where": {"annotator": ["ann", "bob"]}}, "drops all of the 28 rows"),
        ({"kind": "cap", "per": "category", "most": 0}, "most = 0"),
        ({"kind": "relabel", "to": "win", "where": {"kind": "pair"}}, "to = 'win' should be"),
        ({"kind": "balance", "column": "rubric"}, "one value at most"),
        ({"kind": "stratify", "column": "category", "rows": 99}, "between 1 and the 28 rows"),
        ({"kind": "drop", "rows": "nowhere.txt"}, "there is no such file"),
    ],
)
def test_what_cannot_be_meant_is_said(parent, tmp_path, rule, words):
    with pytest.raises((DataError, RecipeError), match=words):
        curate(parent, [rule], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(parent, tmp_path):
    (tmp_path / "plan.toml").write_text('[[rule]]\nkind = "drop"\nwhere = {annotator = "ann"}\nwhy = "quick"\n')
    words = ["curate", str(parent.path), "--plan", str(tmp_path / "plan.toml"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "quick" in done.output and "16 rows" in done.output
    assert (
        json.loads(CliRunner().invoke(app, [*words[:-1], str(tmp_path / "o2"), "--json"]).output)["rules"][0]["dropped"]
        == 12
    )
    (tmp_path / "plan.toml").write_text("[[rules]]\n")
    with pytest.raises(RecipeError, match="unknown key 'rules'; did you mean 'rule'"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert set(RULES) == {"drop", "keep", "relabel", "deduplicate", "cap", "balance", "stratify", "decontaminate"}
