"""Mounts that are attached nowhere until they are complete (fsopen, fsmount), and the small ones of memory.

A failure at any point leaves nothing: descriptors are closed, and a detached mount goes with its last descriptor.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

import cext
from cext.errors import UnsupportedError
from lazyfs.errors import MountError
from lazyfs.runtime_config import PrivateFile

SOURCE = "onesec"
"""First column of the mount table."""

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8

_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_MOVE_FROM_FD = 0x4
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_OPEN_TREE_CLONE = 1
_COVERED = "/sys"  # what a private namespace has its mounts over: every host has it and nothing of ours lies there
_PRIVATE_MAX = 32 << 20  # bytes of files that one container alone sees
_OPTION = {"erofs": "EROFS_FS", "overlay": "OVERLAY_FS", "tmpfs": "TMPFS", "fuse": "FUSE_FS"}

T = TypeVar("T")

Place = Callable[[int], str]
"""Gives a detached mount a path, for as long as whatever made the Place lasts."""


def create(kind: str, what: str, options: Sequence[tuple[str, str | None]], attributes: int) -> int:
    """A detached mount of a new file system. what: for messages. Raises UnsupportedError, MountError."""
    with _filesystem(kind) as context:
        _create(context, what, options)
        return cext.fsmount(context, _FSMOUNT_CLOEXEC, attributes)


@contextmanager
def _filesystem(kind: str) -> Iterator[int]:
    try:
        context = cext.fsopen(kind, _FSOPEN_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise UnsupportedError(
                f"{kind}: not supported by this kernel",
                hint=f"a kernel with CONFIG_{_OPTION[kind]}",
            ) from error
        if error.errno == errno.EPERM:
            raise UnsupportedError(f"{kind}: not permitted", hint="mounting needs root with CAP_SYS_ADMIN") from error
        raise
    try:
        yield context
    finally:
        os.close(context)


def _create(context: int, what: str, options: Sequence[tuple[str, str | None]]) -> None:
    try:
        for key, value in options:
            cext.fsconfig(context, _SET_FLAG if value is None else _SET_STRING, key, value, 0)
        cext.fsconfig(context, _CMD_CREATE, None, None, 0)
    except OSError as error:
        said = _kernel_words(context) or os.strerror(error.errno or 0).lower()
        raise MountError(f"{what}: {said}") from error


def _kernel_words(context: int) -> str:
    """What the kernel wrote into the context's log, one message a read, each with a level letter in front."""
    words: list[str] = []
    with suppress(OSError):
        while len(words) < 8 and (message := os.read(context, 1024)):
            words.append(message.decode(errors="replace").strip()[2:])
    return "; ".join(words)


def attach(tree: int, target: int) -> None:
    """Makes a detached mount appear on an open directory."""
    cext.move_mount(tree, "", target, "", _MOVE_FROM_FD | 0x40)


def detached_path(tree: int) -> str:
    return f"/proc/self/fd/{tree}"


def in_private_namespace(work: Callable[[Place], T]) -> T:
    """Runs work in a thread whose mount namespace is its own, and ends with it. The Place attaches a mount there."""
    import threading  # old kernels and builds alone pay for it

    made: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            cext.unshare(_CLONE_NEWNS)  # of this thread alone
            cext.mount(None, "/", None, _MS_REC | _MS_SLAVE, None)
            with ExitStack() as stack:
                base = memory("namespace")
                stack.callback(os.close, base)
                cext.move_mount(base, "", -100, _COVERED, _MOVE_FROM_FD)

                numbers = iter(range(1000))

                def place(tree: int) -> str:
                    path = f"{_COVERED}/{next(numbers)}"
                    os.mkdir(path)
                    cext.move_mount(tree, "", -100, path, _MOVE_FROM_FD)
                    return path

                made.append(work(place))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return made[0]


def memory(name: str) -> int:
    """A detached tmpfs for what a container writes."""
    return create("tmpfs", f"{name}: scratch in memory", [("source", SOURCE), ("mode", "0700")], ATTR_NODEV)


def private(files: Iterable[PrivateFile], owner: tuple[int, int], *, name: str) -> int:
    """A detached tmpfs with files in one directory. Its pages never go to a swap device where the kernel (6.4) can
    promise that, and end with its last descriptor.
    """
    options: list[tuple[str, str | None]] = [("source", SOURCE), ("mode", "0755"), ("size", str(_PRIVATE_MAX))]
    try:
        tree = _tmpfs([*options, ("noswap", None)], name)
    except MountError:
        tree = _tmpfs(options, name)
    try:
        for one in files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(one.name, flags, 0, dir_fd=tree), "wb") as file:
                file.write(one.data)
                os.fchown(file.fileno(), *owner)
                os.fchmod(file.fileno(), one.mode)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _tmpfs(options: Sequence[tuple[str, str | None]], name: str) -> int:
    return create("tmpfs", name, options, ATTR_NODEV | ATTR_NOSUID | ATTR_NOEXEC)


def copies(tree: int, count: int) -> list[int]:
    """Detached mounts of what the detached mount tree shows; its descriptor stays good for paths, not for attaching.

    A mount is attached once, and it cannot be cloned where it is attached to nothing (before 6.15).
    """

    def clone(place: Place) -> list[int]:
        path = place(tree)
        made: list[int] = []
        try:
            for _ in range(count):
                made.append(cext.open_tree(-100, path, _OPEN_TREE_CLONE | os.O_CLOEXEC))
        except BaseException:
            for fd in made:
                os.close(fd)
            raise
        return made

    return in_private_namespace(clone)
