"""The proof of coldness must itself be proved: it has to see pages that are there and miss those that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.macro import cold

PAGES = 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PAGES * cold.PAGE - 100))
    return path


def forget(path: Path) -> None:
    """Takes one file out of memory, which needs no root."""
    with open(path, "rb+") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_file_that_was_just_written_is_in_memory(file: Path) -> None:
    assert cold.resident(file) == (PAGES, PAGES)
    with pytest.raises(cold.NotColdError, match=f"got {PAGES} of {PAGES} pages"):
        cold.require([file])


def test_a_file_that_was_dropped_is_not(file: Path) -> None:
    forget(file)
    if cold.resident(file)[0]:
        pytest.skip("this file system keeps its pages: tmpfs")
    assert cold.require([file]) == {"resident_pages": 0, "pages": PAGES}


def test_part_of_a_file_counts_as_part(file: Path) -> None:
    forget(file)
    if cold.resident(file)[0]:
        pytest.skip("this file system keeps its pages: tmpfs")
    with open(file, "rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(opened.fileno(), 1, 10 * cold.PAGE)
    present, pages = cold.resident(file)
    assert 1 <= present < pages
    with pytest.raises(cold.NotColdError):
        cold.require([file])


def test_directories_count_with_all_their_files_and_links_do_not(file: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other").write_bytes(bytes(10))
    (tmp_path / "link").symlink_to(file)
    assert sorted(cold.files([tmp_path])) == [file, tmp_path / "sub/other"]


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert cold.resident(tmp_path / "empty") == (0, 0)
    assert cold.require([tmp_path / "empty"]) == {"resident_pages": 0, "pages": 0}
