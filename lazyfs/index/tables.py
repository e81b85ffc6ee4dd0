"""The tables of an image, docs/format.md §6, read in Python: the oracle for the C code, and the portable server's way.

Opening checks all that the format asks for, so every row of an open reader can be used as it is.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cext._reference import blake3
from cext.errors import CorruptError, LimitError

_HEADER = struct.Struct("<8sIIIIIIQ24s")
_BLOB = struct.Struct("<32sQII")
_DESCRIPTION = struct.Struct("<IIQQ")
_LENGTH = struct.Struct("<Q")
_CONTEXT = "onesec 2026 object v1"
_NO_FRAME = 0xFFFFFFFF
_HOLE = bytes(32)
_FRAME_MAX = 256 << 10
_CLEN_MAX = _FRAME_MAX + (_FRAME_MAX >> 7) + 512
_REFS_MAX = 1 << 31
_SIZE_MAX = (1 << 63) - 1
_PACK = 1


class Blob(NamedTuple):
    digest: bytes
    size: int


class Frame(NamedTuple):
    """blob: its row. offset, packed: where it lies there. plain: bytes when decoded."""

    blob: int
    offset: int
    packed: int
    plain: int


class Part(NamedTuple):
    """start: in the object. id: of the chunk, zeros for a hole. frame: row, or None for a hole. at: in the frame."""

    start: int
    length: int
    id: bytes
    frame: int | None
    at: int


@dataclass(frozen=True, slots=True)
class Object:
    """algorithm: of the chunks' ids, 1 BLAKE3, 2 SHA-256. parts: in order, without gaps."""

    id: bytes
    size: int
    algorithm: int
    parts: tuple[Part, ...]


class TablesReader:
    """data: the whole decoded blob; kept, and not to change. Raises CorruptError, LimitError."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        if len(self._data) < _HEADER.size:
            raise CorruptError(f"tables: got {len(self._data)} bytes, want at least {_HEADER.size}")
        magic, *counts, zero, self.total_size, zeros = _HEADER.unpack_from(self._data)
        if magic != b"OSTABLE1" or zero or any(zeros):
            raise CorruptError("tables: got another header than OSTABLE1 with zeros where they belong")
        blobs, frames, chunks, objects, refs = counts
        if refs >= _REFS_MAX:
            raise LimitError(f"tables: got {refs} refs, want less than {_REFS_MAX}")
        self._at = _HEADER.size
        blob_rows = self._section(blobs, _BLOB.size)
        self._frame_offset = self._numbers(frames, "Q")
        self._frame_blob = self._numbers(frames, "I")
        self._frame_packed = self._numbers(frames, "I")
        self._frame_plain = self._numbers(frames, "I")
        self._chunk_id = self._section(chunks, 32)
        self._chunk_frame = self._numbers(chunks, "I")
        self._chunk_offset = self._numbers(chunks, "I")
        self._chunk_length = self._numbers(chunks, "I")
        self._object_id = self._section(objects, 32)
        self._object_size = self._numbers(objects, "Q")
        self._object_algorithm = self._numbers(objects, "I")
        self._object_ref = self._numbers(objects + 1, "I")
        self._ref = self._numbers(refs, "I")
        if self._at != len(self._data):
            raise CorruptError(f"tables: got {len(self._data) - self._at} bytes after the last section")
        self.blobs = self._read_blobs(blob_rows)
        self._check_frames()
        self._check_chunks()
        self._ids = [bytes(self._object_id[at : at + 32]) for at in range(0, 32 * objects, 32)]
        self._check_objects()
        self._check_all_used()

    # ------------------------------------------------------------------ use

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._ids)

    def ids(self) -> Sequence[bytes]:
        """Of all objects, ascending."""
        return self._ids

    def find(self, identity: bytes) -> Object | None:
        row = bisect_left(self._ids, identity)
        return self._object(row) if row < len(self._ids) and self._ids[row] == identity else None

    def frame(self, row: int) -> Frame:
        return Frame(self._frame_blob[row], self._frame_offset[row], self._frame_packed[row], self._frame_plain[row])

    def _object(self, row: int) -> Object:
        parts, start = [], 0
        for ref in self._ref[self._object_ref[row] : self._object_ref[row + 1]]:
            part = self._part(ref, start)
            parts.append(part)
            start += part.length
        return Object(self._ids[row], self._object_size[row], self._object_algorithm[row], tuple(parts))

    def _part(self, chunk: int, start: int) -> Part:
        frame, at = self._chunk_frame[chunk], self._chunk_offset[chunk]
        identity = bytes(self._chunk_id[32 * chunk : 32 * chunk + 32])
        if frame == _NO_FRAME:
            return Part(start, self._length(chunk), identity, None, 0)
        return Part(start, self._chunk_length[chunk], identity, frame, at)

    def _length(self, chunk: int) -> int:
        high = self._chunk_offset[chunk] if self._chunk_frame[chunk] == _NO_FRAME else 0
        return high << 32 | self._chunk_length[chunk]

    # ------------------------------------------------------------------ checks

    def _section(self, rows: int, width: int) -> memoryview:
        start = -(-self._at // 8) * 8
        end = start + rows * width
        if end > len(self._data):
            raise CorruptError(f"tables: got {len(self._data)} bytes, want at least {end}")
        if any(self._data[self._at : start]):
            raise CorruptError(f"tables: got something in the gap before {start}")
        self._at = end
        return self._data[start:end]

    def _numbers(self, rows: int, kind: str) -> memoryview[int]:
        return self._section(rows, 8 if kind == "Q" else 4).cast(kind)  # type: ignore[call-overload, no-any-return]

    def _read_blobs(self, rows: memoryview) -> tuple[Blob, ...]:
        found = []
        before = b""
        for row, (digest, size, codec, zero) in enumerate(_BLOB.iter_unpack(rows)):
            if codec != _PACK or zero:
                raise CorruptError(f"tables: blob {row}: got codec {codec}, want {_PACK}")
            if row and digest <= before:
                raise CorruptError(f"tables: blob {row}: got a digest out of order")
            before = digest
            found.append(Blob(digest, size))
        return tuple(found)

    def _check_frames(self) -> None:
        before = (-1, -1)
        for row in range(len(self._frame_offset)):
            blob, offset, packed, plain = self.frame(row)
            if blob >= len(self.blobs):
                raise CorruptError(f"tables: frame {row}: got blob {blob}, want below {len(self.blobs)}")
            if not 0 < packed <= _CLEN_MAX or offset + packed > self.blobs[blob].size:
                raise CorruptError(f"tables: frame {row}: got {packed} bytes at {offset}, want them in its blob")
            if not 0 < plain <= _FRAME_MAX:
                raise CorruptError(f"tables: frame {row}: got {plain} bytes decoded, want 1 to {_FRAME_MAX}")
            if (blob, offset) <= before:
                raise CorruptError(f"tables: frame {row}: got a place out of order")
            before = (blob, offset)

    def _check_chunks(self) -> None:
        before = (-1, -1)
        for row in range(len(self._chunk_frame)):
            frame, _, length = self._chunk_frame[row], None, self._length(row)
            hole = frame == _NO_FRAME
            if not 0 < length <= _SIZE_MAX:
                raise CorruptError(f"tables: chunk {row}: got length {length}")
            if hole != (self._chunk_id[32 * row : 32 * row + 32] == _HOLE):
                raise CorruptError(f"tables: chunk {row}: got the id of a hole on data, or the reverse")
            if not hole:
                if frame >= len(self._frame_offset):
                    raise CorruptError(f"tables: chunk {row}: got frame {frame}, want below {len(self._frame_offset)}")
                if self._chunk_offset[row] + length > self._frame_plain[frame]:
                    raise CorruptError(f"tables: chunk {row}: got bytes outside its frame")
            place = (frame, length if hole else self._chunk_offset[row])
            if place <= before:
                raise CorruptError(f"tables: chunk {row}: got a place out of order")
            before = place

    def _check_objects(self) -> None:
        refs = self._object_ref
        if refs[0] != 0 or refs[-1] != len(self._ref):
            raise CorruptError("tables: got refs of no object")
        if max(self._ref, default=-1) >= len(self._chunk_frame):
            raise CorruptError("tables: got a ref to no chunk")
        total = 0
        for row, identity in enumerate(self._ids):
            if row and identity <= self._ids[row - 1]:
                raise CorruptError(f"tables: object {row}: got an id out of order")
            if not refs[row] < refs[row + 1] <= len(self._ref):
                raise CorruptError(f"tables: object {row}: got refs {refs[row]} to {refs[row + 1]}")
            self._check_object(row, self._object(row))
            total += self._object_size[row]
        if total != self.total_size:
            raise CorruptError(f"tables: got total size {self.total_size}, want {total}")

    def _check_all_used(self) -> None:
        for what, count, used in (
            ("blob", len(self.blobs), self._frame_blob),
            ("frame", len(self._frame_offset), self._chunk_frame),
            ("chunk", len(self._chunk_frame), self._ref),
        ):
            if count != len(set(used) - {_NO_FRAME}):
                raise CorruptError(f"tables: got a {what} that nothing uses")

    @staticmethod
    def _check_object(row: int, found: Object) -> None:
        if found.algorithm not in (1, 2):
            raise CorruptError(f"tables: object {row}: got algorithm {found.algorithm}, want 1 or 2")
        size = found.parts[-1].start + found.parts[-1].length
        if size != found.size or size > _SIZE_MAX:
            raise CorruptError(f"tables: object {row}: got size {found.size}, want {size}")
        if any(one.frame is None and two.frame is None for one, two in zip(found.parts, found.parts[1:], strict=False)):
            raise CorruptError(f"tables: object {row}: got two holes side by side")
        head = _DESCRIPTION.pack(found.algorithm, 0, found.size, len(found.parts))
        description = head + b"".join(_LENGTH.pack(part.length) + part.id for part in found.parts)
        if blake3(description, context=_CONTEXT) != found.id:
            raise CorruptError(f"tables: object {row}: got an id that is not the id of its parts")
