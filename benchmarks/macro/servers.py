"""Memory of the processes that serve images for a run directory: found by their log or their arguments, by fair shares.

A server is a process of its own that outlives the command which started it, so it is in no tree of ours. What several
processes share counts once (PSS). Pages of files are the page cache's, which the kernel takes back when it wants them:
`own` leaves them out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes. whole: proportional share of everything resident. own: of it, what is no file's: anonymous and shared."""

    whole: int = 0
    own: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.whole + other.whole, self.own + other.own)


def serving(run_directory: str | os.PathLike[str], *, proc: Path = Path("/proc")) -> list[int]:
    """Processes that have one of onesec's names and a log in this run directory, or it in their arguments: servers and
    what pushes, no clients. A server has none of the arguments of who started it.
    """
    wanted = os.fsencode(run_directory)
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, words = (entry / "comm").read_text(), (entry / "cmdline").read_bytes().split(b"\0")
            log = os.readlink(os.fsencode(entry / "fd/2"))
        except OSError:  # it has ended meanwhile
            continue
        if name.startswith("onesec-") and (wanted in words or log.startswith(wanted + b"/")):
            found.append(int(entry.name))
    return sorted(found)


def share(pid: int, *, proc: Path = Path("/proc")) -> Share:
    """Nothing for a process that has ended."""
    rows = {}
    try:
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
            name, _, amount = line.partition(":")
            rows[name] = int(amount.split()[0]) << 10
    except OSError:
        return Share()
    return Share(rows.get("Pss", 0), rows.get("Pss_Anon", 0) + rows.get("Pss_Shmem", 0))


def total(pids: Iterable[int]) -> Share:
    return sum(map(share, pids), Share())


class Peak:
    """Watches the servers of a run directory while the block runs. most: the largest of each sum that was seen."""

    def __init__(self, run_directory: str | os.PathLike[str]) -> None:
        self.most = Share()
        self._run_directory = run_directory
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while True:
            seen = total(serving(self._run_directory))
            self.most = Share(max(self.most.whole, seen.whole), max(self.most.own, seen.own))
            if self._over.wait(EVERY_S):
                return
