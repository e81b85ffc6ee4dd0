"""Content's way in and out: cutting, hashing, compressing, the whole pipeline, and the store's reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cext
from benchmarks.micro.conftest import MIB, Rate

CHUNK = 64 << 10


def _segments(content: bytes) -> list[memoryview]:
    view = memoryview(content)
    return [view[at : at + MIB] for at in range(0, len(view), MIB)]


def bench_gear_finds_cut_points(rate: Rate, content: bytes) -> None:
    pieces = _segments(content)
    rate(lambda: [cext.cut_points(piece) for piece in pieces], len(content) / 1e9, "GB/s")


def bench_blake3_of_64_kib_chunks(rate: Rate, content: bytes) -> None:
    view = memoryview(content)
    pieces = [view[at : at + CHUNK] for at in range(0, len(view), CHUNK)]
    rate(lambda: [cext.blake3(piece) for piece in pieces], len(content) / 1e9, "GB/s")


def bench_zstd_3_frames(rate: Rate, content: bytes) -> None:
    data = content[: 16 * MIB]
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    rate(lambda: [cext.compress_frame(piece) for piece in pieces], len(data) / 1e9, "GB/s")


def bench_decoding_frames(rate: Rate, content: bytes) -> None:
    frames = [cext.compress_frame(content[at : at + CHUNK]) for at in range(0, len(content), CHUNK)]
    rate(lambda: [cext.decompress_frame(frame, CHUNK) for frame in frames], len(content) / 1e9, "GB/s")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def bench_dedup_pass_over_known_content_on_one_core(
    rate: Rate, content: bytes, directory: int, tmp_path: Path, one_core: None
) -> None:
    """Cut, hash and look up; nothing is new, so nothing is written."""
    (tmp_path / "map").mkdir()
    with cext.ChunkMap(tmp_path / "map") as known:
        with cext.Ingest(directory) as ingest:
            ingest.add_bytes(content)
            for pack in ingest.finish().packs:
                known.add_pack(pack.digest, pack.table)
        file = tmp_path / "content"
        file.write_bytes(content)
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

        def again() -> int:
            with cext.Ingest(directory, known=known, threads=1) as ingest:
                ingest.add_file(fd, len(content))
                found = ingest.finish()
                assert not found.packs
                return found.known_chunks

        try:
            rate(again, len(content) / 1e9, "GB/s", want=1.5)
        finally:
            os.close(fd)


def bench_ingest_of_new_content_on_all_cores(rate: Rate, content: bytes, directory: int, tmp_path: Path) -> None:
    def new() -> None:
        with cext.Ingest(directory) as ingest:
            ingest.add_bytes(content)
            assert ingest.finish().packs
        for pack in tmp_path.glob("pack-*"):
            pack.unlink()

    rate(new, len(content) / 1e9, "GB/s", wall=True)


@pytest.mark.parametrize("compress", [True, False], ids=["zstd", "raw"])
def bench_store_get(rate: Rate, content: bytes, tmp_path: Path, compress: bool) -> None:
    """Read from a segment in the page cache, decoded and verified."""
    (tmp_path / "store").mkdir()
    with cext.Store(tmp_path / "store") as store:
        identities = []
        for at in range(0, len(content), CHUNK):
            piece = content[at : at + CHUNK]
            identities.append(cext.blake3(piece))
            store.put(identities[-1], piece, compress=compress)
        store.flush()

        def read() -> None:
            for identity in identities:
                assert store.get(identity) is not None

        rate(read, len(content) / 1e9, "GB/s")
