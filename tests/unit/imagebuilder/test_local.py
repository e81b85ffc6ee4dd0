from __future__ import annotations

import os
from pathlib import Path

import pytest

from cext.errors import UsageError
from imagebuilder.image import CallSite, CopyLocal
from imagebuilder.local import tree_digest, walk

WHERE = CallSite("image.py", 1)


def made(root: Path) -> Path:
    (root / "a" / ".git").mkdir(parents=True)
    (root / "a" / "b.py").write_text("1")
    (root / "a" / ".git" / "x").write_text("2")
    (root / "run").write_text("3")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("/etc/shadow")
    return root


def digest(root: Path, *ignore: str) -> bytes:
    return tree_digest(CopyLocal(str(root), "/app", ignore), WHERE)


def test_everything_is_found_in_order_and_links_are_not_followed(tmp_path: Path) -> None:
    found = [
        (one.path, one.kind, one.permissions) for one in walk(CopyLocal(str(made(tmp_path)), "/", (".git",)), WHERE)
    ]
    assert found == [
        (b"", "directory", 0o755),
        (b"a", "directory", 0o755),
        (b"a/b.py", "file", 0o644),
        (b"link", "symlink", 0o777),
        (b"run", "file", 0o755),
    ]


def test_times_owners_and_umask_do_not_count_but_contents_names_and_the_x_bit_do(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one"), made(tmp_path / "two")
    os.utime(two / "run", (1, 1))
    (two / "a" / "b.py").chmod(0o600)
    assert digest(one) == digest(two)
    (two / "a" / "b.py").write_text("changed")
    assert digest(one) != digest(two)
    (two / "a" / "b.py").write_text("1")
    (two / "run").chmod(0o644)
    assert digest(one) != digest(two)


def test_what_is_ignored_does_not_count(tmp_path: Path) -> None:
    root = made(tmp_path)
    before = digest(root, ".git", "*.pyc")
    (root / "a" / ".git" / "x").write_text("changed")
    (root / "a" / "b.pyc").write_text("new")
    assert digest(root, ".git", "*.pyc") == before
    assert digest(root) != before


def test_a_fifo_is_refused_with_its_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"^image\.py:1: copy_local: .*/pipe: want a file"):
        digest(tmp_path)


def test_a_missing_source_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^image\.py:1: copy_local: .*: no such file or directory"):
        digest(tmp_path / "nowhere")
