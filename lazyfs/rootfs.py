"""Paths inside the root of a container, looked at and created before the container exists.

Every step of a walk opens one name below a directory that is already open, without following links; links are read and
walked from the root. So nothing an image contains (links to ``/``, ``..``, ``/proc/self/fd/7``) leads anywhere but into
the image, and what is returned is a plain path without links that a runtime can take literally.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Literal

from lazyfs.errors import ContainerError
from lazyfs.runtime_config import KERNEL_TARGETS

LINKS_MAX = 40
DEPTH_MAX = 256
PATH_MAX = 4096
_OPEN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Create = Literal["directory", "file"]


class Root:
    """fd: the root directory, borrowed. Nobody else may change the tree meanwhile (it is not attached anywhere yet)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._made: list[bytes] = []  # mount points that were not there, parents first

    def check_kernel_targets(self) -> None:
        """/proc, /dev and /sys become real directories, or an error (CVE-2025-31133, CVE-2025-52565 and relatives)."""
        for path in KERNEL_TARGETS:
            name = path[1:]
            try:
                kind = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                os.mkdir(name, 0o755, dir_fd=self._fd)
                self._made.append(path)
                continue
            if not stat.S_ISDIR(kind):
                raise ContainerError(
                    f"{path.decode()} in the image: got {_kind(kind)}, want a directory",
                    hint="the image is broken or hostile: the container's kernel file systems would land elsewhere",
                )

    def read(self, path: bytes, limit: int) -> bytes:
        """A regular file's content, empty if it is not there. Larger than limit is an error."""
        with ExitStack() as stack:
            try:
                _, fd = self._walk(path, None, stack)
            except (FileNotFoundError, NotADirectoryError):
                return b""
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ContainerError(f"{_show(path)} in the image: got {_kind(found.st_mode)}, want a regular file")
            # the O_PATH descriptor is the file that was looked at; O_NONBLOCK costs nothing and a fifo is impossible
            readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(readable, "rb", buffering=0) as file:
                data = b""
                while len(data) <= limit and (more := file.read(limit + 1 - len(data))):
                    data += more
            if len(data) > limit:
                raise ContainerError(f"{_show(path)} in the image: got over {limit} bytes, want at most {limit}")
            return data

    def resolve(self, path: bytes, *, create: Create | None = None, passing: bool = False) -> bytes:
        """The real path of path. What is missing of it is created (directories 0755, a file 0644) or FileNotFoundError.
        passing: what is created goes again with `remove_mount_points`.

        Raises ContainerError for what is there and of another kind than create says.
        """
        with ExitStack() as stack:
            real, fd = self._walk(path, create, stack, self._made if passing else None)
            if create is not None:
                mode = os.fstat(fd).st_mode
                wanted = stat.S_ISDIR(mode) if create == "directory" else not stat.S_ISDIR(mode)
                if not wanted:
                    want = "a directory" if create == "directory" else "no directory"
                    raise ContainerError(f"{_show(path)} in the image: got {_kind(mode)}, want {want}")
            return real

    def remove_mount_points(self) -> None:
        """Removes what was created in passing, as far as it is empty still: to be called when nobody mounts there."""
        while self._made:
            head, _, name = self._made.pop().rpartition(b"/")
            with ExitStack() as stack, suppress(OSError):
                _, parent = self._walk(head, None, stack)
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=parent)
                elif stat.S_ISREG(found.st_mode) and not found.st_size:
                    os.unlink(name, dir_fd=parent)

    def look(self, path: bytes) -> tuple[bytes, int]:
        """The real path of what is there and its mode. Raises FileNotFoundError, NotADirectoryError."""
        with ExitStack() as stack:
            real, fd = self._walk(path, None, stack)
            return real, os.fstat(fd).st_mode

    def _walk(
        self, path: bytes, create: Create | None, stack: ExitStack, made: list[bytes] | None = None
    ) -> tuple[bytes, int]:
        if len(path) > PATH_MAX or b"\0" in path:
            raise ContainerError(f"{_show(path[:60])}…: got {len(path)} bytes, want a path of at most {PATH_MAX}")
        pending = _components(path)
        names: list[bytes] = []
        fds = [self._fd]
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                if names:
                    names.pop()
                    fds.pop()
                continue
            if len(names) >= DEPTH_MAX:
                raise ContainerError(f"{_show(path)} in the image: got over {DEPTH_MAX} levels")
            fd, new = self._step(fds[-1], name, create if not pending else "directory", create is not None)
            if new and made is not None:
                made.append(b"/" + b"/".join((*names, name)))
            stack.callback(os.close, fd)
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                target = os.readlink(b"", dir_fd=fd)
                if links > LINKS_MAX or sum(map(len, pending)) + len(target) > 4 * PATH_MAX:
                    raise ContainerError(f"{_show(path)} in the image: got over {LINKS_MAX} symbolic links")
                if target.startswith(b"/"):
                    names, fds = [], [self._fd]
                pending += _components(target)
                continue
            if pending and not stat.S_ISDIR(mode):
                if create is None:
                    raise NotADirectoryError(20, os.strerror(20), path)
                raise ContainerError(f"{_show(path)} in the image: got {_kind(mode)} in its way, want a directory")
            names.append(name)
            fds.append(fd)
        return b"/" + b"/".join(names), fds[-1]

    @staticmethod
    def _step(parent: int, name: bytes, create: Create | None, may_create: bool) -> tuple[int, bool]:
        try:
            return os.open(name, _OPEN, dir_fd=parent), False
        except FileNotFoundError:
            if not may_create:
                raise
        if create == "directory":
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
        return os.open(name, _OPEN, dir_fd=parent), True


def beneath(path: bytes, parents: Iterable[bytes]) -> bool:
    """Whether a real path is one of parents or below it."""
    return any(path == parent or path.startswith(parent + b"/") for parent in parents)


def remove_tree(parent: int, name: str) -> None:
    """Deletes a directory of any depth with two descriptors and no recursion: directories are moved up, then emptied.

    A container can nest directories deeper than a stack or a descriptor table goes.
    """
    try:
        top = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        moved = 0
        while directories := _remove_files(top):
            for directory in directories:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
                try:
                    for inner in _remove_files(fd):
                        os.rename(inner, _fresh(top, moved), src_dir_fd=fd, dst_dir_fd=top)
                        moved += 1
                finally:
                    os.close(fd)
                os.rmdir(directory, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _fresh(top: int, moved: int) -> str:
    while True:
        name = f".removed-{moved}"
        try:
            os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            return name
        moved += 1_000_003


def _remove_files(fd: int) -> list[str]:
    """Unlinks everything but directories; their names."""
    directories = []
    for name in os.listdir(fd):
        try:
            os.unlink(name, dir_fd=fd)
        except IsADirectoryError:
            directories.append(name)
    return directories


def _components(path: bytes) -> list[bytes]:
    """Last first, so that pop() gives the next one."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _show(path: bytes) -> str:
    return os.fsdecode(path)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFREG: "a regular file",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a fifo",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
