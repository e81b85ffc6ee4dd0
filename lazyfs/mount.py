"""The mounts that make an image a file tree: EROFS for the metadata, overlayfs to join it with the object mount.

Everything is made detached (fsopen, fsmount) and appears in the file system in one last step, so a failure at any point
leaves nothing: descriptors are closed, and a detached mount goes with its last descriptor. The options are the measured
ones; each other combination is refused by some kernel or, worse, reads as zeros:

    lowerdir=META::DATA   DATA is a data-only lower (6.5): reached through redirects only, never listed
    metacopy, redirect_dir  follow the names that fs.erofs carries; both are needed together
    xino=off              st_ino stays below 2^63
    index=on              with an upper: a changed hard link stays a hard link
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from cext.errors import CorruptError
from cext.record import Record
from lazyfs import unattached
from lazyfs.errors import MountError, cause
from lazyfs.unattached import ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, SOURCE, Place, detached_path


class Lowers(Record):
    """What a file tree is made of: the EROFS mount of its metadata and the object mount. Borrowed.

    fresh: makes another mount of each, owned by the caller. Kernels before 6.15 take as lower directories only what is
    attached, and what is detached can be attached once.
    """

    metadata: int
    objects: int
    fresh: Callable[[], tuple[int, int]] | None = None


def overlay(lowers: Lowers, *, name: str, scratch: int | None = None, attributes: int, detached: bool = True) -> int:
    """A detached overlay of an EROFS mount over the data-only objects. All descriptors are borrowed.

    scratch: a directory, or a detached mount, with `upper` and `work` in it; without it the overlay is read-only.
    detached: tried first, cheaper; False is what an old kernel makes of it.
    """
    if scratch is None:
        attributes |= ATTR_RDONLY
    if detached:
        try:
            upper = None if scratch is None else detached_path(scratch)
            options = _options(detached_path(lowers.metadata), detached_path(lowers.objects), upper)
            return create_overlay(f"{name}: overlay", options, attributes)
        except MountError as error:
            if cause(error) != errno.EINVAL or lowers.fresh is None:
                raise
    assert lowers.fresh is not None
    fresh = lowers.fresh()
    # Read here: seen from another mount namespace, below a changed root, the name would begin at the wrong root.
    called = "" if scratch is None else os.readlink(detached_path(scratch))

    def attached(place: Place) -> int:
        with ExitStack() as stack:
            upper = None if scratch is None else _attached(scratch, called, place, stack)
            return create_overlay(f"{name}: overlay", _options(place(fresh[0]), place(fresh[1]), upper), attributes)

    try:
        return unattached.in_private_namespace(attached)
    except OSError as error:
        raise MountError(f"{name}: overlay: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        for fd in fresh:
            os.close(fd)  # the overlay has copies of its own


def _options(metadata: str, objects: str, scratch: str | None) -> list[tuple[str, str | None]]:
    options: list[tuple[str, str | None]] = [
        ("lowerdir", f"{metadata}::{objects}"),
        ("metacopy", "on"),
        ("redirect_dir", "on"),
        ("xino", "off"),
    ]
    if scratch is None:
        return [*options, ("ro", None)]
    return [*options, ("index", "on"), ("upperdir", f"{scratch}/upper"), ("workdir", f"{scratch}/work")]


def create_overlay(what: str, options: Sequence[tuple[str, str | None]], attributes: int) -> int:
    return unattached.create("overlay", what, [("source", SOURCE), *options], attributes)


def _attached(directory: int, called: str, place: Place, stack: ExitStack) -> str:
    try:
        return place(directory)
    except OSError:  # a directory of the host, which a private namespace has too
        fd = os.open(called, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return detached_path(fd)


def check_objects(objects: int) -> None:
    """The data-only lower has to be a directory: anything else would read as missing files."""
    try:
        os.close(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=objects))
    except OSError as error:
        raise CorruptError(f"object mount: {os.strerror(error.errno or 0).lower()}") from error


def mount_image(lowers: Lowers, target: int, *, name: str) -> None:
    """Mounts an image, its EROFS mount over the object mount, read-only on an open directory. All are borrowed.

    nosuid and nodev: the tree is reachable by every user of the host.
    """
    with ExitStack() as stack:
        tree = overlay(lowers, name=name, attributes=ATTR_NOSUID | ATTR_NODEV)
        stack.callback(os.close, tree)
        unattached.attach(tree, target)
