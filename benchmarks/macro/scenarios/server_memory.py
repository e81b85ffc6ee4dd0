"""What serving an image costs in memory: an image at a registry, mounted on this host, and a start of it from nothing.

The servers are processes of their own; what they have mapped of files is page cache and stands apart. Nothing here is
timed: the watcher looks every 20 ms and costs a little of a core.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.macro import cold, servers, sources
from benchmarks.macro.figures import Figure, Want, at_most, figure
from benchmarks.macro.link import Link, Shape, link
from benchmarks.macro.origin import Origin, fill, origin
from benchmarks.macro.scenario import Outcome, Place, Scenario, ScenarioError

LIMIT_MB = 60
_ROOT, _RUN = "memory-pulled", "run-memory"


def run(place: Place) -> Outcome:
    source = sources.cuda_torch(place)
    mounted, peaks = [], []
    with ExitStack() as stack:
        wire = stack.enter_context(link(Shape(megabits=1000, delay_ms=1.05)))
        found = stack.enter_context(origin(place, wire))
        fill(place, found, source.reference, source.workload)
        stack.callback(place.remove, _ROOT, _RUN)
        image = f"{found.host}/{source.reference}:boot"
        for _ in range(min(3, place.rounds)):
            place.remove(_ROOT, _RUN)
            cold.drop()
            with servers.Peak(place.path(_RUN)) as watched:
                _call(place, wire, found, "run", image, *source.workload)
            peaks.append(watched.most)
            mounted.append(_mounted(place, wire, found, image))
    return Outcome(
        [
            *_figures("image mounted", mounted, at_most(LIMIT_MB)),
            *_figures("peak of a start from the registry", peaks, None),
        ],
        conditions={"image": source.reference, "files": len(cold.files([source.plain])), "servers": "linger = 0"},
    )


def _mounted(place: Place, wire: Link, found: Origin, image: str) -> servers.Share:
    target = place.path("memory-target")
    target.mkdir(exist_ok=True)
    _call(place, wire, found, "mount", image, str(target))
    try:
        pids = servers.serving(place.path(_RUN))
        if not pids:
            raise ScenarioError("no server was found beside a mount")
        return servers.total(pids)
    finally:
        _call(place, wire, found, "umount", str(target))


def _call(place: Place, wire: Link, found: Origin, *words: str) -> None:
    call = place.onesec(*words, root=place.path(_ROOT), run=_RUN)
    place.call(wire.in_client(call), environment=found.environment)


def _figures(name: str, seen: list[servers.Share], want: Want | None) -> list[Figure]:
    return [
        figure(f"{name}, besides page cache", [one.own / 1e6 for one in seen], "MB", want=want),
        figure(f"{name}, with mapped files", [one.whole / 1e6 for one in seen], "MB"),
    ]


SCENARIO = Scenario("server-memory", "memory of our servers: the CUDA image mounted, and while it starts", run)
