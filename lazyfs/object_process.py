"""The object server's process: one for each trust domain, forked from the first client that needs it, never executed.

    client ── forks ──► holder (root; waits, then removes the socket) ── forks ──► server (nobody, seccomp)

The server makes the FUSE mount, attached nowhere, while it still may, gives up everything it does not need, and only
then reads its first byte from outside. What it serves comes to it as descriptors over its socket: it can open nothing
(but /proc/<pid>/status, to see whether the reader of a parked page is being killed), so a fault in it reaches no file
that its images do not consist of.

Messages are one JSON object in one packet, with descriptors. Of a client:

    link     descriptor: a fetcher's socket (lazyfs/fetch_process.py). The answer says whether it was taken, and has a
             descriptor of the memory for its bytes if it was
    attach   label, blobs (number of packs), lease (bool), metadata, linger, origin (the fetcher's number for where
             packs come from that have no row; 0: nowhere), rows, more; descriptors: tables, [lease], a pack for each
             row
    packs    rows, more; descriptors: a pack for each row. `more` false ends an attach: the answer has the image's
             number and a descriptor of the object mount, and the shared EROFS mount of `metadata` if there is one
    share    image; descriptor: an EROFS mount, given to each further attach of the same metadata
    boot     image, pack (name of a boot pack); descriptor: a pipe that the pusher alone writes into. The client would
             push it into the page cache. The answer has a descriptor of the FUSE connection, and says whether another
             is at it (busy) or was (pinned)
    pin      image; descriptors of objects, which stay in the kernel's memory with their pages. No answer
    pushed   image: the client is no longer at it. No answer
    trace    reads are recorded until this client ends
    touches  descriptor to write to: what was read while reads were recorded
    keep     image, device ("major:minor" of a mount that uses it): the image stays until that mount is gone
    detach   image
    connection  the answer has a descriptor of the FUSE connection, for one more mount
    statistics

An image that is not kept ends with its client's connection. When there is no image and no client the process ends, and
with it the mount; not before the last image has been gone for as long as its attach said (`linger`, seconds), so that
the next container on this image finds its pages and inodes in memory.
"""

from __future__ import annotations

import array  # noqa: F401  socket.recv_fds imports it when it is called: too late behind the change of root
import fcntl
import json
import math
import os
import resource
import select
import socket
import struct
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import cext
from cache.settings import StoreSettings
from cache.stores import Place, prepare
from cext.errors import OnesecError, UnsupportedError
from cext.record import Record
from lazyfs import background
from lazyfs.mount import READ_AHEAD_KB, set_read_ahead
from lazyfs.objects import ServerSettings

NAME = "onesec-objects"
NOBODY = 65534
MESSAGE_MAX = 64 << 10
DESCRIPTORS_MAX = 240  # of one message; the kernel takes 253
FIRST_CLIENT_S = 5
LINGER_MAX_S = 86400.0
PINS_MAX = 16384  # objects of one boot pack
_NO_ROOM_MS = 100  # until the next look for a descriptor for a client

_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME = 0x1, 0x2, 0x4, 0x8, 0x10
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100


class ObjectMount(Record):
    """A FUSE mount that is attached nowhere. tree: its root. fds: its connection, and a clone for each further
    thread; made now, because a request dies with the clone that it was read from. All owned.
    """

    tree: int
    fds: tuple[int, ...]

    def close(self) -> None:
        for fd in (self.tree, *self.fds):
            os.close(fd)


def make_object_mount(threads: int, *, profile: bool = False) -> ObjectMount:
    """profile: without read-ahead. Raises UnsupportedError where the kernel or its configuration says no."""
    fds: list[int] = []
    try:
        fds.append(_open_fuse())
        tree = mount_fuse(fds[0])
        fds.append(tree)
        clones = []
        for _ in range(threads - 1):
            clone = _open_fuse()
            fds.append(clone)
            fcntl.ioctl(clone, _CLONE, struct.pack("=I", fds[0]))
            clones.append(clone)
        if not profile:
            set_read_ahead(tree, READ_AHEAD_KB)
        return ObjectMount(tree, (fds[0], *clones))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _open_fuse() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"/dev/fuse: {os.strerror(error.errno or 0).lower()}",
            hint="load the fuse module, or give the container /dev/fuse",
        ) from error


def mount_fuse(fuse: int) -> int:
    """A detached mount of a FUSE connection: its first, or one more of the same file system."""
    options = [
        ("source", "onesec"),
        ("subtype", "onesec"),
        ("fd", str(fuse)),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
        ("default_permissions", None),
        ("ro", None),
    ]
    try:
        context = cext.fsopen("fuse", _CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"object mount: {os.strerror(error.errno or 0).lower()}",
            hint="needs root with CAP_SYS_ADMIN and a kernel with FUSE, 5.2 or newer",
        ) from error
    try:
        for key, value in options:
            cext.fsconfig(context, _SET_FLAG if value is None else _SET_STRING, key, value, 0)
        cext.fsconfig(context, _CREATE, None, None, 0)
        return cext.fsmount(context, _CLOEXEC, _RDONLY | _NOSUID | _NODEV | _NOEXEC | _NOATIME)
    except OSError as error:
        raise UnsupportedError(f"object mount: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        os.close(context)


# ---------------------------------------------------------------------- start


def start(directory: int, settings: ServerSettings) -> None:
    """Starts the server of a domain directory and returns when it takes connections. The caller holds the domain's
    lock. Raises what the start raised.
    """

    def hold(fds: Sequence[int], client: background.Client) -> int:
        (kept,) = fds
        server = os.fork()
        if server == 0:
            _become_server(kept, client, settings)
        client.close()
        os.waitpid(server, 0)
        background.remove_socket(kept, "socket")
        return 0

    log = os.open("log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        background.start(NAME, "object server", hold, fds=(directory,), log=log)
    finally:
        os.close(log)


def _become_server(directory: int, client: background.Client, settings: ServerSettings) -> NoReturn:
    status = 1
    try:
        server = Server(directory, settings)
    except BaseException as error:
        client.failed(error)
    else:
        try:
            client.ready()
            client.close()
            server.run()
            server.close()
            status = 0
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(status)


def _listen(directory: int) -> socket.socket:
    """Takes the place of a dead server's socket in one step: a client sees the old one, which refuses, or ours."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(FileNotFoundError):
        os.unlink("socket.new", dir_fd=directory)
    sock.bind(f"/proc/self/fd/{directory}/socket.new")
    os.chmod("socket.new", 0o600, dir_fd=directory)
    sock.listen(128)
    os.rename("socket.new", "socket", src_dir_fd=directory, dst_dir_fd=directory)
    return sock


# ---------------------------------------------------------------------- serving


@dataclass(slots=True)
class _Image:
    """device: of the mount that keeps it, or None. lease: owned, or -1. metadata, pack: name what is kept for it, its
    shared mount and the pins of its boot pack, or are empty.
    """

    label: str
    lease: int
    metadata: str
    linger_s: float
    device: str | None = None
    pack: str = ""


@dataclass(slots=True)
class _Kept:
    """What outlives an image for the next one. fds: owned. until: monotonic time at which it goes, None while an image
    uses it.
    """

    fds: list[int]
    until: float | None = None
    pusher: socket.socket | None = None  # of the client that pushes the boot pack, borrowed
    pipe: int = -1  # owned; hung up when the pusher is gone, though its client may live on

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.release()

    def is_pushed(self) -> bool:
        if self.pusher is not None and self.pipe >= 0:
            poll = select.poll()
            poll.register(self.pipe, 0)
            if poll.poll(0):  # nobody can write into it
                self.release()
        return self.pusher is not None

    def release(self) -> None:
        self.pusher = None
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


@dataclass(slots=True)
class _Attach:
    """An attach whose packs are still coming. tables, lease, packs: owned, -1 where there is none."""

    label: str
    tables: int
    lease: int
    metadata: str
    linger_s: float
    origin: int
    packs: list[int]

    def close(self) -> None:
        for fd in (self.tables, self.lease, *self.packs):
            if fd >= 0:
                os.close(fd)


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    images: set[int] = field(default_factory=set)
    attach: _Attach | None = None
    traces: bool = False


_CALLS = (
    *("attach", "packs", "share", "boot", "pin", "pushed", "trace", "touches"),
    *("connection", "keep", "detach", "statistics"),
)


class _Refused(Exception):
    """What a client asked for cannot be had; it is told why and may go on."""


class Server:
    """Everything a server process has. Made with privileges, and without them when __init__ returns."""

    def __init__(self, directory: int, settings: ServerSettings) -> None:
        threads = max(2, min(8, 2 * (os.cpu_count() or 1)))
        mount = make_object_mount(threads, profile=settings.profile)
        self._tree = mount.tree
        proc = cext.open_tree(_AT_FDCWD, "/proc", _OPEN_TREE_CLONE | os.O_CLOEXEC)
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._hangup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listener = _listen(directory)
        self._clients: dict[int, _Client] = {}
        self._images: dict[int, _Image] = {}
        self._kept: dict[str, _Kept] = {}  # by metadata or boot pack
        self._until = 0.0  # monotonic: before it the process stays although there is nobody to serve
        self._user = os.geteuid()
        self._profile = settings.profile
        secret = os.urandom(32)
        deadline = _deadline(settings.deadline_s)
        self._pins_max = _raise_descriptor_limit() // 4
        memory = _make_memory()
        place = None if settings.store is None else _prepare_store(settings.store, settings.domain)
        os.fchdir(proc)
        os.chroot(".")
        os.close(directory)
        self._store: cext.Store | None = None

        def open_store() -> int:
            self._store = None if place is None else _open_store(place)
            os.fchdir(proc)
            return -1 if self._store is None else self._store.fileno()

        cext.drop_privileges(NOBODY, proc, open_store)
        self._server = cext.ObjectServer(
            mount.fds,
            secret=secret,
            proc=proc,
            log=2,
            hangup=self._hangup,
            deadline=deadline,
            store=self._store,
            profile=settings.profile,
            memory=memory,
        )
        self._memory = memory
        self._fuse, *clones = mount.fds
        for fd in clones:
            os.close(fd)
        self._server.start()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _log(f"started, process {os.getpid()}, {now}; reads wait {deadline:g} s at most")

    def close(self) -> None:
        """Nothing of the store is lost but what its writer could not write."""
        self._server.close()
        if self._store is not None:
            with suppress(OSError, OnesecError):
                self._store.close()

    def run(self) -> None:
        """Until there is nobody left to serve."""
        poll = select.poll()
        poll.register(self._listener.fileno(), select.POLLIN)
        poll.register(self._hangup, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)
        connected = self._poll(poll, FIRST_CLIENT_S * 1000)
        while connected and (self._clients or self._images or time.monotonic() < self._until):
            connected = self._poll(poll, self._wait_ms())
            self._drop_kept()

    def _wait_ms(self) -> int | None:
        """Until something has to go that nobody asks for; None: there is nothing."""
        ends = [kept.until for kept in self._kept.values() if kept.until is not None]
        if not self._clients and not self._images:
            ends.append(self._until)
        return max(0, math.ceil((min(ends) - time.monotonic()) * 1000)) if ends else None

    def _poll(self, poll: select.poll, timeout: int | None) -> bool:
        """Handles what is there. Whether the object mount still is."""
        ready = poll.poll(timeout)
        for fd, _ in ready:
            if fd == self._listener.fileno():
                self._accept(poll)
            elif fd == self._hangup:
                _log("the kernel closed the connection of the object mount")
                return False
            elif fd == self._mounts:
                self._drop_unmounted()
            elif fd in self._clients:
                self._serve(poll, self._clients[fd])
        return True

    def _accept(self, poll: select.poll) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # no descriptor is left; the client waits in the queue
            _log(f"client: {_words(error).lower()}")
            if not self._drop_lingering():
                select.poll().poll(_NO_ROOM_MS)  # nothing but the time passes
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, self._user):
            _log(f"refused a connection of uid {uid}")
            sock.close()
            return
        self._clients[sock.fileno()] = _Client(sock)
        poll.register(sock.fileno(), select.POLLIN)

    def _serve(self, poll: select.poll, client: _Client) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(client.sock, MESSAGE_MAX, DESCRIPTORS_MAX)
        except OSError:
            data, fds, flags = b"", [], 0
        if not data or flags & socket.MSG_TRUNC:
            for fd in fds:
                os.close(fd)
            self._forget(poll, client)
            return
        answer: dict[str, Any] | None
        given: list[int] = []
        try:
            words = json.loads(data)
            if flags & socket.MSG_CTRUNC and words["op"] != "pin":
                self._drop_lingering()  # for the next try
                raise _Refused("its limit of open files is reached")
            answer = self._answer(client, words, fds)
            if answer is not None and "image" in answer:
                shared = self._kept.get(self._images[answer["image"]].metadata)
                given = [self._tree] if shared is None else [self._tree, *shared.fds]
            elif answer is not None and ("pinned" in answer or "connection" in answer):
                given = [self._fuse]
            elif answer is not None and answer.get("linked"):
                given = [self._memory]
        except Exception as error:  # whatever a message does, it ends at most its own connection
            answer = {"error": str(error) or type(error).__name__}
            if client.attach is not None:
                client.attach.close()
                client.attach = None
        finally:
            for fd in fds:  # what was taken was taken out
                os.close(fd)
        if answer is not None:
            try:
                socket.send_fds(client.sock, [json.dumps(answer).encode()], given)
            except OSError:
                self._forget(poll, client)

    def _forget(self, poll: select.poll, client: _Client) -> None:
        poll.unregister(client.sock.fileno())
        del self._clients[client.sock.fileno()]
        client.sock.close()
        if client.attach is not None:
            client.attach.close()
        self._pushed(client)
        for image in client.images:
            self._detach(image)
        if client.traces and not self._profile and not any(other.traces for other in self._clients.values()):
            self._server.record(False)

    # -- what a client may ask; fds it takes are taken out of the list

    def _answer(self, client: _Client, words: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        what = words["op"]
        if what == "attach":
            if client.attach is not None:
                raise _Refused("attach: got two at once")
            if len(fds) < 1 + bool(words["lease"]) or not 0 <= int(words["blobs"]) <= 1 << 20:
                raise _Refused("attach: got no tables, or no sensible number of packs")
            tables = fds.pop(0)
            lease = fds.pop(0) if words["lease"] else -1
            linger_s = min(max(float(words.get("linger", 0)), 0), LINGER_MAX_S)
            metadata = str(words.get("metadata", ""))
            origin = int(words.get("origin", 0))
            packs = [-1] * int(words["blobs"])
            client.attach = _Attach(str(words["label"]), tables, lease, metadata, linger_s, origin, packs)
            return self._packs(client, words, fds)
        if what == "packs":
            return self._packs(client, words, fds)
        if what == "link":
            if len(fds) != 1:
                raise _Refused(f"link: got {len(fds)} descriptors, want a socket")
            return {"linked": self._server.link(fds[0])}
        if what == "share":
            return self._share(client, int(words["image"]), fds)
        if what == "connection":
            return {"connection": True}
        if what == "boot":
            return self._boot(client, int(words["image"]), str(words["pack"]), fds)
        if what == "pin":
            self._pin(client, int(words["image"]), fds)
            return None
        if what == "pushed":
            self._pushed(client)
            return None
        if what == "trace":
            client.traces = True
            self._server.record(True)
            return {}
        if what == "touches":
            return self._touches(fds)
        if what == "keep":
            return self._keep(client, int(words["image"]), str(words["device"]))
        if what == "detach":
            image = int(words["image"])
            if image not in self._images:
                raise _Refused(f"detach: got image {image}, which is not there")
            for other in self._clients.values():
                other.images.discard(image)
            self._detach(image)
            return {}
        if what == "statistics":
            images = [{"image": number, "label": image.label} for number, image in self._images.items()]
            return {"statistics": self._server.statistics(), "images": images, "process": os.getpid()}
        raise _Refused(
            f"got {what!r}, want link, attach, packs, share, boot, pin, pushed, trace, touches, connection, "
            "keep, detach or statistics"
        )

    def _packs(self, client: _Client, words: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        attach = client.attach
        if attach is None:
            raise _Refused("packs: got no attach before")
        rows = words["rows"]
        if len(rows) != len(fds):
            raise _Refused(f"packs: got {len(fds)} descriptors, want {len(rows)}")
        for row in rows:
            if not 0 <= row < len(attach.packs) or attach.packs[row] >= 0:
                raise _Refused(f"packs: got row {row}, want each once below {len(attach.packs)}")
            attach.packs[row] = fds.pop(0)
        if words["more"]:
            return None
        number = self._server.add_image(attach.tables, attach.packs, label=attach.label, origin=attach.origin)
        self._images[number] = _Image(attach.label, attach.lease, attach.metadata, attach.linger_s)
        if attach.metadata in self._kept:
            self._kept[attach.metadata].until = None
        attach.lease = -1
        attach.close()
        client.attach = None
        client.images.add(number)
        return {"image": number}

    def _share(self, client: _Client, number: int, fds: list[int]) -> dict[str, Any]:
        if number not in client.images or len(fds) != 1:
            raise _Refused(f"share: got image {number}, which is not this client's, or no mount")
        metadata = self._images[number].metadata
        if metadata and metadata not in self._kept:
            self._kept[metadata] = _Kept([fds.pop()])
        return {}

    def _boot(self, client: _Client, number: int, pack: str, fds: list[int]) -> dict[str, Any]:
        if number not in client.images:
            raise _Refused(f"boot: got image {number}, which is not this client's")
        self._images[number].pack = pack
        kept = self._kept.setdefault(pack, _Kept([]))
        kept.until = None
        busy = kept.is_pushed()
        if not busy:
            kept.pusher = client.sock
            kept.pipe = fds.pop() if fds else -1
        return {"pinned": bool(kept.fds), "busy": busy}

    def _pin(self, client: _Client, number: int, fds: list[int]) -> None:
        if number in client.images and (kept := self._kept.get(self._images[number].pack)) is not None:
            room = min(PINS_MAX - len(kept.fds), self._pins_left())
            if room < len(fds) and self._drop_lingering():
                room = min(PINS_MAX - len(kept.fds), self._pins_left())
            room = max(0, room)
            kept.fds += fds[:room]
            del fds[:room]

    def _pushed(self, client: _Client) -> None:
        for kept in self._kept.values():
            if kept.pusher is client.sock:
                kept.release()

    def _touches(self, fds: list[int]) -> dict[str, Any]:
        if len(fds) != 1:
            raise _Refused("touches: got no descriptor")
        view = memoryview(self._server.touches())
        size = len(view)
        while view:
            view = view[os.write(fds[0], view) :]
        return {"size": size}

    def _keep(self, client: _Client, number: int, device: str) -> dict[str, Any]:
        if number not in client.images:
            raise _Refused(f"keep: got image {number}, which is not this client's")
        client.images.discard(number)
        # A mount of another mount namespace cannot be watched from here: better kept for ever than dropped in use.
        watched = device in self._devices()
        self._images[number].device = device if watched else None
        return {"watched": watched}

    def _detach(self, number: int) -> None:
        image = self._images.pop(number)
        self._server.remove_image(number)
        if image.lease >= 0:
            os.close(image.lease)
        # A mount that is undone leaves nothing; a container leaves its pages to the next one.
        until = time.monotonic() + (image.linger_s if image.device is None else 0)
        self._until = max(self._until, until)
        for name in (image.metadata, image.pack):
            if name in self._kept and all(name not in (one.metadata, one.pack) for one in self._images.values()):
                self._kept[name].until = until

    def _drop_kept(self) -> None:
        now = time.monotonic()
        for name, kept in list(self._kept.items()):
            if kept.until is not None and kept.until <= now:
                self._kept.pop(name).close()

    def _pins_left(self) -> int:
        """Descriptors for pins: never so many that there are none for packs and clients."""
        return self._pins_max - sum(len(kept.fds) for kept in self._kept.values())

    def _drop_lingering(self) -> bool:
        """Lets go of what no image uses. Whether there was anything."""
        idle = [name for name, kept in self._kept.items() if kept.until is not None]
        for name in idle:
            self._kept.pop(name).close()
        return bool(idle)

    def _drop_unmounted(self) -> None:
        devices = self._devices()
        for number, image in list(self._images.items()):
            if image.device is not None and image.device not in devices:
                self._detach(number)

    def _devices(self) -> set[str]:
        """major:minor of everything mounted. Reading it from the start also rearms the poll."""
        os.lseek(self._mounts, 0, os.SEEK_SET)
        text = b""
        while more := os.read(self._mounts, 1 << 16):
            text += more
        return {line.split(b" ", 3)[2].decode() for line in text.splitlines()}


def _make_memory() -> int:
    """What a fetcher puts bytes into, cext/src/os_link.h. Sealed: it can become neither shorter nor longer."""
    memory = os.memfd_create("onesec-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, cext.SLOTS_SIZE)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


def _prepare_store(settings: StoreSettings, domain: str) -> Place | None:
    """None, and a line, if it cannot be had: a start never fails for want of a cache."""
    try:
        return prepare(settings, domain, NOBODY)
    except (OSError, OnesecError) as error:
        _log(f"chunk store: left out: {_words(error)}")
        return None


def _words(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _open_store(place: Place) -> cext.Store | None:
    """As the user that the server is from now on: a map that a former server left is parsed without privileges."""
    try:
        return place.open(log=2)
    except (OSError, OnesecError) as error:
        _log(f"chunk store: left out: {_words(error)}")
        return None
    finally:
        os.close(place.fd)


def _deadline(deadline: float) -> float:
    """Below the host's own limits for FUSE requests, which abort the whole connection; 0 there means none."""
    for name in ("default_request_timeout", "max_request_timeout"):
        with suppress(OSError, ValueError), open(f"/proc/sys/fs/fuse/{name}") as file:
            if limit := int(file.read()):
                deadline = min(deadline, 0.75 * limit)
    return deadline


def _raise_descriptor_limit() -> int:
    """A descriptor for each pack of each image. The limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, max(hard, 1 << 20)))
        return 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _log(text: str) -> None:
    """A line straight to descriptor 2, unbuffered: the process ends by _exit. A full disk stops nobody."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
