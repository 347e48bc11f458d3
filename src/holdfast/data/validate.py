"""What every judgement must satisfy before it is frozen, whatever file or program it came from.

`validate` is the one gate: the readers pass each judgement through it, and so must a program that makes judgements
itself. It looks at one judgement at a time and changes nothing. The reasons begin with a fixed phrase (`empty
response`, `identical responses`, `wrong type: ...`), so that a list of rejects can be counted by reason."""

from __future__ import annotations

import math
from typing import Any

from holdfast.data.records import KINDS, Content, Judgement, Reject, Segment

DEEPEST = 100  # levels of nesting in messages, tools and extra; canonical JSON is written by a recursive encoder
WIDEST = 2**64 - 1  # the largest integer that canonical JSON holds; the smallest is -(2**63)
LAST_RANK = 2**31 - 1
RESPONSES = {"pair": 2, "tie": 2, "soft": 2, "score": 1, "label": 1}


def validate(judgement: Judgement) -> None:
    """Raise Reject, with the reason, if `judgement` cannot become a row of a dataset."""
    kind, responses = judgement.kind, judgement.responses
    if kind not in KINDS:
        raise Reject(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    if type(responses) is not tuple:
        raise Reject(f"wrong type: responses is {name_of(responses)}, expected a tuple")
    n = len(responses)
    if kind == "ranking":
        if n < 2:
            raise Reject(f"wrong number of responses: a ranking needs two or more, got {n}")
    elif n != RESPONSES[kind]:
        raise Reject(f"wrong number of responses: a {kind} needs {RESPONSES[kind]}, got {n}")

    if isinstance(responses[0], Segment):
        if judgement.prompt is not None:
            raise Reject("segments have no prompt: the episode is the context")
        for segment in responses:
            _check_segment(segment)
    else:
        prompt = judgement.prompt
        if type(prompt) is not str or not prompt.isascii() or not prompt or prompt.isspace():  # what most are, at once
            _check_prompt(prompt)
        for response in responses:
            if type(response) is not str or not response.isascii() or not response or response.isspace():
                _check_response(response)
    if n == 2:
        if responses[0] == responses[1]:
            raise Reject("identical responses")
    elif n > 2:
        for i, response in enumerate(responses):
            if response in responses[:i]:
                raise Reject(f"identical responses: {responses.index(response) + 1} and {i + 1}")

    value = judgement.value
    if kind == "soft":
        _check_number(value, "value")
        if not 0 <= value <= 1:  # type: ignore[operator]
            raise Reject(f"bad probability: {value!r} is not between 0 and 1")
    elif kind == "label":
        _check_number(value, "value")
        if value not in (0, 1):
            raise Reject(f"bad label: {value!r}, expected 1 (good) or 0 (bad)")
    elif kind == "score":
        _check_number(value, "value")
    elif value is not None:
        raise Reject(f"unexpected value: a {kind} carries none")

    ranks = judgement.ranks
    if kind == "ranking":
        if type(ranks) is not tuple or len(ranks) != n:
            raise Reject(f"bad ranks: expected one for each of the {n} responses")
        for rank in ranks:
            if type(rank) is not int or not 0 <= rank <= LAST_RANK:
                raise Reject(f"bad ranks: {rank!r} is not a whole number from 0 to {LAST_RANK}")
    elif ranks is not None:
        raise Reject(f"bad ranks: a {kind} carries none")

    if judgement.margin is not None:
        _check_number(judgement.margin, "margin")
    if judgement.annotator is not None:
        _check_name(judgement.annotator, "annotator")
    if judgement.rubric is not None:
        _check_name(judgement.rubric, "rubric")
    if judgement.category is not None:
        _check_name(judgement.category, "category")
    if judgement.licence is not None:
        _check_name(judgement.licence, "licence")
    if judgement.annotator_kind not in (None, "human", "ai", "rule"):
        raise Reject(f"bad annotator kind: {judgement.annotator_kind!r}, expected human, ai or rule")
    shown = judgement.shown
    if shown is not None:
        if type(shown) is not tuple or len(shown) != n:
            raise Reject(f"bad shown: expected one place for each of the {n} responses")
        for place in shown:
            if type(place) is not int or not 0 <= place <= LAST_RANK:
                raise Reject(f"bad shown: {place!r} is not a place counted from 0")
        if len(set(shown)) != n:
            raise Reject("bad shown: two responses in one place")
    sources = judgement.sources
    if sources is not None:
        if type(sources) is not tuple or len(sources) != n:
            raise Reject(f"bad sources: expected one for each of the {n} responses")
        for source in sources:
            if source is not None:
                _check_name(source, "source")
    extra = judgement.extra
    if extra is not None:
        if type(extra) is not dict:
            raise Reject(f"wrong type: extra is {name_of(extra)}, expected a mapping")
        check_json(extra, "extra")


def check_json(value: Any, where: str, depth: int = 0) -> None:
    """Raise Reject unless `value` can be written as canonical JSON and read back as it is."""
    kind = type(value)
    if kind is str:
        _check_text(value, where)
    elif kind is int:
        if not -(2**63) <= value <= WIDEST:
            raise Reject(f"number too large: {where} needs more than 64 bits; write it as text")
    elif kind is float:
        if not math.isfinite(value):
            raise Reject(f"not a finite number: {where}")
        # A JSON reader turns a longer integer into a float and so into another number; neither is kept as it came.
        if abs(value) >= 2**63:
            raise Reject(f"number too large: {where} needs more than 64 bits; write it as text")
    elif kind is dict:
        if depth == DEEPEST:
            raise Reject(f"nested too deeply: {where} has more than {DEEPEST} levels")
        for key, inner in value.items():
            if type(key) is not str:
                raise Reject(f"wrong type: a key in {where} is {name_of(key)}, expected text")
            _check_text(key, where)
            check_json(inner, f"{where}.{key}" if depth < 3 else where, depth + 1)
    elif kind is list:
        if depth == DEEPEST:
            raise Reject(f"nested too deeply: {where} has more than {DEEPEST} levels")
        for inner in value:
            check_json(inner, where, depth + 1)
    elif value is not None and kind is not bool:
        raise Reject(f"wrong type: {where} is {name_of(value)}, which JSON cannot hold")


def name_of(value: Any) -> str:
    """What a user would call the type of `value`."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return {**names, dict: "an object", bytes: "binary data"}.get(type(value), type(value).__name__)


def _check_prompt(prompt: Content) -> None:
    if type(prompt) is str:
        if not prompt or prompt.isspace():
            raise Reject("no prompt")
        _check_text(prompt, "prompt")
    elif type(prompt) is list:
        if not _check_messages(prompt, "prompt"):
            raise Reject("no prompt")
    elif type(prompt) is dict:
        if not set(prompt) <= {"messages", "tools"} or type(prompt.get("messages")) is not list:
            raise Reject("wrong type: a prompt that is an object holds messages and tools, nothing else")
        if not _check_messages(prompt["messages"], "prompt"):
            raise Reject("no prompt")
        tools = prompt.get("tools")
        if type(tools) is not list or not tools or any(type(tool) is not dict for tool in tools):
            raise Reject("wrong type: tools should be a list of objects")
        check_json(tools, "tools")
    elif prompt is None:
        raise Reject("no prompt")
    else:
        raise Reject(f"wrong type: prompt is {name_of(prompt)}, expected text or messages")


def _check_response(response: Content) -> None:
    if type(response) is str:
        if not response or response.isspace():
            raise Reject("empty response")
        _check_text(response, "response")
    elif type(response) is list:
        if not _check_messages(response, "response"):
            raise Reject("empty response")
        if response[0]["role"] != "assistant":
            raise Reject(f"bad messages: a response begins with {response[0]['role']!r}, expected 'assistant'")
    elif response is None:
        raise Reject("empty response")
    else:
        raise Reject(f"wrong type: response is {name_of(response)}, expected text or messages")


def _check_messages(messages: list[Any], where: str) -> bool:
    """Check each message; say whether any of them holds something to read (text, parts or a tool call)."""
    says_something = False
    for message in messages:
        if type(message) is not dict:
            raise Reject(f"bad messages: a message of the {where} is {name_of(message)}, expected an object")
        role = message.get("role")
        if type(role) is not str or not role or role.isspace():
            raise Reject(f"bad messages: a message of the {where} has no role")
        content = message.get("content")
        if type(content) is str:
            _check_text(content, where)
            if content and not content.isspace():
                says_something = True
        elif type(content) is list:
            check_json(content, where)
            for part in content:
                if type(part) is not dict or type(part.get("type")) is not str:
                    raise Reject(f"bad messages: a part of a content of the {where} is not an object with a type")
            if any(part["type"] != "text" or str(part.get("text", "")).strip() for part in content):
                says_something = True
        elif content is not None:
            raise Reject(
                f"bad messages: content of the {where} is {name_of(content)}, expected text or a list of parts"
            )
        elif not message.get("tool_calls"):
            raise Reject(f"bad messages: a message of the {where} has no content")
        if len(message) > 2 or content is None:
            check_json(message, where)
            if message.get("tool_calls"):
                says_something = True
    return says_something


def _check_segment(segment: Any) -> None:
    if type(segment) is not Segment:
        raise Reject("wrong type: segments and text cannot be compared")
    if type(segment.episode) is not str or not segment.episode:
        raise Reject("bad segment: no episode")
    if type(segment.start) is not int or type(segment.length) is not int or segment.start < 0 or segment.length < 1:
        raise Reject(f"bad segment: start {segment.start!r}, length {segment.length!r}")


def _check_number(value: Any, where: str) -> None:
    if type(value) is not float and type(value) is not int:
        raise Reject(f"wrong type: {where} is {name_of(value)}, expected a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        raise Reject(f"number too large: {where}") from None
    if not finite:
        raise Reject(f"not a finite number: {where} is {value!r}")


def _check_name(text: Any, where: str) -> None:
    if type(text) is not str:
        raise Reject(f"wrong type: {where} is {name_of(text)}, expected text")
    if not text or text.isspace():
        raise Reject(f"empty {where}")
    if not text.isascii():
        _check_text(text, where)


def _check_text(text: str, where: str) -> None:
    if not text.isascii():  # a flag of the string, not a scan
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Reject(f"not UTF-8: half of a surrogate pair in {where}") from None
