"""Directory records of a layer index, docs/format.md §4: entries to bytes and back, and the table of all records.

`Records` checks what binds a layer index together (hashes, order, bounds) by a walk over entry heads; what stands in an
entry is checked when `decode_record` makes values of it. So laying layers over each other costs little for the
directories that no two layers share.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cext
from cext.errors import CorruptError, LimitError
from lazyfs.index.model import DEPTH_MAX, INODES_MAX, PART, Entry, Kind, check_entry, check_name

MAGIC = b"OSLAYER1"
INDEX_MAX = 4 << 30
DIGEST = 32

_CONTEXT = "onesec 2026 layer directory v1"
_TOP = struct.Struct("<8sII")
_HEAD = struct.Struct("<BBHIIIqIIQQII")
_SKIM = struct.Struct("<BBH24xIQQI4x")
_PAIR = struct.Struct("<HH")
_LENGTH = struct.Struct("<I")

_FILE, _DIRECTORY, _SYMLINK, _LINK = int(Kind.FILE), int(Kind.DIRECTORY), int(Kind.SYMLINK), int(Kind.LINK)
_WHITEOUT = int(Kind.WHITEOUT)
_KINDS = {int(kind): kind for kind in Kind}
_DEVICES = (Kind.CHARACTER, Kind.BLOCK)


def record_digest(record: bytes | memoryview) -> bytes:
    return cext.blake3(record, context=_CONTEXT)


# ---------------------------------------------------------------------- writing


def encode_entry(
    entry: Entry, digest: bytes = b"", *, name: bytes | None = None, link_group: int | None = None
) -> bytes:
    """digest: of a directory's record. name, link_group: in place of the entry's own."""
    name = entry.name if name is None else name
    kind = entry.kind
    value = entry.device[0] << 32 | entry.device[1] if kind in _DEVICES else entry.size
    parts = entry.parts
    head = _HEAD.pack(
        kind,
        entry.flags,
        len(name),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_sec,
        entry.mtime_nsec,
        len(entry.xattrs),
        entry.link_group if link_group is None else link_group,
        value,
        len(parts) // PART.size,
        entry.algorithm,
    )
    if entry.xattrs:
        name += b"".join([_PAIR.pack(len(key), len(value)) + key + value for key, value in entry.xattrs])
    return head + name + parts + entry.target + digest


def encode_record(entries: Sequence[bytes]) -> bytes:
    """entries: encoded, in ascending order of their names."""
    return _LENGTH.pack(len(entries)) + b"".join(entries)


def encode_layer(root: bytes, records: Sequence[bytes | memoryview]) -> bytes:
    """root: the encoded entry of the root. records: distinct, in post-order."""
    pieces: list[bytes | memoryview] = [_TOP.pack(MAGIC, len(records), 0), root]
    for record in records:
        pieces += (_LENGTH.pack(len(record)), record)
    if (size := sum(map(len, pieces))) > INDEX_MAX:
        raise LimitError(f"layer index: got {size} bytes, want at most {INDEX_MAX}")
    return b"".join(pieces)


# ---------------------------------------------------------------------- reading


class Row(NamedTuple):
    """An entry where it lies. start, end: in the index's bytes."""

    name: bytes
    kind: int
    flags: int
    link_group: int
    start: int
    end: int


def skim_entry(data: bytes, at: int, end: int) -> Row:
    """Finds an entry's end. Checks that it has one, and nothing else."""
    if end - at < _HEAD.size:
        raise CorruptError("entry: got less than its head")
    kind, flags, name_length, xattrs, group, value, parts = _SKIM.unpack_from(data, at)
    start, at = at, at + _HEAD.size
    name = data[at : at + name_length]
    at += name_length
    for _ in range(xattrs):
        if end - at < _PAIR.size:
            raise CorruptError(f"entry {name[:100]!r}: got less than its {xattrs} xattrs")
        key_length, value_length = _PAIR.unpack_from(data, at)
        at += _PAIR.size + key_length + value_length
    if kind == _FILE:
        at += parts * PART.size
    elif kind == _DIRECTORY:
        at += DIGEST
    elif kind in (_SYMLINK, _LINK):
        at += value
    elif kind not in _KINDS:
        raise CorruptError(f"entry {name[:100]!r}: got kind {kind}")
    if at > end:
        raise CorruptError(f"entry {name[:100]!r}: got {end - start} bytes, want {at - start}")
    return Row(name, kind, flags, group, start, at)


def skim_record(data: bytes, at: int, end: int) -> list[Row]:
    """The entries of a record; names ascend."""
    if end - at < _LENGTH.size:
        raise CorruptError("record: got less than its count")
    (count,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    if count > (end - at) // _HEAD.size:
        raise CorruptError(f"record: got {end - at} bytes for {count} entries")
    rows = []
    before = b""
    for _ in range(count):
        row = skim_entry(data, at, end)
        if row.name <= before:
            raise CorruptError(f"entry {row.name[:100]!r}: got it after {before[:100]!r}, want ascending names")
        before, at = row.name, row.end
        rows.append(row)
    if at != end:
        raise CorruptError(f"record: got {end - at} bytes after its last entry")
    return rows


def decode_entry(data: bytes, row: Row) -> Entry:
    """The values of an entry, all of them checked but its name."""
    head = _HEAD.unpack_from(data, row.start)
    _, flags, name_length, mode, uid, gid, seconds, nanoseconds, xattr_count, group, value, part_count, algorithm = head
    kind = _KINDS[row.kind]
    at = row.start + _HEAD.size + name_length
    xattrs = []
    for _ in range(xattr_count):
        key_length, value_length = _PAIR.unpack_from(data, at)
        at += _PAIR.size
        xattrs.append((data[at : at + key_length], data[at + key_length : at + key_length + value_length]))
        at += key_length + value_length
    rest = data[at : row.end]
    device = (0, 0)
    if kind in _DEVICES:
        device, value = (value >> 32, value & 0xFFFFFFFF), 0
    if part_count and kind is not Kind.FILE:
        raise CorruptError(f"parts: got {part_count} on {kind.name.lower()}")
    entry = Entry(
        kind,
        row.name,
        mode,
        uid,
        gid,
        seconds,
        nanoseconds,
        tuple(xattrs),
        value,
        algorithm,
        rest if kind is Kind.FILE else b"",
        rest if kind in (Kind.SYMLINK, Kind.LINK) else b"",
        device,
        group,
        flags,
    )
    check_entry(entry)
    return entry


@dataclass(frozen=True, slots=True)
class Summary:
    """What a record and everything below it come to.

    children: digests of its directories, in name order. plain: nothing below speaks of lower layers. grouped: something
    below has a link group. inodes: names below, those of repeated records as often as they occur. depth: directories
    below each other.
    """

    children: tuple[bytes, ...]
    plain: bool
    grouped: bool
    inodes: int
    depth: int


def post_order(digest: bytes, children: Callable[[bytes], Iterable[bytes]], seen: set[bytes]) -> Iterator[bytes]:
    """The digests below and with this one, children first, each once; what is in seen is left out, and it grows."""
    if digest in seen:
        return
    stack = [(digest, iter(children(digest)))]
    while stack:
        here, rest = stack[-1]
        following = next((child for child in rest if child not in seen), None)
        if following is not None:
            stack.append((following, iter(children(following))))
            continue
        stack.pop()
        seen.add(here)
        yield here


class Records:
    """The records of one layer index, bound to each other by their digests. Immutable.

    what: names the index in messages. root: the root's own entry.
    """

    def __init__(self, data: bytes, what: str = "layer index") -> None:
        self.data = data
        self.what = what
        self.places: dict[bytes, tuple[int, int]] = {}
        self.summaries: dict[bytes, Summary] = {}
        try:
            self._parse()
        except LimitError as error:
            raise LimitError(f"{what}: {error}") from error
        except CorruptError as error:
            raise CorruptError(f"{what}: {error}") from error

    def _parse(self) -> None:
        data = self.data
        if len(data) > INDEX_MAX:
            raise LimitError(f"got {len(data)} bytes, want at most {INDEX_MAX}")
        if len(data) < _TOP.size or not data.startswith(MAGIC):
            raise CorruptError("got no OSLAYER1 at its start")
        _, count, zero = _TOP.unpack_from(data)
        if zero:
            raise CorruptError(f"got {zero} after the number of records, want 0")
        row = skim_entry(data, _TOP.size, len(data))
        if row.kind != _DIRECTORY or row.name:
            raise CorruptError("root: got no directory without a name")
        self.root = decode_entry(data, row)
        self.root_row = row
        self.root_digest = data[row.end - DIGEST : row.end]
        at = row.end
        for _ in range(count):
            at = self._record(at)
        if at != len(data):
            raise CorruptError(f"got {len(data) - at} bytes after its last record")
        if self.root_digest not in self.places:
            raise CorruptError("root: got the digest of no record")
        if list(post_order(self.root_digest, self.children, set())) != list(self.places):
            raise CorruptError("records: got them out of post-order, or one that is not used")

    def _record(self, at: int) -> int:
        data = self.data
        if len(data) - at < _LENGTH.size:
            raise CorruptError("records: got less than their number")
        length: int = _LENGTH.unpack_from(data, at)[0]
        start, end = at + _LENGTH.size, at + _LENGTH.size + length
        if end > len(data):
            raise CorruptError(f"record: got {len(data) - start} bytes, want {length}")
        digest = record_digest(memoryview(data)[start:end])
        if digest in self.places:
            raise CorruptError(f"record {digest.hex()}: got it twice")
        self.summaries[digest] = self._summary(skim_record(data, start, end))
        self.places[digest] = (start, end)
        return end

    def _summary(self, rows: Sequence[Row]) -> Summary:
        children = []
        plain, grouped = True, False
        inodes, depth = len(rows), 0
        for _, kind, flags, group, _, end in rows:
            if kind == _DIRECTORY:
                digest = self.data[end - DIGEST : end]
                below = self.summaries.get(digest)
                if below is None:
                    raise CorruptError(f"directory: got digest {digest.hex()}, which is no record's before it")
                children.append(digest)
                inodes += below.inodes
                depth = max(depth, below.depth + 1)
                plain = plain and below.plain and not flags
                grouped = grouped or below.grouped
            elif kind in (_WHITEOUT, _LINK):
                plain = False
            if group:
                grouped = True
        if inodes >= INODES_MAX:
            raise LimitError(f"tree: got {inodes} names, want less than {INODES_MAX}")
        if depth > DEPTH_MAX:
            raise LimitError(f"tree: got {depth} directories below each other, want at most {DEPTH_MAX}")
        return Summary(tuple(children), plain, grouped, inodes, depth)

    def children(self, digest: bytes) -> tuple[bytes, ...]:
        return self.summaries[digest].children

    def rows(self, digest: bytes) -> list[Row]:
        start, end = self.places[digest]
        return skim_record(self.data, start, end)

    def record(self, digest: bytes) -> memoryview:
        start, end = self.places[digest]
        return memoryview(self.data)[start:end]

    def entries(self, digest: bytes) -> list[tuple[Entry, bytes]]:
        """The values of a record, checked; with the digest of a directory's record, else nothing."""
        found = []
        for row in self.rows(digest):
            try:
                check_name(row.name)
                entry = decode_entry(self.data, row)
            except CorruptError as error:
                raise type(error)(f"{self.what}: entry {row.name[:100]!r}: {error}") from error
            found.append((entry, self.data[row.end - DIGEST : row.end] if row.kind == _DIRECTORY else b""))
        return found
