"""Compressed bytes in, plain bytes out, both hashed, and never more of them than is sane.

Memory is bounded by the readers themselves; a bomb can only cost time, and the two caps bound that.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from imagebuilder.errors import BadArchiveError, BombError
from registry.model import Digest

_STEP = 256 << 10
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"LZIP": "lzip"}


@dataclass(frozen=True, slots=True)
class Caps:
    """plain: bytes that one stream may decompress to. ratio: plain bytes for each compressed one, looked at beyond
    `free`. members: of one archive; each costs memory, and more than a few tens of thousands have to be paid for with
    bytes of the stream, as they are in any archive whose names differ.
    """

    plain: int = 1 << 40
    ratio: int = 4000  # gzip can't reach it (1032); zstd of zeros gives tens of thousands
    free: int = 1 << 30
    members: int = 4 << 20
    members_free: int = 1 << 16
    member_bytes: int = 1  # compressed; measured: 3.6 for empty files with numbered names, 0.5 for one name


class Source:
    """A stream of one known size, hashed as it is read.

    progress: told the bytes of each read.
    """

    def __init__(self, file: BinaryIO, progress: Callable[[int], None] | None = None) -> None:
        self._file = file
        self._progress = progress
        self._hasher = hashlib.sha256()
        self.size = 0

    def read(self, limit: int = _STEP) -> bytes:
        data = self._file.read(limit)
        self._hasher.update(data)
        self.size += len(data)
        if self._progress and data:
            self._progress(len(data))
        return data

    def digest(self) -> Digest:
        """Of what was read; reads what is left first."""
        while self.read():
            pass
        return Digest("sha256:" + self._hasher.hexdigest())


class Plain:
    """The decompressed bytes of a Source: gzip (any number of members), zstd (any number of frames) or neither."""

    def __init__(self, source: Source, caps: Caps | None = None) -> None:
        self._source = source
        self._caps = caps or Caps()
        self._hasher = hashlib.sha256()
        self.size = 0
        head = b""
        while len(head) < 6 and (data := source.read(_STEP)):
            head += data
        for magic, name in _OTHERS.items():
            if head.startswith(magic):
                raise BadArchiveError(f"layer: got {name} compression, want gzip, zstd or none")
        self._steps: Callable[[int], bytes]
        if head.startswith(_GZIP):
            self._steps = _Gzip(source, head).read
        elif head.startswith(_ZSTD):
            from registry import zstd

            self._steps = zstd.Reader(_Replay(head, source)).read_some
        else:
            self._steps = _Replay(head, source).read

    def read(self, limit: int) -> bytes:
        """1 to limit bytes, or none at the end."""
        data = self._steps(limit)
        self.size += len(data)
        self._hasher.update(data)
        caps = self._caps
        if self.size > caps.plain:
            raise BombError(f"layer: decompresses to more than {caps.plain} bytes")
        if self.size > caps.free and self.size > caps.ratio * self._source.size:
            raise BombError(f"layer: decompresses to more than {caps.ratio} times its size")
        return data

    def count(self, members: int) -> None:
        """Told how many members there were so far. Raises BombError."""
        caps = self._caps
        if members > caps.members:
            raise BombError(f"layer: got more than {caps.members} members")
        if members > caps.members_free and (members - caps.members_free) * caps.member_bytes > self._source.size:
            raise BombError(f"layer: got {members} members out of {self._source.size} bytes")

    def digest(self) -> Digest:
        """Of the whole plain stream (OCI's diff_id); reads what is left first."""
        while self.read(_STEP):
            pass
        return Digest("sha256:" + self._hasher.hexdigest())


class _Replay:
    """A stream whose first bytes were looked at already."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, limit: int = _STEP) -> bytes:
        if self._head:
            data, self._head = self._head[:limit], self._head[limit:]
            return data
        return self._source.read(limit)


class _Gzip:
    def __init__(self, source: Source, head: bytes) -> None:
        self._source = source
        self._input = head
        self._member: zlib._Decompress | None = None

    def read(self, limit: int) -> bytes:
        while True:
            if not self._input:
                self._input = self._source.read(_STEP)
                if not self._input:
                    if self._member is not None:
                        raise BadArchiveError("gzip stream: ends inside a member")
                    return b""
            if self._member is None:
                self._member = zlib.decompressobj(wbits=31)
            try:
                data = self._member.decompress(self._input, limit)
            except zlib.error as error:
                raise BadArchiveError(f"gzip stream: {error}") from error
            if self._member.eof:
                self._input = self._member.unused_data
                self._member = None
            else:
                self._input = self._member.unconsumed_tail
            if data:
                return data
