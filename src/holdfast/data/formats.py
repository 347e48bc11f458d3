"""Formats: from one row of a user's file to judgements. Adding a format is one function here and its test.

A format's function gets the row as a dict and *takes out* (pops) the columns that it understands; what it leaves
becomes `extra`. It returns one or more judgements, or raises Reject with the reason that the user will read. Columns of
the common names (`COMMON`: category, annotator, margin, ...) are filled in afterwards for every format, and every
judgement passes `validate`. docs/formats.md tells users what each format becomes.

The general formats (`trl`, `unpaired`, `compared`, `ranked`, `scored`) are also what a column map leads to: `--map
prompt=question` renames a column before the format is detected, no more."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from holdfast.data.records import KINDS, Content, Judgement, Kind, Reject, Segment
from holdfast.data.validate import DEEPEST, LAST_RANK, name_of, validate
from holdfast.errors import DataError

Row = dict[str, Any]

# Columns that any format may carry, filled in where the format itself has not said.
COMMON = ("category", "annotator", "annotator_kind", "rubric", "licence", "license", "margin")


@dataclass(frozen=True)
class Format:
    """One way in which people keep preferences. `needs` and `takes` are columns; `a|b` means one of the two."""

    name: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    read: Callable[[Row], list[Judgement]]
    looks: Callable[[Row], bool]
    doc: str

    def missing(self, columns: Iterable[str]) -> list[str]:
        have = set(columns)
        return [need for need in self.needs if have.isdisjoint(need.split("|"))]

    @property
    def columns(self) -> set[str]:
        return {c for need in self.needs for c in need.split("|")} | set(self.takes) | set(COMMON)


FORMATS: dict[str, Format] = {}


def reader(name: str, needs: str, takes: str = "", looks: Callable[[Row], bool] = lambda row: True) -> Any:
    """Register a format's function. `looks` tells apart formats that need the same columns, by a row's values."""

    def register(read: Callable[[Row], list[Judgement]]) -> Callable[[Row], list[Judgement]]:
        FORMATS[name] = Format(name, tuple(needs.split()), tuple(takes.split()), read, looks, read.__doc__ or "")
        return read

    return register


def judge(form: Format, row: Row, aside: Row | None = None) -> list[Judgement]:
    """The validated judgements of one row, which is used up. What is left of it, and `aside`, becomes `extra`. Raises
    Reject."""
    judgements = form.read(row)
    for column in COMMON:
        if column not in row:
            continue
        name = "licence" if column == "license" else column
        if any(getattr(j, name) is not None for j in judgements):
            continue  # the format knows better; the column stays with the user's own
        value = row.pop(column)
        value = number(value, column) if name == "margin" else label_text(value, column)
        for j in judgements:
            setattr(j, name, value)
    if row or aside:
        extra = tidy({**row, **aside} if aside else row)
        if extra:
            for j in judgements:
                j.extra = {**extra, **j.extra} if j.extra else extra
    for j in judgements:
        validate(j)
    return judgements


def detect(sample: Sequence[Row], file: str, mapped: Iterable[str] = ()) -> Format:
    """The one format that the rows of `sample` are in. Raises DataError that names the columns and the remedy."""
    columns = list(dict.fromkeys(c for row in sample for c in row))
    shown = ", ".join(repr(c) for c in columns[:20]) + (", ..." if len(columns) > 20 else "") or "none"
    votes: dict[str, int] = {}
    for form in FORMATS.values():
        if form.missing(columns):
            continue
        fitting = sum(not form.missing(row) and form.looks(row) for row in sample)
        if fitting:
            votes[form.name] = fitting
    # A few odd rows do not make a format. One whose columns are some of another's says less about the file
    # (trl-implicit within trl). Formats over the same columns are told apart by the rows' values (hh, trl-implicit):
    # the more frequent.
    found = [f for f in votes if 2 * votes[f] >= max(votes.values())]
    found = [f for f in found if not any(set(FORMATS[f].needs) < set(FORMATS[g].needs) for g in found)]
    found = [f for f in found if all(FORMATS[f].needs != FORMATS[g].needs or votes[f] >= votes[g] for g in found)]
    if len(found) == 1:
        form = FORMATS[found[0]]
        for field in mapped:
            if field not in form.columns:
                takes = ", ".join(sorted(form.columns))
                raise DataError(f"{file}: --map {field}=...: format {form.name} takes no {field!r}; it takes {takes}")
        return form
    if found:
        fits = " and ".join(f"{f} ({', '.join(FORMATS[f].needs)})" for f in found)
        raise DataError(f"{file}: ambiguous format: the columns fit {fits}; say which with --format")
    question = next((c for c in columns if c.lower() in PROMPTS), None)
    if question and {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"{file}: is {question!r} the prompt? Columns: {shown}. If so, --map prompt={question}; "
            "if the prompt is what 'chosen' and 'rejected' share, --format trl-implicit"
        )
    near = min(FORMATS.values(), key=lambda form: (len(form.missing(columns)), -len(form.needs)))
    hint = ""
    if len(near.missing(columns)) < len(near.needs):
        hint = f" Nearest is {near.name}, which also needs {', '.join(near.missing(columns))}."
    raise DataError(
        f"{file}: no known format has these columns: {shown}.{hint} Name yours with --map "
        f"(such as --map prompt=question), or a format with --format ({', '.join(FORMATS)})"
    )


def named(name: str) -> Format:
    """The format called `name`. Raises DataError naming the ones there are."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown format {name!r}{hint} (known: {', '.join(FORMATS)})")
    return FORMATS[name]


def check_mapping(mapping: Mapping[str, str], form: Format | None) -> None:
    """Raise DataError unless each key of `mapping` is a column that a format (or the named one) takes."""
    known = form.columns if form else set().union(*(FORMATS[f].columns for f in GENERAL))
    for field in mapping:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            whose = f"format {form.name} takes" if form else "known"
            raise DataError(
                f"--map {field}={mapping[field]}: unknown field {field!r}{hint} ({whose}: {', '.join(sorted(known))})"
            )


# ----------------------------------------------------------------------------------------------- what a column may hold


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
    if value is None:
        return None
    if type(value) is str:
        try:
            value = float(value)
        except ValueError:
            raise Reject(f"wrong type: {column!r} is {_short(value)}, expected a number") from None
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
        raise Reject(f"wrong type: {column!r} holds {_short(value)}, expected a whole number")
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
    raise Reject(f"bad label: {column!r} is {_short(value)}, expected true or false")


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


def _short(value: Any) -> str:
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
            asked = _shared_messages(lists)
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


def _shared_messages(conversations: Sequence[list[Any]]) -> list[Any]:
    first, n = conversations[0], min(map(len, conversations))
    shared = 0
    while shared < n and all(c[shared] == first[shared] for c in conversations):
        shared += 1
    return first[:shared]


def _sources(row: Row, *columns: str) -> tuple[str | None, ...] | None:
    found = tuple(label_text(row.pop(c, None), c) for c in columns)
    return found if any(s is not None for s in found) else None


# ------------------------------------------------------------------------------------------------------ general formats

# Other names that people give to a prompt. A file with one of these beside `chosen` and `rejected` is not an implicit
# prompt.
PROMPTS = {"question", "instruction", "query", "input", "inputs", "context", "conversations", "conversation", "problem"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")


def _is_transcript(row: Row) -> bool:
    chosen = row.get("chosen")
    return type(chosen) is str and chosen.lstrip().startswith("Human:") and "\n\nAssistant:" in chosen


@reader("trl", needs="prompt chosen rejected", takes="tools source_chosen source_rejected")
def trl(row: Row) -> list[Judgement]:
    """A pair with its prompt, as text or as chat messages (TRL's "preference" with an explicit prompt)."""
    prompt, responses = together(
        content(row, "prompt"), (content(row, "chosen"), content(row, "rejected")), row.pop("tools", None)
    )
    return [Judgement("pair", prompt, responses, sources=_sources(row, "source_chosen", "source_rejected"))]


@reader(
    "trl-implicit",
    needs="chosen rejected",
    takes="tools source_chosen source_rejected",
    looks=lambda row: not _is_transcript(row) and PROMPTS.isdisjoint(map(str.lower, row)),
)
def trl_implicit(row: Row) -> list[Judgement]:
    """A pair of whole conversations, or whole texts, whose shared beginning is the prompt."""
    chosen, rejected = content(row, "chosen"), content(row, "rejected")
    prompt: Content
    if type(chosen) is list and type(rejected) is list:
        if chosen == rejected:
            raise Reject("identical responses")
        prompt = _shared_messages((chosen, rejected))
        n = len(prompt)
        if not n:
            raise Reject("no shared prompt: 'chosen' and 'rejected' differ from the first message on")
        for rest in (chosen[n:], rejected[n:]):
            if not rest:
                raise Reject("empty response: one conversation is the beginning of the other")
            if type(rest[0]) is dict and rest[0].get("role") not in ("assistant", None):
                raise Reject(f"no shared prompt: after {n} shared messages comes one of the {_short(rest[0]['role'])}")
        prompt, responses = together(prompt, (chosen[n:], rejected[n:]), row.pop("tools", None))
    elif type(chosen) is str and type(rejected) is str:
        if chosen == rejected:
            raise Reject("identical responses")
        cut = _cut(chosen, rejected)
        if not chosen[:cut].strip():
            raise Reject("no shared prompt: 'chosen' and 'rejected' begin with different words")
        prompt, responses = chosen[:cut], (chosen[cut:], rejected[cut:])
    elif chosen is None or rejected is None:
        raise Reject("empty response")
    else:
        raise Reject("wrong type: one of 'chosen' and 'rejected' is text, the other messages")
    return [Judgement("pair", prompt, responses, sources=_sources(row, "source_chosen", "source_rejected"))]


def _cut(a: str, b: str) -> int:
    """Where two texts part, moved back out of the word: before a space (it opens the response, as tokenizers have it),
    or after another white-space character such as a line break."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # bisection: comparing slices is a memcmp, and far faster than a loop over characters
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    if low < len(a) and low < len(b) and a[low].isspace() and b[low].isspace():
        return low
    while low and not a[low - 1].isspace():
        low -= 1
    return low - 1 if low and a[low - 1] == " " else low


@reader("unpaired", needs="prompt completion label", takes="tools source")
def unpaired(row: Row) -> list[Judgement]:
    """One response and whether it is good (TRL's "unpaired preference")."""
    prompt, responses = together(content(row, "prompt"), (content(row, "completion"),), row.pop("tools", None))
    value = truth(row.pop("label", None), "label")
    return [Judgement("label", prompt, responses, value=value, sources=_sources(row, "source"))]


A_WINS = {"a", "response_a", "model_a"}
B_WINS = {"b", "response_b", "model_b"}
TIES = {"tie", "draw", "tie (bothbad)"}


@reader(
    "compared",
    needs="prompt response_a response_b winner|preference",
    takes="tools source_a source_b shown",
)
def compared(row: Row) -> list[Judgement]:
    """Two responses and which is better: `winner` (a, b or tie) or `preference`, the probability that a is
    preferred."""
    prompt, (a, b) = together(
        content(row, "prompt"), (content(row, "response_a"), content(row, "response_b")), row.pop("tools", None)
    )
    sources = _sources(row, "source_a", "source_b")
    shown = listed(row, "shown")
    j = Judgement("pair", prompt, (a, b), sources=sources, shown=_places(shown))
    winner = row.pop("winner", None)
    if winner is None:
        preference = number(row.pop("preference", None), "preference")
        if preference is None:
            raise Reject("bad label: neither 'winner' nor 'preference' is given")
        j.kind, j.value = "soft", preference
        return [j]
    said = winner.strip().lower() if type(winner) is str else winner
    if type(said) is str and said in TIES:
        j.kind = "tie"
    elif type(said) is str and said in B_WINS:
        j.responses = (b, a)
        j.sources = sources and sources[::-1]
        j.shown = j.shown and j.shown[::-1]
    elif type(said) is not str or said not in A_WINS:
        # Numbers are not guessed at: 0 is a tie in some files and the first response in others.
        raise Reject(f"bad label: 'winner' is {_short(winner)}, expected a, b or tie")
    return [j]


def _places(value: list[Any] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(whole(v, "shown") for v in value)


@reader(
    "ranked",
    needs="prompt responses ranks|scores",
    takes="tools sources shown",
    looks=lambda row: row.get("kind") not in KINDS,
)
def ranked(row: Row) -> list[Judgement]:
    """Several responses with a rank each (1 before 2; equal ranks tie): one ranking. Or with a score each: one score
    per response."""
    found = listed(row, "responses")
    if not found:
        raise Reject("empty response: 'responses' is missing or empty")
    if any(type(r) not in (str, list, type(None)) for r in found):
        raise Reject("wrong type: 'responses' should hold texts or lists of messages")
    prompt, responses = together(content(row, "prompt"), tidy(found), row.pop("tools", None))
    n = len(responses)
    names = listed(row, "sources")
    sources = None if names is None else tuple(label_text(s, "sources") for s in names)
    if sources is not None and len(sources) != n:
        raise Reject(f"bad sources: {len(sources)} for {n} responses")
    shown = _places(listed(row, "shown"))
    if shown is not None and len(shown) != n:
        raise Reject(f"bad shown: {len(shown)} for {n} responses")
    ranks = listed(row, "ranks")
    if ranks is not None:
        if len(ranks) != n:
            raise Reject(f"bad ranks: {len(ranks)} for {n} responses")
        places = tuple(whole(r, "ranks") for r in ranks)
        return [Judgement("ranking", prompt, responses, ranks=places, sources=sources, shown=shown)]
    scores = listed(row, "scores")
    if scores is None or len(scores) != n:
        raise Reject(f"bad scores: {len(scores or ())} for {n} responses")
    judgements = []
    for i, score in enumerate(scores):
        value = number(score, "scores")
        if value is None:
            raise Reject("bad scores: one of them is null")
        source = (sources[i],) if sources and sources[i] else None
        judgements.append(Judgement("score", prompt, (responses[i],), value=value, sources=source))
    if any(responses[i] in responses[:i] for i in range(n)):
        raise Reject("identical responses")
    return judgements


@reader("scored", needs="prompt response score|label", takes="tools source")
def scored(row: Row) -> list[Judgement]:
    """One response with a score, or with a label (good or bad); with both, two judgements."""
    prompt, responses = together(content(row, "prompt"), (content(row, "response"),), row.pop("tools", None))
    sources = _sources(row, "source")
    judgements = []
    score = number(row.pop("score", None), "score")
    if score is not None:
        judgements.append(Judgement("score", prompt, responses, value=score, sources=sources))
    label = row.pop("label", None)
    if label is not None:
        judgements.append(Judgement("label", prompt, responses, value=truth(label, "label"), sources=sources))
    if not judgements:
        raise Reject("bad label: neither 'score' nor 'label' is given")
    return judgements


def _given(row: Row) -> list[Judgement]:
    """A prompt and a response that nobody has judged: what `holdfast score` is asked about. The value says nothing."""
    column = "response" if "response" in row else "completion"
    prompt, responses = together(content(row, "prompt"), (content(row, column),), row.pop("tools", None))
    return [Judgement("score", prompt, responses, value=0.0)]


# Not among FORMATS: what nobody has judged is no preference, and is never frozen as one.
GIVEN = Format("given", ("prompt", "response|completion"), ("tools",), _given, lambda row: True, _given.__doc__ or "")


@reader(
    "holdfast",
    needs="kind responses",
    takes="prompt value ranks shown sources extra",
    looks=lambda row: row.get("kind") in KINDS,
)
def holdfast(row: Row) -> list[Judgement]:
    """Holdfast's own record: any kind of judgement, field by field as in the table of `holdfast.data.records`."""
    found = listed(row, "responses")
    if found is None:
        raise Reject("empty response: 'responses' is missing")
    responses: list[Content] = []
    for r in tidy(found):
        if type(r) is dict:
            if set(r) != {"episode", "start", "length"}:
                raise Reject("wrong type: a response that is an object holds episode, start and length of a segment")
            responses.append(Segment(**r))
        elif r is None or type(r) in (str, list):
            responses.append(r)
        else:
            raise Reject(f"wrong type: a response is {name_of(r)}, expected text or messages")
    prompt = row.pop("prompt", None)
    ranks, names, extra = listed(row, "ranks"), listed(row, "sources"), row.pop("extra", None)
    if type(extra) is str:
        try:
            extra = orjson.loads(extra)
        except orjson.JSONDecodeError:
            raise Reject("wrong type: 'extra' is text that is not JSON") from None
    if extra is not None and type(extra) is not dict:
        raise Reject(f"wrong type: 'extra' is {name_of(extra)}, expected an object")
    kind: Kind = row.pop("kind", None)
    return [
        Judgement(
            kind,
            prompt if type(prompt) is str else tidy(prompt),
            tuple(responses),
            value=number(row.pop("value", None), "value"),
            ranks=None if ranks is None else tuple(whole(r, "ranks") for r in ranks),
            shown=_places(listed(row, "shown")),
            sources=None if names is None else tuple(label_text(s, "sources") for s in names),
            extra=tidy(extra) or None,
        )
    ]


GENERAL = tuple(FORMATS)  # what a column map may lead to

# ---------------------------------------------------------------------------------------------- formats of known origin


@reader("hh", needs="chosen rejected", looks=_is_transcript)
def hh(row: Row) -> list[Judgement]:
    """Anthropic HH: two transcripts (`\\n\\nHuman: ...\\n\\nAssistant: ...`) that share all turns but the last, which
    is the assistant's."""
    sides = []
    for column in ("chosen", "rejected"):
        text = row.pop(column, None)
        if text is None:
            raise Reject("empty response")
        if type(text) is not str:
            raise Reject(f"wrong type: {column!r} is {name_of(text)}, expected a transcript")
        head, *rest = TURN.split(text)
        if head or not rest:
            raise Reject(f"not a transcript: {column!r} does not begin with a turn of Human: or Assistant:")
        sides.append(list(zip(rest[::2], rest[1::2], strict=True)))
    chosen, rejected = sides
    shared = len(_shared_messages(sides))
    if shared == len(chosen) == len(rejected):
        raise Reject("identical responses")
    for side in sides:
        left = [who for who, _ in side[shared:]]
        if not shared or left != ["Assistant"]:
            said = ", ".join(left) or "nothing"
            raise Reject(
                f"no shared prompt: after {shared} shared turns one answer of the Assistant should follow, not {said}"
            )
    roles = {"Human": "user", "Assistant": "assistant"}
    prompt = [{"role": roles[who], "content": text} for who, text in chosen[:-1]]
    responses = tuple([{"role": "assistant", "content": side[-1][1]}] for side in sides)
    return [Judgement("pair", prompt, responses, annotator_kind="human")]


def _instruction(row: Row) -> Content:
    """`instruction`, with `input` below it where there is one."""
    instruction, given = content(row, "instruction"), content(row, "input")
    if type(instruction) is str and type(given) is str and given.strip():
        return f"{instruction}\n\n{given}"
    return instruction


@reader(
    "alpaca-eval",
    needs="instruction output_1 output_2 preference",
    takes="generator_1 generator_2 dataset input",
)
def alpaca_eval(row: Row) -> list[Judgement]:
    """AlpacaEval annotations: `preference` runs from 1 (output_1 is better) to 2 (output_2); the older 0 is a tie."""
    preference = number(row.pop("preference", None), "preference")
    if preference is None:
        raise Reject("bad label: 'preference' is missing")
    if preference == 0:
        preference = 1.5
    if not 1 <= preference <= 2:
        raise Reject(f"bad label: 'preference' is {preference!r}, expected between 1 and 2")
    return [
        Judgement(
            "soft",
            _instruction(row),
            (content(row, "output_1"), content(row, "output_2")),
            value=2 - preference,
            annotator_kind="ai",
            category=label_text(row.pop("dataset", None), "dataset"),
            sources=_sources(row, "generator_1", "generator_2"),
        )
    ]


@reader("pandalm", needs="instruction response1 response2 annotator1", takes="input cmp_key motivation_app")
def pandalm(row: Row) -> list[Judgement]:
    """PandaLM's test set: one judgement for each column annotator1, annotator2, ... (1 or 2 is the better response, 0 a
    tie)."""
    prompt = _instruction(row)
    one, two = content(row, "response1"), content(row, "response2")
    sources: tuple[str | None, ...] | None = None
    models = row.get("cmp_key")
    if type(models) is str and models.count("_") == 1 and not models.startswith("_") and not models.endswith("_"):
        # The key names the model of response1 first. With more than one "_" the names cannot be told apart: kept in
        # extra.
        sources = tuple(row.pop("cmp_key").split("_"))
    category = label_text(row.pop("motivation_app", None), "motivation_app")
    judgements = []
    for annotator in [c for c in row if re.fullmatch(r"annotator\d+", c)]:
        value = row.pop(annotator)
        if value is None:
            continue
        try:
            label = whole(value, annotator)
        except Reject:
            label = -1
        j = Judgement(
            "pair", prompt, (one, two), annotator=annotator, annotator_kind="human", category=category, sources=sources
        )
        if label == 0:
            j.kind = "tie"
        elif label == 2:
            j.responses, j.sources = (two, one), sources and sources[::-1]
        elif label != 1:
            raise Reject(f"bad label: {annotator!r} is {_short(value)}, expected 1, 2 or 0 for a tie")
        judgements.append(j)
    if not judgements:
        raise Reject("bad label: no annotator's column holds one")
    return judgements
