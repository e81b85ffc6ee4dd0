"""The OCI runtime as a child of the client: started, told of signals, waited for, and its last words explained."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Literal, cast

import cext
from cext.errors import UnsupportedError
from cext.record import Record
from lazyfs.bundle import Bundle, owned
from lazyfs.errors import ContainerError

_HYBRID = "/sys/fs/cgroup/unified"
_RUNTIMES = ("crun", "runc")
_RUNTIME_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# what a client passes on to the container; SIGKILL and SIGSTOP cannot be, SIGCHLD and the job control ones are its own
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_INTERRUPTS_BEFORE_KILL = 3
Streams = tuple[int, int, int]
"""stdin, stdout and stderr of a container; -1: the client's own."""
OURS: Streams = (-1, -1, -1)

_TIOCSWINSZ = 0x5414
_PTY_MAJORS = range(136, 144)


class Program(Record):
    """The OCI runtime."""

    path: str
    kind: Literal["crun", "runc"]


def find_runtime(wanted: str | None) -> Program:
    """The configured runtime, or the first there is. Raises UnsupportedError."""
    for name in (wanted,) if wanted is not None else _RUNTIMES:
        path = shutil.which(name, path=_RUNTIME_PATH)
        if path is not None:
            return Program(os.path.abspath(path), "runc" if "runc" in os.path.basename(path) else "crun")
    raise UnsupportedError(f"{wanted or 'crun'}: not installed", hint="apt-get install crun")


def supervise(
    program: Program,
    bundle: Bundle,
    mounts: Sequence[tuple[int, bytes]],
    streams: Streams,
    stopper: Stopper,
    *,
    terminal: bool,
    started: Callable[[], None] | None = None,
) -> int:
    """Starts the runtime, passes signals on, waits. A death by signal is 128 + its number."""
    words = [program.path, "--root", f"{bundle.path}/private/state", "--log", f"{bundle.path}/log"]
    if program.kind == "crun":
        # Nothing is limited, so no cgroup is needed; it also is what works on v1, v2 and hybrid hosts alike.
        words.append("--cgroup-manager=disabled")
    words += ["run", "--bundle", f"{bundle.path}/private", bundle.id]
    hybrid = [os.fsencode(_HYBRID)] if os.path.isdir(_HYBRID) else []
    with _SignalRelay(terminal=terminal) as relay:
        child = cext.launch(
            os.fsencode(program.path),
            [os.fsencode(word) for word in words],
            [f"PATH={_RUNTIME_PATH}".encode()],
            mounts=mounts,
            streams=streams,
            unmount=hybrid,
            own_group=not terminal,
        )
        return relay.wait(child, stopper, started)


class Stopper:
    """Kills the container that runs now, and each that starts later. One container at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child = 0  # guarded by _lock; ours to signal: it is forgotten before it is reaped
        self._stopped = False  # guarded by _lock

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._child:
                os.kill(self._child, signal.SIGKILL)

    def watch(self, child: int) -> None:
        with self._lock:
            self._child = child
            if self._stopped:
                os.kill(child, signal.SIGKILL)

    def forget(self) -> None:
        with self._lock:
            self._child = 0


class _SignalRelay:
    """Signals of the client become the container's. Blocked until there is a child to send them to.

    Only the main thread can have handlers: a build, whose commands run in others, keeps its own.
    """

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._child = 0
        self._interrupts = 0
        self._handlers: dict[int, object] = {}
        self._mask: set[signal.Signals] = set()

    def __enter__(self) -> _SignalRelay:
        self._mask = cast("set[signal.Signals]", signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED))
        if threading.current_thread() is threading.main_thread():
            for number in _FORWARDED:
                self._handlers[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        self._child = 0
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _pass_on(self, number: int, _: object) -> None:
        if number == signal.SIGWINCH:
            if self._child and self._terminal:
                _resize(self._child)
            return
        if number in (signal.SIGINT, signal.SIGTERM):
            self._interrupts += 1
        if self._child:
            # A program that is pid 1 and has no handler ignores both; the third time is meant.
            last = self._interrupts >= _INTERRUPTS_BEFORE_KILL
            os.kill(self._child, signal.SIGKILL if last else number)

    def wait(self, child: int, stopper: Stopper, started: Callable[[], None] | None) -> int:
        self._child = child
        stopper.watch(child)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if started is not None:
            started()
        # WNOWAIT keeps the pid ours until no handler can send to it any more.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        stopper.forget()
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        self._child = 0
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code


def _resize(runtime: int) -> None:
    """Gives the container's terminal the size of ours: crun 1.8 passes SIGWINCH on, but not the size.

    Setting the size makes the kernel signal the container. Its stdin may be anything by now, so it is looked at before
    it is opened; opening a terminal has no effect on it.
    """
    with ExitStack() as stack, suppress(OSError, ValueError, IndexError):
        size = os.get_terminal_size(0)
        with open(f"/proc/{runtime}/task/{runtime}/children", "rb") as file:
            container = int(file.read().split()[0])
        seen = owned(stack, os.open(f"/proc/{container}/fd/0", os.O_PATH | os.O_CLOEXEC))
        found = os.fstat(seen)
        if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _PTY_MAJORS:
            flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            terminal = owned(stack, os.open(f"/proc/self/fd/{seen}", flags))
            fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("4H", size.lines, size.columns, 0, 0))


def explain(log: str, status: int) -> int:
    """The container's own status, or an error when the runtime said that there never was a container."""
    lines = [line for line in (_message(line) for line in log.splitlines()) if line]
    if status == 0 or not lines:
        return status
    words = lines[-1]
    low = words.lower()
    if "not found" in low or "no such file or directory" in low:
        raise ContainerError(f"run: {words}", hint="the program has to be in the image", status=127)
    if any(sign in low for sign in ("permission denied", "exec format error", "is a directory", "open executable")):
        raise ContainerError(f"run: {words}", status=126)
    raise ContainerError(f"run: {words}")


def _message(line: str) -> str:
    """crun writes plain lines, runc logfmt with the words in msg="…"; warnings are no failures."""
    if "level=warning" in line or "level=info" in line:
        return ""
    _, found, rest = line.partition(' msg="')
    return rest.rstrip('"').replace('\\"', '"') if found else line.strip()
