"""The prompts of the built-in world: eleven categories, each a family of questions with many phrasings.

A `Task` is what the generator knows about a question: its text, the right answer, plausible wrong ones and the
sentences that an answer may be put in. The gold reward (gold.py) sees none of this: it reads the prompt's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from holdfast.demo.lexicon import (
    COMMANDS,
    DAYS,
    DRINKING,
    GROUP_OF,
    GROUPS,
    LYING,
    MONTHS,
    NAMES,
    NOUNS,
    NUMBERS,
    PAST,
    PLACES,
    SIZES,
    THINGS,
)

# A verdict is a sentence that begins with yes or no; of a spelling, case and signs count.
Shape = Literal["number", "word", "verdict", "spelling", "list", "sentence"]
Answer = str | int | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One question, and how to answer it. `sentences` hold `{a}` where an answer, right or wrong, goes."""

    category: str
    question: str
    shape: Shape
    answer: Answer
    wrong: tuple[Answer, ...]
    sentences: tuple[str, ...]
    numerals: Literal["digits", "words"] = "digits"  # how the question writes its numbers


# The style rules that a prompt may carry, in a user or a system turn. Without one, a whole sentence is expected.
RULES: dict[str, tuple[str, ...]] = {
    "sentence": ("Answer in a full sentence.", "Use a full sentence.", "Please answer with a whole sentence."),
    "short": ("Answer in at most three words.", "Use at most three words.", "Keep the answer to three words or fewer."),
    "polite": ("Be polite.", "Answer politely.", "Please be polite and friendly."),
    "quotes": ("Put the answer in quotes.", "Use quotes around the answer.", "Write the answer in quotes."),
    "exclaim": (
        "End with an exclamation mark.",
        "Finish with an exclamation mark.",
        "Use an exclamation mark at the end.",
    ),
    "label": ("Begin with 'Answer:'.", "Start with 'Answer:'.", "The reply must begin with 'Answer:'."),
    "digits": ("Write numbers as digits.", "Use digits for numbers.", "Give numbers in digits."),
    "words": ("Write numbers in words.", "Spell out the numbers.", "Use words for numbers."),
    "dashes": ("Answer as a list with dashes.", "Give one item per line with a dash.", "Put a dash before every item."),
}
RULES_FOR: dict[Shape, tuple[str, ...]] = {
    "number": ("sentence", "short", "polite", "exclaim", "label", "digits", "words"),
    "word": ("sentence", "short", "polite", "quotes", "exclaim", "label"),
    "verdict": ("sentence", "short", "polite", "exclaim", "label"),
    "spelling": ("sentence", "polite", "quotes", "exclaim", "label"),
    "list": ("sentence", "polite", "exclaim", "label", "dashes"),
    "sentence": ("exclaim", "label"),
}
OPENERS = ("", "", "", "", "", "", "", "Hello. ", "Please help me. ", "Tell me: ")


def join(items: Sequence[object], last: str = "and") -> str:
    """a, b and c"""
    *head, tail = map(str, items)
    return f"{', '.join(head)} {last} {tail}" if head else tail


def listed(rng: Random, items: Sequence[object]) -> str:
    return join(items) if rng.random() < 0.5 else ", ".join(map(str, items))


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def one(noun: str) -> str:
    """With an article where it can be counted: a dog, but tea and red."""
    return noun if GROUP_OF[noun] in ("drink", "colour") else a(noun)


def near(rng: Random, n: int, low: int = 0, high: int = 20) -> tuple[int, ...]:
    """Two slips that a hasty mind makes around n."""
    return tuple(rng.sample([m for m in range(n - 3, n + 4) if low <= m <= high and m != n], 2))


def orders(rng: Random, items: Sequence[str], right: Sequence[str]) -> tuple[Answer, ...]:
    """Two other orders of the same items."""
    found: list[Answer] = []
    while len(found) < 2:
        other = tuple(rng.sample(list(items), len(items)))
        if other != tuple(right):
            found.append(other)
    return tuple(found)


def arithmetic(rng: Random) -> Task:
    what = rng.choice(["plus", "plus", "plus", "minus", "minus", "minus", "double", "times"])
    numerals: Literal["digits", "words"] = rng.choice(["digits", "words"])
    show: Callable[[int], str] = str if numerals == "digits" else NUMBERS.__getitem__
    name, things = rng.choice(NAMES), rng.choice(THINGS) + "s"
    if what == "plus":
        x, y = rng.randint(1, 5), rng.randint(1, 5)
        n, (p, q) = x + y, (show(x), show(y))
        said: tuple[str, ...] = (f"{p.capitalize()} plus {q} is {{a}}.", "The answer is {a}.", "The sum is {a}.")
        stories: tuple[str, ...] = (f"{name} has {{a}} {things} now.", f"{name} now has {{a}} {things}.")
        question, sentences = rng.choice(
            [
                (f"What is {p} plus {q}?", said),
                (f"Add {p} and {q}.", said),
                (f"What do you get if you add {q} to {p}?", said),
                (f"How much is {p} and {q} together?", said),
                (f"{name} has {p} {things} and gets {q} more. How many {things} does {name} have now?", stories),
                (
                    f"There are {p} {things} in the house and {q} near the river. How many {things} are there in all?",
                    (f"There are {{a}} {things} in all.", f"In all there are {{a}} {things}."),
                ),
            ]
        )
    elif what == "minus":
        x = rng.randint(3, 9)
        y = rng.randint(1, min(4, x - 1))
        n, (p, q) = x - y, (show(x), show(y))
        said = (f"{p.capitalize()} minus {q} is {{a}}.", "The answer is {a}.", "The result is {a}.")
        question, sentences = rng.choice(
            [
                (f"What is {p} minus {q}?", said),
                (f"Take {q} away from {p}.", said),
                (f"What is left if you take {q} from {p}?", (*said[:2], "There are {a} left.")),
                (
                    f"{name} has {p} {things} and gives {q} away. How many {things} does {name} have left?",
                    (f"{name} has {{a}} {things} left.", f"There are {{a}} {things} left."),
                ),
            ]
        )
    elif what == "double":
        x = rng.randint(1, 6)
        n, p = 2 * x, show(x)
        question = rng.choice([f"What is twice {p}?", f"Double the number {p}.", f"What is {p} plus {p}?"])
        sentences = (f"Twice {p} is {{a}}.", "The answer is {a}.", "The result is {a}.")
    else:
        x, y = rng.randint(2, 3), rng.randint(2, 4)
        n, (p, q) = x * y, (show(x), show(y))
        question = rng.choice([f"What is {p} times {q}?", f"How much is {p} times {q}?"])
        sentences = (f"{p.capitalize()} times {q} is {{a}}.", "The answer is {a}.", "The result is {a}.")
    return Task("arithmetic", question, "number", n, near(rng, n, 1), sentences, numerals)


def sorting(rng: Random) -> Task:
    n = rng.choice([2, 2, 2, 3, 3, 4])
    if rng.random() < 0.5:
        items = tuple(rng.sample(NOUNS if rng.random() < 0.5 else NAMES, n))
        right: tuple[str, ...] = tuple(sorted(items))
        shown = listed(rng, items)
        question = rng.choice(
            [
                f"Put these words in alphabetical order: {shown}.",
                f"Sort the words {join(items)} from A to Z.",
                f"Sort by the alphabet: {shown}.",
                f"What is the alphabetical order of {join(items)}?",
            ]
        )
        noun = "words"
    else:
        values = rng.sample(range(1, 10), n)
        items = tuple(map(str, values))
        up = rng.random() < 0.6
        right = tuple(map(str, sorted(values, reverse=not up)))
        shown = listed(rng, items)
        way = rng.choice(["from small to large", "smallest first"] if up else ["from large to small", "largest first"])
        question = rng.choice(
            [
                f"Sort the numbers {join(items)} {way}.",
                f"Put these numbers in order, {way}: {shown}.",
                f"Order the numbers {way}: {shown}.",
            ]
        )
        noun = "numbers"
    sentences = ("The order is {a}.", "In order they are {a}.", f"Sorted, the {noun} are {{a}}.")
    return Task("sorting", question, "list", right, orders(rng, items, right), sentences)


def reversing(rng: Random) -> Task:
    items = tuple(rng.sample(NOUNS if rng.random() < 0.7 else NAMES, rng.choice([2, 2, 2, 3, 3, 4])))
    shown = listed(rng, items)
    question = rng.choice(
        [
            f"Say these words in reverse order: {shown}.",
            f"List {join(items)} backwards.",
            f"Turn this list around: {shown}.",
            f"What is this list in reverse: {shown}?",
        ]
    )
    sentences = ("In reverse order they are {a}.", "Backwards the list is {a}.", "The reversed list is {a}.")
    right = items[::-1]
    return Task("reversing", question, "list", right, orders(rng, items, right), sentences)


def counting(rng: Random) -> Task:
    what = rng.choice(["words", "kind", "times", "letters"])
    if what == "words":
        n = rng.randint(2, 5)
        shown = listed(rng, rng.sample(NOUNS, n))
        question = rng.choice(
            [
                f"How many words are in this list: {shown}?",
                f"Count the words: {shown}.",
                f"How long is this list: {shown}?",
            ]
        )
        sentences: tuple[str, ...] = ("There are {a} words in the list.", "The list has {a} words.")
    elif what == "kind":
        group = rng.choice(sorted(GROUPS))
        n = rng.randint(1, 3)
        inside = rng.sample(GROUPS[group], n)
        outside = rng.sample([w for w in NOUNS if GROUP_OF[w] != group], rng.randint(1, 3))
        shown = listed(rng, rng.sample(inside + outside, len(inside) + len(outside)))
        question = rng.choice(
            [
                f"How many {group}s are in this list: {shown}?",
                f"Count the {group}s: {shown}.",
                f"How many of these are {group}s: {shown}?",
            ]
        )
        sentences = (f"There are {{a}} {group}s in the list.", f"The list has {{a}} {group}s.")
    elif what == "times":
        word, other = rng.sample(NOUNS, 2)
        n = rng.randint(2, 4)
        items = [word] * n + [other] * rng.randint(1, 3)
        shown = ", ".join(rng.sample(items, len(items)))
        question = rng.choice(
            [f"How many times does {word} appear here: {shown}?", f"How often is {word} in this list: {shown}?"]
        )
        sentences = (f"The word {word} appears {{a}} times.", f"{word.capitalize()} appears {{a}} times.")
    else:
        word = rng.choice(NOUNS)
        n = len(word)
        question = rng.choice([f"How many letters does {word} have?", f"Count the letters in the word {word}."])
        sentences = (f"The word {word} has {{a}} letters.", f"There are {{a}} letters in {word}.")
    return Task("counting", question, "number", n, near(rng, n, 1, 9), sentences, rng.choice(["digits", "words"]))


def membership(rng: Random) -> Task:
    group, other = rng.sample(sorted(GROUPS), 2)
    what = rng.choice(["is", "which", "odd"])
    if what == "is":
        word = rng.choice(GROUPS[group])
        true = rng.random() < 0.5
        kind = a(group if true else other)
        question = rng.choice(
            [f"Is {one(word)} {kind}?", f"Is it true that {one(word)} is {kind}?", f"Can you call {one(word)} {kind}?"]
        )
        yes, no = f"Yes, {one(word)} is {kind}.", f"No, {one(word)} is not {kind}."
        return Task("membership", question, "verdict", yes if true else no, (no if true else yes,), ("{a}",))
    if what == "which":
        word = rng.choice(GROUPS[group])
        rest = rng.sample([w for w in NOUNS if GROUP_OF[w] != group], rng.randint(1, 3))
        items = rng.sample([word, *rest], len(rest) + 1)
        shown = rng.choice([join(items, "or"), ", ".join(items)])
        question = rng.choice(
            [
                f"Which of these is {a(group)}: {shown}?",
                f"Find the {group} in this list: {shown}.",
                f"Name the {group}: {shown}.",
            ]
        )
        sentences = (f"The {group} is {{a}}.", f"The {group} in the list is {{a}}.", f"{{a}} is the {group}.")
    else:
        word = rng.choice(GROUPS[other])
        rest = rng.sample(GROUPS[group], rng.randint(2, 3))
        items = rng.sample([word, *rest], len(rest) + 1)
        shown = listed(rng, items)
        question = rng.choice(
            [
                f"Which word does not belong: {shown}?",
                f"Which of these is not like the others: {shown}?",
                f"Find the odd word: {shown}.",
            ]
        )
        sentences = ("The word that does not belong is {a}.", "The odd word is {a}.", "{a} does not belong.")
    wrong = tuple(w for w in items if w != word)[:2]
    return Task("membership", question, "word", word, wrong, sentences)


def formatting(rng: Random) -> Task:
    what = rng.choice(["capitals", "dashes", "slashes", "first"])
    if what == "capitals":
        word = rng.choice(NOUNS)
        question = rng.choice(
            [
                f"Write the word {word} in capital letters.",
                f"How is {word} written in capitals?",
                f"Put {word} into capital letters.",
            ]
        )
        right, wrong = word.upper(), (word, word.capitalize())
        sentences: tuple[str, ...] = ("In capital letters it is {a}.", "It is written {a}.")
    elif what == "first":
        word = rng.choice(NOUNS)
        question = rng.choice(
            [f"Write {word} with a capital first letter.", f"Give the word {word} a capital at the start."]
        )
        right, wrong = word.capitalize(), (word, word.upper())
        sentences = ("With a capital it is {a}.", "It is written {a}.")
    else:
        sign, name = ("-", "dashes") if what == "dashes" else ("/", "slashes")
        items = rng.sample(NOUNS, rng.choice([2, 3]))
        question = rng.choice(
            [
                f"Join the words {join(items)} with {name}.",
                f"Write these words with {name} between them: {listed(rng, items)}.",
                f"Put {name} between {join(items)}.",
            ]
        )
        right, wrong = sign.join(items), (("/" if sign == "-" else "-").join(items), " ".join(items))
        sentences = (f"With {name} it is {{a}}.", f"Joined with {name} they are {{a}}.")
    return Task("formatting", question, "spelling", right, wrong, sentences)


def lookup(rng: Random) -> Task:
    n = rng.choice([2, 2, 2, 2, 3])
    what = rng.choice(["drinks", "who", "costs", "box", "pets", "table"])
    names = rng.sample(NAMES, n)
    k = rng.randrange(n)
    if what in ("drinks", "who"):
        drinks = rng.sample(GROUPS["drink"], n)
        facts = join([f"{x} drinks {y}" for x, y in zip(names, drinks, strict=True)])
        if what == "drinks":
            asked = rng.choice([f"What does {names[k]} drink?", f"Which drink does {names[k]} have?"])
            right, rest, sentences = (
                drinks[k],
                drinks,
                (f"{names[k]} drinks {{a}}.", f"The drink of {names[k]} is {{a}}."),
            )
        else:
            asked = rng.choice([f"Who drinks {drinks[k]}?", f"Which of them drinks {drinks[k]}?"])
            right, rest, sentences = (
                names[k],
                names,
                (f"{{a}} drinks {drinks[k]}.", f"It is {{a}} who drinks {drinks[k]}."),
            )
        return Task("lookup", f"{facts}. {asked}", "word", right, _others(rest, right), sentences)
    if what == "costs":
        goods = rng.sample(GROUPS["drink"] + GROUPS["fruit"], n)
        prices = rng.sample(range(1, 10), n)
        facts = ", ".join(f"{x} {y}" for x, y in zip(goods, prices, strict=True))
        question = rng.choice(
            [f"Prices: {facts}. What does {goods[k]} cost?", f"The prices are {facts}. How much is {goods[k]}?"]
        )
        sentences = (f"{goods[k].capitalize()} costs {{a}}.", f"The price of {goods[k]} is {{a}}.")
        return Task("lookup", question, "number", prices[k], tuple(p for p in prices if p != prices[k])[:2], sentences)
    if what == "box":
        colours, tools = rng.sample(GROUPS["colour"], n), rng.sample(GROUPS["tool"] + GROUPS["fruit"], n)
        facts = join([f"the {x} box holds {a(y)}" for x, y in zip(colours, tools, strict=True)]).capitalize()
        if rng.random() < 0.6:
            asked = rng.choice([f"What is in the {colours[k]} box?", f"What does the {colours[k]} box hold?"])
            right, rest = a(tools[k]), [a(t) for t in tools]
            sentences = (f"The {colours[k]} box holds {{a}}.", f"There is {{a}} in the {colours[k]} box.")
        else:
            asked = rng.choice([f"Which box holds the {tools[k]}?", f"In which box is the {tools[k]}?"])
            right, rest = f"the {colours[k]} box", [f"the {c} box" for c in colours]
            sentences = (f"The {tools[k]} is in {{a}}.", f"{{a}} holds the {tools[k]}.")
        return Task("lookup", f"{facts}. {asked}", "word", right, _others(rest, right), sentences)
    kinds, noun = (GROUPS["animal"], "animal") if what == "pets" else (GROUPS["vehicle"], "vehicle")
    things = rng.sample(kinds, n)
    if what == "pets":
        facts = join([f"{x} has {a(y)}" for x, y in zip(names, things, strict=True)]) + "."
    else:
        facts = " ".join(f"{x}: {y}." for x, y in zip(names, things, strict=True))
    asked = rng.choice([f"Which {noun} does {names[k]} have?", f"What does {names[k]} have?"])
    right = a(things[k])
    sentences = (f"{names[k]} has {{a}}.", f"It is {{a}} that {names[k]} has.")
    return Task("lookup", f"{facts} {asked}", "word", right, _others([a(t) for t in things], right), sentences)


def calendar(rng: Random) -> Task:
    cycle, noun = (DAYS, "day") if rng.random() < 0.65 else (MONTHS, "month")
    i = rng.randrange(len(cycle))
    step = rng.choice([1, 1, 1, -1, -1, 2, 3] if noun == "day" else [1, 1, -1])
    at, right = cycle[i], cycle[(i + step) % len(cycle)]
    side, far = ("after" if step > 0 else "before"), NUMBERS[abs(step)]
    if abs(step) == 1:
        options = [
            (f"Which {noun} comes {side} {at}?", (f"{{a}} comes {side} {at}.", f"The {noun} {side} {at} is {{a}}.")),
            (f"What is the {noun} {side} {at}?", (f"The {noun} {side} {at} is {{a}}.",)),
            (
                f"It is {at} now. What is the {'next' if step > 0 else 'last'} {noun}?",
                (f"The {'next' if step > 0 else 'last'} {noun} is {{a}}.",),
            ),
        ]
        if noun == "day":
            other = "tomorrow" if step > 0 else "yesterday"
            verb = "is" if step > 0 else "was"
            options.append((f"Today is {at}. What day {verb} {other}?", (f"{other.capitalize()} {verb} {{a}}.",)))
    else:
        options = [
            (f"Which day is {far} days after {at}?", (f"{{a}} is {far} days after {at}.", "The day is {a}.")),
            (f"Today is {at}. What day is it in {far} days?", (f"In {far} days it is {{a}}.", "It will be {a}.")),
        ]
    question, sentences = rng.choice(options)
    wrong = (cycle[(i - step) % len(cycle)], cycle[(i + step + 1) % len(cycle)])
    return Task("calendar", question, "word", right, tuple(w for w in wrong if w != right), sentences)


def rewriting(rng: Random) -> Task:
    what = rng.choice(["politely", "shorter", "not", "past", "question"])
    thing = rng.choice(GROUPS["tool"] + GROUPS["fruit"])
    if what == "politely":
        command = rng.choice(COMMANDS).format(thing=thing)
        question = rng.choice(
            [
                f"Make this polite: {command.capitalize()}.",
                f"Say this politely: {command.capitalize()}.",
                f"How do you ask politely: {command.capitalize()}?",
            ]
        )
        right = rng.choice([f"Please {command}.", f"Could you please {command}?", f"Would you please {command}?"])
        wrong = (f"{command.capitalize()}.", f"{command.capitalize()} now.")
    elif what == "shorter":
        size, animal, verb, place = (
            rng.sample(SIZES, 2),
            rng.choice(GROUPS["animal"]),
            rng.choice(LYING),
            rng.choice(PLACES),
        )
        most = rng.choice([3, 3, 4])
        text = f"The {size[0]} {size[1]} {animal} {verb} {place}."
        question = rng.choice(
            [
                f"Say this in at most {NUMBERS[most]} words: {text}",
                f"Make this shorter, at most {NUMBERS[most]} words: {text}",
                f"Use at most {NUMBERS[most]} words to say: {text}",
            ]
        )
        right = f"The {animal} {verb}." if most == 3 or rng.random() < 0.5 else f"The {size[1]} {animal} {verb}."
        wrong = (f"The {animal} {verb} {place}.", f"The {size[0]} {size[1]} {animal}.")
    elif what == "past":
        subject = rng.choice(NAMES)
        verb = rng.choice(sorted(PAST))
        rest = rng.choice(GROUPS["drink"]) if verb in DRINKING else f"the {thing}"
        question = rng.choice(
            [
                f"Put this in the past: {subject} {verb} {rest}.",
                f"Say this about the past: {subject} {verb} {rest}.",
            ]
        )
        right, wrong = f"{subject} {PAST[verb]} {rest}.", (f"{subject} {verb} {rest}.", f"{subject} was {verb} {rest}.")
    else:
        subject = rng.choice(GROUPS["animal"] + GROUPS["fruit"] + GROUPS["tool"] + GROUPS["vehicle"])
        quality = rng.choice(SIZES + GROUPS["colour"])
        text = f"The {subject} is {quality}."
        if what == "not":
            question = rng.choice([f"Say the opposite with not: {text}", f"Put the word not into this: {text}"])
            right, wrong = f"The {subject} is not {quality}.", (text, f"The {subject} not {quality}.")
        else:
            question = rng.choice([f"Make this a question: {text}", f"Turn this into a question: {text}"])
            right, wrong = f"Is the {subject} {quality}?", (f"The {subject} is {quality}?", text)
    return Task("rewriting", question, "sentence", right, wrong, ("{a}",))


def ends(rng: Random) -> Task:
    n = rng.choice([2, 3, 3, 4])
    items = rng.sample(NOUNS if rng.random() < 0.7 else NAMES, n)
    shown = listed(rng, items)
    which = rng.choice(["first", "last", "second"] if n > 2 else ["first", "last"])
    right = items[{"first": 0, "last": -1, "second": 1}[which]]
    question = rng.choice(
        [
            f"What is the {which} word in this list: {shown}?",
            f"Which word comes {which} in this list: {shown}?",
            f"Name the {which} word: {shown}.",
            f"Give the {which} of these words: {shown}.",
        ]
    )
    sentences = (f"The {which} word is {{a}}.", f"The {which} word in the list is {{a}}.", f"{{a}} comes {which}.")
    return Task("ends", question, "word", right, _others(items, right), sentences)


def comparison(rng: Random) -> Task:
    what = rng.choice(["numbers", "ages", "true", "letters"])
    p, q = rng.sample(range(1, 10), 2)
    up = rng.random() < 0.5
    if what == "numbers":
        more = rng.choice(["larger", "more"] if up else ["smaller", "less"])
        right_n, wrong_n = (max(p, q), min(p, q)) if up else (min(p, q), max(p, q))
        question = rng.choice([f"Which is {more}, {p} or {q}?", f"Which number is {more}: {p} or {q}?"])
        sentences = (
            f"The {more} number is {{a}}." if more.endswith("er") else "The number is {a}.",
            "The answer is {a}.",
        )
        return Task("comparison", question, "number", right_n, (wrong_n,), sentences)
    if what == "true":
        more = "larger" if up else "smaller"
        holds = (p > q) == up
        question = rng.choice([f"Is {p} {more} than {q}?", f"Is it true that {p} is {more} than {q}?"])
        yes, no = f"Yes, {p} is {more} than {q}.", f"No, {p} is not {more} than {q}."
        return Task("comparison", question, "verdict", yes if holds else no, (no if holds else yes,), ("{a}",))
    if what == "ages":
        x, y = rng.sample(NAMES, 2)
        more = "older" if up else "younger"
        right = x if (p > q) == up else y
        question = rng.choice(
            [
                f"{x} is {p} years old and {y} is {q}. Who is {more}?",
                f"{x} is {p} and {y} is {q} years old. Which of them is {more}?",
            ]
        )
    else:
        while len(x := rng.choice(NOUNS)) == len(y := rng.choice(NOUNS)):
            pass
        more = "longer" if up else "shorter"
        right = x if (len(x) > len(y)) == up else y
        question = rng.choice([f"Which word is {more}: {x} or {y}?", f"Which of the words {x} and {y} is {more}?"])
    wrong = y if right == x else x
    name = "word" if what == "letters" else "one"
    sentences = (f"{{a}} is {more}.", f"The {more} {name} is {{a}}.")
    return Task("comparison", question, "word", right, (wrong,), sentences)


def _others(options: Sequence[str], right: str) -> tuple[str, ...]:
    return tuple(o for o in options if o != right)[:2]


CATEGORIES: dict[str, Callable[[Random], Task]] = {
    f.__name__: f
    for f in (
        arithmetic,
        sorting,
        reversing,
        counting,
        membership,
        formatting,
        lookup,
        calendar,
        rewriting,
        ends,
        comparison,
    )
}
