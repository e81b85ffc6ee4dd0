"""A strict reader of tar streams: ustar, pax, GNU long names, every GNU sparse format, base-256 numbers.

Archives are hostile. Nothing is ever unpacked: members come out as values, contents as steps of bounded size, and
whatever could be read in two ways is read as Go's archive/tar reads it (the tools around us are built on that) or
refused. Names come out relative to the root with empty and `.` components removed; a `..` is refused, wherever it
stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from cext.errors import LimitError
from imagebuilder.errors import BadArchiveError
from imagebuilder.tar_fields import (
    SIZE_MAX,
    SPARSE_MAX,
    U32_MAX,
    check_pieces,
    check_sum,
    check_symlink,
    clean_path,
    read_decimal,
    read_number,
    read_owner,
    read_pairs,
    read_pax,
    read_signed,
    read_string,
    read_time,
    read_xattrs,
)

_BLOCK = 512
_STEP = 1 << 20
_ZERO_BLOCK = bytes(_BLOCK)
_SPECIAL_MAX = 1 << 20  # bytes of a pax header or long name; Go's bound
_SPECIALS_MAX = 4 << 20  # bytes of all of them before one member, and of all global ones


class Type(Enum):
    FILE = auto()
    LINK = auto()
    SYMLINK = auto()
    CHARACTER = auto()
    BLOCK = auto()
    DIRECTORY = auto()
    FIFO = auto()


_TYPES = {
    0x00: Type.FILE,
    ord("0"): Type.FILE,
    ord("1"): Type.LINK,
    ord("2"): Type.SYMLINK,
    ord("3"): Type.CHARACTER,
    ord("4"): Type.BLOCK,
    ord("5"): Type.DIRECTORY,
    ord("6"): Type.FIFO,
    ord("7"): Type.FILE,  # contiguous
    ord("S"): Type.FILE,  # GNU sparse
}


@dataclass(slots=True)
class Member:
    """path: from the root, b"" for the root itself. target: of a symlink as it stands, of a link like path.

    size: of the file once its holes are filled. pieces: (offset, length) of what the archive stores of a sparse file,
    ascending.
    """

    type: Type
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class _Extended:
    """What pax records and GNU long names say about the next member."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[bytes] = field(default_factory=list)  # pairs of GNU.sparse.offset and numbytes, format 0.0
    name: bytes | None = None
    link: bytes | None = None


class TarReader:
    """Iterate for the members; between two of them `contents` gives the current one's bytes, or they are passed over.

    read: gives 1 to n bytes, none at the end of the stream.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._source = read
        self._buffer = b""
        self._global: dict[bytes, bytes] = {}
        self._global_left = _SPECIALS_MAX
        self._left = 0  # stored bytes of the current member that nobody read
        self._padding = 0
        self._member: Member | None = None

    # ------------------------------------------------------------------ the stream

    def _read(self, count: int) -> bytes:
        buffer = self._buffer
        if len(buffer) < count:
            parts, have = [buffer], len(buffer)
            while have < count:
                data = self._source(max(_BLOCK * 128, min(count - have, _STEP)))
                if not data:
                    raise BadArchiveError(f"tar: ends {count - have} bytes early")
                parts.append(data)
                have += len(data)
            buffer = b"".join(parts)
        self._buffer = buffer[count:]
        return buffer[:count]

    def _some(self, limit: int) -> bytes:
        """1 to limit bytes without copying twice."""
        data = self._buffer or self._source(min(limit, _STEP))
        if not data:
            raise BadArchiveError(f"tar: ends {limit} bytes early")
        self._buffer = data[limit:]
        return data[:limit] if len(data) > limit else data

    def _at_end(self) -> bool:
        if not self._buffer:
            self._buffer = self._source(_BLOCK * 128)
        return not self._buffer

    def _skip(self) -> None:
        left, self._left, self._padding = self._left + self._padding, 0, 0
        while left:
            left -= len(self._some(left))

    # ------------------------------------------------------------------ members

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def _next(self) -> Member | None:
        extended = _Extended()
        left = _SPECIALS_MAX
        while True:
            self._skip()
            self._member = None
            if self._at_end():
                _end(extended)
                return None
            header = self._read(_BLOCK)
            if header == _ZERO_BLOCK:
                if not self._at_end() and self._read(_BLOCK) != _ZERO_BLOCK:
                    raise BadArchiveError("tar: a lone block of zeros")
                self._buffer = b""  # what follows the end mark is nobody's; the caller's digests cover it
                _end(extended)
                return None
            check_sum(header)
            flag = header[156]
            if flag in b"xgLK":
                data = self._special(header)
                left -= _BLOCK + len(data)
                if left < 0:
                    raise LimitError(f"tar: got extended headers of over {_SPECIALS_MAX} bytes before one member")
                if flag == ord("x"):
                    read_pax(data, extended.records, extended.sparse)
                elif flag == ord("g"):
                    self._global_left -= len(data)
                    if self._global_left < 0:
                        raise LimitError(f"tar: got global headers of over {_SPECIALS_MAX} bytes")
                    read_pax(data, self._global, [])
                elif flag == ord("L"):
                    extended.name = read_string(data)
                else:
                    extended.link = read_string(data)
                continue
            if flag == ord("V"):  # volume label
                continue
            if flag not in _TYPES:
                raise BadArchiveError(f"tar: got a member of type {chr(flag)!r}, which is none of ours")
            self._member = self._parse(header, _TYPES[flag], extended)
            return self._member

    def _special(self, header: bytes) -> bytes:
        size = read_number(header[124:136], "size", SIZE_MAX)
        if size > _SPECIAL_MAX:
            raise LimitError(f"tar: got an extended header of {size} bytes, want at most {_SPECIAL_MAX}")
        data = self._read(size)
        self._read(-size % _BLOCK)
        return data

    def _parse(self, header: bytes, kind: Type, extended: _Extended) -> Member:
        records = {**self._global, **extended.records}
        name = read_string(header[:100])
        if header[257:263] == b"ustar\0" and (prefix := read_string(header[345:500])):
            name = prefix + b"/" + name
        name = records.get(b"path") or extended.name or name
        if kind is Type.FILE and header[156] in b"\x000" and name.endswith(b"/"):
            kind = Type.DIRECTORY  # as before POSIX
        record = records.get(b"size")
        stored = read_decimal(record, "size") if record else read_number(header[124:136], "size", SIZE_MAX)
        if kind is not Type.FILE:
            stored = 0  # as Go has it: what has no content has none, whatever its size field says
        self._left, self._padding = stored, -stored % _BLOCK
        size, pieces = stored, None
        if kind is Type.FILE:
            found = self._sparse(header, records, extended.sparse)
            if found is not None:
                size, pieces = found
                name = records.get(b"GNU.sparse.name") or name
                check_pieces(pieces, size, self._left)
        target = b""
        if kind in (Type.LINK, Type.SYMLINK):
            target = records.get(b"linkpath") or extended.link or read_string(header[157:257])
            target = clean_path(target, "link target") if kind is Type.LINK else check_symlink(target)
        mtime = read_time(records[b"mtime"]) if records.get(b"mtime") else (read_signed(header[136:148], "mtime"), 0)
        device = (0, 0)
        if kind in (Type.CHARACTER, Type.BLOCK):
            device = (read_number(header[329:337], "device", U32_MAX), read_number(header[337:345], "device", U32_MAX))
        return Member(
            kind,
            clean_path(name, "name"),
            read_signed(header[100:108], "mode") & 0o7777,
            read_owner(records.get(b"uid"), header[108:116], "uid"),
            read_owner(records.get(b"gid"), header[116:124], "gid"),
            *mtime,
            size,
            target,
            device,
            read_xattrs(records),
            pieces,
        )

    # ------------------------------------------------------------------ sparse files

    def _sparse(
        self, header: bytes, records: dict[bytes, bytes], pairs: list[bytes]
    ) -> tuple[int, tuple[tuple[int, int], ...]] | None:
        """(size, pieces), where the member is sparse in any of the four ways to say so."""
        if header[156] == ord("S"):
            return self._sparse_old(header)
        if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
            size = read_decimal(
                records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size", b"")), "sparse size"
            )
            return size, self._sparse_map()
        if b"GNU.sparse.map" in records:
            numbers = [read_decimal(word, "sparse map") for word in records[b"GNU.sparse.map"].split(b",") if word]
        elif pairs:
            numbers = [read_decimal(word, "sparse map") for word in pairs]
        else:
            return None
        size = read_decimal(records.get(b"GNU.sparse.size", records.get(b"GNU.sparse.realsize", b"")), "sparse size")
        return size, read_pairs(numbers)

    def _sparse_old(self, header: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        numbers: list[int] = []
        area, more = header[386:482], header[482]
        while True:
            for start in range(0, len(area), 24):
                if not area[start : start + 24].strip(b"\0 "):
                    break
                numbers.append(read_number(area[start : start + 12], "sparse map", SIZE_MAX))
                numbers.append(read_number(area[start + 12 : start + 24], "sparse map", SIZE_MAX))
            if not more:
                break
            if len(numbers) > 2 * SPARSE_MAX:
                raise LimitError(f"tar: got a sparse file of more than {SPARSE_MAX} pieces")
            block = self._read(_BLOCK)  # stands between header and data and counts for neither
            area, more = block[:504], block[504]
        return read_number(header[483:495], "sparse size", SIZE_MAX), read_pairs(numbers)

    def _sparse_map(self) -> tuple[tuple[int, int], ...]:
        """Format 1.0: decimal lines at the start of the data, filled up to a block."""
        text = self._stored(_BLOCK)
        lines: list[bytes] = []
        want = 1
        while True:
            while b"\n" in text and len(lines) < want:
                line, _, text = text.partition(b"\n")
                lines.append(line)
                if len(lines) == 1:
                    count = read_decimal(line, "sparse map")
                    if count > SPARSE_MAX:
                        raise LimitError(f"tar: got a sparse file of {count} pieces, want at most {SPARSE_MAX}")
                    want = 1 + 2 * count
            if len(lines) == want:
                return read_pairs([read_decimal(line, "sparse map") for line in lines[1:]])
            if len(text) > 64:
                raise BadArchiveError("tar: a sparse map without line ends")
            text += self._stored(_BLOCK)

    def _stored(self, count: int) -> bytes:
        if count > self._left + self._padding:
            raise BadArchiveError("tar: a sparse map longer than its member")
        data = self._read(count)
        taken = min(count, self._left)
        self._left -= taken
        self._padding -= count - taken
        return data

    # ------------------------------------------------------------------ contents

    def contents(self) -> Iterator[bytes | int]:
        """The current file's content in order: bytes as they are, and numbers that stand for so many zeros."""
        member = self._member
        if member is None or member.type is not Type.FILE:
            return
        position = 0
        for offset, length in ((0, member.size),) if member.pieces is None else member.pieces:
            if offset > position:
                yield offset - position
            left = length
            while left:
                data = self._some(left)
                left -= len(data)
                self._left -= len(data)
                yield data
            position = offset + length
        if member.size > position:
            yield member.size - position


def _end(extended: _Extended) -> None:
    if extended.records or extended.sparse or extended.name is not None or extended.link is not None:
        raise BadArchiveError("tar: ends after an extended header")
