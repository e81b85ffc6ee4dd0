from __future__ import annotations

import pytest

from registry.errors import DeniedError, UnreachableError
from registry.retry import RetryPolicy, parse_retry_after


def broken(after: float | None = None) -> UnreachableError:
    return UnreachableError("host", "broke off", retryable=True, retry_after=after)


def test_pauses_grow_and_end() -> None:
    policy = RetryPolicy(attempts=4, first=1)
    assert [policy.pause(failures, broken(), 1.0) for failures in range(1, 6)] == [1, 2, 4, None, None]


def test_jitter_halves_a_pause_at_most() -> None:
    assert RetryPolicy(first=1).pause(1, broken(), 0.0) == 0.5


def test_what_a_retry_cannot_help_is_not_tried_again() -> None:
    assert RetryPolicy().pause(1, DeniedError("host", "no"), 1.0) is None


def test_a_server_is_given_the_time_that_it_asked_for_and_no_more_than_we_have() -> None:
    policy = RetryPolicy(first=1, longest=60)
    assert policy.pause(1, broken(30), 1.0) == 30
    assert policy.pause(1, broken(0.1), 1.0) == 1
    assert policy.pause(1, broken(61), 1.0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (" 0 ", 0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0),
        ("soon", None),
        ("-3", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_has_two_forms(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, "Wed, 21 Oct 2026 07:28:00 GMT") == seconds


def test_an_absurd_retry_after_is_a_number_that_nobody_waits_for() -> None:
    assert parse_retry_after("9" * 400, None) == 999_999_999
