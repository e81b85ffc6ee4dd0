"""The start that counts: `import torch` and a small sum, everything local, page cache warm and cold."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.macro import cold, containers, sources
from benchmarks.macro.figures import at_most, figure, ratios
from benchmarks.macro.harness import Contender, Measurement, require_same, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

_KEPT = "bound from the mount"
_PLAIN = "bound from the plain directory"


def run(place: Place) -> Outcome:
    source = sources.torch(place)
    calls = {
        "onesec run": place.onesec("run", source.reference, *source.workload),
        "native chroot": containers.chroot(source.plain, source.workload),
        "crun run": containers.crun(place, "import", source.plain, source.workload),
    }
    with ExitStack() as stack:
        # Keeps the object server, and so its pages, between runs.
        mounted = stack.enter_context(place.mounted(source.reference))
        contenders = [Contender(name, call) for name, call in calls.items()]
        for name, tree in ((_KEPT, mounted), (_PLAIN, source.plain)):
            contenders.append(Contender(name, containers.assembled(place, tree, source.workload)))
        rounds(contenders, 1)
        warm = rounds(contenders, 2 * place.rounds)
    alone = rounds([Contender(name, call) for name, call in calls.items()], place.rounds)
    packs = place.packs(source.reference)

    def prepare() -> object:
        cold.drop()
        return cold.require(packs)

    cold_runs = rounds([Contender(name, call, prepare) for name, call in calls.items()], place.rounds)
    for results in (warm, alone, cold_runs):
        require_same(results, "sum")
    inside = {name: [_inside(one, "seconds") for one in ones] for name, ones in warm.items()}
    cpu = {name: [_inside(one, "cpu") for one in ones] for name, ones in warm.items()}
    ours = "onesec run"
    return Outcome(
        [
            figure("whole call, warm", _over(warm, "crun run"), "x", reference="crun run", want=at_most(1.03)),
            figure("whole call, warm, over chroot", _over(warm, "native chroot"), "x", reference="native chroot"),
            figure(
                "the import itself, warm",
                ratios(inside[ours], inside["crun run"]),
                "x",
                reference="crun run",
                want=at_most(1.03),
            ),
            figure(
                "the import itself, warm, over chroot",
                ratios(inside[ours], inside["native chroot"]),
                "x",
                reference="native chroot",
                want=at_most(1.03),
            ),
            figure(
                "the import itself, warm, in one mount",
                ratios(inside[_KEPT], inside[_PLAIN]),
                "x",
                reference=_PLAIN,
                want=at_most(1.03),
            ),
            figure("the import itself, warm, CPU time", ratios(cpu[ours], cpu["crun run"]), "x", reference="crun run"),
            figure("whole call, nothing else uses the image", _over(alone, "crun run"), "x", reference="crun run"),
            figure("whole call, page cache dropped", _over(cold_runs, "crun run"), "x", reference="crun run"),
            figure(
                "whole call, page cache dropped, over chroot",
                _over(cold_runs, "native chroot"),
                "x",
                reference="native chroot",
            ),
        ],
        {
            **{f"{name}, warm": ones for name, ones in warm.items()},
            **{f"{name}, alone": ones for name, ones in alone.items()},
            **{f"{name}, cold": ones for name, ones in cold_runs.items()},
        },
        {"inside_s": inside, "packs_before_a_cold_run": cold_runs[ours][0].prepared},
        [
            "warm: the image is also mounted elsewhere, so its server and the pages it gave stay between the runs",
            "in one mount: bind mounts out of `onesec mount` and of the plain directory; both have their "
            "look-ups in the kernel's caches, which each `onesec run` makes anew for its own root",
            "alone: no other mount holds the image; a run may have to start the object server and read all pages anew",
        ],
    )


def _over(results: dict[str, list[Measurement]], reference: str) -> list[float]:
    return ratios(walls(results, "onesec run"), walls(results, reference))


def _inside(one: Measurement, clock: str) -> float:
    """Seconds of the import as the container's own clock had them; `cpu` is of the importing process alone."""
    seconds = one.said()[clock]
    assert isinstance(seconds, float)
    return seconds


SCENARIO = Scenario("import-torch", "import torch and a sum, warm and cold, against native", run)
