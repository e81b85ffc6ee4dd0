"""A start is learned from, and the next one of the same command finds its pages read ahead."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lazyfs import learned, objects
from registry.layout import LOCAL_DOMAIN
from tests.support.command import Onesec
from tests.support.shell import shell_image
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")

BIG = os.urandom(3 << 20)


def host(directory: Path, settings: str = "") -> Onesec:
    """With the image `app`, whose starts nobody has guessed."""
    directory.mkdir()
    (directory / "onesec.toml").write_text(f"[run]\nlinger = 0\n{settings}")
    onesec = Onesec(directory, {"ONESEC_CONFIG": str(directory / "onesec.toml")})
    image = shell_image(directory, files={"srv/big": BIG, "srv/small": b"hello\n"})
    said = onesec("import", image, "-t", "app", "--no-boot-pack")
    assert said.status == 0, said.err
    return onesec


def lessons(onesec: Onesec) -> list[Path]:
    return sorted(onesec.root.glob("cache/learned/*/*"))


def read_of(path: Path) -> int:
    """Bytes that its next start reads ahead."""

    def refuse(text: str) -> None:
        raise AssertionError(text)

    return sum(length for _, _, length in learned.load(str(path), refuse))


def read_bytes(onesec: Onesec) -> int:
    """Of the server, if there is one."""
    found = objects.statistics(LOCAL_DOMAIN, run_dir=onesec.run_dir, root=onesec.root)
    return 0 if found is None else int(found["statistics"]["read_bytes"])


def test_a_start_is_learned_from_and_forgotten_with_its_image(tmp_path: Path) -> None:
    onesec = host(tmp_path / "host")
    assert onesec("run", "app", "/bin/cat", "/srv/small").out == "hello\n"
    (first,) = lessons(onesec)
    assert 0 < read_of(first) < len(BIG)
    assert onesec("run", "app", "/bin/cat", "/srv/big").status == 0
    assert len(lessons(onesec)) == 2
    assert max(map(read_of, lessons(onesec))) > len(BIG)
    assert onesec("run", "app", "/bin/cat", "/srv/none").status != 0
    assert len(lessons(onesec)) == 2
    assert onesec("gc").status == 0
    assert len(lessons(onesec)) == 2
    assert onesec("rm", "app").status == 0
    assert lessons(onesec) == []


def test_what_was_read_before_is_read_ahead(tmp_path: Path) -> None:
    onesec = host(tmp_path / "host", "learn = true\n")
    words = ("/bin/sh", "-c", "cat /srv/big > /dev/null")
    assert onesec("run", "app", *words).status == 0
    (path,) = lessons(onesec)
    waits = ("/bin/sh", "-c", "sleep 300")
    other = learned.path_of(onesec.root, path.parent.name, waits)
    os.rename(path, other)  # as if this command had read the large file
    child = onesec.start("run", "app", *waits)
    try:
        eventually(lambda: read_bytes(onesec) > len(BIG))
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_a_damaged_lesson_is_a_line(tmp_path: Path) -> None:
    onesec = host(tmp_path / "host")
    assert onesec("run", "app", "/bin/cat", "/srv/small").status == 0
    (path,) = lessons(onesec)
    path.write_bytes(path.read_bytes()[:-1])
    said = onesec("run", "app", "/bin/cat", "/srv/small")
    assert (said.status, said.out) == (0, "hello\n")
    assert "damaged, and removed" in said.error
    assert onesec("run", "app", "/bin/cat", "/srv/small").err == ""


def test_nothing_is_learned_where_the_host_says_so(tmp_path: Path) -> None:
    onesec = host(tmp_path / "host", "learn = false\n")
    assert onesec("run", "app", "/bin/cat", "/srv/small").status == 0
    assert lessons(onesec) == []
