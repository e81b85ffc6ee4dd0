"""The local chunk store, bounded: cext.Store with a quota and a floor under the free space of its file system.

Chunks come in verified, are read verified, and can be lost at any time without harm. A chunk that was put can be read
after `flush`, or by itself a moment later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import cext
from cache import evict
from cache.errors import StoreFullError, StoreInUseError, StoreWriteError

Codec = Literal["zstd", "raw"]
"""How a chunk is kept. raw: for what is read often; it costs the disk and saves the decompression."""

_SEGMENT_MIN, _SEGMENT_MAX = 8 << 20, 256 << 20
_LOOK_AGAIN = 64
"""How many times between one empty and one full quota the room is looked at: listing segments costs more than a put."""
_FILE = 4096
"""What an entry may cost beyond its content: headers, a block of the file system."""


class Store:
    """path: a directory of ours, made if missing. quota: bytes of all segments. floor: free bytes that others are left.

    Raises StoreInUseError if another process has it. log: a descriptor for lines about damage. free: how many bytes the
    file system has left. Any thread may call; only the process that made it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        quota: int,
        floor: int = 0,
        segment_size: int = 0,
        log: int = -1,
        free: Callable[[], int] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._quota = quota
        self._floor = floor
        self._free = free or self._free_bytes
        self._lock = threading.Lock()
        self._allowance = 0  # bytes that may come before room is looked at again; guarded by _lock
        size = segment_size or min(max(quota // 16, _SEGMENT_MIN), _SEGMENT_MAX)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        try:
            self._native = cext.Store(self.path, segment_size=size, log=log)
        except BlockingIOError as error:
            raise StoreInUseError(self.path, error.strerror or "in use") from error

    def put(self, id: bytes, data: bytes, *, algorithm: int = 1, codec: Codec = "zstd", pinned: bool = False) -> None:
        """Queues a chunk. Raises CorruptError if data is not what id says, StoreFullError if there is no room for it.

        pinned: it belongs to what is dropped last.
        """
        self._take_room(len(data) + _FILE)
        self._native.put(id, data, algorithm=algorithm, compress=codec == "zstd", pinned=pinned)

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        """The verified chunk, or None: not there, or no longer what it was."""
        return self._native.get(id, algorithm=algorithm)

    def flush(self) -> None:
        """Waits until everything put is durable. Raises StoreWriteError if some, since the flush before, is lost."""
        with self._writing():
            self._native.flush()

    def fsck(self, *, repair: bool = False) -> cext.StoreReport:
        """Reads and hashes everything; repair: forgets what is damaged."""
        with self._writing():
            return self._native.check(repair=repair)

    def statistics(self) -> cext.StoreStatistics:
        return self._native.statistics()

    def close(self) -> None:
        """Flushes, and gives the directory free. Raises what a flush would."""
        with self._writing():
            self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreWriteError(self.path, error.strerror or str(error)) from error

    def _take_room(self, need: int) -> None:
        with self._lock:
            if self._allowance < need:
                self._allowance = self._make_room(need)
            self._allowance -= need

    def _make_room(self, need: int) -> int:
        """Drops segments until need bytes may come. Returns how many may; caller holds _lock."""
        step = max(need, self._quota // _LOOK_AGAIN)
        for wanted in (step, need):
            segments = self._native.segments()
            stored = sum(one.bytes for one in segments) + self._native.statistics().queued
            over = evict.excess(stored=stored, need=wanted, quota=self._quota, free=self._free(), floor=self._floor)
            if over <= 0:
                return wanted
            if chosen := evict.choose(segments, over):
                for number in chosen:
                    self._native.drop(number)
                return wanted
        raise StoreFullError(self.path, over)

    def _free_bytes(self) -> int:
        about = os.statvfs(self.path)
        return about.f_bavail * about.f_frsize


@dataclass(frozen=True, slots=True)
class Checked:
    """chunks, bytes: looked at. repaired: what was wrong, a line each; nothing of it is needed again."""

    chunks: int
    bytes: int
    repaired: tuple[str, ...]


def check(path: str | os.PathLike[str]) -> Checked:
    """Checks and repairs the store in a directory that nobody has open. A directory without one is in order.

    Raises StoreInUseError.
    """
    if not os.path.exists(os.path.join(path, "lock")):
        return Checked(0, 0, ())
    try:
        native = cext.Store(path)
    except BlockingIOError as error:
        raise StoreInUseError(os.fspath(path), error.strerror or "in use") from error
    with native:
        report = native.check(repair=True)
        rebuilt = native.statistics().rebuilt
    lines = (
        (rebuilt, "the map was missing or damaged, made again from the segments"),
        (report.damaged, f"{report.damaged} damaged chunks, forgotten"),
        (report.damaged_rows, f"{report.damaged_rows} damaged rows of the map, deleted"),
        (report.damaged_headers, f"{report.damaged_headers} damaged segment headers, written anew"),
    )
    return Checked(report.chunks, report.bytes, tuple(f"chunk store: {line}" for count, line in lines if count))
