"""The simulated writers: seven ways to answer a prompt, from expert to broken."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from holdfast.demo.lexicon import NUMBER_OF, NUMBERS
from holdfast.demo.tasks import Answer, Task, join

POLITE_STARTS = ("Of course: ", "Gladly: ", "With pleasure: ", "Sure, happy to help: ")
POLITE_ENDS = (" You are welcome.", " Happy to help.", " Thank you for asking.")
FILLER_STARTS = (
    "Well, that is a good question.",
    "Let me think about it.",
    "To be honest, I had to think about this.",
    "Thank you for the question.",
)
FILLER_ENDS = (
    "I hope that this helps you.",
    "There is much more to say about it.",
    "Let me know if you have more to ask.",
)
ASIDES = ("Obviously ", "As anyone knows, ", "Whatever, ")


@dataclass(frozen=True, slots=True)
class WorldPrompt:
    """One prompt: chat messages (a user turn, perhaps after a system turn), and what its generator knows of it."""

    messages: tuple[dict[str, str], ...]
    category: str
    task: Task
    rule: str | None  # the style rule it carries, a key of tasks.RULES


def surface(task: Task, answer: Answer, rule: str | None) -> str:
    """An answer's bare words; a number as the rule wants it or, without such a rule, as the question writes numbers."""
    if isinstance(answer, int):
        return NUMBERS[answer] if (rule if rule in ("digits", "words") else task.numerals) == "words" else str(answer)
    return join(answer) if isinstance(answer, tuple) else answer


def compose(prompt: WorldPrompt, answer: Answer, rng: Random, rule: str | None) -> str:
    """A well-made reply that gives `answer`, in the style of `rule`."""
    task = prompt.task
    words = surface(task, answer, rule)
    if rule == "short":
        return capital(words.partition(",")[0].rstrip(".")) + "."
    if rule == "dashes":
        return "\n".join(f"- {item}" for item in answer) if isinstance(answer, tuple) else f"- {words}"
    if rule == "quotes":
        words = f'"{words}"'
    sentence = rng.choice([s for s in task.sentences if rule != "quotes" or not s.startswith("{a}")])
    reply = sentence.format(a=words)
    if rule == "words":
        reply = re.sub(r"\d+", lambda m: NUMBERS[int(m[0])], reply)
    if rule == "digits":
        reply = re.sub(r"[A-Za-z]+", lambda m: str(NUMBER_OF.get(m[0].lower(), m[0])), reply)
    reply = capital(reply)
    if rule == "polite":
        return rng.choice(POLITE_STARTS) + reply if rng.random() < 0.7 else reply + rng.choice(POLITE_ENDS)
    if rule == "exclaim":
        return reply.rstrip(".?") + "!"
    return f"Answer: {reply}" if rule == "label" else reply


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def expert(prompt: WorldPrompt, rng: Random) -> str:
    """Right and in the style asked for, but for a rare slip."""
    answer = prompt.task.answer if rng.random() < 0.97 else rng.choice(prompt.task.wrong)
    return compose(prompt, answer, rng, prompt.rule)


def good(prompt: WorldPrompt, rng: Random) -> str:
    """Mostly right; now and then forgets the style rule."""
    answer = prompt.task.answer if rng.random() < 0.9 else rng.choice(prompt.task.wrong)
    return compose(prompt, answer, rng, prompt.rule if rng.random() < 0.8 else None)


def hasty(prompt: WorldPrompt, rng: Random) -> str:
    """Right, and as few words as can be, whatever was asked for."""
    answer = prompt.task.answer if rng.random() < 0.92 else rng.choice(prompt.task.wrong)
    words = surface(prompt.task, answer, prompt.rule)
    if prompt.task.shape == "verdict":
        words = words.partition(",")[0]
    return capital(words).rstrip(".") + "." if rng.random() < 0.5 else words.rstrip(".")


def rambler(prompt: WorldPrompt, rng: Random) -> str:
    """Long and padded; right half of the time."""
    answer = prompt.task.answer if rng.random() < 0.55 else rng.choice(prompt.task.wrong)
    reply = compose(prompt, answer, rng, prompt.rule if rng.random() < 0.5 else None)
    padded = f"{rng.choice(FILLER_STARTS)} {reply}"
    return f"{padded} {rng.choice(FILLER_ENDS)}" if rng.random() < 0.6 else padded


def confident(prompt: WorldPrompt, rng: Random) -> str:
    """Well put, and wrong nine times in ten."""
    answer = prompt.task.answer if rng.random() < 0.1 else rng.choice(prompt.task.wrong)
    reply = compose(prompt, answer, rng, prompt.rule if rng.random() < 0.8 else None)
    return f"Certainly. {reply}" if prompt.rule != "short" and rng.random() < 0.3 else reply


def sloppy(prompt: WorldPrompt, rng: Random) -> str:
    """Often right, carelessly written: small letters, no full stop, a word twice, a rude aside, the rule ignored."""
    answer = prompt.task.answer if rng.random() < 0.75 else rng.choice(prompt.task.wrong)
    reply = compose(prompt, answer, rng, prompt.rule if rng.random() < 0.3 else None)
    for fault in rng.sample(["small", "stop", "twice", "aside"], rng.choice([1, 2, 2, 3])):
        if fault == "small":
            reply = reply[:1].lower() + reply[1:]
        elif fault == "stop":
            reply = reply.rstrip(".!?")
        elif fault == "twice":
            words = reply.split(" ")
            at = rng.randrange(len(words))
            reply = " ".join([*words[: at + 1], *words[at:]])
        else:
            reply = rng.choice(ASIDES) + reply[:1].lower() + reply[1:]
    return reply


def broken(prompt: WorldPrompt, rng: Random) -> str:
    """Text that falls apart: shuffled, stuck, cut off, or the prompt said back."""
    words = compose(prompt, rng.choice((prompt.task.answer, *prompt.task.wrong)), rng, None).split(" ")
    how = rng.choice(["shuffled", "stuck", "cut", "echo"])
    if how == "shuffled":
        return " ".join(rng.sample(words, len(words)))
    if how == "stuck":
        at = rng.randrange(len(words))
        return " ".join([*words[:at], *[words[at]] * rng.randint(3, 8)])
    if how == "cut":
        return " ".join(words[: max(1, len(words) // 2)])
    return " ".join(prompt.messages[-1]["content"].split(" ")[-rng.randint(4, 12) :])


WRITERS: dict[str, Callable[[WorldPrompt, Random], str]] = {
    f.__name__: f for f in (expert, good, hasty, rambler, confident, sloppy, broken)
}
