"""Blobs and manifests go to a registry: the writing half of the distribution API.

A blob is first mounted from a repository of the same registry that may have it, else sent in one PUT. If that breaks
off, the registry says how far it got and the rest follows in chunks; if it has forgotten the upload, a new one begins.
A registry that finds one PUT too large (413) gets chunks from the start. All of it ends: what makes no progress counts
against the retry policy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import trio

from registry.auth import Scope
from registry.client import Repository
from registry.errors import (
    BadAnswerError,
    BadBlobError,
    DeniedError,
    MissingBlobError,
    NotThereError,
    RefusedError,
    RegistryError,
)
from registry.layout import Layout
from registry.model import Descriptor, Manifest
from registry.origin import redirected
from registry.request import Body
from registry.session import Answer

CHUNK = 16 << 20
_CHUNK_MAX = 256 << 20
_PIECE = 256 << 10
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_STARTS_MAX = 3
_OCTETS = {"content-type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class _Upload:
    """The registry's end of an upload. url: for the next request. at: bytes that it has. chunk: bytes of one chunk."""

    url: str
    at: int
    chunk: int


class _Counted:
    """Bytes of one blob that count as sent; what has to be sent again is taken back."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._at = 0

    def move_to(self, at: int) -> None:
        if at != self._at:
            self._progress(at - self._at)
            self._at = at


class Uploader:
    """Sends blobs of a layout to one repository. mounts: paths of repositories there that blobs may be mounted from.
    chunk: bytes of one, if the registry does not want more (OCI-Chunk-Min-Length).
    """

    def __init__(
        self, repository: Repository, layout: Layout, mounts: Sequence[str] = (), *, chunk: int = CHUNK
    ) -> None:
        self._chunk = chunk
        self._repository = repository
        self._session = repository.session
        self._layout = layout
        self._mounts = tuple(mounts)
        self._scope = Scope(repository.path, push=True)
        # Of its own: a login that may not read the other repository may still write to this one.
        self._mount_scope = Scope(repository.path, push=True, mounts=self._mounts)

    async def send_blob(self, blob: Descriptor, progress: Callable[[int], None], *, mounts: Sequence[str] = ()) -> bool:
        """Gives the registry a blob that it lacks; whether its bytes had to be sent. Raises MissingBlobError if they
        are neither here nor to be mounted from one of mounts. progress: gets the bytes of each step, negative ones for
        what has to be sent again.
        """
        upload = None
        for path in (path for path in mounts if path in self._mounts):
            if upload is not None:
                await self._abandon(upload)
            try:
                upload = await self._start(blob, mount=path)
            except (DeniedError, NotThereError, RefusedError):
                upload = None  # so it has to be sent
                continue
            if upload is None:
                progress(blob.size)
                return False
        try:
            fd = self._layout.open_blob(blob.digest)
        except MissingBlobError:
            if upload is not None:
                await self._abandon(upload)
            raise
        try:
            await self._send(blob, fd, upload, _Counted(progress))
        finally:
            os.close(fd)
        return True

    async def put_manifest(self, manifest: Manifest, name: str) -> None:
        """name: a tag, or the manifest's digest. What it names has to be there."""
        url = f"{self._repository.path}/manifests/{name}"
        headers = {"content-type": manifest.media_type}
        async with self._session.request(
            "PUT", url, self._scope, headers=headers, body=manifest.raw, expect=(201,)
        ) as answer:
            got = answer.response.header("docker-content-digest")
        if got is not None and got.startswith("sha256:") and got != str(manifest.digest):
            raise BadAnswerError(self._session.host, f"manifest: stored as {got}, want {manifest.digest}")

    # ------------------------------------------------------------------

    async def _send(self, blob: Descriptor, fd: int, upload: _Upload | None, counted: _Counted) -> None:
        failures = furthest = 0
        chunked = False
        while True:
            try:
                upload = upload or await self._start(blob)
                assert upload is not None  # only a mount ends without one
                if not upload.at and not chunked:
                    await self._finish(upload, blob, _body(fd, blob, 0, blob.size, counted))
                    return
                if upload.at == blob.size:
                    await self._finish(upload, blob, b"")
                    return
                upload = await self._send_chunk(upload, blob, fd, counted)
            except RegistryError as error:
                if isinstance(error, RefusedError) and error.status == 413 and not chunked:
                    chunked = True
                else:
                    failures += 1
                    await self._judge(error, failures)
                    if await self._repository.has_blob(blob):  # only the answer was lost
                        counted.move_to(blob.size)
                        return
                upload = await self._status(upload, blob.size) if upload is not None else None
            if upload is not None and min(furthest + _PIECE, blob.size) <= upload.at != furthest:
                furthest, failures = upload.at, 0

    async def _judge(self, error: RegistryError, failures: int) -> None:
        """Waits, if another attempt is due after so many failures; else raises error."""
        if error.retryable:
            await self._session.pause(failures, error)
        elif failures >= _STARTS_MAX or not (
            isinstance(error, NotThereError) or (isinstance(error, RefusedError) and error.status in (400, 416))
        ):
            raise error

    async def _start(self, blob: Descriptor, *, mount: str | None = None) -> _Upload | None:
        """A new upload. None: the blob was mounted from the other repository."""
        query = f"?{urlencode({'mount': str(blob.digest), 'from': mount})}" if mount else ""
        url = f"{self._repository.path}/blobs/uploads/{query}"
        scope, expect = (self._mount_scope, (201, 202)) if mount else (self._scope, (202,))
        async with self._session.request("POST", url, scope, body=b"", expect=expect) as answer:
            if answer.response.status == 201:
                return None
            least = answer.response.header("oci-chunk-min-length") or ""
            wanted = int(least[:12]) if least.isascii() and least.isdigit() else 0
            return self._next(answer, 0, max(self._chunk, min(wanted, _CHUNK_MAX)))

    def _next(self, answer: Answer, at: int, chunk: int) -> _Upload:
        """The upload as an answer describes it."""
        location = answer.response.header("location")
        if location is None:
            raise BadAnswerError(self._session.host, "upload: got no location for its next part")
        return _Upload(redirected(answer.url, location, self._repository.hosts, self._session.host), at, chunk)

    async def _send_chunk(self, upload: _Upload, blob: Descriptor, fd: int, counted: _Counted) -> _Upload:
        end = min(upload.at + upload.chunk, blob.size)
        headers = {**_OCTETS, "content-range": f"{upload.at}-{end - 1}"}
        body = _body(fd, blob, upload.at, end, counted)
        async with self._session.request(
            "PATCH", upload.url, self._scope, headers=headers, body=body, expect=(202,), retry=False
        ) as answer:
            got = _parse_range(answer.response.header("range"))
            if got not in (None, end):
                raise BadAnswerError(self._session.host, f"upload: has {got} bytes, want {end}", retryable=True)
            return self._next(answer, end, upload.chunk)

    async def _finish(self, upload: _Upload, blob: Descriptor, body: Body | bytes) -> None:
        joint = "&" if "?" in upload.url else "?"
        url = f"{upload.url}{joint}{urlencode({'digest': str(blob.digest)})}"
        async with self._session.request(
            "PUT", url, self._scope, headers=_OCTETS, body=body, expect=(201,), retry=False
        ):
            return

    async def _status(self, upload: _Upload, size: int) -> _Upload | None:
        """How far the registry says it got. None: it has forgotten the upload, or nothing of it arrived."""
        try:
            async with self._session.request("GET", upload.url, self._scope, expect=(204,)) as answer:
                at = _parse_range(answer.response.header("range")) or 0
                # Registries say 0-0 for one byte and for none; a new upload is as good.
                return self._next(answer, at, upload.chunk) if 1 < at <= size else None
        except RegistryError:
            return None

    async def _abandon(self, upload: _Upload) -> None:
        try:
            async with self._session.request("DELETE", upload.url, self._scope, expect=(204,), retry=False):
                return
        except RegistryError:
            return  # registries purge what nobody finishes


def _parse_range(text: str | None) -> int | None:
    """Bytes that an upload has, from its Range header."""
    match = _RANGE.fullmatch(text or "")
    return int(match[1]) + 1 if match else None


def _body(fd: int, blob: Descriptor, begin: int, end: int, counted: _Counted) -> Body:
    return Body(end - begin, lambda: _Pieces(fd, blob, begin, end, counted))


class _Pieces:
    """Bytes begin to end of a blob's file, read while they are sent."""

    def __init__(self, fd: int, blob: Descriptor, begin: int, end: int, counted: _Counted) -> None:
        self._fd = fd
        self._blob = blob
        self._at = begin
        self._end = end
        self._counted = counted

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        self._counted.move_to(self._at)  # what was given out before has been sent by now
        if self._at == self._end:
            raise StopAsyncIteration
        piece = await trio.to_thread.run_sync(os.pread, self._fd, min(_PIECE, self._end - self._at), self._at)
        if not piece:
            raise BadBlobError(str(self._blob.digest), f"ends after {self._at} bytes, want {self._blob.size}")
        self._at += len(piece)
        return piece
