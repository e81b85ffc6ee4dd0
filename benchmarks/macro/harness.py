"""Contenders side by side: each in a process of its own, interleaved, compared as medians of pairs.

A *contender* is an argv. One *round* runs every contender once, in an order that rotates from round to round, so that a
slow minute of the machine hits all of them. A figure is never a time alone: it is the median over the rounds of
``time of contender / time of reference`` within the same round.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Prepare = Callable[[], None]


def nothing() -> None:
    """The preparation of a contender that needs none."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One program to be measured.

    argv: what runs; its exit status must be 0.
    prepare: runs before each measurement, outside the clock (drop caches, empty a directory).
    clean_up: runs after each measurement, outside the clock, also when it failed.
    environment: added to ours.
    """

    name: str
    argv: Sequence[str]
    prepare: Prepare = nothing
    clean_up: Prepare = nothing
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one contender: seconds of wall clock and of CPU (children included), peak resident bytes of its
    largest process (0 where resources were not asked for), and what it printed."""

    wall: float
    cpu: float
    peak_memory: int
    output: str


class ContenderFailed(RuntimeError):
    """A contender ended with another status than 0: the whole scenario is void."""


def measure(contender: Contender) -> Measurement:
    """Runs a contender once in a process of its own and waits for it."""
    contender.prepare()
    try:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(contender.argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **contender.environment},
        )
        output, errors = process.communicate()
        wall = time.perf_counter() - started
    finally:
        contender.clean_up()
    if process.returncode != 0:
        tail = errors.decode(errors="replace").strip().splitlines()[-3:]
        raise ContenderFailed(f"{contender.name}: exit status {process.returncode}: {' | '.join(tail)}")
    return Measurement(wall, 0.0, 0, output.decode(errors="replace"))


def measure_resources(contender: Contender) -> Measurement:
    """As `measure`, with CPU time and peak memory, by GNU time around the contender."""
    if shutil.which("time") is None and not Path("/usr/bin/time").exists():
        raise ContenderFailed("GNU time is missing: apt-get install time")
    report = Path(f"/tmp/onesec-bench-{os.getpid()}.time")
    wrapped = Contender(
        contender.name,
        ["/usr/bin/time", "-q", "-o", str(report), "-f", "%U %S %M", *contender.argv],
        contender.prepare,
        contender.clean_up,
        contender.environment,
    )
    try:
        result = measure(wrapped)
        user, system, kib = report.read_text().split()[-3:]
    finally:
        report.unlink(missing_ok=True)
    return Measurement(result.wall, float(user) + float(system), int(kib) * 1024, result.output)


def rounds(contenders: Sequence[Contender], count: int, *, resources: bool = False) -> dict[str, list[Measurement]]:
    """Runs every contender `count` times, interleaved; the order rotates by one place each round."""
    results: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    for number in range(count):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            result = (measure_resources if resources else measure)(contender)
            results[contender.name].append(result)
            print(f"  round {number + 1}/{count} {contender.name}: {result.wall:.3f} s", file=sys.stderr, flush=True)
    return results


def ratio(results: Mapping[str, Sequence[Measurement]], name: str, reference: str) -> float:
    """Median over the rounds of wall time of `name` divided by wall time of `reference` in the same round."""
    pairs = zip(results[name], results[reference], strict=True)
    return statistics.median(one.wall / other.wall for one, other in pairs)


def median_wall(results: Mapping[str, Sequence[Measurement]], name: str) -> float:
    """Median wall time in seconds."""
    return statistics.median(one.wall for one in results[name])


def summary(results: Mapping[str, Sequence[Measurement]]) -> dict[str, object]:
    """Every measurement with its median and spread, as it goes into the JSON."""
    return {
        name: {
            "median_s": round(statistics.median(m.wall for m in ms), 4),
            "min_s": round(min(m.wall for m in ms), 4),
            "max_s": round(max(m.wall for m in ms), 4),
            "cpu_s": round(statistics.median(m.cpu for m in ms), 3),
            "peak_memory_bytes": max(m.peak_memory for m in ms),
            "runs_s": [round(m.wall, 4) for m in ms],
        }
        for name, ms in results.items()
    }


def drop_page_cache() -> None:
    """Writes dirty pages out and drops clean ones, dentries and inodes of the whole machine. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_kib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write_result(directory: Path, scenario: str, figures: Mapping[str, object]) -> Path:
    """Keeps one scenario's figures as `<directory>/<scenario>.json` together with the machine."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{scenario}.json"
    path.write_text(json.dumps({"scenario": scenario, "machine": machine(), **figures}, indent=2) + "\n")
    return path
