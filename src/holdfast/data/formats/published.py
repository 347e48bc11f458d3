"""Formats of known origin: what published data, judges and labelling tools write."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

from holdfast.data.formats.columns import (
    Row,
    as_chat,
    content,
    instruction,
    is_transcript,
    label_text,
    listed,
    number,
    plain_message,
    plain_text,
    shared_messages,
    short,
    sources_of,
    tidy,
    together,
    tools_apart,
    whole,
)
from holdfast.data.formats.general import A_WINS, B_WINS, TIES
from holdfast.data.formats.registry import Unsayable, by, reader, shared, take, writer
from holdfast.data.records import AnnotatorKind, Content, Judgement, Kind, Reject
from holdfast.data.validate import name_of

TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")


@reader(
    "hh", needs="chosen rejected", takes="source_chosen source_rejected", looks=is_transcript, annotator_kind="human"
)
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
    shared = len(shared_messages(sides))
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
    return [Judgement("pair", prompt, responses, sources=sources_of(row, "source_chosen", "source_rejected"))]


@writer("hh", kinds="pair")
def hh_out(j: Judgement) -> Row:
    prompt, tools, responses = as_chat(j.prompt, j.responses)
    says = {"user": "Human", "assistant": "Assistant"}
    for message in [*prompt, *(m for r in responses for m in r)]:
        if tools or not plain_message(message) or message["role"] not in says:
            raise Unsayable("more than text of a user and an assistant has no place in a transcript")
    chosen, rejected = (
        "".join(f"\n\n{says[m['role']]}: {m['content']}" for m in [*prompt, *response]) for response in responses
    )
    return {"chosen": chosen, "rejected": rejected, **by(j, "source_chosen", "source_rejected")}


@reader(
    "alpaca-eval",
    needs="instruction output_1 output_2 preference",
    takes="generator_1 generator_2 dataset input",
    annotator_kind="ai",
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
            instruction(row),
            (content(row, "output_1"), content(row, "output_2")),
            value=2 - preference,
            category=label_text(row.pop("dataset", None), "dataset"),
            sources=sources_of(row, "generator_1", "generator_2"),
        )
    ]


@writer("alpaca-eval", kinds="soft")
def alpaca_eval_out(j: Judgement) -> Row:
    one, two = j.responses
    if not plain_text(j.prompt, one, two):
        raise Unsayable("messages have no place")
    row = {"instruction": j.prompt, "output_1": one, "output_2": two, "preference": 2 - (j.value or 0.0)}
    category = take(j, "category")
    return {**row, **by(j, "generator_1", "generator_2"), **({"dataset": category} if category is not None else {})}


@reader(
    "pandalm",
    needs="instruction response1 response2 annotator1",
    takes="input cmp_key motivation_app",
    annotator_kind="human",
)
def pandalm(row: Row) -> list[Judgement]:
    """PandaLM's test set: one judgement for each column annotator1, annotator2, ... (1 or 2 is the better response, 0 a
    tie)."""
    prompt = instruction(row)
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
        j = Judgement("pair", prompt, (one, two), annotator=annotator, category=category, sources=sources)
        if label == 0:
            j.kind = "tie"
        elif label == 2:
            j.responses, j.sources = (two, one), sources and sources[::-1]
        elif label != 1:
            raise Reject(f"bad label: {annotator!r} is {short(value)}, expected 1, 2 or 0 for a tie")
        judgements.append(j)
    if not judgements:
        raise Reject("bad label: no annotator's column holds one")
    return judgements


def _about(j: Judgement, *also: Hashable) -> Hashable:
    """What judgements in one row must have in common."""
    return (j.annotator, j.annotator_kind, j.category, j.licence, j.margin, *also)


def _pandalm_row(j: Judgement) -> Hashable:
    written = sorted(zip(map(repr, j.responses), j.sources or (None, None), strict=True))
    return (j.annotator_kind, j.category, j.licence, j.margin, j.rubric, repr(j.extra), repr(written))


@writer("pandalm", kinds="pair tie", gather=_pandalm_row)
def pandalm_out(js: list[Judgement]) -> Row:
    one, two = js[0].responses
    if not plain_text(js[0].prompt, one, two):
        raise Unsayable("messages have no place")
    row: Row = {"instruction": js[0].prompt, "input": "", "response1": one, "response2": two, "annotator1": None}
    sources, category = js[0].sources, js[0].category
    if sources is not None and all(s and "_" not in s for s in sources):
        row["cmp_key"] = "_".join(map(str, sources))
    if category is not None:
        row["motivation_app"] = category
    for j in js:
        take(j, "sources"), take(j, "category")
        name = take(j, "annotator")
        if name is None or not re.fullmatch(r"annotator\d+", name):
            raise Unsayable("annotator: the name should be annotator1, annotator2, ...")
        if row.get(name) is not None:
            raise Unsayable("one annotator says two things")
        row[name] = 0 if j.kind == "tie" else 1 if j.responses[0] == one else 2
    return row


@reader("ultrafeedback", needs="instruction completions", takes="source", annotator_kind="ai")
def ultrafeedback(row: Row) -> list[Judgement]:
    """UltraFeedback: completions with a rating for each aspect (`annotations`) and an `overall_score`: one score each,
    the aspect as the rubric."""
    prompt, category = content(row, "instruction"), label_text(row.pop("source", None), "source")
    judgements = []
    for c in listed(row, "completions") or ():
        if type(c) is not dict:
            raise Reject(f"wrong type: a completion is {name_of(c)}, expected an object")
        c = tidy(c)
        asked, responses = together(prompt, (content(c, "response"),))
        model = label_text(c.pop("model", None), "model")
        overall = number(c.pop("overall_score", None), "overall_score")
        aspects = c.pop("annotations", {})
        if type(aspects) is not dict:
            raise Reject(f"wrong type: 'annotations' is {name_of(aspects)}, expected an object")
        said: list[tuple[str, float, Row]] = []
        for aspect, about in aspects.items():
            about = about if type(about) is dict else {"Rating": about}
            rating = about.pop("Rating", None)
            if rating is None or rating == "N/A":  # this aspect was not asked about
                continue
            value = number(rating, "Rating")
            assert value is not None
            said.append((aspect, value, {**about, "completion": c} if c and overall is None else about))
        if overall is not None:
            said.append(("overall", overall, c))
        for rubric, value, extra in said:
            judgements.append(
                Judgement(
                    "score",
                    asked,
                    responses,
                    value=value,
                    rubric=rubric,
                    category=category,
                    sources=None if model is None else (model,),
                    extra=extra or None,
                )
            )
    if not judgements:
        raise Reject("bad label: no completion has a rating")
    return judgements


@writer("ultrafeedback", kinds="score", gather=_about)
def ultrafeedback_out(js: list[Judgement]) -> Row:
    category = js[0].category
    row: Row = {"source": category} if category is not None else {}
    row.update({"instruction": js[0].prompt, "completions": []})
    if "instruction" in (same := shared(js)) or not same.keys().isdisjoint({"completions", "source"}):
        raise Unsayable("extra: a column says something else here")
    places: dict[str, list[Row]] = {}
    for j in js:
        (response,), value, extra = j.responses, j.value, take(j, "extra") or {}
        rubric, sources = take(j, "rubric"), take(j, "sources")
        take(j, "category")
        if rubric is None:
            raise Unsayable("a score without a rubric")
        mine = places.setdefault(repr((response, sources)), [])
        c = next(
            (
                c
                for c in mine
                if (c["overall_score"] is None if rubric == "overall" else rubric not in c["annotations"])
            ),
            None,
        )
        if c is None:
            c = {
                "model": sources[0] if sources else None,
                "response": response,
                "annotations": {},
                "overall_score": None,
            }
            mine.append(c)
            row["completions"].append(c)
        if rubric == "overall":
            c["overall_score"] = value
            rest = extra
        else:
            rest = extra.pop("completion", {})
            c["annotations"][rubric] = {"Rating": value, **extra}
        c.update({k: v for k, v in rest.items() if k not in c})
    return {**row, **same}


ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


@reader(
    "helpsteer",
    needs="prompt response helpfulness",
    takes="correctness coherence complexity verbosity source tools",
    looks=lambda row: row.get("score") is None and row.get("label") is None,
    annotator_kind="human",
)
def helpsteer(row: Row) -> list[Judgement]:
    """HelpSteer: one score of a response for each attribute (helpfulness, correctness, ...), which is the rubric."""
    prompt, responses = together(content(row, "prompt"), (content(row, "response"),), row.pop("tools", None))
    sources = sources_of(row, "source")
    values = {name: number(row.pop(name, None), name) for name in ATTRIBUTES}
    judgements = [
        Judgement("score", prompt, responses, value=value, rubric=name, sources=sources)
        for name, value in values.items()
        if value is not None
    ]
    if not judgements:
        raise Reject("bad label: no attribute has a score")
    return judgements


@writer("helpsteer", kinds="score", gather=lambda j: _about(j, repr(j.responses), j.sources, repr(j.extra)))
def helpsteer_out(js: list[Judgement]) -> Row:
    prompt, tools = tools_apart(js[0].prompt)
    row: Row = {"prompt": prompt, "response": js[0].responses[0], **dict.fromkeys(ATTRIBUTES), **tools}
    for j in js:
        rubric = take(j, "rubric")
        if rubric not in ATTRIBUTES:
            raise Unsayable("rubric: none of " + ", ".join(ATTRIBUTES))
        if row[rubric] is not None:
            raise Unsayable("two scores of one attribute")
        row[rubric] = j.value
        row.update(by(j, "source"))
    return row


@reader("mt-bench", needs="conversation_a conversation_b winner", takes="model_a model_b judge turn")
def mt_bench(row: Row) -> list[Judgement]:
    """MT-bench and Chatbot Arena judgements: two conversations with the same first question, judged at a turn."""
    sides, turn = [], row.pop("turn", None)
    for column in ("conversation_a", "conversation_b"):
        side = tidy(listed(row, column))
        if side is None:
            raise Reject(f"empty response: {column!r} is missing")
        asked = [i for i, m in enumerate(side) if type(m) is dict and m.get("role") == "user"]
        if turn is not None:
            n = whole(turn, "turn")
            if not 1 <= n <= len(asked):
                raise Reject(f"bad label: turn {n} of a conversation of {len(asked)} turns")
            side = side[: asked[n]] if n < len(asked) else side
        sides.append(side)
    n = len(shared_messages(sides))
    while n and (type(sides[0][n - 1]) is not dict or sides[0][n - 1].get("role") == "assistant"):
        n -= 1  # a prompt ends before an answer
    if not n:
        raise Reject("no shared prompt: the conversations begin with different questions")
    one, two = (side[n:] for side in sides)
    judge = row.pop("judge", None)
    judge = label_text("/".join(map(str, judge)) if type(judge) is list else judge, "judge")
    kind: AnnotatorKind | None = None
    if judge is not None and row.get("annotator_kind") is None:  # the published names say what they are
        kind = "ai" if judge.startswith("gpt") else "human" if re.match(r"(author|expert)_\d+$", judge) else None
    j = Judgement(
        "pair",
        sides[0][:n],
        (one, two),
        annotator=judge,
        annotator_kind=kind,
        sources=sources_of(row, "model_a", "model_b"),
    )
    winner = row.pop("winner", None)
    said = winner.strip().lower() if type(winner) is str else winner
    if type(said) is str and said in B_WINS:
        j.responses, j.sources = (two, one), j.sources and j.sources[::-1]
    elif type(said) is str and (said in TIES or said.startswith("tie")):
        j.kind = "tie"
    elif type(said) is not str or said not in A_WINS:
        raise Reject(f"bad label: 'winner' is {short(winner)}, expected model_a, model_b or tie")
    return [j]


@writer("mt-bench", kinds="pair tie")
def mt_bench_out(j: Judgement) -> Row:
    prompt, tools, responses = as_chat(j.prompt, j.responses)
    if tools:
        raise Unsayable("tools have no place")
    a, b = ([*prompt, *response] for response in responses)
    turns = {sum(m["role"] == "user" for m in side) for side in (a, b)}
    if len(turns) != 1:
        raise Unsayable("the conversations have not the same number of turns")
    row = {**by(j, "model_a", "model_b"), "winner": "model_a" if j.kind == "pair" else "tie"}
    judge = take(j, "annotator")
    row.update({"judge": judge} if judge is not None else {})
    return {**row, "conversation_a": a, "conversation_b": b, "turn": turns.pop()}


@reader("rewardbench", needs="prompt chosen rejected subset", takes="chosen_model rejected_model tools")
def rewardbench(row: Row) -> list[Judgement]:
    """RewardBench: a pair, its subset (the category) and the models that wrote the two."""
    prompt, responses = together(
        content(row, "prompt"), (content(row, "chosen"), content(row, "rejected")), row.pop("tools", None)
    )
    category = label_text(row.pop("subset", None), "subset")
    sources = sources_of(row, "chosen_model", "rejected_model")
    return [Judgement("pair", prompt, responses, category=category, sources=sources)]


@writer("rewardbench", kinds="pair")
def rewardbench_out(j: Judgement) -> Row:
    prompt, tools = tools_apart(j.prompt)
    chosen, rejected = j.responses
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **tools}
    return {**row, "subset": take(j, "category"), **by(j, "chosen_model", "rejected_model")}


# ------------------------------------------------------------------------------------------------------------- Argilla

FIELD = re.compile(r"(?:response|generation|generations)[-_]?\d+")
UNNAMED = {"ranking", "preference", "rating", ""}  # questions whose name says no more than what they are


@reader(
    "argilla",
    needs="prompt|instruction response[0-9]|response[-_][0-9]|generation[-_][0-9]|generations[-_][0-9] "
    "*.responses|*.suggestion|*-suggestion",
)
def argilla(row: Row) -> list[Judgement]:
    """Argilla's export: fields `prompt`, `response-1`, ..., and a question's `.responses` (human) and `.suggestion` (ai).

    A ranking of fields, the name of the better one, or a rating of one of them makes a judgement; other questions are
    kept in `extra`."""
    prompt = content(row, "prompt" if row.get("prompt") is not None else "instruction")
    names = [c for c in row if FIELD.fullmatch(c) and row[c] is not None]
    asked, texts = together(prompt, [content(row, name) for name in names])
    fields = dict(zip(names, texts, strict=True))
    sources = {name: label_text(row.pop(f"{name}-source", None), f"{name}-source") for name in names}
    judgements: list[Judgement] = []
    for question, columns, said in _questions(row):
        made = [(_answer(question, value, asked, fields, sources), annotator, kind) for value, annotator, kind in said]
        if not any(j for j, _, _ in made):
            continue  # about something else: it stays in the row
        for column in columns:
            row.pop(column, None)
        for j, annotator, kind in made:
            if j is not None:
                j.annotator, j.annotator_kind = annotator, kind
                judgements.append(j)
    if not judgements:
        raise Reject("bad label: no submitted answer or suggestion judges a response")
    return judgements


Said = tuple[Any, str | None, AnnotatorKind]  # what was answered, by whom, by what kind of annotator


def _questions(row: Row) -> list[tuple[str, list[str], list[Said]]]:
    """Each question: its name, the columns that hold its answers, and what was said. An answer that is no more than a
    draft, or was discarded, says nothing."""
    found = []
    for column in list(row):
        said: list[Said] = []
        if column.endswith((".responses", ".suggestion")):  # Argilla 2
            name = column.rpartition(".")[0]
            if column.endswith(".suggestion") and f"{name}.responses" in row:
                continue  # with the responses
            columns = [
                f"{name}{e}"
                for e in (".responses", ".responses.users", ".responses.status", ".suggestion", ".suggestion.agent")
            ]
            values, users, states, suggested, agent = (row.get(c) for c in columns)
            values = values if type(values) is list else []
            for i, value in enumerate(values):
                if type(states) is not list or i >= len(states) or states[i] in ("submitted", None):
                    user = users[i] if type(users) is list and i < len(users) else None
                    said.append((value, label_text(user, columns[1]), "human"))
            if suggested is not None:
                said.append((suggested, label_text(agent, columns[4]), "ai"))
        elif column.endswith("-suggestion"):  # Argilla 1
            name = column.removesuffix("-suggestion")
            columns = [name, column, f"{column}-metadata"]
            for answer in row[name] if type(row.get(name)) is list else ():
                if type(answer) is dict and answer.get("status") in ("submitted", None):
                    said.append((answer.get("value"), label_text(answer.get("user_id"), name), "human"))
            about = row.get(columns[2])
            if row[column] is not None:
                agent = about.get("agent") if type(about) is dict else None
                said.append((row[column], label_text(agent, column), "ai"))
        else:
            continue
        found.append((name, columns, said))
    return found


def _answer(
    question: str, value: Any, prompt: Content, fields: dict[str, Content], sources: dict[str, str | None]
) -> Judgement | None:
    """The judgement that an answer makes, if it is one of the responses."""

    def judgement(kind: Kind, names: Sequence[str], rubric: str | None, **more: Any) -> Judgement:
        wrote = tuple(sources[name] for name in names)
        return Judgement(
            kind, prompt, tuple(fields[n] for n in names), rubric=rubric, sources=wrote if any(wrote) else None, **more
        )

    rubric = None if question in UNNAMED else question
    places: dict[str, int] = {}
    if type(value) is dict and set(value) == {"rank", "value"} and type(value["value"]) is list:  # columns of a list
        ranks_of = value["rank"] if type(value["rank"]) is list else []
        value = [{"rank": r, "value": v} for r, v in zip(ranks_of, value["value"], strict=False)]
    if type(value) is list:
        for n, item in enumerate(value):
            if type(item) is dict:
                if type(item.get("value")) is not str or item["value"] not in fields:
                    return None
                places[item["value"]] = n if item.get("rank") is None else whole(item["rank"], question)
            elif type(item) is str and item in fields:
                places[item] = n
            else:
                return None
    elif type(value) is str and value in fields:
        places = {name: int(name != value) for name in fields}
    elif type(value) is str and value.strip().lower() in TIES:
        places = dict.fromkeys(fields, 0)
    elif type(value) in (int, float) or (type(value) is str and value.strip().isdigit()):
        of = [name for name in fields if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![0-9])", question)]
        if not of and len(fields) == 1:
            of = list(fields)
        if len(of) != 1:
            return None  # about the whole row
        rest = re.sub(r"^[-_]+|[-_]+$", "", question.replace(of[0], "", 1))
        return judgement("score", of, None if rest in UNNAMED else rest, value=number(value, question))
    if len(places) < 2:
        return None
    ranks = tuple(places.values())
    if len(places) > 2:
        return judgement("ranking", list(places), rubric, ranks=ranks)
    kind: Kind = "tie" if ranks[0] == ranks[1] else "pair"
    return judgement(kind, sorted(places, key=places.__getitem__), rubric)


@writer("argilla", kinds="pair tie ranking score", gather=lambda j: (j.category, j.licence, j.margin, repr(j.extra)))
def argilla_out(js: list[Judgement]) -> Row:
    prompt, _ = tools_apart(js[0].prompt)
    row: Row = {"prompt": prompt}
    names: dict[str, str] = {}
    for j in js:
        for response in j.responses:
            if repr(response) not in names:
                names[repr(response)] = f"response-{len(names) + 1}"
                row[names[repr(response)]] = response
        for response, source in zip(j.responses, take(j, "sources") or (), strict=False):
            if source is not None and row.setdefault(f"{names[repr(response)]}-source", source) != source:
                raise Unsayable("sources: one response of two")
    value: Any
    for j in js:
        of, rubric = [names[repr(r)] for r in j.responses], take(j, "rubric")
        annotator, kind = take(j, "annotator"), take(j, "annotator_kind")
        if j.kind == "score":
            question, value = f"{of[0]}-{rubric or 'rating'}", j.value
        else:
            question = rubric or "ranking"
            ranks = {"pair": (0, 1), "tie": (0, 0)}.get(j.kind, j.ranks) or ()
            value = [{"rank": rank + 1, "value": name} for rank, name in zip(ranks, of, strict=True)]
        if kind == "ai":
            if f"{question}.suggestion" in row:
                raise Unsayable("two suggestions for one question")
            row |= {f"{question}.suggestion": value, f"{question}.suggestion.agent": annotator}
        elif kind == "rule":
            raise Unsayable("a rule has no place among the annotators")
        else:
            for column, said in (("", value), (".users", annotator), (".status", "submitted")):
                row.setdefault(f"{question}.responses{column}", []).append(said)
    return row
