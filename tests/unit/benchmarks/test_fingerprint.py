from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.macro.sources import fingerprint


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a", "sub/b", os.fsdecode(b"sub/\xff")):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name.encode(errors="replace").decode())
        os.utime(path, ns=(1, 10**18))
    return tmp_path / "tree"


def test_what_a_run_leaves_behind_is_no_other_tree(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / "dev").mkdir()
    (tree / "sub/__pycache__").mkdir()
    (tree / "sub/__pycache__/b.pyc").write_bytes(b"code")
    assert fingerprint(tree) == before


@pytest.mark.parametrize("change", ["size", "time", "name", "gone"])
def test_changed_files_are_another_tree(tree: Path, change: str) -> None:
    before, path = fingerprint(tree), tree / "sub/b"
    if change == "size":
        path.write_text("longer")
        os.utime(path, ns=(1, 10**18))
    elif change == "time":
        os.utime(path, ns=(1, 10**18 + 1))
    elif change == "name":
        path.rename(tree / "sub/c")
    else:
        path.unlink()
    assert fingerprint(tree) != before
