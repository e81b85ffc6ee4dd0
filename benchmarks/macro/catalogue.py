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
    server_memory,
    servers,
    start,
    start_many,
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        kernels.SCENARIO,
        import_torch.SCENARIO,
        run_true.SCENARIO,
        metadata.SCENARIO,
        mount.SCENARIO,
        seqread.SCENARIO,
        servers.SCENARIO,
        start.SCENARIO,
        start.FAST,
        start.CUDA,
        start.CUDA_FAST,
        start_many.SCENARIO,
        start_many.CUDA,
        start_many.RELATIVES,
        server_memory.SCENARIO,
        build.SCENARIO,
        memory.SCENARIO,
        patch_release.SCENARIO,
        index_size.SCENARIO,
    )
}
