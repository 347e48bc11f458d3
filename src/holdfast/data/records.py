"""Records: what a reader makes of one input row, before it is frozen.

One schema carries every kind of preference. A `Judgement` is one statement of one annotator about responses to one prompt:

    kind      responses                        value                         ranks
    pair      (winner, loser)                  -                             -
    tie       (a, b)                           -                             -
    soft      (a, b)                           P(a is preferred to b)        -
    ranking   two or more, best first          -                             one per response; equal rank = tie
    score     one                              the score                     -
    label     one                              1.0 good, 0.0 bad             -

A response is text, chat messages, or (control) a `Segment` of a logged episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["pair", "tie", "soft", "ranking", "score", "label"]
KINDS: tuple[Kind, ...] = ("pair", "tie", "soft", "ranking", "score", "label")

AnnotatorKind = Literal["human", "ai", "rule"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one logged episode: the control counterpart of a response.

    `episode` is the digest of the episode's content, `start` the first step (from 0), `length` the number of steps.
    """

    episode: str
    start: int
    length: int


# Text; chat messages `[{"role": ..., "content": ...}, ...]`; for a prompt also `{"messages": [...], "tools": [...]}`;
# or a segment. A prompt of segments is None: the episodes themselves are the context.
Content = str | list[dict[str, Any]] | dict[str, Any] | Segment | None


@dataclass(slots=True)
class Judgement:
    """One statement of one annotator. See the module's table for what each kind carries."""

    kind: Kind
    prompt: Content
    responses: tuple[Content, ...]
    value: float | None = None
    ranks: tuple[int, ...] | None = None
    margin: float | None = None
    annotator: str | None = None
    annotator_kind: AnnotatorKind | None = None
    shown: tuple[int, ...] | None = (
        None  # shown[i]: the place (from 0) at which responses[i] was displayed, where known
    )
    rubric: str | None = None
    category: str | None = None
    licence: str | None = None
    sources: tuple[str | None, ...] | None = None  # who wrote each response (a model's name, say)
    extra: dict[str, Any] | None = None  # the user's other columns, kept as they came


class Reject(Exception):
    """Raised by a reader: this input row cannot become a record. The message is the reason a user reads in the reject list."""
