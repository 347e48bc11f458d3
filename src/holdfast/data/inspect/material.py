"""What detectors read: the comparisons as arrays, and the texts in batches.

A `Material` is made once from a frozen dataset. It can also be edited in memory, which is how faults are planted in copies
of a dataset to measure what a detector would have seen: texts are shared between copies, and what was computed from a
text is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.data.dataset import Dataset
from holdfast.data.inspect.outside import Outside, Samples, read_outside, read_samples
from holdfast.data.inspect.stats import Resamples
from holdfast.data.inspect.tokens import TokenCounter
from holdfast.data.splits import load_split
from holdfast.data.text import plain_text
from holdfast.data.views import comparisons
from holdfast.errors import DataError

BATCH = 2048  # texts held in memory at once
COLUMNS = (
    "kind",
    "annotator",
    "annotator_kind",
    "rubric",
    "category",
    "licence",
)  # that a user may count by, beside extras
KEPT = 64 << 20  # characters up to which a table's texts are kept in memory once read


class Texts:
    """N texts, read in batches, and what was derived from them, computed once.

    A copy of a dataset has the texts of its base at other places, and some of its own behind them.
    """

    def __init__(self, read: Callable[[np.ndarray], list[str]], n: int):
        self._read = read
        self._n = n
        self._memo: dict[Any, Any] = {}
        self._base: Texts | None = None
        self._at = np.zeros(0, np.int64)  # of a copy: the base's number, or -1 - k for its own text k
        self._own: list[str] = []

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        kept = list(texts)
        return cls(lambda numbers: [kept[i] for i in numbers.tolist()], len(kept))

    @classmethod
    def of_dataset(cls, ds: Dataset, table: str) -> Texts:
        contents = ds.prompt_contents if table == "prompts" else ds.response_contents
        made = cls(
            lambda numbers: [plain_text(c) or "" for c in contents(numbers)],
            ds.n_prompts if table == "prompts" else ds.n_responses,
        )
        size = (ds.path / f"{table}.parquet").stat().st_size
        if size <= KEPT:
            kept = made.at(np.arange(made._n))
            made._read = lambda numbers: [kept[i] for i in numbers.tolist()]
        return made

    def __len__(self) -> int:
        return self._n

    def at(self, numbers: np.ndarray) -> list[str]:
        """These texts, in this order."""
        if self._base is None:
            return self._read(numbers) if len(numbers) else []
        at = self._at[numbers]
        own = at < 0
        out: list[str] = [""] * len(at)
        for place, text in zip(np.flatnonzero(~own).tolist(), self._base.at(at[~own]), strict=True):
            out[place] = text
        for place in np.flatnonzero(own).tolist():
            out[place] = self._own[-1 - int(at[place])]
        return out

    def batches(self, numbers: np.ndarray | None = None, size: int = BATCH) -> Iterator[tuple[int, list[str]]]:
        """Walk these texts (default: all): (place of the first, the texts)."""
        n = self._n if numbers is None else len(numbers)
        for start in range(0, n, size):
            stop = min(start + size, n)
            yield start, self.at(np.arange(start, stop) if numbers is None else numbers[start:stop])

    def derive(self, compute: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
        """`compute`'s rows for every text, one row each; computed once per text, also across copies."""
        if compute not in self._memo:
            if self._base is None or (compute not in self._base._memo and 2 * self._n < self._base._n):
                made: np.ndarray | None = None
                for start, texts in self.batches():
                    rows = compute(texts)
                    if made is None:
                        made = np.empty((self._n, *rows.shape[1:]), rows.dtype)
                    made[start : start + len(rows)] = rows
                self._memo[compute] = compute([]) if made is None else made
            else:
                own = self._at < 0
                base = self._base.derive(compute)
                made = np.empty((self._n, *base.shape[1:]), base.dtype)
                made[~own] = base[self._at[~own]]
                if own.any():
                    made[own] = compute(self._own)[-1 - self._at[own]]
                self._memo[compute] = made
        return self._memo[compute]

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes of these texts under this key, made once."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def embedded(self, numbers: np.ndarray, embed: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
        """(n, d) vectors of these texts, each text's computed once, also across copies."""
        if self._base is not None:
            at = self._at[numbers]
            own = at < 0
            base = self._base.embedded(at[~own], embed)
            if not own.any():
                return base
            mine = embed([self._own[-1 - i] for i in at[own].tolist()])
            out = np.empty((len(at), mine.shape[1]), np.float32)
            out[~own], out[own] = base, mine
            return out
        known: dict[int, np.ndarray] = self.remember(("embedded", embed), dict)
        for start, texts in self.batches(new := np.array([i for i in numbers.tolist() if i not in known], np.int64)):
            known.update(zip(new[start : start + len(texts)].tolist(), embed(texts), strict=True))
        return np.stack([known[i] for i in numbers.tolist()]) if len(numbers) else embed([])

    def copy(self, keep: np.ndarray, more: Sequence[str] = ()) -> Texts:
        """The texts at `keep`, in that order, and `more` behind them."""
        made = Texts(self._read, len(keep) + len(more))
        made._base = self
        made._at = np.concatenate([keep, -1 - np.arange(len(more))]).astype(np.int64)
        made._own = list(more)
        return made


@dataclass(frozen=True)
class Material:
    """Everything a detector may look at. J judgements, E comparisons; codes are -1 where nothing was said.

    prompts, responses: the texts; response_prompt: (R,) int32.
    row: (E,) int64, the judgement of each comparison; prompt, a, b: (E,) int32; p: (E,) the stated probability that a is
        preferred; tie: (E,) bool; weight: (E,) float64, 1 in all per judgement.
    row_prompt: (J,) int32, row_category, row_annotator: (J,) int32 codes into `categories`, `annotators`.
    source_a, source_b: (E,) int32 codes into `sources`. first: (E,) int8, 1 where a was shown first, -1 where b was, 0
        where it is not known.
    columns: further columns of the judgements that the user named: (name, (J,) int32 codes, the values they stand for).
    prompt_part: (P,) int8 code into `parts`: the side of the split each prompt's judgements are on.
    row_id: the digest of a judgement. against, target, samples: what the user named to compare
        with. embed: texts to (n, d) unit vectors, in place of words. ches: (n, 2) the CHES of pairs, by length and as it is, from
        the preferred and the other response of each (the dataset's numbers, so not of a copy with other texts) and the most tokens
        of prompt and response; nan: none.
    """

    prompts: Texts
    responses: Texts
    response_prompt: np.ndarray
    row: np.ndarray
    prompt: np.ndarray
    a: np.ndarray
    b: np.ndarray
    p: np.ndarray
    tie: np.ndarray
    weight: np.ndarray
    row_prompt: np.ndarray
    row_category: np.ndarray
    row_annotator: np.ndarray
    source_a: np.ndarray
    source_b: np.ndarray
    first: np.ndarray
    prompt_part: np.ndarray
    categories: list[str]
    annotators: list[str]
    sources: list[str]
    parts: list[str]
    row_id: Callable[[int], str]
    text: bool = True
    left_out: int = 0
    against: tuple[Outside, ...] = ()
    target: Outside | None = None
    samples: Samples | None = None
    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    ches: Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None = None
    tokenizer: TokenCounter | None = None
    max_length: int = 2048
    seed: int = 0
    times: int = 400  # resamples of a bootstrap
    sample: int = 20_000  # comparisons that a fitted probe looks at, in whole prompts
    columns: tuple[tuple[str, np.ndarray, list[str]], ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def n_rows(self) -> int:
        return len(self.row_prompt)

    def edit(self, **changed: Any) -> Material:
        """A copy with other arrays; what was computed from the old ones is forgotten, but for what hangs on texts."""
        return replace(self, memo={}, **changed)

    def only(self, rows: np.ndarray) -> Material:
        """A copy with these judgements alone, (J,) bool; prompts, responses and row numbers stay as they are, so a row
        that is gone has prompt -1.
        """
        keep = rows[self.row]
        named = ("row", "prompt", "a", "b", "p", "tie", "weight", "source_a", "source_b", "first")
        changed = {name: getattr(self, name)[keep] for name in named}
        return self.edit(row_prompt=np.where(rows, self.row_prompt, -1), **changed)

    @cached_property
    def live(self) -> np.ndarray:
        """The judgements there are: (n,) int64. In a copy some may be gone."""
        return np.flatnonzero(self.row_prompt >= 0)

    @cached_property
    def live_prompts(self) -> np.ndarray:
        """The prompts that a judgement names: (n,) int64, rising."""
        return np.unique(self.row_prompt[self.live]).astype(np.int64)

    @cached_property
    def used(self) -> np.ndarray:
        """The responses that comparisons name, rising; all of them where there are no comparisons."""
        if not len(self):
            return np.arange(len(self.responses))
        return np.union1d(self.a, self.b).astype(np.int64)

    @cached_property
    def annotator(self) -> np.ndarray:
        """(E,) the annotator of each comparison."""
        return self.row_annotator[self.row]

    @cached_property
    def category(self) -> np.ndarray:
        """(E,) the category of each comparison."""
        return self.row_category[self.row]

    @cached_property
    def resamples(self) -> Resamples:
        """The bootstrap over prompts that every finding shares."""
        return Resamples(self.prompt, times=self.times, seed=self.seed)

    @cached_property
    def decided(self) -> np.ndarray:
        """(E,) bool: one side is preferred."""
        return self.p != 0.5

    @cached_property
    def sampled(self) -> np.ndarray:
        """The comparisons that fitted probes look at: whole prompts at random up to `sample`, rising (n,) int64."""
        if len(self) <= self.sample:
            return np.arange(len(self))
        prompts, of = np.unique(self.prompt, return_inverse=True)
        rank = np.random.default_rng(self.seed).permutation(len(prompts))
        return np.sort(np.argsort(rank[of], kind="stable")[: self.sample])

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(P,) a judgement of each prompt, -1 where there is none."""
        first = np.full(len(self.prompts), -1, np.int64)
        first[self.row_prompt[self.live][::-1]] = self.live[::-1]
        return first

    @cached_property
    def _by_prompt(self) -> tuple[np.ndarray, np.ndarray]:
        order = self.live[np.argsort(self.row_prompt[self.live], kind="stable")]
        return self.row_prompt[order], order

    @cached_property
    def _by_response(self) -> tuple[np.ndarray, np.ndarray]:
        sides = np.concatenate([self.a, self.b])
        order = np.argsort(sides, kind="stable")
        return sides[order], np.concatenate([self.row, self.row])[order]

    def asking(self, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every judgement of these prompts, and which of them it is of: (n,) int64 each."""
        return _spread(*self._by_prompt, prompts)

    def naming(self, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every judgement whose comparisons name one of these responses, and which of them: (n,) int64 each."""
        return _spread(*self._by_response, responses)

    def compute(self, key: Any, make: Callable[[Material], Any]) -> Any:
        """What several detectors need, made once for this material."""
        if key not in self.memo:
            self.memo[key] = make(self)
        return self.memo[key]


def material(
    ds: Dataset,
    *,
    split: str | Path | None = None,
    against: Sequence[str | Path] = (),
    target: str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_length: int = 2048,
    seed: int = 0,
    times: int = 400,
    sample: int = 20_000,
    columns: Sequence[str] = (),
    samples: str | Path | None = None,
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
    ches: Callable[[Dataset, np.ndarray, np.ndarray, int], np.ndarray] | None = None,
) -> Material:
    """The material of a frozen dataset.

    split: a folder with a split of it. against: files or frozen datasets that it must not overlap. target: prompts that
    the model is meant for. tokenizer: a tokenizer.json, or a model's folder. columns: further columns of the judgements,
    or keys of what else their rows said, to count by. samples: a file of what the policy itself wrote. embed:
    a function from texts to (n, d) unit vectors, in place of TF-IDF. ches: as
    `language.displacement.load_ches` makes it. Raises DataError for what cannot be read.
    """
    view = comparisons(ds, np.arange(ds.n_judgements))
    table = ds.judgements
    row_annotator, annotators = _coded(table["annotator"])
    row_category, categories = _coded(table["category"])
    first = np.zeros(len(view.row), np.int8)
    source_a = np.full(len(view.row), -1, np.int32)
    source_b = source_a.copy()
    sources: list[str] = []
    of = ds.responses_of
    for column in ("shown", "sources"):
        if table[column].null_count == len(table):
            continue
        # Where a comparison's sides stand in their judgement's list.
        place_a, place_b = _place(of, view.from_a, view.a), _place(of, view.from_b, view.b)
        flat = table[column].combine_chunks()
        starts = flat.offsets.to_numpy().astype(np.int64)
        known = flat.is_valid().to_numpy(zero_copy_only=False)
        values = flat.values
        if column == "shown":
            shown = values.to_numpy(zero_copy_only=False)
            has = known[view.from_a] & (view.from_a == view.from_b)
            at_a = shown[np.where(has, starts[view.from_a] + place_a, 0)].astype(np.int64)
            at_b = shown[np.where(has, starts[view.from_b] + place_b, 0)].astype(np.int64)
            first = np.where(has, np.sign(at_b - at_a), 0).astype(np.int8)
        else:
            codes, sources = _coded(values)
            source_a = np.where(
                known[view.from_a], codes[np.where(known[view.from_a], starts[view.from_a] + place_a, 0)], -1
            ).astype(np.int32)
            source_b = np.where(
                known[view.from_b], codes[np.where(known[view.from_b], starts[view.from_b] + place_b, 0)], -1
            ).astype(np.int32)
    parts: list[str] = []
    prompt_part = np.full(ds.n_prompts, -1, np.int8)
    if split is not None:
        for name, rows in load_split(split, ds).parts.items():
            prompt_part[ds.prompt_of[rows]] = len(parts)
            parts.append(name)
    text = ds.kind == "text"
    if not text and (against or target or samples):
        raise DataError(
            f"dataset {ds.path} holds segments of episodes; --against, --target and --samples compare texts"
        )
    return Material(
        prompts=Texts.of_dataset(ds, "prompts") if text else Texts.of([""] * ds.n_prompts),
        responses=Texts.of_dataset(ds, "responses") if text else Texts.of([""] * ds.n_responses),
        response_prompt=ds.response_prompt,
        row=view.row,
        prompt=view.prompt,
        a=view.a,
        b=view.b,
        p=view.p,
        tie=view.tie,
        weight=view.weight,
        row_prompt=ds.prompt_of,
        row_category=row_category,
        row_annotator=row_annotator,
        source_a=source_a,
        source_b=source_b,
        first=first,
        prompt_part=prompt_part,
        categories=categories,
        annotators=annotators,
        sources=sources,
        parts=parts,
        row_id=ds.row_id,
        text=text,
        left_out=len(view.left_out),
        against=tuple(read_outside(path) for path in against),
        target=None if target is None else read_outside(target),
        tokenizer=None if tokenizer is None else TokenCounter(tokenizer),
        max_length=max_length,
        seed=seed,
        times=times,
        sample=sample,
        columns=tuple(_column(ds, name) for name in columns),
        samples=None if samples is None else read_samples(samples),
        embed=embed,
        ches=None if ches is None else partial(ches, ds),
    )


def _column(ds: Dataset, name: str) -> tuple[str, np.ndarray, list[str]]:
    """A column that the user named: one of the judgements' own, or a key of `extra`."""
    import orjson
    import pyarrow as pa

    if name in COLUMNS:
        return (name, *_coded(ds.judgements[name]))
    said = [None if e is None else orjson.loads(e) for e in ds.column("extra")]
    keys = {k for e in said if isinstance(e, dict) for k in e}
    if name not in keys:
        raise DataError(f"no row of {ds.path} says {name!r}; there are: {', '.join([*COLUMNS, *sorted(keys)])}")
    values = [e.get(name) if isinstance(e, dict) else None for e in said]
    texts = [None if v is None else v if isinstance(v, str) else orjson.dumps(v).decode() for v in values]
    return (name, *_coded(pa.array(texts, pa.string())))


def _spread(keys: np.ndarray, rows: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of each asked key, of sorted keys, and the place of that key in `asked`."""
    lo, hi = np.searchsorted(keys, asked, "left"), np.searchsorted(keys, asked, "right")
    size = hi - lo
    place = np.repeat(np.arange(len(asked)), size)
    start = np.cumsum(size) - size
    return rows[np.arange(len(place)) - start[place] + lo[place]].astype(np.int64), place


def _coded(column: Any) -> tuple[np.ndarray, list[str]]:
    """(codes int32 with -1 for null, the names they stand for, sorted)."""
    import pyarrow as pa

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = whole.dictionary_encode()
    names = coded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda i: names[i])
    rank = np.empty(len(names) + 1, np.int32)
    rank[order] = np.arange(len(names))
    rank[-1] = -1
    return rank[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)], [names[i] for i in order]


def _place(of: Any, rows: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Where each response stands in its judgement's list, (E,)."""
    start = of.offsets[rows]
    place = np.zeros(len(rows), np.int64)
    left = of.flat[start] != responses
    step = 0
    while left.any():
        step += 1
        at = np.flatnonzero(left)
        place[at] = step
        left[at] = of.flat[start[at] + step] != responses[at]
    return place
