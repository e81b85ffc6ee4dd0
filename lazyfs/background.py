"""Processes of ours that outlive the command that started them: the object server and the portable server.

    client ── forks ──► (session leader, ends at once) ── forks ──► background process, never executed

Client and process talk over one socket until the client lets go: the process says `ready` or what went wrong, and the
client says that it heard. A process that does not hear it may end: its client was interrupted, and nobody knows that
it is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

import cext
from cext.errors import CorruptError, MissingError, OnesecError, UnsupportedError
from lazyfs.errors import MountError, ObjectServerError

_READY, _HEARD = b"ready", b"heard"
_MESSAGE_MAX = 64 << 10
_FIRST_FREE = 32  # above every number that a process is given
_LAST_TO_GO = "-999"
"""We serve many containers from the memory cgroup of the first: its process has to die if that is full, not we."""

_ERRORS: dict[str, type[OnesecError]] = {
    kind.__name__: kind for kind in (CorruptError, MissingError, UnsupportedError, MountError, ObjectServerError)
}


class Client:
    """Who started this process. fd: readable once the client has heard, or is gone."""

    def __init__(self, fd: int, what: str) -> None:
        self.fd = fd
        self._what = what
        self._answered = False

    def ready(self) -> None:
        self._say(_READY)

    def failed(self, error: BaseException) -> None:
        """The client raises it again. What is not one of our errors is our bug: its traceback goes to the log."""
        ours = isinstance(error, OnesecError)
        if not ours:
            traceback.print_exception(error)
        words = {
            "kind": type(error).__name__,
            "error": str(error) if ours else f"{self._what}: {error or type(error).__name__}",
            "hint": error.hint if isinstance(error, OnesecError) else None,
        }
        self._say(json.dumps(words).encode())

    def heard(self) -> bool:
        """Whether the client knows that this process is there. Waits until that is sure."""
        try:
            return os.read(self.fd, len(_HEARD)) == _HEARD
        except OSError:
            return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _say(self, words: bytes) -> None:
        if not self._answered:
            self._answered = True
            with suppress(OSError):  # it is gone
                os.write(self.fd, words)


def start(name: str, what: str, body: Callable[[Sequence[int], Client], int], *, fds: Sequence[int], log: int) -> None:
    """Runs body in a background process and returns once it said that it is ready. Raises what it failed with.

    name: of the process. what: it in words, for messages. fds: what the process keeps, as copies with the numbers from
    3; log becomes its descriptors 1 and 2. body returns the exit status.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _leave(name, what, body, (*fds, theirs.fileno()), log)
        theirs.close()
        os.waitpid(child, 0)
        answer = ours.recv(_MESSAGE_MAX)
        if answer == _READY:
            with suppress(OSError):  # it does not want to know
                ours.send(_HEARD)
            return
    if not answer:
        raise OnesecError(f"{what}: died while it started", hint="its log says why")
    words = json.loads(answer)
    raise _ERRORS.get(words["kind"], OnesecError)(words["error"], hint=words["hint"])


def _leave(name: str, what: str, body: Callable[[Sequence[int], Client], int], fds: Sequence[int], log: int) -> None:
    status = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        cext.set_process_name(name)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_LAST_TO_GO)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0o077)
        os.chdir("/")
        kept = keep_only(fds, log)
        status = body(kept[:-1], Client(kept[-1], what))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def keep_only(fds: Sequence[int], log: int) -> list[int]:
    """Closes all descriptors but copies of these, which get the numbers from 3; 0 is /dev/null, 1 and 2 are the log."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for fd in (*fds, log)]
    assert len(fds) < _FIRST_FREE - 3
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    for number, fd in enumerate((null, moved[-1], moved[-1])):
        os.dup2(fd, number)
    for number, fd in enumerate(moved[:-1], 3):
        os.dup2(fd, number, inheritable=False)
    os.closerange(3 + len(fds), 1 << 20)
    return list(range(3, 3 + len(fds)))


def remove_socket(directory: int, name: str) -> None:
    """At the end of a process that listened on a socket of a domain's directory, unless somebody listens again: a
    successor may have been faster. Makes nothing: who deletes the directory while we end has to find it empty.
    """
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        lock = os.open("lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sock.connect(f"/proc/self/fd/{directory}/{name}")
        except ConnectionRefusedError:
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(lock)


def listen(directory: int, name: str) -> socket.socket:
    """Takes the place of a dead server's socket in one step: a client sees the old one, which refuses, or ours."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(FileNotFoundError):
        os.unlink(f"{name}.new", dir_fd=directory)
    sock.bind(f"/proc/self/fd/{directory}/{name}.new")
    os.chmod(f"{name}.new", 0o600, dir_fd=directory)
    sock.listen(128)
    os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)
    return sock


def log(text: str) -> None:
    """A line straight to descriptor 2, unbuffered: the process ends by _exit. A full disk stops nobody."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
