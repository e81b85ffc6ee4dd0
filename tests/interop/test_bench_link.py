"""The shaped link as a kernel sees it: what goes in comes out, never sooner than the shape allows. Only lower bounds:
a busy machine makes a link slower, and nothing makes it faster. And what peers leave mounted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cext
from benchmarks.macro.link import Link, Shape, link
from benchmarks.macro.services import unmount_below

SIZE = 4_000_000
SHAPE = Shape(megabits=200, delay_ms=5)
_SERVER = """
import hashlib, os, socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
data = os.urandom(int(sys.argv[2]))
for _ in range(2):
    peer, _ = server.accept()
    with peer:
        peer.sendall(hashlib.sha256(data).hexdigest().encode() + data)
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1)
"""
_CLIENT = """
import hashlib, json, socket, sys, time
started = time.monotonic()
with socket.create_connection((sys.argv[1], 7000)) as peer:
    connected = time.monotonic() - started
    found = bytearray()
    while block := peer.recv(1 << 16):
        found += block
took = time.monotonic() - started
whole = hashlib.sha256(found[64:]).hexdigest() == found[:64].decode()
print(json.dumps({"connected": connected, "took": took, "size": len(found) - 64, "whole": whole}))
"""


@pytest.fixture(scope="module")
def wire(real_machine: None) -> Iterator[Link]:
    with link(SHAPE, means="tun") as found:
        yield found


def test_bytes_arrive_whole_after_the_delay_and_at_most_at_the_rate(wire: Link) -> None:
    before = wire.counters()
    server = subprocess.Popen(
        wire.in_origin([sys.executable, "-c", _SERVER, wire.address, str(SIZE)]), stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        for _ in range(2):
            call = wire.in_client([sys.executable, "-c", _CLIENT, wire.address])
            done = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)
            assert (done["size"], done["whole"]) == (SIZE, True)
            assert done["connected"] >= 2 * SHAPE.delay_ms / 1e3
            assert done["took"] >= SIZE / SHAPE.bytes_per_second
    finally:
        server.kill()
        server.communicate()
    assert wire.counters().since(before).sent >= 2 * SIZE


def test_an_idle_emulator_sleeps(wire: Link) -> None:
    """By its own CPU time, of which an idle second costs none and a spinning one at least a tick of 10 ms."""
    before = _cpu_ticks(wire)
    time.sleep(1)
    assert _cpu_ticks(wire) - before <= 1


def _cpu_ticks(wire: Link) -> int:
    assert wire.emulator is not None
    words = Path(f"/proc/{wire.emulator}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def test_the_emulator_ends_with_the_link_and_takes_its_devices_along(real_machine: None) -> None:
    with link(SHAPE, means="tun") as found:
        emulator = found.emulator
        assert Path(f"/proc/{emulator}").exists()
    assert not Path(f"/proc/{emulator}").exists()
    assert "link0" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def test_what_a_peer_left_mounted_is_taken_away_and_nothing_beside_it(real_machine: None, tmp_path: Path) -> None:
    inside, beside = tmp_path / "state/layers 1", tmp_path / "state-of-another"
    for path in (inside, beside):
        path.mkdir(parents=True)
        cext.mount("none", str(path), "tmpfs", 0, None)
    (inside / "fs").mkdir()
    cext.mount("none", str(inside / "fs"), "tmpfs", 0, None)
    try:
        unmount_below(tmp_path / "state")
        mounted = [str(path) for path in (inside, beside) if path.is_mount()]
        assert mounted == [str(beside)]
    finally:
        cext.umount2(str(beside), 0)
