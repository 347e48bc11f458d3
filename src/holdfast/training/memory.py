"""Memory that nothing uses any more, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None under another C library."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found


def give_back() -> None:
    """Hand freed memory back. glibc keeps what tensors up to 32 MiB leave behind, in pieces that the next, larger ones do not fit into."""
    trim = _trim()
    if trim is not None:
        trim(0)
