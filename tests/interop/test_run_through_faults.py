"""A real container whose image is at a registry that fails on purpose: its programs, libraries and files come through
each fault, and what it reads hashes right. Each test shows that the fault was met.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.layout import Layout
from registry.model import PACK
from registry.reference import Reference
from tests.support import origin as faults
from tests.support.command import Onesec
from tests.support.origin import Fault, Origin
from tests.support.origin import serving as origin_serving
from tests.support.shell import shell_image

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


def far_host(maker: Onesec, place: Path, origin: Origin, deadline: float = 30) -> Onesec:
    """A host that has the image's index; the packs are at the origin."""
    directory = place / "far"
    directory.mkdir()
    host = f"127.0.0.1:{origin.port}"
    settings = (
        f'[run]\nlinger = 0\ndeadline = {deadline}\n[store]\nquota = "0"\n[registry."{host}"]\nplain-http = true\n'
    )
    (directory / "onesec.toml").write_text(settings)
    shutil.copytree(maker.root, directory / "root", symlinks=True)
    layout = Layout.open(directory / "root")
    resolved = layout.resolve(Reference.parse("app"))
    for pack in resolved.manifest.each(PACK):
        path = Path(layout.images, "blobs/sha256", pack.digest.hex)
        origin.add(path.read_bytes())
        path.unlink()
    with layout.writing():
        layout.tag(Reference.parse("app"), resolved.manifest, domain=f"{host}/me", remote=f"{host}/me/app")
    return Onesec(directory, {"ONESEC_CONFIG": str(directory / "onesec.toml")})


def start(onesec: Onesec) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        onesec.words("run", "app", "/bin/cat", "/srv/big"),
        env=onesec.surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def hash_of(onesec: Onesec) -> str:
    """Of what a container reads, on pages that no other one has read."""
    with start(onesec) as run:
        out, err = run.communicate(timeout=100)
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
        end = time.monotonic() + 20
        while origin.met("held") == 0:
            assert time.monotonic() < end
            time.sleep(0.02)
        origin.vanish()
        gate.set()
        time.sleep(1.5)
        assert run.poll() is None
        origin.heal()
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
    assert hashlib.sha256(out).hexdigest() == DIGEST


def test_a_container_on_an_origin_that_is_gone_for_good_ends_with_an_error(
    maker: Onesec, origin: Origin, tmp_path: Path
) -> None:
    onesec = far_host(maker, tmp_path, origin, deadline=1.5)
    origin.fail("gone", faults.status(503), times=-1)
    with start(onesec) as run:
        out, _ = run.communicate(timeout=60)
        assert run.returncode != 0
    assert out == b""
    assert origin.met("gone") > 1
    line = next(line for line in log_of(onesec).splitlines() if "before the deadline" in line)
    assert "app" in line
    assert f"http://127.0.0.1:{origin.port}: got status 503, want 206" in line
