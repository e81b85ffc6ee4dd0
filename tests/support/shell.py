"""A small image with a shell: the host's own, with the libraries that it needs, as an OCI layout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.oci import oci_layout, tar_of

DIRECTORIES = ("dev", "proc", "sys", "etc", "bin", "run", "tmp", "root", "var", "srv")
PROGRAMS = (
    "sh", "cat", "id", "sleep", "ls", "mkdir", "rm", "ln", "mv", "grep", "env", "true", "mount", "mknod", "date",
    "hostname", "unshare", "chroot", "nice",
)  # fmt: skip
_LIBRARY = re.compile(r"(/[^\s:]+) \(0x")


def shell_tree(tree: Path, programs: Sequence[str] = PROGRAMS) -> None:
    """A root with /bin/sh and other programs of the host in /bin. tree is made."""
    for name in DIRECTORIES:
        (tree / name).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nwork:x:1000:1001::/home/work:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nwork:x:1001:\nextra:x:2000:other,work\n")
    for program in programs:
        found = shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin")
        assert found is not None, program
        _put(tree, os.path.realpath(found), f"/bin/{program}")


def _put(tree: Path, source: str, place: str) -> None:
    target = tree / place.lstrip("/")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)
    listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
    for library in _LIBRARY.findall(listed):
        _put(tree, os.path.realpath(library), library)


def shell_image(
    directory: Path, *, files: Mapping[str, bytes] | None = None, config: Mapping[str, object] | None = None
) -> str:
    """An OCI layout under directory with the tree; its name as a source."""
    tree = directory / "shell-tree"
    shell_tree(tree)
    for name, data in (files or {}).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    oci_layout(directory / "shell", tar_of(tree), dict(config or {}))
    return f"oci:{directory / 'shell'}:t"
