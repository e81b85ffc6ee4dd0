"""Runs scenarios one after another, keeps each one's JSON, and writes the report over everything that is kept."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cext
from benchmarks.macro.catalogue import SCENARIOS
from benchmarks.macro.figures import readable
from benchmarks.macro.machine import machine
from benchmarks.macro.scenario import Outcome, Place, Scenario

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_PRIVATE = 0x44000  # MS_REC | MS_PRIVATE
_DETACH = 2
_HYBRID = "/sys/fs/cgroup/unified"  # crun refuses hosts with both kinds of cgroups, also when it needs none


def own_mounts() -> None:
    """Moves this process into a mount namespace of its own: whatever a scenario leaves mounted goes with us. Also takes
    away what crun stumbles over, here and not by a wrapper that would be measured with it. Needs root.
    """
    cext.unshare(_NEW_MOUNTS)
    cext.mount(None, "/", None, _PRIVATE, None)
    if os.path.isdir(_HYBRID):
        cext.umount2(_HYBRID, _DETACH)


def run(names: Sequence[str], place: Place, results: Path) -> list[str]:
    """Runs the named scenarios, all for none. Returns the names of those that failed, having said why on stderr; the
    others go on. Raises KeyError for a name that is none.
    """
    chosen = [SCENARIOS[name] for name in names or SCENARIOS]
    place.directory.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    failed = []
    for scenario in chosen:
        print(f"{scenario.name}: {scenario.summary}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        try:
            outcome = scenario.run(place)
        except Exception as error:  # whatever one scenario meets, the others are still wanted
            print(f"{scenario.name}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed.append(scenario.name)
            continue
        keep(results, scenario, place, outcome, time.perf_counter() - started)
        print(table(outcome), file=sys.stderr, flush=True)
    return failed


def keep(results: Path, scenario: Scenario, place: Place, outcome: Outcome, seconds: float) -> Path:
    """Writes `<results>/<scenario>.json`."""
    path = results / f"{scenario.name}.json"
    document = {
        "scenario": scenario.name,
        "summary": scenario.summary,
        "size": "quick" if place.quick else "full",
        "rounds": place.rounds,
        "took_s": round(seconds, 1),
        "machine": machine(place.directory),
        **outcome.to_json(),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def kept(results: Path) -> list[dict[str, object]]:
    """The documents of a directory, in the catalogue's order, unknown ones last."""
    order = list(SCENARIOS)
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    known = [document for document in found if isinstance(document, dict) and "scenario" in document]
    return sorted(known, key=lambda one: order.index(one["scenario"]) if one["scenario"] in order else len(order))


def table(outcome: Outcome) -> str:
    """Figures as lines of text."""
    lines = []
    for one in outcome.figures:
        spread = f"{readable(one.low)}–{readable(one.high)}" if one.samples > 1 else ""
        wanted = "" if one.want is None else f"want {one.want.relation} {readable(one.want.value)}"
        verdict = "" if one.met is None else ("ok" if one.met else "MISSED")
        value = f"{readable(one.value)} {one.unit}"
        lines.append(f"  {one.name:<58} {value:>12}  {spread:<15} {wanted:<14} {verdict}".rstrip())
    lines += [f"  {name}: left out, {reason}" for name, reason in outcome.missing.items()]
    return "\n".join(lines)
