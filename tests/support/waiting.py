"""Waiting for what another process or thread does, on a machine that may be busy with anything.

A bound here ends a test that hangs, with words; it is never what a test measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 200.0
"""Far more than anything takes, also under a sanitizer on a busy machine, and less than pytest gives a test."""


def eventually(condition: Callable[[], object], what: str = "it did not happen", *, every: float = 0.01) -> None:
    """Looks again and again until the condition holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(every)
