"""python -m tests.support.full_disk DIRECTORY WHAT SPARE SMALL LARGE: an import where there is no room for it.

Imports the source SMALL into a root on a tmpfs, then LARGE with SPARE `blocks` (of 4096 bytes) or `inodes` left, then
looks for damage and tries again with enough. All in a mount namespace of its own. Prints what came of it as JSON.
Without SMALL (empty) the root is new.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cext
from tests.support.command import Onesec

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000


PLENTY = {"blocks": 64 << 8, "inodes": 10_000}
OPTIONS = {"blocks": "nr_blocks", "inodes": "nr_inodes"}


def limit(root: Path, what: str, count: int) -> None:
    subprocess.run(["mount", "-o", f"remount,{OPTIONS[what]}={count}", root], check=True)


def main(directory: Path, what: str, spare: int, small: str, large: str) -> None:
    cext.unshare(CLONE_NEWNS)
    cext.mount(None, "/", None, MS_REC_PRIVATE, None)
    onesec = Onesec(directory)
    onesec.root.mkdir(parents=True)
    cext.mount("tmpfs", onesec.root, "tmpfs", 0, "nr_blocks=16384,nr_inodes=10000")
    if small:
        first = onesec("import", small, "-t", "small:1")
        assert first.status == 0, first.err
    now = os.statvfs(onesec.root)
    used = now.f_blocks - now.f_bfree if what == "blocks" else now.f_files - now.f_ffree
    limit(onesec.root, what, used + spare)
    index = onesec.root / "images/index.json"
    tags = index.read_bytes() if small else b""
    done = onesec("import", large, "-t", "large:1")
    left = [name for _, names, files in os.walk(onesec.root / "images") for name in names + files if "tmp" in name]
    same = not small or index.read_bytes() == tags
    limit(onesec.root, what, PLENTY[what])
    checked = onesec("fsck")
    again = onesec("import", large, "-t", "large:1")
    print(
        json.dumps(
            {
                "status": done.status,
                "err": done.err,
                "left": left,
                "untouched": same,
                "fsck": checked.status,
                "fsck_out": checked.out + checked.err,
                "again": again.status,
                "again_err": again.err,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
