"""What goes wrong between an image and a running process.

OnesecError
└── LazyfsError
    ├── MountError          a step of a mount was refused
    ├── ObjectServerError   the object server cannot be started or refused an image
    └── ContainerError      a container cannot be set up or started
"""

from __future__ import annotations

from cext.errors import OnesecError


class LazyfsError(OnesecError):
    pass


class MountError(LazyfsError):
    pass


class ObjectServerError(LazyfsError):
    pass


class ContainerError(LazyfsError):
    """status: what ``run`` exits with: 125 ours, 126 cannot execute, 127 not found."""

    def __init__(self, message: str, *, hint: str | None = None, status: int = 125) -> None:
        super().__init__(message, hint=hint)
        self.status = status


def cause(error: MountError) -> int | None:
    """The errno that a mount call was refused with."""
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None
