"""Images of one trust domain share what was fetched of a pack, and none of them can spoil it for the others: neither
with tables that lie about the pack, nor with an origin that does not deliver it.
"""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cext.fetch import SPAN
from tests.support import origin as faults
from tests.support.far import Remote, remote
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import Origin
from tests.support.origin import serving as origin_serving
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

CONTENT = random.Random(41).randbytes(2 * SPAN + 4321)
_BLOBS, _BLOB = 64, 48


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("honest") / "objects", {"file": CONTENT})


@pytest.fixture
def origin() -> Iterator[Origin]:
    with origin_serving() as found:
        yield found


def about(honest: ObjectSet, directory: Path, *, larger: int) -> ObjectSet:
    """Sound tables of another file that say it is in the honest one's pack, which they make that much larger."""
    made = make_objects(directory / "lies", {"file": random.Random(42).randbytes(SPAN + 1000)})
    tables, truth = bytearray(made.tables.read_bytes()), honest.tables.read_bytes()
    tables[_BLOBS : _BLOBS + _BLOB] = truth[_BLOBS : _BLOBS + _BLOB]
    (size,) = struct.unpack_from("<Q", truth, _BLOBS + 32)
    struct.pack_into("<Q", tables, _BLOBS + 32, size + larger)
    made.tables.write_bytes(tables)
    return replace(made, packs=honest.packs)


def add(found: Remote, objects: ObjectSet, origin: int) -> None:
    with objects.opened() as (tables, packs):
        found.served.server.add_image(tables, [-1] * len(packs), label="image", origin=origin)


def is_again(exchange: faults.Exchange) -> bool:
    """Whether it is asked for past all caches: bytes that came were wrong."""
    return "cache-control" in exchange.headers


def test_tables_that_lie_about_chunks_make_no_other_image_wait(
    honest: ObjectSet, origin: Origin, tmp_path: Path
) -> None:
    lies = about(honest, tmp_path, larger=0)
    gate = threading.Event()
    origin.fail("again", faults.held(gate), times=-1, where=is_again)
    with remote(honest, origin) as found, ThreadPoolExecutor(1) as pool:
        found.add(lies, "lies")
        try:
            waits = pool.submit(found.served.read, lies, "file")
            while origin.met("again") == 0:  # it has read the pack, and says that it is wrong
                assert not waits.done()
            assert found.served.read(honest, "file") == CONTENT
            assert not waits.done()
            assert found.served.count("rejected") >= 1
        finally:
            found.served.server.remove_image(2)
            gate.set()
        with pytest.raises(OSError):
            waits.result(PATIENCE_S)


def test_tables_that_lie_about_a_size_make_no_other_image_wait(
    honest: ObjectSet, origin: Origin, tmp_path: Path
) -> None:
    lies = about(honest, tmp_path, larger=5)
    with remote(honest, origin) as found, ThreadPoolExecutor(1) as pool:
        found.add(lies, "lies")
        waits = pool.submit(found.served.read, lies, "file")
        eventually(lambda: origin.count() > 0)
        assert found.served.read(honest, "file") == CONTENT
        assert not waits.done()
        found.served.server.remove_image(2)
        with pytest.raises(OSError):
            waits.result(PATIENCE_S)


def test_an_origin_in_trouble_is_not_waited_for_by_images_of_another(honest: ObjectSet, origin: Origin) -> None:
    with origin_serving() as other, remote(honest, other) as found, ThreadPoolExecutor(1) as pool:
        other.blobs.clear()  # 404 for everything
        origin.add_directory(honest.packs)
        found.fetcher.set_source(2, origin.url)
        found.fetcher.set_origin(2, [2])
        reader = pool.submit(found.served.read, honest, "file")
        eventually(lambda: other.count() > 0)
        add(found, honest, 2)
        assert reader.result(PATIENCE_S) == CONTENT
        assert found.served.count("errors") == 0


def test_images_of_two_origins_fetch_what_they_share_once(honest: ObjectSet, origin: Origin) -> None:
    with remote(honest, origin) as found:
        found.fetcher.set_origin(2, [1])
        add(found, honest, 2)
        assert found.served.read(honest, "file") == CONTENT
        found.served.server.remove_image(1)
        with found.served.opened(honest, "file") as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert found.served.read(honest, "file") == CONTENT
        assert found.served.count("fetched_bytes") == sum(path.stat().st_size for path in honest.packs.iterdir())
