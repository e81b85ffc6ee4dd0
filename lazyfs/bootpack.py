"""What a start touches becomes a boot pack: pages in the order of their first use, in frames of about 1 MiB.

A profile is what a profiling server recorded, one row for each READ; with read-ahead off that is one for each page. A
boot pack (docs/format.md, section 8) holds each page once. Within a frame the order is free, since its pages arrive
together: sorted by object and offset they make longer runs, and fewer stores.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

import cext
from cext.errors import LimitError
from cext.record import Record
from registry import zstd

PAGE = 4096
FRAME = 1 << 20
HEAD_MAX = 64 << 20
LEVEL = 6  # written once, read at each start; decoding does not get slower
_TOUCH = struct.Struct("<32sQIIQQ")
_HEADER = struct.Struct("<8sIIIIQ")
_MAGIC = b"OSBOOT01"

Page = tuple[bytes, int]
"""Id of an object, and the number of one of its pages."""


class Run(Record):
    """Pages of one object that follow each other. length: bytes, not whole pages only at the end of the object."""

    object: bytes
    offset: int
    length: int


class BootPackBytes(Record):
    """head: compressed. frames: compressed, back to back. total: bytes that they hold."""

    head: bytes
    frames: bytes
    pages: int
    total: int


def touched_pages(touches: bytes) -> list[Page]:
    """Each page that was read, once, in the order of the first reading."""
    pages: dict[Page, None] = {}
    for identity, offset, size, *_ in _TOUCH.iter_unpack(touches):
        for number in range(offset // PAGE, (offset + size + PAGE - 1) // PAGE):
            pages[identity, number] = None
    return list(pages)


def pages_of(pack: cext.BootPack) -> list[Page]:
    """The pages of a boot pack in its order."""
    ids = pack.objects
    return [
        (ids[row], number)
        for row, offset, length in pack.runs
        for number in range(offset // PAGE, (offset + length + PAGE - 1) // PAGE)
    ]


def merged(profiles: Sequence[Sequence[Page]]) -> list[Page]:
    """The pages of several starts. Each comes as early, relative to its start, as in the start that needs it first."""
    place: dict[Page, float] = {}
    for pages in profiles:
        for rank, page in enumerate(pages):
            when = rank / len(pages)
            if when < place.get(page, 2.0):
                place[page] = when
    return sorted(place, key=lambda page: place[page])


def encode(
    pages: Iterable[Page], size: Callable[[bytes], int], read: Callable[[Run], bytes], *, level: int = LEVEL
) -> BootPackBytes:
    """size: of an object. read: the bytes of a run, exactly; both from verified content. level: of zstd."""
    rows: dict[bytes, int] = {}
    runs: list[Run] = []
    frames: list[tuple[bytes, int, int]] = []  # id, plain length, number of runs
    lengths: list[int] = []
    body = bytearray()
    for frame in _frames(pages, size):
        plain = b"".join(read(run) for run in frame)
        packed = zstd.compress(plain, level=level)
        for run in frame:
            rows.setdefault(run.object, len(rows))
        runs += frame
        frames.append((cext.blake3(packed), len(plain), len(frame)))
        lengths.append(len(packed))
        body += packed
    total = sum(plain for _, plain, _ in frames)
    head = b"".join(
        [
            _HEADER.pack(_MAGIC, len(rows), len(runs), len(frames), 0, total),
            *rows,
            *(identity for identity, _, _ in frames),
            struct.pack(f"<{len(runs)}Q", *(run.offset for run in runs)),
            struct.pack(f"<{len(runs)}I", *(run.length for run in runs)),
            struct.pack(f"<{len(runs)}I", *(rows[run.object] for run in runs)),
            struct.pack(f"<{len(frames)}I", *lengths),
            struct.pack(f"<{len(frames)}I", *(plain for _, plain, _ in frames)),
            struct.pack(f"<{len(frames)}I", *(count for _, _, count in frames)),
        ]
    )
    if len(head) > HEAD_MAX:
        raise LimitError(f"boot pack: got a head of {len(head)} bytes, want at most {HEAD_MAX}")
    return BootPackBytes(zstd.compress(head), bytes(body), sum(_pages(run) for run in runs), total)


def _pages(run: Run) -> int:
    return (run.length + PAGE - 1) // PAGE


def _frames(pages: Iterable[Page], size: Callable[[bytes], int]) -> Iterator[list[Run]]:
    met: dict[bytes, int] = {}
    held: list[Page] = []
    for page in pages:
        met.setdefault(page[0], len(met))
        if page[1] * PAGE >= size(page[0]):
            continue  # the object of that name has no such page: a profile of something else
        held.append(page)
        if len(held) * PAGE == FRAME:
            yield _runs(held, met, size)
            held = []
    if held:
        yield _runs(held, met, size)


def _runs(pages: list[Page], met: dict[bytes, int], size: Callable[[bytes], int]) -> list[Run]:
    """The runs of one frame, by the first use of their object."""
    runs: list[Run] = []
    for identity, number in sorted(pages, key=lambda page: (met[page[0]], page[1])):
        offset = number * PAGE
        length = min(PAGE, size(identity) - offset)
        last = runs[-1] if runs else None
        if last is not None and last.object == identity and last.offset + last.length == offset:
            runs[-1] = Run(identity, last.offset, last.length + length)
        else:
            runs.append(Run(identity, offset, length))
    return runs
