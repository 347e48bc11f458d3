"""Freezing: records in, an immutable dataset out.

Rows are hashed as they come and spilled to disk in sorted runs; the runs are then merged into the tables, so memory
does not grow with the input. Of a large input each of a few processes takes a share of the rows (`_processes` says when);
how many there are leaves no trace in any file. The folder is made beside its place and renamed into it when its manifest,
the last file, is written: a process that is killed leaves no dataset that opens.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa

from holdfast.data.dataset import (
    DIGEST,
    FORMAT,
    SCHEMAS,
    Dataset,
    canonical_json,
    content_json,
    dataset_root,
    digests,
    file_sha256,
    judgement_id,
    judgement_rows,
    manifest_bytes,
    open_dataset,
    prompt_id,
    response_id,
    verify_dataset,
)
from holdfast.data.disk import alive, sync
from holdfast.data.merkle import Merkle
from holdfast.data.offline import refuse_dataset
from holdfast.data.read import ReadRow, Share, read_files
from holdfast.data.records import AnnotatorKind, Judgement, Reject, Segment
from holdfast.data.tables import Sorter, Texts, Writer, array, listed, numbers
from holdfast.data.validate import validate
from holdfast.errors import DataError

_SPILL = 24 << 20  # bytes of rows held before they are sorted and spilled
_ROW_COST = 1024  # what a judgement costs in memory beside its texts, about
_ABOUT = ("annotator", "annotator_kind", "shown", "rubric", "category", "licence", "sources", "extra")
_ALONE = 16 << 20  # bytes of input that one process freezes alone: dividing the rows takes some time as well
_PROCESSES = 4  # at most: what remains with one process is then most of the time
_FORKLESS = {"torch", "jax", "tensorflow"}  # modules whose threads a forked process must not do without
_TEXTS = ("prompts", "responses")
JUDGED = pa.schema([*SCHEMAS["judgements"], pa.field("file", pa.int32()), pa.field("row", pa.int64())])
_LISTED = 20  # rejects that a message lists; the rest are in the file that it names


class Rejects(Sequence[dict[str, Any]]):
    """The input rows that could not become records: `{file, row, reason}` each, read from a file as they are asked
    for.
    """

    def __init__(self, path: Path, count: int, by_reason: Counter[str]):
        self.path = path
        self.by_reason = by_reason
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for line in file:
                yield orjson.loads(line)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return list(self)[i]
        i = i + self._count if i < 0 else i
        for n, reject in enumerate(self):
            if n == i:
                return reject
        raise IndexError(f"reject {i} of {self._count}")


class RowsRejected(DataError):
    """Some input rows could not become records, and `on_error` says to stop. `rejects` has every one."""

    def __init__(self, message: str, accepted: int, rejects: Rejects):
        super().__init__(message)
        self.accepted = accepted
        self.rejects = rejects


@dataclass(frozen=True)
class Frozen:
    """What a freeze did. `accepted` and `rejected` count input rows and add up to all of them."""

    dataset: Dataset
    root: str
    accepted: int
    rejected: int
    rejects: Rejects


def freeze(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str | None = None,
    mapping: dict[str, str] | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    annotator: str | None = None,
    annotator_kind: AnnotatorKind | None = None,
    rubric: str | None = None,
    category: str | None = None,
    licence: str | None = None,
) -> Frozen:
    """Read preference files and freeze them as a dataset in the folder `out`.

    format, mapping: see `read_files`; detected where not given.
    on_error: "stop" reads everything, then raises RowsRejected if any row was rejected, and freezes nothing; every
        reject is in `OUT.rejects.jsonl`. "skip" freezes the rest and keeps the rejects in the dataset folder.
    annotator, annotator_kind, rubric, category, licence: for the judgements whose file does not say.

    Freezing the same content into the same folder again does nothing; anything else that is in the way is a DataError.
    From 16 MiB on, up to four forked processes (as many as this one has cores) divide the rows of files of lines, on Linux,
    where no other thread of Python's runs and torch is not imported. The dataset is the same to the byte.
    """
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error = {on_error!r} should be 'stop' or 'skip'")
    paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise DataError("no files to freeze")
    for n, path in enumerate(paths):
        if path.resolve() in [p.resolve() for p in paths[:n]]:
            raise DataError(f"input {path} is named twice: each of its judgements would count twice")
    said = {"annotator": annotator, "annotator_kind": annotator_kind, "rubric": rubric}
    defaults = {k: v for k, v in {**said, "category": category, "licence": licence}.items() if v is not None}
    try:
        validate(Judgement("pair", "p", ("a", "b"), **defaults))  # type: ignore[arg-type]
    except Reject as problem:
        raise DataError(f"what holds for every judgement: {problem}") from None
    aside = Path(f"{Path(out)}.rejects.jsonl")
    with _Freezer(Path(out)) as work:
        accepted = work.take(
            lambda share: read_files(paths, format=format, mapping=mapping, share=share), defaults, _processes(paths)
        )
        rejects = work.rejects()
        counts = "".join(f"\n  {n} x {reason}" for reason, n in rejects.by_reason.most_common(_LISTED))
        if rejects and (on_error == "stop" or accepted == 0):
            shutil.copyfile(rejects.path, aside)
            first = [
                f"\n  {r['file']}, row {r['row']}: {r['reason']}" for r, _ in zip(rejects, range(_LISTED), strict=False)
            ]
            raise RowsRejected(
                f"{len(rejects)} of {accepted + len(rejects)} input rows were rejected; nothing was frozen:{counts}\n"
                f"the first {len(first)}:{''.join(first)}\n"
                f"all are listed in {aside}; mend them, or freeze the others with --on-error skip",
                accepted,
                Rejects(aside, len(rejects), rejects.by_reason),
            )
        dataset = work.finish()
        aside.unlink(missing_ok=True)  # from an earlier attempt
        kept = dataset.path / "rejects.jsonl"
        if (
            rejects.path.is_file()
            and file_sha256(rejects.path) != dataset.manifest["beside"]["rejects.jsonl"]["sha256"]
        ):
            kept = aside  # the dataset was there already, from files with other rejects
            shutil.copyfile(rejects.path, aside)
        rejects = Rejects(kept, len(rejects), rejects.by_reason)
    return Frozen(dataset, dataset.root, accepted, len(rejects), rejects)


def freeze_records(
    records: Iterable[Judgement | tuple[Judgement, str, int]],
    out: str | Path,
    *,
    beside: Callable[[], Mapping[str, bytes]] | None = None,
) -> Dataset:
    """Freeze judgements made in Python, each alone or as (judgement, name of where it came from, row there).

    beside: files that are to lie in the dataset's folder, asked for when the records are through; the manifest has their digests.
    The first that cannot be frozen is a DataError naming it.
    """
    with _Freezer(Path(out)) as work:
        for n, record in enumerate(records):
            judgement, name, row = record if isinstance(record, tuple) else (record, "records", n)
            try:
                validate(judgement)
                work.rows.add((judgement,), name, row)
            except Reject as problem:
                raise DataError(f"record {n}: {problem}") from None
        for file, content in (beside() if beside is not None else {}).items():
            (work.folder / file).write_bytes(content)
            work.beside.append(file)
        return work.finish()


def write_rejects(rejects: Iterable[tuple[str, int, str]], path: str | Path) -> int:
    """Write (file, row, reason) as JSON lines; how many there were."""
    n = 0
    with Path(path).open("wb") as file:
        for name, row, reason in rejects:
            file.write(_reject_line(name, row, reason))
            n += 1
    return n


def _kind_of(reason: str) -> str:
    return reason.partition(":")[0]  # what follows a colon is the row's own


def _reject_line(name: str, row: int, reason: str) -> bytes:
    said = {"file": name, "row": row, "reason": reason}
    try:
        return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half a surrogate pair, quoted from the input
        said = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in said.items()}
        return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)


def canonical(j: Judgement) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], tuple[Any, ...]]:
    """(prompt id, its JSON, [(response id, its JSON)], the judgement's columns): the one form of what was said."""
    try:
        content = content_json(j.prompt)
        prompt = prompt_id(content)
        responses = [(response_id(prompt, text), text) for text in map(content_json, j.responses)]
        return prompt, content, responses, _statement(j, prompt, prompt.hex(), [r for r, _ in responses])
    except TypeError as problem:  # what JSON cannot carry: half a surrogate pair, a date, an integer beyond 64 bits
        raise Reject(f"cannot be written as JSON: {problem}") from None


def _statement(j: Judgement, prompt: bytes, prompt_hex: str, ids: list[bytes]) -> tuple[Any, ...]:
    """The columns of a judgement of this prompt about these responses, its own id first. Raises TypeError.

    The same statement gives the same columns however the input laid it out: a pair is winner first, a tie sorted by
    id, a soft preference turned to be at least 1/2 (sorted by id at 1/2), a ranking sorted by rank and id with
    ranks 0, 1, 2, ...
    """
    kind = j.kind
    value = None if j.value is None else float(j.value) + 0.0  # minus zero says no more than zero
    margin = None if j.margin is None else float(j.margin) + 0.0
    shown = None if j.shown is None else list(j.shown)
    sources: Sequence[str | None] | None = j.sources if j.sources is not None and any(j.sources) else None
    ranks: list[int] | None = None
    order: Sequence[int] | None = None
    if kind == "tie":
        if ids[1] < ids[0]:
            order = (1, 0)
    elif kind == "soft":
        assert value is not None
        if value < 0.5 or (value == 0.5 and ids[1] < ids[0]):
            order, value = (1, 0), 1.0 - value
    elif kind == "ranking":
        given = j.ranks if j.ranks is not None else range(len(ids))
        dense = {r: n for n, r in enumerate(sorted(set(given)))}
        order = sorted(range(len(ids)), key=lambda i: (given[i], ids[i]))
        ranks = [dense[given[i]] for i in order]
    if order is not None:
        ids = [ids[i] for i in order]
        shown = None if shown is None else [shown[i] for i in order]
        sources = None if sources is None else [sources[i] for i in order]
    if sources is not None:
        sources = [source or None for source in sources]
    about = (
        j.annotator or None,
        j.annotator_kind or None,
        shown,
        j.rubric or None,
        j.category or None,
        j.licence or None,
        sources,
        canonical_json(j.extra).decode() if j.extra else None,
    )
    said: dict[str, Any] = {"kind": kind, "prompt": prompt_hex, "responses": [r.hex() for r in ids], "copy": 0}
    if value is not None:
        said["value"] = value
    if ranks is not None:
        said["ranks"] = ranks
    if margin is not None:
        said["margin"] = margin
    for name, field in zip(_ABOUT, about, strict=True):
        if field is not None:
            said[name] = field
    return (judgement_id(said), kind, prompt, ids, value, ranks, margin, *about, 0)


def _processes(paths: Sequence[Path]) -> int:
    """Among how many processes to divide the rows of these files.

    One for little, and one where a process must not be forked: what another thread does at that moment stays half done
    in the copy (a lock that it holds is held for ever). The threads of pyarrow and numpy know of that.
    """
    unsafe = threading.active_count() > 1 or multiprocessing.current_process().daemon
    if sys.platform != "linux" or unsafe or not _FORKLESS.isdisjoint(sys.modules):
        return 1
    size = 0
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else (path,):
            size += file.stat().st_size if file.is_file() else 0
    return 1 if size < _ALONE else max(1, min(len(os.sched_getaffinity(0)), _PROCESSES))


class _Ended(DataError):
    """A process that read rows is not there any more."""


class _Freezer:
    """One dataset in the making: take rows (or add them to `rows`), then `finish`. Leaves nothing behind unless
    finished.
    """

    def __init__(self, out: Path):
        refuse_dataset(None, f"freeze a dataset into {out}")
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is a file; freeze needs a folder of its own")
        if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file():
            raise DataError(f"{out} holds other files; freeze needs a new or an empty folder")
        self.out = out
        parent = out.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.glob(f".{out.name}.freezing-*"):
                if not alive(left.name.rpartition("-")[2]):
                    shutil.rmtree(left, ignore_errors=True)  # of a freeze that was killed
            self.folder = parent / f".{out.name}.freezing-{os.getpid()}"
            self.folder.mkdir()
        except FileExistsError:
            raise DataError(f"this process is freezing into {out} already") from None
        except OSError as problem:
            raise DataError(f"cannot write beside {out}: {problem.strerror}") from None
        self.beside: list[str] = []
        self._digests = _Digests()
        self._helpers: list[tuple[Any, Connection]] = []  # processes, and the way to each
        self._by_reason: Counter[str] = Counter()
        self.rows = _Rows(self.folder, Share())

    def __enter__(self) -> _Freezer:
        return self

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        self._stop_helpers()
        self._digests.stop()
        self.rows.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(raised, OSError):  # a full disk, a folder without permission
            raise DataError(f"cannot freeze into {self.out}: {raised}") from None

    def take(self, read: Callable[[Share], Iterator[ReadRow]], defaults: Mapping[str, str], of: int) -> int:
        """Take in all rows, divided among so many processes; how many were accepted."""
        if of > 1:
            try:
                return self._take_together(read, defaults, of)
            except _Ended:
                raise
            except DataError:
                # A file or a row with which no dataset can be made. Of several, one process alone names the first.
                self._stop_helpers()
                self._digests.stop()
                self.rows.close()
                shutil.rmtree(self.folder)
                self.folder.mkdir()
                self._digests = _Digests()
                self.rows = _Rows(self.folder, Share())
        self.rows.met = self._digests.of_input
        accepted = self.rows.take(read, defaults)
        self._by_reason = self.rows.by_reason
        return accepted

    def _take_together(self, read: Callable[[Share], Iterator[ReadRow]], defaults: Mapping[str, str], of: int) -> int:
        """As `take`. The other processes are forked, so that none has to begin with importing; the first of them goes
        on to write the tables of texts while this one writes the judgements.
        """
        self.rows.close()
        context = multiprocessing.get_context("fork")
        for number in range(1, of):
            ours, theirs = context.Pipe()
            inherited = [ours, *(pipe for _, pipe in self._helpers)]
            helper = context.Process(
                target=_help, args=(self.folder, Share(number, of), read, defaults, theirs, inherited), daemon=True
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # that numpy has threads; see `_processes`
                helper.start()
            theirs.close()
            self._helpers.append((helper, ours))
        self.rows = rows = _Rows(self.folder, Share(0, of))
        rows.met = self._digests.of_input
        accepted = rows.take(read, defaults)
        rows.spill(keep=("judgements",))
        reject_files = [rows.close()]
        runs = {name: list(rows.sorters[name].runs) for name in _TEXTS}
        for n, (helper, pipe) in enumerate(self._helpers):
            report = self._hear(helper, pipe)
            if report.segments is not None and rows.segments not in (None, report.segments):
                raise DataError("segments and text cannot be one dataset")
            rows.segments = report.segments if rows.segments is None else rows.segments
            for file, count in enumerate(report.file_rows):
                rows.file_rows += [0] * (file + 1 - len(rows.file_rows))
                rows.file_rows[file] += count
            for name in _TEXTS:
                runs[name] += report.runs[name] if n else []
            rows.sorters["judgements"].runs += report.runs["judgements"]
            reject_files.append(report.rejects)
            accepted += report.accepted
        for n, (_, pipe) in enumerate(self._helpers):
            pipe.send(None if n else runs)

        def placed(file: Path) -> Iterator[tuple[int, int, bytes]]:
            with file.open("rb") as lines:
                for line in lines:
                    source, row, said = line.split(b" ", 2)
                    yield int(source), int(row), said

        with (self.folder / "rejects.jsonl").open("wb") as out:
            for _, _, said in heapq.merge(*map(placed, reject_files)):
                out.write(said)
                self._by_reason[_kind_of(orjson.loads(said)["reason"])] += 1
        return accepted

    def _hear(self, helper: Any, pipe: Connection) -> Any:
        """What a helper has to say. Raises what it met, and _Ended if it was killed."""
        try:
            said = pipe.recv()
        except (EOFError, ConnectionResetError):
            helper.join()
            raise _Ended(
                f"cannot freeze into {self.out}: a process that read rows for it ended with status {helper.exitcode}; "
                "if memory ran out, free some, and freeze again"
            ) from None
        if isinstance(said, BaseException):
            raise said
        return said

    def _stop_helpers(self) -> None:
        for helper, pipe in self._helpers:
            helper.kill()
            helper.join()
            pipe.close()
        self._helpers.clear()

    def rejects(self) -> Rejects:
        self.rows.close()
        return Rejects(self.folder / "rejects.jsonl", self._by_reason.total(), self._by_reason)

    def finish(self) -> Dataset:
        """Merge, write the tables, then the manifest, then move the folder to its place."""
        rows = self.rows
        if not self._helpers:
            rows.spill(keep=rows.sorters)
        if not rows.sorters["judgements"].runs:
            raise DataError("there is nothing to freeze: no row was read")
        rows.close()
        tables = {} if self._helpers else _write_texts(self.folder, rows.sorters, self._digests)
        tables |= _write_judgements(self.folder, rows.sorters["judgements"], self._digests)
        for file in ("origins.parquet", "rejects.jsonl", *self.beside):
            self._digests.of_output(self.folder / file)
        written = self._digests.outputs()
        if self._helpers:
            texts, files_of_texts = self._hear(*self._helpers[0])
            tables |= texts
            written |= files_of_texts
        shutil.rmtree(self.folder / "runs")
        for name, table in tables.items():
            table |= written.pop(f"{name}.parquet")
        kind = "segments" if rows.segments else "text"
        inputs = self._digests.inputs()
        beside = written
        root = dataset_root(kind, tables)
        files = [{"name": n, "rows": rows.file_rows[i], "sha256": inputs.get(n)} for n, i in rows.files.items()]
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "root": root,
            "tables": tables,
            "beside": beside,
            "rejects": self._by_reason.total(),
            "files": files,
        }
        (self.folder / "manifest.json").write_bytes(manifest_bytes(manifest))
        sync(self.folder / "manifest.json")
        sync(self.folder)
        if self.out.is_dir() and any(self.out.iterdir()):
            there = open_dataset(self.out, check=False)
            if there.root != root:
                raise DataError(
                    f"{self.out} holds another dataset ({there.root[:12]}..., not {root[:12]}...); name a new folder"
                )
            if problems := verify_dataset(self.out):
                raise DataError(
                    f"{self.out} holds this dataset, but damaged ({problems[0]}); remove it, or name a new folder"
                )
            return there
        if self.out.is_dir():
            self.out.rmdir()  # empty
        self.folder.replace(self.out)
        sync(self.out.absolute().parent)
        return open_dataset(self.out, check=False)


class _Rows:
    """Rows on their way in, or one process's share of them: hashed, held, and spilled in sorted runs.

    share:     which of the rows these are
    files:     the number of each file, by name
    file_rows: how many rows each file had, by number
    segments:  whether the rows are about segments; None before the first
    met:       called with the name of each file at its first row
    """

    def __init__(self, folder: Path, share: Share):
        self.share = share
        self.files = share.files
        self.file_rows: list[int] = []
        self.segments: bool | None = None
        self.by_reason: Counter[str] = Counter()
        self.met: Callable[[str], object] = str
        self._held = 0
        self._known: dict[str | bytes, tuple[bytes, str, dict[str | bytes, bytes]]] = {}
        self._prompts, self._responses = Texts(), Texts()
        self._judgements: list[tuple[Any, ...]] = []
        runs = folder / "runs" / str(share.number)
        runs.mkdir(parents=True, exist_ok=True)
        self._reject_file = (folder / "rejects.jsonl" if share.of == 1 else runs / "rejects").open("wb")
        schemas = {**{name: SCHEMAS[name] for name in _TEXTS}, "judgements": JUDGED}
        self.sorters = {name: Sorter(runs, name, schema) for name, schema in schemas.items()}

    def take(self, read: Callable[[Share], Iterator[ReadRow]], defaults: Mapping[str, str]) -> int:
        """Add or reject what is read; how many rows were added. `defaults`: what holds where a judgement does not
        say.
        """
        accepted = 0
        for row in read(self.share):
            reason = row.reason
            if reason is None:
                for judgement in row.judgements:  # validated by the reader
                    for key, value in defaults.items():
                        if getattr(judgement, key) is None:
                            setattr(judgement, key, value)
                try:
                    self.add(row.judgements, row.file, row.row)
                    accepted += 1
                    continue
                except Reject as problem:
                    reason = str(problem)
            line = _reject_line(row.file, row.row, reason)
            if self.share.of > 1:  # with its place, for when the shares are put together
                line = b"%d %d " % (self.share.source, row.row) + line
            self._reject_file.write(line)
            self.by_reason[_kind_of(reason)] += 1
            self._file(row.file)
        return accepted

    def close(self) -> Path:
        """Write out the rejects; the file they are in."""
        self._reject_file.close()
        return Path(self._reject_file.name)

    def _file(self, name: str) -> int:
        number = self.files.setdefault(name, len(self.files))
        if number >= len(self.file_rows):
            self.file_rows += [0] * (number + 1 - len(self.file_rows))
            self.met(name)
        self.file_rows[number] += 1
        return number

    def add(self, judgements: Sequence[Judgement], name: str, row: int) -> None:
        """Take one input row: all of its judgements, or none. Raises Reject with the reason."""
        if not judgements:
            raise Reject("the row makes no judgement")
        before = len(self._prompts.ids), len(self._responses.ids)
        made = []
        try:
            for j in judgements:
                # A text that was met before (a prompt with many answers, a baseline's answer) is known by itself; what is no
                # text, by its JSON.
                key = j.prompt if type(j.prompt) is str else content_json(j.prompt)
                known = self._known.get(key)
                if known is None:
                    content = key if isinstance(key, bytes) else content_json(key)
                    prompt = prompt_id(content)
                    known = self._known[key] = (prompt, prompt.hex(), {})
                    self._held += self._prompts.hold(content, prompt)
                prompt, prompt_hex, answers = known
                ids = []
                for said in j.responses:
                    key = said if type(said) is str else content_json(said)
                    response = answers.get(key)
                    if response is None:
                        content = key if isinstance(key, bytes) else content_json(key)
                        response = answers[key] = response_id(prompt, content)
                        self._held += self._responses.hold(content, response, prompt)
                    ids.append(response)
                made.append(_statement(j, prompt, prompt_hex, ids))
        except TypeError as problem:  # what JSON cannot carry: half a surrogate pair, a date, an integer beyond 64 bits
            self._prompts.drop(before[0])
            self._responses.drop(before[1])
            self._known.clear()  # it names what was dropped; a text that is held twice for that is written once
            raise Reject(f"cannot be written as JSON: {problem}") from None
        segments = isinstance(judgements[0].responses[0], Segment)
        if self.segments is not segments:
            if self.segments is not None:
                raise DataError(f"{name}, row {row}: segments and text cannot be one dataset; freeze them apart")
            self.segments = segments
        file = self._file(name)
        for columns_of in made:
            self._judgements.append((*columns_of, file, row))
            self._held += _ROW_COST + len(columns_of[10] or "") + len(columns_of[14] or "")  # rubric and extra
        if self._held > _SPILL:
            self.spill()

    def spill(self, keep: Collection[str] = ()) -> None:
        """Sort what is held into runs: on disk, but in memory for the tables in `keep`."""
        for name, texts in (("prompts", self._prompts), ("responses", self._responses)):
            if texts.ids:
                self.sorters[name].spill(texts.table(SCHEMAS[name]), keep=name in keep)
        if self._judgements:
            columns = [array([j[i] for j in self._judgements], field.type) for i, field in enumerate(JUDGED)]
            table = pa.Table.from_arrays(columns, schema=JUDGED)
            self.sorters["judgements"].spill(table, keep="judgements" in keep)
        self._prompts, self._responses = Texts(), Texts()
        self._judgements.clear()
        self._known.clear()
        self._held = 0


def _help(
    folder: Path,
    share: Share,
    read: Callable[[Share], Iterator[ReadRow]],
    defaults: Mapping[str, str],
    pipe: Connection,
    inherited: list[Connection],
) -> None:
    """What a process does that helps another to freeze: take in a share of the rows, report, and, if it is then given
    runs of texts, write the tables of those.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process is told as well, and ends this one
    for other in inherited:
        other.close()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        rows = _Rows(folder, share)
        accepted = rows.take(read, defaults)
        rows.spill(keep=_TEXTS if share.number == 1 else ())
        runs = {name: [r for r in sorter.runs if isinstance(r, Path)] for name, sorter in rows.sorters.items()}
        pipe.send(_Report(accepted, rows.segments, rows.file_rows, runs, rows.close()))
        more = pipe.recv()
        if more is not None:
            for name in _TEXTS:
                rows.sorters[name].runs += more[name]
            digests = _Digests()
            tables = _write_texts(folder, rows.sorters, digests)
            pipe.send((tables, digests.outputs()))
    except BaseException as problem:
        with contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(problem)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class _Report:
    """What a helper took in: rows accepted, whether they are segments, rows of each file, runs on disk by table, and the
    file of its rejects.
    """

    accepted: int
    segments: bool | None
    file_rows: list[int]
    runs: dict[str, list[Path]]
    rejects: Path


def _write_texts(folder: Path, sorters: Mapping[str, Sorter], files: _Digests) -> dict[str, dict[str, Any]]:
    """Merge and write the tables of prompts and responses; rows and root of each."""
    tables: dict[str, dict[str, Any]] = {}
    for name in _TEXTS:
        tree, writer = Merkle(), Writer(folder / f"{name}.parquet", SCHEMAS[name])
        for merged in sorters[name].merge():
            tree.extend(listed(digests(merged["id"])))
            writer.write(merged)
        files.of_output(writer.close())
        tables[name] = {"rows": tree.size, "root": tree.root().hex()}
    return tables


def _write_judgements(folder: Path, sorter: Sorter, files: _Digests) -> dict[str, dict[str, Any]]:
    """Merge and write judgements and origins; rows and root of the former."""
    tree, writer = Merkle(), Writer(folder / "judgements.parquet", SCHEMAS["judgements"])
    origins = Writer(folder / "origins.parquet", SCHEMAS["origins"])
    last, copies = b"", 0
    for merged in sorter.merge():
        # Identical statements stand together here, perhaps across two pieces. They are counted apart: copy 0, 1, 2,
        # ...
        ids = digests(merged["id"])
        first = np.concatenate(([True], (ids[1:] != ids[:-1]).any(axis=1)))
        starts = np.flatnonzero(first)
        copy = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
        if ids[0].tobytes() == last:
            copy[: starts[1] if len(starts) > 1 else None] += copies
        last, copies = ids[-1].tobytes(), int(copy[-1]) + 1
        table = merged.select(SCHEMAS["judgements"].names)
        if copy.any():
            table = table.set_column(
                table.num_columns - 1, SCHEMAS["judgements"].field("copy"), numbers(copy.astype(np.int32))
            )
            again = np.flatnonzero(copy)
            ids = ids.copy()
            for i, said in zip(again, judgement_rows(table.take(numbers(again))), strict=True):
                ids[i] = np.frombuffer(judgement_id(said), np.uint8)
            stored = pa.FixedSizeBinaryArray.from_buffers(DIGEST, len(ids), [None, pa.py_buffer(ids.tobytes())])
            table = table.set_column(0, SCHEMAS["judgements"].field("id"), stored)
        tree.extend(listed(ids))
        writer.write(table)
        origins.write(merged.select(SCHEMAS["origins"].names).cast(SCHEMAS["origins"]))
    files.of_output(writer.close())
    origins.close()
    return {"judgements": {"rows": tree.size, "root": tree.root().hex()}}


class _Digests:
    """SHA-256 of files, taken in threads while rows are worked on (most of either lets the other go on)."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._over = False
        self._inputs: dict[str, Future[str]] = {}
        self._outputs: dict[str, tuple[Future[int], Future[str]]] = {}

    def of_input(self, name: str) -> None:
        self._inputs[name] = self._pool.submit(self._sha256, Path(name))

    def of_output(self, path: Path) -> None:
        """Of a finished file, which is brought to the disk as well."""
        self._outputs[path.name] = self._pool.submit(_kept, path), self._pool.submit(self._sha256, path)

    def inputs(self) -> dict[str, str]:
        return {name: digest.result() for name, digest in self._inputs.items()}

    def outputs(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each."""
        return {n: {"bytes": size.result(), "sha256": found.result()} for n, (size, found) in self._outputs.items()}

    def stop(self) -> None:
        self._over = True
        self._pool.shutdown(cancel_futures=True)

    def _sha256(self, path: Path) -> str:
        found, buffer = sha256(), memoryview(bytearray(4 << 20))  # large: this thread waits for its turn after each
        with path.open("rb", buffering=0) as file:
            while not self._over and (n := file.readinto(buffer)):
                found.update(buffer[:n])
        return found.hexdigest()


def _kept(path: Path) -> int:
    """Bring a finished file to the disk; how many bytes it has."""
    sync(path)
    return path.stat().st_size
