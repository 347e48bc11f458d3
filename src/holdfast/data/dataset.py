"""A frozen dataset: what its rows hash to, how its folder opens, and how damage to it is named.

    prompts.parquet      id, content
    responses.parquet    id, prompt, content
    judgements.parquet   id, kind, prompt, responses, value, ranks, ..., copy
    origins.parquet      file, row: where judgement i came from
    rejects.jsonl        input rows that could not become records, with their reasons
    manifest.json        written last: the root, every table's root, every file's SHA-256

The **root** names the content: prompts, responses, judgements. The same content has the same root whatever files it
came in, so origins and rejects stand beside the root, each with its own digest in the manifest.
docs/decisions/0001-dataset-identity.md says what counts as content and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.data.merkle import Merkle
from holdfast.data.offline import refuse_dataset
from holdfast.data.ragged import Ragged
from holdfast.data.records import Content, Segment
from holdfast.errors import DataError, IntegrityError

FORMAT = "holdfast-dataset/1"
DIGEST = pa.binary(32)


def _must(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMAS: dict[str, pa.Schema] = {
    "prompts": pa.schema([_must("id", DIGEST), _must("content", pa.string())]),
    "responses": pa.schema([_must("id", DIGEST), _must("prompt", DIGEST), _must("content", pa.string())]),
    "judgements": pa.schema(
        [
            _must("id", DIGEST),
            _must("kind", pa.string()),
            _must("prompt", DIGEST),
            _must("responses", pa.list_(_must("element", DIGEST))),
            pa.field("value", pa.float64()),
            pa.field("ranks", pa.list_(_must("element", pa.int32()))),
            pa.field("margin", pa.float64()),
            pa.field("annotator", pa.string()),
            pa.field("annotator_kind", pa.string()),
            pa.field("shown", pa.list_(_must("element", pa.int32()))),
            pa.field("rubric", pa.string()),
            pa.field("category", pa.string()),
            pa.field("licence", pa.string()),
            pa.field("sources", pa.list_(pa.field("element", pa.string()))),
            pa.field("extra", pa.string()),
            _must("copy", pa.int32()),
        ]
    ),
    "origins": pa.schema([_must("file", pa.int32()), _must("row", pa.int64())]),
}
TRAIL = ("curation.json", "curated.jsonl")  # of a dataset that `holdfast curate` made
CONTENT = ("prompts", "responses", "judgements")  # the tables that the root commits to


@dataclass(frozen=True)
class Problem:
    """One thing that does not hold: what it is, where it lies, what was found there and what should be."""

    what: str
    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} (found {self.found}, expected {self.expected})"


# What is hashed. Each kind of thing under a prefix of its own, so that none can pose as another.


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8. Raises TypeError where JSON cannot carry the
    value.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def content_json(content: Content) -> bytes:
    """Canonical JSON of a prompt's or a response's content."""
    if isinstance(content, Segment):
        return canonical_json({"episode": content.episode, "start": content.start, "length": content.length})
    return canonical_json(content)


def prompt_id(content: bytes) -> bytes:
    """The identity of a prompt: SHA-256 (32 bytes) over its canonical JSON."""
    return sha256(b"holdfast/prompt/1\0" + content).digest()


def response_id(prompt: bytes, content: bytes) -> bytes:
    """The identity of a response: its content under its prompt (32-byte prompt id)."""
    return sha256(b"holdfast/response/1\0" + prompt + content).digest()


def judgement_id(said: Mapping[str, Any]) -> bytes:
    """The identity of a judgement: every column but `id`, digests as hex, absent (null) ones left out."""
    return sha256(b"holdfast/judgement/1\0" + canonical_json(said)).digest()


def dataset_root(kind: str, tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of a dataset: over its kind and the size and Merkle root of each content table."""
    said = {"kind": kind, "tables": {n: {"rows": tables[n]["rows"], "root": tables[n]["root"]} for n in CONTENT}}
    return sha256(b"holdfast/dataset/1\0" + canonical_json(said)).hexdigest()


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The one text of a manifest, sealed with a digest of all the rest of it: no byte of the file can change unseen."""
    said = {k: v for k, v in manifest.items() if k != "digest"}
    said["digest"] = sha256(b"holdfast/manifest/1\0" + canonical_json(said)).hexdigest()
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


class Dataset:
    """An opened dataset. Judgements are read into memory at first use, without their texts; texts stay on disk.

    path, root, kind, manifest
    judgements:      the table, in canonical order; a judgement's number is its place here
    prompt_of:       (N,) int32, the prompt of each judgement
    responses_of:    N lists of int32, the responses of each judgement, in its row's order
    response_prompt: (R,) int32, the prompt of each response
    categories:      N names or None
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.root: str = manifest["root"]
        self.kind: str = manifest["kind"]
        self.n_prompts: int = manifest["tables"]["prompts"]["rows"]
        self.n_responses: int = manifest["tables"]["responses"]["rows"]
        self.n_judgements: int = manifest["tables"]["judgements"]["rows"]

    @cached_property
    def judgements(self) -> pa.Table:
        return self._read("judgements")

    @cached_property
    def _prompt_ids(self) -> np.ndarray:
        return digests(self._read("prompts", ["id"])["id"])

    @cached_property
    def _response_ids(self) -> np.ndarray:
        return digests(self._read("responses", ["id"])["id"])

    @cached_property
    def _judgement_ids(self) -> np.ndarray:
        return digests(self.judgements["id"])

    @cached_property
    def _origins(self) -> pa.Table:
        return self._read("origins")

    @cached_property
    def prompt_of(self) -> np.ndarray:
        return self._find(self._prompt_ids, digests(self.judgements["prompt"]), "judgements", "prompt")

    @cached_property
    def response_prompt(self) -> np.ndarray:
        prompts = digests(self._read("responses", ["prompt"])["prompt"])
        return self._find(self._prompt_ids, prompts, "responses", "prompt")

    @cached_property
    def responses_of(self) -> Ragged:
        named = self.judgements["responses"].combine_chunks()
        offsets = named.offsets.to_numpy().astype(np.int64)
        numbers = self._find(self._response_ids, digests(named.flatten()), "judgements", "response")
        return Ragged(numbers, offsets - offsets[0])

    @cached_property
    def categories(self) -> list[str | None]:
        return self.column("category")

    def __repr__(self) -> str:
        return (
            f"Dataset({self.root[:12]}, {self.n_judgements} judgements, {self.n_responses} responses, "
            f"{self.n_prompts} prompts, {str(self.path)!r})"
        )

    def column(self, name: str) -> list[Any]:
        """One column of the judgements as a list; null is None."""
        return self.judgements[name].to_pylist()

    @property
    def row_ids(self) -> list[str]:
        """The hex digest of each judgement."""
        return _hex(self._judgement_ids)

    def row_id(self, i: int) -> str:
        return self._judgement_ids[i].tobytes().hex()

    def prompt_id(self, p: int) -> str:
        return self._prompt_ids[p].tobytes().hex()

    def response_id(self, r: int) -> str:
        return self._response_ids[r].tobytes().hex()

    @property
    def prompt_ids(self) -> list[str]:
        return _hex(self._prompt_ids)

    @property
    def response_ids(self) -> list[str]:
        return _hex(self._response_ids)

    def find_row(self, prefix: str) -> int:
        """The judgement whose id starts with these hex digits. DataError if there is none, or more than one."""
        wanted = prefix.strip().lower()
        if not wanted or len(wanted) > 64 or set(wanted) - set("0123456789abcdef"):
            raise DataError(f"row {prefix!r} should be the first hex digits of a row's digest")
        low = np.frombuffer(bytes.fromhex(wanted.ljust(64, "0")), dtype=np.uint8)
        n, odd = len(wanted) // 2, len(wanted) % 2
        same = (self._judgement_ids[:, :n] == low[:n]).all(axis=1)
        if odd:
            same &= self._judgement_ids[:, n] >> 4 == low[n] >> 4
        found = np.flatnonzero(same)
        if len(found) != 1:
            several = f"{len(found)} rows do: {', '.join(self.row_id(i)[:16] for i in found[:4])}; give more digits"
            raise DataError(f"no row starts with {wanted}" if len(found) == 0 else f"{wanted}: {several}")
        return int(found[0])

    def prompt_contents(self, indices: Sequence[int] | np.ndarray | None = None) -> list[Content]:
        """The prompts at `indices` (default: all), in that order."""
        return self._contents("prompts", indices)

    def response_contents(self, indices: Sequence[int] | np.ndarray | None = None) -> list[Content]:
        """The responses at `indices` (default: all), in that order."""
        return self._contents("responses", indices)

    def iter_contents(self, table: str, batch: int = 1024) -> Iterator[tuple[int, list[Content]]]:
        """Walk the texts of "prompts" or "responses": (number of the first, their contents), `batch` at a time."""
        start = 0
        with pq.ParquetFile(self._file(table)) as file:
            for piece in file.iter_batches(batch_size=batch, columns=["content"]):
                yield start, [parse_content(raw, self.kind) for raw in _raw(piece.column(0))]
                start += piece.num_rows

    def origins(self, i: int) -> list[tuple[str, int]]:
        """Where judgement i came from: (input file, row in it)."""
        if not 0 <= i < self.n_judgements:
            raise IndexError(f"judgement {i} of {self.n_judgements}")
        file, row = self._origins["file"][i].as_py(), self._origins["row"][i].as_py()
        return [(self.manifest["files"][file]["name"], row)]

    def _file(self, table: str) -> Path:
        return self.path / f"{table}.parquet"

    def _read(self, table: str, columns: list[str] | None = None) -> pa.Table:
        try:
            read = pq.read_table(self._file(table), columns=columns, partitioning=None)
        except Exception as problem:  # whatever a damaged file makes of parquet's decoder
            raise IntegrityError(f"{self._file(table)} cannot be read: {_one_line(problem)}") from None
        if read.num_rows != (rows := self.manifest["tables"]["judgements" if table == "origins" else table]["rows"]):
            raise IntegrityError(f"{self._file(table)} has {read.num_rows} rows, the manifest says {rows}")
        return read

    def _find(self, ids: np.ndarray, wanted: np.ndarray, table: str, what: str) -> np.ndarray:
        """The place of each wanted digest among the sorted `ids`."""
        known, sought = _sortable(ids), _sortable(wanted)
        at = np.searchsorted(known, sought)
        missing = at == len(known)
        missing |= known[np.where(missing, 0, at)] != sought if len(known) else True
        if missing.any():
            first = int(np.flatnonzero(missing)[0])
            raise IntegrityError(
                f"{self._file(table)} names a {what} {_hex(wanted[first : first + 1])[0]} that is not there"
            )
        return at.astype(np.int32)

    def _contents(self, table: str, indices: Sequence[int] | np.ndarray | None) -> list[Content]:
        with pq.ParquetFile(self._file(table)) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
            if indices is None:
                indices = np.arange(starts[-1])
            asked = np.asarray(indices, dtype=np.int64)
            if len(asked) and (asked.min() < 0 or asked.max() >= starts[-1]):
                raise IndexError(f"{table} are numbered 0 to {starts[-1] - 1}")
            out: list[Content] = [None] * len(asked)
            group_of = np.searchsorted(starts, asked, side="right") - 1
            by_group = np.argsort(group_of, kind="stable")
            bounds = np.searchsorted(group_of[by_group], np.arange(len(sizes) + 1))
            for g in range(len(sizes)):
                mine = by_group[bounds[g] : bounds[g + 1]]
                if len(mine) == 0:
                    continue
                column = file.read_row_group(g, columns=["content"]).column(0)
                raws = _raw(column.combine_chunks().take(pa.array(asked[mine] - starts[g])))
                for place, raw in zip(mine.tolist(), raws, strict=True):
                    out[place] = parse_content(raw, self.kind)
            return out


def parse_content(raw: bytes, kind: str) -> Content:
    """The content whose canonical JSON is `raw`, in a dataset of this kind ("text" or "segments")."""
    value = orjson.loads(raw)
    return Segment(**value) if kind == "segments" and isinstance(value, dict) else value


def open_dataset(path: str | Path, check: bool = True) -> Dataset:
    """Open a frozen dataset. With `check`, every file is hashed first.

    Raises IntegrityError naming what was damaged, down to table and row; DataError if there is no dataset at `path`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"dataset {folder} does not exist; `holdfast freeze FILES -o {folder}` makes one")
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{folder} is no frozen dataset: it has no manifest.json")
    manifest, problems = _check_manifest(folder)
    if manifest is not None:
        refuse_dataset(manifest["root"], f"open dataset {folder}")
        if check and any(_wrong_file(folder, name, said) for name, said in _files(manifest)):
            problems = verify_dataset(folder)
    if problems or manifest is None:
        raise IntegrityError(f"dataset {folder} is damaged:\n" + "\n".join(f"  {p}" for p in problems))
    return Dataset(folder, manifest)


def verify_dataset(path: str | Path) -> list[Problem]:
    """Everything in a dataset folder that does not hash to what it says: [] if all does.

    Recomputes every row's digest, every table's Merkle root and the root. Names the file, and for a content table the
    row. Returns problems and never raises, whatever was done to the files.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [Problem("there is no dataset folder", str(folder), "nothing", "a frozen dataset")]
    manifest, problems = _check_manifest(folder)
    for name in CONTENT:
        where = f"{name}.parquet"
        damage, rows, root = _check_rows(folder, name)
        if manifest is not None and not damage:
            said = manifest["tables"][name]
            changed = _wrong_file(folder, where, said)
            if rows != said["rows"]:
                damage = [Problem("rows are missing or added", where, f"{rows} rows", f"{said['rows']} rows")]
            elif root != said["root"]:
                damage = [
                    Problem("the rows are others, or in another order", where, f"root {root}", f"root {said['root']}")
                ]
            elif changed:
                what = f"{changed.what}, in its bookkeeping only: every row is whole"
                damage = [Problem(what, where, changed.found, changed.expected)]
        problems += damage
    if manifest is not None:
        beside = [_wrong_file(folder, where, said) for where, said in manifest["beside"].items()]
        problems += [changed for changed in beside if changed]
        if not problems:
            try:
                ds = Dataset(folder, manifest)
                if (ds.response_prompt[ds.responses_of.flat] != ds.prompt_of[ds.responses_of.owner]).any():
                    raise IntegrityError("a judgement names a response to another prompt")
            except Exception as problem:  # a judgement names a response that is not there, say
                problems.append(
                    Problem("the tables do not fit together", "the tables", _one_line(problem), "no such gap")
                )
    return problems


def _files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, said in manifest["tables"].items():
        yield f"{name}.parquet", said
    yield from manifest["beside"].items()


def _wrong_file(folder: Path, name: str, said: Mapping[str, Any]) -> Problem | None:
    try:
        found = file_sha256(folder / name)
    except OSError as problem:
        return Problem("a file cannot be read", name, _one_line(problem), f"sha256 {said['sha256']}")
    if found != said["sha256"]:
        return Problem("a file's bytes have changed", name, f"sha256 {found}", f"sha256 {said['sha256']}")
    return None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _check_manifest(folder: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The manifest, or None and what is wrong with it."""
    where = "manifest.json"
    try:
        raw = (folder / where).read_bytes()
        manifest = orjson.loads(raw)
        if manifest.get("format") != FORMAT:
            found = str(manifest.get("format"))[:80]
            return None, [Problem("the manifest is of a format this version does not read", where, found, FORMAT)]
        sealed = orjson.loads(manifest_bytes(manifest))["digest"]
        if manifest["digest"] != sealed:
            return None, [
                Problem("the manifest does not hash to its digest", where, sealed, str(manifest["digest"])[:80])
            ]
        if manifest_bytes(manifest) != raw:
            return None, [
                Problem("the manifest's bytes have changed", where, "other spacing", "the bytes freeze wrote")
            ]
        files = {name for name, said in _files(manifest) if len(said["sha256"]) == 64}
        # A dataset that a plan made keeps the plan and its trail as well.
        known = {*(f"{name}.parquet" for name in SCHEMAS), "rejects.jsonl"}
        if files not in (known, known | set(TRAIL)):
            return None, [Problem("the manifest lists other files", where, str(sorted(files)), str(sorted(known)))]
        if (root := dataset_root(manifest["kind"], manifest["tables"])) != manifest["root"]:
            return None, [Problem("the tables' roots do not give the dataset's root", where, root, manifest["root"])]
    except OSError as problem:
        return None, [Problem("the manifest cannot be read", where, _one_line(problem), "a manifest")]
    except Exception as problem:  # not JSON, or JSON of another shape
        return None, [Problem("the manifest cannot be understood", where, _one_line(problem), "the bytes freeze wrote")]
    return manifest, []


def _check_rows(folder: Path, name: str) -> tuple[list[Problem], int, str]:
    """Recompute every row digest of a content table: the damaged rows, and the table's rows and root as found."""
    where, at, tree = f"{name}.parquet", 0, Merkle()
    problems: list[Problem] = []
    try:
        with pq.ParquetFile(folder / where) as file:
            if file.schema_arrow != SCHEMAS[name]:
                raise pa.ArrowInvalid(f"its columns are {file.schema_arrow.names}, or of other types")
            for g in range(file.num_row_groups):
                rows = file.metadata.row_group(g).num_rows
                good: list[tuple[bytes, bytes]] = []  # (id as stored, digest as recomputed)
                unread = ""
                try:
                    good = _row_digests(name, file.read_row_group(g))
                except Exception:  # find the row at which decoding breaks
                    good = []
                    try:
                        for one in file.iter_batches(batch_size=1, row_groups=[g]):
                            good += _row_digests(name, one)
                    except Exception as problem:
                        unread = _one_line(problem)
                wrong = [i for i, (stored, found) in enumerate(good) if stored != found]
                # One changed length shifts everything behind it: a run of damaged rows is one problem, named by its
                # first row.
                start = 0
                while start < len(wrong):
                    end = start
                    while end + 1 < len(wrong) and wrong[end + 1] == wrong[end] + 1:
                        end += 1
                    stored, found = good[wrong[start]]
                    span = f"row {at + wrong[start]}" + (f" (and to row {at + wrong[end]})" if end > start else "")
                    problems.append(
                        Problem("a row does not hash to its id", f"{where}, {span}", found.hex(), stored.hex())
                    )
                    start = end + 1
                if unread:
                    span = f"row {at + len(good)} (and perhaps to row {at + rows - 1})"
                    problems.append(Problem("a row cannot be decoded", f"{where}, {span}", unread, "a row"))
                tree.extend([stored for stored, _ in good])
                at += rows
    except Exception as problem:
        problems.append(
            Problem("the table cannot be read", where, _one_line(problem), "a parquet table that freeze wrote")
        )
    return problems, at, tree.root().hex()


def _row_digests(name: str, table: pa.Table | pa.RecordBatch) -> list[tuple[bytes, bytes]]:
    """Each row's stored id and the digest of the rest of it."""
    stored = table.column("id").to_pylist()
    if name == "prompts":
        found = [prompt_id(content) for content in _raw(table.column("content"))]
    elif name == "responses":
        prompts = table.column("prompt").to_pylist()
        found = [response_id(p, c) for p, c in zip(prompts, _raw(table.column("content")), strict=True)]
    else:
        found = [judgement_id(said) for said in judgement_rows(table)]
    return list(zip(stored, found, strict=True))


def judgement_rows(table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a judgement table in the form that `judgement_id` hashes."""
    names = [n for n in SCHEMAS["judgements"].names if n != "id"]
    names = [n for n in names if table.column(n).null_count < table.num_rows]
    for values in zip(*(table.column(n).to_pylist() for n in names), strict=True):
        said = {n: v for n, v in zip(names, values, strict=True) if v is not None}
        said["prompt"] = said["prompt"].hex()
        said["responses"] = [r.hex() for r in said["responses"]]
        yield said


def digests(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of digests as (N, 32) uint8."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(array) == 0:
        return np.zeros((0, 32), np.uint8)
    flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return flat[array.offset * 32 : (array.offset + len(array)) * 32].reshape(-1, 32)


def _sortable(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view("S32").ravel()


def _hex(ids: np.ndarray) -> list[str]:
    text = ids.tobytes().hex()
    return [text[i : i + 64] for i in range(0, len(text), 64)]


def _raw(column: pa.ChunkedArray | pa.Array) -> list[bytes]:
    return column.cast(pa.binary()).to_pylist()


def _one_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def check_rows_exist(ds: Dataset, rows: Iterable[int]) -> np.ndarray:
    """Row numbers as (n,) int64. DataError naming the first that the dataset does not have."""
    numbers = np.asarray(list(rows) if not isinstance(rows, np.ndarray) else rows, dtype=np.int64)
    outside = numbers[(numbers < 0) | (numbers >= ds.n_judgements)]
    if len(outside):
        raise DataError(f"dataset {ds.root[:12]} has rows 0 to {ds.n_judgements - 1}; row {outside[0]} was asked for")
    return numbers
