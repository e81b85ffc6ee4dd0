"""A strict reader of zip files: those that every reader reads alike, and no others.

Zip says everything twice, in a central directory at the end and in local headers before each member, and readers differ
in whom they believe (CVE-2025-54368, GHSA-pqhf-p39g-3x64). So: the two must agree in every field; members, central
directory and end record must fill the file without gap or overlap and without a comment; names occur once; and what has
a second meaning somewhere (encryption, other code pages, Unicode path extras, split archives, links) is refused.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from imagebuilder.errors import BadWheelError

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11
_FLAGS = 0b110 | _DESCRIPTOR | _UTF8  # bits 1 and 2: how hard deflate tried
_EXTRA_ZIP64, _EXTRA_UNICODE_PATH = 0x0001, 0x7075
_STEP = 1 << 20
MEMBERS_MAX = 1 << 20
SIZE_MAX = 64 << 30  # bytes of all members together


@dataclass(frozen=True, slots=True)
class Member:
    """A file. name: relative, without empty, `.` and `..` components. executable: any of the three x bits.

    date: (year, month, day, hour, minute, second), of no time zone. start, stored: its bytes in the archive. end: where
    the next member begins.
    """

    name: str
    size: int
    executable: bool
    date: tuple[int, int, int, int, int, int]
    start: int
    stored: int
    end: int
    method: int
    crc: int


class Zip:
    """fd: borrowed; the file must not change. label: for messages. Raises BadWheelError from everywhere."""

    def __init__(self, fd: int, label: str) -> None:
        self._label = label
        size = os.fstat(fd).st_size
        if size < _END.size:
            self.refuse(f"got {size} bytes, not a zip file")
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        try:
            self.members: dict[str, Member] = self._read()
        except struct.error:
            self._map.close()
            self.refuse("a header reaches beyond the end of the file")
        except BaseException:
            self._map.close()
            raise

    def close(self) -> None:
        self._map.close()

    def __enter__(self) -> Zip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refuse(self, reason: str) -> NoReturn:
        raise BadWheelError(self._label, reason)

    # ------------------------------------------------------------------ structure

    def _read(self) -> dict[str, Member]:
        count, start, end = self._end()
        found: dict[str, Member] = {}
        directories: set[str] = set()
        at, position, total = start, 0, 0
        for _ in range(count):
            at, local, member, is_directory = self._central(at, end)
            if local != position:
                self.refuse(f"{member.name!r}: starts at {local}, want {position}: gap, overlap or another order")
            position = member.end
            if is_directory:
                directories.add(member.name)
            elif member.name in found:
                self.refuse(f"{member.name!r}: occurs twice")
            else:
                found[member.name] = member
            total += member.size
            if total > SIZE_MAX:
                self.refuse(f"unpacks to more than {SIZE_MAX} bytes")
        if at != end:
            self.refuse("central directory: its size is not that of its entries")
        if position != start:
            self.refuse(f"{start - position} bytes between the members and the central directory")
        for name in found:
            parts = name.split("/")
            directories.update("/".join(parts[:length]) for length in range(1, len(parts)))
        if both := directories & found.keys():
            self.refuse(f"{min(both)!r}: both a file and a directory")
        return found

    def _end(self) -> tuple[int, int, int]:
        """(number of members, start, end of the central directory)."""
        at = len(self._map) - _END.size
        magic, disk, disk_start, here, count, size, start, comment = _END.unpack_from(self._map, at)
        if magic != b"PK\x05\x06" or comment:
            self.refuse("no end record in the last 22 bytes: not a zip file, or with a comment or trailing data")
        end = at
        locator = at - _LOCATOR64.size
        if locator >= _END64.size and self._map[locator : locator + 4] == b"PK\x06\x07":
            old = (here, count, size, start)
            _, where_disk, where, disks = _LOCATOR64.unpack_from(self._map, locator)
            end = locator - _END64.size
            magic, length, _, _, disk64, start64, here, count, size, start = _END64.unpack_from(self._map, end)
            if magic != b"PK\x06\x06" or where != end or length != _END64.size - 12 or disks != 1:
                self.refuse("zip64 end record: not where or what its locator says")
            if where_disk or disk64 or start64:
                self.refuse("split over several files")
            for short, long, limit in zip(old, (here, count, size, start), (_U16, _U16, _U32, _U32), strict=True):
                if short != long and short != limit:
                    self.refuse("the two end records disagree")
        if disk or disk_start or here != count:
            self.refuse("split over several files")
        if start + size != end:
            self.refuse("central directory: does not end where the end record begins")
        if count > MEMBERS_MAX:
            self.refuse(f"got {count} members, want at most {MEMBERS_MAX}")
        return count, start, end

    def _central(self, at: int, end: int) -> tuple[int, int, Member, bool]:
        """One entry: (position after it, position of its local header, member, whether it is a directory)."""
        if at + _CENTRAL.size > end:
            self.refuse("central directory: ends inside an entry")
        (magic, made_by, _, flags, method, time, date, crc, stored, size, name_length, extra_length, comment, disk, _,
         attributes, local) = _CENTRAL.unpack_from(self._map, at)  # fmt: skip
        after = at + _CENTRAL.size + name_length + extra_length
        if magic != b"PK\x01\x02" or after > end:
            self.refuse("central directory: broken entry")
        raw = self._map[at + _CENTRAL.size : at + _CENTRAL.size + name_length]
        name, is_directory = self._name(raw, flags)
        if flags & ~_FLAGS or method not in (_STORED, _DEFLATED) or disk or comment:
            self.refuse(f"{name!r}: got flags {flags:#x}, method {method}; want stored or deflated, and nothing more")
        wide = self._zip64(name, self._map[after - extra_length : after], (size, stored, local))
        size, stored, local = wide
        mode = attributes >> 16 if made_by >> 8 == 3 else 0
        if mode & 0o170000 not in (0, 0o040000 if is_directory else 0o100000):
            self.refuse(f"{name!r}: got file type {mode & 0o170000:o}, want a file")
        if is_directory and size:
            self.refuse(f"{name!r}: a directory with content")
        start = self._local(local, raw, (flags, method, time, date), (crc, stored, size), name)
        tail = start + stored
        if flags & _DESCRIPTOR:
            tail += self._descriptor(tail, (crc, stored, size), name)
        member = Member(name, size, bool(mode & 0o111), _date(date, time), start, stored, tail, method, crc)
        return after, local, member, is_directory

    def _name(self, raw: bytes, flags: int) -> tuple[str, bool]:
        label = repr(raw[:200])
        if not flags & _UTF8 and not raw.isascii():
            self.refuse(f"{label}: a name that is neither ASCII nor marked as UTF-8")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"{label}: a name that is not UTF-8")
        is_directory = name.endswith("/")
        parts = name.removesuffix("/").split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or len(raw) > 4000:
            self.refuse(f"{label}: want a relative path without empty, '.', '..' and overlong components")
        if "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
            self.refuse(f"{label}: control characters or backslashes in a name")
        return "/".join(parts), is_directory

    def _zip64(self, name: str, extra: bytes, values: tuple[int, ...]) -> tuple[int, ...]:
        """values with those that are all ones read from the zip64 extra field, which must be there just for them."""
        missing = sum(value == _U32 for value in values)
        given: list[int] | None = None
        at = 0
        while at < len(extra):
            if at + 4 > len(extra):
                self.refuse(f"{name!r}: broken extra field")
            kind, length = struct.unpack_from("<HH", extra, at)
            at += 4 + length
            if at > len(extra) or kind == _EXTRA_UNICODE_PATH:
                self.refuse(f"{name!r}: broken extra field, or a second name in one")
            if kind == _EXTRA_ZIP64:
                if given is not None or length % 8:
                    self.refuse(f"{name!r}: broken zip64 field")
                given = [int.from_bytes(extra[row : row + 8], "little") for row in range(at - length, at, 8)]
        # a writer that did not know the sizes beforehand leaves the field in the local header in any case
        if missing and (given is None or len(given) < missing):
            self.refuse(f"{name!r}: no zip64 sizes")
        spare = iter(given or ())
        return tuple(next(spare) if value == _U32 else value for value in values)

    def _local(
        self, at: int, raw: bytes, same: tuple[int, int, int, int], sizes: tuple[int, int, int], name: str
    ) -> int:
        """Compares a local header with its central entry; where the content begins."""
        magic, _, flags, method, time, date, crc, stored, size, name_length, extra_length = _LOCAL.unpack_from(
            self._map, at
        )
        begin = at + _LOCAL.size
        if magic != b"PK\x03\x04" or self._map[begin : begin + name_length] != raw:
            self.refuse(f"{name!r}: the local header has another name or is none")
        if (flags, method, time, date) != same:
            self.refuse(f"{name!r}: the local header disagrees with the central directory")
        start = begin + name_length + extra_length
        size, stored = self._zip64(name, self._map[begin + name_length : start], (size, stored))
        given = (crc, stored, size)
        if given != sizes and not (flags & _DESCRIPTOR and given == (0, 0, 0)):
            self.refuse(f"{name!r}: the local header has another size or checksum")
        return int(start)

    def _descriptor(self, at: int, sizes: tuple[int, int, int], name: str) -> int:
        """Length of the data descriptor at `at`, in the one of its four forms that agrees."""
        for form, magic in (("<4sIII", True), ("<4sIQQ", True), ("<III", False), ("<IQQ", False)):
            if at + struct.calcsize(form) <= len(self._map):
                values = struct.unpack_from(form, self._map, at)
                if values == ((b"PK\x07\x08", *sizes) if magic else sizes):
                    return struct.calcsize(form)
        raise BadWheelError(self._label, f"{name!r}: the data descriptor disagrees with the central directory")

    # ------------------------------------------------------------------ content

    def read(self, member: Member) -> Iterator[bytes]:
        """The content in steps of at most 1 MiB. Size and CRC-32 are checked before the last step is given."""
        crc = size = 0
        held = b""
        for step in self._steps(member):
            size += len(step)
            if size > member.size:
                self.refuse(f"{member.name!r}: unpacks to more than {member.size} bytes")
            crc = zlib.crc32(step, crc)
            if held:
                yield held
            held = step
        if size != member.size or crc != member.crc:
            self.refuse(f"{member.name!r}: content has another size or checksum")
        if held:
            yield held

    def _steps(self, member: Member) -> Iterator[bytes]:
        end = member.start + member.stored
        if member.method == _STORED:
            for at in range(member.start, end, _STEP):
                yield self._map[at : min(at + _STEP, end)]
            return
        inflate = zlib.decompressobj(wbits=-15)
        try:
            for at in range(member.start, end, _STEP):
                data = self._map[at : min(at + _STEP, end)]
                while data and not inflate.eof:
                    if step := inflate.decompress(data, _STEP):
                        yield step
                    data = inflate.unconsumed_tail
                if inflate.eof and (inflate.unused_data or at + _STEP < end):
                    self.refuse(f"{member.name!r}: data after the end of its deflate stream")
            while not inflate.eof and (step := inflate.decompress(inflate.unconsumed_tail, _STEP)):
                yield step
        except zlib.error as error:
            raise BadWheelError(self._label, f"{member.name!r}: {error}") from error
        if not inflate.eof:
            self.refuse(f"{member.name!r}: its deflate stream does not end")


def _date(date: int, time: int) -> tuple[int, int, int, int, int, int]:
    return (
        1980 + (date >> 9), min(max(date >> 5 & 15, 1), 12), max(date & 31, 1),
        min(time >> 11, 23), min(time >> 5 & 63, 59), min(2 * (time & 31), 59),
    )  # fmt: skip
