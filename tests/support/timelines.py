"""A record of a start, as lazyfs/timeline.py makes them."""

from __future__ import annotations

import random
from typing import Any

FILES = (
    "usr/lib/x86_64-linux-gnu/libc.so.6",
    "usr/local/lib/python3.11/site-packages/torch/lib/libtorch_cpu.so",
    "usr/local/lib/python3.11/site-packages/torch/__init__.py",
    "",
)
TYPICAL = {"memory": 5e-5, "store": 3e-4, "pack": 6e-4, "network": 8e-3}


def record(reads: int = 900, **changes: Any) -> dict[str, Any]:
    """A start of 1.42 s with a boot pack and this many reads that outran it."""
    draw = random.Random(1)
    rows = [_read(draw) for _ in range(reads)]
    names = ("interpreter", "manifest", "index", "server", "mount", "container", "command")
    times = (0.0, 0.018, 0.022, 0.041, 0.052, 0.056, 0.071, 1.42)
    return {
        "image": "torch:latest",
        "digest": "sha256:" + "ab" * 32,
        "command": ["python3", "-c", "import torch; print(torch.ones(2).sum())"],
        "status": 0,
        "seconds": 1.42,
        "phases": [
            {"name": name, "start": start, "end": end}
            for name, start, end in zip(names, times[:-1], times[1:], strict=True)
        ],
        "boot": boot(),
        "reads": sorted(rows, key=lambda row: row["t"]),
        "read_count": reads,
        "lookup_count": 900,
        "bytes": {"boot pack": 76_100_000, "memory": 5_200_000, "store": 0, "pack": 9_100_000, "network": 3_100_000},
        **changes,
    }


def boot(**changes: Any) -> dict[str, Any]:
    return {
        "frames": 73,
        "all_frames": 73,
        "objects": 900,
        "bytes": 76_100_000,
        "packed": 20_500_000,
        "start": 0.05,
        "end": 0.41,
        "kept": False,
        "share": 0.99,
        "error": "",
        "progress": [[0.05 + frame * 0.36 / 73, frame * 76_100_000 // 73] for frame in range(74)],
        **changes,
    }


def _read(draw: random.Random) -> dict[str, Any]:
    source = draw.choices(tuple(TYPICAL), (5, 2, 3, 1))[0]
    return {
        "t": 0.06 + draw.random() ** 1.7 * 1.1,
        "seconds": TYPICAL[source] * draw.lognormvariate(0, 0.6),
        "bytes": draw.choice((4096, 65536, 131072)),
        "offset": draw.randrange(1000) * 4096,
        "object": f"{draw.getrandbits(256):064x}",
        "path": draw.choice(FILES),
        "source": source,
    }
