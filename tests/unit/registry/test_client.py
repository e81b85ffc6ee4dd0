"""The client against a registry in memory, over a real connection; pauses are recorded, not waited for."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path

import pytest

from registry.auth import Credential
from registry.client import Client, Location, Repository, check_content_range, choose
from registry.errors import (
    BadAnswerError,
    BadDocumentError,
    BadReferenceError,
    DeniedError,
    NotThereError,
    RefusedError,
    RegistryError,
    UnreachableError,
)
from registry.layout import Layout
from registry.model import IMAGE, OCI_INDEX, OCI_MANIFEST, PACK, Descriptor, Digest, dump_json
from registry.origin import HostSettings
from registry.reference import Reference
from registry.session import Surroundings
from registry.transport import HttpTransport
from tests.support.fake_registry import Answer, FakeRegistry, Fault
from tests.support.registry_world import DATA, World


@pytest.fixture(params=["trio", "thin"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """On both roads: the client's logic is written once."""
    with FakeRegistry() as registry:
        yield World(registry, thin=request.param == "thin")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "root")


def html(answer: Answer) -> None:
    answer.send(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html><body>Welcome</body></html>")


# ---------------------------------------------------------------------- manifests


def test_a_tag_becomes_a_manifest_with_the_bytes_that_were_hashed(world: World) -> None:
    raw = world.image()
    manifest = world.call(Repository.resolve)
    assert (manifest.raw, manifest.digest) == (raw, Digest.of(raw))


def test_an_image_can_be_asked_for_by_digest(world: World) -> None:
    old = world.image("old")
    world.image("new")
    assert world.call(Repository.resolve, f"me/app@{Digest.of(old)}").raw == old


def test_a_name_without_a_host_is_no_repository() -> None:
    with pytest.raises(BadReferenceError, match="names no registry"):
        Client(Surroundings(HttpTransport({}), {}, lambda host, path: None)).repository(Reference.parse("app"))


def test_a_missing_tag_reads_as_what_it_is(world: World) -> None:
    world.image()
    with pytest.raises(NotThereError, match="has no image me/app:v9"):
        world.call(Repository.resolve, "me/app:v9")
    assert world.slept == []


def test_other_bytes_than_the_digest_says_are_refused(world: World) -> None:
    digest = Digest.of(world.image())
    world.registry.manifests["me/app", str(digest)] = (OCI_MANIFEST, b'{"schemaVersion":2}')
    with pytest.raises(BadAnswerError, match=f"want {digest}"):
        world.call(Repository.resolve, f"me/app@{digest}")


def test_a_registry_that_contradicts_its_own_digest_is_refused(world: World) -> None:
    raw = world.image()
    lie = {"Docker-Content-Digest": "sha256:" + "0" * 64, "Content-Type": OCI_MANIFEST}
    world.registry.faults.append(Fault("GET", "/manifests/", lambda answer: answer.send(200, lie, raw)))
    with pytest.raises(BadAnswerError, match="want sha256:0000"):
        world.call(Repository.resolve)


def test_a_web_page_is_not_a_registry(world: World) -> None:
    world.registry.faults.append(Fault("GET", "/manifests/", html))
    with pytest.raises(BadAnswerError, match="does not answer like a registry: got text/html"):
        world.call(Repository.resolve)


def test_a_web_page_that_says_404_is_not_a_registry(world: World) -> None:
    page = {"Content-Type": "text/html"}
    world.registry.faults.append(Fault("GET", "/manifests/", lambda answer: answer.send(404, page, b"<html>")))
    with pytest.raises(BadAnswerError, match="does not answer like a registry: got status 404 and text/html"):
        world.call(Repository.resolve)


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"schemaVersion":1}', b"[" * 100_000, b'{"a":1,"a":2}'])
def test_a_document_that_is_no_manifest_is_refused(world: World, body: bytes) -> None:
    world.registry.put_manifest("me/app", "v1", body)
    with pytest.raises((BadDocumentError, BadAnswerError)):
        world.call(Repository.resolve)


def test_a_manifest_has_a_size_limit_that_holds_without_content_length(world: World) -> None:
    def endless(answer: Answer) -> None:
        answer.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            answer.raw(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")

    world.registry.faults.append(Fault("GET", "/manifests/", endless))
    with pytest.raises(BadAnswerError, match="got more than 8388608 bytes"):
        world.call(Repository.resolve)


def test_an_index_gives_the_image_that_is_ours(world: World) -> None:
    raw = world.image()
    ours = Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw), artifact_type=IMAGE)
    other = Descriptor(OCI_MANIFEST, Digest.of(b"other"), 5, platform=("linux", "amd64", ""))
    index = dump_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other.to_json(), ours.to_json()]})
    world.registry.put_manifest("me/app", "v1", index, OCI_INDEX)
    assert world.call(Repository.resolve).raw == raw


def test_an_index_in_an_index_in_an_index_is_enough(world: World) -> None:
    def index(inner: bytes) -> bytes:
        entry = Descriptor(OCI_INDEX, Digest.of(inner), len(inner)).to_json()
        return dump_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})

    raw = world.image()
    for _ in range(4):
        raw = index(raw)
        world.registry.put_manifest("me/app", "v1", raw, OCI_INDEX)
    with pytest.raises(BadDocumentError, match="nested more than 3 deep"):
        world.call(Repository.resolve)


def test_an_index_that_offers_nothing_for_us_says_what_it_offers() -> None:
    entries = [Descriptor(OCI_MANIFEST, Digest.of(name.encode()), 1, platform=("windows", name, "")) for name in "abc"]
    with pytest.raises(BadDocumentError, match="an index of 3 images, 0 of them for us"):
        choose(entries, "app")


# ---------------------------------------------------------------------- patience


def test_429_and_503_are_waited_for_as_long_as_they_ask(world: World) -> None:
    world.image()
    for status, after in ((429, "7"), (503, "3")):
        world.registry.faults.append(
            Fault("GET", "/manifests/", lambda answer, s=status, a=after: answer.send(s, {"Retry-After": a}))  # type: ignore[misc]
        )
    world.call(Repository.resolve)
    assert world.slept == [7, 3]


def test_patience_has_an_end_and_the_message_says_what_was_asked(world: World) -> None:
    world.registry.faults.append(Fault("GET", "/manifests/", lambda answer: answer.send(429, {"Retry-After": "3600"})))
    with pytest.raises(RefusedError, match="got status 429, asks to wait 3600 s"):
        world.call(Repository.resolve)
    assert world.slept == []


def test_a_registry_that_stays_ill_is_given_up(world: World) -> None:
    world.registry.faults += [Fault("GET", "/manifests/", lambda answer: answer.send(502)) for _ in range(9)]
    with pytest.raises(RefusedError, match="502"):
        world.call(Repository.resolve)
    assert world.slept == [0.25, 0.5, 1, 2, 4]


def test_a_host_that_nobody_answers_for_is_unreachable_at_once(world: World) -> None:
    host = world.registry.host
    world.registry.__exit__()
    try:
        with pytest.raises(UnreachableError, match=f"{host}: unreachable: connection refused"):
            world.call(Repository.resolve)
        assert len(world.slept) == 1
    finally:
        world.registry.__enter__()


def test_a_registry_without_tls_is_told_apart(world: World) -> None:
    world.others = {world.registry.host: HostSettings()}
    with pytest.raises(UnreachableError, match="does not speak TLS") as caught:
        world.call(Repository.resolve)
    assert caught.value.hint is not None
    assert f'plain-http = true under [registry."{world.registry.host}"]' in caught.value.hint


def test_ten_megabytes_of_www_authenticate_are_not_read(world: World) -> None:
    def flood(answer: Answer) -> None:
        answer.raw(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm=")
        for _ in range(160):
            answer.raw(b"a" * 65536)

    world.registry.faults += [Fault("GET", "/manifests/", flood) for _ in range(9)]
    with pytest.raises(RegistryError):
        world.call(Repository.resolve)


# ---------------------------------------------------------------------- ranges


def test_a_range_is_exactly_that_range(world: World) -> None:
    blob = world.blob()
    assert world.call(lambda repository: repository.read_range(blob, 1000, 500)) == DATA[1000:1500]
    (seen,) = world.registry.seen("GET")
    assert seen.headers["range"] == "bytes=1000-1499"


def test_a_whole_blob_may_be_read_as_a_range(world: World) -> None:
    blob = world.blob(b"abc")
    assert world.call(lambda repository: repository.read_range(blob, 0, 3)) == b"abc"


LIES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "200 for 206": (200, {}, DATA),
    "no content-range": (206, {}, DATA[10:20]),
    "another range": (206, {"Content-Range": f"bytes 11-20/{len(DATA)}"}, DATA[11:21]),
    "another size": (206, {"Content-Range": "bytes 10-19/9999"}, DATA[10:20]),
    "a unit that is not bytes": (206, {"Content-Range": f"lines 10-19/{len(DATA)}"}, DATA[10:20]),
    "a longer body": (206, {"Content-Range": f"bytes 10-19/{len(DATA)}"}, DATA[10:40]),
    "a shorter body": (206, {"Content-Range": f"bytes 10-19/{len(DATA)}"}, DATA[10:15]),
    "a compressed body": (206, {"Content-Range": f"bytes 10-19/{len(DATA)}", "Content-Encoding": "gzip"}, DATA[10:20]),
    "a length that is no number": (206, {"Content-Range": f"bytes 10-19/{len(DATA)}", "Content-Length": "1e1"}, b""),
    "not modified": (304, {}, b""),
    "no content": (204, {}, b""),
    "html": (200, {"Content-Type": "text/html"}, b"<html>"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_range_is_an_error(world: World, lie: str) -> None:
    blob = world.blob()
    status, headers, body = LIES[lie]
    world.registry.faults += [Fault("GET", "/blobs/", lambda answer: answer.send(status, headers, body))] * 9
    with pytest.raises(RegistryError):
        world.call(lambda repository: repository.read_range(blob, 10, 10))


@pytest.mark.parametrize("text", ["bytes 0-9/*", "bytes 0-9/100"])
def test_a_content_range_may_leave_the_size_open(text: str) -> None:
    check_content_range(text, Descriptor(PACK, Digest.of(b""), 100), 0, 10, "host")


@pytest.mark.parametrize(
    "text", [None, "", "bytes 0-9", "bytes=0-9/100", "bytes 0-9/100 ", "bytes 0-09/1000", "bytes */100"]
)
def test_a_content_range_that_is_none_is_refused(text: str | None) -> None:
    with pytest.raises(BadAnswerError, match="content-range"):
        check_content_range(text, Descriptor(PACK, Digest.of(b""), 100), 0, 10, "host")


# ---------------------------------------------------------------------- whole blobs


def fetch(world: World, layout: Layout, blob: Descriptor) -> list[int]:
    steps: list[int] = []
    with layout.writing():
        world.call(lambda repository: repository.fetch_blob(layout, blob, progress=steps.append))
    return steps


def staged(layout: Layout) -> list[str]:
    return [name.name for name in Path(layout.images, "blobs").iterdir() if name.name != "sha256"]


def test_a_blob_arrives_in_the_layout(world: World, layout: Layout) -> None:
    blob = world.blob()
    assert sum(fetch(world, layout, blob)) == blob.size
    layout.verify_blob(blob)
    assert staged(layout) == []


def test_an_empty_blob_arrives_too(world: World, layout: Layout) -> None:
    blob = world.blob(b"")
    fetch(world, layout, blob)
    layout.verify_blob(blob)


def test_a_connection_reset_in_the_middle_goes_on_where_it_was(world: World, layout: Layout) -> None:
    blob = world.blob()
    length = {"Content-Length": str(blob.size)}
    world.registry.faults.append(Fault("GET", "/blobs/", lambda answer: answer.break_off(200, length, DATA[:300_000])))
    assert sum(fetch(world, layout, blob)) == blob.size
    layout.verify_blob(blob)
    first, second = world.registry.seen("GET")
    assert "range" not in first.headers
    begin = int(second.headers["range"].removeprefix("bytes=").partition("-")[0])
    assert 0 < begin <= 300_000


def test_an_end_that_comes_too_soon_goes_on_where_it_was(world: World, layout: Layout) -> None:
    blob = world.blob()
    short = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n" + DATA[:3] + b"\r\n0\r\n\r\n"
    world.registry.faults.append(Fault("GET", "/blobs/", lambda answer: answer.raw(short)))
    fetch(world, layout, blob)
    layout.verify_blob(blob)
    assert world.registry.seen("GET")[1].headers["range"] == f"bytes=3-{blob.size - 1}"


def test_what_never_moves_is_given_up(world: World, layout: Layout) -> None:
    blob = world.blob()
    length = {"Content-Length": str(blob.size)}
    world.registry.faults += [Fault("GET", "/blobs/", lambda answer: answer.break_off(200, length, b""))] * 20
    with pytest.raises(UnreachableError):
        fetch(world, layout, blob)
    assert len(world.slept) == 5
    assert not layout.has(blob)


@pytest.mark.parametrize("data", [b"evil" + DATA[4:], DATA[:-1], DATA + b"x"], ids=["flipped", "short", "long"])
def test_other_bytes_never_get_the_name_of_the_blob(world: World, layout: Layout, data: bytes) -> None:
    blob = world.blob()
    world.registry.blobs[str(blob.digest)] = data
    steps: list[int] = []
    with layout.writing(), pytest.raises(BadAnswerError):
        world.call(lambda repository: repository.fetch_blob(layout, blob, progress=steps.append))
    assert not layout.has(blob)
    assert staged(layout) == []
    assert sum(steps) == 0


def test_what_a_judge_refuses_stays_out(world: World, layout: Layout) -> None:
    blob = world.blob()

    def judge(fd: int) -> None:
        raise BadDocumentError("pack", "no")

    with layout.writing(), pytest.raises(BadDocumentError):
        world.call(lambda repository: repository.fetch_blob(layout, blob, judge=judge))
    assert not layout.has(blob)


# ---------------------------------------------------------------------- logins and redirects


def test_a_token_is_asked_for_once_and_renewed_before_it_ends(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = world.blob()

    async def work(repository: Repository) -> None:
        for _ in range(3):
            await repository.read_range(blob, 0, 10)
        world.now += 299
        await repository.read_range(blob, 0, 10)

    world.call(work)
    assert world.registry.tokens == 2
    assert [one.headers.get("authorization") for one in world.registry.seen("GET", "/blobs/")] == [
        None,
        *["Bearer token-1"] * 3,
        "Bearer token-2",
    ]


def test_a_wrong_password_reads_as_one(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "guess")
    with pytest.raises(DeniedError, match="wrong user name or password"):
        world.call(Repository.resolve)
    world.registry.basic = True
    with pytest.raises(DeniedError, match="wrong user name or password"):
        world.call(Repository.resolve)


def test_many_requests_at_once_share_one_token(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = world.blob()

    async def work(repository: Repository) -> None:
        await world.at_once([lambda: repository.read_range(blob, 0, 10)] * 12)

    world.call(work)
    assert world.registry.tokens == 1


def test_sources_that_answered_are_known_without_another_request(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    world.image()

    async def work(repository: Repository) -> list[Location]:
        assert await repository.known_sources() == []
        await repository.resolve()
        before = len(world.registry.requests)
        found = await repository.known_sources()
        assert len(world.registry.requests) == before
        return found

    (found,) = world.call(work)
    assert found.url == f"http://{world.registry.host}/v2/me/app/blobs/sha256:{{digest}}"
    assert found.headers["authorization"].startswith("Bearer ")
    assert world.now < found.renew_at < found.expires_at


def test_a_mirror_that_lets_nobody_in_is_no_known_source_and_costs_no_start(world: World) -> None:
    with FakeRegistry() as mirror:
        mirror.users = {"somebody": "else"}
        world.others[mirror.host] = HostSettings(plain_http=True)
        world.mirrors = (mirror.host,)
        world.image()

        async def work(repository: Repository) -> list[Location]:
            await repository.resolve()
            return await repository.known_sources()

        (found,) = world.call(work)
        assert mirror.requests != []
    assert found.url.startswith(f"http://{world.registry.host}/v2/")


def test_a_mirror_that_is_not_there_is_asked_once(world: World) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        mirror = f"127.0.0.1:{nobody.getsockname()[1]}"
        world.others[mirror] = HostSettings(plain_http=True)
        world.mirrors = (mirror,)
        world.image()
        blob = world.blob()

        async def work(repository: Repository) -> bytes:
            await repository.resolve()
            return await repository.read_range(blob, 0, 10)

        assert world.call(work) == DATA[:10]
    assert len(world.slept) == 1


def test_a_token_that_is_revoked_in_mid_flight_is_renewed(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = world.blob()

    async def work(repository: Repository) -> bytes:
        await repository.read_range(blob, 0, 10)
        world.registry.valid.clear()
        return await repository.read_range(blob, 10, 10)

    assert world.call(work) == DATA[10:20]
    assert world.registry.tokens == 2


@pytest.mark.parametrize("basic", [False, True])
def test_no_login_follows_a_redirect_to_another_host(world: World, basic: bool) -> None:
    world.registry.users = {"me": "secret"}
    world.registry.basic = basic
    world.login = Credential("me", "secret")
    blob = world.blob()
    with FakeRegistry() as other:
        world.others = {other.host: HostSettings(plain_http=True)}
        other.put_blob("elsewhere", DATA)
        to = f"http://{other.host}/v2/elsewhere/blobs/{blob.digest}?sig=1"

        async def work(repository: Repository) -> bytes:
            await repository.read_range(blob, 0, 10)
            world.registry.faults.append(Fault("GET", "/blobs/", lambda answer: answer.send(307, {"Location": to})))
            return await repository.read_range(blob, 10, 10)

        assert world.call(work) == DATA[10:20]
        (seen,) = other.requests
        assert "authorization" not in seen.headers
        assert seen.headers["range"] == "bytes=10-19"


def test_a_redirect_target_that_wants_a_login_gets_none(world: World) -> None:
    world.login = Credential("me", "secret")
    blob = world.blob()
    with FakeRegistry(users={"me": "secret"}) as other:
        world.others = {other.host: HostSettings(plain_http=True)}
        to = {"Location": f"http://{other.host}/v2/me/app/blobs/{blob.digest}"}
        world.registry.faults.append(Fault("GET", "/blobs/", lambda answer: answer.send(302, to)))
        with pytest.raises(DeniedError, match=f"sent on to {other.host}"):
            world.call(lambda repository: repository.read_range(blob, 0, 10))
        assert [one.path for one in other.requests if one.path.startswith("/token")] == []


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Location": "http://cdn.example/x"}, "got http, want https"),
        ({"Location": "/v2/me/app/blobs/x"}, "more than 5 times"),
        ({}, "nowhere"),
    ],
)
def test_a_downgrade_a_loop_and_a_dead_end_are_refused(world: World, headers: dict[str, str], words: str) -> None:
    blob = world.blob()
    world.registry.faults += [Fault("GET", "", lambda answer: answer.send(307, headers))] * 7
    with pytest.raises(BadAnswerError, match=words):
        world.call(lambda repository: repository.read_range(blob, 0, 10))


# ---------------------------------------------------------------------- locations


def test_a_location_without_login_or_redirect_has_no_end(world: World) -> None:
    blob = world.blob()
    found = world.call(lambda repository: repository.blob_location(blob))
    assert found.url == f"http://{world.registry.host}/v2/me/app/blobs/{blob.digest}"
    assert (found.headers, found.expires_at, found.renew_at) == ({}, inf, inf)


def test_a_location_with_a_token_ends_with_it(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = world.blob()
    found = world.call(lambda repository: repository.blob_location(blob))
    assert found.headers == {"authorization": "Bearer token-1"}
    assert (found.expires_at, found.renew_at) == (1300, 1240)
    assert "token-1" not in repr(found)


@pytest.mark.parametrize(("query", "seconds"), [("X-Amz-Date=20261124T100000Z&X-Amz-Expires=600", 500), ("a=1", 120)])
def test_a_signed_location_ends_when_its_signature_does(world: World, query: str, seconds: float) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = world.blob()
    with FakeRegistry() as other:
        world.others = {other.host: HostSettings(plain_http=True)}
        url = f"http://{other.host}/bucket/x?{query}"
        answer = {"Date": "Tue, 24 Nov 2026 10:01:40 GMT", "Content-Range": f"bytes 0-0/{blob.size}"}
        other.faults.append(Fault("GET", "/bucket", lambda one: one.send(206, answer, DATA[:1])))

        async def work(repository: Repository) -> tuple[str, dict[str, str], float]:
            await repository.read_range(blob, 0, 1)
            world.registry.faults.append(Fault("GET", "/blobs/", lambda one: one.send(307, {"Location": url})))
            found = await repository.blob_location(blob)
            return found.url, dict(found.headers), found.expires_at

        assert world.call(work) == (url, {}, 1000 + seconds)


def test_a_location_that_has_expired_is_an_error(world: World) -> None:
    blob = world.blob()
    with FakeRegistry() as other:
        world.others = {other.host: HostSettings(plain_http=True)}
        answer = {"Date": "Tue, 24 Nov 2026 11:00:00 GMT", "Content-Range": f"bytes 0-0/{blob.size}"}
        other.faults.append(Fault("GET", "/x", lambda one: one.send(206, answer, DATA[:1])))
        to = {"Location": f"http://{other.host}/x?X-Amz-Date=20261124T100000Z&X-Amz-Expires=600"}
        world.registry.faults.append(Fault("GET", "/blobs/", lambda one: one.send(307, to)))
        with pytest.raises(BadAnswerError, match="expired already"):
            world.call(lambda repository: repository.blob_location(blob))


def test_sources_are_for_every_blob_of_a_repository_and_end_with_their_token(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    (found,) = world.call(lambda repository: repository.blob_sources(world.blob()))
    assert found.url == f"http://{world.registry.host}/v2/me/app/blobs/sha256:{{digest}}"
    assert found.headers == {"authorization": "Bearer token-1"}
    assert (found.expires_at, found.renew_at) == (1300, 1240)


def test_sources_of_mirrors_come_first_and_one_that_fails_is_left_out(world: World) -> None:
    blob = world.blob()
    with FakeRegistry() as mirror, FakeRegistry() as broken:
        mirror.put_blob("me/app", DATA)
        broken.faults += [Fault("GET", "/blobs/", lambda one: one.send(404))] * 9
        settings = HostSettings(plain_http=True)
        world.others = {mirror.host: settings, broken.host: settings}
        world.mirrors = (broken.host, mirror.host)
        found = world.call(lambda repository: repository.blob_sources(blob))
    hosts = [one.url.partition("/v2/")[0].partition("://")[2] for one in found]
    assert hosts == [mirror.host, world.registry.host]


def test_sources_of_a_registry_that_refuses_are_an_error(world: World) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "wrong")
    with pytest.raises(DeniedError):
        world.call(lambda repository: repository.blob_sources(world.blob()))


# ---------------------------------------------------------------------- lists


def test_tags_come_in_pages(world: World) -> None:
    for number in range(7):
        world.image(name=f"v{number}")
    world.registry.page = 3
    assert world.call(Repository.tags) == tuple(f"v{number}" for number in range(7))
    assert len(world.registry.seen("GET", "/tags/")) == 3


def test_a_next_page_on_another_host_is_refused(world: World) -> None:
    world.login = Credential("me", "secret")
    link = {"Link": '<https://evil.example/v2/me/app/tags/list>; rel="next"', "Content-Type": "application/json"}
    world.registry.faults.append(Fault("GET", "/tags/", lambda answer: answer.send(200, link, b'{"tags":["a"]}')))
    with pytest.raises(BadAnswerError, match="next page is on another host"):
        world.call(Repository.tags)


def test_pages_without_end_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = {"Link": '</v2/me/app/tags/list?again>; rel="next"'}
    world.registry.faults += [Fault("GET", "/tags/", lambda answer: answer.send(200, link, b'{"tags":[]}'))] * 5
    monkeypatch.setattr("registry.client._PAGES_MAX", 4)
    with pytest.raises(BadAnswerError, match="got more than 4 pages"):
        world.call(Repository.tags)


def test_referrers_come_from_the_api_or_from_the_tag_that_stands_in(world: World) -> None:
    subject = Digest.of(world.image())
    ours = Descriptor(OCI_MANIFEST, Digest.of(b"a"), 1, artifact_type=IMAGE)
    other = Descriptor(OCI_MANIFEST, Digest.of(b"b"), 1, artifact_type="application/spdx+json")
    index = dump_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ours.to_json(), other.to_json()]})

    def ask(repository: Repository) -> Awaitable[tuple[Descriptor, ...]]:
        return repository.referrers(subject, IMAGE)

    assert world.call(ask) == ()
    world.registry.put_manifest("me/app", f"sha256-{subject.hex}", index, OCI_INDEX)
    assert world.call(ask) == (ours,)
    world.registry.faults.append(Fault("GET", "/referrers/", lambda answer: answer.send(200, {}, index)))
    assert world.call(ask) == (ours,)


# ---------------------------------------------------------------------- mirrors


def test_a_mirror_is_asked_first_and_the_registry_when_it_fails(world: World, layout: Layout) -> None:
    raw, blob = world.image(), world.blob()
    with FakeRegistry() as mirror:
        world.mirrors = (mirror.host,)
        world.others = {
            mirror.host: HostSettings(plain_http=True),
            world.registry.host: HostSettings(plain_http=True, mirrors=(mirror.host,)),
        }
        mirror.put_manifest("me/app", "v1", raw)
        mirror.put_blob("me/app", DATA)
        mirror.blobs[str(blob.digest)] = b"evil" + DATA[4:]
        assert world.call(Repository.resolve).raw == raw
        assert world.registry.requests == []
        assert sum(fetch(world, layout, blob)) == blob.size
        layout.verify_blob(blob)
        assert len(mirror.seen("GET", "/blobs/")) == 1


def test_a_blob_is_asked_for_by_head(world: World) -> None:
    blob = world.blob()
    absent = Descriptor(PACK, Digest("sha256:" + hashlib.sha256(b"no").hexdigest()), 2)
    assert world.call(lambda repository: repository.has_blob(blob))
    assert not world.call(lambda repository: repository.has_blob(absent))
    assert {one.method for one in world.registry.requests} == {"HEAD"}


def test_errors_of_the_registry_are_told_in_its_words(world: World) -> None:
    words = json.dumps({"errors": [{"code": "X", "message": "the disk is full"}]}).encode()
    world.registry.faults.append(Fault("GET", "/manifests/", lambda answer: answer.send(400, {}, words)))
    with pytest.raises(RefusedError, match="got status 400: the disk is full"):
        world.call(Repository.resolve)


def test_an_answer_that_comes_in_drops_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.image()
    monkeypatch.setattr("registry.session._DOCUMENT_SECONDS", 0.3)

    def drip(answer: Answer) -> None:
        answer.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with suppress(OSError):
            for _ in range(1000):
                answer.raw(b" ")
                time.sleep(0.02)

    world.registry.faults.append(Fault("GET", "/manifests/", drip))
    with pytest.raises(UnreachableError, match="did not finish its answer"):
        world.call(Repository.resolve)
