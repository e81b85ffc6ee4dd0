"""A directory tree as an image that every other tool takes: an OCI layout."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Literal

from benchmarks.macro.scenario import ScenarioError

_OCI = "application/vnd.oci.image"


Compression = Literal["none", "gzip", "zstd", "zstd:chunked"]
_COMPRESSORS: dict[Compression, tuple[str, str]] = {
    "none": ("cat", ""),
    "gzip": ("gzip -6", "+gzip"),  # what docker and skopeo do by themselves
    "zstd": ("zstd -q -3 -T0", "+zstd"),
    "zstd:chunked": ("cat", ""),  # skopeo makes it, on the way to a registry
}


def archive(tree: Path, layout: Path, name: str, compression: Compression = "none") -> None:
    """Makes an OCI layout with one image of one layer: the tree."""
    directory = layout / "blobs/sha256"
    directory.mkdir(parents=True)
    command, suffix = _COMPRESSORS[compression]
    plain = hashlib.sha256()
    with open(layout / "layer", "wb") as file:
        packer = subprocess.Popen(["tar", "--numeric-owner", "-C", str(tree), "-cf", "-", "."], stdout=subprocess.PIPE)
        compressor = subprocess.Popen(command.split(), stdin=subprocess.PIPE, stdout=file)
        assert packer.stdout is not None
        assert compressor.stdin is not None
        with packer.stdout, compressor.stdin:
            while block := packer.stdout.read(1 << 20):
                plain.update(block)
                compressor.stdin.write(block)
    if packer.wait() or compressor.wait():
        raise ScenarioError(f"{tree}: tar or {command} failed")
    with open(layout / "layer", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = (layout / "layer").stat().st_size
    (layout / "layer").rename(directory / digest)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{plain.hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _put(directory, json.dumps(config).encode(), "config.v1+json"),
        "layers": [{"mediaType": f"{_OCI}.layer.v1.tar{suffix}", "digest": f"sha256:{digest}", "size": size}],
    }
    listed = {
        **_put(directory, json.dumps(manifest).encode(), "manifest.v1+json"),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _put(directory: Path, data: bytes, kind: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (directory / digest).write_bytes(data)
    return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}
