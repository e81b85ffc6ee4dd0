"""The local chunk store: cext.Store for programs.

Chunks come in verified, are read verified, and can be lost at any time without harm. A chunk that was put can be read
after `flush`, or by itself a moment later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self

import cext
from cache.errors import StoreFullError, StoreInUseError, StoreWriteError
from cext.errors import LimitError
from cext.record import Record

Codec = Literal["zstd", "raw"]
"""How a chunk is kept. raw: for what is read often; it costs the disk and saves the decompression."""


class Store:
    """path: a directory of ours, made if missing. quota: bytes of all segments. floor: free bytes that others are left.

    Where there is no room the segments go that were read longest ago, pinned ones last. Raises StoreInUseError if
    another process has it. log: a descriptor for lines about damage. Any thread may call; only the process that made
    it.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, quota: int = 0, floor: int = 0, segment_size: int = 0, log: int = -1
    ) -> None:
        self.path = os.fspath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        try:
            self.native = cext.Store(self.path, segment_size=segment_size, log=log, quota=quota, floor=floor)
        except BlockingIOError as error:
            raise in_use(self.path, error) from error

    def put(self, id: bytes, data: bytes, *, algorithm: int = 1, codec: Codec = "zstd", pinned: bool = False) -> None:
        """Queues a chunk. Raises CorruptError if data is not what id says.

        pinned: it belongs to what is dropped last. raw: also if the chunk is there compressed.
        """
        self.native.put(id, data, algorithm=algorithm, compress=codec == "zstd", pinned=pinned)

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        """The verified chunk, or None: not there, or no longer what it was."""
        return self.native.get(id, algorithm=algorithm)

    def flush(self) -> None:
        """Waits until everything put is durable. Raises StoreFullError or StoreWriteError if some, since the flush
        before, is lost."""
        with self._writing():
            self.native.flush()

    def fsck(self, *, repair: bool = False) -> cext.StoreReport:
        """Reads and hashes everything; repair: forgets what is damaged."""
        with self._writing():
            return self.native.check(repair=repair)

    def statistics(self) -> cext.StoreStatistics:
        return self.native.statistics()

    def close(self) -> None:
        """Flushes, and gives the directory free. Raises what a flush would."""
        with self._writing():
            self.native.close()

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
        except LimitError as error:
            raise StoreFullError(self.path, str(error).removeprefix("store: ")) from error
        except OSError as error:
            raise StoreWriteError(self.path, error.strerror or str(error)) from error


def in_use(path: str, error: BlockingIOError) -> StoreInUseError:
    return StoreInUseError(path, (error.strerror or "in use").removeprefix("store: "))


class Checked(Record):
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
        raise in_use(os.fspath(path), error) from error
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
