"""From an image's config and the words of ``run`` to the config.json that an OCI runtime reads. Pure: no I/O.

The config is built by allow list: Entrypoint, Cmd, Env, WorkingDir, User and StopSignal are read, nothing else of the
image is ever looked at. So no label, annotation, volume or exposed port of a foreign image can reach hooks, devices,
mounts or capabilities (CVE-2024-3154 and its relatives).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from cext.errors import CorruptError
from cext.record import Record
from lazyfs.errors import ContainerError

Network = Literal["host", "none"]

IDS_MAX = 0xFFFFFFFE
"""4294967295 is (uid_t)-1, "leave it alone"."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# podman's default_capabilities (containers-common 0.50 to 0.62)
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
)

READONLY_PATHS = (
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

KERNEL_TARGETS = (b"/proc", b"/dev", b"/sys")
"""Where the runtime mounts kernel file systems. They have to be real directories of the image's root."""


class ImageConfig(Record):
    """What of an image's config counts for running it."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    working_directory: str = "/"
    user: str = ""
    stop_signal: str | None = None


class Volume(Record):
    """A host file or directory inside the container. destination is what the user typed; absolute."""

    source: str
    destination: str
    read_only: bool = False


class PrivateFile(Record):
    """A file that exists in memory, for one container. name: without a slash."""

    unshown = ("data",)

    name: str
    data: bytes
    mode: int = 0o400


class Private(Record):
    """A directory of such files, read-only. Nothing of it is ever in a layer, not even where it was mounted."""

    destination: str
    files: tuple[PrivateFile, ...]


class RunOptions(Record):
    """The words of ``run``. gpus: ``all``, numbers, or names as in devices.

    devices: names of CDI, vendor.com/class=device.
    """

    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    volumes: tuple[Volume, ...] = ()
    working_directory: str | None = None
    user: str | None = None
    network: Network = "host"
    terminal: bool = False
    private: tuple[Private, ...] = ()
    gpus: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


class Identity(Record):
    """Who the process runs as, in numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


class Bind(Record):
    """A mount with its destination resolved inside the root."""

    source: str
    destination: str
    read_only: bool = False


class Machine(Record):
    """What the config needs to know of the host."""

    hostname: str
    root: str  # absolute path of the mounted root file system
    seccomp: dict[str, object] | None
    open_files: int  # the most that RLIMIT_NOFILE may be
    console: tuple[int, int] | None = None  # rows and columns of the client's terminal


def image_config(document: Mapping[str, Any]) -> ImageConfig:
    """The allow list out of an OCI image config. Raises CorruptError for wrong shapes."""
    config = document.get("config")
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise CorruptError("image config: config: got no JSON object")
    return ImageConfig(
        entrypoint=_words(config, "Entrypoint"),
        command=_words(config, "Cmd"),
        environment=tuple(_split_variable(item) for item in _words(config, "Env")),
        working_directory=_text(config, "WorkingDir") or "/",
        user=_text(config, "User"),
        stop_signal=_text(config, "StopSignal") or None,
    )


def _words(config: dict[str, object], key: str) -> tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CorruptError(f"image config: {key}: got no list of strings")
    words = cast("list[str]", value)
    if any("\0" in word for word in words):
        raise CorruptError(f"image config: {key}: got a NUL character")
    return tuple(words)


def _text(config: dict[str, object], key: str) -> str:
    value = config.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise CorruptError(f"image config: {key}: got no plain string")
    return value


def _split_variable(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name, value


def arguments(image: ImageConfig, options: RunOptions) -> tuple[str, ...]:
    """What to execute. Words of the call replace Cmd and follow Entrypoint, as with docker and podman."""
    words = (*image.entrypoint, *(options.command or image.command))
    if not words or not words[0]:
        raise ContainerError(
            "command: got none, and the image has neither entrypoint nor command", hint="onesec run REF CMD…"
        )
    return words


def environment(image: ImageConfig, options: RunOptions, *, hostname: str, home: str) -> dict[str, str]:
    """Later wins: defaults, the image's, the call's."""
    merged = {
        "PATH": DEFAULT_PATH,
        "HOSTNAME": hostname,
        "HOME": home,
        "TERM": "xterm",
        "container": "onesec",
    }
    merged.update((name, value) for name, value in image.environment if name)
    merged.update((name, value) for name, value in options.environment if name)
    return merged


def resolve_user(user: str, passwd: bytes, group: bytes) -> Identity:
    """``name``, ``uid``, ``name:group``, ``uid:gid``, with the image's own passwd and group files, as podman does.

    A number need not be listed; a name must be. Supplementary groups are those that list the user's name, unless a
    group was given.
    """
    who, has_group, which = user.partition(":")
    who = who or "0"
    users = [user_row for line in _lines(passwd) if (user_row := _passwd_row(line)) is not None]
    groups = [group_row for line in _lines(group) if (group_row := _group_row(line)) is not None]
    number = _number(who)
    found = next((row for row in users if row.name == who), None)
    if found is None and number is not None:
        found = next((row for row in users if row.uid == number), None)
    if found is None and number is None:
        raise ContainerError(f"user: got {who}, want a name that the image's /etc/passwd has, or a number")
    if found is None:
        assert number is not None
        uid, gid, home, name = number, 0, "/", None
    else:
        uid, gid, home, name = found.uid, found.gid, found.home or "/", found.name
    if has_group and which:
        gid = _group_number(which, groups)
        return Identity(uid, gid, (gid,), home)
    extra = {row.gid for row in groups if name is not None and name in row.members}
    # The first group among the others too, or a process that sheds it may do what is denied to it (CVE-2022-2989).
    return Identity(uid, gid, tuple(sorted({gid, *extra})) if user else (), home)


class _Passwd(Record):
    name: str
    uid: int
    gid: int
    home: str


class _Group(Record):
    name: str
    gid: int
    members: tuple[str, ...]


def _group_number(which: str, groups: Sequence[_Group]) -> int:
    named = next((row.gid for row in groups if row.name == which), None)
    if named is not None:
        return named
    number = _number(which)
    if number is None:
        raise ContainerError(f"group: got {which}, want a name that the image's /etc/group has, or a number")
    return number


def _lines(file: bytes) -> list[str]:
    return file.decode("utf-8", "replace").split("\n")


def _passwd_row(line: str) -> _Passwd | None:
    fields = line.split(":")
    if len(fields) < 6 or not fields[0]:
        return None
    uid, gid = _number(fields[2]), _number(fields[3])
    if uid is None or gid is None:
        return None
    home = fields[5] if fields[5].startswith("/") and "\0" not in fields[5] else "/"
    return _Passwd(fields[0], uid, gid, home)


def _group_row(line: str) -> _Group | None:
    fields = line.split(":")
    if len(fields) < 4 or not fields[0]:
        return None
    gid = _number(fields[2])
    return None if gid is None else _Group(fields[0], gid, tuple(fields[3].split(",")))


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    value = int(text)
    return value if value <= IDS_MAX else None


def runtime_config(
    image: ImageConfig,
    options: RunOptions,
    identity: Identity,
    machine: Machine,
    *,
    working_directory: str,
    binds: Sequence[Bind],
) -> dict[str, object]:
    """The document for config.json. working_directory and the binds' destinations are resolved already."""
    process: dict[str, object] = {
        "terminal": options.terminal,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "umask": 0o022,
            "additionalGids": list(identity.groups),
        },
        "args": list(arguments(image, options)),
        "env": [
            f"{name}={value}"
            for name, value in environment(image, options, hostname=machine.hostname, home=identity.home).items()
        ],
        "cwd": working_directory,
        "capabilities": _capabilities(identity),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": machine.open_files, "soft": machine.open_files}],
        "noNewPrivileges": False,
    }
    if options.terminal and machine.console is not None:
        rows, columns = machine.console
        process["consoleSize"] = {"height": rows, "width": columns}
    linux: dict[str, object] = {
        "namespaces": [{"type": name} for name in _namespaces(options.network)],
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "rootfsPropagation": "rprivate",
    }
    if machine.seccomp is not None:
        linux["seccomp"] = machine.seccomp
    return {
        "ociVersion": "1.0.0",
        "process": process,
        "root": {"path": machine.root, "readonly": False},
        "hostname": machine.hostname,
        "mounts": [*_kernel_mounts(), *(_bind_mount(bind) for bind in binds)],
        "linux": linux,
    }


def _capabilities(identity: Identity) -> dict[str, list[str]]:
    """A process that is not root only has them in its bounding set, as with podman."""
    whole = list(CAPABILITIES)
    held = whole if identity.uid == 0 else []
    return {"bounding": whole, "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def _namespaces(network: Network) -> tuple[str, ...]:
    own = ("pid", "ipc", "uts", "mount")
    return own if network == "host" else (*own, "network")


def _kernel_mounts() -> list[dict[str, object]]:
    def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, object]:
        return {"destination": destination, "type": kind, "source": source, "options": list(options)}

    return [
        mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
        mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    ]


def _bind_mount(bind: Bind) -> dict[str, object]:
    return {
        "destination": bind.destination,
        "type": "bind",
        "source": bind.source,
        "options": ["rbind", "rprivate", "nosuid", "nodev", "ro" if bind.read_only else "rw"],
    }


def seccomp_for(profile: dict[str, object], architectures: Sequence[str]) -> dict[str, object]:
    """A containers-common profile as the OCI runtime wants it: conditions on capabilities and architectures resolved.

    architectures: SCMP_ARCH_* names, the native one first.
    """
    wanted = _profile_architectures(profile, architectures[0]) or list(architectures)
    short = _SHORT_NAMES.get(architectures[0], "")
    calls: list[dict[str, object]] = []
    for rule in cast("list[dict[str, object]]", profile.get("syscalls", [])):
        includes = cast("dict[str, list[str]]", rule.get("includes") or {})
        excludes = cast("dict[str, list[str]]", rule.get("excludes") or {})
        if not _applies(includes, short, whole=True) or not _applies(excludes, short, whole=False):
            continue
        call: dict[str, object] = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            call["args"] = rule["args"]
        if rule.get("errnoRet") is not None:
            call["errnoRet"] = rule["errnoRet"]
        calls.append(call)
    result: dict[str, object] = {
        "defaultAction": profile["defaultAction"],
        "architectures": wanted,
        "syscalls": calls,
    }
    if profile.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return result


_SHORT_NAMES = {"SCMP_ARCH_X86_64": "amd64", "SCMP_ARCH_AARCH64": "arm64"}


def _profile_architectures(profile: dict[str, object], native: str) -> list[str]:
    for row in cast("list[dict[str, object]]", profile.get("archMap") or []):
        if row.get("architecture") == native:
            return [native, *cast("list[str]", row.get("subArchitectures") or [])]
    return []


def _applies(condition: dict[str, list[str]], architecture: str, *, whole: bool) -> bool:
    """includes (whole): every part has to hold. excludes: no part may hold."""
    architectures, capabilities = condition.get("arches") or [], condition.get("caps") or []
    if whole:
        return (not architectures or architecture in architectures) and all(c in CAPABILITIES for c in capabilities)
    return architecture not in architectures and not any(c in CAPABILITIES for c in capabilities)
