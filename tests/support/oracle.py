"""One image, three views: mounted by the kernel, mounted by the portable server, and the tree that it has to be.

The two mounts have nothing in common but the image: the kernel's EROFS and overlayfs with the object server in C on one
side, readers in Python on the other. So a mistake that both make is one in the image, and the tree finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.support.trees import Snapshot, assert_same_tree, snapshot


class Onesec(Protocol):
    """The command; calls have to succeed."""

    def __call__(self, *words: str | Path) -> object: ...


@contextmanager
def mounted(onesec: Onesec, reference: str, directory: Path, mode: str) -> Iterator[Path]:
    """An image mounted by the command on a directory, which is made if it is not there."""
    directory.mkdir(exist_ok=True)
    onesec("mount", "--mode", mode, reference, directory)
    try:
        yield directory
    finally:
        onesec("umount", directory)


def assert_image(
    onesec: Onesec,
    reference: str,
    want: Path | Snapshot | None,
    directory: Path,
    *,
    ignore: tuple[str, ...] = (),
) -> Snapshot:
    """The image read both ways is want, and want is left out where there is nothing to compare with. What was seen.

    directory: where to mount. ignore: fields of Seen that want does not have right.
    """
    with mounted(onesec, reference, directory, "kernel") as target:
        kernel = snapshot(target)
    with mounted(onesec, reference, directory, "portable") as target:
        assert_same_tree(target, kernel)
    if want is not None:
        assert_same_tree(kernel, want, ignore=ignore)
    return kernel
