"""A shaped link between two network namespaces: an origin, a client, and nothing else. Needs root.

    with link(Shape(megabits=1000, delay_ms=1)) as found:
        subprocess.run(found.in_origin(["docker-registry", "serve", config]))
        subprocess.run(found.in_client(["podman", "pull", f"{found.address}:5000/app"]))
        found.counters().sent                      # bytes that left the origin's interface

Each namespace is held by a process that ends with ours, so nothing is left behind, whatever ends this process. Without
a delay it is a veth pair with a token bucket at each end. With one it is the same pair under netem where the kernel has
it, else two TUN devices with programs/link_emulator.c between them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Literal

from benchmarks.macro import native

DEVICE = "link0"
_ORIGIN, _CLIENT = "10.211.0.1", "10.211.0.2"
_QUEUE_S = 0.05  # of the line rate: what waits in front of the wire before packets are dropped
_BURST = 256 << 10  # bytes; a token bucket smaller than the largest packet would cut every one up

Means = Literal["veth", "netem", "tun"]


@dataclass(frozen=True, slots=True)
class Shape:
    """megabits: of each direction, in a second. delay_ms: one way; a round trip costs twice that."""

    megabits: float
    delay_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.megabits <= 0 or self.delay_ms < 0:
            raise ValueError(f"link: got {self.megabits} Mbit/s and {self.delay_ms} ms, want more than nothing")

    @property
    def bytes_per_second(self) -> float:
        return self.megabits * 1e6 / 8

    @property
    def queue_bytes(self) -> int:
        """What may wait: 50 ms of the line, and what is on its way."""
        return int(self.bytes_per_second * (_QUEUE_S + 2 * self.delay_ms / 1e3)) + _BURST


@dataclass(frozen=True, slots=True)
class Counters:
    """Of the origin's interface since it was made. sent: towards the client."""

    sent: int
    received: int

    def since(self, earlier: Counters) -> Counters:
        return Counters(self.sent - earlier.sent, self.received - earlier.received)


@dataclass(frozen=True, slots=True)
class Link:
    """origin, client: process ids that hold the namespaces. address: the origin's. means: how it is shaped. emulator:
    its process, where there is one; what it costs is taken from the machine that is measured.
    """

    origin: int
    client: int
    shape: Shape
    means: Means
    emulator: int | None = None
    address: str = _ORIGIN

    def in_origin(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        return [*_enter(self.origin), *[os.fspath(word) for word in argv]]

    def in_client(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        return [*_enter(self.client), *[os.fspath(word) for word in argv]]

    def counters(self) -> Counters:
        shown = _run(self.in_origin(["ip", "-json", "-statistics", "link", "show", "dev", DEVICE]))
        (found,) = json.loads(shown)
        statistics = found["stats64"]
        return Counters(statistics["tx"]["bytes"], statistics["rx"]["bytes"])


class LinkError(RuntimeError):
    """A step of making a link failed."""


@contextmanager
def link(shape: Shape, *, means: Means | None = None) -> Iterator[Link]:
    """Two namespaces with a link between them, for the block. means: how; by itself the first that the kernel has."""
    with ExitStack() as stack:
        origin = stack.enter_context(_namespace())
        client = stack.enter_context(_namespace())
        chosen: Means = means or ("veth" if shape.delay_ms == 0 else "netem" if _has_netem(origin) else "tun")
        emulator = None
        if chosen == "tun":
            emulator = stack.enter_context(_tun(origin, client, shape))
        else:
            _veth(origin, client, shape, chosen)
        for holder, address in ((origin, _ORIGIN), (client, _CLIENT)):
            _ip(holder, "address", "add", f"{address}/30", "dev", DEVICE)
            _ip(holder, "link", "set", DEVICE, "up")
            _ip(holder, "link", "set", "lo", "up")
        yield Link(origin, client, shape, chosen, emulator)


@contextmanager
def _namespace() -> Iterator[int]:
    """A network namespace. The process that holds it ends when its pipe is closed, by us or by the kernel."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo held; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with _ending(holder):
        _expect(holder.stdout, b"held\n", "network namespace")
        yield holder.pid


@contextmanager
def _tun(origin: int, client: int, shape: Shape) -> Iterator[int]:
    names = [f"ob{os.getpid()}{end}" for end in "oc"]  # unique while they are in our own namespace
    emulator = subprocess.Popen(
        [
            native.program("link_emulator", "link_wire.c", "link_wire.h"),
            *names,
            str(shape.delay_ms / 1e3),
            str(shape.bytes_per_second),
            str(shape.queue_bytes),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with _ending(emulator):
        _expect(emulator.stdout, b"ready\n", "link emulator")
        for name, holder in zip(names, (origin, client), strict=True):
            _run(["ip", "link", "set", name, "netns", str(holder)])
            _ip(holder, "link", "set", name, "name", DEVICE, "txqueuelen", "1000")
        yield emulator.pid


def _veth(origin: int, client: int, shape: Shape, means: Means) -> None:
    _ip(origin, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", str(client))
    rate = f"{int(shape.megabits * 1000)}kbit"
    for holder in (origin, client):
        words = ["tc", "qdisc", "add", "dev", DEVICE, "root"]
        if means == "netem":
            packets = str(max(1000, shape.queue_bytes // 1500))
            words += ["netem", "delay", f"{shape.delay_ms}ms", "rate", rate, "limit", packets]
        else:
            words += ["tbf", "rate", rate, "burst", str(_BURST), "limit", str(shape.queue_bytes)]
        _run([*_enter(holder), *words])


def _has_netem(holder: int) -> bool:
    words = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    if subprocess.run([*_enter(holder), *words], capture_output=True, check=False).returncode:
        return False
    _run([*_enter(holder), "tc", "qdisc", "del", "dev", "lo", "root"])
    return True


def ending_with_us(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """A daemon's argv, which the kernel ends when this process does, whatever ends it."""
    return ["setpriv", "--pdeathsig", "TERM", *[os.fspath(word) for word in argv]]


def _enter(holder: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{holder}/ns/net", "--"]


def _ip(holder: int, *words: str) -> None:
    _run([*_enter(holder), "ip", *words])


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinkError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _expect(stream: IO[bytes] | None, line: bytes, what: str) -> None:
    assert stream is not None
    got = stream.readline()
    if got != line:
        raise LinkError(f"{what}: it did not start")


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Closes the pipe that the process lives by, and waits for it."""
    try:
        yield
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
