"""A child that is kept: in a process of its own, since it forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]

KEEPER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from lazyfs.kept_process import KeptProcess

def body():
    with_grandchild = sys.argv[2] == "grandchild"
    grandchild = os.fork() if with_grandchild else 0
    if with_grandchild and grandchild == 0:
        time.sleep(1000)  # it has everything open that its parent has
    os.write(1, f"{os.getpid()} {grandchild}\\n".encode())
    if sys.argv[2] == "brief":
        return 3
    os.read(0, 1)  # until the keeper's other end closes
    return 0

kept = KeptProcess(body, "child")
kept.start()
if sys.argv[2] == "no room":
    real, failures = os.fork, [OSError(11, "Resource temporarily unavailable")] * 2
    def fork():
        if failures:
            raise failures.pop()
        return real()
    os.fork = fork
kept.run(0)
"""


@contextmanager
def keeper(kind: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(ROOT), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def next_child(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    child, grandchild = process.stdout.readline().split()
    return int(child), int(grandchild)


def test_a_child_that_is_killed_is_started_again_and_ends_with_its_keeper() -> None:
    with keeper("plain") as process:
        seen = []
        for _ in range(3):
            child, _ = next_child(process)
            seen.append(child)
            os.kill(child, signal.SIGKILL)
        last, _ = next_child(process)
        assert len({*seen, last}) == 4
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
        assert not Path(f"/proc/{last}").exists()


def test_what_a_child_left_running_holds_up_nothing() -> None:
    with keeper("grandchild") as process:
        left = []
        try:
            for _ in range(2):
                child, grandchild = next_child(process)
                left.append(grandchild)
                os.kill(child, signal.SIGKILL)
            _, grandchild = next_child(process)
            left.append(grandchild)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
            assert all(Path(f"/proc/{number}").exists() for number in left)
        finally:
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def test_a_child_that_ends_at_once_is_started_later_each_time() -> None:
    with keeper("brief") as process:
        assert len({next_child(process)[0] for _ in range(4)}) == 4
        process.kill()
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert len(lines) >= 3
    assert set(lines) == {"child: ended with 3; another one is started"}


def test_a_host_without_room_for_another_process_is_asked_again() -> None:
    with keeper("no room") as process:
        child, _ = next_child(process)
        os.kill(child, signal.SIGKILL)
        assert next_child(process)[0] != child
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == [
            "child: ended with -9; another one is started",
            *["child: not started: Resource temporarily unavailable; once more a little later"] * 2,
        ]
