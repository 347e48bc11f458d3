from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from holdfast.data.dataset import open_dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.offline import offline
from holdfast.data.records import Judgement
from holdfast.errors import OfflineError


def pair(n: int) -> Judgement:
    return Judgement("pair", f"question {n}", ("good", "bad"))


def test_no_socket_and_no_look_up() -> None:
    before = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with offline():
        with pytest.raises(OfflineError, match="open a socket"):
            socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with pytest.raises(OfflineError, match="look up 'localhost'"):
            socket.getaddrinfo("localhost", 80)
        with pytest.raises(OfflineError, match="connect to"):
            before.connect(("127.0.0.1", 9))
    before.close()
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()  # and after it all is as before


def test_sockets_between_processes_are_no_network() -> None:
    with offline():
        a, b = socket.socketpair()
        a.send(b"x")
        assert b.recv(1) == b"x"
        a.close()
        b.close()


def test_it_holds_in_every_thread_and_ends_with_an_error() -> None:
    caught: list[BaseException] = []

    def reach() -> None:
        try:
            socket.getaddrinfo("localhost", 80)
        except OfflineError as refused:
            caught.append(refused)

    with pytest.raises(KeyError), offline():
        thread = threading.Thread(target=reach)
        thread.start()
        thread.join()
        raise KeyError
    assert len(caught) == 1
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def test_only_its_own_dataset_opens(tmp_path: Path) -> None:
    own = freeze_records([pair(1)], tmp_path / "own")
    freeze_records([pair(2)], tmp_path / "other")
    with offline(own.root):
        assert open_dataset(tmp_path / "own").root == own.root
        with pytest.raises(OfflineError, match=f"other.*its own: {own.root[:12]}"):
            open_dataset(tmp_path / "other")
        with pytest.raises(OfflineError, match="freeze a dataset"):
            freeze_records([pair(3)], tmp_path / "new")
        with offline(), pytest.raises(OfflineError):  # the stricter of two holds
            open_dataset(tmp_path / "own")
    open_dataset(tmp_path / "other")
    assert not (tmp_path / "new").exists()
