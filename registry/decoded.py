"""Index blobs as mounts map them: decoded into cache/index, under the digest of what they decode to.

A file gets its name there only after it was judged (`registry/image.py`), and is hashed again whenever it is opened.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import cext
from registry.errors import BadBlobError
from registry.layout import Layout
from registry.model import TABLES, Descriptor

INDEX_MAX = 4 << 30  # bytes decoded; OS_INDEX_MAX of cext/src/os_limits.h


def decoded_path(layout: Layout, blob: Descriptor) -> str:
    digest, _ = blob.decoded
    return f"{layout.cache_path('index')}/{digest.hex()}"


def open_decoded(path: str, blob: Descriptor) -> int | None:
    """The decoded copy, hashed again, or None if there is none that is right."""
    digest, size = blob.decoded
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # whatever was put there
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size == size and hash_descriptor(fd, size) == digest:
            good, fd = fd, -1
            return good
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def hash_descriptor(fd: int, size: int) -> bytes:
    """BLAKE3 of the first size bytes, which are there."""
    if size == 0:
        return cext.blake3(b"")
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as content:
        return cext.blake3(content)


class DecodedFile:
    """A file of cache/index that has no name of its own yet. fd: owned until `keep`."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def keep(self) -> int:
        """The descriptor, the caller's from now on."""
        fd, self.fd = self.fd, -1
        return fd


@contextmanager
def decoded_file(layout: Layout) -> Iterator[DecodedFile]:
    """Gone at the end, unless it was named."""
    path = f"{layout.cache_path('index')}/tmp-{os.getpid()}-{os.urandom(6).hex()}"
    file = DecodedFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        fcntl.flock(file.fd, fcntl.LOCK_SH)  # until we are done fsck leaves it alone
        yield file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        if file.fd >= 0:
            os.close(file.fd)


def named_decoded(layout: Layout, blob: Descriptor, file: DecodedFile) -> str:
    """Gives a file that was checked the name under which mounts find it; the path.

    Not synced, which took 16 ms of a first mount at 100,000 files: what a power cut leaves under the name is hashed
    before it is used, and decoded and judged again if it is anything else.
    """
    path = decoded_path(layout, blob)
    os.rename(file.path, path)
    return path


def decode_both(layout: Layout, blobs: Sequence[Descriptor], targets: Sequence[int]) -> None:
    """Verifies and decodes the two index blobs side by side: either keeps a core busy for 30 ms at 100,000 files. Both
    have ended on return; of two errors the first blob's is raised.
    """
    import threading  # here and not on the way of an image that was decoded before

    failed: list[BaseException] = []

    def decode(blob: Descriptor, target: int) -> None:
        layout.verify_blob(blob)
        decode_blob(layout, blob, target)

    def beside() -> None:
        try:
            decode(blobs[1], targets[1])
        except BaseException as error:  # the caller's to raise
            failed.append(error)

    thread = threading.Thread(target=beside, name="onesec-tables")
    thread.start()
    try:
        decode(blobs[0], targets[0])
    finally:
        thread.join()
    if failed:
        raise failed[0]


def decode_blob(layout: Layout, blob: Descriptor, target: int) -> None:
    """Writes the decoded bytes of an index blob, whose own bytes were verified, to target; checks size and BLAKE3."""
    source = layout.open_blob(blob.digest)
    try:
        decode_file(source, blob, target)
    finally:
        os.close(source)


def decode_file(source: int, blob: Descriptor, target: int) -> None:
    """The same from a file whose digest was right."""
    digest, size = blob.decoded
    if size > INDEX_MAX:
        raise BadBlobError(str(blob.digest), f"decoded size: got {size}, want at most {INDEX_MAX}")
    from registry import zstd

    os.lseek(source, 0, os.SEEK_SET)
    zstd.decode(source, target, size)
    if blob.media_type == TABLES and size:
        with mmap.mmap(target, size) as tables:
            cext.fill_object_ids(tables)
    got = hash_descriptor(target, size)
    if got != digest:
        raise BadBlobError(str(blob.digest), f"decoded content: got blake3:{got.hex()}, want blake3:{digest.hex()}")


def read_decoded(layout: Layout, blob: Descriptor) -> bytes:
    """The decoded bytes of an index blob, verified on the way."""
    digest, size = blob.decoded
    if size > INDEX_MAX:
        raise BadBlobError(str(blob.digest), f"decoded size: got {size}, want at most {INDEX_MAX}")
    layout.verify_blob(blob)
    fd = os.memfd_create("onesec-index", os.MFD_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        decode_blob(layout, blob, fd)
        file.seek(0)
        data = file.read(size)
    if len(data) != size or cext.blake3(data) != digest:
        raise BadBlobError(str(blob.digest), "decoded content changed while it was read")
    return data
