"""What can be read off a response's surface without understanding it: 25 numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+")
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:not able|unable) to|i (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|will not) (?:help|assist|provide|answer|do that|"
    r"comply|engage|support|discuss|share|give)|(?:i'm|i am) sorry,? but|as an ai\b|i(?:'m| am) (?:just |only )?an ai\b|language model)",
    re.I,
)
HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|could be|it depends|generally|usually|i think|i guess|not sure)\b",
    re.I,
)
SORRY = re.compile(r"\b(?:sorry|apologi[sz]e|apologies)\b", re.I)
EAGER = re.compile(
    r"\b(?:sure|certainly|of course|absolutely|great|happy to|glad to|hope this helps|thank you|thanks)\b", re.I
)
FIRST = re.compile(r"\b(?:i|i'm|i've|i'd|i’m|i’ve|i’d|me|my)\b", re.I)
SECOND = re.compile(r"\byou(?:r|'re|’re)?\b", re.I)
BULLET = re.compile(r"^\s*[-*•] ", re.M)
NUMBERED = re.compile(r"^\s*\d+[.)] ", re.M)
HEADING = re.compile(r"^#{1,6} ", re.M)
SENTENCE = re.compile(r"[.!?]+(?:\s|$)")
LINK = re.compile(r"https?://|www\.")

NAMES = (
    "characters", "words", "sentences", "lines", "paragraphs", "letters per word", "words per sentence", "bullets",
    "numbered items", "headings", "code", "bold", "links", "digits", "capitals", "punctuation", "question marks",
    "exclamation marks", "quotes", "first person", "second person", "hedges, apologies", "eagerness", "refusal",
    "distinct words",
)  # fmt: skip


def surface(texts: Sequence[str]) -> np.ndarray:
    """(n, 25) float32, the columns of NAMES. Counts as log(1 + count), shares as they are."""
    out = np.zeros((len(texts), len(NAMES)), np.float32)
    for i, text in enumerate(texts):
        words = WORD.findall(text)
        n, size = len(words), len(text)
        sentences = len(SENTENCE.findall(text))
        letters = sum(map(len, words))
        digits = sum(map(text.count, "0123456789"))
        capitals = sum(1 for c in text if c.isupper())
        marks = sum(map(text.count, ".,;:!?()\"'-"))
        out[i] = (
            size,
            n,
            sentences,
            text.count("\n"),
            text.count("\n\n"),
            letters / n if n else 0,
            n / max(sentences, 1),
            len(BULLET.findall(text)),
            len(NUMBERED.findall(text)),
            len(HEADING.findall(text)),
            text.count("`"),
            text.count("**") // 2,
            len(LINK.findall(text)),
            digits / max(size, 1),
            capitals / max(size, 1),
            marks / max(size, 1),
            text.count("?"),
            text.count("!"),
            text.count('"') + text.count("“"),
            len(FIRST.findall(text)),
            len(SECOND.findall(text)),
            len(HEDGE.findall(text)) + len(SORRY.findall(text)),
            len(EAGER.findall(text)),
            len(REFUSAL.findall(text)),
            len({w.lower() for w in words}) / n if n else 1,
        )
    shares = [NAMES.index(x) for x in ("letters per word", "digits", "capitals", "punctuation", "distinct words")]
    counts = [k for k in range(len(NAMES)) if k not in shares]
    out[:, counts] = np.log1p(out[:, counts])
    return out
