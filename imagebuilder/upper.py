"""What a command changed: the upper directory of an overlay becomes a layer."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from cext.errors import CorruptError
from imagebuilder.layer import DIRECTORY, FILE, OPAQUE, WHITEOUT, LayerWriter, Workshop, entry
from imagebuilder.trees import Walk, by_name, check_depth, join, kept, names_in, read_xattrs
from lazyfs.index.model import Entry
from registry.model import Descriptor, LayerRecord

_METACOPY = "trusted.overlay.metacopy"
_REDIRECT = "trusted.overlay.redirect"
_OPAQUE = "trusted.overlay.opaque"
_INDEXED = "trusted.overlay.nlink"  # on what was copied up and has further names below


class Base(Protocol):
    """The merged tree that the command ran on."""

    def lookup(self, path: bytes) -> Entry | None:
        """The entry at a path from the root, with its parts; symlinks are not followed."""

    def names(self, path: bytes) -> Iterable[bytes]:
        """What stands in the directory at path."""

    def walk(self) -> Iterator[tuple[bytes, Entry]]:
        """Every path with its entry."""


def layer_from_overlay_upper(
    workshop: Workshop,
    upper: str | bytes,
    merged: str | bytes,
    base: Base,
    *,
    packs: Iterable[Descriptor] = (),
    note: Callable[[str], None] | None = None,
) -> LayerRecord:
    """The upper directory of an overlay, complete in itself: files that overlayfs left without data take theirs from
    base, renamed directories are written out. merged: where the overlay shows its whole tree. packs: those of the base.

    The root's own entry stays the base's: overlayfs shows the upper directory's, which the sandbox made.
    """

    def fill(layer: LayerWriter) -> None:
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            walk = _UpperWalk(layer, base, os.fsencode(merged), note)
            walk.children(fd, b"", b"", whole=False)
            walk.link_names_below()
        finally:
            os.close(fd)

    return workshop.make(fill, packs=packs)


class _UpperWalk(Walk):
    """lower: where the base has what lies under a directory, None if nothing of it shows through.

    whole: the layer must say everything itself, because a parent is opaque in it.
    """

    def __init__(self, layer: LayerWriter, base: Base, merged: bytes, note: Callable[[str], None] | None) -> None:
        super().__init__(layer, note)
        self._base = base
        self._merged = merged
        self._changed: dict[tuple[int, int], bytes] = {}  # inode with names below -> one of upper
        self._copied: list[bytes] = []  # linked names that a renamed directory still has of the base
        self._over: set[bytes] = set()  # paths at which, and below which, nothing of the base shows through

    def children(self, fd: int, path: bytes, lower: bytes | None, *, whole: bool) -> None:
        check_depth(path)
        names = names_in(fd)
        for name in names:
            self._child(fd, name, join(path, name), None if lower is None else lower, whole=whole)
        if whole and lower is not None:
            for name in sorted(set(self._base.names(lower)) - set(names)):
                self._copy(join(path, name), join(lower, name))

    def _child(self, directory: int, name: bytes, path: bytes, lower: bytes | None, *, whole: bool) -> None:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._directory(directory, name, path, None if lower is None else join(lower, name), whole=whole)
            return
        self._over.add(path)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            if not whole:
                self._layer.add(path, entry(WHITEOUT))
            return
        if found.st_nlink > 1 and _INDEXED in read_xattrs(by_name(directory, name)):
            inode = self._inode(path)
            if inode is not None:
                self._changed.setdefault(inode, path)
        if stat.S_ISREG(found.st_mode) and _METACOPY in (xattrs := read_xattrs(by_name(directory, name))):
            self._metacopy(found, xattrs, path, None if lower is None else join(lower, name), lower)
        else:
            self.anything(directory, name, path)

    def _directory(self, directory: int, name: bytes, path: bytes, lower: bytes | None, *, whole: bool) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            xattrs = read_xattrs(fd)
            flags = 0
            if xattrs.get(_OPAQUE) == b"y":
                lower, flags = None, OPAQUE
            elif (redirect := xattrs.get(_REDIRECT)) is not None:
                lower, flags, whole = self._redirected(redirect, lower, path), OPAQUE, True
            if flags:
                self._over.add(path)
            if lower is not None and ((below := self._base.lookup(lower)) is None or below.kind is not DIRECTORY):
                lower = None
            self._layer.add(path, self.plain(os.fstat(fd), DIRECTORY, kept(xattrs), flags=flags))
            self.children(fd, path, lower, whole=whole)
        finally:
            os.close(fd)

    @staticmethod
    def _redirected(redirect: bytes, lower: bytes | None, path: bytes) -> bytes:
        """From the root, or a name beside the lower one."""
        if redirect.startswith(b"/"):
            target = redirect.strip(b"/")
        else:
            target = join((lower or path).rpartition(b"/")[0], redirect)
        if any(part in (b"", b".", b"..") for part in target.split(b"/")):
            raise CorruptError(f"{os.fsdecode(path)}: overlay redirect {redirect[:100]!r} is no path in the base")
        return target

    def _metacopy(
        self, found: os.stat_result, xattrs: dict[str, bytes], path: bytes, lower: bytes | None, parent: bytes | None
    ) -> None:
        if found.st_nlink > 1:
            first = self._first.setdefault((found.st_dev, found.st_ino), path)
            if first != path and self._layer.link(path, first):
                return
        if (redirect := xattrs.get(_REDIRECT)) is not None:
            lower = self._redirected(redirect, path if parent is None else join(parent, b"-"), path)
        data = None if lower is None else self._base.lookup(lower)
        if data is None or data.kind is not FILE:
            raise CorruptError(f"{os.fsdecode(path)}: its data is not in the base")
        if data.size != found.st_size:
            raise CorruptError(
                f"{os.fsdecode(path)}: got {found.st_size} bytes, but its data in the base has {data.size}"
            )
        made = self.plain(found, FILE, kept(xattrs), size=data.size, algorithm=data.algorithm, parts=data.parts)
        self._layer.add_known(path, made)

    def _copy(self, path: bytes, lower: bytes) -> None:
        """What a renamed directory still has of the base."""
        check_depth(path)
        found = self._base.lookup(lower)
        if found is None:
            raise CorruptError(f"{os.fsdecode(lower)}: not in the base")
        self._layer.add_known(path, found)
        if found.link_group:
            self._copied.append(path)
        if found.kind is DIRECTORY:
            for name in sorted(self._base.names(lower)):
                self._copy(join(path, name), join(lower, name))

    def link_names_below(self) -> None:
        """What was changed under one of its names was changed under all: the others follow, although overlayfs has them
        in its index and not in the upper directory. Which inode a name has is asked of the overlay: a file that was
        renamed after its change, perhaps over a name of another, cannot be told by its name.
        """
        if not self._changed:
            return
        names = [path for path, found in self._base.walk() if found.link_group and not self._covered(path)]
        for path in (*names, *self._copied):
            inode = self._inode(path)
            if inode is not None and inode in self._changed:
                self._layer.link(path, self._changed[inode])

    def _inode(self, path: bytes) -> tuple[int, int] | None:
        """As the overlay shows it. All that leads to path is known to be directories."""
        try:
            found = os.stat(join(self._merged, path), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def _covered(self, path: bytes) -> bool:
        parts = path.split(b"/")
        return any(b"/".join(parts[:count]) in self._over for count in range(1, len(parts) + 1))
