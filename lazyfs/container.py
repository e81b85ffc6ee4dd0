"""A container on a lazily mounted image: bundle, scratch layer, runtime, signals, exit status, cleaning up.

Who cleans up when:

- the container ends: the client, below; the mounts go with the runtime's mount namespace.
- the client is killed: the kernel. The runtime is pid 1 of a pid namespace and dies with the client (cext.launch), so
  every process of the container dies, and with the last one the mount namespace.
- what then is left, a bundle directory and a scratch directory, is unlocked: the next ``run`` deletes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Literal, cast

import cext
from cext.errors import UnsupportedError
from cext.record import Record
from lazyfs import mount, unattached
from lazyfs.errors import ContainerError, MountError
from lazyfs.rootfs import Root, beneath, remove_tree
from lazyfs.runtime_config import (
    KERNEL_TARGETS,
    Bind,
    ImageConfig,
    Machine,
    PrivateFile,
    RunOptions,
    arguments,
    environment,
    resolve_user,
    runtime_config,
    seccomp_for,
)

if TYPE_CHECKING:
    from lazyfs.cdi import Edits

USER_FILE_MAX = 8 << 20
"""Bytes of the image's /etc/passwd and /etc/group."""

HOST_FILE_MAX = 1 << 20
"""Bytes of the host's /etc/hosts and /etc/resolv.conf that are copied."""

OPEN_FILES = 1 << 20
"""RLIMIT_NOFILE inside, as with podman, where the host allows it."""

LOG_MAX = 64 << 10

CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")

SYSTEM_SECCOMP = "/usr/share/containers/seccomp.json"
_OWN_SECCOMP = os.path.join(os.path.dirname(__file__), "seccomp.json")
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
_OURS: Streams = (-1, -1, -1)

Note = Callable[[str], None]
Mark = Callable[[str], None]
_TIOCSWINSZ = 0x5414
_PTY_MAJORS = range(136, 144)


class Settings(Record):
    """How this host runs containers. runtime: a name or path, None for the first of crun, runc. cdi: directories with
    descriptions of devices, the last of which has the last word.
    """

    root: str
    run_dir: str
    runtime: str | None = None
    scratch: Literal["disk", "memory"] = "disk"
    seccomp: str | None = None
    cdi: tuple[str, ...] = CDI_DIRECTORIES


class Program(Record):
    """The OCI runtime."""

    path: str
    kind: Literal["crun", "runc"]


def _no_mark(name: str) -> None:
    """Nobody draws a timeline."""


def find_runtime(wanted: str | None) -> Program:
    """The configured runtime, or the first there is. Raises UnsupportedError."""
    for name in (wanted,) if wanted is not None else _RUNTIMES:
        path = shutil.which(name, path=_RUNTIME_PATH)
        if path is not None:
            return Program(os.path.abspath(path), "runc" if "runc" in os.path.basename(path) else "crun")
    raise UnsupportedError(f"{wanted or 'crun'}: not installed", hint="apt-get install crun")


def run(
    lowers: mount.Lowers,
    image: ImageConfig,
    options: RunOptions,
    settings: Settings,
    *,
    name: str,
    note: Note | None = None,
    mark: Mark = _no_mark,
) -> int:
    """Runs a container to its end; what the client has to exit with.

    lowers: borrowed. name: the image, for messages.
    note: gets what the user should know although it is no error.
    mark: is told the name of each phase at its end.
    """
    arguments(image, options)  # nothing to execute: said before anything is made
    program = find_runtime(settings.runtime)
    edits = _device_edits(options, settings, note)
    with ExitStack() as stack:
        bundle = stack.enter_context(_bundle(settings))
        tree, _ = _overlay(stack, bundle, lowers, settings, name, note)
        mark("mount")
        return run_tree(tree, bundle, program, image, options, settings, mark=mark, edits=edits)


@contextmanager
def changes(
    lowers: mount.Lowers,
    image: ImageConfig,
    commands: Sequence[RunOptions],
    settings: Settings,
    *,
    name: str,
    note: Note | None = None,
    stopper: Stopper | None = None,
) -> Iterator[tuple[str, int | None, int]]:
    """Runs containers one after the other on one scratch layer, until one fails. They read nothing and write to stderr.

    Gives the layer's upper directory, which lasts as long as the block, the number of the command that failed or None,
    and the last exit status. stopper: for another thread to end it.
    """
    program = find_runtime(settings.runtime)
    with ExitStack() as stack:
        kept = stack.enter_context(_bundle(settings))
        tree, scratch = _overlay(stack, kept, lowers, settings, name, note)
        trees = unattached.copies(tree, len(commands))
        for copy in trees:
            _owned(stack, copy)
        streams = (_owned(stack, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), 2, 2)
        failed, status = None, 0
        for number, (options, copy) in enumerate(zip(commands, trees, strict=True)):
            with _bundle(settings) as bundle:
                status = run_tree(copy, bundle, program, image, options, settings, streams, stopper=stopper)
            if status:
                failed = number
                break
        yield f"/proc/self/fd/{scratch}/upper", failed, status


def run_tree(
    tree: int,
    bundle: Bundle,
    program: Program,
    image: ImageConfig,
    options: RunOptions,
    settings: Settings,
    streams: Streams = _OURS,
    mark: Mark = _no_mark,
    edits: Edits | None = None,
    stopper: Stopper | None = None,
) -> int:
    """Runs a container on a detached, writable root file system. edits: for devices of the host."""
    root = Root(tree)
    with ExitStack() as stack:
        stack.callback(root.remove_mount_points)
        root.check_kernel_targets()
        mounts = [(tree, os.fsencode(f"{bundle.path}/rootfs"))]
        config = _config(root, bundle, image, options, settings, stack, mounts, edits)
        # It has the environment, which may be secret: in memory, and so is the runtime's state, which has a copy.
        document = PrivateFile("config.json", json.dumps(config).encode("utf-8", "surrogateescape"))
        os.mkdir("private", 0o700, dir_fd=bundle.fd)
        private = _owned(stack, unattached.private([document], (os.geteuid(), os.getegid()), name="bundle"))
        mounts.append((private, os.fsencode(f"{bundle.path}/private")))
        mark("container")
        status = _supervise(program, bundle, mounts, streams, stopper or Stopper(), terminal=options.terminal)
        mark("command")
    return _explain(bundle.read_log(), status)


# ---------------------------------------------------------------------- bundles


class Bundle(Record):
    """One container's directory: <run-dir>/containers/<id>, locked while its client lives.

    scratch: directory for what the container writes, <root>/scratch/<id>.
    """

    id: str
    path: str
    fd: int
    scratch: str

    def write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o644, dir_fd=self.fd), "wb") as file:
            file.write(data)

    def read_log(self) -> str:
        """The runtime's own words, empty if it had none."""
        try:
            fd = os.open("log", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return ""
        with open(fd, "rb") as file:
            return file.read(LOG_MAX).decode("utf-8", "replace")


@contextmanager
def _bundle(settings: Settings) -> Iterator[Bundle]:
    containers, scratch = f"{settings.run_dir}/containers", f"{settings.root}/scratch"
    for directory in (containers, scratch):
        os.makedirs(directory, 0o700, exist_ok=True)
    parents = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (containers, scratch)]
    fd = -1
    identifier = os.urandom(8).hex()
    try:
        _sweep(parents[0], parents[1])
        fcntl.flock(parents[0], fcntl.LOCK_SH)  # no sweep between mkdir and its lock
        os.mkdir(identifier, 0o700, dir_fd=parents[0])
        fd = os.open(identifier, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parents[0])
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.flock(parents[0], fcntl.LOCK_UN)
        os.mkdir("rootfs", 0o700, dir_fd=fd)
        yield Bundle(identifier, f"{containers}/{identifier}", fd, f"{scratch}/{identifier}")
    finally:
        remove_tree(parents[1], identifier)
        remove_tree(parents[0], identifier)
        for owned in (fd, *parents):
            if owned >= 0:
                os.close(owned)


def _sweep(containers: int, scratch: int) -> None:
    """Deletes what killed clients left. A live one holds the lock of its directory."""
    names = os.listdir(containers)
    if not names:
        return
    try:
        fcntl.flock(containers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # somebody starts or sweeps right now
    try:
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=containers)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(scratch, name)
                    remove_tree(containers, name)
                except BlockingIOError:
                    continue
                finally:
                    os.close(fd)
    finally:
        fcntl.flock(containers, fcntl.LOCK_UN)


# ---------------------------------------------------------------------- root file system


def _owned(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _overlay(
    stack: ExitStack,
    bundle: Bundle,
    lowers: mount.Lowers,
    settings: Settings,
    name: str,
    note: Note | None,
) -> tuple[int, int]:
    """A detached overlay with a scratch upper, and the directory of that. setuid works inside as in any container;
    devices do not.
    """
    refused: MountError | None = None
    if settings.scratch == "disk":
        os.mkdir(bundle.scratch, 0o700)
        directory = _owned(stack, os.open(bundle.scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            return _overlay_on(stack, directory, lowers, name), directory
        except MountError as error:
            # The root lies on a file system that cannot be an upper (another overlay, as in nested containers).
            refused = error
    directory = _owned(stack, unattached.memory(name))
    tree = _overlay_on(stack, directory, lowers, name)
    if refused is not None and note is not None:
        note(f"{settings.root}: no file system for scratch files ({refused}): they are kept in memory")
    return tree, directory


def _overlay_on(stack: ExitStack, directory: int, lowers: mount.Lowers, name: str) -> int:
    for part, mode in (("upper", 0o755), ("work", 0o700)):
        os.mkdir(part, mode, dir_fd=directory)
    return _owned(stack, mount.overlay(lowers, name=name, scratch=directory, attributes=unattached.ATTR_NODEV))


# ---------------------------------------------------------------------- config


def _config(
    root: Root,
    bundle: Bundle,
    image: ImageConfig,
    options: RunOptions,
    settings: Settings,
    stack: ExitStack,
    mounts: list[tuple[int, bytes]],
    edits: Edits | None,
) -> dict[str, object]:
    """The document. mounts: what the runtime's namespace has to have; gets more, owned by the stack."""
    user = options.user if options.user is not None else image.user
    identity = resolve_user(user, root.read(b"/etc/passwd", USER_FILE_MAX), root.read(b"/etc/group", USER_FILE_MAX))
    hostname = os.uname().nodename if options.network == "host" else bundle.id[:12]
    binds = [*_host_files(root, bundle, options, hostname), *_volumes(root, options)]
    for number, private in enumerate(options.private):
        place = f"{bundle.path}/private-{number}"
        os.mkdir(place, 0o700)
        tree = unattached.private(private.files, (identity.uid, identity.gid), name=private.destination)
        mounts.append((_owned(stack, tree), os.fsencode(place)))
        binds.append(Bind(place, _destination(root, private.destination, "directory"), read_only=True))
    machine = Machine(
        hostname=hostname,
        root=f"{bundle.path}/rootfs",
        seccomp=seccomp_for(_profile(settings.seccomp), _architectures()),
        open_files=_open_files(),
        console=_console_size() if options.terminal else None,
    )
    places = {} if edits is None else _device_places(root, edits)
    mounted = [*(bind.destination for bind in binds), *places.values()]
    directory = _working_directory(root, image, options, mounted)
    variables = environment(image, options, hostname=hostname, home=identity.home)
    _check_program(root, arguments(image, options), variables["PATH"], directory, mounted)
    config = runtime_config(image, options, identity, machine, working_directory=directory, binds=binds)
    if edits is not None:
        from lazyfs import gpu

        config = gpu.applied(config, edits, places)
    return config


def _device_edits(options: RunOptions, settings: Settings, note: Note | None) -> Edits | None:
    """What the host says that the call's devices need, read before anything is made."""
    if not options.gpus and not options.devices:
        return None
    from lazyfs import gpu

    edits = gpu.requested(options.gpus, options.devices, settings.cdi)
    if edits.ignored and note is not None:
        note(f"device: {', '.join(sorted(set(edits.ignored)))} of its CDI spec is not acted on")
    return edits


def _device_places(root: Root, edits: Edits) -> dict[str, str]:
    """Where the mounts of devices go, made if missing: real paths by the paths of the spec."""
    from lazyfs import gpu

    return {
        path: _destination(root, path, "directory" if directory else "file", "device: mount")
        for path, directory in gpu.check_mounts(edits).items()
    }


def _working_directory(root: Root, image: ImageConfig, options: RunOptions, mounted: Sequence[str]) -> str:
    """A real directory of the image, without links: never a way into /proc/self/fd (CVE-2024-21626).

    The image's own is created when it is missing, as docker and podman do; one that the call names has to exist, unless
    it lies in a volume, where only the runtime can see.
    """
    typed = options.working_directory
    path = os.fsencode(typed if typed is not None else image.working_directory)
    if not path.startswith(b"/"):
        raise ContainerError(f"working directory: got {os.fsdecode(path)}, want an absolute path")
    inside = any(beneath(os.path.normpath(path), [os.fsencode(target)]) for target in mounted)
    try:
        real = root.resolve(path, create=None if typed is not None and not inside else "directory")
    except FileNotFoundError:
        raise ContainerError(f"working directory: got {typed}, want a directory that exists in the image") from None
    except NotADirectoryError:
        raise ContainerError(f"working directory: got {typed}, want a directory") from None
    if beneath(real, KERNEL_TARGETS):
        raise ContainerError(f"working directory: got {os.fsdecode(real)}, want one outside /proc, /dev and /sys")
    root.resolve(real, create="directory")  # refuses what is not a directory
    return os.fsdecode(real)


def _host_files(root: Root, bundle: Bundle, options: RunOptions, hostname: str) -> list[Bind]:
    """/etc/resolv.conf, /etc/hosts and /etc/hostname: copies in the bundle, so that writes stay in this container."""
    shared = options.network == "host"
    hosts = _host_file("/etc/hosts") if shared else b"127.0.0.1 localhost\n::1 localhost\n"
    if hosts and not hosts.endswith(b"\n"):
        hosts += b"\n"
    name = os.fsencode(hostname)
    if name not in hosts.split():
        hosts += b"127.0.1.1 " + name + b"\n"
    contents = {
        "resolv.conf": _host_file("/etc/resolv.conf") if shared else b"",
        "hosts": hosts,
        "hostname": name + b"\n",
    }
    typed = {os.path.normpath(volume.destination) for volume in options.volumes}
    binds = []
    for base, data in contents.items():
        if f"/etc/{base}" in typed:
            continue  # the user brings their own
        bundle.write(base, data)
        real = _destination(root, f"/etc/{base}", "file")
        binds.append(Bind(f"{bundle.path}/{base}", real))
    return binds


def _host_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HOST_FILE_MAX)
    except OSError:
        return b""


def _volumes(root: Root, options: RunOptions) -> list[Bind]:
    binds = []
    for volume in options.volumes:
        try:
            mode = os.stat(volume.source).st_mode
        except FileNotFoundError:
            raise ContainerError(f"volume: {volume.source}: no such file or directory") from None
        kind: Literal["directory", "file"] = "directory" if stat.S_ISDIR(mode) else "file"
        real = _destination(root, volume.destination, kind)
        binds.append(Bind(os.path.realpath(volume.source), real, volume.read_only))
    return binds


def _destination(root: Root, path: str, kind: Literal["directory", "file"], what: str = "volume: destination") -> str:
    """Where a bind mount goes, created if missing. Below /dev only the runtime can: that is a tmpfs of its own."""
    raw = os.fsencode(path)
    if os.path.normpath(raw) == b"/" or not raw.startswith(b"/"):
        raise ContainerError(f"{what}: got {path}, want an absolute path below /")
    plain = os.path.normpath(raw)
    if beneath(plain, [b"/dev"]) and plain != b"/dev":
        return os.fsdecode(plain)
    if beneath(plain, KERNEL_TARGETS):
        raise ContainerError(f"{what}: got {path}, want one outside /proc, /dev and /sys")
    real = root.resolve(raw, create=kind, passing=True)
    if real == b"/" or beneath(real, KERNEL_TARGETS):
        raise ContainerError(f"{what}: {path} leads to {os.fsdecode(real)}, want one outside /proc, /dev and /sys")
    return os.fsdecode(real)


def _open_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)


def _console_size() -> tuple[int, int] | None:
    try:
        size = os.get_terminal_size(0)
    except OSError:
        return None  # stdin is no terminal; -t gives one all the same
    return size.lines, size.columns


def _check_program(root: Root, words: Sequence[str], path: str, directory: str, mounted: Sequence[str]) -> None:
    """Says what cannot be executed before the runtime would, in our words. What lies in a volume only it can see."""
    name = words[0]
    places = [name] if "/" in name else [f"{place or '.'}/{name}" for place in path.split(":")]
    targets = [os.fsencode(target) for target in (*mounted, "/dev", "/proc", "/sys")]
    refused = False
    for place in places:
        full = os.path.normpath(os.fsencode(os.path.join(directory, place)))
        if beneath(full, targets):
            return
        try:
            real, mode = root.look(os.fsencode(os.path.join(directory, place)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if beneath(real, targets):
            return
        if stat.S_ISREG(mode) and mode & 0o111:
            return
        refused = True
    if refused:
        raise ContainerError(f"{name}: permission denied: not an executable file", status=126)
    raise ContainerError(f"{name}: not found in the image", status=127)


def _profile(configured: str | None) -> dict[str, object]:
    """The configured seccomp profile, else the distribution's, else our own."""
    for path in (configured,) if configured is not None else (SYSTEM_SECCOMP, _OWN_SECCOMP):
        try:
            with open(path, "rb") as file:
                profile = json.load(file)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ContainerError(f"{path}: got no valid JSON, want a seccomp profile") from error
        if not isinstance(profile, dict) or not isinstance(profile.get("syscalls"), list):
            raise ContainerError(f"{path}: got no seccomp profile")
        return cast("dict[str, object]", profile)
    raise ContainerError(f"{configured or _OWN_SECCOMP}: no such seccomp profile")


def _architectures() -> tuple[str, ...]:
    known = {"x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"), "aarch64": ("SCMP_ARCH_AARCH64",)}
    machine = os.uname().machine
    if machine not in known:
        raise UnsupportedError(f"{machine}: got no seccomp profile for this architecture, want x86_64 or aarch64")
    return known[machine]


# ---------------------------------------------------------------------- the runtime


def _supervise(
    program: Program,
    bundle: Bundle,
    mounts: Sequence[tuple[int, bytes]],
    streams: Streams,
    stopper: Stopper,
    *,
    terminal: bool,
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
        return relay.wait(child, stopper)


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

    def wait(self, child: int, stopper: Stopper) -> int:
        self._child = child
        stopper.watch(child)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
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
        seen = _owned(stack, os.open(f"/proc/{container}/fd/0", os.O_PATH | os.O_CLOEXEC))
        found = os.fstat(seen)
        if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _PTY_MAJORS:
            flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            terminal = _owned(stack, os.open(f"/proc/self/fd/{seen}", flags))
            fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("4H", size.lines, size.columns, 0, 0))


def _explain(log: str, status: int) -> int:
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
