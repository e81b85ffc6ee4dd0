"""A server of a domain outlives the command that happened to be first, and serves others: it keeps nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cext.errors import OnesecError
from lazyfs import background
from tests.support.background import background_processes, what_it_has
from tests.support.command import Onesec
from tests.support.shell import shell_image

pytestmark = pytest.mark.usefixtures("real_machine")

CANARY = "canary-of-the-first-caller"


@pytest.fixture
def onesec(tmp_path: Path) -> Onesec:
    return lingering(tmp_path)


def lingering(directory: Path, more: str = "") -> Onesec:
    """Its servers stay when a command ends."""
    (directory / "onesec.toml").write_text(f"[run]\nlinger = 600\n{more}")
    return Onesec(directory, {"SOME_TOKEN": CANARY, "ONESEC_CONFIG": str(directory / "onesec.toml")})


def shown(process: int) -> bytes:
    return b"".join(Path("/proc", str(process), file).read_bytes() for file in ("environ", "cmdline"))


def test_proc_shows_neither_the_environment_nor_the_arguments_of_the_first_command(
    onesec: Onesec, tmp_path: Path
) -> None:
    assert onesec("import", shell_image(tmp_path), "-t", "app").status == 0
    assert onesec("run", "-e", f"TOKEN={CANARY}", "app", "/bin/true").status == 0
    servers = background_processes(tmp_path)
    try:
        assert sorted(servers.values()) == ["onesec-objects"] * 2  # they linger
        for process in servers:
            assert shown(process).strip(b"\0") == b"onesec-objects"
    finally:
        assert onesec("umount", "--all").status == 0


def test_the_server_of_a_large_program_is_no_copy_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_is_large", lambda: True)
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    call = background.Call("onesec-test", "a server", f"{what_it_has.__module__}:{what_it_has.__name__}")
    with open(tmp_path / "log", "wb") as log:
        background.start(call, fds=(), log=log.fileno())
    found = json.loads((tmp_path / "log").read_text())
    assert "lazyfs.background" in found["modules"]
    assert "pytest" not in found["modules"]
    assert CANARY not in str(found)


def test_servers_live_in_the_cgroup_that_is_configured(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "cgroup.procs").touch()  # of a directory that only looks like one, which any machine has
    onesec = lingering(tmp_path, f'cgroup = "{cgroup}"\n')
    assert onesec("import", shell_image(tmp_path), "-t", "app").status == 0
    assert onesec("run", "app", "/bin/true").status == 0
    try:
        assert int((cgroup / "cgroup.procs").read_text()) in background_processes(tmp_path)
    finally:
        assert onesec("umount", "--all").status == 0


def test_a_cgroup_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    onesec = lingering(tmp_path, 'cgroup = "/sys/fs/cgroup/not/there"\n')
    assert onesec("import", shell_image(tmp_path), "-t", "app").status == 0
    said = onesec("run", "app", "/bin/true")
    assert said.status == 125
    assert said.error.startswith("/sys/fs/cgroup/not/there: got no cgroup that takes a process")
    assert background_processes(tmp_path) == {}


@pytest.mark.parametrize("large", [False, True])
def test_what_fails_in_the_background_is_said_to_the_client(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_is_large", lambda: large)
    call = background.Call("onesec-test", "a server", f"{__name__}:fails", {"said": "no room"})
    with open(tmp_path / "log", "wb") as log, pytest.raises(OnesecError, match="a server: no room") as caught:
        background.start(call, fds=(), log=log.fileno())
    assert caught.value.hint is None


def fails(words: dict[str, str], fds: list[int], client: background.Client) -> int:
    client.failed(RuntimeError(words["said"]))
    return 1
