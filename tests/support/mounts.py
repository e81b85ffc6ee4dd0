"""Mounts made from files, as tests have them."""

from __future__ import annotations

import os
from contextlib import ExitStack

import cext
from lazyfs import erofs_mount, mount

AT_EMPTY_PATH, OPEN_TREE_CLONE = 0x1000, 1


def lowers_of(stack: ExitStack, file: int, objects: int, *, name: str) -> mount.Lowers:
    """Of an fs.erofs that nobody has mounted yet and a directory of objects, until the stack ends."""

    def fresh() -> tuple[int, int]:
        return erofs_mount.erofs(file, name=name), cext.open_tree(
            objects, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | os.O_CLOEXEC
        )

    metadata = erofs_mount.erofs(file, name=name)
    stack.callback(os.close, metadata)
    return mount.Lowers(metadata, objects, fresh)


def mount_file(file: int, objects: int, target: int, *, name: str) -> None:
    """mount.mount_image of an fs.erofs that nobody has mounted yet."""
    with ExitStack() as stack:
        mount.mount_image(lowers_of(stack, file, objects, name=name), target, name=name)
