"""`import` where the disk is full, or at a limit, at many a point: one line, status 1, the layout is as it was."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Onesec, Said
from tests.support.contents import stream
from tests.support.oci import oci_layout

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("real_machine")


def tar(files: int, size: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for row in range(files):
            member = tarfile.TarInfo(f"directory/{row}")
            member.size = size
            archive.addfile(member, io.BytesIO(stream(row, size)))
    return out.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("sources")
    oci_layout(place / "small", tar(1, 100), {})
    oci_layout(place / "large", [tar(300, 300), tar(30, 20_000), tar(2, 1_500_000)], {})
    return f"oci:{place}/small:t", f"oci:{place}/large:t"


def attempt(directory: Path, what: str, spare: int, small: str, large: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.full_disk", directory, what, str(spare), small, large],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))


def check(found: dict[str, Any]) -> None:
    assert found["status"] == 1, found
    lines = [line for line in found["err"].splitlines() if line.startswith("onesec: ")]
    assert len(lines) == 1
    assert "Traceback" not in found["err"]
    assert "no space left on device" in lines[0].lower(), lines
    assert found["left"] == []
    assert found["untouched"]
    assert (found["fsck"], "0 problems" in found["fsck_out"]) == (0, True), found["fsck_out"]
    assert found["again"] == 0, found["again_err"]


@pytest.mark.parametrize("spare", [0, 20, 150, 950])
def test_an_import_into_a_full_file_system_changes_nothing(
    spare: int, sources: tuple[str, str], tmp_path: Path
) -> None:
    attempt(tmp_path, "blocks", spare, *sources)


@pytest.mark.parametrize("spare", [0, 3])
def test_an_import_without_inodes_changes_nothing(spare: int, sources: tuple[str, str], tmp_path: Path) -> None:
    attempt(tmp_path, "inodes", spare, *sources)


@pytest.mark.parametrize(("what", "spare"), [("blocks", blocks) for blocks in (1, 2, 9)] + [("inodes", 9)])
def test_a_new_root_on_a_full_file_system_can_be_used_later(
    what: str, spare: int, sources: tuple[str, str], tmp_path: Path
) -> None:
    attempt(tmp_path, what, spare, "", sources[1])


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        *((f"--nofile={count}", "too many open files") for count in (5, 8, 10)),
        *((f"--fsize={size}", "file too large") for size in (1000, 2_000_000)),
    ],
)
def test_an_import_at_a_limit_of_its_process_changes_nothing(
    limit: str, words: str, sources: tuple[str, str], tmp_path: Path
) -> None:
    onesec = Onesec(tmp_path)
    assert onesec("import", sources[0], "-t", "small:1").status == 0
    call = ["prlimit", limit, sys.executable, "-m", "onesec", "import", sources[1], "-t", "large:1"]
    done = subprocess.run(call, env=onesec.surroundings, capture_output=True, text=True, check=False)
    said = Said(done.returncode, done.stdout, done.stderr)
    assert said.status == 1
    assert words in said.error.lower()
    left = [name for _, names, files in os.walk(onesec.root / "images") for name in names + files if "tmp" in name]
    assert left == []
    checked = onesec("fsck")
    assert (checked.status, "0 problems, 0 repaired" in checked.out) == (0, True), checked.out
    assert "large" not in onesec("images").out
