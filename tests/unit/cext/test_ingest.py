"""Content in, packs out."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zstandard

import cext
from cext._native import IngestEngine
from cext._reference import blake3
from cext.errors import ClosedError, CorruptError, MissingError

MIB = 1 << 20


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def parts_of(packed: bytes) -> list[tuple[int, bytes]]:
    return [struct.unpack_from("<Q32s", packed, at) for at in range(0, len(packed), 40)]


def chunks_in(directory: Path, packs: Sequence[cext.PackFile]) -> dict[bytes, bytes]:
    """Every chunk of the packs by id, read the slow way."""
    found = {}
    for pack in packs:
        data = (directory / pack.name).read_bytes()
        table = cext.parse_pack_table(pack.table, len(data))
        offset = chunk = 0
        for compressed, plain, count in zip(table.frame_clen, table.frame_ulen, table.frame_chunks, strict=True):
            frame = zstandard.ZstdDecompressor().decompress(data[offset : offset + compressed])
            assert len(frame) == plain
            offset += compressed
            at = 0
            for row in range(chunk, chunk + count):
                found[table.chunk_id[row]] = frame[at : at + table.chunk_length[row]]
                at += table.chunk_length[row]
            chunk += count
    return found


def rebuild(chunks: dict[bytes, bytes], packed: bytes) -> bytes:
    return b"".join(chunks[name] if any(name) else bytes(length) for length, name in parts_of(packed))


CONTENTS = [
    b"",
    b"x",
    content(1, 16384),
    content(2, 70000),
    content(3, 3 * MIB),
    bytes(5 * MIB),
    content(4, 300000) + bytes(2 * MIB) + content(5, 100001),
    content(6, 4096) + bytes(MIB - 1) + b"end",
    bytes(MIB + 17),
    content(3, 3 * MIB),
    (content(7, 1000) * 1000)[:999_999],
]


def test_what_went_in_comes_out_of_the_packs(directory: int, tmp_path: Path) -> None:
    with cext.Ingest(directory) as ingest:
        tickets = [ingest.add_bytes(one) for one in CONTENTS]
        result = ingest.finish()
        chunks = chunks_in(tmp_path, result.packs)
        assert all(blake3(data) == name for name, data in chunks.items())
        for one, ticket in zip(CONTENTS, tickets, strict=True):
            size, packed = ingest.parts(ticket)
            assert size == len(one)
            assert rebuild(chunks, packed) == one


def test_a_run_of_zero_blocks_of_a_mebibyte_is_a_hole(directory: int) -> None:
    with cext.Ingest(directory) as ingest:
        _, packed = ingest.parts(ingest.add_bytes(content(1, 8192) + bytes(MIB) + b"tail"))
        assert [(length, any(name)) for length, name in parts_of(packed)] == [(8192, True), (MIB, False), (4, True)]
        _, packed = ingest.parts(ingest.add_bytes(content(1, 8192) + bytes(MIB - 4096) + b"tail"))
        assert all(any(name) for _, name in parts_of(packed))


def test_pieces_zeros_and_files_cut_as_whole_contents_do(directory: int, tmp_path: Path) -> None:
    whole = content(8, 500_001) + bytes(3 * MIB + 5) + content(9, 200_000)
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as file:
        file.write(whole[:500_001])
        file.seek(500_001 + 3 * MIB + 5)
        file.write(whole[500_001 + 3 * MIB + 5 :])
    with cext.Ingest(directory) as ingest, open(sparse, "rb") as file:
        expected = ingest.parts(ingest.add_bytes(whole))
        assert ingest.parts(ingest.add_file(file.fileno(), len(whole))) == expected
        ticket = ingest.begin()
        for at in range(0, 500_001, 777):
            ingest.update(whole[at : min(at + 777, 500_001)])
        ingest.zeros(3 * MIB + 5)
        ingest.update(whole[500_001 + 3 * MIB + 5 :])
        ingest.end()
        assert ingest.parts(ticket) == expected


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    results = []
    for threads in (1, 2, 7):
        place = tmp_path / str(threads)
        place.mkdir()
        fd = os.open(place, os.O_RDONLY)
        with cext.Ingest(fd, threads=threads, pack_size=MIB) as ingest:
            for seed in range(40):
                ingest.add_bytes(content(seed, 1 + seed * 3000))
            results.append([(pack.digest, pack.size) for pack in ingest.finish().packs])
        os.close(fd)
    assert len(results[0]) > 1
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("digests", [0, 1])
def test_packs_have_the_digest_of_their_files_on_every_processor(directory: int, tmp_path: Path, digests: int) -> None:
    """Hashed while they are written where that is fast, afterwards where it is not."""
    with cext.Ingest(directory, pack_size=MIB) as ingest:
        ingest._engine.close()
        ingest._engine = IngestEngine(directory, pack_size=MIB, digests=digests)
        for seed in range(40):
            ingest.add_bytes(content(seed, 70_000))
        packs = ingest.finish().packs
    assert len(packs) > 1
    for pack in packs:
        assert pack.digest == hashlib.sha256((tmp_path / pack.name).read_bytes()).digest()


def test_a_pack_is_a_valid_zstd_file(directory: int, tmp_path: Path) -> None:
    with cext.Ingest(directory) as ingest:
        ingest.add_bytes(content(1, 100_000))
        (pack,) = ingest.finish().packs
        with zstandard.ZstdDecompressor().stream_reader(
            (tmp_path / pack.name).read_bytes(), read_across_frames=True
        ) as reader:
            assert reader.read() == content(1, 100_000)


def test_small_files_share_frames_and_large_ones_do_not(directory: int) -> None:
    with cext.Ingest(directory) as ingest:
        for seed in range(20):
            ingest.add_bytes(content(seed, 10_000))
        ingest.add_bytes(content(99, 70_000))
        (pack,) = ingest.finish().packs
        table = cext.parse_pack_table(pack.table, pack.size)
        assert sorted(zip(table.frame_chunks, table.frame_ulen, strict=True))[-2:] == [(7, 70_000), (13, 130_000)]


def test_the_same_chunk_is_written_once(directory: int) -> None:
    with cext.Ingest(directory) as ingest:
        for _ in range(3):
            ingest.add_bytes(content(1, 50_000))
        result = ingest.finish()
        assert result.same_chunks == 2 * (result.chunks // 3)
        assert sum(pack.size for pack in result.packs) < 60_000


def test_closing_without_finish_leaves_nothing(directory: int, tmp_path: Path) -> None:
    with cext.Ingest(directory, pack_size=MIB) as ingest:
        ingest.add_bytes(content(1, 12 * MIB))
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_file_that_changes_its_size_is_refused(directory: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    for claimed, words in ((9, "shorter"), (3, "changed its size")):
        with cext.Ingest(directory) as ingest, open(path, "rb") as file:
            with pytest.raises(CorruptError, match=words):
                ingest.add_file(file.fileno(), claimed)
            with pytest.raises((CorruptError, ClosedError)):
                ingest.finish()


def test_a_full_disk_is_an_os_error_and_stays_one(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with cext.Ingest(fd, pack_size=MIB) as ingest:
        taken = tmp_path / f"pack-{os.getpid()}-0.tmp"
        taken.write_bytes(b"")
        with pytest.raises(FileExistsError):
            ingest.add_bytes(content(1, 20 * MIB))
        with pytest.raises(FileExistsError):
            ingest.finish()
    os.close(fd)


def test_misuse_is_told(directory: int) -> None:
    with cext.Ingest(directory) as ingest:
        with pytest.raises(ClosedError, match="no content is open"):
            ingest.update(b"x")
        with pytest.raises(MissingError):
            ingest.parts(0)
        ingest.begin()
        with pytest.raises(ClosedError, match="a content is open"):
            ingest.add_bytes(b"x")
    with pytest.raises(ClosedError):
        ingest.begin()


def test_a_table_with_any_bit_flipped_is_refused(directory: int, tmp_path: Path) -> None:
    with cext.Ingest(directory) as ingest:
        ingest.add_bytes(b"some content")
        (pack,) = ingest.finish().packs
    fd = os.open(tmp_path / pack.name, os.O_RDONLY)
    assert cext.pack_table(fd) == pack.table
    os.close(fd)
    for at in range(len(pack.table)):
        damaged = bytearray(pack.table)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(CorruptError):
            cext.parse_pack_table(bytes(damaged), pack.size)
    for size in range(len(pack.table)):
        with pytest.raises(CorruptError):
            cext.parse_pack_table(pack.table[:size], pack.size)
