"""Export: a frozen dataset out, in a format that others read.

    dataset -> judgements, prompt by prompt -> rows -> each read back and compared -> a file, whole or not at all

No row is trusted to its writer: it is read back as a user's file would be, and must give exactly the judgements that it
was made from. So what a file says is what the dataset says, and freezing the file gives the same root. What a format
cannot say is an error that counts it by reason; with `lossy` it is left out, listed beside the file.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from holdfast.data.dataset import Dataset, check_rows_exist, open_dataset, parse_content
from holdfast.data.formats import Format, Row, Unsayable, detect, judge, named, say
from holdfast.data.formats.columns import as_chat, plain_message
from holdfast.data.freeze import canonical
from holdfast.data.records import Content, Judgement, Reject
from holdfast.errors import DataError

_FIELDS = ("kind", "prompt", "responses", "value", "ranks", "margin", "annotator", "annotator_kind", "shown", "rubric",
           "category", "licence", "sources", "extra")  # fmt: skip
_SLICE = 4096  # judgements turned into Python at a time
_BATCH = 8 << 20  # bytes of rows in a row group of a parquet file
_ROUND = 1e-12  # a probability that a format holds as another number may be off by this much
_LISTED = 20
_SAMPLE = 256  # rows by which the format of a file is told


@dataclass(frozen=True)
class Exported:
    """What an export did.

    rows:     rows written; judgements: judgements that they say.
    left_out: judgements that are not in the file, counted by reason. lost: what those in it have lost, likewise.
    root:     what freezing the file gives; None where something is lost or left out, or only a part was asked for.
    detected: whether the file's format is told from its columns; if not, it must be named to read it.
    """

    path: Path
    format: str
    rows: int
    judgements: int
    left_out: Counter[str]
    lost: Counter[str]
    root: str | None
    detected: bool


def export(
    dataset: Dataset | str | Path,
    out: str | Path,
    *,
    format: str = "trl",
    rows: Iterable[int] | np.ndarray | None = None,
    lossy: bool = False,
) -> Exported:
    """Write a dataset, or these rows of it, as a file: `.jsonl` or `.parquet`, each also with `.gz` or `.zst` behind.

    Raises DataError, and writes nothing, if the format cannot say everything; with `lossy` it leaves out what cannot
    be said and lists it in `OUT.left-out.jsonl`: `{row, reason, written}`, one line for each thing left out of a row
    that is written, or for a judgement that is not.
    """
    ds = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    form, out = named(format), Path(out)
    kind, packing = _kind(out)
    if out.exists():
        raise DataError(f"{out} is there already; remove it, or name another file")
    wanted = np.arange(ds.n_judgements) if rows is None else check_rows_exist(ds, rows)
    if not len(wanted):
        raise DataError("there is nothing to export: no row was chosen")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
            work = _Work(form, lossy, Path(folder))
            work.write(ds, wanted)
            if work.refused and not (lossy and work.written):
                n = work.refused.total()
                remedy = "--format holdfast can say everything"
                raise DataError(
                    f"{n} of {len(wanted)} judgements cannot be written as {form.name}{'' if lossy else ' without loss'}; "
                    f"nothing was written:{_counts(work.refused)}\n"
                    + (remedy if lossy else f"leave out what has no place with --lossy; {remedy}")
                )
            whole = Path(folder) / "whole"
            if kind == "parquet":
                _parquet(work.rows, work.shapes, whole)
            else:
                whole = work.rows
            _pack(whole, Path(folder) / "out", packing)
            (Path(folder) / "out").replace(out)
            if work.listed.tell():
                work.listed.close()
                (Path(folder) / "left-out").replace(_beside(out))
            else:
                work.listed.close()
    except OSError as problem:
        raise DataError(f"cannot write {out}: {problem.strerror or problem}") from None
    complete = rows is None and not work.refused and not work.lost
    # A row of a table has all of the table's columns.
    columns = dict.fromkeys(work.shapes) if kind == "parquet" else {}
    detected = _is_told([columns | row for row in work.sample], form)
    return Exported(
        out, form.name, work.n_rows, work.written, work.refused, work.lost, ds.root if complete else None, detected
    )


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.left-out.jsonl")


def _counts(by_reason: Counter[str]) -> str:
    lines = [f"\n  {n} x {reason}" for reason, n in by_reason.most_common(_LISTED)]
    more = len(by_reason) - len(lines)
    return "".join(lines) + (f"\n  and {more} reasons more" if more > 0 else "")


def _kind(out: Path) -> tuple[str, str]:
    packing = out.suffix.lower() if out.suffix.lower() in (".gz", ".zst") else ""
    ending = Path(out.name.lower().removesuffix(packing)).suffix
    kinds = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
    if ending not in kinds:
        raise DataError(f"{out}: the name should end in .jsonl or .parquet, with or without .gz or .zst behind it")
    return kinds[ending], packing


def _is_told(sample: list[Row], form: Format) -> bool:
    try:
        return detect(sample, "export").name == form.name
    except DataError:
        return False


class _Work:
    """The rows of one export in the making: judgements in, lines of JSON out, each read back before it counts."""

    def __init__(self, form: Format, lossy: bool, folder: Path):
        self.form, self.lossy, self.folder = form, lossy, folder
        self.rows = folder / "rows"
        self.listed = (folder / "left-out").open("wb")
        self.shapes: dict[str, set[Hashable]] = {}
        self.sample: list[Row] = []
        self.refused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.n_rows = self.written = 0

    def write(self, ds: Dataset, wanted: np.ndarray) -> None:
        with ExitStack() as stack:
            self._out = stack.enter_context(self.rows.open("wb"))
            prompts = stack.enter_context(_Texts(ds, "prompts", self.folder))
            responses = stack.enter_context(_Texts(ds, "responses", self.folder))
            said = _judgements(ds, wanted, prompts, responses)
            if self.form.gather is None:
                for i, _, j in said:
                    self._alone(ds.row_id(i), j)
                return
            held: list[tuple[str, Judgement]] = []
            of = -1
            for i, prompt, j in said:
                if prompt != of:
                    self._together(held)
                    held, of = [], prompt
                held.append((ds.row_id(i), j))
            self._together(held)

    def _together(self, held: list[tuple[str, Judgement]]) -> None:
        """Judgements of one prompt: as few rows as the format allows."""
        assert self.form.gather is not None
        groups: dict[Hashable, list[tuple[str, Judgement]]] = {}
        for n, (name, j) in enumerate(held):
            key = self.form.gather(j) if j.kind in self.form.kinds else None
            groups.setdefault(n if key is None else ("together", key), []).append((name, j))
        for group in groups.values():
            if len(group) > 1:
                meant = [j for _, j in group]
                try:
                    row = say(self.form, meant)
                    if sorted(map(_digest, self._read_back(row))) == sorted(map(_digest, meant)):
                        self._put(row, len(group))
                        continue
                except (Unsayable, Reject):
                    pass  # one by one, each with its own reason
            for name, j in group:
                self._alone(name, j)

    def _alone(self, name: str, j: Judgement) -> None:
        """One judgement in a row of its own, or the reason why not."""
        try:
            row = say(self.form, [j])
            back = self._read_back(row)
        except Unsayable as problem:
            return self._leave_out(name, str(problem))
        except Reject as problem:
            return self._leave_out(name, f"cannot be read back: {problem}")
        if len(back) != 1:
            return self._leave_out(name, f"reads back as {len(back)} judgements")
        lost, wrong = _differences(j, back[0])
        if wrong or (lost and not self.lossy):
            return self._leave_out(name, "; ".join(wrong or lost))
        for what in lost:
            self.lost[what.partition(":")[0]] += 1
            self._list(name, what, True)
        self._put(row, 1)

    def _read_back(self, row: Row) -> list[Judgement]:
        try:
            return judge(self.form, orjson.loads(orjson.dumps(row)))
        except TypeError as problem:  # an integer beyond 64 bits
            raise Reject(f"cannot be written as JSON: {problem}") from None

    def _put(self, row: Row, judgements: int) -> None:
        self._out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        for column, value in row.items():
            if value is not None:
                self.shapes.setdefault(column, set()).add(_shape(value))
            else:
                self.shapes.setdefault(column, set())
        if len(self.sample) < _SAMPLE:
            self.sample.append(row)
        self.n_rows += 1
        self.written += judgements

    def _leave_out(self, name: str, reason: str) -> None:
        self.refused[reason.partition(":")[0]] += 1
        self._list(name, reason, False)

    def _list(self, name: str, reason: str, written: bool) -> None:
        said = {"row": name, "reason": reason, "written": written}
        self.listed.write(orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE))


def _digest(j: Judgement) -> bytes:
    digest: bytes = canonical(j)[3][0]
    return digest


def _differences(meant: Judgement, back: Judgement) -> tuple[list[str], list[str]]:
    """What a judgement that was read back has lost of what was meant, and what it says wrongly."""
    said, found = canonical(meant)[3], canonical(back)[3]
    if said[0] == found[0]:
        return [], []
    lost, wrong = [], []
    if said[2] != found[2] or set(said[3]) != set(found[3]):
        asked, tools, responses = as_chat(meant.prompt, meant.responses)
        chat: Content = {"messages": asked, **tools} if tools else asked
        as_messages = canonical(replace(meant, prompt=chat, responses=tuple(responses)))[3]
        if as_messages[2] == found[2] and set(as_messages[3]) == set(found[3]):
            said = as_messages
            lost.append("text becomes messages")
        elif (as_text := _as_text(meant)) is not None:
            as_text_said = canonical(as_text)[3]
            if as_text_said[2] == found[2] and set(as_text_said[3]) == set(found[3]):
                said = as_text_said
                lost.append("messages become text")
    for name, a, b in zip(_FIELDS, said[1:-1], found[1:-1], strict=True):
        if a == b:
            continue
        if name == "extra":
            before, after = (orjson.loads(x) if x else {} for x in (a, b))
            if all(k in before and before[k] == v for k, v in after.items()):
                gone = ", ".join(repr(k) for k in before if k not in after)
                lost.append(f"extra has no place: {gone}")
            else:
                wrong.append("extra would read back differently")
        elif name in ("kind", "prompt", "responses", "ranks"):
            wrong.append(f"{name} would read back differently")
        elif name == "value" and a is not None and b is not None and abs(a - b) <= _ROUND:
            lost.append("value is rounded")
        elif b is None:
            lost.append(f"{name} has no place")
        elif a is None and name == "annotator_kind":
            lost.append(f"annotator_kind reads back as {b!r}")
        else:
            wrong.append(f"{name} would read back as another")
    return lost, wrong


def _as_text(j: Judgement) -> Judgement | None:
    """One question and its answers as text, where no more is said."""
    parts: list[Any] = [j.prompt, *j.responses]
    if any(type(p) is not list or len(p) != 1 or not plain_message(p[0]) for p in parts):
        return None
    asked, *answers = (p[0] for p in parts)
    if asked["role"] != "user" or any(a["role"] != "assistant" for a in answers):
        return None
    return replace(j, prompt=asked["content"], responses=tuple(a["content"] for a in answers))


# ---------------------------------------------------------------------------------------------- judgements of a dataset


class _Texts:
    """A table's contents in a temporary file, to be read in any order: a table stores them by digest, a format wants
    them by prompt."""

    def __init__(self, ds: Dataset, table: str, folder: Path):
        self.kind = ds.kind
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        sizes: list[int] = []
        with pq.ParquetFile(ds.path / f"{table}.parquet") as file:
            for batch in file.iter_batches(batch_size=1024, columns=["content"]):
                texts = batch.column(0).cast(pa.binary()).to_pylist()
                sizes += map(len, texts)
                self._file.write(b"".join(texts))
        self._file.flush()
        self._ends = np.cumsum(sizes)

    def __enter__(self) -> _Texts:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __getitem__(self, i: int) -> Content:
        start = int(self._ends[i - 1]) if i else 0
        return parse_content(os.pread(self._file.fileno(), int(self._ends[i]) - start, start), self.kind)


def records(ds: Dataset, rows: np.ndarray) -> Iterator[tuple[int, Judgement]]:
    """The judgements of these rows as records, with their numbers, prompt by prompt; memory does not grow with their texts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prompts = stack.enter_context(_Texts(ds, "prompts", folder))
        responses = stack.enter_context(_Texts(ds, "responses", folder))
        for i, _, judgement in _judgements(ds, check_rows_exist(ds, rows), prompts, responses):
            yield i, judgement


def _judgements(
    ds: Dataset, wanted: np.ndarray, prompts: _Texts, responses: _Texts
) -> Iterator[tuple[int, int, Judgement]]:
    """(number, prompt, judgement), prompt by prompt."""
    order = wanted[np.argsort(ds.prompt_of[wanted], kind="stable")]
    table = ds.judgements.drop_columns(["prompt", "responses"])
    held, prompt = -1, None
    for start in range(0, len(order), _SLICE):
        part = order[start : start + _SLICE]
        for i, row in zip(part.tolist(), table.take(part).to_pylist(), strict=True):
            p = int(ds.prompt_of[i])
            if p != held:
                held, prompt = p, prompts[p]
            yield (
                i,
                p,
                Judgement(
                    row["kind"],
                    prompt,
                    tuple(responses[int(r)] for r in ds.responses_of[i]),
                    value=row["value"],
                    ranks=_tuple(row["ranks"]),
                    margin=row["margin"],
                    annotator=row["annotator"],
                    annotator_kind=row["annotator_kind"],
                    shown=_tuple(row["shown"]),
                    rubric=row["rubric"],
                    category=row["category"],
                    licence=row["licence"],
                    sources=_tuple(row["sources"]),
                    extra=orjson.loads(row["extra"]) if row["extra"] is not None else None,
                ),
            )


def _tuple(value: list[Any] | None) -> tuple[Any, ...] | None:
    return None if value is None else tuple(value)


# ---------------------------------------------------------------------------------------------------------------- files


def _shape(value: Any) -> Hashable:
    """The type of column that holds this value exactly; "json" where no plain type does."""
    kind = type(value)
    if kind in (str, bool, float) or (kind is int and -(2**63) <= value < 2**63):
        return kind.__name__
    if kind is dict and value and all(type(v) is str for v in value.values()):
        return ("object", *sorted(value))
    if kind is list:
        inner = {_shape(v) for v in value if v is not None}
        if len(inner) == 1 and None not in value:
            return ("list", *inner) if inner != {"json"} else "json"
        if inner == {"str"}:
            return ("list", "str")  # who wrote a response may be unknown
    return "json"


def _type(shapes: set[Hashable]) -> pa.DataType:
    if not shapes:
        return pa.string()  # a column of nothing but null
    if len(shapes) > 1:
        return pa.json_(pa.string())
    (shape,) = shapes
    if isinstance(shape, tuple):
        if shape[0] == "list":
            inner = _type({shape[1]})
            return pa.list_(inner)
        return pa.struct([pa.field(str(name), pa.string()) for name in shape[1:]])
    plain = {"str": pa.string(), "bool": pa.bool_(), "float": pa.float64(), "int": pa.int64()}
    return plain.get(str(shape)) or pa.json_(pa.string())


def _parquet(lines: Path, shapes: dict[str, set[Hashable]], out: Path) -> None:
    schema = pa.schema([pa.field(column, _type(found)) for column, found in shapes.items()])
    with lines.open("rb") as file, pq.ParquetWriter(out, schema, compression="zstd") as writer:
        while held := file.readlines(_BATCH):
            rows = [orjson.loads(line) for line in held]
            columns = []
            for field in schema:
                values = [row.get(field.name) for row in rows]
                if isinstance(field.type, pa.JsonType):
                    texts = [None if v is None else orjson.dumps(v).decode() for v in values]
                    columns.append(pa.ExtensionArray.from_storage(field.type, pa.array(texts, pa.string())))
                else:
                    columns.append(pa.array(values, field.type))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(rows))


def _pack(plain: Path, out: Path, packing: str) -> None:
    """Compress if asked to, the same bytes for the same content, and bring it to the disk."""
    with plain.open("rb") as source, out.open("wb") as file:
        sink: BinaryIO | Any = file
        if packing == ".gz":
            sink = gzip.GzipFile("", "wb", 6, file, mtime=0)
        elif packing == ".zst":
            sink = zstandard.ZstdCompressor().stream_writer(file, closefd=False)
        shutil.copyfileobj(source, sink, 1 << 20)
        if sink is not file:
            sink.close()
        file.flush()
        os.fsync(file.fileno())
