"""A link with delay and rate between two TUN devices, for kernels without netem.

    python -m benchmarks.macro.programs.link_emulator NAME NAME DELAY-S RATE-BYTES-PER-S QUEUE-BYTES

Makes both devices, prints `ready`, and carries packets from each to the other until stdin ends: whoever started it
moves the devices to where they belong, and nothing is left when that process is gone. A packet leaves when the wire was
free for its size and the delay has passed; what finds more than QUEUE-BYTES waiting is dropped, as a router drops it. A
proxy that ended connections here would hide the delay from TCP's slow start, which is most of what a delay costs.

Packets come and go as the kernel has them, up to 64 KiB with their offload header, so that one process in Python
carries 1 Gbit/s with about 2,000 packets a second each way.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_TUN, _NO_INFORMATION, _OFFLOAD_HEADER = 0x0001, 0x1000, 0x4000
_CHECKSUMS, _TCP4, _TCP6 = 0x01, 0x02, 0x04
_HEADER = 10  # bytes of virtio_net_hdr in front of each packet
_LARGEST = 65536 + _HEADER
_SPIN_S = 0.00005


def open_device(name: str) -> int:
    """A TUN device in the network namespace of this process; gone when the descriptor is closed."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = _TUN | _NO_INFORMATION | _OFFLOAD_HEADER
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _HEADER))
    fcntl.ioctl(fd, _TUNSETOFFLOAD, _CHECKSUMS | _TCP4 | _TCP6)
    return fd


@dataclass(slots=True)
class Direction:
    """One way of the link. Times are seconds of one clock, sizes bytes.

    free: when the wire will have sent everything that waits. queue: due time and packet, ascending.
    """

    delay: float
    rate: float
    room: int
    free: float = 0.0
    dropped: int = 0
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)

    def arrive(self, packet: bytes, now: float) -> None:
        size = len(packet) - _HEADER
        backlog = max(0.0, self.free - now) * self.rate
        if backlog + size > self.room:
            self.dropped += 1
            return
        self.free = max(self.free, now) + size / self.rate
        self.queue.append((self.free + self.delay, packet))

    def leave(self, now: float) -> list[bytes]:
        """The packets whose time has come."""
        gone = []
        while self.queue and self.queue[0][0] <= now:
            gone.append(self.queue.popleft()[1])
        return gone

    @property
    def next(self) -> float | None:
        return self.queue[0][0] if self.queue else None


def carry(devices: tuple[int, int], directions: tuple[Direction, Direction], control: int) -> None:
    """Until control ends."""
    ends = dict(zip(devices, zip(directions, reversed(devices), strict=True), strict=True))
    while True:
        times = [direction.next for direction in directions if direction.next is not None]
        timeout = max(0.0, min(times) - time.monotonic() - _SPIN_S) if times else None
        readable, _, _ = select.select([*devices, control], [], [], timeout)
        now = time.monotonic()
        for fd in readable:
            if fd == control:
                return
            _take(fd, ends[fd][0], now)
        now = time.monotonic()
        for direction, target in ends.values():
            for packet in direction.leave(now):
                try:
                    os.write(target, packet)
                except OSError:  # the device is down: it is being torn down
                    direction.dropped += 1


def _take(fd: int, direction: Direction, now: float) -> None:
    for _ in range(64):
        try:
            direction.arrive(os.read(fd, _LARGEST), now)
        except OSError:  # nothing more, or the device is down
            return


def main() -> None:
    one, other, delay, rate, room = sys.argv[1:]
    devices = open_device(one), open_device(other)
    print("ready", flush=True)
    directions = tuple(Direction(float(delay), float(rate), int(room)) for _ in range(2))
    carry(devices, (directions[0], directions[1]), 0)


if __name__ == "__main__":
    main()
