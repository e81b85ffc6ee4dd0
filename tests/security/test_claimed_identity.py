"""An id is computed, never believed, and knowing one is no permission (containers/storage#1627).

The images here are whole as far as digests go: whoever made them made the manifest too. What they claim about objects,
chunks and packs is not true.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.model import PACK, Descriptor, Digest
from tests.support.command import Onesec
from tests.support.forged import Parts, good_image
from tests.support.hostile import archive, canaries, import_tar, member


def other_id(parts: Parts) -> None:
    """The id of somebody else's library over my chunks."""
    at = parts.section("object_id")
    parts.tables[at + 31] ^= 1


def swapped_contents(parts: Parts) -> None:
    """Two objects exchange what they consist of."""
    ref = parts.section("object_ref")
    first, second, third = struct.unpack_from("<3I", parts.tables, ref)
    at = parts.section("ref")
    if second - first == third - second == 1:
        one, other = struct.unpack_from("<2I", parts.tables, at + 4 * first)
        struct.pack_into("<2I", parts.tables, at + 4 * first, other, one)
    else:
        struct.pack_into("<I", parts.tables, at + 4 * first, struct.unpack_from("<I", parts.tables, at + 4 * second)[0])


def redirected(parts: Parts) -> None:
    """A file of fs.erofs names an object that the tables do not have."""
    at = parts.erofs.index(b"overlay.redirect") + len("overlay.redirect/")
    parts.erofs[at] = ord("0") if parts.erofs[at] != ord("0") else ord("1")


LIES: dict[str, Callable[[Parts], object]] = {
    "an object's id that is not that of its chunks": other_id,
    "two objects with each other's chunks": swapped_contents,
    "an object a byte larger": lambda parts: parts.add("object_size", 0, "<Q", 1),
    "an object a byte smaller": lambda parts: parts.add("object_size", 1, "<Q", -1),
    "an object of all sizes": lambda parts: parts.add("object_size", 0, "<Q", 1 << 62),
    "an object of another algorithm": lambda parts: parts.add("object_algorithm", 0, "<I", 1),
    "a chunk's id of another content": lambda parts: flip(parts, "chunk_id"),
    "a chunk a byte longer": lambda parts: parts.add("chunk_length", 0, "<I", 1),
    "a chunk that begins in its neighbour": lambda parts: parts.add("chunk_offset", 0, "<I", 1),
    "a chunk of a frame that is not there": lambda parts: parts.add("chunk_frame", 0, "<I", 1 << 20),
    "a frame that ends behind its pack": lambda parts: parts.add("frame_clen", 0, "<I", 1 << 30),
    "a frame that begins behind its pack": lambda parts: parts.add("frame_offset", 0, "<Q", 1 << 40),
    "a frame of a pack that is not there": lambda parts: parts.add("frame_blob", 0, "<I", 5),
    "a pack of another digest": lambda parts: flip(parts, "blob"),
    "a pack of another size": lambda parts: parts.add("blob", 4, "<Q", 1),
    "a pack of an unknown codec": lambda parts: parts.add("blob", 10, "<I", 1),
    "a file that names no object of the tables": redirected,
    "refs that run backwards": lambda parts: parts.add("object_ref", 1, "<I", 1 << 30),
}


def flip(parts: Parts, name: str) -> None:
    parts.tables[parts.section(name)] ^= 1


def assert_never_served(onesec: Onesec, tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    known = sorted(os.listdir(onesec.root / "cache/index"))
    for words in (["verify", "hostile"], ["mount", "hostile", str(tmp_path / "mounted")]):
        said = onesec.here(*words)
        assert said.status == 1, said
        assert said.error
        assert said.out == ""
    assert os.listdir(tmp_path / "mounted") == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert sorted(os.listdir(onesec.root / "cache/index")) == known, "what was refused counts as accepted"
    assert not (onesec.run_dir / "domains").exists(), "a server was started for it"


@pytest.mark.parametrize("case", LIES)
def test_tables_that_lie_are_never_served(case: str, tmp_path: Path, real_machine: None) -> None:
    onesec = Onesec(tmp_path)
    parts = good_image(onesec)
    LIES[case](parts)
    with canaries(tmp_path):
        parts.tag()
        assert_never_served(onesec, tmp_path)


def test_a_pack_of_another_image_cannot_be_read_without_being_listed(tmp_path: Path, real_machine: None) -> None:
    """The private image's pack lies in the same layout, and the attacker knows its digest."""
    onesec = Onesec(tmp_path)
    assert import_tar(onesec, archive(member("private", b"secret" * 9000))).status == 0
    parts = good_image(onesec)
    own = parts.manifest.each(PACK)
    foreign = [
        Descriptor(PACK, Digest("sha256:" + path.name), path.stat().st_size)
        for path in (onesec.root / "images/blobs/sha256").iterdir()
        if path.read_bytes().endswith(b"OSPACKE1") and path.name != own[0].digest.hex
    ]
    assert len(foreign) == 1
    for listed in ([], foreign, [*own, *foreign], [Descriptor(PACK, own[0].digest, own[0].size + 1)]):
        parts.tag(packs=listed)
        said = onesec.here("verify", "hostile")
        assert said.status == 1, said
        assert "its packs are not those of its tables" in said.error or "missing, or not of" in said.error
    (tmp_path / "mounted").mkdir()
    mounted = onesec.here("mount", "hostile", str(tmp_path / "mounted"))
    assert (mounted.status, "its packs are not those" in mounted.error) == (1, True)
