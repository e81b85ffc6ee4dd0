"""BLAKE3 against its published vectors, SHA-256 against OpenSSL's."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

from cext import blake3, sha256
from tests.support.programs import build, plain_environment


def test_the_hash_of_nothing_is_the_published_one() -> None:
    assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_a_context_gives_another_hash() -> None:
    assert blake3(b"abc", context="onesec 2026 object v1") != blake3(b"abc")


def test_sha256_is_that_of_openssl() -> None:
    data = random.Random(7).randbytes(5000)
    for size in (*range(300), 4095, 4096, 5000):
        assert sha256(data[:size]) == hashlib.sha256(data[:size]).digest()


def test_every_way_to_sha256_gives_the_same_bits(tmp_path: Path) -> None:
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    program = build("sha256.c", tmp_path / "sha256", engines=("os_sha256*.c",), flags=flags)
    data = random.Random(8).randbytes(300_000)
    sizes = [*range(200), 1000, 4096, 65_537, 300_000]
    words = [str(program), *map(str, sizes)]
    done = subprocess.run(words, input=data, capture_output=True, check=True, env=plain_environment())
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(sizes)
    has_instructions = "sha_ni" in Path("/proc/cpuinfo").read_text().split()
    for size, line in zip(sizes, lines, strict=True):
        want = hashlib.sha256(data[:size]).hexdigest()
        assert line.split() == [str(size), want, want if has_instructions else "-", want]
