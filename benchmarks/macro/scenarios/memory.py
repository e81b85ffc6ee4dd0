"""Peak memory while 5 GB in 100,000 files become an image: from a tree, and from an archive that is imported.

The bytes are random: nothing is known, nothing compresses, everything goes all the way.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from benchmarks.macro import oci
from benchmarks.macro.figures import at_most, figure
from benchmarks.macro.harness import Contender, nothing, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

LIMIT_MB = 300


def run(place: Place) -> Outcome:
    files, size = (200, 4_000_000) if place.quick else (100_000, 5_000_000_000)
    tree, archive, root = place.path("memory-tree"), place.path("memory-oci"), place.path("memory-root")
    try:
        _make(tree, files, size)
        oci.archive(tree, archive, "large")
        calls = {
            "tree to image": place.program("ingest", root, tree, "large"),
            "import of an OCI archive": place.onesec("import", f"oci:{archive}:large", "-t", "large", root=root),
        }
        results = rounds(
            [Contender(name, call, lambda: place.remove(root.name), nothing) for name, call in calls.items()],
            1,
            resources=True,
        )
    finally:
        place.remove(tree.name, archive.name, root.name)
    return Outcome(
        [
            *(
                figure(f"{name}, peak memory", [one.peak_memory / 1e6 for one in ones], "MB", want=at_most(LIMIT_MB))
                for name, ones in results.items()
            ),
            *(
                figure(f"{name}, rate", [size / wall / 1e6 for wall in walls(results, name)], "MB/s")
                for name in results
            ),
        ],
        results,
        {"files": files, "bytes": size},
    )


def _make(tree: Path, files: int, size: int) -> None:
    """Sizes as in a package directory: half of the files are small."""
    chance = random.Random(1)
    average = size // files
    for number in range(files):
        if number % 100 == 0:
            directory = tree / f"part{number // 10_000}" / f"module{number // 100}"
            directory.mkdir(parents=True)
        length = chance.randrange(1, average // 4) if number % 2 else chance.randrange(1, 4 * average - average // 4)
        (directory / f"file{number}.py").write_bytes(os.urandom(length))


SCENARIO = Scenario("memory", "peak memory of making a 5 GB image", run)
