"""`mount --mode portable`: puts the portable server into the background.

    client ── forks ──► (session leader, ends at once) ── forks ──► server

The client waits until the mount answers, or hears why it does not. The server ends when the directory is unmounted.
What it cannot read is said in <run-dir>/portable.log, one line each, naming the image.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import traceback
from typing import NoReturn, Protocol

import cext
from cext.errors import CorruptError, OnesecError
from lazyfs.errors import MountError

NAME = "onesec-portable"


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
    CorruptError.
    """
    os.makedirs(run_dir, 0o700, exist_ok=True)
    path = os.path.join(run_dir, "portable.log")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
        if child == 0:
            _become_server(image, target, log, writer)
        os.close(writer)
        writer = -1
        os.waitpid(child, 0)
        with open(reader, "rb", closefd=False) as file:
            answer = file.read()
    finally:
        for fd in (reader, writer, log):
            if fd >= 0:
                os.close(fd)
    if answer != b"ready":
        words = json.loads(answer or b'{"error": "portable server: died while it started", "hint": null}')
        kind = CorruptError if words.get("corrupt") else MountError
        raise kind(words["error"], hint=words["hint"])
    image.lease.hand_over()


def _become_server(image: Servable, target: str, log: int, ready: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        cext.set_process_name(NAME)
        for number in (signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o077)
        os.chdir("/")
        name = image.name
        kept = _keep_only((image.erofs, image.tables, image.packs, image.lease.fd, ready), log)
        status = _serve(name, target, *kept)
    finally:
        os._exit(status)


def _keep_only(fds: tuple[int, ...], log: int) -> list[int]:
    """Lets go of everything of the client's but these, which get the numbers from 3; log becomes 2."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (*fds, log)]
    null = os.open("/dev/null", os.O_RDWR)
    for number, fd in enumerate((null, null, moved[-1])):
        os.dup2(fd, number)
    for number, fd in enumerate(moved[:-1], 3):
        os.dup2(fd, number, inheritable=False)
    os.closerange(3 + len(fds), 1 << 20)
    return list(range(3, 3 + len(fds)))


def _serve(name: str, target: str, erofs: int, tables: int, packs: int, _lease: int, ready: int) -> int:
    answered = False

    def answer(words: bytes) -> None:
        nonlocal answered
        if not answered:
            answered = True
            os.write(ready, words)
            os.close(ready)

    try:
        from lazyfs import tree

        tree.serve_portable(tree.TreeImage(name, erofs, tables, packs), target, ready=lambda: answer(b"ready"))
    except OnesecError as error:
        corrupt = isinstance(error, CorruptError)
        answer(json.dumps({"error": str(error), "hint": error.hint, "corrupt": corrupt}).encode())
        return 1
    except BaseException as error:
        traceback.print_exc()
        answer(json.dumps({"error": f"portable server: {error}", "hint": None}).encode())
        return 1
    return 0
