"""A client's side of the object server: find it or start it, and hand it an image.

    <run-dir>/domains/<hash of protocol, domain and root>/lock     flock: one start at a time
                                                socket   where the server of the domain listens
                                                log      what it could not read, and why

Servers come and go by themselves. A connection that ends in the middle of an attach met one that was just leaving: it
had no images, so the attach is made again with the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import cext
from cache.settings import StoreSettings
from cext.record import Record
from lazyfs import mount
from lazyfs.errors import ObjectServerError

if TYPE_CHECKING:
    from lazyfs import remote
    from lazyfs.remote import Origin

_TABLES_HEADER = 64
_BLOB_ROW = 48
_BLOBS_MAX = 1 << 20
_BATCH = 200  # descriptors in one message
_MESSAGE_MAX = 64 << 10
_TRIES = 5
_FD = struct.Struct("i")
_FDS_MAX = 4  # descriptors of one answer
_PROTOCOL = 3  # of the messages: a server of another release serves its images to their end, beside ours
_TIMEOUT_S = 60

DEADLINE_S = 120.0
"""Of a read that waits for its bytes."""


class Lease(Protocol):
    """registry.layout.Lease, as far as it concerns us."""

    @property
    def fd(self) -> int: ...
    def hand_over(self) -> None: ...


class Servable(Protocol):
    """registry.image.OpenedImage, as far as it concerns us. Descriptors are borrowed. packs: the directory with every
    blob under the hex digits of its digest.
    """

    @property
    def name(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def tables(self) -> int: ...
    @property
    def packs(self) -> int: ...
    @property
    def lease(self) -> Lease: ...


class ServerSettings(Record):
    """What a server has for as long as it lives. deadline_s: of a parked read. profile: it records what is read, page
    by page.
    """

    domain: str
    deadline_s: float
    store: StoreSettings | None
    profile: bool = False


class Push(Record):
    """How to push a boot pack. connection: the mount's. pinned: an earlier start did it. busy: another is at it."""

    connection: int
    pinned: bool
    busy: bool


class Attachment:
    """An image that is served, until ``close`` or, after ``keep``, as long as the mount that was named.

    objects: the root of the domain's object mount, owned.
    """

    def __init__(
        self, sock: socket.socket, number: int, objects: int, metadata: int, lease: Lease, origin: int
    ) -> None:
        self._sock = sock
        self._lease = lease
        self._metadata = metadata  # owned, -1 until there is one
        self.number = number
        self.origin = origin  # the fetcher's number for where packs come from, 0: nowhere
        self.objects = objects

    def metadata(self, file: int, *, name: str) -> int:
        """The EROFS mount of the image's fs.erofs, borrowed: the one that the server keeps, or one that it keeps now.

        One mount for all containers of an image, so that they share its pages and inodes. file: the verified fs.erofs.
        """
        if self._metadata < 0:
            self._metadata = mount.erofs(file, name=name)
            _ask(self._sock, {"op": "share", "image": self.number}, [self._metadata])
        return self._metadata

    def lowers(self, file: int, *, name: str) -> mount.Lowers:
        """The mounts that the image is made of, borrowed."""

        def fresh() -> tuple[int, int]:
            metadata = mount.erofs(file, name=name)
            try:
                return metadata, self._mount_again()
            except BaseException:
                os.close(metadata)
                raise

        return mount.Lowers(self.metadata(file, name=name), self.objects, fresh)

    def _mount_again(self) -> int:
        """Another mount of the same object file system, owned by the caller."""
        from lazyfs.object_process import mount_fuse  # old kernels alone pay for it

        _, fds = _ask(self._sock, {"op": "connection"})
        try:
            return mount_fuse(fds[0])
        finally:
            for fd in fds:
                os.close(fd)

    def keep(self, target: str) -> None:
        """Hands the image and its lease to the server for as long as what is mounted on target stays mounted."""
        found = os.stat(target).st_dev
        _ask(self._sock, {"op": "keep", "image": self.number, "device": f"{os.major(found)}:{os.minor(found)}"})
        self._lease.hand_over()

    def boot(self, pack: str, pipe: int = -1) -> Push:
        """Whether and how to push a boot pack. Its connection is the caller's.

        pipe (borrowed): one that only the pusher writes into, so that it is known when that dies before we do.
        """
        words = {"op": "boot", "image": self.number, "pack": pack}
        answer, fds = _ask(self._sock, words, [pipe] if pipe >= 0 else [])
        if len(fds) != 1:
            raise ObjectServerError(f"object server: got {len(fds)} descriptors, want its connection")
        return Push(fds[0], bool(answer["pinned"]), bool(answer["busy"]))

    def pin(self, objects: Sequence[int]) -> None:
        """Objects (descriptors, borrowed) of the boot pack that stay in memory, with their pages, as long as its image
        or its linger.
        """
        for start in range(0, len(objects), _BATCH):
            _send(self._sock, {"op": "pin", "image": self.number}, objects[start : start + _BATCH])

    def pushed(self) -> None:
        """This client is no longer at its boot pack."""
        _send(self._sock, {"op": "pushed", "image": self.number})

    def trace(self) -> None:
        """Has reads recorded until this attachment ends."""
        _ask(self._sock, {"op": "trace"})

    def touches(self) -> bytes:
        """What was read, in order, while reads were recorded (cext.ObjectServer.touches)."""
        fd = os.memfd_create("onesec-touches", os.MFD_CLOEXEC)
        with open(fd, "rb") as file:
            size = _ask(self._sock, {"op": "touches"}, [fd])[0]["size"]
            file.seek(0)
            data = file.read()
        if len(data) != size:
            raise ObjectServerError(f"object server: got {len(data)} bytes of touches, want {size}")
        return data

    @property
    def connection(self) -> int:
        """Descriptor of the socket, borrowed: as long as one of it is open, the image is served."""
        return self._sock.fileno()

    def statistics(self) -> dict[str, Any]:
        """The server's counts (cext.ObjectServer.statistics), its images and its process."""
        return _ask(self._sock, {"op": "statistics"})[0]

    def close(self) -> None:
        if self.objects >= 0:
            os.close(self.objects)
            self.objects = -1
            if self._metadata >= 0:
                os.close(self._metadata)
            self._sock.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(
    image: Servable,
    *,
    run_dir: str | os.PathLike[str],
    root: str | os.PathLike[str],
    metadata: str = "",
    linger_s: float = 0,
    deadline_s: float = DEADLINE_S,
    store: StoreSettings | None = None,
    profile: bool = False,
    origin: Origin | None = None,
    known: Sequence[remote.Source] = (),
) -> Attachment:
    """Has the image served by its domain's server. Raises UnsupportedError, ObjectServerError.

    metadata: what the mount of fs.erofs is shared under, the hexadecimal digest of its content; empty: not shared.
    linger_s: how long the server, with its page cache, outlives the attachment.
    deadline_s: after which a read whose bytes do not come fails. store: where chunks are kept that are read again. Both
    of a server that is started now, a running one keeps its own. profile: the server records what is read; its run
    directory has to be a new one. origin: where packs come from that are not here. known: what of it the caller can
    read already.
    """
    settings = ServerSettings(image.domain, deadline_s, store, profile)
    with _domain_directory(run_dir, root, image.domain) as directory:
        for _ in range(_TRIES):
            sock: socket.socket | None = _connection(directory, settings)
            assert sock is not None
            try:
                number_of_origin = 0 if origin is None else _register(directory, sock, origin, known)
                number, objects, shared = _hand_over(sock, image, metadata, linger_s, number_of_origin)
                attachment = Attachment(sock, number, objects, shared, image.lease, number_of_origin)
                sock = None
                return attachment
            except _ServerGone:
                continue
            finally:
                if sock is not None:
                    sock.close()
    raise ObjectServerError(f"{image.name}: the object server ends again and again", hint="its log says why")


def statistics(domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a domain's server counts, or None if it does not run."""
    with _domain_directory(run_dir, root, domain) as directory:
        sock = _connect(directory)
        if sock is None:
            return None
        with sock:
            try:
                return _ask(sock, {"op": "statistics"})[0]
            except _ServerGone:
                return None


def sources(
    origin: int, domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str]
) -> Sequence[remote.Source]:
    """What blobs of an attached image's origin can be read from now. Waits until the renewer has got credentials."""
    from lazyfs import remote

    with _domain_directory(run_dir, root, domain) as directory:
        return remote.sources(directory, origin)


def fetch_statistics(
    domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str]
) -> dict[str, Any] | None:
    """What a domain's fetcher counts, or None if there is none."""
    from lazyfs import remote

    with _domain_directory(run_dir, root, domain) as directory:
        return remote.statistics(directory)


def log_tail(
    domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str], size: int = 8192
) -> list[str]:
    """The last lines of a domain's log."""
    with _domain_directory(run_dir, root, domain) as directory:
        try:
            fd = os.open("log", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return []
    with open(fd, "rb") as file:
        start = max(0, os.fstat(fd).st_size - size)
        file.seek(start)
        lines = file.read(size).decode(errors="replace").splitlines()
    return lines[1:] if start else lines


# ---------------------------------------------------------------------- finding and starting


class _ServerGone(ObjectServerError):
    """The server ended before it answered."""

    def __init__(self) -> None:
        super().__init__("object server: ended before it answered", hint="its log says why")


@contextmanager
def _domain_directory(run_dir: str | os.PathLike[str], root: str | os.PathLike[str], domain: str) -> Iterator[int]:
    key = cext.blake3(f"{_PROTOCOL}\0{domain}\0{os.path.realpath(root)}".encode(errors="surrogateescape")).hex()[:32]
    path = f"{os.fspath(run_dir)}/domains/{key}"
    os.makedirs(path, 0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ObjectServerError(
                f"{path}: got a directory that others own or may write to, want one of our own",
                hint="choose another --run-dir",
            )
        yield fd
    finally:
        os.close(fd)


def _connection(directory: int, settings: ServerSettings) -> socket.socket:
    """To the running server, or to one that is started now."""
    sock = _connect(directory)
    if sock is not None:
        return sock
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sock = _connect(directory)  # somebody may have been faster
        if sock is None:
            from lazyfs import object_process

            object_process.start(directory, settings)
            sock = _connect(directory)
        if sock is None:
            raise ObjectServerError("object server: started, but does not answer", hint="its log says why")
        return sock
    finally:
        os.close(lock)


def _connect(directory: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(f"/proc/self/fd/{directory}/socket")  # the path itself may be too long for an address
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            raise ObjectServerError(f"object server: its socket belongs to uid {uid}", hint="choose another --run-dir")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


# ---------------------------------------------------------------------- talking


def _register(directory: int, sock: socket.socket, origin: Origin, known: Sequence[remote.Source]) -> int:
    """The domain's fetcher knows the origin under this number."""
    from lazyfs import remote  # only images that are elsewhere need it

    return remote.register(directory, lambda words, fds: _ask(sock, words, fds), origin, known)


def _hand_over(
    sock: socket.socket, image: Servable, metadata: str, linger_s: float, origin: int
) -> tuple[int, int, int]:
    """The image's number in the server, the object mount's root, and the EROFS mount or -1 (owned by the caller)."""
    digests = _pack_names(image.tables)
    first = [image.tables]
    words: dict[str, Any] = {
        "op": "attach",
        "label": image.name,
        "blobs": len(digests),
        "lease": image.lease.fd >= 0,
        "metadata": metadata,
        "linger": linger_s,
        "origin": origin,
    }
    if image.lease.fd >= 0:
        first.append(image.lease.fd)
    answer: dict[str, Any] = {}
    fds: list[int] = []
    for start in range(0, max(1, len(digests)), _BATCH):
        rows, packs = _open_packs(image.packs, digests, start)
        try:
            words["rows"], words["more"] = rows, start + _BATCH < len(digests)
            if words["more"]:
                _send(sock, words, [*first, *packs])
            else:
                answer, fds = _ask(sock, words, [*first, *packs])
        finally:
            for fd in packs:
                os.close(fd)
        words, first = {"op": "packs"}, []
    if not 1 <= len(fds) <= 2 or any(not mount.is_erofs(fd) for fd in fds[1:]):
        for fd in fds:
            os.close(fd)
        raise ObjectServerError(f"object server: got {len(fds)} descriptors, want its mount and perhaps an EROFS mount")
    return int(answer["image"]), fds[0], fds[1] if len(fds) > 1 else -1


def _pack_names(tables: int) -> list[str]:
    """The packs that tables (verified by the caller) name, in row order."""
    head = os.pread(tables, _TABLES_HEADER, 0)
    count = struct.unpack_from("<I", head, 8)[0] if len(head) == _TABLES_HEADER else _BLOBS_MAX
    if count >= _BLOBS_MAX:
        raise ObjectServerError(f"tables: got {count} packs, want less than {_BLOBS_MAX}")
    rows = b""
    while len(rows) < count * _BLOB_ROW:
        more = os.pread(tables, count * _BLOB_ROW - len(rows), _TABLES_HEADER + len(rows))
        if not more:
            raise ObjectServerError("tables: got an end in the rows of the packs")
        rows += more
    return [rows[at : at + 32].hex() for at in range(0, len(rows), _BLOB_ROW)]


def _open_packs(directory: int, names: Sequence[str], start: int) -> tuple[list[int], list[int]]:
    """Rows and descriptors of the packs of one batch that are there. One that is not is EIO for its readers alone."""
    rows, fds = [], []
    try:
        for row in range(start, min(start + _BATCH, len(names))):
            try:
                fd = os.open(names[row], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            except FileNotFoundError:
                continue
            rows.append(row)
            fds.append(fd)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return rows, fds


def _send(sock: socket.socket, words: dict[str, Any], fds: Sequence[int] = ()) -> None:
    try:
        socket.send_fds(sock, [json.dumps(words).encode()], list(fds))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _ServerGone from error


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet. socket.recv_fds ignores its flags, and a descriptor without close-on-exec goes on to the OCI runtime,
    where it is a way to the objects of other images (the class of CVE-2024-21626).
    """
    space = socket.CMSG_SPACE(_FDS_MAX * _FD.size)
    data, ancillary, _, _ = sock.recvmsg(_MESSAGE_MAX, space, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(payload) // _FD.size * _FD.size
            fds += [fd for (fd,) in _FD.iter_unpack(payload[:whole])]
    return data, fds


def _ask(sock: socket.socket, words: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
    _send(sock, words, fds)
    try:
        data, received = _receive(sock)
    except ConnectionResetError as error:
        raise _ServerGone from error
    except TimeoutError as error:
        raise ObjectServerError(f"object server: no answer in {_TIMEOUT_S} s", hint="its log says why") from error
    if not data:
        raise _ServerGone
    answer = json.loads(data)
    if "error" in answer:
        for fd in received:
            os.close(fd)
        raise ObjectServerError(f"object server: {answer['error']}")
    return answer, received
