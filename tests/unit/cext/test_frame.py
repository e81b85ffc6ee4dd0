"""Frames are read back exactly, and nothing else is."""

from __future__ import annotations

import os

import pytest

from cext import compress_frame, decompress_frame
from cext.errors import CorruptError, LimitError


@pytest.mark.parametrize("data", [b"", b"a" * 100_000, os.urandom(256 << 10)], ids=["empty", "plain", "random"])
def test_a_frame_gives_back_its_bytes(data: bytes) -> None:
    assert decompress_frame(compress_frame(data), len(data)) == data


def test_a_frame_of_another_size_a_cut_one_and_two_are_refused() -> None:
    frame = compress_frame(b"a" * 1000)
    for bad, size in ((frame, 999), (frame[:-1], 1000), (frame + frame, 1000), (b"", 0)):
        with pytest.raises(CorruptError):
            decompress_frame(bad, size)


def test_more_than_a_frame_is_refused() -> None:
    with pytest.raises(LimitError):
        compress_frame(bytes((256 << 10) + 1))
