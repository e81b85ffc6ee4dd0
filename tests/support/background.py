"""Processes of ours that outlive their command: they keep nothing of its environment by which they could be found."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs.background import Client


def background_processes(directory: Path) -> dict[int, str]:
    """Number and name of those that have a log below the directory open."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "fd/2").startswith(f"{directory}/"):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def what_it_has(_: Mapping[str, Any], __: Sequence[int], client: Client) -> int:
    """What a background process does that says on its log what it has of its starter, and ends."""
    shown = {name: Path("/proc/self", name).read_bytes().decode(errors="replace") for name in ("environ", "cmdline")}
    print(json.dumps({"modules": sorted(sys.modules), "variables": dict(os.environ), **shown}), flush=True)
    client.ready()
    return 0
