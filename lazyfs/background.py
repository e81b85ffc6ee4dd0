"""Processes of ours that outlive the command that started them: the object server and the portable server.

    client ── forks ──► (session leader, ends at once) ── forks ──► background process

It is the copy of a small client, since nothing starts faster, and a fresh interpreter where the client is large (a
build). Of its starter it keeps the descriptors that it was given and no more: /proc shows neither the arguments nor the
environment of who happened to be first.

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
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import cext
from cext.errors import CorruptError, MissingError, OnesecError, UnsupportedError
from cext.record import EMPTY, Record, as_dict
from lazyfs.errors import MountError, ObjectServerError

_READY, _HEARD = b"ready", b"heard"
_MESSAGE_MAX = 64 << 10
_LARGE = 22 << 20
"""Bytes of memory of its own of a process that is not copied: `run` has 8 to 12, and 8 more while an index comes in; a
build from 24 on. What it maps of files (libcurl, OpenSSL) costs a copy nothing."""
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
        words = {
            "kind": type(error).__name__,
            "error": str(error) if ours else f"{self._what}: {error or type(error).__name__}",
            "hint": error.hint if isinstance(error, OnesecError) else None,
        }
        self._say(json.dumps(words).encode())
        if not ours:
            traceback.print_exception(error)

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


class Call(Record):
    """What a background process does. name: of the process. what: it in words, for messages. entry: `module:function`,
    called with (words, fds, client), returns the exit status. words: as JSON has them. surroundings: it needs the
    environment of its starter, in its memory. cgroup: a directory of one; where it lives, or None: where its starter
    does.
    """

    name: str
    what: str
    entry: str
    words: Mapping[str, Any] = EMPTY
    surroundings: bool = False
    cgroup: str | None = None


def start(call: Call, *, fds: Sequence[int], log: int) -> None:
    """Makes a background process and returns once it said that it is ready. Raises what it failed with.

    fds: what the process keeps, as copies with the numbers from 3; log becomes its descriptors 1 and 2.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        anew = _is_large()
        child = os.fork()
        if child == 0:
            _leave(call, (*fds, theirs.fileno()), log, anew=anew)
        theirs.close()
        os.waitpid(child, 0)
        answer = ours.recv(_MESSAGE_MAX)
        if answer == _READY:
            with suppress(OSError):  # it does not want to know
                ours.send(_HEARD)
            return
    if not answer:
        raise OnesecError(f"{call.what}: died while it started", hint="its log says why")
    words = json.loads(answer)
    raise _ERRORS.get(words["kind"], OnesecError)(words["error"], hint=words["hint"])


def _is_large() -> bool:
    """Whether a copy of this process would be a burden: what a fork shares is paid for once one of the two has changed
    it or is gone. A fresh interpreter takes 60 ms, which a client of `run` would wait for.
    """
    if not os.path.basename(sys.executable or "").startswith("python"):
        return False  # it is part of another program, which knows nothing of -c
    with open("/proc/self/statm", "rb") as file:
        _, resident, of_files, *_ = map(int, file.read().split())
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE") > _LARGE


def _leave(call: Call, fds: Sequence[int], log: int, *, anew: bool) -> None:
    client = Client(fds[-1], call.what)
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_LAST_TO_GO)
        if call.cgroup is not None:
            _join(call.cgroup)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0o077)
        os.chdir("/")
        if anew:
            _begin_anew(call, fds, log)
        kept = keep_only(fds, log)
        client = Client(kept[-1], call.what)
        _be(call, kept, client)
    except BaseException as error:
        client.failed(error)
    finally:
        os._exit(1)


def _be(call: Call, fds: Sequence[int], client: Client) -> NoReturn:
    status = 1
    try:
        if not call.surroundings:
            os.environ.clear()
        kept = dict(os.environ)
        os.environ.clear()
        cext.forget_caller(call.name)
        os.environ.update(kept)
        module, _, function = call.entry.partition(":")
        status = getattr(import_module(module), function)(call.words, fds[:-1], client)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _join(cgroup: str) -> None:
    try:
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        raise ObjectServerError(
            f"{cgroup}: got no cgroup that takes a process: {os.strerror(error.errno or 0).lower()}",
            hint="[run] cgroup in onesec.toml names its directory, below /sys/fs/cgroup",
        ) from error


# ---------------------------------------------------------------------- in a fresh interpreter

_PROGRAM = "; ".join(
    (
        "import json, sys",
        "call = json.load(open(int(sys.argv[1]), 'rb'))",
        "sys.path[:] = call['path']",
        "from lazyfs import background",
        "background.resume(call)",
    )
)

_LOADER = (
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "ONESEC_NATIVE"),
    *("ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"),
)
"""Without these the same interpreter might not start."""


def _begin_anew(call: Call, fds: Sequence[int], log: int) -> NoReturn:
    """The call goes over in memory: arguments and environment of a process are there for others to read."""
    words = {
        "call": {**as_dict(call), "words": dict(call.words)},
        "path": [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), *map(os.path.abspath, sys.path)],
        "environment": dict(os.environ) if call.surroundings else {},
        "fds": len(fds),
    }
    memory = os.memfd_create("onesec-call", os.MFD_CLOEXEC)
    with open(memory, "wb", closefd=False) as file:
        file.write(json.dumps(words).encode())
    os.lseek(memory, 0, os.SEEK_SET)
    kept = keep_only((*fds, memory), log)
    for fd in kept:
        os.set_inheritable(fd, True)
    environment = {name: os.environ[name] for name in _LOADER if name in os.environ}
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", _PROGRAM, str(kept[-1])], environment)


def resume(words: Mapping[str, Any]) -> NoReturn:
    """The background process, from where `_begin_anew` left it."""
    fds = range(3, 3 + words["fds"])
    for fd in fds:
        os.set_inheritable(fd, False)
    os.environ.update(words["environment"])
    call = Call(**words["call"])
    _be(call, list(fds), Client(fds[-1], call.what))


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
