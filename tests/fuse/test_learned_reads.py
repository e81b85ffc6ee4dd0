"""What the object server keeps in mind of reads: runs of an image's objects, in their order."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from lazyfs import learned
from lazyfs.object_mount import set_read_ahead
from tests.support.objects import ObjectSet, make_objects
from tests.support.serving import Served, serving

pytestmark = pytest.mark.usefixtures("real_machine")

_DICE = random.Random(31)
MINE = {"one": _DICE.randbytes(1 << 20), "two": _DICE.randbytes(70_000)}
OTHER = {"other": _DICE.randbytes(50_000)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectSet, ObjectSet]:
    place: Path = tmp_path_factory.mktemp("learned")
    return make_objects(place / "mine", MINE), make_objects(place / "other", OTHER)


def read(served: Served, objects: ObjectSet, name: str, *places: tuple[int, int]) -> None:
    """Pages as they are, without read-ahead."""
    with served.opened(objects, name) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset, length in places:
            os.pread(fd, length, offset)


def test_runs_come_in_the_order_of_their_first_reading(sets: tuple[ObjectSet, ObjectSet]) -> None:
    mine, other = sets
    with serving(mine, other) as served:
        set_read_ahead(served.tree, 4)
        read(served, mine, "two", (0, 4096))  # before anybody wants to know
        served.server.learn(True)
        read(served, mine, "one", (8192, 4096))
        read(served, other, "other", (0, 4096))
        read(served, mine, "two", (69_900, 50))
        read(served, mine, "one", (12_288, 8192), (8192, 4096), (0, 4096))
        first, second = served.images
        one, two = mine.ids["one"], mine.ids["two"]
        assert learned.runs_of(served.server.learned(first)) == [
            (one, 8192, 3 * 4096),
            (two, 69_632, 70_000 - 69_632),
            (one, 0, 4096),
        ]
        assert learned.runs_of(served.server.learned(second)) == [(other.ids["other"], 0, 4096)]
        assert served.server.learned(99) == b""
        served.server.learn(False)
        assert served.server.learned(first) == b""
        read(served, mine, "one", (1 << 19, 4096))
        assert served.server.learned(first) == b""


def test_there_is_a_bound_to_it(tmp_path: Path) -> None:
    """More runs than are kept: every other page of a large object."""
    pages = 2 * 65536 + 2000
    sparse = make_objects(tmp_path / "sparse", {"sparse": [b"x" * 4096, pages * 4096 - 4096]})
    with serving(sparse) as served:
        set_read_ahead(served.tree, 4)
        served.server.learn(True)
        read(served, sparse, "sparse", *((4096 * page, 4096) for page in range(0, pages, 2)))
        runs = learned.runs_of(served.server.learned(served.images[0]))
        assert len(runs) == 65536
        assert runs[-1] == (sparse.ids["sparse"], 4096 * 2 * 65535, 4096)
