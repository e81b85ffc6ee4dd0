"""Layers for tests: small entries, hypothesis strategies, and a slow model of what laying layers over each other means.

The model knows nothing of records: a tree is a dictionary of paths.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from cext._reference import blake3
from cext.errors import CorruptError
from lazyfs.index.layer import LayerBuilder, decode_layer, group_number
from lazyfs.index.model import PART, Entry, Flags, Kind

DEFAULT = Entry(Kind.DIRECTORY, mode=0o755)

Paths = dict[bytes, Entry]


def file(number: int, *, group: int = 0, mode: int = 0o644) -> Entry:
    """A file with one chunk that is told from others by a number."""
    parts = PART.pack(number + 1, bytes([number % 255 + 1]) * 32)
    return Entry(Kind.FILE, mode=mode, mtime_sec=number, size=number + 1, algorithm=1, parts=parts, link_group=group)


def symlink(target: bytes) -> Entry:
    return Entry(Kind.SYMLINK, mode=0o777, size=len(target), target=target)


def directory(mode: int = 0o755, *, flags: int = 0) -> Entry:
    return Entry(Kind.DIRECTORY, mode=mode, mtime_sec=mode, flags=flags)


def layer(*entries: tuple[bytes, Entry]) -> bytes:
    builder = LayerBuilder()
    for path, entry in entries:
        builder.add(path, entry)
    return builder.finish()


def paths(index: bytes, *, merged: bool = True) -> Paths:
    """Every path with its entry, checked whole."""
    return dict(decode_layer(index, merged=merged).walk())


# ---------------------------------------------------------------------- random layers

_names = st.sampled_from([b"a", b"b", b"c"])
_paths = st.lists(_names, min_size=1, max_size=3).map(b"/".join)
_targets = st.sampled_from([b"a", b"b", b"/c", b"../a", b"a/b", b"/", b"../../b/c", b"c/../a", b"/a/b/c", b"./b"])
_entries = st.one_of(
    st.integers(0, 5).map(file),
    st.builds(file, st.integers(0, 1), group=st.integers(1, 2)),
    _targets.map(symlink),
    st.sampled_from([0o700, 0o711, 0o755]).map(directory),
    st.just(Entry(Kind.FIFO, mode=0o600)),
    st.just(Entry(Kind.CHARACTER, device=(1, 3))),
)
_steps = st.one_of(
    st.tuples(st.just("add"), _paths, _entries),
    st.tuples(st.just("add"), _paths, _entries),
    st.tuples(st.just("whiteout"), _paths, st.none()),
    st.tuples(st.just("opaque"), _paths, st.none()),
    st.tuples(st.just("link"), _paths, _paths),
    st.tuples(st.just("root"), st.just(b""), st.sampled_from([0, 1]).map(lambda flags: directory(0o711, flags=flags))),
)
steps = st.lists(_steps, max_size=8)

_long = st.lists(_names, min_size=2, max_size=3).map(b"/".join)
passing = st.lists(
    st.one_of(
        st.tuples(st.just("add"), _long, st.integers(0, 5).map(file)),
        st.tuples(st.just("add"), _long, st.just(directory(0o700))),
        st.tuples(st.sampled_from(["whiteout", "opaque"]), _long, st.none()),
        st.tuples(st.just("link"), _long, _long),
    ),
    max_size=6,
)
"""Steps that make no symlinks and mostly have implicit parents: for laying over a layer that has symlinks there."""


def built(layer_steps: Sequence[tuple[str, bytes, object]]) -> bytes:
    """A layer from steps; those that no layer can have are left out."""
    builder = LayerBuilder()
    for what, path, value in layer_steps:
        try:
            if isinstance(value, Entry):
                builder.add(path, value)
            elif isinstance(value, bytes):
                builder.link(path, value)
            elif what == "whiteout":
                builder.whiteout(path)
            else:
                builder.opaque(path)
        except CorruptError:
            continue
    return builder.finish()


# ---------------------------------------------------------------------- the model


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _below(tree: Paths, path: bytes) -> list[bytes]:
    return [one for one in tree if one != path and (not path or one.startswith(path + b"/"))]


def follow(tree: Paths, path: bytes, hops: int = 40) -> bytes:
    """Where a path leads, its last component followed too."""
    here = b""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    for at, part in enumerate(parts):
        if part == b"..":
            here = _parent(here)
            continue
        entry = tree.get(_join(here, part))
        if entry is None or entry.kind is not Kind.SYMLINK:
            here = _join(here, part)
            continue
        if not hops:
            raise CorruptError("loop")
        start = b"" if entry.target.startswith(b"/") else here
        return follow(tree, b"/".join([start, entry.target, *parts[at + 1 :]]), hops - 1)
    return here


class Model:
    """tree: what is there. owner: the number of the layer that brought or described each path. origin: the layer, and
    which of the inodes that its links made groups of; names with one link group and one origin are one inode.
    """

    def __init__(self) -> None:
        self.tree: Paths = {b"": DEFAULT}
        self.owner: dict[bytes, int] = {b"": 0}
        self.origin: dict[bytes, tuple[int, int]] = {}

    def lay(self, index: bytes, number: int) -> None:
        self.layer = paths(index, merged=False)
        self.number = number
        self.links: dict[bytes, bytes] = {}
        self.later: list[tuple[bytes, bytes]] = []
        root = self.layer[b""]
        if root.flags & Flags.OPAQUE:
            self.hide_below(b"")
        if not root.flags & Flags.IMPLICIT:
            self.tree[b""] = replace(root, flags=0)
        self.children(b"", b"")
        while self.later:
            later, self.later = sorted(self.later), []
            for path, source in later:
                self.redirect(path, source)
        self.finish_links()

    def children(self, path: bytes, source: bytes) -> None:
        for one in sorted(self.layer):
            if one and _parent(one) == source:
                self.entry(_join(path, one.rpartition(b"/")[2]), one)

    def entry(self, path: bytes, source: bytes) -> None:
        entry = self.layer[source]
        old = self.tree.get(path)
        if entry.kind is Kind.WHITEOUT:
            self.hide(path)
        elif entry.kind is Kind.DIRECTORY:
            implicit = entry.flags & Flags.IMPLICIT
            if implicit and old is not None and old.kind is Kind.SYMLINK:
                self.later.append((path, source))
                return
            if old is None or old.kind is not Kind.DIRECTORY:
                self.put(path, replace(DEFAULT, name=entry.name))
            if not implicit:
                self.tree[path] = replace(entry, flags=0)
                self.owner[path] = self.number
            if entry.flags & Flags.OPAQUE:
                self.hide_below(path)
            self.children(path, source)
        else:
            self.put(path, entry)
            if entry.kind is Kind.LINK:
                self.links[path] = entry.target

    def put(self, path: bytes, entry: Entry) -> None:
        for one in _below(self.tree, path):
            del self.tree[one], self.owner[one]
        self.links = {
            one: target for one, target in self.links.items() if one != path and not one.startswith(path + b"/")
        }
        self.tree[path] = entry
        self.owner[path] = self.number
        self.origin[path] = self.number, 0

    def hide(self, path: bytes) -> None:
        if path not in self.tree:
            return
        for one in sorted([path, *_below(self.tree, path)], reverse=True):
            if self.owner[one] == self.number:
                continue
            if _below(self.tree, one):
                self.tree[one] = replace(DEFAULT, name=one.rpartition(b"/")[2])
                self.owner[one] = self.number
            else:
                del self.tree[one], self.owner[one]

    def hide_below(self, path: bytes) -> None:
        for one in [one for one in self.tree if one and _parent(one) == path]:
            self.hide(one)

    def redirect(self, path: bytes, source: bytes) -> None:
        target = follow(self.tree, path)
        made = b""
        for part in target.split(b"/") if target else ():
            made = _join(made, part)
            if made not in self.tree or self.tree[made].kind is not Kind.DIRECTORY:
                self.put(made, replace(DEFAULT, name=part))
        if self.layer[source].flags & Flags.OPAQUE:
            self.hide_below(target)
        self.children(target, source)

    def finish_links(self) -> None:
        names: dict[bytes, list[bytes]] = {}
        for path in sorted(self.links):
            place, seen = path, set()
            while place in self.links:
                if place in seen:
                    raise CorruptError("loop")
                seen.add(place)
                target = self.links[place]
                place = _join(follow(self.tree, _parent(target)), target.rpartition(b"/")[2])
            if place not in self.tree or self.tree[place].kind is Kind.DIRECTORY:
                raise CorruptError("nothing to link to")
            names.setdefault(place, []).append(path)
        made = 0
        for place, links in names.items():
            entry = self.tree[place]
            group = entry.link_group
            if not group:
                group = group_number(min(place, *links), entry)
                made += 1
                self.origin[place] = self.number, made
            for one in (place, *links):
                self.origin[one] = self.origin[place]
                self.tree[one] = replace(entry, name=one.rpartition(b"/")[2], link_group=group)

    def finish(self) -> Paths:
        """The tree, its inodes told apart."""
        origins: dict[int, set[tuple[int, int]]] = {}
        for path, entry in self.tree.items():
            if entry.link_group:
                origins.setdefault(entry.link_group, set()).add(self.origin[path])
        for path, entry in self.tree.items():
            if entry.link_group and (row := sorted(origins[entry.link_group]).index(self.origin[path])):
                text = struct.pack("<QI", entry.link_group, row)
                digest = blake3(text, context="onesec 2026 link group v1")
                self.tree[path] = replace(entry, link_group=int.from_bytes(digest[:8], "little"))
        return self.tree


def model_merge(layers: Sequence[bytes]) -> Paths:
    model = Model()
    for number, index in enumerate(layers, 1):
        model.lay(index, number)
    return model.finish()
