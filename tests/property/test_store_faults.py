"""Every call of the store that can fail, made to fail: the 1st, the 2nd, ... until a run makes no such call any more.

What holds afterwards is stated, and checked, in tests/support/store_faults.c.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import STORE, build, plain_environment
from tests.support.waiting import PATIENCE_S

FAULTS = {
    "openat": ("EMFILE", "EIO"),
    "pread": ("EIO",),
    "pwrite": ("ENOSPC", "EIO", "short"),
    "fdatasync": ("EIO",),
    "unlinkat": ("EIO",),
    "allocate": ("ENOMEM",),
    "free": ("EIO",),
    "lmdb-open": ("EMFILE",),
    "lmdb-pread": ("EIO",),
    "lmdb-write": ("ENOSPC", "EIO"),
    "lmdb-fdatasync": ("EIO",),
    "lmdb-mmap": ("ENOMEM",),
    "malloc": ("ENOMEM",),
    "thread": ("EMFILE",),
}
"""Call -> what it fails with. short: a write that takes half."""

REACHED = {
    "fresh": {"openat", "pread", "pwrite", "fdatasync", "allocate", "lmdb-write", "lmdb-mmap", "malloc", "thread"},
    "put": {
        "openat",
        "pwrite",
        "fdatasync",
        "allocate",
        "lmdb-pread",
        "lmdb-write",
        "lmdb-fdatasync",
        "malloc",
        "thread",
    },
    "evict": {"openat", "pwrite", "fdatasync", "unlinkat", "free", "lmdb-write", "lmdb-fdatasync"},
    "reopen": {"openat", "pread", "allocate", "lmdb-open", "lmdb-pread", "lmdb-mmap", "malloc"},
    "rebuild": {"openat", "pread", "allocate", "lmdb-open", "lmdb-write", "lmdb-fdatasync", "malloc"},
    "drop": {"unlinkat", "allocate", "lmdb-write", "lmdb-fdatasync", "malloc", "thread"},
    "heal": {"pread", "pwrite", "fdatasync", "allocate", "lmdb-write", "lmdb-fdatasync"},
    "check": {"pread", "pwrite", "fdatasync", "allocate", "lmdb-write", "malloc"},
    "close": {"pwrite", "lmdb-write", "lmdb-fdatasync"},
    "read": {"pread", "allocate"},
}
"""Scenario -> calls that it must have been seen to make, so that a fault test is known to have injected."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faults") / "store_faults"
    flags = ["-fno-builtin-malloc", "-Wl,--wrap=pthread_create"]
    return build("store_faults.c", out, engines=STORE, flags=flags)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose syncs cost nothing."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="store-faults-") as path:
        yield Path(path)


@pytest.mark.parametrize("scenario", sorted(REACHED))
def test_old_state_or_new_whatever_fails(program: Path, memory: Path, scenario: str) -> None:
    points: dict[str, int] = {}
    for call, errors in FAULTS.items():
        for error in errors:
            for how in ("once", "always"):
                place = memory / f"{call}-{error}-{how}"
                place.mkdir()
                done = subprocess.run(
                    [program, place, scenario, call, error, how],
                    env=plain_environment(),
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                    check=False,
                )
                assert done.returncode == 0, f"{scenario}: {call} fails with {error} {how}: {done.stderr}"
                points[call] = points.get(call, 0) + int(done.stdout)
    assert {call for call, count in points.items() if count} >= REACHED[scenario]
