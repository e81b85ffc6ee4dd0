"""The portable server: an image as one ordinary read-only FUSE mount, for hosts whose kernel cannot join EROFS and
objects itself. The only importer of pyfuse3.

Names and metadata come from fs.erofs, content from packs by way of the tables. Every chunk is hashed before a byte of
it is answered; one that is wrong, or not there, is EIO and a line in the log. Speed is not the aim, the kernel path has
it.

    holder (waits, then unmounts what is still mounted) ── forks ──► server (of root's mounts: nobody)

One trio task for each request. Directories and inodes are answered at once, from memory; a frame that is not in the
cache is read, decoded and verified in a worker thread, which shares nothing with the tasks but what it was given.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
import stat
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from mmap import PROT_READ, mmap

import pyfuse3
import trio

import cext
from cext._reference import blake3
from cext.errors import CorruptError, MissingError, OnesecError, UnsupportedError
from lazyfs.background import Client
from lazyfs.errors import MountError
from lazyfs.index.erofs import ErofsReader, Inode
from lazyfs.index.tables import Object, Part, TablesReader

SOURCE = "onesec"
NOBODY = 65534
FRAMES_CACHED = 128  # of at most 256 KiB

_ENDING = (signal.SIGTERM, signal.SIGINT)
_FOREVER_S = 365 * 86400.0  # the image never changes
_HIDDEN = b"trusted.overlay."
_OBJECTS_CACHED = 256
_INODE_OFFSET = 2  # over an inode's number in fs.erofs: 1 is the root's in FUSE, 0 means none


@dataclass(frozen=True, slots=True)
class TreeImage:
    """What is served. erofs, tables: of checked index blobs. packs: directory with each pack under its digest in hex.
    Descriptors are borrowed.
    """

    name: str
    erofs: int
    tables: int
    packs: int


# ---------------------------------------------------------------------- content


class Packs:
    """Frames of packs. Opens all that are there at once, before the server gives up its rights; owns what it opened."""

    def __init__(self, directory: int, tables: TablesReader) -> None:
        self._tables = tables
        self._open: dict[int, int] = {}
        for row, blob in enumerate(tables.blobs):
            with suppress(FileNotFoundError):  # an error for its readers alone
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._open[row] = os.open(blob.digest.hex(), flags, dir_fd=directory)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, row: int) -> bytes:
        """A decoded frame, not verified. Raises MissingError, CorruptError, OSError."""
        frame = self._tables.frame(row)
        fd = self._open.get(frame.blob)
        name = self._tables.blobs[frame.blob].digest.hex()
        if fd is None:
            raise MissingError(f"pack {name}: not there")
        packed = os.pread(fd, frame.packed, frame.offset)
        if len(packed) != frame.packed:
            raise CorruptError(f"pack {name}: got {len(packed)} bytes at {frame.offset}, want {frame.packed}")
        try:
            return cext.decompress_frame(packed, frame.plain)
        except CorruptError as error:
            raise CorruptError(f"pack {name}: frame at {frame.offset}: {error}") from error


@dataclass(slots=True)
class _Decoded:
    """A frame, and the places of it that were found to be what their ids say, by algorithm."""

    plain: bytes
    verified: set[tuple[int, Part]]


class Contents:
    """Verified bytes of objects."""

    def __init__(self, tables: TablesReader, packs: Packs, say: Callable[[str], None], *, frames: int) -> None:
        self._tables = tables
        self._packs = packs
        self._say = say
        self._frames: OrderedDict[int, _Decoded] = OrderedDict()
        self._frames_max = frames
        self._objects: OrderedDict[bytes, tuple[Object, list[int]]] = OrderedDict()

    async def read(self, identity: bytes, offset: int, size: int) -> bytes:
        """Up to size bytes, fewer only at the end. Raises FUSEError, after a line in the log."""
        found, starts = self._object(identity)
        end = min(offset + size, found.size)
        pieces = []
        row = bisect_right(starts, offset) - 1
        while offset < end:
            part = found.parts[row]
            first, last = offset - part.start, min(end - part.start, part.length)
            if part.frame is None:
                pieces.append(bytes(last - first))
            else:
                pieces.append((await self._chunk(found, part))[first:last])
            offset = part.start + last
            row += 1
        return b"".join(pieces)

    def _object(self, identity: bytes) -> tuple[Object, list[int]]:
        known = self._objects.get(identity)
        if known is None:
            found = self._tables.find(identity)
            if found is None:
                self._say(f"object {identity.hex()}: not in the tables")
                raise pyfuse3.FUSEError(errno.EIO)
            known = self._objects[identity] = (found, [part.start for part in found.parts])
            if len(self._objects) > _OBJECTS_CACHED:
                self._objects.popitem(last=False)
        else:
            self._objects.move_to_end(identity)
        return known

    async def _chunk(self, found: Object, part: Part) -> bytes:
        assert part.frame is not None
        decoded = self._frames.get(part.frame)
        # The same chunk stands at other places of other objects, where only its place in the frame is the same.
        place = (found.algorithm, part._replace(start=0))
        try:
            if decoded is None or place not in decoded.verified:
                plain = None if decoded is None else decoded.plain
                plain = await trio.to_thread.run_sync(self._verified, found.algorithm, part, plain)
                decoded = self._keep(part.frame, plain)
                decoded.verified.add(place)
        except (OnesecError, OSError) as error:
            self._say(f"object {found.id.hex()}: chunk {part.id.hex()}: {error}")
            raise pyfuse3.FUSEError(errno.EIO) from error
        return decoded.plain[part.at : part.at + part.length]

    def _verified(self, algorithm: int, part: Part, plain: bytes | None) -> bytes:
        """The frame of a chunk that is what its id says. Runs in a worker thread."""
        assert part.frame is not None
        if plain is None:
            plain = self._packs.read(part.frame)
        chunk = memoryview(plain)[part.at : part.at + part.length]
        got = blake3(chunk) if algorithm == 1 else hashlib.sha256(chunk).digest()
        if got != part.id:
            raise CorruptError(f"content: got {got.hex()}")
        return plain

    def _keep(self, row: int, plain: bytes) -> _Decoded:
        """The cached frame; bytes that somebody else put there meanwhile stay only if they are the same."""
        decoded = self._frames.get(row)
        if decoded is None or decoded.plain != plain:
            decoded = self._frames[row] = _Decoded(plain, set())
        self._frames.move_to_end(row)
        if len(self._frames) > self._frames_max:
            self._frames.popitem(last=False)
        return decoded


# ---------------------------------------------------------------------- the file system


class Tree(pyfuse3.Operations):
    """What the kernel asks. Handles are the inode numbers."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        erofs: ErofsReader,
        tables: TablesReader,
        contents: Contents,
        say: Callable[[str], None],
        ready: Callable[[], None],
    ) -> None:
        super().__init__()
        self._erofs = erofs
        self._tables = tables
        self._contents = contents
        self._say = say
        self._ready = ready

    def init(self) -> None:
        self._ready()

    # ------------------------------------------------------------------ inodes

    def _number(self, nid: int) -> pyfuse3.InodeT:
        return pyfuse3.ROOT_INODE if nid == self._erofs.root else pyfuse3.InodeT(nid + _INODE_OFFSET)

    def _inode(self, number: int) -> Inode:
        nid = self._erofs.root if number == pyfuse3.ROOT_INODE else number - _INODE_OFFSET
        try:
            return self._erofs.inode(nid)
        except CorruptError as error:
            raise self._broken(error) from error

    def _broken(self, error: CorruptError) -> pyfuse3.FUSEError:
        self._say(str(error))
        return pyfuse3.FUSEError(errno.EIO)

    def _names(self, inode: Inode) -> dict[bytes, int]:
        if not stat.S_ISDIR(inode.mode):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        try:
            return self._erofs.names(inode)
        except CorruptError as error:
            raise self._broken(error) from error

    def _xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        try:
            found = self._erofs.xattrs(inode)
        except CorruptError as error:
            raise self._broken(error) from error
        return {name: value for name, value in found.items() if not name.startswith(_HIDDEN)}

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = self._number(inode.nid)
        found.st_mode = pyfuse3.ModeT(inode.mode)
        found.st_nlink = inode.links
        found.st_uid, found.st_gid = inode.uid, inode.gid
        found.st_size = inode.size
        found.st_blocks = -(-inode.size // 512)
        found.st_rdev = os.makedev(*inode.device)
        found.st_mtime_ns = found.st_ctime_ns = found.st_atime_ns = inode.mtime_ns
        found.entry_timeout = found.attr_timeout = _FOREVER_S
        return found

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        nid = self._names(self._inode(parent_inode)).get(name)
        if nid is None:
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = pyfuse3.InodeT(0)  # the kernel remembers that there is nothing
            missing.entry_timeout = _FOREVER_S
            return missing
        return await self.getattr(self._number(nid), ctx)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Nothing is kept for an inode."""

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(self._inode(inode))

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        try:
            return pyfuse3.FileNameT(self._erofs.target(self._inode(inode)))
        except CorruptError as error:
            raise self._broken(error) from error

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        value = self._xattrs(self._inode(inode)).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name) for name in self._xattrs(self._inode(inode))]

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = -(-self._tables.total_size // 4096)
        found.f_files = self._erofs.inode_count
        found.f_namemax = 255
        return found

    # ------------------------------------------------------------------ directories and files

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        self._names(self._inode(inode))
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        names = list(self._names(self._inode(fh)).items())
        for at in range(start_id, len(names)):
            name, nid = names[at]
            inode = self._inode(self._number(nid))
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self._attributes(inode), at + 1):
                return

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        inode = self._inode(fh)
        try:
            identity = self._erofs.object(inode)
        except CorruptError as error:
            raise self._broken(error) from error
        return b"" if identity is None else await self._contents.read(identity, off, size)


# ---------------------------------------------------------------------- serving


def serve_portable(
    image: TreeImage,
    directory: str,
    *,
    client: Client,
    log: int = 2,
    frames: int = FRAMES_CACHED,
) -> None:
    """Mounts an image on a directory and serves it until it is unmounted. SIGTERM, SIGINT and a client that does not
    hear that the mount is ready unmount it.

    log: descriptor for lines about what could not be read. Raises MountError when it cannot be mounted, CorruptError
    for broken index blobs.
    """

    def say(text: str) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with suppress(OSError):  # a full disk stops nobody
            os.write(log, f"{moment} image {image.name}: {text}\n".encode(errors="backslashreplace"))

    _raise_descriptor_limit()
    with mmap(image.erofs, 0, prot=PROT_READ) as erofs_bytes:
        erofs = ErofsReader(erofs_bytes)
        tables = TablesReader(_whole(image.tables))
        packs = Packs(image.packs, tables)
        try:
            contents = Contents(tables, packs, say, frames=frames)
            _serve(Tree(erofs, tables, contents, say, client.ready), directory, client)
        finally:
            packs.close()


def _raise_descriptor_limit() -> None:
    """A descriptor for each pack."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _whole(fd: int) -> bytes:
    with open(fd, "rb", closefd=False, buffering=0) as file:
        file.seek(0)
        return file.read()


def _serve(tree: Tree, directory: str, client: Client) -> None:
    _check_machine()
    options = {f"fsname={SOURCE}", f"subtype={SOURCE}", "ro", "nosuid", "nodev"}
    if os.geteuid() == 0:
        # Everybody sees the mount, each with the rights that the image's modes give. Another user's mount is seen by
        # that user alone, who could read every file of the layout before: modes and owners are only shown.
        options |= {"allow_other", "default_permissions"}
    try:
        pyfuse3.init(tree, directory, options)
    except RuntimeError as error:
        raise MountError(
            f"{directory}: portable mount: {error}", hint="is the directory yours to mount on? The log says more"
        ) from error
    try:
        _hold(client)
    finally:
        pyfuse3.close()  # unmounts what is still mounted


def _hold(client: Client) -> None:
    """Has another process serve, one without privileges, and waits for its end. So there is somebody left to unmount,
    whatever happens to the server, and with the right to do it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # none comes while it is not clear whose it is
    server = os.fork()
    if server == 0:
        status = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            trio.run(_main, client)
            status = 0
        except BaseException as error:
            client.failed(error)
        finally:
            os._exit(status)
    client.close()
    for number in _ENDING:
        signal.signal(number, lambda number, _: os.kill(server, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.waitpid(server, 0)


def _check_machine() -> None:
    """What libfuse would say in words of its own, on stderr."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = (
            "it is everybody's to open where udev runs; as root: chmod 666 /dev/fuse"
            if isinstance(error, PermissionError)
            else "load the fuse module, or give the container /dev/fuse"
        )
        raise UnsupportedError(f"/dev/fuse: {os.strerror(error.errno or 0).lower()}", hint=hint) from error
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UnsupportedError("fusermount3: not installed", hint="apt-get install fuse3")


async def _main(client: Client) -> None:
    with trio.open_signal_receiver(*_ENDING) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, signals)
            nursery.start_soon(_end_unheard, client)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()


async def _end_on_signal(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        pyfuse3.terminate()
        return


async def _end_unheard(client: Client) -> None:
    await trio.lowlevel.wait_readable(client.fd)
    if not client.heard():
        pyfuse3.terminate()
    client.close()
