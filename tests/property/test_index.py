"""fs.erofs and tables: the C encoder against the slow twin of docs/format.md, the two readers against each other."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cext
from cext import _reference as reference
from cext import _reference_index as index
from cext.errors import CorruptError, LimitError, MissingError
from lazyfs.index import layer as layers
from lazyfs.index.layer import decode_layer, encode_entry
from lazyfs.index.model import HOLE, PART, Entry, Kind
from lazyfs.index.record import record_digest
from lazyfs.index.tables import TablesReader
from lazyfs.merge import merge
from tests.golden.test_index import pack, tree
from tests.support.images import encoded, pool, sample
from tests.support.layers import built, layer


def compare(merged: bytes, packs: list[tuple[bytes, int, bytes]]) -> None:
    entries = list(decode_layer(merged, merged=True).walk())
    files = [(entry.size, entry.algorithm, entry.parts) for _, entry in entries if entry.kind is Kind.FILE]
    erofs, tables = cext.encode_image(merged, packs)
    assert tables == index.tables(files, packs)
    assert erofs == index.erofs(entries)
    cext.check_image(erofs, tables)


def test_the_index_of_one_of_everything_is_that_of_the_twin() -> None:
    compare(encoded(*sample())[0], pool().listed)
    compare(merge([layer()]), [])
    compare(tree(), [pack(1, (0, 1), (2, 9)), pack(2, (3,), (1, 4), (5,)), pack(3, (7,))])


# ---------------------------------------------------------------------- any tree

_lengths = st.one_of(st.integers(1, 3), st.sampled_from([100, 200, 254, 255]))
_names = st.builds(
    lambda first, length: bytes([first]) * length,
    st.sampled_from([*range(1, 0x2E), 0x2E + 1 + 1, 0x61, 0x62, 0xFF]).filter(lambda byte: byte != 0x2F),
    _lengths,
)
_paths = st.lists(_names, min_size=1, max_size=3).map(b"/".join)
_xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.\xff", b"security.capability", b"system.posix_acl_access"]),
    st.one_of(st.binary(max_size=9), st.integers(0, 5000).map(bytes)),
    max_size=3,
).map(lambda found: tuple(sorted(found.items())))
_u32 = st.sampled_from([0, 1, 65535, 65536, 2**32 - 1])
_targets = st.one_of(st.integers(1, 4095), st.sampled_from([2047, 2048, 2049])).map(lambda size: b"t" * size)
_plain = st.one_of(
    st.just(Entry(Kind.DIRECTORY, mode=0o755)),
    st.sampled_from(pool().files),
    st.just(Entry(Kind.FIFO, mode=0o600)),
    st.builds(
        lambda kind, major, minor: Entry(kind, device=(major, minor)),
        st.sampled_from([Kind.CHARACTER, Kind.BLOCK]),
        st.sampled_from([1, 255, 256, 4095]),
        st.sampled_from([0, 255, 256, 2**20 - 1]),
    ),
    _targets.map(lambda target: Entry(Kind.SYMLINK, mode=0o777, size=len(target), target=target)),
    st.sampled_from([1, 2**31, 2**43, 2**43 + 1, 2**63 - 1]).map(
        lambda size: Entry(Kind.FILE, size=size, algorithm=2, parts=PART.pack(size, HOLE))
    ),
)
_entries = st.builds(
    lambda entry, mode, uid, gid, seconds, nanoseconds, xattrs, group: replace(
        entry,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_sec=seconds,
        mtime_nsec=nanoseconds,
        xattrs=xattrs,
        link_group=0 if entry.kind is Kind.DIRECTORY else group,
    ),
    _plain,
    st.sampled_from([0o644, 0o7777, 0]),
    _u32,
    _u32,
    st.sampled_from([0, -1, 2**40, -(2**63)]),
    st.sampled_from([0, 999_999_999]),
    _xattrs,
    st.sampled_from([0, 0, 0, 1]),
)
_simple = st.builds(lambda entry, group: replace(entry, link_group=group), st.sampled_from(pool().files), st.just(1))


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.lists(st.tuples(_paths, st.one_of(_entries, _simple)), max_size=25), _xattrs)
def test_the_index_of_any_tree_is_that_of_the_twin(
    entries: list[tuple[bytes, Entry]], root: tuple[tuple[bytes, bytes], ...]
) -> None:
    top = (b"", Entry(Kind.DIRECTORY, mode=0o700, xattrs=root))
    compare(merge([built([("add", path, entry) for path, entry in (top, *entries)])]), pool().listed)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True), max_size=4), min_size=1, max_size=4
    ),
    st.lists(
        st.lists(st.one_of(st.integers(0, 12), st.sampled_from([-1, -2, -3])), min_size=1, max_size=5), max_size=8
    ),
    st.permutations(range(4)),
)
def test_tables_of_any_packs_are_those_of_the_twin(
    packs: list[list[list[int]]], files: list[list[int]], order: list[int]
) -> None:
    """Chunks in several packs, packs in any order, files that share parts, holes of a few lengths."""
    listed = [pack(number, *map(tuple, frames)) for number, frames in enumerate(packs)]
    listed = [listed[row] for row in order if row < len(listed)]
    entries = []
    for row, numbers in enumerate(files):
        parts = [(1 << 20) - 5 * one if one < 0 else 1000 + one for one in numbers]
        packed = b"".join(
            PART.pack(length, HOLE if one < 0 else reference.blake3(b"chunk %d" % one))
            for length, one in zip(parts, numbers, strict=True)
        )
        if any(one < 0 and two < 0 for one, two in pairwise(numbers)):
            continue
        entries.append((b"%d" % row, Entry(Kind.FILE, size=sum(parts), algorithm=1 + row % 2, parts=packed)))
    merged = merge([layer(*entries)])
    try:
        compare(merged, listed)
    except KeyError:  # the twin's word for a chunk that no pack has
        raise AssertionError("encode_image took what no pack has") from None
    except MissingError:
        with pytest.raises(KeyError):
            index.tables([(entry.size, entry.algorithm, entry.parts) for _, entry in entries], listed)


# ---------------------------------------------------------------------- what is hashed, and readers


def test_digests_of_records_and_link_groups_are_those_of_the_twin() -> None:
    for record in (b"", b"\0\0\0\0", b"anything" * 99):
        assert record_digest(record) == reference.record_digest(record)
    for path, entry in sample():
        raw = encode_entry(entry, bytes(32) if entry.kind is Kind.DIRECTORY else b"", name=b"", link_group=0)
        if entry.kind is not Kind.DIRECTORY:
            assert layers.group_number(path, entry) == reference.link_group(path, raw)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.data())
def test_a_merged_tree_is_read_or_refused_by_both_decoders(data: st.DataObject) -> None:
    """The C decoder reads trees where an image is made, the Python one everywhere else."""
    tree = bytearray(encoded(*sample()[:18])[0])
    for _ in range(data.draw(st.integers(1, 2))):
        tree[data.draw(st.integers(0, len(tree) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(tree)
    try:
        decode_layer(damaged, merged=True)
        taken = True
    except (CorruptError, LimitError):
        taken = False
    try:
        cext.encode_image(damaged, pool().listed)
        native = True
    except MissingError:
        native = True
    except (CorruptError, LimitError):
        native = False
    assert native == taken


@settings(max_examples=400, deadline=None, print_blob=True)
@given(st.data())
def test_tables_are_read_or_refused_by_both_readers(data: st.DataObject) -> None:
    _, erofs, tables = encoded(*sample()[:12])
    damaged = bytearray(tables)
    words = len(damaged) // 4
    at = 4 * data.draw(st.integers(0, words - 1))
    value = data.draw(st.one_of(st.integers(0, 20), st.sampled_from([2**31, 2**32 - 1])))
    damaged[at : at + 4] = struct.pack("<I", value)
    try:
        TablesReader(bytes(damaged))
        taken = True
    except (CorruptError, LimitError):
        taken = False
    try:
        cext.check_image(erofs, bytes(damaged))
        native = True
    except (CorruptError, LimitError):
        native = False
    assert taken or not native  # what the C code takes, the Python one does; it also looks at fs.erofs
