"""A chunk store in a dict: what the real one is compared with, and what other tests use in its place."""

from __future__ import annotations

import hashlib
from typing import Literal, Self

import cext
from cext.errors import ClosedError, CorruptError, LimitError

_CHUNK_MAX = 256 << 10


class MemoryStore:
    def __init__(self) -> None:
        self._chunks: dict[bytes, tuple[int, bytes]] = {}
        self._closed = False

    def put(
        self,
        id: bytes,
        data: bytes,
        *,
        algorithm: int = 1,
        codec: Literal["zstd", "raw"] = "zstd",
        pinned: bool = False,
    ) -> None:
        self._check(id)
        if not 1 <= len(data) <= _CHUNK_MAX:
            raise LimitError(f"store: got a chunk of {len(data)} bytes, want 1 to {_CHUNK_MAX}")
        if algorithm not in (1, 2):
            raise CorruptError(f"store: got algorithm {algorithm}, want 1 or 2")
        if id != (cext.blake3(data) if algorithm == 1 else hashlib.sha256(data).digest()):
            raise CorruptError("store: the content is not what its id says")
        self._chunks[id] = algorithm, data

    def get(self, id: bytes, *, algorithm: int = 1) -> bytes | None:
        self._check(id)
        kind, data = self._chunks.get(id, (0, b""))
        return data if kind == algorithm else None

    def flush(self) -> None:
        if self._closed:
            raise ClosedError("store: closed")

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, id: bytes) -> None:
        if self._closed:
            raise ClosedError("store: closed")
        if len(id) != 32:
            raise CorruptError(f"chunk id: got {len(id)} bytes, want 32")
