"""Sixteen starts at once on an empty host, over a shaped link: what comes from the origin, and how long the slowest
takes beside sixteen native processes with everything in the page cache.

Of one image (`start-many`, `start-many-cuda`), and of sixteen that share all layers but one (`start-relatives`): those
have no boot pack, since nobody profiles sixteen variants of an image, and are of one trust domain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.macro import cold, containers, sources
from benchmarks.macro.figures import at_most, figure, ratios
from benchmarks.macro.harness import Contender, ContenderError, Measurement, rounds, walls
from benchmarks.macro.link import Counters, Link, Shape, link
from benchmarks.macro.origin import Origin, fill, offer, origin
from benchmarks.macro.scenario import Outcome, Place, Scenario

SHAPE = Shape(megabits=1000, delay_ms=1.05)
STARTS, QUICK_STARTS = 16, 3
_ONE, _MANY, _NATIVE = "onesec, one start", "onesec, all at once", "native chroots, warm, all at once"
_ROUNDS_MAX = 3
_MOST_BYTES, _MOST_TIME = at_most(1.05), at_most(1.3)


@dataclass(frozen=True, slots=True)
class Many:
    """relatives: the starts are of different images that share layers with the source."""

    source: Callable[[Place], sources.Source]
    relatives: bool = False

    def __call__(self, place: Place) -> Outcome:
        source = self.source(place)
        starts = QUICK_STARTS if place.quick else STARTS
        with ExitStack() as stack:
            wire = stack.enter_context(link(SHAPE))
            found = stack.enter_context(origin(place, wire))
            images = self._images(place, found, source, starts)
            root = place.path("pulled-many")
            stack.callback(place.remove, root.name)
            commands = [wire.in_client(place.onesec("run", one, *source.workload, root=root)) for one in images]
            moved: dict[str, list[int]] = {_ONE: [], _MANY: []}
            contenders = [
                _contender(place, wire, found, _ONE, commands[:1], moved),
                _contender(place, wire, found, _MANY, commands, moved),
                _native(place, source, starts),
            ]
            results = rounds(contenders, min(_ROUNDS_MAX, place.rounds))
        _require_same(results)
        bytes_ratio = [many / one for many, one in zip(moved[_MANY], moved[_ONE], strict=True)]
        slowest = ratios(walls(results, _MANY), walls(results, _NATIVE))
        wanted = None if self.relatives else _MOST_TIME
        return Outcome(
            [
                figure(f"{starts} starts, from the origin over one start", bytes_ratio, "x", reference=_ONE,
                       want=_MOST_BYTES),
                figure(f"slowest of {starts} starts over {starts} native, warm", slowest, "x", reference=_NATIVE,
                       want=wanted),
            ],
            results,
            {
                "starts": starts,
                "megabits": SHAPE.megabits,
                "round_trip_ms": 2 * SHAPE.delay_ms,
                "bytes_from_origin": moved,
                "each_s": {name: [one.said()["each"] for one in ones] for name, ones in results.items()},
            },
            ["client, registry and link share the cores of one machine: ratios carry over, seconds do not"],
        )  # fmt: skip

    def _images(self, place: Place, found: Origin, source: sources.Source, starts: int) -> list[str]:
        if self.relatives:
            return [offer(place, found, one, below="relatives/") for one in sources.relatives(place, starts)]
        fill(place, found, source.reference, source.workload)
        return [f"{found.host}/{source.reference}:boot"] * starts


def _contender(
    place: Place, wire: Link, found: Origin, name: str, commands: Sequence[Sequence[str]], moved: dict[str, list[int]]
) -> Contender:
    before: list[Counters] = []

    def prepare() -> None:
        place.remove("pulled-many")
        cold.drop()
        before.append(wire.counters())

    def count() -> None:
        moved[name].append(wire.counters().since(before.pop()).sent)

    return Contender(name, place.program("many", json.dumps(commands)), prepare, count, found.environment, "own")


def _native(place: Place, source: sources.Source, starts: int) -> Contender:
    native = containers.chroot(source.plain, source.workload)
    return Contender(
        _NATIVE, place.program("many", json.dumps([native] * starts)), lambda: place.call(native), clock="own"
    )


def _require_same(results: dict[str, list[Measurement]]) -> None:
    lines: list[str] = []
    for ones in results.values():
        for one in ones:
            said = one.said()["said"]
            assert isinstance(said, list)
            lines += said
    if len({json.loads(line)["sum"] for line in lines}) != 1:
        raise ContenderError("the workloads did not come to the same")


_WORDS = "from a registry onto an empty host, 1 Gbit/s, 2.1 ms"
SCENARIO = Scenario("start-many", f"sixteen starts of one image at once {_WORDS}", Many(sources.torch))
CUDA = Scenario("start-many-cuda", f"sixteen starts of the CUDA image at once {_WORDS}", Many(sources.cuda_torch))
RELATIVES = Scenario(
    "start-relatives",
    f"sixteen images that share layers, none with a boot pack, at once {_WORDS}",
    Many(sources.torch, relatives=True),
)
