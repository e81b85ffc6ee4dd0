"""The merge against its slow model, and what must hold for any layers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cext.errors import CorruptError
from lazyfs.merge import merge
from tests.support.layers import built, file, layer, model_merge, passing, paths, steps, symlink


@settings(max_examples=400, deadline=None)
@given(st.lists(steps.map(built), min_size=1, max_size=4))
def test_laying_layers_is_what_the_model_says(layers: list[bytes]) -> None:
    compare(layers)


def compare(layers: list[bytes]) -> None:
    try:
        want = model_merge(layers)
    except CorruptError:
        want = None
    try:
        got = paths(merge(layers))
    except CorruptError:
        got = None
    assert got == want


@settings(max_examples=100, deadline=None)
@given(st.lists(steps.map(built), min_size=1, max_size=3))
def test_a_merged_tree_merges_to_itself(layers: list[bytes]) -> None:
    try:
        tree = merge(layers)
    except CorruptError:
        return
    assert merge([tree]) == tree
    assert merge([tree, tree]) == tree


LOWER = layer((b"a", symlink(b"b")), (b"b/c", file(1)), (b"b/b/a", file(2)), (b"c", symlink(b"/b/b")))


@settings(max_examples=600, deadline=None)
@given(st.lists(passing.map(built), min_size=1, max_size=2))
def test_entries_through_lower_symlinks_are_what_the_model_says(layers: list[bytes]) -> None:
    compare([LOWER, *layers])


def test_a_link_whose_directory_was_replaced_is_gone() -> None:
    compare([LOWER, built([("add", b"a/a", file(0)), ("link", b"b/a/a", b"a/a/a")])])


def test_a_lower_directory_that_is_passed_through_can_still_be_hidden() -> None:
    below = built([("add", b"a/a", file(0)), ("add", b"a/c/a", file(0))])
    compare([LOWER, below, built([("whiteout", b"a/c", None), ("opaque", b"b/c", None)])])
