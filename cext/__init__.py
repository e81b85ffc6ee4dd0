"""The typed face of the C hot path."""

from __future__ import annotations

from cext._native import blake3, fsconfig, fsmount, fsopen, launch, mount, move_mount, open_tree, umount2, unshare

__all__ = [
    "blake3",
    "fsconfig",
    "fsmount",
    "fsopen",
    "launch",
    "mount",
    "move_mount",
    "open_tree",
    "umount2",
    "unshare",
]
