"""With the real uv, offline, against wheels made here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cext.errors import UsageError
from imagebuilder.errors import BadWheelError, FetchError, SolveError
from imagebuilder.fetch import wheel_file
from imagebuilder.pip_settings import PipSettings
from imagebuilder.python import of_tree
from imagebuilder.solve import PinnedWheel, Question, Target, parse_lock, solve
from tests.support.wheels import wheel

TARGET = Target("3.11", "x86_64-manylinux_2_36")


def ask(links: Path, *words: str) -> tuple[PinnedWheel, ...]:
    settings = PipSettings(find_links=(str(links),), no_index=True)
    return solve(Question(words, TARGET, settings), {**os.environ, "UV_CACHE_DIR": str(links / "cache")})


def test_a_find_links_directory_of_pips_gives_pinned_wheels(tmp_path: Path) -> None:
    data = wheel()
    (tmp_path / "demo-1.0-py3-none-any.whl").write_bytes(data)
    (found,) = ask(tmp_path, "demo>=1")
    assert (found.name, found.version, found.sha256) == ("demo", "1.0", hashlib.sha256(data).hexdigest())
    with wheel_file(found) as fd:
        assert os.pread(fd, len(data) + 1, 0) == data


def test_a_wheel_that_changed_after_the_solve_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    path.write_bytes(wheel())
    (found,) = ask(tmp_path, "demo")
    path.write_bytes(wheel(files={"demo.py": b"EVIL = 1\n"}))
    with pytest.raises(BadWheelError, match="got sha256:"), wheel_file(found):
        raise AssertionError("a changed wheel was opened")


def test_a_source_package_is_never_built(tmp_path: Path) -> None:
    (tmp_path / "demo-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(SolveError) as caught:
        ask(tmp_path, "demo")
    assert caught.value.hint is not None
    assert "only wheels" in caught.value.hint


def test_a_lock_without_a_hash_is_refused() -> None:
    lock = b"""lock-version = "1.0"
[[packages]]
name = "a"
version = "1"
wheels = [{ url = "https://x/a-1-py3-none-any.whl" }]
"""
    with pytest.raises(SolveError, match="no SHA-256"):
        parse_lock(lock)


def test_an_address_of_another_kind_is_refused() -> None:
    pinned = PinnedWheel("a", "1", "ftp://x/a-1-py3-none-any.whl", "0" * 64)
    with pytest.raises(FetchError, match="'ftp'"), wheel_file(pinned):
        raise AssertionError("opened")


def test_the_python_of_a_foreign_image_is_the_first_of_its_path() -> None:
    tree = {b"usr/local/bin": [b"python3", b"python3.12", b"pip"], b"usr/bin": [b"python3.11"]}
    found = of_tree(lambda path: tree.get(path, []), "amd64")
    assert (found.version, found.places.python) == ("3.12", "/usr/local/bin/python3.12")
    assert found.places.packages == "usr/local/lib/python3.12/site-packages"
    with pytest.raises(UsageError, match=r"no python3"):
        of_tree(lambda _: [], "amd64")
