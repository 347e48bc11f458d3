"""The gold reward: a program that reads a prompt's text, and says how good any text is as an answer to it.

It knows nothing of how the prompt was made or who wrote the answer: it parses both. Five parts make the total:

    part      range          what for
    correct   -0.4 .. 0.6    the answer is right; 0 where a right and a wrong one are claimed; an order that is not
                             right earns a little by the pairs that it gets right
    style     -0.1 .. 0.2    the style rule of the prompt is obeyed; without one, the answer is a whole sentence
    brevity   -0.2 .. 0.1    no filler, no more words than it takes
    form      -0.2 .. 0.1    capital, full stop, real words, none of them stuck
    tone      -0.1 .. 0      no rude aside

So a right answer in a whole sentence has 1.0, a right bare word 0.5 to 0.7, a wrong answer in the finest style 0 and an
empty one -1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, groupby, pairwise
from typing import Any, Literal

from holdfast.demo.lexicon import (
    DAYS,
    GROUP_OF,
    GROUPS,
    KNOWN_WORDS,
    MONTHS,
    NAMES,
    NOUNS,
    NUMBER_OF,
    PAST,
    THINGS,
)
from holdfast.errors import DataError


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold reward of one answer: the total, in [-1, 1], and the parts that add up to it."""

    total: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Question:
    """What the reader made of a prompt: what a right answer claims, and what it may say besides."""

    claim: Literal["number", "entity", "verdict", "order", "spelling", "sentence"]
    right: Any
    rule: str | None
    prompt_words: frozenset[str]
    may_say: frozenset[str] = frozenset()  # entities of the question that an answer may repeat
    operands: tuple[int, ...] = ()  # numbers of the question that an answer may repeat
    must_not_say: frozenset[str] = frozenset()  # words that turn a right answer into a wrong one: `before` for `after`
    accepts: Callable[[list[str], str], bool] | None = field(default=None, compare=False)  # for a rewritten sentence


_RULES = {
    "sentence": r"(answer in|use|please answer with) a (full|whole) sentence\.",
    "short": r"(answer in|use) at most three words\.|keep the answer to three words or fewer\.",
    "polite": r"be polite\.|answer politely\.|please be polite and friendly\.",
    "quotes": r"(put|write) the answer in quotes\.|use quotes around the answer\.",
    "exclaim": r"(end|finish) with an exclamation mark\.|use an exclamation mark at the end\.",
    "label": r"(begin|start|the reply must begin) with 'answer:'\.",
    "digits": r"write numbers as digits\.|use digits for numbers\.|give numbers in digits\.",
    "words": r"write numbers in words\.|spell out the numbers\.|use words for numbers\.",
    "dashes": r"answer as a list with dashes\.|give one item per line with a dash\.|put a dash before every item\.",
}
_GREETING = re.compile(r"^(hello|please help me|tell me)[.:] ")
_WORD = re.compile(r"[a-z]+|\d+")
_PLURALS = {thing + "s": thing for thing in THINGS} | {group + "s": group for group in GROUPS if group != "drink"}
_ENTITIES = frozenset(w.lower() for w in (*NOUNS, *NAMES, *DAYS, *MONTHS, *(g for g in GROUPS if g != "drink")))
_FILLER = re.compile(
    r"good question|let me (think|know)|you may know|to be honest|this helps|more to say|my view|thank you for the"
)
_POLITE = re.compile(r"\b(of course|gladly|with pleasure|happy to help|you are welcome|thank you|please)\b")
_RUDE = re.compile(r"\b(obviously|(as )?anyone knows|whatever)\b")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


_VERBS = frozenset(
    _words("is are was were has have had drinks holds costs comes appears appear belong will gives makes")
)


def _number(word: str) -> int | None:
    return int(word[:6]) if word.isdigit() else NUMBER_OF.get(word)


def _numbers(words: Iterable[str]) -> list[int]:
    return [n for w in words if (n := _number(w)) is not None]


def _entities(text: str) -> list[str]:
    """The things, kinds, people, days and months that a text names, in order. `May` is a month, `may know` is not."""
    words = _words(re.sub(r"\bmay know\b", "", text.lower()))
    return [e for w in words if (e := _PLURALS.get(w, w)) in _ENTITIES]


def read_prompt(messages: Sequence[Mapping[str, Any]]) -> Question:
    """Parse a prompt of the world. DataError where it is none."""
    try:
        return _read(
            " ".join(m["content"] for m in messages if m["role"] == "system"),
            " ".join(m["content"] for m in messages if m["role"] == "user"),
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        raise DataError(
            f"the gold reward cannot read this prompt, which is none of the built-in world: {messages!r}"
        ) from None


@lru_cache(maxsize=65536)
def _read(system: str, user: str) -> Question:
    rule = None
    text = user
    for name, pattern in _RULES.items():
        if re.search(pattern, system.lower()):
            rule = name
        if found := re.search(rf"(?:^| )({pattern})(?= |$)", text.lower()):
            rule = name
            text = (text[: found.start()] + text[found.end() :]).strip()
    low = _GREETING.sub("", text.lower())
    text = text[len(text) - len(low) :]
    right: Any
    words, named, numbers = _words(low), _entities(low), _numbers(_words(low))
    after = text.rpartition(": ")[2]
    listed = _entities(after)

    def question(claim: Any, right: Any, **more: Any) -> Question:
        return Question(claim, right, rule, frozenset(_words(user)), **more)

    def says(pattern: str) -> re.Match[str] | None:
        return re.search(pattern, low)

    # Rewriting: the payload follows the colon.
    if says(r"polite"):
        command = _words(after)
        around = {"please", "could", "would", "can", "will", "you", "kindly"}

        def polite(said: list[str], _: str) -> bool:
            n = len(command)
            at = next((i for i in range(len(said) - n + 1) if said[i : i + n] == command), None)
            return at is not None and "please" in said and {*said[:at], *said[at + n :]} <= around

        return question("sentence", None, accepts=polite)
    if found := says(r"at most (\w+) words"):
        most, long = NUMBER_OF[found[1]], _words(after)
        verb_at = next(i for i, w in enumerate(long) if w in ("sleeps", "sits", "stands", "waits"))

        def shorter(said: list[str], _: str) -> bool:
            rest = iter(long)
            in_order = all(w in rest for w in said)
            return (
                in_order
                and len(said) <= most
                and said[:1] == ["the"]
                and long[verb_at - 1] in said
                and long[verb_at] in said
            )

        return question("sentence", most, accepts=shorter)
    if says(r"^(put this in|say this about) the past:"):
        past = [PAST.get(w, w) for w in _words(after)]
        return question("sentence", None, accepts=lambda said, _: said == past)
    if says(r"^say the opposite with not:|^put the word not into this:"):
        plain = _words(after)
        at = plain.index("is") + 1
        return question("sentence", None, accepts=lambda said, _: said == [*plain[:at], "not", *plain[at:]])
    if says(r"^(make this|turn this into) a question:"):
        plain = _words(after)
        plain.remove("is")
        return question("sentence", None, accepts=lambda said, mark: said == ["is", *plain] and mark != ".")

    # Formatting: the answer is a spelling, so case and signs count.
    if says(r"\bcapital letters|\bcapitals\b"):
        return question("spelling", named[0].upper())
    if says(r"capital first letter|a capital at the start"):
        return question("spelling", named[0].capitalize())
    if found := says(r"\b(dashes|slashes)\b"):
        return question("spelling", {"dashes": "-", "slashes": "/"}[found[1]].join(named))

    # Counting.
    if says(r"how many letters|count the letters"):
        return question("number", len(named[0]), may_say=frozenset(named))
    if says(r"how many times|how often"):
        return question("number", listed.count(named[0]), may_say=frozenset(named[:1]))
    if says(r"how many words|count the words|how long is this list"):
        return question("number", len(listed))
    if found := says(r"how many (\w+)s are in this list|count the (\w+)s:|how many of these are (\w+)s"):
        group = found[found.lastindex or 0]
        n = sum(GROUP_OF.get(w) == group for w in listed)
        return question("number", n, may_say=frozenset({group}))

    # Orders.
    if says(r"alphabet|from a to z"):
        return question("order", tuple(sorted(named)))
    if says(r"(sort|order|put).* numbers"):
        down = bool(says(r"large to small|largest first"))
        return question("order", tuple(sorted(numbers, reverse=down)), operands=tuple(numbers))
    if says(r"reverse|backwards|turn this list around"):
        return question("order", tuple(reversed(named)))

    # Membership.
    if found := says(r"^(?:is|is it true that|can you call) (?:an? )?([a-z]+) (?:is )?an? ([a-z]+)\?$"):
        verdict = "yes" if GROUP_OF[found[1]] == found[2] else "no"
        return question("verdict", verdict, may_say=frozenset({found[1], found[2]}))
    if found := says(r"(?:which of these is an?|find the|name the) (" + "|".join(GROUPS) + r")\b"):
        right = next(w for w in listed if GROUP_OF[w] == found[1])
        return question("entity", right, may_say=frozenset({found[1]}), must_not_say=frozenset({"not"}))
    if says(r"not belong|not like the others|odd word"):
        kinds = [GROUP_OF[w] for w in listed]
        right = next(w for w, kind in zip(listed, kinds, strict=True) if kinds.count(kind) == 1)
        return question("entity", right, must_not_say=frozenset({"belongs"}))

    # Ends.
    if found := says(r"\b(first|second|last) (?:word|of these)|comes (first|second|last)"):
        which = found[1] or found[2]
        right = listed[{"first": 0, "second": 1, "last": -1}[which]]
        return question("entity", right, must_not_say=frozenset({"first", "second", "last", "not"} - {which}))

    # Comparison.
    if found := says(r"^(?:is|is it true that) (\d+) (?:is )?(larger|smaller) than (\d+)"):
        x, y = int(found[1]), int(found[3])
        verdict = "yes" if (x > y) == (found[2] == "larger") else "no"
        other = {"larger": "smaller", "smaller": "larger"}[found[2]]
        return question("verdict", verdict, operands=(x, y), must_not_say=frozenset({other}))
    if found := says(r"^which (?:number )?is (larger|more|smaller|less)"):
        up = found[1] in ("larger", "more")
        right = max(numbers) if up else min(numbers)
        wrong_way = {"smaller", "less", "smallest"} if up else {"larger", "more", "largest"}
        return question("number", right, must_not_say=frozenset({*wrong_way, "not"}))
    if found := says(r"(?:who|of them) is (older|younger)"):
        right = named[numbers.index((max if found[1] == "older" else min)(numbers))]
        return question("entity", right, must_not_say=frozenset({"older", "younger", "not"} - {found[1]}))
    if found := says(r"\b(longer|shorter)\b"):
        right = (max if found[1] == "longer" else min)(named, key=len)
        return question("entity", right, must_not_say=frozenset({"longer", "shorter", "not"} - {found[1]}))

    # Look-up: facts, then a question about one of them.
    if "drinks" in words and any(w in ("who", "which", "what") for w in words):
        facts = dict(re.findall(r"([a-z]+) drinks ([a-z]+)(?= and|,|\.)", low))
        if found := says(r"(?:who|which of them) drinks ([a-z]+)\?"):
            right = next(name for name, drink in facts.items() if drink == found[1])
            return question("entity", right, may_say=frozenset({found[1]}))
        name = _entities(low.rpartition(". ")[2])[0]
        return question("entity", facts[name], may_say=frozenset({name}))
    if says(r"\bprices\b"):
        goods = _entities(low.rpartition(". ")[2])[0]
        found = says(rf"\b{goods} (\d+)")
        return question("number", int(found[1]) if found else None, may_say=frozenset({goods}))
    if says(r"box holds an? "):
        facts = dict(re.findall(r"the ([a-z]+) box holds an? ([a-z]+)", low))
        asked = _entities(low.rpartition(". ")[2])[0]
        right = facts[asked] if asked in facts else next(c for c, thing in facts.items() if thing == asked)
        return question("entity", right, may_say=frozenset({asked}))
    if found := says(r"\b(?:which [a-z]+|what) does ([a-z]+) have\?"):
        facts = dict(re.findall(r"([a-z]+)(?:: | has an? )([a-z]+)(?= and|,|\.)", low))
        return question("entity", facts[found[1]], may_say=frozenset({found[1]}))

    # Calendar.
    for cycle in (DAYS, MONTHS):
        names = [c.lower() for c in cycle]
        if at_name := next((w for w in words if w in names), None):
            far = numbers[0] if numbers else 1
            back = bool(says(r"before|\blast\b|yesterday"))
            right = names[(names.index(at_name) + (-far if back else far)) % len(names)]
            turns = ("after", "next", "tomorrow") if back else ("before", "last", "yesterday")
            return question(
                "entity",
                right,
                may_say=frozenset({at_name}),
                operands=tuple(numbers),
                must_not_say=frozenset({*turns, "not"}),
            )

    # Arithmetic: what is left.
    may = frozenset(named)
    if says(r"\btwice\b|\bdouble\b"):
        return question("number", 2 * numbers[0], operands=tuple(numbers))
    if says(r"\btimes\b"):
        return question(
            "number", numbers[0] * numbers[1], operands=tuple(numbers), must_not_say=frozenset({"plus", "minus"})
        )
    if says(r"\bminus\b|\baway\b|\bleft\b"):
        right = max(numbers) - min(numbers)
        return question(
            "number", right, may_say=may, operands=tuple(numbers), must_not_say=frozenset({"plus", "times"})
        )
    if says(r"\bplus\b|\badd\b|\btogether\b|\bmore\b|\bin all\b") and len(numbers) == 2:
        return question(
            "number", sum(numbers), may_say=may, operands=tuple(numbers), must_not_say=frozenset({"minus", "times"})
        )
    raise ValueError(user)


def gold(messages: Sequence[Mapping[str, Any]], response: str) -> Gold:
    """Score any text as an answer to a prompt of the world; the module says what the parts are. Deterministic.

    Raises DataError where the prompt is none of the world's.
    """
    question = read_prompt(messages)
    reply = response.strip()
    if not _words(reply):
        parts = {"correct": -0.4, "style": -0.1, "brevity": -0.2, "form": -0.2, "tone": -0.1}
    else:
        words = _words(reply)
        parts = {
            "correct": _correct(question, reply),
            "style": _style(question, reply, words),
            "brevity": _brevity(question, reply, words),
            "form": _form(question, reply, words),
            "tone": -0.1 if _RUDE.search(reply.lower()) else 0.0,
        }
    return Gold(round(sum(parts.values()), 6), parts)


def _correct(question: Question, reply: str) -> float:
    """What the reply claims, sentence by sentence: the last claim counts; a different one before makes it a hedge."""
    right, hedge, wrong = 0.6, 0.0, -0.4
    body = re.sub(r"^answer:\s*", "", reply, flags=re.IGNORECASE)
    sentences = [s for s in re.split(r"(?<=[.!?:])\s+", body.replace("\n- ", ", ")) if _words(s)]
    if question.claim == "sentence":
        assert question.accepts is not None
        # Rude asides and stuck words are for tone and form to see to.
        plainly = [[w for w, _ in groupby(_words(_RUDE.sub(" ", s.lower())))] for s in sentences]
        if not any(question.accepts(said, s.strip()[-1:]) for said, s in zip(plainly, sentences, strict=True)):
            return wrong
        return right if question.right is None or len(_words(body)) <= question.right else hedge
    if question.claim == "spelling":
        want = question.right
        plain = re.sub(r"[-/]", "", want).lower()
        tokens = [t.strip("\"'.,!?:;()") for t in body.split()]
        spelt = [t for t in tokens if re.sub(r"[-/]", "", t).lower() == plain or re.search(r"\w[-/]\w", t)]
        return right if spelt and spelt[-1] == want else wrong
    if question.claim == "order":
        numeric = isinstance(question.right[0], int)
        best = wrong
        for sentence in sentences:
            said: list[Any] = list(_numbers(_words(sentence))) if numeric else _entities(sentence)
            if sorted(said) != sorted(question.right):
                if len(said) > 1:
                    best = wrong  # another list after all
                continue
            place = {item: i for i, item in enumerate(question.right)}
            pairs = list(combinations([place[item] for item in said], 2))
            kept = sum(x < y for x, y in pairs) / len(pairs)
            best = right if kept == 1 else wrong + 0.3 * kept
        return best

    verdicts: list[bool] = []  # of each sentence that claims something
    for sentence in sentences:
        words = _words(sentence)
        strange = [e for e in _entities(sentence) if e not in question.may_say]
        numbers = _numbers(words)
        turned = bool(question.must_not_say & set(words))
        if question.claim == "verdict":
            yes, no, negated = "yes" in words, "no" in words, "not" in words
            if not (yes or no or _entities(sentence) or numbers):
                continue
            if yes or no:
                said_yes, clash = yes, (yes and no) or (yes and negated) or (no and not negated and len(words) > 1)
            else:
                said_yes, clash = not negated, "is" not in words
            moved = bool(numbers) and tuple(numbers) != question.operands
            verdicts.append(said_yes == (question.right == "yes") and not (clash or strange or moved or turned))
        elif question.claim == "entity":
            if strange:
                verdicts.append(set(strange) == {question.right} and not turned)
        else:
            bare = re.sub(r"\b(\w+) (plus|minus|times) (\w+)\b|\b(twice|double|than) (\w+)\b", " ", " ".join(words))
            claimed = _numbers(bare.split())
            if claimed:
                stray = [n for n in claimed[:-1] if n != claimed[-1] and n not in question.operands]
                verdicts.append(claimed[-1] == question.right and not (stray or strange or turned))
    if not verdicts or not verdicts[-1]:
        return wrong
    return right if all(verdicts) else hedge


def _style(question: Question, reply: str, words: list[str]) -> float:
    """0.2 for the rule in a whole sentence, 0.1 for the rule alone, 0 for a sentence without the rule, else -0.1."""
    opens = reply.lstrip("\"'")[:1]
    whole = (opens.isupper() or opens.isdigit()) and reply.rstrip("\"'")[-1:] in (".", "!", "?")
    if question.claim != "sentence":
        whole = whole and len(words) >= 3 and bool(_VERBS & set(words))
    rule = question.rule
    if rule is None or rule == "sentence":
        return 0.2 if whole else -0.1
    if rule == "short":
        return 0.2 if len(words) <= 3 else -0.1
    if rule == "dashes":
        lines = reply.split("\n")
        return 0.2 if len(lines) == len(question.right) and all(re.match(r"- \w", line) for line in lines) else -0.1
    numerals = [w for w in words if _number(w) is not None]
    obeyed = {
        "polite": bool(_POLITE.search(reply.lower())),
        "quotes": bool(re.search(r'"[^"]{1,30}"', reply))
        and len(words) > len(_words(" ".join(re.findall('"([^"]*)"', reply)))),
        "exclaim": reply.endswith("!"),
        "label": reply.startswith("Answer: "),
        "digits": bool(numerals) and all(w.isdigit() for w in numerals),
        "words": bool(numerals) and not any(w.isdigit() for w in numerals),
    }[rule]
    if obeyed:
        return 0.2 if whole else 0.1
    return 0.0 if whole else -0.1


def _brevity(question: Question, reply: str, words: list[str]) -> float:
    """0.03 off for every word over what it takes, 0.1 for every phrase of filler."""
    enough = 10 + (len(question.right) if question.claim == "order" else 0) + (4 if question.rule == "polite" else 0)
    over = 0.03 * max(0, len(words) - enough) + 0.1 * len(_FILLER.findall(reply.lower()))
    return max(-0.2, 0.1 - over)


def _form(question: Question, reply: str, words: list[str]) -> float:
    """Off: 0.1 for no capital, for no end mark, for a word stuck, for stray signs; 0.15 for what is no word."""
    off = 0.0
    if not re.match(r"[\"'(]?[A-Z0-9]|- ", reply):
        off += 0.1
    if question.rule != "dashes" and reply.rstrip("\"'")[-1:] not in (".", "!", "?"):
        off += 0.1
    bare = [w.strip(".,!?:;\"'") for w in reply.lower().split()]
    if any(x == y and x not in ("", "-") for x, y in pairwise(bare)):
        off += 0.1
    if any(not w.isdigit() and w not in KNOWN_WORDS and w not in question.prompt_words for w in words):
        off += 0.15
    if re.search(r"[^\w\s.,!?:'\"/-]|  |\s[.,!?]|[.,!?:]{2}|_", reply) or reply.count('"') % 2:
        off += 0.1
    return max(-0.2, 0.1 - off)


__all__ = ["Gold", "Question", "gold", "read_prompt"]
