"""Digests, descriptors and the documents of OCI images.

A document keeps the bytes it was parsed from, because those bytes are what was hashed. Parsing is bounded in size,
depth and count before anything is believed, and a Digest exists only if its text passed the strict grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cext
from cext.record import EMPTY, Record
from registry.errors import BadBlobError, BadDocumentError

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

IMAGE = "application/vnd.onesec.image.v1+json"  # artifactType of our manifests
PACK = "application/vnd.onesec.pack.v1+zstd"
LAYER = "application/vnd.onesec.layer.v1+zstd"
EROFS = "application/vnd.onesec.index.erofs.v1+zstd"
TABLES = "application/vnd.onesec.index.tables.v1+zstd"

BOOTPACK = "application/vnd.onesec.bootpack.v1"

HEAD_DIGEST = "vnd.onesec.bootpack.head.digest"
HEAD_SIZE = "vnd.onesec.bootpack.head.size"
_AT_ONCE = (EROFS, TABLES, LAYER, BOOTPACK)  # what a mount needs before its first read

DECODED_DIGEST = "vnd.onesec.decoded.digest"
DECODED_SIZE = "vnd.onesec.decoded.size"
FORMAT = "vnd.onesec.format"
IMAGE_SIZE = "vnd.onesec.size"
IMAGE_FILES = "vnd.onesec.files"
REF_NAME = "org.opencontainers.image.ref.name"
DOMAIN = "vnd.onesec.domain"
REMOTE = "vnd.onesec.remote"  # in the layout's index.json: HOST/PATH, the repository that has all of the image's blobs

DOCUMENT_MAX = 8 << 20  # bytes of a manifest, index or config; registries take 4 MiB
DEPTH_MAX = 32
DESCRIPTORS_MAX = 65536  # 4 TiB of packs
BLOB_MAX = (1 << 63) - 1

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DECODED = re.compile(r"blake3:([0-9a-f]{64})")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
# Possessive: nothing to go back to, or a string of 5 MiB costs 600 MiB.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")


class Digest(Record):
    """`sha256:<64 lower-case hex digits>`; any other text raises ValueError, so that holding one means that it was
    checked.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not _DIGEST.fullmatch(self.text):
            raise ValueError(f"digest {str(self.text)[:100]!r}: want sha256: and 64 lower-case hex digits")

    @classmethod
    def of(cls, data: bytes) -> Digest:
        return cls.from_bytes(cext.sha256(data))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Digest:
        return cls("sha256:" + raw.hex())

    @property
    def hex(self) -> str:
        return self.text[7:]

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: Digest) -> bool:
        return self.text < other.text


def parse_json(raw: bytes, what: str) -> Any:
    """A JSON document from outside. Refuses what is too large, too deep, has a key twice or a number that is none."""
    if len(raw) > DOCUMENT_MAX:
        raise BadDocumentError(what, f"got {len(raw)} bytes, want at most {DOCUMENT_MAX}")
    depth = deepest = 0
    for run in _BRACKETS.finditer(_STRING.sub(b"", raw)):
        depth += len(run[0]) if run[0][0] in b"[{" else -len(run[0])
        deepest = max(deepest, depth)
    if deepest > DEPTH_MAX:
        raise BadDocumentError(what, f"nested {deepest} deep, want at most {DEPTH_MAX}")
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise BadDocumentError(what, f"not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def dump_json(value: Any) -> bytes:
    """The one way in which we write documents, so that equal documents have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Descriptor(Record):
    """size: bytes of the blob. platform: (os, architecture, variant), only in an index."""

    unhashed = ("annotations",)

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = EMPTY
    platform: tuple[str, str, str] | None = None
    artifact_type: str | None = None

    @classmethod
    def from_json(cls, value: Any, what: str = "descriptor") -> Descriptor:
        record = _typed(value, dict, what)
        media_type = _typed(record.get("mediaType"), str, f"{what}: mediaType")
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise BadDocumentError(what, f"mediaType {media_type[:100]!r} is not a media type")
        try:
            digest = Digest(_typed(record.get("digest"), str, f"{what}: digest"))
        except ValueError as error:
            raise BadDocumentError(what, str(error)) from error
        size = _typed(record.get("size"), int, f"{what}: size")
        if not 0 <= size <= BLOB_MAX:
            raise BadDocumentError(what, f"size: got {size}, want 0 to {BLOB_MAX}")
        platform = None
        if (given := record.get("platform")) is not None:
            _typed(given, dict, f"{what}: platform")
            names = [_typed(given.get(key, ""), str, f"{what}: {key}") for key in ("os", "architecture", "variant")]
            platform = (names[0], names[1], names[2])
        artifact = record.get("artifactType")
        if artifact is not None:
            _typed(artifact, str, f"{what}: artifactType")
        return cls(media_type, digest, size, _annotations(record, what), platform, artifact)

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type is not None:
            record["artifactType"] = self.artifact_type
        if self.annotations:
            record["annotations"] = dict(self.annotations)
        if self.platform is not None:
            record["platform"] = {
                key: name for key, name in zip(("os", "architecture", "variant"), self.platform, strict=True) if name
            }
        return record

    @property
    def decoded(self) -> tuple[bytes, int]:
        """BLAKE3 and size of an index blob once decoded. Raises BadDocumentError where the annotations don't say."""
        match = _DECODED.fullmatch(self.annotations.get(DECODED_DIGEST, ""))
        size = self.annotations.get(DECODED_SIZE, "")
        if match is None or not size.isascii() or not size.isdigit() or len(size) > 19:
            raise BadDocumentError(
                f"descriptor of {self.digest}", f"annotations {DECODED_DIGEST} and {DECODED_SIZE} are missing or broken"
            )
        return bytes.fromhex(match[1]), int(size)

    @property
    def head(self) -> tuple[bytes, int]:
        """BLAKE3 and size of the head of a boot pack. Raises BadDocumentError where the annotations don't say."""
        match = _DECODED.fullmatch(self.annotations.get(HEAD_DIGEST, ""))
        size = self.annotations.get(HEAD_SIZE, "")
        known = size.isascii() and size.isdigit() and len(size) <= 19
        if match is None or not known or not 0 < int(size) <= self.size:
            raise BadDocumentError(
                f"descriptor of {self.digest}", f"annotations {HEAD_DIGEST} and {HEAD_SIZE} are missing or broken"
            )
        return bytes.fromhex(match[1]), int(size)


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadDocumentError(what, f"got {type(value).__name__}, want {kind.__name__}")
    return value


def _annotations(record: dict[str, Any], what: str) -> dict[str, str]:
    found = record.get("annotations")
    if found is None:
        return {}
    for key, value in _typed(found, dict, f"{what}: annotations").items():
        _typed(value, str, f"{what}: annotation {key[:100]!r}")
    return dict(found)


def _document(raw: bytes, what: str, key: str, media_types: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    record = _typed(parse_json(raw, what), dict, what)
    if record.get("schemaVersion") != 2:
        raise BadDocumentError(what, f"schemaVersion: got {str(record.get('schemaVersion'))[:20]}, want 2")
    media_type = record.get("mediaType", media_types[0])
    if media_type not in media_types:
        raise BadDocumentError(what, f"mediaType: got {str(media_type)[:100]!r}, want {media_types[0]}")
    # A document that can be read as a manifest and as an index is an attack on whoever reads it the other way
    # (CVE-2021-41190).
    if other := {"layers", "manifests", "fsLayers", "config"} & record.keys() - {
        key,
        "config" if key == "layers" else key,
    }:
        raise BadDocumentError(what, f"has {min(other)!r} beside {key!r}")
    found = _typed(record.get(key), list, f"{what}: {key}")
    if len(found) > DESCRIPTORS_MAX:
        raise BadDocumentError(what, f"{key}: got {len(found)} descriptors, want at most {DESCRIPTORS_MAX}")
    return record, found


class Manifest(Record):
    """raw: the bytes that digest is of. layers: in the order of the document."""

    unhashed = ("annotations",)
    unshown = ("raw",)

    raw: bytes
    digest: Digest
    media_type: str
    artifact_type: str | None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        digest = Digest.of(raw)
        what = f"manifest {digest}"
        record, layers = _document(raw, what, "layers", (OCI_MANIFEST, DOCKER_MANIFEST))
        artifact = record.get("artifactType")
        return cls(
            raw,
            digest,
            record.get("mediaType", OCI_MANIFEST),
            None if artifact is None else _typed(artifact, str, f"{what}: artifactType"),
            Descriptor.from_json(record.get("config"), f"{what}: config"),
            tuple(Descriptor.from_json(layer, f"{what}: layer {row}") for row, layer in enumerate(layers)),
            _annotations(record, what),
        )

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.raw), artifact_type=self.artifact_type)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything the manifest needs beside itself."""
        return (self.config, *self.layers)

    @property
    def lazy(self) -> tuple[Descriptor, ...]:
        """The blobs that may stay at a registry until they are read: packs, and whatever is neither index nor boot
        pack.
        """
        return tuple(layer for layer in self.layers if not layer.media_type.startswith(_AT_ONCE))

    def only(self, media_type: str) -> Descriptor:
        found = [layer for layer in self.layers if layer.media_type == media_type]
        if len(found) != 1:
            raise BadDocumentError(f"manifest {self.digest}", f"got {len(found)} layers of {media_type}, want 1")
        return found[0]

    def each(self, media_type: str) -> tuple[Descriptor, ...]:
        return tuple(layer for layer in self.layers if layer.media_type == media_type)

    @property
    def boot_pack(self) -> Descriptor | None:
        """The boot pack, if the image has one. Raises BadDocumentError for two."""
        found = self.each(BOOTPACK)
        return self.only(BOOTPACK) if found else None

    def require_image(self) -> Manifest:
        """This manifest, if it is one of docs/format.md §7 of the format that we read."""
        what = f"manifest {self.digest}"
        if self.artifact_type != IMAGE:
            raise BadDocumentError(what, f"artifactType: got {(self.artifact_type or 'none')[:100]}, want {IMAGE}")
        if self.annotations.get(FORMAT) != "1":
            raise BadDocumentError(what, f"{FORMAT}: got {self.annotations.get(FORMAT, 'none')[:20]}, want 1")
        return self


class Index(Record):
    """raw: the bytes that were parsed. manifests: in the order of the document."""

    unshown = ("raw",)

    raw: bytes
    manifests: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, raw: bytes, what: str = "index") -> Index:
        _, manifests = _document(raw, what, "manifests", (OCI_INDEX, DOCKER_INDEX))
        return cls(
            raw, tuple(Descriptor.from_json(entry, f"{what}: manifest {row}") for row, entry in enumerate(manifests))
        )

    @staticmethod
    def dump(manifests: Sequence[Descriptor]) -> bytes:
        return dump_json(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in manifests]}
        )


class LayerRecord(Record):
    """What one build step or one imported layer became.

    index: its layer index. packs: every pack that any of its chunks lives in, those that were known before included.
    """

    index: Descriptor
    packs: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, raw: bytes, what: str = "layer record") -> LayerRecord:
        record = _typed(parse_json(raw, what), dict, what)
        packs = _typed(record.get("packs"), list, f"{what}: packs")
        return cls(
            Descriptor.from_json(record.get("index"), f"{what}: index"),
            tuple(Descriptor.from_json(pack, f"{what}: pack {row}") for row, pack in enumerate(packs)),
        )

    def dump(self) -> bytes:
        return dump_json({"index": self.index.to_json(), "packs": [pack.to_json() for pack in self.packs]})

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        return (self.index, *self.packs)


def check_blob(data: bytes, descriptor: Descriptor) -> bytes:
    """data, if it is what the descriptor says."""
    if len(data) != descriptor.size:
        raise BadBlobError(str(descriptor.digest), f"size: got {len(data)}, want {descriptor.size}")
    if (got := Digest.of(data)) != descriptor.digest:
        raise BadBlobError(str(descriptor.digest), f"content: got {got}")
    return data


def with_boot_pack(manifest: Manifest, pack: Descriptor) -> bytes:
    """The same image with another boot pack, right behind the tables."""
    document = parse_json(manifest.raw, f"manifest {manifest.digest}")
    kept = [blob.to_json() for blob in manifest.layers if blob.media_type != BOOTPACK]
    document["layers"] = [*kept[:2], pack.to_json(), *kept[2:]]
    return dump_json(document)


def manifest_bytes(
    *,
    config: Descriptor,
    erofs: Descriptor,
    tables: Descriptor,
    layers: Sequence[Descriptor],
    packs: Sequence[Descriptor],
    size: int,
    files: int,
) -> bytes:
    """The manifest of an image, docs/format.md §7. layers: bottom first; packs: any order, they are sorted here."""
    ordered = sorted({pack.digest: pack for pack in packs}.values(), key=lambda pack: pack.digest)
    return dump_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": IMAGE,
            "config": config.to_json(),
            "layers": [blob.to_json() for blob in (erofs, tables, *layers, *ordered)],
            "annotations": {FORMAT: "1", IMAGE_SIZE: str(size), IMAGE_FILES: str(files)},
        }
    )
