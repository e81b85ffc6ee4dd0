"""Sixteen starts of one image at once on an empty host, over a shaped link: what comes from the origin, and how long
the slowest takes beside sixteen native processes with everything in the page cache.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

from benchmarks.macro import cold, containers, peers, sources
from benchmarks.macro.figures import figure, ratios
from benchmarks.macro.harness import Contender, ContenderError, Measurement, rounds, walls
from benchmarks.macro.link import Counters, Shape, link
from benchmarks.macro.origin import fill, origin
from benchmarks.macro.scenario import Outcome, Place, Scenario

SHAPE = Shape(megabits=1000, delay_ms=1.05)
STARTS, QUICK_STARTS = 16, 3
_ONE, _MANY, _NATIVE = "onesec, one start", "onesec, all at once", "native chroots, warm, all at once"


def run(place: Place) -> Outcome:
    source = sources.torch(place)
    starts = QUICK_STARTS if place.quick else STARTS
    native = containers.chroot(source.plain, source.workload)
    with ExitStack() as stack:
        wire = stack.enter_context(link(SHAPE))
        found = stack.enter_context(origin(place, wire))
        fill(place, found, source.reference, source.plain, source.workload, ())
        peer = peers.onesec(place, found, source)[0]
        stack.callback(peer.remove)
        moved: dict[str, list[int]] = {_ONE: [], _MANY: []}
        before: list[Counters] = []

        def prepare() -> None:
            peer.forget()
            cold.drop()
            before.append(wire.counters())

        def contender(name: str, count: int) -> Contender:
            (command,) = peer.commands
            call = place.program("many", json.dumps([wire.in_client(list(command))] * count))

            def counted() -> None:
                moved[name].append(wire.counters().since(before.pop()).sent)

            return Contender(name, call, prepare, counted, found.environment, "own")

        natives = place.program("many", json.dumps([native] * starts))
        contenders = [
            contender(_ONE, 1),
            contender(_MANY, starts),
            Contender(_NATIVE, natives, lambda: place.call(native), clock="own"),
        ]
        results = rounds(contenders, min(3, place.rounds))
    _require_same(results)
    return Outcome(
        [
            figure(
                f"{starts} starts, from the origin over one start",
                [many / one for many, one in zip(moved[_MANY], moved[_ONE], strict=True)],
                "x",
                reference=_ONE,
            ),
            figure(
                f"slowest of {starts} starts over {starts} native, warm",
                ratios(walls(results, _MANY), walls(results, _NATIVE)),
                "x",
                reference=_NATIVE,
            ),
        ],
        results,
        {"starts": starts, "megabits": SHAPE.megabits, "round_trip_ms": 2 * SHAPE.delay_ms, "bytes_from_origin": moved},
        ["client, registry and link share the cores of one machine: ratios carry over, seconds do not"],
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


SCENARIO = Scenario("start-many", "sixteen starts of one image at once from a registry, 1 Gbit/s, 2.1 ms", run)
