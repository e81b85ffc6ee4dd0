"""Containers share nothing that either can write, and the server of a domain answers nobody else.

GHSA-36xw-fx78-c5r4 and GHSA-6g2q-w5j3-fwh4 (containerd-shim's abstract socket, local APIs), CVE-2026-50195.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Onesec
from tests.support.shell import shell_image


@pytest.fixture(scope="module")
def onesec(tmp_path_factory: pytest.TempPathFactory, real_machine: None) -> Onesec:
    directory = tmp_path_factory.mktemp("shared")
    made = Onesec(directory)
    assert made.here("import", shell_image(directory), "-t", "app").status == 0
    return made


PLACES = (
    "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/bin/sh", "/tmp/x", "/dev/shm/x", "/dev/x",
    "/run/x", "/root/x", "/srv/x",
)  # fmt: skip


def test_what_one_container_writes_no_other_sees(onesec: Onesec) -> None:
    hosts = {path: Path(path).read_bytes() for path in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")}
    look = "; ".join(f"grep -l EVIL {place} 2>/dev/null" for place in PLACES)
    first = onesec("run", "app", "sh", "-c", f"for p in {' '.join(PLACES)}; do echo EVIL >> $p; done; {look}")
    # it was really written, as far as it can be
    assert {"/etc/passwd", "/etc/hosts", "/tmp/x", "/dev/shm/x", "/run/x"} <= set(first.out.split())
    second = onesec("run", "app", "sh", "-c", f"{look}; true")
    assert (second.status, second.out) == (0, "")
    assert hosts == {path: Path(path).read_bytes() for path in hosts}
    assert onesec.here("verify", "app", "--deep").status == 0


@pytest.fixture
def running(onesec: Onesec) -> Iterator[subprocess.Popen[bytes]]:
    words = onesec.words("run", "app", "sh", "-c", "echo ready; exec sleep 30")
    with subprocess.Popen(words, env=onesec.surroundings, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()
        process.communicate()


def test_containers_that_run_together_do_not_see_each_other(onesec: Onesec, running: subprocess.Popen[bytes]) -> None:
    script = "for p in /proc/[0-9]*; do cat $p/cmdline; echo; done; ls /dev/shm /dev/mqueue; cat /proc/sysvipc/shm"
    seen = onesec("run", "--net", "none", "app", "sh", "-c", script)
    assert seen.status == 0
    assert "sleep" not in seen.out
    assert "onesec" not in seen.out


def test_each_container_has_namespaces_of_its_own(onesec: Onesec, running: subprocess.Popen[bytes]) -> None:
    kinds = ("pid", "mnt", "ipc", "uts")
    script = "; ".join(f"ls -l /proc/self/ns/{kind}" for kind in kinds)
    inside = {line.rpartition("-> ")[2] for line in onesec("run", "app", "sh", "-c", script).out.splitlines()}
    assert len(inside) == len(kinds)
    host = {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    assert inside.isdisjoint(host)


def test_the_server_listens_on_a_socket_of_ours_alone(onesec: Onesec, running: subprocess.Popen[bytes]) -> None:
    (domain,) = (onesec.run_dir / "domains").iterdir()
    assert stat.S_IMODE(domain.stat().st_mode) == 0o700
    assert stat.S_IMODE((domain / "socket").stat().st_mode) == 0o600
    assert stat.S_IMODE((domain / "log").stat().st_mode) == 0o600
    listening = Path("/proc/net/unix").read_text()
    assert not any("@" in line and "onesec" in line for line in listening.splitlines()), "an abstract socket"
    # even a process that gets at the path is asked who it is
    fd = os.open(domain, os.O_RDONLY | os.O_DIRECTORY)
    try:
        code = (
            "import os, socket, sys; os.setgid(65534); os.setuid(65534);"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
            f"s.connect('/proc/self/fd/{fd}/socket')"
        )
        done = subprocess.run(["python3", "-c", code], pass_fds=(fd,), capture_output=True, check=False)
        assert done.returncode != 0
        assert b"PermissionError" in done.stderr
    finally:
        os.close(fd)


def test_a_run_directory_that_others_may_write_to_is_refused(onesec: Onesec, tmp_path: Path) -> None:
    other = Onesec(tmp_path)
    source = shell_image(tmp_path)
    assert other.here("import", source, "-t", "app").status == 0
    assert other("run", "app", "true").status == 0
    (domain,) = (other.run_dir / "domains").iterdir()
    domain.chmod(0o777)
    said = other("run", "app", "true")
    assert (said.status, "others own or may write to" in said.error) == (125, True)
    domain.chmod(0o700)
    os.chown(domain, 65534, 65534)
    said = other("run", "app", "true")
    assert (said.status, "others own or may write to" in said.error) == (125, True)


@pytest.mark.parametrize("kind", ["a link", "a file", "a socket where nobody listens"])
def test_a_socket_that_somebody_else_put_there_is_not_talked_to(kind: str, tmp_path: Path, real_machine: None) -> None:
    onesec = Onesec(tmp_path)
    assert onesec.here("import", shell_image(tmp_path), "-t", "app").status == 0
    assert onesec("run", "app", "true").status == 0
    (domain,) = (onesec.run_dir / "domains").iterdir()
    place = domain / "socket"
    place.unlink(missing_ok=True)
    foreign = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if kind == "a link":
            (tmp_path / "elsewhere").touch()
            place.symlink_to(tmp_path / "elsewhere")
        elif kind == "a file":
            place.touch()
        else:
            fd = os.open(domain, os.O_RDONLY | os.O_DIRECTORY)
            foreign.bind(f"/proc/self/fd/{fd}/socket")  # the path itself may be too long for an address
            os.close(fd)
        assert onesec("run", "app", "true").status == 0
    finally:
        foreign.close()
    assert not (tmp_path / "elsewhere").exists() or (tmp_path / "elsewhere").read_bytes() == b""


def test_nothing_moves_a_tag_that_was_not_named(onesec: Onesec) -> None:
    before = onesec.here("images", "--json").out
    for words in (["run", "app", "true"], ["verify", "app"], ["gc"], ["fsck"], ["inspect", "app"]):
        assert onesec(*words).status == 0
    assert onesec.here("images", "--json").out == before
