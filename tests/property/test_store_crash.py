"""A process that writes into a store is killed at random moments, fifty times: never a wrong byte, nothing that was
flushed is lost, fsck is clean.

SIGKILL keeps what the kernel has: what a power cut costs is decided by the order of syncs, which
tests/support/store_faults.c looks at.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from cache.store import Store, check
from tests.suites.store import chunk
from tests.support import seeds

KILLS = 50


def name(number: int) -> tuple[bytes, bytes]:
    return chunk(number, 500 + number * 271 % 9000)


def write(path: Path, first: int, told: int) -> None:
    """Puts chunks until it is killed; tells how far it has flushed. Checks in between."""
    dice = random.Random(first)
    with Store(path, segment_size=60_000) as store:
        number = first
        while True:
            for _ in range(dice.randrange(1, 8)):
                store.put(*name(number), codec=dice.choice(["raw", "zstd"]), pinned=dice.random() < 0.2)
                number += 1
            store.flush()
            os.write(told, number.to_bytes(8, "little"))
            if dice.random() < 0.05:
                store.fsck(repair=True)


def test_fifty_kills_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    seed = seeds.draw()
    dice = random.Random(seed)
    flushed = 0  # every chunk before it
    for kill in range(KILLS):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write(tmp_path, flushed, writer)
            finally:
                os._exit(1)
        os.close(writer)
        told = os.read(reader, 8) if dice.random() < 0.8 else b""  # else it may still be opening
        time.sleep(dice.random() ** 2 * 0.06)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        with open(reader, "rb") as file:
            told += file.read()
        if told:
            flushed = int.from_bytes(told[-8:], "little")
        if dice.random() < 0.1:
            (tmp_path / "data.mdb").unlink(missing_ok=True)
        if dice.random() < 0.3 or kill == KILLS - 1:
            assert [line for line in check(tmp_path).repaired if "map" not in line] == []
        with Store(tmp_path) as store:
            for number in range(flushed):
                assert store.get(name(number)[0]) == name(number)[1], f"chunk {number} after kill {kill}"
            for number in range(flushed, flushed + 8):
                assert store.get(name(number)[0]) in (None, name(number)[1])
    assert flushed > KILLS
