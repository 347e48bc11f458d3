"""The ledger: a run's append-only, hash-chained record of every step. One JSON object per line; docs/ledger.md has the
format.

Each entry carries its number, its kind, the hash of the entry before and its own hash: SHA-256 of its line without the
field `hash` (UTF-8, keys sorted, no white space). There are no JSON floats in it: a float stands as `float.hex()`
writes it, so that every JSON library reproduces the hashed bytes. There are no times in it: the same recipe on the same
machine gives the same ledger.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from holdfast.errors import DataError, IntegrityError

FORMAT = "holdfast-ledger/1"
START = "0" * 64  # what the first entry gives as the hash before it

Entry = dict[str, Any]


def exact(value: Any) -> Any:
    """JSON-able `value` as the ledger holds it: floats as `float.hex()`, tuples as lists, numpy scalars as their
    numbers.
    """
    if isinstance(value, dict):
        return {str(k): exact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [exact(v) for v in value]
    if isinstance(value, float):
        return value.hex()
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return exact(value.item())
    raise TypeError(f"{type(value).__name__} cannot stand in a ledger entry")


def entry_hash(entry: Entry) -> str:
    """SHA-256 of the entry without its `hash`."""
    return hashlib.sha256(_line({k: v for k, v in entry.items() if k != "hash"})).hexdigest()


def read_ledger(path: Path) -> tuple[list[Entry], bytes]:
    """The entries of a ledger whose chain holds, and the torn rest of a last line (a process died while writing it).

    Raises IntegrityError naming the first entry that does not hold.
    """
    lines, torn = split_lines(path.read_bytes())
    problems = check_chain(lines, path.name)
    if problems:
        first = problems[0]
        raise IntegrityError(
            f"{path}: {first.where}: {first.what}: found {first.found}, expected {first.expected}; restore the file from a copy"
        )
    return [orjson.loads(line) for line in lines], torn


def read_head(folder: Path) -> str:
    """The hash of a run's last entry: the name of everything that it did. Raises as `read_ledger`, and DataError
    without a ledger.
    """
    path = folder / "ledger.jsonl"
    if not path.is_file():
        raise DataError(f"{folder} is no run: it has no ledger.jsonl")
    entries, _ = read_ledger(path)
    return entries[-1]["hash"] if entries else START


def split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines, and what follows the last line feed (or the zeros that a power cut can leave there)."""
    *lines, torn = data.rstrip(b"\0").split(b"\n")
    return lines, torn


class Break(NamedTuple):
    """A place where the chain does not hold: the line (from 0), and what to say of it."""

    line: int
    what: str
    where: str
    found: str
    expected: str


def check_chain(lines: Sequence[bytes], name: str) -> list[Break]:
    """Every place where the chain does not hold: one per damaged entry, not one per follower."""
    problems: list[Break] = []
    before = {START}  # hashes that the next entry may name: what the entry before says of itself, and what it hashes to
    number: int | None = 0  # None after a line that could not be read: it may have been two
    for i, line in enumerate(lines):
        where = f"{name} line {i + 1}"
        try:
            entry = orjson.loads(line)
            n, said, prev = int(entry["n"]), str(entry["hash"]), str(entry["prev"])
            hashed = entry_hash(entry)
            where += f" (entry {n}" + (f", step {entry['step']})" if "step" in entry else ")")
        except (ValueError, KeyError, TypeError):
            problems.append(
                Break(i, "not a ledger entry", where, _short(line), "an entry" if number is None else f"entry {number}")
            )
            before, number = set(), None
            continue
        if hashed != said or _line(entry) != line:
            problems.append(Break(i, "entry does not hash to what it says", where, hashed, said))
        elif number is not None and n != number:
            problems.append(Break(i, "entries are missing or out of order", where, f"entry {n}", f"entry {number}"))
        elif before and prev not in before:
            problems.append(Break(i, "entry does not follow the one before", where, prev, min(before)))
        before, number = {said, hashed}, n + 1
    return problems


class Ledger:
    """A run's ledger, open for writing.

    After a resume the entries past the checkpoint are already there. `append` then compares instead of writing: the
    recomputed entry must have the same bytes.
    """

    def __init__(self, path: Path, entries: Sequence[Entry] = (), at: int | None = None, writes: bool = True):
        """Go on at entry `at` of the `entries` that the file holds (all of them by default). A torn last line is cut
        off. One that does not write keeps the chain beside the process that does.
        """
        self.path = path
        at = len(entries) if at is None else at
        self._expected = [_line(e) for e in entries[at:]]
        self._expected.reverse()
        self.n = at
        self.head: str = entries[at - 1]["hash"] if at else START
        self._file: int | None = None
        if writes:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, sum(len(_line(e)) + 1 for e in entries))

    @property
    def repeating(self) -> bool:
        """Whether the next entry is one that the file already holds."""
        return bool(self._expected)

    def append(self, kind: str, **fields: Any) -> Entry:
        """Write one entry, or compare it with the one that stands there. Raises IntegrityError naming the step and
        fields that differ.
        """
        entry: Entry = {"n": self.n, "kind": kind, "prev": self.head, **exact(fields)}
        entry["hash"] = entry_hash(entry)
        line = _line(entry)
        if self._expected:
            if line != self._expected[-1]:
                kept = orjson.loads(self._expected[-1])
                raise IntegrityError(
                    f"{self.path.name}, entry {self.n}"
                    + (f", step {entry['step']}" if "step" in entry else "")
                    + ": recomputed, it differs: "
                    + "; ".join(
                        f"{name}: ledger {old}, now {new}"
                        for name, old, new in differences(kept, entry)
                        if name != "hash"
                    )
                    + ". A checkpoint, the ledger or the data was changed, or this machine does not compute the same bytes twice"
                )
            self._expected.pop()
        elif self._file is not None:
            os.write(self._file, line + b"\n")
        self.n += 1
        self.head = entry["hash"]
        return entry

    def sync(self) -> None:
        """On the disk, not only with the operating system."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


@dataclass
class History:
    """What a ledger's entries say happened, in order. An `environment` entry at step s sets aside the steps after s
    that stand before it.
    """

    open: Entry
    steps: list[Entry] = field(default_factory=list)
    figures: list[Entry] = field(default_factory=list)
    checkpoints: list[Entry] = field(default_factory=list)
    stop: Entry | None = None
    final: Entry | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> History:
        history = cls(open=entries[0], environment=entries[0]["environment"])
        for entry in entries[1:]:
            history.add(entry)
        return history

    def add(self, entry: Entry) -> None:
        match entry["kind"]:
            case "step":
                self.steps.append(entry)
            case "figures":
                self.figures.append(entry)
            case "checkpoint":
                self.checkpoints.append(entry)
            case "stop":
                self.stop = entry
            case "final":
                self.final = entry
            case "environment":
                self.environment = entry["environment"]
                for listed in (self.steps, self.figures, self.checkpoints):
                    listed[:] = [e for e in listed if e["step"] <= entry["step"]]

    def best(self, stop_on: str | None) -> Entry | None:
        """The figures entry with the best finite value of `stop_on`; the earliest of equals."""
        best = None
        for entry in self.figures if stop_on else []:
            value = figure(entry, stop_on)
            if (
                value == value
                and abs(value) != float("inf")
                and (best is None or better(stop_on, value, figure(best, stop_on)))
            ):
                best = entry
        return best

    def has_checkpoint(self, step: int, best: bool) -> bool:
        return any(e["step"] == step and e["best"] == best for e in self.checkpoints)

    def kept(self, keep: int) -> list[Entry]:
        """The checkpoint entries whose folders a run keeps: the newest `keep` to resume from, and the best."""
        whole = [e for e in self.checkpoints if not e["best"]]
        best = [e for e in self.checkpoints if e["best"]]
        return whole[-keep:] + best[-1:]


def better(name: str | None, value: float, than: float) -> bool:
    """Whether a held-out figure improved. Lower is better where its name contains loss, nll, perplexity, brier or
    error; else higher is.
    """
    lower = any(word in (name or "").lower() for word in ("loss", "nll", "perplexity", "brier", "error"))
    return value < than if lower else value > than


def figure(entry: Entry, name: str | None) -> float:
    """One figure of a `figures` entry."""
    return float.fromhex(entry["figures"][name])


def differences(kept: Any, now: Any, path: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, before, now) wherever two JSON values differ."""
    if isinstance(kept, dict) and isinstance(now, dict):
        found: list[tuple[str, str, str]] = []
        for key in sorted(kept.keys() | now.keys()):
            at = f"{path}.{key}" if path else key
            if key not in kept or key not in now:
                found.append((at, _say(kept.get(key, "absent")), _say(now.get(key, "absent"))))
            else:
                found += differences(kept[key], now[key], at)
        return found
    return [] if kept == now else [(path, _say(kept), _say(now))]


def _line(entry: Entry) -> bytes:
    return orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)


def _say(value: Any) -> str:
    """A value for a message: short, and a hexadecimal float as the number it is."""
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        try:
            return f"{float.fromhex(value)!r} ({value})"
        except ValueError:
            pass
    said = value if isinstance(value, str) else orjson.dumps(value).decode()
    return said if len(said) <= 80 else said[:77] + "..."


def _short(data: bytes) -> str:
    return ascii(data[:40].decode("utf-8", "replace")) + (".." if len(data) > 40 else "")


def sync_tree(folder: Path) -> None:
    """fsync every file below a folder, and the folders."""
    for path in [*sorted(folder.rglob("*")), folder]:
        sync_path(path)


def sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rewrite(path: Path, lines: Iterable[bytes]) -> None:
    """Replace a file of lines atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(b"".join(line + b"\n" for line in lines))
    sync_path(temporary)
    temporary.replace(path)
