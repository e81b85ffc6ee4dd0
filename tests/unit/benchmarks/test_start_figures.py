from __future__ import annotations

from benchmarks.macro.harness import Measurement
from benchmarks.macro.scenarios.start_figures import CRUN, NATIVE, NATIVE_COLD, OURS, Seen, Wants, figures

WALLS = {
    OURS: [2.0, 4.0],  # a machine twice as slow in the second round
    "podman, zstd": [8.0, 16.0],
    "stargz": [6.0, 12.0],
    NATIVE: [1.0, 2.0],
    NATIVE_COLD: [4.0, 8.0],
    CRUN: [1.0, 2.0],
}


def seen(*fetching: str) -> Seen:
    results = {name: [Measurement(wall, 0, 0, "") for wall in times] for name, times in WALLS.items()}
    return Seen(
        results,
        ages={name: [wall / 2 for wall in times] for name, times in WALLS.items()},
        firsts={name: [0.1, 0.3] for name in (*fetching, CRUN)},
        moved={name: [20_000_000, 30_000_000] for name in fetching},
        content=1_000_000_000,
    )


def found(wants: Wants, *fetching: str) -> dict[str, tuple[float, bool | None]]:
    return {one.name: (one.value, one.met) for one in figures(seen(*fetching), wants)}


def test_only_ours_with_a_boot_pack_is_judged() -> None:
    wants = Wants(process=1.1, call=2.5, first_ms=150, share=2.6, cold=1, best_peer=5)
    assert found(wants, OURS, "podman, zstd", "stargz") == {
        f"{OURS}, whole call over {CRUN}": (2.0, True),
        f"{OURS}, process start to tensor over native warm": (2.0, False),
        f"podman, zstd, whole call over {CRUN}": (8.0, None),
        "podman, zstd, process start to tensor over native warm": (8.0, None),
        f"stargz, whole call over {CRUN}": (6.0, None),
        "stargz, process start to tensor over native warm": (6.0, None),
        f"{OURS}, whole call over {NATIVE_COLD}": (0.5, True),
        "podman, zstd over ours, whole call": (4.0, None),
        "stargz over ours, whole call, the best peer": (3.0, False),
        f"{OURS}, call to first instruction": (200.0, False),
        "podman, zstd, call to first instruction": (200.0, None),
        "stargz, call to first instruction": (200.0, None),
        f"{CRUN}, call to first instruction": (200.0, None),
        f"{OURS}, from the origin": (25.0, None),
        "podman, zstd, from the origin": (25.0, None),
        "stargz, from the origin": (25.0, None),
        f"{OURS}, from the origin, of the image": (2.5, True),
    }


def test_nothing_is_asked_where_nothing_is_wanted_and_no_peer_is_needed() -> None:
    alone = found(Wants(), OURS)
    assert {met for _, met in alone.values()} == {None}
    assert not [name for name in alone if "over ours" in name]
