"""The walk under every failure of its environment, tests/support/walk_faults.c."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import build, plain_environment

ENGINES = (
    "os_walk*.c", "os_ingest*.c", "os_column.c", "os_id_set.c", "os_gear.c", "os_hash.c", "os_sha256*.c", "os_frame.c",
    "os_pack.c", "os_env.c", "os_tree.c",
)  # fmt: skip


def make_tree(root: Path) -> None:
    (root / "below/empty").mkdir(parents=True)
    (root / "below/small").write_bytes(b"small")
    (root / "other").write_bytes(b"other")
    os.link(root / "other", root / "below/same")
    (root / "link").symlink_to("below/small")
    os.mkfifo(root / "fifo")
    os.link(root / "fifo", root / "second fifo")
    for name in ("user.one", "user.two"):
        os.setxattr(root / "below/small", name, b"value")
    with open(root / "large", "wb") as file:
        file.write(b"begins")
        file.seek(3 << 20)
        file.write(os.urandom(100_000))


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_every_call_of_a_walk_may_fail(sanitizers: str, tmp_path: Path) -> None:
    flags = (f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer")
    program = build("walk_faults.c", tmp_path / "faults", engines=ENGINES, flags=flags)
    (tmp_path / "packs").mkdir()
    make_tree(tmp_path / "tree")
    words = [str(program), str(tmp_path / "packs"), str(tmp_path / "tree")]
    done = subprocess.run(words, capture_output=True, text=True, env=plain_environment(), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    points = {}
    for line in done.stdout.splitlines():
        kind, injected, refused = line.split()
        points[kind] = (int(injected), int(refused))
    assert set(points) == {"openat", "pread", "stat", "list", "link", "xattrs", "xattr", "seek", "memory", "size"}
    assert all(injected for injected, _ in points.values()), "a kind of fault was never injected"
    assert all(injected == refused for kind, (injected, refused) in points.items() if kind not in ("seek", "size"))
    assert points["size"][1] >= 4, "files that change their size were taken"
    assert os.listdir(tmp_path / "packs") == []
