"""Cut points; tests/property/test_cutting.py has more of them."""

from __future__ import annotations

import random

from cext import _reference, cut_points


def test_cut_points_are_those_of_the_format() -> None:
    data = random.Random(1).randbytes(700_000)
    assert cut_points(data) == _reference.cut_points(data)
    assert len(cut_points(data)) > 4


def test_a_short_segment_is_one_chunk_and_an_empty_one_none() -> None:
    assert cut_points(bytes(16 << 10)) == [16 << 10]
    assert cut_points(b"") == []
