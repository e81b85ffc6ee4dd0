"""The one door to zstandard: index blobs compressed, foreign layers decompressed. Mounts go through cext instead."""

from __future__ import annotations

import io
from typing import BinaryIO

import zstandard

from cext.errors import CorruptError

_LEVEL = 3
_WINDOW_MAX = 1 << 27  # 128 MiB: what `zstd -d` takes without --long; bounds the memory that a frame can ask for


def compress(data: bytes | memoryview) -> bytes:
    """One frame with its content size, no checksum. Same bytes for the same input, whatever the machine."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True).compress(data)


class Reader(io.RawIOBase):
    """The decompressed bytes of a stream of one or more frames. Truncation and damage raise CorruptError, never look
    like the end.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        self._reader = self._decompressor.stream_reader(source, read_across_frames=True, closefd=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        try:
            return self._reader.readinto(view)
        except zstandard.ZstdError as error:
            raise CorruptError(f"zstd stream: {error}") from error
