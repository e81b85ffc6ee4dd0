"""Images in the layout: written from their index, opened for a mount.

The road to a mount is short on purpose: two JSON documents, two files of cache/index hashed again, and nothing imported
that costs time. The first open of an image decodes its two index blobs, lets `cext.check_image_sandboxed` judge them in
a process without privileges, and only then gives them their names in cache/index; what has a name there was accepted by
that check.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import cext
from cext.errors import CorruptError, LimitError
from registry.decoded import decode_both, decoded_file, decoded_path, named_decoded, open_decoded
from registry.errors import BadBlobError, BadDocumentError, MissingBlobError, RemoteBlobsError
from registry.layout import Layout, Lease, Resolved
from registry.model import (
    BOOTPACK,
    DECODED_DIGEST,
    DECODED_SIZE,
    EROFS,
    HEAD_DIGEST,
    HEAD_SIZE,
    OCI_CONFIG,
    PACK,
    TABLES,
    Descriptor,
    Digest,
    Manifest,
    manifest_bytes,
    parse_json,
    with_boot_pack,
)
from registry.reference import Reference

_TABLES_HEADER = struct.Struct("<8sIIIIIIQ24x")
_BLOB_ROW = struct.Struct("<32sQII")
_EROFS_INODES = struct.Struct("<Q")  # at byte 16 of the super block, which is at 1024


class OpenedImage:
    """An image ready to be mounted. All descriptors are owned and closed by `close`; `with` does it.

    erofs, tables: read-only, verified, with their paths. packs: the directory with every blob under its hex digest.
    lease: keeps gc away; hand a copy of its descriptor to whoever serves the image. remote: the registry's repository
    (HOST/PATH) that has the packs that are not here; None: they have to be here.
    """

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        domain: str,
        config: Mapping[str, Any],
        *,
        erofs: tuple[int, str],
        tables: tuple[int, str],
        packs: int,
        lease: Lease,
        remote: str | None = None,
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.domain = domain
        self.config = config
        self.erofs, self.erofs_path = erofs
        self.tables, self.tables_path = tables
        self.packs = packs
        self.lease = lease
        self.remote = remote
        self._closed = False

    @property
    def digest(self) -> Digest:
        return self.manifest.digest

    @property
    def metadata_name(self) -> str:
        """What images with the same fs.erofs have in common: the digest of its content, hexadecimal."""
        return self.manifest.only(EROFS).decoded[0].hex()

    def close(self) -> None:
        """Closes the descriptors; the lease ends unless it was handed over before."""
        if not self._closed:
            self._closed = True
            for fd in (self.erofs, self.tables, self.packs):
                os.close(fd)
            self.lease.release()

    def __enter__(self) -> OpenedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(layout: Layout, reference: Reference) -> OpenedImage:
    """Resolves, verifies and leases an image. Raises MissingImageError, BadDocumentError, BadBlobError, cext
    CorruptError.
    """
    return open_resolved(layout, *layout.resolve_leased(reference))


def open_resolved(layout: Layout, resolved: Resolved, lease: Lease) -> OpenedImage:
    """The same for an image that needs no name. Takes the lease, also when it fails."""
    fds: list[int] = []
    try:
        manifest = resolved.manifest.require_image()
        config = parse_config(layout.read(manifest.config), f"config of {resolved.name}")
        erofs, tables = manifest.only(EROFS), manifest.only(TABLES)
        paths = [decoded_path(layout, blob) for blob in (erofs, tables)]
        for path, blob in zip(paths, (erofs, tables), strict=True):
            if (fd := open_decoded(path, blob)) is not None:
                fds.append(fd)
        if len(fds) < 2:
            while fds:
                os.close(fds.pop())
            decode_index(layout, manifest)
            for path, blob in zip(paths, (erofs, tables), strict=True):
                fd = open_decoded(path, blob)
                if fd is None:
                    raise BadBlobError(str(blob.digest), f"decoded copy {path} changed while it was read")
                fds.append(fd)
        check_packs(fds[1], manifest)
        packs = layout.open_blobs()
        return OpenedImage(
            resolved.name,
            manifest,
            resolved.domain,
            config,
            erofs=(fds[0], paths[0]),
            tables=(fds[1], paths[1]),
            packs=packs,
            lease=lease,
            remote=resolved.remote,
        )
    except BaseException:
        for fd in fds:
            os.close(fd)
        lease.release()
        raise


def require_packs(layout: Layout, image: OpenedImage) -> None:
    """Raises RemoteBlobsError if packs of the image are only at its registry."""
    if image.remote is not None:
        packs = image.manifest.each(PACK)
        if count := sum(not layout.has(pack) for pack in packs):
            raise RemoteBlobsError(image.name, count, len(packs), f"{image.remote}@{image.digest}")


def check_packs(tables: int, manifest: Manifest) -> None:
    """The packs that (checked) tables read from are those that the manifest lists, in its order.

    Knowing the digest of somebody else's pack in this layout is no permission to read it.
    """
    head = os.pread(tables, _TABLES_HEADER.size, 0)
    rows = os.pread(tables, _TABLES_HEADER.unpack(head)[1] * _BLOB_ROW.size, _TABLES_HEADER.size)
    if tables_blobs(head + rows) != tuple(Descriptor(PACK, blob.digest, blob.size) for blob in manifest.each(PACK)):
        raise BadDocumentError(f"manifest {manifest.digest}", "its packs are not those of its tables")


def _is_text(value: object) -> bool:
    """JSON can say half of a surrogate pair: no document of ours, and no program's argument, can hold it."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def parse_config(raw: bytes, what: str) -> dict[str, Any]:
    """An OCI image config whose fields have the types that OCI gives them. Unknown fields stay; nobody acts on them."""
    document = parse_json(raw, what)
    if not isinstance(document, dict):
        raise BadDocumentError(what, "not an object")
    inner = document.get("config")
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise BadDocumentError(what, f"config: got {type(inner).__name__}, want an object")
    for key in ("User", "WorkingDir", "StopSignal"):
        if not _is_text(inner.get(key) or ""):
            raise BadDocumentError(what, f"{key}: want a string without NUL")
    for key in ("Env", "Entrypoint", "Cmd", "Shell"):
        words = inner.get(key) or []
        if not isinstance(words, list) or not all(_is_text(word) for word in words):
            raise BadDocumentError(what, f"{key}: want a list of strings without NUL")
    for word in inner.get("Env") or []:
        if word.startswith("="):
            raise BadDocumentError(what, f"Env: {word[:100]!r} has no name")
    for key in ("Volumes", "ExposedPorts", "Labels"):
        if not isinstance(inner.get(key) or {}, dict):
            raise BadDocumentError(what, f"{key}: want an object")
    for key in ("os", "architecture", "variant"):
        if not isinstance(document.get(key) or "", str):
            raise BadDocumentError(what, f"{key}: want a string")
    document["config"] = inner
    return document


def decode_index(layout: Layout, manifest: Manifest) -> None:
    """Decodes fs.erofs and the tables into cache/index, once both were checked. Raises what the check raises."""
    blobs = (manifest.only(EROFS), manifest.only(TABLES))
    with ExitStack() as stack:
        files = [stack.enter_context(decoded_file(layout)) for _ in blobs]
        decode_both(layout, blobs, [file.fd for file in files])
        cext.check_image_sandboxed(files[0].fd, files[1].fd)
        check_packs(files[1].fd, manifest)
        for file, blob in zip(files, blobs, strict=True):
            named_decoded(layout, blob, file)


# ---------------------------------------------------------------------- writing


def put_index(layout: Layout, data: bytes, media_type: str) -> Descriptor:
    """Compresses an index blob into the layout, durable on return. The descriptor says what it decodes to."""
    from registry import zstd

    annotations = {DECODED_DIGEST: "blake3:" + cext.blake3(data).hex(), DECODED_SIZE: str(len(data))}
    travels = _without_ids(data) if media_type == TABLES else data
    return layout.put(zstd.compress(travels), media_type, annotations)


def _without_ids(tables: bytes) -> bytes | memoryview:
    """Tables as they travel: without the object ids, a fifth of an index, if those follow from the rest."""
    short = bytearray(tables)
    try:
        cext.clear_object_ids(short)
        again = bytearray(short)
        cext.fill_object_ids(again)
    except (CorruptError, LimitError):
        return tables
    return memoryview(short) if again == tables else tables


def pack_descriptor(layout: Layout, digest: Digest) -> Descriptor:
    """The descriptor of a pack of the layout."""
    try:
        size = os.stat(layout.blob_path(digest), follow_symlinks=False).st_size
    except FileNotFoundError as error:
        raise MissingBlobError(str(digest)) from error
    return Descriptor(PACK, digest, size)


def tables_blobs(tables: bytes | memoryview) -> tuple[Descriptor, ...]:
    """The packs that (checked) tables refer to, in digest order."""
    _, count, *_ = _TABLES_HEADER.unpack_from(tables)
    rows = (_BLOB_ROW.unpack_from(tables, _TABLES_HEADER.size + row * _BLOB_ROW.size) for row in range(count))
    return tuple(Descriptor(PACK, Digest.from_bytes(digest), size) for digest, size, _, _ in rows)


def manifest_for_image(
    layout: Layout, *, config: bytes, erofs: bytes, tables: bytes, layers: Sequence[Descriptor]
) -> Manifest:
    """Stores the index blobs, config and manifest of an image whose layers and packs are in the layout. Tags nothing.

    layers: layer indexes, bottom first.
    """
    parse_config(config, "config")
    packs = tables_blobs(tables)
    for blob in (*layers, *packs):
        if not layout.has(blob):
            raise MissingBlobError(str(blob.digest))
    raw = manifest_bytes(
        config=layout.put(config, OCI_CONFIG),
        erofs=put_index(layout, erofs, EROFS),
        tables=put_index(layout, tables, TABLES),
        layers=layers,
        packs=packs,
        size=_TABLES_HEADER.unpack_from(tables)[7],
        files=_EROFS_INODES.unpack_from(erofs, 1024 + 16)[0],
    )
    manifest = Manifest.parse(raw)
    stored = layout.put(raw, manifest.media_type)
    assert stored.digest == manifest.digest
    return manifest


def put_boot_pack(layout: Layout, manifest: Manifest, head: bytes, frames: bytes) -> Manifest:
    """Stores a boot pack and the manifest of the same image with it. Tags nothing. head: compressed."""
    return attach_boot_pack(layout, manifest, store_boot_pack(layout, head, frames))


def store_boot_pack(layout: Layout, head: bytes, frames: bytes) -> Descriptor:
    """The blob, described as manifests describe it, durable on return."""
    annotations = {HEAD_DIGEST: "blake3:" + cext.blake3(head).hex(), HEAD_SIZE: str(len(head))}
    return layout.put(head + frames, BOOTPACK, annotations)


def attach_boot_pack(layout: Layout, manifest: Manifest, pack: Descriptor) -> Manifest:
    """Stores the manifest of the same image with this boot pack, whose blob is there. Tags nothing."""
    raw = with_boot_pack(manifest, pack)
    made = Manifest.parse(raw)
    layout.put(raw, made.media_type)
    return made
