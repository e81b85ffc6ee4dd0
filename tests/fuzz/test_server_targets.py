"""The object server's decoders; the seeds are real requests and real tables."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.fuzz.conftest import Fuzz
from tests.support.objects import Content, make_objects


def request(opcode: int, node: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 4, node, 0, 0, 99, 0, 0) + body


def test_fuse_requests(fuzz: Fuzz) -> None:
    seeds = [
        request(1, 1, b"ab\0"),
        request(1, 2, b"0" * 62 + b"\0"),
        request(15, 99_999, struct.pack("<QQIIQII", 0, 0, 4096, 0, 0, 0, 0)),
        request(26, 0, struct.pack("<IIIII", 7, 38, 131_072, 0x40000000, 1 << 7).ljust(64, b"\0")),
        request(36, 0, struct.pack("<Q", 4)),
        request(42, 0, struct.pack("<II", 1, 0) + bytes(16)),
        request(3, 1, bytes(16)),
        request(17, 1, b""),
    ]
    fuzz("fuse", seeds)


def test_tables_and_packs(fuzz: Fuzz, tmp_path: Path) -> None:
    sets: list[tuple[dict[str, Content], int]] = [
        ({"a": b"hello", "b": b"x" * 3000}, 1),
        ({"a": b"z" * 90_000, "h": [b"q" * 10, 1 << 20, b"y"]}, 1),
        ({"a": b"hello"}, 2),
        ({"a": os.urandom(30_000)}, 1),
    ]
    seeds = []
    for number, (contents, algorithm) in enumerate(sets):
        made = make_objects(tmp_path / f"set-{number}", contents, algorithm=algorithm)
        (pack,) = (path.read_bytes() for path in made.packs.iterdir())
        seeds.append(struct.pack("<H", len(pack)) + pack + made.tables.read_bytes())
    fuzz("image", seeds)


def test_heads_of_boot_packs(fuzz: Fuzz) -> None:
    seeds = []
    for objects, runs in ((1, 1), (3, 5), (0, 0)):
        frames = min(1, runs)
        seeds.append(
            struct.pack("<8s4IQ", b"OSBOOT01", objects, runs, frames, 0, 4096 * runs)
            + b"".join(bytes([number + 1]) * 32 for number in range(objects + frames))
            + struct.pack(f"<{runs}Q", *(8192 * number for number in range(runs)))
            + struct.pack(f"<{runs}I", *[4096] * runs)
            + struct.pack(f"<{runs}I", *(min(number, objects - 1) for number in range(runs)))
            + struct.pack(f"<{3 * frames}I", *(100, 4096 * runs, runs)[: 3 * frames])
        )
    fuzz("boot", seeds)


def test_the_whole_server_answers_each_request_once(fuzz: Fuzz) -> None:
    """The first byte: is the pack still to come. Then records: what fails or is filled in, length, request."""
    read = struct.pack("<QQIIQII", 0, 0, 4096, 0, 0, 0, 0)
    records = [
        (8, request(26, 0, struct.pack("<IIIII", 7, 38, 131_072, 0x40000000, 1 << 7).ljust(64, b"\0"))),
        (24, request(1, 2, b"0" * 62 + b"\0")),
        (12, request(15, 0, read)),
        (14, request(15, 0, read)),
        (13, request(15, 0, read)),
        (8, request(36, 0, struct.pack("<Q", 4))),
        (12, request(3, 0, bytes(16))),
        (8, request(14, 0, bytes(8))),
        (8, request(39, 0, bytes(40))),
        (8, request(38, 0, b"")),
    ]
    body = b"".join(struct.pack("<BH", switches, len(words)) + words for switches, words in records)
    fuzz("server", [bytes([first]) + body for first in (0, 1)])
