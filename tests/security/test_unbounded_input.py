"""No input makes us use memory, disk, descriptors or time without a limit.

CVE-2023-25153 (containerd: import read whole blobs), CVE-2026-114236, zstd windows, zip and gzip bombs, YAML-like bombs
in JSON, archives of nothing but headers.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

import cext
from cext.errors import CorruptError, OnesecError
from imagebuilder import streams
from imagebuilder.tar import TarReader
from lazyfs.index.layer import decode_layer
from registry.image import parse_config
from registry.model import Index, LayerRecord, Manifest, parse_json
from registry.reference import Reference
from tests.support import seeds
from tests.support.command import Onesec
from tests.support.hostile import archive, assert_refused, canaries, import_tar, member, packed
from tests.support.images import encoded, pool, sample
from tests.support.layers import layer as layer_of
from tests.support.oci import oci_layout, write_index

BAD_INPUTS = 10_000
MIB = 1 << 20
GROWTH_MAX = 64 * MIB


def memory_in_use() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def bounded(growth: int = GROWTH_MAX) -> Iterator[None]:
    """Descriptors as before, and at most so many bytes more, at the peak."""
    descriptors = sorted(os.listdir("/proc/self/fd"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_in_use()
    yield
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    grown = int(peak.split()[1]) * 1024 - before
    # a sanitizer keeps what was freed, to find who still uses it
    assert grown <= growth or "san.so" in os.environ.get("LD_PRELOAD", ""), f"{grown >> 20} MiB more"
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


# ---------------------------------------------------------------------- archives


def huge(size: int, name: str = "a") -> bytes:
    """A header that promises so many bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros_in_zstd(count: int) -> bytes:
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    piece = bytes(MIB)
    return b"".join(compressor.compress(piece) for _ in range(count)) + compressor.flush()


def window(log: int) -> bytes:
    """A zstd frame that asks for 2^log bytes of memory."""
    return b"\x28\xb5\x2f\xfd" + bytes([0x00, (log - 10) << 3]) + b"\x01\x00\x00"


def many_global_headers() -> bytes:
    def header(number: int) -> bytes:
        return member("g", sized(b"comment.%d=%s" % (number, b"x" * 60_000)), kind=b"g")

    return archive(*(header(number) + member("a") for number in range(200)))


def sized(record: bytes) -> bytes:
    for length in range(len(record), len(record) + 12):
        line = b"%d %s\n" % (length, record)
        if len(line) == length:
            return line
    raise AssertionError


def many_headers_before_one_member(kind: bytes) -> bytes:
    content = sized(b"comment=" + b"x" * 500_000) if kind == b"x" else b"n" * 500_000
    return archive(*[member("h", content, kind=kind)] * 20, member("a"))


def sparse(pairs: str, size: str) -> bytes:
    return archive(member("a", b"x", pax={"GNU.sparse.map": pairs, "GNU.sparse.size": size}))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a file of eight exabytes that ends at once": (lambda: huge((1 << 63) - 1), "early"),
    "a file larger than 63 bits": (lambda: huge(1 << 63), "size"),
    "a pax header of a gigabyte": (lambda: member("x", kind=b"x")[:124] + b"10000000000\0", "ends"),
    "global headers without end": (many_global_headers, "global headers"),
    "pax headers without end before one member": (lambda: many_headers_before_one_member(b"x"), "extended headers"),
    "long names without end before one member": (lambda: many_headers_before_one_member(b"L"), "extended headers"),
    "a sparse map of a million pieces": (
        lambda: archive(
            member(
                "a",
                b"9999999\n" + b"0\n" * 600,
                pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
            )
        ),
        "pieces",
    ),
    "a sparse map that counts to overflow": (lambda: sparse("9223372036854775807,1", "9223372036854775807"), "sparse"),
    "a sparse file whose pieces overlap": (lambda: sparse("0,1,0,1", "2"), "sparse"),
    "a pax record of a length with 20 digits": (
        lambda: archive(member("x", b"99999999999999999999 a=b\n", kind=b"x")),
        "pax",
    ),
    "an xattr of 65536 bytes": (
        lambda: archive(member("a", pax={"SCHILY.xattr.user.a": "x" * 65536})),
        "xattrs",
    ),
    "xattrs of 200 KiB together": (
        lambda: archive(member("a", pax={f"SCHILY.xattr.user.{n}": "x" * 50_000 for n in range(4)})),
        "xattrs",
    ),
    "directories 3000 deep": (lambda: archive(*(member("d/" * n, kind=b"5") for n in range(1, 2100))), "4096"),
    "a gzip stream that is cut": (lambda: packed(archive(member("a", bytes(100_000))))[:-20], "gzip"),
    "a zstd frame that wants four gigabytes of memory": (lambda: window(32), "zstd"),
    "a zstd frame that wants all memory": (lambda: window(41), "zstd"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_an_archive_that_is_a_bomb_is_refused_with_little_memory(case: str, tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)
    make, words = BOMBS[case]
    data = make()
    with canaries(tmp_path):
        with bounded():
            said = import_tar(onesec, data)
        assert_refused(onesec, said, words)


def test_members_without_end_out_of_few_bytes_are_stopped() -> None:
    """Each of them costs memory, and twenty of the same name one byte."""
    few = streams.Caps(members_free=1000)
    tar = archive(*[member("same")] * 40_000)
    with pytest.raises(CorruptError, match=r"got \d+ members out of \d+ bytes"):
        read_tar(zstandard.compress(tar), few)
    with pytest.raises(CorruptError, match="more than 7000 members"):
        read_tar(tar, streams.Caps(members=7_000))
    real = archive(*(member(f"usr/lib/python3/dist-packages/{n}/__init__.py") for n in range(8_000)))
    read_tar(packed(real), few)
    read_tar(zstandard.compress(real, 19), few)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_stream_of_zeros_costs_no_memory_and_no_disk(kind: str, tmp_path: Path) -> None:
    """256 MiB out of a quarter of one: a file of zeros is a hole, and the bomb is only time."""
    size = 256 * MIB
    head, end = huge(size, "zeros"), bytes(1024)
    if kind == "gzip":
        piece = zlib.compressobj(9, wbits=31)
        data = piece.compress(head) + b"".join(piece.compress(bytes(MIB)) for _ in range(256))
        data += piece.compress(end) + piece.flush()
    else:
        data = zstandard.compress(head) + zeros_in_zstd(256) + zstandard.compress(end)
    plain = streams.Plain(streams.Source(io.BytesIO(data)))
    onesec = Onesec(tmp_path)
    with bounded():
        digest = plain.digest()
        oci_layout(tmp_path / "hostile", data, {})
        config_with(tmp_path / "hostile", str(digest))
        said = onesec.here("import", f"oci:{tmp_path / 'hostile'}:t", "-t", "zeros")
    assert said.status == 0, said
    stored = sum(path.stat().st_size for path in (onesec.root / "images/blobs/sha256").iterdir())
    assert stored < MIB


def config_with(layout: Path, diff_id: str) -> None:
    """The layout's image with another diff_id."""
    from tests.support.oci import put

    blobs = layout / "blobs/sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    config["rootfs"]["diff_ids"] = [diff_id]
    manifest["config"]["digest"], manifest["config"]["size"] = put(layout, json.dumps(config).encode())
    index["manifests"][0]["digest"], index["manifests"][0]["size"] = put(layout, json.dumps(manifest).encode())
    write_index(layout, index)


def test_a_ratio_that_no_real_layer_has_is_stopped() -> None:
    caps = streams.Caps(ratio=1000, free=MIB)
    plain = streams.Plain(streams.Source(io.BytesIO(zeros_in_zstd(64))), caps)
    with bounded(), pytest.raises(CorruptError, match="times its size"):
        plain.digest()


# ---------------------------------------------------------------------- documents


def deep(count: int) -> bytes:
    return b'{"a":' * count + b"1" + b"}" * count


DOCUMENTS: dict[str, Callable[[], bytes]] = {
    "a document of 5 MiB": lambda: b'{"schemaVersion":2,"x":"' + b"x" * (5 * MIB) + b'"}',
    "100,000 levels of lists": lambda: b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels of objects": lambda: deep(100_000),
    "a number of a million digits": lambda: b'{"schemaVersion":' + b"2" * 1_000_000 + b"}",
    "a number with a huge exponent": lambda: b'{"schemaVersion":2,"manifests":1e999999999}',
    "not a number": lambda: b'{"schemaVersion":NaN}',
    "an infinity": lambda: b'{"schemaVersion":Infinity,"manifests":[]}',
    "a hundred thousand descriptors": lambda: json.dumps({"schemaVersion": 2, "manifests": [{}] * 100_000}).encode(),
    "lone surrogates": lambda: b'{"schemaVersion":2,"manifests":[{"mediaType":"\\ud800"}]}',
    "bytes that are no text": lambda: b"\xff\xfe" * 1000,
    "nothing": lambda: b"",
    "text after its end": lambda: b'{"schemaVersion":2,"manifests":[]}{}',
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_is_too_much_is_refused(case: str, tmp_path: Path) -> None:
    layout = tmp_path / "hostile"
    oci_layout(layout, archive(member("a")), {})
    (layout / "index.json").write_bytes(DOCUMENTS[case]())
    onesec = Onesec(tmp_path)
    with bounded():
        said = onesec.here("import", f"oci:{layout}:t", "-t", "hostile")
    assert_refused(onesec, said)


def test_indexes_inside_indexes_come_to_an_end(tmp_path: Path) -> None:
    from tests.support.oci import put

    layout = tmp_path / "hostile"
    oci_layout(layout, archive(member("a")), {})
    index = json.loads((layout / "index.json").read_text())
    for _ in range(10):
        inner = {"schemaVersion": 2, "manifests": index["manifests"]}
        digest, size = put(layout, json.dumps(inner).encode())
        kind = "application/vnd.oci.image.index.v1+json"
        notes = {"org.opencontainers.image.ref.name": "t"}
        index["manifests"] = [{"mediaType": kind, "digest": digest, "size": size, "annotations": notes}]
    write_index(layout, index)
    onesec = Onesec(tmp_path)
    assert_refused(onesec, onesec.here("import", f"oci:{layout}:t", "-t", "hostile"), "indexes inside")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def test_a_blob_that_is_a_fifo_or_a_device_does_not_keep_us_waiting(tmp_path: Path) -> None:
    for number, make in enumerate((fifo, endless)):
        place = tmp_path / str(number)
        place.mkdir()
        oci_layout(place / "hostile", archive(member("a")), {})
        blobs = place / "hostile/blobs/sha256"
        for blob in list(blobs.iterdir()):
            blob.unlink()
            make(blob)
        onesec = Onesec(place)
        assert_refused(onesec, onesec.here("import", f"oci:{place / 'hostile'}:t", "-t", "hostile"))


# ---------------------------------------------------------------------- ten thousand bad inputs


def damaged(chance: random.Random, data: bytes) -> bytes:
    """A few bytes other, cut, doubled or filled with extremes."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out))
        how = chance.randrange(5)
        if how == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            out[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 62)))
        elif how == 2:
            del out[at : at + chance.randrange(1, 64)]
        elif how == 3:
            out[at:at] = out[at : at + chance.randrange(1, 64)]
        else:
            out[at] = chance.randrange(256)
        if not out:
            return b"\0"
    return bytes(out)


def read_tar(data: bytes, caps: streams.Caps | None = None) -> None:
    plain = streams.Plain(streams.Source(io.BytesIO(data)), caps)
    reader = TarReader(plain.read)
    for number, _ in enumerate(reader):
        plain.count(number)
        for _ in reader.contents():
            pass


def read_pack(data: bytes) -> None:
    fd = os.memfd_create("pack")
    try:
        os.write(fd, data)
        cext.parse_pack_table(cext.pack_table(fd), len(data))
    finally:
        os.close(fd)


def readers() -> list[tuple[bytes, Callable[[bytes], Any]]]:
    """Something good for each decoder, and the decoder."""
    tree, erofs, tables = encoded(*sample())
    small = layer_of(*sample()[:8])
    pack = pool().data
    tar = archive(member("a/b", b"hello", pax={"SCHILY.xattr.user.a": "b"}), member("c", kind=b"2", link="a"))
    one = {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 5}
    manifest = json.dumps({"schemaVersion": 2, "config": one, "layers": [one]}).encode()
    index = json.dumps({"schemaVersion": 2, "manifests": [one]}).encode()
    record = json.dumps({"index": one, "packs": [one]}).encode()
    return [
        (tar, read_tar),
        (packed(tar), read_tar),
        (zstandard.compress(tar), read_tar),
        (small, lambda data: decode_layer(data)),
        (tree, lambda data: cext.encode_image(data, pool().listed)),
        (erofs, lambda data: cext.check_image(data, tables)),
        (tables, lambda data: cext.check_image(erofs, data)),
        (pack, read_pack),
        (manifest, Manifest.parse),
        (index, Index.parse),
        (record, LayerRecord.parse),
        (b'{"config":{"Env":["A=b"],"Cmd":["x"]}}', lambda data: parse_config(data, "config")),
        (b'{"a":[1,{"b":"c"}]}', lambda data: parse_json(data, "document")),
        (b"example.com:5000/me/app:v2@sha256:" + b"0" * 64, lambda data: Reference.parse(data.decode("latin-1"))),
        (cext.compress_frame(b"frame" * 500), lambda data: cext.decompress_frame(data, 2500)),
        (gzip.compress(b"x" * 1000), read_tar),
    ]


def test_ten_thousand_bad_inputs_leave_descriptors_and_memory_as_they_were() -> None:
    seed = seeds.draw()
    chance = random.Random(seed)
    targets = readers()
    for data, read in targets:
        try:
            read(data)  # imports, caches and arenas are there before anything is measured
        except OnesecError:
            continue
    refused, odd = 0, [False]
    with bounded():
        for number in range(BAD_INPUTS):
            data, read = targets[number % len(targets)]
            try:
                read(damaged(chance, data))
            except OnesecError as error:
                refused += 1
                odd += ["\n" in str(error) or len(str(error)) > 1000]
    assert not any(odd)
    assert refused > BAD_INPUTS // 2, f"only {refused} were refused: the damage does nothing"
