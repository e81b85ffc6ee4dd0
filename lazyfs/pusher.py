"""One pass over a boot pack: its frames are fetched, verified, decoded, and pushed into the page cache.

    feeder ── packed frames ──► two workers: verify, decode ── plain frames ──► the same two: push
                                                                   ▲
                    caller: opens the objects through the mount, in the order of their first page

The first half needs nothing but the bytes, so it may begin before there is a mount, or even tables: that is most of a
start from nothing. The second half begins with `run`. The kernel takes a store only for an inode that it knows, so a
frame waits until its objects are open; an O_PATH descriptor pins each inode with its pages. Two workers, because a
store waits for a READ that is on its way to the same page.

How far the first half may run ahead is bounded: ROOM frames in memory, as many spans as lazyfs/stream.py allows.
"""

from __future__ import annotations

import heapq
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import cext
from cext.errors import CorruptError, LimitError
from lazyfs.prefill import BootPackFile, Report, Target

WORKERS = 2
ROOM = 64
"""Frames that are in memory and not yet pushed, of a mebibyte at most."""

HEAD_MAX = 65 << 20  # bytes as they travel: of OS_BOOT_HEAD_MAX that zstd could make no smaller

PROGRESS_MAX = 200  # points of a report: it has to fit into a pipe

_FRAME = 1 << 20
_PLACED_AT_ONCE = 64  # objects that are opened before the workers are told
_SAMPLES = 48


class Source(Protocol):
    """The bytes of a boot pack, in order."""

    def read(self, offset: int, size: int) -> bytes | memoryview: ...
    def keep(self) -> None:
        """All were read: what came from far away may stay here."""

    def stop(self) -> None:
        """Nobody wants more: a read that waits fails."""

    def file(self) -> int:
        """Borrowed: what was read so far is in it; it may grow, in order and without gaps. -1: there is none."""


class _File:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def keep(self) -> None:
        """It is here."""

    def stop(self) -> None:
        """No read waits."""

    def file(self) -> int:
        return self._fd


@contextmanager
def opened(pack: BootPackFile) -> Iterator[Source]:
    """Where the boot pack is."""
    if pack.fd >= 0:
        yield _File(pack.fd)
        return
    from lazyfs.stream import Stream

    with Stream(pack) as stream:
        yield stream


def open_boot_pack(pack: BootPackFile, source: Source) -> cext.BootPack:
    """By its verified head. Raises CorruptError, LimitError."""
    if pack.head_size > HEAD_MAX:
        raise LimitError(f"boot pack {pack.digest}: got a head of {pack.head_size} bytes, want at most {HEAD_MAX}")
    head = source.read(0, pack.head_size)
    if cext.blake3(head) != pack.head_digest:
        raise CorruptError(f"boot pack {pack.digest}: got a head of another hash")
    boot = cext.BootPack(head)
    if pack.fd < 0 and (size := pack.head_size + sum(packed for packed, _ in boot.frames)) != pack.size:
        raise CorruptError(f"boot pack {pack.digest}: got frames to byte {size}, want {pack.size}")
    return boot


def push(pack: BootPackFile, target: Target) -> Report:
    """From its beginning to its end. Raises what ended it early: CorruptError for a pack that is not what its manifest
    says.
    """
    with opened(pack) as source, Pass(pack, source) as one:
        return one.run(target)


class Pass:
    """Begins to read and decode at once, in threads of its own, and pushes once `run` says where."""

    def __init__(self, pack: BootPackFile, source: Source) -> None:
        self._pack = pack
        self._source = source
        self._boot: cext.BootPack | None = None  # set before _packed has anything
        self._changed = threading.Condition()
        # all below guarded by _changed
        self._packed: deque[tuple[int, bytes | memoryview]] = deque()
        self._plain: list[tuple[int, mmap.mmap]] = []  # a heap
        self._free: list[mmap.mmap] = []
        self._in_memory = 0  # frames
        self._fed = False  # there will be no more packed ones
        self._fuse = -1  # where to push, once it is known
        self._placed = 0  # objects
        self._stored = 0
        self._done = 0
        self._progress: list[tuple[float, int]] = []
        self._error: Exception | None = None  # the first
        self._stopped = False
        self._threads = [threading.Thread(target=self._guarded, args=(self._feed,))]
        self._threads += [threading.Thread(target=self._guarded, args=(self._work,)) for _ in range(WORKERS)]

    def __enter__(self) -> Pass:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if not self._is_done():
            self._source.stop()
        for thread in self._threads:
            thread.join()

    def run(self, target: Target) -> Report:
        """Until all is pushed, and kept. Raises what ended it early."""
        pins: list[int] = []
        try:
            report = self._run(target, pins)
            if not report.kept:
                self._source.keep()
            if self._boot is not None:
                target.after(self._boot)
            return report
        finally:
            target.server.pin(pins)
            target.server.pushed()
            for fd in pins:
                os.close(fd)

    def _run(self, target: Target, pins: list[int]) -> Report:
        with self._changed:
            self._changed.wait_for(lambda: self._boot is not None or self._error is not None)
            if self._error is not None:
                raise self._error
            boot = self._boot
        assert boot is not None
        if target.pinned and _is_cached(boot, target.objects):
            return Report(len(boot.frames), len(boot.frames), len(boot.objects), kept=True)
        if (file := self._source.file()) >= 0:
            target.server.frames(file, self._pack.head_size, self._pack.head_digest)
        with self._changed:
            self._fuse = target.fuse
        self._place(boot, target.objects, pins)
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._is_done())
            if self._error is not None:
                raise self._error
        step = max(1, len(self._progress) // PROGRESS_MAX)
        return Report(self._done, len(boot.frames), len(pins), self._stored, progress=tuple(self._progress[::step]))

    def _is_done(self) -> bool:
        return self._fed and self._in_memory == 0

    def _place(self, boot: cext.BootPack, objects: int, pins: list[int]) -> None:
        count = len(boot.objects)
        for first in range(0, count, _PLACED_AT_ONCE):
            end = min(count, first + _PLACED_AT_ONCE)
            pins += boot.place(objects, first, end)
            with self._changed:
                if self._error is not None:
                    return
                self._placed = end
                self._changed.notify_all()

    # -- the threads

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, the caller has to learn of it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _feed(self) -> None:
        boot = open_boot_pack(self._pack, self._source)
        with self._changed:
            self._boot = boot
            self._changed.notify_all()
        offset = self._pack.head_size
        for number, (size, _) in enumerate(boot.frames):
            with self._changed:
                self._changed.wait_for(lambda: self._in_memory < ROOM or self._is_over())
                if self._is_over():
                    return
                self._in_memory += 1
            data = self._source.read(offset, size)
            offset += size
            with self._changed:
                self._packed.append((number, data))
                self._changed.notify_all()
        with self._changed:
            self._fed = True
            self._changed.notify_all()

    def _is_over(self) -> bool:
        return self._stopped or self._error is not None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._packed or self._can_store() or self._is_over())
                if self._is_over():
                    return
                boot, fuse = self._boot, self._fuse
                assert boot is not None
                packed: bytes | memoryview | None = None
                if self._can_store():
                    number, plain = heapq.heappop(self._plain)
                else:
                    number, packed = self._packed.popleft()
                    plain = self._free.pop() if self._free else mmap.mmap(-1, _FRAME)
            if packed is not None:
                boot.decode(number, packed, plain)
                with self._changed:
                    heapq.heappush(self._plain, (number, plain))
                    self._changed.notify_all()
                continue
            stored = boot.store(fuse, number, plain)
            with self._changed:
                self._free.append(plain)
                self._in_memory -= 1
                self._stored += stored
                self._done += 1
                self._progress.append((time.monotonic(), self._stored))
                self._changed.notify_all()

    def _can_store(self) -> bool:
        """The frame that is needed first comes first; those behind it wait for their objects too."""
        if self._fuse < 0 or not self._plain:
            return False
        assert self._boot is not None
        return self._boot.reach(self._plain[0][0]) <= self._placed


def _is_cached(boot: cext.BootPack, objects: int) -> bool:
    """Whether the pages of an earlier start are still there, by a sample over the whole pack."""
    runs, ids = boot.runs, boot.objects
    for at in range(0, len(runs), max(1, len(runs) // _SAMPLES)):
        row, offset, length = runs[at]
        name = ids[row].hex()
        try:
            fd = os.open(f"{name[:2]}/{name[2:]}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=objects)
        except OSError:
            return False
        try:
            found = cext.cached(fd, offset, length)
        finally:
            os.close(fd)
        if found is None or found < length:
            return False
    return True
