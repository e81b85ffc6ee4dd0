"""Runs a command once on a cold mount of its own and says which pages it touched, in order.

The mount is private: a server with a run directory of its own, hence no page that anybody else has read, and without
read-ahead, so that each page that is touched, by read(2) or through a mapping, is one READ.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lazyfs.bootpack import BootPackBytes, Page, Run, encode, touched_pages
from lazyfs.hand_over import Servable
from lazyfs.objects import Attachment, attach
from lazyfs.rootfs import remove_tree


@contextmanager
def profiling(image: Servable, *, run_dir: str, root: str, deadline_s: float) -> Iterator[Attachment]:
    """The image on a server that records."""
    with (
        _run_directory(f"{run_dir}/profiles") as directory,
        attach(image, run_dir=directory, root=root, deadline_s=deadline_s, profile=True) as attachment,
    ):
        yield attachment


@contextmanager
def _run_directory(parent: str) -> Iterator[str]:
    """A new one, locked while it is used: what has no lock is of a process that was killed, and is removed."""
    os.makedirs(parent, 0o700, exist_ok=True)
    name = os.urandom(8).hex()
    with ExitStack() as stack:
        top = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, top)
        fcntl.flock(top, fcntl.LOCK_EX)  # between mkdir and the lock nobody looks
        for old in os.listdir(top):
            with _locked(top, old) as free:
                if free:
                    remove_tree(top, old)
        os.mkdir(name, 0o700, dir_fd=top)
        stack.enter_context(_locked(top, name))
        stack.callback(remove_tree, top, name)
        fcntl.flock(top, fcntl.LOCK_UN)
        yield f"{parent}/{name}"


@contextmanager
def _locked(top: int, name: str) -> Iterator[bool]:
    """Whether we have got it."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
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
