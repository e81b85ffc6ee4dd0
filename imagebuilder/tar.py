"""A strict reader of tar streams: ustar, pax, GNU long names, every GNU sparse format, base-256 numbers.

Archives are hostile. Nothing is ever unpacked: members come out as values, contents as steps of bounded size, and
whatever could be read in two ways is read as Go's archive/tar reads it (the tools around us are built on that) or
refused. Names come out relative to the root with empty and `.` components removed; a `..` is refused, wherever it
stands.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from cext.errors import LimitError
from imagebuilder.errors import BadArchiveError
from lazyfs.index.model import xattr_allowed

_BLOCK = 512
_STEP = 1 << 20
_ZERO_BLOCK = bytes(_BLOCK)
_SPECIAL_MAX = 1 << 20  # bytes of a pax header or long name; Go's bound
_SPECIALS_MAX = 4 << 20  # bytes of all of them before one member, and of all global ones
_SPARSE_MAX = 1 << 18  # pieces of one sparse file
_NAME_MAX = 255
_PATH_MAX = 4096
_SYMLINK_MAX = 4095
_XATTR_VALUE_MAX = 65535
_XATTR_TOTAL_MAX = 128 << 10
_SIZE_MAX = (1 << 63) - 1
_U32_MAX = (1 << 32) - 1
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


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
            _check_sum(header)
            flag = header[156]
            if flag in b"xgLK":
                data = self._special(header)
                left -= _BLOCK + len(data)
                if left < 0:
                    raise LimitError(f"tar: got extended headers of over {_SPECIALS_MAX} bytes before one member")
                if flag == ord("x"):
                    _pax(data, extended.records, extended.sparse)
                elif flag == ord("g"):
                    self._global_left -= len(data)
                    if self._global_left < 0:
                        raise LimitError(f"tar: got global headers of over {_SPECIALS_MAX} bytes")
                    _pax(data, self._global, [])
                elif flag == ord("L"):
                    extended.name = _string(data)
                else:
                    extended.link = _string(data)
                continue
            if flag == ord("V"):  # volume label
                continue
            if flag not in _TYPES:
                raise BadArchiveError(f"tar: got a member of type {chr(flag)!r}, which is none of ours")
            self._member = self._parse(header, _TYPES[flag], extended)
            return self._member

    def _special(self, header: bytes) -> bytes:
        size = _number(header[124:136], "size", _SIZE_MAX)
        if size > _SPECIAL_MAX:
            raise LimitError(f"tar: got an extended header of {size} bytes, want at most {_SPECIAL_MAX}")
        data = self._read(size)
        self._read(-size % _BLOCK)
        return data

    def _parse(self, header: bytes, kind: Type, extended: _Extended) -> Member:
        records = {**self._global, **extended.records}
        name = _string(header[:100])
        if header[257:263] == b"ustar\0" and (prefix := _string(header[345:500])):
            name = prefix + b"/" + name
        name = records.get(b"path") or extended.name or name
        if kind is Type.FILE and header[156] in b"\x000" and name.endswith(b"/"):
            kind = Type.DIRECTORY  # as before POSIX
        record = records.get(b"size")
        stored = _decimal(record, "size") if record else _number(header[124:136], "size", _SIZE_MAX)
        if kind is not Type.FILE:
            stored = 0  # as Go has it: what has no content has none, whatever its size field says
        self._left, self._padding = stored, -stored % _BLOCK
        size, pieces = stored, None
        if kind is Type.FILE:
            found = self._sparse(header, records, extended.sparse)
            if found is not None:
                size, pieces = found
                name = records.get(b"GNU.sparse.name") or name
                _check_pieces(pieces, size, self._left)
        target = b""
        if kind in (Type.LINK, Type.SYMLINK):
            target = records.get(b"linkpath") or extended.link or _string(header[157:257])
            target = _clean(target, "link target") if kind is Type.LINK else _symlink(target)
        mtime = _time(records[b"mtime"]) if records.get(b"mtime") else (_signed(header[136:148], "mtime"), 0)
        device = (0, 0)
        if kind in (Type.CHARACTER, Type.BLOCK):
            device = (_number(header[329:337], "device", _U32_MAX), _number(header[337:345], "device", _U32_MAX))
        return Member(
            kind,
            _clean(name, "name"),
            _signed(header[100:108], "mode") & 0o7777,
            _owner(records.get(b"uid"), header[108:116], "uid"),
            _owner(records.get(b"gid"), header[116:124], "gid"),
            *mtime,
            size,
            target,
            device,
            _xattrs(records),
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
            size = _decimal(records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size", b"")), "sparse size")
            return size, self._sparse_map()
        if b"GNU.sparse.map" in records:
            numbers = [_decimal(word, "sparse map") for word in records[b"GNU.sparse.map"].split(b",") if word]
        elif pairs:
            numbers = [_decimal(word, "sparse map") for word in pairs]
        else:
            return None
        size = _decimal(records.get(b"GNU.sparse.size", records.get(b"GNU.sparse.realsize", b"")), "sparse size")
        return size, _pairs(numbers)

    def _sparse_old(self, header: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        numbers: list[int] = []
        area, more = header[386:482], header[482]
        while True:
            for start in range(0, len(area), 24):
                if not area[start : start + 24].strip(b"\0 "):
                    break
                numbers.append(_number(area[start : start + 12], "sparse map", _SIZE_MAX))
                numbers.append(_number(area[start + 12 : start + 24], "sparse map", _SIZE_MAX))
            if not more:
                break
            if len(numbers) > 2 * _SPARSE_MAX:
                raise LimitError(f"tar: got a sparse file of more than {_SPARSE_MAX} pieces")
            block = self._read(_BLOCK)  # stands between header and data and counts for neither
            area, more = block[:504], block[504]
        return _number(header[483:495], "sparse size", _SIZE_MAX), _pairs(numbers)

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
                    count = _decimal(line, "sparse map")
                    if count > _SPARSE_MAX:
                        raise LimitError(f"tar: got a sparse file of {count} pieces, want at most {_SPARSE_MAX}")
                    want = 1 + 2 * count
            if len(lines) == want:
                return _pairs([_decimal(line, "sparse map") for line in lines[1:]])
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


def _check_sum(header: bytes) -> None:
    want = _number(header[148:156], "checksum", _U32_MAX)
    rest = header[:148] + b"        " + header[156:]
    if sum(rest) != want and sum(struct.unpack("512b", rest)) != want:
        raise BadArchiveError(f"tar: header checksum: got {sum(rest)}, want {want}")


def _string(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _signed(data: bytes, what: str) -> int:
    if data[0] & 0x80:  # base 256, two's complement
        value = int.from_bytes(data, "big")
        if data[0] & 0x40:
            return _bounded(value - (1 << (8 * len(data))), what)
        return _bounded(value & ((1 << (8 * len(data) - 1)) - 1), what)
    match = _OCTAL.fullmatch(data)
    if match is None:
        raise BadArchiveError(f"tar: {what}: got {data!r}, want an octal number")
    return int(match[1] or b"0", 8)


def _bounded(value: int, what: str) -> int:
    if not -_SIZE_MAX <= value <= _SIZE_MAX:
        raise BadArchiveError(f"tar: {what}: got a number beyond 63 bits")
    return value


def _number(data: bytes, what: str, limit: int) -> int:
    value = _signed(data, what)
    if not 0 <= value <= limit:
        raise BadArchiveError(f"tar: {what}: got {value}, want 0 to {limit}")
    return value


def _decimal(text: bytes, what: str) -> int:
    if not _DECIMAL.fullmatch(text) or int(text) > _SIZE_MAX:
        raise BadArchiveError(f"tar: {what}: got {text[:40]!r}, want a number")
    return int(text)


def _owner(record: bytes | None, data: bytes, what: str) -> int:
    value = _decimal(record, what) if record else _signed(data, what)
    if not 0 <= value < _U32_MAX:  # 2³²-1 is "no owner" to the kernel
        raise BadArchiveError(f"tar: {what}: got {value}, want 0 to {_U32_MAX - 1}")
    return value


def _time(text: bytes) -> tuple[int, int]:
    match = _TIME.fullmatch(text)
    if match is None or int(match[2]) > _SIZE_MAX:
        raise BadArchiveError(f"tar: mtime: got {text[:40]!r}, want a decimal number")
    seconds = int(match[2])
    nanoseconds = int((match[3] or b"").ljust(9, b"0")[:9])
    if match[1]:
        seconds = -seconds
        if nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
    return _bounded(seconds, "mtime"), nanoseconds


def _clean(name: bytes, what: str) -> bytes:
    if b"\0" in name:
        raise BadArchiveError(f"tar: {what} {name[:100]!r}: has a NUL")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise BadArchiveError(f"tar: {what} {name[:100]!r}: has a '..', want a path below the root")
    path = b"/".join(parts)
    if len(path) > _PATH_MAX or any(len(part) > _NAME_MAX for part in parts):
        raise LimitError(f"tar: {what} {name[:100]!r}: over {_PATH_MAX} bytes, or {_NAME_MAX} in a component")
    return path


def _symlink(target: bytes) -> bytes:
    if not target or b"\0" in target:
        raise BadArchiveError(f"tar: symlink target {target[:100]!r}: empty or with a NUL")
    if len(target) > _SYMLINK_MAX:
        raise LimitError(f"tar: symlink target: got {len(target)} bytes, want at most {_SYMLINK_MAX}")
    return target


def _pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2:
        raise BadArchiveError("tar: sparse map: an odd number of numbers")
    if len(numbers) > 2 * _SPARSE_MAX:
        raise LimitError(f"tar: got a sparse file of more than {_SPARSE_MAX} pieces")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _check_pieces(pieces: tuple[tuple[int, int], ...], size: int, stored: int) -> None:
    position = total = 0
    for offset, length in pieces:
        if offset < position or offset + length > size:
            raise BadArchiveError("tar: sparse map: pieces overlap or reach past the end of the file")
        position = offset + length
        total += length
    if total != stored:
        raise BadArchiveError(f"tar: sparse map: pieces of {total} bytes, but {stored} are stored")


def _pax(data: bytes, records: dict[bytes, bytes], sparse: list[bytes]) -> None:
    """Adds the records of one pax header: `length key=value\\n`. An empty value drops the key, but not for xattrs."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        if space < 0:
            raise BadArchiveError("tar: pax record without a length")
        end = position + _decimal(data[position:space], "pax record length")
        if not space + 1 < end <= len(data) or data[end - 1] != 0x0A:
            raise BadArchiveError("tar: pax record: its length is wrong")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals or b"\0" in key:
            raise BadArchiveError(f"tar: pax record {key[:40]!r}: want key=value")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") != (len(sparse) % 2 == 0):
                raise BadArchiveError("tar: sparse map: offsets and sizes out of step")
            sparse.append(value)
        elif value or key.startswith(b"SCHILY.xattr."):
            records[key] = value
        else:
            records.pop(key, None)
        position = end


def _xattrs(records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Without those that overlayfs would act on, and those that no file system takes."""
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(b"LIBARCHIVE.xattr."):
            name = unquote_to_bytes(key[17:])
            try:
                found.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
            except binascii.Error as error:
                raise BadArchiveError(f"tar: xattr {name[:100]!r}: not base64") from error
        elif key.startswith(b"SCHILY.xattr."):
            found[key[13:]] = value
    kept = {name: value for name, value in found.items() if xattr_allowed(name)}
    total = sum(len(name) + len(value) for name, value in kept.items())
    if total > _XATTR_TOTAL_MAX or any(len(value) > _XATTR_VALUE_MAX for value in kept.values()):
        raise LimitError(f"tar: xattrs: got {total} bytes, want at most {_XATTR_TOTAL_MAX}, {_XATTR_VALUE_MAX} in one")
    return tuple(sorted(kept.items()))
