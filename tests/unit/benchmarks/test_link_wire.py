"""The emulator's arithmetic, on a clock that only we move: rate, delay, order and drops, whatever the machine does."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.macro.native import SOURCES

MS = 1_000_000  # ns
DRIVER = Path(__file__).parents[2] / "support/link_wire_driver.c"
Step = tuple[str, int, int]  # "a", size, now; or "l", 0, now


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled with the sanitizers: an overrun or a leak fails the test by its exit status."""
    made = tmp_path_factory.mktemp("driver") / "driver"
    words = ["cc", "-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    words += ["-fno-sanitize-recover=all", f"-I{SOURCES}", "-o", str(made), str(DRIVER), str(SOURCES / "link_wire.c")]
    subprocess.run([*words, "-lm"], check=True)
    return made


def said(driver: Path, link: tuple[float, float, float], steps: Sequence[Step]) -> list[str]:
    lines = [f"a {size} {now}" if kind == "a" else f"{kind} {now}" for kind, size, now in steps]
    done = subprocess.run(
        [driver, *map(str, link)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.strip() for line in done.stdout.splitlines()]


def test_a_packet_leaves_after_its_time_on_the_wire_and_the_delay(driver: Path) -> None:
    steps: list[Step] = [("a", 100, 5000 * MS), ("l", 0, 5110 * MS - 1), ("l", 0, 5110 * MS), ("n", 0, 0)]
    assert said(driver, (0.010, 1000, 10_000), steps) == [str(5110 * MS), "", "0", "none"]


def test_packets_share_the_wire_but_not_the_delay(driver: Path) -> None:
    steps: list[Step] = [("a", 100, 0), ("a", 100, 0), ("n", 0, 0), ("l", 0, 1100 * MS), ("l", 0, 1200 * MS)]
    assert said(driver, (1.0, 1000, 10_000), steps) == [str(1100 * MS), str(1200 * MS), str(1100 * MS), "0", "1"]


def test_an_idle_wire_saves_nothing_up(driver: Path) -> None:
    steps: list[Step] = [("a", 100, 0), ("a", 100, 50_000 * MS), ("a", 100, 50_000 * MS)]
    assert said(driver, (0, 1000, 10_000), steps) == [str(100 * MS), str(50_100 * MS), str(50_200 * MS)]


def test_what_finds_the_queue_full_is_dropped(driver: Path) -> None:
    steps: list[Step] = [("a", 100, 0)] * 3 + [("a", 100, 100 * MS)]  # by then one has left the wire
    assert said(driver, (0, 1000, 250), steps) == [str(100 * MS), str(200 * MS), "dropped", str(300 * MS)]


@pytest.mark.parametrize(
    "link", [("-1", "1", "1"), ("0", "0", "1"), ("0", "nan", "1"), ("0", "1", "-1"), ("inf", "1", "1")]
)
def test_what_is_no_link_is_refused(driver: Path, link: tuple[str, str, str]) -> None:
    assert subprocess.run([driver, *link], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 2


def model(delay_ns: int, ns_per_byte: int, room: int, steps: Sequence[Step]) -> list[str]:
    """The same in integers."""
    free, arrived, lines = 0, 0, []
    queue: deque[tuple[int, int]] = deque()
    for kind, size, now in steps:
        if kind == "l":
            gone = []
            while queue and queue[0][0] <= now:
                gone.append(str(queue.popleft()[1]))
            lines.append(" ".join(gone))
            continue
        begins = max(free, now)
        if begins - now + size * ns_per_byte > room * ns_per_byte:
            lines.append("dropped")
        else:
            free = begins + size * ns_per_byte
            queue.append((free + delay_ns, arrived))
            lines.append(str(free + delay_ns))
        arrived += 1
    return lines


STEPS = st.lists(st.tuples(st.sampled_from("aaal"), st.integers(20, 65536), st.integers(0, 3 * MS)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    delay_ms=st.integers(0, 100),
    ns_per_byte=st.sampled_from([1, 8, 80]),  # 8, 1 and 0.1 Gbit/s: exact in binary
    room=st.sampled_from([0, 1500, 100_000, 10_000_000]),
    steps=STEPS,
)
def test_it_does_what_the_model_in_integers_does(
    driver: Path, delay_ms: int, ns_per_byte: int, room: int, steps: list[Step]
) -> None:
    now, timed = 0, []
    for kind, size, later in steps:
        now += later
        timed.append((kind, size, now))
    found = said(driver, (delay_ms / 1e3, 1e9 / ns_per_byte, room), timed)
    assert found == model(delay_ms * MS, ns_per_byte, room, timed)
