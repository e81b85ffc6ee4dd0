"""Wheels from where the lock says they are, checked against its hash before anybody parses them."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from imagebuilder.errors import BadWheelError, FetchError
from imagebuilder.solve import PinnedWheel

Credentials = Callable[[str], tuple[str, str] | None]

_STEP = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 3
_WHEEL_MAX = 32 << 30  # bytes; ten times the largest one there is


@contextmanager
def wheel_file(
    wheel: PinnedWheel,
    *,
    cert: str | None = None,
    credentials: Credentials | None = None,
    directory: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[int]:
    """A descriptor of the wheel, its SHA-256 checked. cert: CA bundle. directory: for what is downloaded.

    credentials: gives name and password for a host and port; they go to it and not where it redirects to.
    """
    parts = urlsplit(wheel.url)
    note = progress or (lambda _: None)
    if parts.scheme == "file":
        try:
            file: IO[bytes] = open(unquote(parts.path), "rb")  # noqa: SIM115  # closed below
        except OSError as error:
            raise FetchError(wheel.filename, os.strerror(error.errno or 0).lower()) from error
        with file:
            before = _state(file)
            _check(wheel, _hash(file, note))
            yield file.fileno()
            if _state(file) != before:  # what was read after the hash may be another file's
                raise FetchError(wheel.filename, "changed while it was read")
    elif parts.scheme in ("http", "https"):
        with tempfile.TemporaryFile(dir=directory, prefix="onesec-wheel-") as file:
            _download(wheel, file, cert, credentials, note)
            yield file.fileno()
    else:
        raise FetchError(wheel.filename, f"got a {parts.scheme!r} address, want https, http or file")


def _state(file: IO[bytes]) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hash(file: IO[bytes], note: Callable[[int], None]) -> str:
    hasher = hashlib.sha256()
    while data := file.read(_STEP):
        hasher.update(data)
        note(len(data))
    return hasher.hexdigest()


def _check(wheel: PinnedWheel, got: str) -> None:
    if got != wheel.sha256:
        raise BadWheelError(wheel.filename, f"got sha256:{got}, want sha256:{wheel.sha256}")


def _download(
    wheel: PinnedWheel, file: IO[bytes], cert: str | None, credentials: Credentials | None, note: Callable[[int], None]
) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        file.seek(0)
        file.truncate()
        try:
            _check(wheel, _receive(wheel, _request(wheel, credentials), file, cert, note))
            file.flush()
            return
        except FetchError as error:
            if attempt == _ATTEMPTS or not error.retryable:
                raise


def _request(wheel: PinnedWheel, credentials: Credentials | None) -> urllib.request.Request:
    parts = urlsplit(wheel.url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    pair = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    if pair is None and credentials is not None:
        pair = credentials(host)
    if pair is not None:
        word = base64.b64encode(":".join(pair).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    return request


def _receive(
    wheel: PinnedWheel, request: urllib.request.Request, file: IO[bytes], cert: str | None, note: Callable[[int], None]
) -> str:
    import ssl

    hasher = hashlib.sha256()
    size = 0
    try:
        context = ssl.create_default_context(cafile=cert)
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context) as answer:
            while data := answer.read(_STEP):
                size += len(data)
                if size > _WHEEL_MAX:
                    raise FetchError(wheel.filename, f"got more than {_WHEEL_MAX} bytes")
                if wheel.size is not None and size > wheel.size:
                    raise FetchError(wheel.filename, f"got more than the {wheel.size} bytes that the index says")
                hasher.update(data)
                file.write(data)
                note(len(data))
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(wheel.filename, f"got HTTP status {error.code}", retryable=error.code >= 500) from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise FetchError(wheel.filename, f"{reason}".lower(), retryable=True) from error
    if wheel.size is not None and size < wheel.size:
        raise FetchError(wheel.filename, f"got {size} of {wheel.size} bytes", retryable=True)
    return hasher.hexdigest()


def credentials_for(urls: Iterable[str], environment: Mapping[str, str]) -> Credentials:
    """Those that the addresses of indexes have in them, else those of netrc, as pip looks for them."""
    known: dict[str, tuple[str, str]] = {}
    for url in urls:
        parts = urlsplit(url)
        if parts.username:
            host = parts.netloc.rpartition("@")[2]
            known.setdefault(host, (unquote(parts.username), unquote(parts.password or "")))

    def find(host: str) -> tuple[str, str] | None:
        return known.get(host) or _netrc(host, environment)

    return find


def _netrc(host: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    import netrc

    path = environment.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(urlsplit(f"//{host}").hostname or host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
    return None if found is None else (found[0], found[2] or "")


def certificate(environment: Mapping[str, str], setting: str | None) -> str | None:
    """The CA bundle to use: the user's own for every program, else pip's."""
    return environment.get("SSL_CERT_FILE") or setting
