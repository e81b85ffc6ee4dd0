"""Blobs of a stranger become an image of the layout: what `pull`, and `import` of an image that is ours already, share.

Nothing gets a name before it was judged. An index is decoded by a process without privileges and has to be what our own
encoder writes. A pack's chunks are hashed, since builds here will trust the ids in its table; and what is a pack is
decided by its end, as fsck does, and not by what the manifest calls it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import cext
from registry.errors import BadBlobError
from registry.image import decode_index, parse_config
from registry.layout import Layout, is_pack, write_all
from registry.model import PACK, Descriptor, Manifest
from registry.upkeep import verify_pack

_STEP = 1 << 20


def judge_blob(manifest: Manifest, blob: Descriptor, fd: int) -> None:
    """fd: the blob's file, complete, its SHA-256 right. Raises CorruptError if it may not come in."""
    if is_pack(fd) or any(pack.digest == blob.digest for pack in manifest.each(PACK)):
        verify_pack(fd, blob)


def judge_index(layout: Layout, manifest: Manifest) -> None:
    """The config and the index of an image whose documents are in the layout; decodes the index for mounts."""
    parse_config(layout.read(manifest.config), f"config of {manifest.digest}")
    decode_index(layout, manifest)


def know_packs(layout: Layout, manifest: Manifest) -> None:
    """Lets later builds use the chunks of the image's packs, which are all there and judged. Inside `writing`."""
    chunks = layout.chunk_map()
    try:
        known = chunks.packs()
        for pack in manifest.each(PACK):
            if pack.digest.raw not in known:
                fd = layout.open_blob(pack.digest)
                try:
                    chunks.add_pack(pack.digest.raw, cext.pack_table(fd))
                finally:
                    os.close(fd)
    finally:
        chunks.close()


def adopt_image(
    layout: Layout, manifest: Manifest, open_blob: Callable[[Descriptor], int], progress: Callable[[int], None]
) -> None:
    """Copies an image from files. open_blob: a descriptor that we close. Call it inside `writing`, and tag it then."""
    for blob in manifest.require_image().blobs:
        if not layout.has(blob):
            _copy(layout, manifest, blob, open_blob(blob), progress)
    judge_index(layout, manifest)
    layout.put(manifest.raw, manifest.media_type)  # syncs the names of all before it, too
    know_packs(layout, manifest)


def _copy(layout: Layout, manifest: Manifest, blob: Descriptor, source: int, progress: Callable[[int], None]) -> None:
    hasher = hashlib.sha256()
    size = 0
    with open(source, "rb", buffering=0) as file, layout.staging() as staging:
        with staging.file("blob") as fd:
            while data := file.read(min(_STEP, blob.size - size + 1)):  # one more, so that too much is seen
                hasher.update(data)
                size += len(data)
                if size > blob.size:
                    break
                write_all(fd, data)
                progress(len(data))
            if size != blob.size or hasher.hexdigest() != blob.digest.hex:
                raise BadBlobError(str(blob.digest), "content is not what the digest says")
            judge_blob(manifest, blob, fd)
        staging.adopt("blob", blob.digest)
