"""Fields of tar headers and pax records become values, or are refused. Bytes in, values out."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from urllib.parse import unquote_to_bytes

from cext.errors import LimitError
from imagebuilder.errors import BadArchiveError
from lazyfs.index.model import xattr_allowed

SPARSE_MAX = 1 << 18  # pieces of one sparse file
_NAME_MAX = 255
_PATH_MAX = 4096
_SYMLINK_MAX = 4095
_XATTR_VALUE_MAX = 65535
_XATTR_TOTAL_MAX = 128 << 10
SIZE_MAX = (1 << 63) - 1
U32_MAX = (1 << 32) - 1
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


def check_sum(header: bytes) -> None:
    want = read_number(header[148:156], "checksum", U32_MAX)
    rest = header[:148] + b"        " + header[156:]
    if sum(rest) != want and sum(struct.unpack("512b", rest)) != want:
        raise BadArchiveError(f"tar: header checksum: got {sum(rest)}, want {want}")


def read_string(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def read_signed(data: bytes, what: str) -> int:
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
    if not -SIZE_MAX <= value <= SIZE_MAX:
        raise BadArchiveError(f"tar: {what}: got a number beyond 63 bits")
    return value


def read_number(data: bytes, what: str, limit: int) -> int:
    value = read_signed(data, what)
    if not 0 <= value <= limit:
        raise BadArchiveError(f"tar: {what}: got {value}, want 0 to {limit}")
    return value


def read_decimal(text: bytes, what: str) -> int:
    if not _DECIMAL.fullmatch(text) or int(text) > SIZE_MAX:
        raise BadArchiveError(f"tar: {what}: got {text[:40]!r}, want a number")
    return int(text)


def read_owner(record: bytes | None, data: bytes, what: str) -> int:
    value = read_decimal(record, what) if record else read_signed(data, what)
    if not 0 <= value < U32_MAX:  # 2³²-1 is "no owner" to the kernel
        raise BadArchiveError(f"tar: {what}: got {value}, want 0 to {U32_MAX - 1}")
    return value


def read_time(text: bytes) -> tuple[int, int]:
    match = _TIME.fullmatch(text)
    if match is None or int(match[2]) > SIZE_MAX:
        raise BadArchiveError(f"tar: mtime: got {text[:40]!r}, want a decimal number")
    seconds = int(match[2])
    nanoseconds = int((match[3] or b"").ljust(9, b"0")[:9])
    if match[1]:
        seconds = -seconds
        if nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
    return _bounded(seconds, "mtime"), nanoseconds


def clean_path(name: bytes, what: str) -> bytes:
    if b"\0" in name:
        raise BadArchiveError(f"tar: {what} {name[:100]!r}: has a NUL")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise BadArchiveError(f"tar: {what} {name[:100]!r}: has a '..', want a path below the root")
    path = b"/".join(parts)
    if len(path) > _PATH_MAX or any(len(part) > _NAME_MAX for part in parts):
        raise LimitError(f"tar: {what} {name[:100]!r}: over {_PATH_MAX} bytes, or {_NAME_MAX} in a component")
    return path


def check_symlink(target: bytes) -> bytes:
    if not target or b"\0" in target:
        raise BadArchiveError(f"tar: symlink target {target[:100]!r}: empty or with a NUL")
    if len(target) > _SYMLINK_MAX:
        raise LimitError(f"tar: symlink target: got {len(target)} bytes, want at most {_SYMLINK_MAX}")
    return target


def read_pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2:
        raise BadArchiveError("tar: sparse map: an odd number of numbers")
    if len(numbers) > 2 * SPARSE_MAX:
        raise LimitError(f"tar: got a sparse file of more than {SPARSE_MAX} pieces")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def check_pieces(pieces: tuple[tuple[int, int], ...], size: int, stored: int) -> None:
    position = total = 0
    for offset, length in pieces:
        if offset < position or offset + length > size:
            raise BadArchiveError("tar: sparse map: pieces overlap or reach past the end of the file")
        position = offset + length
        total += length
    if total != stored:
        raise BadArchiveError(f"tar: sparse map: pieces of {total} bytes, but {stored} are stored")


def read_pax(data: bytes, records: dict[bytes, bytes], sparse: list[bytes]) -> None:
    """Adds the records of one pax header: `length key=value\\n`. An empty value drops the key, but not for xattrs."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        if space < 0:
            raise BadArchiveError("tar: pax record without a length")
        end = position + read_decimal(data[position:space], "pax record length")
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


def read_xattrs(records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
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
