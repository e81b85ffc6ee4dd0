"""The mount of an image's metadata: EROFS straight from its file, or over a loop device where that does not work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack

import cext
from cext.errors import UnsupportedError
from lazyfs.errors import MountError, cause
from lazyfs.loop import loop_device
from lazyfs.mount import create_overlay
from lazyfs.unattached import ATTR_NODEV, ATTR_RDONLY, Place, create, detached_path, in_private_namespace, memory

_EROFS_MAGIC = 0xE0F5E1E2


def erofs(file: int, *, name: str, nests: Callable[[int, Callable[[], int]], bool] | None = None) -> int:
    """A detached, read-only EROFS mount of an index file (verified by the caller). name: for messages.

    Straight from the file where kernel (6.12) and file system allow it, else through a loop device that frees itself.
    Some kernels (6.12.63 is one) count the file's own file system as a level of stacking, and then a container cannot
    have an overlay of its own: there the loop device is taken too. nests: whether this kernel is not one of them.
    """

    def straight() -> int:
        return _erofs(f"/proc/self/fd/{file}", name)

    try:
        tree = straight()
    except MountError as error:
        if cause(error) != errno.ENOTBLK:
            raise
        return _erofs_on_loop(file, name)
    try:
        looped = -1 if (nests or _nests)(tree, straight) else _erofs_on_loop(file, name)
    except UnsupportedError:
        return tree  # no loop devices: better a container without overlays of its own than none
    except BaseException:
        os.close(tree)
        raise
    if looped < 0:
        return tree
    os.close(tree)
    return looped


def _erofs_on_loop(file: int, name: str) -> int:
    path, device = loop_device(file, name)
    try:
        return _erofs(path, name)
    finally:
        os.close(device)  # the mount keeps the device; autoclear frees it with the mount


def _nests(tree: int, fresh: Callable[[], int]) -> bool:
    """Whether an overlay on an overlay on a mount is possible: a container's own on ours. The limit is two levels."""
    with ExitStack() as stack:
        try:
            return two_levels(stack, tree, memory("stacking"), detached_path)
        except MountError as error:
            if cause(error) != errno.EINVAL:
                raise
        tree = fresh()
        stack.callback(os.close, tree)
        return in_private_namespace(lambda place: two_levels(stack, tree, memory("stacking"), place))


def two_levels(stack: ExitStack, tree: int, empty: int, place: Place) -> bool:
    """Takes empty. Raises MountError if not even one level is possible."""
    stack.callback(os.close, empty)
    lower, other = place(tree), place(empty)
    one = create_overlay("stacking", [("lowerdir", f"{lower}:{other}"), ("ro", None)], ATTR_RDONLY)
    stack.callback(os.close, one)
    try:
        two = create_overlay("stacking", [("lowerdir", f"{place(one)}:{other}"), ("ro", None)], ATTR_RDONLY)
    except MountError:
        return False
    stack.callback(os.close, two)
    return True


def is_erofs(fd: int) -> bool:
    """Whether what is open lies on an EROFS."""
    return cext.filesystem_of(fd) == _EROFS_MAGIC


def _erofs(source: str, name: str) -> int:
    options = [("source", source), ("ro", None)]
    return create("erofs", f"{name}: mount of its metadata", options, ATTR_RDONLY | ATTR_NODEV)
