"""What a command changes in a build is what it changes in a plain directory: both mounts of the result show it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.oci import oci_layout, tar_of
from tests.support.oracle import assert_image
from tests.support.road import Command
from tests.support.shell import shell_tree
from tests.support.trees import assert_same_tree, snapshot

PROGRAMS = ("sh", "cat", "chmod", "chown", "cp", "ln", "ls", "mkdir", "mkfifo", "mv", "rm", "touch")

# Each line is something that a layer between overlayfs and us can get wrong.
CHANGES = """
chmod 600 /data/large
chown 5:6 /data/owned
ln /data/linked /data/another
chmod 640 /data/linked
mv /data/directory /data/moved
mv /data/moved/inner/file /data/moved/renamed
rm /data/gone
rm -r /data/emptied
mkdir /data/emptied
touch /data/emptied/new
rm -r /data/becomes-file
cp /data/large /data/becomes-file
rm /data/becomes-directory
mkdir /data/becomes-directory
mkfifo /data/fifo
ln -s /data/large /data/symlink
mv /data/a /data/c
mv /data/b /data/a
mv /data/c /data/b
cat /data/owned >> /data/appended
mkdir /data/deep /data/deep/er
cp /data/linked /data/deep/er/file
chmod 1777 /data/deep
touch /data/touched
rm /data/link-to-directory
mkdir /data/link-to-directory
chmod 700 /data/kept
chmod 600 /data/pairs/changed
mv /data/pairs/elsewhere /data/pairs-moved
rm /data/pairs/removed
rm /data/pairs/replaced
touch /data/pairs/replaced
chmod 600 /data/names/first
mv /data/names/first /data/names/renamed
cat /data/owned >> /data/written/first
mv /data/written/first /data/written/renamed
chmod 600 /data/swapped/one
chmod 640 /data/swapped/other
mv /data/swapped/one /data/swapped/aside
mv /data/swapped/other /data/swapped/one
mv /data/swapped/aside /data/swapped/other
chmod 600 /data/over/new
mv -f /data/over/new /data/over/old
mv /data/untouched/first /data/untouched/renamed
ln /data/untouched/second /data/untouched/third
"""


def plain(tree: Path) -> None:
    """The base image's tree."""
    shell_tree(tree, PROGRAMS)
    data = tree / "data"
    for name in ("directory/inner", "emptied/sub", "becomes-file", "kept"):
        (data / name).mkdir(parents=True)
    for name in ("large", "owned", "linked", "gone", "becomes-directory", "a", "b", "appended", "touched"):
        (data / name).write_bytes(name.encode() * 50_000)
    for name in (
        "directory/inner/file",
        "directory/other",
        "emptied/old",
        "emptied/sub/old",
        "becomes-file/in",
        "kept/in",
    ):
        (data / name).write_bytes(name.encode())
    os.link(data / "linked", data / "linked too")
    # Names of one inode: one is changed, the others are left alone, moved with their directory, removed and replaced.
    (data / "pairs/elsewhere").mkdir(parents=True)
    (data / "pairs/changed").write_bytes(b"of many names\n" * 1000)
    for name in ("pairs/alone", "pairs/elsewhere/inside", "pairs/removed", "pairs/replaced", "kept/pair"):
        os.link(data / "pairs/changed", data / name)
    # Names of one inode that are changed and then renamed: the name says nothing any more about which inode it was.
    for directory, names in (
        ("names", ("first", "second")),
        ("written", ("first", "second")),
        ("swapped", ("one", "one too")),
        ("swapped", ("other", "other too")),
        ("over", ("new", "new too")),
        ("over", ("old", "old too")),
        ("untouched", ("first", "second")),
    ):
        (data / directory).mkdir(exist_ok=True)
        (data / directory / names[0]).write_bytes(f"{directory} {names[0]}\n".encode() * 1000)
        os.link(data / directory / names[0], data / directory / names[1])
    (data / "link-to-directory").symlink_to("directory")


@pytest.fixture
def onesec(real_machine: None, tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_a_command_changes_the_image_as_it_changes_a_directory(onesec: Command, tmp_path: Path) -> None:
    tree, files = tmp_path / "tree", tmp_path / "files"
    plain(tree)
    oci_layout(tmp_path / "oci", tar_of(tree), {})
    (files / "sub").mkdir(parents=True)
    (files / "sub/program").write_bytes(b"#!/bin/sh\n")
    (files / "sub/program").chmod(0o755)
    (files / "text").write_bytes(b"text\n" * 20_000)
    (tmp_path / "image.py").write_text(
        "from onesec import Image\n"
        f"image = Image.from_oci('oci:{tmp_path / 'oci'}:t').copy_local({str(files)!r}, '/app').run({CHANGES!r})\n"
    )
    onesec("build", tmp_path / "image.py", "-t", "built")
    shutil.copytree(files, tree / "app")
    subprocess.run(["chroot", tree, "/bin/sh", "-ec", CHANGES], check=True)
    want = {path: seen for path, seen in snapshot(tree).items() if not path.startswith((b"etc/", b"run/"))}
    got = assert_image(onesec, "built", None, tmp_path / "m")
    # What the runtime puts into /etc and /run of a container is none of the command's business.
    got = {path: seen for path, seen in got.items() if not path.startswith((b"etc/", b"run/"))}
    assert_same_tree(got, want, ignore=("mtime_ns",))
