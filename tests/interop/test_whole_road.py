"""An archive becomes an image, the image is mounted by the kernel, and what a reader sees is what was archived."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.trees import assert_same_tree, make_every_kind

ROOT = Path(__file__).parents[2]


def put(layout: Path, data: bytes) -> tuple[str, int]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return f"sha256:{digest}", len(data)


def descriptor(media_type: str, blob: tuple[str, int]) -> dict[str, object]:
    return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": blob[0], "size": blob[1]}


def oci_layout(layout: Path, tar: bytes, config: dict[str, object]) -> None:
    """An OCI layout with one image `t` of one plain layer."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    layer = put(layout, tar)
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer[0]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", put(layout, json.dumps(whole).encode())),
        "layers": [descriptor("layer.v1.tar", layer)],
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


@pytest.fixture
def onesec(real_machine: None, tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_a_mounted_image_is_the_tree_that_was_archived(onesec: Command, tmp_path: Path) -> None:
    tree, mounted = tmp_path / "tree", tmp_path / "mounted"
    make_every_kind(tree)
    for fifo in tree.glob("links/other/*/fifo"):  # GNU tar archives further names of a fifo as further fifos
        fifo.unlink()
    oci_layout(tmp_path / "oci", archive(tree), {})
    digest = onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app").stdout.splitlines()[-1]
    assert digest.startswith("sha256:")
    onesec("verify", "app", "--deep")
    mounted.mkdir()
    onesec("mount", "app", mounted)
    try:
        assert_same_tree(tree, mounted)
    finally:
        onesec("umount", mounted)


def test_the_same_archive_gives_the_same_digest_on_another_root(onesec: Command, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_every_kind(tree)
    oci_layout(tmp_path / "oci", archive(tree), {})
    other = Command(tmp_path / "other")
    first, second = (one("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app") for one in (onesec, other))
    assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]


def test_a_flipped_byte_in_a_pack_is_an_error_for_its_readers_alone(onesec: Command, tmp_path: Path) -> None:
    tree, mounted = tmp_path / "tree", tmp_path / "mounted"
    tree.mkdir()
    contents = {name: os.urandom(200_000) for name in "abc"}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    oci_layout(tmp_path / "oci", archive(tree), {})
    onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    pack = max((onesec.root / "images/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with open(pack, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    mounted.mkdir()
    onesec("mount", "app", mounted)
    broken = []
    try:
        for name, data in contents.items():
            try:
                assert (mounted / name).read_bytes() == data
            except OSError:
                broken.append(name)
    finally:
        onesec("umount", mounted)
    assert broken == ["a"]
    assert "error" not in onesec("verify", "app").stderr
    onesec("verify", "app", "--deep", status=1)


def test_a_container_runs_on_the_lazy_tree(onesec: Command, tool: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("dev", "proc", "sys", "etc", "bin"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/tool").write_bytes(tool.read_bytes())
    (tree / "bin/tool").chmod(0o755)
    oci_layout(tmp_path / "oci", archive(tree), {"Entrypoint": ["/bin/tool"], "Env": ["FROM_IMAGE=yes"]})
    onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    before = Path("/proc/self/mountinfo").read_text()
    done = onesec("run", "app", "exit", "7", status=7)
    assert done.stdout == ""
    assert Path("/proc/self/mountinfo").read_text() == before
