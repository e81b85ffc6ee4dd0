"""`mount --mode portable`: puts the portable server into the background.

The server ends when the directory is unmounted. What it cannot read is said in <run-dir>/portable.log, one line each,
naming the image. It needs no privileges where fusermount3 gives the mount: then it is its user's alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cext.errors import OnesecError
from lazyfs import background

NAME = "onesec-portable"
LOG = "portable.log"


class Lease(Protocol):
    """registry.layout.Lease, as far as it concerns us."""

    @property
    def fd(self) -> int: ...
    def hand_over(self) -> None: ...


class Servable(Protocol):
    """registry.image.OpenedImage, as far as it concerns us. Descriptors are borrowed; the server keeps copies."""

    @property
    def name(self) -> str: ...
    @property
    def erofs(self) -> int: ...
    @property
    def tables(self) -> int: ...
    @property
    def packs(self) -> int: ...
    @property
    def lease(self) -> Lease: ...


def start(image: Servable, target: str, *, run_dir: str | os.PathLike[str]) -> None:
    """Mounts an image on a directory and returns once it answers. Its lease goes to the server. Raises MountError,
    UnsupportedError, CorruptError.
    """
    os.makedirs(run_dir, 0o700, exist_ok=True)
    path = os.path.join(run_dir, LOG)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    call = background.Call(NAME, "portable server", f"{__name__}:serve", {"name": image.name, "target": target})
    try:
        background.start(call, fds=(image.erofs, image.tables, image.packs, image.lease.fd), log=log)
    finally:
        os.close(log)
    image.lease.hand_over()


def serve(words: Mapping[str, Any], fds: Sequence[int], client: background.Client) -> int:
    erofs, tables, packs, _lease = fds
    try:
        from lazyfs import tree

        tree.serve_portable(tree.TreeImage(words["name"], erofs, tables, packs), words["target"], client=client)
    except (OnesecError, OSError) as error:
        client.failed(error)
        return 1
    return 0
