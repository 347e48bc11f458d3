"""The general formats: a column for each thing, under names of their own. And `holdfast`, which can say everything."""

from __future__ import annotations

from typing import Any

import orjson

from holdfast.data.formats.columns import (
    PROMPTS,
    Row,
    content,
    is_transcript,
    label_text,
    listed,
    number,
    parsed,
    places_of,
    shared_messages,
    short,
    sources_of,
    tidy,
    together,
    tools_apart,
    truth,
    whole,
)
from holdfast.data.formats.registry import Format, Unsayable, by, reader, take, writer
from holdfast.data.records import KINDS, Content, Judgement, Kind, Reject, Segment
from holdfast.data.validate import name_of


@reader("trl", needs="prompt chosen rejected", takes="tools source_chosen source_rejected")
def trl(row: Row) -> list[Judgement]:
    """A pair with its prompt, as text or as chat messages (TRL's "preference" with an explicit prompt)."""
    prompt, responses = together(
        content(row, "prompt"), (content(row, "chosen"), content(row, "rejected")), row.pop("tools", None)
    )
    return [Judgement("pair", prompt, responses, sources=sources_of(row, "source_chosen", "source_rejected"))]


@writer("trl", kinds="pair")
def trl_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    chosen, rejected = j.responses
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        **tools,
        **by(j, "source_chosen", "source_rejected"),
    }


@reader(
    "trl-implicit",
    needs="chosen rejected",
    takes="tools source_chosen source_rejected",
    looks=lambda row: not is_transcript(row) and PROMPTS.isdisjoint(map(str.lower, row)),
)
def trl_implicit(row: Row) -> list[Judgement]:
    """A pair of whole conversations, or whole texts, whose shared beginning is the prompt."""
    chosen, rejected = content(row, "chosen"), content(row, "rejected")
    prompt: Content
    if type(chosen) is list and type(rejected) is list:
        if chosen == rejected:
            raise Reject("identical responses")
        prompt = shared_messages((chosen, rejected))
        n = len(prompt)
        if not n:
            raise Reject("no shared prompt: 'chosen' and 'rejected' differ from the first message on")
        for rest in (chosen[n:], rejected[n:]):
            if not rest:
                raise Reject("empty response: one conversation is the beginning of the other")
            if type(rest[0]) is dict and rest[0].get("role") not in ("assistant", None):
                raise Reject(f"no shared prompt: after {n} shared messages comes one of the {short(rest[0]['role'])}")
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
    return [Judgement("pair", prompt, responses, sources=sources_of(row, "source_chosen", "source_rejected"))]


@writer("trl-implicit", kinds="pair")
def trl_implicit_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    try:
        chosen, rejected = (prompt + response for response in j.responses)  # type: ignore[operator]
    except TypeError:
        raise Unsayable("text and messages in one judgement") from None
    return {"chosen": chosen, "rejected": rejected, **tools, **by(j, "source_chosen", "source_rejected")}


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
    return [Judgement("label", prompt, responses, value=value, sources=sources_of(row, "source"))]


@writer("unpaired", kinds="label")
def unpaired_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    return {"prompt": prompt, "completion": j.responses[0], "label": j.value == 1, **tools, **by(j, "source")}


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
    sources = sources_of(row, "source_a", "source_b")
    shown = listed(row, "shown")
    j = Judgement("pair", prompt, (a, b), sources=sources, shown=places_of(shown))
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
        raise Reject(f"bad label: 'winner' is {short(winner)}, expected a, b or tie")
    return [j]


@writer("compared", kinds="pair tie soft")
def compared_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    a, b = j.responses
    verdict = {"preference": j.value} if j.kind == "soft" else {"winner": "a" if j.kind == "pair" else "tie"}
    shown = take(j, "shown")
    return {
        "prompt": prompt,
        "response_a": a,
        "response_b": b,
        **verdict,
        **tools,
        **by(j, "source_a", "source_b"),
        **({"shown": list(shown)} if shown else {}),
    }


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
    shown = places_of(listed(row, "shown"))
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
        place = None if shown is None else (shown[i],)
        judgements.append(Judgement("score", prompt, (responses[i],), value=value, sources=source, shown=place))
    if any(responses[i] in responses[:i] for i in range(n)):
        raise Reject("identical responses")
    return judgements


def _one_list(j: Judgement) -> Any:
    """Scores of one prompt by one annotator stand in one row, a ranking in a row of its own."""
    about = (j.annotator, j.annotator_kind, j.category, j.licence, j.rubric, j.margin, repr(j.extra), j.shown is None)
    return about if j.kind == "score" else None


@writer("ranked", kinds="ranking score", gather=_one_list)
def ranked_out(js: list[Judgement]) -> Row:
    prompt, tools = tools_apart(js[0].prompt)
    row: Row = {"prompt": prompt, "responses": [r for j in js for r in j.responses]}
    if js[0].kind == "ranking":
        row["ranks"] = [rank + 1 for rank in js[0].ranks or ()]
    else:
        row["scores"] = [j.value for j in js]
    sources = [s for j in js for s in take(j, "sources") or [None] * len(j.responses)]
    shown = [place for j in js for place in take(j, "shown") or ()]
    return {**row, **tools, **({"sources": sources} if any(sources) else {}), **({"shown": shown} if shown else {})}


@reader("scored", needs="prompt response score|label", takes="tools source")
def scored(row: Row) -> list[Judgement]:
    """One response with a score, or with a label (good or bad); with both, two judgements."""
    prompt, responses = together(content(row, "prompt"), (content(row, "response"),), row.pop("tools", None))
    sources = sources_of(row, "source")
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


@writer("scored", kinds="score label")
def scored_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    verdict = {"score": j.value} if j.kind == "score" else {"label": j.value == 1}
    return {"prompt": prompt, "response": j.responses[0], **verdict, **tools, **by(j, "source")}


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
    takes="prompt prompt_json value ranks shown sources extra",
    looks=lambda row: row.get("kind") in KINDS,
)
def holdfast(row: Row) -> list[Judgement]:
    """Holdfast's own record: any kind of judgement, field by field as in the table of `holdfast.data.records`."""
    # JSON text is taken to the letter. Elsewhere a null in an object may be a columnar file's own, and says nothing.
    found = row.pop("responses", None)
    found = parsed(found, "responses", list) if type(found) is str else tidy(found)
    if found is None:
        raise Reject("empty response: 'responses' is missing")
    if type(found) is not list:
        raise Reject(f"wrong type: 'responses' is {name_of(found)}, expected a list")
    responses: list[Content] = []
    for r in found:
        if type(r) is dict:
            if set(r) != {"episode", "start", "length"}:
                raise Reject("wrong type: a response that is an object holds episode, start and length of a segment")
            responses.append(Segment(**r))
        elif r is None or type(r) in (str, list):
            responses.append(r)
        else:
            raise Reject(f"wrong type: a response is {name_of(r)}, expected text or messages")
    prompt, exact = row.pop("prompt", None), row.pop("prompt_json", None)
    if exact is not None:
        if prompt is not None:
            raise Reject("wrong type: 'prompt' and 'prompt_json' are both given")
        prompt = parsed(exact, "prompt_json", object)
    elif type(prompt) is not str:
        prompt = tidy(prompt)
    extra = row.pop("extra", None)
    extra = parsed(extra, "extra", dict) if type(extra) is str else tidy(extra)
    if extra is not None and type(extra) is not dict:
        raise Reject(f"wrong type: 'extra' is {name_of(extra)}, expected an object")
    kind: Kind = row.pop("kind", None)
    ranks, names = listed(row, "ranks"), listed(row, "sources")
    return [
        Judgement(
            kind,
            prompt,
            tuple(responses),
            value=number(row.pop("value", None), "value"),
            ranks=None if ranks is None else tuple(whole(r, "ranks") for r in ranks),
            shown=places_of(listed(row, "shown")),
            sources=None if names is None else tuple(label_text(s, "sources") for s in names),
            extra=extra or None,
        )
    ]


@writer("holdfast", kinds="pair tie soft ranking score label segment")
def holdfast_out(j: Judgement) -> Row:
    row: Row = {"kind": j.kind}
    if _holds_null(j.prompt):
        row["prompt_json"] = orjson.dumps(j.prompt).decode()
    elif j.prompt is not None:
        row["prompt"] = j.prompt
    responses = [
        {"episode": r.episode, "start": r.start, "length": r.length} if isinstance(r, Segment) else r
        for r in j.responses
    ]
    row["responses"] = orjson.dumps(responses).decode() if _holds_null(responses) else responses
    for name in ("value", "ranks", "shown", "sources"):
        value = take(j, name)
        if value is not None:
            row[name] = list(value) if type(value) is tuple else value
    extra = take(j, "extra")
    if extra:
        row["extra"] = orjson.dumps(extra).decode() if _holds_null(extra) else extra
    return row


def _holds_null(value: Any) -> bool:
    """Whether an object in it has a null entry, which only JSON text can say."""
    if type(value) is dict:
        return any(v is None or _holds_null(v) for v in value.values())
    return type(value) is list and any(map(_holds_null, value))
