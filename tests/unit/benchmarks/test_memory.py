from __future__ import annotations

import subprocess
import sys

from benchmarks.macro.memory import TreePeak, descendants, resident
from tests.support.waiting import eventually

MIB = 1 << 20
HOLD = "import sys; held = bytearray(b'x') * ({mib} << 20); {more}; print('there', flush=True); sys.stdin.read()"
CHILD = "import subprocess; child = subprocess.Popen([sys.executable, '-c', {code!r}], stdin=0)"


def started(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> None:
    process.communicate()
    assert process.returncode == 0


def test_the_memory_of_children_counts() -> None:
    inner = HOLD.format(mib=50, more="pass")
    process = started(HOLD.format(mib=30, more=CHILD.format(code=inner)))
    with TreePeak(process.pid) as watched:
        assert process.stdout is not None
        for _ in range(2):  # of the parent and of the child, whose output is the parent's
            process.stdout.readline()
        assert len(descendants(process.pid)) == 2
        assert resident(process.pid) < 80 * MIB
        eventually(lambda: watched.peak > 80 * MIB)  # both hold on until we close their input
        ended(process)
    assert 80 * MIB < watched.peak < 160 * MIB


def test_what_was_freed_before_the_end_is_in_the_peak() -> None:
    process = started(HOLD.format(mib=60, more="import time; time.sleep(0.5); del held"))
    with TreePeak(process.pid) as watched:
        assert process.stdout is not None
        process.stdout.readline()
        assert resident(process.pid) < 60 * MIB
        ended(process)
    assert watched.peak > 60 * MIB


def test_a_process_that_has_ended_has_nothing() -> None:
    process = started("pass")
    ended(process)
    assert resident(process.pid) == 0
    assert descendants(process.pid) == [process.pid]
