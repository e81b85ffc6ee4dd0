"""Small images without a layout: contents in one pack, trees that use them, and fs.erofs and tables of a tree."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from functools import cache

import cext
from lazyfs.index.model import Entry, Kind
from lazyfs.merge import merge
from tests.support.layers import layer

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Pool:
    """A pack, and the files whose content is in it. data: of the pack."""

    digest: bytes
    data: bytes
    table: bytes
    files: tuple[Entry, ...]
    contents: tuple[bytes, ...]

    @property
    def listed(self) -> list[tuple[bytes, int, bytes]]:
        return [(self.digest, len(self.data), self.table)]


@cache
def pool() -> Pool:
    """Contents of the sizes that differ: none, small ones that share a frame, chunks of their own, holes."""
    text = b"".join(b"%d the same line, nearly\n" % number for number in range(30_000))
    contents = (b"", b"x", b"hello\n" * 700, text[:16384], text[:700_000], bytes(2 * MIB) + b"end", bytes(3 * MIB))
    with tempfile.TemporaryDirectory() as directory:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with cext.Ingest(fd, threads=1) as ingest:
                tickets = [ingest.add_bytes(content) for content in contents]
                found = [ingest.parts(ticket) for ticket in tickets]
                (pack,) = ingest.finish().packs
                with open(f"{directory}/{pack.name}", "rb") as file:
                    data = file.read()
        finally:
            os.close(fd)
    files = tuple(
        Entry(Kind.FILE, mode=0o644, size=size, algorithm=1 if parts else 0, parts=parts) for size, parts in found
    )
    return Pool(pack.digest, data, pack.table, files, contents)


def encoded(*entries: tuple[bytes, Entry]) -> tuple[bytes, bytes, bytes]:
    """The merged tree of a layer with these entries, its fs.erofs and its tables."""
    tree = merge([layer(*entries)])
    return (tree, *cext.encode_image(tree, pool().listed))


def sample() -> list[tuple[bytes, Entry]]:
    """Entries with something of everything that an index has."""
    files = pool().files
    xattrs = ((b"security.capability", b"\1\0\0\2" + bytes(16)), (b"user.empty", b""), (b"user.\xff", b"value"))
    return [
        (b"", Entry(Kind.DIRECTORY, mode=0o711, mtime_sec=-7, mtime_nsec=5)),
        *((b"files/%d" % number, file) for number, file in enumerate(files)),
        (b"attributes", replace(files[2], xattrs=tuple(sorted(xattrs)), uid=4_000_000_000, gid=7)),
        (b"linked/a", replace(files[3], link_group=1)),
        (b"linked/b/c", replace(files[3], link_group=1)),
        (b"same content, another inode", replace(files[3], mtime_sec=9)),
        (b"null", Entry(Kind.CHARACTER, mode=0o666, device=(1, 3))),
        (b"large", Entry(Kind.BLOCK, mode=0o600, device=(4095, 1048575))),
        (b"fifo", Entry(Kind.FIFO, mode=0o4777, mtime_sec=4_000_000_000)),
        (b"short", Entry(Kind.SYMLINK, mode=0o777, size=1, target=b"x")),
        (b"long", Entry(Kind.SYMLINK, mode=0o777, size=4095, target=b"t" * 4095)),
        *((b"big/%s%d" % (b"n" * (number % 200), number), files[number % 7]) for number in range(300)),
        (b"empty directory", Entry(Kind.DIRECTORY, mode=0o1777)),
        (b"n" * 255, files[1]),
    ]
