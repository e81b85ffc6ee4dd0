"""Uploads to a registry in memory that breaks, forgets and lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.auth import Credential
from registry.client import Repository
from registry.errors import BadAnswerError, BadBlobError, DeniedError, MissingBlobError, RefusedError, RegistryError
from registry.layout import Layout
from registry.model import PACK, Descriptor, Digest
from registry.upload import Uploader
from tests.support.fake_registry import Answer, FakeRegistry, Fault
from tests.support.registry_world import DATA, World


@pytest.fixture
def world() -> Iterator[World]:
    with FakeRegistry() as registry:
        yield World(registry)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "root")


def send(world: World, layout: Layout, blob: Descriptor, *mounts: str) -> tuple[bool, list[int]]:
    steps: list[int] = []

    async def work(repository: Repository) -> bool:
        return await Uploader(repository, layout, mounts, chunk=300_000).send_blob(blob, steps.append, mounts=mounts)

    return world.call(work, push=True), steps


def arrived(world: World, blob: Descriptor) -> bool:
    return str(blob.digest) in world.registry.where.get("me/app", ())


@pytest.mark.parametrize("data", [DATA, b"x", b""], ids=["large", "one byte", "empty"])
def test_a_blob_goes_in_one_put(world: World, layout: Layout, data: bytes) -> None:
    blob = layout.put(data, PACK)
    sent, steps = send(world, layout, blob)
    assert (sent, sum(steps)) == (True, len(data))
    assert world.registry.blobs[str(blob.digest)] == data
    assert [one.method for one in world.registry.requests] == ["POST", "PUT"]


def test_a_put_that_breaks_off_and_is_forgotten_begins_again(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)

    def forget(answer: Answer) -> None:
        world.registry.uploads.clear()
        answer.reset()

    world.registry.faults.append(Fault("PUT", "/uploads/", forget))
    sent, steps = send(world, layout, blob)
    assert (sent, sum(steps)) == (True, blob.size)
    assert arrived(world, blob)
    assert world.slept == [0.25]


def test_a_put_that_breaks_off_goes_on_in_chunks_where_the_registry_says(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)

    def keep_half(answer: Answer) -> None:
        (name,) = world.registry.uploads
        world.registry.uploads[name] += answer.seen.body[:500_000]
        answer.reset()

    world.registry.faults.append(Fault("PUT", "/uploads/", keep_half))
    sent, steps = send(world, layout, blob)
    assert (sent, sum(steps)) == (True, blob.size)
    assert world.registry.blobs[str(blob.digest)] == DATA
    ranges = [one.headers["content-range"] for one in world.registry.seen("PATCH")]
    assert ranges == ["500000-799999", "800000-1023999"]


def test_a_lost_answer_is_found_out_by_asking_for_the_blob(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)

    def swallow(answer: Answer) -> None:
        world.registry.put_blob("me/app", answer.seen.body)
        answer.reset()

    world.registry.faults.append(Fault("PUT", "/uploads/", swallow))
    sent, steps = send(world, layout, blob)
    assert (sent, sum(steps)) == (True, blob.size)
    assert len(world.registry.seen("PUT")) == 1


def test_a_registry_that_finds_a_put_too_large_gets_chunks(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.faults.append(Fault("PUT", "/uploads/", lambda answer: answer.send(413)))
    assert send(world, layout, blob)[0]
    assert [len(one.body) for one in world.registry.seen("PATCH")] == [300_000, 300_000, 300_000, 124_000]
    assert world.registry.blobs[str(blob.digest)] == DATA


def test_chunks_are_as_large_as_the_registry_wants(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)

    def start(answer: Answer) -> None:
        world.registry.uploads["u"] = bytearray()
        answer.send(202, {"Location": "/v2/me/app/blobs/uploads/u", "OCI-Chunk-Min-Length": "600000"})

    world.registry.faults += [Fault("POST", "", start), Fault("PUT", "", lambda answer: answer.send(413))]
    world.registry.faults.append(Fault("POST", "", start))
    assert send(world, layout, blob)[0]
    assert [len(one.body) for one in world.registry.seen("PATCH")] == [600_000, 424_000]


def test_a_chunk_that_breaks_off_is_sent_again_from_where_the_registry_is(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.faults += [
        Fault("PUT", "/uploads/", lambda answer: answer.send(413)),
        Fault("PATCH", "/uploads/", lambda answer: True),
        Fault("PATCH", "/uploads/", lambda answer: answer.reset()),
    ]
    sent, steps = send(world, layout, blob)
    assert (sent, sum(steps)) == (True, blob.size)
    assert world.registry.blobs[str(blob.digest)] == DATA
    assert min(steps) < 0


def test_401_in_the_middle_of_an_upload_renews_the_token_and_sends_the_body_again(world: World, layout: Layout) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = layout.put(DATA, PACK)

    def revoke(answer: Answer) -> bool:
        world.registry.valid.clear()
        return True

    world.registry.faults.append(Fault("PUT", "/uploads/", revoke))
    sent, steps = send(world, layout, blob)
    assert (sent, sum(steps)) == (True, blob.size)
    assert arrived(world, blob)
    assert world.slept == []


def test_401_before_the_body_was_read_is_heard(world: World, layout: Layout) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = layout.put(DATA * 8, PACK)

    def revoke(answer: Answer) -> None:
        world.registry.valid.clear()
        answer.send(401, {"WWW-Authenticate": f'Bearer realm="http://{world.registry.host}/token",service="fake"'})

    world.registry.faults.append(Fault("PUT early", "/uploads/", revoke))
    assert send(world, layout, blob)[0]
    assert arrived(world, blob)


def test_a_login_that_may_only_read_is_a_denial(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.faults.append(Fault("POST", "", lambda answer: answer.send(403)))
    with pytest.raises(DeniedError, match="access denied"):
        send(world, layout, blob)


def test_a_registry_that_never_takes_it_is_given_up(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.faults += [Fault("PUT", "", lambda answer: answer.send(503)) for _ in range(20)]
    with pytest.raises(RefusedError, match="503"):
        send(world, layout, blob)
    assert len(world.registry.seen("PUT")) == 6


def test_an_upload_that_can_never_be_closed_is_given_up(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.faults.append(Fault("PUT", "", lambda answer: answer.send(413)))
    world.registry.faults += [Fault("PUT", "", lambda answer: answer.send(503)) for _ in range(30)]
    with pytest.raises(RefusedError, match="503"):
        send(world, layout, blob)
    assert len(world.registry.seen("PUT")) <= 8


def test_a_blob_that_is_damaged_here_is_refused_there_and_not_sent_for_ever(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    Path(layout.blob_path(blob.digest)).write_bytes(b"evil" + DATA[4:])
    with pytest.raises(RefusedError, match="digest did not match"):
        send(world, layout, blob)
    assert not arrived(world, blob)
    assert len(world.registry.seen("PUT")) == 3


def test_a_file_that_is_too_short_is_damage_and_not_a_hang(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    Path(layout.blob_path(blob.digest)).write_bytes(DATA[:1000])
    with pytest.raises(BadBlobError, match="ends after 1000 bytes"):
        send(world, layout, blob)


def test_a_blob_of_another_repository_is_mounted(world: World, layout: Layout) -> None:
    digest = world.registry.put_blob("me/base", DATA)
    blob = Descriptor(PACK, Digest(digest), len(DATA))  # and not in the layout
    sent, steps = send(world, layout, blob, "me/other", "me/base")
    assert (sent, sum(steps)) == (False, len(DATA))
    assert arrived(world, blob)
    assert [one.method for one in world.registry.requests] == ["POST", "DELETE", "POST"]


def test_a_mount_that_the_registry_declines_becomes_an_upload(world: World, layout: Layout) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.mounts = False
    assert send(world, layout, blob, "me/base")[0]
    assert [one.method for one in world.registry.requests] == ["POST", "PUT"]


def test_a_login_that_may_not_read_the_other_repository_sends_the_blob(world: World, layout: Layout) -> None:
    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    world.registry.put_blob("you/base", DATA)
    blob = layout.put(DATA, PACK)
    world.registry.faults.append(Fault("GET", "you%2Fbase", lambda answer: answer.send(403)))

    async def work(repository: Repository) -> bool:
        await repository.has_blob(blob)  # as a push does first: the scheme is known
        return await Uploader(repository, layout, ["you/base"]).send_blob(blob, lambda size: None, mounts=["you/base"])

    assert world.call(work, push=True)
    assert world.registry.faults == []
    assert arrived(world, blob)


def test_what_is_neither_here_nor_mountable_is_missing(world: World, layout: Layout) -> None:
    blob = Descriptor(PACK, Digest.of(DATA), len(DATA))
    with pytest.raises(MissingBlobError):
        send(world, layout, blob, "me/base")
    assert world.registry.uploads == {}


def test_an_upload_may_be_sent_to_another_host_but_the_login_stays(world: World, layout: Layout) -> None:
    from registry.origin import HostSettings

    world.registry.users = {"me": "secret"}
    world.login = Credential("me", "secret")
    blob = layout.put(DATA, PACK)
    with FakeRegistry() as other:
        world.others = {other.host: HostSettings(plain_http=True)}
        other.uploads["7"] = bytearray()
        to = {"Location": f"http://{other.host}/v2/me/app/blobs/uploads/7?signed=1"}

        def start(answer: Answer) -> bool | None:
            if "authorization" not in answer.seen.headers:
                world.registry.faults.append(Fault("POST", "", start))
                return True
            answer.send(202, to)
            return None

        world.registry.faults.append(Fault("POST", "", start))
        assert send(world, layout, blob)[0]
        (put,) = other.requests
        assert put.path.startswith("/v2/me/app/blobs/uploads/7?signed=1&digest=sha256%3A")
        assert "authorization" not in put.headers
        assert other.blobs[str(blob.digest)] == DATA


@pytest.mark.parametrize("location", [None, "http://elsewhere.example/x", "file:///x", "https://u:p@host.example/"])
def test_an_upload_that_leads_astray_is_refused(world: World, layout: Layout, location: str | None) -> None:
    blob = layout.put(DATA, PACK)
    headers = {} if location is None else {"Location": location}
    world.registry.faults.append(Fault("POST", "", lambda answer: answer.send(202, headers)))
    with pytest.raises(BadAnswerError):
        send(world, layout, blob)


@pytest.mark.parametrize("text", ["0-5", "0-9999999", "0-299998"])
def test_a_registry_that_counts_wrong_does_not_make_us_loop(world: World, layout: Layout, text: str) -> None:
    blob = layout.put(DATA, PACK)
    world.registry.faults.append(Fault("PUT", "", lambda answer: answer.send(413)))
    where = {"Location": "/v2/me/app/blobs/uploads/x", "Range": text}
    for method, status in (("PATCH", 202), ("GET", 204)):
        world.registry.faults += [Fault(method, "", lambda answer, s=status: answer.send(s, where))] * 50  # type: ignore[misc]
    with pytest.raises(RegistryError):
        send(world, layout, blob)
    assert len(world.registry.requests) < 60
