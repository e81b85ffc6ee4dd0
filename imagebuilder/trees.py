"""A directory tree on this host becomes a layer, as it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import cext
from cext.errors import CorruptError, LimitError
from imagebuilder.layer import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, SYMLINK, LayerWriter, Workshop, entry
from lazyfs.index.model import Entry, Kind, xattr_allowed
from registry.model import LayerRecord

_SMALL = 64 << 10  # files up to this are read here, larger ones by the ingest's own threads
_DEPTH = 250  # directories below each other in a tree on disk; each costs three calls and a descriptor


def layer_from_tree(workshop: Workshop, path: str | bytes, *, note: Callable[[str], None] | None = None) -> LayerRecord:
    """A directory tree as it is: owners, modes, times, xattrs, hard links, holes. Symlinks are kept, never followed.

    Sockets are left out, with a note. The root's own entry is the directory's.
    """

    def produce(ingest: cext.Ingest) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            index, notes = ingest.add_tree(fd)
        finally:
            os.close(fd)
        if note is not None:
            for one in notes:
                note(one)
        return index

    return workshop.make_indexed(produce)


def join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def names_in(fd: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(fd))


def times(found: os.stat_result) -> tuple[int, int]:
    return divmod(found.st_mtime_ns, 1_000_000_000)


def by_name(directory: int, name: bytes) -> bytes:
    """A path to something that can't be opened; resolves nothing but the descriptor."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def read_xattrs(where: int | bytes) -> dict[str, bytes]:
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as error:
        if error.errno == 95:  # ENOTSUP: the file system has none
            return {}
        raise
    return {name: os.getxattr(where, name, follow_symlinks=follow) for name in names}


def kept(xattrs: dict[str, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    named = ((os.fsencode(name), value) for name, value in xattrs.items())
    return tuple(sorted((name, value) for name, value in named if xattr_allowed(name)))


def check_depth(path: bytes) -> None:
    if path.count(b"/") >= _DEPTH:
        raise LimitError(f"{os.fsdecode(path[:60])}…: directories deeper than {_DEPTH}")


class Walk:
    """Adds what stands in a directory; every step goes through a directory descriptor.

    Whole trees take the fast road, cext.Ingest.add_tree; this is what it is tested against, and what a walk that looks
    at more than the tree (imagebuilder/upper.py) is made of.
    """

    def __init__(self, layer: LayerWriter, note: Callable[[str], None] | None) -> None:
        self._layer = layer
        self._note = note or (lambda _: None)
        self._first: dict[tuple[int, int], bytes] = {}  # first name of an inode that has more

    def directory(self, fd: int, path: bytes) -> None:
        check_depth(path)
        found = os.fstat(fd)
        self._layer.add(path, self.plain(found, DIRECTORY, kept(read_xattrs(fd))))
        for name in names_in(fd):
            self.anything(fd, name, join(path, name))

    def plain(
        self, found: os.stat_result, kind: Kind, xattrs: tuple[tuple[bytes, bytes], ...], **more: object
    ) -> Entry:
        return entry(
            kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime=times(found),
            xattrs=xattrs,
            **more,
        )

    def anything(self, directory: int, name: bytes, path: bytes) -> None:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                self.directory(fd, path)
            finally:
                os.close(fd)
            return
        if found.st_nlink > 1:
            first = self._first.setdefault((found.st_dev, found.st_ino), path)
            if first != path and self._layer.link(path, first):
                return
        if stat.S_ISREG(found.st_mode):
            self._file(directory, name, path)
        elif stat.S_ISSOCK(found.st_mode):
            self._note(f"{os.fsdecode(path)}: a socket, left out")
        else:
            self.special(directory, name, path, found)

    def special(self, directory: int, name: bytes, path: bytes, found: os.stat_result) -> None:
        xattrs = kept(read_xattrs(by_name(directory, name)))
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(name, dir_fd=directory)
            self._layer.add(path, self.plain(found, SYMLINK, xattrs, size=len(target), target=target))
        elif stat.S_ISFIFO(found.st_mode):
            self._layer.add(path, self.plain(found, FIFO, xattrs))
        else:
            kind = CHARACTER if stat.S_ISCHR(found.st_mode) else BLOCK
            device = (os.major(found.st_rdev), os.minor(found.st_rdev))
            if kind is CHARACTER and device == (0, 0):
                self._note(f"{os.fsdecode(path)}: character device 0:0, left out: overlayfs reads it as a whiteout")
                return
            self._layer.add(path, self.plain(found, kind, xattrs, device=device))

    def _file(self, directory: int, name: bytes, path: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(fd)  # of what was opened, which may have been swapped since the stat
            if not stat.S_ISREG(found.st_mode):
                raise CorruptError(f"{os.fsdecode(path)}: changed while it was read")
            made = self.plain(found, FILE, kept(read_xattrs(fd)))
            if found.st_size > _SMALL:
                self._layer.add(path, made, fd, size=found.st_size)
                return
            data = os.pread(fd, _SMALL + 1, 0)
            if len(data) != found.st_size:
                raise CorruptError(f"{os.fsdecode(path)}: got {len(data)} bytes, want {found.st_size}")
            self._layer.add(path, made, data)
        finally:
            os.close(fd)
