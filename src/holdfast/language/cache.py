"""Artefacts that can be made again, kept by the digest of all they depend on: $HOLDFAST_CACHE, else ~/.cache/holdfast.

An entry is a folder of flat arrays, mapped into memory when it is read, and a JSON of the rest. Written beside and renamed, so that an
entry is whole or not there; its files' digests are checked when it is read, and one that does not agree is made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

SAID = "entry.json"


def cache_folder() -> Path:
    """Where artefacts that can be made again are kept: $HOLDFAST_CACHE, else ~/.cache/holdfast."""
    return Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")


def keep(folder: Path, arrays: Mapping[str, np.ndarray], said: Mapping[str, Any]) -> None:
    """Write an entry, unless it is there. A disk that is full or not writable keeps nothing, and that is all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, np.ascontiguousarray(array), allow_pickle=False)
            files[name] = _digest(path)
        (temporary / SAID).write_bytes(orjson.dumps({"files": files, "said": said}))
        if folder.exists():  # a damaged one, or another process was quicker
            shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError:
        pass
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def kept(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """An entry's arrays, mapped and not writable, and the rest; None where there is none that is whole."""
    try:
        entry = orjson.loads((folder / SAID).read_bytes())
        arrays = {}
        for name, digest in entry["files"].items():
            path = folder / f"{name}.npy"
            if _digest(path) != digest:
                return None
            arrays[name] = np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None, allow_pickle=False)
        return arrays, entry["said"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
