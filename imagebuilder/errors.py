"""What can go wrong while an image is made.

OnesecError
├── CorruptError
│   └── BadArchiveError     a tar archive or its compression is damaged or hostile
│       └── BombError       it decompresses to more than anybody means
└── UnsupportedError
    └── UnknownSourceError  an import source of a kind that neither we nor skopeo read
"""

from __future__ import annotations

from cext.errors import CorruptError, UnsupportedError


class BadArchiveError(CorruptError):
    pass


class BombError(BadArchiveError):
    pass


class UnknownSourceError(UnsupportedError):
    pass
