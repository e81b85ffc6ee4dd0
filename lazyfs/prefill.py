"""A boot pack on its way into the page cache, ahead of the container that is going to need it.

The pages are charged to whoever pushes them, so the pusher is a process of its own, forked from the client and in the
same cgroup as the container. Its order of work: verify the head; open the objects through the mount, in the order of
their first page (the kernel takes a store only for an inode that it knows, and an O_PATH descriptor pins the inode with
its pages); and hand each frame, once its objects are open, to one of two threads that verify, decode and push it. Two,
because a store waits for a READ that is on its way to the same page. The pins go to the server, which keeps them as
long as the image stays.

Whatever goes wrong here makes a start slower, never wrong: the reader that finds no page asks the server for it.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, Protocol

import cext
from cext.errors import CorruptError, LimitError, OnesecError
from cext.record import Record, as_dict, replace
from lazyfs import remote
from lazyfs.objects import Attachment, Push

NAME = "onesec-prefill"
THREADS = 2
AHEAD = 8
"""Frames that are read and not yet pushed."""

HEAD_MAX = 65 << 20  # bytes as they travel: of OS_BOOT_HEAD_MAX that zstd could make no smaller

PROGRESS_MAX = 200  # points of a report: it has to fit into a pipe

_SAMPLES = 48
_OPEN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class BootPackFile(Record):
    """A boot pack. digest: its name. head_digest: BLAKE3 of the first head_size bytes.

    fd: a local file, borrowed; -1: it has size bytes and is where locate says, which may take its time, and directory
    (borrowed) is where it goes once it is here.
    """

    fd: int
    digest: str
    head_digest: bytes
    head_size: int
    size: int = 0
    locate: Callable[[], Sequence[remote.Source]] | None = None
    directory: int = -1


class Report(Record):
    """What the pusher did. frames: pushed of all. objects: pinned. stored: bytes. started, ended: monotonic seconds.

    progress: when how many bytes were in. kept: the pages were there from an earlier start. error: what ended it early,
    or empty.
    """

    frames: int = 0
    all_frames: int = 0
    objects: int = 0
    stored: int = 0
    started: float = 0.0
    ended: float = 0.0
    progress: tuple[tuple[float, int], ...] = ()
    kept: bool = False
    error: str = ""


class Prefill:
    """The pusher, seen from the client."""

    def __init__(self, process: int, reader: int, pack: BootPackFile) -> None:
        self.pack = pack
        self.process = process
        self._reader = reader  # owned
        self._report: Report | None = None  # there is one: the process is gone

    def report(self) -> Report | None:
        """What it has done, or None while it works."""
        if self._report is None:
            data = b""
            with suppress(BlockingIOError):
                data = os.read(self._reader, 1 << 16)
            if data:
                words = json.loads(data)
                progress = tuple((when, stored) for when, stored in words.pop("progress"))
                self._report = Report(**words, progress=progress)
                os.waitpid(self.process, 0)
        return self._report

    def wait(self, seconds: float) -> Report | None:
        """The same, once it is there."""
        if self._report is None:
            select.select([self._reader], [], [], seconds)
        return self.report()

    def stop(self) -> None:
        """Ends it, wherever it is."""
        if self._report is None:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._reader)

    def close(self) -> None:
        """Leaves it to its work, if it still has some; init is its parent when we are gone."""
        self.report()
        os.close(self._reader)


def start(attachment: Attachment, pack: BootPackFile) -> Prefill | None:
    """Forks the pusher. The image stays served as long as it works. None: another start is pushing the same pack."""
    started = time.monotonic()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    connection = process = -1
    try:
        push = attachment.boot(pack.digest, reader)
        connection = push.connection
        if not push.busy:
            process = os.fork()
            if process == 0:
                _become_pusher(attachment, pack, push, writer, started)
    finally:
        for fd in (writer, connection, reader if process < 0 else -1):
            if fd >= 0:
                os.close(fd)
    return None if process < 0 else Prefill(process, reader, pack)


def _become_pusher(attachment: Attachment, pack: BootPackFile, how: Push, result: int, started: float) -> NoReturn:
    report = Report(error="died")
    try:
        cext.set_process_name(NAME)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a descriptor for each object
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _let_go({pack.fd, pack.directory, how.connection, result, attachment.objects, attachment.connection} - {-1})
        try:
            report = push(pack, attachment.objects, how.connection, attachment.pin, pinned=how.pinned)
        except (OnesecError, OSError) as error:
            report = Report(error=str(error))
        with suppress(OnesecError, OSError):
            attachment.pushed()
        report = replace(report, started=started, ended=time.monotonic())
    finally:
        with suppress(OSError):
            os.write(result, json.dumps(as_dict(report)).encode())
        os._exit(0)


def _let_go(kept: set[int]) -> None:
    """Of everything of the client's but these: nobody may wait for the end of a pipe that we hold."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null, number)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


def push(
    pack: BootPackFile, objects: int, fuse: int, pin: Callable[[list[int]], None], *, pinned: bool = False
) -> Report:
    """Pushes a boot pack into the page cache of an object mount, whose root and connection are given.

    pin: is given the descriptors of the objects. pinned: look first whether the pages are there already.
    Raises CorruptError for a pack that is not what its manifest says.
    """
    with opened(pack) as source:
        boot = open_boot_pack(pack, source)
        if pinned and _is_cached(boot, objects):
            return Report(len(boot.frames), len(boot.frames), len(boot.objects), kept=True)
        report = _Push(boot, pack, source, objects, fuse).run(pin)
        source.keep()
        return report


class Source(Protocol):
    """The bytes of a boot pack, in order."""

    def read(self, offset: int, size: int) -> bytes: ...
    def keep(self) -> None:
        """All were read: what came from far away may stay here."""


class _File:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def keep(self) -> None:
        """It is here."""


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


class _Push:
    """One pass over a boot pack: this thread opens and reads, the others push."""

    def __init__(self, boot: cext.BootPack, pack: BootPackFile, source: Source, objects: int, fuse: int) -> None:
        self._boot = boot
        self._pack = pack
        self._source = source
        self._objects = objects
        self._fuse = fuse
        self._frames: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._lock = threading.Lock()
        self._stored = 0  # guarded by _lock
        self._done = 0  # guarded by _lock
        self._progress: list[tuple[float, int]] = []  # guarded by _lock
        self._error: Exception | None = None  # guarded by _lock; the first

    def run(self, pin: Callable[[list[int]], None]) -> Report:
        threads = [threading.Thread(target=self._store) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        pins: list[int] = []
        try:
            self._feed(pins)
        finally:
            for _ in threads:
                self._frames.put(None)
            for thread in threads:
                thread.join()
        pin(pins)
        if self._error is not None:
            raise self._error
        step = max(1, len(self._progress) // PROGRESS_MAX)
        progress = tuple(self._progress[::step])
        return Report(self._done, len(self._boot.frames), len(pins), self._stored, progress=progress)

    def _feed(self, pins: list[int]) -> None:
        ids, placed, offset = self._boot.objects, 0, self._pack.head_size
        for number, (size, reach) in enumerate(self._boot.frames):
            while placed < reach:  # before the frame is waited for
                self._place(placed, ids[placed].hex(), pins)
                placed += 1
            data = self._source.read(offset, size)
            offset += size
            self._room.acquire()
            if self._error is not None:
                return
            self._frames.put((number, data))

    def _place(self, row: int, name: str, pins: list[int]) -> None:
        try:
            fd = os.open(f"{name[:2]}/{name[2:]}", _OPEN, dir_fd=self._objects)
        except OSError:
            return  # its readers will learn why
        pins.append(fd)
        found = os.fstat(fd)
        self._boot.place(row, found.st_ino, found.st_size)

    def _store(self) -> None:
        while (item := self._frames.get()) is not None:
            try:
                stored = self._boot.store(self._fuse, *item)
            except (OnesecError, OSError) as error:
                with self._lock:
                    self._error = self._error or error
            else:
                with self._lock:
                    self._stored += stored
                    self._done += 1
                    self._progress.append((time.monotonic(), self._stored))
            self._room.release()


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
