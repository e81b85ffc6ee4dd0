"""The tree generator and the comparison that other tests lean on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import assert_same_tree, make_every_kind, snapshot


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, real_machine: None) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "tree"
    make_every_kind(path, 1)
    return path


def test_one_seed_makes_one_tree_and_another_makes_another(tree: Path, tmp_path: Path) -> None:
    make_every_kind(tmp_path / "same", 1)
    make_every_kind(tmp_path / "other", 2)
    assert_same_tree(tree, tmp_path / "same")
    with pytest.raises(AssertionError, match="digest"):
        assert_same_tree(tree, tmp_path / "other", ignore=("mtime_ns", "xattrs"))


CHANGES: dict[str, Callable[[Path], None]] = {
    "mode": lambda path: path.chmod(0o600),
    "uid": lambda path: os.chown(path, 5, -1),
    "gid": lambda path: os.chown(path, -1, 5),
    "mtime_ns": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
    "xattrs": lambda path: os.setxattr(path, "user.more", b""),
    "digest": lambda path: _flip(path),
    "size": lambda path: os.truncate(path, 5),
    "links": lambda path: os.link(path, path.with_name("more")),
    "too much": lambda path: path.with_name("new").touch(),
    "not there": lambda path: path.unlink(),
}


def _flip(path: Path) -> None:
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, info.st_mtime_ns))


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(what: str, tmp_path: Path, real_machine: None) -> None:
    path = tmp_path / "tree/file"
    path.parent.mkdir()
    path.write_bytes(b"content")
    before = snapshot(path.parent)
    assert_same_tree(path.parent, before)
    CHANGES[what](path)
    with pytest.raises(AssertionError, match=what):
        assert_same_tree(path.parent, before)


def test_names_of_one_inode_are_told_from_copies(tmp_path: Path) -> None:
    for name, link in (("linked", True), ("copied", False)):
        path = tmp_path / name / "a"
        path.parent.mkdir()
        path.write_bytes(b"x")
        if link:
            os.link(path, path.with_name("b"))
        else:
            path.with_name("b").write_bytes(b"x")
    with pytest.raises(AssertionError, match="names: got"):
        assert_same_tree(tmp_path / "copied", tmp_path / "linked", ignore=("mtime_ns",))
