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
        self.reason = reason


class StoreInUseError(StoreError):
    retryable = True


class StoreFullError(StoreError):
    """Chunks that were put found no room, even if everything else went."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason, hint="raise the quota, or free disk space")


class StoreWriteError(StoreError):
    """They are fetched again when they are needed."""

    retryable = True
