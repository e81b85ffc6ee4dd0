"""The stores of this host: one for each trust domain, under one quota.

What may serve whom: a store belongs to one trust domain. Only the object server of that domain has it open, only bytes
that it read and verified out of packs of images mounted in that domain go in, and only rows of such images' tables are
looked up in it. So knowing a chunk's id is worth nothing to another domain, not even by the time an answer takes. The
price: what two domains have in common is kept twice.

    <base>/<hash of the domain>/    0700, of the user that the server becomes; base itself lets nobody but root pass, so
                                    that another process of that user does not reach it

Only one process has a store at a time. Where it fails (in use, damaged beyond repair, no disk) the server goes without.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cext
from cache.errors import StoreError, StoreInUseError
from cache.settings import StoreSettings
from cache.store import Checked, check
from cext.record import Record

QUOTA_MAX, FLOOR_MAX = 20 << 30, 5 << 30
QUOTA_SHARE, FLOOR_SHARE = 10, 20
"""Without settings: a tenth of the file system is ours, a twentieth stays free, and no more than the above."""

QUEUE = 8 << 20
"""Bytes of chunks that may wait for a server's writer: memory that the server has for nothing else."""

LEAST_SHARE = 4
"""A store gets at least this part of the quota, however much others that are in use have taken."""


class Place(Record):
    """A domain's store, ready to be opened. fd: of its directory, owned. quota, floor: bytes, what it may use now."""

    fd: int
    quota: int
    floor: int

    def open(self, *, log: int) -> cext.Store:
        """Leaves the process in the store's directory. Raises OSError, OnesecError."""
        os.fchdir(self.fd)
        return cext.Store(".", log=log, quota=self.quota, floor=self.floor, queue_size=QUEUE)


def directory_name(domain: str) -> str:
    return cext.blake3(domain.encode(errors="surrogateescape")).hex()[:32]


def prepare(settings: StoreSettings, domain: str, owner: int) -> Place | None:
    """Makes the directory of a domain's store for the user that will open it; None if there is to be no store.

    Idle stores of other domains make room, the one used longest ago first. Raises OSError, StoreError.
    """
    if settings.quota == 0:
        return None
    os.makedirs(settings.base, mode=0o700, exist_ok=True)
    base = os.open(settings.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(base)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise StoreError(settings.base, "others can enter it", hint=f"chmod 700 {settings.base}")
        name = directory_name(domain)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=base)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
        try:
            if os.geteuid() == 0:
                os.fchown(fd, owner, owner)
            quota, floor = _bounds(settings, fd)
            others = _make_room(base, name, quota - _bytes_of(fd))
            return Place(fd, max(quota - others, quota // LEAST_SHARE), floor)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(base)


def _bounds(settings: StoreSettings, fd: int) -> tuple[int, int]:
    about = os.statvfs(fd)
    size = about.f_blocks * about.f_frsize
    quota = min(QUOTA_MAX, size // QUOTA_SHARE) if settings.quota is None else settings.quota
    floor = min(FLOOR_MAX, size // FLOOR_SHARE) if settings.floor is None else settings.floor
    return max(quota, 1), floor


def _bytes_of(fd: int) -> int:
    with os.scandir(fd) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.name.startswith("seg-"))


def _make_room(base: int, own: str, wanted: int) -> int:
    """Deletes idle stores until the others have at most wanted bytes. Returns what they have."""
    found = []
    for name in _names(base):
        if name == own:
            continue
        with _directory(base, name) as fd:
            found.append((_last_used(fd), name, _bytes_of(fd)))
    total = sum(size for _, _, size in found)
    for _, name, size in sorted(found):
        if total <= max(wanted, 0):
            break
        if _delete(base, name):
            total -= size
    return total


def _names(base: int) -> list[str]:
    return [name for name in os.listdir(base) if len(name) == 32 and set(name) <= set("0123456789abcdef")]


@contextmanager
def _directory(base: int, name: str) -> Iterator[int]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    try:
        yield fd
    finally:
        os.close(fd)


def _last_used(fd: int) -> int:
    """Whoever opens a store writes its number into the lock file."""
    try:
        return os.stat("lock", dir_fd=fd, follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:
        return 0


def _delete(base: int, name: str) -> bool:
    """Whether it was idle, and is gone."""
    with _directory(base, name) as fd:
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=fd)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for entry in os.listdir(fd):
                if not stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.unlink(entry, dir_fd=fd)
            os.rmdir(name, dir_fd=base)
            return True
        except OSError:  # in use, or somebody opens it this moment
            return False
        finally:
            os.close(lock)


# ---------------------------------------------------------------------- fsck


def check_all(base: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Checks and repairs every store that is not in use. Returns what was repaired, and notes; a line each."""
    repaired: list[str] = []
    notes: list[str] = []
    if not os.path.isdir(base):
        return (), ()
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in sorted(_names(fd)):
            try:
                repaired += _check_as_owner(fd, name, f"{base}/{name}").repaired
            except StoreError as error:
                notes.append(f"not checked: {error}")
            except OSError as error:
                notes.append(f"not checked: store {base}/{name}: {error.strerror}")
    finally:
        os.close(fd)
    return tuple(repaired), tuple(notes)


def _check_as_owner(base: int, name: str, path: str) -> Checked:
    """In a process of the store's owner: what a server left behind is parsed without privileges, and what the check
    makes is the owner's."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _check_and_exit(base, name, path, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    words = json.loads(answer or b'{"error": "the check died"}')
    if "error" in words:
        kind = StoreInUseError if words.get("in_use") else StoreError
        raise kind(path, words["error"])
    return Checked(words["chunks"], words["bytes"], tuple(words["repaired"]))


def _check_and_exit(base: int, name: str, path: str, writer: int) -> None:
    answer: dict[str, object] = {"error": "the check failed"}
    try:
        with _directory(base, name) as fd:
            os.fchdir(fd)
            if os.geteuid() == 0 and (owner := os.fstat(fd).st_uid) != 0:
                os.setgroups([])
                os.setresgid(owner, owner, owner)
                os.setresuid(owner, owner, owner)
            done = check(".")
            answer = {"chunks": done.chunks, "bytes": done.bytes, "repaired": done.repaired}
    except StoreInUseError as error:
        answer = {"error": error.reason, "in_use": True}
    except BaseException as error:
        answer = {"error": str(error) or type(error).__name__}
    finally:
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
