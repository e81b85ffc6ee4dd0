"""Pages become a boot pack, and the boot pack says the same pages again."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

import pytest

import cext
from cext.errors import CorruptError
from lazyfs.bootpack import FRAME, PAGE, BootPackBytes, Page, Run, encode, merged, pages_of, touched_pages
from registry import zstd

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def made(pages: list[Page], contents: Mapping[bytes, bytes]) -> BootPackBytes:
    def read(run: Run) -> bytes:
        return contents[run.object][run.offset : run.offset + run.length]

    return encode(pages, lambda identity: len(contents[identity]), read)


def touch(identity: bytes, offset: int, size: int) -> bytes:
    return struct.pack("<32sQIIQQ", identity, offset, size, 0, 0, 0)


def test_each_page_that_was_read_counts_once_in_the_order_of_the_first_reading() -> None:
    touches = touch(TWO, 8192, 4096) + touch(ONE, 0, 8192) + touch(TWO, 4096, 8192) + touch(ONE, 8192, 10)
    assert touched_pages(touches) == [(TWO, 2), (ONE, 0), (ONE, 1), (TWO, 1), (ONE, 2)]


def test_a_boot_pack_says_its_pages_again_and_joins_neighbours() -> None:
    contents = {ONE: os.urandom(3 * PAGE), TWO: os.urandom(2 * PAGE + 100)}
    pack = made([(TWO, 2), (ONE, 0), (TWO, 0), (ONE, 1), (TWO, 1)], contents)
    boot = cext.BootPack(pack.head)
    assert boot.objects == (TWO, ONE)
    assert boot.runs == ((0, 0, 2 * PAGE + 100), (1, 0, 2 * PAGE))
    assert boot.frames == ((len(pack.frames), 2),)
    assert boot.total == pack.total == 4 * PAGE + 100
    assert set(pages_of(boot)) == {(TWO, 0), (TWO, 1), (TWO, 2), (ONE, 0), (ONE, 1)}
    assert cext.decompress_frame(pack.frames, pack.total) == contents[TWO] + contents[ONE][: 2 * PAGE]


def test_frames_hold_a_mebibyte_and_name_the_objects_they_need() -> None:
    contents = {ONE: bytes(FRAME), TWO: os.urandom(FRAME), THREE: os.urandom(5000)}
    pages = [(ONE, number) for number in range(FRAME // PAGE)] + [(TWO, 1), (THREE, 1), (THREE, 0)]
    boot = cext.BootPack(made(pages, contents).head)
    assert [reach for _, reach in boot.frames] == [1, 3]
    assert boot.total == FRAME + PAGE + 5000


def test_pages_that_an_object_does_not_have_are_left_out() -> None:
    boot = cext.BootPack(made([(ONE, 0), (ONE, 1), (TWO, 0)], {ONE: b"x" * PAGE, TWO: b""}).head)
    assert boot.runs == ((0, 0, PAGE),)


def test_no_pages_are_a_boot_pack_without_frames() -> None:
    boot = cext.BootPack(made([], {}).head)
    assert (boot.objects, boot.frames, boot.runs, boot.total) == ((), (), (), 0)


def test_two_starts_are_merged_by_how_early_each_needs_a_page() -> None:
    first = [(ONE, number) for number in range(4)]
    second = [(TWO, 0), (ONE, 3), (TWO, 1)]
    assert merged([first, second]) == [(ONE, 0), (TWO, 0), (ONE, 1), (ONE, 3), (ONE, 2), (TWO, 1)]
    assert merged([first]) == first


def head(**changes: object) -> bytes:
    """A right head of one object, two runs and one frame, with fields replaced; not compressed."""
    values: dict[str, object] = {
        "magic": b"OSBOOT01",
        "counts": (1, 2, 1, 0),
        "total": 2 * PAGE,
        "ids": ONE,
        "frame_ids": bytes(32),
        "offsets": (0, 5 * PAGE),
        "lengths": (PAGE, PAGE),
        "objects": (0, 0),
        "packed": 10,
        "plain": 2 * PAGE,
        "runs": 2,
        "more": b"",
        **changes,
    }
    counts, offsets, lengths, objects = (values[name] for name in ("counts", "offsets", "lengths", "objects"))
    assert isinstance(counts, tuple)
    assert isinstance(offsets, tuple)
    assert isinstance(lengths, tuple)
    assert isinstance(objects, tuple)
    parts = [
        struct.pack("<8s4IQ", values["magic"], *counts, values["total"]),
        values["ids"],
        values["frame_ids"],
        struct.pack(f"<{len(offsets)}Q", *offsets),
        struct.pack(f"<{len(lengths)}I", *lengths),
        struct.pack(f"<{len(objects)}I", *objects),
        struct.pack("<3I", values["packed"], values["plain"], values["runs"]),
        values["more"],
    ]
    return b"".join(part for part in parts if isinstance(part, bytes))


HOSTILE: list[dict[str, object]] = [
    {"magic": b"OSBOOT02"},
    {"counts": (2, 2, 1, 0)},
    {"counts": (1, 2, 1, 1)},
    {"counts": (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)},
    {"total": 2 * PAGE - 1},
    {"total": 1 << 63},
    {"offsets": (1, 5 * PAGE)},
    {"offsets": (0, (1 << 63) - PAGE)},
    {"offsets": ((1 << 64) - PAGE, 0)},
    {"lengths": (0, 2 * PAGE)},
    {"lengths": ((1 << 20) + 1, PAGE)},
    {"lengths": (PAGE, 2 * PAGE)},
    {"objects": (1, 0)},
    {"objects": (0, 0xFFFFFFFF)},
    {"packed": 0},
    {"packed": 1 << 30},
    {"plain": 0},
    {"plain": (1 << 20) + 1, "total": (1 << 20) + 1},
    {"runs": 0},
    {"runs": 1},
    {"runs": 3},
    {"more": b"x"},
]


def test_the_head_that_the_hostile_ones_are_made_of_is_right() -> None:
    assert cext.BootPack(zstd.compress(head())).runs == ((0, 0, PAGE), (0, 5 * PAGE, PAGE))


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_hostile_head_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptError, match="boot pack"):
        cext.BootPack(zstd.compress(head(**changes)))


@pytest.mark.parametrize("packed", [b"", b"x" * 40, zstd.compress(head())[:-1], zstd.compress(head()) + b"x"])
def test_a_head_that_is_no_frame_is_refused(packed: bytes) -> None:
    with pytest.raises(CorruptError):
        cext.BootPack(packed)
