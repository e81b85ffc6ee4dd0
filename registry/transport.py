"""One request over HTTP, and the only module that imports httpx.

It decides nothing: no redirect is followed, no login is added, nothing is tried again. Bodies come as they are on the
wire. Proxies are those of the environment (HTTPS_PROXY, NO_PROXY …), certificates those of the host's bundle and of the
host's `ca`. httpx's errors end here.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import httpx

from cext.errors import OnesecError, UsageError
from registry.errors import BadAnswerError, RegistryError, UnreachableError
from registry.origin import Hosts, origin_of, settings_for
from registry.request import BUNDLES, CONNECT_SECONDS, SILENCE_SECONDS, Body, Request, Response


class HttpTransport:
    """Connections are kept and shared; `async with` closes them."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._clients: dict[tuple[str, str | None], httpx.AsyncClient] = {}

    async def __aenter__(self) -> HttpTransport:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[Response]:
        origin = origin_of(request.url, "request")
        client = self._client(origin.scheme, settings_for(self._hosts, origin.netloc).ca)
        headers = {"accept-encoding": "identity", "user-agent": "onesec", **request.headers}
        body = request.body
        if isinstance(body, Body):
            headers["content-length"] = str(body.size)
        with _translated(origin.netloc):
            built = client.build_request(
                request.method, request.url, headers=headers, content=None if isinstance(body, Body) else body
            )
            if isinstance(body, Body):
                built.stream = _Stream(body)
            raw = await client.send(built, stream=True)
        answer = _Answer(raw, origin.netloc)
        try:
            yield answer
        finally:
            await answer.close()

    def _client(self, scheme: str, ca: str | None) -> httpx.AsyncClient:
        if (scheme, ca) not in self._clients:
            # Reading the bundle takes 30 ms, which plain http does not need; a context without any trusts nobody.
            trust = _trust(ca) if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None)
            limits = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=30)
            self._clients[scheme, ca] = httpx.AsyncClient(
                verify=trust, timeout=timeout, limits=limits, follow_redirects=False
            )
        return self._clients[scheme, ca]


class _Stream(httpx.AsyncByteStream):
    def __init__(self, body: Body) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body.open()


class _Answer:
    """Iterates without generators of its own, and ends those of httpx: a generator that is left half way is finished by
    trio's garbage collection, at any time and with a warning.
    """

    def __init__(self, answer: httpx.Response, host: str) -> None:
        self._answer = answer
        self._host = host
        self._raw: AsyncIterator[bytes] | None = None

    @property
    def status(self) -> int:
        return self._answer.status_code

    def header(self, name: str) -> str | None:
        value: str | None = self._answer.headers.get(name)
        return value

    def lines(self, name: str) -> Sequence[str]:
        return self._answer.headers.get_list(name)

    def pieces(self) -> AsyncIterator[bytes]:
        if (coding := self.header("content-encoding")) not in (None, "identity"):
            raise BadAnswerError(self._host, f"content-encoding: got {coding}, want none")
        self._raw = self._answer.aiter_raw()
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        assert self._raw is not None  # only `pieces` gives this out
        with _translated(self._host):
            return await anext(self._raw)

    async def close(self) -> None:
        await self._answer.aclose()
        if self._raw is not None:  # its connection is closed: it has nothing left but to end
            with suppress(StopAsyncIteration, httpx.HTTPError, httpx.StreamError):
                await anext(self._raw)


def _trust(ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()  # also what SSL_CERT_FILE and SSL_CERT_DIR name
    places = ssl.get_default_verify_paths()
    if places.cafile is None and places.capath is None:  # a Python that brings its own OpenSSL looks elsewhere
        for bundle in filter(os.path.exists, BUNDLES):
            context.load_verify_locations(bundle)
            break
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"ca {ca}: not a file of PEM certificates") from error
    return context


@contextmanager
def _translated(host: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise translate(error, host) from error


def translate(error: Exception, host: str) -> OnesecError:
    """What an exception of httpx means to whoever reads the message."""
    reasons = list(_reasons(error))
    for reason in reasons:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return UnreachableError(
                host,
                f"its certificate is not trusted: {reason.verify_message}",
                hint=f'name its CA: ca = "/path/ca.pem" under [registry."{host}"] in onesec.toml',
            )
        if isinstance(reason, ssl.SSLError) and reason.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return UnreachableError(
                host,
                "does not speak TLS",
                hint=f'if plain http is meant: plain-http = true under [registry."{host}"] in onesec.toml',
            )
    if isinstance(error, httpx.TimeoutException):
        what = "connect" if isinstance(error, httpx.ConnectTimeout) else "answer"
        seconds = CONNECT_SECONDS if what == "connect" else SILENCE_SECONDS
        return UnreachableError(host, f"did not {what} within {seconds:.0f} s", retryable=True)
    if isinstance(error, httpx.RemoteProtocolError):
        return UnreachableError(host, f"broke off: {_first_line(error)}", retryable=True)
    if isinstance(error, httpx.NetworkError):
        return UnreachableError(host, f"unreachable: {_cause(reasons)}", retryable=True)
    if isinstance(error, httpx.ProxyError):
        return UnreachableError(host, f"proxy: {_first_line(error)}", retryable=True)
    return RegistryError(host, f"request failed: {_first_line(error)}")


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on, the groups of a happy-eyeballs connect included."""
    seen: list[BaseException] = [] if error is None else [error]
    for one in seen:  # grows
        yield one
        inner = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        seen += [other for other in (one.__cause__ or one.__context__, *inner) if other is not None]
        assert len(seen) < 1000


def _cause(reasons: Sequence[BaseException]) -> str:
    for reason in reasons:
        if isinstance(reason, OSError) and reason.errno:
            words = os.strerror(reason.errno) if reason.errno in errno.errorcode else reason.strerror or str(reason)
            return words.lower()
    return _first_line(reasons[0])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].lower()
