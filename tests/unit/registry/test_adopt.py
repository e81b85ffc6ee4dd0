"""An image of ours that another tool copied comes in as it is, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cext.errors import CorruptError
from imagebuilder.importer import convert_source, import_image
from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from registry.errors import BadBlobError, MissingBlobError
from registry.layout import Layout
from registry.model import PACK, Manifest, dump_json
from registry.reference import Reference
from registry.upkeep import check_layout, verify_image

APP = Reference.parse("app")
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


@pytest.fixture
def here(tmp_path: Path) -> Layout:
    layout = Layout.open(tmp_path / "here")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(os.urandom(100_000))
    with layout.writing(), Workshop(layout) as workshop:
        layout.tag(APP, assemble_image(layout, [layer_from_tree(workshop, f"{tmp_path}/tree")], CONFIG))
    return layout


@pytest.fixture
def there(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "there")


def source(layout: Layout) -> str:
    return f"oci:{layout.images}:app:latest"


def pack_of(layout: Layout) -> Path:
    (pack,) = layout.resolve(APP).manifest.each(PACK)
    return Path(layout.blob_path(pack.digest))


def test_an_image_keeps_its_digest(here: Layout, there: Layout) -> None:
    done = import_image(there, source(here), reference=APP)
    assert (done.digest, done.layers, done.known) == (here.resolve(APP).manifest.digest, 1, 0)
    assert verify_image(there, APP, deep=True).chunks > 0
    found = check_layout(there)
    assert (found.problems, found.repaired) == ((), ())
    assert import_image(there, source(here), reference=APP).known == 1


def test_an_image_can_be_the_base_of_a_build(here: Layout, there: Layout) -> None:
    with there.writing(), Workshop(there) as workshop:
        done = convert_source(workshop, source(here))
        manifest = assemble_image(there, done.layers, done.config)
    assert manifest == here.resolve(APP).manifest


def test_other_bytes_never_come_in(here: Layout, there: Layout) -> None:
    path = pack_of(here)
    data = path.read_bytes()
    for wrong in (b"\1" + data[1:], data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(BadBlobError, match="not what the digest says"):
            import_image(there, source(here), reference=APP)
    path.unlink()
    with pytest.raises(MissingBlobError):
        import_image(there, source(here), reference=APP)
    assert not os.path.exists(there.blob_path(here.resolve(APP).manifest.each(PACK)[0].digest))
    assert there.tags() == ()


def test_a_pack_that_lies_about_its_chunks_does_not_come_in(here: Layout, there: Layout) -> None:
    manifest = here.resolve(APP).manifest
    data = bytearray(pack_of(here).read_bytes())
    data[2000] ^= 1  # in a raw block of random bytes
    evil = here.put(bytes(data), PACK)
    layers = [evil.to_json() if blob.media_type == PACK else blob.to_json() for blob in manifest.layers]
    forged = Manifest.parse(dump_json({**json.loads(manifest.raw), "layers": layers}))
    here.put(forged.raw, forged.media_type)
    here.tag(APP, forged)
    with pytest.raises(CorruptError):
        import_image(there, source(here), reference=APP)
    assert not there.has(evil)
    assert there.tags() == ()
