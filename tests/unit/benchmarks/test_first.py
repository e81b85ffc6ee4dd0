"""The program that notes a container's first instruction."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.macro import native


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.program("first", flags=("-static",), directory=tmp_path_factory.mktemp("cache"))


def test_it_notes_the_time_and_becomes_the_command(first: Path) -> None:
    before = time.monotonic_ns()
    done = subprocess.run(
        [first, "/bin/sh", "-c", "echo $FIRST_NS $0 $1; exit 3", "a", "b"], capture_output=True, check=False
    )
    after = time.monotonic_ns()
    noted, *words = done.stdout.split()
    assert before < int(noted) < after
    assert (words, done.returncode) == ([b"a", b"b"], 3)


def test_it_needs_nothing_of_the_image(first: Path) -> None:
    shown = subprocess.run(["readelf", "--program-headers", first], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in shown


@pytest.mark.parametrize(("words", "status"), [([], 2), (["/no/such/program"], 127)])
def test_what_cannot_be_run_is_said(first: Path, words: list[str], status: int) -> None:
    done = subprocess.run([first, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
