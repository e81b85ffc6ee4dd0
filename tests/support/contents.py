"""Contents of files for tests: made from a seed, so that a failure can be told in a few numbers.

A content is a list of pieces; its bytes are the same on every machine and every Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache

from hypothesis import strategies as st

from cext._reference import GEAR

KIB, MIB = 1 << 10, 1 << 20

Piece = tuple[str, int, int]
"""What it is made of, a number that picks one of those, bytes."""


def stream(seed: int, size: int) -> bytes:
    """Incompressible bytes: SHAKE-128 of the seed."""
    return hashlib.shake_128(b"content %d" % seed).digest(size)


def text(seed: int, size: int) -> bytes:
    """Compressible bytes without long repetitions."""
    lines = (b"%d: line %d of a text that compresses\n" % (seed, row) for row in range(size // 30 + 1))
    return b"".join(lines)[:size]


def piece(kind: str, seed: int, size: int) -> bytes:
    return _KINDS[kind](seed, size)


def content(pieces: Sequence[Piece]) -> bytes:
    return b"".join(piece(*one) for one in pieces)


def _constant(seed: int, size: int) -> bytes:
    return bytes([seed % 256]) * size


def _pattern(seed: int, size: int) -> bytes:
    unit = stream(seed, 1 + seed % 300)
    return (unit * (size // len(unit) + 1))[:size]


@cache
def _uncut_byte() -> int:
    """A byte whose runs are cut nowhere: the hash of a long run of byte b is -gear[b]."""
    return next(byte for byte in range(1, 256) if (-GEAR[byte] & (1 << 64) - 1) >> 50)


def _uncut(seed: int, size: int) -> bytes:
    return bytes([_uncut_byte()]) * size


_CUT_WINDOW = 322_601
"""The first seed whose 64 bytes end in a cut, whatever stood before them: by then the hash has nothing else in it."""


def _cut_often(seed: int, size: int) -> bytes:
    """A cut at every possible place."""
    return (stream(_CUT_WINDOW, 64) * (size // 64 + 2))[seed % 64 : seed % 64 + size]


def _specks(seed: int, size: int) -> bytes:
    """Zeros with a byte here and there: blocks on both sides of being zero."""
    data = bytearray(size)
    for row in range(seed % 5):
        if size:
            data[int.from_bytes(stream(seed * 8 + row, 4), "little") % size] = 1
    return bytes(data)


_KINDS: dict[str, Callable[[int, int], bytes]] = {
    "random": stream,
    "text": text,
    "constant": _constant,
    "pattern": _pattern,
    "uncut": _uncut,
    "cut often": _cut_often,
    "specks": _specks,
    "zeros": lambda seed, size: bytes(size),
}

_EDGES = (1, 4096, 16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB)
edges = st.builds(lambda edge, step: edge + step, st.sampled_from(_EDGES), st.integers(-1, 1))
_sizes = st.one_of(edges, st.integers(0, 100_000))
_hole_sizes = st.one_of(st.sampled_from([MIB - 4096, MIB - 1, MIB, MIB + 1, MIB + 4095]), st.integers(0, 3 * MIB))
_dense = st.sampled_from(sorted(set(_KINDS) - {"zeros"}))
pieces = st.one_of(
    st.tuples(_dense, st.integers(0, 1000), _sizes),
    st.tuples(_dense, st.integers(0, 1000), st.integers(0, 3000)),
    st.tuples(st.just("zeros"), st.just(0), _hole_sizes),
)
contents = st.lists(pieces, max_size=4)
"""Strategy of lists of pieces, up to some MiB, most of them zeros."""
