"""What is mounted on this host, which of it is ours, where a mount may go, and how it is undone.

What makes a mount one of ours is its source in the mount table, not a record that may be stale.
"""

from __future__ import annotations

import errno
import os

import cext
from cext.errors import UnsupportedError
from cext.record import Record
from lazyfs.errors import MountError
from lazyfs.unattached import SOURCE

_UMOUNT_NOFOLLOW = 8


class TableRow(Record):
    """One row of the mount table, later rows lie over earlier ones."""

    target: str
    kind: str
    source: str

    @property
    def ours(self) -> bool:
        return self.source == SOURCE and self.kind in ("overlay", "fuse", f"fuse.{SOURCE}")


def mount_table() -> list[TableRow]:
    """This process's mounts."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    rows = []
    for line in lines:
        left, _, right = line.partition(b" - ")
        kind, source = right.split(b" ")[:2]
        rows.append(TableRow(_unescape(left.split(b" ")[4]), os.fsdecode(kind), _unescape(source)))
    return rows


def _unescape(field: bytes) -> str:
    if b"\\" not in field:
        return os.fsdecode(field)
    parts = field.split(b"\\")
    return os.fsdecode(parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:]))


def unmount(path: str) -> str:
    """Undoes the topmost mount of ours on a path; works without its server, its record, and on a broken connection.

    A user who is not root has a portable mount undone by fusermount3, which knows who made it.
    """
    real = os.path.realpath(path)
    rows = [row for row in mount_table() if row.target == real]
    if not rows or not rows[-1].ours:
        raise MountError(f"{path}: got no onesec mount")
    try:
        cext.umount2(real, _UMOUNT_NOFOLLOW)
    except PermissionError as error:
        if rows[-1].kind == "overlay":
            raise MountError(f"{path}: not permitted", hint="a kernel mount is undone by root") from error
        _fusermount(path, real)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path) from error
        raise MountError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error
    return real


def _fusermount(path: str, real: str) -> None:
    import subprocess

    try:
        done = subprocess.run(["fusermount3", "-u", "--", real], capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise UnsupportedError("fusermount3: not installed", hint="apt-get install fuse3") from error
    if done.returncode != 0:
        words = done.stderr.strip().rpartition(": ")[2].lower()
        raise _in_use(path) if "busy" in words else MountError(f"{path}: {words or 'fusermount3 failed'}")


def _in_use(path: str) -> MountError:
    return MountError(f"{path}: in use", hint="end the processes that use it; `fuser -vm` names them")
