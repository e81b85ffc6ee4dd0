"""A boot pack is compared with the image that it belongs to before a stranger's image gets a name here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cext.errors import CorruptError
from imagebuilder.importer import import_image
from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from lazyfs import bootcheck
from lazyfs.bootcheck import check_boot_pack
from lazyfs.bootpack import PAGE, BootPackBytes, Page, Run, encode
from lazyfs.index.tables import TablesReader
from registry.decoded import read_decoded
from registry.image import put_boot_pack
from registry.layout import Layout
from registry.model import PACK, TABLES, Manifest
from registry.reference import Reference
from tests.support.objects import make_objects

APP = Reference.parse("app")
HOLE = 1 << 60  # more than an address space
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
FILES = {
    "large": os.urandom(700_000),
    "small": b"a few bytes",
    "hole": b"x" * PAGE + bytes(2 << 20) + b"y" * 100,
}


@pytest.fixture
def here(tmp_path: Path) -> Layout:
    """An image of a few files, one to each object."""
    layout = Layout.open(tmp_path / "here")
    (tmp_path / "tree").mkdir()
    for name, data in FILES.items():
        (tmp_path / "tree" / name).write_bytes(data)
    with layout.writing(), Workshop(layout) as workshop:
        layout.tag(APP, assemble_image(layout, [layer_from_tree(workshop, f"{tmp_path}/tree")], CONFIG))
    return layout


def objects(layout: Layout) -> dict[str, bytes]:
    """Ids by name: the files differ in size."""
    tables = TablesReader(read_decoded(layout, layout.resolve(APP).manifest.only(TABLES)))
    sizes = {len(data): name for name, data in FILES.items()}
    found = [tables.find(identity) for identity in tables.ids()]
    return {sizes[one.size]: one.id for one in found if one is not None}


def with_pack(layout: Layout, change: Callable[[Run, bytes], bytes] = lambda run, data: data) -> Manifest:
    """The image with a boot pack of all its pages. change: what its author makes of a run's bytes."""
    ids = objects(layout)
    names = {identity: name for name, identity in ids.items()}
    pages: list[Page] = [(ids[name], number) for name in FILES for number in range(-(-len(FILES[name]) // PAGE))]

    def read(run: Run) -> bytes:
        return change(run, FILES[names[run.object]][run.offset : run.offset + run.length])

    return put(layout, encode(pages, lambda identity: len(FILES[names[identity]]), read))


def put(layout: Layout, pack: BootPackBytes) -> Manifest:
    with layout.writing():
        made = put_boot_pack(layout, layout.resolve(APP).manifest, pack.head, pack.frames)
        layout.tag(APP, made)
    return made


def test_a_boot_pack_of_the_image_s_own_bytes_is_right(here: Layout) -> None:
    moved: list[int] = []
    made = with_pack(here)
    assert check_boot_pack(here, made, moved.append) == sum(map(len, FILES.values()))
    assert made.boot_pack is not None
    assert sum(moved) == made.boot_pack.size - made.boot_pack.head[1]


def test_an_image_without_one_has_nothing_wrong_with_it(here: Layout) -> None:
    assert check_boot_pack(here, here.resolve(APP).manifest) == 0


@pytest.mark.parametrize("name", ["large", "small", "hole"])
def test_one_other_byte_is_seen(here: Layout, name: str) -> None:
    identity = objects(here)[name]

    def change(run: Run, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if run.object == identity else data

    with pytest.raises(CorruptError, match=f"object {identity.hex()}: got other bytes at"):
        check_boot_pack(here, with_pack(here, change))


def test_pages_of_an_object_that_is_not_the_image_s_are_refused(here: Layout) -> None:
    """They would go to another image of the same trust domain."""
    pack = encode([(b"\1" * 32, 0)], lambda _: 10, lambda _: b"0123456789")
    with pytest.raises(CorruptError, match="but the image does not have it"):
        check_boot_pack(here, put(here, pack))


def test_pages_behind_the_end_of_an_object_are_refused(here: Layout) -> None:
    pack = encode([(objects(here)["small"], 0)], lambda _: PAGE, lambda run: FILES["small"].ljust(PAGE, b"\0"))
    with pytest.raises(CorruptError, match="want them within 11"):
        check_boot_pack(here, put(here, pack))


def test_a_flipped_byte_of_a_frame_or_the_head_is_seen(here: Layout) -> None:
    made = with_pack(here)
    assert made.boot_pack is not None
    path = Path(here.blob_path(made.boot_pack.digest))
    data = path.read_bytes()
    for at in (10, made.boot_pack.head[1] + 10, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CorruptError):
            check_boot_pack(here, made)


def test_what_is_elsewhere_is_not_compared(here: Layout) -> None:
    made = with_pack(here)
    for pack in made.each(PACK):
        os.unlink(here.blob_path(pack.digest))
    assert 0 < check_boot_pack(here, made) <= 2 << 20  # of the hole, which no pack has


def test_a_hole_of_any_length_takes_no_memory(here: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its author writes a number for it."""
    made = make_objects(tmp_path / "set", {"hole": [HOLE]})
    monkeypatch.setattr(bootcheck, "read_decoded", lambda *_: made.tables.read_bytes())
    pack = encode([(made.ids["hole"], HOLE // PAGE - 1)], lambda _: HOLE, lambda run: bytes(run.length))
    assert check_boot_pack(here, put(here, pack)) == PAGE


def test_an_import_of_an_image_whose_boot_pack_lies_has_no_name(here: Layout, tmp_path: Path) -> None:
    there = Layout.open(tmp_path / "there")
    with_pack(here)
    source = f"oci:{here.images}:app:latest"
    import_image(there, source, reference=Reference.parse("right"))
    with_pack(here, lambda run, data: bytes(len(data)))
    with pytest.raises(CorruptError, match="got other bytes"):
        import_image(there, source, reference=APP)
    assert [tag.name for tag in there.tags()] == ["right:latest"]
