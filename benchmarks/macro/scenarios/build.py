"""A tree that nobody has seen before becomes an image, against archivers of the same tree.

The tree is in the page cache. Every contender compresses with zstd level 3 on all cores and ends when its output is on
the disk. Ours also deduplicates, indexes, encodes and checks what a mount needs; tar only archives.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.macro import cold, sources
from benchmarks.macro.figures import at_most, figure, ratios
from benchmarks.macro.harness import Contender, Measurement, missing, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

_ROUNDS_MAX = 3  # casync takes a minute
_TAR = 'tar --numeric-owner --xattrs -C "$0" -cf - . | zstd -q -3 -T0 -o "$1" && sync "$1"'
_CASYNC = 'casync make --store="$1.castr" "$1.caidx" "$0" > /dev/null && sync -f "$1.caidx"'
_DESYNC = 'desync make -i -s "$1.castr" "$1.caidx" "$0" && sync -f "$1.caidx"'


def run(place: Place) -> Outcome:
    tree = sources.torch(place).plain
    output = place.path("build-output")
    sizes: dict[str, int] = {}
    lacking: dict[str, str] = {}
    contenders = []
    for name, program, call in (
        ("onesec", None, place.program("ingest", output / "root", tree, "tree")),
        ("tar | zstd -3 -T0", "zstd", ["sh", "-c", _TAR, str(tree), str(output / "tree.tar.zst")]),
        ("casync", "casync", ["sh", "-c", _CASYNC, str(tree), str(output / "tree")]),
        ("desync", "desync", ["sh", "-c", _DESYNC, str(tree), str(output / "tree")]),
    ):
        reason = missing(program) if program else None
        if reason:
            lacking[name] = reason
        else:
            contenders.append(_contender(name, call, output, sizes))
    _read(tree)
    try:
        results = rounds(contenders, min(place.rounds, _ROUNDS_MAX), resources=True)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    content = sum(path.stat().st_size for path in cold.files([tree]))
    found = [
        figure(f"time over {name}", _over(results, name), "x", reference=name, want=at_most(1.0))
        for name in results
        if name != "onesec"
    ]
    found.append(figure("rate", [content / wall / 1e6 for wall in walls(results, "onesec")], "MB/s"))
    return Outcome(found, results, {"tree_bytes": content, "output_bytes": sizes}, missing=lacking)


def _contender(name: str, call: list[str], output: Path, sizes: dict[str, int]) -> Contender:
    def prepare() -> None:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        os.sync()  # what the one before left must not be written out on our clock

    def measure_output() -> None:
        sizes[name] = sum(path.stat().st_size for path in cold.files([output]))

    return Contender(name, call, prepare, measure_output)


def _over(results: dict[str, list[Measurement]], name: str) -> list[float]:
    return ratios(walls(results, "onesec"), walls(results, name))


def _read(tree: Path) -> None:
    for path in cold.files([tree]):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


SCENARIO = Scenario("build", "an all-new tree becomes an image, against tar | zstd and casync", run)
