"""The report has to open anywhere, say what was measured, and draw every run."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.macro import report, runner, tables
from benchmarks.macro.figures import at_most, figure, figure_of
from benchmarks.macro.harness import Measurement
from benchmarks.macro.scenario import Outcome, Place, Scenario

RUNS = [0.25, 0.31, 0.9]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    measured = {
        "ext4": [Measurement(wall, 0, 0, "") for wall in RUNS],
        "zstd <packs>": [Measurement(wall * 2, 0, 0, "") for wall in RUNS],
    }
    figures = [
        figure("time & such", [2.0, 2.0, 2.0], "x", reference="ext4", want=at_most(1.2)),
        figure("rate", [5.0], "GB/s", want=at_most(9)),
    ]
    outcome = Outcome(figures, measured, {"pages": 3}, ["a note"], {"desync": "not installed: desync"})
    scenario = Scenario("seqread", "what it is", lambda place: outcome)
    runner.keep(tmp_path, scenario, Place(tmp_path, quick=True), outcome, 1.5)
    return tmp_path


def test_the_page_needs_nothing_from_outside(results: Path) -> None:
    page = report.page(runner.kept(results))
    assert not re.search(r"""(?:src|href|url|@import|<script|<link)\b\s*[=(:]""", page)
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_says_what_was_met_and_what_was_missed(results: Path) -> None:
    page = report.page(runner.kept(results))
    assert "1 of 2 targets met" in page
    assert page.count("✗ missed") == 1
    assert page.count("✓ met") == 1
    for text in ("time &amp; such", "zstd &lt;packs&gt;", "not installed: desync", "a note", "quick run"):
        assert text in page


def test_what_several_contenders_have_is_one_table(tmp_path: Path) -> None:
    figures = [
        figure_of("onesec & co", "whole call", [2.0, 1.0, 4.0], "x", want=at_most(3)),
        figure_of("podman", "whole call", [9.0], "x"),
        figure_of("podman", "from the origin", [400.0], "MB"),
        figure("alone", [1.0], "x"),
    ]
    outcome = Outcome(figures)
    runner.keep(tmp_path, Scenario("start", "s", lambda place: outcome), Place(tmp_path), outcome, 1.0)
    page = report.page(runner.kept(tmp_path))
    (table,) = re.findall(r'<table class="subjects">.*?</table>', page)
    assert re.findall(r"<th>([^<]*)", table) == ["contender", "whole call", "from the origin"]
    rows = [re.findall(r"<td>(.*?)(?=<td>|$)", row) for row in table.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["onesec &amp; co", "podman"]
    assert "2.00 x" in rows[0][1]
    assert "1.00 – 4.00" in rows[0][1]
    assert "✓ met" in rows[0][1]
    assert "400 MB" in rows[1][2]
    assert "alone" in page
    assert "alone" not in table


def test_figures_are_markdown_for_the_document_too(results: Path, tmp_path: Path) -> None:
    figures = [figure_of("ours", "a|b", [2.0, 1.0, 4.0], "x", want=at_most(1)), figure_of("podman", "c", [9.0], "MB")]
    outcome = Outcome(figures, missing={"nydus": "not installed"})
    runner.keep(results, Scenario("start", "s", lambda place: outcome), Place(tmp_path), outcome, 1.0)
    text = tables.markdown(runner.kept(results))
    assert "| time & such | ≤ 1.20 | **2.00 x** | 2.00 – 2.00 |" in text
    assert "| rate | ≤ 9.00 | 5.00 GB/s |  |" in text
    assert "| contender | a\\|b | c |\n| --- | --: | --: |" in text
    assert "| ours | **2.00 x** (1.00 – 4.00, wanted ≤ 1.00) |  |" in text
    assert "| podman |  | 9.00 MB (one run) |" in text
    assert "- nydus: left out, not installed" in text


def test_every_run_is_a_dot_and_lies_inside_the_plot(results: Path) -> None:
    page = report.page(runner.kept(results))
    (found,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    drawing = ElementTree.fromstring(found)
    width = float(drawing.attrib["viewBox"].split()[2])
    dots = [float(dot.attrib["cx"]) for dot in drawing.iter("circle")]
    assert len(dots) == 2 * len(RUNS)
    assert all(0 < x < width for x in dots)
    # The second contender took twice as long, so its dots lie twice as far from the axis.
    axis = min(float(line.attrib["x1"]) for line in drawing.iter("line"))
    assert [round((x - axis) / (y - axis), 2) for x, y in zip(dots[3:], dots[:3], strict=True)] == [2.0, 2.0, 2.0]


def test_tags_are_closed(results: Path) -> None:
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "th", "td", "html"):
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            return

        def handle_endtag(self, tag: str) -> None:
            if tag != "html":
                assert opened.pop() == tag

    Balance().feed(report.page(runner.kept(results)))
    assert opened == []


@pytest.mark.parametrize("most", [0.004, 0.09, 0.9, 1.0, 3.7, 10, 99, 250, 4000])
def test_ticks_are_few_and_reach_the_longest_run(most: float) -> None:
    ticks = report._ticks(most)
    assert ticks[0] == 0
    assert ticks[-1] >= most
    assert 2 <= len(ticks) <= 7


def test_results_of_nothing_make_a_page(tmp_path: Path) -> None:
    assert "Nothing was measured yet" in report.write(tmp_path, []).read_text()


def test_one_scenario_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(place: Place) -> Outcome:
        raise RuntimeError("no disk")

    scenarios = {
        "one": Scenario("one", "breaks", broken),
        "two": Scenario("two", "works", lambda place: Outcome([figure("f", [1.0], "s")])),
    }
    monkeypatch.setattr(runner, "SCENARIOS", scenarios)
    assert runner.run([], Place(tmp_path / "place"), tmp_path / "results") == ["one"]
    assert "one: failed: RuntimeError: no disk" in capsys.readouterr().err
    assert [document["scenario"] for document in runner.kept(tmp_path / "results")] == ["two"]
