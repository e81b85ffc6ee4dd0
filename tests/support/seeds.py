"""The seed of a test that draws: any, printed so that a failure can be had again; in CI it is always 1."""

from __future__ import annotations

import os
import random


def draw() -> int:
    seed = int(os.environ.get("ONESEC_SEED") or random.SystemRandom().randrange(1, 1 << 31))
    print(f"ONESEC_SEED={seed}")
    return seed
