"""A reader of the local store's segment files, from docs/format.md section 9 alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cext


@dataclass(frozen=True, slots=True)
class Entry:
    """offset: of its header. stored: the bytes as they are kept."""

    id: bytes
    algorithm: int
    codec: int
    length: int
    offset: int
    stored: bytes

    def content(self) -> bytes:
        return cext.decompress_frame(self.stored, self.length) if self.codec == 1 else self.stored


def segment_header(number: int, *, pinned: bool = False) -> bytes:
    head = b"OSSTORE1" + struct.pack("<II", number, pinned)
    return head + cext.blake3(head)[:16]


def entry_header(entry: Entry, segment: int) -> bytes:
    head = b"OSen" + struct.pack(
        "<BBHIIII", entry.algorithm, entry.codec, 0, entry.length, len(entry.stored), segment, entry.offset
    )
    head += cext.blake3(entry.stored)[:8] + entry.id
    return head + cext.blake3(head)[:16]


def entries(raw: bytes, number: int) -> Iterator[Entry]:
    """Those of an undamaged segment."""
    assert raw[:32] in (segment_header(number), segment_header(number, pinned=True))
    at = 32
    while at < len(raw):
        magic, algorithm, codec, zero, length, stored, segment, offset = struct.unpack_from("<4sBBHIIII", raw, at)
        found = Entry(raw[at + 32 : at + 64], algorithm, codec, length, at, raw[at + 80 : at + 80 + stored])
        assert (magic, zero, segment, offset) == (b"OSen", 0, number, at)
        assert raw[at : at + 80] == entry_header(found, number)
        yield found
        at += 80 + stored
