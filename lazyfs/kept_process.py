"""A child process that is started again when it dies."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from lazyfs.background import log

_PAUSE_S, _PAUSE_MAX_S = 0.125, 15.0
_END_MS = 10_000


class KeptProcess:
    """body: what the child does; returns its exit status. what: it in words.

    Only the child itself is waited for, through its descriptor and by its number: what it has started may outlive it
    and hold whatever it inherited. A child that dies soon after its start is started later each time, up to 15 seconds;
    one that ran for that long begins anew with the shortest pause.
    """

    def __init__(self, body: Callable[[], int], what: str) -> None:
        self._body = body
        self._what = what
        self._child = -1
        self._pidfd = -1
        self._started = 0.0
        self._pause_s = _PAUSE_S

    def start(self) -> None:
        child = os.fork()
        if child == 0:
            self._be()
        try:
            self._pidfd = os.pidfd_open(child)
        except OSError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        self._child = child
        self._started = time.monotonic()

    def run(self, fd: int) -> None:
        """Keeps the child until the other end of fd is closed, and then waits for its end, or sees to it."""
        while True:
            poll = select.poll()
            poll.register(fd, select.POLLRDHUP)
            if self._pidfd >= 0:
                poll.register(self._pidfd, select.POLLIN)
            ready = [number for number, _ in poll.poll(None if self._pidfd >= 0 else self._pause_s * 1000)]
            if fd in ready:
                self._end()
                return
            if self._pidfd >= 0:
                self._bury()
            else:
                self._start_again()

    def _start_again(self) -> None:
        """Nothing may end the keeper while it is needed, not even that there is no room for another process."""
        try:
            self.start()
        except OSError as error:
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
            log(f"{self._what}: not started: {error.strerror}; once more a little later")

    def _be(self) -> NoReturn:
        status = 1
        try:
            status = self._body()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _bury(self) -> None:
        _, status = os.waitpid(self._child, 0)
        os.close(self._pidfd)
        self._child = self._pidfd = -1
        brief = time.monotonic() - self._started < _PAUSE_MAX_S
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S) if brief else _PAUSE_S
        log(f"{self._what}: ended with {os.waitstatus_to_exitcode(status)}; another one is started")

    def _end(self) -> None:
        if self._pidfd < 0:
            return
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(_END_MS):
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._pidfd)
