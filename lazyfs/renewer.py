"""The fetcher of a trust domain: what reads its images' packs from other hosts. Two processes, and one that keeps them.

    client ── background.start ──► keeper (lazyfs/keeper.py; starts another renewer when one dies)
                                      │ forks
                                      ▼
                                   renewer (the user's rights) ── forks ──► fetcher (nobody, libcurl)
                                      │ `fetch`: origins of clients            │ cext/src/os_link.h
                                      │ urls and tokens, before they end ────► │
                                      ◄──────── "this source said 401" ─────── │ ◄──► object server

The renewer knows who we are to a registry and talks to it alone; it never sees a byte of a pack. The fetcher sees
tokens and packs and nothing else: it may not write to a file, run a program or look into a process. The object server
has neither. If the fetcher dies the renewer makes another, which finds out from the object server what is wanted. If
the renewer dies its fetcher dies with it, and the next one knows the same origins. All end with the object server.

Lines of JSON go to the fetcher: {"source", "url", "headers", "lifetime", "authorities", "proxy", "no_proxy"},
{"origin", "sources"}, {"statistics"}, {"ping"}; from it come {"news": [[source, status]]}, {"statistics"} and {"pong"}.
A fetcher that is alive and does not answer is killed and replaced like one that died. A client sends one packet:
{"op": "origin", "origin", "known"}, answered with {"number"}; {"op": "sources", "number"}, answered with {"sources"}
once there are any: for a client's own requests; or {"op": "statistics"}.
"""

from __future__ import annotations

import json
import math
import os
import queue
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cext
from cext.errors import OnesecError
from lazyfs import background
from lazyfs.fetch_credentials import Credentials, credentials_of, first_try, of_client
from lazyfs.fetch_process import HELD_MAX, become_fetcher
from lazyfs.remote import MESSAGE_MAX, number_of
from registry.proxies import proxies_for

RENEWER = "onesec-renewer"
_ORIGINS_MAX = 1024
_SOURCES_EACH = 8
_AGAIN_S, _AGAIN_MAX_S = 0.25, 15.0  # between two tries to get credentials that are refused
_RESTART_S, _RESTART_MAX_S = 0.125, 15.0
_PING_S = 5.0  # between two pings
_PONG_S, _PONG_MAX_S = 10.0, 160.0  # a fetcher that takes longer to answer one hangs


@dataclass(slots=True)
class _Origin:
    """sources: numbers of the fetcher's, _SOURCES_EACH from the first on. due: when to get credentials, monotonic."""

    words: Mapping[str, Any] = field(repr=False)
    first: int
    credentials: list[Credentials] = field(default_factory=list)
    due: float = 0.0
    failures: int = 0
    busy: bool = False


def _pause(failures: int) -> float:
    """Seconds; also after thousands of failures."""
    return float(min(_AGAIN_S * 2 ** min(failures, 10), _AGAIN_MAX_S))


def run(listener: socket.socket, link: int, memory: int, origins: int) -> int:
    """The renewer's process, until the object server closes its end of link. The exit status.

    origins: a file in memory with a line for each origin, so that a renewer knows what the one before it knew.
    """
    cext.set_process_name(RENEWER)
    renewer = _Renewer(listener, link, memory, origins)
    renewer.start_fetcher()
    renewer.run()
    return 0


class _Renewer:
    """One thread that answers, and one that talks to registries, which may take its time."""

    def __init__(self, listener: socket.socket, link: int, memory: int, origins: int) -> None:
        self._listener = listener
        self._link = link
        self._memory = memory
        self._user = os.geteuid()
        self._origins: dict[int, _Origin] = {}
        self._clients: dict[int, socket.socket] = {}
        self._asking: list[socket.socket] = []  # clients that wait for statistics
        self._waiting: list[tuple[socket.socket, int]] = []  # and those that wait for the sources of an origin
        self._child = -1
        self._pidfd = -1
        self._lines: socket.socket | None = None
        self._received = b""
        self._restart_at = 0.0
        self._restart_s = _RESTART_S  # after the last death; twice as long after each that follows soon
        self._started = 0.0
        self._ping_at = math.inf  # when the next ping is due
        self._hangs_at = math.inf  # when the one that is out should long have been answered
        self._patience_s = _PONG_S  # twice as long after each that was killed: it may be the host that is slow
        self._wanted: queue.SimpleQueue[tuple[int, Mapping[str, Any]]] = queue.SimpleQueue()
        self._got: queue.SimpleQueue[tuple[int, list[Credentials] | str]] = queue.SimpleQueue()
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._file = origins
        self._recall()

    # -- the fetcher

    def start_fetcher(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        child = os.fork()
        if child == 0:
            become_fetcher(theirs.fileno(), self._link, self._memory)
        theirs.close()
        ours.settimeout(self._patience_s)  # one that does not read must not stop us
        self._child = child
        self._started = time.monotonic()
        self._ping_at, self._hangs_at = self._started + _PING_S, math.inf
        self._pidfd = os.pidfd_open(child)
        self._lines = ours
        self._received = b""
        for number, origin in self._origins.items():
            self._tell_origin(number, origin)

    def _tell(self, words: Mapping[str, Any]) -> None:
        if self._lines is None:
            return
        try:
            self._lines.sendall(json.dumps(words).encode() + b"\n")
        except TimeoutError:  # it has half a line, and every further one would be waited for as long
            self._lines.close()
            self._lines = None
            self._hangs_at = 0.0
        except OSError:
            pass  # it is gone; the next one is told all of it

    def _tell_origin(self, number: int, origin: _Origin) -> None:
        now = time.monotonic()
        sources = []
        for at, one in enumerate(origin.credentials):
            if one.expires_at <= now:
                continue
            lifetime = 0 if one.expires_at == math.inf else one.expires_at - now
            source = {"source": origin.first + at, "url": one.url, "headers": list(one.headers), "lifetime": lifetime}
            self._tell({**source, "authorities": one.authorities, **proxies_for(one.url, os.environ)})
            sources.append(origin.first + at)
        self._tell({"origin": number, "sources": sources})

    def _hear(self) -> None:
        assert self._lines is not None
        try:
            data = self._lines.recv(1 << 16)
        except OSError:
            data = b""
        if not data or len(self._received) > HELD_MAX:  # with no line to it, it is killed as one that hangs
            self._lines.close()
            self._lines = None
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            words = json.loads(line)
            for source, _ in words.get("news", ()):
                self._renew(source)
            if "pong" in words:
                self._ping_at, self._hangs_at = time.monotonic() + _PING_S, math.inf
                self._patience_s = max(self._patience_s / 2, _PONG_S)
            if "statistics" in words:
                for client in self._asking:
                    self._answer(client, words["statistics"])
                self._asking.clear()

    def _ping(self) -> None:
        now = time.monotonic()
        if self._child >= 0 and now >= self._hangs_at:
            background.log(f"fetcher: no answer in {self._patience_s:g} s; it is killed")
            self._patience_s = min(2 * self._patience_s, _PONG_MAX_S)
            os.kill(self._child, signal.SIGKILL)  # buried when its end is seen
            self._hangs_at = math.inf
        elif self._child >= 0 and now >= self._ping_at:
            self._ping_at, self._hangs_at = math.inf, now + self._patience_s
            self._tell({"ping": True})

    def _bury(self) -> None:
        os.waitpid(self._child, 0)
        os.close(self._pidfd)
        self._pidfd = self._child = -1
        self._ping_at = self._hangs_at = math.inf
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        for client in self._asking:
            self._answer(client, {"error": "it ended"})
        self._asking.clear()
        background.log("fetcher: ended; another one is started")
        now = time.monotonic()
        brief = now - self._started < _RESTART_MAX_S  # one that dies of what it is told must not fill the log
        self._restart_s = min(2 * self._restart_s, _RESTART_MAX_S) if brief else _RESTART_S
        self._restart_at = now + self._restart_s

    # -- credentials

    def _renew(self, source: int) -> None:
        """A source was refused, or its time has passed."""
        for origin in self._origins.values():
            if origin.first <= source < origin.first + _SOURCES_EACH and not origin.busy:
                pause = _pause(origin.failures) if origin.failures else 0
                origin.failures += 1
                origin.due = min(origin.due, time.monotonic() + pause)

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, origin in self._origins.items():
            if origin.due <= now and not origin.busy:
                origin.busy = True
                self._wanted.put((number, origin.words))

    def _talk(self) -> None:
        while True:
            number, words = self._wanted.get()
            try:
                self._got.put((number, credentials_of(words)))
            except Exception as error:
                self._got.put((number, str(error) or type(error).__name__))
            os.eventfd_write(self._woken, 1)

    def _take_credentials(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._woken)
        while True:
            try:
                number, got = self._got.get_nowait()
            except queue.Empty:
                return
            origin = self._origins[number]
            origin.busy = False
            now = time.monotonic()
            if isinstance(got, str):
                background.log(f"credentials: {got}")
                origin.failures += 1
                origin.due = now + _pause(origin.failures)
                continue
            origin.credentials = got[:_SOURCES_EACH]
            renew_at = min((one.renew_at for one in origin.credentials), default=math.inf)
            origin.due = max(renew_at, now + _AGAIN_S)
            if origin.due < math.inf and origin.failures:
                origin.failures -= 1
            self._tell_origin(number, origin)
            self._give_sources()

    def _give_sources(self) -> None:
        now = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for client, number in waiting:
            good = [one for one in self._origins[number].credentials if one.expires_at > now]
            if not good:
                self._waiting.append((client, number))
                continue
            sources = [
                {
                    "url": one.url,
                    "headers": list(one.headers),
                    "lifetime_s": 0 if one.expires_at == math.inf else one.expires_at - now,
                    "authorities": one.authorities,
                }
                for one in good
            ]
            self._answer(client, {"sources": sources})

    # -- clients

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, self._user):
            sock.close()
            return
        sock.settimeout(5)
        self._clients[sock.fileno()] = sock

    def _serve(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(MESSAGE_MAX)
        except OSError:
            data = b""
        if not data:
            self._drop(sock)
            return
        try:
            words = json.loads(data)
            if words["op"] == "origin":
                self._answer(sock, {"number": self._add(words["origin"], words.get("known", ()))})
            elif words["op"] == "sources":
                number = int(words["number"])
                if number not in self._origins:
                    raise OnesecError(f"got origin {number}, which nobody registered")
                self._waiting.append((sock, number))
                self._give_sources()
            elif words["op"] == "statistics":
                self._asking.append(sock)
                self._tell({"statistics": True})
            else:
                self._answer(sock, {"error": f"got {words['op']!r}, want origin, sources or statistics"})
        except Exception as error:
            self._answer(sock, {"error": str(error) or type(error).__name__})

    def _drop(self, sock: socket.socket) -> None:
        self._clients.pop(sock.fileno(), None)
        if sock in self._asking:
            self._asking.remove(sock)
        self._waiting = [(client, number) for client, number in self._waiting if client is not sock]
        sock.close()

    def _answer(self, sock: socket.socket, words: Mapping[str, Any]) -> None:
        with suppress(OSError):
            sock.send(json.dumps(words).encode())

    def _add(self, words: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> int:
        """known: sources that the client has got itself, lazyfs.remote.Source; good until the first renewal."""
        number = number_of(words)
        if number not in self._origins:
            if len(self._origins) >= _ORIGINS_MAX:
                raise OnesecError(f"got more than {_ORIGINS_MAX} origins")
            self._enter(number, words, [of_client(one) for one in known[:_SOURCES_EACH]])
            self._remember(words)
        return number

    def _enter(self, number: int, words: Mapping[str, Any], credentials: list[Credentials]) -> None:
        origin = _Origin(words, 1 + _SOURCES_EACH * len(self._origins), credentials or first_try(words))
        if credentials:
            origin.due = min(one.renew_at for one in credentials)
        self._origins[number] = origin
        self._tell_origin(number, origin)

    def _remember(self, words: Mapping[str, Any]) -> None:
        """One write, at the end of what is there: a renewer that is killed in it leaves a line without an end."""
        with suppress(OSError):  # out of memory: then a successor does not know it, and its next client says it again
            os.pwrite(self._file, json.dumps(words).encode() + b"\n", os.fstat(self._file).st_size)

    def _recall(self) -> None:
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        *lines, broken = data.split(b"\n")
        os.ftruncate(self._file, len(data) - len(broken))
        for line in lines:
            words = json.loads(line)
            self._enter(number_of(words), words, [])

    # -- the loop

    def run(self) -> None:
        """Until the object server closes its end."""
        # After the first fork: a child of a process with threads has whatever locks they held.
        threading.Thread(target=self._talk, daemon=True).start()
        while True:
            self._start_due()
            if self._child < 0 and time.monotonic() >= self._restart_at:
                self.start_fetcher()
            poll = select.poll()
            poll.register(self._link, select.POLLRDHUP)
            for fd in (self._listener.fileno(), self._woken, *self._clients):
                poll.register(fd, select.POLLIN)
            if self._pidfd >= 0:
                poll.register(self._pidfd, select.POLLIN)
            if self._lines is not None:
                poll.register(self._lines.fileno(), select.POLLIN)
            for fd, _ in poll.poll(self._wait_ms()):
                if fd == self._link:
                    self._end()
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._woken:
                    self._take_credentials()
                elif fd == self._pidfd:
                    self._bury()
                elif self._lines is not None and fd == self._lines.fileno():
                    self._hear()
                elif fd in self._clients:
                    self._serve(self._clients[fd])
            self._ping()  # after an answer that was there already was heard: it may be we who were held up

    def _wait_ms(self) -> int | None:
        ends = [origin.due for origin in self._origins.values() if not origin.busy]
        ends += [self._ping_at, self._hangs_at]
        if self._child < 0:
            ends.append(self._restart_at)
        end = min(ends, default=math.inf)
        return None if end == math.inf else max(0, math.ceil((end - time.monotonic()) * 1000))

    def _end(self) -> None:
        if self._child >= 0:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
