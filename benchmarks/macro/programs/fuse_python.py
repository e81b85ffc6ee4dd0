"""A baseline to read beside ours: the same image and packs, served by fuse-python as one ordinary FUSE mount.

    python -m benchmarks.macro.programs.fuse_python ROOT REF DIR      serves in the foreground until it is unmounted

What a careful Python author would write: names and attributes from fs.erofs, cached for ever by the kernel; frames
decoded and verified, the last few hundred kept. The answering is synchronous, as the library has it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from bisect import bisect_right
from collections import OrderedDict
from functools import lru_cache
from mmap import PROT_READ, mmap
from typing import Any

import fuse

import cext
from lazyfs.index.erofs import ErofsReader, Inode
from lazyfs.index.tables import Object, TablesReader
from registry.image import open_image
from registry.layout import Layout
from registry.reference import Reference

_FRAMES = 256  # of at most 256 KiB
_FOREVER = 365 * 86400

fuse.fuse_python_api = (0, 2)


class Content:
    """Verified bytes of objects. packs: the directory with each pack under its digest in hex, borrowed."""

    def __init__(self, tables: TablesReader, packs: int) -> None:
        self._tables = tables
        self._packs = packs
        self._open: dict[int, int] = {}
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()

    @lru_cache(maxsize=1024)  # noqa: B019  one instance lives as long as the process
    def _object(self, identity: bytes) -> tuple[Object, list[int]]:
        found = self._tables.find(identity)
        if found is None:
            raise OSError(errno.EIO, "not in the tables")
        return found, [part.start for part in found.parts]

    def read(self, identity: bytes, offset: int, size: int) -> bytes:
        found, starts = self._object(identity)
        end = min(offset + size, found.size)
        pieces = []
        row = bisect_right(starts, offset) - 1
        while offset < end:
            part = found.parts[row]
            first, last = offset - part.start, min(end - part.start, part.length)
            data = bytes(part.length) if part.frame is None else self._chunk(part.id, part.frame, part.at, part.length)
            pieces.append(data[first:last])
            offset = part.start + last
            row += 1
        return b"".join(pieces)

    def _chunk(self, identity: bytes, row: int, at: int, length: int) -> bytes:
        data = self._chunks.get(identity)
        if data is None:
            frame = self._tables.frame(row)
            fd = self._open.get(frame.blob)
            if fd is None:
                name = self._tables.blobs[frame.blob].digest.hex()
                fd = self._open[frame.blob] = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._packs)
            plain = cext.decompress_frame(os.pread(fd, frame.packed, frame.offset), frame.plain)
            data = plain[at : at + length]
            if cext.blake3(data) != identity:
                raise OSError(errno.EIO, "content is not what its id says")
            self._chunks[identity] = data
            if len(self._chunks) > _FRAMES:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(identity)
        return data


class Server(fuse.Fuse):  # type: ignore[misc]
    """Paths, as the high-level interface of libfuse 2 has them."""

    def __init__(self, erofs: ErofsReader, content: Content, **more: Any) -> None:
        super().__init__(**more)
        self._erofs = erofs
        self._content = content

    @lru_cache(maxsize=1 << 20)  # noqa: B019
    def _inode(self, path: str) -> Inode | None:
        if path == "/":
            return self._erofs.inode(self._erofs.root)
        parent, _, name = path.rpartition("/")
        above = self._inode(parent or "/")
        if above is None or not stat.S_ISDIR(above.mode):
            return None
        number = self._erofs.names(above).get(os.fsencode(name))
        return None if number is None else self._erofs.inode(number)

    def getattr(self, path: str) -> Any:
        inode = self._inode(path)
        if inode is None:
            return -errno.ENOENT
        found = fuse.Stat()
        found.st_mode, found.st_nlink, found.st_size = inode.mode, inode.links, inode.size
        found.st_uid, found.st_gid, found.st_ino = inode.uid, inode.gid, inode.nid + 2
        found.st_mtime = found.st_ctime = found.st_atime = inode.mtime_ns // 1_000_000_000
        return found

    def readlink(self, path: str) -> Any:
        inode = self._inode(path)
        return -errno.ENOENT if inode is None else os.fsdecode(self._erofs.target(inode))

    def readdir(self, path: str, offset: int) -> Any:
        inode = self._inode(path)
        if inode is not None:
            for name in (b".", b"..", *self._erofs.names(inode)):
                yield fuse.Direntry(os.fsdecode(name))

    def open(self, path: str, flags: int) -> Any:
        return -errno.EROFS if flags & (os.O_WRONLY | os.O_RDWR) else None

    def read(self, path: str, size: int, offset: int) -> Any:
        inode = self._inode(path)
        if inode is None:
            return -errno.ENOENT
        identity = self._erofs.object(inode)
        return b"" if identity is None else self._content.read(identity, offset, size)


def main() -> None:
    root, reference, directory = sys.argv[1:]
    with open_image(Layout.open(root), Reference.parse(reference)) as image:
        erofs = ErofsReader(mmap(image.erofs, 0, prot=PROT_READ))
        with mmap(image.tables, 0, prot=PROT_READ) as tables:
            server = Server(erofs, Content(TablesReader(tables[:]), image.packs), dash_s_do="setsingle")
            server.multithreaded = False
            options = f"ro,kernel_cache,attr_timeout={_FOREVER},entry_timeout={_FOREVER},max_read=131072,fsname=onesec"
            server.parse(["-f", "-s", "-o", options, directory], errex=1)
            server.main()


if __name__ == "__main__":
    main()
