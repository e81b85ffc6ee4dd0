"""Peak memory of a process and all that it starts, by looking at /proc again and again.

The kernel keeps the peak of one process, not of a tree whose members peak at different times. What is resident in
several members (libraries, pages shared since a fork) counts once in each: the sum errs upwards.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

_PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY_S = 0.01


def descendants(pid: int) -> list[int]:
    """A process, its children and theirs, as far as they still are."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text()
                found += [int(child) for child in children.split()]
        except OSError:  # it has ended meanwhile
            continue
    return found


def resident(pid: int) -> int:
    """Resident bytes of one process, shared ones included; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


class TreePeak:
    """Watches a tree of processes while the block runs. peak: the largest sum of resident bytes that was seen."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
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
            self.peak = max(self.peak, sum(map(resident, descendants(self._pid))))
            if self._over.wait(EVERY_S):
                return
