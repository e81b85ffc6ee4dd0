"""Every scenario, in the order in which a whole run takes them: what builds the images comes first."""

from __future__ import annotations

from benchmarks.macro.scenario import Scenario
from benchmarks.macro.scenarios import (
    build,
    import_torch,
    index_size,
    kernels,
    memory,
    metadata,
    mount,
    patch_release,
    run_true,
    seqread,
    servers,
    start,
)

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        kernels,
        import_torch,
        run_true,
        metadata,
        mount,
        seqread,
        servers,
        start,
        build,
        memory,
        patch_release,
        index_size,
    )
}
