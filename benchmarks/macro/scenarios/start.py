"""From a registry onto an empty host: pull and run until the tensor, over a shaped link, beside the peers.

The host is empty before each run: nothing of the image, no page cache. Bytes are counted at the origin's interface. The
client, the registry and, where the kernel has no netem, the link's emulator share this machine's cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.macro import cold, containers, lazy_peers, oci, peers, services, sources
from benchmarks.macro.harness import Contender, ContenderError, Measurement, rounds
from benchmarks.macro.link import Counters, Link, Shape, link
from benchmarks.macro.origin import Origin, fill, origin
from benchmarks.macro.scenario import Outcome, Place, Scenario
from benchmarks.macro.scenarios.start_figures import CRUN, NATIVE, NATIVE_COLD, Seen, Wants, figures

ROUND_TRIP_MS = 2.1
_CPU = Wants(best_peer=5)


@dataclass(frozen=True, slots=True)
class Start:
    """kinds: the layers that podman is measured with. The CUDA image is left to the lazy ones: podman's minutes for it
    tell nothing that the CPU image's seconds do not.
    """

    megabits: int
    source: Callable[[Place], sources.Source]
    wants: Wants
    kinds: tuple[oci.Compression, ...] = ("gzip", "zstd", "zstd:chunked")

    def __call__(self, place: Place) -> Outcome:
        source = self.source(place)
        shape = Shape(megabits=self.megabits, delay_ms=ROUND_TRIP_MS / 2)
        with ExitStack() as stack:
            wire = stack.enter_context(link(shape))
            found = stack.enter_context(origin(place, wire))
            fill(place, found, source.reference, source.workload)
            chosen, missing = _peers(place, found, source, self.kinds)
            moved: dict[str, list[int]] = {peer.name: [] for peer in chosen}
            contenders = []
            for peer in chosen:
                contender, end = _contender(place, peer, wire, found, moved[peer.name])
                contenders.append(contender)
                stack.callback(peer.remove)
                stack.callback(end)
            results = rounds([*contenders, *_natives(place, source)], place.rounds)
            means = wire.means
        seen = _seen(results, moved, _content(source))
        conditions = {
            "megabits": shape.megabits,
            "round_trip_ms": 2 * shape.delay_ms,
            "delay_by": means,
            "image_bytes": seen.content,
            "bytes_from_origin": moved,
            "steps_s": {name: [one.said()["steps"] for one in ones] for name, ones in results.items()},
            "process_to_tensor_s": seen.ages,
            "call_to_first_instruction_s": seen.firsts,
        }
        note = "client, registry and link share the cores of one machine: ratios carry over, seconds do not"
        return Outcome(figures(seen, self.wants), seen.results, conditions, [note], missing)


def _natives(place: Place, source: sources.Source) -> list[Contender]:
    native = containers.chroot(source.plain, source.workload)
    volumes = [(peers.first(), peers.FIRST)]
    crun = containers.crun(place, "start", source.plain, (peers.FIRST, *source.workload), volumes)

    def contender(name: str, calls: Sequence[Sequence[str]], prepare: Callable[[], object]) -> Contender:
        return Contender(name, place.program("steps", json.dumps(calls)), prepare, clock="own")

    return [
        contender(NATIVE_COLD, [native], cold.drop),
        contender(NATIVE, [native, native], lambda: None),
        contender(CRUN, [crun, crun], lambda: None),
    ]


def _peers(
    place: Place, found: Origin, source: sources.Source, kinds: Sequence[oci.Compression]
) -> tuple[list[peers.Peer], dict[str, str]]:
    lazy, missing = lazy_peers.peers(place, found, source)
    chosen = [*peers.onesec(place, found, source, pull_all=bool(kinds)), *lazy]
    for kind in kinds:
        peer = peers.podman(place, found, source, kind)
        if isinstance(peer, str):
            missing[f"podman, {kind}"] = peer
        else:
            chosen.append(peer)
    return chosen, missing


def _contender(
    place: Place, peer: peers.Peer, wire: Link, found: Origin, moved: list[int]
) -> tuple[Contender, Callable[[], object]]:
    """The contender, and what ends its daemons if it could not even be prepared."""
    before: list[Counters] = []
    daemons = ExitStack()

    def prepare() -> None:
        peer.forget()
        daemons.enter_context(services.running(peer.daemons(), wire.in_client, peer.environment))
        cold.drop()
        for call in peer.warm:
            place.call(wire.in_client(call), environment=found.environment)
        peers.first().read_bytes()  # the clock's own program is no part of anybody's image
        before.append(wire.counters())

    def count() -> None:
        moved.append(wire.counters().since(before.pop()).sent)
        daemons.close()
        peer.remove()

    commands = [wire.in_client(list(command)) for command in peer.commands]
    call = place.program("steps", json.dumps(commands))
    return Contender(peer.name, call, prepare, count, {**found.environment, **peer.environment}, "own"), daemons.close


def _seen(results: Mapping[str, Sequence[Measurement]], moved: Mapping[str, list[int]], content: int) -> Seen:
    """What the runs said, once it is sure that everybody came to the same sum. A warm run is the second of two."""
    said = {name: [json.loads(str(one.said()["said"])) for one in ones] for name, ones in results.items()}
    sums = {one["sum"] for ones in said.values() for one in ones}
    if len(sums) != 1:
        raise ContenderError(f"the workloads did not come to the same: {sorted(sums)}")
    warm = {NATIVE, CRUN}
    firsts = {
        name: [
            (int(line["first"]) - _began(one, -1 if name in warm else 0)) / 1e9
            for one, line in zip(results[name], said[name], strict=True)
        ]
        for name in (*moved, CRUN)
    }
    counted = {name: [_last_step(one) for one in ones] if name in warm else ones for name, ones in results.items()}
    ages = {name: [float(one["age"]) for one in ones] for name, ones in said.items()}
    return Seen(counted, ages, firsts, moved, content)


def _began(one: Measurement, step: int) -> int:
    began = one.said()["began"]
    assert isinstance(began, list)
    return int(began[step])


def _last_step(one: Measurement) -> Measurement:
    steps = one.said()["steps"]
    assert isinstance(steps, list)
    return Measurement(float(steps[-1]), one.cpu, one.peak_memory, one.output, one.prepared)


def _content(source: sources.Source) -> int:
    """Bytes of the image's files."""
    return sum(path.stat().st_size for path in cold.files([source.plain]))


_WORDS = "from a registry onto an empty host, {}, 2.1 ms round trip"
SCENARIO = Scenario("start", _WORDS.format("1 Gbit/s"), Start(1000, sources.torch, _CPU))
FAST = Scenario("start-10g", _WORDS.format("10 Gbit/s"), Start(10_000, sources.torch, _CPU))
CUDA = Scenario(
    "start-cuda",
    "CUDA torch " + _WORDS.format("1 Gbit/s"),
    Start(1000, sources.cuda_torch, Wants(process=1.10, call=1.25, first_ms=150, share=2, cold=1), ()),
)
CUDA_FAST = Scenario(
    "start-cuda-10g",
    "CUDA torch " + _WORDS.format("10 Gbit/s"),
    Start(10_000, sources.cuda_torch, Wants(process=1.05), ()),
)
