"""Mounts made from files, as tests have them."""

from __future__ import annotations

import os

from lazyfs import mount


def mount_file(file: int, objects: int, target: int, *, name: str) -> None:
    """mount.mount_image of an fs.erofs that nobody has mounted yet."""
    metadata = mount.erofs(file, name=name)
    try:
        mount.mount_image(mount.Lowers(metadata, objects), target, name=name)
    finally:
        os.close(metadata)
