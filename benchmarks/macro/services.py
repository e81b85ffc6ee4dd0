"""Daemons that a peer needs beside its commands: up before a measurement, gone after it, whatever happens between."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cext
from benchmarks.macro.link import ending_with_us
from benchmarks.macro.scenario import ScenarioError

_WAIT_S = 60
_DETACH = 2


@dataclass(frozen=True, slots=True)
class Service:
    """socket: answers when the daemon is up. Its log lies beside it."""

    argv: Sequence[str]
    socket: Path

    @property
    def log(self) -> Path:
        return self.socket.with_suffix(".log")


@contextmanager
def running(
    services: Sequence[Service], enter: Callable[[Sequence[str]], list[str]], environment: Mapping[str, str]
) -> Iterator[None]:
    """The daemons, each started when the one before is up, for the block. enter: an argv made one of a namespace."""
    with ExitStack() as stack:
        for service in services:
            service.socket.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_running(service, enter(ending_with_us(service.argv)), environment))
        yield


@contextmanager
def _running(service: Service, argv: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    with open(service.log, "wb") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    try:
        _wait(service, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(service: Service, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(os.fspath(service.socket)) == 0:
                return
        time.sleep(0.05)
    lines = service.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise ScenarioError(f"{Path(service.argv[0]).name}: it did not start: {lines[-1][-200:]}")


def unmount_below(directory: Path) -> None:
    """Detaches what is mounted below a directory in this mount namespace, what was mounted last first."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for point in reversed(points):
        if Path(point).is_relative_to(directory):
            cext.umount2(point, _DETACH)
