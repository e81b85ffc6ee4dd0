"""An HTTP server of blobs that fails as it is told: one thread for each connection, a script of faults, a record of
what was asked. Blobs are under /blobs/<hex> and, as at a registry, /v2/<repository>/blobs/sha256:<hex>;
/signed/<hex>?until=N is where redirects lead; /token hands out tokens.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import PATIENCE_S

Fault = Callable[["Exchange"], bool]
"""Does something to an exchange. True: the exchange is over; False: it goes on as if nothing had been."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the name of the fault that it met, or ""."""

    path: str
    headers: dict[str, str]
    fault: str


@dataclass(slots=True)
class Exchange:
    """One request on its way to an answer. data: of the blob, whole. first, last: the range asked for."""

    origin: Origin
    sock: socket.socket
    path: str
    headers: dict[str, str]
    data: bytes
    first: int
    last: int
    over: bool = False  # the connection too

    @property
    def body(self) -> bytes:
        return self.data[self.first : self.last + 1]

    def answer(self, status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bool:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}", *headers]
        self.sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return True

    def answer_range(self, body: bytes | None = None, *headers: str, length: int | None = None) -> bool:
        value = f"Content-Range: bytes {self.first}-{self.last}/{len(self.data)}"
        return self.answer(206, self.body if body is None else body, value, *headers, length=length)

    def hang_up(self, *, reset: bool = False) -> bool:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.over = True
        return True


@dataclass(slots=True)
class Rule:
    """times: how often it still applies, -1 for ever."""

    name: str
    fault: Fault
    times: int
    where: Callable[[Exchange], bool] | None = None


@dataclass(slots=True)
class Origin:
    """Serving until the ``with`` that made it ends."""

    port: int
    scheme: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    token: str | None = None
    lifetime: float | None = None  # of the tokens that it hands out; then it wants one of them
    grace: float = 0  # how much longer than it says a token is good
    ahead: float = 0  # of the time at which tokens and signed places end, so that a test needs not wait for it
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    connections: int = 0
    _rules: deque[Rule] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _now: int = 0
    _sockets: set[socket.socket] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)
    _gone: bool = False
    _closed: bool = False
    _tokens: dict[str, float] = field(default_factory=dict)  # until when they are good

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/blobs/{{digest}}"

    def now(self) -> float:
        return time.monotonic() + self.ahead

    def add(self, data: bytes) -> bytes:
        """Its digest."""
        digest = hashlib.sha256(data).digest()
        self.blobs[digest.hex()] = data
        return digest

    def add_directory(self, directory: Path) -> None:
        for path in directory.iterdir():
            self.blobs[path.name] = path.read_bytes()

    def fail(self, name: str, fault: Fault, *, times: int = 1, where: Callable[[Exchange], bool] | None = None) -> None:
        """The next requests (that where accepts) meet the fault. Rules are tried in the order in which they came."""
        with self._lock:
            self._rules.append(Rule(name, fault, times, where))

    def heal(self) -> None:
        with self._lock:
            self._rules.clear()
            self._gone = False

    def vanish(self) -> None:
        """Every connection is reset, now and until `heal`."""
        with self._lock:
            self._gone = True
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def met(self, name: str) -> int:
        """Requests that met the fault."""
        with self._lock:
            return sum(asked.fault == name for asked in self.asked)

    def count(self) -> int:
        with self._lock:
            return len(self.asked)

    # -- one thread for each connection

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock, sock.makefile("rb") as lines:
                while self._exchange(sock, lines.readline):
                    pass
        except (OSError, ValueError):
            pass  # the other side is gone, or a fault closed it
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def _exchange(self, sock: socket.socket, readline: Callable[[], bytes]) -> bool:
        words = readline().split()
        if len(words) != 3:
            return False
        headers = {}
        while (line := readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        path = words[1].decode()
        data = self.blobs.get(path.partition("?")[0].rpartition("/")[2].removeprefix("sha256:"), b"")
        first, last = 0, len(data) - 1
        if headers.get("range", "").startswith("bytes="):
            first, last = (int(number) for number in headers["range"][6:].split("-"))
        exchange = Exchange(self, sock, path, headers, data, first, last)
        rule = self._rule(exchange)
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.asked.append(Asked(path, headers, rule.name if rule is not None else ""))
        try:
            if rule is None or not rule.fault(exchange):
                self._answer(exchange)
        finally:
            with self._lock:
                self._now -= 1
        return not exchange.over

    def _rule(self, exchange: Exchange) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.times != 0 and (rule.where is None or rule.where(exchange)):
                    rule.times -= 1
                    return rule
        return None

    def revoke(self) -> None:
        """Every token that was handed out."""
        with self._lock:
            self._tokens.clear()

    def refused(self) -> int:
        """Requests that came with a token that was not good."""
        with self._lock:
            return sum(asked.fault == "refused" for asked in self.asked)

    def _hand_out(self, exchange: Exchange) -> None:
        assert self.lifetime is not None
        with self._lock:
            token = f"token-{len(self._tokens)}-{time.monotonic()}"
            self._tokens[token] = self.now() + self.lifetime + self.grace
        exchange.answer(200, json.dumps({"token": token, "expires_in": self.lifetime}).encode())

    def _refuse(self, exchange: Exchange) -> None:
        if "authorization" in exchange.headers:
            with self._lock:
                self.asked.append(Asked(exchange.path, exchange.headers, "refused"))
        realm = f'Bearer realm="{self.scheme}://127.0.0.1:{self.port}/token",service="test"'
        exchange.answer(401, b"", f"WWW-Authenticate: {realm}")

    def _is_good(self, exchange: Exchange) -> bool:
        token = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        with self._lock:
            return self._tokens.get(token, 0) > self.now()

    def _answer(self, exchange: Exchange) -> None:
        if self.lifetime is not None and exchange.path.startswith("/token"):
            self._hand_out(exchange)
            return
        if self.lifetime is not None and not self._is_good(exchange):
            self._refuse(exchange)
            return
        if exchange.path.startswith("/signed/"):
            if float(exchange.path.partition("until=")[2]) < self.now():
                exchange.answer(403, b"expired")
                return
        elif self.token is not None and exchange.headers.get("authorization") != f"Bearer {self.token}":
            exchange.answer(401, b"who are you")
            return
        if not exchange.data:
            exchange.answer(404, b"no such blob")
        elif not 0 <= exchange.first <= exchange.last < len(exchange.data):
            exchange.answer(416)
        else:
            exchange.answer_range()

    # -- life

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    sock.close()
                    return
                self.connections += 1
                if self._gone:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                    continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._start, args=(sock, context), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _start(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        if context is not None:
            try:
                sock = context.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        with self._lock:
            self._sockets.add(sock)
        self._serve(sock)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)


@contextmanager
def serving(*blobs: bytes, context: ssl.SSLContext | None = None) -> Iterator[Origin]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    origin = Origin(listener.getsockname()[1], "https" if context is not None else "http")
    for blob in blobs:
        origin.add(blob)
    thread = threading.Thread(target=origin._accept, args=(listener, context), daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE_S)
        origin._close()


# ---------------------------------------------------------------------- faults


def reset(exchange: Exchange) -> bool:
    return exchange.hang_up(reset=True)


def reset_midway(exchange: Exchange) -> bool:
    exchange.answer_range(exchange.body[: len(exchange.body) // 2], length=len(exchange.body))
    return exchange.hang_up(reset=True)


def short_body(exchange: Exchange) -> bool:
    """Fewer bytes than the length says, then the end."""
    exchange.answer_range(exchange.body[:-1], length=len(exchange.body))
    return exchange.hang_up()


def short_length(exchange: Exchange) -> bool:
    """Fewer bytes than asked for, and the length says so too."""
    return exchange.answer_range(exchange.body[:-1])


def long_body(exchange: Exchange) -> bool:
    return exchange.answer_range(exchange.body + b"!")


def whole(exchange: Exchange) -> bool:
    """200 in place of 206."""
    with suppress(OSError):
        exchange.answer(200, exchange.data)
    return exchange.hang_up()


def wrong_range(exchange: Exchange) -> bool:
    """The right number of bytes from another place."""
    size = exchange.last - exchange.first + 1
    first = exchange.first - 1 if exchange.first > 0 else 1
    body = exchange.data[first : first + size].ljust(size, b"\0")
    return exchange.answer(206, body, f"Content-Range: bytes {first}-{first + size - 1}/{len(exchange.data)}")


def wrong_total(exchange: Exchange) -> bool:
    value = f"Content-Range: bytes {exchange.first}-{exchange.last}/{len(exchange.data) + 1}"
    return exchange.answer(206, exchange.body, value)


def no_range(exchange: Exchange) -> bool:
    return exchange.answer(206, exchange.body)


def flipped(exchange: Exchange) -> bool:
    """One bit of every 4096 bytes is another."""
    body = bytearray(exchange.body)
    for at in range(0, len(body), 4096):
        body[at] ^= 0x10
    return exchange.answer_range(bytes(body))


def zeros(exchange: Exchange) -> bool:
    return exchange.answer_range(bytes(len(exchange.body)))


def encoded(exchange: Exchange) -> bool:
    return exchange.answer_range(None, "Content-Encoding: gzip")


def status(code: int, *headers: str) -> Fault:
    return lambda exchange: exchange.answer(code, b"<html>no</html>", *headers)


def late(seconds: float) -> Fault:
    def fault(_: Exchange) -> bool:
        time.sleep(seconds)
        return False

    return fault


def held(gate: threading.Event) -> Fault:
    """Until the gate opens."""

    def fault(_: Exchange) -> bool:
        gate.wait(PATIENCE_S)
        return False

    return fault


def slow(seconds: float, pieces: int = 20) -> Fault:
    """Trickles."""

    def fault(exchange: Exchange) -> bool:
        body = exchange.body
        exchange.answer_range(b"", length=len(body))
        size = -(-len(body) // pieces)
        for at in range(0, len(body), size):
            time.sleep(seconds / pieces)
            exchange.sock.sendall(body[at : at + size])
        return True

    return fault


def silent(exchange: Exchange) -> bool:
    """Headers, half of the body, and then nothing until the other side gives up."""
    exchange.answer_range(exchange.body[: len(exchange.body) // 2], length=len(exchange.body))
    exchange.sock.recv(1)
    return exchange.hang_up()


def redirected(to: str, code: int = 307) -> Fault:
    """to: may have {name}, the blob's hex digits, in it."""
    return lambda exchange: exchange.answer(
        code, b"", f"Location: {to.replace('{name}', exchange.path.rpartition('/')[2])}"
    )


def signed(origin: Origin, lifetime: float) -> Fault:
    """To a signed url of another host that is good for that long; negative: from the start it is not."""

    def fault(exchange: Exchange) -> bool:
        until = origin.now() + lifetime
        name = exchange.path.rpartition("/")[2]
        place = f"{origin.scheme}://127.0.0.1:{origin.port}/signed/{name}?until={until}"
        return exchange.answer(307, b"", f"Location: {place}")

    return fault
