from __future__ import annotations

import pytest

from benchmarks.macro.figures import at_least, at_most, differences, figure, ratios, readable


def test_a_figure_is_the_median_with_the_lowest_and_the_highest_sample() -> None:
    found = figure("time", [3.0, 1.0, 10.0], "s")
    assert (found.value, found.low, found.high, found.samples) == (3.0, 1.0, 10.0, 3)
    assert found.met is None


@pytest.mark.parametrize(
    ("want", "value", "met"),
    [(at_most(1.2), 1.2, True), (at_most(1.2), 1.21, False), (at_least(0.8), 0.8, True), (at_least(0.8), 0.7, False)],
)
def test_a_figure_says_whether_it_reached_what_was_wanted(want: object, value: float, met: bool) -> None:
    found = figure("x", [value], "x", want=at_most(1.2) if want == at_most(1.2) else at_least(0.8))
    assert found.met is met
    assert found.to_json()["met"] is met


def test_ratios_are_taken_within_a_round() -> None:
    # A machine twice as slow in the second round changes no ratio, though it changes the ratio of the medians' spread.
    assert ratios([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]) == [0.5, 0.5, 0.5]
    assert differences([3.0, 5.0], [1.0, 4.0]) == [2.0, 1.0]


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="got no samples"):
        figure("nothing", [], "s")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (-3.5, "-3.50")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert readable(value) == text
