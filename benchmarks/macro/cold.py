"""Emptying the page cache, and proof that it is empty: how many pages of a file are in memory, asked of the kernel.

A cold measurement that was not cold is the commonest lie of a storage benchmark, so `drop` is never believed: what a
contender is going to read is looked at afterwards. The disk itself is another matter: a hypervisor or a drive caches
below us, where nobody can look, and a scenario can only say how fast the same bytes came the first and the second time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

PAGE = mmap.PAGESIZE
_WINDOW = 1 << 30  # bytes looked at in one mapping

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_FAILED = ctypes.c_void_p(-1).value


class NotColdError(RuntimeError):
    """Pages that had to be out of memory are in it: the measurement is void."""


def drop() -> None:
    """Writes dirty pages out and drops clean ones, dentries and inodes of the whole machine. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def resident(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Pages of a file that are in memory, and pages that it has.

    mincore(2) on a mapping: it sees the pages of the inode that the mapping reads from, also through overlayfs, where
    cachestat(2) on the descriptor says 0 whatever is there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        present = sum(_window(fd, at, min(_WINDOW, size - at)) for at in range(0, size, _WINDOW))
    finally:
        os.close(fd)
    return present, -(-size // PAGE)


def _window(fd: int, offset: int, length: int) -> int:
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")
    try:
        flags = ctypes.create_string_buffer(-(-length // PAGE))
        if _libc.mincore(address, length, flags):
            code = ctypes.get_errno()
            raise OSError(code, f"mincore: {errno.errorcode.get(code, code)}")
        return sum(byte & 1 for byte in flags.raw)
    finally:
        _libc.munmap(address, length)


def files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The regular files among paths and below those that are directories."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [
                Path(where, name)
                for where, _, names in os.walk(path)
                for name in names
                if not os.path.islink(os.path.join(where, name)) and os.path.isfile(os.path.join(where, name))
            ]
        else:
            found.append(path)
    return found


def require(paths: Iterable[str | os.PathLike[str]], *, share: float = 0.001) -> dict[str, int]:
    """Looks whether files are out of memory. Returns pages in memory and pages in all; raises NotColdError if more than
    `share` of them is in memory.
    """
    present = total = 0
    for path in files(paths):
        here, pages = resident(path)
        present, total = present + here, total + pages
    if total and present > share * total:
        raise NotColdError(f"got {present} of {total} pages in memory after dropping them")
    return {"resident_pages": present, "pages": total}
