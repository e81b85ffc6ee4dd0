"""Images of other tools become native ones: layer by layer, each read once as a stream and verified on the way.

`oci:` directories are read where they are. Everything else that skopeo can name is first copied to a directory on the
layout's own file system, since skopeo can't hand over one layer at a time; the copy is removed when the import ends.

A blob counts only if its SHA-256 is its digest and, decompressed, the diff_id that the config (itself pinned by the
manifest) gives its layer. Layers are remembered by diff_id, so that an image's base is converted once.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cext.errors import LimitError, UsageError
from imagebuilder.bootpack import with_first_boot_pack
from imagebuilder.errors import BadArchiveError, UnknownSourceError
from imagebuilder.layer import (
    LayerWriter,
    Workshop,
    assemble_image,
)
from imagebuilder.progress import Progress, Silent
from imagebuilder.streams import Caps, Plain, Source
from imagebuilder.unpack import read_layer
from lazyfs.bootcheck import check_boot_pack
from registry import skopeo
from registry.adopt import adopt_image
from registry.errors import BadBlobError, BadDocumentError, BadReferenceError, MissingBlobError, MissingImageError
from registry.image import parse_config
from registry.layout import LOCAL_DOMAIN, Layout, total_size
from registry.model import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCUMENT_MAX,
    IMAGE,
    LAYER,
    OCI_INDEX,
    OCI_MANIFEST,
    PACK,
    REF_NAME,
    Descriptor,
    Digest,
    Index,
    LayerRecord,
    Manifest,
    check_blob,
)
from registry.reference import Reference

_STEP_VERSION = 1  # of what a layer is turned into; part of its key in cache/steps
_NESTED_MAX = 4  # indexes inside indexes
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Imported:
    """layers: of the source; known: those that were converted before."""

    name: str
    digest: Digest
    domain: str
    layers: int
    known: int


def import_image(
    layout: Layout,
    source: str,
    *,
    reference: Reference | None = None,
    progress: Progress | None = None,
    caps: Caps | None = None,
    boot_pack: bool = True,
) -> Imported:
    """source: `transport:details`. reference: the name to give; without one it comes from the source.

    boot_pack: whether the image gets a guessed one.
    """
    progress = progress or Silent()
    reference = reference or default_name(*_split(source))
    if reference.digest is not None:
        raise UsageError(f"tag {reference}: want a name without a digest")
    domain = domain_of(*_split(source))
    with layout.writing(), _opened(layout, source, progress) as foreign:
        if foreign.manifest.artifact_type == IMAGE:
            layers, known = _adopt(layout, foreign, source, progress)
            layout.tag(reference, foreign.manifest, domain=domain)
            return Imported(reference.name, foreign.manifest.digest, domain, len(layers), known)
        with Workshop(layout) as workshop:
            done = _convert(workshop, foreign, source, domain, progress, caps)
            progress.stage(f"writing the index of {reference.name}")

            def finish(made: Manifest, tree: bytes) -> Manifest:
                return with_first_boot_pack(workshop, made, tree, done.config, progress)

            manifest = assemble_image(layout, done.layers, done.config, finish=finish if boot_pack else None)
        layout.tag(reference, manifest, domain=domain)
    return Imported(reference.name, manifest.digest, domain, len(done.layers), done.known)


def _adopt(layout: Layout, foreign: _Foreign, source: str, progress: Progress) -> tuple[tuple[Descriptor, ...], int]:
    """An image of ours, copied by another tool, keeps its digest. Returns its layer indexes and how many were here."""
    manifest = foreign.manifest.require_image()
    layers = manifest.each(LAYER)
    known = sum(layout.has(layer) for layer in layers)
    progress.stage(f"copying {source}", total_size(blob for blob in manifest.blobs if not layout.has(blob)))
    adopt_image(layout, manifest, lambda blob: _open_blob(foreign.path, blob), progress.advance)
    check_boot_pack(layout, manifest)  # before it has a name here
    return layers, known


def domain_of(transport: str, details: str) -> str:
    """The trust domain of what comes from there: registry and first path component, or local."""
    if transport != "docker":
        return LOCAL_DOMAIN
    name = _docker_name(details)
    if name.host is None:
        first, slash, _ = name.path.partition("/")
        return f"docker.io/{first if slash else 'library'}"
    return f"{name.host}/{name.path.split('/')[0]}"


def default_name(transport: str, details: str) -> Reference:
    """The last component of a docker name, or of the directory, with the tag where there is one."""
    try:
        if transport in ("docker", "docker-daemon", "containers-storage"):
            name = _docker_name(details)
            return Reference.parse(f"{name.path.rpartition('/')[2]}:{name.tag or 'latest'}")
        path, _, tag = details.partition(":")
        stem = os.path.basename(path.rstrip("/")).removesuffix(".tar")
        return Reference.parse(f"{stem}:{tag}" if tag and "/" not in tag else stem)
    except BadReferenceError as error:
        raise UsageError(
            f"source {transport}:{details}: gives no name for the image", hint="give one with -t"
        ) from error


def _docker_name(details: str) -> Reference:
    return Reference.parse(details.removeprefix("//"))


# ---------------------------------------------------------------------- where blobs are


@dataclass(frozen=True, slots=True)
class _Foreign:
    """manifest: of one image. path: where the blob of a digest is."""

    manifest: Manifest
    path: Callable[[Digest], str]


def _open_blob(path: Callable[[Digest], str], blob: Descriptor) -> int:
    try:
        return os.open(path(blob.digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise MissingBlobError(str(blob.digest)) from error


def _read_blob(path: Callable[[Digest], str], blob: Descriptor) -> bytes:
    if blob.size > DOCUMENT_MAX:
        raise BadBlobError(str(blob.digest), f"size: got {blob.size}, want at most {DOCUMENT_MAX}")
    with open(_open_blob(path, blob), "rb") as file:
        return check_blob(file.read(blob.size + 1), blob)


def _read_document(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(DOCUMENT_MAX + 1)


def _from_directory(directory: str) -> _Foreign:
    """What skopeo's `dir:` writes."""
    manifest = Manifest.parse(_read_document(f"{directory}/manifest.json"))
    return _Foreign(manifest, lambda digest: f"{directory}/{digest.hex}")


def _from_oci(details: str) -> _Foreign:
    """An OCI layout directory, `DIR[:NAME]`. Nothing in it is written to."""
    directory, _, name = details.partition(":")

    def path(digest: Digest) -> str:
        return f"{directory}/blobs/sha256/{digest.hex}"

    entries = Index.parse(_read_document(f"{directory}/index.json"), f"{directory}/index.json").manifests
    if name:
        entries = tuple(one for one in entries if one.annotations.get(REF_NAME) == name)
    if not entries:
        raise MissingImageError(details)
    for _ in range(_NESTED_MAX):
        chosen = choose(entries, details)
        raw = _read_blob(path, chosen)
        if chosen.media_type not in (OCI_INDEX, DOCKER_INDEX):
            if chosen.media_type not in (OCI_MANIFEST, DOCKER_MANIFEST):
                raise BadDocumentError(f"{chosen.digest}", f"got {chosen.media_type}, want an image manifest")
            return _Foreign(Manifest.parse(raw), path)
        entries = Index.parse(raw, f"index {chosen.digest}").manifests
    raise BadDocumentError(details, f"more than {_NESTED_MAX} indexes inside each other")


def choose(entries: tuple[Descriptor, ...], what: str) -> Descriptor:
    """The one for this machine; one without a platform serves everybody."""
    want = _ARCHITECTURES.get(platform.machine(), platform.machine())
    fitting = [one for one in entries if one.platform is None or one.platform[:2] == ("linux", want)]
    exact = [one for one in fitting if one.platform is not None] or fitting
    if not exact:
        raise BadDocumentError(what, f"has no image for linux/{want}")
    if len({one.digest for one in exact}) > 1 and all(one.platform is None for one in exact):
        raise BadDocumentError(what, "has several images; say which")
    return exact[0]


# ---------------------------------------------------------------------- converting


@dataclass(frozen=True, slots=True)
class Converted:
    """layers: bottom first. known: how many of them were converted before. config: raw JSON."""

    layers: tuple[LayerRecord, ...]
    known: int
    config: bytes
    domain: str


def convert_source(
    workshop: Workshop, source: str, *, progress: Progress | None = None, caps: Caps | None = None
) -> Converted:
    """The layers of any source, without an image of them. Call it inside `Layout.writing`."""
    progress = progress or Silent()
    domain = domain_of(*_split(source))
    with _opened(workshop.layout, source, progress) as foreign:
        if foreign.manifest.artifact_type != IMAGE:
            return _convert(workshop, foreign, source, domain, progress, caps)
        layers, known = _adopt(workshop.layout, foreign, source, progress)
        packs = foreign.manifest.each(PACK)  # which of them a layer needs is in no document
        records = tuple(LayerRecord(layer, packs) for layer in layers)
        return Converted(records, known, _read_blob(foreign.path, foreign.manifest.config), domain)


@contextmanager
def _opened(layout: Layout, source: str, progress: Progress) -> Iterator[_Foreign]:
    """A source's manifest and blobs, for as long as the block lasts."""
    transport, details = _split(source)
    if transport == "oci":
        yield _from_oci(details)
        return
    with layout.staging() as staging:
        progress.stage(f"copying {source}")
        skopeo.copy_to_directory(source, staging.path)
        yield _from_directory(staging.path)


def _split(source: str) -> tuple[str, str]:
    transport, colon, details = source.partition(":")
    if not colon or not details:
        raise UsageError(
            f"source {source!r}: want TRANSPORT:DETAILS", hint="for example oci:DIR:TAG or docker://debian:12"
        )
    if transport != "oci" and transport not in skopeo.TRANSPORTS:
        raise UnknownSourceError(
            f"source {source!r}: unknown transport {transport!r}", hint="man containers-transports"
        )
    return transport, details


def _convert(
    workshop: Workshop, foreign: _Foreign, name: str, domain: str, progress: Progress, caps: Caps | None
) -> Converted:
    layout = workshop.layout
    config = _read_blob(foreign.path, foreign.manifest.config)
    blobs = foreign.manifest.layers
    diff_ids = _diff_ids(parse_config(config, "config of the source"), len(blobs))
    keys = [f"diff-{diff_id.hex}-{_STEP_VERSION}" for diff_id in diff_ids]
    known = [layout.recall(key) for key in keys]
    progress.stage(
        f"importing {name}: {len(blobs)} layers, {sum(record is not None for record in known)} known",
        sum(blob.size for blob, record in zip(blobs, known, strict=True) if record is None),
    )
    records: list[LayerRecord] = []
    for blob, diff_id, key in zip(blobs, diff_ids, keys, strict=True):
        record = layout.recall(key)
        if record is None:
            record = _layer(workshop, foreign, blob, diff_id, progress, caps)
            layout.remember(key, record)
        records.append(record)
    return Converted(tuple(records), sum(record is not None for record in known), config, domain)


def _diff_ids(config: dict[str, Any], layers: int) -> list[Digest]:
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or len(found) != layers:
        count = len(found) if isinstance(found, list) else "no"
        raise BadDocumentError("config of the source", f"got {count} diff_ids for {layers} layers")
    try:
        return [Digest(text) for text in found]
    except ValueError as error:
        raise BadDocumentError("config of the source", str(error)) from error


def _layer(
    workshop: Workshop, foreign: _Foreign, blob: Descriptor, diff_id: Digest, progress: Progress, caps: Caps | None
) -> LayerRecord:
    def fill(layer: LayerWriter) -> None:
        with open(_open_blob(foreign.path, blob), "rb", buffering=0) as file:
            source = Source(file, progress.advance)
            plain = Plain(source, caps)
            read_layer(layer, plain, progress)
            # Digests come last because they need the whole stream; nothing has been named or remembered before.
            if (got := plain.digest()) != diff_id:
                raise BadBlobError(str(blob.digest), f"decompressed: got {got}, want the diff_id {diff_id}")
            if (got := source.digest()) != blob.digest or source.size != blob.size:
                raise BadBlobError(str(blob.digest), f"content: got {got} of {source.size} bytes")

    try:
        return workshop.make(fill)
    except (BadArchiveError, LimitError) as error:
        raise type(error)(f"layer {blob.digest}: {error}") from error
