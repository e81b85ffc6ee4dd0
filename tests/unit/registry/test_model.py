from __future__ import annotations

import json
from typing import Any

import pytest

from registry.errors import BadBlobError, BadDocumentError
from registry.model import (
    DEPTH_MAX,
    DOCKER_MANIFEST,
    DOCUMENT_MAX,
    EROFS,
    IMAGE,
    LAYER,
    OCI_MANIFEST,
    PACK,
    TABLES,
    Descriptor,
    Digest,
    Index,
    LayerRecord,
    Manifest,
    check_blob,
    manifest_bytes,
    parse_json,
)


def a_descriptor(content: bytes = b"x", media_type: str = PACK) -> Descriptor:
    return Descriptor(media_type, Digest.of(content), len(content))


def a_manifest(**changes: Any) -> bytes:
    config = a_descriptor(b"{}").to_json()
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [], **changes}).encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "g" * 64,
        "SHA256:" + "a" * 64,
        "sha256:" + "a" * 65,
        "sha256:../../etc/passwd" + "a" * 48,
        "sha256:" + "a" * 63 + "\n",
        "sha512:" + "a" * 128,
        "sha256:" + "A" * 64,
        " sha256:" + "a" * 64,
        "a" * 64,
    ],
)
def test_a_digest_that_breaks_the_grammar_cannot_exist(text: str) -> None:
    with pytest.raises(ValueError):
        Digest(text)
    record = {"mediaType": PACK, "digest": text, "size": 1}
    with pytest.raises(BadDocumentError):
        Descriptor.from_json(record)


def test_a_digest_and_its_raw_bytes_are_the_same_thing() -> None:
    digest = Digest.of(b"hello")
    assert Digest.from_bytes(digest.raw) == digest
    assert str(digest) == f"sha256:{digest.hex}"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"\xff",
        b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1),
        b"[" * 100_000,
        b'{"n":' + b"9" * 10_000 + b"}",
        b'"' + b"x" * DOCUMENT_MAX + b'"',
    ],
)
def test_json_that_is_broken_deep_large_or_ambiguous_is_refused(raw: bytes) -> None:
    with pytest.raises(BadDocumentError):
        parse_json(raw, "test")


def test_brackets_inside_strings_are_not_depth() -> None:
    assert parse_json(b'["' + b"[" * 1000 + b'\\"]"]', "test") == ["[" * 1000 + '"]']


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": 1},
        {"schemaVersion": True},
        {"mediaType": "text/html"},
        {"manifests": []},
        {"fsLayers": []},
        {"layers": {}},
        {"layers": [1]},
        {"layers": [{"mediaType": PACK, "digest": "sha256:" + "a" * 64, "size": -1}]},
        {"layers": [{"mediaType": PACK, "digest": "sha256:" + "a" * 64, "size": 1.5}]},
        {"layers": [{"mediaType": PACK, "digest": "sha256:" + "a" * 64, "size": True}]},
        {"layers": [{"mediaType": PACK, "digest": "sha256:" + "a" * 64, "size": 1 << 64}]},
        {"layers": [{"mediaType": "pack\n", "digest": "sha256:" + "a" * 64, "size": 1}]},
        {"config": None},
        {"annotations": {"a": 1}},
        {"artifactType": []},
    ],
)
def test_a_manifest_with_a_field_that_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadDocumentError):
        Manifest.parse(a_manifest(**changes))


def test_docker_manifests_are_read_and_their_bytes_kept() -> None:
    raw = a_manifest(mediaType=DOCKER_MANIFEST)
    manifest = Manifest.parse(raw)
    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)


def test_a_document_that_is_index_and_manifest_at_once_is_refused() -> None:
    with pytest.raises(BadDocumentError, match="beside"):
        Index.parse(json.dumps({"schemaVersion": 2, "manifests": [], "layers": []}).encode())


def test_our_manifest_is_ordered_as_the_format_says_and_deterministic() -> None:
    packs = [a_descriptor(bytes([row])) for row in range(5)]
    layers = [a_descriptor(b"top", LAYER), a_descriptor(b"bottom", LAYER)]
    made = [
        manifest_bytes(
            config=a_descriptor(b"{}"),
            erofs=a_descriptor(b"e", EROFS),
            tables=a_descriptor(b"t", TABLES),
            layers=layers,
            packs=given,
            size=7,
            files=3,
        )
        for given in (packs, [*packs[::-1], packs[2]])
    ]
    assert made[0] == made[1]
    manifest = Manifest.parse(made[0]).require_image()
    assert (manifest.artifact_type, manifest.media_type) == (IMAGE, OCI_MANIFEST)
    assert manifest.layers[2:4] == tuple(layers)
    assert list(manifest.each(PACK)) == sorted(packs, key=lambda pack: pack.digest)


@pytest.mark.parametrize("notes", [{}, {"vnd.onesec.format": "2"}])
def test_an_image_of_another_format_is_refused(notes: dict[str, str]) -> None:
    with pytest.raises(BadDocumentError, match=r"vnd\.onesec\.format"):
        Manifest.parse(a_manifest(artifactType=IMAGE, annotations=notes)).require_image()


@pytest.mark.parametrize(
    "notes", [("blake3:" + "0" * 63, "1"), ("blake3:" + "0" * 64, "-1"), ("blake3:" + "0" * 64, "²")]
)
def test_broken_decoded_annotations_are_refused(notes: tuple[str, str]) -> None:
    keys = ("vnd.onesec.decoded.digest", "vnd.onesec.decoded.size")
    with pytest.raises(BadDocumentError):
        _ = Descriptor(EROFS, Digest.of(b""), 0, dict(zip(keys, notes, strict=True))).decoded


@pytest.mark.parametrize("size", ["0", "-1", "²", "101", "1" * 30, f"{1:019}{9:030}", f"{1:019}{9:05000}"])
def test_a_boot_pack_s_head_lies_within_it(size: str) -> None:
    notes = {"vnd.onesec.bootpack.head.digest": "blake3:" + "0" * 64, "vnd.onesec.bootpack.head.size": size}
    with pytest.raises(BadDocumentError):
        _ = Descriptor(PACK, Digest.of(b""), 100, notes).head


def test_a_layer_record_survives_its_json() -> None:
    record = LayerRecord(a_descriptor(b"index", LAYER), (a_descriptor(b"one"), a_descriptor(b"two")))
    assert LayerRecord.parse(record.dump()) == record


def test_claimed_identity_is_computed_not_believed() -> None:
    with pytest.raises(BadBlobError, match="content"):
        check_blob(b"y", a_descriptor(b"x"))
    with pytest.raises(BadBlobError, match="size"):
        check_blob(b"xx", a_descriptor(b"x"))
