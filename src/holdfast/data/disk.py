"""What the file system does for whoever writes folders that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def alive(pid: str) -> bool:
    """Whether a process of this number is there: what another left behind may still be in use."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        pass  # it is there, and another user's
    return True


def sync(path: Path) -> None:
    """To the disk, a file or (where the system can) a folder's entries."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # folders cannot be opened everywhere
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
