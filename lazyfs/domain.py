"""A trust domain of a run directory: where its servers are found, and how the first client starts one.

<run-dir>/domains/<hash of protocol, domain and root>/lock     flock: one start at a time
                                            socket   where the server of the domain listens
                                            log      what it could not read, and why
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cext
from cache.settings import StoreSettings
from cext.record import Record
from lazyfs.errors import ObjectServerError

_PROTOCOL = 4  # of the messages: a server of another release serves its images to their end, beside ours
TIMEOUT_S = 60


class ServerSettings(Record):
    """What a server has for as long as it lives. deadline_s: of a parked read. profile: it records what is read, page
    by page. cgroup: the directory of the one that it lives in, None for its starter's.
    """

    domain: str
    deadline_s: float
    store: StoreSettings | None
    profile: bool = False
    cgroup: str | None = None


@contextmanager
def domain_directory(run_dir: str | os.PathLike[str], root: str | os.PathLike[str], domain: str) -> Iterator[int]:
    key = cext.blake3(f"{_PROTOCOL}\0{domain}\0{os.path.realpath(root)}".encode(errors="surrogateescape")).hex()[:32]
    path = f"{os.fspath(run_dir)}/domains/{key}"
    os.makedirs(path, 0o700, exist_ok=True)
    with _opened(path) as fd:
        yield fd


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ObjectServerError(
                f"{path}: got a directory that others own or may write to, want one of our own",
                hint="choose another --run-dir",
            )
        yield fd
    finally:
        os.close(fd)


def every_domain(run_dir: str | os.PathLike[str]) -> Iterator[int]:
    """The directories of a run directory's domains, each open for one step of the iteration."""
    path = f"{os.fspath(run_dir)}/domains"
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return
    for name in names:
        with suppress(FileNotFoundError), _opened(f"{path}/{name}") as fd:
            yield fd


def connection(directory: int, settings: ServerSettings) -> socket.socket:
    """To the running server, or to one that is started now."""
    sock = connect(directory)
    if sock is not None:
        return sock
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sock = connect(directory)  # somebody may have been faster
        if sock is None:
            from lazyfs import object_process

            object_process.start(directory, settings)
            sock = connect(directory)
        if sock is None:
            raise ObjectServerError("object server: started, but does not answer", hint="its log says why")
        return sock
    finally:
        os.close(lock)


def connect(directory: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(TIMEOUT_S)
        connect_within(sock, directory, "socket", TIMEOUT_S, "object server")
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            raise ObjectServerError(f"object server: its socket belongs to uid {uid}", hint="choose another --run-dir")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def connect_within(sock: socket.socket, directory: int, name: str, seconds: float, what: str) -> None:
    """To a socket of a domain's directory. With many starts at once its queue may be full, which is no failure."""
    end = time.monotonic() + seconds
    while True:
        try:
            sock.connect(f"/proc/self/fd/{directory}/{name}")  # the path itself may be too long for an address
            return
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise ObjectServerError(f"{what}: no answer in {seconds:g} s", hint="its log says why") from error
            time.sleep(0.01)


def log_tail(
    domain: str, *, run_dir: str | os.PathLike[str], root: str | os.PathLike[str], size: int = 8192
) -> list[str]:
    """The last lines of a domain's log."""
    with domain_directory(run_dir, root, domain) as directory:
        try:
            fd = os.open("log", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return []
    with open(fd, "rb") as file:
        start = max(0, os.fstat(fd).st_size - size)
        file.seek(start)
        lines = file.read(size).decode(errors="replace").splitlines()
    return lines[1:] if start else lines
