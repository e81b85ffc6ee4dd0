"""The container's document: whom it runs as, what is mounted where, and whether its program can be executed.

Paths of the image are looked up by `lazyfs/rootfs.py`, which follows no link out of it. What cannot be is refused here,
in our words, before the runtime would refuse it in its own.
"""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, cast

from cext.errors import UnsupportedError
from lazyfs import unattached
from lazyfs.bundle import Bundle, owned
from lazyfs.errors import ContainerError
from lazyfs.rootfs import Root, beneath
from lazyfs.runtime_config import (
    KERNEL_TARGETS,
    Bind,
    ImageConfig,
    Machine,
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

SYSTEM_SECCOMP = "/usr/share/containers/seccomp.json"
_OWN_SECCOMP = os.path.join(os.path.dirname(__file__), "seccomp.json")


def container_config(
    root: Root,
    bundle: Bundle,
    image: ImageConfig,
    options: RunOptions,
    seccomp: str | None,
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
        mounts.append((owned(stack, tree), os.fsencode(place)))
        binds.append(Bind(place, _destination(root, private.destination, "directory"), read_only=True))
    machine = Machine(
        hostname=hostname,
        root=f"{bundle.path}/rootfs",
        seccomp=seccomp_for(_profile(seccomp), _architectures()),
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
