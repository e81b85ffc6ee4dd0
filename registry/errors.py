"""What can go wrong with names, documents and blobs, and with the registries that have them.

OnesecError
├── UsageError
│   └── BadReferenceError    a name breaks the grammar of references
├── CorruptError
│   ├── BadBlobError         a blob's bytes are not what its digest says
│   └── BadDocumentError     a manifest, index or config is not what its media type says
├── MissingError
│   ├── MissingBlobError     the layout lacks a blob that a document names
│   ├── MissingImageError    no image has this name
│   ├── MovedTagError        a name no longer means the image that was worked on
│   └── RemoteBlobsError     blobs that are needed here are only at a registry
├── SkopeoError              skopeo could not read the source
└── RegistryError            a registry did not do what was asked
    ├── UnreachableError     no answer: name, connection, certificate, time-out, or it broke off
    ├── BadAnswerError       an answer breaks the protocol, or its own promises
    ├── DeniedError          it wants another login, or this one may not
    ├── NotThereError        it has no such repository, tag or blob
    └── RefusedError         it said no: any other status
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
    """reason: may quote the document, which may be long."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason[:600]}")


class MissingBlobError(MissingError):
    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest}: not in the layout", hint="`onesec fsck` says what else is missing")
        self.digest = digest


class MissingImageError(MissingError):
    def __init__(self, name: str) -> None:
        super().__init__(f"image {name}: not in the layout", hint="`onesec images` lists what is")
        self.name = name


class MovedTagError(MissingError):
    """name: what was going to be given a new meaning. digest: the old one, which it has lost meanwhile."""

    def __init__(self, name: str, digest: str) -> None:
        super().__init__(f"image {name}: no longer is {digest}, so it stays as it is", hint="call it again")
        self.name = name
        self.digest = digest


class RemoteBlobsError(MissingError):
    """name: the image's. count, total: its packs that are not here, of all. remote: where they are."""

    def __init__(self, name: str, count: int, total: int, remote: str) -> None:
        super().__init__(
            f"image {name}: {count} of its {total} packs are not here but at {remote}",
            hint=f"`onesec pull --all {remote} -t {name}` brings them",
        )
        self.name = name
        self.count = count
        self.total = total
        self.remote = remote


class SkopeoError(OnesecError):
    """status: skopeo's exit status."""

    def __init__(self, source: str, status: int, words: str) -> None:
        super().__init__(f"{source}: skopeo failed with status {status}: {words}")
        self.status = status


class RegistryError(OnesecError):
    """host: who it was about, as the user or the registry named it. retry_after: seconds it asked for, or None."""

    def __init__(
        self,
        host: str,
        reason: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{host}: {reason}", hint=hint)
        self.host = host
        self.retryable = retryable
        self.retry_after = retry_after


class UnreachableError(RegistryError):
    pass


class BadAnswerError(RegistryError):
    pass


class DeniedError(RegistryError):
    pass


class NotThereError(RegistryError):
    pass


class RefusedError(RegistryError):
    """status: of the answer."""

    def __init__(
        self,
        host: str,
        status: int,
        reason: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(host, reason, hint=hint, retryable=retryable, retry_after=retry_after)
        self.status = status
