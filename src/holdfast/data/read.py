"""Reading: files as people have them -> rows -> judgements, one row at a time.

    files -> bytes (gzip, zstd) -> raw rows (jsonl, json, csv, parquet, arrow) -> format -> ReadRow

Every input row ends in exactly one `ReadRow`: with judgements, or with the reason why it has none. Memory does not grow
with the file: at most one chunk, one batch or one row is held at a time, and the sample from which the format is told.

A file that cannot be read at all is a DataError. A file that breaks off part-way (a truncated download) gives its rows
up to there, and then one rejected row that says so: what could be read can be kept, and that something is missing is on
record."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from holdfast.data.formats import GIVEN, Format, Row, check_mapping, detect, judge, named
from holdfast.data.records import Judgement, Reject
from holdfast.data.validate import name_of
from holdfast.errors import DataError

CHUNK = 1 << 20
MAX_ROW = 64 << 20  # bytes; a longer "row" is a file of another kind, or broken quoting, and would fill the memory
SAMPLE = 256  # rows from which the format is told
BATCH = 512  # rows of a columnar file turned into Python at a time

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".zst", ".zstd")
WRAPPERS = {"data", "rows", "examples", "instances", "items", "records", "train", "validation", "valid", "test", "dev"}
# Files that lie beside data and describe it.
BESIDE = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(slots=True)
class ReadRow:
    """One row of the input. `row` counts from 1: the line for text lines and CSV (the line on which the record begins),
    else the element. `judgements` are validated, and empty exactly if there is a `reason`."""

    file: str
    row: int
    judgements: list[Judgement]
    reason: str | None = None


@dataclass
class Share:
    """Which rows one of several processes takes: of a file of lines, the lines that end in its chunks; of any other
    file, and of the rows from which the format is told, all or none.

    number, of: this is share `number` (from 0) of `of`.
    files:      the files that have rows, by name, numbered as they are met: the same in every share.
    source:     how many files were read before the one that the row is from: the same in every share.
    """

    number: int = 0
    of: int = 1
    files: dict[str, int] = field(default_factory=dict)
    source: int = -1
    telling: bool = True  # the format is being told: every share reads every row
    lines: bool = False  # the file is one of lines


class _Broken(Exception):
    """The file cannot be read further from here on; `at`, where it is known: the rows up to there."""

    at: int | None = None


Raw = tuple[int, Row | None, str | None]  # row number, the row or else the reason


def read_files(
    files: Sequence[str | Path],
    *,
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    unjudged: bool = False,
    share: Share | None = None,
) -> Iterator[ReadRow]:
    """Read the rows of `files` (files, folders of files, or `datasets` folders) one by one, in the order given.

    `format` names the format (default: told from the columns, for each file); `mapping` says which column holds which
    field (`{"prompt": "question"}`) and is applied first. Files, format and mapping are looked at before anything is
    read. `unjudged`: a file with prompts and responses is read for these alone, judged or not (a score of 0 stands in).
    `share`: only these rows, for one of several processes that read the same files.
    Raises DataError, naming the file and the remedy, for what concerns a whole file."""
    if isinstance(files, str | Path):
        files = [files]
    if not files:
        raise DataError("no input files given")
    mapping = dict(mapping or {})
    check_mapping(mapping, named(format) if format else None)
    given = [(str(f), _find(Path(f), str(f))) for f in files]
    return _read_all(given, named(format) if format else None, mapping, unjudged, share or Share())


def raw_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file (or folder of files) as they are, of no format: those that are objects. DataError as above."""
    for file, found in _find(Path(path), str(path)):
        try:
            for _, row, _ in _raw_rows(file, found):
                if row is not None:
                    yield row
        except _Broken as broken:
            raise DataError(f"{file}: {broken}") from None


def _read_all(
    given: list[tuple[str, list[tuple[str, Path]]]],
    form: Format | None,
    mapping: dict[str, str],
    unjudged: bool,
    share: Share,
) -> Iterator[ReadRow]:
    for name, sources in given:
        for file, path in sources:
            yield from _read_one(file, path, form, mapping, unjudged, share)
        if share.files.keys().isdisjoint(file for file, _ in sources):
            raise DataError(f"{name}: holds no rows")


def _read_one(
    file: str, path: Path, form: Format | None, mapping: dict[str, str], unjudged: bool, share: Share
) -> Iterator[ReadRow]:
    share.source, share.telling, share.lines = share.source + 1, True, False
    rows = _raw_rows(file, path, share)
    settled, at = False, 0
    broken: _Broken | None = None
    while not settled:
        # The format is settled on the first rows that are objects at all, and then holds for the file.
        held: list[Raw] = []
        objects = 0
        try:
            for raw in rows:
                held.append(raw)
                objects += raw[1] is not None
                if objects == SAMPLE or len(held) == 4 * SAMPLE:
                    break
        except _Broken as problem:
            broken = problem
            if not held and not at:
                raise DataError(f"{file}: {broken}; nothing in it can be read. Fetch or write it again") from None
        if held:
            share.files.setdefault(file, len(share.files))
            at = held[-1][0]
        if objects:
            form = _settle(file, form, mapping, unjudged, [row for _, row, _ in held if row is not None])
            settled, share.telling = True, False
        if share.number == 0:  # the first share has the rows from which the format was told
            for raw in held:
                yield _judged(file, raw, form, mapping)
        if broken or not held:
            break
    if settled and not broken and (share.number == 0 or share.lines):
        try:
            for raw in rows:
                at = raw[0]
                yield _judged(file, raw, form, mapping)
        except _Broken as problem:
            broken = problem
    if broken and share.number == 0:
        at = at if broken.at is None else broken.at
        yield ReadRow(file, at + 1, [], f"file breaks off: {broken}; the rest of it is not read")


def _settle(file: str, form: Format | None, mapping: dict[str, str], unjudged: bool, sample: list[Row]) -> Format:
    """The format of a file whose first rows are these. Raises DataError."""
    columns = list(dict.fromkeys(c for row in sample for c in row))
    for name, column in mapping.items():
        if column not in columns:
            raise DataError(
                f"{file}: --map {name}={column}: no column {column!r}; there are {', '.join(map(repr, columns))}"
            )
    if mapping:
        sample = [_rename(row, mapping)[0] for row in sample]
    if form is None:
        given = unjudged and not GIVEN.missing({c for row in sample for c in row})
        return GIVEN if given else detect(sample, file, mapping)
    if missing := form.missing({c for row in sample for c in row}):
        raise DataError(
            f"{file}: format {form.name} needs {', '.join(form.needs)}, and there is no {', '.join(missing)}; "
            f"the columns are {', '.join(map(repr, columns))}"
        )
    return form


def _judged(file: str, raw: Raw, form: Format | None, mapping: dict[str, str]) -> ReadRow:
    at, row, reason = raw
    if row is None:
        return ReadRow(file, at, [], reason)
    assert form is not None
    try:
        if mapping:
            row, aside = _rename(row, mapping)
            return ReadRow(file, at, judge(form, row, aside))
        return ReadRow(file, at, judge(form, row))
    except Reject as reject:
        return ReadRow(file, at, [], str(reject))


def _rename(row: Row, mapping: dict[str, str]) -> tuple[Row, Row]:
    """The row under the names that the formats know, and the user's columns which those names would hide."""
    renamed = {field: row[column] for field, column in mapping.items() if column in row}
    used = set(mapping.values())
    aside = {}
    for column, value in row.items():
        if column in mapping:
            if column not in used:
                aside[column] = value
        elif column not in used:
            renamed[column] = value
    return renamed, aside


# ---------------------------------------------------------------------------------------------- which files, which kind


def _find(path: Path, name: str) -> list[tuple[str, Path]]:
    """The files that one given path stands for: (name for the user, path)."""
    try:
        if not path.exists():
            raise DataError(f"{name}: no such file or folder")
        if not path.is_dir():
            return [(name, path)]
        if (path / "dataset_dict.json").is_file():
            said = _read_small(path / "dataset_dict.json", name)
            splits = said.get("splits")
            if not isinstance(splits, list) or not all(_is_plain_name(s) for s in splits):
                raise DataError(f"{name}: dataset_dict.json names no splits; save the dataset again with save_to_disk")
            return [found for s in splits for found in _find(path / s, f"{name.rstrip('/')}/{s}")]
        if (path / "state.json").is_file():
            state = _read_small(path / "state.json", name)
            shards = state.get("_data_files")
            if not isinstance(shards, list) or not all(
                isinstance(s, dict) and _is_plain_name(s.get("filename")) for s in shards
            ):
                raise DataError(f"{name}: state.json names no data files; save the dataset again with save_to_disk")
            if state.get("_indices_data_files"):
                raise DataError(
                    f"{name}: saved by an old `datasets` with an index over its rows; load it and save it again"
                )
            return [_shard(path, name, s["filename"]) for s in shards]
        if (path / "manifest.json").is_file() and (path / "judgements.parquet").is_file():
            raise DataError(f"{name}: is a frozen dataset already; use it as it is")
        found = [
            (f"{name.rstrip('/')}/{f.relative_to(path).as_posix()}", f)
            for f in sorted(path.rglob("*"))
            if f.is_file()
            and _kind_by_name(f)
            and f.name not in BESIDE
            and not any(part.startswith(".") for part in f.relative_to(path).parts)
        ]
    except OSError as problem:
        raise DataError(f"{name}: cannot be read: {problem.strerror or problem}") from None
    except ValueError as problem:  # a NUL in the path
        raise DataError(f"{name!r}: not a path: {problem}") from None
    if not found:
        raise DataError(f"{name}: no file in it is of a known kind ({', '.join(KINDS)}, each also with .gz or .zst)")
    return found


def _read_small(path: Path, name: str) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise DataError(f"{name}: {path.name} is not a JSON object; save the dataset again with save_to_disk")
    return said


def _is_plain_name(name: Any) -> bool:
    """Whether it names something in the folder itself; a saved dataset must not lead elsewhere."""
    return isinstance(name, str) and Path(name).name == name and name != ".."


def _shard(folder: Path, name: str, shard: str) -> tuple[str, Path]:
    if not (folder / shard).is_file():
        raise DataError(f"{name}: {shard}, which state.json names, is not there; copy or save the dataset again")
    return f"{name.rstrip('/')}/{shard}", folder / shard


def _kind_by_name(path: Path) -> str | None:
    stem = path.name.lower()
    for ending in COMPRESSED:
        stem = stem.removesuffix(ending)
    return KINDS.get(Path(stem).suffix)


def _raw_rows(file: str, path: Path, share: Share | None = None) -> Iterator[Raw]:
    """The rows of one file, whatever its kind. Raises DataError for the file, _Broken where it breaks off."""
    kind = _kind_by_name(path)
    share = share or Share()
    try:
        with path.open("rb") as stream:
            magic = stream.read(8)
            packed = "gzip" if magic[:2] == b"\x1f\x8b" else "zstd" if magic[:4] == b"\x28\xb5\x2f\xfd" else None
            said = path.suffix.lower()
            if said in COMPRESSED and not packed and magic:
                raise DataError(
                    f"{file}: is named {said} but is not compressed so; take the ending off, or fetch the file again"
                )
            stream.seek(0)
            chunks = _unpack(stream, packed)
            if kind in ("parquet", "arrow"):
                yield from _columnar_rows(file, stream, chunks if packed else None, kind)
                return
            try:
                head = next(chunks, b"")
            except _Broken as broken:
                raise DataError(f"{file}: {broken}; nothing in it can be read. Fetch or write it again") from None
            if kind is None:
                start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
                if head[:4] == b"PAR1" or head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
                    stream.seek(0)
                    again = _unpack(stream, packed) if packed else None
                    yield from _columnar_rows(file, stream, again, "parquet" if head[:4] == b"PAR1" else "arrow")
                    return
                if start not in (b"[", b"{"):
                    raise DataError(
                        f"{file}: cannot tell what kind of file this is; give it one of the endings {', '.join(KINDS)}"
                    )
                kind = "json"
            if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{file}: is UTF-16 text; save it as UTF-8")
            if head[:4] == b"PAR1" or head[:2] == b"PK":
                raise DataError(f"{file}: is named as {kind} but its content is of another kind")
            head = head.removeprefix(b"\xef\xbb\xbf")
            chunks = itertools.chain((head,), chunks)
            if kind == "json":
                yield from _json_rows(file, head, chunks, share)
            elif kind == "jsonl":
                yield from _jsonl_rows(chunks, share)
            else:
                yield from _csv_rows(file, chunks, "," if kind == "csv" else "\t")
    except OSError as problem:
        raise DataError(f"{file}: cannot be read: {problem.strerror or problem}") from None


def _unpack(stream: BinaryIO, packed: str | None) -> Iterator[bytes]:
    """Chunks of the plain bytes. Everything that can be unpacked is given before _Broken is raised."""
    if packed is None:
        while chunk := stream.read(CHUNK):
            yield chunk
    elif packed == "gzip":
        inflate, data = zlib.decompressobj(wbits=31), b""
        while data or (data := stream.read(CHUNK)):
            if inflate.eof:
                data = data.lstrip(b"\0")  # gzip files may be padded with zeros, and may hold several members
                if not data:
                    continue
                inflate = zlib.decompressobj(wbits=31)
            before = inflate.copy()
            try:
                out = inflate.decompress(data, CHUNK)
            except zlib.error as problem:
                # A call that fails gives nothing of what it unpacked: go up to the damage a byte at a time.
                with contextlib.suppress(zlib.error):
                    for i in range(len(data)):
                        yield before.decompress(data[i : i + 1])
                raise _Broken(f"damaged gzip ({problem})") from None
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if out:
                yield out
        if not inflate.eof:
            with contextlib.suppress(zlib.error):
                yield inflate.flush()
            raise _Broken("truncated gzip")
    else:
        expand, data = zstandard.ZstdDecompressor().decompressobj(), b""
        while data or (data := stream.read(CHUNK // 16)):
            if expand.eof:
                expand = zstandard.ZstdDecompressor().decompressobj()
            try:
                out = expand.decompress(data)
            except zstandard.ZstdError as problem:
                raise _Broken(f"damaged zstd ({problem})") from None
            data = expand.unused_data if expand.eof else b""
            if out:
                yield out
        if not expand.eof:
            raise _Broken("truncated zstd")


# --------------------------------------------------------------------------------------------------------- JSON and CSV


def _lines(chunks: Iterator[bytes], share: Share) -> Iterator[tuple[int, bytes | None]]:
    """Lines of this share without their line feed, numbered from 1; None for one that is too long to be held. A line is
    its share's in whose chunk it ends. What stands after the last line feed is a line too, unless the file breaks off
    there."""
    held: list[bytes] = []
    size, at, n = 0, 1, -1
    try:
        for n, chunk in enumerate(chunks):
            mine = n % share.of == share.number
            if not mine and not share.telling and (feeds := chunk.count(b"\n")):
                at += feeds
                held = [chunk[chunk.rindex(b"\n") + 1 :]]
                size = len(held[0])
                continue
            first, *others = chunk.split(b"\n")
            size += len(first)
            if size <= MAX_ROW:
                held.append(first)
            else:
                held.clear()
            if not others:
                continue
            last = others.pop()
            if mine or share.telling:
                yield at, b"".join(held) if size <= MAX_ROW else None
            at += 1
            for line in others:
                if mine or share.telling:  # it may be told the format in the middle of a chunk
                    yield at, line
                at += 1
            held, size = [last], len(last)
    except _Broken as broken:
        broken.at = at - 1
        raise
    if size and (share.telling or n % share.of == share.number):
        yield at, b"".join(held) if size <= MAX_ROW else None


def _jsonl_rows(chunks: Iterator[bytes], share: Share) -> Iterator[Raw]:
    share.lines = True
    for at, line in _lines(chunks, share):
        if line is None:
            yield at, None, f"row too long: more than {MAX_ROW >> 20} MiB"
        elif line and not line.isspace():
            yield at, *_parse(line)


def _parse(text: bytes) -> tuple[Row | None, str | None]:
    """One JSON object, or the reason why it is none."""
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as problem:
        return None, _why_not_json(text, str(problem))
    if type(row) is not dict:
        return None, f"not an object: the row is {name_of(row)}"
    # A key given twice would silently lose one value. Every key ends in a quote and a colon, so where no more of these
    # are in the text than keys in the result, none is. There may be more, inside of texts: then look closer.
    keys = len(row)
    for value in row.values():
        if type(value) is dict or type(value) is list:
            keys = _count_keys(row)
            break
    if len(KEY_ENDS.findall(text)) != keys:
        twice = _key_given_twice(text, keys)
        if twice is not None:
            return None, f"duplicate key: {twice!r}"
    return row, None


KEY_ENDS = re.compile(rb'"\s*+:')
TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"(?:\s*+(:))?', re.DOTALL)


def _count_keys(value: Any) -> int:
    keys, stack = 0, [value]
    while stack:
        node = stack.pop()
        if type(node) is dict:
            keys += len(node)
            stack += node.values()
        elif type(node) is list:
            stack += [v for v in node if type(v) is dict or type(v) is list]
    return keys


def _key_given_twice(text: bytes, keys: int) -> str | None:
    """A key that an object in this JSON, which holds so many different ones, has twice."""
    if TEXTS.findall(text).count(b":") == keys:
        return None
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found.append(key)
            seen.add(key)

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text, object_pairs_hook=look)
    return found[0] if found else None


def _why_not_json(text: bytes, problem: str) -> str:
    """orjson says where; the two causes that other programs write as if they were JSON are worth a name of their
    own."""
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8: byte 0x{text[wrong.start]:02x} at {wrong.start + 1} of the row"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return f"broken JSON: {problem}"
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, float) and not math.isfinite(node):
            return "not a finite number: NaN, Infinity or a number beyond a double"
        stack.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    if "surrogate" in problem:
        return "not UTF-8: half of a surrogate pair (\\ud800 to \\udfff) in a text"
    return f"broken JSON: {problem}"


TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|"', re.DOTALL)
FLAT = re.compile(rb'\s*+\{(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+\}\s*+(?=[,\]])', re.DOTALL)
MEMBER = re.compile(rb'\s*+"([^"\\]*+)"\s*+:\s*+\[')
CLOSES = {ord("]"): ord("["), ord("}"): ord("{")}


class _JsonText:
    """JSON text that is cut, not parsed: only texts and brackets are looked at, so that an element that is not JSON
    inside (NaN, a byte that is not UTF-8) spoils itself alone. Holds one element and one chunk at a time."""

    def __init__(self, chunks: Iterator[bytes]):
        self.chunks, self.buffer, self.at = chunks, b"", 0

    def more(self, keep: int) -> bool:
        """Take in another chunk, dropping what lies before `keep`; False at the end of the file."""
        chunk = next(self.chunks, None)
        if chunk is None:
            return False
        if len(self.buffer) - keep > MAX_ROW:
            raise _Broken(f"more than {MAX_ROW >> 20} MiB in one element")
        self.buffer, self.at = self.buffer[keep:] + chunk, self.at - keep
        return True

    def sign(self) -> int:
        """The next byte that is not white space, taken; 0 at the end of the file."""
        while True:
            rest = self.buffer[self.at : self.at + 64].lstrip()
            if rest:
                self.at = self.buffer.index(rest[:1], self.at) + 1
                return rest[0]
            if self.at + 64 < len(self.buffer):
                self.at += 64
            elif not self.more(len(self.buffer)):
                return 0
            else:
                self.at = 0

    def value(self) -> tuple[bytes, int]:
        """What stands from here to the next `,`, `]` or `}` of this level, and that sign, both taken. Raises
        _Broken."""
        flat = FLAT.match(self.buffer, self.at)  # an object with nothing nested in it: one match, several times as fast
        if flat:
            self.at = flat.end() + 1
            return flat[0], self.buffer[flat.end()]
        begin, level = self.at, bytearray()
        while True:
            token = TOKEN.search(self.buffer, self.at)
            if token is None or token[0] == b'"':  # nothing more here, or a text whose end is not here yet
                self.at = len(self.buffer) if token is None else token.start()
                if not self.more(begin):
                    raise _Broken(
                        "the JSON ends inside a row" if self.buffer[begin:].strip() else "the JSON is not closed"
                    )
                begin = 0
                continue
            sign, self.at = self.buffer[token.start()], token.end()
            if sign in b"{[":
                level.append(sign)
            elif sign in b",]}" and not level:
                return self.buffer[begin : token.start()], sign
            elif sign in b"]}" and level.pop() != CLOSES[sign]:
                raise _Broken("brackets do not match")

    def elements(self) -> Iterator[bytes]:
        """The elements of an array whose opening bracket has been taken."""
        first = True
        while True:
            element, sign = self.value()
            if sign == ord("}"):
                raise _Broken("brackets do not match")
            if sign == ord(",") or not first or element.strip():
                yield element
            if sign == ord("]"):
                return
            first = False


def _json_rows(file: str, head: bytes, chunks: Iterator[bytes], share: Share) -> Iterator[Raw]:
    """The rows of a `.json` file: an array, arrays under keys such as `data`, or JSON lines under the wrong ending."""
    start = head.lstrip()
    if not start:
        return
    text = _JsonText(chunks)
    if start[:1] == b"[":
        text.sign()
        for at, element in enumerate(text.elements(), 1):
            yield at, *_parse(element)
    elif start[:1] == b"{":
        opening = MEMBER.match(start[1:4096])
        if not (opening and opening[1].decode("utf-8", "replace") in WRAPPERS):
            # Lines, if one of the first is an object by itself; an object written over several lines has none such.
            first = [_parse(line)[0] for line in start[: CHUNK // 4].split(b"\n")[:8]]
            if any(first) and not (first[0] and WRAPPERS & set(first[0]) and b"\n" not in start.rstrip()):
                yield from _jsonl_rows(chunks, share)
                return
        text.sign()
        at, found, sign = 0, False, ord(",")
        while sign == ord(","):
            while len(text.buffer) - text.at < 4096 and text.more(text.at):
                pass
            member = MEMBER.match(text.buffer, text.at)
            if member and member[1].decode("utf-8", "replace") in WRAPPERS:
                found, text.at = True, member.end()
                for element in text.elements():
                    at += 1
                    yield at, *_parse(element)
            sign = text.value()[1]
        if sign == ord("]"):
            raise _Broken("brackets do not match")
        if not found:
            known = ", ".join(sorted(WRAPPERS))
            raise DataError(
                f"{file}: is one JSON object, without a list of rows under one of {known}. "
                "Expected an array of objects, or one object a line"
            )
    else:
        raise DataError(f"{file}: is not JSON: it begins with {start[:20]!r}; expected an array of objects")
    if text.sign():
        raise _Broken("more text follows the end of the JSON")


def _csv_rows(file: str, chunks: Iterator[bytes], delimiter: str) -> Iterator[Raw]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    wrong: list[str] = []

    def lines() -> Iterator[str]:
        for _, line in _lines(chunks, Share()):
            if line is None:
                wrong.append(f"row too long: more than {MAX_ROW >> 20} MiB")
                yield "\n"
                continue
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError as problem:
                wrong.append(f"not UTF-8: byte 0x{line[problem.start]:02x} at {problem.start + 1} of the line")
                yield line.decode("utf-8", "replace") + "\n"

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        header = next((fields for fields in reader if fields), None)
    except csv.Error as problem:
        raise DataError(f"{file}: the header is not CSV: {problem}") from None
    if header is None:
        return
    if wrong:
        raise DataError(f"{file}: the header is {wrong[0]}; save the file as UTF-8")
    for i, name in enumerate(header):
        if name in header[:i]:
            raise DataError(f"{file}: two columns are called {name!r}; rename one")
    while True:
        at = reader.line_num + 1
        wrong.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            yield at, None, f"broken CSV: {problem}"
            continue
        if wrong:
            yield at, None, wrong[0]
        elif len(fields) == len(header):
            # CSV has no null: an empty field says nothing.
            yield at, {name: field or None for name, field in zip(header, fields, strict=True)}, None
        elif fields:
            yield at, None, f"broken CSV: {len(fields)} fields, and the header has {len(header)}"


# ---------------------------------------------------------------------------------------------------- parquet and arrow


def _columnar_rows(file: str, stream: BinaryIO, unpacked: Iterator[bytes] | None, kind: str) -> Iterator[Raw]:
    """Rows of a parquet file or an arrow stream (or file), batch by batch. A compressed one is first unpacked into a
    temporary file, as both are read from more than one place."""
    with tempfile.TemporaryFile() as spool:
        if unpacked is not None:
            try:
                for chunk in unpacked:
                    spool.write(chunk)
            except _Broken as broken:
                raise DataError(f"{file}: {broken}; nothing in it can be read. Fetch or write it again") from None
            stream = spool
        stream.seek(0)
        magic = stream.read(6)
        stream.seek(0)
        if not magic:
            return
        try:
            batches: Iterator[pa.RecordBatch]
            if kind == "parquet":
                opened = pq.ParquetFile(stream, pre_buffer=False, buffer_size=CHUNK)
                schema = opened.schema_arrow
                batches = (  # a group at a time, so that a damaged one does not take the one before with it
                    batch
                    for group in range(opened.num_row_groups)
                    for batch in opened.iter_batches(_step(opened.metadata.row_group(group)), row_groups=[group])
                )
            elif magic == b"ARROW1":
                table = pa.ipc.open_file(stream)
                schema, batches = table.schema, (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                table = pa.ipc.open_stream(stream)
                schema, batches = table.schema, iter(table)
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise DataError(f"{file}: is not {kind}: {_first_line(problem)}. Fetch or write it again") from None
        names = schema.names
        for i, name in enumerate(names):
            if name in names[:i]:
                raise DataError(f"{file}: two columns are called {name!r}; rename one")
        decoders = [(f.name, decode) for f in schema if (decode := _json_inside(f.type)) is not None]
        at = 0
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError, ValueError) as problem:
                raise _Broken(f"damaged {kind} ({_first_line(problem)})") from None
            if batch is None:
                return
            step = _step(batch)
            for part in range(0, batch.num_rows, step):
                piece = batch.slice(part, step)
                rows: list[Any]
                try:
                    rows = piece.to_pylist()
                except (ValueError, OverflowError, pa.ArrowException):  # one value spoils the piece: find its row
                    rows = [_one_row(piece, i) for i in range(piece.num_rows)]
                for row in rows:
                    at += 1
                    if type(row) is str:
                        yield at, None, row
                        continue
                    try:
                        for name, decode in decoders:
                            row[name] = decode(row[name])
                    except orjson.JSONDecodeError as problem:
                        yield at, None, f"broken JSON: {problem} in column {name!r}"
                        continue
                    yield at, row, None


def _step(rows: Any) -> int:
    """How many rows of a batch, or of a parquet group, to take at a time: fewer where they are large."""
    size = rows.nbytes if isinstance(rows, pa.RecordBatch) else rows.total_byte_size
    return max(1, min(BATCH, (CHUNK << 3) * rows.num_rows // max(size, 1)))


def _json_inside(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """How to decode values of an arrow type in which some texts are JSON (`datasets` keeps tool calls so); None if
    none."""
    if str(kind) == "extension<arrow.json>":
        return lambda value: orjson.loads(value) if type(value) is str else value
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = _json_inside(kind.value_type)
        return item and (lambda value: value and [item(v) for v in value])
    if pa.types.is_struct(kind):
        fields = {f.name: decode for f in kind if (decode := _json_inside(f.type)) is not None}
        return (
            (lambda value: value and {k: fields[k](v) if k in fields else v for k, v in value.items()})
            if fields
            else None
        )
    return None


def _one_row(piece: pa.RecordBatch, i: int) -> Row | str:
    """One row as a dict, or the reason why it cannot be one."""
    row: Row = {}
    for name, column in zip(piece.schema.names, piece.columns, strict=True):
        try:
            row[name] = column[i].as_py()
        except UnicodeDecodeError as problem:
            return f"not UTF-8: column {name!r} ({problem.reason})"
        except (ValueError, OverflowError, pa.ArrowException) as problem:
            return f"wrong type: column {name!r} cannot be read ({_first_line(problem)})"
    return row


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]
