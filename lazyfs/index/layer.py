"""Layer indexes: built from paths, read as trees.

    builder = LayerBuilder()
    builder.add(b"etc/motd", Entry(Kind.FILE, mode=0o644, mtime_sec=1))
    index = builder.finish()
    decode_layer(index).lookup(b"etc/motd")

The bytes depend on what was added last under each path, not on how the rest was added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import cext
from cext.errors import CorruptError, LimitError
from lazyfs.index.model import DEPTH_MAX, INODES_MAX, PATH_MAX, Entry, Flags, Kind, check_entry, check_name, check_path
from lazyfs.index.record import (
    Records,
    encode_entry,
    encode_layer,
    encode_record,
    record_digest,
)

__all__ = [
    "LayerBuilder",
    "Tree",
    "decode_layer",
    "encode_entry",
    "encode_layer",
    "encode_record",
    "group_number",
    "open_tree",
    "resolve",
]

HOPS_MAX = 40  # symlinks on the way to a name, as Linux has it

_GROUP_CONTEXT = "onesec 2026 link group v1"
_IMPLICIT = Entry(Kind.DIRECTORY, flags=Flags.IMPLICIT)
_WHITEOUT = Entry(Kind.WHITEOUT)
_REPLACING = Entry(Kind.DIRECTORY, mode=0o755, flags=Flags.OPAQUE)
"""A directory that nobody described, in place of something else: what is below it can't show through."""


def group_number(path: bytes, entry: Entry) -> int:
    """The link group of entries that are equal to this one, where path is the first of their paths."""
    text = path + b"\0" + encode_entry(entry, name=b"", link_group=0)
    return int.from_bytes(cext.blake3(text, context=_GROUP_CONTEXT)[:8], "little") or 1


class _Node:
    """children: of a directory, else None. group: names with the same number, not 0, are meant to be one inode."""

    __slots__ = ("children", "entry", "group")

    def __init__(self, entry: Entry, group: int = 0) -> None:
        self.entry = entry
        self.group = group
        self.children: dict[bytes, _Node] | None = {} if entry.kind is Kind.DIRECTORY else None


def _child(node: _Node, name: bytes) -> _Node | None:
    return None if node.children is None else node.children.get(name)


def _symlink(node: _Node) -> bytes | None:
    return node.entry.target if node.entry.kind is Kind.SYMLINK else None


_T = TypeVar("_T")


def resolve(
    parts: list[bytes], root: _T, child: Callable[[_T, bytes], _T | None], symlink: Callable[[_T], bytes | None]
) -> list[bytes]:
    """A path with its symlinks followed as chroot would, every `..` kept inside. What is not there is taken as it is
    written. symlink: the target of one, else None. Raises CorruptError after too many.
    """
    waiting = parts[::-1]
    done: list[bytes] = []
    nodes: list[_T | None] = [root]
    hops = 0
    while waiting:
        part = waiting.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            del done[-1:]
            del nodes[max(1, len(nodes) - 1) :]
            continue
        here = nodes[-1]
        node = None if here is None else child(here, part)
        target = None if node is None else symlink(node)
        if target is None:
            done.append(part)
            nodes.append(node)
            continue
        hops += 1
        if hops > HOPS_MAX:
            raise CorruptError(f"{b'/'.join(parts)[:100]!r}: got more than {HOPS_MAX} symlinks on the way")
        if target.startswith(b"/"):
            done.clear()
            del nodes[1:]
        waiting.extend(reversed(target.split(b"/")))
    return check_path(b"/".join(done))


class LayerBuilder:
    """One layer while its entries come in.

    Paths are components from the root, without a leading slash. Parents that were not added are implicit; those that
    are symlinks of this layer are followed, inside the root. Link groups of added entries are any numbers: entries with
    the same number that are equal at the end are one inode.
    """

    def __init__(self) -> None:
        self._root = _Node(_IMPLICIT)
        self._groups = 0  # given by link(), downwards, where no caller's numbers are
        self._has_groups = False
        self._has_symlinks = False
        # The parent of the path before, as it was written, and its children: entries come directory by directory.
        # Forgotten when a name gets a new meaning, because that name may lie on the way to it.
        self._parent: tuple[bytes, dict[bytes, _Node]] | None = None

    def add(self, path: bytes, entry: Entry) -> None:
        """Raises CorruptError, LimitError for a path or an entry that no layer can have."""
        if entry.kind is Kind.WHITEOUT:
            self.whiteout(path)
            return
        check_entry(entry)
        if entry.kind is Kind.DIRECTORY:
            self._add_directory(path, entry)
        else:
            self._put(path, _Node(entry, entry.link_group))
            self._has_groups = self._has_groups or entry.link_group != 0
            self._has_symlinks = self._has_symlinks or entry.kind is Kind.SYMLINK

    def whiteout(self, path: bytes) -> None:
        """Hides what lower layers have at path; this layer's own names stay, in whatever order they come."""
        parent, name = self._place(path)
        node = parent.get(name)
        if node is None:
            parent[name] = _Node(_WHITEOUT)
        elif node.children is not None:
            implicit = node.entry.flags & Flags.IMPLICIT
            node.entry = _REPLACING if implicit else replace(node.entry, flags=Flags.OPAQUE)

    def opaque(self, path: bytes) -> None:
        """Hides what lower layers have in the directory at path."""
        self._add_directory(path, replace(_IMPLICIT, flags=Flags.IMPLICIT | Flags.OPAQUE), only_mark=True)

    def link(self, path: bytes, target: bytes) -> None:
        """Makes path one more name of what is at target: in this layer, else in a lower one."""
        parts = check_path(target)
        if not parts:
            raise CorruptError(f"link {path[:100]!r}: got the root as target")
        parts = [*self._resolve(parts[:-1]), parts[-1]]
        node = self._find(parts)
        if node is None:
            target = b"/".join(parts)
            self.add(path, Entry(Kind.LINK, size=len(target), target=target))
        elif node.children is not None:
            raise CorruptError(f"link {path[:100]!r}: got the directory {target[:100]!r} as target")
        elif node.entry.kind is Kind.WHITEOUT:
            raise CorruptError(f"link {path[:100]!r}: got {target[:100]!r} as target, which this layer removes")
        else:
            parent, name = self._place(path)
            if parent.get(name) is node:
                return
            self._parent = None
            if node.entry.kind is not Kind.LINK and not node.group:
                self._groups -= 1
                node.group = self._groups
                self._has_groups = True
            parent[name] = _Node(node.entry, node.group)

    def finish(self) -> bytes:
        """The decoded layer index."""
        return _encode(self._root, self._numbers() if self._has_groups else {})

    # ------------------------------------------------------------------ places

    def _add_directory(self, path: bytes, entry: Entry, *, only_mark: bool = False) -> None:
        if entry.flags & Flags.IMPLICIT:
            entry = replace(_IMPLICIT, flags=entry.flags)
        if not path:
            self._root.entry = _over(self._root.entry, entry)
            return
        parent, name = self._place(path)
        node = parent.get(name)
        if node is None:
            parent[name] = _Node(entry)
        elif node.children is not None:
            node.entry = _over(node.entry, entry)
        elif not only_mark:  # what stood here hid the lower directory
            self._parent = None
            implicit = entry.flags & Flags.IMPLICIT
            parent[name] = _Node(_REPLACING if implicit else replace(entry, flags=Flags.OPAQUE))

    def _put(self, path: bytes, node: _Node) -> None:
        parent, name = self._place(path)
        if name in parent:
            self._parent = None
        parent[name] = node

    def _place(self, path: bytes) -> tuple[dict[bytes, _Node], bytes]:
        """The children of a path's parent, which is made as needed, and its last component."""
        before, _, last = path.rpartition(b"/")
        if self._parent is not None and self._parent[0] == before and len(path) <= PATH_MAX:
            check_name(last)
            return self._parent[1], last
        parts = check_path(path)
        if not parts:
            raise CorruptError("root: got something that is not a directory")
        name = parts.pop()
        if self._has_symlinks:
            parts = self._resolve(parts)
        if len(parts) > DEPTH_MAX:
            raise LimitError(f"{path[:100]!r}: got {len(parts)} directories, want at most {DEPTH_MAX}")
        children = self._root.children
        assert children is not None
        for part in parts:
            node = children.get(part)
            if node is None:
                node = children[part] = _Node(_IMPLICIT)
            elif node.children is None:
                node = children[part] = _Node(_REPLACING)
            assert node.children is not None
            children = node.children
        self._parent = before, children
        return children, name

    def _find(self, parts: list[bytes]) -> _Node | None:
        node: _Node | None = self._root
        for part in parts:
            if node is None or node.children is None:
                return None
            node = node.children.get(part)
        return node

    def _resolve(self, parts: list[bytes]) -> list[bytes]:
        return resolve(parts, self._root, _child, _symlink)

    def _numbers(self) -> dict[_Node, int]:
        """The format's link group of each name that shares its inode with another."""
        members: dict[tuple[int, bytes], list[tuple[bytes, _Node]]] = {}
        stack = [(b"", self._root)]
        while stack:
            path, node = stack.pop()
            if node.children is not None:
                stack.extend((_join(path, name), child) for name, child in node.children.items())
            elif node.group:
                same = encode_entry(node.entry, name=b"", link_group=0)
                members.setdefault((node.group, same), []).append((path, node))
        return {
            node: number
            for names in members.values()
            if len(names) > 1
            for number in (group_number(min(path for path, _ in names), names[0][1].entry),)
            for _, node in names
        }


def _over(old: Entry, new: Entry) -> Entry:
    """A directory that is described again: what it hides stays hidden, and a description stays one."""
    flags = (old.flags | new.flags) & Flags.OPAQUE
    if not new.flags & Flags.IMPLICIT:
        return new if new.flags == flags else replace(new, flags=flags)
    return replace(old, flags=flags | (old.flags & Flags.IMPLICIT))


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _encode(root: _Node, numbers: dict[_Node, int]) -> bytes:
    records: dict[bytes, bytes] = {}
    # open directories: name, node, names still to come (last first), what is encoded of it
    stack: list[tuple[bytes, _Node, list[bytes], list[bytes]]] = [(b"", root, _waiting(root), [])]
    while True:
        name, node, waiting, done = stack[-1]
        if waiting:
            child_name = waiting.pop()
            assert node.children is not None
            child = node.children[child_name]
            if child.children is None:
                done.append(encode_entry(child.entry, name=child_name, link_group=numbers.get(child, 0)))
            else:
                stack.append((child_name, child, _waiting(child), []))
            continue
        stack.pop()
        record = encode_record(done)
        digest = record_digest(record)
        records.setdefault(digest, record)
        encoded = encode_entry(node.entry, digest, name=name)
        if not stack:
            return encode_layer(encoded, list(records.values()))
        stack[-1][3].append(encoded)


def _waiting(node: _Node) -> list[bytes]:
    assert node.children is not None
    return sorted(node.children, reverse=True)


# ---------------------------------------------------------------------- reading


class Tree:
    """A layer index or a merged tree, read where somebody looks. Looking raises CorruptError for a broken entry."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._directories: dict[bytes, dict[bytes, tuple[Entry, bytes]]] = {}
        self.root = records.root

    def lookup(self, path: bytes) -> Entry | None:
        """The entry at a path from the root, with its parts; symlinks are not followed."""
        found = self._find(path)
        return None if found is None else found[0]

    def names(self, path: bytes) -> list[bytes]:
        """What stands in the directory at path; nothing if there is none."""
        found = self._find(path)
        return [] if found is None or found[0].kind is not Kind.DIRECTORY else list(self._directory(found[1]))

    def walk(self) -> Iterator[tuple[bytes, Entry]]:
        """Every path with its entry, parents before children, in name order; the root first."""
        yield b"", self.root
        stack = [(b"", iter(self._directory(self._records.root_digest).items()))]
        while stack:
            path, rest = stack[-1]
            step = next(rest, None)
            if step is None:
                stack.pop()
                continue
            name, (entry, digest) = step
            below = _join(path, name)
            yield below, entry
            if entry.kind is Kind.DIRECTORY:
                stack.append((below, iter(self._directory(digest).items())))

    def _find(self, path: bytes) -> tuple[Entry, bytes] | None:
        found: tuple[Entry, bytes] | None = (self.root, self._records.root_digest)
        for part in path.split(b"/") if path else ():
            if found is None or found[0].kind is not Kind.DIRECTORY:
                return None
            found = self._directory(found[1]).get(part)
        return found

    def _directory(self, digest: bytes) -> dict[bytes, tuple[Entry, bytes]]:
        found = self._directories.get(digest)
        if found is None:
            found = {entry.name: (entry, below) for entry, below in self._records.entries(digest)}
            self._directories[digest] = found
        return found


def open_tree(index: bytes) -> Tree:
    """A tree whose records are checked against each other now, and their entries when they are looked at."""
    return Tree(Records(index))


def decode_layer(index: bytes, *, merged: bool = False) -> Tree:
    """A tree that is checked whole. merged: what only layers have is refused. Raises CorruptError, LimitError."""
    records = Records(index)
    entries = [records.root, *(entry for digest in records.places for entry, _ in records.entries(digest))]
    if merged:
        for entry in entries:
            if entry.flags or entry.kind in (Kind.WHITEOUT, Kind.LINK):
                raise CorruptError(f"merged tree: entry {entry.name[:100]!r}: got what only layers have")
    tree = Tree(records)
    if not merged and records.summaries[records.root_digest].grouped:
        _check_groups(tree)
    return tree


def _check_groups(tree: Tree) -> None:
    """All names of a group are equal, and its number is the format's."""
    groups: dict[int, tuple[bytes, Entry]] = {}
    for count, (path, entry) in enumerate(tree.walk()):
        if count > INODES_MAX:
            raise LimitError(f"layer index: got more than {INODES_MAX} names")
        if entry.link_group:
            first, same = groups.setdefault(entry.link_group, (path, entry))
            if replace(entry, name=same.name) != same:
                raise CorruptError(f"layer index: {path[:100]!r}: got another entry than {first[:100]!r} of its group")
            groups[entry.link_group] = min(first, path), same
    for number, (first, entry) in groups.items():
        if number != (want := group_number(first, entry)):
            raise CorruptError(f"layer index: {first[:100]!r}: got link group {number}, want {want}")
