"""Objects for tests of the object server: packs and tables written straight from docs/format.md, by no code of ours but
the frame compressor, the cutter and the hash.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cext

Content = bytes | Sequence[bytes | int]
"""bytes, or data segments and lengths of holes in turn."""

SHARED_FILE, SHARED_FRAME, PACK = 64 << 10, 128 << 10, 64 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies. pack: a file of `packs`; offset, size: of its frame; at, length: its own place there."""

    pack: str
    offset: int
    size: int
    at: int
    length: int


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """tables: a file. packs: a directory. ids, contents: of the objects, by name. places: of their chunks, in order."""

    tables: Path
    packs: Path
    ids: dict[str, bytes]
    sizes: dict[str, int]
    places: dict[str, list[Place]]

    @contextmanager
    def opened(self) -> Iterator[tuple[int, list[int]]]:
        """Descriptors of the tables and of the packs in row order, -1 for one that is missing."""
        fds = [os.open(self.tables, os.O_RDONLY | os.O_CLOEXEC)]
        try:
            for name in self.pack_names():
                path = self.packs / name
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path.exists() else -1)
            yield fds[0], fds[1:]
        finally:
            for fd in fds:
                if fd >= 0:
                    os.close(fd)

    def pack_names(self) -> list[str]:
        raw = self.tables.read_bytes()
        (count,) = struct.unpack_from("<I", raw, 8)
        return [raw[64 + 48 * row : 96 + 48 * row].hex() for row in range(count)]

    def path(self, name: str) -> str:
        """Of an object on the object mount."""
        text = self.ids[name].hex()
        return f"{text[:2]}/{text[2:]}"


@dataclass(slots=True)
class _Frame:
    data: bytes
    chunks: list[bytes]
    pack: int = 0
    offset: int = 0
    packed: int = 0


def chunk_id(data: bytes, algorithm: int) -> bytes:
    return hashlib.sha256(data).digest() if algorithm == 2 else cext.blake3(data)


def object_id(algorithm: int, parts: Sequence[tuple[int, bytes]]) -> bytes:
    description = struct.pack("<IIQQ", algorithm, 0, sum(length for length, _ in parts), len(parts))
    description += b"".join(struct.pack("<Q", length) + identity for length, identity in parts)
    return cext.blake3(description, context="onesec 2026 object v1")


def make_objects(
    directory: Path, contents: Mapping[str, Content], *, algorithm: int = 1, level: int = 3, pack_size: int = PACK
) -> ObjectSet:
    """Writes packs and tables below a new directory. Empty contents have no object."""
    packs = directory / "packs"
    packs.mkdir(parents=True)
    lists: dict[str, list[tuple[int, bytes]]] = {}
    frames: list[_Frame] = []
    seen: set[bytes] = set()
    shared: _Frame | None = None
    for name, content in contents.items():
        pieces = [content] if isinstance(content, bytes) else list(content)
        parts: list[tuple[int, bytes]] = []
        small = sum(piece if isinstance(piece, int) else len(piece) for piece in pieces) <= SHARED_FILE
        for piece in pieces:
            if isinstance(piece, int):
                parts.append((piece, bytes(32)))
                continue
            start = 0
            for end in cext.cut_points(piece):
                chunk = piece[start:end]
                start = end
                identity = chunk_id(chunk, algorithm)
                parts.append((len(chunk), identity))
                if identity in seen:
                    continue
                seen.add(identity)
                if not small:
                    frames.append(_Frame(chunk, [identity]))
                elif shared is not None and len(shared.data) + len(chunk) <= SHARED_FRAME:
                    shared.data += chunk
                    shared.chunks.append(identity)
                else:
                    shared = _Frame(chunk, [identity])
                    frames.append(shared)
        if parts:
            lists[name] = parts
    lengths = {identity: length for parts in lists.values() for length, identity in parts}
    blobs = _write_packs(packs, frames, level, pack_size)
    return _write_tables(directory, packs, lists, frames, blobs, lengths, algorithm)


def _write_packs(packs: Path, frames: list[_Frame], level: int, pack_size: int) -> list[tuple[bytes, int]]:
    blobs: list[tuple[bytes, int]] = []
    at = 0
    while at < len(frames):
        data = bytearray()
        while at < len(frames):
            packed = cext.compress_frame(frames[at].data, level)
            if data and len(data) + len(packed) > pack_size:
                break
            frames[at].pack, frames[at].offset, frames[at].packed = len(blobs), len(data), len(packed)
            data += packed
            at += 1
        digest = hashlib.sha256(data).digest()
        (packs / digest.hex()).write_bytes(data)
        blobs.append((digest, len(data)))
    return blobs


def _column(kind: str, values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}{kind}", *values)


def _write_tables(
    directory: Path,
    packs: Path,
    lists: dict[str, list[tuple[int, bytes]]],
    frames: list[_Frame],
    blobs: list[tuple[bytes, int]],
    lengths: dict[bytes, int],
    algorithm: int,
) -> ObjectSet:
    order = sorted(range(len(blobs)), key=lambda row: blobs[row][0])
    rows = {blob: row for row, blob in enumerate(order)}
    frames = sorted(frames, key=lambda frame: (rows[frame.pack], frame.offset))
    chunks: list[tuple[bytes, int, int, int]] = []  # id, frame, offset, length
    where: dict[bytes, Place] = {}
    for row, frame in enumerate(frames):
        at = 0
        for identity in frame.chunks:
            length = lengths[identity]
            chunks.append((identity, row, at, length))
            where[identity] = Place(blobs[frame.pack][0].hex(), frame.offset, frame.packed, at, length)
            at += length
    holes = sorted({length for parts in lists.values() for length, identity in parts if identity == bytes(32)})
    row_of: dict[tuple[bytes, int], int] = {(c[0], c[3]): row for row, c in enumerate(chunks)}
    for hole in holes:
        row_of[bytes(32), hole] = len(chunks)
        chunks.append((bytes(32), 0xFFFFFFFF, hole >> 32, hole & 0xFFFFFFFF))
    ids = {name: object_id(algorithm, parts) for name, parts in lists.items()}
    objects = sorted({ids[name]: name for name in ids}.items())
    refs, starts, sizes = [], [0], []
    for _, name in objects:
        refs += [row_of[identity, length] for length, identity in lists[name]]
        starts.append(len(refs))
        sizes.append(sum(length for length, _ in lists[name]))
    header = b"OSTABLE1" + struct.pack(
        "<IIIIIIQ24x", len(blobs), len(frames), len(chunks), len(objects), len(refs), 0, sum(sizes)
    )
    sections = [
        header,
        b"".join(struct.pack("<32sQII", *blobs[blob], 1, 0) for blob in order),
        _column("Q", [frame.offset for frame in frames]),
        _column("I", [rows[frame.pack] for frame in frames]),
        _column("I", [frame.packed for frame in frames]),
        _column("I", [len(frame.data) for frame in frames]),
        b"".join(chunk[0] for chunk in chunks),
        _column("I", [chunk[1] for chunk in chunks]),
        _column("I", [chunk[2] for chunk in chunks]),
        _column("I", [chunk[3] for chunk in chunks]),
        b"".join(identity for identity, _ in objects),
        _column("Q", sizes),
        _column("I", [algorithm] * len(objects)),
        _column("I", starts),
        _column("I", refs),
    ]
    tables = b""
    for section in sections:
        tables += bytes(-len(tables) % 8) + section
    (directory / "tables").write_bytes(tables)
    return ObjectSet(
        directory / "tables",
        packs,
        ids,
        {name: sum(length for length, _ in parts) for name, parts in lists.items()},
        {name: [where[identity] for _, identity in parts if any(identity)] for name, parts in lists.items()},
    )
