"""The C kernels by themselves: runs benchmarks/micro under pytest-benchmark and takes over its rates."""

from __future__ import annotations

import json
import sys

from benchmarks.macro.figures import at_least, figure
from benchmarks.macro.scenario import Outcome, Place, Scenario


def run(place: Place) -> Outcome:
    kept = place.path("micro.json")
    words = ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "-q", "-p", "no:cacheprovider"]
    place.call(
        [sys.executable, "-m", "pytest", "benchmarks/micro", *words, f"--benchmark-json={kept}"],
        environment={"ONESEC_BENCH_QUICK": "1"} if place.quick else {},
    )
    found = []
    for one in json.loads(kept.read_text())["benchmarks"]:
        told = one["extra_info"]
        want = None if told["want"] is None else at_least(told["want"])
        found.append(figure(_words(one["name"]), told["rates"], told["unit"], want=want))
    return Outcome(
        found,
        notes=[
            "rates are of one core, by CPU time, but for the ingest on all cores, which is by the clock on the wall"
        ],
    )


def _words(name: str) -> str:
    """bench_store_get[zstd] becomes `store get: zstd`."""
    plain, _, parameter = name.removeprefix("bench_").removesuffix("]").partition("[")
    return plain.replace("_", " ") + (f": {parameter.partition('-')[0]}" if parameter else "")


SCENARIO = Scenario("kernels", "cutting, hashing, frames, index and store, each by itself", run)
