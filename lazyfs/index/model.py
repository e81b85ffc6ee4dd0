"""The nouns of a file tree, as docs/format.md §4 has them: what stands under one name, and what makes it valid."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from cext.errors import CorruptError, LimitError

NAME_MAX = 255  # these bounds are those of cext/src/os_limits.h
SYMLINK_MAX = 4095
PATH_MAX = 4096
DEPTH_MAX = 2048
XATTR_VALUE_MAX = 65535
XATTR_TOTAL_MAX = 128 << 10
FILE_SIZE_MAX = (1 << 63) - 1
INODES_MAX = 16 << 20
MAJOR_MAX, MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1  # what Linux and EROFS can say

PART = struct.Struct("<Q32s")
HOLE = bytes(32)
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")

Xattrs = tuple[tuple[bytes, bytes], ...]


class Kind(IntEnum):
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    WHITEOUT = 8
    LINK = 9


class Flags(IntFlag):
    """Of directories in layers.

    OPAQUE: hides what lower layers have in it. IMPLICIT: the layer only passes through.
    """

    OPAQUE = 1
    IMPLICIT = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under a name. The root's name is empty, and so are names that a path beside the entry gives.

    size: of a file, or the length of target. parts: `u64 length, id[32]` for each part of a file. target: of a
    symlink, or the path from the root that a link names. device: major and minor. link_group: 0, or the identity of
    the names that are one inode.
    """

    kind: Kind
    name: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_sec: int = 0
    mtime_nsec: int = 0
    xattrs: Xattrs = ()
    size: int = 0
    algorithm: int = 0
    parts: bytes = b""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    link_group: int = 0
    flags: int = 0


def check_name(name: bytes) -> None:
    """Raises CorruptError for what cannot be one component of a path."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise CorruptError(f"name: got {name[:100]!r}, want a component of a path")
    if len(name) > NAME_MAX:
        raise LimitError(f"name: got {len(name)} bytes, want at most {NAME_MAX}")


def xattr_allowed(name: bytes) -> bool:
    """Whether an image may have an xattr of this name. trusted.* and user.overlay.* speak to overlayfs; the other
    namespaces mean nothing to Linux, or nothing that EROFS can say.
    """
    if len(name) > NAME_MAX or b"\0" in name or name.startswith(b"user.overlay."):
        return False
    space, _, rest = name.partition(b".")
    return name in _ACLS if space == b"system" else bool(rest) and space in (b"user", b"security")


def check_path(path: bytes) -> list[bytes]:
    """The components of a path from the root; none for the root."""
    if not path:
        return []
    if len(path) > PATH_MAX:
        raise LimitError(f"path: got {len(path)} bytes, want at most {PATH_MAX}")
    parts = path.split(b"/")
    for part in parts:
        check_name(part)
    return parts


def check_entry(entry: Entry) -> None:
    """Raises CorruptError or LimitError unless everything but the name is as the format asks."""
    kind = entry.kind
    if entry.mode & ~0o7777 or not (0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32):
        raise CorruptError(f"owner and mode: got {entry.uid}:{entry.gid} {entry.mode:o}, want 32 bits, at most 7777")
    if not (-(1 << 63) <= entry.mtime_sec < 1 << 63 and 0 <= entry.mtime_nsec < 1_000_000_000):
        raise CorruptError(f"mtime: got {entry.mtime_sec} s {entry.mtime_nsec} ns, want 64 bits and below 10⁹")
    if not 0 <= entry.link_group < 1 << 64:
        raise CorruptError(f"link group: got {entry.link_group}, want 64 bits")
    if entry.flags & ~3 or (entry.flags and kind is not Kind.DIRECTORY):
        raise CorruptError(f"flags: got {int(entry.flags)} on {kind.name.lower()}")
    if kind is Kind.FILE:
        _check_file(entry)
    elif entry.parts or entry.algorithm:
        raise CorruptError(f"parts: got some on {kind.name.lower()}")
    if entry.xattrs:
        _check_xattrs(entry.xattrs)
    if kind is not Kind.FILE:
        _check_special(entry)


def _check_special(entry: Entry) -> None:
    kind = entry.kind
    if kind in (Kind.DIRECTORY, Kind.WHITEOUT, Kind.LINK) and entry.link_group:
        raise CorruptError(f"link group: got {entry.link_group} on {kind.name.lower()}, want 0")
    if kind in (Kind.WHITEOUT, Kind.LINK) and (
        entry.mode or entry.uid or entry.gid or entry.mtime_sec or entry.mtime_nsec or entry.xattrs
    ):
        raise CorruptError(f"{kind.name.lower()}: got metadata, want none")
    if entry.size != len(entry.target):
        raise CorruptError(f"size: got {entry.size} on {kind.name.lower()}, want {len(entry.target)}")
    if kind is Kind.SYMLINK:
        if not entry.target or b"\0" in entry.target:
            raise CorruptError("symlink: got no target or one with NUL")
        if len(entry.target) > SYMLINK_MAX:
            raise LimitError(f"symlink: got {len(entry.target)} bytes, want at most {SYMLINK_MAX}")
    elif kind is Kind.LINK:
        if not check_path(entry.target):
            raise CorruptError("link: got the root as target")
    elif entry.target:
        raise CorruptError(f"target: got one on {kind.name.lower()}")
    major, minor = entry.device
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        if not (0 <= major <= MAJOR_MAX and 0 <= minor <= MINOR_MAX):
            raise LimitError(f"device: got {major}:{minor}, want at most {MAJOR_MAX}:{MINOR_MAX}")
        if kind is Kind.CHARACTER and not major and not minor:
            raise CorruptError("character device 0:0: overlayfs reads it as a whiteout")
    elif major or minor:
        raise CorruptError(f"device: got one on {kind.name.lower()}")


def _check_file(entry: Entry) -> None:
    if entry.target or entry.device != (0, 0):
        raise CorruptError("file: got a target or a device")
    if not 0 <= entry.size <= FILE_SIZE_MAX:
        raise LimitError(f"file: got size {entry.size}, want at most {FILE_SIZE_MAX}")
    if len(entry.parts) % PART.size:
        raise CorruptError(f"parts: got {len(entry.parts)} bytes, want a multiple of {PART.size}")
    if entry.algorithm not in ((1, 2) if entry.parts else (0,)):
        raise CorruptError(f"algorithm: got {entry.algorithm}, want 1 or 2 with parts, 0 without")
    total, after_hole = 0, False
    for length, identity in PART.iter_unpack(entry.parts):
        hole = identity == HOLE
        if not length or (hole and after_hole):
            raise CorruptError("parts: got an empty one, or two holes side by side")
        total += length
        after_hole = hole
    if total != entry.size:
        raise CorruptError(f"parts: got {total} bytes, want the file's {entry.size}")


def _check_xattrs(xattrs: Xattrs) -> None:
    total, before = 0, b""
    for name, value in xattrs:
        if not xattr_allowed(name):
            raise CorruptError(f"xattr: got {name[:100]!r}, want user.*, security.* or an ACL")
        if name <= before:
            raise CorruptError(f"xattr: got {name[:100]!r} after {before[:100]!r}, want ascending names")
        if len(value) > XATTR_VALUE_MAX:
            raise LimitError(f"xattr {name!r}: got {len(value)} bytes, want at most {XATTR_VALUE_MAX}")
        total += len(name) + len(value)
        before = name
    if total > XATTR_TOTAL_MAX:
        raise LimitError(f"xattrs: got {total} bytes, want at most {XATTR_TOTAL_MAX}")
