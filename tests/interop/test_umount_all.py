"""`onesec umount --all`: nothing of a run directory is mounted any more, and nothing waits for a next container."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.mount_table import mount_table
from tests.support.background import background_processes
from tests.support.command import Onesec
from tests.support.shell import shell_image
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")


@pytest.fixture
def onesec(tmp_path: Path) -> Onesec:
    (tmp_path / "onesec.toml").write_text("[run]\nlinger = 600\n")
    command = Onesec(tmp_path, {"ONESEC_CONFIG": str(tmp_path / "onesec.toml")})
    assert command("import", shell_image(tmp_path), "-t", "app").status == 0
    return command


def servers(place: Path) -> list[str]:
    return sorted(background_processes(place).values())


def mounts(place: Path) -> list[str]:
    return [row.target for row in mount_table() if row.target.startswith(str(place))]


def test_all_mounts_go_and_the_servers_that_linger_end(onesec: Onesec, tmp_path: Path) -> None:
    for name, mode in (("one", "kernel"), ("two", "kernel"), ("three", "portable")):
        (tmp_path / name).mkdir()
        assert onesec("mount", "--mode", mode, "app", tmp_path / name).status == 0
    assert onesec("run", "app", "/bin/true").status == 0  # it leaves a server that lingers
    assert len(mounts(tmp_path)) == 3
    assert "onesec-objects" in servers(tmp_path)
    done = onesec("umount", "--all")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert mounts(tmp_path) == []
    assert [name for name in servers(tmp_path) if name == "onesec-objects"] == []  # at once, not after its linger
    assert list((onesec.run_dir / "mounts").iterdir()) == []
    assert onesec("umount", "--all").status == 0
    assert onesec("run", "app", "/bin/true").status == 0
    assert onesec("umount", "--all").status == 0
    eventually(lambda: not servers(tmp_path))  # the portable one ends with its mount, a moment later


def test_a_mount_in_use_stays_and_is_said_and_the_others_go(onesec: Onesec, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert onesec("mount", "app", tmp_path / name).status == 0
    with open(tmp_path / "one/bin/sh", "rb"):
        done = onesec("umount", "--all")
        assert (done.status, done.error) == (1, f"{tmp_path / 'one'}: in use")
        assert mounts(tmp_path) == [str(tmp_path / "one")]
    assert onesec("umount", "--all").status == 0
    assert mounts(tmp_path) == []


@pytest.mark.parametrize("words", [(), ("--all", "/mnt")])
def test_it_is_all_or_one_directory(onesec: Onesec, words: tuple[str, ...]) -> None:
    done = onesec("umount", *words)
    assert (done.status, done.error) == (2, "umount: want a directory or --all, and not both")


def test_a_target_that_would_hide_the_run_directory_is_refused_in_one_line(onesec: Onesec, tmp_path: Path) -> None:
    for target in ("/proc", "/", tmp_path):
        done = onesec("mount", "app", target)
        assert done.status == 1
        assert "got a directory" in done.error
    assert mounts(tmp_path) == []
