"""Requests over the getter (cext/src/os_fetch_get.h): the transport of a start. As `registry/transport.py`, it decides
nothing, and its errors read the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from cext.errors import CorruptError, OnesecError, UsageError
from cext.fetch import Getter
from registry.errors import BadAnswerError, RegistryError, UnreachableError
from registry.loop import Loop
from registry.origin import Hosts, origin_of, settings_for
from registry.proxies import proxies_for
from registry.request import BUNDLES, CONNECT_SECONDS, SILENCE_SECONDS, Body, Request, Response

_ENCODED = (None, "identity")
_BLANKS = " \t\r"
_MARK = "-----BEGIN CERTIFICATE-----"


class ThinTransport:
    """`with` closes it, and its loop's tasks. environment: proxies, and SSL_CERT_FILE."""

    def __init__(
        self,
        hosts: Hosts,
        environment: Mapping[str, str],
        *,
        connect: float = CONNECT_SECONDS,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._hosts = hosts
        self._environment = environment
        self._patience = {"connect": connect, "silent": silence}
        self._trusted: dict[str, str] = {}
        self._system = environment.get("SSL_CERT_FILE") or None
        self._getter = Getter(authorities=self._system, connect=connect, silence=silence)
        self.loop = Loop(self._getter.wait)

    def __enter__(self) -> ThinTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.loop.close()
        self._getter.close()

    def wake(self) -> None:
        """Has tasks look again at what they wait for. Any thread."""
        self._getter.wake()

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[Response]:
        origin = origin_of(request.url, "request")
        # A start reads, and asks for tokens.
        assert request.method in ("GET", "HEAD", "POST")
        assert not isinstance(request.body, Body)
        headers = {"accept-encoding": "identity", **request.headers}
        ca = settings_for(self._hosts, origin.netloc).ca if origin.scheme == "https" else None
        try:
            number = self._getter.start(
                request.url,
                headers=[f"{name}: {value}" for name, value in headers.items()],
                body=request.body or b"" if request.method == "POST" else None,
                head=request.method == "HEAD",
                authorities=None if ca is None else self._bundle(ca),
                **proxies_for(request.url, self._environment),
            )
        except CorruptError as error:
            raise RegistryError(origin.netloc, f"request failed: {error}") from error
        answer = _Answer(self, self._getter, number, origin.netloc)
        try:
            await self.loop.until(answer.begun)
            answer.parse()
            yield answer
        finally:
            self._getter.drop(number)

    def failure(self, host: str, end: str, error: int, words: str) -> OnesecError:
        """What an end other than `done` means to whoever reads the message."""
        text = words.lower()[:200]
        if end in ("connect", "silent"):
            what = "connect" if end == "connect" else "answer"
            return UnreachableError(host, f"did not {what} within {self._patience[end]:.0f} s", retryable=True)
        if end == "untrusted":
            return UnreachableError(
                host,
                f"its certificate is not trusted: {words.partition('problem: ')[2] or words}",
                hint=f'name its CA: ca = "/path/ca.pem" under [registry."{host}"] in onesec.toml',
            )
        if end == "no-tls":
            return UnreachableError(
                host,
                "does not speak TLS",
                hint=f'if plain http is meant: plain-http = true under [registry."{host}"] in onesec.toml',
            )
        if end == "refused":
            reason = os.strerror(error).lower() if error in errno.errorcode else text
            return UnreachableError(host, f"unreachable: {reason}", retryable=True)
        if end == "proxy":
            return UnreachableError(host, f"proxy: {text}", retryable=True)
        if end == "headers":
            return RegistryError(host, "request failed: got more headers than any answer needs")
        return UnreachableError(host, f"broke off: {text}", retryable=True)

    def _bundle(self, ca: str) -> str:
        """The system's certificates and those of a file, as text."""
        if ca not in self._trusted:
            text = ""
            for path in (self._system, *BUNDLES) if self._system else BUNDLES:
                if os.path.exists(path):
                    text = _read(path)
                    break
            try:
                own = _read(ca)
            except OSError:
                own = ""
            if _MARK not in own:
                raise UsageError(f"ca {ca}: not a file of PEM certificates")
            self._trusted[ca] = f"{text}\n{own}"
        return self._trusted[ca]


class _Answer:
    """An answer whose header came, or what came instead."""

    def __init__(self, transport: ThinTransport, getter: Getter, number: int, host: str) -> None:
        self._transport = transport
        self._getter = getter
        self._number = number
        self._host = host
        self._headers: dict[str, list[str]] = {}
        self._end = ""
        self._piece = b""
        self.status = 0

    def begun(self) -> bool:
        status, end, *_ = self._getter.look(self._number)
        return bool(status or end)

    def parse(self) -> None:
        """Raises what became of a request that was not answered."""
        status, end, error, head, words = self._getter.look(self._number)
        if not status:
            raise self._transport.failure(self._host, end, error, words)
        self.status = status
        last = ""
        for line in head.decode("latin-1").split("\n")[1:]:  # splitlines knows ends of lines that HTTP does not
            name, colon, value = line.partition(":")
            if line[:1] in (" ", "\t") and last:  # folded, as nobody may any more
                self._headers[last][-1] += f" {line.strip(_BLANKS)}"
            elif colon:
                last = name.strip(_BLANKS).lower()
                self._headers.setdefault(last, []).append(value.strip(_BLANKS))

    def header(self, name: str) -> str | None:
        lines = self._headers.get(name)
        return None if lines is None else ", ".join(lines)

    def lines(self, name: str) -> Sequence[str]:
        return self._headers.get(name, [])

    def pieces(self) -> AsyncIterator[bytes]:
        if (coding := self.header("content-encoding")) not in _ENCODED:
            raise BadAnswerError(self._host, f"content-encoding: got {coding}, want none")
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await self._transport.loop.until(self._moved)
        if self._piece:
            return self._piece
        if self._end == "done":
            raise StopAsyncIteration
        _, end, error, _, words = self._getter.look(self._number)
        raise self._transport.failure(self._host, end, error, words)

    def _moved(self) -> bool:
        self._end = self._getter.look(self._number)[1]  # first: what came before the end is taken then
        self._piece = self._getter.take(self._number)
        return bool(self._piece or self._end)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
