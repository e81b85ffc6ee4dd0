"""A boot pack from a registry: its bytes in order, several requests ahead of whoever uses them.

Spans of the blob are read by a few threads, each with one request under way; the engine behind them (cext.fetch)
retries and checks the answers. Nothing is believed here: the head has its hash in the manifest, each frame its hash in
the head, and the blob, once all of it went by, its own digest, which decides whether it may stay on the disk.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from cext.errors import ClosedError, CorruptError
from cext.fetch import Fetcher
from lazyfs.prefill import BootPackFile
from registry.proxies import proxies_for

SPAN = 1 << 20
FLIGHTS = 4
"""Requests under way: what fills 10 Gbit/s over 2 ms. A read that the container waits for gets its share of the line
beside them; twelve made the first instruction 0.12 s later at 1 Gbit/s, and nothing faster at 10.
"""

WINDOW = 96
"""Spans that are asked for beyond the first that is wanted: what a start that has no mount yet can run ahead."""

_TIMEOUT_S = 120.0
_ORIGIN = 1


class Stream:
    """One pass over a remote blob, from its beginning to its end. One thread reads."""

    def __init__(self, pack: BootPackFile) -> None:
        self._pack = pack
        self._digest = bytes.fromhex(pack.digest.removeprefix("sha256:"))
        self._count = (pack.size + SPAN - 1) // SPAN
        self._fetcher = Fetcher(flights=FLIGHTS)
        self._changed = threading.Condition()
        self._next = 0  # guarded by _changed: the span that is asked for next
        self._floor = 0  # guarded by _changed: the first span that is still wanted
        self._spans: dict[int, bytes] = {}  # guarded by _changed
        self._error: Exception | None = None  # guarded by _changed; the first
        self._saving = threading.Lock()  # taken before _changed
        self._copy = -1  # a file without a name, owned; written under _saving
        self._readable = -1  # the same file, owned
        self._written = 0  # guarded by _changed: spans that are in it
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Stream:
        assert self._pack.locate is not None
        sources = self._pack.locate()
        for number, one in enumerate(sources, 1):
            self._fetcher.set_source(
                number,
                one.url,
                headers=one.headers,
                lifetime=one.lifetime_s,
                authorities=one.authorities,
                **proxies_for(one.url, os.environ),
            )
        self._fetcher.set_origin(_ORIGIN, range(1, 1 + len(sources)))
        if self._pack.directory >= 0:
            with suppress(OSError):  # a host that cannot keep it can still use it
                self._copy = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644, dir_fd=self._pack.directory)
        self._threads = [threading.Thread(target=self._fetch) for _ in range(min(FLIGHTS, self._count))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._fetcher.close()
        for thread in self._threads:
            thread.join()
        for fd in (self._copy, self._readable):
            if fd >= 0:
                os.close(fd)

    def stop(self) -> None:
        """Nothing more is asked for; a read that waits fails."""
        with self._changed:
            self._next = self._count
            self._error = self._error or ClosedError(f"boot pack {self._pack.digest}: nobody wants the rest")
            self._changed.notify_all()

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Exactly size bytes. Waits for them. Offsets grow from call to call."""
        if offset + size > self._pack.size:
            raise CorruptError(f"boot pack {self._pack.digest}: got a frame beyond its end")
        first, last = offset // SPAN, (offset + size - 1) // SPAN
        start = offset - first * SPAN
        if first == last:
            return memoryview(self._span(first))[start : start + size]
        return b"".join(self._span(number) for number in range(first, last + 1))[start : start + size]

    def file(self) -> int:
        """Borrowed: the copy, to be read alone, which grows in order. -1: there is none."""
        self._save()
        with self._saving:  # a full disk closes the copy, and its number may be another file's then
            if self._copy >= 0 and self._readable < 0:  # whoever gets it may not change what the layout will have
                with suppress(OSError):
                    self._readable = os.open(f"/proc/self/fd/{self._copy}", os.O_RDONLY | os.O_CLOEXEC)
            return self._readable

    def keep(self) -> None:
        """Gives the blob its name in the layout, if all of it is right. All of it has to be read."""
        self._save()
        if self._copy < 0:
            return
        import hashlib

        with open(os.dup(self._copy), "rb") as file:
            file.seek(0)
            if hashlib.file_digest(file, "sha256").digest() != self._digest:
                raise CorruptError(f"boot pack {self._pack.digest}: got a blob of another digest")
        with suppress(OSError):
            os.fsync(self._copy)
            os.link(f"/proc/self/fd/{self._copy}", self._digest.hex(), dst_dir_fd=self._pack.directory)

    # -- both sides of the spans

    def _span(self, number: int) -> bytes:
        with self._changed:
            if self._floor < number:  # what is wanted next is asked for, however much is read in one piece
                self._floor = number
                self._forget()
                self._changed.notify_all()
            self._changed.wait_for(lambda: number in self._spans or self._error is not None)
            if number not in self._spans:
                assert self._error is not None
                raise self._error
            return self._spans[number]

    def _forget(self) -> None:
        """What was read and is in the copy."""
        for number in [number for number in self._spans if number < min(self._floor, self._written)]:
            del self._spans[number]

    def _save(self) -> None:
        """Copies what is here, in order: the file is as long as what of the blob is here without a gap."""
        with self._saving:
            while True:
                with self._changed:
                    self._forget()
                    view = memoryview(self._spans.get(self._written, b""))
                if not view:
                    return
                try:
                    while view and self._copy >= 0:
                        view = view[os.write(self._copy, view) :]
                except OSError:  # a full disk: what was fetched is used all the same
                    os.close(self._copy)
                    self._copy = -1
                with self._changed:
                    self._written += 1

    def _fetch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next < self._floor + WINDOW or self._next >= self._count)
                number = self._next
                if number >= self._count or self._error is not None:
                    return
                self._next += 1
            start = number * SPAN
            try:
                data, *_ = self._fetcher.read(
                    _ORIGIN,
                    self._digest,
                    self._pack.size,
                    start,
                    min(SPAN, self._pack.size - start),
                    timeout=_TIMEOUT_S,
                )
            except Exception as error:  # whatever it is, the reader has to learn of it
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._spans[number] = data
                self._changed.notify_all()
            self._save()
