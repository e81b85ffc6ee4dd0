"""Trees, archives and wheels become layers: content through cext.Ingest into packs, names into a layer index.

    with Workshop(layout) as workshop:
        record = workshop.make(lambda layer: layer.add(b"etc/motd", entry, b"hello"))

The same entries in the same order give the same bytes. Call it all inside `Layout.writing`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import cext
from lazyfs.index.layer import LayerBuilder
from lazyfs.index.model import Entry, Kind
from lazyfs.merge import merge
from registry import decoded, image
from registry.layout import Layout
from registry.model import LAYER, PACK, Descriptor, Digest, LayerRecord, Manifest

FILE, DIRECTORY, SYMLINK, CHARACTER, BLOCK, FIFO, WHITEOUT, LINK = (Kind(number) for number in (1, 2, 3, 4, 5, 6, 8, 9))
OPAQUE, IMPLICIT = 1, 2  # flags of docs/format.md §4
BLAKE3_CHUNKS = 1  # algorithm of objects that we make

Content = bytes | int | Iterable[bytes | int]
"""Bytes; a descriptor of a regular file, which may be closed after the call; or steps, where a number is so many zeros.
"""


def entry(
    kind: Kind, *, mode: int = 0, uid: int = 0, gid: int = 0, mtime: tuple[int, int] = (0, 0), **more: object
) -> Entry:
    """An Entry with everything that was not said empty. Its name comes from the path that it is added under."""
    values: dict[str, object] = {
        "kind": kind,
        "name": b"",
        "mode": mode,
        "uid": uid,
        "gid": gid,
        "mtime_sec": mtime[0],
        "mtime_nsec": mtime[1],
        "xattrs": (),
        "size": 0,
        "algorithm": 0,
        "parts": b"",
        "target": b"",
        "device": (0, 0),
        "link_group": 0,
        "flags": 0,
        **more,
    }
    return Entry(**values)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Row:
    path: bytes
    entry: Entry
    ticket: int | None


class LayerWriter:
    """One layer while it is filled. What is added later under the same path wins."""

    def __init__(self, ingest: cext.Ingest) -> None:
        self._ingest = ingest
        self._rows: list[_Row] = []
        self._latest: dict[bytes, _Row] = {}
        self._groups = 0

    def add(self, path: bytes, made: Entry, content: Content | None = None, *, size: int | None = None) -> None:
        """content: of a file. size: of the descriptor's file, which must not change while it is read."""
        ticket = None
        if made.kind is FILE:
            if content is None:
                raise ValueError(f"{path!r}: a file without content")
            ticket = self._take(content, size)
        self._append(_Row(path, made, ticket))

    def _take(self, content: Content, size: int | None) -> int:
        if isinstance(content, bytes):
            return self._ingest.add_bytes(content)
        if isinstance(content, int):
            return self._ingest.add_file(content, os.fstat(content).st_size if size is None else size)
        ticket = self._ingest.begin()
        for step in content:
            if isinstance(step, int):
                self._ingest.zeros(step)
            else:
                self._ingest.update(step)
        self._ingest.end()
        return ticket

    def add_known(self, path: bytes, made: Entry) -> None:
        """An entry whose chunks are in the repository already, with its parts."""
        self._append(_Row(path, made, None))

    def _append(self, row: _Row) -> None:
        self._rows.append(row)
        self._latest[row.path] = row

    def link(self, path: bytes, target: bytes) -> bool:
        """Makes path one more name of the inode at target. False if this layer has no target that can be linked to."""
        row = self._latest.get(target)
        if row is None or row.entry.kind in (DIRECTORY, WHITEOUT):
            return False
        if path == target:
            return True
        if row.entry.kind is not LINK and not row.entry.link_group:
            self._groups += 1  # LayerBuilder gives groups their final numbers
            row.entry = replace(row.entry, link_group=self._groups)
        self._append(_Row(path, row.entry, row.ticket))
        return True

    def get(self, path: bytes) -> Entry | None:
        row = self._latest.get(path)
        return row.entry if row else None

    def set_flags(self, path: bytes, flags: int) -> None:
        row = self._latest[path]
        row.entry = replace(row.entry, flags=row.entry.flags | flags)

    def paths(self) -> Iterable[bytes]:
        return self._latest.keys()

    def encode(self) -> bytes:
        """The layer index; waits for the content to be hashed."""
        builder = LayerBuilder()
        for row in self._rows:
            made = row.entry
            if row.ticket is not None:
                size, parts = self._ingest.parts(row.ticket)
                made = _with_parts(made, size, parts)
            builder.add(row.path, made)
        return builder.finish()


def _with_parts(made: Entry, size: int, parts: bytes) -> Entry:
    """As dataclasses.replace, in a third of the time: it comes once for each file, after the workers have finished."""
    return Entry(
        kind=made.kind,
        name=made.name,
        mode=made.mode,
        uid=made.uid,
        gid=made.gid,
        mtime_sec=made.mtime_sec,
        mtime_nsec=made.mtime_nsec,
        xattrs=made.xattrs,
        size=size,
        algorithm=BLAKE3_CHUNKS if parts else 0,
        parts=parts,
        link_group=made.link_group,
    )


class Workshop:
    """Makes layers in a layout; keeps the chunk map open between them. One per process."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._stack = ExitStack()
        self._chunks: cext.ChunkMap | None = None

    def __enter__(self) -> Workshop:
        self._chunks = self.layout.chunk_map()
        self._stack.callback(self._chunks.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._chunks = None

    @property
    def chunks(self) -> cext.ChunkMap:
        if self._chunks is None:
            raise ValueError("the workshop is not open")
        return self._chunks

    def make(self, fill: Callable[[LayerWriter], None], *, packs: Iterable[Descriptor] = ()) -> LayerRecord:
        """packs: where the chunks of entries added by `add_known` live."""

        def produce(ingest: cext.Ingest) -> bytes:
            writer = LayerWriter(ingest)
            fill(writer)
            return writer.encode()

        return self.make_indexed(produce, packs=packs)

    def make_indexed(self, produce: Callable[[cext.Ingest], bytes], *, packs: Iterable[Descriptor] = ()) -> LayerRecord:
        """produce: puts contents into the ingest and returns the decoded layer index over them."""
        layout, chunks = self.layout, self.chunks
        with layout.staging() as staging, cext.Ingest(staging.fd, known=chunks) as ingest:
            index = produce(ingest)
            result = ingest.finish()
            used = {pack.digest: pack for pack in packs}
            for made in result.packs:
                digest = Digest.from_bytes(made.digest)
                staging.adopt(made.name, digest)
                used[digest] = Descriptor(PACK, digest, made.size)
            layout.sync()
            for made in result.packs:  # only now: the map never names a pack that a crash can take away
                chunks.add_pack(made.digest, made.table)
            for known in result.known_packs:
                digest = Digest.from_bytes(known)
                used[digest] = image.pack_descriptor(layout, digest)
            return LayerRecord(
                image.put_index(layout, index, LAYER), tuple(sorted(used.values(), key=lambda pack: pack.digest))
            )


def assemble_image(
    layout: Layout,
    layers: Sequence[LayerRecord],
    config: bytes,
    *,
    finish: Callable[[Manifest, bytes], Manifest] | None = None,
) -> Manifest:
    """Merges layers (bottom first) into an image and stores its manifest; tags nothing. config: raw JSON.

    finish: gets the manifest and the merged tree, gives the manifest that counts.
    """
    tree = merge([decoded.read_decoded(layout, layer.index) for layer in layers])
    packs: dict[Digest, Descriptor] = {}
    for layer in layers:
        for pack in layer.packs:
            packs.setdefault(pack.digest, pack)
    listed = [(pack.digest.raw, pack.size, _table(layout, pack)) for pack in packs.values()]
    erofs, tables = cext.encode_image(tree, listed)
    del listed
    manifest = image.manifest_for_image(
        layout, config=config, erofs=erofs, tables=tables, layers=[layer.index for layer in layers]
    )
    del erofs, tables
    return manifest if finish is None else finish(manifest, tree)


def _table(layout: Layout, pack: Descriptor) -> bytes:
    fd = layout.open_blob(pack.digest)
    try:
        return cext.pack_table(fd)
    finally:
        os.close(fd)
