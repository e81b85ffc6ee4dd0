"""A connection to a server whose queue is full: many starts at once."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from lazyfs import domain, remote
from lazyfs.background import listen
from lazyfs.errors import ObjectServerError

Connect = Callable[[int], socket.socket | None]


class Full:
    """Sockets of a domain whose server has not come round to its clients for a while."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, self.directory)
        self._listeners = []
        for name in ("socket", "fetch"):
            listener = stack.enter_context(listen(self.directory, name))
            listener.listen(0)
            self._listeners.append(listener)
            self._wait(f"/proc/self/fd/{self.directory}/{name}")

    def _wait(self, path: str) -> None:
        for _ in range(100):
            client = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                return
        raise AssertionError("its queue has no end")

    def come_round(self) -> None:
        for listener in self._listeners:
            self._stack.enter_context(listener.accept()[0])


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    with ExitStack() as stack:
        yield Full(stack, tmp_path)


@pytest.mark.parametrize("connect", [domain.connect, remote.connect])
def test_a_client_waits_while_the_queue_is_full(full: Full, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: full.come_round())
    monkeypatch.setattr(domain, "time", clock)
    sock = connect(full.directory)
    assert sock is not None
    sock.close()


@pytest.mark.parametrize("connect", [domain.connect, remote.connect])
def test_one_that_never_comes_round_is_said_in_one_line(
    full: Full, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(0, 10)
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), sleep=lambda seconds: None)
    monkeypatch.setattr(domain, "time", clock)
    with pytest.raises(ObjectServerError, match=r"no answer in [36]0 s"):
        connect(full.directory)
