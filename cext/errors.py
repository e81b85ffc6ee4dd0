"""The errors every package builds on.

OnesecError
├── UsageError          the words of a call are wrong (exit status 2)
├── CorruptError        bytes from disk or network break a format or a hash
│   └── LimitError      they are over a bound (cext/src/os_limits.h)
├── MissingError        a thing that was named is not there
├── ClosedError         used after close
└── UnsupportedError    this machine lacks a kernel feature or a program
"""

from __future__ import annotations


class OnesecError(Exception):
    """What went wrong, in one line a user can read: lower case, ``what: got X, want Y``.

    hint: what the reader can do about it, or None.
    retryable: whether the same call may succeed later with nothing changed by us.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(OnesecError):
    pass


class CorruptError(OnesecError):
    pass


class LimitError(CorruptError):
    pass


class MissingError(OnesecError):
    pass


class ClosedError(OnesecError):
    pass


class UnsupportedError(OnesecError):
    pass
