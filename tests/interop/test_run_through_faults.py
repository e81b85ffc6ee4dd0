"""A real container whose image is at a registry that fails on purpose: its programs, libraries and files come through
each fault, and what it reads hashes right. Each test shows that the fault was met.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.layout import Layout
from registry.model import BOOTPACK, PACK
from registry.reference import Reference
from tests.support import origin as faults
from tests.support.command import Onesec
from tests.support.origin import Fault, Origin
from tests.support.origin import serving as origin_serving
from tests.support.shell import shell_image
from tests.support.waiting import PATIENCE_S, eventually

BIG = os.urandom((2 << 20) + 77)
DIGEST = hashlib.sha256(BIG).hexdigest()

FAULTS: dict[str, Fault] = {
    "slow": faults.slow(0.5),
    "reset": faults.reset,
    "reset midway": faults.reset_midway,
    "200 for 206": faults.whole,
    "wrong range": faults.wrong_range,
    "short body": faults.short_body,
    "flipped bytes": faults.flipped,
    "zeros": faults.zeros,
    "429": faults.status(429, "Retry-After: 1"),
    "503": faults.status(503),
}


@pytest.fixture(scope="module")
def maker(real_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Onesec:
    """A host with the image `app` and all its packs."""
    directory = tmp_path_factory.mktemp("maker")
    onesec = Onesec(directory)
    said = onesec("import", shell_image(directory, files={"srv/big": BIG}), "-t", "app")
    assert said.status == 0, said.err
    return onesec


@pytest.fixture
def origin() -> Iterator[Origin]:
    with origin_serving() as found:
        yield found


def far_host(
    maker: Onesec, place: Path, origin: Origin, deadline: float = 600, *, name: str = "app", linger: float = 0
) -> Onesec:
    """A host that has the image's index; the packs and the boot pack are at the origin."""
    directory = place / "far"
    directory.mkdir()
    host = f"127.0.0.1:{origin.port}"
    run = f"[run]\nlinger = {linger}\ndeadline = {deadline}\n"
    (directory / "onesec.toml").write_text(f'{run}[store]\nquota = "0"\n[registry."{host}"]\nplain-http = true\n')
    shutil.copytree(maker.root, directory / "root", symlinks=True)
    layout = Layout.open(directory / "root")
    resolved = layout.resolve(Reference.parse(name))
    for pack in (*resolved.manifest.each(PACK), *resolved.manifest.each(BOOTPACK)):
        path = Path(layout.images, "blobs/sha256", pack.digest.hex)
        origin.add(path.read_bytes())
        path.unlink()
    for tag in layout.tags():
        layout.untag(Reference.parse(tag.name))
    with layout.writing():
        layout.tag(Reference.parse(name), resolved.manifest, domain=f"{host}/me", remote=f"{host}/me/app")
    return Onesec(directory, {"ONESEC_CONFIG": str(directory / "onesec.toml")})


def start(onesec: Onesec, *words: str, name: str = "app") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        onesec.words("run", name, *(words or ("/bin/cat", "/srv/big"))),
        env=onesec.surroundings,
        stdin=subprocess.PIPE if words else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def hash_of(onesec: Onesec) -> str:
    """Of what a container reads, on pages that no other one has read."""
    with start(onesec) as run:
        out, err = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, err
    return hashlib.sha256(out).hexdigest()


def log_of(onesec: Onesec) -> str:
    return "".join(path.read_text() for path in onesec.run_dir.glob("domains/*/log"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_container_reads_right_through(maker: Onesec, origin: Origin, tmp_path: Path, name: str) -> None:
    onesec = far_host(maker, tmp_path, origin)
    origin.fail(name, FAULTS[name], times=3)
    assert hash_of(onesec) == DIGEST
    assert origin.met(name) == 3


def test_a_container_outlives_an_origin_that_is_gone_for_a_while(maker: Onesec, origin: Origin, tmp_path: Path) -> None:
    onesec = far_host(maker, tmp_path, origin)
    gate = threading.Event()
    origin.fail("held", faults.held(gate), where=lambda exchange: len(origin.asked) >= 2)
    with start(onesec) as run:
        eventually(lambda: origin.met("held") == 1)
        origin.vanish()
        gate.set()
        tried = origin.connections
        eventually(lambda: origin.connections >= tried + 3)
        assert run.poll() is None
        origin.heal()
        out, err = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, err
    assert hashlib.sha256(out).hexdigest() == DIGEST


def test_a_container_on_an_origin_that_is_gone_for_good_ends_with_an_error(
    maker: Onesec, origin: Origin, tmp_path: Path
) -> None:
    onesec = far_host(maker, tmp_path, origin, deadline=3)
    origin.fail("gone", faults.status(503), times=-1)
    with start(onesec) as run:
        out, _ = run.communicate(timeout=PATIENCE_S)
        assert run.returncode != 0
    assert out == b""
    assert origin.met("gone") > 1
    line = next(line for line in log_of(onesec).splitlines() if "before the deadline" in line)
    assert "app" in line
    assert f"http://127.0.0.1:{origin.port}: got status 503, want 206" in line


# ---------------------------------------------------------------------- in the middle of it


@pytest.fixture(scope="module")
def profiled(maker: Onesec) -> str:
    """The image with a boot pack that has all that `cat /srv/big` reads."""
    layout = Layout.open(maker.root)
    with layout.writing():
        resolved = layout.resolve(Reference.parse("app"))
        layout.tag(Reference.parse("profiled"), resolved.manifest, domain=resolved.domain)
    said = maker("profile", "profiled", "/bin/cat", "/srv/big")
    assert "pages" in said.err, said
    return "profiled"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_boot_pack_that_comes_through_faults_changes_no_byte(
    maker: Onesec, profiled: str, origin: Origin, tmp_path: Path, fault: str
) -> None:
    onesec = far_host(maker, tmp_path, origin, name=profiled, linger=1)
    origin.fail(fault, FAULTS[fault], times=6)
    for _ in range(2):  # the second one on what the pusher of the first one left
        with start(onesec, name=profiled) as run:
            out, err = run.communicate(timeout=PATIENCE_S)
            assert (run.returncode, hashlib.sha256(out).hexdigest()) == (0, DIGEST), err
    assert origin.met(fault) >= 1  # what the boot pack brings in time is not asked for by a reader
    said = onesec("fsck", "--json")
    assert said.status == 0, said


def test_a_login_that_ends_in_the_middle_of_a_start_is_renewed(maker: Onesec, origin: Origin, tmp_path: Path) -> None:
    onesec = far_host(maker, tmp_path, origin)
    origin.lifetime = 600

    def revoke(exchange: faults.Exchange) -> bool:
        origin.revoke()
        return False

    def is_due(exchange: faults.Exchange) -> bool:  # its own login has been good for a request
        logins = [one.headers["authorization"] for one in origin.asked if "authorization" in one.headers]
        return "range" in exchange.headers and exchange.headers.get("authorization") in logins

    origin.fail("401", revoke, times=2, where=is_due)
    assert hash_of(onesec) == DIGEST
    assert origin.met("401") == 2
    assert origin.refused() >= 2


@pytest.mark.parametrize("fault", ["503", "reset", "flipped bytes", "zeros", "wrong range", "200 for 206"])
def test_a_file_that_can_no_longer_be_had_ends_in_an_error_never_in_other_bytes(
    maker: Onesec, origin: Origin, tmp_path: Path, fault: str
) -> None:
    onesec = far_host(maker, tmp_path, origin, deadline=3)
    script = "echo go; read x; cat /srv/big; echo status $? >&2"
    with start(onesec, "/bin/sh", "-c", script) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"go\n"
        origin.fail(fault, FAULTS[fault], times=-1)
        out, err = run.communicate(b"\n", timeout=PATIENCE_S)
    assert BIG.startswith(out)
    assert len(out) < len(BIG)
    assert err == b"cat: /srv/big: Input/output error\nstatus 1\n" or err.startswith(b"/bin/sh"), err
    assert origin.met(fault) >= 1
    lines = [line for line in log_of(onesec).splitlines() if " chunk " in line]
    assert lines
    assert all(" app:latest: object " in line for line in lines), "one for each range: the kernel reads ahead"
