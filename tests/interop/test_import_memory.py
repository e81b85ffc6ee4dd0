"""What an import takes in memory does not grow with the bytes of the image, and little with its names.

`benchmarks/macro/scenarios/memory.py` measures 5 GB in 100,000 files.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.support.command import ROOT, Onesec
from tests.support.contents import MIB, stream
from tests.support.oci import oci_layout

PEAK_MAX = 100 * MIB
"""Measured: 63 and 55 MiB here; 74 for 2 GiB in 8 files, 159 for 2 GB in 100,000, 278 for 200,000 of 100 bytes."""


def archive(files: int, large: int) -> bytes:
    """Some large files of bytes that do not repeat, and many of a few bytes."""
    pieces = []
    for row in range(large):
        member = tarfile.TarInfo(f"large/{row}")
        member.size = 60 * MIB
        pieces += [member.tobuf(), *(hashlib.shake_128(b"%d %d" % (row, part)).digest(MIB) for part in range(60))]
    for row in range(files):
        member = tarfile.TarInfo(f"small/{row // 100}/{row}")
        member.size = 512
        pieces += [member.tobuf(), stream(row, 512)]
    return b"".join([*pieces, bytes(1024)])


def peak_of(call: list[str], environment: dict[str, str]) -> int:
    """Most resident bytes of a process, looked at until it ends."""
    with subprocess.Popen(call, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        peak = 0
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = max(peak, int(line.split()[1]) << 10)
            time.sleep(0.01)
        assert process.returncode == 0, process.stderr.read()
    return peak


@pytest.mark.parametrize(("files", "large"), [(0, 2), (15_000, 0)], ids=["120 MiB in 2 files", "15,000 files"])
def test_an_import_takes_little_memory(files: int, large: int, tmp_path: Path) -> None:
    oci_layout(tmp_path / "source", archive(files, large), {})
    onesec = Onesec(tmp_path)
    call = [sys.executable, "-m", "onesec", "import", f"oci:{tmp_path}/source:t", "-t", "t:1"]
    peak = peak_of(call, onesec.surroundings)
    assert 20 * MIB < peak < PEAK_MAX, f"{peak >> 20} MiB"
