"""A made-up image index of any size, without content: 100,000 files in 5 GB as the format's targets have them.

Chunk ids are random, as real ones are to a compressor. Half of the files are small (about 6 KB, in shared frames); the
rest make up the average. One chunk is 64 KiB, as FastCDC cuts on average.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import cext
from lazyfs.index.layer import LayerBuilder
from lazyfs.index.model import PART, Entry, Kind
from lazyfs.merge import merge

FILES_IN_DIRECTORY = 20
CHUNK = 64 << 10
SHARED = 128 << 10
PACK_FRAMES = 64 << 20
WORDS = ("util", "core", "test", "data", "model", "config", "parser", "client", "server", "handler", "cache", "index")


@dataclass(frozen=True, slots=True)
class Synthetic:
    """tree: a decoded merged layer index. packs: as encode_image takes them. content: bytes of all files."""

    tree: bytes
    packs: list[tuple[bytes, int, bytes]]
    files: int
    content: int


def make(files: int, *, average: int = 50_000, seed: int = 1) -> Synthetic:
    chance = random.Random(seed)
    builder = LayerBuilder()
    chunks: list[tuple[bytes, int]] = []
    content = 0
    for number in range(files):
        if number % FILES_IN_DIRECTORY == 0:
            directory = _directory(number // FILES_IN_DIRECTORY, chance)
        size = chance.randrange(1, 12_000) if number % 2 else chance.randrange(1, 4 * average - 12_000)
        lengths = [CHUNK] * (size // CHUNK) + ([size % CHUNK] if size % CHUNK else [])
        own = [(chance.randbytes(32), length) for length in lengths]
        chunks += own
        content += size
        builder.add(
            b"%s/%s_%d.py" % (directory, chance.choice(WORDS).encode(), number),
            Entry(
                Kind.FILE,
                mode=0o644,
                mtime_sec=1_700_000_000 + chance.randrange(1_000_000),
                mtime_nsec=chance.randrange(10**9),
                size=size,
                algorithm=1,
                parts=b"".join(PART.pack(length, identity) for identity, length in own),
            ),
        )
    return Synthetic(merge([builder.finish()]), list(_packs(chunks, chance)), files, content)


def _directory(number: int, chance: random.Random) -> bytes:
    return b"usr/lib/python3/dist-packages/%s%d/%s" % (
        chance.choice(WORDS).encode(),
        number // 10,
        b"%s%d" % (chance.choice(WORDS).encode(), number),
    )


def _packs(chunks: list[tuple[bytes, int]], chance: random.Random) -> list[tuple[bytes, int, bytes]]:
    """Small chunks share frames; about a third of the bytes is left of each frame."""
    packs, frames, size = [], [], 0
    frame: list[tuple[bytes, int]] = []
    for chunk in chunks:
        whole = chunk[1] == CHUNK
        if frame and (whole or sum(length for _, length in frame) + chunk[1] > SHARED):
            frames.append(frame)
            size += _packed(frame)
            frame = []
        frame.append(chunk)
        if whole:
            frames.append(frame)
            size += _packed(frame)
            frame = []
        if size > PACK_FRAMES - SHARED:
            packs.append(_pack(frames, chance))
            frames, size = [], 0
    if frame:
        frames.append(frame)
    if frames:
        packs.append(_pack(frames, chance))
    return packs


def _packed(frame: list[tuple[bytes, int]]) -> int:
    return sum(length for _, length in frame) // 3 + 20 + frame[0][0][0]


def _pack(frames: list[list[tuple[bytes, int]]], chance: random.Random) -> tuple[bytes, int, bytes]:
    chunks = [chunk for frame in frames for chunk in frame]
    numbers = [
        *(_packed(frame) for frame in frames),
        *(sum(length for _, length in frame) for frame in frames),
        *(len(frame) for frame in frames),
        *(length for _, length in chunks),
    ]
    body = struct.pack(f"<8sII{len(numbers)}I", b"OSPACK01", len(frames), len(chunks), *numbers)
    body += b"".join(identity for identity, _ in chunks)
    length = len(body) + 48
    table = body + cext.blake3(body) + struct.pack("<II8s", length, 0, b"OSPACKE1")
    return chance.randbytes(32), sum(numbers[: len(frames)]) + 8 + length, table
