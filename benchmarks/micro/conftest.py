"""What the micro benchmarks share: content, and a fixture that turns times into rates with a target."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

QUICK = "ONESEC_BENCH_QUICK" in os.environ
MIB = 1 << 20

Rate = Callable[..., Any]


@pytest.fixture
def rate(benchmark: Any) -> Rate:
    """rate(work, amount, unit, want=…): runs work several times; amount / time is the figure, at least `want`.

    Time is CPU time of this process, so a rate is that of one core and what else the machine does hardly counts;
    `wall=True` for work that is meant to use all cores.
    """

    def measured(
        work: Callable[[], Any], amount: float, unit: str, *, want: float | None = None, wall: bool = False
    ) -> Any:
        clock = time.perf_counter if wall else time.process_time
        seconds: list[float] = []

        def timed() -> Any:
            started = clock()
            found = work()
            seconds.append(clock() - started)
            return found

        found = benchmark.pedantic(timed, rounds=2 if QUICK else 15, warmup_rounds=1)
        rates = [amount / one for one in seconds[1:] if one]
        benchmark.extra_info.update(rates=rates, unit=unit, want=want)
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
