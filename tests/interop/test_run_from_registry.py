"""Containers whose image is known here by its index alone: every byte that they read comes from a registry while they
run, through the object server, the fetcher and the renewer.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lazyfs import objects
from tests.support.command import Onesec
from tests.support.docker_registry import Server, docker_registry
from tests.support.shell import shell_image
from tests.support.waiting import PATIENCE_S, eventually

BIG = os.urandom((3 << 20) + 5)
DIGEST = hashlib.sha256(BIG).hexdigest()


@dataclass(frozen=True, slots=True)
class Far:
    """A host that has pulled `app` and none of its packs."""

    onesec: Onesec
    domain: str

    def statistics(self) -> dict[str, int]:
        found = objects.statistics(self.domain, run_dir=self.onesec.run_dir, root=self.onesec.root)
        assert found is not None
        return found["statistics"]  # type: ignore[no-any-return]

    def processes(self, name: str) -> list[int]:
        """Of this host: the ones that have its domain's log open."""
        logs = {str(path) for path in self.onesec.run_dir.glob("domains/*/log")}
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                named = entry.name.isdigit() and (entry / "comm").read_text().strip() == name
                if named and os.readlink(entry / "fd/2") in logs:
                    found.append(int(entry.name))
        return found

    def log(self) -> str:
        return "".join(path.read_text() for path in self.onesec.run_dir.glob("domains/*/log"))


SERVERS = ("objects", "keeper", "renewer", "fetcher")


def make_host(directory: Path, *servers: Server, auth: str = "{}") -> Onesec:
    directory.mkdir()
    settings = '[run]\nlinger = 0\n[store]\nquota = "0"\n' + "".join(one.settings() for one in servers)
    (directory / "onesec.toml").write_text(settings)
    (directory / "auth.json").write_text(auth)
    where = {"ONESEC_CONFIG": str(directory / "onesec.toml"), "REGISTRY_AUTH_FILE": str(directory / "auth.json")}
    return Onesec(directory, where)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With TLS, a certificate of its own, and a login."""
    with docker_registry(tmp_path_factory.mktemp("registry") / "data", tls=True, login=True) as found:
        yield found


@pytest.fixture(scope="module")
def pushed(real_machine: None, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The registry has the image `me/app`."""
    directory = tmp_path_factory.mktemp("maker")
    maker = make_host(directory / "host", server, auth=server.auth())
    image = shell_image(directory, files={"srv/big": BIG, "srv/small": b"hello\n"})
    for words in (["import", image, "-t", "app"], ["push", "app", f"{server.host}/me/app:1"]):
        said = maker(*words)
        assert said.status == 0, said.err
    return server


@pytest.fixture
def far(pushed: Server, tmp_path: Path) -> Iterator[Far]:
    onesec = make_host(tmp_path / "far", pushed, auth=pushed.auth())
    said = onesec("pull", f"{pushed.host}/me/app:1", "-t", "app")
    assert said.status == 0, said.err
    found = Far(onesec, f"{pushed.host}/me")
    yield found
    onesec("umount", tmp_path / "mounted")
    eventually(lambda: not any(found.processes(f"onesec-{name}") for name in SERVERS))


@pytest.fixture
def mounted(far: Far, tmp_path: Path) -> Path:
    place = tmp_path / "mounted"
    place.mkdir()
    said = far.onesec("mount", "app", place)
    assert said.status == 0, said.err
    return place


def hash_of(path: Path) -> str:
    """Read by a process of its own."""
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


def test_a_container_runs_on_bytes_of_the_registry(far: Far) -> None:
    done = subprocess.run(
        far.onesec.words("run", "app", "/bin/cat", "/srv/big"),
        env=far.onesec.surroundings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).hexdigest() == DIGEST


def test_a_mount_reads_from_the_registry_and_only_what_is_asked_for(far: Far, mounted: Path) -> None:
    assert (mounted / "srv/small").read_bytes() == b"hello\n"
    before = far.statistics()
    assert 1 <= before["fetched"] <= 2
    assert hash_of(mounted / "srv/big") == DIGEST
    after = far.statistics()
    assert after["fetched"] > before["fetched"]
    assert after["errors"] == 0
    fetched = objects.fetch_statistics(far.domain, run_dir=far.onesec.run_dir, root=far.onesec.root)
    assert fetched is not None
    assert fetched["bytes"] == after["fetched_bytes"]


def test_the_processes_have_what_they_need_and_no_more(far: Far, mounted: Path) -> None:
    assert (mounted / "srv/small").read_bytes() == b"hello\n"
    (renewer,), (fetcher,) = far.processes("onesec-renewer"), far.processes("onesec-fetcher")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{fetcher}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65534"] * 4
    assert status["CapPrm"] == status["CapEff"] == status["CapBnd"] == "0" * 16
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert Path(f"/proc/{renewer}/status").read_text().count("NoNewPrivs:\t0") == 1
    for name in SERVERS:  # proc shows nothing of who started them
        for process in far.processes(f"onesec-{name}"):
            assert not Path(f"/proc/{process}/environ").read_bytes().strip(b"\0")
            assert b"mount" not in Path(f"/proc/{process}/cmdline").read_bytes()
    kinds = {os.readlink(path).split(":")[0] for path in Path(f"/proc/{fetcher}/fd").iterdir()}
    assert not any("fuse" in kind for kind in kinds)
    for server in far.processes("onesec-objects"):  # none has a connection to a registry
        for path in Path(f"/proc/{server}/fd").iterdir():
            with suppress(OSError):
                assert not os.readlink(path).startswith("socket") or is_local(path)


def is_local(path: Path) -> bool:
    inode = os.readlink(path)[8:-1]
    return inode in {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}


def test_a_fetcher_that_is_killed_is_replaced_and_no_read_fails(far: Far, mounted: Path) -> None:
    assert (mounted / "srv/small").read_bytes() == b"hello\n"
    (fetcher,) = far.processes("onesec-fetcher")
    os.kill(fetcher, signal.SIGKILL)
    assert hash_of(mounted / "srv/big") == DIGEST
    assert far.processes("onesec-fetcher") != [fetcher]
    assert far.statistics()["links"] == 2
    assert "another one is started" in far.log()


def test_a_renewer_that_is_killed_is_replaced_and_no_read_fails(far: Far, mounted: Path) -> None:
    """By nobody who comes: what reads has no client of ours any more."""
    assert (mounted / "srv/small").read_bytes() == b"hello\n"
    (renewer,), (fetcher,) = far.processes("onesec-renewer"), far.processes("onesec-fetcher")
    os.kill(renewer, signal.SIGKILL)
    assert hash_of(mounted / "srv/big") == DIGEST  # all of it through the next one, which knows the same origins
    assert far.processes("onesec-renewer") not in ([], [renewer])
    assert fetcher not in far.processes("onesec-fetcher")  # it went with its renewer
    assert "renewer: ended with -9; another one is started" in far.log()


def test_a_keeper_that_is_killed_takes_nothing_with_it(far: Far, mounted: Path) -> None:
    (keeper,) = far.processes("onesec-keeper")
    os.kill(keeper, signal.SIGKILL)
    assert hash_of(mounted / "srv/big") == DIGEST
