"""fs.erofs, docs/format.md §5, read in Python: the oracle for the C code, and what the portable server uses.

Reads what EROFS images of metadata have: extended inodes, flat and inline data, xattrs behind the inode.
Every offset is checked before it is used. Whether an image is the canonical one of its tree is for `cext.check_image`
to say.
"""

from __future__ import annotations

import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from cext.errors import CorruptError
from lazyfs.index.model import SYMLINK_MAX, XATTR_TOTAL_MAX

METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"

_SUPER_AT = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBI")
_MAGIC = 0xE0F5E1E2
_CHUNKED_FILE = 0x4  # the only incompatible feature that we know
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBB")
_XATTR_HEAD, _XATTR = 12, struct.Struct("<BBH")
_SLOT = 32
_FLAT, _INLINE, _CHUNKS = 0, 2, 4
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_DIRECTORY_MAX = 1 << 32
_CACHED = 512  # directories

_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


@dataclass(frozen=True, slots=True)
class Inode:
    """nid: its number in the image. mode: with the file type. device: major and minor. at: of its bytes; body: of what
    follows its xattrs.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    links: int
    device: tuple[int, int]
    layout: int
    block: int
    at: int
    xattr_size: int

    @property
    def body(self) -> int:
        return self.at + _INODE.size + self.xattr_size


class ErofsReader:
    """data: the whole image; kept, and not to change. Everything raises CorruptError."""

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._size = len(data)
        self._directories: OrderedDict[int, dict[bytes, int]] = OrderedDict()
        if self._size < _SUPER_AT + _SUPER.size:
            raise CorruptError(f"fs.erofs: got {self._size} bytes, want a super block")
        found = _SUPER.unpack_from(data, _SUPER_AT)
        magic, _, _, block_bits, _, root, inodes, _, _, _, meta, _, _, _, incompatible, _, devices, _, _, _, _ = found
        if magic != _MAGIC:
            raise CorruptError(f"fs.erofs: got magic {magic:#x}, want {_MAGIC:#x}")
        if block_bits != 12 or incompatible & ~_CHUNKED_FILE or devices:
            raise CorruptError(f"fs.erofs: got features {incompatible:#x}, {devices} devices, 2^{block_bits} blocks")
        self._block = 1 << block_bits
        self._meta = meta * self._block
        self.inode_count: int = inodes
        self.root: int = root
        if not stat.S_ISDIR(self.inode(root).mode):
            raise CorruptError("fs.erofs: the root is not a directory")

    # ------------------------------------------------------------------ inodes

    def inode(self, nid: int) -> Inode:
        at = self._meta + nid * _SLOT
        self._check(at, _INODE.size, f"inode {nid}")
        how, xattrs, mode, _, size, where, _, uid, gid, seconds, nanoseconds, links = _INODE.unpack_from(self._data, at)
        layout = how >> 1
        if not how & 1 or layout not in (_FLAT, _INLINE, _CHUNKS):
            raise CorruptError(f"fs.erofs: inode {nid}: got format {how:#x}")
        if nanoseconds >= 1_000_000_000 or size >= 1 << 63 or stat.S_IFMT(mode) not in _TYPES.values():
            raise CorruptError(f"fs.erofs: inode {nid}: got mode {mode:o}, size {size}, {nanoseconds} ns")
        if seconds >= 1 << 63:
            seconds -= 1 << 64
        xattr_size = _XATTR_HEAD + (xattrs - 1) * 4 if xattrs else 0
        self._check(at + _INODE.size, xattr_size, f"xattrs of inode {nid}")
        device = (0, 0)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = (where >> 8 & 0xFFF, where & 0xFF | where >> 12 & 0xFFF00)
        mtime = seconds * 1_000_000_000 + nanoseconds
        return Inode(nid, mode, uid, gid, mtime, size, links, device, layout, where, at, xattr_size)

    def target(self, inode: Inode) -> bytes:
        """Of a symlink."""
        if not stat.S_ISLNK(inode.mode) or not 0 < inode.size <= SYMLINK_MAX:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got {inode.size} bytes as target of a symlink")
        target = self._content(inode)
        if b"\0" in target:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got NUL in its target")
        return target

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """All of them, overlayfs's included."""
        if not inode.xattr_size:
            return {}
        start, end = inode.at + _INODE.size, inode.body
        if any(self._data[start : start + _XATTR_HEAD]):
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got shared xattrs or a filter, want a header of zeros")
        at = start + _XATTR_HEAD
        found: dict[bytes, bytes] = {}
        while at < end:
            at = self._xattr(inode, at, end, found)
        if sum(len(name) + len(value) for name, value in found.items()) > XATTR_TOTAL_MAX + 1024:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got more than {XATTR_TOTAL_MAX} bytes of xattrs")
        return found

    def _xattr(self, inode: Inode, at: int, end: int, found: dict[bytes, bytes]) -> int:
        """Adds the xattr at a place. Returns where the next one is."""
        if at + _XATTR.size > end:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got an xattr that is cut short")
        name_length, prefix, value_length = _XATTR.unpack_from(self._data, at)
        at += _XATTR.size
        stop: int = at + name_length + value_length
        if stop > end or prefix not in _PREFIXES:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got an xattr of prefix {prefix} that is cut short")
        name = _PREFIXES[prefix] + self._data[at : at + name_length]
        if name in found:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got xattr {name!r} twice")
        found[name] = self._data[at + name_length : stop]
        return -(-stop // 4) * 4

    def object(self, inode: Inode) -> bytes | None:
        """The id of a file's content, None if it has none."""
        if not stat.S_ISREG(inode.mode):
            return None
        redirect = self.xattrs(inode).get(REDIRECT)
        if redirect is None:
            if inode.size:
                raise CorruptError(f"fs.erofs: inode {inode.nid}: got {inode.size} bytes without an object")
            return None
        digits = redirect[1:3] + redirect[4:]
        if len(redirect) != 66 or redirect[:1] != b"/" or redirect[3:4] != b"/" or digits.strip(b"0123456789abcdef"):
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got redirect {redirect[:100]!r}, want /ab/cdef…")
        return bytes.fromhex(digits.decode())

    # ------------------------------------------------------------------ directories

    def names(self, inode: Inode) -> dict[bytes, int]:
        """What stands in a directory, ascending: name and nid. Not to be changed."""
        found = self._directories.get(inode.nid)
        if found is None:
            found = self._names(inode)
            self._directories[inode.nid] = found
            if len(self._directories) > _CACHED:
                self._directories.popitem(last=False)
        else:
            self._directories.move_to_end(inode.nid)
        return found

    def parent(self, inode: Inode) -> int:
        """The nid of a directory's parent."""
        return self._entries(inode)[b".."]

    def _names(self, inode: Inode) -> dict[bytes, int]:
        found = self._entries(inode)
        if found.pop(b".", None) != inode.nid or found.pop(b"..", None) is None:
            raise CorruptError(f"fs.erofs: directory {inode.nid}: got no . and .. of its own")
        return found

    def _entries(self, inode: Inode) -> dict[bytes, int]:
        if not stat.S_ISDIR(inode.mode) or not 0 < inode.size < _DIRECTORY_MAX:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got {inode.size} bytes of a directory")
        content = self._content(inode)
        found: dict[bytes, int] = {}
        before = b""
        for start in range(0, len(content), self._block):
            for name, nid in _block_entries(content[start : start + self._block], inode.nid):
                if name <= before or b"/" in name:
                    raise CorruptError(f"fs.erofs: directory {inode.nid}: got {name[:100]!r} after {before[:100]!r}")
                before = name
                found[name] = nid
        return found

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path with its inode, parents before children, in name order; the root first."""
        root = self.inode(self.root)
        seen = {self.root}
        yield b"", root
        stack = [(b"", iter(self.names(root).items()))]
        while stack:
            path, rest = stack[-1]
            step = next(rest, None)
            if step is None:
                stack.pop()
                continue
            below = path + b"/" + step[0] if path else step[0]
            inode = self.inode(step[1])
            yield below, inode
            if stat.S_ISDIR(inode.mode):
                if inode.nid in seen:
                    raise CorruptError(f"fs.erofs: {below[:100]!r}: got a directory that is somewhere else already")
                seen.add(inode.nid)
                stack.append((below, iter(self.names(inode).items())))

    # ------------------------------------------------------------------ bytes

    def _content(self, inode: Inode) -> bytes:
        """Of a directory or symlink."""
        tail = inode.size % self._block if inode.layout == _INLINE else 0
        if inode.layout == _INLINE and not tail:
            tail = min(inode.size, self._block)
        plain = inode.size - tail
        if inode.layout == _CHUNKS:
            raise CorruptError(f"fs.erofs: inode {inode.nid}: got chunks where data is wanted")
        start = inode.block * self._block
        if plain:
            self._check(start, plain, f"data of inode {inode.nid}")
        if tail:
            self._check(inode.body, tail, f"data of inode {inode.nid}")
        return self._data[start : start + plain] + self._data[inode.body : inode.body + tail]

    def _check(self, at: int, size: int, what: str) -> None:
        if at + size > self._size:
            raise CorruptError(f"fs.erofs: {what}: got {size} bytes at {at}, but there are {self._size}")


def _block_entries(block: bytes, nid: int) -> Iterator[tuple[bytes, int]]:
    if len(block) < _DIRENT.size:
        raise CorruptError(f"fs.erofs: directory {nid}: got a block of {len(block)} bytes")
    first = _DIRENT.unpack_from(block)[1]
    count, rest = divmod(first, _DIRENT.size)
    if rest or not count or first > len(block):
        raise CorruptError(f"fs.erofs: directory {nid}: got its first name at {first}")
    rows = [_DIRENT.unpack_from(block, at) for at in range(0, first, _DIRENT.size)]
    ends = [row[1] for row in rows[1:]] + [len(block)]
    for (target, at, _, _), end in zip(rows, ends, strict=True):
        if not first <= at < end <= len(block):
            raise CorruptError(f"fs.erofs: directory {nid}: got a name from {at} to {end}")
        name = block[at:end]
        if end == len(block):
            name = name.rstrip(b"\0")
        if not name or b"\0" in name or len(name) > 255:
            raise CorruptError(f"fs.erofs: directory {nid}: got name {name[:100]!r}")
        yield name, target
