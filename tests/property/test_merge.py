"""The merge against its slow model, and what must hold for any layers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cext.errors import CorruptError
from lazyfs.index.model import Entry
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


# ---------------------------------------------------------------------- what is one inode

_places = st.sampled_from([b"a", b"b", b"c", b"d/a", b"d/b"])
_same = st.lists(
    st.one_of(
        st.tuples(st.just("add"), _places, st.builds(file, st.just(1), group=st.integers(0, 2))),
        st.tuples(st.just("add"), _places, st.builds(file, st.just(1), group=st.integers(1, 1))),
        st.tuples(st.just("link"), _places, _places),
        st.tuples(st.just("whiteout"), _places, st.none()),
    ),
    max_size=5,
)


@settings(max_examples=600, deadline=None)
@given(st.lists(_same.map(built), min_size=2, max_size=4))
def test_equal_files_of_several_layers_are_one_inode_only_by_links(layers: list[bytes]) -> None:
    compare(layers)


def groups(tree: dict[bytes, Entry]) -> list[list[bytes]]:
    """The names of each inode that has several."""
    found: dict[int, list[bytes]] = {}
    for path, entry in tree.items():
        if entry.link_group:
            found.setdefault(entry.link_group, []).append(path)
    return sorted(names for names in found.values() if len(names) > 1)


def test_the_same_group_in_two_layers_is_two_inodes() -> None:
    linked = file(1, group=1)
    lower = layer((b"a", linked), (b"b", linked), (b"e", linked))
    upper = layer((b"a", linked), (b"c", linked))
    assert groups(paths(merge([lower, upper]))) == [[b"a", b"c"], [b"b", b"e"]]
    carried = layer((b"d/x/a", linked), (b"d/x/b", linked), (b"d/y", linked))
    again = layer((b"d/x/a", linked), (b"d/z", linked))
    compare([carried, again])
    assert groups(paths(merge([carried, again]))) == [[b"d/x/a", b"d/z"], [b"d/x/b", b"d/y"]]


def test_a_number_that_a_link_makes_again_is_another_inode() -> None:
    one = layer((b"x", file(1)), (b"y", file(1)))
    links = [built([("link", b"a", b"x")]), built([("whiteout", b"a", None)]), built([("link", b"a", b"y")])]
    compare([one, *links])
    assert groups(paths(merge([one, *links]))) == [[b"a", b"y"]]


def test_a_carried_directory_is_told_apart_from_a_lower_one() -> None:
    linked = file(1, group=1)
    lower = layer((b"a/p", linked), (b"a/q", linked))
    upper = built([("whiteout", b"a/p", None), ("add", b"n/deep/r", file(2))])
    top = layer((b"a/p", linked), (b"m/deep/s", linked), (b"m/deep/t", file(3)))
    compare([lower, upper, top])
    assert groups(paths(merge([lower, upper, top]))) == [[b"a/p", b"m/deep/s"]]
