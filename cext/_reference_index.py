"""Slow twins of the encoders of an image's index, written from docs/format.md sections 5 and 6.

The decoders' twins are lazyfs/index/erofs.py and tables.py, which the portable server uses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cext._reference import HOLE, object_id, parse_payload


class Entry(Protocol):
    """An entry of a merged tree, lazyfs/index/model.py. kind: as docs/format.md section 4 numbers them."""

    @property
    def kind(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mtime_sec(self) -> int: ...
    @property
    def mtime_nsec(self) -> int: ...
    @property
    def xattrs(self) -> tuple[tuple[bytes, bytes], ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def algorithm(self) -> int: ...
    @property
    def parts(self) -> bytes: ...
    @property
    def target(self) -> bytes: ...
    @property
    def device(self) -> tuple[int, int]: ...
    @property
    def link_group(self) -> int: ...


Tree = Sequence[tuple[bytes, Entry]]
"""Every path with its entry, the root's path being empty; in any order."""

Pack = tuple[bytes, int, bytes]
"""SHA-256, size, and payload of the closing table."""

_FILE, _DIRECTORY, _SYMLINK, _CHARACTER, _BLOCK_DEVICE, _FIFO = range(1, 7)
_TYPES = {1: 0o100000, 2: 0o040000, 3: 0o120000, 4: 0o020000, 5: 0o060000, 6: 0o010000}

# ---------------------------------------------------------------------- 5. fs.erofs

_BLOCK, _SLOT, _SUPER, _FIRST = 4096, 32, 1024, 1152
_INLINE_MAX = 2048
_PLAIN, _INLINE, _CHUNKED = 0, 2, 4
_CHUNK = 1 << 43  # 2³¹ blocks
_ENTRY_TYPES = {1: 1, 2: 2, 4: 3, 5: 4, 6: 5, 3: 7}
_XATTR_SPACES = ((b"user.", 1), (b"security.", 6), (b"trusted.", 4))
_XATTR_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}


@dataclass(slots=True)
class _Inode:
    """names: entries of a directory. at: offset in the image. block: of data that is not inline."""

    entry: Entry
    number: int
    parent: _Inode | None
    links: int = 0
    names: dict[bytes, _Inode] = field(default_factory=dict)
    at: int = 0
    block: int = 0


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _same(entry: Entry) -> tuple[object, ...]:
    return (
        entry.link_group, entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime_sec, entry.mtime_nsec,
        entry.xattrs, entry.size, entry.algorithm, entry.parts, entry.target, entry.device,
    )  # fmt: skip


def _inodes(tree: Tree) -> list[_Inode]:
    """In tree order: paths compared component by component."""
    by_path: dict[bytes, _Inode] = {}
    groups: dict[tuple[object, ...], _Inode] = {}
    made: list[_Inode] = []
    for path, entry in sorted(tree, key=lambda one: one[0].split(b"/") if one[0] else []):
        parent_path, _, name = path.rpartition(b"/")
        parent = by_path[parent_path] if path else None
        inode = groups.get(_same(entry)) if entry.link_group else None
        if inode is None:
            inode = _Inode(entry, len(made) + 1, parent)
            made.append(inode)
            if entry.link_group:
                groups[_same(entry)] = inode
        if entry.kind == _DIRECTORY:
            by_path[path] = inode
            inode.links = 2
            if parent is not None:
                parent.links += 1
        else:
            inode.links += 1
        if parent is not None:
            parent.names[name] = inode
    return made


def _xattrs(entry: Entry) -> bytes:
    pairs = list(entry.xattrs)
    if entry.kind == _FILE and entry.parts:
        identity = object_id(entry.size, entry.parts, entry.algorithm).hex()
        redirect = f"/{identity[:2]}/{identity[2:]}".encode()
        pairs += [(b"trusted.overlay.metacopy", b""), (b"trusted.overlay.redirect", redirect)]
    made = b""
    for name, value in pairs:
        index, rest = _XATTR_WHOLE.get(name, 0), b""
        for prefix, number in _XATTR_SPACES:
            if name.startswith(prefix):
                index, rest = number, name.removeprefix(prefix)
        one = struct.pack("<BBH", len(rest), index, len(value)) + rest + value
        made += one.ljust(_up(len(one), 4), b"\0")
    return bytes(12) + made if made else b""


def _directory_blocks(inode: _Inode) -> list[list[tuple[bytes, _Inode]]]:
    rows = sorted([*inode.names.items(), (b".", inode), (b"..", inode.parent or inode)], key=lambda row: row[0])
    blocks: list[list[tuple[bytes, _Inode]]] = [[]]
    for row in rows:
        if sum(12 + len(name) for name, _ in [*blocks[-1], row]) > _BLOCK:
            blocks.append([])
        blocks[-1].append(row)
    return blocks


def _directory(inode: _Inode) -> bytes:
    made = b""
    for block in _directory_blocks(inode):
        made = made.ljust(_up(len(made), _BLOCK), b"\0")
        at = 12 * len(block)
        for name, child in block:
            made += struct.pack("<QHBB", child.at // _SLOT, at, _ENTRY_TYPES[child.entry.kind], 0)
            at += len(name)
        made += b"".join(name for name, _ in block)
    return made


def _data(inode: _Inode) -> bytes:
    if inode.entry.kind == _DIRECTORY:
        return _directory(inode)
    return inode.entry.target if inode.entry.kind == _SYMLINK else b""


def _body(inode: _Inode) -> tuple[int, int, bytes]:
    """(layout, u32 at 16, what follows the xattrs)."""
    entry = inode.entry
    if entry.kind == _FILE and entry.parts:
        return _CHUNKED, 31, b"\xf0\xff\xff\xff" * -(-entry.size // _CHUNK)
    if entry.kind in (_CHARACTER, _BLOCK_DEVICE):
        major, minor = entry.device
        return _PLAIN, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12, b""
    data = _data(inode)
    if not data:
        return _PLAIN, 0, b""
    return (_INLINE, 0, data) if len(data) <= _INLINE_MAX else (_PLAIN, inode.block, b"")


def _encode(inode: _Inode) -> bytes:
    entry, xattrs = inode.entry, _xattrs(inode.entry)
    layout, special, body = _body(inode)
    size = entry.size if entry.kind == _FILE else len(_data(inode))
    words = 1 + (len(xattrs) - 12) // 4 if xattrs else 0
    head = struct.pack(
        "<HHHHQIIIIqII16x", 1 | layout << 1, words, _TYPES[entry.kind] | entry.mode, 0, size, special, inode.number,
        entry.uid, entry.gid, entry.mtime_sec, entry.mtime_nsec, inode.links,
    )  # fmt: skip
    return head + xattrs + body


def erofs(tree: Tree) -> bytes:
    """The image of a merged tree."""
    inodes = _inodes(tree)
    at = _FIRST
    for inode in inodes:
        layout, _, body = _body(inode)
        start = 64 + len(_xattrs(inode.entry))
        inode.at = _up(at, _SLOT)
        while layout == _INLINE and (inode.at + start) // _BLOCK != (inode.at + start + len(body) - 1) // _BLOCK:
            inode.at += _SLOT
        at = inode.at + start + len(body)
    end = _up(at, _BLOCK)
    far = [inode for inode in inodes if len(_data(inode)) > _INLINE_MAX]
    for inode in far:
        inode.block = end // _BLOCK
        end += _up(len(_data(inode)), _BLOCK)
    image = bytearray(end)
    struct.pack_into("<I", image, _SUPER, 0xE0F5E1E2)
    struct.pack_into("<BxHQ", image, _SUPER + 12, 12, inodes[0].at // _SLOT, len(inodes))
    struct.pack_into("<I", image, _SUPER + 36, end // _BLOCK)
    struct.pack_into("<I", image, _SUPER + 80, 4)
    for where, data in [(inode.at, _encode(inode)) for inode in inodes] + [
        (inode.block * _BLOCK, _data(inode)) for inode in far
    ]:
        image[where : where + len(data)] = data
    return bytes(image)


# ---------------------------------------------------------------------- 6. tables

_NO_FRAME = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """Where a chunk lies. frame_at, at: of the frame in the pack, of the chunk in the frame."""

    digest: bytes
    frame_at: int
    packed: int
    plain: int
    at: int
    length: int


def _places(packs: Sequence[Pack]) -> dict[bytes, _Place]:
    found: dict[bytes, _Place] = {}
    for digest, size, payload in packs:
        frame_at = 0
        for packed, plain, rows in parse_payload(payload, size):
            at = 0
            for length, identity in rows:
                found.setdefault(identity, _Place(digest, frame_at, packed, plain, at, length))
                at += length
            frame_at += packed
    return found


def tables(files: Iterable[tuple[int, int, bytes]], packs: Sequence[Pack]) -> bytes:
    """files: size, algorithm and parts of every file of the image. Raises KeyError for a chunk that no pack has."""
    places, sizes = _places(packs), {digest: size for digest, size, _ in packs}
    objects = {
        object_id(size, packed, algorithm): (size, algorithm, list(struct.iter_unpack("<Q32s", packed)))
        for size, algorithm, packed in files
        if packed
    }
    parts = {part for _, _, rows in objects.values() for part in rows}
    chunks = sorted((places[identity], identity) for _, identity in parts if identity != HOLE)
    holes = sorted(length for length, identity in parts if identity == HOLE)
    frames = sorted({(place.digest, place.frame_at, place.packed, place.plain) for place, _ in chunks})
    blobs = sorted({frame[0] for frame in frames})
    frame_rows = {(frame[0], frame[1]): row for row, frame in enumerate(frames)}
    rows = {(place.length, identity): row for row, (place, identity) in enumerate(chunks)}
    rows |= {(length, HOLE): len(chunks) + row for row, length in enumerate(holes)}
    listed = sorted(objects.items())
    refs = [rows[part] for _, (_, _, one) in listed for part in one]
    firsts = [0]
    for _, (_, _, one) in listed:
        firsts.append(firsts[-1] + len(one))

    def column(kind: str, values: Sequence[int]) -> bytes:
        return struct.pack(f"<{len(values)}{kind}", *values)

    sections = [
        struct.pack(
            "<8sIIIIIIQ24x", b"OSTABLE1", len(blobs), len(frames), len(chunks) + len(holes), len(listed), len(refs), 0,
            sum(size for _, (size, _, _) in listed),
        ),
        b"".join(struct.pack("<32sQII", digest, sizes[digest], 1, 0) for digest in blobs),
        column("Q", [frame[1] for frame in frames]),
        column("I", [blobs.index(frame[0]) for frame in frames]),
        column("I", [frame[2] for frame in frames]),
        column("I", [frame[3] for frame in frames]),
        b"".join(identity for _, identity in chunks) + HOLE * len(holes),
        column("I", [*(frame_rows[place.digest, place.frame_at] for place, _ in chunks), *[_NO_FRAME] * len(holes)]),
        column("I", [*(place.at for place, _ in chunks), *(length >> 32 for length in holes)]),
        column("I", [*(place.length for place, _ in chunks), *(length & 0xFFFFFFFF for length in holes)]),
        b"".join(identity for identity, _ in listed),
        column("Q", [size for _, (size, _, _) in listed]),
        column("I", [algorithm for _, (_, algorithm, _) in listed]),
        column("I", firsts),
        column("I", refs),
    ]  # fmt: skip
    made = b""
    for section in sections:
        made = made.ljust(_up(len(made), 8), b"\0") + section
    return made
