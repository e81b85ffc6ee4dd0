"""The store beside a dict: whatever is done in whatever order, it has the right bytes or none, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import cext
from cache.store import Store, check
from tests.suites.store import chunk

SEGMENT = 16_384
MEMORY = Path("/dev/shm")


class StoreMachine(RuleBasedStateMachine):
    """kept: chunks whose loss would be wrong. waiting: put, not flushed. perhaps: may be there or not."""

    seeds = st.integers(1, 12)
    choices = st.integers(0, 1 << 20)

    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None, prefix="store-machine-")
        self.kept: dict[bytes, bytes] = {}
        self.waiting: dict[bytes, bytes] = {}
        self.perhaps: dict[bytes, bytes] = {}
        self.store = Store(self.path, segment_size=SEGMENT)

    def teardown(self) -> None:
        self.store.close()
        assert check(self.path).chunks >= len(self.kept)
        shutil.rmtree(self.path)

    def settle(self) -> None:
        self.kept |= self.waiting
        self.waiting.clear()

    def doubt(self) -> None:
        self.perhaps |= self.kept
        self.kept.clear()

    @rule(seed=seeds, raw=st.booleans(), pinned=st.booleans())
    def put(self, seed: int, raw: bool, pinned: bool) -> None:
        id, data = chunk(seed, 1000 + seed * 700)
        there = id in self.perhaps and self.store.get(id) is not None  # with a damaged header, perhaps
        self.store.put(id, data, codec="raw" if raw else "zstd", pinned=pinned)
        if id not in self.kept and not there:
            self.waiting[id] = data

    @rule(seed=seeds)
    def put_what_is_wrong(self, seed: int) -> None:
        id, data = chunk(seed, 1000 + seed * 700)
        try:
            self.store.put(id, data + b"!")
        except cext.errors.CorruptError:
            return
        raise AssertionError("wrong bytes were taken")

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.settle()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.settle()
        self.store = Store(self.path, segment_size=SEGMENT)

    @rule()
    def lose_the_map(self) -> None:
        self.store.close()
        self.settle()
        os.unlink(f"{self.path}/data.mdb")
        self.store = Store(self.path, segment_size=SEGMENT)

    def some_segment(self, choice: int) -> int | None:
        self.flush()
        numbers = [one.number for one in self.store.native.segments()]
        return numbers[choice % len(numbers)] if numbers else None

    @rule(choice=choices)
    def drop_a_segment(self, choice: int) -> None:
        if (number := self.some_segment(choice)) is not None:
            self.store.native.drop(number)
            self.doubt()

    @rule(choice=choices, place=choices, bit=st.integers(0, 7))
    def damage_a_byte(self, choice: int, place: int, bit: int) -> None:
        if (number := self.some_segment(choice)) is None:
            return
        with open(f"{self.path}/seg-{number:08x}", "r+b") as file:
            at = 32 + place % (os.fstat(file.fileno()).st_size - 32)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
        self.doubt()

    @rule(repair=st.booleans())
    def check(self, repair: bool) -> None:
        report = self.store.fsck(repair=repair)
        self.settle()
        if repair:
            assert self.store.fsck().damaged == 0
        assert report.damaged_rows == 0

    @invariant()
    def what_is_there_is_right(self) -> None:
        for id, data in (*self.perhaps.items(), *self.waiting.items()):
            assert self.store.get(id) in (None, data)
        for id, data in self.kept.items():
            assert self.store.get(id) == data


StoreMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreBesideADict = StoreMachine.TestCase
