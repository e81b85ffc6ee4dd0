"""Files of the host, read for a plan and for a copy. The edge of what is otherwise pure.

A tree is walked once through directory descriptors without following a link, in bytewise order. What is no file,
directory or symlink is refused. Modes become 0644 or 0755, owners root, times a constant: a checkout on another
machine, under another umask, gives the same layer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cext import blake3
from cext.errors import UsageError
from imagebuilder.image import CallSite, CopyLocal, Image, PipInstall
from imagebuilder.pip_settings import PipSettings
from imagebuilder.plan import Inputs, settings_for

TIME = 315532800  # 1980-01-01: older than any tool minds, the same everywhere
_TREE_CONTEXT = "onesec 2026 copied tree v1"
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """path: from the copied root, b"" for the root itself. host: where it is. target: of a symlink."""

    path: bytes
    host: bytes
    mode: int
    size: int
    target: bytes = b""

    @property
    def kind(self) -> str:
        return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}[stat.S_IFMT(self.mode)]

    @property
    def permissions(self) -> int:
        if stat.S_ISLNK(self.mode):
            return 0o777
        return 0o755 if stat.S_ISDIR(self.mode) or self.mode & 0o111 else 0o644


def walk(copy: CopyLocal, where: CallSite) -> Iterator[Found]:
    """Everything that the copy takes, parents first, each directory in bytewise order."""
    try:
        # the one link that is followed is the one the user named
        root = os.stat(copy.source)
    except OSError as error:
        raise UsageError(f"{where}: copy_local: {copy.source}: {os.strerror(error.errno or 0).lower()}") from error
    yield from _walk(os.fsencode(copy.source), b"", root, copy, where)


def _walk(host: bytes, path: bytes, info: os.stat_result, copy: CopyLocal, where: CallSite) -> Iterator[Found]:
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(host)
        yield Found(path, host, info.st_mode, len(target), target)
    elif stat.S_ISREG(info.st_mode):
        yield Found(path, host, info.st_mode, info.st_size)
    elif stat.S_ISDIR(info.st_mode):
        yield Found(path, host, info.st_mode, 0)
        for name in sorted(os.listdir(host)):
            below = path + b"/" + name if path else name
            if not _ignored(below, copy.ignore):
                yield from _walk(host + b"/" + name, below, os.lstat(host + b"/" + name), copy, where)
    else:
        raise UsageError(f"{where}: copy_local: {os.fsdecode(host)}: want a file, directory or symlink")


def _ignored(path: bytes, patterns: tuple[str, ...]) -> bool:
    text = os.fsdecode(path)
    name = text.rpartition("/")[2]
    return any(fnmatchcase(text, pattern.rstrip("/")) or fnmatchcase(name, pattern.rstrip("/")) for pattern in patterns)


def tree_digest(copy: CopyLocal, where: CallSite) -> bytes:
    """Of all that would reach the layer, and of nothing else."""
    parts = []
    for found in walk(copy, where):
        if found.kind == "file":
            size, content = _content_digest(found.host)
        else:
            size, content = len(found.target), found.target
        head = b"%s %o %d %d %d\0" % (found.kind.encode(), found.permissions, len(found.path), size, len(content))
        parts.append(head + found.path + content)
    return blake3(b"".join(parts), context=_TREE_CONTEXT)


def _content_digest(path: bytes) -> tuple[int, bytes]:
    """Size, and the hash of the hashes of each MiB: memory stays flat."""
    steps = []
    size = 0
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        while data := file.read(_STEP):
            size += len(data)
            steps.append(blake3(data))
    return size, blake3(b"".join(steps))


def read_text(path: str, where: CallSite) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: {path}: not UTF-8") from error
    except OSError as error:
        raise UsageError(f"{where}: {path}: {os.strerror(error.errno or 0).lower()}") from error


def read_inputs(image: Image, settings: PipSettings) -> Inputs:
    """What a plan of the image needs to know of this host. Reads and hashes every file that a copy takes."""
    trees: dict[CopyLocal, bytes] = {}
    texts: dict[str, str] = {}
    for operation in image.operations:
        action, where = operation.action, operation.where
        if isinstance(action, CopyLocal):
            trees[action] = tree_digest(action, where)
        elif isinstance(action, PipInstall):
            if action.requirements_file is not None:
                texts[action.requirements_file] = read_text(action.requirements_file, where)
            for path in settings_for(action, settings).constraint:
                if "://" not in path:
                    texts[path] = read_text(path, where)
    machine = os.uname().machine
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return Inputs(trees, texts, {}, settings, architecture)
