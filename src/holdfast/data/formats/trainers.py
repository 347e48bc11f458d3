"""What other trainers read: OpenRLHF, LLaMA-Factory, HALOs, NeMo, ms-swift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from holdfast.data.formats.columns import (
    Row,
    as_chat,
    content,
    instruction,
    label_text,
    listed,
    parsed,
    plain_message,
    plain_text,
    shared_messages,
    short,
    sources_of,
    tidy,
    together,
    tools_apart,
    truth,
    whole,
)
from holdfast.data.formats.registry import Unsayable, by, reader, take, writer
from holdfast.data.records import Content, Judgement, Reject
from holdfast.data.validate import name_of

PAIR = ("source_chosen", "source_rejected")  # who wrote the two of a pair, in every format without names of its own


@reader(
    "openrlhf",
    needs="input|context_messages chosen rejected",
    takes="tools source_chosen source_rejected",
    looks=lambda row: row.keys().isdisjoint({"prompt", "instruction"}),
)
def openrlhf(row: Row) -> list[Judgement]:
    """OpenRLHF: a pair under its usual names of the prompt, `input` (text) or `context_messages` (chat)."""
    column = "input" if row.get("input") is not None else "context_messages"
    prompt, responses = together(
        content(row, column), (content(row, "chosen"), content(row, "rejected")), row.pop("tools", None)
    )
    return [Judgement("pair", prompt, responses, sources=sources_of(row, *PAIR))]


@writer("openrlhf", kinds="pair")
def openrlhf_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    column = "input" if type(prompt) is str else "context_messages"
    return {column: prompt, "chosen": j.responses[0], "rejected": j.responses[1], **tools, **by(j, *PAIR)}


# ------------------------------------------------------------------------------------------------------- LLaMA-Factory

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}


def _heard(message: Any, column: str) -> dict[str, Any]:
    """A message of LLaMA-Factory, `{"from", "value"}`, with a role and content. A function_call's value is JSON."""
    if type(message) is not dict or type(message.get("from")) is not str:
        raise Reject(f"bad messages: a message of {column!r} has no 'from'")
    speaker, value = message["from"], message.get("value")
    rest = {k: v for k, v in message.items() if k not in ("from", "value")}
    if speaker == "function_call":
        said = parsed(value, "function_call", object)
        calls = said if type(said) is list else [said]
        if not all(type(call) is dict for call in calls):
            raise Reject("bad messages: a function_call is not an object with a name and arguments")
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": c} for c in calls], **rest}
    if speaker not in ROLES:
        raise Reject(f"bad messages: 'from' is {short(speaker)}, expected {', '.join(ROLES)} or function_call")
    return {"role": ROLES[speaker], "content": value, **rest}


def _spoken(message: dict[str, Any]) -> Row:
    """The same, the other way round."""
    if plain_message(message) and message["role"] in SPEAKERS:
        return {"from": SPEAKERS[message["role"]], "value": message["content"]}
    if set(message) == {"role", "tool_calls"} and message["role"] == "assistant":
        given = message["tool_calls"] if type(message["tool_calls"]) is list else []
        calls = [c["function"] for c in given if type(c) is dict and set(c) == {"type", "function"}]
        if calls and len(calls) == len(given):
            return {"from": "function_call", "value": orjson.dumps(calls[0] if len(calls) == 1 else calls).decode()}
    raise Unsayable("a message with more than a role and text, or a tool call")


def _side(row: Row, column: str) -> Content:
    value = row.pop(column, None)
    if type(value) is dict:
        return [_heard(tidy(value), column)]
    if type(value) is list:
        return [_heard(m, column) for m in tidy(value)]
    if value is None or type(value) is str:
        return value
    raise Reject(f"wrong type: {column!r} is {name_of(value)}, expected a message")


def _conversation(row: Row) -> list[dict[str, Any]]:
    said = [_heard(m, "conversations") for m in tidy(listed(row, "conversations")) or ()]
    system = label_text(row.pop("system", None), "system")
    return said if system is None else [{"role": "system", "content": system}, *said]


def _one(response: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(response) != 1:
        raise Unsayable("a response of several messages")
    return response[0]


def _as_text(tools: Row) -> Row:
    return {"tools": orjson.dumps(tools["tools"]).decode()} if tools else {}


@reader(
    "llama-factory",
    needs="conversations chosen rejected",
    takes="system tools source_chosen source_rejected",
)
def llama_factory(row: Row) -> list[Judgement]:
    """LLaMA-Factory's ranking data in ShareGPT layout: messages of `from` and `value`."""
    prompt, responses = together(
        _conversation(row), (_side(row, "chosen"), _side(row, "rejected")), row.pop("tools", None)
    )
    return [Judgement("pair", prompt, responses, sources=sources_of(row, *PAIR))]


@writer("llama-factory", kinds="pair")
def llama_factory_out(j: Judgement) -> Row:
    prompt, tools, (chosen, rejected) = as_chat(j.prompt, j.responses)
    return {
        "conversations": [_spoken(m) for m in prompt],
        "chosen": _spoken(_one(chosen)),
        "rejected": _spoken(_one(rejected)),
        **_as_text(tools),
        **by(j, *PAIR),
    }


def _asked(row: Row) -> Content:
    """The prompt in Alpaca layout: text, or with `system` or `history` a conversation."""
    prompt: Content = instruction(row, "\n")
    system = label_text(row.pop("system", None), "system")
    history = listed(row, "history") or []
    if system is None and not history:
        return prompt
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for turn in history:
        if type(turn) is not list or len(turn) != 2:
            raise Reject("bad messages: 'history' should hold pairs of a question and an answer")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [*messages, {"role": "user", "content": prompt}]


def _asked_out(prompt: Content) -> Row:
    if type(prompt) is str:
        return {"instruction": prompt, "input": ""}
    messages = list(prompt) if type(prompt) is list else []
    row: Row = {}
    if messages and messages[0]["role"] == "system" and plain_message(messages[0]):
        row["system"] = messages.pop(0)["content"]
    roles = [m["role"] for m in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] or not all(map(plain_message, messages)):
        raise Unsayable("a conversation that is not a question and an answer in turn")
    texts = [m["content"] for m in messages]
    history = [[q, a] for q, a in zip(texts[:-1:2], texts[1::2], strict=True)]
    return {"instruction": texts[-1], "input": "", **row, "history": history}


def _text_of(response: Content) -> Content:
    """A response as text; one plain message of the assistant is its text."""
    if type(response) is str:
        return response
    message = _one(response)  # type: ignore[arg-type]
    if not plain_message(message):
        raise Unsayable("a message with more than a role and text")
    return message["content"]


@reader(
    "llama-factory-alpaca",
    needs="instruction chosen rejected",
    takes="input system history tools source_chosen source_rejected",
)
def llama_factory_alpaca(row: Row) -> list[Judgement]:
    """LLaMA-Factory's ranking data in Alpaca layout. `input` stands a line below the instruction."""
    prompt, responses = together(
        _asked(row), (content(row, "chosen"), content(row, "rejected")), row.pop("tools", None)
    )
    return [Judgement("pair", prompt, responses, sources=sources_of(row, *PAIR))]


@writer("llama-factory-alpaca", kinds="pair")
def llama_factory_alpaca_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    chosen, rejected = map(_text_of, j.responses)
    return {**_asked_out(prompt), "chosen": chosen, "rejected": rejected, **_as_text(tools), **by(j, *PAIR)}


@reader(
    "llama-factory-kto",
    needs="kto_tag instruction|conversations",
    takes="input output system history tools source",
)
def llama_factory_kto(row: Row) -> list[Judgement]:
    """LLaMA-Factory's KTO data, in either layout: the last message, or `output`, and whether it is good."""
    prompt: Content
    response: Content
    if row.get("conversations") is not None:
        *prompt, last = _conversation(row) or [{}]
        response = [last]
    else:
        prompt, response = _asked(row), content(row, "output")
    prompt, responses = together(prompt, (response,), row.pop("tools", None))
    value = truth(row.pop("kto_tag", None), "kto_tag")
    return [Judgement("label", prompt, responses, value=value, sources=sources_of(row, "source"))]


@writer("llama-factory-kto", kinds="label")
def llama_factory_kto_out(j: Judgement) -> Row:
    about = {"kto_tag": j.value == 1, **by(j, "source")}
    if plain_text(j.prompt, *j.responses):
        return {"instruction": j.prompt, "input": "", "output": j.responses[0], **about}
    prompt, tools, (response,) = as_chat(j.prompt, j.responses)
    return {"conversations": [_spoken(m) for m in [*prompt, _one(response)]], **about, **_as_text(tools)}


# --------------------------------------------------------------------------------------------------------------- HALOs

FEEDBACK = ("binary_feedback", "pairwise_feedback")


@reader(
    "halos",
    needs="prompt type label output|output_A",
    takes="output_B source source_A source_B tools",
    looks=lambda row: row.get("type") in FEEDBACK,
)
def halos(row: Row) -> list[Judgement]:
    """HALOs: `type` says whether a row is one output with a label (binary_feedback) or two (pairwise_feedback, label 1:
    output_A is better)."""
    kind, label = row.pop("type", None), truth(row.pop("label", None), "label")
    prompt = content(row, "prompt")
    if kind == "binary_feedback":
        prompt, responses = together(prompt, (content(row, "output"),), row.pop("tools", None))
        return [Judgement("label", prompt, responses, value=label, sources=sources_of(row, "source"))]
    if kind != "pairwise_feedback":
        raise Reject(f"bad label: 'type' is {short(kind)}, expected {' or '.join(FEEDBACK)}")
    outputs = (content(row, "output_A"), content(row, "output_B"))
    prompt, responses = together(prompt, outputs, row.pop("tools", None))
    sources = sources_of(row, "source_A", "source_B")
    if label == 0:
        responses, sources = responses[::-1], sources and sources[::-1]
    return [Judgement("pair", prompt, responses, sources=sources)]


@writer("halos", kinds="pair label")
def halos_out(j: Judgement) -> Row:
    prompt, tools, responses = as_chat(j.prompt, j.responses)
    if j.kind == "label":
        said = {"output": responses[0], "label": int(j.value == 1), "type": "binary_feedback", **by(j, "source")}
    else:
        said = {"output_A": responses[0], "output_B": responses[1], "label": 1, "type": "pairwise_feedback"}
        said |= by(j, "source_A", "source_B")
    return {"prompt": prompt, **said, **tools}


# ---------------------------------------------------------------------------------------------------------------- NeMo


@reader("nemo", needs="context completions", takes="tools sources")
def nemo(row: Row) -> list[Judgement]:
    """NeMo: completions with a rank, the lowest best. Two are a pair (or a tie), more a ranking."""
    ranks, texts, rest = [], [], []
    for c in listed(row, "completions") or ():
        if type(c) is not dict:
            raise Reject(f"wrong type: a completion is {name_of(c)}, expected an object")
        c = tidy(c)
        if "rank" not in c:
            raise Reject("bad ranks: a completion has none")
        ranks.append(whole(c["rank"], "rank"))
        texts.append(content(c, "completion"))
        rest.append(c)
    if not texts:
        raise Reject("empty response: 'completions' is missing or empty")
    prompt, responses = together(content(row, "context"), texts, row.pop("tools", None))
    names = listed(row, "sources")
    sources = None if names is None else tuple(label_text(s, "sources") for s in names)
    j = Judgement("ranking", prompt, responses, ranks=tuple(ranks), sources=sources)
    if any(set(c) > {"rank"} for c in rest):
        j.extra = {"completions": rest}  # what else is said of them, with the rank to know them by
    if len(texts) == 2:
        j.kind, j.ranks = "tie" if ranks[0] == ranks[1] else "pair", None
        if ranks[0] > ranks[1]:
            j.responses, j.sources = responses[::-1], sources and sources[::-1]
    return [j]


@writer("nemo", kinds="pair tie ranking")
def nemo_out(j: Judgement) -> Row:
    context, tools, responses = as_chat(j.prompt, j.responses)
    ranks = {"pair": (0, 1), "tie": (0, 0)}.get(j.kind, j.ranks) or ()
    completions = [{"rank": rank, "completion": r} for rank, r in zip(ranks, responses, strict=True)]
    sources = take(j, "sources")
    return {"context": context, "completions": completions, **tools, **({"sources": list(sources)} if sources else {})}


# ------------------------------------------------------------------------------------------------------------ ms-swift


@reader(
    "ms-swift",
    needs="messages rejected_response|rejected_messages|label",
    takes="tools source source_chosen source_rejected",
)
def ms_swift(row: Row) -> list[Judgement]:
    """ms-swift: a conversation whose last message is the answer, and a `rejected_response` in its place (or a whole
    conversation, `rejected_messages`), or a `label`."""
    messages, rejected, whole_rejected = (
        content(row, c) for c in ("messages", "rejected_response", "rejected_messages")
    )
    if type(messages) is not list or not messages:
        raise Reject("no prompt: 'messages' is missing or empty")
    if rejected is None and whole_rejected is None:
        if row.get("label") is None:
            raise Reject("bad label: neither a rejected answer nor 'label' is given")
        value = truth(row.pop("label"), "label")
        prompt, responses = together(messages[:-1], (messages[-1:],), row.pop("tools", None))
        return [Judgement("label", prompt, responses, value=value, sources=sources_of(row, "source"))]
    if whole_rejected is not None:
        if type(whole_rejected) is not list:
            raise Reject(f"wrong type: 'rejected_messages' is {name_of(whole_rejected)}, expected messages")
        n = len(shared_messages((messages, whole_rejected)))
        asked, pair = messages[:n], (messages[n:], whole_rejected[n:])
    else:
        asked, pair = messages[:-1], (messages[-1:], rejected)  # type: ignore[assignment]
    prompt, responses = together(asked, pair, row.pop("tools", None))
    return [Judgement("pair", prompt, responses, sources=sources_of(row, *PAIR))]


@writer("ms-swift", kinds="pair label")
def ms_swift_out(j: Judgement) -> Row:
    prompt, tools, (first, *others) = as_chat(j.prompt, j.responses)
    row: Row = {"messages": [*prompt, *first]}
    if j.kind == "label":
        return {**row, "label": j.value == 1, **tools, **by(j, "source")}
    (rejected,) = others
    if len(first) == len(rejected) == 1 and plain_message(rejected[0]):
        row["rejected_response"] = rejected[0]["content"]
    else:
        row["rejected_messages"] = [*prompt, *rejected]
    return {**row, **tools, **by(j, *PAIR)}
