"""How much disk the local stores may have. A module of its own: `run` needs these words, nothing else of the cache."""

from __future__ import annotations

from cext.record import Record


class StoreSettings(Record):
    """base: the directory of all stores. quota: bytes of all together, None for the default, 0 for no store at all.

    floor: bytes of the file system that stay free, None for the default.
    """

    base: str
    quota: int | None = None
    floor: int | None = None
