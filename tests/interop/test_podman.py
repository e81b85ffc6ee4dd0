"""`run` beside the real podman, on the same image: what a program can see and do is the same, and where it is not, it
is said here why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import Onesec
from tests.support.podman import Podman, podman
from tests.support.shell import shell_image
from tests.support.waiting import PATIENCE_S

CONFIG = {"Env": ["FROM_IMAGE=yes", "BOTH=image"], "WorkingDir": "/srv", "Cmd": ["id"]}


@dataclass(frozen=True, slots=True)
class Both:
    ours: Onesec
    theirs: Podman

    def __call__(
        self, *command: str, options: Sequence[str] = (), stdin: bytes = b""
    ) -> tuple[subprocess.CompletedProcess[bytes], subprocess.CompletedProcess[bytes]]:
        """Ours, then podman's."""
        words = [*self.ours.words("run", *options, "image", *command)]
        ours = subprocess.run(
            words, input=stdin, capture_output=True, env=self.ours.surroundings, timeout=PATIENCE_S, check=False
        )
        interactive = ["-i"] if stdin else []
        return ours, self.theirs(*command, options=[*interactive, *options], stdin=stdin)

    def lines(self, *command: str, options: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        ours, theirs = self(*command, options=options)
        assert (ours.returncode, theirs.returncode) == (0, 0), (ours.stderr, theirs.stderr)
        return ours.stdout.decode().splitlines(), theirs.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, real_machine: None) -> Iterator[Both]:
    if shutil.which("podman") is None:
        if os.environ.get("CI"):
            pytest.fail("this machine lacks podman")
        pytest.skip("this machine lacks podman")
    directory = tmp_path_factory.mktemp("podman")
    source = shell_image(directory, config=CONFIG)
    ours = Onesec(directory / "ours")
    assert ours.here("import", source, "-t", "image").status == 0
    theirs = podman(directory / "theirs", source.removesuffix(":t"))
    yield Both(ours, theirs)
    theirs.close()


def test_capabilities_seccomp_and_privileges_are_the_same(both: Both) -> None:
    wanted = ("Cap", "Seccomp", "NoNewPrivs", "Groups", "Uid", "Gid", "Umask")
    for options in ([], ["-u", "work"], ["-u", "7:8"]):
        ours, theirs = both.lines("cat", "/proc/self/status", options=options)
        found = [[line for line in lines if line.startswith(wanted)] for lines in (ours, theirs)]
        assert found[0] == found[1], options
        assert any(line.startswith("Seccomp:\t2") for line in found[0])


def mounts(lines: Sequence[str]) -> dict[str, tuple[str, frozenset[str]]]:
    """Mount point -> file system and options."""
    found = {}
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()[0]
        found[fields[4]] = (kind, frozenset(fields[5].split(",")))
    return found


def test_the_mounts_are_the_same_but_for_those_that_are_told_here(both: Both) -> None:
    ours, theirs = map(mounts, both.lines("cat", "/proc/self/mountinfo"))
    # podman's marker file; programs that ask for it get the variable `container` from both
    theirs.pop("/run/.containerenv")
    # podman shows the host's cgroups, read-only; our containers have no cgroup of their own and show none
    theirs = {place: what for place, what in theirs.items() if not place.startswith("/sys/fs/cgroup")}
    assert ours.pop("/") == ("overlay", frozenset({"rw", "relatime"}))
    assert theirs.pop("/")[1] == {"rw", "relatime"}
    for place in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
        mine, his = ours.pop(place), theirs.pop(place)
        # copies of the host's, so what is mounted can be stricter than podman's
        assert mine[1] == {"rw", "nosuid", "nodev", "relatime"}
        assert his[1] <= mine[1]
    hidden = {place for place in theirs if place.startswith(("/proc/", "/sys/"))}
    assert hidden <= ours.keys(), "podman hides more of /proc and /sys"
    # podman 5 has stopped to forbid programs there; ours has not
    assert ours["/dev"][1] - {"noexec"} == theirs["/dev"][1] - {"noexec"}
    del ours["/dev"], theirs["/dev"]
    # and to hide it
    if "/sys/dev/block" not in theirs:
        ours.pop("/sys/dev/block")
    assert {place: what for place, what in ours.items() if place not in theirs} == {}
    assert ours == theirs


def variables(lines: Sequence[str]) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in lines)


def test_the_environment_is_the_same_but_for_who_made_it(both: Both) -> None:
    for options in (["-e", "BOTH=call", "-e", "MORE=a=b"], ["-u", "work"], ["-u", "12345"]):
        ours, theirs = map(variables, both.lines("env", options=options))
        if "12345" in options:
            # podman writes a row for a number that /etc/passwd lacks, with the working directory as home; docker and
            # we change no file of the image, and such a user has no home
            assert (ours.pop("HOME"), theirs.pop("HOME")) == ("/", "/srv")
        assert (ours.pop("container"), theirs.pop("container")) == ("onesec", "podman")
        # podman 5 sets it with a terminal only
        assert ours.pop("TERM") == theirs.pop("TERM", "xterm")
        assert ours == theirs, options


def test_hosts_and_hostname_are_the_same_but_for_podmans_own_name(both: Both) -> None:
    ours, theirs = both.lines("cat", "/etc/hosts")
    rows = [[line.split() for line in lines if line.split()] for lines in (ours, theirs)]
    # podman has a name for the host as seen from a network of the container's own
    rows[1] = [row for row in rows[1] if not {"host.containers.internal", "host.docker.internal"} & set(row)]
    assert [row for row in rows[1] if row not in rows[0]] == []
    ours, theirs = both.lines("cat", "/etc/hostname")
    assert ours == theirs
    assert both.lines("cat", "/etc/resolv.conf")[0] != []


@pytest.mark.parametrize("user", ["root", "work", "1000", "1000:0", "work:extra", "65534:2000"])
def test_users_and_their_groups_are_the_same(both: Both, user: str) -> None:
    ours, theirs = both.lines("sh", "-c", "id -u; id -g; id -G; grep Groups: /proc/self/status", options=["-u", user])
    assert ours == theirs


def test_status_and_streams_are_the_same(both: Both) -> None:
    for command in (
        ["sh", "-c", "exit 7"],
        ["sh", "-c", "echo out; echo err >&2; exit 3"],
        ["sh", "-c", "kill -KILL $$"],
        ["sh", "-c", "kill -TERM $$; exit 5"],
        ["/no/such/program"],
        ["no-such-program"],
        ["/etc/passwd"],
        ["/etc"],
    ):
        ours, theirs = both(*command)
        assert ours.returncode == theirs.returncode, (command, ours.stderr, theirs.stderr)
        assert ours.stdout == theirs.stdout
        if ours.returncode not in (125, 126, 127):
            said = [line for line in theirs.stderr.splitlines() if b"level=warning" not in line]  # of podman itself
            assert ours.stderr.splitlines() == said
    assert both("true", options=["-u", "nobody-here"])[0].returncode == 125
    # podman says 126 here, where runtime and image disagree; ours knows before that there is no such user
    ours, theirs = both("cat", stdin=b"through\0both" * 10_000)
    assert ours.stdout == theirs.stdout == b"through\0both" * 10_000


def test_the_image_says_where_and_what_if_the_call_does_not(both: Both) -> None:
    ours, theirs = both.lines("sh", "-c", "pwd")
    assert ours == theirs == ["/srv"]
    ours, theirs = both.lines(options=[])
    assert ours == theirs
    ours, theirs = both.lines("sh", "-c", "pwd", options=["-w", "/etc"])
    assert ours == theirs == ["/etc"]


def test_volumes_are_the_same(both: Both, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/file").write_text("from the host\n")
    for more, status in (("", 0), (":ro", 2)):
        options = ["-v", f"{tmp_path / 'host'}:/data{more}"]
        command = ["sh", "-c", "cat /data/file; echo x > /data/new"]
        ours, theirs = both(*command, options=options)
        assert (ours.returncode, theirs.returncode) == (status, status), (ours, theirs)
        assert ours.stdout == theirs.stdout
        (tmp_path / "host/new").unlink(missing_ok=True)
        rows = [mounts(lines)["/data"] for lines in both.lines("cat", "/proc/self/mountinfo", options=options)]
        # podman 5 has stopped to mount volumes nosuid and nodev; ours stay so
        assert rows[0][1] - {"nosuid", "nodev"} == rows[1][1] - {"nosuid", "nodev"}


def test_without_a_network_there_is_a_loopback_in_both(both: Both) -> None:
    ours = both.ours("run", "--net", "none", "image", "cat", "/proc/net/dev")
    theirs = both.theirs("cat", "/proc/net/dev", net="none")
    names = [
        [line.partition(":")[0].strip() for line in text.splitlines()[2:]]
        for text in (ours.out, theirs.stdout.decode())
    ]
    assert names[0] == names[1] == ["lo"]


DENIED = {
    "mounting": "mount -t tmpfs none /tmp",
    "a device": "mknod /tmp/null c 1 3",
    "the clock": "date -s 2001-01-01",
    "the hostname": "hostname other",
    "a kernel setting": "echo 1 > /proc/sys/kernel/sysrq",
    "the trigger": "echo h > /proc/sysrq-trigger",
    "the kernel's memory": "cat /proc/kcore > /dev/null",
    "keys": "test -s /proc/keys",
    "firmware": 'test -n "$(ls /sys/firmware)"',
    "a namespace": "unshare -m true",
    "chroot and up": "chroot /proc/1/root/.. ls /nowhere",
    "a priority": "nice -n -5 true && nice -n -5 sh -c 'test $(nice) -lt 0'",
}


def test_what_podman_refuses_is_refused(both: Both) -> None:
    """All in one container each: `case status` for each case."""
    script = "; ".join(f"( {command} ) > /dev/null 2>&1; echo {name!r} $?" for name, command in DENIED.items())
    ours, theirs = both.lines("sh", "-c", script)
    assert ours == theirs
    assert [line for line in ours if line.endswith(" 0")] == []
