"""What the running kernel allows: the kernel path needs EROFS, overlayfs with a data-only lower, and FUSE.

Asked by doing it, on an empty tmpfs that is attached nowhere: version numbers lie on distribution kernels.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

import cext
from cext.errors import UnsupportedError
from cext.record import Record
from lazyfs import mount, unattached
from lazyfs.errors import MountError


class KernelFeatures(Record):
    """release: as uname gives it. privileged: this process may mount. Other flags: the kernel does it, here, for this
    process.
    """

    release: str
    privileged: bool
    new_mount_calls: bool
    erofs: bool
    overlay: bool
    data_only_lower: bool
    fuse: bool

    def missing(self) -> str | None:
        """The first thing that the kernel path lacks, in words, or None."""
        if not self.privileged:
            return _PRIVILEGE
        if not self.new_mount_calls:
            return "new mount calls (fsopen), Linux 5.2"
        if not self.erofs:
            return "EROFS (CONFIG_EROFS_FS)"
        if not self.overlay:
            return "overlayfs (CONFIG_OVERLAY_FS)"
        if not self.data_only_lower:
            return "overlayfs with data-only lower directories, Linux 6.5"
        if not self.fuse:
            return "FUSE (/dev/fuse)"
        return None

    def require(self) -> None:
        missing = self.missing()
        if missing is None:
            return
        if missing == _PRIVILEGE:
            raise UnsupportedError(f"kernel mounts: got no {missing}", hint="run it as root")
        raise UnsupportedError(
            f"kernel {self.release}: got no {missing}",
            hint="boot a newer kernel (Debian 12: the one of bookworm-backports)",
        )


_PRIVILEGE = "right to mount (CAP_SYS_ADMIN)"


def probe() -> KernelFeatures:
    """Asks the kernel; takes about a millisecond and leaves nothing."""
    release = os.uname().release
    fuse = os.path.exists("/dev/fuse")
    try:
        erofs, overlay = _opens("erofs"), _opens("overlay")
    except PermissionError:
        return KernelFeatures(release, False, True, False, False, False, fuse)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return KernelFeatures(release, True, False, False, False, False, fuse)
    return KernelFeatures(release, True, True, erofs, overlay, overlay and _data_only(), fuse)


def _opens(kind: str) -> bool:
    """Whether a file system type is there (modules are loaded by the asking)."""
    try:
        os.close(cext.fsopen(kind, 1))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _data_only() -> bool:
    with ExitStack() as stack:

        def fresh() -> tuple[int, int]:
            return unattached.memory("probe"), unattached.memory("probe")

        lowers = fresh()
        for fd in lowers:
            stack.callback(os.close, fd)
        try:
            stack.callback(os.close, mount.overlay(mount.Lowers(*lowers, fresh), name="probe", attributes=0))
        except MountError:
            return False
        return True
