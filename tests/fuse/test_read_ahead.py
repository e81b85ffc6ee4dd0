"""Spans that a reader is likely to want next come before it asks; others fetch nothing that they did not touch."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cext.fetch import SPAN
from lazyfs.object_mount import FAR_READ_AHEAD_KB, set_read_ahead
from tests.support import origin as faults
from tests.support.far import Remote, remote
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import Origin
from tests.support.origin import serving as origin_serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")

_DICE = random.Random(19)
SIZE = 16 * SPAN
CONTENTS = {"long": _DICE.randbytes(SIZE), "other": _DICE.randbytes(3 * SPAN)}
STEP = 128 << 10


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    """The first pack has "long" and the beginning of "other"."""
    return make_objects(tmp_path_factory.mktemp("ahead") / "objects", CONTENTS, pack_size=SIZE + SPAN // 2)


@contextmanager
def reading(objects: ObjectSet, origin: Origin) -> Iterator[tuple[Remote, int]]:
    """A descriptor of "long" on a mount with the read-ahead of images that are far away."""
    with remote(objects, origin) as found:
        set_read_ahead(found.served.tree, FAR_READ_AHEAD_KB)
        with found.served.opened(objects, "long") as fd:
            yield found, fd


@pytest.fixture
def origin() -> Iterator[Origin]:
    with origin_serving() as found:
        yield found


def asked(objects: ObjectSet, origin: Origin) -> set[int]:
    """Spans of the pack with "long" that were asked for."""
    pack = objects.places["long"][0].pack
    ranges = [one.headers["range"] for one in list(origin.asked) if one.path.endswith(pack)]
    return {int(words.removeprefix("bytes=").partition("-")[0]) // SPAN for words in ranges}


def spans_of(objects: ObjectSet, first: int, stop: int) -> set[int]:
    """In which the chunks of these bytes of "long" lie."""
    found: set[int] = set()
    at = 0
    for place in objects.places["long"]:
        if at < stop and first < at + place.length:
            found |= set(range(place.offset // SPAN, (place.offset + place.size - 1) // SPAN + 1))
        at += place.length
    return found


def test_a_reader_in_order_finds_the_next_spans_on_their_way(objects: ObjectSet, origin: Origin) -> None:
    with reading(objects, origin) as (_, fd):
        for at in range(0, 2 * SPAN, STEP):
            assert os.pread(fd, STEP, at) == CONTENTS["long"][at : at + STEP]
        eventually(lambda: asked(objects, origin) >= spans_of(objects, 0, 4 * SPAN))  # it reads no further
        assert max(asked(objects, origin)) <= 6  # as much again as it has read, and the kernel's own read-ahead
        for at in range(2 * SPAN, SIZE, STEP):
            assert os.pread(fd, STEP, at) == CONTENTS["long"][at : at + STEP]


def test_a_reader_that_jumps_fetches_what_it_touches(objects: ObjectSet, origin: Origin) -> None:
    with reading(objects, origin) as (_, fd):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        touched: set[int] = set()
        for at in range(SPAN // 2, SIZE, 2 * SPAN):
            assert os.pread(fd, 4096, at) == CONTENTS["long"][at : at + 4096]
            touched |= spans_of(objects, at, at + 4096)
        assert asked(objects, origin) == touched


def test_a_reader_that_goes_backwards_fetches_what_it_touches(objects: ObjectSet, origin: Origin) -> None:
    with reading(objects, origin) as (_, fd):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(SIZE - STEP, SIZE // 2, -STEP):
            assert os.pread(fd, STEP, at) == CONTENTS["long"][at : at + STEP]
        assert asked(objects, origin) == spans_of(objects, SIZE // 2 + STEP, SIZE)


def test_nobody_waits_for_what_is_read_ahead_for_another(objects: ObjectSet, origin: Origin) -> None:
    gate = threading.Event()
    pack = objects.places["long"][0].pack
    held = faults.held(gate)
    origin.fail("ahead", held, times=-1, where=lambda it: it.path.endswith(pack) and 3 * SPAN <= it.first < SIZE - SPAN)
    with reading(objects, origin) as (found, fd):
        try:
            for at in range(0, 2 * SPAN, STEP):
                assert os.pread(fd, STEP, at) == CONTENTS["long"][at : at + STEP]
            eventually(lambda: origin.met("ahead") > 0)
            assert found.served.read(objects, "other") == CONTENTS["other"]
        finally:
            gate.set()
        assert found.served.read(objects, "long") == CONTENTS["long"]
