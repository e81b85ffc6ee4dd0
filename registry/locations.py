"""Where the blobs of a repository are, for an engine that fetches ranges itself: asked once, and again in time.

The engine gets a URL, headers and an end; it asks for the next ones from `renew_at` on, and says `forget` when a server
refused what should have been good (a signature that ended early, a token that was revoked).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

from registry.client import Location
from registry.model import Descriptor, Digest


class Locations:
    """find: `Repository.blob_location`. Any number of tasks may ask; one request for a blob is under way at a time."""

    def __init__(
        self, find: Callable[[Descriptor], Awaitable[Location]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find = find
        self._clock = clock
        self._known: dict[Digest, Location] = {}
        self._locks: dict[Digest, trio.Lock] = {}  # of the requests under way

    async def get(self, blob: Descriptor) -> Location:
        """A location that is good for a while yet. If it can't be renewed the old one serves until it ends: an origin
        that is away for a moment costs nothing.
        """
        if (known := self._current(blob.digest)) is not None:
            return known
        lock = self._locks.setdefault(blob.digest, trio.Lock())
        async with lock:
            if (known := self._current(blob.digest)) is not None:  # somebody else asked while we waited
                return known
            old = self._known.get(blob.digest)
            try:
                self._known[blob.digest] = await self._find(blob)
            except Exception:
                if old is None or self._clock() >= old.expires_at:
                    raise
                return old
            finally:
                if not lock.statistics().tasks_waiting:
                    self._locks.pop(blob.digest, None)
            return self._known[blob.digest]

    def forget(self, digest: Digest) -> None:
        """The next `get` asks again."""
        self._known.pop(digest, None)

    def _current(self, digest: Digest) -> Location | None:
        known = self._known.get(digest)
        return known if known is not None and self._clock() < known.renew_at else None
