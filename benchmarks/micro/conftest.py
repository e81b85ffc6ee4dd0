"""What the micro benchmarks share: content, and a fixture that turns times into rates with a target."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

QUICK = "ONESEC_BENCH_QUICK" in os.environ
MIB = 1 << 20

Rate = Callable[..., Any]


@pytest.fixture
def rate(benchmark: Any) -> Rate:
    """rate(work, amount, unit, want=…): runs work several times; amount / time is the figure, at least `want`."""

    def measured(work: Callable[[], Any], amount: float, unit: str, *, want: float | None = None) -> Any:
        found = benchmark.pedantic(work, rounds=2 if QUICK else 15, warmup_rounds=1)
        benchmark.extra_info.update(amount=amount, unit=unit, want=want)
        return found

    return measured


@pytest.fixture
def one_core() -> Iterator[None]:
    """This process and the threads that it starts on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def content() -> bytes:
    """Program code and libraries of this host: what images consist of. 64 MiB; quick: 2 MiB."""
    size = 2 * MIB if QUICK else 64 * MIB
    found = bytearray()
    for path in sorted(Path("/usr/lib").rglob("*.so*")):
        if path.is_file() and not path.is_symlink():
            found += path.read_bytes()[: size - len(found)]
        if len(found) >= size:
            return bytes(found)
    return bytes(found) + random.Random(1).randbytes(size - len(found))
