"""The typed face of the C hot path."""

from __future__ import annotations

import os

if "ONESEC_NATIVE" in os.environ:  # a build of _native with sanitizers, .ci/sanitize
    __path__.insert(0, os.environ["ONESEC_NATIVE"])

from cext._native import (
    ObjectServer,
    blake3,
    compress_frame,
    cut_points,
    decompress_frame,
    device_of,
    drop_privileges,
    fsconfig,
    fsmount,
    fsopen,
    launch,
    mount,
    move_mount,
    open_tree,
    set_process_name,
    umount2,
    unshare,
)

__all__ = [
    "ObjectServer",
    "blake3",
    "compress_frame",
    "cut_points",
    "decompress_frame",
    "device_of",
    "drop_privileges",
    "fsconfig",
    "fsmount",
    "fsopen",
    "launch",
    "mount",
    "move_mount",
    "open_tree",
    "set_process_name",
    "umount2",
    "unshare",
]
