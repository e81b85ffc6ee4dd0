"""Processes of ours that outlive their command: they keep nothing of its environment by which they could be found."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def background_processes(directory: Path) -> dict[int, str]:
    """Number and name of those that have a log below the directory open."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "fd/2").startswith(f"{directory}/"):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found
