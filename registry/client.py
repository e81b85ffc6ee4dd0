"""Images and blobs of a registry, as values: the distribution API, the reading half (`registry/upload.py` writes).

`Client` knows how registries are reached; `Repository` is one repository of one of them. Nothing is believed: a
manifest is hashed before it is parsed, a blob while it is written, and an answer to a range has to be that range.

    async with HttpTransport(hosts) as transport:
        repository = Client(Surroundings(transport, hosts, login)).repository(Reference.parse("ghcr.io/me/app:v2"))
        manifest = await repository.resolve()
        data = await repository.read_range(manifest.config, 0, 100)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode

from cext.record import Record
from registry.auth import Scope, Send
from registry.errors import (
    BadAnswerError,
    BadDocumentError,
    NotThereError,
    RegistryError,
    UnreachableError,
)
from registry.layout import Layout, write_all
from registry.model import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCUMENT_MAX,
    IMAGE,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    parse_json,
)
from registry.origin import DOCKER_IO, Hosts, origin_of, parse_date, redirected, settings_for, signed_until
from registry.reference import Reference
from registry.session import Answer, Session, Surroundings, parse_length

_MANIFESTS = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_NEXT = re.compile(r'<([^<>]+)>(?=[^,]*;\s*rel="?next"?(?:[;,\s]|$))')
_PAGES_MAX = 1000
_TAGS_MAX = 1_000_000
_PROGRESS = 64 << 10  # bytes that a connection has to bring to count as one that works
_NESTED_MAX = 3  # an index in an index in an index
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
T = TypeVar("T")
SIGNED_SECONDS = 120.0  # how long a URL on another host counts as good if it does not say


class Location(Record):
    """Where ranges of a blob can be had without asking the registry again.

    headers: to be sent with each request, secrets among them; only to this URL. ca: trusted there beside the system's
    certificates. expires_at, renew_at: seconds of
    time.monotonic (CLOCK_MONOTONIC), inf if it does not end; whoever uses it asks for a new one from renew_at on.
    """

    unshown = ("url", "headers")

    url: str
    headers: Mapping[str, str]
    expires_at: float
    renew_at: float
    ca: str | None = None


class Client:
    """Sessions are shared by all repositories of the same name, so that their tokens are."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._sessions: dict[tuple[str, str], Session] = {}

    def repository(self, reference: Reference, *, push: bool = False) -> Repository:
        """reference: of a registry. push: what is asked of it is part of a push, and so is the login."""
        host = reference.require_host().host
        assert host is not None
        mirrors = settings_for(self._world.hosts, host).mirrors
        path = reference.path
        if host == DOCKER_IO and "/" not in path:
            path = f"library/{path}"
        sessions = [self._session(name, path) for name in (*mirrors, host)]
        return Repository(reference, path, sessions, self._world, push=push)

    def _session(self, host: str, path: str) -> Session:
        if (host, path) not in self._sessions:
            self._sessions[host, path] = Session(host, path, self._world)
        return self._sessions[host, path]


class Repository:
    """reference: as given. Reads ask the mirrors first and the registry itself last; writes only the latter."""

    def __init__(
        self,
        reference: Reference,
        path: str,
        sessions: Sequence[Session],
        world: Surroundings,
        *,
        push: bool = False,
    ) -> None:
        self.reference = reference
        self.path = path
        self.hosts: Hosts = world.hosts
        *self._mirrors, self.session = sessions
        self._clock = world.clock
        self._pace = self.session.pace
        self._scope = Scope(path, push=push)

    async def _first(self, ask: Callable[[Session], Awaitable[T]]) -> T:
        """What the first source answers that does not fail."""
        for session in tuple(self._mirrors):
            try:
                return await ask(session)
            except UnreachableError:
                # The rest of an image is not worth another minute of waiting for it.
                if not session.answered and session in self._mirrors:
                    self._mirrors.remove(session)
            except RegistryError:
                continue
        return await ask(self.session)

    # ------------------------------------------------------------------ documents

    async def resolve(self) -> Manifest:
        """The image that the reference names; of an index, ours or the only one in it."""
        wanted = self.reference.digest
        raw = await self._manifest(str(wanted or self.reference.tag), wanted)
        for _ in range(_NESTED_MAX):
            if not _is_index(raw):
                return Manifest.parse(raw)
            chosen = choose(Index.parse(raw, f"index {self.reference}").manifests, str(self.reference))
            raw = await self._manifest(str(chosen.digest), chosen.digest)
        raise BadDocumentError(str(self.reference), f"indexes nested more than {_NESTED_MAX} deep")

    async def _manifest(self, name: str, wanted: Digest | None) -> bytes:
        """The bytes of a manifest or index, hashed: they are what was asked for, as far as that was said."""
        try:
            return await self._first(lambda session: self._manifest_at(session, name, wanted))
        except NotThereError as error:
            joint = "@" if ":" in name else ":"
            raise NotThereError(error.host, f"has no image {self.path}{joint}{name}") from error

    async def _manifest_at(self, session: Session, name: str, wanted: Digest | None) -> bytes:
        url = f"{self.path}/manifests/{name}"
        raw, answer = await session.document(url, self._scope, DOCUMENT_MAX, accept=_MANIFESTS)
        got = Digest.of(raw)
        promised = answer.response.header("docker-content-digest")
        for want in (None if wanted is None else str(wanted), promised):
            if want is not None and want.startswith("sha256:") and want != str(got):
                raise BadAnswerError(session.host, f"manifest {name}: got {got}, want {want}")
        kind = (answer.response.header("content-type") or "").partition(";")[0].strip().lower()
        if kind == "text/html" or raw[:1] not in (b"{", b" ", b"\n", b"\t", b"\r"):
            raise BadAnswerError(session.host, f"does not answer like a registry: got {kind or 'no content type'}")
        return raw

    async def tags(self) -> tuple[str, ...]:
        """All tags, in the registry's order."""
        found: list[str] = []
        async with aclosing(self._pages(f"{self.path}/tags/list?n=1000")) as pages:
            async for document in pages:
                page = document.get("tags") or []
                if not isinstance(page, list) or not all(isinstance(tag, str) and len(tag) <= 128 for tag in page):
                    raise BadAnswerError(self.session.host, "tags: want a list of tags")
                found += page
                if len(found) > _TAGS_MAX:
                    raise BadAnswerError(self.session.host, f"tags: got more than {_TAGS_MAX}")
        return tuple(found)

    async def referrers(self, digest: Digest, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Manifests whose subject is digest: by the API, else from the tag that stands in for it."""
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        found: list[Descriptor] = []
        try:
            url = f"{self.path}/referrers/{digest}{query}"
            async with aclosing(self._pages(url, accept=OCI_INDEX)) as pages:
                async for document in pages:
                    found += _manifests(document, self.session.host)
        except (NotThereError, BadAnswerError):
            try:
                raw = await self._manifest(f"sha256-{digest.hex}", None)
            except NotThereError:
                return ()
            found = list(Index.parse(raw, f"referrers of {digest}").manifests)
        return tuple(one for one in found if artifact_type in (None, one.artifact_type))

    async def _pages(self, url: str, accept: str = "application/json") -> AsyncGenerator[dict[str, Any], None]:
        session = self.session
        for _ in range(_PAGES_MAX):
            raw, answer = await session.document(url, self._scope, DOCUMENT_MAX, accept=accept)
            try:
                document = parse_json(raw, f"answer of {session.host}")
            except BadDocumentError as error:
                raise BadAnswerError(session.host, "does not answer like a registry: got no JSON") from error
            if not isinstance(document, dict):
                raise BadAnswerError(session.host, "answer: want an object")
            yield document
            match = _NEXT.search(answer.response.header("link") or "")
            if match is None:
                return
            url = redirected(answer.url, match[1], self.hosts, session.host)
            if origin_of(url, session.host) != origin_of(session.base, session.host):
                raise BadAnswerError(session.host, "its next page is on another host")
        raise BadAnswerError(session.host, f"list: got more than {_PAGES_MAX} pages")

    # ------------------------------------------------------------------ blobs

    async def has_blob(self, blob: Descriptor) -> bool:
        """Whether the registry itself has a blob of this digest and size."""
        try:
            async with self.session.request("HEAD", self._blob(blob), self._scope) as answer:
                length = parse_length(answer.response.header("content-length"), self.session.host)
        except NotThereError:
            return False
        if length not in (None, blob.size):
            raise BadAnswerError(self.session.host, f"blob {blob.digest}: got {length} bytes, want {blob.size}")
        return True

    async def read_range(self, blob: Descriptor, offset: int, length: int) -> bytes:
        """Exactly these bytes; not verified, since only the whole blob has a digest."""
        if not 0 < length <= blob.size - offset or offset < 0:
            raise ValueError(f"range {offset}+{length} of {blob.size} bytes")
        return await self._first(lambda session: self._range_at(session, blob, offset, length))

    async def _range_at(self, session: Session, blob: Descriptor, offset: int, length: int) -> bytes:
        failures = 0
        while True:
            async with self._open(session, blob, offset, length) as answer:
                try:
                    return b"".join([piece async for piece in exactly(answer, length, session.host)])
                except RegistryError as error:
                    broken = error
            await session.pause((failures := failures + 1), broken)

    async def fetch_blob(
        self,
        layout: Layout,
        blob: Descriptor,
        *,
        progress: Callable[[int], None] | None = None,
        judge: Callable[[int], object] | None = None,
    ) -> None:
        """Brings a whole blob into the layout: hashed while it is written, synced, then named. Call it inside
        `writing`; the name is durable after `layout.sync`. A connection that breaks off goes on where it was.
        judge: gets the finished file, in a thread; what it raises keeps the blob out.
        """
        await self._first(lambda session: self._fetch_at(session, layout, blob, progress or (lambda size: None), judge))

    async def _fetch_at(
        self,
        session: Session,
        layout: Layout,
        blob: Descriptor,
        progress: Callable[[int], None],
        judge: Callable[[int], object] | None,
    ) -> None:
        with layout.staging() as staging:
            with staging.file("blob") as fd:
                try:
                    await self._download(session, blob, fd, progress)
                    if judge is not None:
                        await self._pace.in_thread(judge, fd)
                    await self._pace.in_thread(os.fsync, fd)  # the one at the block's end then has nothing to do
                except BaseException:
                    progress(-os.fstat(fd).st_size)  # whoever counts should not see these bytes twice
                    raise
            staging.adopt("blob", blob.digest)

    async def copy_blob(self, blob: Descriptor, fd: int) -> None:
        """Writes a whole blob to an empty file, hashed on the way: what is there afterwards is what its digest says."""

        async def ask(session: Session) -> None:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            await self._download(session, blob, fd, lambda size: None)

        await self._first(ask)

    async def _download(self, session: Session, blob: Descriptor, fd: int, progress: Callable[[int], None]) -> None:
        """Writes the blob to fd, from its position 0 on."""
        import hashlib  # with OpenSSL, which the transport has loaded anyway

        hasher = hashlib.sha256()
        at = failures = 0
        while at < blob.size:
            begin, broken = at, None
            async with self._open(session, blob, at, blob.size - at) as answer:
                try:
                    async with aclosing(exactly(answer, blob.size - at, session.host)) as pieces:
                        async for piece in pieces:
                            write_all(fd, piece)
                            hasher.update(piece)
                            at += len(piece)
                            progress(len(piece))
                except RegistryError as error:
                    broken = error
            if broken is not None:
                failures = 1 if at - begin >= _PROGRESS else failures + 1  # what hardly moves is given up
                await session.pause(failures, broken)
        if (got := hasher.hexdigest()) != blob.digest.hex:
            raise BadAnswerError(session.host, f"blob {blob.digest}: content is sha256:{got}")

    async def blob_sources(self, probe: Descriptor) -> list[Location]:
        """Where ranges of every blob of the repository can be asked for, the mirrors first: urls with `{digest}` for
        the hexadecimal digits. probe: a blob of it. A host that fails is left out; raises if there is no other.
        """
        found: list[Location] = []
        failure: RegistryError | None = None
        for session in (*self._mirrors, self.session):
            asked = self._clock()
            try:
                sent = await session.login(self._blob(probe), self._scope)
            except RegistryError as error:
                failure = error
                continue
            found.append(self._source(session, sent, asked))
        if failure is not None and not found:
            raise failure
        return found

    async def known_sources(self) -> list[Location]:
        """The same without asking anybody but for tokens: of the hosts that have answered, with what they accepted."""
        found: list[Location] = []
        failure: RegistryError | None = None
        for session in (*self._mirrors, self.session):
            if not session.answered:
                continue
            asked = self._clock()
            try:
                sent = await session.authorization(self._scope)
            except RegistryError as error:  # it has answered that it does not let us in
                failure = error
                continue
            found.append(self._source(session, sent, asked))
        if failure is not None and not found:
            raise failure
        return found

    def _source(self, session: Session, sent: Send, asked: float) -> Location:
        headers = {} if sent.authorization is None else {"authorization": sent.authorization}
        seconds = sent.expires_at - asked
        renew = seconds - min(seconds / 4, 60.0) if seconds < math.inf else seconds
        url = f"{session.base}{self.path}/blobs/sha256:{{digest}}"
        return Location(url, headers, asked + seconds, asked + renew)

    async def blob_location(self, blob: Descriptor) -> Location:
        """Where the registry's redirects end, found by asking for the first byte, and how long that is good."""
        return await self._first(lambda session: self._location_at(session, blob))

    async def _location_at(self, session: Session, blob: Descriptor) -> Location:
        asked = self._clock()
        async with self._open(session, blob, 0, min(1, blob.size)) as answer:
            date = parse_date(answer.response.header("date"))
        headers = {key: value for key, value in answer.headers.items() if key == "authorization"}
        origin = origin_of(answer.url, session.host)
        if origin == origin_of(session.base, session.host):
            seconds = answer.expires_at - asked
        else:
            until = signed_until(answer.url)
            seconds = SIGNED_SECONDS if until is None or date is None else until - date
        if seconds <= 0:
            raise BadAnswerError(session.host, f"blob {blob.digest}: its location has expired already", retryable=True)
        renew = seconds - min(seconds / 4, 60.0)
        return Location(answer.url, headers, asked + seconds, asked + renew, settings_for(self.hosts, origin.netloc).ca)

    @asynccontextmanager
    async def _open(self, session: Session, blob: Descriptor, offset: int, length: int) -> AsyncIterator[Answer]:
        """An answer that promises exactly this range. A whole blob may come without having been cut out of itself."""
        whole = length == blob.size
        headers = {} if whole else {"range": f"bytes={offset}-{offset + length - 1}"}
        expect = (200,) if whole else (200, 206)
        async with session.request("GET", self._blob(blob), self._scope, headers=headers, expect=expect) as answer:
            response = answer.response
            what = f"blob {blob.digest}: range {offset}-{offset + length - 1}"
            if not whole and response.status != 206:
                raise BadAnswerError(session.host, f"{what}: got status 200 and the whole blob, want 206")
            if response.status == 206:
                check_content_range(response.header("content-range"), blob, offset, length, session.host)
            got = parse_length(response.header("content-length"), session.host)
            if got not in (None, length):
                raise BadAnswerError(session.host, f"{what}: got {got} bytes, want {length}")
            yield answer

    def _blob(self, blob: Descriptor) -> str:
        # A descriptor's `urls` are never looked at: whoever wrote the manifest would choose where our requests go.
        return f"{self.path}/blobs/{blob.digest}"


async def exactly(answer: Answer, length: int, who: str) -> AsyncGenerator[bytes, None]:
    """The pieces of a body that has to have this length."""
    left = length
    async for piece in answer.response.pieces():
        left -= len(piece)
        if left < 0:
            raise BadAnswerError(who, f"answer: got more than the {length} bytes that it promised")
        yield piece
    if left:
        raise BadAnswerError(who, f"answer: got {length - left} of {length} bytes", retryable=True)


def check_content_range(text: str | None, blob: Descriptor, offset: int, length: int, who: str) -> None:
    """Content-Range of a 206: the range that was asked for, of a blob of the size that is expected."""
    match = _CONTENT_RANGE.fullmatch(text or "")
    want = f"bytes {offset}-{offset + length - 1}/{blob.size}"
    if match is None or (int(match[1]), int(match[2])) != (offset, offset + length - 1):
        raise BadAnswerError(who, f"blob {blob.digest}: content-range: got {(text or 'none')[:80]!r}, want {want}")
    if match[3] not in ("*", str(blob.size)):
        raise BadAnswerError(who, f"blob {blob.digest}: content-range: got {(text or 'none')[:80]!r}, want {want}")


def choose(entries: Sequence[Descriptor], what: str) -> Descriptor:
    """The entry of an index that we can use: the one of ours, else the only one, else this machine's."""
    ours = [entry for entry in entries if entry.artifact_type == IMAGE] or list(entries)
    if len(ours) > 1:
        machine = os.uname().machine
        wanted = ("linux", _ARCHITECTURES.get(machine, machine))
        ours = [entry for entry in ours if entry.platform is not None and entry.platform[:2] == wanted]
    if len(ours) != 1:
        raise BadDocumentError(what, f"an index of {len(entries)} images, {len(ours)} of them for us: want one")
    return ours[0]


def _is_index(raw: bytes) -> bool:
    document = parse_json(raw, "manifest")
    return isinstance(document, dict) and "manifests" in document


def _manifests(document: dict[str, Any], who: str) -> list[Descriptor]:
    entries = document.get("manifests")
    if not isinstance(entries, list):
        raise BadAnswerError(who, "referrers: want a list of manifests")
    return [Descriptor.from_json(entry, f"referrer at {who}") for entry in entries]
