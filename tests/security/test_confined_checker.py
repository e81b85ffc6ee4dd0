"""The process in which a stranger's index is checked: from inside, nothing can be opened, run, reached or changed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).parents[2]
SOURCES = ("tests/support/confined.c", "cext/src/os_confine.c", "cext/src/os_result.c")
FORBIDDEN = (
    "open",
    "stat",
    "read",
    "write elsewhere",
    "exec",
    "fork",
    "socket",
    "kill",
    "kill by number",
    "ptrace",
    "mount",
    "become root",
    "prctl",
    "unlink",
    "bpf",
    "io_uring",
    "executable memory",
    "memory made executable",
)
OK, CORRUPT, LIMIT = 0, 1, 2  # os_code


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("confined") / "confined"
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    words = ["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/cext/src"]
    subprocess.run([*words, *(str(ROOT / source) for source in SOURCES), "-o", str(path)], check=True, env=plain)
    return path


def attempt(program: Path, name: str) -> tuple[int, str]:
    plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run([program, name], capture_output=True, text=True, check=True, env=plain)
    code, _, message = done.stdout.rstrip("\n").partition(" ")
    return int(code), message


@pytest.mark.parametrize("name", FORBIDDEN)
def test_an_attempt_to_do_anything_but_parse_is_death(program: Path, name: str) -> None:
    assert attempt(program, name) == (CORRUPT, f"checker: it was killed by signal {int(signal.SIGSYS)}")


def test_memory_can_be_used_and_an_answer_comes_back(program: Path) -> None:
    assert attempt(program, "memory") == (OK, "")
    assert attempt(program, "unheard of") == (LIMIT, "no attempt of this name: unheard of")


def test_a_crash_is_an_error_and_not_ours(program: Path) -> None:
    assert attempt(program, "crash") == (CORRUPT, f"checker: it was killed by signal {int(signal.SIGSEGV)}")
    code, message = attempt(program, "abort")
    assert code == CORRUPT
    assert message.startswith("checker: it was killed by signal ")


@contextmanager
def spinning(program: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A caller, and its confined child that is busy."""
    plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    inherited = os.open("/dev/null", os.O_RDONLY)
    caller = subprocess.Popen([program, "spin"], stdout=subprocess.PIPE, text=True, env=plain, pass_fds=(inherited,))
    os.close(inherited)
    child = 0
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not child or "Seccomp:\t2" not in Path(f"/proc/{child}/status").read_text():
            assert time.monotonic() < deadline
            found = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
            child = int(found[0]) if found else 0
        yield caller, child
    finally:
        caller.kill()
        caller.communicate()


def test_the_checker_has_no_privileges_and_no_descriptor_but_its_pipe(program: Path) -> None:
    with spinning(program) as (_, child):
        lines = Path(f"/proc/{child}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if os.geteuid() == 0:
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].split() == []
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        fds = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
        assert len(fds) == 1
        assert fds[0].startswith("pipe:")


def test_a_killed_checker_is_told(program: Path) -> None:
    with spinning(program) as (caller, child):
        os.kill(child, signal.SIGKILL)
        out, _ = caller.communicate(timeout=PATIENCE_S)
        assert out == f"{CORRUPT} checker: it was killed by signal {int(signal.SIGKILL)}\n"


def is_dead(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # as it is, or became while it was read
        return True


def test_a_checker_dies_with_its_caller(program: Path) -> None:
    with spinning(program) as (caller, child):
        caller.kill()
        caller.wait()
        eventually(lambda: is_dead(child))
