"""Slow twins of the C kernels, written from docs/format.md and not from the C code: what tests compare it with.

The portable server verifies with `blake3`. _reference_index.py goes on with the image index.

The one thing that is not done here is zstd's compression itself: whoever calls brings a `compress` and a `decompress`,
and what the format asks of a frame is checked around them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from blake3 import blake3 as _blake3

KIB, MIB = 1 << 10, 1 << 20
BLAKE3_CHUNKS = 1
HOLE = bytes(32)

_BLOCK, _HOLE_MIN = 4096, MIB
_MIN, _AVERAGE, _MAX = 16 * KIB, 64 * KIB, 256 * KIB
_SMALL_FILE, _SHARED_FRAME, _FRAME_MAX, _PACK_MAX = 64 * KIB, 128 * KIB, 256 * KIB, 64 * MIB
_PART = struct.Struct("<Q32s")
_U64 = (1 << 64) - 1


class Broken(ValueError):
    """A MUST of the format is not met."""


def blake3(data: bytes | memoryview, /, *, context: str | None = None, size: int = 32) -> bytes:
    """As cext.blake3. size: bytes of output, of which there may be any number."""
    if context is None:
        return _blake3(data).digest(length=size)
    return _blake3(data, derive_key_context=context).digest(length=size)


# ---------------------------------------------------------------------- 1. cutting

GEAR = struct.unpack("<256Q", blake3(b"", context="onesec 2026 gear v1", size=256 * 8))


def _mask(bits: int) -> int:
    return ((1 << bits) - 1) << (64 - bits)


def cut(segment: bytes | memoryview) -> int:
    """Length of the first chunk of a data segment."""
    end = min(len(segment), _MAX)
    value = 0
    for at in range(_MIN, end):
        value = ((value << 1) + GEAR[segment[at]]) & _U64
        if value & _mask(18 if at < _AVERAGE else 14) == 0:
            return at + 1
    return end


def cut_points(segment: bytes) -> list[int]:
    """Where the chunks of a data segment end."""
    ends: list[int] = []
    view = memoryview(segment)
    while (at := ends[-1] if ends else 0) < len(segment):
        ends.append(at + cut(view[at:]))
    return ends


def stretches(content: bytes) -> Iterator[tuple[int, bytes | None]]:
    """(length, data) of the data segments of a content, and (length, None) of its holes, in order."""
    blocks = [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)]
    data = b""
    row = 0
    while row < len(blocks):
        end = row
        while end < len(blocks) and not any(blocks[end]):
            end += 1
        zeros = sum(map(len, blocks[row:end]))
        if zeros >= _HOLE_MIN:
            if data:
                yield len(data), data
            yield zeros, None
            data, row = b"", end
        else:
            end = max(end, row + 1)
            data += b"".join(blocks[row:end])
            row = end
    if data:
        yield len(data), data


def chunks(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(length, id, bytes) of every part of a content; a hole's bytes are empty."""
    for length, data in stretches(content):
        if data is None:
            yield length, HOLE, b""
            continue
        start = 0
        for end in cut_points(data):
            yield end - start, blake3(data[start:end]), data[start:end]
            start = end


def parts(content: bytes) -> bytes:
    """`u64 length, id[32]` of every part, as a layer index has them."""
    return b"".join(_PART.pack(length, identity) for length, identity, _ in chunks(content))


def object_id(size: int, packed_parts: bytes, algorithm: int = BLAKE3_CHUNKS) -> bytes:
    head = struct.pack("<IIQQ", algorithm, 0, size, len(packed_parts) // _PART.size)
    return blake3(head + packed_parts, context="onesec 2026 object v1")


# ---------------------------------------------------------------------- 2. frames

Compress = Callable[[bytes], bytes]
Decompress = Callable[[bytes, int], bytes]
"""A frame and the size of its content; raises whatever it likes."""

_ZSTD = 0xFD2FB528
_RAW, _RLE, _RESERVED = 0, 1, 3


def raw_frame(data: bytes) -> bytes:
    """A zstd frame of raw blocks: what no compression comes to."""
    blocks = [data[at : at + 128 * KIB] for at in range(0, len(data), 128 * KIB)] or [b""]
    heads = [(len(block) << 3 | _RAW << 1 | (row == len(blocks) - 1)) for row, block in enumerate(blocks)]
    body = b"".join(head.to_bytes(3, "little") + block for head, block in zip(heads, blocks, strict=True))
    return struct.pack("<IBI", _ZSTD, 0b10_1_00_0_00, len(data)) + body


def check_frame(frame: bytes, size: int) -> None:
    """Raises Broken unless it is one frame of RFC 8878 that declares `size` bytes, no checksum and no dictionary.

    What is in compressed blocks is for a decoder.
    """
    if size > _FRAME_MAX:
        raise Broken(f"frame: {size} bytes")
    if len(frame) < 5 or int.from_bytes(frame[:4], "little") != _ZSTD:
        raise Broken("frame: not zstd")
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    if descriptor & 0b1111:
        raise Broken("frame: a checksum, a dictionary or reserved bits")
    width = (single, 2, 4, 8)[descriptor >> 6]
    at = 5 + (not single)
    if not width or len(frame) < at + width:
        raise Broken("frame: no content size")
    declared = int.from_bytes(frame[at : at + width], "little") + 256 * (width == 2)
    if declared != size:
        raise Broken(f"frame: declares {declared} bytes, want {size}")
    at += width
    last = False
    while not last:
        if len(frame) < at + 3:
            raise Broken("frame: ends inside a block header")
        head = int.from_bytes(frame[at : at + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        if kind == _RESERVED:
            raise Broken("frame: a reserved block")
        at += 3 + (1 if kind == _RLE else length)
    if at != len(frame):
        raise Broken("frame: not exactly one")


def decompress_frame(frame: bytes, size: int, decompress: Decompress) -> bytes:
    check_frame(frame, size)
    data = decompress(frame, size)
    if len(data) != size:
        raise Broken(f"frame: {len(data)} bytes, want {size}")
    return data


# ---------------------------------------------------------------------- 3. packs

_HEAD, _TAIL = b"OSPACK01", b"OSPACKE1"
_SKIPPABLE = 0x184D2A5E


@dataclass(frozen=True, slots=True)
class Frame:
    """data: compressed. size: uncompressed. chunks: length and id of each."""

    data: bytes
    size: int
    chunks: tuple[tuple[int, bytes], ...]


def pack_payload(frames: Sequence[Frame]) -> bytes:
    """The payload of the table that closes a pack of these frames."""
    rows = [chunk for frame in frames for chunk in frame.chunks]
    numbers = [len(frame.data) for frame in frames]
    numbers += [frame.size for frame in frames]
    numbers += [len(frame.chunks) for frame in frames]
    numbers += [length for length, _ in rows]
    body = _HEAD + struct.pack(f"<II{len(numbers)}I", len(frames), len(rows), *numbers)
    body += b"".join(identity for _, identity in rows)
    return body + blake3(body) + struct.pack("<II", len(body) + 48, 0) + _TAIL


def pack_blob(frames: Sequence[Frame]) -> bytes:
    payload = pack_payload(frames)
    return b"".join(frame.data for frame in frames) + struct.pack("<II", _SKIPPABLE, len(payload)) + payload


def parse_payload(payload: bytes, blob_size: int) -> list[tuple[int, int, tuple[tuple[int, bytes], ...]]]:
    """(compressed, uncompressed, chunks) of every frame of a pack with this table. Raises Broken."""
    if len(payload) < 64 or payload[:8] != _HEAD or payload[-8:] != _TAIL:
        raise Broken("table: no such thing")
    frames, count = struct.unpack_from("<II", payload, 8)
    if len(payload) != 16 + 12 * frames + 36 * count + 48:
        raise Broken("table: another length than its counts ask for")
    checksum, length, zero = struct.unpack("<32sII", payload[-48:-8])
    if checksum != blake3(payload[:-48]) or length != len(payload) or zero:
        raise Broken("table: its end is wrong")
    numbers = struct.unpack_from(f"<{3 * frames + count}I", payload, 16)
    compressed, plain, counts = (numbers[row * frames : (row + 1) * frames] for row in range(3))
    lengths = numbers[3 * frames :]
    ids = [payload[at : at + 32] for at in range(len(payload) - 48 - 32 * count, len(payload) - 48, 32)]
    if sum(compressed) != blob_size - 8 - len(payload) or sum(counts) != count:
        raise Broken("table: its sums are wrong")
    if 0 in counts or 0 in lengths or not all(0 < size <= _FRAME_MAX for size in plain):
        raise Broken("table: an empty frame or chunk, or a frame that is too large")
    found, at = [], 0
    for row in range(frames):
        inside = tuple(zip(lengths[at : at + counts[row]], ids[at : at + counts[row]], strict=True))
        if sum(size for size, _ in inside) != plain[row]:
            raise Broken(f"table: frame {row}: its chunks are not its size")
        found.append((compressed[row], plain[row], inside))
        at += counts[row]
    return found


def read_pack(blob: bytes, decompress: Decompress) -> dict[bytes, bytes]:
    """Every chunk of a pack by its id. Raises Broken."""
    if len(blob) < 16 or blob[-8:] != _TAIL:
        raise Broken("pack: no table at its end")
    (length,) = struct.unpack("<I", blob[-16:-12])
    start = len(blob) - length
    if start < 8 or struct.unpack_from("<II", blob, start - 8) != (_SKIPPABLE, length):
        raise Broken("pack: its table is not in a skippable frame")
    found: dict[bytes, bytes] = {}
    at = 0
    for compressed, plain, rows in parse_payload(blob[start:], len(blob)):
        data = decompress_frame(blob[at : at + compressed], plain, decompress)
        at += compressed
        for size, identity in rows:
            found[identity], data = data[:size], data[size:]
            if blake3(found[identity]) != identity:
                raise Broken(f"pack: chunk {identity.hex()} is another one")
    return found


@dataclass(slots=True)
class Ingest:
    """As cext.Ingest, for contents in one piece. known: chunk id -> digest of the older pack that has it."""

    compress: Compress
    known: dict[bytes, bytes] = field(default_factory=dict)
    pack_size: int = _PACK_MAX
    parts: list[bytes] = field(default_factory=list)
    known_packs: list[bytes] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)
    _shared: list[tuple[bytes, bytes]] = field(default_factory=list)
    _packs: list[list[Frame]] = field(default_factory=list)

    def add(self, content: bytes) -> None:
        rows = list(chunks(content))
        self.parts.append(b"".join(_PART.pack(length, identity) for length, identity, _ in rows))
        for _, identity, data in rows:
            if identity == HOLE or identity in self._seen:
                continue
            self._seen.add(identity)
            if identity in self.known:
                if self.known[identity] not in self.known_packs:
                    self.known_packs.append(self.known[identity])
            elif len(content) > _SMALL_FILE:
                self._frame([(identity, data)])
            else:
                if sum(len(one) for _, one in self._shared) + len(data) > _SHARED_FRAME:
                    self._close_shared()
                self._shared.append((identity, data))

    def packs(self) -> list[bytes]:
        """Call it once, at the end."""
        self._close_shared()
        return [pack_blob(frames) for frames in self._packs]

    def _close_shared(self) -> None:
        if self._shared:
            self._frame(self._shared)
            self._shared = []

    def _frame(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        rows = list(rows)
        plain = b"".join(data for _, data in rows)
        made = Frame(self.compress(plain), len(plain), tuple((len(data), identity) for identity, data in rows))
        if not self._packs or sum(len(one.data) for one in self._packs[-1]) + len(made.data) > self.pack_size:
            self._packs.append([])
        self._packs[-1].append(made)


# ---------------------------------------------------------------------- 4. layer indexes: what is hashed in them


def record_digest(record: bytes) -> bytes:
    return blake3(record, context="onesec 2026 layer directory v1")


def link_group(first_path: bytes, entry: bytes) -> int:
    """entry: encoded, with an empty name and link group 0."""
    digest = blake3(first_path + b"\0" + entry, context="onesec 2026 link group v1")
    return int.from_bytes(digest[:8], "little") or 1
