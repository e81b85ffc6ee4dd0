"""What can go wrong while an image is made.

OnesecError
├── BuildError              an image can't be built
│   ├── ImageFileError      the Python of an image file fails
│   ├── SolveError          no set of wheels meets the requirements
│   ├── FetchError          a wheel could not be fetched
│   ├── DebianError         mmdebstrap failed
│   └── CommandError        a command of a run step failed
├── CorruptError
│   ├── BadArchiveError     a tar archive or its compression is damaged or hostile
│   │   └── BombError       it decompresses to more than anybody means
│   └── BadWheelError       a wheel is damaged, hostile or can be read in two ways
└── UnsupportedError
    └── UnknownSourceError  an import source of a kind that neither we nor skopeo read
"""

from __future__ import annotations

from cext.errors import CorruptError, OnesecError, UnsupportedError


class BuildError(OnesecError):
    pass


class ImageFileError(BuildError):
    pass


class SolveError(BuildError):
    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(f"pip_install: {reason}", hint=hint)


class FetchError(BuildError):
    """retryable: the network, not the answer, was at fault."""

    def __init__(self, name: str, reason: str, *, retryable: bool = False) -> None:
        super().__init__(f"{name}: {reason}")
        self.retryable = retryable


class DebianError(BuildError):
    pass


class CommandError(BuildError):
    """status: the command's exit status."""

    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"run: {command[:200]!r} exited with status {status}")
        self.status = status


class BadArchiveError(CorruptError):
    pass


class BombError(BadArchiveError):
    pass


class BadWheelError(CorruptError):
    def __init__(self, wheel: str, reason: str) -> None:
        super().__init__(f"{wheel}: {reason}")
        self.wheel = wheel


class UnknownSourceError(UnsupportedError):
    pass
