"""encode_image, check_image and check_image_sandboxed: what is not the canonical index of a tree is refused."""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

import cext
from cext.errors import CorruptError, LimitError, MissingError
from lazyfs.index.erofs import METACOPY, REDIRECT, ErofsReader, Inode
from lazyfs.index.layer import encode_entry, encode_layer, encode_record
from lazyfs.index.model import HOLE, PART, Entry, Kind
from lazyfs.index.record import record_digest
from lazyfs.index.tables import TablesReader
from lazyfs.merge import merge
from tests.support.images import encoded, pool, sample
from tests.support.layers import layer

BLOCK, SLOT, SUPER = 4096, 32, 1024
BY_TYPE = {
    0o100000: Kind.FILE,
    0o040000: Kind.DIRECTORY,
    0o120000: Kind.SYMLINK,
    0o020000: Kind.CHARACTER,
    0o060000: Kind.BLOCK,
    0o010000: Kind.FIFO,
}


def small() -> list[tuple[bytes, Entry]]:
    """One of each kind in two blocks."""
    files = pool().files
    xattrs = ((b"security.capability", b"\1\0\0\2"), (b"user.a", b""), (b"user.b", b"value"))
    return [
        (b"", Entry(Kind.DIRECTORY, mode=0o755, mtime_sec=5, xattrs=((b"system.posix_acl_default", b"acl"),))),
        (b"d/a", replace(files[1], mtime_sec=-7, mtime_nsec=999_999_999, xattrs=xattrs)),
        (b"d/b", replace(files[5], link_group=1)),
        (b"d/c", replace(files[5], link_group=1)),
        (b"d/empty", files[0]),
        (b"null", Entry(Kind.CHARACTER, mode=0o666, device=(1, 3))),
        (b"sda", Entry(Kind.BLOCK, mode=0o600, device=(8, 300))),
        (b"pipe", Entry(Kind.FIFO, mode=0o600)),
        (b"link", Entry(Kind.SYMLINK, mode=0o777, size=6, target=b"d/a/..")),
        (b"long", Entry(Kind.SYMLINK, mode=0o777, size=2049, target=b"t" * 2049)),
    ]


def tree_in(erofs: bytes, tables: bytes) -> bytes:
    """The merged tree that an index says, read by code that shares nothing with the C code."""
    reader, objects = ErofsReader(erofs), TablesReader(tables)
    found = list(reader.walk())
    return merge([layer(*((path, _entry(reader, objects, inode)) for path, inode in found))])


def _entry(reader: ErofsReader, objects: TablesReader, inode: Inode) -> Entry:
    seconds, nanoseconds = divmod(inode.mtime_ns, 10**9)
    xattrs = {name: value for name, value in reader.xattrs(inode).items() if name not in (METACOPY, REDIRECT)}
    kind = BY_TYPE[inode.mode & 0o170000]
    identity = reader.object(inode)
    made = None if identity is None else objects.find(identity)
    target = reader.target(inode) if kind is Kind.SYMLINK else b""
    return Entry(
        kind,
        mode=inode.mode & 0o7777,
        uid=inode.uid,
        gid=inode.gid,
        mtime_sec=seconds,
        mtime_nsec=nanoseconds,
        xattrs=tuple(sorted(xattrs.items())),
        size=inode.size if kind is Kind.FILE else len(target),
        algorithm=0 if made is None else made.algorithm,
        parts=b"" if made is None else b"".join(PART.pack(part.length, part.id) for part in made.parts),
        target=target,
        device=inode.device,
        link_group=0 if kind is Kind.DIRECTORY or inode.links == 1 else inode.nid,
    )


def put(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def inode_of(erofs: bytes, path: bytes) -> Inode:
    return dict(ErofsReader(erofs).walk())[path]


# ---------------------------------------------------------------------- every bit


def test_an_index_is_what_its_own_tree_encodes_to() -> None:
    for entries in (small(), sample(), []):
        tree, erofs, tables = encoded(*entries)
        cext.check_image(erofs, tables)
        assert tree_in(erofs, tables) == tree
        assert cext.encode_image(tree, pool().listed) == (erofs, tables)


def test_a_flipped_bit_of_an_erofs_is_refused_or_gives_the_canonical_image_of_another_tree() -> None:
    _, erofs, tables = encoded(*small())
    accepted = refused = 0
    for at in range(len(erofs)):
        slot = at // SLOT * SLOT
        dull = len(set(erofs[slot : slot + SLOT])) == 1  # zeros, or the inside of a long target
        bits = (at % 8,) if dull else range(8)
        for bit in bits:
            changed = put(erofs, at, bytes([erofs[at] ^ 1 << bit]))
            try:
                cext.check_image(changed, tables)
            except CorruptError:
                refused += 1
                continue
            accepted += 1
            assert cext.encode_image(tree_in(changed, tables), pool().listed) == (changed, tables), (at, bit)
    assert accepted > 500  # owners, times, permissions, names, targets
    assert refused > 10_000


def test_a_flipped_bit_of_tables_is_refused_but_where_only_the_packs_can_tell() -> None:
    _, erofs, tables = encoded(*small())
    blobs, frames = struct.unpack_from("<II", tables, 8)
    columns = 64 + 48 * blobs
    offsets, lengths = range(columns, columns + 8 * frames), range(columns + 12 * frames, columns + 20 * frames)
    blob = range(64, 64 + 40)  # digest and size
    chunks = struct.unpack_from("<I", tables, 16)[0]
    places = columns + 20 * frames + 32 * chunks  # of chunks in their frames, after their frames
    inside = range(-(-(places + 4 * chunks) // 8) * 8, len(tables))[: 4 * chunks]
    for at in range(len(tables)):
        for bit in range(8):
            changed = put(tables, at, bytes([tables[at] ^ 1 << bit]))
            try:
                cext.check_image(erofs, changed)
            except CorruptError:
                continue
            assert at in blob or at in offsets or at in lengths or at in inside, (at, bit)


def test_an_index_that_is_cut_short_or_goes_on_is_refused() -> None:
    _, erofs, tables = encoded(*small())
    for size in [*range(0, len(erofs), 61), len(erofs) - 1, len(erofs) - BLOCK]:
        with pytest.raises(CorruptError):
            cext.check_image(erofs[:size], tables)
    for size in range(len(tables)):
        with pytest.raises(CorruptError):
            cext.check_image(erofs, tables[:size])
    for tail in (b"\0", bytes(8), bytes(BLOCK)):
        with pytest.raises(CorruptError):
            cext.check_image(erofs + tail, tables)
        with pytest.raises(CorruptError):
            cext.check_image(erofs, tables + tail)


def test_tables_at_any_address_are_checked() -> None:
    _, erofs, tables = encoded(*small())
    for shift in range(8):
        room = memoryview(bytes(shift) + tables)[shift:]
        cext.check_image(memoryview(b"-" + erofs)[1:], room)


# ---------------------------------------------------------------------- forged on purpose


def swap_names(erofs: bytes) -> bytes:
    """d has .. . a b c: b and c are one inode, so their names can change places without anybody else knowing."""
    body = inode_of(erofs, b"d").body
    at = erofs.index(b"...abcempty", body)
    return put(erofs, at, b"...acbempty")


def name_twice(erofs: bytes) -> bytes:
    at = erofs.index(b"...abcempty", inode_of(erofs, b"d").body)
    return put(erofs, at, b"...abbempty")


def swap_xattrs(erofs: bytes) -> bytes:
    inode = inode_of(erofs, b"d/a")
    start = inode.at + 64 + 12
    area = erofs[start : inode.body]
    first = area.index(struct.pack("<BBH", 1, 1, 0))  # user.a, then user.b
    one, two = area[first : first + 8], area[first + 8 : first + 20]
    return put(erofs, start + first, two + one)


def xattr_twice(erofs: bytes) -> bytes:
    at = erofs.index(struct.pack("<BBH", 1, 1, 5) + b"bvalue")
    return put(erofs, at + 4, b"a")


def device_zero(erofs: bytes) -> bytes:
    return put(erofs, inode_of(erofs, b"null").at + 16, bytes(4))


def speaks_to_overlayfs(erofs: bytes) -> bytes:
    """security.capability becomes trusted.capability."""
    at = erofs.index(struct.pack("<BBH", 10, 6, 4) + b"capability")
    return put(erofs, at + 1, b"\4")


def shared_xattr(erofs: bytes) -> bytes:
    return put(erofs, inode_of(erofs, b"d/a").at + 64 + 4, b"\1")


def points_at_a_hole(erofs: bytes) -> bytes:
    """Zeros in place of EIO."""
    return put(erofs, inode_of(erofs, b"d/a").body, b"\xff" * 4)


def points_inside(erofs: bytes) -> bytes:
    """The image's own blocks in place of EIO."""
    return put(erofs, inode_of(erofs, b"d/a").body, bytes(4))


def compressed(erofs: bytes) -> bytes:
    inode = inode_of(erofs, b"d/a")
    return put(erofs, inode.at, struct.pack("<H", 1 | 3 << 1))


def compact_inode(erofs: bytes) -> bytes:
    inode = inode_of(erofs, b"pipe")
    return put(erofs, inode.at, struct.pack("<H", 0))


def more_features(erofs: bytes) -> bytes:
    return put(erofs, SUPER + 80, struct.pack("<I", 4 | 8))


def extra_devices(erofs: bytes) -> bytes:
    return put(erofs, SUPER + 86, struct.pack("<H", 1))


def hides_bytes(erofs: bytes) -> bytes:
    """Something for the kernel to find in a gap."""
    return put(erofs, len(erofs) - 1, b"x")


def directory_with_two_names(erofs: bytes) -> bytes:
    """pipe leads to d."""
    reader = ErofsReader(erofs)
    found = dict(reader.walk())
    row = struct.pack("<Q", found[b"pipe"].nid)
    at = erofs.index(row, found[b""].body)
    return put(erofs, at, struct.pack("<Q", found[b"d"].nid))


def parent_elsewhere(erofs: bytes) -> bytes:
    found = dict(ErofsReader(erofs).walk())
    at = found[b"d"].body + 12  # ".." comes second
    assert erofs[at : at + 8] == struct.pack("<Q", found[b""].nid)
    return put(erofs, at, struct.pack("<Q", found[b"d"].nid))


def circle(erofs: bytes) -> bytes:
    """d/empty is d."""
    found = dict(ErofsReader(erofs).walk())
    at = erofs.index(struct.pack("<Q", found[b"d/empty"].nid), found[b"d"].body)
    return put(erofs, at, struct.pack("<Q", found[b"d"].nid))


def far_inode(erofs: bytes) -> bytes:
    found = dict(ErofsReader(erofs).walk())
    at = erofs.index(struct.pack("<Q", found[b"pipe"].nid), found[b""].body)
    return put(erofs, at, struct.pack("<Q", 2**63))


def name_with_a_slash(erofs: bytes) -> bytes:
    at = erofs.index(b"...abcempty", inode_of(erofs, b"d").body)
    return put(erofs, at, b"...a/cempty")


def dots_twice(erofs: bytes) -> bytes:
    """d/a is called "." as well."""
    at = erofs.index(b"...abcempty", inode_of(erofs, b"d").body)
    return put(erofs, at, b"....bcempty")


def endless_file(erofs: bytes) -> bytes:
    """A chunk map of 4 MB that is not there."""
    return put(erofs, inode_of(erofs, b"d/a").at + 8, struct.pack("<Q", 2**63 - 1))


def endless_directory(erofs: bytes) -> bytes:
    return put(erofs, inode_of(erofs, b"d").at + 8, struct.pack("<Q", 2**63))


def many_xattrs(erofs: bytes) -> bytes:
    return put(erofs, inode_of(erofs, b"d/a").at + 2, struct.pack("<H", 65535))


def another_size(erofs: bytes) -> bytes:
    """The file is longer than its object: stat would lie."""
    inode = inode_of(erofs, b"d/a")
    return put(erofs, inode.at + 8, struct.pack("<Q", inode.size + 1))


def another_object(erofs: bytes) -> bytes:
    at = erofs.index(b"/", inode_of(erofs, b"d/a").at + 64)
    return put(erofs, at + 1, b"00" if erofs[at + 1 : at + 3] != b"00" else b"01")


def redirect_out_of_the_object_mount(erofs: bytes) -> bytes:
    at = erofs.index(b"/", inode_of(erofs, b"d/a").at + 64)
    return put(erofs, at, b"../../../../../../../../etc/passwd"[:66].ljust(66, b"/"))


def upper_case_redirect(erofs: bytes) -> bytes:
    inode = inode_of(erofs, b"d/a")
    start = erofs.index(b"/", inode.at + 64)
    text = erofs[start : start + 66]
    assert text != text.upper()
    return put(erofs, start, text.upper())


FORGERIES = [
    swap_names,
    name_twice,
    swap_xattrs,
    xattr_twice,
    device_zero,
    speaks_to_overlayfs,
    shared_xattr,
    points_at_a_hole,
    points_inside,
    compressed,
    compact_inode,
    more_features,
    extra_devices,
    hides_bytes,
    directory_with_two_names,
    parent_elsewhere,
    circle,
    far_inode,
    name_with_a_slash,
    dots_twice,
    endless_file,
    endless_directory,
    many_xattrs,
    another_size,
    another_object,
    redirect_out_of_the_object_mount,
    upper_case_redirect,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_erofs_is_refused(forge: Callable[[bytes], bytes]) -> None:
    _, erofs, tables = encoded(*small())
    forged = forge(erofs)
    assert forged != erofs
    with pytest.raises(CorruptError):
        cext.check_image(forged, tables)


def test_an_object_that_no_file_has_is_refused() -> None:
    _, erofs, _ = encoded(*small())
    _, _, tables = encoded(*small(), (b"more", pool().files[2]))
    with pytest.raises(CorruptError, match="no file has it"):
        cext.check_image(erofs, tables)


def test_overlapping_inodes_cost_no_more_than_the_image_is_long() -> None:
    """Every slot of a megabyte looks like an inode with 4 KB of xattrs, and a directory names them all."""
    size = 1 << 20
    image = bytearray(size)
    image[SUPER : SUPER + 4] = struct.pack("<I", 0xE0F5E1E2)
    image[SUPER + 14 : SUPER + 16] = struct.pack("<H", 36)
    inode = struct.pack("<HHHHQIIIIQII16x", 1, 1024, 0o10644, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    names = [b"%06x" % number for number in range(300)]
    rows = b"".join(struct.pack("<QHBB", 200 + n, 12 * 300 + 6 * n, 5, 0) for n in range(300))
    image[36 * 32 : 36 * 32 + 64] = struct.pack("<HHHHQIIIIQII16x", 1, 0, 0o40755, 0, 5400, 100, 0, 0, 0, 0, 0, 2)
    image[100 * BLOCK : 100 * BLOCK + 5400] = rows + b"".join(names)
    for slot in range(200, 600, 2):
        image[slot * 32 : slot * 32 + 64] = inode
    _, _, tables = encoded()
    with pytest.raises(CorruptError):
        cext.check_image(bytes(image), tables)


# ---------------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    "entry",
    [
        Entry(Kind.WHITEOUT),
        Entry(Kind.LINK, size=1, target=b"x"),
        Entry(Kind.DIRECTORY, flags=1),
        Entry(Kind.DIRECTORY, flags=2),
    ],
    ids=["whiteout", "link", "opaque", "implicit"],
)
def test_what_only_layers_have_cannot_be_encoded(entry: Entry) -> None:
    with pytest.raises(CorruptError, match="merged tree"):
        cext.encode_image(layer((b"", Entry(Kind.DIRECTORY, mode=0o755)), (b"a", entry)), [])


def test_a_chunk_that_is_in_no_pack_is_missing() -> None:
    tree = merge([layer((b"a", pool().files[1]))])
    with pytest.raises(MissingError, match="none of the 0 packs"):
        cext.encode_image(tree, [])


def test_the_first_pack_that_has_a_chunk_is_used_and_only_used_packs_are_listed() -> None:
    tree = merge([layer((b"a", pool().files[1]))])
    ((digest, size, table),) = pool().listed
    first, second = b"\xff" * 32, b"\0" * 32
    _, tables = cext.encode_image(tree, [(first, size, table), (second, size, table), (digest, size, table)])
    assert [blob.digest for blob in TablesReader(tables).blobs] == [first]


@pytest.mark.parametrize(
    ("packs", "error"),
    [
        ([(b"short", 1, b"")], ValueError),
        ([(bytes(32), -1, b"")], OverflowError),
        ([(bytes(32), 2**64, b"")], OverflowError),
        ([[bytes(32), 1, b""]], TypeError),
        ([(bytes(32), 1)], TypeError),
        (7, TypeError),
        ([(bytes(32), 100, b"no table")], CorruptError),
    ],
)
def test_packs_of_another_shape_are_refused(packs: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        cext.encode_image(merge([layer()]), packs)  # type: ignore[arg-type]


def chain(depth: int, *innermost: bytes) -> bytes:
    """A merged tree of directories in each other, built from records, since no builder makes too deep ones."""
    entry, records = Entry(Kind.DIRECTORY, mode=0o755), []
    record = encode_record(innermost)
    for _ in range(depth):
        records.append(record)
        record = encode_record([encode_entry(entry, record_digest(record), name=b"d")])
    return encode_layer(encode_entry(entry, record_digest(record), name=b""), [*records, record])


def test_deep_trees_are_encoded_and_checked_and_too_deep_ones_refused() -> None:
    erofs, tables = cext.encode_image(chain(2048), [])
    cext.check_image(erofs, tables)
    assert erofs.count(b"...d") == 2048
    for depth in (2049, 100_000):
        with pytest.raises(LimitError, match="deeper"):
            cext.encode_image(chain(depth), [])


def test_an_erofs_that_is_too_deep_is_refused() -> None:
    """A chain of 2048 whose last directory gets one more: what should have been a fifo is a directory."""
    erofs, tables = cext.encode_image(chain(2048, encode_entry(Entry(Kind.FIFO), name=b"f")), [])
    cext.check_image(erofs, tables)
    inode = list(ErofsReader(erofs).walk())[-1][1]
    data = struct.pack("<QHBBQHBB", inode.nid, 24, 2, 0, inode.nid - 5, 25, 2, 0) + b"..."
    head = struct.pack("<HHHHQI", 1 | 2 << 1, 0, 0o40755, 0, len(data), 0)
    forged = put(put(erofs, inode.at, head), inode.at + 64, data)
    with pytest.raises(LimitError, match="deeper"):
        cext.check_image(forged, tables)


def test_a_record_that_holds_itself_many_times_over_is_bounded() -> None:
    """30 levels of two names each would be a billion inodes."""
    entry, records = Entry(Kind.DIRECTORY, mode=0o755), [encode_record([])]
    for _ in range(30):
        digest = record_digest(records[-1])
        records.append(encode_record([encode_entry(entry, digest, name=name) for name in (b"a", b"b")]))
    tree = encode_layer(encode_entry(entry, record_digest(records[-1]), name=b""), records)
    assert len(tree) < 10_000
    with pytest.raises(LimitError, match="names or more"):
        cext.encode_image(tree, [])


@pytest.mark.parametrize("size", [1, 2**43 - 1, 2**43, 2**43 + 1, 20 << 40, 2**63 - 1])
def test_files_of_any_size_have_the_chunk_map_that_they_need(size: int) -> None:
    entry = Entry(Kind.FILE, mode=0o644, size=size, algorithm=1, parts=PART.pack(size, HOLE))
    erofs, tables = cext.encode_image(merge([layer((b"a", entry), (b"b", entry))]), [])
    cext.check_image(erofs, tables)
    inode = inode_of(erofs, b"a")
    count = -(-size // 2**43)
    assert inode.size == size
    assert erofs[inode.body : inode.body + 4 * count] == struct.pack("<I", 0xFFFFFFF0) * count
    assert inode_of(erofs, b"b").at >= inode.body + 4 * count


@pytest.mark.parametrize("room", range(0, 4200, 300))
def test_data_behind_an_inode_never_crosses_a_block(room: int) -> None:
    """The root's own xattrs push everything on, the root's names too: it has to move itself."""
    fill = Entry(Kind.DIRECTORY, mode=0o755, xattrs=((b"user.fill", bytes(room)),))
    links = [(b"%03d" % n, Entry(Kind.SYMLINK, mode=0o777, size=n * 37, target=b"x" * n * 37)) for n in range(1, 60)]
    tree = merge([layer((b"", fill), *links)])
    erofs, tables = cext.encode_image(tree, [])
    cext.check_image(erofs, tables)
    reader = ErofsReader(erofs)
    assert reader.root < 1 << 16
    for _, inode in reader.walk():
        if inode.layout == 2:
            assert inode.body // BLOCK == (inode.body + inode.size - 1) // BLOCK
    assert tree_in(erofs, tables) == tree


def test_every_xattr_an_entry_may_have_comes_back() -> None:
    most = tuple((b"user.%03d" % number, bytes([number]) * 1000) for number in range(120))
    entries = [
        (b"most", replace(pool().files[1], xattrs=most)),
        (b"largest", replace(pool().files[0], xattrs=((b"security.x", b"v" * 65535), (b"user.y", b"w" * 65000)))),
        (b"longest", Entry(Kind.FIFO, xattrs=((b"user." + b"n" * 250, b""),))),
        (
            b"tiny",
            Entry(Kind.FIFO, xattrs=tuple((b"user.%c%c" % (n, m), b"") for n in range(1, 60) for m in range(1, 60))),
        ),
    ]
    tree, erofs, tables = encoded(*entries)
    cext.check_image(erofs, tables)
    assert tree_in(erofs, tables) == tree


@pytest.mark.parametrize(
    "name", [b"trusted.foo", b"user.overlay.x", b"system.nfs4_acl", b"com.apple.x", b"user.", b"plain", b"user.a\0b"]
)
def test_an_xattr_that_no_image_may_have_is_refused(name: bytes) -> None:
    entry, pair = Entry(Kind.FIFO), struct.pack("<HH", len(name), 1) + name + b"v"
    row = bytearray(encode_entry(entry, name=b"a") + pair)
    struct.pack_into("<I", row, 28, 1)
    record = encode_record([bytes(row)])
    root = encode_entry(Entry(Kind.DIRECTORY), record_digest(record), name=b"")
    with pytest.raises(CorruptError, match="may not occur"):
        cext.encode_image(encode_layer(root, [record]), [])


# ---------------------------------------------------------------------- in a process of its own


@contextmanager
def files(*contents: bytes) -> Iterator[list[int]]:
    fds = []
    try:
        for content in contents:
            fd, path = tempfile.mkstemp()
            fds.append(fd)
            os.unlink(path)
            os.write(fd, content)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def test_the_sandboxed_check_says_what_the_check_says() -> None:
    _, erofs, tables = encoded(*small())
    with files(erofs, tables) as (one, two):
        cext.check_image_sandboxed(one, two)
    forged = swap_names(erofs)
    with pytest.raises(CorruptError) as plain:
        cext.check_image(forged, tables)
    with files(forged, tables) as (one, two), pytest.raises(CorruptError, match=re.escape(str(plain.value))):
        cext.check_image_sandboxed(one, two)


def test_the_sandboxed_check_refuses_files_that_it_cannot_map() -> None:
    _, erofs, tables = encoded(*small())
    with files(erofs, b"") as (one, two), pytest.raises(CorruptError, match="tables: got 0 bytes"):
        cext.check_image_sandboxed(one, two)
    with files(erofs, tables) as (one, _), pytest.raises(OSError, match="tables: cannot be read"):
        cext.check_image_sandboxed(one, 1_000_000)


def test_the_sandboxed_check_works_from_threads_and_under_signals() -> None:
    _, erofs, tables = encoded(*sample())
    heard: list[int] = []
    failed: list[BaseException] = []

    def check(one: int, two: int) -> None:
        try:
            for _ in range(10):
                cext.check_image_sandboxed(one, two)
        except BaseException as error:
            failed.append(error)

    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        with files(erofs, tables) as (one, two):
            threads = [threading.Thread(target=check, args=(one, two)) for _ in range(3)]
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for thread in threads:
                thread.start()
            check(one, two)
            for thread in threads:
                thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not failed
    assert heard


def test_random_damage_never_does_more_than_being_refused() -> None:
    chance = random.Random(7)
    _, erofs, tables = encoded(*sample())
    for _ in range(3000):
        one, two = bytearray(erofs), bytearray(tables)
        for _ in range(chance.randint(1, 8)):
            data = one if chance.random() < 0.8 else two
            at = chance.randrange(len(data))
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        try:
            cext.check_image(one, two)
        except (CorruptError, LimitError):
            continue
        assert cext.encode_image(tree_in(bytes(one), bytes(two)), pool().listed)[0] == one
