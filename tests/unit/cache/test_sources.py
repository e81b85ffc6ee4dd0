from __future__ import annotations

import os
from pathlib import Path

import pytest

import cext
from cache.sources import PackSource, ReadThrough
from cache.store import Store
from cext.errors import CorruptError
from registry.layout import Layout
from tests.suites.store import chunk


class Fake:
    def __init__(self, *seeds: int) -> None:
        self.chunks = dict(chunk(seed) for seed in seeds)
        self.asked: list[bytes] = []

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        self.asked.append(id)
        return self.chunks.get(id)


def test_what_the_store_lacks_is_fetched_once_and_kept(tmp_path: Path) -> None:
    slower = Fake(1)
    with Store(tmp_path) as store:
        source = ReadThrough(store, slower)
        id, data = chunk(1)
        assert source.get(id) == data
        store.flush()
        assert source.get(id) == data
        assert slower.asked == [id]


def test_what_nobody_has_is_none(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert ReadThrough(store, Fake()).get(chunk(1)[0]) is None


def test_a_full_store_keeps_nothing_and_the_reader_gets_his_chunk(tmp_path: Path) -> None:
    with Store(tmp_path, quota=1) as store:
        source = ReadThrough(store, Fake(1))
        assert [source.get(chunk(1)[0]) for _ in range(2)] == [chunk(1)[1]] * 2
        with pytest.raises(Exception, match="full"):
            store.flush()


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Layout, cext.ChunkMap, str]:
    """With one pack of the chunks 1 to 5, and the path of the pack."""
    layout = Layout.open(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    fd = os.open(work, os.O_RDONLY)
    try:
        with cext.Ingest(fd) as ingest:
            for seed in range(1, 6):
                ingest.add_bytes(chunk(seed)[1])
            (pack,) = ingest.finish().packs
    finally:
        os.close(fd)
    path = f"{layout.images}/blobs/sha256/{pack.digest.hex()}"
    os.rename(work / pack.name, path)
    chunks = cext.ChunkMap(layout.cache_path("chunks"))
    chunks.add_pack(pack.digest, pack.table)
    return layout, chunks, path


def test_chunks_come_out_of_the_packs_of_a_layout(layout: tuple[Layout, cext.ChunkMap, str]) -> None:
    with layout[1], PackSource(layout[0], layout[1]) as source:
        for seed in range(1, 6):
            id, data = chunk(seed)
            assert source.get(id) == data
        assert source.get(chunk(6)[0]) is None
        assert source.get(chunk(1)[0], algorithm=2) is None


def test_a_flipped_byte_of_a_pack_is_an_error_for_the_chunks_of_its_frame(
    layout: tuple[Layout, cext.ChunkMap, str],
) -> None:
    with open(layout[2], "r+b") as file:
        file.seek(40)
        byte = file.read(1)[0]
        file.seek(40)
        file.write(bytes([byte ^ 1]))
    wrong = 0
    with layout[1], PackSource(layout[0], layout[1]) as source:
        for id, data in map(chunk, range(1, 6)):
            try:
                assert source.get(id) == data
            except CorruptError:
                wrong += 1
    assert wrong > 0
