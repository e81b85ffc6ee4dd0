"""A boot pack on its way into the page cache, ahead of the container that is going to need it: the client's side.

The pages are charged to whoever pushes them, so the pusher is a process of its own, forked from the client and in the
same cgroup as the container. What it does with the boot pack: lazyfs/pusher.py.

    client ── forks ──► pusher: waits ── `stream`: where the boot pack is ──► fetches, verifies, decodes
                                      ── `push`: the mount's descriptors  ──► pushes what is here, and what comes

An image that this host has never seen has its pusher forked before anything of it is fetched (`Ahead`), so that its
boot pack comes while its index is fetched and judged. The pins go to the server, which keeps them as long as the image.

Whatever goes wrong here makes a start slower, never wrong: the reader that finds no page asks the server for it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

import cext
from cext.errors import OnesecError
from cext.record import Record, as_dict, replace
from lazyfs import remote
from lazyfs.object_wire import receive
from lazyfs.objects import Attachment, Pushing

NAME = "onesec-prefill"

_STREAM, _PUSH = b"stream", b"push"
_RUN = struct.Struct("<QQ")


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


class Server(Protocol):
    """objects.Pushing."""

    def frames(self, file: int, head_size: int, head_digest: bytes) -> None: ...
    def pin(self, objects: Sequence[int]) -> None: ...
    def pushed(self) -> None: ...


class Target(Record):
    """Where pages go: the root of an object mount and its connection, both borrowed. server: is told what happens.
    pinned: an earlier start was here, so look first whether the pages still are. after: is given the boot pack when all
    of it is in.
    """

    objects: int
    fuse: int
    server: Server
    pinned: bool = False
    after: Callable[[cext.BootPack], None] = lambda _: None


class Prefill:
    """The pusher at work, seen from the client."""

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


class Ahead:
    """A pusher that is there before its image is. To be closed, whether it was needed or not."""

    def __init__(self) -> None:
        self.process = -1
        self._reader = -1  # owned, of the pipe for its report
        self._orders: socket.socket | None = None
        self._digest = ""  # of the boot pack that it streams

    def fork(self, pack: BootPackFile | None = None) -> None:
        """Not beside a thread; again does nothing. pack: what it is going to push, if that is known."""
        if self._orders is not None:
            return
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.process = os.fork()
            if self.process == 0:
                _become_pusher(theirs, writer, pack)
        except BaseException:
            os.close(reader)
            ours.close()
            raise
        finally:
            os.close(writer)
            theirs.close()
        self._reader, self._orders = reader, ours

    @property
    def report_pipe(self) -> int:
        """Borrowed; only the pusher writes into it."""
        return self._reader

    def streams(self, pack: BootPackFile) -> bool:
        return self._orders is not None and self._digest == pack.digest

    def stream(self, pack: BootPackFile, sources: Sequence[remote.Source]) -> None:
        """It begins to fetch; once. pack: remote; its directory stays the caller's."""
        if self._digest:
            return
        self._digest = pack.digest
        words = {
            "digest": pack.digest,
            "head_digest": pack.head_digest.hex(),
            "head_size": pack.head_size,
            "size": pack.size,
            "sources": [as_dict(one) for one in sources],
        }
        file = os.memfd_create("onesec-sources", os.MFD_CLOEXEC)  # certificates would not fit into a packet
        with open(file, "wb") as out:
            out.write(json.dumps(words).encode())
            out.flush()
            self._order(_STREAM, [file, pack.directory])

    def push(
        self, attachment: Attachment, connection: int, *, pinned: bool, prefetch: int = 0, wait_s: float = 0
    ) -> None:
        """It may push into the page cache of this mount. prefetch, wait_s: as for `start`."""
        words = {"image": attachment.number, "pinned": pinned, "prefetch": prefetch, "wait": wait_s}
        self._order(_PUSH + json.dumps(words).encode(), [attachment.objects, connection, attachment.connection])

    def hand_over(self, pack: BootPackFile) -> Prefill:
        """It is a start's from now on."""
        found = Prefill(self.process, self._reader, pack)
        assert self._orders is not None
        self._orders.close()
        self._orders = None
        return found

    def let_go(self) -> None:
        """It ends by itself, as it does when we die."""
        if self._orders is not None:
            self._orders.close()
            os.close(self._reader)
            self._orders = None

    def close(self) -> None:
        if self._orders is not None:
            self.let_go()
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, words: bytes, fds: Sequence[int]) -> None:
        assert self._orders is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: the start goes without
            socket.send_fds(self._orders, [words], list(fds))


def start(
    attachment: Attachment, pack: BootPackFile, ahead: Ahead | None = None, *, prefetch: int = 0, wait_s: float = 0
) -> Prefill | None:
    """Has the boot pack pushed by a process. The image stays served as long as it works. None: another start is pushing
    the same pack.

    ahead: one that may be streaming this pack already. prefetch: bytes of packs that the server may fetch for its store
    wait_s after all is pushed.
    """
    with Ahead() as fresh:
        chosen = ahead if ahead is not None and ahead.streams(pack) else fresh
        if chosen is fresh:
            fresh.fork(pack)
        how = attachment.boot(pack.digest, chosen.report_pipe)
        try:
            if how.busy:
                return None
            budget = prefetch if attachment.origin else 0
            chosen.push(attachment, how.connection, pinned=how.pinned, prefetch=budget, wait_s=wait_s)
        finally:
            os.close(how.connection)
        return chosen.hand_over(pack)


# ---------------------------------------------------------------------- the process


def _become_pusher(orders: socket.socket, result: int, pack: BootPackFile | None) -> NoReturn:
    report = Report(error="died")
    try:
        cext.set_process_name(NAME)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a descriptor for each object
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        given = (pack.fd, pack.directory) if pack is not None else ()
        _let_go({orders.fileno(), result, *given} - {-1})
        try:
            report = _obey(orders, pack)
        except (OnesecError, OSError) as error:
            report = Report(error=str(error))
    finally:
        with suppress(OSError):
            os.write(result, json.dumps(as_dict(report)).encode())
        os._exit(0)


def _obey(orders: socket.socket, pack: BootPackFile | None) -> Report:
    from lazyfs import pusher

    target: Target | None = None
    if pack is None:
        from lazyfs import stream  # noqa: F401  while the client looks its image up

        pack = _ordered(orders)
    else:  # nothing is fetched before it is sure that nobody else fetches it
        target = _target(orders)
    started = time.monotonic()
    with pusher.opened(pack) as source, pusher.Pass(pack, source) as one:
        target = target or _target(orders)
        report = one.run(target)
    return replace(report, started=started, ended=time.monotonic())


def _ordered(orders: socket.socket) -> BootPackFile:
    _, (file, directory) = _order(orders, _STREAM)
    with open(file, "rb") as given:
        given.seek(0)
        words = json.load(given)
    sources = [remote.Source(**{**one, "headers": tuple(one["headers"])}) for one in words["sources"]]
    return BootPackFile(
        -1,
        words["digest"],
        bytes.fromhex(words["head_digest"]),
        words["head_size"],
        words["size"],
        lambda: sources,
        directory,
    )


def _target(orders: socket.socket) -> Target:
    data, (objects, connection, server) = _order(orders, _PUSH)
    words = json.loads(data)
    sock = socket.socket(fileno=server)
    threading.Thread(target=_end_with, args=(sock,), daemon=True).start()
    line = Pushing(sock, words["image"])
    budget, wait_s = int(words["prefetch"]), float(words["wait"])

    def after(boot: cext.BootPack) -> None:
        if budget > 0:
            line.prefetch(runs_of(boot), budget, wait_s)

    return Target(objects, connection, line, words["pinned"], after)


def _end_with(server: socket.socket) -> None:
    """A look-up in the mount of a dead server is answered only when the kernel ends the connection, which it does not
    while we hold a descriptor of it: we would wait for ourselves, and every container of the mount with us.
    """
    gone = select.poll()
    gone.register(server.fileno(), 0)
    gone.poll()
    os._exit(0)


def runs_of(boot: cext.BootPack) -> bytes:
    """As a prefetch takes them."""
    ids = boot.objects
    return b"".join(ids[row] + _RUN.pack(offset, length) for row, offset, length in boot.runs)


def _order(orders: socket.socket, kind: bytes) -> tuple[bytes, list[int]]:
    """Ends the process if the client is gone, or does not need it after all."""
    data, fds = receive(orders)
    if not data.startswith(kind):
        os._exit(0)
    return data[len(kind) :], fds


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
