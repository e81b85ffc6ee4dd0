"""What can go wrong with the local chunk store. None of it loses more than a cache.

OnesecError
└── StoreError               the store can't do what was asked
    ├── StoreInUseError      another process has it open
    ├── StoreFullError       the quota, or the free space that is to stay, leaves no room
    └── StoreWriteError      chunks that were put could not be written
"""

from __future__ import annotations

from cext.errors import OnesecError


class StoreError(OnesecError):
    """path: the store's directory."""

    def __init__(self, path: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"store {path}: {reason}", hint=hint)
        self.path = path


class StoreInUseError(StoreError):
    retryable = True


class StoreFullError(StoreError):
    """excess: bytes that would have to go."""

    def __init__(self, path: str, excess: int) -> None:
        super().__init__(
            path,
            f"full: {excess} bytes over the quota or the free space to keep",
            hint="raise the quota, or free disk space",
        )
        self.excess = excess


class StoreWriteError(StoreError):
    """They are fetched again when they are needed."""

    retryable = True
