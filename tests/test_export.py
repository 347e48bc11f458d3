"""Out and in again: for every format, what it says of a dataset freezes to the same root, and what it cannot say is
counted and listed, never bent."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.dataset import open_dataset
from holdfast.data.export import export
from holdfast.data.formats import FORMATS
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.records import Judgement, Segment
from holdfast.data.splits import make_split
from holdfast.errors import DataError
from holdfast.recipe import SplitTable
from test_formats import CALL, EXAMPLES, TOOLS, bot, user

DATA = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")
ENDINGS = (".jsonl", ".parquet", ".jsonl.gz", ".parquet.zst")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("name", FORMATS)
def test_the_examples_of_a_format_go_out_in_it_and_come_back(name: str, tmp_path: Path) -> None:
    rows = [row for form, row, _ in EXAMPLES if form == name]
    kinds = [isinstance(j.responses[0], Segment) for form, _, want in EXAMPLES if form == name for j in want[:1]]
    if name == "nemo":  # what else NeMo says of a completion cannot be put back
        rows = [row for row in rows if "score" not in json.dumps(row)]
    for segments in {*kinds}:
        mine = [row for row, kind in zip(rows, kinds, strict=False) if kind is segments]
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, mine)))
        ds = freeze(tmp_path / "in.jsonl", tmp_path / f"ds{segments}", format=name).dataset
        for ending in ENDINGS:
            out = tmp_path / f"out{segments}{ending}"
            done = export(ds, out, format=name)
            assert (done.judgements, done.left_out, done.lost) == (ds.n_judgements, {}, {})
            assert done.root == ds.root and done.detected
            back = freeze(out, tmp_path / f"back{segments}{ending}")
            assert (back.root, back.accepted) == (ds.root, done.rows)


WORDS = st.sampled_from(["kelp", "A seaweed.", " a", "b ", "\n\nHuman: ", "é🪨", '"{}', "a\u2028b", "3", "null", "N/A"])
TEXT = st.lists(WORDS, min_size=1, max_size=3).map("".join).filter(str.strip)
NAME = st.sampled_from(["ann", "annotator1", "annotator2", "gpt-4", "expert_3", "x_y", "7", " z"])
LOOSE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e18, 1e18) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
COLUMN = st.sampled_from(
    ["id", "site", "Rationale", "chosen", "winner", "category", "critique", "completions", "tools"]
)
SPOKEN = st.fixed_dictionaries({"content": TEXT})
ODD = st.sampled_from(
    [{"content": "x", "name": "n"}, {"content": [{"type": "text", "text": "x"}]}, {"content": "x", "k": None}]
)


def message(role: str) -> st.SearchStrategy[dict[str, Any]]:
    plain = SPOKEN.map(lambda m: {"role": role, **m})
    return st.one_of(plain, plain, plain, ODD.map(lambda m: {"role": role, **m}))


STRANGE: Any = [{"role": "assistant", "content": "", "tool_calls": ["f", {"function": 1}]}]
ANSWER = st.one_of(
    st.just(STRANGE),
    message("assistant").map(lambda m: [m]),
    message("assistant").map(lambda m: [m]),
    st.tuples(st.just(CALL), st.just({"role": "tool", "content": "8"}), message("assistant")).map(list),
)
ASKED = st.one_of(
    message("user").map(lambda m: [m]),
    st.tuples(message("system"), message("user")).map(list),
    st.tuples(message("user"), message("assistant"), message("user")).map(list),
)


TEXT_ONLY, CHAT_ONLY = {"alpaca-eval", "pandalm"}, {"hh", "llama-factory", "halos", "nemo", "mt-bench", "ms-swift"}


@st.composite
def judgements(draw: Any, name: str) -> Judgement:
    """Any judgement at all; two times in three one of the sort that this format is for."""
    apt = draw(st.integers(0, 2)) > 0
    form = FORMATS[name]
    kinds = [k for k in form.kinds if k != "segment"] if apt else ["pair", "tie", "soft", "ranking", "score", "label"]
    kind = draw(st.sampled_from(kinds))
    n = {"ranking": draw(st.integers(2, 4)), "score": 1, "label": 1}.get(kind, 2)
    prompt: Any
    text = draw(st.booleans()) if not apt or name not in TEXT_ONLY | CHAT_ONLY else name in TEXT_ONLY
    if text:
        prompt, answers = draw(TEXT), TEXT
    elif apt and name in CHAT_ONLY:
        prompt, answers = [{"role": "user", **draw(SPOKEN)}], SPOKEN.map(lambda m: [{"role": "assistant", **m}])
    else:
        prompt, answers = draw(ASKED), ANSWER
        prompt = {"messages": prompt, "tools": TOOLS} if draw(st.integers(0, 4)) == 0 else prompt
    responses = draw(st.lists(answers, min_size=n, max_size=n, unique_by=repr))
    some = lambda values: draw(st.none() | values) if draw(st.booleans()) else None  # noqa: E731
    j = Judgement(
        kind,
        prompt,
        tuple(responses),
        value={
            "soft": draw(st.integers(0, 64)) / 64,
            "score": draw(st.floats(-1e6, 1e6)),
            "label": float(draw(st.booleans())),
        }.get(kind),
        ranks=tuple(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))) if kind == "ranking" else None,
        margin=some(st.floats(-9, 9)),
        annotator=some(NAME),
        annotator_kind=some(st.sampled_from(["human", "ai", "rule"])),
        shown=some(st.permutations(range(n)).map(tuple)),
        rubric=some(st.sampled_from(["helpfulness", "overall", "r"])),
        category=some(NAME),
        licence=some(NAME),
        sources=some(st.lists(st.none() | NAME, min_size=n, max_size=n).map(tuple)),
        extra=some(st.dictionaries(COLUMN, LOOSE, min_size=1, max_size=3)),
    )
    if apt:
        j.annotator_kind = j.annotator_kind or form.annotator_kind or ("human" if name == "argilla" else None)
        j.shown = j.shown if name in ("compared", "ranked", "holdfast") else None
        if name == "pandalm":
            j.annotator, j.sources = draw(st.sampled_from(["annotator1", "annotator2"])), None
        if name in ("helpsteer", "ultrafeedback"):
            j.rubric = "helpfulness" if name == "helpsteer" else j.rubric or "overall"
        if name == "trl-implicit" and text:
            j.prompt, j.responses = "Is it kelp?\n", ("Yes.", "No.")
    return j


@st.composite
def datasets(draw: Any, name: str) -> list[Judgement]:
    """Judgements of all kinds; some of one prompt, as several annotators' are; some said twice."""
    made = draw(st.lists(judgements(name), min_size=1, max_size=5))
    again = draw(st.lists(st.sampled_from(made), max_size=3))
    others = [replace(j, annotator=draw(NAME), value=j.value if j.kind != "score" else 0.5) for j in again]
    return [*made, *again, *others]


def round_trip(said: list[Judgement], name: str, ending: str) -> int:
    """What the format says without loss must come back to its root; everything else must be listed. How many came."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ds = freeze_records(said, folder / "ds")
        try:
            done = export(ds, folder / f"lossy{ending}", format=name, lossy=True)
        except DataError as nothing:
            assert "nothing was written" in str(nothing) and name != "holdfast"
            return 0
        file = folder / f"lossy{ending}.left-out.jsonl"
        listed = lines(file) if file.is_file() else []
        out = {row["row"] for row in listed if not row["written"]}
        assert sum(done.left_out.values()) == len(out) == ds.n_judgements - done.judgements
        assert sum(done.lost.values()) == len(listed) - len(out)
        lossy = freeze(folder / f"lossy{ending}", folder / "lossy", format=name)
        assert lossy.dataset.n_judgements == done.judgements and lossy.accepted == done.rows

        exact = [i for i, row in enumerate(ds.row_ids) if row not in {row["row"] for row in listed}]
        if not exact:
            return 0
        done = export(ds, folder / f"exact{ending}", format=name, rows=exact)
        back = freeze(folder / f"exact{ending}", folder / "exact", format=None if done.detected else name)
        export(ds, folder / "meant.jsonl", format="holdfast", rows=exact)
        assert back.root == freeze(folder / "meant.jsonl", folder / "meant").root
        return len(exact)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(sorted(FORMATS)), st.sampled_from(ENDINGS))
def test_what_a_format_says_comes_back_as_it_was(data: st.DataObject, name: str, ending: str) -> None:
    round_trip(data.draw(datasets(name)), name, ending)


@settings(max_examples=12, deadline=None)
@given(datasets("holdfast"), st.sampled_from(ENDINGS))
def test_holdfast_says_everything(said: list[Judgement], ending: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        ds = freeze_records(said, Path(temporary) / "ds")
        done = export(ds, Path(temporary) / f"out{ending}", format="holdfast")
        assert done.root == ds.root and done.detected and done.rows == len(said)
        assert freeze(Path(temporary) / f"out{ending}", Path(temporary) / "back").root == ds.root


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_over_many_datasets(name: str) -> None:
    came = []

    @settings(max_examples=60, deadline=None)
    @given(datasets(name), st.sampled_from(ENDINGS))
    def run(said: list[Judgement], ending: str) -> None:
        came.append(round_trip(said, name, ending))

    run()
    assert sum(came) > 20, "the datasets hardly ever hold what this format says"


def test_segments_copies_and_nulls_go_through_holdfast(tmp_path: Path) -> None:
    pair = Judgement("pair", None, (Segment("e", 0, 5), Segment("f", 3, 5)), shown=(1, 0), margin=0.5)
    ds = freeze_records([pair, pair, pair, replace(pair, kind="tie", extra={"a": {"b": None}})], tmp_path / "ds")
    for ending in ENDINGS:
        done = export(ds, tmp_path / f"a{ending}", format="holdfast")
        assert done.rows == 4
        assert freeze(tmp_path / f"a{ending}", tmp_path / f"back{ending}").root == ds.root
    with pytest.raises(DataError, match="4 of 4 judgements cannot be written as compared.*\n  4 x a segment has no pl"):
        export(ds, tmp_path / "b.jsonl", format="compared")


ASK = [{"role": "system", "content": "Be brief."}, user("High tide?")]
CALLED = [CALL, {"role": "tool", "content": "8"}, bot("At eight.")]
CARRIES_TOOLS = {
    "pair": ["trl", "trl-implicit", "compared", "holdfast", "rewardbench", "openrlhf", "halos", "nemo", "ms-swift"],
    "label": ["unpaired", "scored", "holdfast", "halos"],
    "score": ["ranked", "scored", "holdfast", "helpsteer"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CARRIES_TOOLS.items() for name in names])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_system_messages_and_tool_calls_survive(kind: Any, name: str, ending: str, tmp_path: Path) -> None:
    prompt = {"messages": ASK, "tools": TOOLS}
    j = Judgement(kind, prompt, (CALLED, [bot("No idea.")]) if kind == "pair" else (CALLED,))
    if kind != "pair":
        j.value = 1.0
    if name == "helpsteer":
        j.rubric, j.annotator_kind = "verbosity", "human"
    plain = replace(j, prompt=ASK, responses=([bot("x")], [bot("y")])[: len(j.responses)])
    ds = freeze_records([j, plain], tmp_path / "ds")
    export(ds, tmp_path / f"out{ending}", format=name)
    back = freeze(tmp_path / f"out{ending}", tmp_path / "back").dataset
    assert back.root == ds.root
    assert prompt in back.prompt_contents() and CALLED in back.response_contents()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_tool_calls_survive_in_llama_factory(ending: str, tmp_path: Path) -> None:
    """Its conversations hold calls as messages of their own; a response is one message there."""
    prompt: Any = {"messages": [*ASK, *CALLED[:2]], "tools": TOOLS}
    ds = freeze_records([Judgement("pair", prompt, ([bot("At eight.")], [CALL]))], tmp_path / "ds")
    export(ds, tmp_path / f"out{ending}", format="llama-factory")
    assert freeze(tmp_path / f"out{ending}", tmp_path / "back").root == ds.root
    if ending == ".jsonl":
        (row,) = lines(tmp_path / "out.jsonl")
        call = {"from": "function_call", "value": '{"arguments":{"at":"8"},"name":"tide"}'}
        assert row["conversations"][2:] == [call, {"from": "observation", "value": "8"}]
        assert (row["rejected"], json.loads(row["tools"])) == (call, TOOLS)


@real
@pytest.mark.parametrize(
    ("file", "names", "judgements"),
    [
        ("hh-harmless.jsonl.gz", ["hh", "trl", "llama-factory", "mt-bench"], 1792),
        ("pandalm.jsonl.gz", ["pandalm", "argilla", "compared"], 2835),
    ],
)
def test_real_data_out_and_in_again(file: str, names: list[str], judgements: int, tmp_path: Path) -> None:
    ds = freeze(DATA / file, tmp_path / "ds", on_error="skip").dataset
    for name in names:
        assert export(ds, tmp_path / f"{name}.jsonl", format=name).judgements == judgements
        assert freeze(tmp_path / f"{name}.jsonl", tmp_path / name).root == ds.root


# ------------------------------------------------------------------------------------------------- what cannot be said

PAIR = Judgement("pair", "Q", ("a", "b"), category="sea")
TIE = Judgement("tie", "Q", ("a", "b"))


def test_by_default_what_has_no_place_stops_the_export_with_counts(tmp_path: Path) -> None:
    ds = freeze_records([PAIR, TIE, TIE, replace(PAIR, shown=(1, 0))], tmp_path / "ds")
    with pytest.raises(DataError) as caught:
        export(ds, tmp_path / "a.jsonl", format="trl")
    said = str(caught.value)
    assert said.startswith("3 of 4 judgements cannot be written as trl without loss; nothing was written:\n")
    assert "\n  2 x a tie has no place\n  1 x shown has no place\n" in said and "--lossy" in said
    assert not [p for p in tmp_path.iterdir() if p.name != "ds"]  # not even a half


def test_with_lossy_it_is_left_out_and_listed(tmp_path: Path) -> None:
    shown = replace(PAIR, shown=(1, 0))
    ds = freeze_records([PAIR, TIE, TIE, shown], tmp_path / "ds")
    done = export(ds, tmp_path / "a.jsonl", format="trl", lossy=True)
    assert (done.rows, done.judgements, done.root) == (2, 2, None)
    assert (done.left_out, done.lost) == ({"a tie has no place": 2}, {"shown has no place": 1})
    want = freeze_records([PAIR, PAIR], tmp_path / "want").root
    assert freeze(tmp_path / "a.jsonl", tmp_path / "back").root == want
    kinds = dict(zip(ds.row_ids, ds.column("kind"), strict=True))
    listed = [(kinds[row["row"]], row["reason"], row["written"]) for row in lines(tmp_path / "a.jsonl.left-out.jsonl")]
    assert sorted(listed) == [("pair", "shown has no place", True), *2 * [("tie", "a tie has no place", False)]]


def test_text_becomes_messages_only_when_told(tmp_path: Path) -> None:
    ds = freeze_records([PAIR], tmp_path / "ds")
    with pytest.raises(DataError, match="1 x text becomes messages"):
        export(ds, tmp_path / "a.jsonl", format="nemo")
    export(ds, tmp_path / "a.jsonl", format="nemo", lossy=True)
    chat = Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]), category="sea")
    assert freeze(tmp_path / "a.jsonl", tmp_path / "back").root == freeze_records([chat], tmp_path / "want").root


def test_an_annotator_of_another_kind_is_never_made_human(tmp_path: Path) -> None:
    chat = Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]))
    ds = freeze_records([chat], tmp_path / "ds")
    with pytest.raises(DataError, match="annotator_kind reads back as 'human'"):
        export(ds, tmp_path / "a.jsonl", format="hh")
    judged = freeze_records([replace(chat, annotator_kind="ai")], tmp_path / "ai")
    export(judged, tmp_path / "b.jsonl", format="hh")  # the common column says so, and goes before the format's word
    assert freeze(tmp_path / "b.jsonl", tmp_path / "back").root == judged.root


def test_a_column_of_the_users_that_means_something_here_is_refused(tmp_path: Path) -> None:
    ds = freeze_records([replace(PAIR, extra={"prompt": "mine"}), PAIR], tmp_path / "ds")
    with pytest.raises(DataError, match="1 of 2.*\n  1 x extra"):
        export(ds, tmp_path / "a.jsonl", format="trl")
    ds = freeze_records([replace(PAIR, category=None, extra={"category": "mine"})], tmp_path / "two")
    with pytest.raises(DataError, match="1 x category would read back as another"):
        export(ds, tmp_path / "a.jsonl", format="trl")


@pytest.mark.parametrize("fault", ["swapped", "dropped", "trimmed", "doubled"])
def test_a_writer_that_lies_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Planted faults: no row is believed for its writer's sake."""
    good = FORMATS["trl"].write

    def bad(js: list[Judgement]) -> dict[str, Any]:
        row = good(js)
        if fault == "swapped":
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        elif fault == "dropped":
            js[0].category = None
        elif fault == "trimmed":
            row["prompt"] = row["prompt"].strip()
        else:
            row["margin"] = 1.0
        return row

    ds = freeze_records([replace(PAIR, prompt="Q ")], tmp_path / "ds")
    export(ds, tmp_path / "good.jsonl", format="trl")
    monkeypatch.setitem(FORMATS, "trl", replace(FORMATS["trl"], write=bad))
    with pytest.raises(DataError, match="1 of 1 judgements cannot be written as trl"):
        export(ds, tmp_path / "bad.jsonl", format="trl")
    if fault != "dropped":
        with pytest.raises(DataError, match="nothing was written"):
            export(ds, tmp_path / "bad.jsonl", format="trl", lossy=True)


def test_a_file_that_would_be_told_as_another_format_says_so(tmp_path: Path) -> None:
    ds = freeze_records([replace(PAIR, extra={"subset": "x"}, category=None)], tmp_path / "ds")
    done = export(ds, tmp_path / "a.jsonl", format="trl")
    assert not done.detected  # it reads like RewardBench
    assert freeze(tmp_path / "a.jsonl", tmp_path / "back", format="trl").root == ds.root


def test_several_judgements_share_a_row_where_the_format_has_room(tmp_path: Path) -> None:
    def rated(answer: str, rubric: str, value: float, model: str) -> Judgement:
        extra = {"models": ["m", "n"], **({"Rationale": "r"} if rubric == "honesty" else {})}
        about = {"annotator_kind": "ai", "category": "flan", "sources": (model,), "extra": extra}
        return Judgement("score", "Q", (answer,), value=value, rubric=rubric, **about)  # type: ignore[arg-type]

    said = [rated("x", "honesty", 4, "m"), rated("x", "overall", 8, "m"), rated("y", "overall", 2, "n")]
    ds = freeze_records(said, tmp_path / "ds")
    assert export(ds, tmp_path / "a.jsonl", format="ultrafeedback").rows == 1
    (row,) = lines(tmp_path / "a.jsonl")
    assert (row["source"], row["instruction"], row["models"]) == ("flan", "Q", ["m", "n"])
    about = {c["response"]: (c["model"], c["annotations"], c["overall_score"]) for c in row["completions"]}
    assert about == {"x": ("m", {"honesty": {"Rating": 4.0, "Rationale": "r"}}, 8.0), "y": ("n", {}, 2.0)}
    twice = freeze_records([*said, said[1]], tmp_path / "twice")
    export(twice, tmp_path / "b.jsonl", format="ultrafeedback")
    assert freeze(tmp_path / "b.jsonl", tmp_path / "back").root == twice.root


# ---------------------------------------------------------------------------------------------------- files and command


def test_files_are_whole_the_same_twice_and_never_written_over(tmp_path: Path) -> None:
    ds = freeze_records([PAIR, replace(PAIR, prompt="R")], tmp_path / "ds")
    for ending in ENDINGS:
        export(ds, tmp_path / f"a{ending}", format="trl")
        export(ds, tmp_path / f"b{ending}", format="trl")
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    with pytest.raises(DataError, match="is there already; remove it"):
        export(ds, tmp_path / "a.jsonl", format="trl")
    with pytest.raises(DataError, match=r"should end in \.jsonl or \.parquet"):
        export(ds, tmp_path / "a.csv", format="trl")
    with pytest.raises(DataError, match="unknown format 'tlr'; did you mean 'trl'"):
        export(ds, tmp_path / "c.jsonl", format="tlr")
    with pytest.raises(DataError, match="cannot write"):
        export(ds, tmp_path / "no" / "such" / "c.jsonl", format="trl")
    with pytest.raises(DataError, match="no row was chosen"):
        export(ds, tmp_path / "c.jsonl", rows=[])
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"ds", *(f"{x}{ending}" for x in "ab" for ending in ENDINGS)}


def test_parquet_has_the_types_that_others_expect(tmp_path: Path) -> None:
    chat = Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]), margin=1.0, extra={"n": 3, "any": {"k": [1]}})
    export(freeze_records([chat], tmp_path / "ds"), tmp_path / "a.parquet", format="trl")
    schema = pq.read_schema(tmp_path / "a.parquet")
    messages = "list<element: struct<content: string, role: string>>"
    assert [str(schema.field(c).type) for c in ("prompt", "chosen", "margin", "n")] == [
        messages,
        messages,
        "double",
        "int64",
    ]
    assert "json" in str(schema.field("any").type)


def test_the_command(tmp_path: Path) -> None:
    said = [Judgement("pair", f"Q{n}", ("a", "b")) for n in range(40)] + [TIE]
    ds = freeze_records(said, tmp_path / "ds")
    make_split(ds, SplitTable(test=0.25)).save(tmp_path / "split")
    run = lambda *words: CliRunner().invoke(app, ["export", str(tmp_path / "ds"), *map(str, words)])  # noqa: E731
    done = run("-o", tmp_path / "a.jsonl", "--format", "trl", "--json", "--lossy")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["left_out"] == {"a tie has no place": 1} and told["rows"] == 40 and told["root"] is None
    done = run("-o", tmp_path / "b.jsonl", "--format", "compared", "--split", tmp_path / "split", "--part", "test")
    assert done.exit_code == 0, done.output
    part = freeze(tmp_path / "b.jsonl", tmp_path / "part").dataset
    whole = open_dataset(tmp_path / "ds")
    split = json.loads((tmp_path / "split" / "split.json").read_text())
    assert set(part.prompt_ids) == {key for key, name in split["members"] if name == "test"}
    assert set(part.row_ids) < set(whole.row_ids)
    assert isinstance(run("-o", tmp_path / "c.jsonl", "--part", "test").exception, DataError)


def test_a_table_of_which_another_format_has_the_columns_is_not_told() -> None:
    said = [Judgement("soft", "p", ("a", "b"), value=0.0, annotator_kind="ai")] * 4
    other = replace(said[0], extra={"completions": []})
    assert round_trip([*said, other], "alpaca-eval", ".parquet") == 5
