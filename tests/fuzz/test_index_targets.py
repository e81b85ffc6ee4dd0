"""The decoders of the image index, and of the layer indexes that it is made of."""

from __future__ import annotations

from dataclasses import replace

from lazyfs.index.layer import encode_entry, encode_record
from lazyfs.index.model import HOLE, PART, Entry, Kind
from tests.fuzz.conftest import Fuzz
from tests.support.images import encoded, pool, sample

EMPTY, WITH_FIFO = b"\xee" * 32, b"\xdd" * 32  # what cext/fuzz/fuzz_layer.c puts digests for


def test_fs_erofs(fuzz: Fuzz) -> None:
    files = pool().files
    trees = [
        [],
        [(b"a", files[1]), (b"b", Entry(Kind.SYMLINK, mode=0o777, size=1, target=b"a"))],
        [(b"d/%02d" % number, replace(files[1], link_group=1)) for number in range(9)],
        [(b"a", replace(files[0], xattrs=((b"security.a", b"1"), (b"user.b", b"22")))), (b"d/e/f", files[5])],
        [(path, entry) for path, entry in sample() if not path.startswith(b"big/")],
    ]
    fuzz("erofs", [encoded(*tree)[1] for tree in trees])


def test_tables(fuzz: Fuzz) -> None:
    files = pool().files
    trees = [[], [(b"a", files[1])], [(b"%d" % number, file) for number, file in enumerate(files)]]
    fuzz("tables", [encoded(*tree)[2] for tree in trees])


def test_layer_indexes(fuzz: Fuzz) -> None:
    directory = Entry(Kind.DIRECTORY, mode=0o755)
    hole = Entry(Kind.FILE, size=5 << 20, algorithm=2, parts=PART.pack(5 << 20, HOLE))
    records = [
        [encode_entry(directory, EMPTY, name=b"d"), encode_entry(directory, WITH_FIFO, name=b"e")],
        [encode_entry(directory, WITH_FIFO, name=b"d"), encode_entry(hole, name=b"f")],
        [encode_entry(pool().files[1], name=name, link_group=7) for name in (b"a", b"b", b"c")],
        [
            encode_entry(Entry(Kind.BLOCK, device=(8, 1)), name=b"b"),
            encode_entry(Entry(Kind.CHARACTER, device=(1, 3), xattrs=((b"user.a", b""), (b"user.b", b"v"))), name=b"c"),
            encode_entry(Entry(Kind.SYMLINK, size=3, target=b"../"), name=b"s"),
        ],
    ]
    fuzz("layer", [b"\0" + encode_record(record) for record in records] + [b"\1" + encoded(*sample()[:12])[0]])
