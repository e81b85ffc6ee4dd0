"""Images of our own format that lie: their digests are all right, their content is not."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from registry.decoded import read_decoded
from registry.image import put_index
from registry.layout import Layout
from registry.model import EROFS, LAYER, OCI_CONFIG, PACK, TABLES, Descriptor, Manifest, manifest_bytes
from registry.reference import Reference
from tests.support.command import Onesec
from tests.support.hostile import archive, directory, member, symlink
from tests.support.oci import oci_layout

CONTENTS = {"a": b"first " * 3000, "b": b"second" * 3000, "big": bytes(range(256)) * 2000, "c/small": b"x"}
_ROWS = struct.Struct("<4I I 4x Q")


@dataclass(frozen=True, slots=True)
class Parts:
    """The two decoded halves of an image's index, to be changed."""

    layout: Layout
    manifest: Manifest
    erofs: bytearray
    tables: bytearray

    def section(self, name: str) -> int:
        """Where a column of the tables begins, docs/format.md §6."""
        blobs, frames, chunks, objects, refs, _ = _ROWS.unpack_from(self.tables, 8)
        sizes = {
            "blob": 48 * blobs, "frame_offset": 8 * frames, "frame_blob": 4 * frames, "frame_clen": 4 * frames,
            "frame_ulen": 4 * frames, "chunk_id": 32 * chunks, "chunk_frame": 4 * chunks, "chunk_offset": 4 * chunks,
            "chunk_length": 4 * chunks, "object_id": 32 * objects, "object_size": 8 * objects,
            "object_algorithm": 4 * objects, "object_ref": 4 * (objects + 1), "ref": 4 * refs,
        }  # fmt: skip
        starts = {"blob": 64}
        for one, following in pairwise(sizes):
            starts[following] = -(-(starts[one] + sizes[one]) // 8) * 8
        return starts[name]

    def add(self, name: str, row: int, form: str, change: int) -> None:
        """Adds to a number of a column."""
        at = self.section(name) + row * struct.calcsize(form)
        (old,) = struct.unpack_from(form, self.tables, at)
        struct.pack_into(form, self.tables, at, old + change)

    def tag(self, *, packs: Sequence[Descriptor] | None = None) -> None:
        """Stores what the parts have become as the image `hostile`, every digest computed anew."""
        with self.layout.writing():
            raw = manifest_bytes(
                config=self.layout.put(json.dumps({"config": {}}).encode(), OCI_CONFIG),
                erofs=put_index(self.layout, bytes(self.erofs), EROFS),
                tables=put_index(self.layout, bytes(self.tables), TABLES),
                layers=self.manifest.each(LAYER),
                packs=self.manifest.each(PACK) if packs is None else packs,
                size=1,
                files=1,
            )
            manifest = Manifest.parse(raw)
            self.layout.put(raw, manifest.media_type)
            self.layout.tag(Reference.parse("hostile"), manifest)


def good_image(onesec: Onesec) -> Parts:
    """An image of a few files, imported, as the image `good`."""
    tar = archive(
        directory("dev"), directory("proc"), directory("sys"), directory("c"), symlink("link", "a"),
        *(member(name, data) for name, data in CONTENTS.items()),
    )  # fmt: skip
    source = Path(onesec.directory) / "good"
    oci_layout(source, tar, {"Cmd": ["/a"]})
    said = onesec.here("import", f"oci:{source}:t", "-t", "good")
    assert said.status == 0, said
    layout = Layout.open(onesec.root)
    manifest = layout.resolve(Reference.parse("good")).manifest
    erofs, tables = (bytearray(read_decoded(layout, manifest.only(kind))) for kind in (EROFS, TABLES))
    return Parts(layout, manifest, erofs, tables)
