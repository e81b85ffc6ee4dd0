"""The command as a user calls it, and OCI images to give it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def put(layout: Path, data: bytes) -> tuple[str, int]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return f"sha256:{digest}", len(data)


def descriptor(media_type: str, blob: tuple[str, int]) -> dict[str, object]:
    return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": blob[0], "size": blob[1]}


def oci_layout(layout: Path, tars: bytes | Sequence[bytes], config: Mapping[str, Any] | None = None) -> None:
    """An OCI layout with one image `t` of plain layers, bottom first."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    layers = [put(layout, tar) for tar in ([tars] if isinstance(tars, bytes) else tars)]
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", put(layout, json.dumps(whole).encode())),
        "layers": [descriptor("layer.v1.tar", layer) for layer in layers],
    }
    listed = descriptor("manifest.v1+json", put(layout, json.dumps(manifest).encode()))
    listed["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))


def archive(tree: Path) -> bytes:
    words = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=pax", "--sparse", "--sort=name"]
    return subprocess.run([*words, "-cf", "-", "."], cwd=tree, check=True, capture_output=True).stdout


class Command:
    """`onesec` with a root and a run directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ONESEC_ROOT": str(self.root),
            "ONESEC_RUN": str(directory / "run"),
        }

    def __call__(self, *words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        call: Sequence[str] = [sys.executable, "-m", "onesec", *map(str, words)]
        done = subprocess.run(call, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return done
