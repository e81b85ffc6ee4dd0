"""A walk over every name of the mounted image with a stat of each, against the same files on the disk."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from benchmarks.macro import cold, sources
from benchmarks.macro.figures import at_most, figure, ratios
from benchmarks.macro.harness import Contender, ContenderError, Measurement, cpus, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

# Sizes of directories are the file system's own affair; all else has to be the same.
_FIELDS = "%y %m %U %G %T@ %n %l %P"
_WALK = ("-type", "d", "-printf", "%y %m %U %G %T@ %P\\n", "-o", "-printf", f"%s {_FIELDS}\\n")


def run(place: Place) -> Outcome:
    source = sources.torch(place)
    with place.mounted(source.reference) as mounted:
        trees = {"ext4": source.plain, "mounted image": mounted}
        warm = rounds([_walk(name, tree, cold_start=False) for name, tree in trees.items()], 1 + 2 * place.rounds)
        warm = {name: ones[1:] for name, ones in warm.items()}  # the first walk filled the caches
        cold_walks = rounds(
            [_walk(f"{name}, cold", tree, cold_start=True) for name, tree in trees.items()], place.rounds
        )
        failed = rounds([_lookups(place, name, tree) for name, tree in trees.items()], 1 + place.rounds)
    entries = _require_same_listing({**warm, **cold_walks})
    failed = {name: ones[1:] for name, ones in failed.items()}
    return Outcome(
        [
            figure(
                "find + stat, warm",
                ratios(walls(warm, "mounted image"), walls(warm, "ext4")),
                "x",
                reference="ext4",
                want=at_most(1.2),
            ),
            figure(
                "find + stat, warm, CPU time",
                ratios(cpus(warm, "mounted image"), cpus(warm, "ext4")),
                "x",
                reference="ext4",
            ),
            figure(
                "find + stat, page cache dropped",
                ratios(walls(cold_walks, "mounted image, cold"), walls(cold_walks, "ext4, cold")),
                "x",
                reference="ext4, cold",
            ),
            figure(
                "stat of paths, half of them missing, warm",
                ratios(walls(failed, "mounted image, stat"), walls(failed, "ext4, stat")),
                "x",
                reference="ext4, stat",
            ),
        ],
        {**warm, **cold_walks, **failed},
        {"entries": entries},
    )


def _walk(name: str, tree: Path, *, cold_start: bool) -> Contender:
    prepare = cold.drop if cold_start else _nothing
    # An image need not have the directories that a runtime mounts on; on the disk a runtime has made them.
    left_out = [word for path in ("dev", "proc", "sys") for word in ("-path", f"{tree}/{path}", "-prune", "-o")]
    return Contender(name, ["find", str(tree), "-mindepth", "1", *left_out, *_WALK], prepare)


def _nothing() -> None:
    return None


def _lookups(place: Place, name: str, tree: Path) -> Contender:
    return Contender(f"{name}, stat", place.program("stat", tree), clock="own")


def _require_same_listing(results: dict[str, list[Measurement]]) -> int:
    """Every walk has to have seen the same entries. Returns how many."""
    listings = {
        name: {hashlib.sha256(b"\n".join(sorted(os.fsencode(one.output).split(b"\n")))).hexdigest() for one in ones}
        for name, ones in results.items()
    }
    if len(set.union(*listings.values())) != 1:
        raise ContenderError("the walks saw different entries")
    (first, *_) = results.values()
    with suppress(IndexError):
        return first[0].output.count("\n")
    return 0


SCENARIO = Scenario("metadata", "find and stat of the mounted image, against ext4", run)
