"""The decoders of content: frames, and the tables that close packs."""

from __future__ import annotations

import struct

import cext
from cext import _reference as reference
from tests.fuzz.conftest import Fuzz
from tests.support.contents import stream, text
from tests.support.images import pool


def test_pack_tables(fuzz: Fuzz) -> None:
    frames = [
        reference.Frame(bytes(5 + row), 7 * row, tuple((row, reference.blake3(bytes([row]))) for _ in range(7)))
        for row in range(1, 5)
    ]
    seeds = []
    for payload, blob in [
        (pool().table, pool().data),
        *((reference.pack_payload(frames[:row]), reference.pack_blob(frames[:row])) for row in range(4)),
    ]:
        seeds += [struct.pack("<BQ", how, len(blob)) + payload for how in (0, 1, 3)]
    fuzz("pack", seeds)


def test_frames(fuzz: Fuzz) -> None:
    seeds = []
    for data in (b"", b"a", text(1, 300), text(2, 60_000), stream(3, 500), b"a" * 50_000):
        for frame in (cext.compress_frame(data), cext.compress_frame(data, 19), reference.raw_frame(data)):
            seeds += [struct.pack("<BI", how, len(data)) + frame for how in (0, 1)]
    fuzz("frame", seeds)


def test_the_ingest_under_any_calls_and_faults(fuzz: Fuzz) -> None:
    def calls(*made: tuple[int, int]) -> bytes:
        return b"".join(struct.pack("<BH", *one) for one in made)

    begin, begin_sized, update, read, zeros, end, finish = range(7)
    small, large = (
        [(begin_sized, 100), (update, 100), (end, 0)],
        [(begin, 0), (read, 17_000), (update, 9_000), (end, 0)],
    )
    sparse = [(begin, 0), (update, 3), (zeros, 300), (update, 70), (zeros, 20), (end, 0)]
    whole = calls(*small, *large, *sparse, *small, (finish, 0))
    seeds = [struct.pack("<BHB", kind, at, kind) + whole for kind in range(9) for at in (0, 1, 5)]
    fuzz("ingest", [*seeds, bytes(4) + calls((end, 0), (update, 9), (begin_sized, 5), (update, 9), (end, 0), *small)])
