"""Whether a boot pack says what its image says: each of its pages beside the chunks that the image has in their place.

A start believes a boot pack about the pages of its trust domain, since the manifest pins it and comparing would need
the very bytes that it is there to save. Who has the image's packs can compare, so whatever brings a foreign image here
whole does (`import`, `pull --all`), and `verify --deep`.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable

import cext
from cext.errors import CorruptError
from lazyfs.index.tables import Object, Part, TablesReader
from registry.decoded import read_decoded
from registry.errors import MissingBlobError
from registry.layout import Layout
from registry.model import TABLES, Descriptor, Digest, Manifest

_FRAME = 1 << 20
_FRAMES_CACHED = 256  # of packs, a quarter of a mebibyte each
_BLAKE3 = 1


def check_boot_pack(layout: Layout, manifest: Manifest, progress: Callable[[int], None] | None = None) -> int:
    """Bytes that were compared; those whose packs are elsewhere are not, nor is a boot pack that is. Raises
    CorruptError.
    """
    blob = manifest.boot_pack
    if blob is None or not layout.has(blob):
        return 0
    objects = _Objects(layout, TablesReader(read_decoded(layout, manifest.only(TABLES))))
    fd = layout.open_blob(blob.digest)
    try:
        return _compare(fd, blob, objects, progress)
    finally:
        os.close(fd)
        objects.close()


def _compare(fd: int, blob: Descriptor, objects: _Objects, progress: Callable[[int], None] | None) -> int:
    digest, size = blob.head
    head = os.pread(fd, size, 0)
    if cext.blake3(head) != digest:
        raise CorruptError(f"boot pack {blob.digest}: got a head of another hash")
    pack = cext.BootPack(head)
    ids, runs, plain = pack.objects, iter(pack.runs), bytearray(_FRAME)
    compared, offset = 0, size
    counts = pack.run_counts
    for number, (packed, _) in enumerate(pack.frames):
        pack.decode(number, os.pread(fd, packed, offset), plain)
        offset += packed
        at = 0
        for _ in range(counts[number]):
            row, start, length = next(runs)
            try:
                there = objects.read(ids[row], start, length)
            except CorruptError as error:
                raise CorruptError(f"boot pack {blob.digest}: {error}") from error
            if there is not None and there != plain[at : at + length]:
                raise CorruptError(
                    f"boot pack {blob.digest}: object {ids[row].hex()}: got other bytes at {start} than the image has"
                )
            at += length
            compared += 0 if there is None else length
        if progress is not None:
            progress(packed)
    return compared


class _Objects:
    """Verified bytes of an image's objects, as far as their packs are here."""

    def __init__(self, layout: Layout, tables: TablesReader) -> None:
        self._layout = layout
        self._tables = tables
        self._packs: dict[int, int] = {}  # descriptors by the blob's row, owned; -1: elsewhere
        self._objects: dict[bytes, tuple[Object, list[int]]] = {}
        self._frames: OrderedDict[int, bytes] = OrderedDict()

    def close(self) -> None:
        for fd in self._packs.values():
            if fd >= 0:
                os.close(fd)

    def read(self, identity: bytes, offset: int, size: int) -> bytes | None:
        """Exactly these bytes; None if not all of them are here. Raises CorruptError for bytes that are not there."""
        known = self._objects.get(identity)
        if known is None:
            found = self._tables.find(identity)
            if found is None:
                raise CorruptError(f"object {identity.hex()}: got pages of it, but the image does not have it")
            known = self._objects[identity] = (found, [part.start for part in found.parts])
        found, starts = known
        end = offset + size
        if end > found.size:
            raise CorruptError(f"object {identity.hex()}: got {size} bytes at {offset}, want them within {found.size}")
        pieces: list[bytes] = []
        row = bisect_right(starts, offset) - 1
        while offset < end:
            part = found.parts[row]
            first, last = offset - part.start, min(end - part.start, part.length)
            if part.frame is None:  # a hole, as long as its author likes
                pieces.append(bytes(last - first))
            else:
                chunk = self._chunk(found, part)
                if chunk is None:
                    return None
                pieces.append(chunk[first:last])
            offset = part.start + last
            row += 1
        return b"".join(pieces)

    def _chunk(self, found: Object, part: Part) -> bytes | None:
        assert part.frame is not None
        plain = self._frame(part.frame)
        if plain is None:
            return None
        data = plain[part.at : part.at + part.length]
        if (cext.blake3(data) if found.algorithm == _BLAKE3 else cext.sha256(data)) != part.id:
            raise CorruptError(f"object {found.id.hex()}: chunk at {part.start} is not what its id says")
        return data

    def _frame(self, row: int) -> bytes | None:
        plain = self._frames.get(row)
        if plain is not None:
            self._frames.move_to_end(row)
            return plain
        frame = self._tables.frame(row)
        fd = self._pack(frame.blob)
        if fd < 0:
            return None
        plain = self._frames[row] = cext.decompress_frame(os.pread(fd, frame.packed, frame.offset), frame.plain)
        if len(self._frames) > _FRAMES_CACHED:
            self._frames.popitem(last=False)
        return plain

    def _pack(self, row: int) -> int:
        if row not in self._packs:
            try:
                self._packs[row] = self._layout.open_blob(Digest.from_bytes(self._tables.blobs[row].digest))
            except MissingBlobError:
                self._packs[row] = -1
        return self._packs[row]
