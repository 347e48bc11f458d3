"""Each format: what a row becomes, worked out by hand; how it is told from the others; what the gate lets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.formats import FORMATS, Row, Unsayable, detect, judge, reader, say, writer
from holdfast.data.formats.registry import take
from holdfast.data.read import read_files
from holdfast.data.records import Judgement, Reject, Segment
from holdfast.data.validate import validate
from holdfast.errors import DataError


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "tide", "arguments": {"at": "8"}}}],
}
TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"at": {"type": "string"}}}}]

# format, row, what it becomes. The format is also what must be detected from the row alone.
EXAMPLES: list[tuple[str, Row, list[Judgement]]] = [
    (
        "trl",
        {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 2, "site": "x", "gone": None},
        [Judgement("pair", "Q", ("a", "b"), margin=2.0, extra={"site": "x"})],
    ),
    (
        "trl",  # a conversation survives whole: system, name, tool call, tool's answer, parts, tools
        {
            "prompt": [{"role": "system", "content": "S"}, {**user("Q"), "name": "ann"}],
            "chosen": [CALL, {"role": "tool", "name": "tide", "content": "high"}, bot("high")],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "low"}], "weight": 0.5}],
            "tools": TOOLS,
        },
        [
            Judgement(
                "pair",
                {"messages": [{"role": "system", "content": "S"}, {**user("Q"), "name": "ann"}], "tools": TOOLS},
                (
                    [CALL, {"role": "tool", "name": "tide", "content": "high"}, bot("high")],
                    [{"role": "assistant", "content": [{"type": "text", "text": "low"}], "weight": 0.5}],
                ),
            )
        ],
    ),
    (
        "trl",  # nulls that a columnar file adds say nothing, at any depth; tools may be JSON text
        {
            "prompt": [{**user("Q"), "name": None}],
            "chosen": [{**CALL, "content": None, "x": {"y": None, "z": [None, 1]}}],
            "rejected": [bot("b")],
            "tools": json.dumps(TOOLS),
        },
        [
            Judgement(
                "pair", {"messages": [user("Q")], "tools": TOOLS}, ([{**CALL, "x": {"z": [None, 1]}}], [bot("b")])
            )
        ],
    ),
    (
        "trl",
        {"prompt": [user("Q")], "chosen": "a", "rejected": [bot("b")], "tools": []},  # chat with text: all chat
        [Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]))],
    ),
    (
        "trl",
        {"prompt": "Q", "chosen": [bot("a")], "rejected": [bot("b")]},
        [Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]))],
    ),
    (
        "trl",  # as in ultrafeedback_binarized: the responses repeat the conversation
        {"prompt": "Q ", "chosen": [user("Q"), bot("a")], "rejected": [user("Q"), bot("b")], "score_chosen": 8.5},
        [Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]), extra={"score_chosen": 8.5})],
    ),
    (
        "trl",  # the prompt stands in front of each response again
        {"prompt": [user("Q")], "chosen": [user("Q"), bot("a")], "rejected": [user("Q"), bot("b")]},
        [Judgement("pair", [user("Q")], ([bot("a")], [bot("b")]))],
    ),
    (
        "trl-implicit",
        {"chosen": [user("Q"), bot("x"), user("R"), bot("a")], "rejected": [user("Q"), bot("x"), user("R"), bot("b")]},
        [Judgement("pair", [user("Q"), bot("x"), user("R")], ([bot("a")], [bot("b")]))],
    ),
    (
        "trl-implicit",
        {"chosen": "The sky is blue.", "rejected": "The sky is black.", "source_chosen": "m", "license": "mit"},
        [Judgement("pair", "The sky is", (" blue.", " black."), sources=("m", None), licence="mit")],
    ),
    (
        "trl-implicit",  # after a line break, not before it
        {"chosen": "Is it?\nYes", "rejected": "Is it?\nYet"},
        [Judgement("pair", "Is it?\n", ("Yes", "Yet"))],
    ),
    (
        "unpaired",
        {"prompt": "Q", "completion": "a", "label": False, "source": "m"},
        [Judgement("label", "Q", ("a",), value=0.0, sources=("m",))],
    ),
    (
        "unpaired",
        {"prompt": [user("Q")], "completion": [bot("a")], "label": "True"},
        [Judgement("label", [user("Q")], ([bot("a")],), value=1.0)],
    ),
    (
        "compared",
        {"prompt": "Q", "response_a": "x", "response_b": "y", "winner": "B", "source_a": "m", "source_b": "n",
         "shown": [1, 0]},
        [Judgement("pair", "Q", ("y", "x"), sources=("n", "m"), shown=(0, 1))],
    ),
    (
        "compared",
        {"prompt": "Q", "response_a": "x", "response_b": "y", "winner": "tie (bothbad)"},
        [Judgement("tie", "Q", ("x", "y"))],
    ),
    (
        "compared",
        {"prompt": "Q", "response_a": "x", "response_b": "y", "preference": 0.25},
        [Judgement("soft", "Q", ("x", "y"), value=0.25)],
    ),
    (
        "ranked",
        {"prompt": "Q", "responses": ["x", "y", "z"], "ranks": [2, 1.0, "2"], "sources": ["m", None, 3]},
        [Judgement("ranking", "Q", ("x", "y", "z"), ranks=(2, 1, 2), sources=("m", None, "3"))],
    ),
    (
        "ranked",
        {"prompt": "Q", "responses": '["x", "y"]', "scores": [4, 1.5], "sources": ["m", None], "rubric": "help"},
        [
            Judgement("score", "Q", ("x",), value=4.0, sources=("m",), rubric="help"),
            Judgement("score", "Q", ("y",), value=1.5, rubric="help"),
        ],
    ),
    ("scored", {"prompt": "Q", "response": "x", "score": "3.5"}, [Judgement("score", "Q", ("x",), value=3.5)]),
    (
        "scored",
        {"prompt": "Q", "response": "x", "score": 3, "label": 1},
        [Judgement("score", "Q", ("x",), value=3.0), Judgement("label", "Q", ("x",), value=1.0)],
    ),
    (
        "holdfast",
        {"kind": "ranking", "prompt": {"messages": [user("Q")], "tools": TOOLS}, "responses": [[bot("x")], [bot("y")]],
         "ranks": [1, 0], "shown": [0, 1], "sources": ["m", None], "annotator": "ann", "annotator_kind": "rule",
         "rubric": "r", "category": "c", "licence": "l", "margin": None, "value": None, "extra": {"k": [1]}, "own": 2},
        [Judgement("ranking", {"messages": [user("Q")], "tools": TOOLS}, ([bot("x")], [bot("y")]), ranks=(1, 0),
                   shown=(0, 1), sources=("m", None), annotator="ann", annotator_kind="rule", rubric="r", category="c",
                   licence="l", extra={"own": 2, "k": [1]})],
    ),
    (
        "holdfast",
        {"kind": "pair",
         "responses": [{"episode": "e", "start": 0, "length": 5}, {"episode": "f", "start": 3, "length": 5}]},
        [Judgement("pair", None, (Segment("e", 0, 5), Segment("f", 3, 5)))],
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: Hi\n\nthere\n\nAssistant: Hello \n\nHuman:  Bye\n\nAssistant: Ciao",
         "rejected": "\n\nHuman: Hi\n\nthere\n\nAssistant: Hello \n\nHuman:  Bye\n\nAssistant:Go"},
        [Judgement("pair", [user("Hi\n\nthere"), bot("Hello "), user(" Bye")], ([bot("Ciao")], [bot("Go")]),
                   annotator_kind="human")],
    ),
    (
        "alpaca-eval",
        {"instruction": "Q", "input": "more", "output_1": "x", "output_2": "y", "preference": 1.75, "generator_2": "m",
         "dataset": "koala", "annotator": "gpt", "price": 0.1},
        [Judgement("soft", "Q\n\nmore", ("x", "y"), value=0.25, annotator="gpt", annotator_kind="ai", category="koala",
                   sources=(None, "m"), extra={"price": 0.1})],
    ),
    (
        "alpaca-eval",
        {"instruction": "Q", "output_1": "x", "output_2": "y", "preference": 0},
        [Judgement("soft", "Q", ("x", "y"), value=0.5, annotator_kind="ai")],
    ),
    (
        "pandalm",
        {"instruction": "Q", "input": "", "response1": "x", "response2": "y", "annotator1": 2, "annotator2": 0,
         "annotator10": "1", "annotator3": None, "cmp_key": "m_n", "motivation_app": "Mail"},
        [Judgement("pair", "Q", ("y", "x"), annotator="annotator1", annotator_kind="human", category="Mail",
                   sources=("n", "m")),
         Judgement("tie", "Q", ("x", "y"), annotator="annotator2", annotator_kind="human", category="Mail",
                   sources=("m", "n")),
         Judgement("pair", "Q", ("x", "y"), annotator="annotator10", annotator_kind="human", category="Mail",
                   sources=("m", "n"))],
    ),
    (
        "pandalm",  # which model is which cannot be told from this key: it stays as it came
        {"instruction": "Q", "response1": "x", "response2": "y", "annotator1": 1, "cmp_key": "m_1_n"},
        [Judgement("pair", "Q", ("x", "y"), annotator="annotator1", annotator_kind="human",
                   extra={"cmp_key": "m_1_n"})],
    ),
    (
        "ultrafeedback",
        {"source": "flan", "instruction": "Q", "models": ["m", "n"], "completions": [
            {"model": "m", "response": "x", "principle": "p", "overall_score": 8.5, "annotations": {
                "honesty": {"Rating": "4", "Rationale": "r"}, "truthfulness": {"Rating": "N/A"}, "helpfulness": None}},
            {"model": "n", "response": "y", "principle": "q", "annotations": {"honesty": 2}}]},
        [Judgement("score", "Q", ("x",), value=4.0, rubric="honesty", annotator_kind="ai", category="flan",
                   sources=("m",), extra={"Rationale": "r", "models": ["m", "n"]}),
         Judgement("score", "Q", ("x",), value=8.5, rubric="overall", annotator_kind="ai", category="flan",
                   sources=("m",), extra={"principle": "p", "models": ["m", "n"]}),
         Judgement("score", "Q", ("y",), value=2.0, rubric="honesty", annotator_kind="ai", category="flan",
                   sources=("n",), extra={"completion": {"principle": "q"}, "models": ["m", "n"]})],
    ),
    (
        "helpsteer",
        {"prompt": "Q", "response": "x", "helpfulness": 3, "correctness": 4, "coherence": None, "verbosity": 1, "z": 1},
        [Judgement("score", "Q", ("x",), value=3.0, rubric="helpfulness", annotator_kind="human", extra={"z": 1}),
         Judgement("score", "Q", ("x",), value=4.0, rubric="correctness", annotator_kind="human", extra={"z": 1}),
         Judgement("score", "Q", ("x",), value=1.0, rubric="verbosity", annotator_kind="human", extra={"z": 1})],
    ),
    (
        "mt-bench",  # the first turn: what came later was not judged
        {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_b", "judge": "expert_3", "turn": 1,
         "conversation_a": [user("Q"), bot("x"), user("R"), bot("xx")],
         "conversation_b": [user("Q"), bot("y"), user("R"), bot("yy")]},
        [Judgement("pair", [user("Q")], ([bot("y")], [bot("x")]), annotator="expert_3", annotator_kind="human",
                   sources=("n", "m"), extra={"question_id": 81})],
    ),
    (
        "mt-bench",  # the second turn: all of both conversations
        {"winner": "tie (inconsistent)", "judge": ["gpt-4", "pair-v2"], "turn": 2,
         "conversation_a": [user("Q"), bot("x"), user("R"), bot("xx")],
         "conversation_b": [user("Q"), bot("y"), user("R"), bot("yy")]},
        [Judgement("tie", [user("Q")], ([bot("x"), user("R"), bot("xx")], [bot("y"), user("R"), bot("yy")]),
                   annotator="gpt-4/pair-v2", annotator_kind="ai")],
    ),
    (
        "mt-bench",  # equal first answers belong to the prompt
        {"winner": "model_a", "turn": 2, "conversation_a": [user("Q"), bot("x"), user("R"), bot("xx")],
         "conversation_b": [user("Q"), bot("x"), user("R"), bot("yy")]},
        [Judgement("pair", [user("Q"), bot("x"), user("R")], ([bot("xx")], [bot("yy")]))],
    ),
    (
        "rewardbench",
        {"prompt": "Q", "chosen": "x", "chosen_model": "m", "rejected": "y", "rejected_model": "n", "subset": "hep",
         "id": 7},
        [Judgement("pair", "Q", ("x", "y"), category="hep", sources=("m", "n"), extra={"id": 7})],
    ),
    (
        "argilla",
        {"id": "i", "status": "completed", "prompt": "Q", "response-1": "x", "response-2": "y", "response-3": "z",
         "ranking.responses": [["response-2", "response-1", "response-3"], ["response-1"]],
         "ranking.responses.users": ["u", "v"], "ranking.responses.status": ["submitted", "draft"],
         "ranking.suggestion": [{"rank": 1, "value": "response-3"}, {"rank": 1, "value": "response-1"}],
         "ranking.suggestion.agent": "gpt", "why.responses": ["because"], "why.responses.users": ["u"]},
        [Judgement("ranking", "Q", ("y", "x", "z"), ranks=(0, 1, 2), annotator="u", annotator_kind="human",
                   extra={"id": "i", "status": "completed", "why.responses": ["because"], "why.responses.users": ["u"]}),
         Judgement("tie", "Q", ("z", "x"), annotator="gpt", annotator_kind="ai",
                   extra={"id": "i", "status": "completed", "why.responses": ["because"],
                          "why.responses.users": ["u"]})],
    ),
    (
        "argilla",
        {"instruction": "Q", "generations-0": "x", "generations-1": "y", "generations-0-source": "m",
         "generations-1-rating.responses": [4], "generations-1-rating.responses.users": ["u"],
         "generations-0-truth.suggestion": 2, "best.responses": ["generations-0"]},
        [Judgement("score", "Q", ("x",), value=2.0, rubric="truth", annotator_kind="ai", sources=("m",)),
         Judgement("score", "Q", ("y",), value=4.0, annotator="u", annotator_kind="human"),
         Judgement("pair", "Q", ("x", "y"), rubric="best", annotator_kind="human", sources=("m", None))],
    ),
    (
        "argilla",  # Argilla 1
        {"prompt": "Q", "response1": "x", "response2": "y", "preference": [
            {"user_id": "u", "status": "submitted", "value": [{"rank": 2, "value": "response1"},
                                                              {"rank": 1, "value": "response2"}]},
            {"user_id": "v", "status": "discarded", "value": None}],
         "preference-suggestion": {"rank": [1, 1], "value": ["response1", "response2"]},
         "preference-suggestion-metadata": {"agent": "gpt", "type": None}},
        [Judgement("tie", "Q", ("x", "y"), annotator="gpt", annotator_kind="ai"),
         Judgement("pair", "Q", ("y", "x"), annotator="u", annotator_kind="human")],
    ),
    (
        "openrlhf",
        {"input": "Q", "chosen": "x", "rejected": "y", "margin": 2, "datasource": "d"},
        [Judgement("pair", "Q", ("x", "y"), margin=2.0, extra={"datasource": "d"})],
    ),
    (
        "openrlhf",
        {"context_messages": [user("Q")], "input": None, "chosen": [bot("x")], "rejected": "y"},
        [Judgement("pair", [user("Q")], ([bot("x")], [bot("y")]))],
    ),
    (
        "llama-factory",
        {"conversations": [{"from": "human", "value": "Q"},
                           {"from": "function_call", "value": '{"name": "tide", "arguments": {"at": "8"}}'},
                           {"from": "observation", "value": "high"}],
         "system": "S", "tools": json.dumps(TOOLS), "chosen": {"from": "gpt", "value": "x"},
         "rejected": {"from": "gpt", "value": "y"}},
        [Judgement("pair", {"messages": [{"role": "system", "content": "S"}, user("Q"), CALL,
                                         {"role": "tool", "content": "high"}], "tools": TOOLS},
                   ([bot("x")], [bot("y")]))],
    ),
    (
        "llama-factory",  # as its first data sets had it
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": "x", "rejected": "y"},
        [Judgement("pair", [user("Q")], ([bot("x")], [bot("y")]))],
    ),
    (
        "llama-factory-alpaca",
        {"instruction": "Q", "input": "more", "chosen": "x", "rejected": "y", "source_chosen": "m"},
        [Judgement("pair", "Q\nmore", ("x", "y"), sources=("m", None))],
    ),
    (
        "llama-factory-alpaca",
        {"instruction": "R", "input": "", "system": "S", "history": [["Q", "x"]], "chosen": "y", "rejected": "z"},
        [Judgement("pair", [{"role": "system", "content": "S"}, user("Q"), bot("x"), user("R")],
                   ([bot("y")], [bot("z")]))],
    ),
    (
        "llama-factory-kto",
        {"instruction": "Q", "input": "", "output": "x", "kto_tag": True, "source": "m"},
        [Judgement("label", "Q", ("x",), value=1.0, sources=("m",))],
    ),
    (
        "llama-factory-kto",
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x"}], "kto_tag": False},
        [Judgement("label", [user("Q")], ([bot("x")],), value=0.0)],
    ),
    (
        "halos",
        {"prompt_id": 3, "prompt": [user("Q")], "output": [bot("x")], "label": 0, "reward": -1.5,
         "type": "binary_feedback"},
        [Judgement("label", [user("Q")], ([bot("x")],), value=0.0, extra={"prompt_id": 3, "reward": -1.5})],
    ),
    (
        "halos",
        {"prompt": [user("Q")], "output_A": [bot("x")], "output_B": [bot("y")], "label": 0, "source_A": "m",
         "type": "pairwise_feedback"},
        [Judgement("pair", [user("Q")], ([bot("y")], [bot("x")]), sources=(None, "m"))],
    ),
    (
        "nemo",
        {"context": [user("Q")], "completions": [{"rank": 1, "completion": [bot("x")]},
                                                 {"rank": 0, "completion": [bot("y")]}], "sources": ["m", None]},
        [Judgement("pair", [user("Q")], ([bot("y")], [bot("x")]), sources=(None, "m"))],
    ),
    (
        "nemo",
        {"context": [user("Q")], "completions": [{"rank": 2, "completion": [bot("x")], "score": 0.5},
                                                 {"rank": 1, "completion": [bot("y")]},
                                                 {"rank": 2, "completion": [bot("z")]}]},
        [Judgement("ranking", [user("Q")], ([bot("x")], [bot("y")], [bot("z")]), ranks=(2, 1, 2),
                   extra={"completions": [{"rank": 2, "score": 0.5}, {"rank": 1}, {"rank": 2}]})],
    ),
    (
        "ms-swift",
        {"messages": [{"role": "system", "content": "S"}, user("Q"), bot("x")], "rejected_response": "y", "tools": TOOLS},
        [Judgement("pair", {"messages": [{"role": "system", "content": "S"}, user("Q")], "tools": TOOLS},
                   ([bot("x")], [bot("y")]))],
    ),
    (
        "ms-swift",
        {"messages": [user("Q"), CALL, {"role": "tool", "content": "8"}, bot("x")],
         "rejected_messages": [user("Q"), bot("y")]},
        [Judgement("pair", [user("Q")], ([CALL, {"role": "tool", "content": "8"}, bot("x")], [bot("y")]))],
    ),
    (
        "ms-swift",
        {"messages": [user("Q"), bot("x")], "label": False, "rejected_response": None},
        [Judgement("label", [user("Q")], ([bot("x")],), value=0.0)],
    ),
    (
        "holdfast",  # JSON text is taken to the letter, nulls and all
        {"kind": "label", "prompt_json": '[{"role": "user", "content": "Q", "name": null}]', "value": 1,
         "responses": '[[{"role": "assistant", "content": null, "tool_calls": [{}]}]]', "extra": '{"k": null}'},
        [Judgement("label", [{**user("Q"), "name": None}],
                   ([{"role": "assistant", "content": None, "tool_calls": [{}]}],), value=1.0, extra={"k": None})],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "want"), EXAMPLES, ids=lambda v: v if isinstance(v, str) else "")
def test_what_a_row_becomes(name: str, row: Row, want: list[Judgement]) -> None:
    assert detect([row], "file") is FORMATS[name]
    got = judge(FORMATS[name], json.loads(json.dumps(row)))
    key = lambda j: (j.annotator or "", j.rubric or "", -(j.value or 0))  # noqa: E731
    assert sorted(got, key=key) == sorted(want, key=key)


@pytest.mark.parametrize("form", FORMATS)
def test_each_example_is_one_format_and_no_other(form: str) -> None:
    """The full matrix: the rows of this format are told as it, alone and beside a column or two of anybody's; and no
    other format's rows are."""
    for name, row, _ in EXAMPLES:
        for more in ({}, {"id": 3, "source": "s", "category": "c"}, {"models": ["m"], "score_chosen": 1.0}):
            told = detect([{**more, **row}], "file")
            assert (told.name == form) == (name == form), f"{row} is told as {told.name}"


@pytest.mark.parametrize(("name", "row", "want"), EXAMPLES, ids=lambda v: v if isinstance(v, str) else "")
def test_what_was_read_can_be_written_and_read_again(name: str, row: Row, want: list[Judgement]) -> None:
    """Each judgement in a row of its own, through JSON, as the dataset would give it back."""
    form = FORMATS[name]
    for j in judge(form, json.loads(json.dumps(row))):
        if name == "nemo" and j.extra:
            continue  # what else NeMo's completions say has no order of its own to be put back in
        again = say(form, [j])
        assert detect([json.loads(json.dumps(again))], "file") is form
        (back,) = judge(form, json.loads(json.dumps(again)))
        if j.kind == "ranking" and j.ranks and back.ranks:
            assert [sorted(set(j.ranks)).index(r) for r in j.ranks] == [
                sorted(set(back.ranks)).index(r) for r in back.ranks
            ]
            back.ranks = j.ranks
        assert back == j


def test_every_format_has_an_example_and_a_place_in_the_docs() -> None:
    assert {name for name, _, _ in EXAMPLES} == set(FORMATS)
    docs = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    for form in FORMATS.values():
        assert f"`{form.name}`" in docs and form.doc
        for column in form.columns:
            assert f"`{column}`" in docs, f"docs/formats.md does not mention {column} of {form.name}"


def test_the_examples_in_the_docs_are_true() -> None:
    """Every ```json block under a heading with a format's name is read, as that format, without a reject."""
    docs = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    seen = set()
    for part in docs.split("\n### ")[1:]:
        name = part.split("`")[1]
        if name not in FORMATS:
            continue
        blocks = [block.split("```")[0] for block in part.split("```json\n")[1:]]
        lines = [json.loads(line) for block in blocks for line in block.splitlines()]
        assert lines and detect(lines, name) is FORMATS[name]
        for line in lines:
            assert judge(FORMATS[name], line)
        seen.add(name)
    assert seen == set(FORMATS)


# ----------------------------------------------------------------------------------------------------------- detection


def test_a_few_odd_rows_do_not_change_what_is_detected() -> None:
    pairs: list[Row] = [{"prompt": "x", "chosen": "a", "rejected": "b"}] * 9
    assert detect([{"chosen": "a", "rejected": "b"}, *pairs], "f").name == "trl"
    talk: Row = {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"}
    assert detect([{"chosen": "a", "rejected": "b"}, talk, talk], "f").name == "hh"
    assert detect([*pairs, {"prompt": "x", "completion": "a", "label": True}], "f").name == "trl"


def test_what_is_not_detected_is_an_error_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"f\.csv: is 'Question' the prompt.*--map prompt=Question"):
        detect([{"Question": "x", "chosen": "a", "rejected": "b"}], "f.csv")
    with pytest.raises(DataError, match=r"ambiguous format.*trl \(prompt, chosen, rejected\) and compared.*--format"):
        detect([dict.fromkeys(("prompt", "chosen", "rejected", "response_a", "response_b", "winner"), "x")], "f")
    with pytest.raises(DataError, match="Nearest is unpaired, which also needs completion"):
        detect([{"prompt": "x", "label": True}], "f")


def mapped(folder: Path, row: Row, **mapping: str) -> list[Judgement]:
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (got,) = read_files([folder / "rows.jsonl"], mapping=mapping)
    assert got.reason is None, got.reason
    return got.judgements


def test_the_column_map_leads_to_each_kind(tmp_path: Path) -> None:
    row = {"q": "Q", "x": "a", "y": "b", "n": 0.75, "w": "tie", "all": ["a", "b"], "r": [1, 1], "c": 5, "m": "gpt"}

    def extra(*used: str) -> Row:
        return {k: v for k, v in row.items() if k not in used}

    assert mapped(tmp_path, row, prompt="q", chosen="x", rejected="y", margin="n", source_chosen="m") == [
        Judgement("pair", "Q", ("a", "b"), margin=0.75, sources=("gpt", None), extra=extra("q", "x", "y", "n", "m"))
    ]
    assert mapped(tmp_path, row, prompt="q", response_a="x", response_b="y", winner="w", category="c") == [
        Judgement("tie", "Q", ("a", "b"), category="5", extra=extra("q", "x", "y", "w", "c"))
    ]
    assert mapped(tmp_path, row, prompt="q", response_a="x", response_b="y", preference="n") == [
        Judgement("soft", "Q", ("a", "b"), value=0.75, extra=extra("q", "x", "y", "n"))
    ]
    assert mapped(tmp_path, row, prompt="q", responses="all", ranks="r", annotator="m") == [
        Judgement("ranking", "Q", ("a", "b"), ranks=(1, 1), annotator="gpt", extra=extra("q", "all", "r", "m"))
    ]
    assert mapped(tmp_path, row, prompt="q", response="x", score="n", source="m") == [
        Judgement("score", "Q", ("a",), value=0.75, sources=("gpt",), extra=extra("q", "x", "n", "m"))
    ]
    assert mapped(tmp_path, {**row, "ok": True}, prompt="q", response="x", label="ok") == [
        Judgement("label", "Q", ("a",), value=1.0, extra=extra("q", "x"))
    ]
    assert mapped(tmp_path, {"A": "So it is", "B": "So it was"}, chosen="A", rejected="B") == [
        Judgement("pair", "So it", (" is", " was"))
    ]


def test_a_new_format_is_two_functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FORMATS, "duel", FORMATS["trl"])  # taken out again when the test is over

    @reader("duel", needs="ask good bad")
    def duel(row: Row) -> list[Judgement]:
        """Two answers in a duel."""
        return [Judgement("pair", row.pop("ask"), (row.pop("good"), row.pop("bad")))]

    with pytest.raises(Unsayable, match="has no place"):
        say(FORMATS["duel"], [Judgement("pair", "Q", ("a", "b"))])

    @writer("duel", kinds="pair")
    def duel_out(j: Judgement) -> Row:
        return {"ask": j.prompt, "good": j.responses[0], "bad": j.responses[1], "who": take(j, "annotator")}

    said = say(FORMATS["duel"], [Judgement("pair", "Q", ("a", "b"), annotator="ann", category="c", extra={"z": 1})])
    assert said == {"ask": "Q", "good": "a", "bad": "b", "who": "ann", "category": "c", "z": 1}
    (tmp_path / "a.jsonl").write_text('{"ask": "Q", "good": "a", "bad": "b", "category": "c", "z": 1}')
    (got,) = read_files([tmp_path / "a.jsonl"])
    assert got.judgements == [Judgement("pair", "Q", ("a", "b"), category="c", extra={"z": 1})]


# ------------------------------------------------------------------------------------------------------ implicit prompts

WORDS = st.lists(
    st.sampled_from(["sea", "season", "a", "weed", "ä", "🪨", ".", " ", "  ", "\n", "\t", "\u3000"]), max_size=12
)


@given(WORDS, WORDS, WORDS)
def test_a_cut_text_loses_nothing_and_cuts_no_word(shared: list[str], left: list[str], right: list[str]) -> None:
    a, b = "".join(shared + left), "".join(shared + right)
    try:
        (j,) = judge(FORMATS["trl-implicit"], {"chosen": a, "rejected": b})
    except Reject as reason:
        assert str(reason).split(":")[0] in ("identical responses", "no shared prompt", "empty response")
        return
    prompt, (one, two) = j.prompt, j.responses
    assert isinstance(prompt, str) and isinstance(one, str) and isinstance(two, str)
    assert (prompt + one, prompt + two) == (a, b)
    assert prompt.strip()
    for rest in (one, two):
        assert prompt[-1].isspace() or rest[0].isspace()
    # It is the longest such beginning: the responses share no further word's end.
    common = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    assert not any(c.isspace() for c in one[:common][1:])


# ------------------------------------------------------------------------------------------------------------- the gate


def test_validate_lets_through_what_the_schema_allows() -> None:
    validate(Judgement("score", "Q", ("a",), value=-3))
    validate(Judgement("soft", "Q", ("a", "b"), value=0))
    validate(Judgement("ranking", [user("Q")], ([bot("a")], [bot("b")], "c"), ranks=(0, 0, 7), shown=(5, 2, 0)))
    validate(Judgement("tie", None, (Segment("e", 0, 1), Segment("e", 1, 1))))
    validate(Judgement("pair", "Q", ("a", "a "), extra={"n": 2**64 - 1, "m": -(2**63), "f": 0.5, "none": None}))
    validate(Judgement("pair", [user("Q")], ([{"role": "assistant", "content": [{"type": "image", "url": "x"}]}], "b")))


@pytest.mark.parametrize(
    ("judgement", "reason"),
    [
        (Judgement("pair", "Q", ["a", "b"]), "wrong type: responses is a list"),  # type: ignore[arg-type]
        (Judgement("pair", "Q", ("a",)), "wrong number of responses: a pair needs 2, got 1"),
        (Judgement("label", "Q", ("a", "b"), value=1.0), "wrong number of responses: a label needs 1, got 2"),
        (Judgement("pair", b"Q", ("a", "b")), "wrong type: prompt is binary data"),  # type: ignore[arg-type]
        (Judgement("pair", {"messages": [user("Q")]}, ("a", "b")), "wrong type: tools should be"),
        (Judgement("pair", {"messages": [user("Q")], "x": 1}, ("a", "b")), "wrong type: a prompt that is an object"),
        (Judgement("pair", "\ud800", ("a", "b")), "not UTF-8: half of a surrogate pair in prompt"),
        (Judgement("pair", "Q", ("a", "\udc80")), "not UTF-8: half of a surrogate pair in response"),
        (Judgement("pair", [user("\ud800")], ("a", "b")), "not UTF-8"),
        (Judgement("pair", [{**user("x"), "k": "\ud800"}], ("a", "b")), "not UTF-8"),
        (Judgement("pair", "Q", ("a", "b"), extra={"\ud800": 1}), "not UTF-8"),
        (Judgement("pair", "Q", ("a", "b"), extra={1: 1}), "wrong type: a key in extra is a number"),  # type: ignore[dict-item]
        (Judgement("pair", "Q", ("a", "b"), extra={"a": {"b": {1}}}), "wrong type: extra.a.b is set"),
        (Judgement("pair", "Q", ("a", "b"), extra={"a": float("nan")}), "not a finite number: extra.a"),
        (Judgement("pair", "Q", ("a", "b"), margin=float("inf")), "not a finite number: margin is inf"),
        (Judgement("pair", "Q", ("a", "b"), margin=10**400), "number too large: margin"),
        (Judgement("pair", "Q", ("a", "b"), margin=True), "wrong type: margin is true or false"),
        (Judgement("pair", "Q", ("a", "b"), value=1.0), "unexpected value: a pair carries none"),
        (Judgement("soft", "Q", ("a", "b"), value=-0.1), "bad probability: -0.1"),
        (Judgement("soft", "Q", ("a", "b"), value=float("nan")), "not a finite number: value"),
        (Judgement("soft", "Q", ("a", "b")), "wrong type: value is null"),
        (Judgement("score", "Q", ("a",), value="3"), "wrong type: value is text"),  # type: ignore[arg-type]
        (Judgement("label", "Q", ("a",), value=2), "bad label: 2"),
        (Judgement("ranking", "Q", ("a", "b")), "bad ranks"),
        (Judgement("ranking", "Q", ("a", "b"), ranks=(0, True)), "bad ranks: True"),
        (Judgement("ranking", "Q", ("a", "b", "b"), ranks=(0, 1, 2)), "identical responses: 2 and 3"),
        (Judgement("pair", "Q", ("a", "b"), category=" "), "empty category"),
        (Judgement("pair", "Q", ("a", "b"), annotator=3), "wrong type: annotator is a number"),  # type: ignore[arg-type]
        (Judgement("pair", "Q", ("a", "b"), sources=("m",)), "bad sources"),
        (Judgement("pair", "Q", ("a", "b"), sources=("m", "")), "empty source"),
        (Judgement("pair", "Q", ("a", "b"), shown=(0,)), "bad shown"),
        (Judgement("pair", "Q", ("a", "b"), shown=(0, -1)), "bad shown: -1"),
        (Judgement("pair", "Q", (Segment("e", 0, 1), Segment("e", 1, 1))), "segments have no prompt"),
        (Judgement("pair", None, (Segment("e", 0, 1), "b")), "wrong type: segments and text"),
        (Judgement("pair", "Q", ("b", Segment("e", 0, 1))), "wrong type: response is Segment"),
        (Judgement("pair", None, (Segment("e", 0, 1), Segment("e", -1, 1))), "bad segment: start -1"),
        (Judgement("pair", None, (Segment("e", 0, 1), Segment("e", 0, 1))), "identical responses"),
    ],
)  # fmt: skip
def test_validate_stops_what_it_must(judgement: Judgement, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        validate(judgement)
    assert str(caught.value).startswith(reason)
