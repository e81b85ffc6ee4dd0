"""Trees, archives and wheels become layers: content through cext.Ingest into packs, names into a layer index.

    with Workshop(layout) as workshop:
        record = workshop.make(lambda layer: layer.add(b"etc/motd", entry, b"hello"))

The same entries in the same order give the same bytes. Call it all inside `Layout.writing`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import cext
from cext.errors import CorruptError, LimitError
from lazyfs.index.layer import LayerBuilder
from lazyfs.index.model import Entry, Kind, xattr_allowed
from lazyfs.merge import merge
from registry import image
from registry.layout import Layout
from registry.model import LAYER, PACK, Descriptor, Digest, LayerRecord, Manifest

FILE, DIRECTORY, SYMLINK, CHARACTER, BLOCK, FIFO, WHITEOUT, LINK = (Kind(number) for number in (1, 2, 3, 4, 5, 6, 8, 9))
OPAQUE, IMPLICIT = 1, 2  # flags of docs/format.md §4
BLAKE3_CHUNKS = 1  # algorithm of objects that we make

_SMALL = 64 << 10  # files up to this are read here, larger ones by the ingest's own threads
_DEPTH = 250  # directories below each other in a tree on disk; each costs three calls and a descriptor
_METACOPY = "trusted.overlay.metacopy"
_REDIRECT = "trusted.overlay.redirect"
_OPAQUE = "trusted.overlay.opaque"
_INDEXED = "trusted.overlay.nlink"  # on what was copied up and has further names below

Content = bytes | int | Iterable[bytes | int]
"""Bytes; a descriptor of a regular file, which may be closed after the call; or steps, where a number is so many zeros.
"""


def entry(
    kind: Kind, *, mode: int = 0, uid: int = 0, gid: int = 0, mtime: tuple[int, int] = (0, 0), **more: object
) -> Entry:
    """An Entry with everything that was not said empty. Its name comes from the path that it is added under."""
    values: dict[str, object] = {
        "kind": kind,
        "name": b"",
        "mode": mode,
        "uid": uid,
        "gid": gid,
        "mtime_sec": mtime[0],
        "mtime_nsec": mtime[1],
        "xattrs": (),
        "size": 0,
        "algorithm": 0,
        "parts": b"",
        "target": b"",
        "device": (0, 0),
        "link_group": 0,
        "flags": 0,
        **more,
    }
    return Entry(**values)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Row:
    path: bytes
    entry: Entry
    ticket: int | None


class LayerWriter:
    """One layer while it is filled. What is added later under the same path wins."""

    def __init__(self, ingest: cext.Ingest) -> None:
        self._ingest = ingest
        self._rows: list[_Row] = []
        self._latest: dict[bytes, _Row] = {}
        self._groups = 0

    def add(self, path: bytes, made: Entry, content: Content | None = None, *, size: int | None = None) -> None:
        """content: of a file. size: of the descriptor's file, which must not change while it is read."""
        ticket = None
        if made.kind is FILE:
            if content is None:
                raise ValueError(f"{path!r}: a file without content")
            ticket = self._take(content, size)
        self._append(_Row(path, made, ticket))

    def _take(self, content: Content, size: int | None) -> int:
        if isinstance(content, bytes):
            return self._ingest.add_bytes(content)
        if isinstance(content, int):
            return self._ingest.add_file(content, os.fstat(content).st_size if size is None else size)
        ticket = self._ingest.begin()
        for step in content:
            if isinstance(step, int):
                self._ingest.zeros(step)
            else:
                self._ingest.update(step)
        self._ingest.end()
        return ticket

    def add_known(self, path: bytes, made: Entry) -> None:
        """An entry whose chunks are in the repository already, with its parts."""
        self._append(_Row(path, made, None))

    def _append(self, row: _Row) -> None:
        self._rows.append(row)
        self._latest[row.path] = row

    def link(self, path: bytes, target: bytes) -> bool:
        """Makes path one more name of the inode at target. False if this layer has no target that can be linked to."""
        row = self._latest.get(target)
        if row is None or row.entry.kind in (DIRECTORY, WHITEOUT):
            return False
        if path == target:
            return True
        if row.entry.kind is not LINK and not row.entry.link_group:
            self._groups += 1  # LayerBuilder gives groups their final numbers
            row.entry = replace(row.entry, link_group=self._groups)
        self._append(_Row(path, row.entry, row.ticket))
        return True

    def get(self, path: bytes) -> Entry | None:
        row = self._latest.get(path)
        return row.entry if row else None

    def set_flags(self, path: bytes, flags: int) -> None:
        row = self._latest[path]
        row.entry = replace(row.entry, flags=row.entry.flags | flags)

    def paths(self) -> Iterable[bytes]:
        return self._latest.keys()

    def encode(self) -> bytes:
        """The layer index; waits for the content to be hashed."""
        builder = LayerBuilder()
        for row in self._rows:
            made = row.entry
            if row.ticket is not None:
                size, parts = self._ingest.parts(row.ticket)
                made = _with_parts(made, size, parts)
            builder.add(row.path, made)
        return builder.finish()


def _with_parts(made: Entry, size: int, parts: bytes) -> Entry:
    """As dataclasses.replace, in a third of the time: it comes once for each file, after the workers have finished."""
    return Entry(
        kind=made.kind,
        name=made.name,
        mode=made.mode,
        uid=made.uid,
        gid=made.gid,
        mtime_sec=made.mtime_sec,
        mtime_nsec=made.mtime_nsec,
        xattrs=made.xattrs,
        size=size,
        algorithm=BLAKE3_CHUNKS if parts else 0,
        parts=parts,
        link_group=made.link_group,
    )


class Workshop:
    """Makes layers in a layout; keeps the chunk map open between them. One per process."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._stack = ExitStack()
        self._chunks: cext.ChunkMap | None = None

    def __enter__(self) -> Workshop:
        self._chunks = self.layout.chunk_map()
        self._stack.callback(self._chunks.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._chunks = None

    @property
    def chunks(self) -> cext.ChunkMap:
        if self._chunks is None:
            raise ValueError("the workshop is not open")
        return self._chunks

    def make(self, fill: Callable[[LayerWriter], None], *, packs: Iterable[Descriptor] = ()) -> LayerRecord:
        """packs: where the chunks of entries added by `add_known` live."""
        layout, chunks = self.layout, self.chunks
        with layout.staging() as staging, cext.Ingest(staging.fd, known=chunks) as ingest:
            writer = LayerWriter(ingest)
            fill(writer)
            index = writer.encode()
            result = ingest.finish()
            used = {pack.digest: pack for pack in packs}
            for made in result.packs:
                digest = Digest.from_bytes(made.digest)
                staging.adopt(made.name, digest)
                used[digest] = Descriptor(PACK, digest, made.size)
            layout.sync()
            for made in result.packs:  # only now: the map never names a pack that a crash can take away
                chunks.add_pack(made.digest, made.table)
            for known in result.known_packs:
                digest = Digest.from_bytes(known)
                used[digest] = image.pack_descriptor(layout, digest)
            return LayerRecord(
                image.put_index(layout, index, LAYER), tuple(sorted(used.values(), key=lambda pack: pack.digest))
            )


def assemble_image(
    layout: Layout,
    layers: Sequence[LayerRecord],
    config: bytes,
    *,
    finish: Callable[[Manifest, bytes], Manifest] | None = None,
) -> Manifest:
    """Merges layers (bottom first) into an image and stores its manifest; tags nothing. config: raw JSON.

    finish: gets the manifest and the merged tree, gives the manifest that counts.
    """
    tree = merge([image.read_decoded(layout, layer.index) for layer in layers])
    packs: dict[Digest, Descriptor] = {}
    for layer in layers:
        for pack in layer.packs:
            packs.setdefault(pack.digest, pack)
    listed = [(pack.digest.raw, pack.size, _table(layout, pack)) for pack in packs.values()]
    erofs, tables = cext.encode_image(tree, listed)
    del listed
    manifest = image.manifest_for_image(
        layout, config=config, erofs=erofs, tables=tables, layers=[layer.index for layer in layers]
    )
    del erofs, tables
    return manifest if finish is None else finish(manifest, tree)


def _table(layout: Layout, pack: Descriptor) -> bytes:
    fd = layout.open_blob(pack.digest)
    try:
        return cext.pack_table(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------- trees on disk


def layer_from_tree(workshop: Workshop, path: str | bytes, *, note: Callable[[str], None] | None = None) -> LayerRecord:
    """A directory tree as it is: owners, modes, times, xattrs, hard links, holes. Symlinks are kept, never followed.

    Sockets are left out, with a note. The root's own entry is the directory's.
    """

    def fill(layer: LayerWriter) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _Walk(layer, note).directory(fd, b"")
        finally:
            os.close(fd)

    return workshop.make(fill)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _names(fd: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(fd))


def _times(found: os.stat_result) -> tuple[int, int]:
    return divmod(found.st_mtime_ns, 1_000_000_000)


def _by_name(directory: int, name: bytes) -> bytes:
    """A path to something that can't be opened; resolves nothing but the descriptor."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def _read_xattrs(where: int | bytes) -> dict[str, bytes]:
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as error:
        if error.errno == 95:  # ENOTSUP: the file system has none
            return {}
        raise
    return {name: os.getxattr(where, name, follow_symlinks=follow) for name in names}


def _kept(xattrs: dict[str, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    named = ((os.fsencode(name), value) for name, value in xattrs.items())
    return tuple(sorted((name, value) for name, value in named if xattr_allowed(name)))


def _check_depth(path: bytes) -> None:
    if path.count(b"/") >= _DEPTH:
        raise LimitError(f"{os.fsdecode(path[:60])}…: directories deeper than {_DEPTH}")


class _Walk:
    """Adds what stands in a directory; every step goes through a directory descriptor."""

    def __init__(self, layer: LayerWriter, note: Callable[[str], None] | None) -> None:
        self._layer = layer
        self._note = note or (lambda _: None)
        self._first: dict[tuple[int, int], bytes] = {}  # first name of an inode that has more

    def directory(self, fd: int, path: bytes) -> None:
        _check_depth(path)
        found = os.fstat(fd)
        self._layer.add(path, self.plain(found, DIRECTORY, _kept(_read_xattrs(fd))))
        for name in _names(fd):
            self.anything(fd, name, _join(path, name))

    def plain(
        self, found: os.stat_result, kind: Kind, xattrs: tuple[tuple[bytes, bytes], ...], **more: object
    ) -> Entry:
        return entry(
            kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime=_times(found),
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
        xattrs = _kept(_read_xattrs(_by_name(directory, name)))
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
            made = self.plain(found, FILE, _kept(_read_xattrs(fd)))
            if found.st_size > _SMALL:
                self._layer.add(path, made, fd, size=found.st_size)
                return
            data = os.pread(fd, _SMALL + 1, 0)
            if len(data) != found.st_size:
                raise CorruptError(f"{os.fsdecode(path)}: got {len(data)} bytes, want {found.st_size}")
            self._layer.add(path, made, data)
        finally:
            os.close(fd)


# ---------------------------------------------------------------------- what a command changed


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
    base: Base,
    *,
    packs: Iterable[Descriptor] = (),
    note: Callable[[str], None] | None = None,
) -> LayerRecord:
    """The upper directory of an overlay, complete in itself: files that overlayfs left without data take theirs from
    base, renamed directories are written out. packs: those of the base.

    The root's own entry stays the base's: overlayfs shows the upper directory's, which the sandbox made.
    """

    def fill(layer: LayerWriter) -> None:
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            walk = _UpperWalk(layer, base, note)
            walk.children(fd, b"", b"", whole=False)
            walk.link_names_below()
        finally:
            os.close(fd)

    return workshop.make(fill, packs=packs)


class _UpperWalk(_Walk):
    """lower: where the base has what lies under a directory, None if nothing of it shows through.

    whole: the layer must say everything itself, because a parent is opaque in it.
    """

    def __init__(self, layer: LayerWriter, base: Base, note: Callable[[str], None] | None) -> None:
        super().__init__(layer, note)
        self._base = base
        self._changed: dict[int, bytes] = {}  # link group of the base -> a name of it in the upper directory
        self._copied: list[tuple[bytes, int]] = []  # names that a renamed directory still has of the base, with groups
        self._over: set[bytes] = set()  # paths at which, and below which, nothing of the base shows through

    def children(self, fd: int, path: bytes, lower: bytes | None, *, whole: bool) -> None:
        _check_depth(path)
        names = _names(fd)
        for name in names:
            self._child(fd, name, _join(path, name), None if lower is None else lower, whole=whole)
        if whole and lower is not None:
            for name in sorted(set(self._base.names(lower)) - set(names)):
                self._copy(_join(path, name), _join(lower, name))

    def _child(self, directory: int, name: bytes, path: bytes, lower: bytes | None, *, whole: bool) -> None:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._directory(directory, name, path, None if lower is None else _join(lower, name), whole=whole)
            return
        self._over.add(path)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            if not whole:
                self._layer.add(path, entry(WHITEOUT))
            return
        if lower is not None and found.st_nlink > 1 and _INDEXED in _read_xattrs(_by_name(directory, name)):
            below = self._base.lookup(_join(lower, name))
            if below is not None and below.link_group:
                self._changed.setdefault(below.link_group, path)
        if stat.S_ISREG(found.st_mode) and _METACOPY in (xattrs := _read_xattrs(_by_name(directory, name))):
            self._metacopy(found, xattrs, path, None if lower is None else _join(lower, name), lower)
        else:
            self.anything(directory, name, path)

    def _directory(self, directory: int, name: bytes, path: bytes, lower: bytes | None, *, whole: bool) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            xattrs = _read_xattrs(fd)
            flags = 0
            if xattrs.get(_OPAQUE) == b"y":
                lower, flags = None, OPAQUE
            elif (redirect := xattrs.get(_REDIRECT)) is not None:
                lower, flags, whole = self._redirected(redirect, lower, path), OPAQUE, True
            if flags:
                self._over.add(path)
            if lower is not None and ((below := self._base.lookup(lower)) is None or below.kind is not DIRECTORY):
                lower = None
            self._layer.add(path, self.plain(os.fstat(fd), DIRECTORY, _kept(xattrs), flags=flags))
            self.children(fd, path, lower, whole=whole)
        finally:
            os.close(fd)

    @staticmethod
    def _redirected(redirect: bytes, lower: bytes | None, path: bytes) -> bytes:
        """From the root, or a name beside the lower one."""
        if redirect.startswith(b"/"):
            target = redirect.strip(b"/")
        else:
            target = _join((lower or path).rpartition(b"/")[0], redirect)
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
            lower = self._redirected(redirect, path if parent is None else _join(parent, b"-"), path)
        data = None if lower is None else self._base.lookup(lower)
        if data is None or data.kind is not FILE:
            raise CorruptError(f"{os.fsdecode(path)}: its data is not in the base")
        if data.size != found.st_size:
            raise CorruptError(
                f"{os.fsdecode(path)}: got {found.st_size} bytes, but its data in the base has {data.size}"
            )
        made = self.plain(found, FILE, _kept(xattrs), size=data.size, algorithm=data.algorithm, parts=data.parts)
        self._layer.add_known(path, made)

    def _copy(self, path: bytes, lower: bytes) -> None:
        """What a renamed directory still has of the base."""
        found = self._base.lookup(lower)
        if found is None:
            raise CorruptError(f"{os.fsdecode(lower)}: not in the base")
        self._layer.add_known(path, found)
        if found.link_group:
            self._copied.append((path, found.link_group))
        if found.kind is DIRECTORY:
            for name in sorted(self._base.names(lower)):
                self._copy(_join(path, name), _join(lower, name))

    def link_names_below(self) -> None:
        """What was changed under one of its names was changed under all: the others follow, although overlayfs has them
        in its index and not in the upper directory.
        """
        if not self._changed:
            return
        names = [(path, found.link_group) for path, found in self._base.walk() if found.link_group in self._changed]
        for path, group in [*((path, group) for path, group in names if not self._covered(path)), *self._copied]:
            if group in self._changed:
                self._layer.link(path, self._changed[group])

    def _covered(self, path: bytes) -> bool:
        parts = path.split(b"/")
        return any(b"/".join(parts[:count]) in self._over for count in range(1, len(parts) + 1))


def read_steps(steps: Iterator[bytes | int], limit: int) -> bytes:
    """A small content in one piece."""
    data = b"".join(bytes(step) if isinstance(step, int) else step for step in steps)
    if len(data) > limit:
        raise ValueError(f"got {len(data)} bytes, want at most {limit}")
    return data
