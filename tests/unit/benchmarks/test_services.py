"""Daemons are up before the block and gone after it. A Python program stands for them."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.macro.link import ending_with_us
from benchmarks.macro.scenario import ScenarioError
from benchmarks.macro.services import Service, running

_LISTEN = """
import signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
open(sys.argv[1] + ".up", "w").close()
server.listen()
signal.sigwait({signal.SIGTERM})
open(sys.argv[1] + ".ended", "w").close()
"""
_BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
"""From the first line on, so that an early SIGTERM waits for the sigwait."""


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A directory whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        yield Path(name)


def daemon(directory: Path, name: str, code: str = _BLOCKED + _LISTEN) -> Service:
    path = directory / f"{name}.sock"
    return Service([sys.executable, "-I", "-S", "-c", code, str(path)], path)


def until_listening(path: Path) -> None:
    for _ in range(6000):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        time.sleep(0.01)
    pytest.fail("it never listened")


def same(argv: object) -> list[str]:
    assert isinstance(argv, list)
    return argv


def test_daemons_are_up_for_the_block_and_gone_after_it(short: Path) -> None:
    one, other = daemon(short, "one"), daemon(short, "other")
    with running([one, other], same, {}):
        assert (short / "one.sock.up").exists()
        assert (short / "other.sock.up").exists()
    assert (short / "one.sock.ended").exists()
    assert (short / "other.sock.ended").exists()


def test_one_that_dies_is_said_with_its_last_words_and_takes_the_others_along(short: Path) -> None:
    dead = daemon(short, "dead", "import sys; sys.exit('no fuse here')")
    with (
        pytest.raises(ScenarioError, match="it did not start: no fuse here"),
        running([daemon(short, "one"), dead], same, {}),
    ):
        pytest.fail("the block ran")
    assert (short / "one.sock.ended").exists()


def test_daemons_end_with_a_harness_that_was_killed(short: Path) -> None:
    """Killed before it could do anything: the daemon's end of a pipe closes when the kernel has ended it as well."""
    argv = ending_with_us([sys.executable, "-I", "-S", "-c", _BLOCKED + _LISTEN, str(short / "one.sock")])
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); sys.stdin.read()"
    harness = subprocess.Popen([sys.executable, "-c", code, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert harness.stdout is not None
    until_listening(short / "one.sock")
    harness.kill()
    assert harness.stdout.read() == b""  # held by both
    harness.communicate()
    assert (short / "one.sock.ended").exists()


def test_daemons_end_when_the_block_fails(short: Path) -> None:
    with pytest.raises(ZeroDivisionError), running([daemon(short, "one")], same, {}):
        _ = 1 // 0
    assert (short / "one.sock.ended").exists()
