"""Every request of a push and of a pull goes wrong in every way, one at a time.

Whatever happens, what has a name is whole and right, nothing is left over, and the same call made again succeeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cext.errors import OnesecError
from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from registry.client import Repository
from registry.layout import Layout
from registry.model import Digest, Manifest
from registry.reference import Reference
from registry.transfer import Pulled, Pushed, pull_image, push_image
from tests.support.fake_registry import Answer, FakeRegistry, Fault
from tests.support.registry_world import World

APP = Reference.parse("app")
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
HTML = {"Content-Type": "text/html"}


def flipped(answer: Answer) -> None:
    """What the registry would have said, with one bit wrong somewhere in the body."""
    registry = answer.registry
    digest = answer.seen.path.rpartition("/")[2]
    data = bytearray(registry.blobs.get(digest) or registry.manifests.get(("me/app", digest), ("", b"x"))[1])
    data[len(data) // 2] ^= 1
    answer.send(200, {}, bytes(data))


def cut(answer: Answer) -> None:
    """A body that breaks off half way."""
    data = answer.registry.blobs.get(answer.seen.path.rpartition("/")[2], b"x" * 100)
    answer.break_off(200, {"Content-Length": str(len(data))}, data[: len(data) // 2])


def half_a_header(answer: Answer) -> None:
    answer.raw(b"HTTP/1.1 200 OK\r\nContent-")
    answer.reset()


FAULTS: dict[str, Callable[[Answer], bool | None]] = {
    "reset": lambda answer: answer.reset(),
    "503 with a wish": lambda answer: answer.send(503, {"Retry-After": "2"}),
    "429 with a wish that nobody can wait for": lambda answer: answer.send(429, {"Retry-After": "99999"}),
    "401": lambda answer: answer.send(401, {"WWW-Authenticate": 'Basic realm="x"'}),
    "403": lambda answer: answer.send(403),
    "404": lambda answer: answer.send(404),
    "a web page": lambda answer: answer.send(200, HTML, b"<html>"),
    "nothing": lambda answer: answer.send(200),
    "206 of something": lambda answer: answer.send(206, {}, b"x"),
    "201 for everything": lambda answer: answer.send(201),
    "garbage": lambda answer: answer.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "a flipped bit": flipped,
    "half a body": cut,
    "half a header": half_a_header,
}


class Silent:
    def stage(self, name: str, total: int | None = None) -> None:
        return

    def advance(self, size: int = 0) -> None:
        return


@pytest.fixture(autouse=True)
def _nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no power cut here, and a sync takes longer than all the rest."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def world() -> Iterator[World]:
    with FakeRegistry() as registry:
        yield World(registry)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    directory = tmp_path_factory.mktemp("faults")
    layout = Layout.open(directory / "root")
    (directory / "tree").mkdir()
    (directory / "tree/a").write_bytes(os.urandom(100_000))
    with layout.writing(), Workshop(layout) as workshop:
        layout.tag(APP, assemble_image(layout, [layer_from_tree(workshop, f"{directory}/tree")], CONFIG))
    return layout


def push(world: World, layout: Layout) -> Pushed:
    async def work(repository: Repository) -> Pushed:
        return await push_image(layout, layout.resolve(APP), repository, Silent())

    try:
        return world.call(work, push=True)
    finally:
        world.registry.settle()


def pull(world: World, layout: Layout) -> Pulled:
    async def work(repository: Repository) -> Pulled:
        return await pull_image(layout, repository, Silent(), name=APP, amount="all")

    with layout.writing():
        try:
            return world.call(work)
        finally:
            world.registry.settle()


def strike(world: World, number: int, act: Callable[[Answer], bool | None]) -> None:
    """The request of this number, from 0, goes wrong."""
    world.registry.faults = [Fault("ANY", "", lambda answer: True) for _ in range(number)]
    world.registry.faults.append(Fault("ANY", "", act))


def failure(call: Callable[[], object]) -> str | None:
    """The line that a user would see, if the call fails as calls may."""
    try:
        call()
    except OnesecError as error:
        line = str(error)
    else:
        return None
    assert line
    assert "\n" not in line
    return line


def count(world: World) -> int:
    """Requests since the last call."""
    number = len(world.registry.requests)
    world.registry.requests.clear()
    return number


@pytest.mark.parametrize("name", FAULTS)
def test_a_pull_is_whole_or_nothing(world: World, here: Layout, tmp_path: Path, name: str) -> None:
    push(world, here)
    count(world)
    pull(world, Layout.open(tmp_path / "clean"))
    image = here.resolve(APP).manifest
    for number in range(count(world)):
        there = Layout.open(tmp_path / f"there{number}")
        strike(world, number, FAULTS[name])
        error = failure(lambda: pull(world, there))  # noqa: B023
        assert [tag.manifest.digest for tag in there.tags()] == ([] if error else [image.digest])
        assert world.registry.faults == []  # it took place
        assert os.listdir(f"{there.images}/blobs") == ["sha256"]
        for blob in image.blobs:
            if os.path.exists(there.blob_path(blob.digest)):
                there.verify_blob(blob)
        assert pull(world, there).manifest == image
        assert all(there.has(blob) for blob in image.blobs)


@pytest.mark.parametrize("name", FAULTS)
def test_a_push_is_whole_or_nothing(world: World, here: Layout, name: str) -> None:
    push(world, here)
    registry = world.registry
    image = here.resolve(APP).manifest
    for number in range(count(world)):
        registry.blobs, registry.where, registry.manifests, registry.uploads = {}, {}, {}, {}
        strike(world, number, FAULTS[name])
        said = failure(lambda: push(world, here))
        assert registry.faults == [], said
        for _, raw in registry.manifests.values():
            assert {str(blob.digest) for blob in Manifest.parse(raw).blobs} <= registry.where["me/app"]
        for digest, data in list(registry.blobs.items()):
            assert Digest.of(data) == Digest(digest)
        push(world, here)
        assert registry.manifests["me/app", "v1"][1] == image.raw
