"""The files of the local store; the seeds are real ones."""

from __future__ import annotations

from pathlib import Path

import cext
from tests.fuzz.conftest import Fuzz


def small(number: int) -> tuple[bytes, bytes]:
    data = bytes([number]) * 40
    return cext.blake3(data), data


def test_segments(fuzz: Fuzz, tmp_path: Path) -> None:
    seeds = []
    for compress in (False, True):
        path = tmp_path / f"store-{compress}"
        path.mkdir()
        with cext.Store(path) as store:
            for number in range(5):
                data = bytes(range(number, 200)) * 2
                store.put(cext.blake3(data), data, compress=compress)
        raw = (path / "seg-00000001").read_bytes()
        seeds += [bytes([which]) + raw for which in (0, 2, 255)]
        seeds += [b"\xff" + raw[: len(raw) // 2] + raw[len(raw) // 3 :]]
    fuzz("segment", seeds)


def test_maps(fuzz: Fuzz, tmp_path: Path) -> None:
    seeds = []
    for count in (0, 3, 12, 60):
        path = tmp_path / f"store-{count}"
        path.mkdir()
        with cext.Store(path) as store:
            for number in range(count):
                store.put(*small(number))
                if number % 4 == 0:
                    store.flush()
        seeds += [bytes([what]) + (path / "data.mdb").read_bytes()[:69_000] for what in (0, 1, 7)]
    fuzz("map", seeds)
