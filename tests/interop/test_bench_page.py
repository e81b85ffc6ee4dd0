"""The benchmarks' page in a real browser: it fits, asks for nothing, and can be read in light and in dark."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.macro import report, runner
from benchmarks.macro.figures import at_most, figure
from benchmarks.macro.harness import Measurement
from benchmarks.macro.scenario import Outcome, Place, Scenario
from tests.support.browser import Tab, find_browser, tab

LONG = "a contender whose name is <b>long</b> & odd, so long that no plot has room for all of it, cold"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find_browser()
    if program is None:
        message = "this machine lacks chromium: apt-get install chromium"
        if os.environ.get("CI") or os.environ.get("ONESEC_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    results = tmp_path_factory.mktemp("results")
    measured = {
        name: [Measurement(wall, 0, 0, "") for wall in walls]
        for name, walls in (("ext4", [0.5, 0.7]), (LONG, [1.0, 3.9]))
    }
    outcome = Outcome([figure("ours <over> ext4", [2.0, 5.6], "x", reference="ext4", want=at_most(1.2))], measured)
    runner.keep(results, Scenario("seqread", "a read", lambda place: outcome), Place(results), outcome, 1.0)
    written = report.write(results, runner.kept(results))
    with tab(program, tmp_path_factory.mktemp("profile")) as opened:
        opened.open(written)
        yield opened
        opened.evaluate("0")
        assert opened.said == []
        assert opened.asked == [written.as_uri()]


def test_the_figure_says_that_it_was_missed(page: Tab) -> None:
    assert page.texts("td:first-child") == ["ours <over> ext4"]
    assert page.texts(".missed") == ["✗ missed"]


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window_and_labels_stay_inside_the_plot(page: Tab, width: int) -> None:
    page.look(width, 800)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = page.evaluate(
        "(() => { const box = document.querySelector('svg').getBoundingClientRect();"
        " return [...document.querySelectorAll('svg text')].filter(text => { const own = text.getBoundingClientRect();"
        " return own.left < box.left - 1 || own.right > box.right + 1 }).map(text => text.textContent) })()"
    )
    assert outside == []


def test_text_stands_out_from_the_ground_in_light_and_in_dark(page: Tab) -> None:
    def brightness(value: str) -> float:
        numbers = [int(part) for part in value[value.index("(") + 1 : -1].split(",")[:3]]
        return sum(weight * number for weight, number in zip((0.299, 0.587, 0.114), numbers, strict=True))

    grounds = []
    for dark in (False, True):
        page.look(1280, 800, dark=dark)
        ground = brightness(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        grounds.append(ground)
        for selector, style in (("body", "color"), ("svg text", "fill"), (".missed", "color")):
            found = brightness(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{style}"))
            assert abs(found - ground) > 90, (selector, dark)
    assert grounds[0] > 200 > 60 > grounds[1]
