"""Bytes of the store's files that change, while it is closed and while it is open: whatever is read is right or
missing, and putting it again heals it.

R8 of the test programme. The seed is printed; ONESEC_ROTS is how often, for longer runs.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import cext
from cext.errors import OnesecError
from tests.suites.store import chunk
from tests.support import seeds

ROTS = int(os.environ.get("ONESEC_ROTS", "120"))
SEEDS = range(1, 120)
FILES = ("seg-00000001", "seg-00000002", "data.mdb", "data.mdb", "lock.mdb", "lock", "seen")
KINDS = ("flip", "zero", "junk", "swap", "cut", "grow")
TSAN = "tsan" in os.environ.get("LD_PRELOAD", "")


def name(seed: int) -> tuple[bytes, bytes]:
    return chunk(seed, 300 + seed * 7)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose syncs cost nothing."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="store-rot-") as path:
        yield Path(path)


def fill(path: Path) -> None:
    path.mkdir()
    with cext.Store(path, segment_size=50_000) as store:
        for seed in SEEDS:
            store.put(*name(seed), compress=seed % 3 == 0)


def rot(path: Path, dice: random.Random) -> str:
    """Damages a file of the store in place, under whoever has it open. Returns what was done."""
    file = path / dice.choice(FILES)
    size = file.stat().st_size
    kind = dice.choice(KINDS)
    with open(file, "r+b") as opened:
        fd = opened.fileno()
        if size == 0 or kind == "grow":
            os.pwrite(fd, dice.randbytes(dice.choice([1, 100, 5000])), size)
        elif kind == "cut":
            os.truncate(fd, dice.randrange(size))
        elif kind == "swap":
            block = dice.choice([64, 4096])
            one, two = (dice.randrange(size // block + 1) * block for _ in range(2))
            first, second = os.pread(fd, block, one), os.pread(fd, block, two)
            os.pwrite(fd, second, one)
            os.pwrite(fd, first, two)
        else:
            for _ in range(dice.choice([1, 10])):
                at = dice.randrange(size)
                old = os.pread(fd, 1, at)[0]
                new = {
                    "flip": bytes([old ^ 1 << dice.randrange(8)]),
                    "zero": bytes(dice.choice([8, 512])),
                    "junk": dice.randbytes(64),
                }[kind]
                os.pwrite(fd, new, at)
    return f"{kind} of {file.name}"


def read_all(store: cext.Store) -> int:
    """How many are there; each is right."""
    count = 0
    for seed in SEEDS:
        id, data = name(seed)
        if (got := store.get(id)) is not None:
            assert got == data, f"chunk {seed} has wrong bytes"
            count += 1
    return count


def put_all(store: cext.Store) -> None:
    for seed in SEEDS:
        store.put(*name(seed), compress=False)
    store.flush()


def heal(path: Path) -> None:
    with cext.Store(path) as store:
        read_all(store)
        put_all(store)
        assert read_all(store) == len(SEEDS)
        store.check(repair=True)  # forgets also what has only a damaged header
        put_all(store)
        report = store.check()
        assert (report.damaged, report.damaged_rows, report.damaged_headers) == (0, 0, 0)
        assert read_all(store) == len(SEEDS)


def under_an_open_store(path: Path, dice: random.Random) -> None:
    store = cext.Store(path)
    if dice.random() < 0.5:
        read_all(store)
    rot(path, dice)
    read_all(store)
    if dice.random() < 0.5:
        with suppress(OnesecError, OSError):
            put_all(store)
        read_all(store)
    with suppress(OnesecError, OSError):
        store.close()


@pytest.mark.skipif(TSAN, reason="TSan touches locks and pages by itself, and dies of SIGBUS there")
@pytest.mark.parametrize("opened", [False, True])
def test_rot_is_never_read_and_heals(memory: Path, opened: bool) -> None:
    """In a child for each: what rots under LMDB's feet may cost it descriptors, and a crash is to be seen as one."""
    seed = seeds.draw()
    dice = random.Random(seed)
    fill(memory / "whole")
    for number in range(ROTS):
        each = random.Random(dice.randrange(1 << 32))
        path = memory / "rotten"
        shutil.copytree(memory / "whole", path)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if opened:
                    under_an_open_store(path, each)
                else:
                    rot(path, each)
                heal(path)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0, f"rot {number}"
        shutil.rmtree(path)


def test_every_byte_of_a_kept_chunk_is_watched(memory: Path) -> None:
    """A bit of each, under an open store: found, and healed by putting the chunk again."""
    seed = seeds.draw()
    dice = random.Random(seed)
    id, data = chunk(1, 1500)
    path = memory / "store"
    path.mkdir()
    with cext.Store(path) as store:
        for at in range(len(data)):
            store.put(id, data, compress=False)
            store.flush()
            assert store.get(id) == data
            with open(path / "seg-00000001", "r+b") as file:
                end = file.seek(0, os.SEEK_END)
                place = end - len(data) + at
                os.pwrite(file.fileno(), bytes([data[at] ^ 1 << dice.randrange(8)]), place)
            assert store.get(id) is None
        assert store.statistics().damaged == len(data)
