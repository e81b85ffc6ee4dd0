"""The timeline page in a real browser: what it says, that it asks for nothing, that it fits, in light and dark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onesec.timeline_page import SLOWEST, page
from tests.support.browser import Tab, find_browser, tab
from tests.support.timelines import boot, record

HOSTILE = (
    '</title></style></td><script>document.title="taken"</script><img src="https://example.org/x" onerror="alert(1)">'
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find_browser()
    if program is None:
        message = "this machine lacks chromium: apt-get install chromium"
        if os.environ.get("CI") or os.environ.get("ONESEC_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    with tab(program, tmp_path_factory.mktemp("profile")) as opened:
        opened.look(1280, 800)
        yield opened


@pytest.fixture
def show(browser: Tab, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a record; afterwards nothing was complained about and nothing was asked for but the page."""

    def opened(shown: dict[str, Any]) -> Tab:
        path = tmp_path / "timeline.html"
        path.write_text(page(shown), encoding="utf-8")
        browser.asked.clear()
        browser.said.clear()
        browser.open(path)
        return browser

    yield opened
    browser.evaluate("0")  # events of before are in by now
    assert browser.said == []
    assert [address for address in browser.asked if address != (tmp_path / "timeline.html").as_uri()] == []


def test_the_page_names_phases_sources_and_the_slowest_reads(show: Any) -> None:
    shown = record()
    tab = show(shown)
    assert tab.evaluate("document.title") == "torch:latest: 1.42 s"
    assert tab.texts(".phase .name") == [phase["name"] for phase in shown["phases"]]
    assert [text.split()[0] for text in tab.texts(".sources th")] == ["boot", "memory", "pack", "network"]
    rows = tab.texts(".reads tbody .file")
    assert len(rows) == SLOWEST
    slowest = max(shown["reads"], key=lambda read: read["seconds"])
    assert rows[0].startswith(slowest["path"] or "object")


def test_bars_and_dots_stand_where_their_times_are(show: Any) -> None:
    shown = record()
    tab = show(shown)
    left, right = edges(tab, ".phase .track")
    box = tab.evaluate(
        "[...document.querySelectorAll('.bar')].map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    for (start, end), phase in zip(box, shown["phases"], strict=True):
        assert start == pytest.approx(left + (right - left) * phase["start"] / 1.42, abs=1)
        assert end == pytest.approx(left + (right - left) * phase["end"] / 1.42, abs=3.5)
    assert edges(tab, ".area") == pytest.approx([left + (right - left) * t / 1.42 for t in (0.05, 0.41)], abs=2)
    dots = tab.evaluate(
        "[...document.querySelectorAll('.dot')].map(e => e.getAttribute('d')).join('').split('M').length - 1"
    )
    assert dots == 900


def edges(tab: Tab, selector: str) -> list[float]:
    """Left and right, in pixels of the window."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    return [tab.evaluate(f"{box}.{side}") for side in ("left", "right")]


@pytest.mark.parametrize("size", [(1280, 800), (420, 800), (320, 600), (2200, 1200)])
def test_nothing_sticks_out_of_the_window(show: Any, browser: Tab, size: tuple[int, int]) -> None:
    long = "usr/lib/" + "a-very-long-directory-name/" * 8 + "x" * 200
    shown = record()
    for read in shown["reads"][:30]:
        read |= {"path": long, "seconds": 2.0}
    shown["command"] = ["y" * 400]
    browser.look(*size)
    try:
        tab = show(shown)
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        # letters keep their size: the plots are stretched, not what is written beside them
        assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('.axis i')).fontSize)") >= 11
        width = tab.evaluate("document.querySelector('.faults svg').getBoundingClientRect().width")
        assert width == tab.evaluate("document.querySelector('.axis .track').getBoundingClientRect().width")
    finally:
        browser.look(1280, 800)


def test_a_glance_at_1280x800_has_the_whole_chart(show: Any) -> None:
    tab = show(record())
    assert tab.evaluate("document.querySelector('.reads h2').getBoundingClientRect().bottom") < 800


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_the_light_and_in_the_dark(show: Any, browser: Tab, dark: bool) -> None:
    browser.look(1280, 800, dark=dark)
    try:
        tab = show(record(status=3))
        back = luminance(tab, "document.body", "backgroundColor")
        card = luminance(tab, "document.querySelector('.chart')", "backgroundColor")
        assert (back < 0.1) == dark
        for selector, ground in (
            ("h1", back),
            ("header p", back),
            (".bad", back),
            (".note, .axis i", card),
            (".name", card),
        ):
            text = luminance(tab, f"document.querySelector({selector!r})", "color")
            assert contrast(text, ground) >= 4.5, selector
        for source in ("boot-pack", "memory", "pack", "network"):
            colour = luminance(tab, f"document.querySelector('.fill.s-{source}')", "backgroundColor")
            assert contrast(colour, card) >= 2.5, source
    finally:
        browser.look(1280, 800)


def luminance(tab: Tab, element: str, what: str) -> float:
    """Relative luminance, as WCAG has it."""
    text: str = tab.evaluate(f"getComputedStyle({element}).{what}")
    parts = [float(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_hostile_names_are_text(show: Any) -> None:
    shown = record(
        image=HOSTILE,
        command=[HOSTILE, "\u202e\x1b[31m"],
        digest=HOSTILE,
        boot=boot(error=HOSTILE),
        bytes={HOSTILE: 5, "network": 1},
    )
    shown["phases"][0]["name"] = HOSTILE
    for read in shown["reads"]:
        read |= {"path": f"etc/{HOSTILE}\n\ud800", "source": HOSTILE}
    tab = show(shown)
    assert tab.evaluate("document.title") == f"{HOSTILE}: 1.42 s"
    assert tab.evaluate("document.querySelectorAll('script, img, iframe, link, object').length") == 0
    assert tab.texts(".phase .name")[0] == HOSTILE
    assert tab.texts(".reads tbody .file")[0].startswith(f"etc/{HOSTILE}\\n\\ud800")
    assert "\\u202e\\x1b[31m" in tab.texts("header code")[0]


def test_a_start_without_boot_pack_and_without_faults_has_a_page(show: Any) -> None:
    tab = show(record(0, boot=None, bytes={}))
    assert "this image has none" in tab.texts(".plot .name")[0]
    assert tab.texts(".reads p") == ["No page fault left the kernel."]


def test_of_a_day_long_service_the_start_is_drawn(show: Any) -> None:
    shown = record(seconds=86_400.0)
    shown["phases"][-1]["end"] = 86_400.0
    tab = show(shown)
    assert tab.texts(".bar.cut") == ["86,400 s →"]
    assert tab.texts(".note")[0].startswith("Drawn: the first 1.")
