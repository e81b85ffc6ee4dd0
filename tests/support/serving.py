"""An object server inside the test's own process, on a real mount that is attached nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import cext
from lazyfs.object_mount import make_object_mount
from tests.support.objects import ObjectSet

OPEN = os.O_RDONLY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Served:
    """tree: the root of the mount. images: numbers of the sets, in order. log: a file. connection: the mount's."""

    server: cext.ObjectServer
    tree: int
    images: list[int]
    log: int
    connection: int

    def add(self, objects: ObjectSet, label: str = "image", *, lazy: bool = False, expected: bool = False) -> int:
        with objects.opened() as (tables, packs):
            number = self.server.add_image(tables, packs, label=label, lazy=lazy, expected=expected)
        self.images.append(number)
        return number

    def add_pack(self, image: int, objects: ObjectSet, name: str) -> None:
        fd = os.open(objects.packs / name, OPEN)
        try:
            self.server.add_pack(image, bytes.fromhex(name), fd)
        finally:
            os.close(fd)

    @contextmanager
    def opened(self, objects: ObjectSet, name: str) -> Iterator[int]:
        fd = os.open(objects.path(name), OPEN, dir_fd=self.tree)
        try:
            yield fd
        finally:
            os.close(fd)

    def read(self, objects: ObjectSet, name: str) -> bytes:
        with self.opened(objects, name) as fd, open(fd, "rb", buffering=0, closefd=False) as file:
            return b"".join(iter(lambda: file.read(1 << 20), b""))

    def count(self, what: str) -> int:
        return self.server.statistics()[what]

    def requests(self) -> int:
        """Everything the kernel asked so far, but FORGETs and the like."""
        found = self.server.statistics()
        return found["lookups"] + found["reads"]

    def log_text(self) -> str:
        return os.pread(self.log, 1 << 20, 0).decode()

    @contextmanager
    def children(
        self, code: str, *arguments: str, count: int = 1, waits: bool = True
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Pythons of their own with the mount's root as descriptor number sys.argv[1]. waits: for each to print
        "waiting". Those that are left at the end are killed.
        """
        words = [sys.executable, "-I", "-S", "-c", code, str(self.tree), *arguments]
        plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's handlers
        with ExitStack() as stack:
            children = []
            for _ in range(count):
                child = subprocess.Popen(
                    words, pass_fds=[self.tree], env=plain, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                stack.callback(_end, child)
                children.append(child)
            for child in children:
                assert child.stdout is not None
                if waits:
                    assert child.stdout.readline() == b"waiting\n"
            yield children


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.communicate()


@contextmanager
def serving(
    *sets: ObjectSet,
    threads: int = 3,
    lazy: bool = False,
    deadline: float = 600.0,
    fail_fast: float = 5.0,
    store: cext.Store | None = None,
    memory: int = -1,
) -> Iterator[Served]:
    with ExitStack() as stack:
        mount = make_object_mount(threads)
        stack.callback(mount.close)
        log = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, proc)
        server = stack.enter_context(
            cext.ObjectServer(
                mount.fds,
                secret=os.urandom(32),
                proc=proc,
                log=log.fileno(),
                deadline=deadline,
                fail_fast=fail_fast,
                store=store,
                memory=memory,
            )
        )
        served = Served(server, mount.tree, [], log.fileno(), mount.fds[0])
        for number, objects in enumerate(sets):
            served.add(objects, f"image-{number}", lazy=lazy)
        server.start()
        yield served
