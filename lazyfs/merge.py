"""Layer indexes laid over each other, bottom first, into the tree that an image is made of.

Only directories that a layer shares with the ones below it are opened. Everything else is carried by the digest of its
record, so 233 wheels cost the entries of the directories where they meet.

A layer is laid in three steps, so that the order of its names does not matter:

1. what stands at places that are directories below, or nothing, or are replaced;
2. what it has in directories that are symlinks below: it lands where they lead, after step 1 has settled where that is;
3. its links, to what is there now.

Whiteouts and opaque marks hide what lower layers have, never what the same layer brought.

Names of different layers are one inode only if a link made them so. A link group's number is a hash of its first path
and its entry, so two layers may well have the same one; then `_Renumbering` tells them apart at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import cext
from cext.errors import CorruptError, LimitError
from lazyfs.index.layer import group_number, resolve
from lazyfs.index.model import DEPTH_MAX, INODES_MAX, Entry, Flags, Kind, check_path
from lazyfs.index.record import (
    DIGEST,
    Records,
    Row,
    decode_entry,
    encode_entry,
    encode_layer,
    encode_record,
    post_order,
    record_digest,
    skim_entry,
    skim_record,
)

_HEAD = 56
_DIRECTORY, _SYMLINK, _WHITEOUT, _LINK = (
    int(kind) for kind in (Kind.DIRECTORY, Kind.SYMLINK, Kind.WHITEOUT, Kind.LINK)
)
_IMPLICIT, _OPAQUE = int(Flags.IMPLICIT), int(Flags.OPAQUE)
_ORIGIN_BITS = 32  # an origin is a layer, or one of the inodes that links of a layer made groups of
_GROUP_CONTEXT = "onesec 2026 link group v1"


def merge(layers: Sequence[bytes]) -> bytes:
    """layers: decoded layer indexes, bottom first. Returns one without anything that only layers have.

    The same layers give the same bytes. Raises CorruptError, LimitError, naming the layer and the path.
    """
    merger = _Merger()
    for number, data in enumerate(layers, 1):
        what = f"layer {number} of {len(layers)}"
        _Laying(merger, Records(data, what), number).lay()
    return merger.encode()


class _Node:
    """A name in the tree so far.

    raw: the encoded entry, of a directory without its digest; a link that waits for step 3 has its target. layer: the
    one that brought or described it. children: of an opened directory. digest: of a directory's record while it is not
    opened; what is in it came with `layer`. origin: of what is no directory; names with the same link group and the
    same origin are one inode.
    """

    __slots__ = ("children", "digest", "kind", "layer", "origin", "raw")

    def __init__(self, kind: int, raw: bytes, layer: int, digest: bytes | None = None) -> None:
        self.kind = kind
        self.raw = raw
        self.layer = layer
        self.digest = digest
        self.origin = layer << _ORIGIN_BITS
        self.children: dict[bytes, _Node] | None = {} if kind == _DIRECTORY and digest is None else None


def _plain_directory(name: bytes, layer: int) -> _Node:
    """A directory that nobody described."""
    return _Node(_DIRECTORY, encode_entry(Entry(Kind.DIRECTORY, name, mode=0o755)), layer)


class _Merger:
    """The tree so far, and where the records lie that it is made of."""

    def __init__(self) -> None:
        self.root = _plain_directory(b"", 0)
        self._sources: dict[bytes, Records] = {}

    def carry(self, digest: bytes, source: Records) -> None:
        if digest not in self._sources:
            for below in post_order(digest, source.children, set()):
                self._sources.setdefault(below, source)

    def open(self, node: _Node) -> dict[bytes, _Node]:
        """The children of a directory."""
        if node.children is None:
            assert node.digest is not None
            source = self._sources[node.digest]
            data = source.data
            start, end = source.places[node.digest]
            node.children = {
                name: _Node(kind, data[at : stop - DIGEST], node.layer, data[stop - DIGEST : stop])
                if kind == _DIRECTORY
                else _Node(kind, data[at:stop], node.layer)
                for name, kind, _, _, at, stop in skim_record(data, start, end)
            }
            node.digest = None
        return node.children

    def child(self, node: _Node, name: bytes) -> _Node | None:
        return self.open(node).get(name) if node.kind == _DIRECTORY else None

    def find(self, parts: Sequence[bytes]) -> _Node | None:
        node: _Node | None = self.root
        for part in parts:
            if node is None:
                return None
            node = self.child(node, part)
        return node

    def resolve(self, parts: list[bytes]) -> list[bytes]:
        return resolve(parts, self.root, self.child, _symlink)

    def encode(self) -> bytes:
        output = _Output(self._sources, self._renumbered())
        # open directories: node, names still to come (last first), what is encoded of it
        stack: list[tuple[_Node, list[bytes], list[bytes]]] = [(self.root, sorted(self.open(self.root))[::-1], [])]
        while True:
            node, waiting, done = stack[-1]
            assert node.children is not None
            if waiting:
                child = node.children[waiting.pop()]
                if child.kind != _DIRECTORY:
                    done.append(output.entry(child))
                elif child.digest is not None:
                    done.append(child.raw + output.carried(child, child.digest, len(stack)))
                else:
                    assert child.children is not None
                    stack.append((child, sorted(child.children)[::-1], []))
                continue
            stack.pop()
            digest = output.made(done, len(stack))
            if not stack:
                return encode_layer(node.raw + digest, output.records)
            stack[-1][2].append(node.raw + digest)

    def _renumbered(self) -> dict[int, dict[int, int]]:
        """New numbers by origin and number, where one number stands for inodes of several origins: the first origin
        keeps it.
        """
        origins: dict[int, set[int]] = {}
        seen: dict[int, set[bytes]] = {}  # by origin
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.kind != _DIRECTORY:
                if number := _group_of(node.raw):
                    origins.setdefault(number, set()).add(node.origin)
            elif node.children is not None:
                stack.extend(node.children.values())
            elif node.digest is not None:
                origin = node.layer << _ORIGIN_BITS
                for number in self._carried_groups(node.digest, seen.setdefault(origin, set())):
                    origins.setdefault(number, set()).add(origin)
        renumbered: dict[int, dict[int, int]] = {}
        for number, several in origins.items():
            for place, origin in enumerate(sorted(several)):
                if place:
                    renumbered.setdefault(origin, {})[number] = renumbered_group(number, place)
        return renumbered

    def _carried_groups(self, digest: bytes, seen: set[bytes]) -> Iterator[int]:
        def grouped(one: bytes) -> list[bytes]:
            source = self._sources[one]
            return [child for child in source.children(one) if source.summaries[child].grouped]

        if self._sources[digest].summaries[digest].grouped:
            for one in post_order(digest, grouped, seen):
                yield from (row.link_group for row in self._sources[one].rows(one) if row.link_group)


def renumbered_group(number: int, place: int) -> int:
    """The link group of inodes of another origin than the first that has this number."""
    text = _GROUP.pack(number) + _PLACE.pack(place)
    return int.from_bytes(cext.blake3(text, context=_GROUP_CONTEXT)[:8], "little") or 1


class _Output:
    """The records of the result, each once, in post-order. renumbered: link groups, by origin."""

    def __init__(self, sources: dict[bytes, Records], renumbered: Mapping[int, Mapping[int, int]]) -> None:
        self.records: list[bytes | memoryview] = []
        self._sources = sources
        self._seen: set[bytes] = set()
        self._inodes = 1
        self._renumbered = renumbered
        self._rewritten: dict[int, dict[bytes, bytes]] = {}  # by origin: digests with what stands for them

    def _children(self, digest: bytes) -> tuple[bytes, ...]:
        return self._sources[digest].children(digest)

    def entry(self, node: _Node) -> bytes:
        numbers = self._renumbered.get(node.origin)
        return _regrouped(node.raw, numbers) if numbers else node.raw

    def carried(self, node: _Node, digest: bytes, depth: int) -> bytes:
        """The digest of what becomes of a directory that was not opened."""
        summary = self._sources[digest].summaries[digest]
        self._count(summary.inodes, depth + summary.depth)
        origin = node.layer << _ORIGIN_BITS
        if summary.grouped and origin in self._renumbered:
            return self._rewrite(digest, origin)
        for one in post_order(digest, self._children, self._seen):
            self.records.append(self._sources[one].record(one))
        return digest

    def _rewrite(self, digest: bytes, origin: int) -> bytes:
        numbers, done = self._renumbered[origin], self._rewritten.setdefault(origin, {})
        for one in post_order(digest, self._children, set(done)):
            source = self._sources[one]
            record: bytes | memoryview = source.record(one)
            if source.summaries[one].grouped:
                record = encode_record(
                    [
                        raw[:-DIGEST] + done[raw[-DIGEST:]] if row.kind == _DIRECTORY else _regrouped(raw, numbers)
                        for row in source.rows(one)
                        for raw in (source.data[row.start : row.end],)
                    ]
                )
            done[one] = record_digest(record)
            if done[one] not in self._seen:
                self._seen.add(done[one])
                self.records.append(record)
        return done[digest]

    def made(self, entries: list[bytes], depth: int) -> bytes:
        self._count(len(entries), depth)
        record = encode_record(entries)
        digest = record_digest(record)
        if digest not in self._seen:
            self._seen.add(digest)
            self.records.append(record)
        return digest

    def _count(self, inodes: int, depth: int) -> None:
        self._inodes += inodes
        if self._inodes > INODES_MAX:
            raise LimitError(f"merged tree: got more than {INODES_MAX} names")
        if depth > DEPTH_MAX:
            raise LimitError(f"merged tree: got more than {DEPTH_MAX} directories below each other")


class _Laying:
    """One layer on its way onto the tree."""

    def __init__(self, merger: _Merger, records: Records, number: int) -> None:
        self._merger = merger
        self._records = records
        self._number = number
        self._work: list[tuple[_Node, bytes, bytes]] = []  # directory, digest of what is laid on it, its path
        self._redirected: list[tuple[bytes, int, bytes]] = []  # path of the symlink, flags, digest
        self._links: list[tuple[bytes, dict[bytes, _Node], bytes, _Node]] = []  # path, siblings, name, the link
        self._direct = True

    def lay(self) -> None:
        root, flags = self._merger.root, self._records.root.flags
        if not flags & _IMPLICIT:
            row = self._records.root_row
            root.raw = _unmarked(self._records.data, row)
        if flags & _OPAQUE:
            root.children, root.digest = {}, None
        self._work.append((root, self._records.root_digest, b""))
        self._lay_work()
        self._direct = False
        while self._redirected:
            redirected, self._redirected = sorted(self._redirected), []
            for path, flags, digest in redirected:
                self._redirect(path, flags, digest)
                self._lay_work()
        self._resolve_links()

    def _lay_work(self) -> None:
        while self._work:
            node, digest, path = self._work.pop()
            siblings = self._merger.open(node)
            for row in self._records.rows(digest):
                self._row(row, siblings, path)

    def _row(self, row: Row, siblings: dict[bytes, _Node], path: bytes) -> None:
        name, kind, _, _, start, end = row
        data = self._records.data
        if kind == _WHITEOUT:
            self._hide(siblings, name)
        elif kind == _DIRECTORY:
            self._directory(row, siblings, _join(path, name))
        elif kind == _LINK:
            target = decode_entry(data, row).target
            node = siblings[name] = _Node(_LINK, target, self._number)
            self._links.append((_join(path, name), siblings, name, node))
        else:
            siblings[name] = _Node(kind, data[start:end], self._number)

    def _directory(self, row: Row, siblings: dict[bytes, _Node], path: bytes) -> None:
        name, _, flags, _, _, end = row
        digest = self._records.data[end - DIGEST : end]
        node = siblings.get(name)
        if flags & _IMPLICIT:
            if node is not None and node.kind == _SYMLINK:
                self._redirected.append((path, flags, digest))
                return
            if node is None or node.kind != _DIRECTORY:
                node = siblings[name] = _plain_directory(name, self._number)
        else:
            raw = _unmarked(self._records.data, row)
            if node is None or node.kind != _DIRECTORY:
                node = siblings[name] = _Node(_DIRECTORY, raw, self._number)
            node.raw = raw
        self._fill(node, flags, digest, path)
        if not flags & _IMPLICIT:
            node.layer = self._number

    def _fill(self, node: _Node, flags: int, digest: bytes, path: bytes) -> None:
        """Lays a record on a directory of the tree."""
        if flags & _OPAQUE:
            self._hide_children(node)
        # A lower directory that this layer only passes through does not become its own: it can still be hidden.
        own = not flags & _IMPLICIT or node.layer == self._number
        plain = own and self._records.summaries[digest].plain
        if plain and node.children == {}:
            self._merger.carry(digest, self._records)
            node.digest, node.children = digest, None
            node.layer = self._number
        elif plain and node.digest == digest:  # the same tree is there already
            node.layer = self._number
        else:
            self._merger.open(node)  # while its layer still is that of its children
            self._work.append((node, digest, path))

    def _hide_children(self, node: _Node) -> None:
        if self._direct:
            node.children, node.digest = {}, None
        else:
            siblings = self._merger.open(node)
            for name in list(siblings):
                self._hide(siblings, name)

    def _hide(self, siblings: dict[bytes, _Node], name: bytes) -> None:
        """Takes away what lower layers have under a name. In step 1 nothing of this layer can be there yet."""
        node = siblings.get(name)
        if node is None:
            return
        if self._direct:
            del siblings[name]
            return
        below = [(siblings, name, node)]
        for _, _, one in below:  # grows while it is read
            if one.children is not None:
                below += [(one.children, key, child) for key, child in one.children.items()]
        for parent, key, one in reversed(below):
            if one.layer == self._number:
                continue
            if one.children:
                one.raw, one.layer = _plain_directory(key, 0).raw, self._number
            else:
                del parent[key]

    def _redirect(self, path: bytes, flags: int, digest: bytes) -> None:
        try:
            parts = self._merger.resolve(path.split(b"/"))
        except CorruptError as error:
            raise self._corrupt(path, str(error)) from error
        node = self._merger.root
        for part in parts:
            siblings = self._merger.open(node)
            child = siblings.get(part)
            if child is None or child.kind != _DIRECTORY:
                child = siblings[part] = _plain_directory(part, self._number)
            node = child
        self._fill(node, flags, digest, b"/".join(parts))

    # ------------------------------------------------------------------ links

    def _resolve_links(self) -> None:
        """Links become names of what they lead to; all names of one thing share a link group."""
        names: dict[_Node, tuple[bytes, list[tuple[bytes, dict[bytes, _Node], bytes]]]] = {}
        for path, siblings, name, link in sorted(self._links, key=lambda one: one[0]):
            if self._merger.find(path.split(b"/")) is link:  # else step 2 put something in its way
                place, target = self._target(path, link)
                names.setdefault(target, (place, []))[1].append((path, siblings, name))
        made = 0
        for target, (place, links) in names.items():
            entry = self._entry(place, target)
            group = entry.link_group
            if not group:
                group = group_number(min(place, *(path for path, _, _ in links)), entry)
                made += 1
                target.origin = (self._number << _ORIGIN_BITS) + made
                target.raw = _renamed(target.raw, entry.name, group)
            for _, siblings, name in links:
                node = siblings[name] = _Node(target.kind, _renamed(target.raw, name, group), self._number)
                node.origin = target.origin

    def _target(self, path: bytes, link: _Node) -> tuple[bytes, _Node]:
        """Where a link leads, over other links of this layer, and what is there."""
        seen = {link}
        node: _Node | None = link
        while node is not None and node.kind == _LINK:
            target = node.raw
            try:
                parts = check_path(target)
                parts = [*self._merger.resolve(parts[:-1]), parts[-1]]
            except CorruptError as error:
                raise self._corrupt(path, f"link to {target[:100]!r}: {error}") from error
            node = self._merger.find(parts)
            if node is None or node in seen:
                raise self._corrupt(path, f"link to {target[:100]!r}: got nothing there")
            seen.add(node)
        assert node is not None
        if node.kind == _DIRECTORY:
            raise self._corrupt(path, f"link to {target[:100]!r}: got a directory there")
        return b"/".join(parts), node

    def _entry(self, path: bytes, node: _Node) -> Entry:
        try:
            return decode_entry(node.raw, skim_entry(node.raw, 0, len(node.raw)))
        except CorruptError as error:
            raise self._corrupt(path, str(error)) from error

    def _corrupt(self, path: bytes, what: str) -> CorruptError:
        return CorruptError(f"{self._records.what}: {path[:200]!r}: {what}")


def _symlink(node: _Node) -> bytes | None:
    if node.kind != _SYMLINK:
        return None
    return decode_entry(node.raw, skim_entry(node.raw, 0, len(node.raw))).target


def _unmarked(data: bytes, row: Row) -> bytes:
    """A directory's entry without flags and digest."""
    return data[row.start : row.start + 1] + b"\0" + data[row.start + 2 : row.end - DIGEST]


_NAME_LENGTH, _GROUP, _PLACE = struct.Struct("<H"), struct.Struct("<Q"), struct.Struct("<I")


def _group_of(raw: bytes) -> int:
    number: int = _GROUP.unpack_from(raw, 32)[0]
    return number


def _regrouped(raw: bytes, numbers: Mapping[int, int]) -> bytes:
    new = numbers.get(_group_of(raw))
    return raw if new is None else raw[:32] + _GROUP.pack(new) + raw[40:]


def _renamed(raw: bytes, name: bytes, group: int) -> bytes:
    """An encoded entry under another name, in another link group."""
    (length,) = _NAME_LENGTH.unpack_from(raw, 2)
    return b"".join(
        (
            raw[:2],
            _NAME_LENGTH.pack(len(name)),
            raw[4:32],
            _GROUP.pack(group),
            raw[40:_HEAD],
            name,
            raw[_HEAD + length :],
        )
    )


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
