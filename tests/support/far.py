"""An object server inside the test's process whose packs are behind an origin that fails on purpose."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import cext
from cext.fetch import Fetcher
from tests.support.objects import ObjectSet
from tests.support.origin import Origin
from tests.support.serving import Served, serving
from tests.support.waiting import eventually

LONG_S = 600.0
"""A deadline that passes in no test."""
_SEALS = 0x0001 | 0x0002 | 0x0004  # seal, shrink, grow


@contextmanager
def slots() -> Iterator[int]:
    """Memory that a server and a fetcher share."""
    fd = os.memfd_create("slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, cext.SLOTS_SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def linked(server: cext.ObjectServer, memory: int, *origins: Origin, **options: float) -> Iterator[Fetcher]:
    """A fetcher for the server, with these as the sources of its origin 1."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings: dict[str, float] = {"backoff": 0.01, "backoff_max": 0.1, **options}
    with ours, theirs, Fetcher(**settings) as fetcher:  # type: ignore[arg-type]
        for number, origin in enumerate(origins, 1):
            fetcher.set_source(number, origin.url)
        fetcher.set_origin(1, list(range(1, len(origins) + 1)))
        eventually(lambda: server.link(theirs.fileno()))  # the one before may not be forgotten yet
        theirs.close()
        thread = threading.Thread(target=fetcher.serve, args=(ours.fileno(), memory))
        thread.start()
        try:
            yield fetcher
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


@dataclass(frozen=True, slots=True)
class Remote:
    """served: no image is added so far. memory: for another fetcher."""

    served: Served
    fetcher: Fetcher
    memory: int

    def add(self, objects: ObjectSet, label: str = "image") -> int:
        tables = os.open(objects.tables, os.O_RDONLY | os.O_CLOEXEC)
        try:
            packs = [-1] * len(objects.pack_names())
            return self.served.server.add_image(tables, packs, label=label, origin=1)
        finally:
            os.close(tables)


@contextmanager
def remote(
    objects: ObjectSet,
    *origins: Origin,
    deadline: float = LONG_S,
    threads: int = 3,
    store: cext.Store | None = None,
    **options: float,
) -> Iterator[Remote]:
    """The packs of the objects are in all of the origins, and nowhere else."""
    with ExitStack() as stack:
        memory = stack.enter_context(slots())
        for origin in origins:
            origin.add_directory(objects.packs)
        served = stack.enter_context(
            serving(threads=threads, deadline=deadline, fail_fast=2, memory=memory, store=store)
        )
        fetcher = stack.enter_context(linked(served.server, memory, *origins, **options))
        found = Remote(served, fetcher, memory)
        found.add(objects)
        yield found
