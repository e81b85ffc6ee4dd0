"""Layer indexes: what the builder makes of paths, and what the decoder refuses."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cext
from cext.errors import CorruptError, LimitError, MissingError
from lazyfs.index.layer import (
    LayerBuilder,
    decode_layer,
    encode_entry,
    encode_layer,
    encode_record,
    group_number,
    open_tree,
)
from lazyfs.index.model import PART, Entry, Flags, Kind
from lazyfs.index.record import record_digest
from tests.support.layers import built, directory, file, layer, paths, steps, symlink

IMPLICIT, OPAQUE = Flags.IMPLICIT, Flags.OPAQUE


def plain(index: bytes) -> dict[bytes, Entry]:
    return paths(index, merged=False)


def kinds(index: bytes) -> dict[bytes, tuple[str, int]]:
    return {path: (entry.kind.name, entry.flags) for path, entry in plain(index).items() if path}


# ---------------------------------------------------------------------- building


def test_parents_that_nobody_added_are_implicit() -> None:
    found = kinds(layer((b"a/b/c", file(1))))
    assert found == {b"a": ("DIRECTORY", IMPLICIT), b"a/b": ("DIRECTORY", IMPLICIT), b"a/b/c": ("FILE", 0)}
    assert plain(layer())[b""].flags == IMPLICIT


def test_a_parent_that_is_described_later_keeps_what_is_in_it() -> None:
    found = plain(layer((b"a/b", file(1)), (b"a", directory(0o700))))
    assert found[b"a"] == replace(directory(0o700), name=b"a")
    assert found[b"a/b"].kind is Kind.FILE


def test_the_last_entry_of_a_path_wins_and_takes_a_directorys_contents_with_it() -> None:
    assert plain(layer((b"a", file(1)), (b"a", file(2))))[b"a"] == replace(file(2), name=b"a")
    assert kinds(layer((b"a/b/c", file(1)), (b"a", file(2)))) == {b"a": ("FILE", 0)}


def test_a_directory_after_something_else_hides_the_lower_directory() -> None:
    assert kinds(layer((b"a", file(1)), (b"a", directory())))[b"a"] == ("DIRECTORY", OPAQUE)
    found = plain(layer((b"a", file(1)), (b"a/b", file(2))))
    assert (found[b"a"].mode, found[b"a"].flags) == (0o755, OPAQUE)


@pytest.mark.parametrize(
    ("target", "place"),
    [
        (b"d", b"d/x"),
        (b"/d", b"d/x"),
        (b"../../../d", b"d/x"),
        (b"/", b"x"),
        (b"..", b"x"),
        (b"d/./e//", b"d/e/x"),
        (b"gone/../d", b"d/x"),
        (b"second", b"other/x"),
    ],
)
def test_an_entry_through_a_symlink_of_the_layer_lands_where_it_leads_inside_the_root(
    target: bytes, place: bytes
) -> None:
    found = kinds(layer((b"second", symlink(b"/other")), (b"link", symlink(target)), (b"link/x", file(1))))
    assert found[place] == ("FILE", 0)
    assert found[b"link"] == ("SYMLINK", 0)
    assert not any(b"gone" in path for path in found)


@pytest.mark.parametrize("change", ["link", "file", "hard link"])
def test_a_parent_that_gets_another_meaning_between_two_entries_is_looked_up_again(change: str) -> None:
    builder = LayerBuilder()
    builder.add(b"b", Entry(Kind.DIRECTORY))
    builder.add(b"f", Entry(Kind.FILE))
    builder.add(b"a/sub/one", Entry(Kind.FILE))
    if change == "link":
        builder.add(b"a", Entry(Kind.SYMLINK, size=1, target=b"b"))
    elif change == "file":
        builder.add(b"a/sub", Entry(Kind.FILE))
    else:
        builder.link(b"a/sub", b"f")
    builder.add(b"a/sub/two", Entry(Kind.FILE))
    tree = decode_layer(builder.finish())
    assert tree.lookup(b"b/sub/two" if change == "link" else b"a/sub/two") is not None
    assert tree.lookup(b"a/sub/one") is None
    assert tree.lookup(b"a/sub/two") is None or change != "link"


def test_symlinks_in_a_circle_are_refused() -> None:
    builder = LayerBuilder()
    builder.add(b"a", symlink(b"b"))
    builder.add(b"b", symlink(b"a"))
    with pytest.raises(CorruptError, match="more than 40 symlinks"):
        builder.add(b"a/x", file(1))


def test_forty_symlinks_are_followed_and_not_one_more() -> None:
    builder = LayerBuilder()
    for number in range(41):
        builder.add(b"%d" % number, symlink(b"%d" % (number + 1)))
    builder.add(b"1/x", file(1))
    assert kinds(builder.finish())[b"41/x"] == ("FILE", 0)
    with pytest.raises(CorruptError):
        builder.add(b"0/x", file(1))


def test_whiteouts_hide_what_is_below_never_what_the_layer_has() -> None:
    builder = LayerBuilder()
    builder.add(b"before", file(1))
    builder.add(b"directory/x", file(1))
    for path in (b"before", b"directory", b"after", b"gone"):
        builder.whiteout(path)
    builder.add(b"after", file(2))
    assert kinds(builder.finish()) == {
        b"before": ("FILE", 0),
        b"after": ("FILE", 0),
        b"directory": ("DIRECTORY", OPAQUE),
        b"directory/x": ("FILE", 0),
        b"gone": ("WHITEOUT", 0),
    }


def test_opaque_marks_stay_whatever_is_said_of_the_directory() -> None:
    builder = LayerBuilder()
    builder.opaque(b"passed")
    builder.opaque(b"described")
    builder.add(b"described", directory(0o700))
    builder.opaque(b"")
    builder.add(b"", directory(0o711))
    found = plain(builder.finish())
    assert (found[b"passed"].flags, found[b"described"].flags, found[b""].flags) == (OPAQUE | IMPLICIT, OPAQUE, OPAQUE)
    assert (found[b"described"].mode, found[b""].mode) == (0o700, 0o711)


def test_names_of_one_inode_get_the_formats_link_group() -> None:
    builder = LayerBuilder()
    builder.add(b"z", file(1))
    builder.link(b"b/x", b"z")
    builder.link(b"a-b", b"b/x")
    builder.add(b"one", file(1, group=7))
    builder.add(b"two", file(1, group=7))
    builder.add(b"alone", file(1, group=8))
    found = plain(builder.finish())
    text = b"a-b\0" + encode_entry(file(1))
    number = int.from_bytes(cext.blake3(text, context="onesec 2026 link group v1")[:8], "little")
    assert {found[path].link_group for path in (b"z", b"b/x", b"a-b")} == {number}
    assert found[b"one"].link_group == found[b"two"].link_group == group_number(b"one", file(1))
    assert found[b"alone"].link_group == 0


def test_entries_of_a_group_that_differ_are_different_inodes() -> None:
    found = plain(layer((b"a", file(1, group=1)), (b"b", file(2, group=1))))
    assert (found[b"a"].link_group, found[b"b"].link_group) == (0, 0)


def test_a_name_that_is_replaced_leaves_its_group() -> None:
    builder = LayerBuilder()
    builder.add(b"a", file(1))
    for name in (b"b", b"c"):
        builder.link(name, b"a")
    builder.add(b"a", file(2))
    found = plain(builder.finish())
    assert found[b"a"].link_group == 0
    assert found[b"b"].link_group == found[b"c"].link_group == group_number(b"b", file(1))


def test_a_link_to_what_the_layer_lacks_goes_to_a_lower_layer() -> None:
    builder = LayerBuilder()
    builder.add(b"l", symlink(b"/real"))
    builder.link(b"a", b"l/x")
    assert plain(builder.finish())[b"a"].target == b"real/x"


@pytest.mark.parametrize("target", [b"d", b"", b"w", b"../x"])
def test_a_link_to_a_directory_or_to_nothing_is_refused(target: bytes) -> None:
    builder = LayerBuilder()
    builder.add(b"d/x", file(1))
    builder.whiteout(b"w")
    with pytest.raises(CorruptError):
        builder.link(b"a", target)


@pytest.mark.parametrize("path", [b"/a", b"a/", b"a//b", b".", b"a/../b", b"a\0b", b"n" * 256, b"x/" * 2048 + b"x"])
def test_a_path_that_no_layer_can_have_is_refused(path: bytes) -> None:
    with pytest.raises(CorruptError):
        LayerBuilder().add(path, file(1))


def test_the_root_is_a_directory() -> None:
    with pytest.raises(CorruptError):
        LayerBuilder().add(b"", file(1))


@settings(max_examples=100, deadline=None)
@given(steps.map(built), st.randoms(use_true_random=False))
def test_the_bytes_do_not_depend_on_the_order_of_entries(index: bytes, chance: random.Random) -> None:
    entries = list(plain(index).items())
    chance.shuffle(entries)
    assert layer(*entries) == index


@settings(max_examples=200, deadline=None)
@given(steps.map(built))
def test_what_is_built_is_valid_and_reads_the_same_lazily(index: bytes) -> None:
    whole = decode_layer(index)
    lazy = open_tree(index)
    for path, entry in whole.walk():
        assert lazy.lookup(path) == entry
    assert lazy.names(b"") == sorted(path for path, _ in whole.walk() if path and b"/" not in path)
    assert lazy.lookup(b"a/gone/x") is None
    assert lazy.names(b"gone") == []


def test_deep_trees_need_no_deep_stack() -> None:
    path = b"/".join([b"d"] * 2040)
    index = layer((path + b"/x", file(1)))
    assert open_tree(index).lookup(path + b"/x") is not None
    with pytest.raises(LimitError):
        LayerBuilder().add(b"/".join([b"d"] * 2050), file(1))


def test_forty_thousand_entries_take_no_time_worth_mentioning() -> None:
    entry = file(1)
    start = time.process_time()
    builder = LayerBuilder()
    for number in range(40_000):
        builder.add(b"usr/lib/python3/site-packages/p%d/sub/m%d.py" % (number % 200, number), entry)
    builder.finish()
    assert time.process_time() - start < 10  # 0.3 s measured on the 2-core machine


def test_equal_directories_are_stored_once() -> None:
    entries = [(b"a/%d" % number, file(number)) for number in range(50)]
    once = layer(*entries)
    twice = layer(*entries, *((b"b/%d" % number, file(number)) for number in range(50)))
    assert len(twice) - len(once) < 100


# ---------------------------------------------------------------------- refusing


def index_of(*entries: bytes, root: Entry | None = None) -> bytes:
    """A layer with one record, whatever stands in it."""
    record = encode_record(entries)
    return encode_layer(encode_entry(root or directory(), record_digest(record)), [record])


def named(entry: Entry, name: bytes = b"x") -> bytes:
    return encode_entry(entry, name=name)


def patched(entry: Entry, at: int, form: str, value: int) -> bytes:
    data = bytearray(named(entry))
    struct.pack_into("<" + form, data, at, value)
    return bytes(data)


def parts(*lengths_and_ids: tuple[int, int]) -> bytes:
    return b"".join(PART.pack(length, bytes([number]) * 32) for length, number in lengths_and_ids)


def with_parts(size: int, *lengths_and_ids: tuple[int, int], algorithm: int = 1) -> Entry:
    return Entry(Kind.FILE, size=size, algorithm=algorithm, parts=parts(*lengths_and_ids))


def with_xattrs(*xattrs: tuple[bytes, bytes]) -> Entry:
    return Entry(Kind.FIFO, xattrs=xattrs)


FIFO, WHITEOUT = Entry(Kind.FIFO), Entry(Kind.WHITEOUT)
BAD_ENTRIES: dict[str, bytes] = {
    "no name": named(FIFO, b""),
    "dot": named(FIFO, b"."),
    "dot dot": named(FIFO, b".."),
    "slash": named(FIFO, b"a/b"),
    "NUL in name": named(FIFO, b"a\0b"),
    "long name": named(FIFO, b"n" * 256),
    "kind 0": patched(FIFO, 0, "B", 0),
    "kind 7": patched(FIFO, 0, "B", 7),
    "flags on a fifo": patched(FIFO, 1, "B", 1),
    "mode": named(replace(FIFO, mode=0o10000)),
    "nanoseconds": named(replace(FIFO, mtime_nsec=10**9)),
    "size of a fifo": patched(FIFO, 40, "Q", 1),
    "parts of a fifo": patched(FIFO, 48, "I", 1),
    "algorithm of a fifo": patched(FIFO, 52, "I", 1),
    "group of a whiteout": patched(WHITEOUT, 32, "Q", 1),
    "mode of a whiteout": named(replace(WHITEOUT, mode=0o644)),
    "time of a whiteout": named(replace(WHITEOUT, mtime_sec=1)),
    "xattrs of a whiteout": named(replace(WHITEOUT, xattrs=((b"user.x", b""),))),
    "link to the root": named(Entry(Kind.LINK)),
    "link with a slash": named(Entry(Kind.LINK, size=2, target=b"/a")),
    "link out": named(Entry(Kind.LINK, size=4, target=b"../a")),
    "empty symlink": named(symlink(b"")),
    "symlink with NUL": named(symlink(b"a\0b")),
    "long symlink": named(symlink(b"a" * 4096)),
    "symlink cut short": patched(symlink(b"abc"), 40, "Q", 4),
    "symlink beyond 2^63": patched(symlink(b"abc"), 40, "Q", 2**64 - 1),
    "0:0": named(Entry(Kind.CHARACTER)),
    "major": named(Entry(Kind.BLOCK, device=(4096, 0))),
    "minor": named(Entry(Kind.BLOCK, device=(0, 1 << 20))),
    "parts too short": named(with_parts(5, (4, 1))),
    "parts too long": named(with_parts(3, (4, 1))),
    "no parts": named(Entry(Kind.FILE, size=1)),
    "empty part": named(with_parts(4, (4, 1), (0, 2))),
    "two holes": named(with_parts(8, (4, 0), (4, 0))),
    "algorithm 3": named(with_parts(4, (4, 1), algorithm=3)),
    "algorithm without parts": named(Entry(Kind.FILE, algorithm=1)),
    "parts that wrap": named(Entry(Kind.FILE, size=2, algorithm=1, parts=parts((2**64 - 2, 1), (4, 2)))),
    "size beyond 2^63": named(with_parts(2**63, (2**63, 1))),
    "part count": patched(with_parts(4, (4, 1)), 48, "I", 0xFFFFFFFF),
    "xattr count": patched(FIFO, 28, "I", 0xFFFFFFFF),
    "trusted xattr": named(with_xattrs((b"trusted.x", b""))),
    "overlay xattr": named(with_xattrs((b"user.overlay.redirect", b""))),
    "xattr without namespace": named(with_xattrs((b"x", b""))),
    "xattr without name": named(with_xattrs((b"user.", b""))),
    "xattr twice": named(with_xattrs((b"user.x", b""), (b"user.x", b"1"))),
    "xattrs out of order": named(with_xattrs((b"user.y", b""), (b"user.x", b""))),
    "long xattr name": named(with_xattrs((b"user." + b"n" * 251, b""))),
    "too many xattr bytes": named(with_xattrs(*((b"user.%d" % number, bytes(50_000)) for number in range(3)))),
    "group without the format's number": named(file(1, group=5)),
    "cut short": named(FIFO)[:-2],
    "too long": named(FIFO) + b"x",
}


@pytest.mark.parametrize("what", BAD_ENTRIES)
def test_an_entry_that_breaks_a_rule_is_refused(what: str) -> None:
    with pytest.raises(CorruptError):
        decode_layer(index_of(BAD_ENTRIES[what]))


def test_names_ascend() -> None:
    decode_layer(index_of(named(FIFO, b"a"), named(FIFO, b"b")))
    for names in ((b"b", b"a"), (b"a", b"a")):
        with pytest.raises(CorruptError, match="ascending"):
            decode_layer(index_of(*(named(FIFO, name) for name in names)))


def nested() -> tuple[bytes, bytes, bytes]:
    """A record, one that names it, and the root's entry."""
    low = encode_record([named(FIFO)])
    high = encode_record([encode_entry(directory(), record_digest(low), name=b"d")])
    return low, high, encode_entry(directory(), record_digest(high))


BAD_FRAMES: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "order": lambda low, high, root: encode_layer(root, [high, low]),
    "missing": lambda low, high, root: encode_layer(root, [high]),
    "twice": lambda low, high, root: encode_layer(root, [low, low, high]),
    "unused": lambda low, high, root: encode_layer(root, [encode_record([]), low, high]),
    "no root": lambda low, high, root: encode_layer(root, [low]),
    "trailing": lambda low, high, root: encode_layer(root, [low, high]) + b"\0",
    "count": lambda low, high, root: encode_layer(root, [low, high])[:8] + b"\3" + encode_layer(root, [low, high])[9:],
    "zero": lambda low, high, root: encode_layer(root, [low, high])[:12] + b"\1" + encode_layer(root, [low, high])[13:],
    "magic": lambda low, high, root: b"OSLAYER2" + encode_layer(root, [low, high])[8:],
    "root is a file": lambda low, high, root: encode_layer(encode_entry(FIFO), [low, high]),
    "root has a name": lambda low, high, root: encode_layer(
        encode_entry(directory(), record_digest(high), name=b"r"), [low, high]
    ),
}


@pytest.mark.parametrize("what", BAD_FRAMES)
def test_records_that_do_not_hang_together_are_refused(what: str) -> None:
    low, high, root = nested()
    decode_layer(encode_layer(root, [low, high]))
    with pytest.raises(CorruptError):
        decode_layer(BAD_FRAMES[what](low, high, root))


def test_a_tree_that_unfolds_without_end_is_refused_before_it_does() -> None:
    records = [encode_record([])]
    for _ in range(40):
        digest = record_digest(records[-1])
        records.append(encode_record([encode_entry(directory(), digest, name=name) for name in (b"a", b"b")]))
    with pytest.raises(LimitError, match="names"):
        open_tree(encode_layer(encode_entry(directory(), record_digest(records[-1])), records))


def test_directories_below_each_other_have_an_end() -> None:
    def chain(depth: int) -> bytes:
        records = [encode_record([])]
        for _ in range(depth):
            records.append(encode_record([encode_entry(directory(), record_digest(records[-1]), name=b"d")]))
        return encode_layer(encode_entry(directory(), record_digest(records[-1])), records)

    decode_layer(chain(2048))
    with pytest.raises(LimitError, match="below each other"):
        open_tree(chain(2049))


@pytest.mark.parametrize(
    "index",
    [
        layer((b"w", WHITEOUT)),
        layer((b"l", Entry(Kind.LINK, size=1, target=b"x"))),
        layer((b"a/b", file(1))),
        layer((b"", directory()), (b"o", directory(flags=OPAQUE))),
    ],
    ids=["whiteout", "link", "implicit", "opaque"],
)
def test_a_merged_tree_has_nothing_that_only_layers_have(index: bytes) -> None:
    decode_layer(index)
    with pytest.raises(CorruptError, match="only layers"):
        decode_layer(index, merged=True)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_are_refused_or_read_and_nothing_else_happens(seed: int) -> None:
    """Half of them with digests that fit again, so that the damage gets past them."""
    chance = random.Random(seed)
    entries = [named(file(number), b"%02d" % number) for number in range(5)]
    entries += [named(symlink(b"target"), b"50"), named(with_xattrs((b"user.a", b"1"), (b"user.b", b"2")), b"60")]
    record = encode_record(entries)
    for _ in range(250):
        damaged = bytearray(record)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        index = encode_layer(encode_entry(directory(), record_digest(bytes(damaged))), [bytes(damaged)])
        if chance.random() < 0.5:
            index = encode_layer(encode_entry(directory(), record_digest(record)), [bytes(damaged)])
        try:
            decode_layer(index)
        except CorruptError:
            continue


# ---------------------------------------------------------------------- the other decoder


def refused(read: Callable[[], object]) -> bool:
    """EROFS's own limit on namespaces of xattrs is no rule of layer indexes."""
    try:
        read()
    except MissingError:  # of a chunk: the tree itself was taken
        return False
    except CorruptError as error:
        return "no namespace that EROFS has" not in str(error)
    return False


@pytest.mark.parametrize("what", [what for what in BAD_ENTRIES if "group" not in what])
def test_the_c_decoder_refuses_the_same_entries(what: str) -> None:
    with pytest.raises(CorruptError):
        cext.encode_image(index_of(BAD_ENTRIES[what]), [])


@pytest.mark.parametrize("seed", range(3))
def test_both_decoders_refuse_the_same_damaged_records(seed: int) -> None:
    chance = random.Random(seed)
    entries = [named(Entry(Kind.FIFO, mode=0o644), b"%02d" % number) for number in range(3)]
    entries += [named(symlink(b"target"), b"50"), named(with_xattrs((b"user.a", b"1"), (b"user.b", b"2")), b"60")]
    entries += [named(Entry(Kind.BLOCK, device=(7, 3)), b"70"), named(Entry(Kind.FILE, mode=0o600), b"80")]
    record = encode_record(entries)
    verdicts = set()
    for _ in range(700):
        damaged = bytearray(record)
        for _ in range(chance.randint(1, 2)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 0x7F, chance.randrange(128)))
        index = encode_layer(encode_entry(directory(), record_digest(bytes(damaged))), [bytes(damaged)])
        ours = refused(partial(decode_layer, index, merged=True))
        assert ours == refused(partial(cext.encode_image, index, []))
        verdicts.add(ours)
    assert verdicts == {True, False}
