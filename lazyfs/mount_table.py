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
    """One row of the mount table. Their order does not say which of two mounts on a target lies over the other."""

    id: int
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
        number, _, _, _, target, *_ = left.split(b" ")
        rows.append(TableRow(int(number), _unescape(target), os.fsdecode(kind), _unescape(source)))
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
    directory, name = os.path.split(real)
    try:
        above = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{path}: got no onesec mount") from error
    try:
        # From here on links and renamed directories on the way to it lead nowhere else.
        place = f"/proc/self/fd/{above}/{name}"
        row = _topmost(place) if name else None
        if row is None or row.target != real or not row.ours:
            raise MountError(f"{path}: got no onesec mount")
        _undo(row, place, path)
    finally:
        os.close(above)
    return real


def _topmost(place: str) -> TableRow | None:
    """The mount that a path leads to."""
    try:
        fd = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            words = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    finally:
        os.close(fd)  # with it open the mount would be busy
    number = int(words["mnt_id"])
    return next((row for row in mount_table() if row.id == number), None)


def _undo(row: TableRow, place: str, path: str) -> None:
    try:
        cext.umount2(place, _UMOUNT_NOFOLLOW)
    except PermissionError as error:
        if row.kind == "overlay":
            raise MountError(f"{path}: not permitted", hint="a kernel mount is undone by root") from error
        _fusermount(path, row.target)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path) from error
        raise MountError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error


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
