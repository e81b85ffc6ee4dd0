"""Whatever a server sends as WWW-Authenticate or Location is understood or refused; nothing else happens."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from registry.auth import CHALLENGE_MAX, parse_challenges
from registry.errors import BadAnswerError
from registry.origin import origin_of, redirected, signed_until
from registry.retry import parse_retry_after

TOKEN = st.text("abcXYZ019-_.~!", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
PIECES = st.sampled_from(["Bearer", "Basic", "realm", "=", '"', ",", " ", "\\", "https://a.b/c", "x", "\t", "\0", "é"])

PARTS = st.sampled_from(["https:", "//", "@", ":", "a.b", "[", "]", "%", "?", "#", "\\", "443"])


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN, VALUE, max_size=5)), min_size=1, max_size=4), st.booleans())
def test_what_is_written_by_the_grammar_is_read_back(challenges: list[tuple[str, dict[str, str]]], split: bool) -> None:
    unique = [(scheme, {key.lower(): value for key, value in pairs.items()}) for scheme, pairs in challenges]
    lines = [
        f"{scheme} " + ", ".join(f"{key}={quoted(value)}" for key, value in pairs.items()) for scheme, pairs in unique
    ]
    found = parse_challenges(lines if split else [", ".join(lines)], "host")
    assert [(one.scheme, dict(one.parameters)) for one in found] == [(name.lower(), pairs) for name, pairs in unique]


@given(st.lists(st.one_of(st.lists(PIECES).map("".join), st.text(max_size=200)), max_size=4))
def test_any_line_is_understood_or_refused(lines: list[str]) -> None:
    with suppress(BadAnswerError):
        for one in parse_challenges(lines, "host"):
            assert not any(ord(character) < 32 and character != "\t" for character in str(dict(one.parameters)))


@given(st.integers(1, 9), st.sampled_from(['a="', "a,", "a=b,", '"', "\\", " ", "Bearer ", "=="]))
def test_a_long_line_takes_no_longer_than_its_length(times: int, piece: str) -> None:
    line = (piece * CHALLENGE_MAX)[:CHALLENGE_MAX]
    with suppress(BadAnswerError):
        parse_challenges([line], "host")


@given(st.one_of(st.text(max_size=100), st.lists(PARTS).map("".join)))
def test_a_redirect_ends_at_https_or_is_refused(location: str) -> None:
    with suppress(BadAnswerError):
        target = redirected("https://registry.example/v2/x", location, {}, "host")
        assert origin_of(target, "host").scheme == "https"
        assert "@" not in target.partition("//")[2].partition("/")[0]
        signed_until(target)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_retry_after_is_a_number_or_nothing(text: str, date: str) -> None:
    found = parse_retry_after(text, date)
    assert found is None or found >= 0
