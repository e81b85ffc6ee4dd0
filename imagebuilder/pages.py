"""Pages that are picked out of a merged tree by looking into its files. Pure: contents come from whoever has chunks.

Everything in an image may be hostile: links are followed inside of the tree, sizes are bounded, and a file whose
content is not to be had is left out.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import cext
from cext.errors import CorruptError, OnesecError
from lazyfs.bootpack import PAGE, Page
from lazyfs.index.layer import resolve
from lazyfs.index.model import HOLE, PART, Entry, Kind

LOOKS_MAX = 200_000
"""Paths that are looked at, a second or two of them; torch needs 5,000. It bounds whatever an image multiplies."""

SMALL_MAX = 64 << 10
"""Bytes of a configuration file that count."""

_HELD = 64  # chunks in memory
_OBJECT = struct.Struct("<IIQQ")
_OBJECT_CONTEXT = "onesec 2026 object v1"


class Files(Protocol):
    """A merged tree, as lazyfs.index.layer has it."""

    def lookup(self, path: bytes) -> Entry | None: ...

    def names(self, path: bytes) -> Iterable[bytes]: ...


class Found(NamedTuple):
    """path: the real one, from the root."""

    path: bytes
    entry: Entry


def object_id(entry: Entry) -> bytes:
    """Of a file with content, docs/format.md section 6."""
    head = _OBJECT.pack(entry.algorithm, 0, entry.size, len(entry.parts) // PART.size)
    return cext.blake3(head + entry.parts, context=_OBJECT_CONTEXT)


class Contents:
    """Bytes of files by their chunks. chunk: verified, or None if it is not here."""

    def __init__(self, chunk: Callable[[bytes], bytes | None]) -> None:
        self._chunk = chunk
        self._held: dict[bytes, bytes] = {}
        self._parts: dict[bytes, tuple[list[int], list[bytes], list[int]]] = {}

    def read(self, entry: Entry, offset: int, size: int) -> bytes:
        """Fewer at the end of the file. Raises CorruptError for a chunk that is not here."""
        starts, ids, lengths = self._layout(entry.parts)
        end = min(offset + size, entry.size)
        pieces = []
        row = bisect_right(starts, offset) - 1
        while offset < end:
            skip = offset - starts[row]
            length = min(lengths[row] - skip, end - offset)
            data = bytes(length) if ids[row] == HOLE else self._get(ids[row])[skip : skip + length]
            pieces.append(data)
            offset += length
            row += 1
        return b"".join(pieces)

    def _layout(self, parts: bytes) -> tuple[list[int], list[bytes], list[int]]:
        found = self._parts.get(parts)
        if found is None:
            starts, ids, lengths, start = [], [], [], 0
            for length, identity in PART.iter_unpack(parts):
                starts.append(start)
                ids.append(identity)
                lengths.append(length)
                start += length
            found = self._parts[parts] = (starts, ids, lengths)
        return found

    def _get(self, identity: bytes) -> bytes:
        data = self._held.pop(identity, None)
        if data is None:
            data = self._chunk(identity)
            if data is None:
                raise CorruptError(f"chunk {identity.hex()}: not here")
            if len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
        self._held[identity] = data
        return data


class Picked:
    """The pages, in the order in which they were picked. files: entry of each object. budget: bytes of pages."""

    def __init__(self, tree: Files, contents: Contents, budget: int) -> None:
        self._tree = tree
        self._contents = contents
        self._left = budget // PAGE
        self._looks = LOOKS_MAX
        self._directories: dict[bytes, frozenset[bytes]] = {}
        self.pages: dict[Page, None] = {}
        self.files: dict[bytes, Entry] = {}

    # ------------------------------------------------------------------ looking

    def find(self, path: bytes | str) -> Found | None:
        """A file with content, links followed inside of the tree."""
        raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
        if not self._may_look():
            return None
        try:
            parts = resolve(raw.split(b"/"), (b"", self._tree.lookup(b"")), self._child, _symlink)
        except OnesecError:  # a loop, or a path that is too long
            return None
        real = b"/".join(parts)
        entry = self._tree.lookup(real)
        return Found(real, entry) if entry is not None and entry.kind is Kind.FILE and entry.parts else None

    def _may_look(self) -> bool:
        self._looks -= 1
        return self._looks >= 0

    def _child(self, node: tuple[bytes, Entry | None], name: bytes) -> tuple[bytes, Entry | None] | None:
        path = node[0] + b"/" + name if node[0] else name
        entry = self._tree.lookup(path)
        return None if entry is None else (path, entry)

    def listing(self, path: bytes) -> frozenset[bytes]:
        """What stands in a directory, by its path as it is written."""
        found = self._directories.get(path)
        if not self._may_look():
            return frozenset()
        if found is None:
            try:
                real = b"/".join(resolve(path.split(b"/"), (b"", self._tree.lookup(b"")), self._child, _symlink))
                found = frozenset(self._tree.names(real))
            except OnesecError:
                found = frozenset()
            self._directories[path] = found
        return found

    def read(self, entry: Entry, size: int, offset: int = 0) -> bytes:
        """Empty where the content is not to be had."""
        try:
            return self._contents.read(entry, offset, size)
        except (OnesecError, OSError):
            return b""

    # ------------------------------------------------------------------ taking

    def take(self, entry: Entry, start: int = 0, end: int | None = None) -> None:
        """Pages of a file's bytes, as far as the budget goes."""
        stop = entry.size if end is None else min(end, entry.size)
        if start >= stop or self._left <= 0:
            return
        identity = object_id(entry)
        self.files.setdefault(identity, entry)
        for number in range(start // PAGE, (stop + PAGE - 1) // PAGE):
            if (identity, number) not in self.pages:
                if self._left <= 0:
                    return
                self._left -= 1
                self.pages[identity, number] = None

    def take_small(self, path: bytes) -> None:
        if (found := self.find(path)) is not None:
            self.take(found.entry, 0, SMALL_MAX)


def _symlink(node: tuple[bytes, Entry | None]) -> bytes | None:
    entry = node[1]
    return entry.target if entry is not None and entry.kind is Kind.SYMLINK else None
