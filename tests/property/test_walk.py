"""The walk in C against the walk in Python: the same tree, the same bytes."""

from __future__ import annotations

import os
import random
import socket
import stat
from pathlib import Path

import pytest

import cext
from cext.errors import LimitError
from imagebuilder.layer import LayerWriter
from imagebuilder.trees import Walk
from lazyfs.index.layer import decode_layer
from tests.support.trees import make_every_kind


def slow(root: Path, place: Path) -> tuple[bytes, list[str], list[bytes]]:
    notes: list[str] = []
    place.mkdir()
    packs = os.open(place, os.O_RDONLY)
    fd = os.open(root, os.O_RDONLY)
    try:
        with cext.Ingest(packs) as ingest:
            writer = LayerWriter(ingest)
            Walk(writer, notes.append).directory(fd, b"")
            index = writer.encode()
            return index, notes, [pack.digest for pack in ingest.finish().packs]
    finally:
        os.close(fd)
        os.close(packs)


def fast(root: Path, place: Path) -> tuple[bytes, list[str], list[bytes]]:
    place.mkdir()
    packs = os.open(place, os.O_RDONLY)
    fd = os.open(root, os.O_RDONLY)
    try:
        with cext.Ingest(packs) as ingest:
            index, notes = ingest.add_tree(fd)
            return index, notes, [pack.digest for pack in ingest.finish().packs]
    finally:
        os.close(fd)
        os.close(packs)


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_with_everything_gives_the_same_index_and_packs(tmp_path: Path, seed: int) -> None:
    make_every_kind(tmp_path / "tree", seed, big=300, deep=30)
    assert fast(tmp_path / "tree", tmp_path / "fast") == slow(tmp_path / "tree", tmp_path / "slow")


NAMES = (b"a", b"a.c", b"a-", b"b", b"a0", b"\xff", "ü".encode(), b"B")  # on both sides of a slash


def make_random(root: Path, chance: random.Random) -> None:
    """Few names, so that paths sort around their slashes, and many links."""
    top = os.fsencode(root)
    os.mkdir(top)
    directories = [top]
    files: list[bytes] = []
    for _ in range(chance.randrange(60)):
        path = os.path.join(chance.choice(directories), chance.choice(NAMES))
        if os.path.lexists(path):
            continue
        kind = chance.randrange(8)
        if kind < 3:
            os.mkdir(path)
            directories.append(path)
        elif kind < 6 and files:
            os.link(chance.choice(files), path, follow_symlinks=False)
        elif kind == 6:
            os.symlink(chance.choice(NAMES), path)
            files.append(path)
        else:
            with open(path, "wb") as file:
                file.write(chance.randbytes(chance.choice((0, 5, 70_000))))
            if chance.random() < 0.3:
                os.setxattr(path, "user.b", b"1")
                os.setxattr(path, "user.a", b"")
            files.append(path)


@pytest.mark.parametrize("seed", range(40))
def test_trees_of_links_give_the_same_index(tmp_path: Path, seed: int) -> None:
    make_random(tmp_path / "tree", random.Random(seed))
    assert fast(tmp_path / "tree", tmp_path / "fast") == slow(tmp_path / "tree", tmp_path / "slow")


def test_what_no_image_can_have_is_left_out_under_each_of_its_names(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as bound:
        directory = os.open(tree, os.O_RDONLY)
        try:  # a path of a socket is short, and that of a test's directory may not be
            bound.bind(f"/proc/self/fd/{directory}/socket")
        finally:
            os.close(directory)
    os.link(tree / "socket", tree / "below/socket")
    left_out = ["below/socket", "socket"]
    if os.geteuid() == 0:
        os.mknod(tree / "whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))
        left_out.append("whiteout")
    (tree / os.fsdecode(b"\xff")).write_bytes(b"stays")
    index, notes, _ = fast(tree, tmp_path / "fast")
    assert (index, notes) == slow(tree, tmp_path / "slow")[:2]
    assert [note.partition(":")[0] for note in notes] == left_out
    assert decode_layer(index).names(b"") == [b"below", b"\xff"]


def deep(root: Path, levels: int) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("n" * 20, dir_fd=fd)
        below = os.open("n" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_path_that_is_too_long_is_refused_by_both(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    deep(tmp_path / "tree", 200)  # 200 * 21 - 1 bytes
    for walk in (fast, slow):
        with pytest.raises(LimitError, match="want at most 4096"):
            walk(tmp_path / "tree", tmp_path / walk.__name__)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fast(tmp_path / "file", tmp_path / "packs")
