"""A frozen log: episodes, and judgements over their segments, content-addressed.

    episodes.parquet     id, steps, observations, actions, last, terminated, truncated: a row per episode
    rewards.parquet      id, episode, rewards                                 where there are rewards
    behaviour.parquet    id, episode, behaviour, propensities, action_probs   where any of them was logged
    judgements.parquet   id, first, second, p, annotator                      where segments were judged
    manifest.json        written last: the root, every table's root, every file's SHA-256, facts, parent

A row's id is the digest of the rest of it, an episode's that of `Episodes.digest`. The **root** names the content: the
size and Merkle root of each table. Rewards stand apart from what they reward, so that a relabelled log keeps its episodes
and the judgements over them. Order is content: it is kept as it was logged. Facts and parent stand beside the root, sealed
with the manifest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.segments import Segments, attach, named, segment_judgement_id
from holdfast.data.dataset import DIGEST, Problem, canonical_json, file_sha256, manifest_bytes
from holdfast.data.disk import alive, sync
from holdfast.data.merkle import Merkle
from holdfast.data.offline import refuse_dataset
from holdfast.errors import IntegrityError

FORMAT = "holdfast-log/1"
_GROUP_BYTES = 4 << 20  # a table's row groups: small enough to find a damaged row without reading much


def _must(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _many(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.list_(_must("element", kind)), nullable=nullable)


_SIDE = pa.struct([_must("episode", DIGEST), _must("start", pa.int64()), _must("length", pa.int64())])
SCHEMAS: dict[str, pa.Schema] = {
    "episodes": pa.schema(
        [
            _must("id", DIGEST),
            _must("steps", pa.int64()),
            _many("observations", pa.float32()),
            _many("actions", pa.int64()),  # float32 where they are continuous
            _many("last", pa.float32()),
            _must("terminated", pa.bool_()),
            _must("truncated", pa.bool_()),
        ]
    ),
    "rewards": pa.schema([_must("id", DIGEST), _must("episode", DIGEST), _many("rewards", pa.float64())]),
    "behaviour": pa.schema(
        [
            _must("id", DIGEST),
            _must("episode", DIGEST),
            pa.field("behaviour", pa.int32()),
            _many("propensities", pa.float64(), nullable=True),
            _many("action_probs", pa.float64(), nullable=True),
        ]
    ),
    "judgements": pa.schema(
        [
            _must("id", DIGEST),
            _must("first", _SIDE),
            _must("second", _SIDE),
            _must("p", pa.float64()),
            pa.field("annotator", pa.string()),
            _must("copy", pa.int32()),
        ]
    ),
}


@dataclass(frozen=True)
class Log:
    """An opened log. What lies in its tables is read at first use."""

    path: Path
    manifest: dict[str, Any]

    @property
    def root(self) -> str:
        return self.manifest["root"]

    @property
    def facts(self) -> dict[str, Any]:
        """What was said of the log when it was frozen: where it comes from, who behaved, what was dropped."""
        return self.manifest["facts"]

    @property
    def parent(self) -> str | None:
        """The root of the log that this one was made from."""
        return self.manifest["parent"]

    @cached_property
    def episode_ids(self) -> list[str]:
        """The digest of each episode, 64 hex characters."""
        return [i.hex() for i in self._read("episodes", ["id"])["id"].to_pylist()]

    @cached_property
    def episodes(self) -> Episodes:
        tables = {n: self._read(n) for n in ("episodes", "rewards", "behaviour") if n in self.manifest["tables"]}
        made = _episodes(tables, self.manifest["shape"], self.facts)
        if len(made) != (rows := self.manifest["tables"]["episodes"]["rows"]):
            raise IntegrityError(f"{self.path}: {len(made)} episodes, the manifest says {rows}")
        return made

    @cached_property
    def segments(self) -> Segments | None:
        """The judgements, with their numbers into `episodes`; None where nothing was judged."""
        if "judgements" not in self.manifest["tables"]:
            return None
        made = attach(_sides(self._read("judgements")), self.episode_ids, f"{self.path}: judgements")
        return replace(made, facts=self.facts.get("judgements") or {})

    def __len__(self) -> int:
        return self.manifest["tables"]["episodes"]["rows"]

    def __repr__(self) -> str:
        tables = self.manifest["tables"]
        judged = f", {tables['judgements']['rows']} judgements" if "judgements" in tables else ""
        return (
            f"Log({self.root[:12]}, {len(self)} episodes, {self.manifest['steps']} steps{judged}, {str(self.path)!r})"
        )

    def _read(self, table: str, columns: list[str] | None = None) -> pa.Table:
        path = self.path / f"{table}.parquet"
        try:
            return pq.read_table(path, columns=columns, partitioning=None)
        except Exception as problem:  # whatever a damaged file makes of parquet's decoder
            raise IntegrityError(f"{path} cannot be read: {_one_line(problem)}") from None


def freeze_episodes(
    episodes: Episodes,
    out: str | Path,
    *,
    segments: Segments | None = None,
    facts: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> Log:
    """Freeze episodes, and the judgements over their segments, as a log in the folder `out`.

    facts: laid over `episodes.facts`; what JSON can carry. parent: the root of the log that this one was made from.
    Freezing the same into the same folder again does nothing; anything else that is in the way is an `EpisodesError`.
    """
    out = Path(out)
    refuse_dataset(None, f"freeze a log into {out}")
    if not len(episodes):
        raise EpisodesError("there is nothing to freeze: no episode")
    if out.exists() and not out.is_dir():
        raise EpisodesError(f"{out} is a file; a log needs a folder of its own")
    if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise EpisodesError(f"{out} holds other files; a log needs a new or an empty folder")
    told = {k: v for k, v in episodes.facts.items() if k != "judgements"}  # those of the log they came from
    told |= facts or {}
    if segments is not None:
        segments.check(episodes.offsets)
        if segments.facts:
            told["judgements"] = segments.facts
    try:
        told = orjson.loads(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY))
    except TypeError as problem:
        raise EpisodesError(f"facts cannot be written as JSON: {problem}") from None

    ids = [episodes.digest(e) for e in range(len(episodes))]
    continuous = episodes.n_actions is None
    shape: dict[str, Any] = {
        "observation": list(episodes.observations.shape[1:]),
        "action": int(episodes.actions.shape[1]) if continuous else None,
        "n_actions": episodes.n_actions,
    }
    folder = out.absolute().parent / f".{out.name}.freezing-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{out.name}.freezing-*"):
            if left == folder or not alive(left.name.rpartition("-")[2]):
                shutil.rmtree(left)  # of a freeze that was killed
        folder.mkdir()
        tables: dict[str, dict[str, Any]] = {}

        def write(name: str, rows: int, bytes_per_row: float, columns: Callable[[slice], dict[str, pa.Array]]) -> None:
            tree, path, schema = Merkle(), folder / f"{name}.parquet", _schema(name, continuous)
            step = max(1, int(_GROUP_BYTES / max(bytes_per_row, 1)))
            with pq.ParquetWriter(
                path, schema, compression="NONE", use_dictionary=False, write_statistics=False, store_schema=False
            ) as file:
                for start in range(0, rows, step):
                    made = columns(slice(start, min(start + step, rows)))
                    tree.extend(made["id"].to_pylist())
                    table = pa.Table.from_arrays([made[f.name] for f in schema], schema=schema)
                    file.write_table(table, row_group_size=max(table.num_rows, 1))
            sync(path)
            size, digest = path.stat().st_size, file_sha256(path)
            tables[name] = {"rows": rows, "root": tree.root().hex(), "bytes": size, "sha256": digest}

        n, bounds = len(episodes), episodes.offsets
        per_row = len(episodes.observations) / n * 4

        def steps(column: np.ndarray | None, rows: slice) -> pa.Array:
            """A column of steps as one list for each of these episodes."""
            if column is None:
                return pa.nulls(rows.stop - rows.start, pa.list_(_must("element", pa.float64())))
            cut = bounds[rows.start : rows.stop + 1]
            width = int(np.prod(column.shape[1:], dtype=np.int64))
            flat = np.ascontiguousarray(column[cut[0] : cut[-1]]).reshape(-1)
            made = pa.array(flat)
            kind = pa.list_(_must("element", made.type))
            return pa.ListArray.from_arrays(pa.array((cut - cut[0]) * width, pa.int32()), made, type=kind)

        def digests_of(rows: slice) -> pa.Array:
            return pa.array([bytes.fromhex(i) for i in ids[rows]], DIGEST)

        def of_episodes(rows: slice) -> dict[str, pa.Array]:
            width = int(np.prod(episodes.last.shape[1:], dtype=np.int64))
            ends = pa.array(np.arange(rows.stop - rows.start + 1) * width, pa.int32())
            last = pa.array(np.ascontiguousarray(episodes.last[rows]).reshape(-1))
            return {
                "id": digests_of(rows),
                "steps": pa.array(np.diff(bounds[rows.start : rows.stop + 1])),
                "observations": steps(episodes.observations, rows),
                "actions": steps(episodes.actions, rows),
                "last": pa.ListArray.from_arrays(ends, last, type=pa.list_(_must("element", pa.float32()))),
                "terminated": pa.array(episodes.terminated[rows]),
                "truncated": pa.array(episodes.truncated[rows]),
            }

        write("episodes", n, per_row * int(np.prod(shape["observation"]) + 2), of_episodes)
        if episodes.rewards is not None:

            def of_rewards(rows: slice) -> dict[str, pa.Array]:
                made = {"episode": digests_of(rows), "rewards": steps(episodes.rewards, rows)}
                return {"id": pa.array(_rewards_ids(**made), DIGEST), **made}

            write("rewards", n, per_row * 2, of_rewards)
        if any(c is not None for c in (episodes.behaviour, episodes.propensities, episodes.action_probs)):

            def of_behaviour(rows: slice) -> dict[str, pa.Array]:
                who = episodes.behaviour
                made = {
                    "episode": digests_of(rows),
                    "behaviour": pa.nulls(rows.stop - rows.start, pa.int32()) if who is None else pa.array(who[rows]),
                    "propensities": steps(episodes.propensities, rows),
                    "action_probs": steps(episodes.action_probs, rows),
                }
                return {"id": pa.array(_behaviour_ids(**made), DIGEST), **made}

            write("behaviour", n, per_row * 2 * (1 + (episodes.n_actions or 0)), of_behaviour)
        if segments is not None:
            # Digests anew, from the episodes that stand here: a judgement cannot point at what is not in the log.
            said = Segments.of(ids, segments.episode, segments.start, segments.length, segments.p, segments.annotator)
            rows_said = named(said, ids)
            copies = _copies(rows_said)

            def of_judgements(rows: slice) -> dict[str, pa.Array]:
                def side(name: str) -> pa.Array:
                    return pa.array([{**r[name], "episode": bytes.fromhex(r[name]["episode"])} for r in picked], _SIDE)

                picked = rows_said[rows]
                return {
                    "id": pa.array([bytes.fromhex(i) for i in said.ids[rows]], DIGEST),
                    "first": side("first"),
                    "second": side("second"),
                    "p": pa.array([r["p"] for r in picked], pa.float64()),
                    "annotator": pa.array([r["annotator"] for r in picked], pa.string()),
                    "copy": pa.array(copies[rows], pa.int32()),
                }

            write("judgements", len(said), 256, of_judgements)
        manifest = {
            "format": FORMAT,
            "root": _root(tables),
            "shape": shape,
            "steps": len(episodes.observations),
            "tables": tables,
            "facts": told,
            "parent": parent,
        }
        sealed = manifest_bytes(manifest)
        (folder / "manifest.json").write_bytes(sealed)
        sync(folder / "manifest.json")
        sync(folder)
        if out.is_dir() and any(out.iterdir()):
            if (out / "manifest.json").read_bytes() != sealed:
                raise EpisodesError(f"{out} holds another log or dataset; name a new folder")
            if problems := verify_log(out):
                raise EpisodesError(f"{out} holds this log, but damaged ({problems[0]}); name a new folder")
            return open_log(out, check=False)
        if out.is_dir():
            out.rmdir()  # empty
        folder.replace(out)
        sync(out.absolute().parent)
    except OSError as problem:
        raise EpisodesError(f"cannot freeze into {out}: {problem}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return open_log(out, check=False)


def relabel(log: Log, rewards: np.ndarray, out: str | Path, *, facts: Mapping[str, Any] | None = None) -> Log:
    """The same episodes and judgements under other rewards (T,), as a new log whose parent is `log`."""
    rewards = np.asarray(rewards, dtype=np.float64)
    again = replace(log.episodes, rewards=rewards)
    return freeze_episodes(again, out, segments=log.segments, facts=facts, parent=log.root)


def open_log(path: str | Path, check: bool = True) -> Log:
    """Open a frozen log. With `check`, every file is hashed first.

    Raises IntegrityError naming what was damaged, down to table and row; EpisodesError if there is no log at `path`.
    """
    folder = Path(path)
    if not is_log(folder):
        raise EpisodesError(f"{folder} is no frozen log; `holdfast control freeze SOURCE -o {folder}` makes one")
    manifest, problems = _check_manifest(folder)
    if manifest is not None:
        refuse_dataset(manifest["root"], f"open log {folder}")
        if check and any(_wrong_file(folder, name, said) for name, said in manifest["tables"].items()):
            problems = verify_log(folder)
    if problems or manifest is None:
        raise IntegrityError(f"log {folder} is damaged:\n" + "\n".join(f"  {p}" for p in problems))
    return Log(folder, manifest)


def is_log(path: str | Path) -> bool:
    """Whether a folder is a log, whole or damaged: its manifest says so, or lies beside a table of episodes."""
    try:
        raw = (Path(path) / "manifest.json").read_bytes()
        return (Path(path) / "episodes.parquet").is_file() or orjson.loads(raw)["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError):
        return False


def verify_log(path: str | Path) -> list[Problem]:
    """Everything in a log's folder that does not hash to what it says: [] if all does. Names table and row; never
    raises, whatever was done to the files.
    """
    folder = Path(path)
    manifest, problems = _check_manifest(folder)
    if manifest is None:
        return problems
    for name, said in manifest["tables"].items():
        where = f"{name}.parquet"
        damage, rows, root = _check_rows(folder / where, name, manifest["shape"])
        if not damage and (changed := _wrong_file(folder, name, said)):
            if rows != said["rows"]:
                damage = [Problem("rows are missing or added", where, f"{rows} rows", f"{said['rows']} rows")]
            elif root != said["root"]:
                what = "the rows are others, or in another order"
                damage = [Problem(what, where, f"root {root}", f"root {said['root']}")]
            else:
                what = f"{changed.what}, in its bookkeeping only: every row is whole"
                damage = [Problem(what, where, changed.found, changed.expected)]
        problems += damage
    if not problems:
        try:
            log = Log(folder, manifest)
            for table in ("rewards", "behaviour"):
                if table in manifest["tables"]:
                    said_of = [i.hex() for i in log._read(table, ["episode"])["episode"].to_pylist()]
                    if said_of != log.episode_ids:
                        raise EpisodesError(f"{table}.parquet is not of these episodes, in this order")
            if log.segments is not None:
                log.segments.check(log.episodes.offsets)
        except Exception as problem:
            problems.append(Problem("the tables do not fit together", "the tables", _one_line(problem), "no such gap"))
    return problems


def split_episodes(log: Log, validation: float, test: float, seed: int) -> dict[str, np.ndarray]:
    """A partition by episode: {"train", "validation", "test"} -> episode numbers, (n,) int64 rising.

    Where an episode falls depends on the seed and the digests alone; equal episodes fall together. Shares are of distinct
    episodes, rounded half up. Raises `EpisodesError` where a share leaves a part it asks for, or `train`, empty.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise EpisodesError(f"{name} = {share} should be a share of the episodes, from 0 to below 1")
    digests = sorted(set(log.episode_ids))
    digests.sort(key=lambda d: sha256(b"holdfast/episode-split/1\0" + f"{seed} {d}".encode()).digest())
    counts = {name: int(share * len(digests) + 0.5) for name, share in (("test", test), ("validation", validation))}
    for name, share in (("test", test), ("validation", validation)):
        if share and not counts[name]:
            raise EpisodesError(
                f"{name} = {share} of {len(digests)} distinct episodes is none; log more, or give a larger share"
            )
    if sum(counts.values()) >= len(digests):
        raise EpisodesError(
            f"validation = {validation} and test = {test} leave nothing to train on: {len(digests)} distinct episodes"
        )
    cut = np.cumsum([0, counts["test"], counts["validation"]])
    part_of = {d: "test" if i < cut[1] else "validation" if i < cut[2] else "train" for i, d in enumerate(digests)}
    parts = np.array([part_of[d] for d in log.episode_ids])
    return {name: np.flatnonzero(parts == name).astype(np.int64) for name in ("train", "validation", "test")}


# What is hashed, and how it is checked.


def _root(tables: Mapping[str, Mapping[str, Any]]) -> str:
    said = {name: {"rows": t["rows"], "root": t["root"]} for name, t in tables.items()}
    return sha256(b"holdfast/log/1\0" + canonical_json(said)).hexdigest()


def _schema(name: str, continuous: bool) -> pa.Schema:
    schema = SCHEMAS[name]
    if name == "episodes" and continuous:
        at = schema.get_field_index("actions")
        schema = schema.set(at, _many("actions", pa.float32()))
    return schema


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _lists(column: pa.Array | pa.ChunkedArray) -> Iterator[np.ndarray | None]:
    """Each row's list as an array, None where it is null."""
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        flat, ends = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        there = chunk.is_valid().to_numpy(zero_copy_only=False)
        for i in range(len(chunk)):
            yield flat[ends[i] : ends[i + 1]] if there[i] else None


def _rewards_ids(episode: pa.Array, rewards: pa.Array) -> list[bytes]:
    """SHA-256 over the episode's digest and its rewards."""
    rows = zip(episode.to_pylist(), _lists(rewards), strict=True)
    return [sha256(b"holdfast/rewards/1\0" + e + _bytes(r)).digest() for e, r in rows if r is not None]


def _behaviour_ids(
    episode: pa.Array, behaviour: pa.Array, propensities: pa.Array, action_probs: pa.Array
) -> list[bytes]:
    """SHA-256 over the episode's digest, which policy behaved, and what probabilities were logged."""
    made = []
    columns = (episode.to_pylist(), behaviour.to_pylist(), _lists(propensities), _lists(action_probs))
    for e, who, p, probs in zip(*columns, strict=True):
        said = canonical_json([who, p is not None, probs is not None])
        logged = b"".join(_bytes(c) for c in (p, probs) if c is not None)
        made.append(sha256(b"holdfast/behaviour/1\0" + e + said + b"\0" + logged).digest())
    return made


def _sides(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a judgement table in the form that `attach` takes."""
    rows = table.to_pylist()
    for row in rows:
        for side in ("first", "second"):
            row[side]["episode"] = row[side]["episode"].hex()
    return rows


def _copies(rows: list[dict[str, Any]]) -> list[int]:
    """How often each statement was made before."""
    seen: dict[bytes, int] = {}
    made = []
    for row in rows:
        key = canonical_json(row)
        made.append(seen.get(key, 0))
        seen[key] = made[-1] + 1
    return made


def _row_digests(name: str, table: pa.Table | pa.RecordBatch, shape: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Each row's stored id and the digest of the rest of it."""
    stored = table.column("id").to_pylist()
    if name == "episodes":
        whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        made = _episodes({"episodes": whole}, shape, {})
        found = [bytes.fromhex(made.digest(e)) for e in range(len(made))]
    elif name == "judgements":
        found = []
        for row in _sides(table):
            two = [[row[k][f] for f in ("episode", "start", "length")] for k in ("first", "second")]
            said = {"segments": two, "p": row["p"], **{k: row[k] for k in ("annotator", "copy") if row[k]}}
            found.append(bytes.fromhex(segment_judgement_id(said)))
    else:
        ids = _rewards_ids if name == "rewards" else _behaviour_ids
        found = ids(**{c: table.column(c) for c in SCHEMAS[name].names if c != "id"})
    return list(zip(stored, found, strict=True))


def _episodes(tables: Mapping[str, pa.Table], shape: Mapping[str, Any], facts: Mapping[str, Any]) -> Episodes:
    """Columns from the tables of a log."""
    table = tables["episodes"]
    n, steps = table.num_rows, int(np.sum(table["steps"].to_numpy())) if table.num_rows else 0

    def flat(name: str, column: str) -> np.ndarray | None:
        if name not in tables or tables[name][column].null_count:
            return None
        found = tables[name][column].combine_chunks()
        return np.array(found.flatten().to_numpy(zero_copy_only=False))  # a copy of one's own, aligned and writable

    def must(name: str, *width: int) -> np.ndarray:
        found = flat("episodes", name)
        assert found is not None
        return found.reshape(-1, *width)

    observation, width, count = shape["observation"], shape["action"], shape["n_actions"]
    probs = flat("behaviour", "action_probs")
    who = tables["behaviour"]["behaviour"] if "behaviour" in tables else None
    made = Episodes(
        observations=must("observations", *observation),
        actions=must("actions") if count is not None else must("actions", width),
        rewards=flat("rewards", "rewards"),
        offsets=np.concatenate(([0], np.cumsum(table["steps"].to_numpy()))).astype(np.int64),
        last=must("last", *observation),
        terminated=np.array(table["terminated"].to_pylist(), dtype=bool),
        truncated=np.array(table["truncated"].to_pylist(), dtype=bool),
        propensities=flat("behaviour", "propensities"),
        action_probs=None if probs is None else probs.reshape(-1, count or 0),
        behaviour=None if who is None or who.null_count else who.to_numpy().astype(np.int32),
        n_actions=count,
        facts=dict(facts),
    )
    # The lengths of the lists are the steps that are said, or what is hashed below is not what lies in the rows.
    per = {"observations": int(np.prod(observation)), "actions": width or 1}
    for column, size in per.items():
        lengths = np.diff(table[column].combine_chunks().offsets.to_numpy()) if n else np.zeros(0)
        if (lengths != np.diff(made.offsets) * size).any():
            raise EpisodesError(f"{column} and steps differ in length")
    if len(made.observations) != steps:
        raise EpisodesError(f"{len(made.observations)} observations, {steps} steps")
    return made


def _check_manifest(folder: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The manifest, or None and what is wrong with it."""
    where = "manifest.json"
    try:
        raw = (folder / where).read_bytes()
        manifest = orjson.loads(raw)
        if manifest.get("format") != FORMAT:
            found = str(manifest.get("format"))[:80]
            return None, [Problem("the manifest is of a format this version does not read", where, found, FORMAT)]
        if manifest["digest"] != (sealed := orjson.loads(manifest_bytes(manifest))["digest"]):
            found = str(manifest["digest"])[:80]
            return None, [Problem("the manifest does not hash to its digest", where, sealed, found)]
        if manifest_bytes(manifest) != raw:
            what = "the manifest's bytes have changed"
            return None, [Problem(what, where, "other spacing", "the bytes that were frozen")]
        files = {name for name, said in manifest["tables"].items() if len(said["sha256"]) == 64}
        if files != set(manifest["tables"]) or not {"episodes"} <= files <= set(SCHEMAS):
            return None, [Problem("the manifest lists other tables", where, str(sorted(manifest["tables"])), "a log's")]
        if (root := _root(manifest["tables"])) != manifest["root"]:
            return None, [Problem("the tables' roots do not give the log's root", where, root, manifest["root"])]
        _ = manifest["shape"]["observation"], manifest["facts"], manifest["parent"], manifest["steps"]
    except OSError as problem:
        return None, [Problem("the manifest cannot be read", where, _one_line(problem), "a manifest")]
    except Exception as problem:  # not JSON, or JSON of another shape
        said = "the bytes that were frozen"
        return None, [Problem("the manifest cannot be understood", where, _one_line(problem), said)]
    return manifest, []


def _wrong_file(folder: Path, name: str, said: Mapping[str, Any]) -> Problem | None:
    where = f"{name}.parquet"
    try:
        found = file_sha256(folder / where)
    except OSError as problem:
        return Problem("a file cannot be read", where, _one_line(problem), f"sha256 {said['sha256']}")
    if found != said["sha256"]:
        return Problem("a file's bytes have changed", where, f"sha256 {found}", f"sha256 {said['sha256']}")
    return None


def _check_rows(path: Path, name: str, shape: Mapping[str, Any]) -> tuple[list[Problem], int, str]:
    """Recompute every row's digest: the damaged rows, and the table's rows and root as found."""
    problems: list[Problem] = []
    at, tree = 0, Merkle()
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow != _schema(name, shape["n_actions"] is None):
                raise pa.ArrowInvalid(f"its columns are {file.schema_arrow.names}, or of other types")
            for g in range(file.num_row_groups):
                rows = file.metadata.row_group(g).num_rows
                try:
                    good = _row_digests(name, file.read_row_group(g), shape)
                except Exception:  # find the row
                    good = []
                    try:
                        for one in file.iter_batches(batch_size=1, row_groups=[g]):
                            try:
                                good += _row_digests(name, one, shape)
                            except Exception as problem:
                                where = f"{path.name}, row {at + len(good)}"
                                problems.append(
                                    Problem("a row is damaged", where, _one_line(problem), "what was hashed")
                                )
                                good.append((b"", b""))
                    except Exception as problem:
                        where = f"{path.name}, row {at + len(good)} (and perhaps to row {at + rows - 1})"
                        problems.append(Problem("a row cannot be decoded", where, _one_line(problem), "a row"))
                for i, (stored, found) in enumerate(good):
                    if stored != found:
                        where = f"{path.name}, row {at + i}"
                        problems.append(Problem("a row does not hash to its id", where, found.hex(), stored.hex()))
                tree.extend([stored for stored, _ in good])
                at += rows
    except Exception as problem:
        said = "a parquet table of a log"
        problems.append(Problem("the table cannot be read", path.name, _one_line(problem), said))
    return problems, at, tree.root().hex()


def _one_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def step_ids(episode_ids: Sequence[str], offsets: np.ndarray, episodes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The identities of these episodes' steps, and the steps' numbers: SHA-256 of the episode's digest and the place."""
    ids, numbers = [], []
    for e in episodes.tolist():
        head = sha256(b"holdfast/step/1\0" + bytes.fromhex(episode_ids[e]))
        for step in range(int(offsets[e + 1] - offsets[e])):
            sha = head.copy()
            sha.update(step.to_bytes(8, "big"))
            ids.append(sha.hexdigest())
        numbers.append(np.arange(offsets[e], offsets[e + 1]))
    return ids, np.concatenate(numbers).astype(np.int64)
