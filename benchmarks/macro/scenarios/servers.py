"""Why the kernel path looks as it does: the same image and packs behind three servers, and the plain files.

fuse-python and pyfuse3 serve the whole tree as one FUSE mount, as most lazy loaders do; the kernel path answers names
and attributes in the kernel and has only content to serve. Nobody here prefetches anything.
"""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cext
from benchmarks.macro import cold, containers, sources
from benchmarks.macro.figures import Figure, figure, ratios
from benchmarks.macro.harness import Clock, Contender, Measurement, require_same, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario, ScenarioError

_PORTABLE = "pyfuse3 tree"
_FUSE_PYTHON = "fuse-python tree"
_OURS = "kernel path"
_PLAIN = "native files"
_DETACH = 2


def run(place: Place) -> Outcome:
    source = sources.torch(place)
    missing = {}
    with ExitStack() as stack:
        trees = {
            _PLAIN: source.plain,
            _OURS: stack.enter_context(place.mounted(source.reference)),
            _PORTABLE: stack.enter_context(place.mounted(source.reference, mode="portable")),
        }
        if importlib.util.find_spec("fuse") is None:
            missing[_FUSE_PYTHON] = "not installed: pip install '.[bench]'"
        else:
            trees[_FUSE_PYTHON] = stack.enter_context(_fuse_python(place, source.reference))
        large = _largest(source.plain)
        starts = _both(
            place, "start", {name: containers.assembled(place, tree, source.workload) for name, tree in trees.items()}
        )
        walks = _both(place, "walk", {name: ["find", str(tree), "-size", "+1"] for name, tree in trees.items()})
        reads = _both(place, "read", {name: place.program("read", tree / large) for name, tree in trees.items()})
    require_same({name: ones for name, ones in reads.items() if name.startswith("read")}, "sha256")
    return Outcome(
        [*_over(starts, "start"), *_over(walks, "walk"), *_over(reads, "read")],
        {**starts, **walks, **reads},
        {"read": str(large), "read_bytes": (source.plain / large).stat().st_size},
        ["start: the workload by chroot into a root of bind mounts; walk: find with a stat of each name"],
        missing,
    )


def _both(place: Place, what: str, calls: dict[str, list[str]]) -> dict[str, list[Measurement]]:
    """Every call cold, and once more right after it."""
    clock: Clock = "own" if what == "read" else "wall"
    contenders = []
    for name, call in calls.items():
        contenders.append(Contender(f"{what}, {name}, cold", call, cold.drop, clock=clock))
    found = rounds(contenders, place.rounds)
    contenders = [Contender(f"{what}, {name}, warm", call, clock=clock) for name, call in calls.items()]
    rounds(contenders, 1)
    return {**found, **rounds(contenders, place.rounds)}


def _over(results: dict[str, list[Measurement]], what: str) -> list[Figure]:
    """Everybody's time over that of the native files, cold and warm."""
    found = []
    for state in ("cold", "warm"):
        reference = f"{what}, {_PLAIN}, {state}"
        for name in results:
            if name.endswith(state) and name != reference:
                found.append(
                    figure(name, ratios(walls(results, name), walls(results, reference)), "x", reference=reference)
                )
    return found


def _largest(tree: Path) -> Path:
    found = max(cold.files([tree]), key=lambda path: path.stat().st_size)
    return found.relative_to(tree)


@contextmanager
def _fuse_python(place: Place, reference: str) -> Iterator[Path]:
    """The baseline's server, for the block."""
    target = place.path(f"mounted-{reference}-fuse-python")
    target.mkdir(exist_ok=True)
    call: Sequence[str] = place.program("fuse_python", place.root, reference, target)
    server = subprocess.Popen(call, cwd=Path(__file__).parents[3])
    try:
        for _ in range(200):
            if target.is_mount():
                break
            if server.poll() is not None:
                raise ScenarioError(f"fuse-python server: exit status {server.returncode}")
            time.sleep(0.05)
        yield target
    finally:
        if target.is_mount():
            cext.umount2(target, _DETACH)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


SCENARIO = Scenario("servers", "the same image behind the kernel path, pyfuse3 and fuse-python", run)
