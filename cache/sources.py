"""Where chunks come from on this host: packs of the layout, and the store in front of whatever is slower."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import cext
from cache.store import Store
from cext.errors import CorruptError
from registry.layout import Layout
from registry.model import Digest


class Source(Protocol):
    """Verified chunks. Any thread."""

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        """The chunk, or None if this source does not have it. Raises CorruptError if what it has is damaged."""
        ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a chunk in a pack. offset, packed: of its frame. plain: bytes of the frame. at, length: in the frame."""

    offset: int
    packed: int
    plain: int
    at: int
    length: int


class PackSource:
    """Chunks (of algorithm 1) out of the packs that a layout has, found by its chunk map.

    Owns the descriptors of the packs it has opened; chunks: borrowed.
    """

    def __init__(self, layout: Layout, chunks: cext.ChunkMap) -> None:
        self._layout = layout
        self._chunks = chunks
        self._lock = threading.Lock()
        self._open: dict[bytes, tuple[int, dict[bytes, _Place]]] = {}  # guarded by _lock

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        pack = self._chunks.lookup(id) if algorithm == 1 else None
        if pack is None:
            return None
        with self._lock:
            if pack not in self._open:
                self._open[pack] = self._read_table(pack)
            fd, places = self._open[pack]
        if (place := places.get(id)) is None:
            raise CorruptError(f"pack {Digest.from_bytes(pack)}: does not have chunk {id.hex()}")
        frame = cext.decompress_frame(os.pread(fd, place.packed, place.offset), place.plain)
        chunk = frame[place.at : place.at + place.length]
        if cext.blake3(chunk) != id:
            raise CorruptError(f"pack {Digest.from_bytes(pack)}: chunk {id.hex()} is not what its id says")
        return chunk

    def _read_table(self, pack: bytes) -> tuple[int, dict[bytes, _Place]]:
        fd = self._layout.open_blob(Digest.from_bytes(pack))
        try:
            table = cext.parse_pack_table(cext.pack_table(fd), os.fstat(fd).st_size)
        except BaseException:
            os.close(fd)
            raise
        return fd, _places(table)

    def close(self) -> None:
        while self._open:
            fd, _ = self._open.popitem()[1]
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _places(table: cext.PackTable) -> dict[bytes, _Place]:
    found: dict[bytes, _Place] = {}
    offset = row = 0
    for packed, plain, count in zip(table.frame_clen, table.frame_ulen, table.frame_chunks, strict=True):
        at = 0
        for length, id in zip(table.chunk_length[row : row + count], table.chunk_id[row : row + count], strict=True):
            found.setdefault(id, _Place(offset, packed, plain, at, length))
            at += length
        offset += packed
        row += count
    return found


class ReadThrough:
    """The store, and behind it a slower source whose chunks it keeps. A full store only keeps less."""

    def __init__(self, store: Store, slower: Source) -> None:
        self._store = store
        self._slower = slower

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        found = self._store.get(id, algorithm=algorithm)
        if found is None and (found := self._slower.get(id, algorithm=algorithm)) is not None:
            self._store.put(id, found, algorithm=algorithm, codec="raw")
        return found
