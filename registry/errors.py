"""What can go wrong with names, documents and blobs.

OnesecError
├── UsageError
│   └── BadReferenceError    a name breaks the grammar of references
├── CorruptError
│   ├── BadBlobError         a blob's bytes are not what its digest says
│   └── BadDocumentError     a manifest, index or config is not what its media type says
├── MissingError
│   ├── MissingBlobError     the layout lacks a blob that a document names
│   └── MissingImageError    no image has this name
└── SkopeoError              skopeo could not read the source
"""

from __future__ import annotations

from cext.errors import CorruptError, MissingError, OnesecError, UsageError


class BadReferenceError(UsageError):
    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"reference {text[:300]!r}: {reason}")
        self.text = text


class BadBlobError(CorruptError):
    """digest: what the bytes were said to be."""

    def __init__(self, digest: str, reason: str) -> None:
        super().__init__(f"blob {digest}: {reason}", hint="`onesec fsck` says what else is damaged")
        self.digest = digest


class BadDocumentError(CorruptError):
    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")


class MissingBlobError(MissingError):
    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest}: not in the layout", hint="`onesec fsck` says what else is missing")
        self.digest = digest


class MissingImageError(MissingError):
    def __init__(self, name: str) -> None:
        super().__init__(f"image {name}: not in the layout", hint="`onesec images` lists what is")
        self.name = name


class SkopeoError(OnesecError):
    """status: skopeo's exit status."""

    def __init__(self, source: str, status: int, words: str) -> None:
        super().__init__(f"{source}: skopeo failed with status {status}: {words}")
        self.status = status
