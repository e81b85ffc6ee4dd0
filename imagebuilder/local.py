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
from typing import NoReturn

from cext import blake3
from cext.errors import UsageError
from imagebuilder.image import CallSite, CopyLocal, Image, PipInstall
from imagebuilder.pip_settings import PipSettings
from imagebuilder.plan import Inputs, settings_for

TIME = 315532800  # 1980-01-01: older than any tool minds, the same everywhere
_TREE_CONTEXT = "onesec 2026 copied tree v1"
_STEP = 1 << 20
_DEPTH = 250  # directories below each other, as in layers; each costs two descriptors


@dataclass(frozen=True, slots=True)
class Found:
    """path: from the copied root, b"" for the root itself. fd: of a file, borrowed until the walk goes on, else -1.
    target: of a symlink.
    """

    path: bytes
    mode: int
    fd: int = -1
    target: bytes = b""

    @property
    def kind(self) -> str:
        return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}[stat.S_IFMT(self.mode)]

    @property
    def permissions(self) -> int:
        if stat.S_ISLNK(self.mode):
            return 0o777
        return 0o755 if stat.S_ISDIR(self.mode) or self.mode & 0o111 else 0o644

    def pieces(self) -> Iterator[bytes]:
        """A file's content in pieces of one MiB, the last one shorter."""
        offset = 0
        while data := os.pread(self.fd, _STEP, offset):
            while len(data) < _STEP and (more := os.pread(self.fd, _STEP - len(data), offset + len(data))):
                data += more
            offset += len(data)
            yield data


def walk(copy: CopyLocal, where: CallSite) -> Iterator[Found]:
    """Everything that the copy takes, parents first, each directory in bytewise order."""
    try:
        # the one link that is followed is the one the user named
        top = os.open(copy.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{where}: copy_local: {copy.source}: {os.strerror(error.errno or 0).lower()}") from error
    try:
        yield from _Walk(copy, where).anything(top, b"", os.fstat(top))
    finally:
        os.close(top)


class _Walk:
    """A name is looked at by an O_PATH descriptor, and what is read is that descriptor's: swapping it in between, or a
    directory on the way to it, changes nothing.
    """

    def __init__(self, copy: CopyLocal, where: CallSite) -> None:
        self._copy = copy
        self._where = where

    def anything(self, seen: int, path: bytes, found: os.stat_result) -> Iterator[Found]:
        mode = found.st_mode
        if stat.S_ISLNK(mode):
            yield Found(path, mode, target=os.readlink(b"", dir_fd=seen))
        elif stat.S_ISREG(mode):
            fd = os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield Found(path, mode, fd)
            finally:
                os.close(fd)
        elif stat.S_ISDIR(mode):
            yield Found(path, mode)
            fd = os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield from self._directory(fd, path)
            finally:
                os.close(fd)
        else:
            self._refuse(path, "want a file, directory or symlink")

    def _directory(self, fd: int, path: bytes) -> Iterator[Found]:
        if path.count(b"/") >= _DEPTH:
            self._refuse(path[:60], f"directories deeper than {_DEPTH}")
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            below = path + b"/" + name if path else name
            if _ignored(below, self._copy.ignore):
                continue
            try:
                seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except FileNotFoundError:
                self._refuse(below, "gone while it was read")
            try:
                yield from self.anything(seen, below, os.fstat(seen))
            finally:
                os.close(seen)

    def _refuse(self, path: bytes, why: str) -> NoReturn:
        place = os.path.join(self._copy.source, os.fsdecode(path)) if path else self._copy.source
        raise UsageError(f"{self._where}: copy_local: {place}: {why}")


def _ignored(path: bytes, patterns: tuple[str, ...]) -> bool:
    text = os.fsdecode(path)
    name = text.rpartition("/")[2]
    return any(fnmatchcase(text, pattern.rstrip("/")) or fnmatchcase(name, pattern.rstrip("/")) for pattern in patterns)


class TreeDigest:
    """The hash of a copied tree, of what a walk gave, in its order."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, found: Found) -> None:
        """What is no file."""
        self._add(found, len(found.target), found.target)

    def reading(self, found: Found) -> Iterator[bytes]:
        """The content of a file; what goes through here is what counts."""
        steps = []
        size = 0
        for data in found.pieces():
            size += len(data)
            steps.append(blake3(data))
            yield data
        self._add(found, size, blake3(b"".join(steps)))

    def _add(self, found: Found, size: int, content: bytes) -> None:
        head = b"%s %o %d %d %d\0" % (found.kind.encode(), found.permissions, len(found.path), size, len(content))
        self._parts.append(head + found.path + content)

    def digest(self) -> bytes:
        return blake3(b"".join(self._parts), context=_TREE_CONTEXT)


def tree_digest(copy: CopyLocal, where: CallSite) -> bytes:
    """Of all that would reach the layer, and of nothing else."""
    tree = TreeDigest()
    for found in walk(copy, where):
        if found.kind == "file":
            for _ in tree.reading(found):
                pass
        else:
            tree.add(found)
    return tree.digest()


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
