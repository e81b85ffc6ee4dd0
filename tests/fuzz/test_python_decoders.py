"""Every decoder in Python, on mutations of what it accepts: archives, documents, names, configuration, indexes."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

import cext
from cext.errors import CorruptError
from imagebuilder.layer import LayerWriter
from imagebuilder.progress import Silent
from imagebuilder.streams import Caps, Plain, Source
from imagebuilder.unpack import read_layer
from imagebuilder.zip import Zip
from lazyfs.index.erofs import ErofsReader
from lazyfs.index.layer import decode_layer
from lazyfs.index.model import HOLE, PART
from lazyfs.index.tables import TablesReader
from lazyfs.merge import merge
from onesec import config
from registry.image import parse_config
from registry.model import Digest, Index, LayerRecord, Manifest
from registry.reference import Reference
from tests.fuzz.conftest import SECONDS, Shown
from tests.support.contents import stream, text
from tests.support.images import encoded, pool, sample
from tests.support.mutation import MEMORY_MAX, MESSAGE_MAX, Repair, Target, fuzz

SANITIZED = "ONESEC_NATIVE" in os.environ
SEED = int(os.environ.get("ONESEC_SEED", "1"))


def run(
    shown: Shown,
    name: str,
    target: Target,
    seeds: Sequence[bytes],
    *,
    repair: Repair | None = None,
    memory: int = MEMORY_MAX,
) -> None:
    """accepted and refused must both occur: else the seeds are none, or nothing is looked at."""
    if SANITIZED:
        memory += 400 << 20  # what was freed is kept for a while
    found = fuzz(target, seeds, SECONDS, seed=SEED, repair=repair, memory_max=memory)
    shown.append(
        f"{name}: {found.executions} executions, {found.accepted} accepted, {found.memory >> 20} MiB, "
        f"slowest {found.slowest * 1000:.0f} ms"
    )
    assert found.wrong is None, f"seed {SEED}: {found.wrong}"
    assert found.accepted > 0
    assert found.refused > 0


# ---------------------------------------------------------------------- archives


class Nowhere:
    """An ingest that keeps nothing but sizes."""

    def __init__(self) -> None:
        self._sizes: list[int] = []

    def add_bytes(self, data: bytes) -> int:
        self._sizes.append(len(data))
        return len(self._sizes) - 1

    def begin(self) -> int:
        return self.add_bytes(b"")

    def update(self, data: bytes) -> None:
        self._sizes[-1] += len(data)

    def zeros(self, size: int) -> None:
        self._sizes[-1] += size

    def end(self) -> None:
        return

    def parts(self, ticket: int) -> tuple[int, bytes]:
        size = self._sizes[ticket]
        return size, PART.pack(size, HOLE) if size else b""


def tar_target(data: bytes) -> None:
    """A layer is read to the end, and what comes of it is a layer index that can be laid over others."""
    writer = LayerWriter(cast(cext.Ingest, Nowhere()))
    read_layer(writer, Plain(Source(io.BytesIO(data)), Caps(plain=16 << 20, free=1 << 20)), Silent())
    index = writer.encode()
    decode_layer(index)
    try:
        decode_layer(merge([index]), merged=True)
    except CorruptError as error:  # a link to nothing, which only the merge can tell
        if not any(word in str(error) for word in ("link to", "symlinks", "path: got")):
            raise AssertionError("the layer was taken, the merge refuses it") from error


def header(name: bytes, flag: bytes, size: int = 0, link: bytes = b"", more: bytes = b"") -> bytes:
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    tail = flag + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"0000001\0" + b"0000003\0"
    tail = (tail.ljust(230, b"\0") + more).ljust(356, b"\0")
    return head + b"%06o\0 " % (sum(head) + sum(tail) + 8 * 32) + tail


def pax(**records: bytes) -> bytes:
    body = b""
    for key, value in records.items():
        rest = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        body += next(b"%d" % size + rest for size in range(999) if len(b"%d" % size) + len(rest) == size)
    return header(b"pax", b"x", len(body)) + body + bytes(-len(body) % 512)


def tars() -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name, kind, link in (
                ("d", tarfile.DIRTYPE, ""),
                ("d/file", tarfile.REGTYPE, ""),
                ("d/link", tarfile.LNKTYPE, "d/file"),
                ("s", tarfile.SYMTYPE, "d"),
                ("s/through", tarfile.REGTYPE, ""),
                ("null", tarfile.CHRTYPE, ""),
                ("disk", tarfile.BLKTYPE, ""),
                ("pipe", tarfile.FIFOTYPE, ""),
                ("d/.wh.gone", tarfile.REGTYPE, ""),
                ("d/.wh..wh..opq", tarfile.REGTYPE, ""),
                ("lower/link", tarfile.LNKTYPE, "not/in/this/layer"),
                *([("n" * 200 + "/" + "m" * 90, tarfile.REGTYPE, "")] if form != tarfile.USTAR_FORMAT else []),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, link
                member.mtime = 1_700_000_000
                member.devmajor, member.devminor = 1, 3
                member.size = 700 if kind == tarfile.REGTYPE and ".wh." not in name else 0
                if form == tarfile.PAX_FORMAT:
                    member.pax_headers = {"SCHILY.xattr.user.a": "value", "mtime": "-1.5"}
                archive.addfile(member, io.BytesIO(text(1, member.size)))
        found.append(out.getvalue())
    block, end = text(2, 512), bytes(1024)
    old = b"%011o\0%011o\0" % (1024, 512) + bytes(72) + b"\0" + b"%011o\0" % 9999
    found.append(header(b"sparse", b"S", 512, more=old) + block + end)
    named = {"GNU__sparse__name": b"real", "GNU__sparse__realsize": b"9000000"}
    lines = b"2\n0\n512\n8000000\n0\n".ljust(512, b"\0")
    found.append(
        pax(GNU__sparse__major=b"1", GNU__sparse__minor=b"0", **named) + header(b"x", b"0", 1024) + lines + block + end
    )
    found.append(pax(GNU__sparse__map=b"0,512", GNU__sparse__size=b"4096") + header(b"x", b"0", 512) + block + end)
    found.append(
        pax(path=b"a/b/c", linkpath=b"..", uid=b"3000000000", size=b"0", SCHILY__xattr__security__capability=b"\1" * 20)
        + header(b"x", b"2", 0, b"y")
        + end
    )
    found.append(header(b"L", b"L", 300) + (b"long/" * 60).ljust(512, b"\0") + header(b"x", b"5") + end)
    return found


def any_tar(seed: int) -> bytes:
    """Members of few names and every kind, in any order: links to anything, whiteouts, entries through symlinks."""
    chance = random.Random(seed)
    names = [b"a", b"b", b"a/b", b"b/a", b"a/b/a", b"c/a", b".", b"a/.", b"./b/", b"/a"]
    names += [b".wh.a", b"a/.wh.b", b"a/.wh..wh..opq", b".wh..wh..opq", b"b/.wh.a", b"n" * 99]
    refused = [b"c/../b", b"", b".wh.", b".wh.a/b"]
    targets = [b"a", b"b", b"/a", b"../..", b"b/a", b"/", b".", b"a/b", b"c", b"x" * 90]
    made = b""
    for _ in range(chance.randrange(9)):
        kind, size = chance.choice(b"0000011122345556"), 0
        if kind in b"0":
            size = chance.choice((0, 1, 512, 70_000))
        made += header(
            chance.choice(names if chance.random() < 0.98 else refused), bytes([kind]), size, chance.choice(targets)
        )
        made += text(seed, size) + bytes(-size % 512)
    return made + bytes(1024)


def right_sums(data: bytearray, chance: random.Random) -> None:
    """Header checksums, where a header can be."""
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar" or data[at + 156] in (ord("S"), ord("x"), ord("L")):
            data[at + 148 : at + 156] = b"        "
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def test_tars(shown: Shown) -> None:
    for one in tars():
        tar_target(one)  # seeds that are refused would be none
    run(shown, "tar", tar_target, tars(), repair=right_sums)
    run(shown, "tar of few names", tar_target, [any_tar(SEED * 1000 + row) for row in range(300)], repair=right_sums)


def test_compressed_layers(shown: Shown) -> None:
    plain = tars()[0]
    seeds = [
        gzip.compress(plain),
        gzip.compress(plain[:3000]) + gzip.compress(plain[3000:]),
        zstandard.ZstdCompressor(write_checksum=True).compress(plain),
        zstandard.ZstdCompressor().compress(plain[:3000]) + zstandard.ZstdCompressor().compress(plain[3000:]),
        gzip.compress(bytes(8 << 20)),
        zstandard.ZstdCompressor().compress(bytes(8 << 20)),
    ]

    def target(data: bytes) -> None:
        whole = Plain(Source(io.BytesIO(data)), Caps(plain=16 << 20, ratio=4000, free=1 << 20))
        while step := whole.read(1 << 20):
            assert len(step) <= 1 << 20
        whole.digest()

    # zstd's window is what `zstd -d` takes too: 128 MiB, of which a stream has to fill what it uses
    run(shown, "gzip and zstd", target, seeds, memory=MEMORY_MAX + (128 << 20))


def zips() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, size in (("a.py", 300), ("p/__init__.py", 0), ("p/b.so", 5000), ("a-1.dist-info/RECORD", 80)):
                archive.writestr(name, text(3, size))
        found.append(out.getvalue())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("streamed", "w", force_zip64=True) as member:
        member.write(b"content")
    return [*found, out.getvalue()]


def test_zips(shown: Shown) -> None:
    with tempfile.TemporaryFile() as file:

        def target(data: bytes) -> None:
            file.seek(0)
            file.truncate()
            file.write(data)
            file.flush()
            with Zip(file.fileno(), "fuzzed.whl") as archive:
                for member in archive.members.values():
                    size = 0
                    for step in archive.read(member):
                        size += len(step)
                        if size > 8 << 20:
                            break

        run(shown, "zip", target, zips())


# ---------------------------------------------------------------------- documents and words

HEX = "ab" * 32


def documents() -> list[tuple[str, Target, bytes]]:
    blob = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{HEX}", "size": 10}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {**blob, "mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [blob, {**blob, "annotations": {"vnd.onesec.decoded.digest": f"blake3:{HEX}"}}],
        "annotations": {"vnd.onesec.format": "1", "vnd.onesec.size": "12"},
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**blob, "platform": {"os": "linux", "architecture": "amd64"}, "annotations": {"a": "b"}}],
    }
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": ["x"], "Entrypoint": None, "WorkingDir": "/", "User": "0:0", "Labels": {}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
        "history": [{"created_by": "x", "empty_layer": True}],
    }
    record = LayerRecord.parse  # its own form comes from itself
    made = json.dumps({"index": blob, "packs": [blob, blob]}).encode()
    return [
        ("manifest", Manifest.parse, json.dumps(manifest).encode()),
        ("index", Index.parse, json.dumps(index).encode()),
        ("config", lambda data: parse_config(data, "config"), json.dumps(image).encode()),
        ("layer record", lambda data: record(data, "record"), made),
    ]


_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 70, 1.5, "", "x" * 5000, [], {}, [[]], {"a": {}}, "sha256:" + "g" * 64, "\ud800", "a\nb",
)  # fmt: skip


def change_json(data: bytearray, chance: random.Random) -> None:
    """Puts a value of another type somewhere, where the document still is one."""
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return
    here, places = [document], []
    for one in here:
        pairs = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        places += [(one, key) for key, _ in pairs]
        here += [value for _, value in pairs]
    if places:
        inside, key = chance.choice(places)
        if chance.random() < 0.2:
            del inside[key]
        else:
            inside[key] = chance.choice(_VALUES)
    with_changes = json.dumps(document).encode()
    data[:] = with_changes


@pytest.mark.parametrize(("name", "target", "seed"), documents(), ids=[name for name, _, _ in documents()])
def test_documents(shown: Shown, name: str, target: Target, seed: bytes) -> None:
    target(seed)
    run(shown, name, target, [seed], repair=change_json)


def test_references_and_digests(shown: Shown) -> None:
    def target(data: bytes) -> None:
        words = data.decode("utf-8", "surrogateescape")
        try:
            Digest(words)
        except ValueError as error:
            if len(str(error)) > MESSAGE_MAX:
                raise AssertionError("too many words") from error
        parsed = Reference.parse(words)
        assert Reference.parse(str(parsed)) == parsed
        assert re.fullmatch(r"[\x21-\x7e]+", str(parsed))

    names = ["a", "a:1", "localhost:5000/a/b:c", f"x.io/a@sha256:{HEX}", f"a:t@sha256:{HEX}", "[::1]:5/a", "A/B"]
    run(shown, "references", target, [*(name.encode() for name in names), b"sha256:" + HEX.encode(), b"-" * 9000])


def test_configuration(shown: Shown, tmp_path: Path) -> None:
    path = tmp_path / "onesec.toml"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        config.load({"ONESEC_CONFIG": str(path)})

    whole = b"""
root = "/x"
run-dir = "y"
[run]
runtime = "crun"
scratch = "memory"
linger = 5
deadline = 1.5
[store]
quota = "10GiB"
floor = "1GiB"
[registry."localhost:5000"]
plain-http = true
ca = "/ca.pem"
mirrors = ["http://a.b"]
realms = []
"""
    target(whole)
    seeds = [whole, b"", *(line + b"\n" for line in whole.splitlines()), b"[run]\n'a\\nb'=1", b"a='" + b"x" * 9000]
    run(shown, "onesec.toml", target, seeds)


# ---------------------------------------------------------------------- indexes


def test_python_index_readers(shown: Shown) -> None:
    tree, erofs, tables = encoded(*sample()[:20])

    def layer(data: bytes) -> None:
        decode_layer(data)
        merge([data, tree])

    def read_erofs(data: bytes) -> None:
        for row, (_, inode) in enumerate(ErofsReader(data).walk()):
            if row > 2000:
                break
            assert inode.size >= 0

    run(shown, "layer index", layer, [tree, encoded((b"d/e", pool().files[1]))[0]])
    run(shown, "fs.erofs", read_erofs, [erofs, encoded((b"d/e", pool().files[1]))[1]])
    run(shown, "tables", TablesReader, [tables, encoded((b"d/e", pool().files[1]))[2]])


def test_a_decoder_that_breaks_the_rule_is_found(shown: Shown) -> None:
    """The fuzzer itself: another exception, memory and descriptors do not pass."""

    def broken(data: bytes) -> None:
        if len(data) > 1:
            raise KeyError(data)

    kept: list[bytes] = []
    opened: list[int] = []

    def hungry(data: bytes) -> None:
        kept.append(stream(0, 1 << 20))

    def leaky(data: bytes) -> None:
        if len(opened) < 3:
            opened.append(os.open("/dev/null", os.O_RDONLY))

    for target, word in ((broken, "KeyError"), (hungry, "MiB"), (leaky, "descriptors")):
        found = fuzz(target, [b"a"], 3.0 if target is hungry else 0.3)
        assert found.wrong is not None
        assert word in found.wrong
