"""The chunk store, and the plain one that others are tested with, held to one suite; then what only a disk has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.errors import StoreFullError, StoreInUseError, StoreWriteError
from cache.store import Store, check
from tests.suites.store import ChunkStore, Opener, StoreSuite, chunk
from tests.support.memory_store import MemoryStore

MIB = 1 << 20


class TestStore(StoreSuite):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return lambda: Store(tmp_path / "store")


class TestSmallStore(StoreSuite):
    """Of segments so small that most chunks need one of their own."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return lambda: Store(tmp_path / "store", segment_size=4096)


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def opener(self) -> Opener:
        return MemoryStore


def there(store: ChunkStore, *seeds: int, size: int = 5000) -> list[int]:
    return [seed for seed in seeds if store.get(chunk(seed, size)[0]) is not None]


def size_on_disk(path: Path) -> int:
    return sum(one.stat().st_size for one in path.glob("seg-*"))


def test_what_was_flushed_or_closed_is_there_after_opening_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put(*chunk(1))
        store.flush()
        store.put(*chunk(2))
    with Store(tmp_path) as store:
        assert there(store, 1, 2, 3) == [1, 2]


def test_a_directory_has_one_store_and_the_refused_are_told_the_holder(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(StoreInUseError, match=f"store {tmp_path}: in use by process {os.getpid()}"):
        Store(tmp_path)
    with Store(tmp_path) as store:
        store.put(*chunk(1))


def test_a_quota_is_kept_and_the_segments_that_were_read_longest_ago_go(tmp_path: Path) -> None:
    with Store(tmp_path, quota=100_000, segment_size=20_000) as store:
        for seed in range(1, 101, 2):
            store.put(*chunk(seed), codec="raw")
            store.flush()
            store.get(chunk(1)[0])
            assert size_on_disk(tmp_path) <= 100_000
        found = there(store, *range(1, 101, 2))
        assert found[0] == 1  # read again and again
        assert found[-10:] == list(range(81, 101, 2))
        assert len(found) < 22
        assert store.statistics().evicted > 0


def test_pinned_segments_go_last(tmp_path: Path) -> None:
    with Store(tmp_path, quota=100_000, segment_size=20_000) as store:
        for seed in range(1, 9, 2):
            store.put(*chunk(seed), codec="raw", pinned=True)
        store.flush()
        for seed in range(11, 111, 2):
            store.put(*chunk(seed), codec="raw")
            store.flush()
        assert there(store, *range(1, 9, 2)) == list(range(1, 9, 2))
        for seed in range(201, 301, 2):
            store.put(*chunk(seed), codec="raw", pinned=True)
            store.flush()
        assert there(store, *range(1, 9, 2)) == []
        assert size_on_disk(tmp_path) <= 100_000


def test_a_chunk_that_cannot_fit_costs_no_other_and_flush_says_so(tmp_path: Path) -> None:
    with Store(tmp_path, quota=30_000, segment_size=10_000) as store:
        store.put(*chunk(1), codec="raw")
        store.flush()
        store.put(*chunk(3, 40_000), codec="raw")
        with pytest.raises(StoreFullError, match="over its quota or the free space"):
            store.flush()
        assert there(store, 1) == [1]
        assert store.statistics().lost == 1
        store.put(*chunk(5), codec="raw")
        store.flush()
        assert there(store, 1, 5) == [1, 5]


def test_free_space_below_the_floor_keeps_chunks_out(tmp_path: Path) -> None:
    with Store(tmp_path, floor=1 << 60) as store:
        store.put(*chunk(1))
        with pytest.raises(StoreFullError):
            store.flush()
    assert size_on_disk(tmp_path) == 0


def test_a_chunk_kept_compressed_is_kept_raw_when_somebody_asks_for_that(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put(*chunk(2), codec="zstd")
        store.flush()
        assert size_on_disk(tmp_path) < 1000
        store.put(*chunk(2), codec="raw")
        store.flush()
        raw = size_on_disk(tmp_path)
        assert raw > 5000
        for codec in ("raw", "zstd"):
            store.put(*chunk(2), codec=codec)
            store.flush()
        assert size_on_disk(tmp_path) == raw
        assert store.statistics().known == 2
        assert there(store, 2) == [2]


def test_a_directory_that_cannot_be_written_is_told_by_flush(tmp_path: Path) -> None:
    with Store(tmp_path, segment_size=4096) as store:
        (tmp_path / "seg-00000001").mkdir()
        store.put(*chunk(1))
        with pytest.raises(StoreWriteError, match="exists"):
            store.flush()
        assert there(store, 1) == []
        (tmp_path / "seg-00000001").rmdir()


def test_check_of_a_sound_store_says_nothing_and_of_no_store_makes_none(tmp_path: Path) -> None:
    assert check(tmp_path).repaired == ()
    assert list(tmp_path.iterdir()) == []
    with Store(tmp_path) as store:
        for seed in range(1, 11):
            store.put(*chunk(seed))
    found = check(tmp_path)
    assert (found.chunks, found.repaired) == (10, ())


def test_check_repairs_what_is_damaged_and_says_what(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seed in range(1, 11):
            store.put(*chunk(seed), codec="raw")
    segment = tmp_path / "seg-00000001"
    raw = bytearray(segment.read_bytes())
    raw[0] ^= 1
    raw[200] ^= 1
    segment.write_bytes(raw)
    assert check(tmp_path).repaired == (
        "chunk store: 1 damaged chunks, forgotten",
        "chunk store: 1 damaged segment headers, written anew",
    )
    assert check(tmp_path).repaired == ()
    (tmp_path / "data.mdb").write_bytes(b"nonsense" * 1000)
    assert check(tmp_path).repaired == (
        "chunk store: the map was missing or damaged, made again from the segments",
        "chunk store: 1 damaged chunks, forgotten",  # its header is sound, so the map had it again
    )
    with Store(tmp_path) as store:
        assert there(store, *range(1, 11)) == list(range(2, 11))


def test_check_refuses_a_store_in_use(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(StoreInUseError):
        check(tmp_path)
