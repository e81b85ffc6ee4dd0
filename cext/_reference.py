"""Slow twins of the C kernels: what tests compare them with, and what the portable server verifies with."""

from __future__ import annotations

from blake3 import blake3 as _blake3


def blake3(data: bytes | memoryview, /, *, context: str | None = None) -> bytes:
    """As cext.blake3."""
    if context is None:
        return _blake3(data).digest()
    return _blake3(data, derive_key_context=context).digest()
