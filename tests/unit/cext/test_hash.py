"""BLAKE3 against its published vectors."""

from __future__ import annotations

from cext import blake3


def test_the_hash_of_nothing_is_the_published_one() -> None:
    assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_a_context_gives_another_hash() -> None:
    assert blake3(b"abc", context="onesec 2026 object v1") != blake3(b"abc")
