"""The FUSE mount of an object server, made while the process still may, and attached nowhere."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress

import cext
from cext.errors import UnsupportedError
from cext.record import Record

READ_AHEAD_KB = 4096
"""What a reader of local packs profits from: a gigabyte in 1 MiB requests comes at twice the speed."""

FAR_READ_AHEAD_KB = 256
"""Where packs are at a registry: a fault that outruns the boot pack must not fetch what nobody asked for."""

_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME = 0x1, 0x2, 0x4, 0x8, 0x10


class ObjectMount(Record):
    """A FUSE mount that is attached nowhere. tree: its root. fds: its connection, and a clone for each further
    thread; made now, because a request dies with the clone that it was read from. All owned.
    """

    tree: int
    fds: tuple[int, ...]

    def close(self) -> None:
        for fd in (self.tree, *self.fds):
            os.close(fd)


def make_object_mount(threads: int, *, profile: bool = False) -> ObjectMount:
    """profile: without read-ahead. Raises UnsupportedError where the kernel or its configuration says no."""
    fds: list[int] = []
    try:
        fds.append(_open_fuse())
        tree = mount_fuse(fds[0])
        fds.append(tree)
        clones = []
        for _ in range(threads - 1):
            clone = _open_fuse()
            fds.append(clone)
            fcntl.ioctl(clone, _CLONE, struct.pack("=I", fds[0]))
            clones.append(clone)
        if not profile:
            set_read_ahead(tree, READ_AHEAD_KB)
        return ObjectMount(tree, (fds[0], *clones))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _open_fuse() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"/dev/fuse: {os.strerror(error.errno or 0).lower()}",
            hint="load the fuse module, or give the container /dev/fuse",
        ) from error


def mount_fuse(fuse: int) -> int:
    """A detached mount of a FUSE connection: its first, or one more of the same file system."""
    options = [
        ("source", "onesec"),
        ("subtype", "onesec"),
        ("fd", str(fuse)),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
        ("default_permissions", None),
        ("ro", None),
    ]
    try:
        context = cext.fsopen("fuse", _CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"object mount: {os.strerror(error.errno or 0).lower()}",
            hint="needs root with CAP_SYS_ADMIN and a kernel with FUSE, 5.2 or newer",
        ) from error
    try:
        for key, value in options:
            cext.fsconfig(context, _SET_FLAG if value is None else _SET_STRING, key, value, 0)
        cext.fsconfig(context, _CREATE, None, None, 0)
        return cext.fsmount(context, _CLOEXEC, _RDONLY | _NOSUID | _NODEV | _NOEXEC | _NOATIME)
    except OSError as error:
        raise UnsupportedError(f"object mount: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        os.close(context)


def set_read_ahead(tree: int, size_kb: int) -> None:
    """Of the object mount. Without sysfs the kernel's 128 KiB stay: slower, not wrong."""
    major, minor = cext.device_of(tree)
    with suppress(OSError), open(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb", "w") as file:
        file.write(str(size_kb))
