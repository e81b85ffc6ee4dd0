"""The chunk store in C: its files, its map, its threads. What every store does: tests/suites/store.py."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

import cext
from cext.errors import ClosedError, CorruptError, LimitError, MissingError
from tests.suites.store import chunk
from tests.support.segments import Entry, entries, entry_header, segment_header


def put(store: cext.Store, *seeds: int, compress: bool = False, pinned: bool = False) -> None:
    for seed in seeds:
        store.put(*chunk(seed), compress=compress, pinned=pinned)
    store.flush()


def there(store: cext.Store, *seeds: int) -> list[int]:
    found = []
    for seed in seeds:
        id, data = chunk(seed)
        if (got := store.get(id)) is not None:
            assert got == data
            found.append(seed)
    return found


def segment(path: Path, number: int = 1) -> Path:
    return path / f"seg-{number:08x}"


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# ---------------------------------------------------------------------- files


def test_segments_are_as_the_format_says(tmp_path: Path) -> None:
    data = chunk(5)[1]
    with cext.Store(tmp_path) as store:
        store.put(*chunk(1), compress=False)
        store.put(*chunk(2), compress=True)
        store.put(hashlib.sha256(data).digest(), data, algorithm=2, compress=True)  # does not compress
        store.put(*chunk(7), compress=False, pinned=True)
    assert segment(tmp_path, 1).read_bytes()[:32] == segment_header(1)
    assert segment(tmp_path, 2).read_bytes()[:32] == segment_header(2, pinned=True)
    found = [*entries(segment(tmp_path, 1).read_bytes(), 1), *entries(segment(tmp_path, 2).read_bytes(), 2)]
    assert [(one.id, one.algorithm, one.codec) for one in found] == [
        (chunk(1)[0], 1, 0),
        (chunk(2)[0], 1, 1),
        (hashlib.sha256(data).digest(), 2, 0),
        (chunk(7)[0], 1, 0),
    ]
    assert [one.content() for one in found] == [chunk(1)[1], chunk(2)[1], data, chunk(7)[1]]


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "data.mdb", "lock.mdb", "seen", "seg-00000001"}


def test_a_segment_is_closed_when_it_is_full_and_numbers_are_never_used_again(tmp_path: Path) -> None:
    with cext.Store(tmp_path, segment_size=12_000) as store:
        put(store, 1, 3, 5, 7, 9)
        assert [one.number for one in store.segments()] == [1, 2, 3]
        store.drop(3)
        put(store, 11)
        assert [one.number for one in store.segments()] == [1, 2, 4]
    with cext.Store(tmp_path, segment_size=12_000) as store:
        assert [one.number for one in store.segments()] == [1, 2, 4]
        assert there(store, 1, 3, 5, 7, 9, 11) == [1, 3, 5, 7, 11]


def test_a_segment_that_was_begun_is_gone_on_with_after_opening_again(tmp_path: Path) -> None:
    for seed in (1, 3, 5):
        with cext.Store(tmp_path) as store:
            put(store, seed)
    assert [one.id for one in entries(segment(tmp_path).read_bytes(), 1)] == [chunk(seed)[0] for seed in (1, 3, 5)]


def test_a_dropped_segment_is_gone_from_disk_and_map(tmp_path: Path) -> None:
    with cext.Store(tmp_path, segment_size=12_000) as store:
        put(store, 1, 3, 5, 7)
        store.drop(1)
        assert there(store, 1, 3, 5, 7) == [5, 7]
        assert not segment(tmp_path, 1).exists()
        assert store.statistics().chunks == 2
        with pytest.raises(MissingError, match="no segment 00000001"):
            store.drop(1)
        with pytest.raises(MissingError):
            store.drop(1 << 40)


def test_files_that_no_commit_knows_are_deleted_and_strangers_are_left(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
    segment(tmp_path, 77).write_bytes(segment_header(77))
    for name in ("seg-1", "seg-0000000g", "seg-FFFFFFFF", "notes"):
        (tmp_path / name).write_text("?")
    with cext.Store(tmp_path) as store:
        assert there(store, 1) == [1]
    assert not segment(tmp_path, 77).exists()
    assert all((tmp_path / name).exists() for name in ("seg-1", "seg-0000000g", "seg-FFFFFFFF", "notes"))


@pytest.mark.parametrize("how", ["deleted", "a directory", "a link"])
def test_a_segment_that_cannot_be_opened_costs_its_own_chunks_alone(tmp_path: Path, how: str) -> None:
    with cext.Store(tmp_path, segment_size=12_000) as store:
        put(store, 1, 3, 5, 7)
    segment(tmp_path, 1).unlink()
    if how == "a directory":
        segment(tmp_path, 1).mkdir()
    elif how == "a link":
        segment(tmp_path, 1).symlink_to("/dev/zero")
    for _ in range(2):
        with cext.Store(tmp_path) as store:
            assert there(store, 1, 3, 5, 7) == [5, 7]
            assert store.check().damaged_rows == 0
            assert not store.statistics().rebuilt


# ---------------------------------------------------------------------- damage


def test_a_damaged_chunk_is_missing_and_put_again_it_is_there_at_once(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1, 3)
        flip(segment(tmp_path), 32 + 80 + 1000)
        for _ in range(20):  # a put beside the request to forget must not find the chunk "known"
            assert there(store, 1, 3) == [3]
            put(store, 1)
            assert there(store, 1, 3) == [1, 3]
            flip(segment(tmp_path), segment(tmp_path).stat().st_size - 1000)
        assert store.statistics().damaged == 20


def test_damage_is_told_in_the_log_with_the_chunk_and_its_place(tmp_path: Path) -> None:
    log = tmp_path / "log"
    store_path = tmp_path / "store"
    store_path.mkdir()
    with open(log, "wb") as file, cext.Store(store_path, log=file.fileno()) as store:
        put(store, 1)
        flip(segment(store_path), 32 + 80)
        assert there(store, 1) == []
    text = log.read_text()
    assert f"store: chunk {chunk(1)[0].hex()} in segment 00000001 at 32 is damaged and forgotten" in text
    assert text.count("\n") == 1


def test_a_damaged_frame_is_missing_too(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 2, compress=True)
        flip(segment(tmp_path), 32 + 80 + 9)
        assert there(store, 2) == []
        assert store.statistics().damaged == 1


@pytest.mark.parametrize("size", [0, 31, 32, 100, 5000])
def test_a_segment_cut_short_under_an_open_store_loses_what_was_cut(tmp_path: Path, size: int) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1, 3)
        os.truncate(segment(tmp_path), size)
        assert there(store, 1, 3) == []
        put(store, 1, 3)
        assert there(store, 1, 3) == [1, 3]


TSAN = "tsan" in os.environ.get("LD_PRELOAD", "")


@pytest.mark.parametrize(
    "name",
    ["data.mdb", pytest.param("lock.mdb", marks=pytest.mark.skipif(TSAN, reason="TSan looks into the locks in it"))],
)
@pytest.mark.parametrize("writing", [False, True])
def test_a_map_cut_short_under_an_open_store_is_made_again_by_the_next(
    tmp_path: Path, name: str, writing: bool
) -> None:
    """LMDB reads it by a mapping: SIGBUS. The process (a child: descriptors of LMDB stay open) lives, readers miss."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store = cext.Store(tmp_path)
            put(store, 1, 3)
            os.truncate(tmp_path / name, 0)
            if writing:
                store.put(*chunk(5))
            if there(store, 1, 3) in ([], [1, 3]):
                status = 0
            with suppress(OSError, CorruptError, ClosedError):
                store.put(*chunk(7))
            with suppress(OSError, CorruptError):
                store.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with cext.Store(tmp_path) as again:
        assert there(again, 1, 3) == [1, 3]


@pytest.mark.skipif(TSAN, reason="TSan dies of SIGBUS in its own copying")
def test_a_store_whose_map_failed_takes_nothing_and_says_so(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
        os.truncate(tmp_path / "data.mdb", 0)
        assert there(store, 1) == []
        assert store.statistics().broken == 1
        with pytest.raises(ClosedError, match="want the store opened again"):
            store.put(*chunk(3))
        with pytest.raises(ClosedError):
            store.check()
        store.flush()
        assert not (tmp_path / "data.mdb").exists()
    with cext.Store(tmp_path) as store:
        assert there(store, 1) == [1]
        assert store.statistics().rebuilt == 1


@pytest.mark.skipif(TSAN, reason="TSan dies of SIGBUS in its own copying")
def test_what_was_queued_when_the_map_failed_is_told_by_flush(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
        os.truncate(tmp_path / "data.mdb", 0)
        try:
            for seed in range(3, 103, 2):
                store.put(*chunk(seed))
        except ClosedError:
            pass  # it has failed in the middle
        if store.statistics().puts > 1:
            with pytest.raises((ClosedError, CorruptError)):
                store.flush()


def test_a_fault_of_somebody_else_still_ends_the_process(tmp_path: Path) -> None:
    cext.Store(tmp_path).close()  # installs the guard
    child = os.fork()
    if child == 0:
        import ctypes
        import faulthandler

        faulthandler.disable()
        ctypes.string_at(8)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    # A newer sanitizer has a handler of its own, says what it saw and ends the process with its own status.
    assert os.WIFSIGNALED(status) or ("san" in os.environ.get("LD_PRELOAD", "") and os.WEXITSTATUS(status) != 0)


# ---------------------------------------------------------------------- the map made again


def lose_map(path: Path) -> None:
    (path / "data.mdb").unlink()


def test_a_lost_map_is_made_again_with_everything(tmp_path: Path) -> None:
    with cext.Store(tmp_path, segment_size=12_000) as store:
        put(store, 1, 3, 5)
        put(store, 2, 4, compress=True)
        put(store, 7, pinned=True)
    lose_map(tmp_path)
    with cext.Store(tmp_path) as store:
        assert store.statistics().rebuilt == 1
        assert there(store, 1, 2, 3, 4, 5, 7) == [1, 2, 3, 4, 5, 7]
        assert [one.pinned for one in store.segments()] == [0, 0, 1]
    with cext.Store(tmp_path) as store:
        assert store.statistics().rebuilt == 0


def test_of_two_entries_of_a_chunk_the_map_made_again_takes_the_later_if_it_is_whole(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
        flip(segment(tmp_path), 32 + 80)
        assert there(store, 1) == []
        put(store, 1)
    lose_map(tmp_path)
    with cext.Store(tmp_path) as store:
        assert there(store, 1) == [1]
    flip(segment(tmp_path), 32 + 80)  # the first is whole again, the second is torn
    flip(segment(tmp_path), 32 + 80 + 5000 + 80)
    lose_map(tmp_path)
    with cext.Store(tmp_path) as store:
        assert there(store, 1) == [1]


def test_a_damaged_entry_header_costs_its_own_chunk_alone(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1, 3, 5)
    flip(segment(tmp_path), 32 + 80 + 5000 + 10)
    lose_map(tmp_path)
    with cext.Store(tmp_path) as store:
        assert there(store, 1, 3, 5) == [1, 5]


def test_a_header_inside_a_chunk_is_none_for_the_map(tmp_path: Path) -> None:
    """Somebody who guesses the place writes a chunk that reads like entries: under no id are wrong bytes ever found."""
    victim, fake = chunk(1)[0], b"other bytes!"
    inside = 32 + 80 + 16
    lie = bytes(16) + entry_header(Entry(victim, 1, 0, len(fake), inside, fake), 1) + fake + bytes(100)
    with cext.Store(tmp_path) as store:
        store.put(cext.blake3(lie), lie, compress=False)
    flip(segment(tmp_path), 32 + 1)  # the honest header before it: the scanner goes through the chunk byte by byte
    lose_map(tmp_path)
    with cext.Store(tmp_path) as store:
        assert there(store, 1) == []
        put(store, 1)
        assert there(store, 1) == [1]


def test_without_a_map_a_segment_of_a_damaged_header_goes(tmp_path: Path) -> None:
    with cext.Store(tmp_path, segment_size=12_000) as store:
        put(store, 1, 3, 5)
    flip(segment(tmp_path, 1), 9)
    with cext.Store(tmp_path) as store:
        assert there(store, 1, 3, 5) == [1, 3, 5]  # with a map it does not matter
        assert store.check().damaged_headers == 1
    lose_map(tmp_path)
    with cext.Store(tmp_path) as store:
        assert there(store, 1, 3, 5) == [5]
        assert not segment(tmp_path, 1).exists()


def test_check_writes_a_damaged_header_anew(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
        flip(segment(tmp_path), 9)
        assert store.check(repair=True).damaged_headers == 1
        assert store.check().damaged_headers == 0
    assert segment(tmp_path).read_bytes()[:32] == segment_header(1)


# ---------------------------------------------------------------------- use


def test_no_thread_runs_before_something_is_written(tmp_path: Path) -> None:
    """So that a process may open it, and then give up what only a process of one thread can."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    with cext.Store(tmp_path) as store:
        assert there(store, 1) == []
        store.flush()
        assert threads() == before
        put(store, 1)
        assert threads() == before + 1
    assert threads() == before


def test_a_child_of_a_fork_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: the writer's thread is there
            child = os.fork()
        if child == 0:
            try:
                store.get(chunk(1)[0])
            except ClosedError:
                store.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        put(store, 3)
        assert there(store, 1, 3) == [1, 3]
        with pytest.raises(BlockingIOError):
            cext.Store(tmp_path)


def test_who_may_not_wait_is_told_that_the_queue_is_full(tmp_path: Path) -> None:
    accepted, refused = [], 0
    with cext.Store(tmp_path, queue_size=1) as store:
        for seed in range(1, 401, 2):
            try:
                store.put(*chunk(seed), compress=False, wait=False)
                accepted.append(seed)
            except LimitError:
                refused += 1
        store.flush()
        assert refused > 0
        assert accepted
        assert there(store, *accepted) == accepted
        assert store.statistics().queued == 0


def test_readers_of_a_dropped_segment_finish(tmp_path: Path) -> None:
    wrong: list[bytes] = []
    stop = threading.Event()

    def read(store: cext.Store) -> None:
        while not stop.is_set():
            for seed in (1, 3, 5, 7):
                id, data = chunk(seed)
                if (got := store.get(id)) not in (None, data):
                    wrong.append(got or b"")

    with cext.Store(tmp_path, segment_size=6_000) as store:
        readers = [threading.Thread(target=read, args=(store,)) for _ in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(12):
            put(store, 1, 3, 5, 7)
            for one in store.segments():
                store.drop(one.number)
        stop.set()
        for reader in readers:
            reader.join()
        assert wrong == []
        assert store.statistics().damaged == 0


def test_when_a_segment_was_last_used_survives_roughly(tmp_path: Path) -> None:
    with cext.Store(tmp_path, segment_size=6_000) as store:
        put(store, 1, 3, 5)
        there(store, 1)
    with cext.Store(tmp_path) as store:
        used = {one.number: one.used for one in store.segments()}
        assert used[1] > used[3] > used[2]


def test_what_was_seen_is_remembered_over_a_restart(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        assert not store.seen(chunk(1)[0])
        assert store.seen(chunk(1)[0])
    with cext.Store(tmp_path) as store:
        assert store.seen(chunk(1)[0])
        assert not store.seen(chunk(3)[0])
    (tmp_path / "seen").write_bytes(b"\xff" * 10)
    with cext.Store(tmp_path) as store:
        assert not store.seen(chunk(1)[0])


def test_what_was_seen_is_forgotten_when_half_the_bits_are_set(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        store.seen(bytes(32))
        for number in range(1, (1 << 19) + 1):
            store.seen(number.to_bytes(4, "little") + bytes(28))
        assert not store.seen(bytes(32))


def test_statistics_count_what_happened(tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        put(store, 1, 1, 3)
        there(store, 1, 3, 5)
        found = store.statistics()
        assert (found.chunks, found.segments, found.hits, found.misses) == (2, 1, 2, 1)
        assert found.puts + found.known == 3
        assert found.bytes == segment(tmp_path).stat().st_size
        assert (found.damaged, found.lost, found.queued, found.rebuilt, found.broken) == (0, 0, 0, 0, 0)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cext.Store(tmp_path / "none")


def test_another_map_in_the_place_of_its_own_is_replaced(tmp_path: Path) -> None:
    """What stands in a store's directory is the store's."""
    cext.ChunkMap(str(tmp_path)).close()
    with cext.Store(tmp_path) as store:
        put(store, 1)
        assert there(store, 1) == [1]
