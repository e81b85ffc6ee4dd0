"""A loop device over a file, for file systems that cannot be mounted from the file itself."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from cext.errors import UnsupportedError
from lazyfs.errors import MountError

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LOOP_READ_ONLY, _LOOP_AUTOCLEAR = 1, 4
_LOOP_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")
_LOOP_TRIES = 16


def loop_device(file: int, name: str) -> tuple[str, int]:
    """A loop device over a file: its path and an open descriptor."""
    path = os.readlink(f"/proc/self/fd/{file}").encode()[-63:]
    flags = _LOOP_READ_ONLY | _LOOP_AUTOCLEAR
    config = _LOOP_CONFIG.pack(file, 4096, 0, 0, 0, 0, 0, 0, 0, 0, flags, path, b"", b"", *[0] * 10)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"{name}: its file system cannot back an EROFS mount and there are no loop devices",
            hint="put --root on ext4 or xfs or load the loop module",
        ) from error
    try:
        for _ in range(_LOOP_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                kept, fd = fd, -1
                return device, kept
            except OSError as error:
                if error.errno != errno.EBUSY:  # EBUSY: somebody was faster
                    raise
            finally:
                if fd >= 0:
                    os.close(fd)
    except OSError as error:
        raise MountError(f"{name}: loop device: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        os.close(control)
    raise MountError(f"{name}: no free loop device after {_LOOP_TRIES} tries")
