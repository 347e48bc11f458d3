"""Splits: a partition of a dataset by prompt group, so that no prompt is on two sides. Content-addressed, like the
dataset.

A group is every prompt that reads the same when case and white space are set aside. In a dataset of segments it is an
episode. Which part a group falls into depends on the seed and the group's own text alone, within its category.

`[data.split] group` joins such groups further: prompts that are near-duplicates, or whose judgements share a source, an
annotator or what they say in another column. Prompts stay whole, so what is joined are connected components.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from holdfast.data.columns import values
from holdfast.data.dataset import Dataset, Problem, canonical_json, content_json
from holdfast.data.ragged import Ragged
from holdfast.data.records import Content, Segment
from holdfast.errors import DataError, IntegrityError, RecipeError
from holdfast.recipe import SplitTable

FORMAT = "holdfast-split/1"
PARTS = ("train", "validation", "test", "ood")


@dataclass(frozen=True)
class Split:
    """A partition of a dataset's judgements.

    parts:    name to row numbers, (n,) int64 rising: train, validation, test, ood.
    left_out: (row, reason) of judgements in no part: comparisons of segments whose episodes lie in different parts.
    members:  (key, part) by key, for all but `train`: prompt ids (episode names, for segments). With the dataset's root
              and the spec, this is what the digest commits to; whatever is not listed is `train`.
    """

    parts: dict[str, np.ndarray]
    digest: str
    spec: SplitTable
    dataset_root: str
    members: tuple[tuple[str, str], ...]
    left_out: list[tuple[int, str]]

    def save(self, folder: str | Path) -> Path:
        """Write `split.json` into the folder, whole or not at all; its path."""
        path = Path(folder) / "split.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(".split.json.half")
        with half.open("wb") as file:
            file.write(_split_bytes(self.dataset_root, self.spec, self.members))
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
        return path


@dataclass(frozen=True)
class Groups:
    """What a split must not tear apart.

    keys:  one digest per group, 64 hex characters; of several prompts joined the least of theirs.
    of:    for each judgement the groups it touches: one, except where it compares segments of two episodes.
    members: what belongs to the groups, by sorted name (prompt ids, or episode names), and
    member_group: (M,) int64, the group of each.
    """

    keys: list[str]
    of: Ragged
    members: list[str]
    member_group: np.ndarray


def groups(ds: Dataset, by: str | None = None) -> Groups:
    """The prompt groups of a dataset of text, or the episodes of a dataset of segments.

    by: what else no two groups may share, as `[data.split] group` says it. RecipeError where it joins everything.
    """
    if ds.kind == "segments":
        if by is not None:
            raise RecipeError(
                f"[data.split] group = {by!r}: a dataset of segments is split by episode; leave group out"
            )
        episode_of = np.empty(ds.n_responses, dtype=object)
        for start, contents in ds.iter_contents("responses"):
            for n, segment in enumerate(contents):
                assert isinstance(segment, Segment)
                episode_of[start + n] = segment.episode
        members = sorted(set(episode_of.tolist()))
        number = {episode: n for n, episode in enumerate(members)}
        group_of = np.array([number[e] for e in episode_of], dtype=np.int64)
        of = Ragged.of([np.unique(group_of[responses]) for responses in ds.responses_of], dtype=np.int64)
        keys = [sha256(b"holdfast/episode-group/1\0" + e.encode()).hexdigest() for e in members]
        return Groups(keys, of, members, np.arange(len(members)))
    keys_of: dict[str, int] = {}
    of_prompt = np.empty(ds.n_prompts, dtype=np.int64)
    for start, contents in ds.iter_contents("prompts"):
        for n, content in enumerate(contents):
            key = sha256(b"holdfast/prompt-group/1\0" + normalised(content).encode()).hexdigest()
            of_prompt[start + n] = keys_of.setdefault(key, len(keys_of))
    keys = list(keys_of)
    if by is not None:
        keys, of_prompt = _joined(ds, by, keys, of_prompt)
    of = Ragged(of_prompt[ds.prompt_of], np.arange(ds.n_judgements + 1))
    return Groups(keys, of, ds.prompt_ids, of_prompt)  # prompts are stored by rising id


def _joined(ds: Dataset, by: str, keys: list[str], of_prompt: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(keys, (P,) group of each prompt) where prompt groups that share something are one: connected components."""
    # Imported here: a run that splits by prompt waits for none of it; and what finds near-duplicates reads splits itself.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    # Links between a prompt group and what it shares with others: edges of a graph of two kinds of nodes.
    if by == "near-duplicates":
        from holdfast.data.inspect.material import Texts
        from holdfast.data.inspect.near import near

        ends, shared = of_prompt, near(Texts.of_dataset(ds, "prompts")).cluster
    else:
        try:
            said = values(ds, by)
        except (DataError, RecipeError) as problem:
            raise RecipeError(f"[data.split] group = {by!r}: {problem} (or prompt, near-duplicates)") from None
        if not any(said):
            raise RecipeError(f"[data.split] group = {by!r}: no row says anything there; leave group out")
        number: dict[str, int] = {}
        links = {
            (int(of_prompt[p]), number.setdefault(f"{type(v).__name__} {v}", len(number)))
            for p, own in zip(ds.prompt_of.tolist(), said, strict=True)
            for v in own
        }
        ends, shared = np.array(sorted(links), dtype=np.int64).reshape(-1, 2).T
    n = len(keys)
    width = int(shared.max(initial=-1)) + 1
    graph = csr_array((np.ones(len(ends), np.int8), (ends, n + shared)), shape=(n + width, n + width))
    _, component = connected_components(graph, directed=False)
    found, of_key = np.unique(component[:n], return_inverse=True)
    if len(found) == 1 and n > 1:
        most = np.bincount(shared).max()
        raise RecipeError(
            f"[data.split] group = {by!r} joins all {n:,} prompt groups into one (one value of it alone touches {most:,}), and prompts stay whole: "
            "there is nothing to split; take another group, or hold out a category"
        )
    least: dict[int, str] = {}
    for key, g in zip(keys, of_key.tolist(), strict=True):
        least[g] = min(key, least.get(g, key))
    return [least[g] for g in range(len(found))], of_key[of_prompt]


def normalised(prompt: Content) -> str:
    """A prompt's text with case and white space set aside. A single user message reads the same as its plain text."""
    if isinstance(prompt, str):
        text = prompt
    elif isinstance(prompt, dict) and "messages" in prompt:
        return normalised(prompt["messages"])
    elif isinstance(prompt, list):
        text = " ".join(
            str(v) if isinstance(v, str) else canonical_json(v).decode()
            for message in prompt
            for k, v in sorted(message.items())
            if k != "role" and v is not None
        )
    else:
        text = content_json(prompt).decode()
    return re.sub(r"\s+", " ", text.casefold()).strip()


def make_split(ds: Dataset, spec: SplitTable) -> Split:
    """Partition a dataset as the recipe's [data.split] says. A pure function of both.

    Shares are of groups, rounded half up over the whole and then, when stratified, dealt to the categories by largest
    remainder. Where `group` joins prompts, groups differ in size and shares are of prompts: a group is taken, in the order
    of the seed, where that brings the part nearer to its share. A group with any judgement in a held-out category is wholly
    `ood`. RecipeError for an unknown category, and for a share that no group is small enough for.
    """
    found = groups(ds, spec.group)
    n = len(found.keys)
    owner, touched = found.of.owner, found.of.flat
    names: list[str | None] = [ds.categories[i] for i in owner]
    counts: list[Counter[str | None]] = [Counter() for _ in range(n)]
    for group, name in zip(touched.tolist(), names, strict=True):
        counts[group][name] += 1
    known = {c for c in ds.categories if c is not None}
    for name in spec.holdout:
        if name not in known:
            have = ", ".join(repr(c) for c in sorted(known)[:50]) or "none"
            raise RecipeError(
                f"[data.split] holdout: no judgement has category {name!r}; the dataset's categories: {have}"
            )
    held = set(spec.holdout)
    part = np.zeros(n, dtype=np.int8)  # numbers into PARTS
    strata: dict[str, list[int]] = {}
    for g in range(n):
        if held & counts[g].keys():
            part[g] = 3
        else:
            # a group of several categories counts under its commonest
            main = min(counts[g], key=lambda c: (-counts[g][c], c is not None, c or ""))
            strata.setdefault(canonical_json(main).decode() if spec.stratify else "", []).append(g)
    if not strata:
        raise RecipeError(
            f"[data.split] holdout = {list(spec.holdout)!r} holds out every prompt; nothing is left to train on"
        )

    def place(g: int) -> bytes:
        return sha256(b"holdfast/split-order/1\0" + f"{spec.seed} {found.keys[g]}".encode()).digest()

    for members in strata.values():
        members.sort(key=place)
    if spec.group is None:
        room = {name: len(members) for name, members in strata.items()}
        tests = _deal(spec.test, room)
        validations = _deal(spec.validation, room, {name: room[name] - tests[name] for name in room})
        for name, members in strata.items():
            part[members[: tests[name]]] = 2
            part[members[tests[name] : tests[name] + validations[name]]] = 1
    else:
        size = np.bincount(found.member_group, minlength=n)
        for name, share, number in (("test", spec.test, 2), ("validation", spec.validation, 1)):
            taken = _fill(share, strata, size, part == 0)
            if share and not taken:
                raise RecipeError(
                    f"[data.split] {name} = {share:g}: no group by {spec.group!r} is small enough (the smallest of {n:,} has {size.min():,} of "
                    f"{len(found.members):,} prompts); set a larger share, or 0"
                )
            part[taken] = number
    if not (part == 0).any():
        raise RecipeError(f"[data.split] leaves nothing to train on: {n} prompt groups are too few for these shares")
    of_member = part[found.member_group]
    listed = sorted((found.members[m], PARTS[of_member[m]]) for m in np.flatnonzero(of_member))
    return _split(ds, spec, tuple(listed), found)


def load_split(folder: str | Path, ds: Dataset) -> Split:
    """The split saved in a folder, for this dataset. IntegrityError if it was changed or belongs to other data."""
    path = Path(folder) / "split.json"
    if not path.is_file():
        raise DataError(f"{folder} has no split.json")
    if problems := verify_split(folder, ds.root):
        raise IntegrityError(f"split in {folder}: " + "; ".join(map(str, problems)))
    said = orjson.loads(path.read_bytes())
    members = tuple((key, part) for key, part in said["members"])
    spec = SplitTable.model_validate(said["spec"])
    return _split(ds, spec, members, groups(ds, spec.group))


def part_rows(ds: Dataset, split: str | Path | None, part: str | None) -> np.ndarray | None:
    """The rows of one part of the split saved in a folder; None, for all rows, if neither is given."""
    if split is None and part is None:
        return None
    if split is None or part is None:
        raise DataError("--split FOLDER and --part NAME go together: a part is one of a split")
    parts = load_split(split, ds).parts
    if part not in parts:
        raise DataError(f"--part {part!r}: a split has the parts {', '.join(parts)}")
    return parts[part]


def verify_split(folder: str | Path, dataset_root: str | None = None) -> list[Problem]:
    """What does not hold about a saved split: [] if it is whole and (where the root is given) is of that dataset.
    Never raises.
    """
    where = "split.json"
    try:
        raw = (Path(folder) / where).read_bytes()
        said = orjson.loads(raw)
        members = tuple((str(key), str(part)) for key, part in said["members"])
        spec = SplitTable.model_validate(said["spec"])
        if not {part for _, part in members} <= set(PARTS[1:]):
            return [Problem("the split names other parts", where, str({p for _, p in members})[:80], ", ".join(PARTS))]
        if (digest := _digest(said["dataset"], spec, members)) != said["digest"]:
            return [Problem("the split does not hash to its digest", where, digest, str(said["digest"])[:80])]
        if _split_bytes(said["dataset"], spec, members) != raw:
            return [Problem("the split's bytes have changed", where, "other bytes", "the bytes that were saved")]
        if dataset_root is not None and said["dataset"] != dataset_root:
            return [
                Problem("the split is of another dataset", where, f"root {said['dataset']}", f"root {dataset_root}")
            ]
    except OSError as problem:
        return [Problem("the split cannot be read", where, str(problem)[:200], "a split")]
    except Exception as problem:  # not JSON, or JSON of another shape
        return [
            Problem("the split cannot be understood", where, f"{type(problem).__name__}", "the bytes that were saved")
        ]
    return []


def check_disjoint(ds: Dataset, split: Split, found: Groups | None = None) -> None:
    """Raise IntegrityError if any prompt group has judgements in two parts."""
    found = found or groups(ds, split.spec.group)
    seen = np.full(len(found.keys), -1)
    for n, (name, rows) in enumerate(split.parts.items()):
        mine = np.unique(found.of.take(rows).flat)
        for other in range(n):
            shared = mine[seen[mine] == other]
            if len(shared):
                before = list(split.parts)[other]
                first = min(found.keys[g] for g in shared.tolist())
                what = "episodes" if ds.kind == "segments" else "prompt groups"
                by = "episode" if ds.kind == "segments" else split.spec.group or "prompt"
                remedy = f"(first {first[:8]}..); re-split by {by}"
                raise IntegrityError(f"split {name!r} shares {len(shared)} {what} with {before!r} {remedy}")
        seen[mine] = n


def _split(ds: Dataset, spec: SplitTable, members: tuple[tuple[str, str], ...], found: Groups) -> Split:
    """Rows by part, from the part of every member."""
    number = {name: n for n, name in enumerate(found.members)}
    member_part = np.zeros(len(number), dtype=np.int64)
    for key, part in members:
        if key not in number:
            raise IntegrityError(f"the split names {key[:64]}, which is not in dataset {ds.root[:12]}")
        member_part[number[key]] = PARTS.index(part)
    if ds.kind == "segments":
        part_of_touched = member_part[found.of.flat]  # a group is its one member
    else:
        part_of_touched = member_part[ds.prompt_of]
    low = np.minimum.reduceat(part_of_touched, found.of.offsets[:-1])
    high = np.maximum.reduceat(part_of_touched, found.of.offsets[:-1])
    split = Split(
        parts={name: np.flatnonzero((low == n) & (high == n)) for n, name in enumerate(PARTS)},
        digest=_digest(ds.root, spec, members),
        spec=spec,
        dataset_root=ds.root,
        members=members,
        left_out=[
            (int(i), f"its episodes lie in both {PARTS[low[i]]!r} and {PARTS[high[i]]!r}")
            for i in np.flatnonzero(low != high)
        ],
    )
    check_disjoint(ds, split, found)
    return split


def _deal(share: float, room: dict[str, int], left: dict[str, int] | None = None) -> dict[str, int]:
    """A share of all groups, as whole numbers per stratum: largest remainder, never more than is left in one."""
    exact = Fraction(str(share))
    left = left or room
    due = {name: exact * n for name, n in room.items()}
    dealt = {name: min(int(due[name]), left[name]) for name in room}
    short = int(exact * sum(room.values()) + Fraction(1, 2)) - sum(dealt.values())
    while short > 0:
        open_ = [name for name in room if dealt[name] < left[name]]
        if not open_:
            break
        for name in sorted(open_, key=lambda s: (dealt[s] - due[s], s))[:short]:
            dealt[name] += 1
            short -= 1
    return dealt


def _fill(share: float, strata: dict[str, list[int]], size: np.ndarray, free: np.ndarray) -> list[int]:
    """Groups whose sizes come near to a share of every stratum: what one stratum falls short of is added to the next."""
    taken: list[int] = []
    owed = Fraction(0)
    for name in sorted(strata):
        owed += Fraction(str(share)) * int(size[strata[name]].sum())
        for g in strata[name]:
            if free[g] and 2 * owed >= int(size[g]):  # taking it leaves the part no further from its share
                taken.append(g)
                owed -= int(size[g])
    return taken


def _said(root: str, spec: SplitTable, members: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dataset": root,
        "spec": spec.model_dump(mode="json", exclude_none=True),
        "members": members,
    }


def _digest(root: str, spec: SplitTable, members: tuple[tuple[str, str], ...]) -> str:
    return sha256(b"holdfast/split/1\0" + canonical_json(_said(root, spec, members))).hexdigest()


def _split_bytes(root: str, spec: SplitTable, members: tuple[tuple[str, str], ...]) -> bytes:
    said = {**_said(root, spec, members), "digest": _digest(root, spec, members)}
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
