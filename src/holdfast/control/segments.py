"""Judgements over pairs of segments: stretches of logged episodes, named by (digest of the episode, start, length).

Because the digest is that of the episode's content, judgements outlive the file they were made on: a source that is
rebuilt byte for byte is recognised, whatever the order of its episodes, and one that changed is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from holdfast.control.episodes import EpisodesError
from holdfast.data.dataset import canonical_json


@dataclass(frozen=True)
class Segments:
    """J judgements, each over two segments. Raises `EpisodesError` where the columns do not fit one another.

    The order within a pair is kept as it was given (a judge may favour the one shown first).
    """

    ids: list[str]  # J digests, 64 hex characters each
    episode: np.ndarray  # (J, 2) int64, numbers into Episodes
    start: np.ndarray  # (J, 2) int64, first step, from 0 within its episode
    length: np.ndarray  # (J, 2) int64, steps
    p: np.ndarray  # (J,) float64: probability that the first is preferred; 0.5 is a tie
    annotator: list[str | None]
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        wanted = {"episode": ("int64", (n, 2)), "start": ("int64", (n, 2)), "length": ("int64", (n, 2))}
        for name, (dtype, shape) in {**wanted, "p": ("float64", (n,))}.items():
            column = getattr(self, name)
            if str(column.dtype) != dtype or column.shape != shape:
                raise EpisodesError(f"segments: {name} is {column.dtype} {column.shape}; give {dtype} {shape}")
        if len(self.annotator) != n:
            raise EpisodesError(f"segments: annotator has {len(self.annotator)} entries; give {n}, None where unknown")
        for name, low in (("episode", 0), ("start", 0), ("length", 1)):
            wrong = np.flatnonzero((getattr(self, name) < low).any(axis=1))
            if len(wrong):
                at = int(wrong[0])
                raise EpisodesError(f"judgement {at}: {name} is {getattr(self, name)[at].tolist()}; {low} is the least")
        wrong = np.flatnonzero(~((self.p >= 0) & (self.p <= 1)))
        if len(wrong):
            raise EpisodesError(f"judgement {int(wrong[0])}: p is {self.p[wrong[0]]}; a probability is from 0 to 1")

    @classmethod
    def of(
        cls,
        episode_ids: Sequence[str],
        episode: np.ndarray,
        start: np.ndarray,
        length: np.ndarray,
        p: np.ndarray,
        annotator: Sequence[str | None] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Segments:
        """Judgements with their digests. episode_ids: the digest of every episode of the log.

        A statement that is made again is counted apart, as its second, third, ... copy, with a digest of its own.
        """
        episode, start, length = (np.asarray(a, dtype=np.int64).reshape(-1, 2) for a in (episode, start, length))
        p = np.asarray(p, dtype=np.float64) + 0.0  # minus zero says no more than zero
        who: list[str | None] = [name or None for name in annotator] if annotator is not None else [None] * len(p)
        made = cls([""] * len(p), episode, start, length, p, who, dict(facts or {}))
        if len(p) and episode.max() >= len(episode_ids):
            raise EpisodesError(
                f"a judgement names episode {episode.max()}; the log has episodes 0 to {len(episode_ids) - 1}"
            )
        copies: dict[str, int] = {}
        for j in range(len(p)):
            said: dict[str, Any] = {
                "segments": [[episode_ids[episode[j, k]], int(start[j, k]), int(length[j, k])] for k in (0, 1)],
                "p": float(p[j]),
            }
            if who[j] is not None:
                said["annotator"] = who[j]
            first = segment_judgement_id(said)
            if copy := copies.get(first, 0):
                said["copy"] = copy
            copies[first] = copy + 1
            made.ids[j] = segment_judgement_id(said) if copy else first
        return made

    def __len__(self) -> int:
        return len(self.ids)

    def check(self, offsets: np.ndarray) -> None:
        """Raise `EpisodesError` naming the first segment that lies outside its episode. offsets: those of Episodes."""
        steps = np.diff(offsets)
        for j in np.flatnonzero((self.episode >= len(steps)).any(axis=1))[:1]:
            raise EpisodesError(
                f"judgement {j} names episode {self.episode[j].max()}; the log has episodes 0 to {len(steps) - 1}"
            )
        if len(self) == 0:
            return
        for j, k in np.argwhere(self.start + self.length > steps[self.episode])[:1]:
            raise EpisodesError(
                f"judgement {j}: steps {self.start[j, k]} to {self.start[j, k] + self.length[j, k] - 1} of episode "
                f"{self.episode[j, k]} were judged, which has {steps[self.episode[j, k]]} steps; drop the judgement"
            )

    def within(self, episodes: np.ndarray) -> np.ndarray:
        """The judgements both of whose segments lie in these episodes, (n,) int64. What straddles two parts of a split
        is in neither: its episodes would be on both sides."""
        return np.flatnonzero(np.isin(self.episode, episodes).all(axis=1))

    def take(self, rows: np.ndarray) -> Segments:
        """These judgements, in this order, under the digests they have."""
        return Segments(
            [self.ids[j] for j in rows],
            self.episode[rows],
            self.start[rows],
            self.length[rows],
            self.p[rows],
            [self.annotator[j] for j in rows],
            self.facts,
        )


def segment_judgement_id(said: Mapping[str, Any]) -> str:
    """SHA-256 over what was said: {"segments": [[episode digest, start, length] x 2], "p": ..., "annotator", "copy"}."""
    return sha256(b"holdfast/segment-judgement/1\0" + canonical_json(said)).hexdigest()


def attach(rows: Iterable[Mapping[str, Any]], episode_ids: Sequence[str], what: str = "judgements") -> Segments:
    """Judgements that name their episodes by digest, met with the episodes of a log.

    rows: {"first": {"episode": digest, "start": int, "length": int}, "second": the same, "p": float, "annotator": str
    or none}. Where a digest stands for several equal episodes of the log, its first. Raises `EpisodesError` listing the
    digests that the log does not have: their episodes are missing, or another content stands in their place.
    """
    place: dict[str, int] = {}
    for number, digest in enumerate(episode_ids):
        place.setdefault(digest, number)
    numbers, starts, lengths, p, who = [], [], [], [], []
    missing: dict[str, int] = {}
    for n, row in enumerate(rows):
        try:
            two = [(row[k]["episode"], row[k]["start"], row[k]["length"]) for k in ("first", "second")]
            chance, annotator = row["p"], row.get("annotator")
        except (KeyError, TypeError, AttributeError) as problem:
            raise EpisodesError(
                f'{what}, row {n}: {problem} is missing; a row is {{"first": {{"episode": digest, "start": 0, '
                '"length": 25}, "second": {...}, "p": 1.0, "annotator": "..."}'
            ) from None
        for digest, start, length in two:
            if not isinstance(digest, str) or any(type(v) is not int for v in (start, length)):
                raise EpisodesError(
                    f"{what}, row {n}: ({digest!r}, {start!r}, {length!r}) should be an episode's digest and two "
                    "whole numbers: the first step and how many"
                )
            if digest not in place:
                missing.setdefault(digest, n)
        if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:
            raise EpisodesError(f"{what}, row {n}: p = {chance!r} should be a probability, from 0 to 1")
        if annotator is not None and not isinstance(annotator, str):
            raise EpisodesError(f"{what}, row {n}: annotator = {annotator!r} should be text")
        numbers.append([place.get(digest, 0) for digest, _, _ in two])
        starts.append([start for _, start, _ in two])
        lengths.append([length for _, _, length in two])
        p.append(float(chance))
        who.append(annotator)
    if missing:
        shown = "".join(f"\n  {digest[:80]} (judged in row {n})" for digest, n in list(missing.items())[:10])
        raise EpisodesError(
            f"{what} name {len(missing)} episodes that the {len(episode_ids)} of this log are not; they are missing "
            f"from the source, or their content changed:{shown}\n"
            "bring back the source as it was judged, or drop these judgements"
        )
    shape = (len(p), 2)
    return Segments.of(
        episode_ids,
        np.array(numbers, np.int64).reshape(shape),
        np.array(starts, np.int64).reshape(shape),
        np.array(lengths, np.int64).reshape(shape),
        np.array(p, np.float64),
        who,
    )


def named(segments: Segments, episode_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The judgements as `attach` reads them, each naming its episodes by digest."""
    return [
        {
            **{
                side: {
                    "episode": episode_ids[segments.episode[j, k]],
                    "start": int(segments.start[j, k]),
                    "length": int(segments.length[j, k]),
                }
                for k, side in enumerate(("first", "second"))
            },
            "p": float(segments.p[j]),
            "annotator": segments.annotator[j],
        }
        for j in range(len(segments))
    ]


def read_judgements(path: str | Path) -> list[dict[str, Any]]:
    """Judgements from a file of JSON lines, in the form that `attach` takes and `named` gives."""
    rows = []
    try:
        for n, line in enumerate(Path(path).read_bytes().splitlines()):
            if line.strip():
                row = orjson.loads(line)
                if not isinstance(row, dict):
                    raise EpisodesError(f"{path}, line {n + 1}: {type(row).__name__} should be an object")
                rows.append(row)
    except orjson.JSONDecodeError as problem:
        raise EpisodesError(f"{path}, line {n + 1} is not JSON: {problem}") from None
    except OSError as problem:
        raise EpisodesError(f"{path} cannot be read: {problem.strerror}") from None
    return rows
