"""An archive becomes an image, the image is mounted both ways, and what a reader sees is what was archived."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.oci import oci_layout, tar_of
from tests.support.oracle import assert_image
from tests.support.road import Command
from tests.support.trees import make_every_kind


@pytest.fixture
def onesec(real_machine: None, tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_a_mounted_image_is_the_tree_that_was_archived(onesec: Command, tmp_path: Path) -> None:
    tree, mounted = tmp_path / "tree", tmp_path / "mounted"
    make_every_kind(tree)
    for fifo in tree.glob("links/other/*/fifo"):  # GNU tar archives further names of a fifo as further fifos
        fifo.unlink()
    oci_layout(tmp_path / "oci", tar_of(tree), {})
    digest = onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app").out.splitlines()[-1]
    assert digest.startswith("sha256:")
    onesec("verify", "app", "--deep")
    assert_image(onesec, "app", tree, mounted)


def test_the_same_archive_gives_the_same_digest_on_another_root(onesec: Command, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_every_kind(tree)
    oci_layout(tmp_path / "oci", tar_of(tree), {})
    other = Command(tmp_path / "other")
    first, second = (one("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app") for one in (onesec, other))
    assert first.out.splitlines()[-1] == second.out.splitlines()[-1]


def test_a_flipped_byte_in_a_pack_is_an_error_for_its_readers_alone(onesec: Command, tmp_path: Path) -> None:
    tree, mounted = tmp_path / "tree", tmp_path / "mounted"
    tree.mkdir()
    contents = {name: os.urandom(200_000) for name in "abc"}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    oci_layout(tmp_path / "oci", tar_of(tree), {})
    onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    assert_image(onesec, "app", tree, mounted)
    pack = max((onesec.root / "images/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with open(pack, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
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
    assert "error" not in onesec("verify", "app").err
    onesec("verify", "app", "--deep", status=1)


def test_a_container_runs_on_the_lazy_tree(onesec: Command, tool: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("dev", "proc", "sys", "etc", "bin"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/tool").write_bytes(tool.read_bytes())
    (tree / "bin/tool").chmod(0o755)
    oci_layout(tmp_path / "oci", tar_of(tree), {"Entrypoint": ["/bin/tool"], "Env": ["FROM_IMAGE=yes"]})
    onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    assert_image(onesec, "app", tree, tmp_path / "mounted")
    done = onesec("run", "app", "exit", "7", status=7)
    assert done.out == ""
    assert (
        str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    )  # others on the machine may mount what they like
