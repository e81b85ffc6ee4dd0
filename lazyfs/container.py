"""A container on a lazily mounted image, from its scratch layer to its exit status.

    lazyfs/bundle.py             its directory, locked while its client lives
    lazyfs/container_config.py   what the runtime is told
    lazyfs/runtime.py            the runtime, its signals and its last words

Who cleans up when:

- the container ends: the client, below; the mounts go with the runtime's mount namespace.
- the client is killed: the kernel. The runtime is pid 1 of a pid namespace and dies with the client (cext.launch), so
  every process of the container dies, and with the last one the mount namespace.
- what then is left, a bundle directory and a scratch directory, is unlocked: the next ``run`` deletes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from cext.record import Record
from lazyfs import mount, unattached
from lazyfs.bundle import Bundle, make_bundle, owned
from lazyfs.container_config import container_config
from lazyfs.errors import MountError
from lazyfs.rootfs import Root
from lazyfs.runtime import OURS, Program, Stopper, Streams, explain, find_runtime, supervise
from lazyfs.runtime_config import ImageConfig, PrivateFile, RunOptions, arguments

if TYPE_CHECKING:
    from lazyfs.cdi import Edits

CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")

Note = Callable[[str], None]
Mark = Callable[[str], None]


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


def _no_mark(name: str) -> None:
    """Nobody draws a timeline."""


def run(
    lowers: mount.Lowers,
    image: ImageConfig,
    options: RunOptions,
    settings: Settings,
    *,
    name: str,
    note: Note | None = None,
    mark: Mark = _no_mark,
    started: Callable[[], None] | None = None,
) -> int:
    """Runs a container to its end; what the client has to exit with.

    lowers: borrowed. name: the image, for messages.
    note: gets what the user should know although it is no error.
    mark: is told the name of each phase at its end. started: is called once the runtime runs, and may take its time.
    """
    arguments(image, options)  # nothing to execute: said before anything is made
    program = find_runtime(settings.runtime)
    edits = _device_edits(options, settings, note)
    with ExitStack() as stack:
        bundle = stack.enter_context(make_bundle(settings.run_dir, settings.root))
        tree, _ = _overlay(stack, bundle, lowers, settings, name, note)
        mark("mount")
        return run_tree(tree, bundle, program, image, options, settings, mark=mark, edits=edits, started=started)


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
) -> Iterator[tuple[str, str, int | None, int]]:
    """Runs containers one after the other on one scratch layer, until one fails. They read nothing and write to stderr.

    Gives the layer's upper directory and the whole tree, which last as long as the block, the number of the command
    that failed or None, and the last exit status. stopper: for another thread to end it.
    """
    program = find_runtime(settings.runtime)
    with ExitStack() as stack:
        kept = stack.enter_context(make_bundle(settings.run_dir, settings.root))
        tree, scratch = _overlay(stack, kept, lowers, settings, name, note)
        trees = unattached.copies(tree, len(commands))
        for copy in trees:
            owned(stack, copy)
        streams = (owned(stack, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), 2, 2)
        failed, status = None, 0
        for number, (options, copy) in enumerate(zip(commands, trees, strict=True)):
            with make_bundle(settings.run_dir, settings.root) as bundle:
                status = run_tree(copy, bundle, program, image, options, settings, streams, stopper=stopper)
            if status:
                failed = number
                break
        yield f"/proc/self/fd/{scratch}/upper", f"/proc/self/fd/{tree}", failed, status


def run_tree(
    tree: int,
    bundle: Bundle,
    program: Program,
    image: ImageConfig,
    options: RunOptions,
    settings: Settings,
    streams: Streams = OURS,
    mark: Mark = _no_mark,
    edits: Edits | None = None,
    stopper: Stopper | None = None,
    started: Callable[[], None] | None = None,
) -> int:
    """Runs a container on a detached, writable root file system. edits: for devices of the host."""
    root = Root(tree)
    with ExitStack() as stack:
        stack.callback(root.remove_mount_points)
        root.check_kernel_targets()
        mounts = [(tree, os.fsencode(f"{bundle.path}/rootfs"))]
        config = container_config(root, bundle, image, options, settings.seccomp, stack, mounts, edits)
        # It has the environment, which may be secret: in memory, and so is the runtime's state, which has a copy.
        document = PrivateFile("config.json", json.dumps(config).encode("utf-8", "surrogateescape"))
        os.mkdir("private", 0o700, dir_fd=bundle.fd)
        private = owned(stack, unattached.private([document], (os.geteuid(), os.getegid()), name="bundle"))
        mounts.append((private, os.fsencode(f"{bundle.path}/private")))
        mark("container")
        status = supervise(
            program, bundle, mounts, streams, stopper or Stopper(), terminal=options.terminal, started=started
        )
        mark("command")
    return explain(bundle.read_log(), status)


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
        directory = owned(stack, os.open(bundle.scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            return _overlay_on(stack, directory, lowers, name), directory
        except MountError as error:
            # The root lies on a file system that cannot be an upper (another overlay, as in nested containers).
            refused = error
    directory = owned(stack, unattached.memory(name))
    tree = _overlay_on(stack, directory, lowers, name)
    if refused is not None and note is not None:
        note(f"{settings.root}: no file system for scratch files ({refused}): they are kept in memory")
    return tree, directory


def _overlay_on(stack: ExitStack, directory: int, lowers: mount.Lowers, name: str) -> int:
    for part, mode in (("upper", 0o755), ("work", 0o700)):
        os.mkdir(part, mode, dir_fd=directory)
    return owned(stack, mount.overlay(lowers, name=name, scratch=directory, attributes=unattached.ATTR_NODEV))


def _device_edits(options: RunOptions, settings: Settings, note: Note | None) -> Edits | None:
    """What the host says that the call's devices need, read before anything is made."""
    if not options.gpus and not options.devices:
        return None
    from lazyfs import gpu

    edits = gpu.requested(options.gpus, options.devices, settings.cdi)
    if edits.ignored and note is not None:
        note(f"device: {', '.join(sorted(set(edits.ignored)))} of its CDI spec is not acted on")
    return edits
