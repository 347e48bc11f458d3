"""What a column may hold, and how the parts of a row go together: text with text, chat with chat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson

from holdfast.data.records import Content, Reject
from holdfast.data.validate import DEEPEST, LAST_RANK, name_of

Row = dict[str, Any]

# Other names that people give to a prompt. A file with one of these beside `chosen` and `rejected` is not an implicit
# prompt.
PROMPTS = {
    "question", "instruction", "query", "input", "inputs", "context", "context_messages", "messages", "conversations",
    "conversation", "problem",
}  # fmt: skip


def content(row: Row, column: str) -> Content:
    """Take out text or messages; None where the column is absent or null, for `validate` to name."""
    value = row.pop(column, None)
    if type(value) is str or value is None:
        return value
    if type(value) is list:
        return tidy(value)
    raise Reject(f"wrong type: {column!r} is {name_of(value)}, expected text or messages")


def number(value: Any, column: str) -> float | None:
    """A finite number, also where it is written as text (CSV has nothing else); None for null."""
    if value is None or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is str:
        try:
            value = float(value)
        except ValueError:
            raise Reject(f"wrong type: {column!r} is {short(value)}, expected a number") from None
    if type(value) not in (int, float):
        raise Reject(f"wrong type: {column!r} is {name_of(value)}, expected a number")
    try:
        value = float(value)
    except OverflowError:
        raise Reject(f"number too large: {column!r}") from None
    if not math.isfinite(value):
        raise Reject(f"not a finite number: {column!r} is {value!r}")
    return value


def whole(value: Any, column: str) -> int:
    """A whole number, also written as text or as 1.0 (a column with gaps becomes floats in many tools)."""
    found = number(value, column)
    if found is None or not found.is_integer() or abs(found) > LAST_RANK:
        raise Reject(f"wrong type: {column!r} holds {short(value)}, expected a whole number")
    return int(found)


def label_text(value: Any, column: str) -> str | None:
    """A short text such as a category; whole numbers (an annotator's id) are taken as text, null and blank as
    nothing."""
    if value is None or type(value) is str:
        return value if value and not value.isspace() else None
    if type(value) is int or (type(value) is float and value.is_integer()):  # 3.0: a column of whole numbers with gaps
        return str(int(value))
    raise Reject(f"wrong type: {column!r} is {name_of(value)}, expected text")


def truth(value: Any, column: str) -> float:
    """1.0 or 0.0 from true/false, 1/0 or their spelling in a CSV file."""
    spelt = value.strip().lower() if type(value) is str else value
    if spelt in ("true", "1", "1.0", 1):
        return 1.0
    if spelt in ("false", "0", "0.0", 0):
        return 0.0
    raise Reject(f"bad label: {column!r} is {short(value)}, expected true or false")


def listed(row: Row, column: str) -> list[Any] | None:
    """Take out a list, also where it is written as JSON text (CSV); None where absent or null."""
    value = row.pop(column, None)
    if type(value) is str:
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Reject(f"wrong type: {column!r} is text, expected a list") from None
    if value is not None and type(value) is not list:
        raise Reject(f"wrong type: {column!r} is {name_of(value)}, expected a list")
    return value


def parsed(text: Any, column: str, kind: type) -> Any:
    """The value of JSON text, which must be of this kind."""
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        raise Reject(f"wrong type: {column!r} is {name_of(text)} that is not JSON") from None
    if not isinstance(value, kind):
        raise Reject(f"wrong type: {column!r} is {name_of(value)}, expected {name_of(kind())}")
    return value


def tidy(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it, without null entries of objects: columnar files add a null for each absent key."""
    kind = type(value)
    if kind is str or kind is int or kind is float or kind is bool or value is None or kind is bytes:
        return value
    if depth > DEEPEST:
        raise Reject(f"nested too deeply: more than {DEEPEST} levels")
    if kind is dict:
        return {k: v if type(v) is str else tidy(v, depth + 1) for k, v in value.items() if v is not None}
    if kind is list or kind is tuple:
        return [tidy(v, depth + 1) for v in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)  # dates, times, decimals of a columnar file


def short(value: Any) -> str:
    if type(value) in (dict, list):
        return name_of(value)
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --------------------------------------------------------------------------------------- text with text, chat with chat


def together(prompt: Content, responses: Sequence[Content], tools: Any = None) -> tuple[Content, tuple[Content, ...]]:
    """Prompt and responses in one form. All text stays text. If any is chat, all become chat:

    a text response is an assistant's message; a text prompt is a user's message, unless the responses repeat the
    conversation (they begin with one that ends in this prompt), which is then the prompt. A prompt repeated in front of
    every response is taken off there. `tools` join the prompt."""
    if type(tools) is str:
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError:
            raise Reject("wrong type: 'tools' is text that is not JSON") from None
    if tools is not None and type(tools) is not list:
        raise Reject(f"wrong type: 'tools' is {name_of(tools)}, expected a list")
    chat = type(prompt) is list or any(type(r) is list for r in responses)
    if not chat:
        if tools:
            raise Reject("wrong type: tools go with a prompt of messages, not with text")
        return prompt, tuple(responses)
    turns: list[Content] = [[{"role": "assistant", "content": r}] if type(r) is str else r for r in responses]
    lists = [r for r in turns if type(r) is list]
    if type(prompt) is str:
        asked: list[Any] = [{"role": "user", "content": prompt}]
        if len(lists) == len(turns) and all(
            r and type(r[0]) is dict and r[0].get("role") != "assistant" for r in lists
        ):
            asked = shared_messages(lists)
            last = asked[-1] if asked and type(asked[-1]) is dict else {}
            if last.get("role") != "user" or _bare(last.get("content")) != _bare(prompt):
                raise Reject(
                    "no shared prompt: the messages that the responses share do not end in the text of 'prompt'"
                )
            turns = [r[len(asked) :] for r in lists]
        prompt = asked
    elif type(prompt) is list and prompt and len(lists) == len(turns):
        n = len(prompt)
        if all(len(r) > n and r[:n] == prompt for r in lists):
            turns = [r[n:] for r in lists]
    return ({"messages": prompt, "tools": tidy(tools)} if tools else prompt), tuple(turns)


def _bare(text: Any) -> Any:
    return text.strip() if type(text) is str else text


def shared_messages(conversations: Sequence[list[Any]]) -> list[Any]:
    first, n = conversations[0], min(map(len, conversations))
    shared = 0
    while shared < n and all(c[shared] == first[shared] for c in conversations):
        shared += 1
    return first[:shared]


TRANSCRIPT_BEGINS, TRANSCRIPT_ANSWERS = "Human:", "\n\nAssistant:"


def is_transcript(row: Row) -> bool:
    """Whether `chosen` is a transcript as Anthropic's HH has them."""
    chosen = row.get("chosen")
    return type(chosen) is str and chosen.lstrip().startswith(TRANSCRIPT_BEGINS) and TRANSCRIPT_ANSWERS in chosen


def instruction(row: Row, between: str = "\n\n") -> Content:
    """Take out `instruction`, with `input` below it where there is one."""
    asked, given = content(row, "instruction"), content(row, "input")
    if type(asked) is str and type(given) is str and given.strip():
        return f"{asked}{between}{given}"
    return asked


def tools_apart(prompt: Content) -> tuple[Content, Row]:
    """A prompt without its tools, and the column that holds them: none, or one."""
    if type(prompt) is dict:
        return prompt["messages"], {"tools": prompt["tools"]}
    return prompt, {}


def places_of(value: list[Any] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(whole(v, "shown") for v in value)


def sources_of(row: Row, *columns: str) -> tuple[str | None, ...] | None:
    found = [label_text(row.pop(c, None), c) for c in columns]
    return None if found.count(None) == len(found) else tuple(found)


def as_chat(prompt: Content, responses: Sequence[Content]) -> tuple[list[Any], Row, list[list[Any]]]:
    """Messages of the prompt, the column that holds its tools, and messages of each response, for formats that hold
    nothing but messages. Text becomes the user's message, or the assistant's."""
    asked, tools = tools_apart(prompt)
    messages = asked if type(asked) is list else [{"role": "user", "content": asked}]
    return messages, tools, [r if type(r) is list else [{"role": "assistant", "content": r}] for r in responses]


def plain_text(*contents: Content) -> bool:
    """Whether all of these are text, for formats that hold nothing else."""
    return all(type(c) is str for c in contents)


def plain_message(message: Any) -> bool:
    """Whether a message holds a role and text and nothing else."""
    return type(message) is dict and set(message) == {"role", "content"} and type(message["content"]) is str
