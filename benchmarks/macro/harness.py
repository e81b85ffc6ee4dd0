"""Contenders side by side: each in a process of its own, interleaved, compared as medians of pairs.

A *contender* is an argv. One *round* runs every contender once, in an order that rotates from round to round, so that a
slow minute of the machine hits all of them. A figure is never a time alone: it is the median over the rounds of
``time of contender / time of reference`` within the same round (figures.py).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks.macro.memory import TreePeak

CHECKOUT = Path(__file__).parents[2]

Prepare = Callable[[], object]
Clock = Literal["wall", "own"]


def nothing() -> None:
    """The preparation of a contender that needs none."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One program to be measured.

    argv: what runs; its exit status must be 0.
    prepare: runs before each measurement, outside the clock (drop caches, empty a directory); what it returns is kept.
    clean_up: runs after each measurement, outside the clock, also when it failed.
    environment: added to ours.
    clock: `wall` is from start to end of the process. `own`: its last line is JSON whose `seconds` count.
    directory: where it runs; the checkout if it does not matter.
    """

    name: str
    argv: Sequence[str]
    prepare: Prepare = nothing
    clean_up: Prepare = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = "wall"
    directory: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one contender. wall: seconds by its clock. cpu: seconds of it and of the children that it waited for.
    peak_memory: resident bytes of it and its children together, 0 where resources were not asked for. output: what it
    printed. prepared: what its preparation returned.
    """

    wall: float
    cpu: float
    peak_memory: int
    output: str
    prepared: object = None

    def said(self) -> dict[str, object]:
        """The JSON object in the last line of its output."""
        found = json.loads(self.output.strip().splitlines()[-1])
        if not isinstance(found, dict):
            raise ContenderError(f"got {type(found).__name__} in the last line, want an object")
        return found


class ContenderError(RuntimeError):
    """A contender ended with another status than 0, or said something else than it had to: the scenario is void."""


_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""What is measured is an installed command, whose bytecode is there."""


def measure(contender: Contender, *, resources: bool = False) -> Measurement:
    """Runs a contender once in a process of its own and waits for it. resources: memory is wanted too; looking at it
    costs a little of a core.
    """
    prepared = contender.prepare()
    try:
        before = _children_cpu()
        started = time.perf_counter()
        process = subprocess.Popen(
            list(contender.argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_ENVIRONMENT, **contender.environment},
            cwd=contender.directory or CHECKOUT,
        )
        with TreePeak(process.pid) if resources else nullcontext() as watched:
            output, errors = process.communicate()
        wall = time.perf_counter() - started
        cpu = _children_cpu() - before
    finally:
        contender.clean_up()
    if process.returncode != 0:
        tail = errors.decode(errors="replace").strip().splitlines()[-3:]
        raise ContenderError(f"{contender.name}: exit status {process.returncode}: {' | '.join(tail)}")
    peak = 0 if watched is None else watched.peak
    result = Measurement(wall, cpu, peak, output.decode(errors="replace"), prepared)
    if contender.clock == "wall":
        return result
    seconds = result.said().get("seconds")
    if not isinstance(seconds, float):
        raise ContenderError(f"{contender.name}: got no seconds in its last line")
    return replace(result, wall=seconds)


def _children_cpu() -> float:
    """CPU seconds of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rounds(contenders: Sequence[Contender], count: int, *, resources: bool = False) -> dict[str, list[Measurement]]:
    """Runs every contender `count` times, interleaved; the order rotates by one place each round."""
    results: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    if len(results) != len(contenders):
        raise ValueError("two contenders have one name")
    for number in range(count):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            result = measure(contender, resources=resources)
            results[contender.name].append(result)
            print(f"  round {number + 1}/{count} {contender.name}: {result.wall:.3f} s", file=sys.stderr, flush=True)
    return results


def walls(results: Mapping[str, Sequence[Measurement]], name: str) -> list[float]:
    """The times of one contender, round by round."""
    return [one.wall for one in results[name]]


def cpus(results: Mapping[str, Sequence[Measurement]], name: str) -> list[float]:
    """CPU seconds of one contender, round by round: what else the machine does disturbs them less."""
    return [one.cpu for one in results[name]]


def require_same(results: Mapping[str, Sequence[Measurement]], key: str) -> str:
    """What every run of every contender said under `key` (a hash of what it read). Raises ContenderError."""
    found = {(name, str(one.said().get(key))) for name, ones in results.items() for one in ones}
    values = {value for _, value in found}
    if len(values) != 1:
        raise ContenderError(f"{key}: the contenders did not read the same: {sorted(found)}")
    return values.pop()


def summary(results: Mapping[str, Sequence[Measurement]]) -> dict[str, object]:
    """Every measurement with its median and spread, as it goes into the JSON."""
    return {
        name: {
            "median_s": round(statistics.median(m.wall for m in ms), 5),
            "min_s": round(min(m.wall for m in ms), 5),
            "max_s": round(max(m.wall for m in ms), 5),
            "cpu_s": round(statistics.median(m.cpu for m in ms), 3),
            "peak_memory_bytes": max(m.peak_memory for m in ms),
            "runs_s": [round(m.wall, 5) for m in ms],
        }
        for name, ms in results.items()
    }


def missing(*programs: str, path: str | None = None) -> str | None:
    """Why a contender cannot run here, or None if its programs are installed. path: where they are looked for."""
    lacking = [name for name in programs if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None
