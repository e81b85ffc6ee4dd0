"""Merged trees out of a few files, with their contents, for what is guessed about images."""

from __future__ import annotations

from collections.abc import Mapping

import cext
from imagebuilder.guess import start_pages
from imagebuilder.pages import Contents, object_id
from lazyfs.bootpack import PAGE
from lazyfs.index.layer import LayerBuilder, Tree, open_tree
from lazyfs.index.model import PART, Entry, Kind
from lazyfs.merge import merge

Content = bytes | tuple[bytes] | str
"""A file; an executable file, as a tuple; a link to what a string says."""


class Image:
    """files: by path from the root."""

    def __init__(self, files: Mapping[str, Content]) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.tree: Tree = open_tree(merge([self._layer(files)]))
        self.asked = 0

    def _layer(self, files: Mapping[str, Content]) -> bytes:
        builder = LayerBuilder()
        for path, content in files.items():
            builder.add(path.encode(), self._entry(content))
        return builder.finish()

    def _entry(self, content: Content) -> Entry:
        if isinstance(content, str):
            return Entry(Kind.SYMLINK, mode=0o777, size=len(content.encode()), target=content.encode())
        data, mode = (content[0], 0o755) if isinstance(content, tuple) else (content, 0o644)
        parts = b""
        if data:
            identity = cext.blake3(data)
            self.chunks[identity] = data
            parts = PART.pack(len(data), identity)
        return Entry(Kind.FILE, mode=mode, size=len(data), algorithm=1 if parts else 0, parts=parts)

    def chunk(self, identity: bytes) -> bytes | None:
        self.asked += 1
        return self.chunks.get(identity)

    def guess(self, *command: str, budget: int = 64 << 20, **config: object) -> dict[str, list[int]]:
        """Numbers of pages by path, both in the order of the guess."""
        inner = {"Cmd": list(command), **config}
        pages, files = start_pages(self.tree, Contents(self.chunk), {"config": inner}, budget=budget)
        names = {object_id(entry): path.decode() for path, entry in self.tree.walk() if entry.parts}
        found: dict[str, list[int]] = {}
        for identity, number in pages:
            assert number * PAGE < files[identity].size
            found.setdefault(names[identity], []).append(number)
        return found
