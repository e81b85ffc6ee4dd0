"""The one door to zstandard: index blobs compressed, foreign layers decompressed. Mounts go through cext instead."""

from __future__ import annotations

import os
from typing import BinaryIO, Protocol, cast

import zstandard

from cext.errors import CorruptError

_LEVEL = 3
_STEP = 1 << 20
_WINDOW_MAX = 1 << 27  # 128 MiB: what `zstd -d` takes without --long; bounds the memory that a frame can ask for


def compress(data: bytes | memoryview, *, level: int = _LEVEL) -> bytes:
    """One frame with its content size, no checksum. Same bytes for the same input, whatever the machine."""
    return zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True).compress(data)


def decode(source: int, target: int, size: int) -> None:
    """Decompresses a file into another; the plain bytes must be exactly size."""
    left = size
    with open(source, "rb", closefd=False) as file:
        reader = Reader(file)
        while data := reader.read_some(min(left, _STEP) + 1):  # one byte more, so that too much is seen
            if len(data) > left:
                raise CorruptError(f"zstd stream: decodes to more than the {size} bytes that it declares")
            left -= len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    if left:
        raise CorruptError(f"zstd stream: decodes to {size - left} bytes, want {size}")


class Readable(Protocol):
    def read(self, limit: int = ..., /) -> bytes: ...


class Reader:
    """The plain bytes of a stream of frames; memory is bounded by the window. Damage raises CorruptError.

    A stream cut short between two blocks can't be told from its end here: whoever reads compares digests.
    """

    def __init__(self, source: Readable) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        self._reader = decompressor.stream_reader(cast(BinaryIO, source), read_across_frames=True, closefd=False)

    def read_some(self, limit: int) -> bytes:
        """1 to limit bytes, or none at the end."""
        try:
            return self._reader.read(limit)
        except zstandard.ZstdError as error:
            raise CorruptError(f"zstd stream: {error}") from error
