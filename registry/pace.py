"""How a client waits. Its logic is written once and runs at the pace of trio (`registry/trio_pace.py`) or,
in a start, which has no time to import that, of `registry/loop.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Pace(Protocol):
    def lock(self) -> AbstractAsyncContextManager[object]:
        """One task at a time."""

    async def sleep(self, seconds: float, /) -> None: ...

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """What work(*arguments) returns. It may block."""

    def deadline(self, seconds: float, /) -> AbstractContextManager[object]:
        """Raises TimeoutError in the block once so much time has passed."""
