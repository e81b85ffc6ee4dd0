"""``onesec bench``: the benchmark harness. Figures as JSON, a report with plots."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cext.errors import UnsupportedError, UsageError
from onesec.config import Config

DEFAULT_PLACE = "/var/tmp/onesec-bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", metavar="SCENARIO", nargs="*", help="default: all; --list names them")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    parser.add_argument("--quick", action="store_true", help="tiny data: shows that all of it runs, measures nothing")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs of each contender; default: 5")
    parser.add_argument(
        "--place", type=Path, default=Path(DEFAULT_PLACE), metavar="DIR", help=f"work there; default: {DEFAULT_PLACE}"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="where JSON and report go; default: the place's")
    parser.add_argument(
        "--report-only", action="store_true", help="measure nothing, write the report over what is kept"
    )


def run(arguments: argparse.Namespace, config: Config) -> int:
    try:
        from benchmarks.macro import catalogue, report, runner
        from benchmarks.macro.scenario import Place
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "bench: the benchmarks are not installed", hint="run it in a checkout of the source"
        ) from error
    if arguments.list:
        for scenario in catalogue.SCENARIOS.values():
            print(f"{scenario.name:<14} {scenario.summary}")
        return 0
    unknown = [name for name in arguments.scenario if name not in catalogue.SCENARIOS]
    if unknown:
        raise UsageError(f"{unknown[0]}: no such scenario", hint="onesec bench --list")
    if arguments.rounds < 1:
        raise UsageError(f"--rounds: got {arguments.rounds}, want at least 1")
    place = Place(arguments.place.absolute(), arguments.quick, 1 if arguments.quick else arguments.rounds)
    results = (arguments.results or arguments.place / "results").absolute()
    if not arguments.report_only:
        if os.geteuid() != 0:
            raise UnsupportedError("bench: needs root", hint="it mounts, and drops the page cache")
        runner.own_mounts()
    failed = [] if arguments.report_only else runner.run(arguments.scenario, place, results)
    written = report.write(results, runner.kept(results))
    print(written)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
