"""Which data feeds which loss. The schema decides, not the user's reshaping; what a view cannot use is listed with
its reason.

| judgement | comparisons (pair losses)     | rankings (list losses)    | labels            | preferred (sft)  |
|-----------|-------------------------------|---------------------------|-------------------|------------------|
| pair      | one edge                      | a ranking of two          | one good, one bad | the winner       |
| tie       | one edge, p = 1/2             | -                         | -                 | -                |
| soft      | one edge, its own p           | -                         | -                 | the likelier     |
| ranking   | every two of its responses    | itself                    | -                 | its first        |
| scores    | every two that differ by more | one ranking by score      | -                 | -                |
| label     | -                             | -                         | itself            | a good one       |

Scores of one prompt by one annotator under one rubric are one statement, as a ranking is: the row of the best score (of
several the first) stands for it, and the other rows are listed as read with it. Scores that differ by no more than the
margin are not compared: the same mark on a coarse scale is no statement that two responses are equally good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from holdfast.data.dataset import Dataset, check_rows_exist
from holdfast.data.ragged import Ragged

LeftOut = list[tuple[int, str]]
READ_WITH = "a score, read with the best score of its prompt"


@dataclass(frozen=True)
class Comparisons:
    """Judgements as edges between two responses to one prompt, E in all, in the order of the rows asked for.

    row:    (E,) int64, the judgement.
    prompt: (E,) int32; a, b: (E,) int32 responses.
    p:      (E,) float64, the stated probability that a is preferred to b: 1 for a pair, 1/2 for a tie, a soft
        preference's own value.
    tie:    (E,) bool, the two were said to be equal (a tie, an equal rank). p = 1/2 without it is a soft preference.
    margin: (E,) float64, nan where none was given.
    weight: (E,) float64; the edges of one judgement sum to 1, so that a ranking of ten counts as one judgement.
    from_a, from_b: (E,) int64, the judgement that names a, b: `row`, but for scores, each of which names one response.
    left_out: judgements that make no comparison: (row, reason).
    """

    row: np.ndarray
    prompt: np.ndarray
    a: np.ndarray
    b: np.ndarray
    p: np.ndarray
    tie: np.ndarray
    margin: np.ndarray
    weight: np.ndarray
    from_a: np.ndarray
    from_b: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.row)

    @property
    def reads(self) -> np.ndarray:
        """The judgements whose responses it names, rising."""
        return np.union1d(self.from_a, self.from_b)

    def only(self, keep: np.ndarray, reason: str) -> Comparisons:
        """The edges where `keep`, (E,) bool; a judgement's edges sum to 1 again, and one that lost all is left out."""
        if keep.all():
            return self
        kept = np.unique(self.row[keep])
        lost = np.setdiff1d(self.row, kept)
        row, weight = self.row[keep], self.weight[keep]
        number = np.searchsorted(kept, row)
        whole = np.bincount(number, weight, minlength=len(kept))
        named = {f: getattr(self, f)[keep] for f in ("prompt", "a", "b", "p", "tie", "margin", "from_a", "from_b")}
        left_out = [*self.left_out, *((int(r), reason) for r in lost)]
        return replace(self, row=row, weight=weight / whole[number], left_out=left_out, **named)


@dataclass(frozen=True)
class Rankings:
    """Judgements as rankings of two or more responses to one prompt, L in all, in the order of the rows asked for.

    row: (L,) int64; prompt: (L,) int32; responses: L lists of int32, best first; ranks: L lists of int64, lower is
    better and equal is not compared. reads: the judgements whose responses it names, rising. left_out: (row, reason).
    """

    row: np.ndarray
    prompt: np.ndarray
    responses: Ragged
    ranks: Ragged
    reads: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.row)

    def only(self, keep: np.ndarray, reason: str) -> Rankings:
        """The rankings where `keep`, (L,) bool; the others are left out. (`reads` stays.)"""
        at = np.flatnonzero(keep)
        return replace(
            self,
            row=self.row[at],
            prompt=self.prompt[at],
            responses=self.responses.take(at),
            ranks=self.ranks.take(at),
            left_out=[*self.left_out, *((int(r), reason) for r in self.row[~keep])],
        )


@dataclass(frozen=True)
class Labels:
    """Judgements as single responses that are good or bad, X in all, in the order of the rows asked for.

    row: (X,) int64; prompt, response: (X,) int32; good: (X,) bool; weight: (X,) float64, 1 in all per judgement: each
    half of a pair weighs 1/2. left_out: (row, reason).
    """

    row: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    good: np.ndarray
    weight: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.row)

    @property
    def reads(self) -> np.ndarray:
        return np.unique(self.row)


@dataclass(frozen=True)
class Preferred:
    """Distinct preferred responses, E in all: row (E,) int64, prompt and response (E,) int32.

    A response that several judgements prefer stands once, under the first of their rows; the others are in `left_out`.
    """

    row: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.row)

    @property
    def reads(self) -> np.ndarray:
        return np.unique(self.row)


def comparisons(ds: Dataset, rows: Iterable[int] | np.ndarray, score_margin: float = 0.0) -> Comparisons:
    """The comparisons that these judgements state.

    A ranking gives every two of its responses as an edge, p = 1 where their ranks differ and 1/2 where they are equal,
    each with weight one over the number of edges (InstructGPT, 2203.02155, section 3.4, normalises over a prompt's
    comparisons likewise). Scores give every two that differ by more than `score_margin`, weighed likewise.
    """
    rows = check_rows_exist(ds, rows)
    kinds = _kinds(ds)[rows]
    of = ds.responses_of
    values = _floats(ds, "value")
    scored = _score_groups(ds, rows[kinds == "score"])
    reasons = {int(r): "a label alone makes no comparison" for r in rows[kinds == "label"]}

    two = np.flatnonzero(np.isin(kinds, ("pair", "tie", "soft")))
    at = rows[two]
    first = of.offsets[at]
    parts = [
        _Edges(
            place=two,
            a=of.flat[first],
            b=of.flat[first + 1],
            p=np.where(kinds[two] == "pair", 1.0, np.where(kinds[two] == "tie", 0.5, values[at])),
            tie=kinds[two] == "tie",
            weight=np.ones(len(two)),
            from_a=at,
            from_b=at,
        )
    ]
    ranked = np.flatnonzero(kinds == "ranking")
    if len(ranked):
        ranks = ds.judgements["ranks"]
        for place in ranked:
            responses, rank = of[rows[place]], np.array(ranks[int(rows[place])].as_py())
            i, j = np.triu_indices(len(responses), 1)  # rows are stored best first
            own = np.full(len(i), rows[place])
            tie = rank[i] == rank[j]
            parts.append(
                _Edges(
                    np.full(len(i), place),
                    responses[i],
                    responses[j],
                    np.where(tie, 0.5, 1.0),
                    tie,
                    np.full(len(i), 1 / len(i)),
                    own,
                    own,
                )
            )
    place_of = {int(r): n for n, r in enumerate(rows)} if scored else {}
    for group in scored:
        i, j = np.triu_indices(len(group.responses), 1)  # best first
        apart = group.scores[i] - group.scores[j] > score_margin
        i, j = i[apart], j[apart]
        reasons |= group.reasons(bool(len(i)), score_margin)
        n = len(i)
        parts.append(
            _Edges(
                np.full(n, place_of[group.keeper]),
                group.responses[i],
                group.responses[j],
                np.ones(n),
                np.zeros(n, dtype=bool),
                np.full(n, 1 / max(n, 1)),
                group.named[i],
                group.named[j],
            )
        )
    places = np.concatenate([e.place for e in parts])
    order = np.argsort(places, kind="stable")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(e, name) for e in parts])[order]

    row = rows[places[order]]
    return Comparisons(
        row=row,
        prompt=ds.prompt_of[row],
        a=joined("a"),
        b=joined("b"),
        p=joined("p"),
        tie=joined("tie"),
        margin=np.where(_kinds(ds)[row] == "score", np.nan, _floats(ds, "margin")[row]),
        weight=joined("weight"),
        from_a=joined("from_a"),
        from_b=joined("from_b"),
        left_out=[(int(r), reasons[int(r)]) for r in rows if int(r) in reasons],
    )


def rankings(ds: Dataset, rows: Iterable[int] | np.ndarray, score_margin: float = 0.0) -> Rankings:
    """The rankings that these judgements state; a pair is a ranking of two.

    Scores are ranked so that responses of different rank differ by more than `score_margin`: going down, a new rank
    begins where the next score is more than that below the one before.
    """
    rows = check_rows_exist(ds, rows)
    kinds = _kinds(ds)[rows]
    of, values = ds.responses_of, _floats(ds, "value")
    ranks = ds.judgements["ranks"] if (kinds == "ranking").any() else None
    scored = {g.keeper: g for g in _score_groups(ds, rows[kinds == "score"])}
    reasons: dict[int, str] = {}
    tiers: dict[int, np.ndarray] = {}
    for keeper, group in scored.items():
        tiers[keeper] = np.r_[0, np.cumsum(-np.diff(group.scores) > score_margin)]
        reasons |= group.reasons(bool(tiers[keeper][-1]), score_margin)
    kept: list[int] = []
    lists: list[Sequence[int] | np.ndarray] = []
    orders: list[Sequence[int] | np.ndarray] = []
    reads: list[np.ndarray] = []
    for r, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        if r in reasons:
            continue
        rank: Sequence[int] | np.ndarray = (0, 1)
        responses = of[r]
        if kind == "label":
            reasons[r] = "a label alone makes no ranking"
        elif kind == "tie":
            reasons[r] = "a tie ranks neither above the other"
        elif kind == "soft" and values[r] != 1:
            reasons[r] = "a probability is no ranking"
        elif kind == "score":
            responses, rank = scored[r].responses, tiers[r]
            reads.append(scored[r].named)
        elif kind == "ranking" and ranks is not None:
            rank = ranks[r].as_py()
            if rank[-1] == rank[0]:
                reasons[r] = "all its ranks are equal"
        if r not in reasons:
            kept.append(r)
            lists.append(responses)
            orders.append(rank)
    row = np.array(kept, dtype=np.int64)
    return Rankings(
        row=row,
        prompt=ds.prompt_of[row],
        responses=Ragged.of(lists),
        ranks=Ragged.of(orders, np.int64),
        reads=np.unique(np.concatenate([row, *reads])),
        left_out=[(int(r), reasons[int(r)]) for r in rows if int(r) in reasons],
    )


def labels(ds: Dataset, rows: Iterable[int] | np.ndarray) -> Labels:
    """The good and bad responses that these judgements name: labels as they are, a pair's winner good and its loser
    bad, as TRL makes unpaired data of pairs.
    """
    rows = check_rows_exist(ds, rows)
    kinds = _kinds(ds)[rows]
    of, values = ds.responses_of, _floats(ds, "value")
    why = {
        "tie": "a tie calls neither good",
        "soft": "a probability calls neither good",
        "ranking": "a ranking calls none good",
        "score": "a score is no label",
    }
    certain = (kinds == "soft") & (values[rows] == 1)
    one, two = kinds == "label", (kinds == "pair") | certain
    size = np.where(one, 1, np.where(two, 2, 0))
    row = np.repeat(rows, size)
    first = np.r_[True, row[1:] != row[:-1]] if len(row) else np.zeros(0, dtype=bool)
    response = of.flat[of.offsets[row] + ~first]
    return Labels(
        row=row,
        prompt=ds.prompt_of[row],
        response=response,
        good=np.where(np.repeat(one, size), values[row] == 1, first),
        weight=1 / np.repeat(size, size),
        left_out=[(int(r), why[k]) for r, k, n in zip(rows, kinds, size, strict=True) if not n],
    )


def preferred(ds: Dataset, rows: Iterable[int] | np.ndarray) -> Preferred:
    """The responses that these judgements prefer: a pair's winner, the likelier of a soft preference, a ranking's
    first, a good label's.

    Each distinct response once.
    """
    rows = check_rows_exist(ds, rows)
    kinds = _kinds(ds)[rows]
    values = _floats(ds, "value")
    ranks = ds.judgements["ranks"] if (kinds == "ranking").any() else None
    seen: set[int] = set()
    kept: list[tuple[int, int]] = []
    left_out: LeftOut = []
    for r, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        best = int(ds.responses_of.flat[ds.responses_of.offsets[r]])
        reason = None
        if kind == "tie":
            reason = "a tie prefers neither"
        elif kind == "soft" and values[r] == 0.5:
            reason = "a preference of 1/2 prefers neither"
        elif kind == "score":
            reason = "a score alone prefers none"
        elif kind == "label" and values[r] != 1:
            reason = "labelled bad"
        elif kind == "ranking" and ranks is not None and ranks[r].as_py()[1] == 0:
            reason = "the best rank is shared"
        elif best in seen:
            reason = "same response"
        if reason is None:
            seen.add(best)
            kept.append((r, best))
        else:
            left_out.append((r, reason))
    row = np.array([r for r, _ in kept], dtype=np.int64)
    response = np.array([x for _, x in kept], dtype=np.int32)
    return Preferred(row=row, prompt=ds.response_prompt[response], response=response, left_out=left_out)


@dataclass(frozen=True)
class _Edges:
    """Some edges of `Comparisons`, with `place`, the position of their judgement among the rows asked for."""

    place: np.ndarray
    a: np.ndarray
    b: np.ndarray
    p: np.ndarray
    tie: np.ndarray
    weight: np.ndarray
    from_a: np.ndarray
    from_b: np.ndarray


@dataclass(frozen=True)
class _Scores:
    """The scores of one prompt by one annotator under one rubric, best first; a response scored twice has the mean.

    responses: (S,) int32; scores: (S,); named: (S,) int64, the first row that scores the response; keeper: the row that
    stands for all of `rows`.
    """

    responses: np.ndarray
    scores: np.ndarray
    named: np.ndarray
    rows: np.ndarray

    @property
    def keeper(self) -> int:
        return int(self.named[0])

    def reasons(self, compares: bool, margin: float) -> dict[int, str]:
        """Why its rows are no rows of their own."""
        if len(self.responses) == 1:
            why = "the only score of its prompt by this annotator"
        elif not compares:
            why = f"the scores of its prompt differ by no more than {margin:g}"
        else:
            return {int(r): READ_WITH for r in self.rows if r != self.keeper}
        return {int(r): why for r in self.rows}


def _score_groups(ds: Dataset, rows: np.ndarray) -> list[_Scores]:
    if not len(rows):
        return []
    values, of = _floats(ds, "value"), ds.responses_of
    annotator, rubric = (ds.judgements[name].take(rows).to_pylist() for name in ("annotator", "rubric"))
    members: dict[tuple[int, str | None, str | None], list[int]] = {}
    for r, who, by in zip(rows.tolist(), annotator, rubric, strict=True):
        members.setdefault((int(ds.prompt_of[r]), who, by), []).append(r)
    groups = []
    for group in members.values():
        said: dict[int, list[int]] = {}
        for r in sorted(group):
            said.setdefault(int(of.flat[of.offsets[r]]), []).append(r)
        means = {response: float(np.mean(values[own])) for response, own in said.items()}
        best = sorted(said, key=lambda response: (-means[response], said[response][0]))
        groups.append(
            _Scores(
                responses=np.array(best, dtype=np.int32),
                scores=np.array([means[response] for response in best]),
                named=np.array([said[response][0] for response in best], dtype=np.int64),
                rows=np.array(group, dtype=np.int64),
            )
        )
    return groups


def _kinds(ds: Dataset) -> np.ndarray:
    return np.array(ds.column("kind"), dtype="U8")


def _floats(ds: Dataset, name: str) -> np.ndarray:
    """(N,) float64, nan for null."""
    return pc.fill_null(ds.judgements[name], float("nan")).to_numpy()
