"""What a start's runs come to: ratios to the same files without us, the peers' to ours. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.macro.figures import Figure, Want, at_least, at_most, figure, figure_of, ratios
from benchmarks.macro.harness import Measurement, walls

NATIVE = "native chroot, warm"
NATIVE_COLD = "native chroot, cold"
CRUN = "crun run, warm"
OURS = "onesec, boot pack"


@dataclass(frozen=True, slots=True)
class Wants:
    """What ours with a boot pack must reach, where something is asked of this image on this link.

    process: start of the container's process to tensor over native warm. call: the whole over crun warm. first_ms: call
    to first instruction. share: percent of the image that may come from the origin. cold: the whole over native cold.
    best_peer: how many times longer the best peer takes.
    """

    process: float | None = None
    call: float | None = None
    first_ms: float | None = None
    share: float | None = None
    cold: float | None = None
    best_peer: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """Round by round, by contender. ages: seconds from the start of the container's process to the tensor. firsts:
    seconds from the call (a pull counts) to the container's first instruction. moved: bytes from the origin; its keys
    are those that fetch. content: bytes of the image's files.
    """

    results: Mapping[str, Sequence[Measurement]]
    ages: Mapping[str, Sequence[float]]
    firsts: Mapping[str, Sequence[float]]
    moved: Mapping[str, Sequence[int]]
    content: int


def figures(seen: Seen, wants: Wants) -> list[Figure]:
    """Every figure; only ours with a boot pack is judged."""
    found: list[Figure] = []
    for name in seen.moved:
        mine = wants if name == OURS else Wants()
        found += [
            _call(seen, name, CRUN, mine.call),
            figure_of(
                name,
                "process start to tensor over native warm",
                ratios(seen.ages[name], seen.ages[NATIVE]),
                "x",
                reference=NATIVE,
                want=_most(mine.process),
            ),
        ]
    for name, times in seen.firsts.items():
        want = _most(wants.first_ms if name == OURS else None)
        found.append(figure_of(name, "call to first instruction", [1e3 * one for one in times], "ms", want=want))
    for name, counts in seen.moved.items():
        found.append(figure_of(name, "from the origin", [count / 1e6 for count in counts], "MB"))
    over_cold = ratios(walls(seen.results, OURS), walls(seen.results, NATIVE_COLD))
    share = [100 * count / seen.content for count in seen.moved[OURS]]
    return [
        *found,
        figure(f"{OURS}, whole call over {NATIVE_COLD}", over_cold, "x", reference=NATIVE_COLD, want=_most(wants.cold)),
        figure(f"{OURS}, from the origin, of the image", share, "%", want=_most(wants.share)),
        *_peers(seen, wants),
    ]


def _peers(seen: Seen, wants: Wants) -> list[Figure]:
    """How many times longer each peer takes from the call to the end than ours with a boot pack."""
    ours = walls(seen.results, OURS)
    names = [name for name in seen.moved if not name.startswith("onesec")]
    if not names:
        return []
    over = {name: ratios(walls(seen.results, name), ours) for name in names}
    best = min(names, key=lambda name: statistics.median(over[name]))
    return [
        figure(f"{name} over ours, whole call{', the best peer' if name == best else ''}", over[name], "x",
               reference=OURS, want=_least(wants.best_peer) if name == best else None)
        for name in names
    ]  # fmt: skip


def _call(seen: Seen, name: str, reference: str, most: float | None) -> Figure:
    found = ratios(walls(seen.results, name), walls(seen.results, reference))
    return figure_of(name, f"whole call over {reference}", found, "x", reference=reference, want=_most(most))


def _most(value: float | None) -> Want | None:
    return None if value is None else at_most(value)


def _least(value: float | None) -> Want | None:
    return None if value is None else at_least(value)
