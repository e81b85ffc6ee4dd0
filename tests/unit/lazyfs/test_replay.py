"""The process that reads ahead of a start: what it asks the kernel, and when it has no business any more."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs import learned, replay

_ASKS = """
import os, sys
import cext
fd = os.open(sys.argv[1], os.O_RDONLY)
os.setuid(65534)
print(cext.cached(fd, 0, 1), flush=True)
os._exit(0)  # a sanitizer that looks for leaks may not trace this user
"""


@pytest.mark.usefixtures("real_machine")
def test_a_kernel_that_does_not_say_what_is_cached_is_no_error(tmp_path: Path) -> None:
    """Newer ones do not say so of files of others, and filters of system calls may deny the call."""
    (tmp_path / "file").write_bytes(b"x")
    asked = subprocess.run([sys.executable, "-c", _ASKS, tmp_path / "file"], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() in ("None", "0", str(os.sysconf("SC_PAGESIZE")))


def test_what_is_left_is_not_read_once_the_client_is_gone(tmp_path: Path) -> None:
    waiting: queue.SimpleQueue[learned.Run | None] = queue.SimpleQueue()
    runs: list[learned.Run | None] = [(b"a" * 32, 0, 4096), (b"b" * 32, 0, 4096), None]
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for client, left in ((os.getppid(), 0), (os.getpid(), 2)):
            for run in runs:
                waiting.put(run)
            replay._read(directory, waiting, client)
            assert waiting.qsize() == left
            while not waiting.empty():
                waiting.get()
    finally:
        os.close(directory)
