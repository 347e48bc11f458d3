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
from holdfast.data.splits import make_split
from holdfast.errors import DataError, RecipeError
from holdfast.recipe import SplitTable


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
    rules = {
        "drop",
        "keep",
        "relabel",
        "deduplicate",
        "cap",
        "balance",
        "stratify",
        "weigh",
        "counterfactual",
        "decontaminate",
    }
    assert set(RULES) == rules


def test_weights_are_written_beside_what_was_said(parent, tmp_path):
    plan = [
        {"kind": "weigh", "by": 0.5, "where": {"annotator": "ann"}, "why": "quick"},
        {"kind": "weigh", "by": 0.5, "where": {"category": "x"}},
        {"kind": "weigh", "by": 3.0, "column": "w2", "where": {"kind": "soft"}},
    ]
    made = curate(parent, plan, tmp_path / "w")
    assert [(s.changed, s.dropped, s.made) for s in made.steps] == [(12, 0, 0), (8, 0, 0), (1, 0, 0)]
    for j in of(made.dataset):
        expected = (0.5 if j.annotator == "ann" else 1.0) * (0.5 if j.category == "x" else 1.0)
        assert (j.extra or {}).get("weight", 1.0) == expected
        assert (j.extra or {}).get("lang") == (
            "de" if (j.extra or {}).get("lang") == "de" else "en" if j.kind == "pair" else None
        )
    assert [j.extra for j in of(made.dataset) if j.kind == "soft"] == [{"w2": 3.0}]
    trail = [json.loads(line) for line in (made.dataset.path / "curated.jsonl").read_text().splitlines()]
    ids = set(made.dataset.row_ids)
    assert all(line["became"] in ids for line in trail) and trail[0]["why"] == "quick"
    # What is there is multiplied, in a dataset of its own too.
    again = curate(made.dataset, [{"kind": "weigh", "by": 4.0, "where": {"annotator": "ann"}}], tmp_path / "w2")
    assert Counter((j.extra or {}).get("weight") for j in of(again.dataset) if j.annotator == "ann") == {2.0: 8, 1.0: 4}
    with pytest.raises(DataError, match="says 'en' in extra.lang, which is no weight"):
        curate(parent, [{"kind": "weigh", "by": 1.0, "column": "lang", "where": {"extra.lang": "en"}}], tmp_path / "w3")
    with pytest.raises(RecipeError, match="by = -1.0 should be 0 or more"):
        curate(parent, [{"kind": "weigh", "by": -1.0, "where": {"kind": "pair"}}], tmp_path / "w3")


@pytest.fixture
def answers(tmp_path):
    """Twenty prompts, each with two answers of many words, judged twice; one prompt is a near-duplicate of another."""
    draw, made = random.Random(3), []
    for n in range(20):
        words = draw.choices(
            ["river", "stone", "morning", "letter", "window", "garden", "bread", "music"], k=30 + 5 * n
        )
        best, other = " ".join(words) + f" {n}.", "I do not know."
        prompt = " ".join(draw.choices("abcdefghijkl", k=12)) if n != 1 else made[0].prompt + " !"
        content = [{"role": "assistant", "content": best}] if n % 2 else best
        for who in ("ann", "bob"):
            made.append(
                Judgement(
                    "pair", prompt, (content, other), annotator=who, category="x", licence="cc", sources=("m", "k")
                )
            )
    made.append(Judgement("tie", "t", ("one two", "three")))
    return freeze_records(made, tmp_path / "answers")


def text_of(content):
    return content if isinstance(content, str) else content[0]["content"]


@pytest.mark.parametrize("how", ["padded", "truncated", "other-prompt"])
def test_counterfactual_pairs_by_their_making(answers, tmp_path, how):
    plan = [{"kind": "counterfactual", "how": how, "share": 1.0, "why": "length"}]
    made = curate(answers, plan, tmp_path / how)
    assert not verify_dataset(made.dataset.path) and curate(answers, plan, tmp_path / "again").root == made.root
    before, after = of(answers), of(made.dataset)
    new = [j for j in after if j.annotator == f"counterfactual: {how}"]
    assert len(after) == len(before) + len(new) == len(before) + made.steps[0].made
    # Each preferred response once, however often it was preferred; the longest have none longer that could take their place.
    assert len(new) == (20 if how != "other-prompt" else 19)
    rows = {answers.row_id(r): j for r, j in records(answers, range(answers.n_judgements))}
    for j in new:
        parent = rows[j.extra["of"]]
        good, bad = map(text_of, j.responses)
        assert (j.kind, j.prompt, j.responses[0]) == ("pair", parent.prompt, parent.responses[0]) and type(
            j.responses[1]
        ) is type(j.responses[0])
        assert (j.annotator_kind, j.category, j.licence, j.sources) == ("rule", "x", "cc", ("m", None))
        if how == "truncated":
            assert good.startswith(bad) and 0.25 < len(bad.split()) / len(good.split()) < 0.75 and "with" not in j.extra
            continue
        donor = rows[j.extra["with"]]
        theirs = text_of(donor.responses[0])
        assert donor.prompt != j.prompt and {donor.prompt, j.prompt} != {
            before_prompt(rows, 0),
            before_prompt(rows, 0) + " !",
        }
        if how == "padded":
            assert (
                bad.startswith(good + "\n\n") and theirs.startswith(bad[len(good) + 2 :]) and len(bad) > len(good) + 50
            )
        else:
            assert bad == theirs and len(bad) >= len(good)
    trail = [json.loads(line) for line in (made.dataset.path / "curated.jsonl").read_text().splitlines()]
    assert (
        {line["made"] for line in trail} <= set(made.dataset.row_ids)
        and len(trail) == len(new)
        and trail[0]["why"] == "length"
    )
    assert json.loads((made.dataset.path / "curation.json").read_bytes())["rows"]["made"] == len(new)


def before_prompt(rows, n):
    """The prompt that has a near-duplicate, without its mark."""
    return next(j.prompt[:-2] for j in rows.values() if str(j.prompt).endswith(" !"))


def test_counterfactual_pairs_stay_in_training(answers, tmp_path):
    split = make_split(answers, SplitTable(test=0.3, validation=0.1))
    split.save(tmp_path / "split")
    plan = [{"kind": "counterfactual", "how": "padded", "share": 1.0, "split": str(tmp_path / "split")}]
    made = curate(answers, plan, tmp_path / "out").dataset
    train = {answers.row_id(r) for r in split.parts["train"].tolist()}
    said = [j.extra for j in of(made) if j.annotator_kind == "rule"]
    assert said and {e["of"] for e in said} | {e["with"] for e in said} <= train
    # And the same split of what came out puts them there: it goes by prompt.
    parts = make_split(made, SplitTable(test=0.3, validation=0.1)).parts
    rule = [r for r, kind in enumerate(made.column("annotator_kind")) if kind == "rule"]
    assert set(rule) <= set(parts["train"].tolist())
    some = curate(answers, [{"kind": "counterfactual", "how": "padded", "share": 0.25, "seed": 5}], tmp_path / "some")
    assert some.steps[0].made == 5
    with pytest.raises(RecipeError, match=r"share = 0.0 should be above 0"):
        curate(answers, [{"kind": "counterfactual", "how": "padded", "share": 0.0}], tmp_path / "none")
    with pytest.raises(DataError, match="no row prefers a response that is one text"):
        curate(answers, [{"kind": "counterfactual", "how": "padded", "where": {"kind": "tie"}}], tmp_path / "none")
