"""Curation that leaves a trail: a dataset and a plan in, another dataset out, and every row that a rule touched listed.

A plan is a TOML file of rules, taken one after another on what the rules before it have left:

    [[rule]]
    kind = "drop"
    where = {annotator = "quick"}
    why = "agrees with the others no more than chance"

A rule is a function below, under its own name; its keyword arguments are the keys it takes. The parent is never changed. The new
dataset's folder keeps `curation.json` (the parent's root, the plan, what each rule did) and `curated.jsonl` (a line for each row that a
rule touched), and its manifest has both digests. The same dataset and plan give the same root.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from holdfast.data.columns import longer, values
from holdfast.data.dataset import Dataset, canonical_json, open_dataset
from holdfast.data.export import records as records_of
from holdfast.data.freeze import canonical, freeze_records
from holdfast.data.inspect.material import Texts
from holdfast.data.inspect.near import across, near
from holdfast.data.inspect.outside import read_outside
from holdfast.data.records import Judgement
from holdfast.data.splits import load_split
from holdfast.errors import DataError, RecipeError
from holdfast.recipe import bind, unknown_key

FORMAT = "holdfast-curation/1"


@dataclass(frozen=True)
class Step:
    """What one rule did. rows: judgements before it; dropped, changed: how many it touched; made: new ones."""

    rule: Mapping[str, Any]
    rows: int
    dropped: int
    changed: int
    made: int = 0


@dataclass(frozen=True)
class Curated:
    """The new dataset, its root, the parent's root, and what each rule did in turn."""

    dataset: Dataset
    root: str
    parent: str
    steps: list[Step]


@dataclass
class Stock:
    """The rows of a dataset while rules work on them.

    alive: (N,) bool, not dropped; to: what a relabelled row became; weight: what a weighed row says in which extra column;
    made: (row, a new judgement made from it); touched: (row, what was done to it), in order.
    """

    ds: Dataset
    alive: np.ndarray
    to: dict[int, str] = field(default_factory=dict)
    weight: dict[int, dict[str, float]] = field(default_factory=dict)
    made: list[tuple[int, Judgement]] = field(default_factory=list)
    touched: list[tuple[int, str]] = field(default_factory=list)
    _columns: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray:
        """The rows that are left, in the dataset's order."""
        return np.flatnonzero(self.alive)

    def drop(self, rows: np.ndarray, why: str) -> None:
        for row in np.sort(rows).tolist():
            if self.alive[row]:
                self.alive[row] = False
                self.touched.append((row, why))

    def values(self, name: str) -> list[tuple[Any, ...]]:
        """What each row says in a column: a tuple of one, of a source per response, or empty where it says nothing."""
        if name not in self._columns:
            self._columns[name] = values(self.ds, name)
        return self._columns[name]

    def one(self, name: str) -> list[str]:
        """What each row says in a column that holds one value, as text; "" for nothing."""
        return [str(v[0]) if v else "" for v in self.values(name)]

    def chosen(self, where: Mapping[str, Any] | None, rows: str | None) -> np.ndarray:
        """The rows left that a rule means: those in the file `rows` (a digest or its first digits per line), and of them
        those which say one of the values in every column of `where` ("" is nothing said). At least one is asked for.
        """
        if not where and rows is None:
            raise RecipeError('needs `where = {column = value}` or `rows = "FILE"`, or both')
        found = self.alive.copy()
        if rows is not None:
            found &= _listed(self.ds, rows)
        for name, wanted in (where or {}).items():
            values, column = wanted if isinstance(wanted, list) else [wanted], self.values(name)
            known = {v for said in column for v in said} | {""}
            if strange := [v for v in values if v not in known]:
                some = ", ".join(sorted(map(str, known - {""}))[:12]) or "nothing"
                raise DataError(f"where: no row says {name} = {strange[0]!r}; they say {some}")
            found &= np.array([any(v in said for v in values) or (not said and "" in values) for said in column])
        return np.flatnonzero(found)


def _listed(ds: Dataset, file: str) -> np.ndarray:
    path = Path(file)
    if not path.is_file():
        raise DataError(f"rows = {file!r}: there is no such file; it should hold a row's digest per line")
    found = np.zeros(ds.n_judgements, bool)
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found[ds.find_row(line.split()[0])] = True
            except DataError as problem:
                raise DataError(f"{file}, line {n}: {problem}") from None
    return found


# ---------------------------------------------------------------------------------------------------------------- rules


def drop(stock: Stock, *, where: dict[str, Any] | None = None, rows: str | None = None) -> None:
    """Leave these rows out: an annotator, a licence, a category, the rows that inspection listed."""
    stock.drop(stock.chosen(where, rows), "dropped")


def keep(stock: Stock, *, where: dict[str, Any] | None = None, rows: str | None = None) -> None:
    """Leave all others out."""
    stock.drop(np.setdiff1d(stock.rows, stock.chosen(where, rows)), "dropped")


def relabel(
    stock: Stock, *, to: Literal["swap", "tie"], where: dict[str, Any] | None = None, rows: str | None = None
) -> None:
    """Turn these rows round (a pair's winner loses, a ranking is reversed, good becomes bad), or make ties of them."""
    kinds = stock.ds.column("kind")
    for row in stock.chosen(where, rows).tolist():
        if kinds[row] == "score" or (to == "tie" and kinds[row] not in ("pair", "soft")):
            able = "pairs and soft preferences" if to == "tie" else "pairs, soft preferences, rankings and labels"
            raise DataError(
                f"row {stock.ds.row_id(row)[:16]} is a {kinds[row]}: only {able} can be relabelled to {to!r}; name others in `where`"
            )
        if kinds[row] == "tie":
            continue  # a tie turned round is the same tie
        if to == "swap" and stock.to.get(row) == "swap":
            del stock.to[row]
        elif stock.to.get(row) != "tie":
            stock.to[row] = to
        stock.touched.append((row, "turned round" if to == "swap" else "made a tie"))


def deduplicate(stock: Stock, *, by: Literal["judgement", "comparison", "prompt"] = "judgement") -> None:
    """Keep one of what is there several times, the first in the dataset's order.

    "judgement": the same statement of the same annotator, said again. "comparison": the same statement about the same responses, whoever
    said it. "prompt": of prompts that are near-duplicates (Jaccard similarity of words and pairs of words at least 0.7), the one
    with the most judgements.
    """
    rows, ds = stock.rows, stock.ds
    if by == "prompt":
        texts = Texts.of_dataset(ds, "prompts")
        cluster = near(texts, np.unique(ds.prompt_of[rows])).cluster
        many = np.bincount(ds.prompt_of[rows], minlength=ds.n_prompts)
        kept: dict[int, int] = {}
        for p in np.unique(ds.prompt_of[rows]).tolist():
            best = kept.setdefault(int(cluster[p]), p)
            if many[p] > many[best]:
                kept[int(cluster[p])] = p
        again = ~np.isin(ds.prompt_of[rows], list(kept.values()))
        stock.drop(rows[again], "near-duplicate of another prompt")
        return
    names = ["kind", "value", "ranks"] + (["annotator", "rubric"] if by == "judgement" else [])
    said = ds.judgements.select(names).to_pylist()
    seen: set[tuple[Any, ...]] = set()
    more = []
    for row in rows.tolist():
        what = tuple(tuple(v) if isinstance(v, list) else v for v in said[row].values())
        key = (*what, stock.to.get(row), tuple(ds.responses_of[row].tolist()))
        if key in seen:
            more.append(row)
        seen.add(key)
    stock.drop(np.array(more, np.int64), f"the same {by} again")


def cap(stock: Stock, *, per: str, most: int, seed: int = 0) -> None:
    """At most `most` rows for each value of the column `per` (`source`: for each source; `prompt`: for each prompt). Which stay is drawn
    by the rows' digests and the seed; rows that say nothing in the column all stay.
    """
    if most < 1:
        raise RecipeError(f"most = {most} should be at least 1")
    column = [(int(p),) for p in stock.ds.prompt_of] if per == "prompt" else stock.values(per)
    count: dict[Any, int] = {}
    over = []
    for row in _drawn(stock, seed):
        said = column[row]
        if any(count.get(v, 0) >= most for v in said):
            over.append(row)
            continue
        for v in said:
            count[v] = count.get(v, 0) + 1
    stock.drop(np.array(over, np.int64), f"over {most} per {per}")


def balance(stock: Stock, *, column: str, most: int | None = None, seed: int = 0) -> None:
    """As many rows of each value of a column: as many as the rarest has, or `most`. `column = "longer"`: whether the preferred response
    is the longer or the shorter one (rows without a preference, or of equal lengths, stay).
    """
    values = _longer(stock) if column == "longer" else stock.one(column)
    rows = [row for row in _drawn(stock, seed) if values[row]]
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(values[row], []).append(row)
    if len(groups) < 2:
        raise DataError(f"column {column!r} has one value at most; there is nothing to balance")
    least = min(map(len, groups.values())) if most is None else most
    over = [row for group in groups.values() for row in group[least:]]
    stock.drop(np.array(over, np.int64), f"over {least} of one {column}")


def stratify(stock: Stock, *, column: str, rows: int, seed: int = 0) -> None:
    """`rows` rows in all, each value of the column with its share of them (largest remainders)."""
    values = stock.one(column)
    groups: dict[str, list[int]] = {}
    for row in _drawn(stock, seed):
        groups.setdefault(values[row], []).append(row)
    have = sum(map(len, groups.values()))
    if not 0 < rows <= have:
        raise DataError(f"rows = {rows} should be between 1 and the {have} rows that are left")
    exact = {name: rows * len(group) / have for name, group in groups.items()}
    take = {name: int(x) for name, x in exact.items()}
    for name in sorted(exact, key=lambda n: (take[n] - exact[n], n))[: rows - sum(take.values())]:
        take[name] += 1
    over = [row for name, group in groups.items() for row in group[take[name] :]]
    stock.drop(np.array(over, np.int64), f"over the share of its {column}")


def weigh(
    stock: Stock, *, by: float, column: str = "weight", where: dict[str, Any] | None = None, rows: str | None = None
) -> None:
    """Multiply the weight of these rows by `by`: a number in the column extra.`column`, 1 where there is none yet. Training goes by it
    only where its recipe says `[data.weights] column`.
    """
    if not 0 <= by < float("inf"):
        raise RecipeError(f"by = {by!r} should be 0 or more")
    extra = stock.ds.column("extra")
    for row in stock.chosen(where, rows).tolist():
        said = (orjson.loads(extra[row]) if extra[row] else {}).get(column, 1.0)
        if isinstance(said, bool) or not isinstance(said, int | float):
            raise DataError(
                f"row {stock.ds.row_id(row)[:16]} says {said!r} in extra.{column}, which is no weight; name another column"
            )
        own = stock.weight.setdefault(row, {})
        own[column] = own.get(column, float(said)) * by
        stock.touched.append((row, f"weighs {own[column]:g}"))


def counterfactual(
    stock: Stock,
    *,
    how: Literal["padded", "truncated", "other-prompt"],
    share: float = 0.5,
    where: dict[str, Any] | None = None,
    split: str | None = None,
    seed: int = 0,
) -> None:
    """New pairs whose answer is known by how they are made, in which one thing differs: a preferred response against itself with
    a passage of an answer to another prompt behind it ("padded": the shorter is better), against itself broken off ("truncated": the longer
    is), or against a preferred answer to another prompt that is at least as long ("other-prompt": length and style say nothing).
    Of a `share` of the distinct preferred responses. Each new row is by the annotator `counterfactual: HOW`, of the kind rule, and names the
    rows it was made of in extra. `split`: a folder with a split of this dataset; then only its training rows are used. Rules that follow do
    not see the new rows.
    """
    if not 0 < share <= 1:
        raise RecipeError(f"share = {share!r} should be above 0 and at most 1")
    ds, kinds, values_ = stock.ds, stock.ds.column("kind"), stock.ds.column("value")
    rows = stock.chosen(where, None) if where else stock.rows
    if split is not None:
        rows = np.intersect1d(rows, load_split(split, ds).parts["train"])
    first: dict[int, int] = {}  # a preferred response: the first row that prefers it
    for row in rows.tolist():
        if (kinds[row] == "pair" or (kinds[row] == "soft" and values_[row] != 0.5)) and stock.to.get(row) != "tie":
            first.setdefault(int(ds.responses_of[row][int(stock.to.get(row) == "swap")]), row)
    texts = dict(zip(first, map(_one_text, ds.response_contents(np.array(list(first), np.int64))), strict=True))
    pool = np.array(
        sorted((r for r in first if texts[r]), key=lambda r: (len(texts[r] or ""), ds.response_ids[r])), np.int64
    )
    if not len(pool):
        raise DataError("no row prefers a response that is one text")
    prompts = Texts.of_dataset(ds, "prompts")
    cluster = near(prompts, np.unique(ds.response_prompt[pool])).cluster[ds.response_prompt[pool]]
    draw = sorted(range(len(pool)), key=lambda n: _hash(seed, "draw", ds.response_ids[pool[n]]))
    wanted = round(share * len(pool))
    spoilt: dict[
        int, tuple[int, str, int | None]
    ] = {}  # by row: its preferred response, what it is set against, and whose text is in that
    for n in draw:
        if len(spoilt) >= wanted:
            break
        response, own = int(pool[n]), texts[int(pool[n])] or ""
        words = own.split()
        key = int.from_bytes(_hash(seed, how, ds.response_ids[response])[:8], "big")
        if how == "truncated":
            if len(words) >= 12:
                cut = own[: _end_of_word(own, round(len(words) * (0.3 + 0.4 * (key % 1000) / 999)))]
                spoilt[first[response]] = response, cut, None
            continue
        # Other prompts' answers: of any length behind it; in its place one of the next longer.
        others = np.flatnonzero(cluster != cluster[n])
        others = others[others > n][:16] if how == "other-prompt" else others
        if len(others):
            donor = int(pool[others[key % len(others)]])
            theirs = texts[donor] or ""
            if how == "padded":
                theirs = own.rstrip() + "\n\n" + theirs[: _end_of_word(theirs, max(20, len(words) // 2))]
            spoilt[first[response]] = response, theirs, donor
    for row, record in records_of(ds, np.array(sorted(spoilt), np.int64)):
        response, text, other = spoilt[row]
        place = ds.responses_of[row].tolist().index(response)
        said = {"counterfactual": how, "of": ds.row_id(row)}
        made = Judgement(
            "pair",
            record.prompt,
            (record.responses[place], _with_text(record.responses[place], text)),
            annotator=f"counterfactual: {how}",
            annotator_kind="rule",
            category=record.category,
            licence=record.licence,
            sources=record.sources and (record.sources[place], None),
            extra=said if other is None else {**said, "with": ds.row_id(first[other])},
        )
        stock.made.append((row, made))


def _one_text(content: Any) -> str | None:
    """The text of a response that is one: a string, or a single message of text."""
    if isinstance(content, list) and len(content) == 1 and set(content[0]) == {"role", "content"}:
        content = content[0]["content"]
    return content if isinstance(content, str) and content.strip() else None


def _with_text(content: Any, text: str) -> Any:
    return text if isinstance(content, str) else [{**content[0], "content": text}]


def _end_of_word(text: str, words: int) -> int:
    """Where in a text its first so many words end."""
    ends = [m.end() for m in re.finditer(r"\S+", text)]
    return ends[min(words, len(ends)) - 1]


def _hash(*said: Any) -> bytes:
    return sha256(" ".join(map(str, said)).encode()).digest()


def decontaminate(stock: Stock, *, against: str) -> None:
    """Leave out every prompt that an outside set has too, or a near-duplicate of it (similarity at least 0.7). `against`: a preference
    file, a file of prompts, or a frozen dataset.
    """
    outside = read_outside(against)
    live = np.unique(stock.ds.prompt_of[stock.rows])
    found, _, _ = across(Texts.of_dataset(stock.ds, "prompts"), live, Texts.of(outside.prompts))
    rows = stock.rows
    stock.drop(rows[np.isin(stock.ds.prompt_of[rows], found)], f"its prompt is in {outside.name}")


RULES: dict[str, Callable[..., None]] = {
    rule.__name__: rule
    for rule in (drop, keep, relabel, deduplicate, cap, balance, stratify, weigh, counterfactual, decontaminate)
}


def _drawn(stock: Stock, seed: int) -> Iterator[int]:
    """The rows left in an order drawn from their digests and the seed."""
    key = str(seed).encode()
    rows = stock.rows.tolist()
    yield from sorted(rows, key=lambda row: sha256(key + stock.ds.row_id(row).encode()).digest())


def _longer(stock: Stock) -> list[str]:
    """Whether each row prefers the "longer" or the "shorter" response (characters), "" where neither."""
    out = [""] * stock.ds.n_judgements
    other = {"longer": "shorter", "shorter": "longer"}
    for row, side in longer(stock.ds, stock.rows).items():
        if side is not None and stock.to.get(row) != "tie":
            out[row] = other[side] if stock.to.get(row) == "swap" else side
    return out


# ------------------------------------------------------------------------------------------------------------- the plan


def read_plan(path: str | Path) -> list[dict[str, Any]]:
    """The rules of a plan file. RecipeError where it is not one."""
    try:
        said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise RecipeError(f"plan {path} cannot be read: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise RecipeError(f"plan {path} is not TOML: {problem}") from None
    for key in said:
        if key != "rule":
            raise RecipeError(f"plan {path}: {unknown_key(key, ['rule'])}; a plan is a list of [[rule]]")
    rules = said.get("rule")
    if not isinstance(rules, list) or not rules or not all(isinstance(r, dict) for r in rules):
        raise RecipeError(f"plan {path} has no rules: write a [[rule]] with a kind ({', '.join(RULES)}) for each")
    return rules


def curate(dataset: Dataset | str | Path, plan: str | Path | list[dict[str, Any]], out: str | Path) -> Curated:
    """Apply a plan (its file, or its rules) to a dataset and freeze what is left into the folder `out`.

    Raises RecipeError for a plan that cannot be read, DataError where a rule meets nothing it could mean or nothing would be left.
    """
    ds = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    rules = plan if isinstance(plan, list) else read_plan(plan)
    stock = Stock(ds, np.ones(ds.n_judgements, bool))
    steps, trail = [], []
    for n, said in enumerate(rules, 1):
        own = dict(said)
        where = f"rule {n}"
        kind, why = own.pop("kind", None), own.pop("why", None)
        if kind not in RULES:
            raise RecipeError(f"{where}: kind = {kind!r} (known: {', '.join(RULES)})")
        if why is not None and not isinstance(why, str):
            raise RecipeError(f"{where} ({kind}): why = {why!r} should be text")
        before, made_before = len(stock.rows), len(stock.made)
        stock.touched = []
        keys = bind(RULES[kind], own, f"{where} ({kind})")
        try:
            RULES[kind](stock, **keys)
        except (DataError, RecipeError) as problem:
            raise type(problem)(f"{where} ({kind}): {problem}") from None
        for row, did in stock.touched:
            line = {"rule": n, "kind": kind, "row": ds.row_id(row), "did": did}
            trail.append((row, line | ({"why": why} if why else {})))
        for row, judgement in stock.made[made_before:]:
            line = {"rule": n, "kind": kind, "row": ds.row_id(row), "did": "a pair made of it"}
            line |= {"made": canonical(judgement)[3][0].hex()} | ({"why": why} if why else {})
            trail.append((row, line))
        left = len(stock.rows)
        if not left:
            raise DataError(f"{where} ({kind}): drops all of the {before:,} rows that were left")
        steps.append(
            Step(said, before, before - left, len(stock.touched) - (before - left), len(stock.made) - made_before)
        )
    became: dict[int, str] = {}

    def records() -> Iterator[tuple[Judgement, str, int]]:
        for row, judgement in records_of(ds, stock.rows):
            if to := stock.to.get(row):
                judgement = _relabelled(judgement, to)
            if row in stock.weight:
                judgement = replace(judgement, extra={**(judgement.extra or {}), **stock.weight[row]})
            if to or row in stock.weight:
                became[row] = canonical(judgement)[3][0].hex()
            yield (judgement, *ds.origins(row)[0])
        for row, judgement in stock.made:
            yield (judgement, *ds.origins(row)[0])

    def beside() -> dict[str, bytes]:
        lines = [line | ({"became": became[row]} if row in became and stock.alive[row] else {}) for row, line in trail]
        report = {
            "format": FORMAT,
            "parent": ds.root,
            "rules": rules,
            "steps": [
                {"rows": s.rows, "dropped": s.dropped, "changed": s.changed} | ({"made": s.made} if s.made else {})
                for s in steps
            ],
            "rows": {
                "parent": ds.n_judgements,
                "left": len(stock.rows),
                "relabelled": sum(bool(stock.alive[row]) for row in stock.to),
            }
            | ({"weighed": sum(bool(stock.alive[row]) for row in stock.weight)} if stock.weight else {})
            | ({"made": len(stock.made)} if stock.made else {}),
        }
        listed = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
        return {"curation.json": canonical_json(report) + b"\n", "curated.jsonl": listed}

    made = freeze_records(records(), out, beside=beside)
    return Curated(made, made.root, ds.root, steps)


def _relabelled(j: Judgement, to: str) -> Judgement:
    if to == "tie":
        return replace(j, kind="tie", value=None, margin=None)
    if j.kind == "soft":
        return replace(j, value=1 - (j.value or 0.0))
    if j.kind == "label":
        return replace(j, value=1.0 - (j.value or 0.0))
    if j.kind == "ranking":
        ranks = j.ranks if j.ranks is not None else tuple(range(len(j.responses)))
        return replace(j, ranks=tuple(max(ranks) - r for r in ranks))
    turned = {
        name: None if value is None else tuple(reversed(value))
        for name, value in (("responses", j.responses), ("shown", j.shown), ("sources", j.sources))
    }
    return replace(j, **turned)  # type: ignore[arg-type]
