"""What a start touches is in the local store after it, and then the rest of the same files; nobody waits for that."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import cext
from cext.errors import MissingError
from cext.fetch import SPAN
from tests.support import origin as faults
from tests.support.far import Remote, remote
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import Origin
from tests.support.origin import serving as origin_serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")

_DICE = random.Random(23)
CONTENTS = {
    "hot": _DICE.randbytes(3 * SPAN),
    "warm": _DICE.randbytes(SPAN),
    "small": b"hello " * 500,
    "cold": _DICE.randbytes(2 * SPAN),
}
RUNS = [("hot", 100_000, 8192), ("warm", 0, 4096), ("small", 0, 3000), ("hot", 2 * SPAN, 4096)]
ALL = 1 << 30


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("prefetch") / "objects", CONTENTS, pack_size=2 << 20)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with origin_serving() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[cext.Store]:
    (tmp_path / "store").mkdir()
    with cext.Store(str(tmp_path / "store")) as found:
        yield found


def runs(objects: ObjectSet, *which: tuple[str, int, int]) -> bytes:
    return b"".join(objects.ids[name] + struct.pack("<QQ", offset, length) for name, offset, length in which)


def prefetch(found: Remote, objects: ObjectSet, *which: tuple[str, int, int], budget: int = ALL) -> None:
    """Waits until it is done."""
    found.served.server.prefetch(1, runs(objects, *which), budget)
    eventually(lambda: found.served.count("prefetching") == 0)


def forget(found: Remote, objects: ObjectSet, name: str) -> None:
    """Drops the pages of an object."""
    with found.served.opened(objects, name) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def chunks(objects: ObjectSet, name: str, offset: int = 0, length: int = 1 << 40) -> list[tuple[int, int]]:
    """Number and size of the chunks under a range of an object."""
    found, at = [], 0
    for number, place in enumerate(objects.places[name]):
        if at < offset + length and offset < at + place.length:
            found.append((number, place.length))
        at += place.length
    return found


def test_what_a_start_touches_needs_no_network_any_more(objects: ObjectSet, origin: Origin, store: cext.Store) -> None:
    with remote(objects, origin, store=store) as found:
        prefetch(found, objects, *RUNS)
        store.flush()
        hot = sum(len(chunks(objects, name)) for name in ("hot", "warm", "small"))
        assert found.served.count("prefetched_chunks") == hot
        asked = origin.count()
        origin.vanish()
        for name in ("hot", "warm", "small"):
            assert found.served.read(objects, name) == CONTENTS[name]
            forget(found, objects, name)
            assert found.served.read(objects, name) == CONTENTS[name]
        assert origin.count() == asked
        assert found.served.count("errors") == 0


def test_pages_of_a_start_come_first_and_are_dropped_last(
    objects: ObjectSet, origin: Origin, store: cext.Store
) -> None:
    touched = {(name, number) for name, offset, length in RUNS for number, _ in chunks(objects, name, offset, length)}
    need = sum(objects.places[name][number].size for name, number in touched)
    with remote(objects, origin, store=store) as found:
        prefetch(found, objects, *RUNS, budget=need)
        store.flush()
        assert found.served.count("prefetched_chunks") == len(touched)
        assert found.served.count("prefetched_bytes") <= need
        assert [one.pinned for one in store.segments()] == [True]


def test_a_chunk_that_a_reader_kept_is_put_with_what_is_dropped_last(
    objects: ObjectSet, origin: Origin, store: cext.Store
) -> None:
    with remote(objects, origin, store=store) as found:
        assert found.served.read(objects, "warm") == CONTENTS["warm"]
        store.flush()
        assert not any(one.pinned for one in store.segments())
        fetched = found.served.count("fetched_bytes")
        prefetch(found, objects, ("warm", 0, SPAN))
        store.flush()
        assert any(one.pinned for one in store.segments())
        assert found.served.count("fetched_bytes") == fetched
        assert found.served.count("prefetched_bytes") == 0


def test_no_more_is_fetched_than_the_budget(objects: ObjectSet, origin: Origin, store: cext.Store) -> None:
    with remote(objects, origin, store=store) as found:
        prefetch(found, objects, ("hot", 0, 4096), budget=500_000)
        assert 0 < found.served.count("prefetched_bytes") <= 500_000
        prefetch(found, objects, ("hot", 0, 4096), budget=0)
        assert found.served.count("prefetched_bytes") <= 500_000


def test_a_demand_is_never_behind_it(objects: ObjectSet, origin: Origin, store: cext.Store) -> None:
    """While a reader waits for its bytes nothing is asked for but those."""
    gate = threading.Event()
    last = objects.places["cold"][-1]
    origin.fail(
        "held",
        faults.held(gate),
        times=-1,
        where=lambda it: it.path.endswith(last.pack) and it.first == last.offset // SPAN * SPAN,
    )
    with remote(objects, origin, store=store) as found:
        reader = threading.Thread(target=_read_last_byte, args=(found, objects))
        reader.start()
        try:
            eventually(lambda: origin.met("held") > 0)
            found.served.server.prefetch(1, runs(objects, *RUNS), ALL)
            threading.Event().wait(0.3)
            assert {asked.fault for asked in origin.asked} == {"held"}
        finally:
            gate.set()
            reader.join()
        eventually(lambda: found.served.count("prefetching") == 0)
        assert found.served.count("prefetched_chunks") > 0


def _read_last_byte(found: Remote, objects: ObjectSet) -> None:
    with found.served.opened(objects, "cold") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, 1, len(CONTENTS["cold"]) - 1)


def test_it_ends_with_the_server(objects: ObjectSet, origin: Origin, store: cext.Store) -> None:
    gate = threading.Event()
    origin.fail("held", faults.held(gate), times=-1)
    try:
        with remote(objects, origin, store=store) as found:
            for _ in range(3):
                found.served.server.prefetch(1, runs(objects, *RUNS), ALL)
            eventually(lambda: origin.met("held") > 0)
            gate.set()
    finally:
        gate.set()


def test_what_may_begin_is_not_behind_what_may_not_yet(objects: ObjectSet, origin: Origin, store: cext.Store) -> None:
    with remote(objects, origin, store=store) as found:
        found.served.server.prefetch(1, runs(objects, ("warm", 0, SPAN)), ALL, 86400)
        found.served.server.prefetch(1, runs(objects, ("small", 0, 3000)), ALL)
        eventually(lambda: found.served.count("prefetching") == 1)
        assert found.served.count("prefetched_chunks") == len(chunks(objects, "small"))


def test_nonsense_is_left_out(objects: ObjectSet, origin: Origin, store: cext.Store) -> None:
    with remote(objects, origin, store=store) as found:
        server = found.served.server
        with pytest.raises(ValueError, match="runs"):
            server.prefetch(1, b"x" * 47, ALL)
        with pytest.raises(MissingError):
            server.prefetch(7, b"", ALL)
        huge = (1 << 64) - 1
        wild = objects.ids["hot"] + struct.pack("<QQ", huge, huge) + bytes(32) + struct.pack("<QQ", 0, 1)
        wild += objects.ids["warm"] + struct.pack("<QQ", 5, huge) + objects.ids["small"] + struct.pack("<QQ", 0, 0)
        server.prefetch(1, wild, 1)
        eventually(lambda: found.served.count("prefetching") == 0)
        assert found.served.count("prefetched_chunks") == 0
