from __future__ import annotations

import io

import pytest

from imagebuilder.progress import Lines, human


def test_a_pipe_gets_a_line_in_five_seconds_with_bytes_files_rate_and_time_left() -> None:
    now = 100.0
    stream = io.StringIO()
    with Lines(stream, clock=lambda: now) as lines:
        lines.stage("importing app", 4 << 20)
        lines.advance(1 << 20, 10)
        assert stream.getvalue() == "importing app\n"
        now += 5
        lines.advance(1 << 20, 5)
    first = stream.getvalue().splitlines()[1]
    assert first == "importing app: 2.0 MiB of 4.0 MiB · 15 files · 409.6 KiB/s · 5 s left"


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")])
def test_sizes_are_short_for_people(size: int, text: str) -> None:
    assert human(size) == text
