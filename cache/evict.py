"""Which segments of the store go when there is no room. Pure.

Segments go whole, the one that was used longest ago first; pinned ones (working sets of profiles) only when no other is
left. The unit is the segment because that is what the disk gives back in one call: no compaction ever runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from cext import StoreSegment


def excess(*, stored: int, need: int, quota: int, free: int, floor: int) -> int:
    """Bytes that have to go before need more bytes may come; 0 or less: none.

    stored: bytes the store has on disk or queued. free: what the file system has left. floor: what it is to keep.
    """
    return max(stored + need - quota, floor + need - free)


def choose(segments: Iterable[StoreSegment], excess: int) -> tuple[int, ...]:
    """Numbers of the segments to drop, in that order, to free at least excess bytes.

    None if even all of them would not be enough: then dropping them helps nobody.
    """
    chosen = []
    for segment in sorted(segments, key=lambda one: (one.pinned, one.used)):
        if excess <= 0:
            break
        chosen.append(segment.number)
        excess -= segment.bytes
    return tuple(chosen) if excess <= 0 else ()
