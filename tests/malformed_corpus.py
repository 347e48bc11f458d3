"""Broken files and rows, each with what must be said about it. Shared by the tests of reading and of freezing.

A case is one file (or folder) and the account that is expected of it: how many rows are accepted, which rows are
rejected and with which reason (the beginning of it), or which error the whole file is (a part of it)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

GOOD = {"prompt": "What is kelp?", "chosen": "A seaweed.", "rejected": "A kind of stone."}
ALSO = {"prompt": "What grips the rock?", "chosen": "The holdfast.", "rejected": "The frond."}


@dataclass(frozen=True)
class Case:
    name: str
    file: str
    content: bytes | Callable[[Path], None]  # a function makes the file or folder at the path
    accepted: int = 0
    rejects: tuple[tuple[int, str], ...] = ()  # (row, beginning of the reason)
    error: str | None = None  # a part of the DataError's message
    format: str | None = None
    mapping: dict[str, str] | None = None

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content)
        return path


CASES: list[Case] = []


def _case(name: str, file: str, content: Any, accepted: int = 0, rejects: Any = (), **more: Any) -> None:
    CASES.append(Case(name, file, content, accepted, tuple(rejects), **more))


def _dump(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def _line(name: str, line: Any, reason: str, **more: Any) -> None:
    """One bad line between two good ones: they are accepted, it is rejected as row 2."""
    _case(name, "rows.jsonl", _dump(GOOD, line, ALSO), 2, [(2, reason)], **more)


# -------------------------------------------------------------------------------------------------------- lines of JSON
_line("line cut off", b'{"prompt": "x", "chosen": "a", "rejec', "broken JSON")
_line("line of junk", b"hello", "broken JSON")
_line("single quotes", b"{'prompt': 'x', 'chosen': 'a', 'rejected': 'b'}", "broken JSON")
_line("trailing comma", b'{"prompt": "x", "chosen": "a", "rejected": "b",}', "broken JSON")
_line("two objects on a line", json.dumps(GOOD).encode() * 2, "broken JSON")
_line("raw control character", b'{"prompt": "x", "chosen": "a\x01", "rejected": "b"}', "broken JSON")
_line("NUL bytes", b"\0\0\0\0", "broken JSON")
_line("a thousand brackets", b"[" * 3000, "broken JSON")
_line("a list", [1, 2], "not an object: the row is a list")
_line("a text", "prompt", "not an object: the row is text")
_line("a number", 7, "not an object: the row is a number")
_line("null", None, "not an object: the row is null")
_line("true", True, "not an object: the row is true or false")
_line("empty object", {}, "no prompt")
_line("not UTF-8", b'{"prompt": "x", "chosen": "caf\xe9", "rejected": "b"}', "not UTF-8: byte 0xe9")
_line("UTF-8 cut in a character", b'{"prompt": "\xe2\x82", "chosen": "a", "rejected": "b"}', "not UTF-8")
_line("UTF-16 line", '{"prompt": "x"}'.encode("utf-16-le"), "broken JSON")
_line("lone surrogate", b'{"prompt": "x", "chosen": "\\ud83d", "rejected": "b"}', "not UTF-8: half of a surrogate")
_line(
    "surrogates reversed", b'{"prompt": "\\ude00\\ud83d", "chosen": "a", "rejected": "b"}', "not UTF-8: half of a surro"
)
_line("NaN", b'{"prompt": "x", "chosen": "a", "rejected": "b", "margin": NaN}', "not a finite number")
_line("Infinity", b'{"prompt": "x", "chosen": "a", "rejected": "b", "z": -Infinity}', "not a finite number")
_line("number beyond a double", b'{"prompt": "x", "chosen": "a", "rejected": "b", "z": 1e999}', "not a finite number")
_line("number beyond 64 bits", {**GOOD, "id": 10**30}, "number too large")
_line("deep number beyond 64 bits", {**GOOD, "meta": {"ids": [1, 2**70]}}, "number too large")
_line("key twice", b'{"prompt": "x", "chosen": "a", "chosen": "c", "rejected": "b"}', "duplicate key: 'chosen'")
_line(
    "key twice, spelt apart", b'{"prompt": "x", "chosen": "a", "ch\\u006fsen": "c", "rejected": "b"}', "duplicate key"
)
_line(
    "key twice, spaced",
    b'{"prompt" : "x", "chosen" : "a", "prompt" : "y", "rejected" : "b"}',
    "duplicate key: 'prompt'",
)
_line(
    "key twice, one spaced", b'{"prompt" : "x", "chosen":"a", "prompt":"y", "rejected":"b"}', "duplicate key: 'prompt'"
)
_line(
    "key twice, one before a tab",
    b'{"prompt"\t: "x", "chosen": "a", "rejected": "b", "prompt":"y"}',
    "duplicate key: 'prompt'",
)
_line(
    "key twice, beside one with a backslash at its end",
    b'{"prompt": "x", "chosen": "a", "rejected": "b", "k\\\\": 1, "z": 1, "z": 2}',
    "duplicate key: 'z'",
)
_line(
    "key twice, beside texts that look like keys",
    b'{"prompt": "say \\"no\\": \\\\", "chosen": ": a", "z": 1, "rejected": "b\\" : c", "z": 2}',
    "duplicate key: 'z'",
)
_line(
    "key twice, inside",
    b'{"prompt": [{"role": "user", "role": "system", "content": "x"}], "chosen": "a", "rejected": "b"}',
    "duplicate key: 'role'",
)
_line("extra nested too deeply", {**GOOD, "meta": json.loads("[" * 150 + "]" * 150)}, "nested too deeply")

# -------------------------------------------------------------------------------------------------- pairs with a prompt
_line("prompt missing", {"chosen": "a", "rejected": "b"}, "no prompt")
_line("prompt null", {**GOOD, "prompt": None}, "no prompt")
_line("prompt blank", {**GOOD, "prompt": " \n\t"}, "no prompt")
_line("prompt without messages", {**GOOD, "prompt": []}, "no prompt")
_line("prompt a number", {**GOOD, "prompt": 3}, "wrong type: 'prompt' is a number")
_line("prompt an object", {**GOOD, "prompt": {"text": "x"}}, "wrong type: 'prompt' is an object")
_line("chosen missing", {"prompt": "x", "rejected": "b"}, "empty response")
_line("rejected null", {**GOOD, "rejected": None}, "empty response")
_line("chosen empty", {**GOOD, "chosen": ""}, "empty response")
_line("rejected blank", {**GOOD, "rejected": " \u00a0\n"}, "empty response")
_line("chosen false", {**GOOD, "chosen": False}, "wrong type: 'chosen' is true or false")
_line("responses equal", {**GOOD, "rejected": GOOD["chosen"]}, "identical responses")
_line("margin as words", {**GOOD, "margin": "large"}, "wrong type: 'margin'")
_line("margin a list", {**GOOD, "margin": [1]}, "wrong type: 'margin' is a list")
_line("margin infinite, as text", {**GOOD, "margin": "inf"}, "not a finite number: 'margin'")
_line("category an object", {**GOOD, "category": {"a": 1}}, "wrong type: 'category' is an object")
_line("annotator kind unknown", {**GOOD, "annotator_kind": "robot"}, "bad annotator kind: 'robot'")
_line("tools with text", {**GOOD, "tools": [{"type": "function"}]}, "wrong type: tools go with")

# ----------------------------------------------------------------------------------------------------------------- chat
_ASK = [{"role": "user", "content": "What is kelp?"}]
_YES, _NO = [{"role": "assistant", "content": "A seaweed."}], [{"role": "assistant", "content": "A stone."}]
_CHAT = {"prompt": _ASK, "chosen": _YES, "rejected": _NO}


def _chat(name: str, change: dict[str, Any], reason: str) -> None:
    _case(name, "chat.jsonl", _dump(_CHAT, {**_CHAT, **change}), 1, [(2, reason)])


_chat("message a text", {"prompt": ["hello"]}, "bad messages: a message of the prompt is text")
_chat("message without role", {"prompt": [{"content": "x"}]}, "bad messages: a message of the prompt has no role")
_chat("role a number", {"prompt": [{"role": 1, "content": "x"}]}, "bad messages: a message of the prompt has no role")
_chat("message without content", {"chosen": [{"role": "assistant"}]}, "bad messages: a message of the response has no")
_chat("content a number", {"chosen": [{"role": "assistant", "content": 5}]}, "bad messages: content of the response")
_chat("content parts untyped", {"chosen": [{"role": "assistant", "content": ["x"]}]}, "bad messages: a part")
_chat(
    "ShareGPT keys", {"prompt": [{"from": "human", "value": "x"}]}, "bad messages: a message of the prompt has no role"
)
_chat(
    "response by the user",
    {"chosen": [{"role": "user", "content": "x"}]},
    "bad messages: a response begins with 'user'",
)
_chat("chat response blank", {"rejected": [{"role": "assistant", "content": "  "}]}, "empty response")
_chat("chat response of no messages", {"rejected": []}, "empty response")
_chat("chat responses equal", {"rejected": _YES}, "identical responses")
_chat("tools not a list", {"tools": {"name": "f"}}, "wrong type: 'tools' is an object")
_chat("tools a list of texts", {"tools": ["f"]}, "wrong type: tools should be a list of objects")
_chat("tools text but not JSON", {"tools": "f(x)"}, "wrong type: 'tools' is text that is not JSON")
_chat(
    "text prompt that the conversations lack",
    {"prompt": "Who?", "chosen": _ASK + _YES, "rejected": _ASK + _NO},
    "no shared prompt",
)

# ----------------------------------------------------------------------------------------------------- implicit prompts
_TALK = {"chosen": _ASK + _YES, "rejected": _ASK + _NO}


def _implicit(name: str, row: dict[str, Any], reason: str, good: dict[str, Any] = _TALK) -> None:
    _case(name, "implicit.jsonl", _dump(good, good, good, row), 3, [(4, reason)])


_TEXT = {"chosen": "Q: what is kelp? A: a seaweed", "rejected": "Q: what is kelp? A: a stone"}
_HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"}
_implicit("conversations share nothing", {"chosen": _ASK + _YES, "rejected": _NO}, "no shared prompt")
_implicit("conversations equal", {"chosen": _ASK + _YES, "rejected": _ASK + _YES}, "identical responses")
_implicit("one begins the other", {"chosen": _ASK, "rejected": _ASK + _YES}, "empty response")
_implicit(
    "conversations part at the user",
    {"chosen": [*_ASK, *_YES, {"role": "user", "content": "And?"}, *_NO], "rejected": [*_ASK, *_YES, *_ASK, *_NO]},
    "no shared prompt: after 2 shared messages",
)
_implicit("text against chat", {"chosen": "x y", "rejected": _ASK + _NO}, "wrong type: one of")
_implicit("texts share nothing", {"chosen": "yes", "rejected": "no"}, "no shared prompt", _TEXT)
_implicit("texts share half a word", {"chosen": "seaweed", "rejected": "season"}, "no shared prompt", _TEXT)
_implicit("texts equal", {"chosen": "a b", "rejected": "a b"}, "identical responses", _TEXT)
_implicit("one text null", {"chosen": "a b", "rejected": None}, "empty response", _TEXT)
_implicit("no transcript", {"chosen": "Hi there", "rejected": "Hi you"}, "not a transcript: 'chosen'", _HH)
_implicit("text before the first turn", {**_HH, "rejected": "So. " + _HH["rejected"]}, "not a transcript: 'rej", _HH)
_implicit(
    "transcripts share no turn",
    {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: y"},
    "no shared prompt: after 0 shared turns",
    _HH,
)
_implicit(
    "two answers after the shared turns",
    {**_HH, "chosen": _HH["chosen"] + "\n\nAssistant: Again"},
    "no shared prompt: after 1 shared turns",
    _HH,
)
_implicit("the answer is missing", {**_HH, "chosen": "\n\nHuman: Hi"}, "no shared prompt", _HH)
_implicit("the answer is blank", {**_HH, "chosen": "\n\nHuman: Hi\n\nAssistant: "}, "empty response", _HH)
_implicit("transcripts equal", {**_HH, "rejected": _HH["chosen"]}, "identical responses", _HH)
_implicit("transcript a list", {**_HH, "rejected": _YES}, "wrong type: 'rejected' is a list", _HH)

# -------------------------------------------------------------------------------------------------------- other formats


def _format(name: str, good: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    _case(name, "rows.jsonl", _dump(good, {**good, **change}), 1, [(2, reason)])


_KTO = {"prompt": "What is kelp?", "completion": "A seaweed.", "label": True}
_format("label missing", _KTO, {"label": None}, "bad label: 'label' is None")
_format("label 2", _KTO, {"label": 2}, "bad label: 'label' is 2")
_format("label yes", _KTO, {"label": "yes"}, "bad label: 'label' is 'yes'")
_format("completion missing", _KTO, {"completion": None}, "empty response")

_ALPACA = {"instruction": "Hi", "output_1": "a", "output_2": "b", "preference": 1.25}
_format("preference null", _ALPACA, {"preference": None}, "bad label: 'preference' is missing")
_format("preference 3", _ALPACA, {"preference": 3}, "bad label: 'preference' is 3.0")
_format("preference 0.5", _ALPACA, {"preference": 0.5}, "bad label: 'preference' is 0.5")
_format("preference words", _ALPACA, {"preference": "first"}, "wrong type: 'preference'")
_format("outputs equal", _ALPACA, {"output_2": "a"}, "identical responses")
_format("instruction blank", _ALPACA, {"instruction": " "}, "no prompt")

_PANDA = {"instruction": "Hi", "input": "", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 0}
_format("annotator says 3", _PANDA, {"annotator2": 3}, "bad label: 'annotator2' is 3")
_format("annotator says a word", _PANDA, {"annotator1": "first"}, "bad label: 'annotator1' is 'first'")
_format("no annotator", _PANDA, {"annotator1": None, "annotator2": None}, "bad label: no annotator")
_format("response2 empty", _PANDA, {"response2": ""}, "empty response")

_AB = {"prompt": "Hi", "response_a": "x", "response_b": "y", "winner": "a"}
_format("winner 0", _AB, {"winner": 0}, "bad label: 'winner' is 0")
_format("winner c", _AB, {"winner": "c"}, "bad label: 'winner' is 'c'")
_format("winner missing", _AB, {"winner": None}, "bad label: neither")
_format("probability 1.5", _AB, {"winner": None, "preference": 1.5}, "bad probability: 1.5")
_format("shown of the wrong length", _AB, {"shown": [0]}, "bad shown: expected one place for each of the 2")
_format("shown twice in one place", _AB, {"shown": [1, 1]}, "bad shown: two responses in one place")

_RANKED = {"prompt": "Hi", "responses": ["x", "y", "z"], "ranks": [1, 2, 2]}
_format("too few ranks", _RANKED, {"ranks": [1, 2]}, "bad ranks: 2 for 3")
_format("rank 1.5", _RANKED, {"ranks": [1, 1.5, 2]}, "wrong type: 'ranks' holds 1.5")
_format("rank negative", _RANKED, {"ranks": [-1, 0, 1]}, "bad ranks: -1")
_format("one response to rank", _RANKED, {"responses": ["x"], "ranks": [1]}, "wrong number of responses")
_format("two ranked responses equal", _RANKED, {"responses": ["x", "y", "x"]}, "identical responses: 1 and 3")
_format("no list of responses", _RANKED, {"responses": "x"}, "wrong type: 'responses' is text")
_format("a response a number", _RANKED, {"responses": ["x", 2, "z"]}, "wrong type: 'responses' should hold")
_format("too many sources", _RANKED, {"sources": ["a", "b", "c", "d"]}, "bad sources: 4 for 3")
_format(
    "score null", {"prompt": "Hi", "responses": ["x"], "scores": [1]}, {"scores": [None]}, "bad scores: one of them"
)
_format("score words", {"prompt": "Hi", "response": "x", "score": 1}, {"score": "good"}, "wrong type: 'score'")

_OWN = {"kind": "soft", "prompt": "Hi", "responses": ["x", "y"], "value": 0.7}
_format("kind unknown", _OWN, {"kind": "duel"}, "unknown kind 'duel'")
_format("kind missing", _OWN, {"kind": None}, "unknown kind None")
_format("value missing", _OWN, {"value": None}, "wrong type: value is null")
_format("value above one", _OWN, {"value": 1.01}, "bad probability: 1.01")
_format(
    "pair of three", _OWN, {"kind": "pair", "value": None, "responses": ["x", "y", "z"]}, "wrong number of responses"
)
_format("pair with a value", _OWN, {"kind": "pair"}, "unexpected value")
_format("label of a half", _OWN, {"kind": "label", "responses": ["x"], "value": 0.5}, "bad label: 0.5")
_format("ranks for a pair", _OWN, {"kind": "pair", "value": None, "ranks": [0, 1]}, "bad ranks: a pair carries none")
_format("sources of the wrong length", _OWN, {"sources": ["m"]}, "bad sources: expected one for each of the 2")
_format("shown a text", _OWN, {"shown": "left"}, "wrong type: 'shown' is text")
_format("half a segment", _OWN, {"responses": [{"episode": "e"}, "y"]}, "wrong type: a response that is an object")
_format("extra a list", _OWN, {"extra": [1]}, "wrong type: 'extra' is a list")
_format("extra no JSON", _OWN, {"extra": "x"}, "wrong type: 'extra' is text that is not JSON")

# ---------------------------------------------------------------------- formats of other trainers and of published data
_UF = {"instruction": "Hi", "completions": [{"response": "x", "model": "m", "overall_score": 7.5, "annotations": {}}]}
_format("no completions", _UF, {"completions": []}, "bad label: no completion has a rating")
_format("completions null", _UF, {"completions": None}, "bad label: no completion has a rating")
_format("completions an object", _UF, {"completions": {"x": 1}}, "wrong type: 'completions' is an object")
_format("a completion a text", _UF, {"completions": ["x"]}, "wrong type: a completion is text")
_format("a completion empty", _UF, {"completions": [{"response": " ", "overall_score": 1}]}, "empty response")
_format(
    "rating words", _UF, {"completions": [{"response": "x", "annotations": {"h": {"Rating": "good"}}}]}, "wrong type"
)
_format(
    "rating not asked", _UF, {"completions": [{"response": "x", "annotations": {"h": {"Rating": "N/A"}}}]}, "bad label"
)
_format(
    "annotations a list", _UF, {"completions": [{"response": "x", "annotations": [1]}]}, "wrong type: 'annotations'"
)

_STEER = {"prompt": "Hi", "response": "x", "helpfulness": 4, "correctness": 3}
_format("no attribute", _STEER, {"helpfulness": None, "correctness": None}, "bad label: no attribute has a score")
_format("attribute words", _STEER, {"correctness": "very"}, "wrong type: 'correctness'")
_format("attribute true", _STEER, {"correctness": True}, "wrong type: 'correctness' is true or false")

_ARENA = {"conversation_a": _ASK + _YES, "conversation_b": _ASK + _NO, "winner": "model_a", "turn": 1}
_format("nobody named", _ARENA, {"winner": None}, "bad label: 'winner' is None")
_format("winner a model's name", _ARENA, {"winner": "gpt-4"}, "bad label: 'winner' is 'gpt-4'")
_format("winner a list", _ARENA, {"winner": ["model_a"]}, "bad label: 'winner' is a list")
_format("turn that was not", _ARENA, {"turn": 2}, "bad label: turn 2 of a conversation of 1 turns")
_format("turn zero", _ARENA, {"turn": 0}, "bad label: turn 0")
_format("turn a half", _ARENA, {"turn": 1.5}, "wrong type: 'turn' holds 1.5")
_format("other questions", _ARENA, {"conversation_b": [{"role": "user", "content": "Eh?"}, *_NO]}, "no shared prompt")
_format("no answer in a conversation", _ARENA, {"conversation_b": _ASK}, "empty response")
_format("both conversations equal", _ARENA, {"conversation_b": _ASK + _YES}, "identical responses")
_format("conversation null", _ARENA, {"conversation_a": None}, "empty response: 'conversation_a' is missing")
_format("conversation of texts", _ARENA, {"conversation_a": ["x", "y"]}, "bad label: turn 1 of a conversation of 0")

_BENCH = {**GOOD, "subset": "sea", "chosen_model": "m"}
_format("subset a list", _BENCH, {"subset": ["a"]}, "wrong type: 'subset' is a list")
_format("several rejected", _BENCH, {"rejected": ["b", "c"]}, "bad messages: a message of the response is text")

_RG = {"prompt": "Hi", "response-1": "x", "response-2": "y", "ranking.responses": [["response-2", "response-1"]]}
_format("nobody answered", _RG, {"ranking.responses": []}, "bad label: no submitted answer")
_format("answers null", _RG, {"ranking.responses": None}, "bad label: no submitted answer")
_format("only a draft", _RG, {"ranking.responses.status": ["draft"]}, "bad label: no submitted answer")
_format(
    "a field that is not there", _RG, {"ranking.responses": [["response-3", "response-1"]]}, "bad label: no submitted"
)
_format("ranked responses equal", _RG, {"response-2": "x"}, "identical responses")
_format(
    "rank words",
    _RG,
    {"ranking.responses": [[{"value": "response-1", "rank": "a"}, {"value": "response-2"}]]},
    "wrong type: 'ranking' is 'a'",
)
_format("one field left", _RG, {"response-2": None}, "bad label: no submitted answer")

_ORLHF = {"input": "Hi", "chosen": "x", "rejected": "y"}
_format("input null", _ORLHF, {"input": None}, "no prompt")
_format("input an object", _ORLHF, {"input": {}}, "wrong type: 'input' is an object")

_LF = {
    "conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "x"},
    "rejected": {"from": "gpt", "value": "y"},
}
_format("conversations null", _LF, {"conversations": None}, "no prompt")
_format(
    "nobody speaks", _LF, {"conversations": [{"value": "Hi"}]}, "bad messages: a message of 'conversations' has no 'fr"
)
_format("a stranger speaks", _LF, {"chosen": {"from": "bing", "value": "x"}}, "bad messages: 'from' is 'bing'")
_format(
    "the human answers", _LF, {"chosen": {"from": "human", "value": "x"}}, "bad messages: a response begins with 'user'"
)
_format("nothing said", _LF, {"chosen": {"from": "gpt"}}, "bad messages: a message of the response has no content")
_format(
    "a call that is no JSON", _LF, {"chosen": {"from": "function_call", "value": "f(x)"}}, "wrong type: 'function_call'"
)
_format("a call of a number", _LF, {"chosen": {"from": "function_call", "value": "3"}}, "bad messages: a function_call")
_format("chosen a number", _LF, {"chosen": 3}, "wrong type: 'chosen' is a number")
_format("tools no JSON", _LF, {"tools": "f(x)"}, "wrong type: 'tools' is text that is not JSON")

_LFA = {"instruction": "Hi", "input": "", "chosen": "x", "rejected": "y"}
_format("history of three", _LFA, {"history": [["a", "b", "c"]]}, "bad messages: 'history' should hold pairs")
_format("history a text", _LFA, {"history": "a"}, "wrong type: 'history' is text")
_format("history of numbers", _LFA, {"history": [[1, 2]]}, "bad messages: content of the prompt is a number")
_format("instruction blank, ranked", _LFA, {"instruction": ""}, "no prompt")

_LFK = {"instruction": "Hi", "output": "x", "kto_tag": True}
_format("kto_tag missing", _LFK, {"kto_tag": None}, "bad label: 'kto_tag' is None")
_format("output missing", _LFK, {"output": None}, "empty response")
_case(
    "a question alone",
    "rows.jsonl",
    _dump(_LFK, {"conversations": [{"from": "human", "value": "Hi"}], "kto_tag": True}),
    1,
    [(2, "no prompt")],
)

_HALOS = {"prompt": _ASK, "output": _YES, "label": 1, "type": "binary_feedback"}
_format("type unknown", _HALOS, {"type": "rating"}, "bad label: 'type' is 'rating'")
_format("type null", _HALOS, {"type": None}, "bad label: 'type' is None")
_format("output_B missing", _HALOS, {"type": "pairwise_feedback", "output_A": _YES}, "empty response")
_format("feedback of a half", _HALOS, {"label": 0.5}, "bad label: 'label' is 0.5")

_NEMO = {"context": _ASK, "completions": [{"rank": 0, "completion": _YES}, {"rank": 1, "completion": _NO}]}
_format("nothing to rank", _NEMO, {"completions": []}, "empty response: 'completions' is missing or empty")
_format("a completion without rank", _NEMO, {"completions": [{"completion": _YES}]}, "bad ranks: a completion has none")
_format("rank a word", _NEMO, {"completions": [{"rank": "best", "completion": _YES}]}, "wrong type: 'rank' is 'best'")
_format("one completion", _NEMO, {"completions": [{"rank": 0, "completion": _YES}]}, "wrong number of responses")
_format("a completion a list", _NEMO, {"completions": [[0, _YES]]}, "wrong type: a completion is a list")
_format("context null", _NEMO, {"context": None}, "no prompt")

_SWIFT = {"messages": _ASK + _YES, "rejected_response": "A stone."}
_format("messages empty", _SWIFT, {"messages": []}, "no prompt: 'messages' is missing or empty")
_format("messages a text", _SWIFT, {"messages": "Hi"}, "no prompt: 'messages' is missing or empty")
_format("an answer alone", _SWIFT, {"messages": _YES}, "no prompt")
_format("the user has the last word", _SWIFT, {"messages": _ASK}, "no prompt")
_format("nothing rejected", _SWIFT, {"rejected_response": None}, "bad label: neither a rejected answer")
_format("rejected equal", _SWIFT, {"rejected_response": "A seaweed."}, "identical responses")
_format("a label of three", _SWIFT, {"rejected_response": None, "label": 3}, "bad label: 'label' is 3")
_format("rejected_messages a text", _SWIFT, {"rejected_messages": "x"}, "wrong type: 'rejected_messages' is text")
_format(
    "rejected_messages of another prompt",
    _SWIFT,
    {"rejected_messages": [{"role": "user", "content": "Eh?"}, *_NO]},
    "no prompt",
)

_format("prompt given twice", _OWN, {"prompt_json": '"Hi"'}, "wrong type: 'prompt' and 'prompt_json'")
_format(
    "prompt_json no JSON", _OWN, {"prompt": None, "prompt_json": "Hi"}, "wrong type: 'prompt_json' is text that is not"
)
_format("responses text of an object", _OWN, {"responses": "{}"}, "wrong type: 'responses' is an object")

# ------------------------------------------------------------------------------------------------- files: lines of text
_case("empty file", "rows.jsonl", b"", error="holds no rows")
_case("blank lines only", "rows.jsonl", b"\n \n\r\n", error="holds no rows")
_case("UTF-16 file", "rows.jsonl", json.dumps(GOOD).encode("utf-16"), error="is UTF-16 text; save it as UTF-8")
_case("every row broken", "rows.jsonl", b"x\ny\n", 0, [(1, "broken JSON"), (2, "broken JSON")])
_case("last line cut off", "rows.jsonl", _dump(GOOD, ALSO)[:-9], 1, [(2, "broken JSON")])
_case("no known column", "rows.jsonl", _dump({"a": 1}), error="no known format has these columns: 'a'")
_case(
    "one column short",
    "rows.jsonl",
    _dump({"prompt": "x", "chosen": "a"}),
    error="Nearest is trl, which also needs rejected",
)
_case("two formats at once", "rows.jsonl", _dump({**GOOD, **_KTO}), error="ambiguous format")
_case(
    "implicit beside a question",
    "rows.jsonl",
    _dump({"question": "x", "chosen": "a b", "rejected": "a c"}),
    error="--map prompt=question",
)
_case("unknown format", "rows.jsonl", _dump(GOOD), error="unknown format 'trll'; did you mean 'trl'?", format="trll")
_case("format that does not fit", "rows.jsonl", _dump(GOOD), error="format pandalm needs instruction", format="pandalm")
_case("unknown field", "rows.jsonl", _dump(GOOD), error="did you mean 'prompt'?", mapping={"promt": "prompt"})
_case("mapped column absent", "rows.jsonl", _dump(GOOD), error="no column 'question'", mapping={"prompt": "question"})
_case(
    "mapped field that the format lacks",
    "rows.jsonl",
    _dump({**GOOD, "s": 1}),
    error="format trl takes no 'score'",
    mapping={"score": "s"},
)
_case("not there", "rows.jsonl", lambda path: None, error="no such file or folder")

# --------------------------------------------------------------------------------------------------- files: JSON arrays
_ONE = json.dumps(GOOD).encode()
_case(
    "NaN in an element",
    "rows.json",
    b"[" + _ONE + b', {"prompt": NaN}, ' + _ONE + b"]",
    2,
    [(2, "not a finite number")],
)
_case("byte in an element", "rows.json", b"[" + _ONE + b', {"prompt": "\xff"},' + _ONE + b"]", 2, [(2, "not UTF-8")])
_case("elements of all sorts", "rows.json", b'[1, "a, ]b", ' + _ONE + b", [{}], null]", 1, [
    (1, "not an object"), (2, "not an object"), (4, "not an object"), (5, "not an object")])  # fmt: skip
_case("nothing between commas", "rows.json", b"[" + _ONE + b",," + _ONE + b"]", 2, [(2, "broken JSON")])
_case("comma at the end", "rows.json", b"[" + _ONE + b",]", 1, [(2, "broken JSON")])
_case(
    "array not closed", "rows.json", b"[" + _ONE + b"," + _ONE, 1, [(2, "file breaks off: the JSON ends inside a row")]
)
_case(
    "array cut off in a text", "rows.json", b"[" + _ONE + b', {"prompt": "x', 1, [(2, "file breaks off: the JSON ends")]
)
_case("quote not closed", "rows.json", b"[" + _ONE + b', {"a": "x}, ' + _ONE + b"]", 1, [(2, "file breaks off")])
_case(
    "brackets crossed",
    "rows.json",
    b"[" + _ONE + b', {"a": [1}], ' + _ONE + b"]",
    1,
    [(2, "file breaks off: brackets")],
)
_case("text after the array", "rows.json", b"[" + _ONE + b"] x", 1, [(2, "file breaks off: more text follows")])
_case("empty array", "rows.json", b" [ ] ", error="holds no rows")
_case("array cut off at once", "rows.json", b'[{"prompt": "x', error="nothing in it can be read")
_case("one object over lines", "rows.json", json.dumps(GOOD, indent=1).encode(), error="is one JSON object")
_case("object without rows", "rows.json", b'{"version": 1,\n "rows": 3}', error="without a list of rows")
_case("not JSON", "rows.json", b"prompt,chosen\n", error="is not JSON: it begins with")
_case("rows under a key, cut off", "rows.json", b'{"v": [{}],\n "data": [' + _ONE + b",", 1, [(2, "file breaks off")])

# ----------------------------------------------------------------------------------------------------------- files: CSV
_HEAD = b"prompt,chosen,rejected\n"
_case("field missing", "rows.csv", _HEAD + b"x,a,b\nx,a\n", 1, [(3, "broken CSV: 2 fields, and the header has 3")])
_case("field too many", "rows.csv", _HEAD + b"x,a,b\nx,a,b,c\nx,a,c\n", 2, [(3, "broken CSV: 4 fields")])
_case("quote inside a field", "rows.csv", _HEAD + b'x,"a"b,c\nx,a,b\n', 1, [(2, "broken CSV")])
_case("quote never closed", "rows.csv", _HEAD + b'x,a,b\nx,"a,b\n', 1, [(3, "broken CSV")])
_case("CSV byte", "rows.csv", _HEAD + b"x,caf\xe9,b\nx,a,b\n", 1, [(2, "not UTF-8: byte 0xe9")])
_case("CSV field empty", "rows.csv", _HEAD + b'"a\nb",a,\nx,a,b\n', 1, [(2, "empty response")])
_case("CSV column twice", "rows.csv", b"prompt,chosen,chosen\nx,a,b\n", error="two columns are called 'chosen'")
_case("CSV header not UTF-8", "rows.csv", b"prompt,\xff,rejected\nx,a,b\n", error="save the file as UTF-8")
_case("CSV of a header only", "rows.csv", _HEAD, error="holds no rows")
_case("CSV without a header", "rows.csv", b"x,a,b\ny,c,d\n", error="no known format has these columns: 'x'")
_case("tab for comma", "rows.csv", _HEAD.replace(b",", b"\t") + b"x\ta\tb\n", error="no known format")

# --------------------------------------------------------------------------------------------------- files: compression
_MANY = _dump(*({**GOOD, "n": n, "noise": hashlib.sha512(bytes([n])).hexdigest()} for n in range(50)))
_case("named gzip, is not", "rows.jsonl.gz", _dump(GOOD), error="is named .gz but is not compressed so")
_case("named zstd, is not", "rows.jsonl.zst", _dump(GOOD), error="is named .zst but is not compressed so")
_case(
    "gzip cut off at once",
    "rows.jsonl.gz",
    gzip.compress(_MANY)[:15],
    error="truncated gzip; nothing in it can be read",
)
_case("zstd cut off at once", "rows.jsonl.zst", zstandard.compress(_MANY)[:7], error="truncated zstd; nothing in it")
_case("gzip without its end", "rows.jsonl.gz", gzip.compress(_MANY)[:-4], 50, [(51, "file breaks off: truncated gzip")])
_case("zstd without its end", "rows.jsonl.zst", zstandard.compress(_dump(GOOD)) + zstandard.compress(_MANY)[:-3], 1, [
    (2, "file breaks off: truncated zstd")])  # fmt: skip
_case("gzip with a wrong sum", "rows.jsonl.gz", gzip.compress(_MANY)[:-8] + b"\0" * 8, 50, [
    (51, "file breaks off: damaged gzip")])  # fmt: skip
_case(
    "gzip, then junk", "rows.jsonl.gz", gzip.compress(_dump(GOOD)) + b"junk", 1, [(2, "file breaks off: damaged gzip")]
)

# --------------------------------------------------------------------------------------------- files: parquet and arrow


def _parquet(table: pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def _arrow(table: pa.Table, size: int) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=size)
    return sink.getvalue()


def _table(**columns: Any) -> pa.Table:
    return pa.table({"prompt": ["x", "y"], "chosen": ["a", "a"], "rejected": ["b", "b"], **columns})


def _broken_text() -> pa.Array:
    """Two texts, the second not UTF-8; arrow takes the bytes on trust, as parquet does."""
    return pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())


_ROWS = pa.Table.from_pylist([json.loads(line) for line in _MANY.splitlines()])
_PAGES = _parquet(_ROWS, row_group_size=10, use_dictionary=False, compression="gzip")
_second = pq.ParquetFile(io.BytesIO(_PAGES)).metadata.row_group(1).column(0).data_page_offset
_TORN = _PAGES[:_second] + b"\xff" * 40 + _PAGES[_second + 40 :]
_case("parquet with a damaged page", "rows.parquet", _TORN, 10, [(11, "file breaks off: damaged parquet")])
_case("parquet cut off", "rows.parquet", _PAGES[:-20], error="is not parquet")
_case("parquet that is text", "rows.parquet", _dump(GOOD), error="is not parquet")
_case("parquet of nothing", "rows.parquet", b"", error="holds no rows")
_case("parquet without rows", "rows.parquet", _parquet(_table().slice(0, 0)), error="holds no rows")
_case("parquet, cut off in gzip", "rows.parquet.gz", gzip.compress(_PAGES)[:-30], error="truncated gzip")
_case("parquet named jsonl", "rows.jsonl", _PAGES, error="its content is of another kind")
_case("parquet with a null", "rows.parquet", _parquet(_table(prompt=["x", None])), 1, [(2, "no prompt")])
_case(
    "parquet with NaN",
    "rows.parquet",
    _parquet(_table(z=[1.0, float("nan")])),
    1,
    [(2, "not a finite number: extra.z")],
)
_case(
    "parquet with bytes",
    "rows.parquet",
    _parquet(_table(image=[None, b"\x89PNG"])),
    1,
    [(2, "wrong type: extra.image is")],
)
_case(
    "parquet, text not UTF-8",
    "rows.parquet",
    _parquet(_table(chosen=_broken_text())),
    1,
    [(2, "not UTF-8: column 'chosen'")],
)
_case("parquet of numbers", "rows.parquet", _parquet(_table(chosen=[1, 2])), 0, [
    (1, "wrong type: 'chosen' is a number"), (2, "wrong type: 'chosen' is a number")])  # fmt: skip
_case("parquet, a year beyond", "rows.parquet", _parquet(_table(t=pa.array([0, 2**60], pa.timestamp("ms")))), 1, [
    (2, "wrong type: column 't' cannot be read")])  # fmt: skip
_case("arrow cut off", "rows.arrow", _arrow(_ROWS, 10)[:-600], 40, [(41, "file breaks off: damaged arrow")])
_case("arrow that is text", "rows.arrow", b"hello, this is text", error="is not arrow")

# ---------------------------------------------------------------------------------------- files of no kind, and folders


def _folder(**files: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)

    return make


_case("no ending, no kind", "rows", b"prompt chosen rejected", error="cannot tell what kind of file this is")
_case("a zip", "rows.csv", b"PK\x03\x04 and more", error="its content is of another kind")
_case("a pickle", "rows.pkl", b"\x80\x04\x95", error="cannot tell what kind of file this is")
_case("folder of nothing", "rows", _folder(), error="no file in it is of a known kind")
_case("folder of other things", "rows", _folder(README__md=b"x"), error="no file in it is of a known kind")
_case(
    "folder with a bad file",
    "rows",
    _folder(a__jsonl=_dump(GOOD), b__csv=b"x,y\n1,2\n"),
    error="rows/b.csv: no known format",
)
_case(
    "dataset without its data",
    "rows",
    _folder(state__json=b'{"_data_files": [{"filename": "data.arrow"}]}'),
    error="is not there",
)
_case(
    "dataset that leads elsewhere",
    "rows",
    _folder(state__json=b'{"_data_files": [{"filename": "../x.arrow"}]}'),
    error="names no data",
)
_case("dataset with a broken state", "rows", _folder(state__json=b"{"), error="state.json is not a JSON object")
_case("dataset dict of no splits", "rows", _folder(dataset_dict__json=b'{"splits": 3}'), error="names no splits")
_case("dataset dict in a circle", "rows", _folder(dataset_dict__json=b'{"splits": ["."]}'), error="names no splits")
_case(
    "dataset dict, split absent",
    "rows",
    _folder(dataset_dict__json=b'{"splits": ["train"]}'),
    error="no such file or folder",
)
_case(
    "a frozen dataset",
    "rows",
    _folder(manifest__json=b"{}", judgements__parquet=b""),
    error="is a frozen dataset already",
)
