"""The typed face of the C hot path."""

from __future__ import annotations

import os

if "ONESEC_NATIVE" in os.environ:  # a build of _native with sanitizers, .ci/sanitize
    __path__.insert(0, os.environ["ONESEC_NATIVE"])

from cext._native import (
    ChunkMap,
    ChunkMapStatistics,
    ObjectServer,
    Store,
    StoreReport,
    StoreSegment,
    StoreStatistics,
    blake3,
    check_image,
    check_image_sandboxed,
    compress_frame,
    cut_points,
    decompress_frame,
    device_of,
    drop_privileges,
    encode_image,
    filesystem_of,
    fsconfig,
    fsmount,
    fsopen,
    launch,
    mount,
    move_mount,
    open_tree,
    pack_table,
    set_process_name,
    sha256,
    umount2,
    unshare,
)
from cext.ingest import Ingest, IngestResult, PackFile, PackTable, parse_pack_table

__all__ = [
    "ChunkMap",
    "ChunkMapStatistics",
    "Ingest",
    "IngestResult",
    "ObjectServer",
    "PackFile",
    "PackTable",
    "Store",
    "StoreReport",
    "StoreSegment",
    "StoreStatistics",
    "blake3",
    "check_image",
    "check_image_sandboxed",
    "compress_frame",
    "cut_points",
    "decompress_frame",
    "device_of",
    "drop_privileges",
    "encode_image",
    "filesystem_of",
    "fsconfig",
    "fsmount",
    "fsopen",
    "launch",
    "mount",
    "move_mount",
    "open_tree",
    "pack_table",
    "parse_pack_table",
    "set_process_name",
    "sha256",
    "umount2",
    "unshare",
]
