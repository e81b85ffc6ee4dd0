"""Tables as they travel: without object ids, which the reader computes again."""

from __future__ import annotations

import random
import struct
from mmap import mmap

import pytest

import cext
from benchmarks.micro.synthetic import make
from cext.errors import CorruptError, OnesecError
from tests.support.images import encoded, sample


@pytest.fixture(scope="module")
def tables() -> bytes:
    return encoded(*sample())[2]


def column(tables: bytes) -> tuple[int, int]:
    """Where the object ids start and end."""
    blobs, frames, chunks, objects = struct.unpack_from("<4I", tables, 8)
    at = 64
    for rows, width in ((blobs, 48), (frames, 8), *((frames, 4),) * 3, (chunks, 32), *((chunks, 4),) * 3):
        at = (at + 7 & ~7) + rows * width
    start = at + 7 & ~7
    return start, start + 32 * objects


def short(tables: bytes) -> bytearray:
    made = bytearray(tables)
    cext.clear_object_ids(made)
    return made


def test_ids_that_were_left_out_come_back(tables: bytes) -> None:
    made = short(tables)
    start, end = column(tables)
    assert end > start
    assert made[start:end] == bytes(end - start)
    assert made[:start] + made[end:] == tables[:start] + tables[end:]
    cext.fill_object_ids(made)
    assert made == tables


def test_a_mapping_is_filled_in_place() -> None:
    tables = make(200, seed=4)
    (_, whole) = cext.encode_image(tables.tree, tables.packs)
    with mmap(-1, len(whole)) as place:
        place[:] = bytes(short(whole))
        cext.fill_object_ids(place)
        assert place[:] == whole


def test_tables_that_have_their_ids_stay_as_they_are(tables: bytes) -> None:
    start, _ = column(tables)
    wrong = bytearray(tables)
    wrong[start] ^= 1  # not the id of its parts, and the checker's to refuse
    before = bytes(wrong)
    cext.fill_object_ids(wrong)
    assert wrong == before


def test_tables_without_objects_have_no_ids() -> None:
    empty = bytearray(encoded()[2])
    before = bytes(empty)
    cext.fill_object_ids(empty)
    cext.clear_object_ids(empty)
    assert empty == before


def test_damage_is_refused_or_filled_and_never_read_past_the_end(tables: bytes) -> None:
    chance = random.Random(5)
    good = short(tables)
    refused = 0
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(bad)) if chance.random() < 0.7 else chance.randrange(8, 32)
            bad[at] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        if chance.random() < 0.2:
            del bad[chance.randrange(len(bad)) :]
        try:
            cext.fill_object_ids(bad)
        except OnesecError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("damage", ["size", "magic", "ref", "chunk"])
def test_what_leads_out_of_the_columns_is_refused(tables: bytes, damage: str) -> None:
    bad = short(tables)
    objects, refs = struct.unpack_from("<2I", tables, 20)
    _, end = column(tables)
    starts = end + 8 * objects + (4 * objects + 7 & ~7)
    if damage == "size":
        del bad[-4:]
    elif damage == "magic":
        bad[0] ^= 1
    elif damage == "ref":
        struct.pack_into("<I", bad, starts + 4, refs + 1)
    else:
        struct.pack_into("<I", bad, len(bad) - 4, 2**31)
    with pytest.raises(CorruptError, match="tables"):
        cext.fill_object_ids(bad)


def test_a_buffer_that_is_not_aligned_or_cannot_be_written_is_refused(tables: bytes) -> None:
    with pytest.raises(BufferError):
        cext.fill_object_ids(tables)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 8"):
        cext.fill_object_ids(memoryview(bytearray(tables) + bytearray(8))[1:])  # type: ignore[arg-type]
