"""Where an image may be mounted: a directory of its own, not one that the machine or we ourselves live in.

What is mounted over is hidden from every process of the host until it is undone: a mount on /proc stops the machine,
and one over the run directory hides what would undo it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lazyfs.errors import MountError
from lazyfs.mount_table import mount_table

_KERNEL = ("/dev", "/proc", "/sys")
"""Nothing in them is a place for files."""

_SYSTEM = frozenset(
    ("/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin", "/usr", "/var", *_KERNEL)
)
_HINT = "mkdir a directory that is empty and mount there"


@contextmanager
def target_directory(path: str, *, ours: Sequence[str | os.PathLike[str]] = ()) -> Iterator[tuple[str, int]]:
    """The real path of a directory to mount on, and the directory open. Links are followed, and what is open is what
    was looked at. ours: the root and the run directory, which stay reachable. Raises MountError.
    """
    real = os.path.realpath(path)
    _check(path, real, [os.path.realpath(one) for one in ours])
    try:
        fd = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MountError(f"{path}: no such directory", hint=f"mkdir -p {path}") from error
    except NotADirectoryError as error:
        raise MountError(f"{path}: got something else, want a directory") from error
    except OSError as error:
        raise MountError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error
    try:
        if os.readlink(f"/proc/self/fd/{fd}") != real:
            raise MountError(f"{path}: it was moved or replaced by a link just now")
        yield real, fd
    finally:
        os.close(fd)


def _check(path: str, real: str, ours: Sequence[str]) -> None:
    if real in _SYSTEM or any(_beneath(real, parent) for parent in _KERNEL if parent != "/dev"):
        raise MountError(f"{path}: got a directory of the system, want one of its own", hint=_HINT)
    for one in ours:
        if _beneath(one, real) or _beneath(real, one):
            raise MountError(f"{path}: got a directory that holds {one} or lies in it, want another", hint=_HINT)
    for row in mount_table():
        if row.target == real and row.ours:
            raise MountError(f"{path}: got a onesec mount, want a plain directory", hint=f"onesec umount {path}")
        if row.target != real and _beneath(row.target, real):
            raise MountError(
                f"{path}: got a directory with a mount in it ({row.target}), want an empty one", hint=_HINT
            )


def _beneath(path: str, parent: str) -> bool:
    """Whether a real path is parent or lies in it."""
    return path == parent or path.startswith(f"{parent.rstrip('/')}/")
