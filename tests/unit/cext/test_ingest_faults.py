"""The ingest under every failure of its environment that can be counted, tests/support/faults.c; and of its face."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

import cext
from cext._native import IngestEngine

ROOT = Path(__file__).parents[3]
KERNELS = ("column", "id_set", "gear", "hash", "frame", "pack", "result", "env", "sha256", "sha256_native")
PORTABLE = ("-DBLAKE3_NO_SSE2", "-DBLAKE3_NO_SSE41", "-DBLAKE3_NO_AVX2", "-DBLAKE3_NO_AVX512", "-DBLAKE3_USE_NEON=0")
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def build(target: Path, sanitizers: str) -> None:
    blake3 = sorted(glob("/usr/share/cargo/registry/blake3-*/c"))[-1]
    words = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}", *PORTABLE]
    words += [f"-I{ROOT}/cext/src", f"-I{blake3}", str(ROOT / "tests/support/faults.c")]
    words += [str(ROOT / f"cext/src/os_{name}.c") for name in KERNELS]
    words += glob(f"{ROOT}/cext/src/os_ingest*.c")
    words += [f"{blake3}/blake3{name}.c" for name in ("", "_dispatch", "_portable")]
    subprocess.run([*words, "-lzstd", "-pthread", "-o", str(target)], check=True, env=PLAIN)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_every_call_of_an_ingest_may_fail(sanitizers: str, tmp_path: Path) -> None:
    build(tmp_path / "faults", sanitizers)
    (tmp_path / "packs").mkdir()
    words = [str(tmp_path / "faults"), str(tmp_path / "packs"), *(["once"] if sanitizers == "thread" else [])]
    done = subprocess.run(words, capture_output=True, text=True, env=PLAIN, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    points = {}
    for line in done.stdout.splitlines():
        kind, how, threads, calls = line.split()
        points[kind, how, threads] = int(calls)
    assert {kind for kind, _, _ in points} == {
        "openat", "close", "write", "pread", "fdatasync", "memory", "thread", "lookup",
    }  # fmt: skip
    assert all(points.values()), "a kind of fault was never injected"
    assert points["memory", "fails", "threads-1"] > 55
    assert sum(points.values()) > 150


FULL = """
import os, resource, signal, sys
import cext
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with cext.Ingest(fd) as ingest:
    try:
        ingest.add_bytes(os.urandom(5_000_000))
        ingest.finish()
    except OSError as error:
        print(error.errno, error)
print(os.listdir(fd))
"""


def test_a_file_that_cannot_grow_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, cwd=ROOT, check=True, env=os.environ
    )
    first, left = done.stdout.splitlines()
    assert first.startswith("27 "), first
    assert left == "[]"


def test_a_pack_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / f"pack-{os.getpid()}-0.tmp"
    taken.write_bytes(b"somebody else's")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with cext.Ingest(fd) as ingest:
            ingest.add_bytes(b"content")
            with pytest.raises(FileExistsError):
                ingest.finish()
    finally:
        os.close(fd)
    assert taken.read_bytes() == b"somebody else's"


class Unreadable(cext.Ingest):
    """The disk gives nothing back, and has to where packs are not hashed while they are written."""

    def _digest(self, name: str) -> bytes:
        raise OSError(errno.EIO, "cannot read", name)


def test_a_pack_that_cannot_be_read_back_leaves_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with Unreadable(fd) as ingest:
            ingest._engine.close()
            ingest._engine = IngestEngine(fd, digests=0)
            ingest.add_bytes(b"content")
            with pytest.raises(OSError, match="cannot read"):
                ingest.finish()
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == []
