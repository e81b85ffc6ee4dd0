from __future__ import annotations

import pytest

from onesec.timeline_page import page, seconds, size, table, ticks, window
from tests.support.timelines import boot, record


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0.0, "0 µs"), (9e-7, "1 µs"), (0.00042, "420 µs"), (0.001, "1 ms"), (0.0123456, "12.3 ms")),
        *((0.9996, "1.00 s"), (1.0, "1.00 s"), (99.0, "99.00 s"), (4000.0, "4,000 s")),
    ],
)
def test_times_come_in_the_unit_that_is_read_fastest(value: float, words: str) -> None:
    assert seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0 B"), (999, "999 B"), (4096, "4.1 kB"), (76_100_000, "76.1 MB"), (5e9, "5.0 GB")]
)
def test_sizes_are_decimal(value: float, words: str) -> None:
    assert size(value) == words


@pytest.mark.parametrize("whole", [0.001, 0.0033, 0.1, 0.75, 1.42, 9.9, 60.0, 86400.0])
def test_the_axis_has_a_few_round_times(whole: float) -> None:
    found = ticks(whole)
    assert found[0] == 0
    assert found[-1] <= whole * (1 + 1e-9)
    assert 3 <= len(found) <= 9
    first = f"{found[1]:.3e}"
    assert first[:4] in ("1.00", "2.00", "5.00"), first


def test_the_table_says_what_the_page_says() -> None:
    lines = table(record()).splitlines()
    assert lines[0] == "torch:latest  python3 -c import torch; print(torch.ones(2).sum())"
    assert lines[1] == "status 0 after 1.42 s"
    assert lines[4].split() == ["interpreter", "0", "µs", "18", "ms", "█"]
    assert "boot pack: 76.1 MB in 900 files, 20.5 MB packed, 73 of 73 frames, from 50 ms to 410 ms, 99%" in table(
        record()
    )
    assert "page faults that left the kernel: 900 reads, 900 look-ups" in lines
    assert [line.split()[0] for line in lines if line.endswith(" MB")] == ["boot", "memory", "pack", "network"]
    slowest = max(record()["reads"], key=lambda read: read["seconds"])
    first = lines[lines.index(next(line for line in lines if line.startswith("slowest reads"))) + 1]
    assert first.startswith(f"at {seconds(slowest['t'])}")
    assert first.endswith(slowest["path"] or "…")


def test_no_control_character_of_an_image_reaches_the_terminal() -> None:
    shown = record(3, command=["\x1b[2J"], boot=boot(error="\x1b]0;x\x07"), bytes={"\x1b": 1})
    for read in shown["reads"]:
        read |= {"path": "etc/\x1b[31m\r\n\udc80", "source": "\x9b"}
    shown["phases"][0]["name"] = "\x07"
    text = table(shown)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert text.encode("utf-8")
    assert page(shown).encode("utf-8")


def test_a_boot_pack_of_an_earlier_start_and_a_broken_one_are_told_apart() -> None:
    assert "already there from an earlier start" in table(record(boot=boot(kept=True, share=None)))
    late = table(record(boot=boot(frames=0, objects=0, bytes=0, start=0.0, end=0.0, share=None, progress=[])))
    assert "still on its way when the command ended" in late
    broken = table(record(boot=boot(frames=7, error="frame 8: bad digest")))
    assert "7 of 73 frames" in broken
    assert "broken off: frame 8: bad digest" in broken


def test_of_a_long_life_only_the_start_is_drawn_and_a_short_one_is_drawn_whole() -> None:
    assert window(record()) == (1.42, False)
    shown = record(seconds=3600.0)
    shown["phases"][-1]["end"] = 3600.0
    assert window(shown).cut
    assert window(shown).seconds < 2
    # one late read does not press the start into the corner
    shown["reads"].append({**shown["reads"][-1], "t": 3599.0})
    assert window(shown).seconds < 2
    assert "1 reads came later" in page(shown)


def test_a_record_with_nothing_in_it_is_no_error() -> None:
    empty = record(0, boot=None, bytes={}, phases=[], seconds=0.0, command=[])
    assert "reads, " in table(empty)
    assert page(empty).startswith("<!doctype html>")
    one = record(1, boot=boot(progress=[], start=0.0, end=0.0, bytes=0))
    one["reads"][0] |= {"seconds": 0.0, "t": 0.0}
    assert page(one)
