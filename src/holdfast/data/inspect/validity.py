"""Texts that should not be in a dataset at all: empty, refusing, broken, or somebody's personal data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from holdfast.data.inspect.finding import Cell, Finding, Rows, between, by_cells, detector, graded, share
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.stats import Resamples
from holdfast.data.inspect.surface import REFUSAL

TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|user|assistant|system)\|>|\[/?INST\]|<</?SYS>>|</?s>|<pad>|<unk>|"
    r"###\s*(?:Instruction|Response|Input|Human|Assistant)\b|(?:^|\n\n)(?:Human|Assistant): |<(?:start|end)_of_turn>|<no ?output>",
    re.I,
)
BROKEN = re.compile(r"�|Ã[\x80-\xbf©¨ª«¡-¿]|â€[™œ\x9d“”\x93\x94¦]|Â[\xa0-\xbf]|ï»¿|ðŸ")
EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{2,}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)")
CARD = re.compile(r"(?<!\d)(?:\d[ -]?){13,16}(?!\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
ADDRESS = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
NATIONAL = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
SCRIPTS = (
    ("Latin", re.compile(r"[A-Za-zÀ-ɏ]")),
    ("Cyrillic", re.compile(r"[Ѐ-ӿ]")),
    ("Greek", re.compile(r"[Ͱ-Ͽ]")),
    ("Arabic", re.compile(r"[؀-ۿ]")),
    ("Hebrew", re.compile(r"[֐-׿]")),
    ("Devanagari", re.compile(r"[ऀ-ॿ]")),
    ("Thai", re.compile(r"[฀-๿]")),
    ("Hangul", re.compile(r"[가-힯]")),
    ("Kana", re.compile(r"[぀-ヿ]")),
    ("Han", re.compile(r"[一-鿿]")),
)
ENDED = re.compile(r"[.!?…:;)\]}>\"'”’`*|~\d。！？]\s*$")

KINDS = (
    "empty", "refusal", "template", "broken", "e-mail", "telephone", "card", "bank account", "network address",
    "national number", "cut off",
)  # fmt: skip
PERSONAL = KINDS[4:10]


def masked(text: str) -> str:
    """The text with what looks like personal data taken out, to show it."""
    for pattern, name in (
        (EMAIL, "e-mail"), (IBAN, "bank account"), (ADDRESS, "network address"), (NATIONAL, "national number"),
        (PHONE, "telephone"), (CARD, "number"),
    ):  # fmt: skip
        text = pattern.sub(f"[{name}]", text)
    return text


def _luhn(digits: str) -> bool:
    """Whether a card number's check digit fits."""
    total = 0
    for n, c in enumerate(reversed(digits)):
        d = int(c) * (2 if n % 2 else 1)
        total += d - 9 if d > 9 else d
    return total % 10 == 0


def flags(texts: Sequence[str]) -> np.ndarray:
    """(n, 11) bool, the columns of KINDS."""
    out = np.zeros((len(texts), len(KINDS)), bool)
    for i, text in enumerate(texts):
        shown = text.strip()
        digits = sum(map(text.count, "0123456789"))  # each pattern is looked for only where it has the digits it takes
        out[i] = (
            not shown,
            REFUSAL.search(text[:400]) is not None,
            TEMPLATE.search(text) is not None,
            not text.isascii() and BROKEN.search(text) is not None,
            "@" in text and EMAIL.search(text) is not None,
            digits >= 10 and PHONE.search(text) is not None,
            digits >= 13
            and any(
                13 <= len(d) <= 16 and _luhn(d) and len(set(d)) > 2
                for d in (re.sub(r"\D", "", m) for m in CARD.findall(text))
            ),
            digits >= 7 and IBAN.search(text) is not None,
            digits >= 4 and text.count(".") >= 3 and ADDRESS.search(text) is not None,
            digits >= 9 and text.count("-") >= 2 and NATIONAL.search(text) is not None,
            len(shown) > 200 and ENDED.search(shown) is None,
        )
    return out


def script(texts: Sequence[str]) -> np.ndarray:
    """(n,) int8, the script most letters of the first 2,000 characters are in; -1 without letters."""
    out = np.full(len(texts), -1, np.int8)
    for i, text in enumerate(texts):
        start = text[:2000]
        if start.isascii():
            out[i] = 0 if SCRIPTS[0][1].search(start) else -1
            continue
        counts = [len(pattern.findall(start)) for _, pattern in SCRIPTS]
        if max(counts):
            out[i] = int(np.argmax(counts))
    return out


def _finding(
    material: Material,
    column: str,
    *,
    name: str,
    title: str,
    what: str,
    warn: float,
    serious: float,
    verdict: str,
    remedy: str,
) -> Finding:
    """Share of the responses that are so, and the judgements that name them."""
    k = KINDS.index(column)
    used = material.used
    mine = material.responses.derive(flags)[used, k]
    prompts = material.response_prompt[used]
    figure = Resamples(prompts, times=material.times, seed=material.seed).ratio(mine.astype(float), np.ones(len(used)))
    value = figure.value or 0.0
    rows, _ = material.naming(used[mine])
    return Finding(
        name=name,
        title=title,
        definition=f"Share of the responses {what}.",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm=f"note: any; warning: {share(warn)} or more; serious: {share(serious)} or more",
        severity=graded(value, warning=warn, serious=serious, note=bool(value)),
        verdict=verdict.format(n=int(mine.sum()), share=share(value, 2)) if value else f"{title}: none.",
        remedy=remedy,
        rows=Rows.ranked(rows, np.ones(len(rows)), column),
    )


@detector("validity", "text")
def validity(material: Material) -> Iterator[Finding]:
    yield _finding(
        material, "empty", name="validity/empty", title="Empty responses", what="that show nothing but white space",
        warn=0.001, serious=0.02, verdict="{n:,} responses ({share}) are empty.", remedy="Drop these rows.",
    )  # fmt: skip
    yield _finding(
        material, "template", name="validity/template", title="Responses with remnants of a chat template",
        what="that hold a piece of a chat template or prompt format (<|im_start|>, [INST], ### Response, a " "further Human: turn)",
        warn=0.005, serious=0.05, verdict="{n:,} responses ({share}) hold a piece of a chat template.",
        remedy="Cut the response there, or drop the row: the model learns to write these pieces.",
    )  # fmt: skip
    yield _finding(
        material, "broken", name="validity/encoding", title="Responses with damaged encoding",
        what="that show signs of text decoded with the wrong encoding",
        warn=0.005, serious=0.05, verdict="{n:,} responses ({share}) show signs of a wrong encoding.",
        remedy="Read the source again as UTF-8, or mend the text.",
    )  # fmt: skip
    if material.decided.any():
        yield _between_sides(
            material,
            "refusal",
            "refuse",
            "Refusals",
            "validity/refusals",
            "holds a refusal in its first 400 characters",
        )
        yield _between_sides(
            material,
            "cut off",
            "stop in mid-sentence",
            "Responses cut off",
            "validity/cut-off",
            "is longer than 200 characters and ends in no mark or digit",
        )
    yield _personal(material)
    yield _scripts(material)


def _between_sides(material: Material, column: str, do: str, title: str, name: str, what: str) -> Finding:
    """Where one side has it and the other has not: which is preferred?"""
    has = material.responses.derive(flags)[:, KINDS.index(column)]
    a, b = has[material.a], has[material.b]
    below = material.weight * ((a != b) & material.decided)
    above = below * (a == (material.p > 0.5))
    figure = material.resamples.ratio(above, below)
    up = np.where(material.p > 0.5, a, b)
    down = np.where(material.p > 0.5, b, a)
    total = (material.weight * material.decided).sum()
    shares = [float((material.weight * material.decided * side).sum() / total) for side in (up, down)]
    at = np.flatnonzero(below * (up == 1))
    return Finding(
        name=name,
        title=f"{title}, and whether they win",
        definition=f"Of the decided comparisons of which exactly one response {what}: share in which that one is "
        "preferred.",
        figure=figure,
        unit="share",
        expected=None,
        alarm="none: whether it should win is a matter of what the dataset is for",
        severity="note",
        verdict=f"{share(shares[0])} of the preferred and {share(shares[1])} of the rejected responses {do}. "
        f"Where only one of the two does, it wins in {between(figure)}."
        if figure.value is not None
        else f"In no comparison does one response {do} and the other not.",
        rows=Rows.ranked(material.row[at], np.ones(len(at)), "preferred although or because it does"),
        cells=by_cells(material, above, below) if figure.value is not None else {},
        facts={"of the preferred": shares[0], "of the rejected": shares[1], "comparisons": int((below > 0).sum())},
    )


def _personal(material: Material) -> Finding:
    """Patterns of personal data in prompts and responses. They are counted and pointed to; no text is shown."""
    columns = [KINDS.index(k) for k in PERSONAL]
    responses = material.responses.derive(flags)[:, columns]
    prompts = material.prompts.derive(flags)[:, columns]
    live = material.live
    touched = prompts[material.row_prompt]
    for side in (material.a, material.b):
        np.logical_or.at(touched, material.row, responses[side])
    rows = live[touched[live].any(axis=1)]
    figure = Resamples(material.row_prompt[live], times=material.times, seed=material.seed).ratio(
        touched[live].any(axis=1).astype(float), np.ones(len(live))
    )
    counts = {k: int(touched[live, n].sum()) for n, k in enumerate(PERSONAL) if touched[live, n].any()}
    value = figure.value or 0.0
    return Finding(
        name="validity/personal",
        title="Patterns of personal data",
        definition="Share of the judgements whose prompt or responses hold what looks like an e-mail address, "
        "telephone, card (with a valid check digit), bank account, network address or national number. "
        "Made-up ones count as well.",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 2 % of the judgements or more; serious: 10 % or more",
        severity=graded(value, warning=0.02, serious=0.1, note=bool(value)),
        verdict=f"{len(rows):,} judgements ({share(value)}) hold such patterns: "
        f"{', '.join(f'{k} {n:,}' for k, n in counts.items())}."
        if value
        else "No judgement holds such a pattern.",
        remedy="Look at these rows where you may, and replace what is real. They are pointed to by id and "
        "never printed here.",
        rows=Rows.ranked(rows, touched[rows].sum(axis=1), "kinds of pattern"),
        facts={"kinds": counts},
    )


def _scripts(material: Material) -> Finding:
    """Language, as far as the script tells it."""
    asked = material.prompts.derive(script)
    said = material.responses.derive(script)
    used = material.used
    of = material.response_prompt[used]
    other = (asked[of] >= 0) & (said[used] >= 0) & (asked[of] != said[used])
    figure = Resamples(of, times=material.times, seed=material.seed).ratio(other.astype(float), np.ones(len(used)))
    counts = np.bincount(said[used][said[used] >= 0], minlength=len(SCRIPTS))
    known = [(SCRIPTS[k][0], int(n)) for k, n in enumerate(counts) if n]
    value = figure.value or 0.0
    rows, _ = material.naming(used[other])
    return Finding(
        name="validity/script",
        title="Responses in another script than their prompt",
        definition="Share of the responses most of whose letters are of another script than the prompt's. A "
        "translation task is no fault.",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 2 % or more; serious: 10 % or more",
        severity=graded(value, warning=0.02, serious=0.1, note=bool(value)),
        verdict=f"{int(other.sum()):,} responses ({share(value, 2)}) are in another script than their prompt. "
        f"Responses by script: {', '.join(f'{k} {n:,}' for k, n in known) or 'none has letters'}.",
        rows=Rows.ranked(rows, np.ones(len(rows)), "another script"),
        cells={"script": [Cell(k, n, Resamples(np.arange(1)).ratio(np.zeros(1), np.zeros(1))) for k, n in known]},
    )
