"""Whole images between two layouts, through a registry in memory; and what the layout says about what stayed there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import cext
from cext.errors import CorruptError
from cext.record import replace
from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from registry.client import Repository
from registry.errors import BadBlobError, BadDocumentError, MissingBlobError, RefusedError, RemoteBlobsError
from registry.image import open_image, require_packs
from registry.layout import Layout, Resolved
from registry.model import BOOTPACK, EROFS, LAYER, PACK, TABLES, Descriptor, Manifest, dump_json
from registry.reference import Reference
from registry.transfer import Amount, Pulled, Pushed, pull_image, push_image
from registry.upkeep import check_layout, collect, verify_image
from tests.support.fake_registry import Answer, FakeRegistry, Fault
from tests.support.registry_world import World

APP = Reference.parse("app")
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


@dataclass
class Told:
    """What a user would see."""

    stages: list[tuple[str, int | None]] = field(default_factory=list)
    size: int = 0

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))
        self.size = 0

    def advance(self, size: int = 0) -> None:
        self.size += size


@pytest.fixture
def world() -> Iterator[World]:
    with FakeRegistry() as registry:
        yield World(registry)


@pytest.fixture
def here(tmp_path: Path) -> Layout:
    """A layout with the image `app`."""
    layout = Layout.open(tmp_path / "here")
    build(layout, tmp_path / "tree", {"a": os.urandom(200_000), "b/c": b"text\n" * 1000})
    return layout


@pytest.fixture
def there(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "there")


def build(layout: Layout, tree: Path, files: dict[str, bytes], name: Reference = APP) -> Manifest:
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    with layout.writing(), Workshop(layout) as workshop:
        manifest = assemble_image(layout, [layer_from_tree(workshop, str(tree))], CONFIG)
        layout.tag(name, manifest)
    return manifest


def push(world: World, layout: Layout, name: str = "me/app:v1", told: Told | None = None) -> Pushed:
    async def work(repository: Repository) -> Pushed:
        image, lease = layout.resolve_leased(APP)
        with lease:
            return await push_image(layout, image, repository, told or Told())

    return world.call(work, name, push=True)


def pull(
    world: World,
    layout: Layout,
    name: str = "me/app:v1",
    *,
    everything: bool = False,
    start: bool = False,
    told: Told | None = None,
) -> Pulled:
    amount: Amount = "all" if everything else "start" if start else "index"

    async def work(repository: Repository) -> Pulled:
        return await pull_image(layout, repository, told or Told(), name=APP, amount=amount)

    with layout.writing():
        return world.call(work, name)


def stored(layout: Layout) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(layout.images, "blobs/sha256").iterdir()}


def packs(layout: Layout) -> list[Descriptor]:
    return list(layout.resolve(APP).manifest.each(PACK))


# ---------------------------------------------------------------------- push


def test_what_was_pushed_and_pulled_is_the_same_byte_for_byte(world: World, here: Layout, there: Layout) -> None:
    told = Told()
    pushed = push(world, here, told=told)
    assert (pushed.sent, pushed.known, pushed.mounted) == (len(stored(here)) - 1, 0, 0)
    assert told.stages[-1][1] == told.size == pushed.size
    pulled = pull(world, there, everything=True, told=told)
    assert (pulled.remote, pulled.size, told.size) == (0, pushed.size, pushed.size)
    assert stored(there) == stored(here)
    assert verify_image(there, APP, deep=True).chunks > 0
    assert check_layout(there).problems == check_layout(there).repaired == ()


def test_a_second_push_sends_nothing_but_the_manifest(world: World, here: Layout) -> None:
    first = push(world, here)
    world.registry.requests.clear()
    second = push(world, here, "me/app:v2")
    assert (second.sent, second.known, second.size) == (0, first.sent, 0)
    assert {one.method for one in world.registry.requests} == {"HEAD", "PUT"}


def test_the_manifest_is_the_last_thing_that_is_pushed(world: World, here: Layout) -> None:
    push(world, here)
    assert world.registry.seen("PUT", "/manifests/") == world.registry.requests[-1:]


def test_a_push_that_fails_shows_nothing_and_goes_on_when_called_again(world: World, here: Layout) -> None:
    world.registry.faults += [
        Fault("PUT", "/uploads/", lambda answer: True),
        Fault("PUT", "/uploads/", lambda answer: answer.send(507)),
    ]
    with pytest.raises(RefusedError, match="507"):
        push(world, here)
    assert world.registry.manifests == {}
    world.registry.settle()
    there_before = len(world.registry.blobs)
    assert there_before
    assert push(world, here).known == there_before


def test_packs_of_a_pulled_image_are_mounted_in_another_repository(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there)
    again = push(world, there, "you/app:v1")
    assert again.sent == 0
    assert again.mounted == len(stored(here)) - 1
    assert world.registry.where["you/app"] == world.registry.where["me/app"]


def test_packs_that_are_elsewhere_cannot_be_pushed_to_a_third_place(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there)
    with (
        FakeRegistry() as third,
        pytest.raises(RemoteBlobsError, match="1 of its 1 packs are not here but at") as caught,
    ):
        push(World(third), there)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"`onesec pull --all {world.registry.host}/me/app@sha256:")
    assert third.blobs == {}


def test_a_blob_that_is_missing_here_is_told_before_anything_is_sent(world: World, here: Layout) -> None:
    os.unlink(here.blob_path(packs(here)[0].digest))
    with pytest.raises(MissingBlobError):
        push(world, here)
    assert world.registry.seen("POST") == []


# ---------------------------------------------------------------------- pull


def test_a_pull_moves_the_index_alone_and_says_what_stays(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pulled = pull(world, there)
    manifest = here.resolve(APP).manifest
    assert pulled.remote == len(packs(here)) == 1
    assert {blob.digest for blob in manifest.blobs if there.has(blob)} == {
        blob.digest for blob in manifest.blobs if blob.media_type != PACK
    }
    found = there.resolve(APP)
    assert (found.domain, found.remote) == (f"{world.registry.host}/me", f"{world.registry.host}/me/app")


def test_what_a_start_needs_is_less_and_nothing_stumbles_over_what_is_missing(
    world: World, here: Layout, there: Layout
) -> None:
    push(world, here)
    assert pull(world, there, start=True).remote == 2
    assert {blob.media_type for blob in verify_image(there, APP, deep=True).remote} == {LAYER, PACK}
    done = check_layout(there)
    assert (done.problems, done.repaired, done.remote) == ((), (), 2)
    assert collect(there).blobs == 0
    assert pull(world, there, everything=True).fetched == 2
    assert verify_image(there, APP, deep=True).remote == ()


def test_pulling_everything_later_fetches_only_the_rest(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there)
    assert pull(world, there, everything=True).fetched == 1
    assert stored(there) == stored(here)


def test_chunks_of_a_pulled_image_are_known_to_later_builds(
    world: World, here: Layout, there: Layout, tmp_path: Path
) -> None:
    push(world, here)
    pull(world, there, everything=True)
    data = (tmp_path / "tree/a").read_bytes()
    build(there, tmp_path / "other", {"same": data}, Reference.parse("other"))
    assert there.resolve(Reference.parse("other")).manifest.each(PACK) == here.resolve(APP).manifest.each(PACK)


def test_an_image_of_another_kind_is_refused(world: World, there: Layout) -> None:
    world.image()
    with pytest.raises(BadDocumentError, match="artifactType"):
        pull(world, there)
    assert there.tags() == ()


def test_an_index_that_another_encoder_wrote_gets_no_name(world: World, here: Layout, there: Layout) -> None:
    from registry.decoded import read_decoded
    from registry.image import put_index
    from registry.model import manifest_bytes

    manifest = here.resolve(APP).manifest
    erofs = bytearray(read_decoded(here, manifest.only(EROFS)))
    erofs[1024 + 64] ^= 1  # a volume name
    forged = manifest_bytes(
        config=manifest.config,
        erofs=put_index(here, bytes(erofs), EROFS),
        tables=manifest.only(TABLES),
        layers=manifest.layers[2:-1],
        packs=manifest.each(PACK),
        size=1,
        files=1,
    )
    here.put(forged, manifest.media_type)
    here.tag(APP, Manifest.parse(forged))
    push(world, here)
    with pytest.raises(CorruptError):
        pull(world, there)
    assert there.tags() == ()
    assert os.listdir(there.cache_path("index")) == []


@pytest.mark.parametrize("disguise", [None, "application/octet-stream", LAYER])
def test_a_pack_whose_chunks_are_not_what_their_ids_say_stays_out(
    world: World, here: Layout, there: Layout, disguise: str | None
) -> None:
    """Its SHA-256 is right: whoever made the image lied, and builds here would trust the ids. Naming it a second time
    as something else does not help.
    """
    manifest = here.resolve(APP).manifest
    pack = manifest.each(PACK)[0]
    data = bytearray(Path(here.blob_path(pack.digest)).read_bytes())
    data[2000] ^= 1  # in a raw block of random bytes
    evil = here.put(bytes(data), PACK)
    layers = [evil if blob == pack and disguise is None else blob for blob in manifest.layers]
    layers += [replace(evil, media_type=disguise)] if disguise else []
    document = {**json.loads(manifest.raw), "layers": [blob.to_json() for blob in layers]}
    forged = Manifest.parse(dump_json(document))
    here.put(forged.raw, forged.media_type)
    here.tag(APP, forged)
    push(world, here)
    with pytest.raises(CorruptError):
        pull(world, there, everything=True)
    assert not there.has(evil)
    assert there.tags() == ()
    chunks = cext.ChunkMap(there.cache_path("chunks"))
    assert chunks.packs() == set()
    chunks.close()


def test_a_boot_pack_comes_with_the_index_and_what_is_unknown_does_not(
    world: World, here: Layout, there: Layout
) -> None:
    manifest = here.resolve(APP).manifest
    more = [here.put(b"boot", BOOTPACK), here.put(b"memory", "application/vnd.onesec.snapshot.v1")]
    document = json.loads(manifest.raw)
    document["layers"] += [blob.to_json() for blob in more]
    changed = Manifest.parse(dump_json(document))
    here.put(changed.raw, changed.media_type)
    here.tag(APP, changed)
    push(world, here)
    pull(world, there)
    assert [there.has(blob) for blob in more] == [True, False]
    assert [blob.media_type for blob in verify_image(there, APP).remote] == [PACK, more[1].media_type]
    assert check_layout(there).remote == 2
    pull(world, there, everything=True)
    assert stored(there) == {name: data for name, data in stored(here).items() if name != manifest.digest.hex}


def test_a_pull_that_fails_names_nothing_and_goes_on_when_called_again(
    world: World, here: Layout, there: Layout
) -> None:
    push(world, here)
    pack = packs(here)[0]
    world.registry.blobs[str(pack.digest)] = b"evil"
    with pytest.raises(Exception, match=str(pack.digest)):
        pull(world, there, everything=True)
    assert there.tags() == ()
    world.registry.blobs[str(pack.digest)] = stored(here)[pack.digest.hex]
    world.registry.requests.clear()
    assert pull(world, there, everything=True).fetched == 1


def test_urls_in_a_descriptor_are_never_followed(world: World, here: Layout, there: Layout) -> None:
    manifest = here.resolve(APP).manifest
    with FakeRegistry() as foreign:
        document = json.loads(manifest.raw)
        for blob in (document["config"], *document["layers"]):
            blob["urls"] = [f"http://{foreign.host}/{blob['digest']}"]
        forged = Manifest.parse(dump_json(document))
        here.put(forged.raw, forged.media_type)
        here.tag(APP, forged)
        push(world, here)
        pull(world, there, everything=True)
        assert foreign.requests == []


def test_a_manifest_that_changes_under_the_tag_is_seen_as_one_or_the_other(
    world: World, here: Layout, there: Layout, tmp_path: Path
) -> None:
    push(world, here)
    first = here.resolve(APP).manifest
    second = build(here, tmp_path / "second", {"x": b"second"})

    def move(answer: Answer) -> bool:
        push(world, here)
        return True

    world.registry.faults.append(Fault("GET", f"/blobs/{first.config.digest}", move))
    assert pull(world, there, everything=True).manifest == first
    assert pull(world, there, everything=True).manifest == second


# ---------------------------------------------------------------------- afterwards


def test_verify_names_what_it_could_not_check_and_does_not_fail(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there)
    done = verify_image(there, APP, deep=True)
    assert (list(done.remote), done.at, done.chunks) == (packs(here), f"{world.registry.host}/me/app", 0)


def test_verify_fails_for_a_pack_that_is_nowhere_or_damaged(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there, everything=True)
    Path(there.blob_path(packs(there)[0].digest)).write_bytes(b"short")
    with pytest.raises(BadBlobError):
        verify_image(there, APP)
    os.unlink(here.blob_path(packs(here)[0].digest))
    with pytest.raises(BadBlobError, match="missing"):
        verify_image(here, APP)


def test_fsck_counts_what_is_elsewhere_and_finds_nothing_wrong(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there)
    done = check_layout(there)
    assert (done.problems, done.repaired, done.remote, done.unreferenced) == ((), (), 1, 0)


def test_fsck_removes_a_damaged_pack_that_can_be_fetched_again(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there, everything=True)
    path = Path(there.blob_path(packs(there)[0].digest))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    done = check_layout(there)
    assert done.problems == ()
    assert "removed, since a registry has it" in done.repaired[0]
    assert pull(world, there, everything=True).fetched == 1
    assert verify_image(there, APP, deep=True).remote == ()


def test_fsck_keeps_a_damaged_pack_that_a_local_image_needs(world: World, here: Layout) -> None:
    push(world, here)
    manifest = here.resolve(APP).manifest
    here.tag(Reference.parse("copy"), manifest, remote=f"{world.registry.host}/me/app")
    path = Path(here.blob_path(packs(here)[0].digest))
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    done = check_layout(here)
    assert path.exists()
    assert len(done.problems) == 3


def test_gc_keeps_a_pulled_index_and_then_forgets_it(world: World, here: Layout, there: Layout) -> None:
    push(world, here)
    pull(world, there)
    before = stored(there)
    assert collect(there).blobs == 0
    assert stored(there) == before
    there.untag(APP)
    assert (collect(there).blobs, stored(there), os.listdir(there.cache_path("index"))) == (len(before), {}, [])


def test_an_image_whose_packs_are_elsewhere_says_which_pull_is_missing(
    world: World, here: Layout, there: Layout
) -> None:
    push(world, here)
    pull(world, there)
    with open_image(there, APP) as image, pytest.raises(RemoteBlobsError) as caught:
        require_packs(there, image)
    assert (caught.value.count, caught.value.total) == (1, 1)
    pull(world, there, everything=True)
    with open_image(there, APP) as image:
        require_packs(there, image)


def test_a_tag_without_a_remote_has_none(here: Layout) -> None:
    found: Resolved = here.resolve(APP)
    assert found.remote is None
    assert here.tags()[0].remote is None
