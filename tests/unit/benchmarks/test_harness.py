from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from benchmarks.macro.harness import Contender, ContenderError, measure, missing, require_same, rounds, summary, walls


def program(name: str, code: str, *, prepare: Callable[[], object] = lambda: None) -> Contender:
    return Contender(name, [sys.executable, "-I", "-S", "-c", code], prepare)


def test_contenders_take_turns_and_the_order_rotates(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []
    contenders = [
        program(name, "pass", prepare=lambda name=name: order.append(name))  # type: ignore[misc]
        for name in ("a", "b", "c")
    ]
    results = rounds(contenders, 3)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(ones) for name, ones in results.items()} == {"a": 3, "b": 3, "c": 3}
    assert "round 3/3" in capsys.readouterr().err


def test_a_contender_that_fails_voids_the_scenario_and_is_cleaned_up() -> None:
    cleaned: list[bool] = []
    contender = Contender(
        "bad", [sys.executable, "-c", "import sys; sys.exit('no such luck')"], clean_up=lambda: cleaned.append(True)
    )
    with pytest.raises(ContenderError, match="bad: exit status 1: no such luck"):
        measure(contender)
    assert cleaned == [True]


def test_a_contender_may_have_its_own_clock() -> None:
    contender = Contender("own", [sys.executable, "-c", "print('words'); print('{\"seconds\": 0.25}')"], clock="own")
    assert measure(contender).wall == 0.25


def test_an_own_clock_that_says_nothing_is_refused() -> None:
    with pytest.raises(ContenderError, match="no seconds"):
        measure(Contender("own", [sys.executable, "-c", "print('{}')"], clock="own"))


def test_what_the_preparation_returns_is_kept() -> None:
    assert measure(program("cold", "pass", prepare=lambda: {"pages": 0})).prepared == {"pages": 0}


def test_contenders_that_read_different_bytes_are_found_out() -> None:
    results = rounds([program("a", "print('{\"hash\": 1}')"), program("b", "print('{\"hash\": 2}')")], 1)
    with pytest.raises(ContenderError, match="did not read the same"):
        require_same(results, "hash")
    assert require_same({"a": results["a"]}, "hash") == "1"


def test_two_contenders_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        rounds([program("a", "pass"), program("a", "pass")], 1)


def test_resources_are_those_of_the_contender() -> None:
    found = rounds([program("large", "b = bytearray(60 << 20); sum(range(3_000_000))")], 1, resources=True)["large"][0]
    assert 60 << 20 < found.peak_memory < 200 << 20
    assert found.cpu > 0


def test_every_run_goes_into_the_summary() -> None:
    results = rounds([program("a", "pass")], 2)
    found = summary(results)["a"]
    assert isinstance(found, dict)
    assert found["runs_s"] == [round(wall, 5) for wall in walls(results, "a")]


def test_a_missing_program_is_named() -> None:
    assert missing("sh") is None
    assert missing("sh", "no-such-program") == "not installed: no-such-program"
