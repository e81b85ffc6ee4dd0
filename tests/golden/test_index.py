"""Bytes of an image index that must not change: another digest here is another format, and another kernel input.

Packs are made up, so that no version of zstd has a say.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import cext
from lazyfs.index.layer import LayerBuilder
from lazyfs.index.model import HOLE, PART, Entry, Kind
from lazyfs.merge import merge

HERE = Path(__file__).parent
DIRECTORY = Entry(Kind.DIRECTORY, mode=0o755, mtime_sec=1_700_000_000)


def chunk(number: int) -> tuple[int, bytes]:
    return 1000 + number, cext.blake3(b"chunk %d" % number)


def file(*numbers: int, hole: int = 0, algorithm: int = 1) -> Entry:
    parts = [(hole, HOLE)] * (hole > 0) + [chunk(number) for number in numbers]
    size = sum(length for length, _ in parts)
    return Entry(
        Kind.FILE, mode=0o644, size=size, algorithm=algorithm, parts=b"".join(PART.pack(*part) for part in parts)
    )


def pack(number: int, *frames: tuple[int, ...]) -> tuple[bytes, int, bytes]:
    """Each frame has the chunks of these numbers and half of their bytes."""
    chunks = [chunk(one) for frame in frames for one in frame]
    plain = [sum(chunk(one)[0] for one in frame) for frame in frames]
    numbers = [*(size // 2 for size in plain), *plain, *map(len, frames), *(length for length, _ in chunks)]
    body = struct.pack(f"<8sII{len(numbers)}I", b"OSPACK01", len(frames), len(chunks), *numbers)
    body += b"".join(identity for _, identity in chunks)
    table = body + cext.blake3(body) + struct.pack("<II8s", len(body) + 48, 0, b"OSPACKE1")
    return cext.blake3(b"pack %d" % number), sum(size // 2 for size in plain) + 8 + len(table), table


def tree() -> bytes:
    """Everything that sections 4 to 6 of docs/format.md have a rule for."""
    builder = LayerBuilder()
    builder.add(b"", replace(DIRECTORY, mode=0o711, xattrs=((b"system.posix_acl_default", b"not a real one"),)))
    for path in (b"d", b"d/empty", b"large", b"moved"):
        builder.add(path, DIRECTORY)
    xattrs = ((b"security.capability", bytes(range(20))), (b"user.empty", b""), (b"user.\xff", b"v" * 5000))
    builder.add(b"d/attributes", replace(file(0), xattrs=xattrs, uid=4_000_000_000, gid=65536, mode=0o6755))
    builder.add(b"d/first", replace(file(1, 2, 3), mtime_sec=-4_876_543_212, mtime_nsec=999_999_999))
    builder.link(b"linked", b"d/first")
    builder.add(b"d/same content", file(1, 2, 3))
    builder.add(b"d/sparse", file(4, hole=(5 << 40) + 1))
    builder.add(b"d/endless", Entry(Kind.FILE, size=2**63 - 1, algorithm=1, parts=PART.pack(2**63 - 1, HOLE)))
    builder.add(b"d/sha", file(5, algorithm=2))
    builder.add(b"d/nothing", Entry(Kind.FILE, mode=0o600))
    builder.add(b"null", Entry(Kind.CHARACTER, mode=0o666, device=(1, 3)))
    builder.add(b"disk", Entry(Kind.BLOCK, mode=0o660, gid=6, device=(4095, 1_048_575)))
    builder.add(b"fifo", Entry(Kind.FIFO, mode=0o7777))
    for size in (1, 2048, 2049, 4095):
        target = (b"target/" * 600)[:size]
        builder.add(b"link %d" % size, Entry(Kind.SYMLINK, mode=0o777, size=size, target=target))
    for name in (b"!", b"-", b".hidden", b"..odd", b"\x01", b"\xff" * 255):  # on both sides of . and ..
        builder.add(b"d/empty/" + name, DIRECTORY)
    for number in range(400):
        builder.add(b"large/%03d%s" % (number, b"n" * (number % 97)), Entry(Kind.FILE, mode=0o644))
    for number in range(1, 30):  # data that has to move on to the next block
        builder.add(b"moved/%d" % number, Entry(Kind.SYMLINK, mode=0o777, size=number * 70, target=b"m" * number * 70))
    return merge([builder.finish()])


def test_an_index_has_these_bytes() -> None:
    packs = [pack(1, (0, 1), (2, 9)), pack(2, (3,), (1, 4), (5,)), pack(3, (7,))]
    erofs, tables = cext.encode_image(tree(), packs)
    cext.check_image(erofs, tables)
    assert cext.blake3(tree()).hex() == "4124a5ae3c8627f3d10a53719108b0e878b233ad08802acddb660aa6d3ecc912"
    assert len(erofs) == 4308992
    assert cext.blake3(erofs).hex() == "44da6d2f82ca8e960516cfd9faffb0d7403f0244feb81da27458e90ade9b4ee4"
    assert len(tables) == 904
    assert cext.blake3(tables).hex() == "a5850ccf8a21588fa7445c1cb25de168e2aec0d3d2d7c6a0b2f2569afa5cad5e"


def dump(data: bytes) -> str:
    """32 bytes a line, lines of zeros left out."""
    lines = [f"{at:06x} {data[at : at + 32].hex(' ', 4)}" for at in range(0, len(data), 32) if any(data[at : at + 32])]
    return "\n".join([*lines, f"{len(data):06x}", ""])


def test_a_tiny_index_has_these_bytes_for_a_person_to_read() -> None:
    builder = LayerBuilder()
    builder.add(b"", DIRECTORY)
    builder.add(b"etc/motd", replace(file(1), xattrs=((b"user.note", b"hi"),), mtime_sec=-1, mtime_nsec=5))
    builder.add(b"link", Entry(Kind.SYMLINK, mode=0o777, size=8, target=b"etc/motd"))
    erofs, tables = cext.encode_image(merge([builder.finish()]), [pack(1, (1,))])
    shown = f"fs.erofs\n{dump(erofs)}\ntables\n{dump(tables)}"
    assert shown == (HERE / "tiny-index.txt").read_text()
