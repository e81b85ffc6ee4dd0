"""The emulator's arithmetic, on a clock that only we move."""

from __future__ import annotations

import pytest

from benchmarks.macro.programs.link_emulator import Direction

HEADER = bytes(10)


def packet(size: int, mark: bytes = b"p") -> bytes:
    return HEADER + mark * size


def test_a_packet_leaves_after_its_time_on_the_wire_and_the_delay() -> None:
    way = Direction(delay=0.010, rate=1000.0, room=10_000)
    way.arrive(packet(100), 5.0)
    assert way.next == pytest.approx(5.0 + 0.1 + 0.010)
    assert way.leave(5.10) == []
    assert way.leave(5.111) == [packet(100)]
    assert way.next is None


def test_packets_share_the_wire_but_not_the_delay() -> None:
    way = Direction(delay=1.0, rate=1000.0, room=10_000)
    way.arrive(packet(100, b"a"), 0.0)
    way.arrive(packet(100, b"b"), 0.0)
    assert way.leave(1.1) == [packet(100, b"a")]
    assert way.leave(1.2) == [packet(100, b"b")]


def test_an_idle_wire_saves_nothing_up() -> None:
    way = Direction(delay=0.0, rate=1000.0, room=10_000)
    way.arrive(packet(100), 0.0)
    way.arrive(packet(100), 50.0)
    assert [way.queue[0][0], way.queue[1][0]] == pytest.approx([0.1, 50.1])


def test_what_finds_the_queue_full_is_dropped() -> None:
    way = Direction(delay=0.0, rate=1000.0, room=250)
    for _ in range(3):
        way.arrive(packet(100), 0.0)
    assert (len(way.queue), way.dropped) == (2, 1)
    way.arrive(packet(100), 0.1)  # one has left the wire
    assert (len(way.queue), way.dropped) == (3, 1)
