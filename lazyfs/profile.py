"""Runs a command once on a cold mount of its own and says which pages it touched, in order.

The mount is private: a server with a run directory of its own, hence no page that anybody else has read, and without
read-ahead, so that each page that is touched, by read(2) or through a mapping, is one READ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lazyfs.bootpack import BootPackBytes, Page, Run, encode, touched_pages
from lazyfs.objects import Attachment, Servable, attach
from lazyfs.rootfs import remove_tree


@contextmanager
def profiling(image: Servable, *, run_dir: str, root: str, deadline_s: float) -> Iterator[Attachment]:
    """The image on a server that records."""
    parent = f"{run_dir}/profiles"
    os.makedirs(parent, 0o700, exist_ok=True)
    name = os.urandom(8).hex()
    os.mkdir(f"{parent}/{name}", 0o700)
    try:
        with attach(image, run_dir=f"{parent}/{name}", root=root, deadline_s=deadline_s, profile=True) as attachment:
            yield attachment
    finally:
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, name)
        finally:
            os.close(fd)


def profile(attachment: Attachment, start: Callable[[], int]) -> tuple[int, list[Page]]:
    """The status of the start, and what it touched."""
    status = start()
    return status, touched_pages(attachment.touches())


def boot_pack(attachment: Attachment, pages: list[Page]) -> BootPackBytes:
    """The pages' content, read through the object mount, hence verified."""
    with ExitStack() as stack:
        held: dict[bytes, int] = {}

        def opened(identity: bytes) -> int:
            if identity not in held:
                name = identity.hex()
                fd = os.open(f"{name[:2]}/{name[2:]}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=attachment.objects)
                stack.callback(os.close, fd)
                held[identity] = fd
            return held[identity]

        sizes: dict[bytes, int] = {}

        def size(identity: bytes) -> int:
            if identity not in sizes:
                sizes[identity] = os.fstat(opened(identity)).st_size
            return sizes[identity]

        def read(run: Run) -> bytes:
            data = os.pread(opened(run.object), run.length, run.offset)
            if len(data) != run.length:
                raise OSError(f"object {run.object.hex()}: got {len(data)} bytes at {run.offset}, want {run.length}")
            return data

        return encode(pages, size, read)
