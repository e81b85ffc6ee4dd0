"""The Python readers of fs.erofs and the tables: what the C code encodes, read by code that shares nothing with it."""

from __future__ import annotations

import random
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cext
from cext._reference import blake3
from cext.errors import CorruptError
from lazyfs.index.erofs import METACOPY, REDIRECT, ErofsReader, Inode
from lazyfs.index.layer import decode_layer
from lazyfs.index.model import PART, Entry, Kind
from lazyfs.index.tables import TablesReader
from tests.support.images import encoded, pool, sample

TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def object_id(entry: Entry) -> bytes | None:
    if not entry.parts:
        return None
    head = struct.pack("<IIQQ", entry.algorithm, 0, entry.size, len(entry.parts) // PART.size)
    return blake3(head + entry.parts, context="onesec 2026 object v1")


def compare(tree: bytes, erofs: bytes, tables: bytes) -> None:
    """Everything that a merged tree says, found again in its image index."""
    reader, objects = ErofsReader(erofs), TablesReader(tables)
    want = list(decode_layer(tree, merged=True).walk())
    got = list(reader.walk())
    assert [path for path, _ in got] == [path for path, _ in want]
    numbers: dict[object, int] = {}
    links: dict[int, int] = {}
    used = set()
    for (path, inode), (_, entry) in zip(got, want, strict=True):
        check_inode(reader, inode, entry)
        identity = object_id(entry)
        if identity is not None:
            used.add(identity)
            check_object(objects, identity, entry)
        if entry.kind is not Kind.DIRECTORY:
            links[inode.nid] = links.get(inode.nid, 0) + 1
            same = (entry.link_group, encoded_without_name(entry)) if entry.link_group else path
            assert numbers.setdefault(same, inode.nid) == inode.nid
    assert len(set(numbers.values())) == len(numbers), "different inodes share a number"
    assert set(objects.ids()) == used
    assert reader.inode_count == len({inode.nid for _, inode in got})
    for _, inode in got:
        assert stat.S_ISDIR(inode.mode) or inode.links == links[inode.nid]


def encoded_without_name(entry: Entry) -> object:
    return (entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime_sec, entry.mtime_nsec, entry.xattrs, entry.parts)


def check_inode(reader: ErofsReader, inode: Inode, entry: Entry) -> None:
    assert inode.mode == TYPES[entry.kind] | entry.mode
    assert (inode.uid, inode.gid) == (entry.uid, entry.gid)
    assert divmod(inode.mtime_ns, 1_000_000_000) == (entry.mtime_sec, entry.mtime_nsec)
    assert inode.device == entry.device
    assert reader.object(inode) == object_id(entry)
    xattrs = reader.xattrs(inode)
    if entry.parts:
        assert xattrs.pop(METACOPY) == b""
        xattrs.pop(REDIRECT)
    assert tuple(sorted(xattrs.items())) == entry.xattrs
    if entry.kind in (Kind.FILE, Kind.SYMLINK):
        assert inode.size == entry.size
    if entry.kind is Kind.SYMLINK:
        assert reader.target(inode) == entry.target


def check_object(objects: TablesReader, identity: bytes, entry: Entry) -> None:
    found = objects.find(identity)
    assert found is not None
    assert b"".join(PART.pack(part.length, part.id) for part in found.parts) == entry.parts
    assert found.size == entry.size
    data = pool().data
    for part in found.parts:
        if part.frame is not None:
            frame = objects.frame(part.frame)
            assert objects.blobs[frame.blob].digest == pool().digest
            plain = cext.decompress_frame(data[frame.offset : frame.offset + frame.packed], frame.plain)
            assert blake3(plain[part.at : part.at + part.length]) == part.id


def test_an_index_says_what_its_tree_says() -> None:
    tree, erofs, tables = encoded(*sample())
    compare(tree, erofs, tables)
    cext.check_image(erofs, tables)


_component = st.one_of(st.sampled_from([b"a", b"b", b"c"]), st.binary(min_size=1, max_size=40))
_path = st.lists(
    _component.filter(lambda name: name not in (b".", b"..") and not {0, 47} & set(name)), min_size=1, max_size=4
).map(b"/".join)
_xattrs = st.dictionaries(
    st.builds(
        bytes.__add__,
        st.sampled_from([b"user.", b"security."]),
        st.binary(min_size=1, max_size=20).filter(lambda name: 0 not in name),
    ),
    st.binary(max_size=300),
    max_size=3,
).map(lambda found: tuple(sorted((key, value) for key, value in found.items() if not key.startswith(b"user.overlay."))))


@st.composite
def _entry(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from([kind for kind in TYPES if kind is not Kind.DIRECTORY] + [Kind.FILE] * 3))
    group = draw(st.sampled_from([0, 0, 1, 2]))
    if group:  # few values, so that names of a group are equal
        return Entry(Kind.FIFO, link_group=group)
    entry = Entry(
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        mtime_sec=draw(st.integers(-(2**40), 2**40)),
        mtime_nsec=draw(st.integers(0, 10**9 - 1)),
        xattrs=draw(_xattrs),
    )
    if kind is Kind.FILE:
        file = pool().files[draw(st.integers(0, 6))]
        return replace(entry, size=file.size, algorithm=file.algorithm, parts=file.parts)
    if kind is Kind.SYMLINK:
        target = b"t".rjust(draw(st.one_of(st.integers(1, 100), st.integers(1, 4095))), b"/")
        return replace(entry, size=len(target), target=target)
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        return replace(entry, device=(draw(st.integers(1, 4095)), draw(st.integers(0, 2**20 - 1))))
    return entry


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_path, _entry()), max_size=12))
def test_any_tree_is_found_again_in_its_index(entries: Sequence[tuple[bytes, Entry]]) -> None:
    tree, erofs, tables = encoded(*entries)
    compare(tree, erofs, tables)


@pytest.mark.parametrize("count", [1, 100, 300, 1000])
def test_directories_of_any_size_are_read_whole(count: int) -> None:
    entries = [(b"d/" + b"%d" % number + b"n" * (number % 150), pool().files[0]) for number in range(count)]
    tree, erofs, tables = encoded(*entries)
    compare(tree, erofs, tables)


# ---------------------------------------------------------------------- damage


def read_all(erofs: bytes) -> None:
    """What a server does with an image."""
    reader = ErofsReader(erofs)
    for _, inode in reader.walk():
        reader.xattrs(inode)
        reader.object(inode)
        if stat.S_ISLNK(inode.mode):
            reader.target(inode)


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    if chance.random() < 0.2:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


def small() -> tuple[bytes, bytes]:
    entries = [(path, entry) for path, entry in sample() if not path.startswith(b"big/") and path != b"long"]
    return encoded(*entries)[1:]


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_erofs_is_refused_or_read_and_nothing_else_happens(seed: int) -> None:
    chance = random.Random(seed)
    erofs, _ = small()
    refused = 0
    for _ in range(150):
        try:
            read_all(damaged(erofs, chance))
        except CorruptError:
            refused += 1
    assert refused


def verdict(read: Callable[[], object]) -> str:
    try:
        read()
    except CorruptError:
        return "refused"
    return "read"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_tables_are_refused_exactly_when_the_c_code_refuses_them(seed: int) -> None:
    """Both check all of the format. Places of frames and digests of blobs can change unseen: reading chunks tells."""
    chance = random.Random(seed)
    erofs, tables = small()
    verdicts = set()
    for number in range(150):
        changed = damaged(tables, chance)
        if number % 5 == 0:  # the blob's digest only
            changed = tables[:64] + chance.randbytes(32) + tables[96:]
        ours = verdict(partial(TablesReader, changed))
        assert ours == verdict(partial(cext.check_image, erofs, changed))
        verdicts.add(ours)
    assert verdicts == {"refused", "read"}


def test_a_directory_in_a_circle_is_refused() -> None:
    _, erofs, _ = encoded((b"a/b", pool().files[1]))
    reader = ErofsReader(erofs)
    inner = dict(reader.walk())[b"a"]
    data = bytearray(erofs)
    row = struct.pack("<Q", dict(reader.walk())[b"a/b"].nid)
    at = data.index(row, inner.body)
    data[at : at + 8] = struct.pack("<Q", reader.root)
    with pytest.raises(CorruptError, match="somewhere else"):
        list(ErofsReader(bytes(data)).walk())
