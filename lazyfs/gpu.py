"""Devices of the host in a container: which ones a call means, and what they change in the runtime's document.

Only the words of the call and the host's own files (lazyfs/cdi.py) lead here. Nothing that an image brings names a
device or a hook, and what an image brings reaches no hook: a hook outside of the container has an environment of its
own, without the container's LD_PRELOAD, and the host's root as its directory (CVE-2025-23266). Where a mount goes is
resolved inside the image's root before (lazyfs/rootfs.py).

Drivers come as bind mounts of the host's files, so that they are those of the running kernel, and never through the
store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cext.record import replace
from lazyfs.cdi import Catalogue, DeviceNode, Edits, Hook, Mount, Name, load, parse_name
from lazyfs.errors import ContainerError

NVIDIA = "nvidia.com/gpu"
ALL = "all"
HOOK_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL = "/bin/bash"
_FROM_THE_ROOT = 'cd / && exec -a "$0" "$@"'
_HINT = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_SHOWN = 8  # names in a message
_NODE_TYPES = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}
_BINDS = {"bind", "rbind"}
_PROPAGATIONS = {"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"}

Look = Callable[[str], os.stat_result]
Document = dict[str, Any]


def requested(gpus: Sequence[str], devices: Sequence[str], directories: Sequence[str]) -> Edits:
    """What the devices of a call change, as the host's specs have it. Raises ContainerError."""
    known = load(directories)
    names = [name for word in gpus for name in gpu_names(word, known, directories)]
    names += [parse_name(word) for word in devices]
    return edits_of(names, known, directories)


# ---------------------------------------------------------------------- which devices


def gpu_names(word: str, known: Catalogue, directories: Sequence[str]) -> list[Name]:
    """``all``, ``0,1`` or full names."""
    names = []
    for part in word.removeprefix("device=").split(","):
        if "=" in part:
            names.append(parse_name(part))
            continue
        kind = gpu_kind(known, directories)
        if part == ALL and f"{kind}={ALL}" not in known.devices:
            names += [Name(kind, device) for device in _devices(kind, known.devices) or _devices(kind, known.contested)]
        else:
            names.append(parse_name(f"{kind}={part}"))
    return names


def gpu_kind(known: Catalogue, directories: Sequence[str]) -> str:
    """NVIDIA's where there is one, else the only kind of GPU that there is."""
    kinds = {name.partition("=")[0] for name in (*known.devices, *known.contested)}
    gpus = sorted(kind for kind in kinds if kind.endswith("/gpu"))
    if NVIDIA in gpus:
        return NVIDIA
    if len(gpus) == 1:
        return gpus[0]
    if gpus:
        raise ContainerError(f"gpus: got {', '.join(gpus)}, want one kind", hint=f"--gpus {gpus[0]}={ALL}")
    raise ContainerError(
        f"gpus: got no CDI spec of a GPU in {', '.join(directories)}{_because(known)}",
        hint=_HINT,
    )


def _because(known: Catalogue) -> str:
    """Why a device may be missing."""
    broken = list(known.broken.values())
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f" ({broken[0]}{more})" if broken else ""


def _devices(kind: str, known: Iterable[str]) -> list[str]:
    """Numbers in their order, then the rest."""
    names = [name.partition("=")[2] for name in known if name.partition("=")[0] == kind]
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def edits_of(names: Sequence[Name], known: Catalogue, directories: Sequence[str]) -> Edits:
    """In the order of the names; what a spec says for all its devices comes once, before the first of them."""
    parts: list[Edits] = []
    met: set[str] = set()
    for name in dict.fromkeys(names):
        spec = known.devices.get(str(name))
        if spec is None:
            raise _unknown(name, known, directories)
        if spec.path not in met:
            met.add(spec.path)
            parts.append(spec.edits)
        parts.append(spec.devices[name.device])
    merged = Edits(**{field: sum((getattr(part, field) for part in parts), ()) for field in Edits._fields})
    if merged.network:
        raise ContainerError(f"device: got network interface {merged.network[0]} (netDevices), want devices without")
    return merged


def _unknown(name: Name, known: Catalogue, directories: Sequence[str]) -> ContainerError:
    files = known.contested.get(str(name))
    if files is not None:
        return ContainerError(f"device {name}: described by {files[0]} and by {files[1]}, want one file")
    there = _devices(name.kind, known.devices)
    if there:
        listed = ", ".join(there[:_SHOWN]) + (", …" if len(there) > _SHOWN else "")
        return ContainerError(f"device {name}: not found{_because(known)}", hint=f"{name.kind} has {listed}")
    return ContainerError(
        f"device {name}: got no CDI spec of {name.kind} in {', '.join(directories)}{_because(known)}",
        hint=_HINT if name.kind.startswith("nvidia.com/") else None,
    )


# ---------------------------------------------------------------------- what they change


def check_mounts(edits: Edits, look: Look = os.stat) -> dict[str, bool]:
    """Whether each bind mount's target is a directory, by its path in the container. Raises ContainerError."""
    kinds = {}
    for mount in edits.mounts:
        if mount.type:
            kinds[mount.destination] = True
            continue
        try:
            kinds[mount.destination] = stat.S_ISDIR(look(mount.source).st_mode)
        except OSError as error:
            raise ContainerError(
                f"device: mount of {mount.source}: {os.strerror(error.errno or 0).lower()}",
                hint="the CDI spec is older than the driver: make it again",
            ) from error
    return kinds


def applied(document: Document, edits: Edits, places: Mapping[str, str], look: Look = os.lstat) -> Document:
    """The runtime's document with the edits in it. places: real path in the image's root of each mount's target.

    look: the host's device nodes. Raises ContainerError.
    """
    process, linux = dict(document["process"]), dict(document["linux"])
    process["env"] = _environment(process["env"], edits.environment)
    user = process["user"] = dict(process["user"])
    user["additionalGids"] = list(dict.fromkeys((*user["additionalGids"], *edits.groups)))
    nodes = {node["path"]: node for node in (_node(node, user, look) for node in edits.nodes)}
    if nodes:
        linux["devices"] = [{key: value for key, value in node.items() if key != "access"} for node in nodes.values()]
        linux["resources"] = {"devices": [_allowed(node) for node in nodes.values() if node["type"] != "p"]}
    made = {**document, "process": process, "linux": linux, "mounts": _mounts(document["mounts"], edits.mounts, places)}
    if edits.hooks:
        made["ociVersion"] = "1.0.2"  # the first with hooks by stage
        made["hooks"] = _hooks(edits.hooks)
    return made


def _environment(given: Sequence[str], more: Sequence[tuple[str, str]]) -> list[str]:
    """Later wins, in the place of the first."""
    found = dict(item.split("=", 1) for item in given)
    found.update(more)
    return [f"{name}={value}" for name, value in found.items()]


def _node(node: DeviceNode, user: Mapping[str, Any], look: Look) -> Document:
    """A device of the document, and its access for cgroups."""
    path = os.path.normpath(node.path)
    if not path.startswith("/dev/"):
        # The root of a container is mounted so that no device in it works.
        raise ContainerError(f"device node: got {node.path}, want a path below /dev")
    node = _complete(node, look)
    made: Document = {"path": path, "type": node.type, "access": node.permissions}
    if node.type != "p":
        made |= {"major": node.major, "minor": node.minor}
    if node.mode is not None:
        made["fileMode"] = stat.S_IMODE(node.mode)
    made["uid"] = user["uid"] if node.uid is None else node.uid
    made["gid"] = user["gid"] if node.gid is None else node.gid
    return made


def _complete(node: DeviceNode, look: Look) -> DeviceNode:
    """What the spec leaves out comes from the host's node, which need not be there if nothing is left out."""
    whole = bool(node.type) and (node.major != 0 or node.type == "p")
    try:
        found = look(node.host)
    except OSError as error:
        if whole:
            return node
        raise ContainerError(f"device node {node.host}: {os.strerror(error.errno or 0).lower()}") from error
    if node.mode is None:
        node = replace(node, mode=stat.S_IMODE(found.st_mode))
    if whole:
        return node
    kind = _NODE_TYPES.get(stat.S_IFMT(found.st_mode))
    if kind is None or (node.type and node.type.replace("u", "c") != kind):
        raise ContainerError(f"device node {node.host}: got {kind or 'no device'}, want {node.type or 'a device'}")
    return replace(node, type=kind, major=os.major(found.st_rdev), minor=os.minor(found.st_rdev))


def _allowed(node: Document) -> Document:
    """The rule for runtimes that limit devices."""
    kind = "c" if node["type"] == "u" else node["type"]
    return {"allow": True, "type": kind, "major": node["major"], "minor": node["minor"], "access": node["access"]}


def _mounts(given: Sequence[Document], mounts: Sequence[Mount], places: Mapping[str, str]) -> list[Document]:
    """A mount takes the place of one with the same target; outer directories come first, else the order stays."""
    made = {mount["destination"]: mount for mount in given}
    for mount in mounts:
        target = places[mount.destination]
        made.pop(target, None)
        made[target] = _mount(mount, target)
    if not mounts:
        return list(given)
    return sorted(made.values(), key=lambda mount: os.path.normpath(mount["destination"]).count("/"))


def _mount(mount: Mount, target: str) -> Document:
    options = list(mount.options)
    if not mount.type:
        if not _BINDS & set(options):
            options.append("rbind")
        if not _PROPAGATIONS & set(options):
            options.append("rprivate")
    return {
        "destination": target,
        "type": mount.type or "bind",
        "source": mount.source if mount.type else os.path.realpath(mount.source),
        "options": options,
    }


def _hooks(hooks: Sequence[Hook]) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for hook in hooks:
        found.setdefault(hook.stage, []).append(_hook(hook))
    return found


def _hook(hook: Hook) -> Document:
    """startContainer runs inside, on the image's own programs. All others are the host's."""
    variables = dict(item.split("=", 1) for item in hook.environment)
    variables.setdefault("PATH", HOOK_PATH)
    path, words = hook.path, list(hook.arguments) or [hook.path]
    if hook.stage != "startContainer":
        _check_hook(hook)
        # runc has the container's root as the directory of createContainer hooks, and OCI has no word for another.
        path, words = _SHELL, ["bash", "-p", "-c", _FROM_THE_ROOT, words[0], path, *words[1:]]
    made: Document = {"path": path, "args": words, "env": [f"{name}={value}" for name, value in variables.items()]}
    if hook.timeout is not None:
        made["timeout"] = hook.timeout
    return made


def _check_hook(hook: Hook) -> None:
    for program in (hook.path, _SHELL):
        if not os.access(program, os.X_OK) or os.path.isdir(program):
            raise ContainerError(
                f"device: hook {program}: got no executable file", hint="is the toolkit of the driver installed?"
            )
