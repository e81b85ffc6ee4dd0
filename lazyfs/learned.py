"""What the starts of an image on this host read, kept for the next one.

    <root>/cache/learned/<image, hex>/<command, hex>     "OSLEARN1", runs of 48 bytes, BLAKE3 of all before it

A file says which pages of which objects, in the order of their first reading, and no more: not a byte of them is in it.
Whoever uses it reads them through the object mount, like any reader, so a file that lies costs time and nothing else.
One that is damaged is removed with a line.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import cext

PAGE = 4096
RUNS_MAX = 20_000  # of one start
BYTES_MAX = 512 << 20  # that they cover
COMMANDS_MAX = 8  # of one image; those not used for longest go

_MAGIC = b"OSLEARN1"
_HASH = 32
_RUN = struct.Struct("<32sQQ")

Run = tuple[bytes, int, int]
"""Id of an object, offset, length."""


def runs_of(data: bytes) -> list[Run]:
    """data: rows, as the object server gives them."""
    return list(_RUN.iter_unpack(data))


def rows_of(runs: Sequence[Run]) -> bytes:
    return b"".join(_RUN.pack(*run) for run in runs)


def path_of(root: str | os.PathLike[str], image: str, command: Sequence[str]) -> str:
    """image: the hexadecimal digits of its digest."""
    words = "\0".join(command).encode(errors="surrogateescape")
    return f"{os.fspath(root)}/cache/learned/{image}/{cext.blake3(words).hex()[:32]}"


def load(path: str, note: Callable[[str], None]) -> list[Run]:
    """Empty if nothing is known."""
    try:
        with open(path, "rb") as file:
            data = file.read(len(_MAGIC) + RUNS_MAX * _RUN.size + _HASH + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        note(f"{path}: {os.strerror(error.errno or 0).lower()}: this start begins with nothing learned")
        return []
    body, size = data[len(_MAGIC) : -_HASH], len(data) - len(_MAGIC) - _HASH
    sound = data.startswith(_MAGIC) and 0 <= size <= RUNS_MAX * _RUN.size and size % _RUN.size == 0
    if not sound or cext.blake3(data[:-_HASH]) != data[-_HASH:]:
        with suppress(OSError):
            os.unlink(path)
        note(f"{path}: damaged, and removed: this start begins with nothing learned")
        return []
    return runs_of(body)


def save(path: str, runs: Sequence[Run]) -> None:
    """In one step; the oldest of the image's others make room."""
    directory = os.path.dirname(path)
    os.makedirs(directory, 0o700, exist_ok=True)
    data = _MAGIC + rows_of(runs)
    fresh = f"{path}.{os.getpid()}"
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data + cext.blake3(data))
        os.rename(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise
    others = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # of a start that ends beside this one
                others.append((entry.stat().st_mtime_ns, entry.path))
    others = sorted(one for one in others if one[1] != path)
    for _, other in others[: max(0, len(others) - COMMANDS_MAX + 1)]:
        with suppress(OSError):
            os.unlink(other)


def joined(known: Sequence[Run], read: Sequence[Run]) -> list[Run]:
    """The runs of earlier starts, and behind them what the last one read besides; within the bounds."""
    met: set[tuple[bytes, int]] = set()
    out: list[Run] = []
    covered = 0
    for identity, offset, length in (*known, *read):
        pages = range(offset // PAGE, (offset + length + PAGE - 1) // PAGE)
        if length == 0 or len(out) >= RUNS_MAX or covered + length > BYTES_MAX:
            continue
        fresh = {(identity, number) for number in pages} - met
        if not fresh:
            continue
        met |= fresh
        covered += length
        out.append((identity, offset, length))
    return out


def forget(root: str | os.PathLike[str], kept: Collection[str]) -> int:
    """Of images that are not among those kept (hexadecimal digits). How many files went."""
    place = f"{os.fspath(root)}/cache/learned"
    count = 0
    with suppress(FileNotFoundError):
        for image in os.listdir(place):
            if image in kept:
                continue
            with suppress(OSError):
                for name in os.listdir(f"{place}/{image}"):
                    os.unlink(f"{place}/{image}/{name}")
                    count += 1
                os.rmdir(f"{place}/{image}")
    return count
