"""Where the packs of an image come from that are not on this host: an origin, and the fetcher that reads from it.

    <run-dir>/domains/<hash>/fetch     where the fetcher of the domain listens (lazyfs/renewer.py)

A client hands its image's origin to the fetcher, which it starts if the domain has none, and gets the number by which
the object server asks for packs of it. The number is a hash of the origin: whoever comes next with the same image, to
the same fetcher or to another, gets the same one.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import cext
from cext.record import EMPTY, Record, as_dict
from lazyfs.domain import connect_within
from lazyfs.errors import ObjectServerError

MESSAGE_MAX = 192 << 10
_TIMEOUT_S = 30
_PATIENCE_S = 10.0

Ask = Callable[[dict[str, Any], Sequence[int]], tuple[dict[str, Any], list[int]]]
"""Sends words and descriptors to the object server and returns its answer."""


class WebSource(Record):
    """A plain web server. url: `{digest}` in it stands for a pack's hexadecimal digits. headers: `Name: value`."""

    unshown = ("headers",)

    url: str
    headers: tuple[str, ...] = ()


class RegistryHost(Record):
    """registry.origin.HostSettings, as far as reading is concerned. ca: a path."""

    plain_http: bool = False
    ca: str | None = None
    mirrors: tuple[str, ...] = ()
    realms: tuple[str, ...] = ()


class RegistryOrigin(Record):
    """A repository, read with whatever login the user has for it. probe: a small blob of it, digest and size."""

    repository: str
    probe: tuple[str, int]
    hosts: Mapping[str, RegistryHost] = EMPTY


class Source(Record):
    """Where a blob is had over HTTP. url: `{digest}` in it stands for the blob's hexadecimal digits. headers: secrets,
    for that host alone. lifetime_s: after which it no longer works, 0 for never. authorities: certificates, as text.
    """

    unshown = ("url", "headers")

    url: str
    headers: tuple[str, ...] = ()
    lifetime_s: float = 0
    authorities: str | None = None


Origin = tuple[WebSource, ...] | RegistryOrigin
"""Web sources are tried in their order; of a registry, its mirrors come first."""


def words_of(origin: Origin) -> dict[str, Any]:
    """As JSON; the same origin gives the same words."""
    if isinstance(origin, tuple):
        return {"web": [{"url": one.url, "headers": list(one.headers)} for one in origin]}
    hosts = {
        name: {"plain_http": one.plain_http, "ca": one.ca, "mirrors": list(one.mirrors), "realms": list(one.realms)}
        for name, one in sorted(origin.hosts.items())
    }
    return {"registry": {"repository": origin.repository, "probe": list(origin.probe), "hosts": hosts}}


def number_of(words: Mapping[str, Any]) -> int:
    """Never 0."""
    text = json.dumps(words, sort_keys=True)
    return int.from_bytes(cext.blake3(text.encode(errors="surrogateescape"))[:4], "little") >> 1 | 1


def register(directory: int, ask: Ask, origin: Origin, known: Sequence[Source] = (), cgroup: str | None = None) -> int:
    """Has the domain's fetcher know the origin; its number. directory: the domain's. ask: of its object server.

    cgroup: of processes that are started for it. known: where the caller knows it can be read from, so that the first
    read need not wait for a login.
    """
    words = words_of(origin)
    # A file of certificates would not fit into a packet.
    first = [as_dict(one) for one in known if one.authorities is None]
    end = time.monotonic() + _PATIENCE_S
    while True:
        sock = connect(directory)
        if sock is not None:
            with sock:
                answer = _tell(sock, {"op": "origin", "origin": words, "known": first})
            if answer is not None:
                return int(answer["number"])
        _start(directory, ask, cgroup)
        if time.monotonic() > end:
            raise ObjectServerError("fetcher: it ends again and again", hint="the log of the domain says why")


def sources(directory: int, number: int) -> list[Source]:
    """What a registered origin's blobs can be read from now; waits until the renewer has got credentials."""
    sock = connect(directory)
    answer = None
    if sock is not None:
        with sock:
            answer = _tell(sock, {"op": "sources", "number": number})
    if answer is None:
        raise ObjectServerError("fetcher: ended before it said where blobs are")
    return [
        Source(one["url"], tuple(one["headers"]), one["lifetime_s"], one["authorities"]) for one in answer["sources"]
    ]


def statistics(directory: int) -> dict[str, Any] | None:
    """What the fetcher of a domain counts (cext.fetch.Fetcher.statistics), or None if there is none."""
    sock = connect(directory)
    if sock is None:
        return None
    with sock:
        return _tell(sock, {"op": "statistics"})


def _start(directory: int, ask: Ask, cgroup: str | None) -> None:
    """Starts a fetcher, if the object server is without one."""
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (sock := connect(directory)) is not None:  # somebody was faster
            sock.close()
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            answer, fds = ask({"op": "link"}, [theirs.fileno()])
            try:
                if not answer["linked"]:
                    time.sleep(0.05)  # the server has not noticed yet that its fetcher is gone
                    return
                if len(fds) != 1:
                    raise ObjectServerError(f"object server: got {len(fds)} descriptors, want its memory")
                from lazyfs import keeper

                keeper.start(directory, ours.fileno(), fds[0], cgroup)
            finally:
                for fd in fds:
                    os.close(fd)
    finally:
        os.close(lock)


def connect(directory: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(_TIMEOUT_S)
        connect_within(sock, directory, "fetch", _TIMEOUT_S, "fetcher")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _tell(sock: socket.socket, words: dict[str, Any]) -> dict[str, Any] | None:
    """None: it ended."""
    data = b""
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.send(json.dumps(words).encode())
        data = sock.recv(MESSAGE_MAX)
    if not data:
        return None
    answer: dict[str, Any] = json.loads(data)
    if "error" in answer:
        raise ObjectServerError(f"fetcher: {answer['error']}")
    return answer
