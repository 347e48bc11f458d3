"""Offline is enforced, not assumed: while it holds, this process opens no socket and no other dataset."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.errors import OfflineError

_lock = threading.Lock()
_active: list[frozenset[str]] = []  # one entry per `offline` in force: the roots it lets open
_hooked = False

# What reaches out, by Python's own table of audit events. Sockets between processes of one machine (AF_UNIX) are no
# network.
_REACHING = {
    "socket.__new__": "open a socket",
    "socket.connect": "connect to",
    "socket.bind": "listen on",
    "socket.sendto": "send to",
    "socket.sendmsg": "send to",
    "socket.getaddrinfo": "look up",
    "socket.gethostbyname": "look up",
    "socket.gethostbyaddr": "look up",
    "socket.getnameinfo": "look up",
}
_LOCAL = getattr(socket, "AF_UNIX", None)


@contextmanager
def offline(*roots: str) -> Iterator[None]:
    """While active: no socket, no name look-up, and no dataset but those with these roots, in any thread of the
    process.

    Raises OfflineError at the attempt, naming it. May be nested: every one in force must agree. Child processes are not
    covered.
    """
    global _hooked
    mine = frozenset(roots)
    with _lock:
        if not _hooked:
            sys.addaudithook(
                _refuse
            )  # a hook cannot be taken away again, so it is one, and idle unless `offline` is active
            _hooked = True
        _active.append(mine)
    try:
        yield
    finally:
        with _lock:
            _active.remove(mine)


def refuse_dataset(root: str | None, what: str) -> None:
    """Raise OfflineError if `offline` is active and does not let the dataset `root` (None: a new one) be touched."""
    for allowed in _active:
        if root is None or root not in allowed:
            named = f" (its own: {', '.join(sorted(r[:12] for r in allowed))})" if allowed else ""
            raise OfflineError(f"{what}: training is offline and may reach no other data{named}; do it before or after")


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if not _active or event not in _REACHING:
        return
    if event == "socket.__new__":
        if args[1] == _LOCAL:
            return
        shown = getattr(args[1], "name", args[1])
    elif event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        if getattr(args[0], "family", None) == _LOCAL:
            return
        shown = args[1]
    else:
        shown = args[0]
    raise OfflineError(f"something tried to {_REACHING[event]} {shown!r}: training is offline; do it before or after")
