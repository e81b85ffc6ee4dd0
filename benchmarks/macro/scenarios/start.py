"""From a registry onto an empty host: pull and run until the tensor, over a shaped link, beside the peers.

The host is empty before each run: nothing of the image, no page cache. Bytes are counted at the origin's interface. The
client, the registry and, where the kernel has no netem, the link's emulator share this machine's cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.macro import cold, containers, oci, peers, sources
from benchmarks.macro.figures import Figure, figure, ratios
from benchmarks.macro.harness import Contender, ContenderError, Measurement, rounds, walls
from benchmarks.macro.link import Counters, Link, Shape, link
from benchmarks.macro.origin import Origin, fill, origin
from benchmarks.macro.scenario import Outcome, Place, Scenario

ROUND_TRIP_MS = 2.1
_NATIVE = "native chroot, warm"
_NATIVE_COLD = "native chroot, cold"
_CRUN = "crun run, warm"


@dataclass(frozen=True, slots=True)
class Start:
    """kinds: the layers that podman is measured with. The CUDA image is left to us: podman's minutes for it tell
    nothing that the CPU image's seconds do not.
    """

    megabits: int
    source: Callable[[Place], sources.Source]
    kinds: tuple[oci.Compression, ...] = ("gzip", "zstd")

    def __call__(self, place: Place) -> Outcome:
        return _run(place, Shape(megabits=self.megabits, delay_ms=ROUND_TRIP_MS / 2), self.source(place), self.kinds)


def _run(place: Place, shape: Shape, source: sources.Source, kinds: Sequence[oci.Compression]) -> Outcome:
    native = containers.chroot(source.plain, source.workload)
    crun = containers.crun(place, "start", source.plain, source.workload)
    with ExitStack() as stack:
        wire = stack.enter_context(link(shape))
        found = stack.enter_context(origin(place, wire))
        fill(place, found, source.reference, source.plain, source.workload, kinds)
        chosen, missing = _peers(place, found, source, kinds)
        moved: dict[str, list[int]] = {peer.name: [] for peer in chosen}
        for peer in chosen:
            stack.callback(peer.remove)
        contenders = [_contender(place, peer, wire, found, moved[peer.name]) for peer in chosen]
        contenders.append(Contender(_NATIVE_COLD, place.program("steps", json.dumps([native])), cold.drop, clock="own"))
        contenders.append(Contender(_NATIVE, place.program("steps", json.dumps([native, native])), clock="own"))
        contenders.append(Contender(_CRUN, place.program("steps", json.dumps([crun, crun])), clock="own"))
        results = rounds(contenders, place.rounds)
        means = wire.means
    for warm in (_NATIVE, _CRUN):
        results[warm] = [_last_step(one) for one in results[warm]]
    _require_same(results)
    return Outcome(
        _figures(results, moved),
        results,
        {
            "megabits": shape.megabits,
            "round_trip_ms": 2 * shape.delay_ms,
            "delay_by": means,
            "bytes_from_origin": moved,
            "steps_s": {name: [one.said()["steps"] for one in ones] for name, ones in results.items()},
            "process_to_tensor_s": {name: _ages(results, name) for name in results},
        },
        ["client, registry and link share the cores of one machine: ratios carry over, seconds do not"],
        missing,
    )


def _peers(
    place: Place, found: Origin, source: sources.Source, kinds: Sequence[oci.Compression]
) -> tuple[list[peers.Peer], dict[str, str]]:
    missing = peers.absent()
    chosen = peers.onesec(place, found, source)[: None if kinds else 2]
    for kind in kinds:
        peer = peers.podman(place, found, source, kind)
        if isinstance(peer, str):
            missing[f"podman, {kind}"] = peer
        else:
            chosen.append(peer)
    return chosen, missing


def _contender(place: Place, peer: peers.Peer, wire: Link, found: Origin, moved: list[int]) -> Contender:
    before: list[Counters] = []

    def prepare() -> None:
        peer.forget()
        cold.drop()
        before.append(wire.counters())

    def count() -> None:
        moved.append(wire.counters().since(before.pop()).sent)

    commands = [wire.in_client(list(command)) for command in peer.commands]
    call = place.program("steps", json.dumps(commands))
    return Contender(peer.name, call, prepare, count, found.environment, "own")


def _ages(results: dict[str, list[Measurement]], name: str) -> list[float]:
    """From the start of the container's process to the tensor."""
    return [float(json.loads(str(one.said()["said"]))["age"]) for one in results[name]]


def _last_step(one: Measurement) -> Measurement:
    """A warm run is the second of two."""
    steps = one.said()["steps"]
    assert isinstance(steps, list)
    return Measurement(float(steps[-1]), one.cpu, one.peak_memory, one.output, one.prepared)


def _require_same(results: dict[str, list[Measurement]]) -> None:
    """Everybody has to have come to the same sum."""
    sums = {json.loads(str(one.said()["said"]))["sum"] for ones in results.values() for one in ones}
    if len(sums) != 1:
        raise ContenderError(f"the workloads did not come to the same: {sorted(sums)}")


def _figures(results: dict[str, list[Measurement]], moved: dict[str, list[int]]) -> list[Figure]:
    found: list[Figure] = []
    add: Callable[[Figure], None] = found.append
    for name in moved:
        add(
            figure(
                f"{name}, whole call over crun run, warm",
                ratios(walls(results, name), walls(results, _CRUN)),
                "x",
                reference=_CRUN,
            )
        )
        add(
            figure(
                f"{name}, process start to tensor over native warm",
                ratios(_ages(results, name), _ages(results, _NATIVE)),
                "x",
                reference=_NATIVE,
            )
        )
    for name, counts in moved.items():
        add(figure(f"{name}, from the origin", [count / 1e6 for count in counts], "MB"))
    return found


_WORDS = "from a registry onto an empty host, {}, 2.1 ms round trip"
SCENARIO = Scenario("start", _WORDS.format("1 Gbit/s"), Start(1000, sources.torch))
FAST = Scenario("start-10g", _WORDS.format("10 Gbit/s"), Start(10_000, sources.torch))
CUDA = Scenario("start-cuda", "CUDA torch " + _WORDS.format("1 Gbit/s"), Start(1000, sources.cuda_torch, ()))
CUDA_FAST = Scenario(
    "start-cuda-10g", "CUDA torch " + _WORDS.format("10 Gbit/s"), Start(10_000, sources.cuda_torch, ())
)
