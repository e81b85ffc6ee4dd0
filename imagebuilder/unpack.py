"""A layer of another tool: members of its archive become entries.

What comes out is what unpacking it into an empty directory would leave, and what it says about lower layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from imagebuilder.errors import BadArchiveError
from imagebuilder.layer import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    IMPLICIT,
    LINK,
    OPAQUE,
    SYMLINK,
    WHITEOUT,
    LayerWriter,
    entry,
)
from imagebuilder.progress import Progress
from imagebuilder.streams import Plain
from imagebuilder.tar import Member, TarReader, Type

_SMALL = 64 << 10
_HOPS_MAX = 255  # symlinks on the way to one member; Linux gives up after 40
_WHITEOUT = b".wh."
_OPAQUE_MARK = b".wh..wh..opq"


def read_layer(layer: LayerWriter, plain: Plain, progress: Progress) -> None:
    """The members of an OCI layer, whiteouts and all."""
    reader = TarReader(plain.read)
    unpack = _Unpack(layer, progress)
    for number, member in enumerate(reader, 1):
        plain.count(number)
        unpack.member(member, reader)
        progress.advance(files=1)
    unpack.finish()


class _Unpack:
    """What unpacking the layer into an empty directory would leave, plus what it says about lower layers.

    Whiteouts speak of lower layers only, wherever in the archive they stand, so they are applied last.
    """

    def __init__(self, layer: LayerWriter, progress: Progress) -> None:
        self._layer = layer
        self._progress = progress
        self._symlinks: dict[bytes, bytes] = {}
        self._opaque: set[bytes] = set()
        self._whiteouts: set[bytes] = set()

    def member(self, member: Member, reader: TarReader) -> None:
        head, _, name = member.path.rpartition(b"/")
        if any(part.startswith(_WHITEOUT) for part in head.split(b"/")):
            raise BadArchiveError(f"tar: {member.path[:100]!r}: below a whiteout")
        parent = self._resolve(head)
        if name == _OPAQUE_MARK:
            self._opaque.add(parent)
        elif name.startswith(_WHITEOUT + _WHITEOUT):
            return  # the bookkeeping of aufs
        elif name.startswith(_WHITEOUT):
            hidden = name[len(_WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise BadArchiveError(f"tar: whiteout {name!r} hides nothing that can exist")
            self._whiteouts.add(_join(parent, hidden))
        else:
            self._add(member, _join(parent, name), reader)

    def _resolve(self, path: bytes) -> bytes:
        """A directory's path with the symlinks of this layer followed; the merge follows lower ones."""
        if not self._symlinks:
            return path
        waiting = [part for part in reversed(path.split(b"/")) if part]
        done: list[bytes] = []
        hops = 0
        while waiting:
            part = waiting.pop()
            if part == b"..":
                del done[-1:]
                continue
            done.append(part)
            target = self._symlinks.get(b"/".join(done))
            if target is None:
                continue
            hops += 1
            if hops > _HOPS_MAX:
                raise BadArchiveError(f"tar: {path[:100]!r}: more than {_HOPS_MAX} symlinks on the way")
            done.pop()
            if target.startswith(b"/"):
                done.clear()
            waiting.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
        return b"/".join(done)

    def _add(self, member: Member, path: bytes, reader: TarReader) -> None:
        if not path and member.type is not Type.DIRECTORY:
            raise BadArchiveError("tar: the root is not a directory")
        if member.type is not Type.SYMLINK:
            self._symlinks.pop(path, None)
        if member.type is Type.LINK:
            self._link(path, member)
            return
        made = entry(
            _KINDS[member.type],
            mode=member.mode,
            uid=member.uid,
            gid=member.gid,
            mtime=(member.mtime_sec, member.mtime_nsec),
            xattrs=member.xattrs,
        )
        if member.type is Type.FILE:
            if member.size <= _SMALL:
                self._layer.add(path, made, _read_steps(reader.contents(), _SMALL))
            else:
                self._layer.add(path, made, reader.contents())
            return
        if member.type is Type.SYMLINK:
            self._symlinks[path] = member.target
            made = replace(made, mode=0o777, target=member.target, size=len(member.target))
        elif member.type in (Type.CHARACTER, Type.BLOCK):
            if member.type is Type.CHARACTER and member.device == (0, 0):
                self._progress.note(
                    f"{os.fsdecode(path)}: character device 0:0, left out: overlayfs reads it as a whiteout"
                )
                return
            made = replace(made, device=member.device)
        self._layer.add(path, made)

    def _link(self, path: bytes, member: Member) -> None:
        head, _, name = member.target.rpartition(b"/")
        target = _join(self._resolve(head), name)
        if target in self._symlinks:
            self._symlinks[path] = self._symlinks[target]
        if self._layer.link(path, target):
            return
        found = self._layer.get(target)
        if not target or target == path or (found is not None and found.kind is DIRECTORY):
            raise BadArchiveError(f"tar: link {path[:100]!r}: its target {target[:100]!r} is itself or a directory")
        self._layer.add(path, entry(LINK, size=len(target), target=target))

    def finish(self) -> None:
        parents: set[bytes] = set()
        for path in self._layer.paths():
            while path and path not in parents:
                path = path.rpartition(b"/")[0]
                parents.add(path)
        for path in sorted(self._whiteouts):
            found = self._layer.get(path)
            if found is not None and found.kind is not DIRECTORY:
                continue  # what the layer has there hides the lower one anyway
            if found is not None or path in parents:
                self._hide(path, 0)
            else:
                self._layer.add(path, entry(WHITEOUT))
        for path in sorted(self._opaque):
            found = self._layer.get(path)
            if found is None or found.kind in (DIRECTORY, WHITEOUT):
                self._hide(path, IMPLICIT)

    def _hide(self, path: bytes, otherwise: int) -> None:
        """Makes a directory opaque. otherwise: flags of one that the layer has only in passing."""
        found = self._layer.get(path)
        if found is not None and found.kind is DIRECTORY:
            self._layer.set_flags(path, OPAQUE)
        elif found is None:
            mode = 0 if otherwise else 0o755
            self._layer.add(path, entry(DIRECTORY, mode=mode, flags=OPAQUE | otherwise))


_KINDS = {
    Type.FILE: FILE,
    Type.SYMLINK: SYMLINK,
    Type.CHARACTER: CHARACTER,
    Type.BLOCK: BLOCK,
    Type.DIRECTORY: DIRECTORY,
    Type.FIFO: FIFO,
}


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _read_steps(steps: Iterator[bytes | int], limit: int) -> bytes:
    """A small content in one piece."""
    data = b"".join(bytes(step) if isinstance(step, int) else step for step in steps)
    if len(data) > limit:
        raise ValueError(f"got {len(data)} bytes, want at most {limit}")
    return data
