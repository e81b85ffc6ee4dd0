"""A registry in memory, on loopback, that can be told to lie: the distribution API and a token endpoint in a thread.

    with FakeRegistry() as registry:
        registry.faults.append(Fault("GET", "/blobs/", lambda answer: answer.send(503, {"Retry-After": "7"})))

Each fault takes one matching request, in order; `requests` has all that came, with their headers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from registry.model import OCI_MANIFEST


@dataclass(frozen=True, slots=True)
class Seen:
    """headers: names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Fault:
    """What happens to the next request with this method, or ANY, whose path has part in it. act: gives the answer;
    returns True if it gave none and the registry should go on.
    """

    method: str
    part: str
    act: Callable[[Answer], bool | None]


class Answer:
    """The answer to one request, in the hands of a fault."""

    def __init__(self, handler: _Handler, seen: Seen) -> None:
        self._handler = handler
        self.seen = seen

    @property
    def registry(self) -> FakeRegistry:
        return self._handler.registry

    def send(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Content-Length is that of the body unless headers say otherwise."""
        self._handler.send_response_only(status)
        given = dict(headers or {})
        given.setdefault("Content-Length", str(len(body)))
        for name, value in given.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        if self.seen.method != "HEAD":
            self._handler.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Bytes on the wire as they are."""
        self._handler.wfile.write(data)

    def break_off(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends this much of an answer, then resets the connection."""
        self.send(status, headers, body)
        self.reset()

    def reset(self) -> None:
        self._handler.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # close sends RST
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._handler.close_connection = True
        self._handler.connection.shutdown(socket.SHUT_RD)


@dataclass(slots=True)
class FakeRegistry:
    """users: passwords by name; with any, every request needs a token, from `realm` or from here. lifetime: seconds
    that tokens say they live. valid: tokens that are accepted now. where: digests by repository.
    """

    users: dict[str, str] = field(default_factory=dict)
    basic: bool = False
    realm: str | None = None
    lifetime: int = 300
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    where: dict[str, set[str]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    valid: set[str] = field(default_factory=set)
    tokens: int = 0
    page: int = 1000
    mounts: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)  # around looks at faults
    _idle: threading.Condition = field(default_factory=threading.Condition)
    _connections: int = 0  # guarded by _idle
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> FakeRegistry:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = False  # so that closing waits for them
        server.registry = self  # type: ignore[attr-defined]
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def host(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.server_address[1]}"

    def settle(self) -> None:
        """Waits until nobody is connected: what a client that has gone had sent is answered."""
        with self._idle:
            assert self._idle.wait_for(lambda: self._connections == 0, 20)

    def count(self, change: int) -> None:
        with self._idle:
            self._connections += change
            self._idle.notify_all()

    def take(self, methods: Sequence[str], path: str) -> Fault | None:
        """The fault for a request; nobody else gets it."""
        with self._lock:
            for row, fault in enumerate(self.faults):
                if fault.method in methods and fault.part in path:
                    return self.faults.pop(row)
        return None

    def put_blob(self, repository: str, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        self.where.setdefault(repository, set()).add(digest)
        return digest

    def put_manifest(self, repository: str, name: str, raw: bytes, media_type: str = OCI_MANIFEST) -> str:
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.manifests[repository, name] = self.manifests[repository, digest] = (media_type, raw)
        return digest

    def seen(self, method: str, part: str = "") -> list[Seen]:
        return [one for one in self.requests if one.method == method and part in one.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, *_: object) -> None:
        return

    def handle(self) -> None:
        self.registry.count(1)
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            return  # the client went away; it says why
        finally:
            self.registry.count(-1)

    @property
    def registry(self) -> FakeRegistry:
        found: FakeRegistry = self.server.registry  # type: ignore[attr-defined]
        return found

    def _any(self) -> None:
        registry = self.registry
        headers = {name.lower(): value for name, value in self.headers.items()}
        early = Answer(self, Seen(self.command, self.path, headers, b""))
        if fault := registry.take((f"{self.command} early",), self.path):  # before the body is read
            fault.act(early)
            self.close_connection = True
            return
        body = self.rfile.read(int(headers.get("content-length", 0)))
        seen = Seen(self.command, self.path, headers, body)
        registry.requests.append(seen)
        answer = Answer(self, seen)
        if (fault := registry.take((self.command, "ANY"), self.path)) and not fault.act(answer):
            return
        _respond(registry, answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any


def _respond(registry: FakeRegistry, answer: Answer) -> None:
    seen = answer.seen
    parts = urlsplit(seen.path)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    if parts.path == "/token":
        return _token(registry, answer, query)
    if registry.users and not _authorized(registry, seen):
        realm = registry.realm or f"http://{registry.host}/token"
        challenge = 'Basic realm="fake"' if registry.basic else f'Bearer realm="{realm}",service="fake"'
        return _error(answer, 401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
    match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags|referrers)/(.+)", parts.path)
    if match is None:
        return answer.send(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
    repository, kind, name = match.groups()
    if kind == "manifests":
        return _manifest(registry, answer, repository, name)
    if kind == "tags":
        return _tags(registry, answer, repository, query)
    if kind == "blobs" and name.startswith("uploads/"):
        return _upload(registry, answer, repository, name.removeprefix("uploads/"), query)
    if kind == "blobs":
        return _blob(registry, answer, repository, name)
    return answer.send(404, {"Content-Type": "text/plain"}, b"404 page not found\n")


def _authorized(registry: FakeRegistry, seen: Seen) -> bool:
    kind, _, value = seen.headers.get("authorization", "").partition(" ")
    if registry.basic:
        return kind == "Basic" and _known(registry, value)
    return kind == "Bearer" and value in registry.valid


def _known(registry: FakeRegistry, value: str) -> bool:
    name, _, password = base64.b64decode(value).decode().partition(":")
    return registry.users.get(name) == password


def _token(registry: FakeRegistry, answer: Answer, query: Mapping[str, str]) -> None:
    kind, _, value = answer.seen.headers.get("authorization", "").partition(" ")
    if kind != "Basic" or not _known(registry, value):
        return _error(answer, 401, "UNAUTHORIZED", "incorrect username or password")
    registry.tokens += 1
    token = f"token-{registry.tokens}"
    registry.valid.add(token)
    return _json(answer, 200, {"token": token, "expires_in": registry.lifetime})


def _manifest(registry: FakeRegistry, answer: Answer, repository: str, name: str) -> None:
    if answer.seen.method == "PUT":
        document = json.loads(answer.seen.body)
        named = {blob["digest"] for blob in (document["config"], *document["layers"])}
        if not named <= registry.where.get(repository, set()):
            return _error(answer, 400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
        digest = registry.put_manifest(repository, name, answer.seen.body, answer.seen.headers["content-type"])
        return answer.send(201, {"Docker-Content-Digest": digest, "Location": f"/v2/{repository}/manifests/{digest}"})
    found = registry.manifests.get((repository, name))
    if found is None:
        return _error(answer, 404, "MANIFEST_UNKNOWN", "manifest unknown")
    digest = f"sha256:{hashlib.sha256(found[1]).hexdigest()}"
    return answer.send(200, {"Content-Type": found[0], "Docker-Content-Digest": digest}, found[1])


def _tags(registry: FakeRegistry, answer: Answer, repository: str, query: Mapping[str, str]) -> None:
    names = sorted(name for one, name in registry.manifests if one == repository and not name.startswith("sha256:"))
    names = [name for name in names if name > query.get("last", "")]
    headers = {}
    if len(names) > registry.page:
        names = names[: registry.page]
        headers["Link"] = f'</v2/{repository}/tags/list?last={names[-1]}&n={registry.page}>; rel="next"'
    _json(answer, 200, {"name": repository, "tags": names}, headers)


def _blob(registry: FakeRegistry, answer: Answer, repository: str, digest: str) -> None:
    if digest not in registry.where.get(repository, ()):
        return _error(answer, 404, "BLOB_UNKNOWN", "blob unknown to registry")
    data = registry.blobs[digest]
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", answer.seen.headers.get("range", ""))
    if match is None:
        return answer.send(200, {"Content-Type": "application/octet-stream"}, data)
    first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
    return answer.send(206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])


def _upload(registry: FakeRegistry, answer: Answer, repository: str, name: str, query: Mapping[str, str]) -> None:
    seen = answer.seen
    if seen.method == "POST":
        mounted = query.get("mount", "")
        if registry.mounts and mounted in registry.where.get(query.get("from", ""), ()):
            registry.where.setdefault(repository, set()).add(mounted)
            return answer.send(201, {"Location": f"/v2/{repository}/blobs/{mounted}"})
        name = os.urandom(8).hex()
        registry.uploads[name] = bytearray()
        return answer.send(202, {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=0"})
    if name not in registry.uploads:
        return _error(answer, 404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
    data = registry.uploads[name]
    where = {"Location": f"/v2/{repository}/blobs/uploads/{name}?state={len(data) + len(seen.body)}"}
    if seen.method in ("PATCH", "PUT"):
        begin = re.match(r"(\d+)-", seen.headers.get("content-range", ""))
        if begin and int(begin[1]) != len(data):
            return _error(answer, 416, "RANGE_INVALID", "wrong offset")
        data += seen.body
    if seen.method == "PUT":
        del registry.uploads[name]
        if query["digest"] != f"sha256:{hashlib.sha256(data).hexdigest()}":
            return _error(answer, 400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        registry.put_blob(repository, bytes(data))
        return answer.send(201)
    if seen.method == "DELETE":
        del registry.uploads[name]
        return answer.send(204)
    return answer.send(202 if seen.method == "PATCH" else 204, {**where, "Range": f"0-{max(len(data) - 1, 0)}"})


def _error(answer: Answer, status: int, code: str, words: str, headers: Mapping[str, str] | None = None) -> None:
    _json(answer, status, {"errors": [{"code": code, "message": words}]}, headers)


def _json(answer: Answer, status: int, document: Any, headers: Mapping[str, str] | None = None) -> None:
    answer.send(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(document).encode())
