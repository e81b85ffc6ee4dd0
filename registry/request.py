"""One request and its answer, as values: what a transport gets and gives, whichever way it waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cext.record import EMPTY, Record

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0  # between two reads or writes; a registry that commits an upload is silent for its length
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Certificates of the system, where a library that brings its own TLS does not know its place."""


class Body(Record):
    """size: bytes. open: the bytes from the start, each time it is called; not a generator, see `_Answer`."""

    unshown = ("open",)

    size: int
    open: Callable[[], AsyncIterator[bytes]]


class Request(Record):
    unshown = ("headers", "body")

    method: str
    url: str
    headers: Mapping[str, str] = EMPTY
    body: bytes | Body | None = None


class Response(Protocol):
    """An answer whose body has not been read yet."""

    @property
    def status(self) -> int: ...

    def header(self, name: str) -> str | None:
        """The value; of several lines, joined by commas."""

    def lines(self, name: str) -> Sequence[str]:
        """Each line of a header that may occur several times."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises RegistryError where it breaks off."""


class Transport(Protocol):
    def send(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """Raises RegistryError. The block's end closes the answer, read or not."""
