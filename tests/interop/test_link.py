"""The shaped link of the benchmarks: real namespaces, real TCP, and nothing left when it is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.macro.link import Means, Shape, link
from tests.support.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).parents[2]
BYTES = 6_000_000
SEND = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("listening", flush=True)
for _ in range(int(sys.argv[3])):
    connection, _ = server.accept()
    with connection:
        while connection.recv(1):
            connection.sendall(bytes(int(sys.argv[2])))
"""
FETCH = """
import json, socket, sys, time
times = []
with socket.create_connection((sys.argv[1], 7000)) as connection:
    for _ in range(int(sys.argv[3])):
        started = time.perf_counter()
        connection.sendall(b"x")
        left = int(sys.argv[2])
        while left:
            left -= len(connection.recv(1 << 20))
        times.append(time.perf_counter() - started)
print(json.dumps(times))
"""


def transfers(shape: Shape, size: int, count: int, means: Means | None) -> tuple[list[float], int, Means]:
    """Seconds of each answer of `size` bytes on one connection, bytes that left the origin, and how it was shaped."""
    with link(shape, means=means) as found:
        before = found.counters()
        server = subprocess.Popen(
            found.in_origin([sys.executable, "-c", SEND, found.address, str(size), "1"]), stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()
            call = found.in_client([sys.executable, "-c", FETCH, found.address, str(size), str(count)])
            done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
            moved = found.counters().since(before)
        finally:
            server.kill()
            server.communicate()
        return json.loads(done.stdout), moved.sent, found.means


@pytest.mark.parametrize("means", ["veth", "tun"])
def test_bytes_arrive_no_faster_than_the_link_and_are_counted(real_machine: None, means: Means) -> None:
    (seconds,), sent, _ = transfers(Shape(megabits=100), BYTES, 1, means)
    # A bucket of 256 KiB, or a queue, may go out at once; the rest takes its time.
    assert seconds >= (BYTES - (1 << 20)) * 8 / 100e6
    assert BYTES < sent < 2 * BYTES  # a busy machine sends some packets twice


def test_a_delay_costs_each_round_trip_and_slow_start(real_machine: None) -> None:
    delay = 20.0
    times, _, means = transfers(Shape(megabits=1000, delay_ms=delay), 1, 3, None)
    assert min(times) >= 2 * delay / 1e3
    assert means in ("netem", "tun")
    # 1 MB takes 8 ms at this rate, but a new connection starts with ten packets: it needs several round trips.
    (first,), _, _ = transfers(Shape(megabits=1000, delay_ms=delay), 1_000_000, 1, None)
    assert first >= 3 * 2 * delay / 1e3


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@pytest.mark.parametrize("means", ["veth", "tun"])
def test_nothing_is_left_after_an_error(real_machine: None, means: Means) -> None:
    before = interfaces()
    holders: list[int] = []

    def fail() -> None:
        with link(Shape(megabits=100), means=means) as found:
            holders.extend((found.origin, found.client))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert interfaces() == before
    assert not [pid for pid in holders if Path(f"/proc/{pid}").exists()]


def test_nothing_is_left_when_the_process_is_killed(real_machine: None) -> None:
    before = interfaces()
    code = (
        "import sys, time\nfrom benchmarks.macro.link import Shape, link\n"
        "with link(Shape(100, 1), means='tun') as found:\n"
        "    print(found.origin, found.client, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    holders = [int(word) for word in process.stdout.readline().split()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    eventually(
        lambda: interfaces() == before and not any(_alive(pid) for pid in holders),
        "a namespace or a device outlived its process",
    )
    assert len(holders) == 2


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_two_ends_reach_each_other_and_nothing_else(real_machine: None) -> None:
    with link(Shape(megabits=100)) as found:
        assert subprocess.run(found.in_client(["ip", "route", "get", "1.1.1.1"]), capture_output=True).returncode != 0
        routes = subprocess.run(found.in_client(["ip", "route"]), capture_output=True, text=True, check=True).stdout
        assert routes.count("\n") == 1


@pytest.mark.parametrize(("megabits", "delay"), [(0, 0), (-1, 0), (100, -1)])
def test_a_link_that_cannot_be_is_refused(megabits: float, delay: float) -> None:
    with pytest.raises(ValueError, match="want more than nothing"):
        Shape(megabits, delay)
