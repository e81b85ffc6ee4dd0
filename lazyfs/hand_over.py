"""Handing an image to the object server: its tables, its lease, and a descriptor for each pack that is here."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Protocol

from lazyfs.erofs_mount import is_erofs
from lazyfs.errors import ObjectServerError
from lazyfs.object_wire import ask, send

_TABLES_HEADER = 64
_BLOB_ROW = 48
_BLOBS_MAX = 1 << 20
BATCH = 200
"""Descriptors in one message."""


class Lease(Protocol):
    """registry.layout.Lease, as far as it concerns us."""

    @property
    def fd(self) -> int: ...
    def hand_over(self) -> None: ...


class Servable(Protocol):
    """registry.image.OpenedImage, as far as it concerns us. Descriptors are borrowed. packs: the directory with every
    blob under the hex digits of its digest.
    """

    @property
    def name(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def tables(self) -> int: ...
    @property
    def packs(self) -> int: ...
    @property
    def lease(self) -> Lease: ...


def hand_over(
    sock: socket.socket, image: Servable, metadata: str, linger_s: float, origin: int
) -> tuple[int, int, int]:
    """The image's number in the server, the object mount's root, and the EROFS mount or -1 (owned by the caller)."""
    digests = _pack_names(image.tables)
    first = [image.tables]
    words: dict[str, Any] = {
        "op": "attach",
        "label": image.name,
        "blobs": len(digests),
        "lease": image.lease.fd >= 0,
        "metadata": metadata,
        "linger": linger_s,
        "origin": origin,
    }
    if image.lease.fd >= 0:
        first.append(image.lease.fd)
    answer: dict[str, Any] = {}
    fds: list[int] = []
    for start in range(0, max(1, len(digests)), BATCH):
        rows, packs = _open_packs(image.packs, digests, start)
        try:
            words["rows"], words["more"] = rows, start + BATCH < len(digests)
            if words["more"]:
                send(sock, words, [*first, *packs])
            else:
                answer, fds = ask(sock, words, [*first, *packs])
        finally:
            for fd in packs:
                os.close(fd)
        words, first = {"op": "packs"}, []
    if not 1 <= len(fds) <= 2 or any(not is_erofs(fd) for fd in fds[1:]):
        for fd in fds:
            os.close(fd)
        raise ObjectServerError(f"object server: got {len(fds)} descriptors, want its mount and perhaps an EROFS mount")
    return int(answer["image"]), fds[0], fds[1] if len(fds) > 1 else -1


def _pack_names(tables: int) -> list[str]:
    """The packs that tables (verified by the caller) name, in row order."""
    head = os.pread(tables, _TABLES_HEADER, 0)
    count = struct.unpack_from("<I", head, 8)[0] if len(head) == _TABLES_HEADER else _BLOBS_MAX
    if count >= _BLOBS_MAX:
        raise ObjectServerError(f"tables: got {count} packs, want less than {_BLOBS_MAX}")
    rows = b""
    while len(rows) < count * _BLOB_ROW:
        more = os.pread(tables, count * _BLOB_ROW - len(rows), _TABLES_HEADER + len(rows))
        if not more:
            raise ObjectServerError("tables: got an end in the rows of the packs")
        rows += more
    return [rows[at : at + 32].hex() for at in range(0, len(rows), _BLOB_ROW)]


def _open_packs(directory: int, names: Sequence[str], start: int) -> tuple[list[int], list[int]]:
    """Rows and descriptors of the packs of one batch that are there. One that is not is EIO for its readers alone."""
    rows, fds = [], []
    try:
        for row in range(start, min(start + BATCH, len(names))):
            try:
                fd = os.open(names[row], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            except FileNotFoundError:
                continue
            rows.append(row)
            fds.append(fd)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return rows, fds
