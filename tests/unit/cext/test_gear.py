"""Cut points against a transcription of docs/format.md section 1."""

from __future__ import annotations

import random

from blake3 import blake3 as reference_blake3

from cext import cut_points

TABLE = reference_blake3(b"", derive_key_context="onesec 2026 gear v1").digest(length=2048)
GEAR = [int.from_bytes(TABLE[at : at + 8], "little") for at in range(0, 2048, 8)]


def cut(data: bytes) -> int:
    value = 0
    for at in range(16 << 10, min(len(data), 256 << 10)):
        bits = 18 if at < 64 << 10 else 14
        value = ((value << 1) + GEAR[data[at]]) & (1 << 64) - 1
        if value >> (64 - bits) == 0:
            return at + 1
    return min(len(data), 256 << 10)


def test_cut_points_are_those_of_the_format() -> None:
    data = random.Random(1).randbytes(700_000)
    want, at = [], 0
    while at < len(data):
        at += cut(data[at:])
        want.append(at)
    assert cut_points(data) == want
    assert len(want) > 4


def test_a_short_segment_is_one_chunk_and_an_empty_one_none() -> None:
    assert cut_points(bytes(16 << 10)) == [16 << 10]
    assert cut_points(b"") == []
