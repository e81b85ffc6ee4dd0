"""What a container start costs beyond the runtime's own: /bin/true by `onesec run` and by `crun run`."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.macro import containers, sources
from benchmarks.macro.figures import at_most, differences, figure
from benchmarks.macro.harness import Contender, cpus, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

_EACH = 6  # rounds for one of the others: a start is short


def run(place: Place) -> Outcome:
    source = sources.torch(place)
    command = ["/bin/true"]
    onesec = Contender("onesec run", place.onesec("run", source.reference, *command))
    plain = Contender("crun run", containers.crun(place, "true", source.plain, command))
    count = place.rounds if place.quick else place.rounds * _EACH
    rounds([onesec, plain], 1)  # index decoded, caches warm
    alone = rounds([onesec, plain], count)
    with ExitStack() as stack:
        stack.enter_context(place.mounted(source.reference))
        served = rounds([onesec, plain], count)
    ms = {
        "alone": [1e3 * one for one in differences(walls(alone, "onesec run"), walls(alone, "crun run"))],
        "served": [1e3 * one for one in differences(walls(served, "onesec run"), walls(served, "crun run"))],
    }
    cpu = [1e3 * one for one in differences(cpus(alone, "onesec run"), cpus(alone, "crun run"))]
    return Outcome(
        [
            figure("/bin/true, more than crun", ms["alone"], "ms", reference="crun run", want=at_most(60)),
            figure("/bin/true, more CPU time than crun", cpu, "ms", reference="crun run"),
            figure("/bin/true, more than crun, image mounted elsewhere", ms["served"], "ms", reference="crun run"),
        ],
        {**alone, **{f"{name}, image mounted elsewhere": ones for name, ones in served.items()}},
        notes=["crun runs on a plain directory with its own default configuration, without a network namespace"],
    )


SCENARIO = Scenario("run-true", "a container that does nothing, against crun on a plain directory", run)
