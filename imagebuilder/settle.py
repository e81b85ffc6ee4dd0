"""What a command left, without the traces of when and where it ran.

The upper directory is the command's: any name in it may be a link to anywhere. So each step goes through the descriptor
of a directory, no link is followed, and nothing is deleted by a path (CVE-2024-23652).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable

from cext.errors import LimitError
from imagebuilder import local
from imagebuilder.layer import DIRECTORY
from imagebuilder.upper import Base

DEPTH_MAX = 250  # of directories below each other, as in layers

_LEFTOVERS = re.compile(
    rb"var/lib/apt/lists/.*|var/cache/apt/.*|var/log/(apt/.*|dpkg\.log|alternatives\.log)"
    rb"|var/cache/(ldconfig/aux-cache|debconf/.*-old)|var/lib/dpkg/.*-old|etc/(passwd|group|shadow|gshadow)-",
    re.DOTALL,
)
"""Regular files that apt and dpkg leave wherever they ran: lists of what there was that day, logs, copies."""


def settle(upper: str | bytes, base: Base, began: float, *, packages: bool) -> None:
    """Times after began (seconds) become the constant of copies; directories in which nothing is different go: a file
    came and went, or a mount was on it. packages: what apt and dpkg leave goes too.
    """
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _Settling(base, began, packages).directory(fd, b"", 0)
    finally:
        os.close(fd)


class _Settling:
    def __init__(self, base: Base, began: float, packages: bool) -> None:
        self._base = base
        self._since = began - 1  # clocks of file systems are coarse
        self._packages = packages

    def directory(self, fd: int, path: bytes, depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise LimitError(f"{os.fsdecode(path[:60])}…: directories deeper than {DEPTH_MAX}")
        for text in os.listdir(fd):
            name = os.fsencode(text)
            self._name(fd, name, path + b"/" + name if path else name, depth)

    def _name(self, fd: int, name: bytes, path: bytes, depth: int) -> None:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        new = found.st_mtime >= self._since
        if stat.S_ISDIR(found.st_mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                self.directory(inner, path, depth + 1)
                passed = new and _says_nothing(inner, path, found, self._base)
            finally:
                os.close(inner)
            if passed:
                os.rmdir(name, dir_fd=fd)
                return
        elif self._packages and stat.S_ISREG(found.st_mode) and _LEFTOVERS.fullmatch(path):
            os.unlink(name, dir_fd=fd)
            return
        if new:
            os.utime(name, (local.TIME, local.TIME), dir_fd=fd, follow_symlinks=False)
        elif stat.S_ISDIR(found.st_mode):  # what was taken out of it has changed its time
            os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=fd, follow_symlinks=False)


def _says_nothing(fd: int, path: bytes, found: os.stat_result, base: Base) -> bool:
    """Whether a directory of the upper has nothing in it and is what the base has there."""
    if os.listdir(fd):
        return False
    below = base.lookup(path)
    if below is None or below.kind is not DIRECTORY:
        return False
    if (below.mode, below.uid, below.gid) != (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid):
        return False
    return _xattrs(fd, os.listxattr(fd)) == dict(below.xattrs)


def _xattrs(fd: int, names: Iterable[str]) -> dict[bytes, bytes]:
    """Those that overlayfs marks a copied directory with do not count; an opaque or renamed one says a lot."""
    ours = ("trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid", "trusted.overlay.nlink")
    return {os.fsencode(name): os.getxattr(fd, name) for name in names if name not in ours}
