"""Objects whose packs are on another host that fails on purpose, read by a process of its own through the real mount.

Each test says which fault it injects and shows that it was met. What a reader may see is the right bytes, or EIO after
the deadline; never zeros, a short read or SIGBUS while a source is alive.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import cext
from cext.fetch import SPAN
from tests.support import origin as faults
from tests.support.far import LONG_S, Remote, linked, remote, slots
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import Exchange, Fault, Origin
from tests.support.origin import serving as origin_serving
from tests.support.serving import serving
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

_DICE = random.Random(11)
CONTENTS = {
    "large": _DICE.randbytes(3 * SPAN + 777),
    "text": b"".join(b"%d %s\n" % (line, _DICE.randbytes(8).hex().encode()) for line in range(20000)),
    "small": b"hello " * 500,
    "other": _DICE.randbytes(40000),
}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}

READER = r"""
import hashlib, mmap, os, sys
tree, path, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
fd = os.open(path, os.O_RDONLY, dir_fd=tree)
size = os.fstat(fd).st_size
found = hashlib.sha256()
try:
    if how == "read":
        at = 0
        while at < size:
            data = os.pread(fd, 1 << 17, at)
            if not data:
                print("short", at)
                sys.exit()
            found.update(data)
            at += len(data)
    else:
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory:
            for at in range(0, size, 1 << 16):
                found.update(memory[at : at + (1 << 16)])
except OSError as error:
    print("errno", error.errno)
else:
    print(found.hexdigest())
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("remote") / "objects", CONTENTS, pack_size=2 << 20)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with origin_serving() as found:
        yield found


def outcome(found: Remote, objects: ObjectSet, name: str, how: str) -> str:
    """What a process of its own makes of the object: the hash of its bytes, "errno N", "short N", or "signal N"."""
    with found.served.children(READER, objects.path(name), how, waits=False) as (child,):
        out, _ = child.communicate(timeout=PATIENCE_S)
        return out.decode().strip() if child.returncode == 0 else f"signal {-child.returncode}"


def check_all(found: Remote, objects: ObjectSet) -> None:
    """Both ways of reading, at the same time, each on objects that nobody has read so far."""
    with ThreadPoolExecutor(4) as pool:
        waits = {
            name: pool.submit(outcome, found, objects, name, how)
            for name, how in zip(CONTENTS, ("mmap", "read", "mmap", "read"), strict=True)
        }
        for name, one in waits.items():
            assert one.result() == DIGESTS[name], f"{name}\n{found.served.log_text()}"


def test_objects_come_from_an_origin(objects: ObjectSet, origin: Origin) -> None:
    with remote(objects, origin) as found:
        check_all(found, objects)
        size = sum(path.stat().st_size for path in objects.packs.iterdir())
        # Each span once, whoever reads it; again only if all readers pause so long that the memory is given back.
        assert size <= found.served.count("fetched_bytes") <= 2 * size
        assert found.served.count("parked") > 0
        assert found.served.count("rejected") == 0


FAULTS: dict[str, Fault] = {
    "slow": faults.slow(0.5),
    "late": faults.late(0.3),
    "reset": faults.reset,
    "reset midway": faults.reset_midway,
    "200 for 206": faults.whole,
    "wrong range": faults.wrong_range,
    "wrong total": faults.wrong_total,
    "no range": faults.no_range,
    "short body": faults.short_body,
    "short length": faults.short_length,
    "long body": faults.long_body,
    "flipped bytes": faults.flipped,
    "zeros": faults.zeros,
    "silent": faults.silent,
    "encoded": faults.encoded,
    "404": faults.status(404),
    "429": faults.status(429, "Retry-After: 1"),
    "503": faults.status(503, "Retry-After: 1"),
    "500": faults.status(500),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_reader_gets_the_right_bytes_through(objects: ObjectSet, origin: Origin, name: str) -> None:
    origin.fail(name, FAULTS[name], times=4)
    with remote(objects, origin, stall_timeout=0.5 if name == "silent" else 20, hedge_floor=600) as found:
        check_all(found, objects)
        assert origin.met(name) == 4
        assert found.served.count("errors") == 0
        if name in ("flipped bytes", "zeros"):
            assert found.served.count("rejected") >= 1


@pytest.mark.parametrize("name", ["flipped bytes", "zeros", "200 for 206", "reset", "404"])
def test_a_source_that_always_fails_is_made_up_for_by_the_next(objects: ObjectSet, origin: Origin, name: str) -> None:
    with origin_serving() as bad, remote(objects, bad, origin) as found:
        bad.fail(name, FAULTS[name], times=-1)
        check_all(found, objects)
        assert bad.met(name) >= 1
        assert found.served.count("errors") == 0


def test_a_redirect_to_a_signed_place_that_has_expired_is_followed_anew(objects: ObjectSet, origin: Origin) -> None:
    origin.fail("expired", faults.signed(origin, -1), times=3, where=lambda e: e.path.startswith("/blobs/"))
    origin.fail("signed", faults.signed(origin, 900), times=-1, where=lambda e: e.path.startswith("/blobs/"))
    with remote(objects, origin) as found:
        assert outcome(found, objects, "large", "read") == DIGESTS["large"]
        origin.ahead = 1000
        check_all(found, objects)
        assert origin.met("expired") == 3
        assert origin.met("signed") >= 2


def test_an_image_outlives_any_number_of_tokens(objects: ObjectSet, origin: Origin) -> None:
    """Whoever has the credentials hands in a new token each time the source is called stale."""
    origin.token = "token 0"
    stop, numbers = threading.Event(), itertools.count(1)
    with remote(objects, origin) as found:
        fetcher = found.fetcher
        fetcher.set_source(1, origin.url, headers=["Authorization: Bearer token 0"])

        def revoke(_: Exchange) -> bool:
            origin.token = f"token {next(numbers)}"
            return False

        def renew() -> None:
            while not stop.wait(0.005):
                if fetcher.news():
                    fetcher.set_source(1, origin.url, headers=[f"Authorization: Bearer {origin.token}"])

        # Each time that a request comes with the token that is good.
        origin.fail("revoked", revoke, times=5, where=lambda e: e.headers["authorization"] == f"Bearer {origin.token}")
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(renew)
            try:
                check_all(found, objects)
            finally:
                stop.set()
            job.result()
        statistics = fetcher.statistics()
        assert origin.met("revoked") == 5
        assert statistics["stale"] >= 2, statistics


def test_an_origin_gone_for_a_while_is_waited_for(objects: ObjectSet, origin: Origin) -> None:
    with remote(objects, origin) as found:
        assert outcome(found, objects, "small", "read") == DIGESTS["small"]
        origin.vanish()
        with ThreadPoolExecutor(2) as pool:
            waits = [pool.submit(outcome, found, objects, "large", how) for how in ("read", "mmap")]
            eventually(lambda: found.fetcher.statistics()["transport"] > 2)
            assert not any(one.done() for one in waits)
            origin.heal()
            assert [one.result() for one in waits] == [DIGESTS["large"]] * 2
        assert found.served.count("errors") == 0


@pytest.mark.parametrize("how", ["read", "mmap"])
def test_an_origin_gone_for_good_is_an_error_with_one_line_that_says_all(
    objects: ObjectSet, origin: Origin, how: str
) -> None:
    with remote(objects, origin, deadline=2) as found:
        origin.fail("gone", faults.status(503), times=-1)
        start = time.monotonic()
        said = outcome(found, objects, "small", how)
        assert said == (f"errno {errno.EIO}" if how == "read" else f"signal {signal.SIGBUS}")
        assert time.monotonic() - start >= 2
        assert found.served.count("reads") > found.served.count("parked") > 0  # asked again, refused at once
        assert origin.met("gone") > 1
        place = objects.places["small"][0]
        line = next(line for line in found.served.log_text().splitlines() if "deadline" in line)
        for words in (
            "image: ",
            f"object {objects.ids['small'].hex()}",
            f"chunk {cext.blake3(CONTENTS['small']).hex()}",
            f"pack {place.pack} at {place.offset}",
            f"did not come before the deadline: http://127.0.0.1:{origin.port}: got status 503, want 206",
        ):
            assert words in line
        origin.heal()
        eventually(lambda: outcome(found, objects, "small", "read") == DIGESTS["small"])  # it is refused for a while


def test_bytes_that_are_always_wrong_are_never_served(objects: ObjectSet, origin: Origin) -> None:
    with remote(objects, origin, deadline=2) as found:
        origin.fail("flipped", faults.flipped, times=-1)
        assert outcome(found, objects, "large", "read") == f"errno {errno.EIO}"
        line = next(line for line in found.served.log_text().splitlines() if "deadline" in line)
        assert "wrong" in line or "hash differs" in line
        assert 2 <= origin.met("flipped") < 300  # the backoff holds it back
        assert found.served.count("rejected") >= 2


def test_readers_of_other_objects_do_not_wait_for_one_that_is_stuck(objects: ObjectSet, origin: Origin) -> None:
    stuck = objects.places["large"][0].pack
    gate = threading.Event()
    origin.fail("stuck", faults.held(gate), times=-1, where=lambda e: e.path.endswith(stuck))
    elsewhere = [name for name in CONTENTS if all(place.pack != stuck for place in objects.places[name])]
    assert elsewhere
    with remote(objects, origin, threads=2) as found, ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(outcome, found, objects, "large", "read") for _ in range(4)]
        eventually(lambda: origin.met("stuck") >= 1)
        for name in elsewhere:
            assert outcome(found, objects, name, "read") == DIGESTS[name]
        assert not any(one.done() for one in waits)
        gate.set()
        assert [one.result() for one in waits] == [DIGESTS["large"]] * 4


def test_a_fetcher_that_dies_is_replaced_by_the_next_one(objects: ObjectSet, origin: Origin) -> None:
    gate = threading.Event()
    origin.fail("held", faults.held(gate), times=-1)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        second = stack.enter_context(origin_serving())
        second.add_directory(objects.packs)
        memory = stack.enter_context(slots())
        served = stack.enter_context(serving(deadline=LONG_S, memory=memory))
        with linked(served.server, memory, origin) as fetcher:
            found = Remote(served, fetcher, memory)
            origin.add_directory(objects.packs)
            found.add(objects)
            waits = pool.submit(outcome, found, objects, "large", "read")
            eventually(lambda: origin.met("held") >= 1)
        assert not waits.done()
        gate.set()
        with linked(served.server, memory, second):
            assert waits.result() == DIGESTS["large"]
        assert second.count() > 0
        assert served.count("links") == 2
        assert "the fetcher is gone" in served.log_text()


def test_readers_see_nothing_of_a_mixture_of_everything(objects: ObjectSet, origin: Origin) -> None:
    kinds = [fault for name, fault in FAULTS.items() if name not in ("429", "503", "silent", "slow")]
    dice, lock = random.Random(3), threading.Lock()

    def sometimes(exchange: Exchange) -> bool:
        with lock:
            fault = dice.choice(kinds) if dice.random() < 0.5 else None
        return fault is not None and fault(exchange)

    origin.fail("mixed", sometimes, times=-1)
    with origin_serving() as second, remote(objects, origin, second) as found:
        second.fail("mixed", sometimes, times=-1)
        check_all(found, objects)
        assert origin.met("mixed") + second.met("mixed") > 5
        assert found.served.count("errors") == 0


def test_more_spans_than_there_are_slots_all_come(tmp_path: Path, origin: Origin) -> None:
    content = random.Random(5).randbytes(48 * SPAN)
    made = make_objects(tmp_path / "objects", {"huge": content})
    with remote(made, origin) as found, found.served.opened(made, "huge") as fd, ThreadPoolExecutor(12) as pool:
        places = list(range(0, len(content), 1 << 19))
        random.Random(6).shuffle(places)
        for at, data in zip(places, pool.map(lambda at: os.pread(fd, 1 << 19, at), places), strict=True):
            assert data == content[at : at + (1 << 19)]
        assert found.served.count("evicted") > 0
        assert found.served.count("fetched") <= 1.5 * len(places)  # two far places of a span, and then a span twice


def test_memory_is_given_back_when_nobody_reads(objects: ObjectSet, origin: Origin) -> None:
    with remote(objects, origin) as found:
        check_all(found, objects)
        eventually(lambda: os.fstat(found.memory).st_blocks == 0)
        before = found.served.count("fetched")
        drop_pages(found, objects)
        assert outcome(found, objects, "large", "read") == DIGESTS["large"]
        assert found.served.count("fetched") > before


def drop_pages(found: Remote, objects: ObjectSet) -> None:
    with found.served.opened(objects, "large") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_what_came_is_kept_in_the_store(objects: ObjectSet, origin: Origin, tmp_path: Path) -> None:
    with cext.Store(tmp_path) as store:
        with remote(objects, origin, store=store) as found:
            check_all(found, objects)
            assert found.served.count("fetched") > 0
            assert found.served.count("keeps") > 0
        store.flush()
        with remote(objects, origin, store=store) as found:  # another mount: nothing is in its page cache
            check_all(found, objects)
            assert found.served.count("kept_bytes") > 0
            assert found.served.count("fetched") == 0


def test_what_many_images_have_is_fetched_for_one_of_them(tmp_path: Path, origin: Origin) -> None:
    """Each has it in a pack of its own, as images do that were built apart."""
    sets = [
        make_objects(tmp_path / str(number), {"before": bytes([number]) * 70_000, "file": CONTENTS["large"]})
        for number in range(6)
    ]
    with remote(sets[0], origin) as found:
        for one in sets[1:]:
            origin.add_directory(one.packs)
            found.add(one)
        assert found.served.read(sets[0], "file") == CONTENTS["large"]
        size = sum(path.stat().st_size for path in sets[0].packs.iterdir())
        assert found.served.count("fetched_bytes") <= size


def test_the_next_image_is_asked_when_the_first_ones_origin_is_in_trouble(tmp_path: Path, origin: Origin) -> None:
    sets = [
        make_objects(tmp_path / str(number), {"before": bytes([number]) * 70_000, "file": CONTENTS["large"]})
        for number in range(2)
    ]
    (pack,) = sets[0].pack_names()
    with remote(sets[0], origin) as found:
        del origin.blobs[pack]  # 404
        origin.add_directory(sets[1].packs)
        found.add(sets[1])
        assert found.served.read(sets[0], "file") == CONTENTS["large"]
        assert found.served.count("errors") == 0
