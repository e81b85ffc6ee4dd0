from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from cext.errors import CorruptError
from imagebuilder.errors import BombError
from imagebuilder.streams import Caps, Plain, Source
from imagebuilder.tar import Member, TarReader, Type
from registry.model import Digest
from tests.support import seeds


def read(data: bytes, caps: Caps | None = None) -> dict[bytes, tuple[Member, bytes]]:
    """Every member with its content, the holes filled."""
    plain = Plain(Source(io.BytesIO(data)), caps)
    found = {}
    reader = TarReader(plain.read)
    for member in reader:
        steps = reader.contents()
        found[member.path] = (member, b"".join(bytes(step) if isinstance(step, int) else step for step in steps))
    plain.digest()
    return found


def header(name: bytes = b"f", flag: bytes = b"0", size: int = 0, link: bytes = b"", **fields: bytes) -> bytes:
    """One raw header with a right checksum, whatever else is wrong with it."""
    given = {"mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0", "mtime": b"00000000000\0"}
    given |= {"raw_size": b"%011o\0" % size, "major": b"0000000\0", "minor": b"0000000\0"} | fields
    head = name.ljust(100, b"\0") + given["mode"] + given["uid"] + given["gid"] + given["raw_size"] + given["mtime"]
    tail = flag + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + given["major"] + given["minor"] + bytes(167)
    total = sum(head) + sum(tail) + 8 * 32
    return head + b"%06o\0 " % total + tail


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        size = len(rest)
        while len(b"%d" % size) + len(rest) != size:
            size = len(b"%d" % size) + len(rest)
        body += b"%d" % size + rest
    return header(b"pax", flag, len(body)) + body + bytes(-len(body) % 512)


END = bytes(1024)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "dir").mkdir()
    (root / "dir" / "data").write_bytes(random.Random(1).randbytes(300_000))
    os.link(root / "dir" / "data", root / "dir" / "same")
    os.symlink("nowhere/else", root / "link")
    os.mkfifo(root / "fifo")
    (root / ("n" * 255)).write_text("long name")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("no UTF-8")
    deep = root / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    with open(root / "sparse", "wb") as file:
        file.seek(2 << 20)
        file.write(b"middle")
        file.truncate(5 << 20)
    os.utime(root / "dir" / "data", ns=(0, -1_500_000_001))
    return root


FORMATS = [
    ("--format=gnu",),
    ("--format=gnu", "-S"),
    ("--format=oldgnu", "-S"),
    ("--format=pax", "-S", "--sparse-version=0.0"),
    ("--format=pax", "-S", "--sparse-version=0.1"),
    ("--format=pax", "-S", "--sparse-version=1.0"),
]


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
@pytest.mark.parametrize("packed", ["none", "gzip", "zstd"])
def test_every_format_of_gnu_tar_gives_the_files_that_went_in(
    tree: Path, options: tuple[str, ...], packed: str
) -> None:
    raw = subprocess.run(["tar", "-C", tree, *options, "-cf", "-", "."], stdout=subprocess.PIPE, check=True).stdout
    halves = (raw[:99_999], raw[99_999:])
    skippable = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    data = {
        "none": raw,
        "gzip": b"".join(map(gzip.compress, halves)),
        "zstd": zstandard.compress(halves[0]) + skippable + zstandard.compress(halves[1]),
    }[packed]
    found = read(data)
    expected = {os.fsencode(path.relative_to(tree)) for path in tree.rglob("*")} | {b""}
    assert set(found) == expected
    for path, (member, content) in found.items():
        on_disk = os.lstat(os.path.join(os.fsencode(tree), path))
        assert (member.mode, member.uid) == (on_disk.st_mode & 0o7777, on_disk.st_uid)
        assert member.mtime_sec == on_disk.st_mtime_ns // 1_000_000_000
        if member.type is Type.FILE:
            assert content == Path(os.fsdecode(os.path.join(os.fsencode(tree), path))).read_bytes()
            assert len(content) == member.size
    links = [member for member, _ in found.values() if member.type is Type.LINK]
    assert len(links) == 1
    if options[0] == "--format=pax":
        first = b"dir/data" if found[b"dir/data"][0].type is Type.FILE else b"dir/same"
        assert (found[first][0].mtime_sec, found[first][0].mtime_nsec) == (-2, 499_999_999)


def test_what_python_writes_is_read_too() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("é/" + "x" * 200)
        info.size, info.uid, info.mtime = 3, 3_000_000_000, -5
        info.pax_headers = {
            "SCHILY.xattr.user.k": "v",
            "SCHILY.xattr.trusted.overlay.redirect": "/etc",
            "mtime": "-5.25",
        }
        archive.addfile(info, io.BytesIO(b"abc"))
    ((path, (member, content)),) = read(buffer.getvalue()).items()
    assert path == "é/".encode() + b"x" * 200
    assert (member.uid, content, member.xattrs) == (3_000_000_000, b"abc", ((b"user.k", b"v"),))
    assert (member.mtime_sec, member.mtime_nsec) == (-6, 750_000_000)


def test_numbers_in_base_256_may_be_large_and_negative() -> None:
    big = b"\x80" + (3_000_000_000).to_bytes(7, "big")
    old = (-4_876_543_211).to_bytes(12, "big", signed=True)
    member, _ = read(header(uid=big, mtime=old) + END)[b"f"]
    assert (member.uid, member.mtime_sec) == (3_000_000_000, -4_876_543_211)


@pytest.mark.parametrize(
    ("name", "path"), [(b"/etc/x", b"etc/x"), (b"./a//b/./c", b"a/b/c"), (b"./", b""), (b"//", b"")]
)
def test_names_come_out_relative_to_the_root(name: bytes, path: bytes) -> None:
    assert set(read(header(name, b"5") + END)) == {path}


HOSTILE = {
    "parent": header(b"../x"),
    "parent in the middle": header(b"a/../../x"),
    "parent at the end": header(b"a/.."),
    "parent by pax": pax((b"path", b"../../etc/passwd")) + header(),
    "parent by GNU long name": header(b"long", b"L", 5) + b"../xx".ljust(512, b"\0") + header(),
    "parent by ustar prefix": header(b"x")[:345] + b"..".ljust(155, b"\0") + bytes(12),
    "parent by sparse name": pax((b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"0"), (b"GNU.sparse.name", b"../x"))
    + header(),
    "link to a parent": header(b"a", b"1", link=b"../../etc/shadow"),
    "link to a parent by pax": pax((b"linkpath", b"a/../../b")) + header(b"a", b"1"),
    "NUL in a name": pax((b"path", b"a\0b")) + header(),
    "NUL in a symlink": pax((b"linkpath", b"a\0b")) + header(b"a", b"2"),
    "empty symlink": header(b"a", b"2"),
    "symlink of 5000 bytes": pax((b"linkpath", b"x" * 5000)) + header(b"a", b"2"),
    "name of 256 bytes": pax((b"path", b"x" * 256)) + header(),
    "path of 5000 bytes": pax((b"path", b"a/" * 2500)) + header(),
    "negative size": header(raw_size=b"\xff" * 12),
    "size beyond 63 bits": header(raw_size=b"\x80" + b"\xff" * 11),
    "size that is no number": header(raw_size=b"12x45678901\0"),
    "size that lies": header(size=1 << 40),
    "pax size that lies": pax((b"size", b"99999999")) + header(),
    "pax header of a gigabyte": header(b"pax", b"x", 1 << 30),
    "long name of a gigabyte": header(b"pax", b"L", 1 << 30),
    "pax length that lies": header(b"p", b"x", 10) + b"99 path=x\n".ljust(512, b"\0") + header(),
    "pax length of zero": header(b"p", b"x", 10) + b"0 path=xx\n".ljust(512, b"\0") + header(),
    "pax without a length": header(b"p", b"x", 10) + b"path=xxxx\n".ljust(512, b"\0") + header(),
    "uid beyond 32 bits": pax((b"uid", b"4294967296")) + header(),
    "uid that is nobody": pax((b"uid", b"4294967295")) + header(),
    "negative uid": header(uid=b"\xff" * 8),
    "time that is no number": pax((b"mtime", b"1e9")) + header(),
    "time beyond 63 bits": pax((b"mtime", b"9223372036854775808")) + header(),
    "xattr of a megabyte": pax((b"SCHILY.xattr.user.a", b"x" * 70_000)) + header(),
    "device beyond 32 bits": header(b"d", b"3", major=b"\x80\0\0\xff\xff\xff\xff\xff"),
    "unknown type": header(flag=b"Z"),
    "continued from another volume": header(flag=b"M"),
    "lone zero block": bytes(512) + header(),
    "wrong checksum": header()[:148] + b"0000001\0" + header()[156:],
    "ends in a header": header()[:300],
    "ends after pax": pax((b"path", b"x")),
    "sparse pieces overlap": pax((b"GNU.sparse.map", b"0,8,4,8"), (b"GNU.sparse.size", b"99"))
    + header(size=16)
    + bytes(512),
    "sparse beyond the end": pax((b"GNU.sparse.map", b"90,16"), (b"GNU.sparse.size", b"99"))
    + header(size=16)
    + bytes(512),
    "sparse stores less": pax((b"GNU.sparse.map", b"0,8"), (b"GNU.sparse.size", b"99")) + header(size=16) + bytes(512),
    "sparse without a size": pax((b"GNU.sparse.map", b"0,0")) + header(),
    "sparse map without an end": pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")
    )
    + header(size=512)
    + b"1" * 512,
    "sparse map of a billion": pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")
    )
    + header(size=512)
    + b"1000000000\n".ljust(512, b"\0"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused(data: bytes) -> None:
    if data[345:347] == b".." and data[148:156] != header()[148:156]:  # the prefix changed the sum
        total = sum(data[:148]) + sum(data[156:512]) + 8 * 32
        data = data[:148] + b"%06o\0 " % total + data[156:]
    with pytest.raises(CorruptError):
        read(data + END)


def test_links_devices_and_directories_have_no_content_whatever_their_size_says() -> None:
    data = header(b"d", b"5", 512) + header(b"f", b"0", 1) + b"x".ljust(512, b"\0") + END
    assert {path: content for path, (_, content) in read(data).items()} == {b"d": b"", b"f": b"x"}


def test_the_last_of_two_members_of_one_name_is_the_last_to_come_out() -> None:
    data = header(size=1) + b"1".ljust(512, b"\0") + header(size=1) + b"2".ljust(512, b"\0") + END
    assert read(data)[b"f"][1] == b"2"


def test_a_damaged_or_cut_gzip_stream_is_refused() -> None:
    data = gzip.compress(header(size=100_000) + random.Random(2).randbytes(100_000).ljust(100_352, b"\0") + END)
    for damaged in (data[: len(data) // 2], data[:-9], data + b"trailing", data[:5000] + b"x" + data[5001:]):
        with pytest.raises(CorruptError):
            read(damaged)


def test_a_zstd_stream_that_is_damaged_is_refused_and_one_that_is_cut_has_another_digest() -> None:
    raw = header(size=100_000) + b"text" * 25_088 + END
    data = zstandard.ZstdCompressor(write_checksum=True).compress(raw)
    with pytest.raises(CorruptError):
        read(data[:-1] + bytes([data[-1] ^ 1]))
    cut = Plain(Source(io.BytesIO(data[: len(data) // 2])))
    assert cut.digest() != Digest.of(raw)


def test_a_bomb_is_stopped_by_its_ratio_and_by_its_size() -> None:
    data = zstandard.compress(header(size=1 << 26) + bytes(1 << 26) + END)
    with pytest.raises(BombError, match="times"):
        read(data, Caps(free=1 << 20, ratio=100))
    with pytest.raises(BombError, match="more than"):
        read(data, Caps(plain=1 << 20))


def test_other_compressions_are_named() -> None:
    with pytest.raises(CorruptError, match="xz"):
        read(b"\xfd7zXZ\x00" + bytes(100))


def test_both_digests_cover_what_the_archive_leaves_unread() -> None:
    data = gzip.compress(header() + END + b"rubbish behind the end")
    source = Source(io.BytesIO(data))
    plain = Plain(source)
    assert [member.path for member in TarReader(plain.read)] == [b"f"]
    assert plain.digest() == Digest.of(gzip.decompress(data))
    assert source.digest() == Digest.of(data)


def test_no_mutation_of_an_archive_gets_more_than_a_corrupt_error_out_of_the_reader(tree: Path) -> None:
    seed = seeds.draw()
    chance = random.Random(seed)
    names = ["link", "fifo", "n" * 255, "d" * 120]
    samples = [
        subprocess.run(["tar", "-C", tree, *options, "-cf", "-", *names], stdout=subprocess.PIPE, check=True).stdout
        for options in FORMATS[:1] + FORMATS[-1:]
    ]
    samples += [data + header(size=3) + b"abc".ljust(512, b"\0") + END for data in HOSTILE.values()]
    for _ in range(3000):
        data = bytearray(chance.choice(samples))
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.choice(
                (0, 0x20, 0x2F, 0x30, 0x37, 0x80, 0xFF, chance.getrandbits(8))
            )
        for start in range(0, len(data) - 511, 512):  # right the sums, or nothing gets past the first header
            if data[start + 257 : start + 262] == b"ustar":
                total = sum(data[start : start + 148]) + sum(data[start + 156 : start + 512]) + 8 * 32
                data[start + 148 : start + 156] = b"%06o\0 " % total
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        reader = TarReader(Plain(Source(io.BytesIO(data))).read)
        try:
            for member in reader:
                assert b".." not in member.path.split(b"/")
                assert not member.path.startswith(b"/")
                assert b"\0" not in member.path + member.target
                assert 0 <= member.size < 1 << 63
                for number, _step in enumerate(reader.contents()):
                    assert number < 1 << 20
        except CorruptError:
            continue
