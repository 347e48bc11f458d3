"""The built-in world: a small language task with a known gold reward, simulated writers and simulated annotators.

    world = World(seed=0)
    prompts = world.prompts(1000, seed=1)                     # chat prompts, all different
    world.write_jsonl(path, n_prompts=3000, seed=1)           # judgements, as a user's file would hold them
    world.gold(prompts[0].messages, "It is seven.").total     # how good any text is, in [-1, 1]

Everything is a pure function of the seeds. What the generator knows of a prompt (tasks.py, writers.py) and what the
gold reward reads in it (gold.py) are two code paths over the same facts (lexicon.py), tested against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson

from holdfast.data.records import Judgement
from holdfast.demo.gold import Gold, gold
from holdfast.demo.tasks import CATEGORIES, OPENERS, RULES, RULES_FOR
from holdfast.demo.writers import WRITERS, WorldPrompt
from holdfast.errors import DataError

# How often each writer is asked. The middling ones are common, as in real files.
SHARES = {"expert": 3, "good": 4, "hasty": 4, "rambler": 3, "confident": 1, "sloppy": 4, "broken": 1}


@dataclass(frozen=True, slots=True)
class Annotator:
    """A simulated annotator: Bradley-Terry over the gold reward, with a temperature, a taste for length, some guesses.

    Ties are what it cannot tell apart: noisy utilities that differ by less than `tie`.
    """

    name: str
    temperature: float
    length: float = 0.0  # gold reward that a word more is worth to this annotator, up to 30 words
    guesses: float = 0.0  # share of judgements made at random
    tie: float = 0.08  # differences smaller than this are called a tie

    def utilities(self, golds: Sequence[float], texts: Sequence[str], rng: Random) -> list[float]:
        """One noisy utility per response. Gumbel noise, so pairs are Bradley-Terry and rankings Plackett-Luce."""
        noise = [-math.log(-math.log(rng.random() or 1e-12)) for _ in golds]
        if rng.random() < self.guesses:
            return noise
        return [
            g + self.length * min(30, len(text.split())) + self.temperature * e
            for g, text, e in zip(golds, texts, noise, strict=True)
        ]


ANNOTATORS = (
    Annotator("careful-1", 0.1),
    Annotator("careful-2", 0.1),
    Annotator("ordinary", 0.2),
    Annotator("wordy", 0.2, length=0.05),
    Annotator("careless", 0.25, guesses=0.4),
)


class World:
    """The built-in world. Two of its categories are held out of training by default."""

    categories: tuple[str, ...] = tuple(CATEGORIES)
    held_out: tuple[str, ...] = ("ends", "comparison")

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def prompts(self, n: int, seed: int, categories: Sequence[str] | None = None) -> list[WorldPrompt]:
        """`n` prompts, no two with the same text; the first of them do not depend on `n`.

        Raises DataError for an unknown category, and where the categories do not hold so many different prompts.
        """
        kinds = tuple(categories) if categories is not None else self.categories
        if unknown := [c for c in kinds if c not in CATEGORIES]:
            raise DataError(f"category {unknown[0]!r} is none of the world's ({', '.join(self.categories)})")
        found: list[WorldPrompt] = []
        seen: set[str] = set()
        rng = Random(f"world/{self.seed}/prompts/{seed}/{'+'.join(kinds)}")
        misses = 0
        while len(found) < n:
            category = kinds[len(found) % len(kinds)]
            task = CATEGORIES[category](rng)
            rule = rng.choice(RULES_FOR[task.shape]) if rng.random() < 0.5 else None
            text = rng.choice(OPENERS) + task.question
            messages: tuple[dict[str, str], ...] = ({"role": "user", "content": text},)
            if rule is not None:
                said = rng.choice(RULES[rule])
                if rng.random() < 0.6:
                    messages = ({"role": "system", "content": said}, *messages)
                else:
                    text = f"{said} {text}" if rng.random() < 0.3 and text == task.question else f"{text} {said}"
                    messages = ({"role": "user", "content": text},)
            key = " ".join(m["content"] for m in messages).casefold()
            if key in seen:
                misses += 1
                if misses > 200:
                    raise DataError(
                        f"category {category!r} holds fewer than {len(found)} different prompts; ask for fewer"
                    )
                continue
            misses = 0
            seen.add(key)
            found.append(WorldPrompt(messages, category, task, rule))
        return found

    def responses(self, prompt: WorldPrompt, n: int, rng: Random) -> list[tuple[str, str]]:
        """`n` different responses to a prompt, each with its writer: writers drawn by their shares."""
        found: dict[str, str] = {}
        for _ in range(20 * n):
            writer = rng.choices(list(SHARES), list(SHARES.values()))[0]
            text = WRITERS[writer](prompt, rng).strip()
            if text:
                found.setdefault(text, writer)
            if len(found) == n:
                break
        return list(found.items())

    def judgements(
        self,
        n_prompts: int,
        seed: int,
        responses_per_prompt: int = 4,
        judgements_per_prompt: int = 4,
        categories: Sequence[str] | None = None,
    ) -> Iterator[Judgement]:
        """What the simulated annotators say of the simulated writers' responses, prompt by prompt.

        Mostly pairs; a tie where an annotator sees no difference; now and then a ranking of all responses, or a panel's
        vote as a soft preference. One pair in four is judged again, so that contradictions arise as they do in life.
        """
        for number, prompt in enumerate(self.prompts(n_prompts, seed, categories)):
            rng = Random(f"world/{self.seed}/judgements/{seed}/{number}")
            texts, writers = zip(*self.responses(prompt, responses_per_prompt, rng), strict=True)
            golds = [self.gold(prompt.messages, text).total for text in texts]
            pair: tuple[int, ...] = ()
            for _ in range(judgements_per_prompt):
                who = rng.choice(ANNOTATORS)
                chance = rng.random()
                if chance < 0.08 and len(texts) > 2:
                    over: tuple[int, ...] = tuple(range(len(texts)))
                elif pair and rng.random() < 0.25:
                    over = pair
                else:
                    pair = over = tuple(rng.sample(range(len(texts)), 2))
                shown = rng.sample(range(len(over)), len(over))
                seen = [(over[i], place) for i, place in enumerate(shown)]  # (response, the place it was shown at)
                if 0.08 <= chance < 0.12:
                    votes = 0
                    for voter in ANNOTATORS:
                        u, v = voter.utilities([golds[i] for i, _ in seen], [texts[i] for i, _ in seen], rng)
                        votes += u > v
                    kind, name, value, ranks = "soft", "panel", votes / len(ANNOTATORS), None
                else:
                    utility = who.utilities([golds[i] for i, _ in seen], [texts[i] for i, _ in seen], rng)
                    best_first = sorted(range(len(seen)), key=lambda i: -utility[i])
                    drop = [utility[x] - utility[y] < who.tie for x, y in pairwise(best_first)]
                    rank = [0]
                    for tied in drop:
                        rank.append(rank[-1] if tied else rank[-1] + 1)
                    seen, name, value = [seen[i] for i in best_first], who.name, None
                    if len(seen) > 2:
                        kind, ranks = "ranking", tuple(rank)
                    else:
                        kind, ranks = ("tie" if drop[0] else "pair"), None
                yield Judgement(
                    kind=kind,  # type: ignore[arg-type]
                    prompt=[dict(m) for m in prompt.messages],
                    responses=tuple([{"role": "assistant", "content": texts[i]}] for i, _ in seen),
                    value=value,
                    ranks=ranks,
                    annotator=f"simulated/{name}",
                    annotator_kind="rule",
                    shown=tuple(place for _, place in seen),
                    category=prompt.category,
                    sources=tuple(writers[i] for i, _ in seen),
                )

    def gold(self, messages: Sequence[Mapping[str, Any]], response: str) -> Gold:
        """The gold reward of any text as a response to a prompt of the world: see holdfast.demo.gold."""
        return gold(messages, response)

    def write_jsonl(self, path: str | Path, n_prompts: int, seed: int, **options: Any) -> int:
        """Write judgements (options as for `judgements`) in Holdfast's own record format, JSON lines; how many."""
        n = 0
        with Path(path).open("wb") as file:
            for j in self.judgements(n_prompts, seed, **options):
                said = {
                    "kind": j.kind,
                    "prompt": j.prompt,
                    "responses": list(j.responses),
                    "value": j.value,
                    "ranks": j.ranks,
                    "annotator": j.annotator,
                    "annotator_kind": j.annotator_kind,
                    "shown": j.shown,
                    "category": j.category,
                    "sources": j.sources,
                }
                file.write(orjson.dumps({k: v for k, v in said.items() if v is not None}) + b"\n")
                n += 1
        return n


@dataclass(frozen=True, slots=True)
class WinRate:
    """A win rate over prompts, ties half, with a bootstrap interval."""

    rate: float
    low: float
    high: float
    prompts: int


def win_rate(
    gold_a: Sequence[float | Sequence[float]],
    gold_b: Sequence[float | Sequence[float]],
    *,
    bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """How often a's gold reward beats b's on the same prompt, ties half.

    One score per prompt, or several (of several samples: all their pairs are compared, and a prompt counts once).
    The interval is the percentile bootstrap over prompts.
    """
    if len(gold_a) != len(gold_b) or not len(gold_a):
        raise DataError(f"a win rate needs the same prompts on both sides; got {len(gold_a)} and {len(gold_b)}")
    wins = np.array(
        [
            np.mean([[(x > y) + (x == y) / 2 for y in np.ravel(b)] for x in np.ravel(a)])
            for a, b in zip(gold_a, gold_b, strict=True)
        ]
    )
    draws = np.random.default_rng(seed).integers(0, len(wins), size=(bootstrap, len(wins)))
    tail = (1 - level) / 2
    low, high = np.quantile(wins[draws].mean(axis=1), [tail, 1 - tail])
    return WinRate(float(wins.mean()), float(low), float(high), len(wins))
