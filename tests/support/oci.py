"""OCI layouts made by hand, so that anything in them can be wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def put(layout: Path, data: bytes) -> tuple[str, int]:
    """Stores a blob; its digest and size."""
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return f"sha256:{digest}", len(data)


def descriptor(media_type: str, blob: tuple[str, int]) -> dict[str, Any]:
    return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": blob[0], "size": blob[1]}


def oci_layout(
    layout: Path,
    layer: bytes | Sequence[bytes],
    config: Mapping[str, Any],
    *,
    plain: bytes | None = None,
    media_type: str = "layer.v1.tar",
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """A layout with one image `t` of one layer, or of several, bottom first. plain: what a single layer decompresses
    to. manifest: fields to replace.
    """
    layers = [layer] if isinstance(layer, bytes) else list(layer)
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    diff_ids = ["sha256:" + hashlib.sha256(one if plain is None else plain).hexdigest() for one in layers]
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", put(layout, json.dumps(whole).encode())),
        "layers": [descriptor(media_type, put(layout, one)) for one in layers],
        **(manifest or {}),
    }
    listed = descriptor("manifest.v1+json", put(layout, json.dumps(document).encode()))
    listed["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    write_index(layout, {"schemaVersion": 2, "manifests": [listed]})


def write_index(layout: Path, document: object) -> None:
    (layout / "index.json").write_text(json.dumps(document))


def tar_of(tree: Path) -> bytes:
    """The tree as GNU tar archives it, with everything that a tar can say."""
    words = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=pax", "--sparse", "--sort=name"]
    return subprocess.run([*words, "-cf", "-", "."], cwd=tree, check=True, capture_output=True).stdout
