"""Reads what earlier starts read, ahead of the container, through the same mount and in the same order.

A process of its own, forked from the client, because the kernel charges a page to the cgroup of whoever brings it in.
It only reads: what comes is verified by the server like anything else, and what it cannot have the container finds out.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import cext
from lazyfs.background import keep_only
from lazyfs.learned import Run

NAME = "onesec-replay"
THREADS = 4  # a read of bytes that are far waits for one span; the next ones need not wait behind it
SAMPLES = 8
_STEP = 1 << 20


def start(objects: int, runs: Sequence[Run]) -> int:
    """The process, to be ended by `stop`; -1: all is in memory, as far as a sample says. objects: the root of the
    object mount. Not beside a thread.
    """
    if _is_cached(objects, runs):
        return -1
    client = os.getpid()
    process = os.fork()
    if process == 0:
        _become_replay(objects, runs, client)
    return process


def stop(process: int) -> None:
    if process >= 0:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _is_cached(objects: int, runs: Sequence[Run]) -> bool:
    """By a few of them."""
    for identity, offset, length in runs[:: max(1, len(runs) // SAMPLES)]:
        fd = _opened(objects, identity)
        if fd < 0:
            continue
        try:
            found = cext.cached(fd, offset, length)
        finally:
            os.close(fd)
        if found is None or found < length:
            return False
    return True


def _opened(objects: int, identity: bytes) -> int:
    """-1: no image has it, or not any more."""
    name = identity.hex()
    try:
        return os.open(f"{name[:2]}/{name[2:]}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=objects)
    except OSError:
        return -1


def _become_replay(objects: int, runs: Sequence[Run], client: int) -> NoReturn:
    try:
        cext.set_process_name(NAME)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        (root,) = keep_only([objects], null)
        waiting: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        for run in runs:
            waiting.put(run)
        threads = [threading.Thread(target=_read, args=(root, waiting, client)) for _ in range(THREADS)]
        for thread in threads:
            waiting.put(None)  # one end for each
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os._exit(0)


def _read(objects: int, waiting: queue.SimpleQueue[Run | None], client: int) -> None:
    """Until the client is gone: one that is killed cannot end us."""
    while (run := waiting.get()) is not None and os.getppid() == client:
        identity, offset, length = run
        fd = _opened(objects, identity)
        if fd < 0:
            continue
        try:
            for at in range(offset, offset + length, _STEP):
                with suppress(OSError):
                    os.pread(fd, min(_STEP, offset + length - at), at)
        finally:
            os.close(fd)
