"""The part of a build step's layer that needs no overlay to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from cext.errors import LimitError
from imagebuilder.layer import DIRECTORY, LayerWriter, entry
from imagebuilder.upper import _UpperWalk
from lazyfs.index.model import Entry


class Endless:
    """A base whose directories have no end, as an image of another tool may have them."""

    def lookup(self, path: bytes) -> Entry:
        return entry(DIRECTORY)

    def names(self, path: bytes) -> list[bytes]:
        return [b"d"]

    def walk(self) -> Iterator[tuple[bytes, Entry]]:
        return iter(())


class Writer:
    def add_known(self, path: bytes, made: Entry) -> None:
        """It is taken."""


def test_a_renamed_directory_that_is_too_deep_is_an_error_in_words() -> None:
    walk = _UpperWalk(cast(LayerWriter, cast(Any, Writer())), Endless(), b"/nowhere", None)
    with pytest.raises(LimitError, match="directories deeper than 250"):
        walk._copy(b"renamed", b"d")
