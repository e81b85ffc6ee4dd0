"""A client's side of the object server: find it or start it, and hand it an image.

Servers come and go by themselves. A connection that ends in the middle of an attach met one that was just leaving: it
had no images, so the attach is made again with the next.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cache.settings import StoreSettings
from cext.record import Record
from lazyfs import mount
from lazyfs.domain import ServerSettings, connect, connection, domain_directory
from lazyfs.erofs_mount import erofs
from lazyfs.errors import ObjectServerError
from lazyfs.hand_over import BATCH, Lease, Servable, hand_over
from lazyfs.object_wire import ServerGone, ask, send

if TYPE_CHECKING:
    from lazyfs import remote
    from lazyfs.remote import Origin

_TRIES = 5

DEADLINE_S = 120.0
"""Of a read that waits for its bytes."""


class Push(Record):
    """How to push a boot pack. connection: the mount's. pinned: an earlier start did it. busy: another is at it."""

    connection: int
    pinned: bool
    busy: bool


class Pushing:
    """What a pusher says to the server, on its client's connection."""

    def __init__(self, sock: socket.socket, image: int) -> None:
        self._sock = sock  # borrowed
        self._image = image

    def pin(self, objects: Sequence[int]) -> None:
        """Objects (descriptors, borrowed) of the boot pack that stay in memory, with their pages, as long as its image
        or its linger.
        """
        for start in range(0, len(objects), BATCH):
            send(self._sock, {"op": "pin", "image": self._image}, objects[start : start + BATCH])

    def frames(self, file: int, head_size: int, head_digest: bytes) -> None:
        """The boot pack's file (borrowed), which may still grow: reads that outrun the pusher are answered from it."""
        words = {"op": "frames", "image": self._image, "head_size": head_size, "head_digest": head_digest.hex()}
        send(self._sock, words, [file])

    def pushed(self) -> None:
        """This client is no longer at its boot pack."""
        send(self._sock, {"op": "pushed", "image": self._image})

    def prefetch(self, runs: bytes, budget: int, wait_s: float = 0) -> None:
        """Has what a start touches put into the store, and then the rest of the same files, when nobody waits for
        anything. runs: rows of object, offset and length, 48 bytes each. budget: bytes of packs that may be fetched.
        wait_s: it begins then.
        """
        fd = os.memfd_create("onesec-runs", os.MFD_CLOEXEC)
        with open(fd, "wb") as file:
            file.write(runs)
            file.flush()
            send(self._sock, {"op": "prefetch", "image": self._image, "budget": budget, "wait": wait_s}, [fd])


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
            self._metadata = erofs(file, name=name)
            ask(self._sock, {"op": "share", "image": self.number}, [self._metadata])
        return self._metadata

    def lowers(self, file: int, *, name: str) -> mount.Lowers:
        """The mounts that the image is made of, borrowed."""

        def fresh() -> tuple[int, int]:
            metadata = erofs(file, name=name)
            try:
                return metadata, self._mount_again()
            except BaseException:
                os.close(metadata)
                raise

        return mount.Lowers(self.metadata(file, name=name), self.objects, fresh)

    def _mount_again(self) -> int:
        """Another mount of the same object file system, owned by the caller."""
        from lazyfs.object_mount import mount_fuse  # old kernels alone pay for it

        _, fds = ask(self._sock, {"op": "connection"})
        try:
            return mount_fuse(fds[0])
        finally:
            for fd in fds:
                os.close(fd)

    def keep(self, target: str) -> None:
        """Hands the image and its lease to the server for as long as what is mounted on target stays mounted."""
        found = os.stat(target).st_dev
        ask(self._sock, {"op": "keep", "image": self.number, "device": f"{os.major(found)}:{os.minor(found)}"})
        self._lease.hand_over()

    def boot(self, pack: str, pipe: int = -1) -> Push:
        """Whether and how to push a boot pack. Its connection is the caller's.

        pipe (borrowed): one that only the pusher writes into, so that it is known when that dies before we do.
        """
        words = {"op": "boot", "image": self.number, "pack": pack}
        answer, fds = ask(self._sock, words, [pipe] if pipe >= 0 else [])
        if len(fds) != 1:
            raise ObjectServerError(f"object server: got {len(fds)} descriptors, want its connection")
        return Push(fds[0], bool(answer["pinned"]), bool(answer["busy"]))

    @property
    def pushing(self) -> Pushing:
        """For whoever pushes its boot pack."""
        return Pushing(self._sock, self.number)

    def trace(self) -> None:
        """Has reads recorded until this attachment ends."""
        ask(self._sock, {"op": "trace"})

    def touches(self) -> bytes:
        """What was read, in order, while reads were recorded (cext.ObjectServer.touches)."""
        return self._handed_out({"op": "touches"})

    def learn(self) -> None:
        """Has what is read kept in mind until this attachment ends, a megabyte at most."""
        ask(self._sock, {"op": "learn"})

    def learned(self) -> bytes:
        """What of the image was read meanwhile, in order: rows of object, offset and length, 48 bytes each."""
        return self._handed_out({"op": "learned", "image": self.number})

    def _handed_out(self, words: dict[str, Any]) -> bytes:
        fd = os.memfd_create("onesec-answer", os.MFD_CLOEXEC)
        with open(fd, "rb") as file:
            size = ask(self._sock, words, [fd])[0]["size"]
            file.seek(0)
            data = file.read()
        if len(data) != size:
            raise ObjectServerError(f"object server: got {len(data)} bytes of {words['op']}, want {size}")
        return data

    @property
    def connection(self) -> int:
        """Descriptor of the socket, borrowed: as long as one of it is open, the image is served."""
        return self._sock.fileno()

    def statistics(self) -> dict[str, Any]:
        """The server's counts (cext.ObjectServer.statistics), its images and its process."""
        return ask(self._sock, {"op": "statistics"})[0]

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
    cgroup: str | None = None,
) -> Attachment:
    """Has the image served by its domain's server. Raises UnsupportedError, ObjectServerError.

    metadata: what the mount of fs.erofs is shared under, the hexadecimal digest of its content; empty: not shared.
    linger_s: how long the server, with its page cache, outlives the attachment.
    deadline_s: after which a read whose bytes do not come fails. store: where chunks are kept that are read again.
    cgroup: the directory of the one where servers live, None for the caller's. All of a server that is started now, a
    running one keeps its own. profile: the server records what is read; its run directory has to be a new one. origin:
    where packs come from that are not here. known: what of it the caller can read already.
    """
    settings = ServerSettings(image.domain, deadline_s, store, profile, cgroup)
    with domain_directory(run_dir, root, image.domain) as directory:
        for _ in range(_TRIES):
            sock: socket.socket | None = connection(directory, settings)
            assert sock is not None
            try:
                number_of_origin = 0 if origin is None else _register(directory, sock, origin, known, cgroup)
                number, objects, shared = hand_over(sock, image, metadata, linger_s, number_of_origin)
                attachment = Attachment(sock, number, objects, shared, image.lease, number_of_origin)
                sock = None
                return attachment
            except ServerGone:
                continue
            finally:
                if sock is not None:
                    sock.close()
    raise ObjectServerError(f"{image.name}: the object server ends again and again", hint="its log says why")


class Prepared:
    """Servers that stay although they serve nothing yet, until `close`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepared(
    domain: str,
    *,
    run_dir: str | os.PathLike[str],
    root: str | os.PathLike[str],
    deadline_s: float = DEADLINE_S,
    store: StoreSettings | None = None,
    origin: Origin | None = None,
    known: Sequence[remote.Source] = (),
    cgroup: str | None = None,
) -> Prepared:
    """Finds or starts what `attach` will need for an image that is still on its way. Arguments: as there."""
    with domain_directory(run_dir, root, domain) as directory:
        for _ in range(_TRIES):
            sock = connection(directory, ServerSettings(domain, deadline_s, store, cgroup=cgroup))
            try:
                if origin is not None:
                    _register(directory, sock, origin, known, cgroup)
                return Prepared(sock)
            except ServerGone:
                sock.close()
            except BaseException:
                sock.close()
                raise
    raise ObjectServerError(f"{domain}: the object server ends again and again", hint="its log says why")


def statistics(domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a domain's server counts, or None if it does not run."""
    with domain_directory(run_dir, root, domain) as directory:
        sock = connect(directory)
        if sock is None:
            return None
        with sock:
            try:
                return ask(sock, {"op": "statistics"})[0]
            except ServerGone:
                return None


def sources(
    origin: int, domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str]
) -> Sequence[remote.Source]:
    """What blobs of an attached image's origin can be read from now. Waits until the renewer has got credentials."""
    from lazyfs import remote

    with domain_directory(run_dir, root, domain) as directory:
        return remote.sources(directory, origin)


def fetch_statistics(
    domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str]
) -> dict[str, Any] | None:
    """What a domain's fetcher counts, or None if there is none."""
    from lazyfs import remote

    with domain_directory(run_dir, root, domain) as directory:
        return remote.statistics(directory)


def _register(
    directory: int, sock: socket.socket, origin: Origin, known: Sequence[remote.Source], cgroup: str | None
) -> int:
    """The domain's fetcher knows the origin under this number."""
    from lazyfs import remote  # only images that are elsewhere need it

    return remote.register(directory, lambda words, fds: ask(sock, words, fds), origin, known, cgroup)
