"""Tables larger than memory: rows sorted by digest through runs on disk, and written as parquet.

A table's file depends on its rows alone, however they were held and merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute  # `take` needs it, and would import it at the first row
import pyarrow.parquet as pq

from holdfast.data.dataset import DIGEST, digests

_BLOCK = 512 << 10  # bytes of a run that a merge holds at a time
_FAN_IN = 32  # runs merged at a time
_GROUP_ROWS, _GROUP_BYTES = 2048, 4 << 20  # a table's row groups: small enough to read one text without reading many


class Texts:
    """Prompts or responses that are held in memory: digests and canonical JSON, end to end."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self._prompts: list[bytes] = []  # of responses: the prompt of each
        self._ends = [0]
        self._content = bytearray()

    def hold(self, content: bytes, digest: bytes, prompt: bytes | None = None) -> int:
        """Take one in; about how many bytes of memory it will cost until it is spilled."""
        self.ids.append(digest)
        if prompt is not None:
            self._prompts.append(prompt)
        self._content += content
        self._ends.append(len(self._content))
        return 2 * len(content) + 384

    def drop(self, after: int) -> None:
        """Forget all but the first so many."""
        del self.ids[after:], self._prompts[after:], self._ends[after + 1 :]
        del self._content[self._ends[-1] :]

    def table(self, schema: pa.Schema) -> pa.Table:
        ends, content = pa.py_buffer(np.array(self._ends, np.int32)), pa.py_buffer(self._content)
        columns = [array(ids, DIGEST) for ids in (self.ids, self._prompts) if ids]
        columns.append(pa.StringArray.from_buffers(len(self.ids), ends, content))  # orjson wrote it: it is UTF-8
        return pa.Table.from_arrays(columns, schema=schema)


class Sorter:
    """Rows sorted beyond what memory holds: sorted runs on disk (the last in memory), merged a block of each at a time.

    Judgements are sorted by id, file and row. Prompts and responses by id; rows of one id are one row, and one is kept.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema):
        self.folder, self.name, self.schema = folder, name, schema
        self.runs: list[Path | pa.Table] = []
        self._made = 0

    def spill(self, table: pa.Table, keep: bool) -> None:
        """Sort a run, and write it unless it is to be kept in memory."""
        run = table.take(numbers(np.argsort(self._keys(table), kind="stable")))
        self.runs.append(run if keep else self._write(iter([run])))

    def merge(self) -> Iterator[pa.Table]:
        """All rows in order, in pieces. Equal ids stand together, if need be across neighbouring pieces."""
        while len(self.runs) > _FAN_IN:
            few, self.runs = self.runs[:_FAN_IN], self.runs[_FAN_IN:]
            self.runs.append(self._write(self._merge(few)))
            for run in few:
                if isinstance(run, Path):
                    run.unlink()
        yield from self._merge(self.runs)

    def _keys(self, rows: pa.Table | pa.RecordBatch) -> np.ndarray:
        """What rows are sorted by, as one text of bytes each."""
        parts = [digests(rows.column("id"))]
        if "row" in self.schema.names:
            for name, kind in (("file", ">i4"), ("row", ">i8")):
                parts.append(_whole(rows.column(name)).astype(kind).view(np.uint8).reshape(len(parts[0]), -1))
        keys = np.ascontiguousarray(np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0])
        return keys.view(f"S{keys.shape[1]}").ravel()

    def _write(self, pieces: Iterator[pa.Table]) -> Path:
        self._made += 1
        path = self.folder / f"{self.name}-{self._made}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, self.schema) as out:
            for piece in pieces:
                out.write_table(piece, max_chunksize=_rows_of_block(piece))
        return path

    def _merge(self, runs: list[Path | pa.Table]) -> Iterator[pa.Table]:
        files = [pa.OSFile(str(run), "rb") for run in runs if isinstance(run, Path)]
        streams = iter(files)
        readers: list[Iterator[pa.RecordBatch]] = [
            iter(
                run.to_batches(_rows_of_block(run)) if isinstance(run, pa.Table) else pa.ipc.open_stream(next(streams))
            )
            for run in runs
        ]
        heads: list[tuple[pa.RecordBatch, np.ndarray] | None] = [None] * len(runs)

        def refill(i: int) -> None:
            heads[i] = None
            for batch in readers[i]:
                if batch.num_rows:
                    heads[i] = (batch, self._keys(batch))
                    return

        for i in range(len(runs)):
            refill(i)
        last = b""
        while live := [i for i, head in enumerate(heads) if head is not None]:
            # Whatever is not above the smallest of the blocks' last keys can have no smaller row behind it.
            limit = min(heads[i][1][-1] for i in live)  # type: ignore[index]
            parts = []
            for i in live:
                batch, keys = heads[i]  # type: ignore[misc]
                n = int(np.searchsorted(keys, limit, side="right"))
                if n:
                    parts.append((batch.slice(0, n), keys[:n]))
                    if n == len(keys):
                        refill(i)
                    else:
                        heads[i] = (batch.slice(n), keys[n:])
            table = pa.Table.from_batches([batch for batch, _ in parts], self.schema)
            keys = np.concatenate([keys for _, keys in parts])
            order = np.argsort(keys, kind="stable") if len(parts) > 1 else np.arange(len(keys))
            if "row" not in self.schema.names:
                keys = keys[order]
                order = order[np.concatenate(([keys[0] != last], keys[1:] != keys[:-1]))]
                last = keys[-1]
            if len(order) == table.num_rows and len(parts) == 1:
                yield table
            elif len(order):
                yield table.combine_chunks().take(numbers(order))
        for file in files:
            file.close()


class Writer:
    """A parquet table, plain and uncompressed, in row groups whose bounds depend on the rows alone."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path = path
        self._writer = pq.ParquetWriter(
            path, schema, compression="NONE", use_dictionary=False, write_statistics=False, store_schema=False
        )
        self._texts = [f.name for f in schema if f.type == pa.string()]
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = 0

    def write(self, table: pa.Table) -> None:
        self._held.append(table)
        self._held_rows += table.num_rows
        self._held_bytes += table.nbytes
        if self._held_rows >= _GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
            self._flush(all=False)

    def _flush(self, all: bool) -> None:
        table = pa.concat_tables(self._held).combine_chunks()
        size = np.zeros(table.num_rows, np.int64)
        for name in self._texts:
            text = _one(table[name])
            size += np.diff(np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1])
        total = np.cumsum(size)
        start = 0
        while start < table.num_rows:
            full = int(np.searchsorted(total, (total[start - 1] if start else 0) + _GROUP_BYTES)) + 1
            end = min(start + _GROUP_ROWS, full)
            if end > table.num_rows:
                if not all:
                    break
                end = table.num_rows
            self._writer.write_table(table.slice(start, end - start), row_group_size=end - start)
            start = end
        rest = table.slice(start).take(numbers(np.arange(table.num_rows - start)))  # a copy: it holds nothing else
        self._held, self._held_rows, self._held_bytes = [rest], rest.num_rows, int(rest.nbytes)

    def close(self) -> Path:
        """Finish the file; where it is."""
        if self._held:
            self._flush(all=True)
        self._writer.close()
        return self.path


# pyarrow's own ways from Python's and numpy's values first import the whole of pandas where it is installed, which takes
# longer than freezing most files does. These are made from buffers.

_NUMBERS = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}


def numbers(values: np.ndarray, valid: pa.Buffer | None = None) -> pa.Array:
    kind = {np.dtype(dtype): kind for kind, dtype in _NUMBERS.items()}[values.dtype]
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(values)])


def array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of these values: digests, texts, numbers or lists of them; None is null."""
    n, nulls = len(values), values.count(None)
    if nulls == n:
        return pa.nulls(n, kind)
    if kind == DIGEST:
        return pa.Array.from_buffers(kind, n, [None, pa.py_buffer(b"".join(values))])
    valid = pa.py_buffer(np.packbits([v is not None for v in values], bitorder="little")) if nulls else None
    if kind in _NUMBERS:
        return numbers(np.array([0 if v is None else v for v in values] if nulls else values, _NUMBERS[kind]), valid)
    parts: Sequence[Any] = ["" if v is None else v for v in values] if nulls else values
    if kind == pa.string():
        parts = [v.encode() for v in parts]
    ends = np.zeros(n + 1, np.int32)
    np.cumsum([len(v) for v in parts], out=ends[1:])
    if kind == pa.string():
        return pa.Array.from_buffers(kind, n, [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(parts))])
    inner = array([x for v in parts for x in v], kind.value_type)
    return pa.Array.from_buffers(kind, n, [valid, pa.py_buffer(ends)], children=[inner])


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _whole(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of whole numbers without nulls."""
    array = _one(column)
    return np.frombuffer(array.buffers()[1], _NUMBERS[array.type])[array.offset : array.offset + len(array)]


def listed(ids: np.ndarray) -> list[bytes]:
    """(N, 32) digests as N bytes."""
    raw = ids.tobytes()
    return [raw[i : i + 32] for i in range(0, len(raw), 32)]


def _rows_of_block(table: pa.Table) -> int:
    return max(1, table.num_rows * _BLOCK // max(table.nbytes, 1))
