"""From a known manifest to a mounted image with 100,000 files, the index blobs being on the host.

The whole call of `onesec mount` counts: interpreter, hashing of what is mounted, the object server's start, mounts. The
first time the blobs are decoded and judged by the confined checker too; after that what was accepted is hashed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from benchmarks.macro.figures import at_most, figure
from benchmarks.macro.harness import Contender, cpus, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

REFERENCE = "many"


def run(place: Place) -> Outcome:
    files = 2_000 if place.quick else 100_000
    root = place.path("mount-root")
    target = place.path("mount-target")
    target.mkdir(parents=True, exist_ok=True)
    place.call(place.program("synthetic", root, str(files), REFERENCE))
    index = root / "cache/index"

    def forget() -> None:
        shutil.rmtree(index, ignore_errors=True)

    def unmount() -> None:
        place.call(place.onesec("umount", target, root=root))

    def contender(name: str, prepare: Callable[[], object]) -> Contender:
        return Contender(name, place.onesec("mount", REFERENCE, target, root=root), prepare, unmount)

    contenders = [
        contender("first mount", forget),
        contender("later mount", lambda: None),
        Contender("onesec --version", place.onesec("--version", root=root)),
    ]
    results = rounds(contenders, 2 * place.rounds)
    ms = {name: [1e3 * wall for wall in walls(results, name)] for name in results}
    sizes = {path.name[:12]: path.stat().st_size for path in index.iterdir()}
    shutil.rmtree(root, ignore_errors=True)
    return Outcome(
        [
            figure(f"mount of {files:,} files, index accepted before", ms["later mount"], "ms", want=at_most(60)),
            figure(f"mount of {files:,} files, first time: decoded and checked", ms["first mount"], "ms"),
            figure("the same, CPU time", [1e3 * one for one in cpus(results, "first mount")], "ms"),
            figure("interpreter and arguments alone", ms["onesec --version"], "ms"),
        ],
        results,
        {"decoded_index_bytes": sizes},
    )


SCENARIO = Scenario("mount", "known manifest to mounted at 100,000 files", run)
