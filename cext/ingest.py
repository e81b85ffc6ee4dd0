"""Content in, packs out: the face of the C pipeline that cuts, hashes, deduplicates and compresses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from cext._native import IngestEngine, pack_columns
from cext.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cext._native import ChunkMap

Buffer = bytes | bytearray | memoryview


class PackFile(Record):
    """A pack that an ingest wrote. name: in the ingest's directory. digest: SHA-256 of the file. size: bytes of it.
    table: the payload of its closing table (docs/format.md, section 3)."""

    name: str
    digest: bytes
    size: int
    table: bytes


class IngestResult(Record):
    """What an ingest came to. known_packs: SHA-256 of older packs that hold chunks it met. content: bytes that went in,
    holes included. chunks: met; of those known_chunks in older packs, same_chunks met before. written: pack bytes."""

    packs: tuple[PackFile, ...]
    known_packs: tuple[bytes, ...]
    content: int
    chunks: int
    known_chunks: int
    same_chunks: int
    written: int


class PackTable(Record):
    """The columns of a pack's closing table, in file order. Lengths in bytes; chunk ids of 32 bytes."""

    frame_clen: tuple[int, ...]
    frame_ulen: tuple[int, ...]
    frame_chunks: tuple[int, ...]
    chunk_length: tuple[int, ...]
    chunk_id: tuple[bytes, ...]


def parse_pack_table(table: bytes, blob_size: int) -> PackTable:
    """Checks a table against the size of its pack and reads it. Raises CorruptError."""
    clen, ulen, counts, lengths, ids = pack_columns(table, blob_size)
    return PackTable(clen, ulen, counts, lengths, tuple(ids[at : at + 32] for at in range(0, len(ids), 32)))


class Ingest:
    """Writes packs as `pack-<pid>-<n>.tmp` files into a directory; close without finish deletes them.

    directory: descriptor, borrowed during the call only. known: whose chunks are not written again. level: of zstd.
    threads: that compress, 0 for all cores; the bytes written never depend on it. pack_size: bytes of frames in a pack.

    One thread at a time. Raises OSError when the disk fails, CorruptError when a file changes under the reader;
    after either, every further call raises the same.
    """

    def __init__(
        self,
        directory: int,
        *,
        known: ChunkMap | None = None,
        level: int = 3,
        threads: int = 0,
        pack_size: int = 64 << 20,
    ) -> None:
        self._directory = os.dup(directory)
        try:
            self._engine = IngestEngine(directory, known=known, level=level, threads=threads, pack_size=pack_size)
        except BaseException:
            os.close(self._directory)
            raise
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.close()
            os.close(self._directory)

    def add_file(self, fd: int, size: int) -> int:
        """A whole regular file of `size` bytes, read from its start. Returns its ticket."""
        return self._engine.add_file(fd, size)

    def add_tree(self, root: int) -> tuple[bytes, list[str]]:
        """Everything in a directory, which root is a descriptor of. Returns the decoded layer index of the tree, as it
        is (docs/format.md, section 4), and a note for each thing that no image can have. Raises OSError, CorruptError
        for what changes while it is read, LimitError. imagebuilder/trees.py is the slow twin.
        """
        return self._engine.add_tree(root)

    def add_bytes(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        ticket = self._engine.begin(len(view))
        self._engine.update(view)
        self._engine.end()
        return ticket

    def begin(self) -> int:
        """Opens a content that comes in pieces: update and zeros, then end. Returns its ticket."""
        return self._engine.begin()

    def update(self, data: Buffer) -> None:
        self._engine.update(data)

    def zeros(self, size: int) -> None:
        """As update with that many zero bytes, in no time."""
        self._engine.zeros(size)

    def end(self) -> None:
        self._engine.end()

    def parts(self, ticket: int) -> tuple[int, bytes]:
        """Size of a content, and its parts as `u64 length, id[32]` (docs/format.md, section 4)."""
        return self._engine.parts(ticket)

    def finish(self) -> IngestResult:
        """Writes and syncs what is left. The files are the caller's to move."""
        packs, known, (content, chunks, known_chunks, same_chunks, written) = self._engine.finish()
        try:
            later = self._digests([name for name, _, _, digest in packs if digest is None])
            files = tuple(PackFile(name, digest or next(later), size, table) for name, size, table, digest in packs)
        except BaseException:  # the engine thinks that they are ours now
            for name, *_ in packs:
                os.unlink(name, dir_fd=self._directory)
            raise
        return IngestResult(files, tuple(known), content, chunks, known_chunks, same_chunks, written)

    def _digests(self, names: list[str]) -> Iterator[bytes]:
        """Of packs that the engine did not hash, since this processor has no instructions for it. On all cores: by now
        nothing else is left to do, and OpenSSL holds no GIL.
        """
        if not names:
            return iter(())
        from concurrent.futures import ThreadPoolExecutor  # slow, as hashlib below

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return iter(list(pool.map(self._digest, names)))

    def _digest(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
        with os.fdopen(fd, "rb") as file:
            import hashlib  # with OpenSSL, 2 ms: not on the way of `run`

            return hashlib.file_digest(file, "sha256").digest()
