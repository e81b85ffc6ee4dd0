"""Directories of containers: made, locked while their client lives, and swept once nobody holds the lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from cext.record import Record
from lazyfs.rootfs import remove_tree

LOG_MAX = 64 << 10


class Bundle(Record):
    """One container's directory: <run-dir>/containers/<id>, locked while its client lives.

    scratch: directory for what the container writes, <root>/scratch/<id>.
    """

    id: str
    path: str
    fd: int
    scratch: str

    def write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o644, dir_fd=self.fd), "wb") as file:
            file.write(data)

    def read_log(self) -> str:
        """The runtime's own words, empty if it had none."""
        try:
            fd = os.open("log", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return ""
        with open(fd, "rb") as file:
            return file.read(LOG_MAX).decode("utf-8", "replace")


@contextmanager
def make_bundle(run_dir: str, root: str) -> Iterator[Bundle]:
    """A new one, deleted at the end with what the container wrote."""
    containers, scratch = f"{run_dir}/containers", f"{root}/scratch"
    for directory in (containers, scratch):
        os.makedirs(directory, 0o700, exist_ok=True)
    parents = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (containers, scratch)]
    fd = -1
    identifier = os.urandom(8).hex()
    try:
        _sweep(parents[0], parents[1])
        fcntl.flock(parents[0], fcntl.LOCK_SH)  # no sweep between mkdir and its lock
        os.mkdir(identifier, 0o700, dir_fd=parents[0])
        fd = os.open(identifier, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parents[0])
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.flock(parents[0], fcntl.LOCK_UN)
        os.mkdir("rootfs", 0o700, dir_fd=fd)
        yield Bundle(identifier, f"{containers}/{identifier}", fd, f"{scratch}/{identifier}")
    finally:
        remove_tree(parents[1], identifier)
        remove_tree(parents[0], identifier)
        for owned in (fd, *parents):
            if owned >= 0:
                os.close(owned)


def _sweep(containers: int, scratch: int) -> None:
    """Deletes what killed clients left. A live one holds the lock of its directory."""
    names = os.listdir(containers)
    if not names:
        return
    try:
        fcntl.flock(containers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # somebody starts or sweeps right now
    try:
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=containers)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(scratch, name)
                    remove_tree(containers, name)
                except BlockingIOError:
                    continue
                finally:
                    os.close(fd)
    finally:
        fcntl.flock(containers, fcntl.LOCK_UN)


def owned(stack: ExitStack, fd: int) -> int:
    """fd, closed by the stack."""
    stack.callback(os.close, fd)
    return fd
