"""libFuzzer on the decoders of server and image, with ASan and UBSan, for ONESEC_FUZZ_SECONDS each (default 1).

The seeds are real requests and real tables, so that the first second is already spent behind the first checks.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

import cext
from lazyfs.index.layer import LayerBuilder
from lazyfs.index.model import Entry, Kind
from lazyfs.merge import merge
from tests.support.objects import Content, make_objects

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("ONESEC_FUZZ_SECONDS", "1"))


@pytest.fixture(scope="module")
def targets() -> Path:
    """Where the built targets are."""
    out = ROOT / "build/fuzz"
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(["make", "-s", "-j2", "-C", str(ROOT / "cext/fuzz"), f"OUT={out}"], check=True, env=plain)
    return out


def fuzz(target: Path, corpus: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    words = [
        str(target),
        f"-max_total_time={SECONDS}",
        "-max_len=70000",
        "-rss_limit_mb=1024",
        "-verbosity=0",
        str(corpus),
    ]
    done = subprocess.run(words, cwd=corpus.parent, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def request(opcode: int, node: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 4, node, 0, 0, 99, 0, 0) + body


def test_fuse_requests(targets: Path, tmp_path: Path) -> None:
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
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    fuzz(targets / "fuse", corpus)


def test_tables_and_packs(targets: Path, tmp_path: Path) -> None:
    sets: list[tuple[dict[str, Content], int]] = [
        ({"a": b"hello", "b": b"x" * 3000}, 1),
        ({"a": b"z" * 90_000, "h": [b"q" * 10, 1 << 20, b"y"]}, 1),
        ({"a": b"hello"}, 2),
        ({"a": os.urandom(30_000)}, 1),
    ]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, (contents, algorithm) in enumerate(sets):
        made = make_objects(tmp_path / f"set-{number}", contents, algorithm=algorithm)
        (pack,) = (path.read_bytes() for path in made.packs.iterdir())
        (corpus / str(number)).write_bytes(struct.pack("<H", len(pack)) + pack + made.tables.read_bytes())
    fuzz(targets / "image", corpus)


def test_the_whole_server_answers_each_request_once(targets: Path, tmp_path: Path) -> None:
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
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for first in (0, 1):
        (corpus / str(first)).write_bytes(bytes([first]) + body)
    fuzz(targets / "server", corpus)


def test_erofs_images(targets: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tree = LayerBuilder()
    tree.add(b"a/file", Entry(Kind.FILE, size=0))
    tree.add(b"a/link", Entry(Kind.SYMLINK, mode=0o777, target=b"file", size=4))
    erofs, _ = cext.encode_image(merge([tree.finish()]), [])
    (corpus / "0").write_bytes(erofs)
    fuzz(targets / "erofs", corpus)
