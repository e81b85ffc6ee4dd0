"""Bytes that must not change: another digest here is another format."""

from __future__ import annotations

from dataclasses import replace

import cext
from lazyfs.index.layer import LayerBuilder
from lazyfs.index.model import PART, Entry, Kind
from lazyfs.merge import merge


def file(size: int) -> Entry:
    parts = PART.pack(size, bytes(range(32)))
    return Entry(Kind.FILE, mode=0o644, size=size, algorithm=1, parts=parts)


def lower() -> bytes:
    builder = LayerBuilder()
    builder.add(b"", Entry(Kind.DIRECTORY, mode=0o755, mtime_sec=1_700_000_000))
    builder.add(b"bin", Entry(Kind.SYMLINK, mode=0o777, size=7, target=b"usr/bin"))
    builder.add(b"usr/bin/tool", replace(file(1234), mtime_sec=-5, mtime_nsec=999_999_999, uid=1, gid=2))
    builder.link(b"usr/bin/alias", b"usr/bin/tool")
    builder.add(b"dev/null", Entry(Kind.CHARACTER, mode=0o666, device=(1, 3)))
    builder.add(b"dev/loop", Entry(Kind.BLOCK, mode=0o660, gid=6, device=(7, 300)))
    builder.add(b"run/pipe", Entry(Kind.FIFO, mode=0o600))
    xattrs = ((b"security.capability", bytes(20)), (b"user.empty", b""))
    builder.add(b"opt/\xff\xfe", Entry(Kind.FILE, mode=0o4755, xattrs=xattrs))
    hole = PART.pack(3 << 20, bytes(32)) + PART.pack(7, bytes([7]) * 32)
    builder.add(b"opt/sparse", Entry(Kind.FILE, size=(3 << 20) + 7, algorithm=2, parts=hole))
    return builder.finish()


def upper() -> bytes:
    builder = LayerBuilder()
    builder.add(b"bin/new", file(5))
    builder.whiteout(b"dev/loop")
    builder.opaque(b"run")
    builder.link(b"tool", b"bin/tool")
    return builder.finish()


def test_a_layer_index_has_these_bytes() -> None:
    assert cext.blake3(lower()).hex() == "23206287cb9930992d8e9167828046df8194cd2d561ea007b3befb3e854eae21"
    assert cext.blake3(upper()).hex() == "772c81f1bbe5d443bb32a553b7ff669b08d4c741c2af4e64f5acea19435b3c3a"


def test_a_merged_tree_has_these_bytes() -> None:
    assert (
        cext.blake3(merge([lower(), upper()])).hex()
        == "eaf5424ebdb14a2e6c6616a84d3e6e6e04ecfbe87415b8fe2d02394cb3c2d1a8"
    )
