"""The kernel never parses a file system that our own encoder could not have written.

CVE-2026-43166, CVE-2026-45999, CVE-2024-26590, CVE-2022-50746 (EROFS); check and use of what is mounted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cext.errors import OnesecError
from registry.decoded import hash_descriptor
from registry.image import open_image
from registry.model import EROFS, TABLES
from registry.reference import Reference
from tests.security.test_claimed_identity import assert_never_served
from tests.support.command import Onesec
from tests.support.forged import Parts, good_image
from tests.support.hostile import canaries

SUPER = 1024


def number(parts: Parts, at: int, form: str, value: int) -> None:
    struct.pack_into(form, parts.erofs, at, value)


def first_inode(parts: Parts, layout: int) -> int:
    """Where the first inode of a layout (4: a file with an object) stands."""
    for at in range(1152, len(parts.erofs), 32):
        if struct.unpack_from("<H", parts.erofs, at)[0] == 1 | layout << 1:
            return at
    raise AssertionError


def replaced(parts: Parts, old: bytes, new: bytes) -> None:
    assert old in parts.erofs
    at = parts.erofs.index(old)
    parts.erofs[at : at + len(old)] = new


FORGED: dict[str, Callable[[Parts], object]] = {
    "compressed files, CVE-2024-26590": lambda parts: number(parts, SUPER + 80, "<I", 4 | 1),
    "another block size": lambda parts: parts.erofs.__setitem__(SUPER + 12, 9),
    "extra devices": lambda parts: number(parts, SUPER + 86, "<H", 3),
    "a device table": lambda parts: number(parts, SUPER + 80, "<I", 4 | 8),
    "a checksum that somebody believes": lambda parts: number(parts, SUPER + 4, "<I", 0x12345678),
    "a volume name": lambda parts: parts.erofs.__setitem__(slice(SUPER + 64, SUPER + 68), b"evil"),
    "a root that is a file": lambda parts: number(parts, SUPER + 14, "<H", first_inode(parts, 4) // 32),
    "a root outside the image": lambda parts: number(parts, SUPER + 14, "<H", 0xFFFF),
    "a metadata area elsewhere": lambda parts: number(parts, SUPER + 40, "<I", 1),
    "shared xattrs, CVE-2026-43166": lambda parts: number(parts, SUPER + 44, "<I", 1),
    "an image of more blocks than there are": lambda parts: number(parts, SUPER + 36, "<I", 0xFFFFFFFF),
    "fewer blocks than there are": lambda parts: number(parts, SUPER + 36, "<I", 0),
    "file data inside the image": lambda parts: number(parts, first_inode(parts, 4), "<H", 1),
    "a chunk that points at the super block": lambda parts: replaced(parts, b"\xf0\xff\xff\xff", b"\x00\x00\x00\x00"),
    "chunks of another size": lambda parts: number(parts, first_inode(parts, 4) + 16, "<I", 0),
    "a compressed inode": lambda parts: number(parts, first_inode(parts, 4), "<H", 1 | 1 << 1),
    "an inode of the short form": lambda parts: number(parts, first_inode(parts, 4), "<H", 4 << 1),
    "a file of another size than its object": lambda parts: number(parts, first_inode(parts, 4) + 8, "<Q", 1),
    "a file larger than any": lambda parts: number(parts, first_inode(parts, 4) + 8, "<Q", 1 << 63),
    "an xattr area without end, CVE-2022-50746": lambda parts: number(parts, first_inode(parts, 4) + 2, "<H", 0xFFFF),
    "a whiteout of overlayfs": lambda parts: number(parts, first_inode(parts, 4) + 4, "<H", 0o020000),
    "a directory that overlayfs takes for opaque": lambda parts: replaced(
        parts, b"overlay.redirect", b"overlay.opaque__"
    ),
    "a redirect out of the objects": lambda parts: climbing(parts),
    "a directory entry of the wrong type": lambda parts: entry_type(parts),
    "a name with a slash": lambda parts: replaced(parts, b"small", b"s/all"),
    "a name that climbs": lambda parts: replaced(parts, b"big", b"../"),
    "bytes behind the end": lambda parts: parts.erofs.extend(bytes(4096)),
    "an image that is cut": lambda parts: cut(parts),
    "an image of nothing": lambda parts: parts.erofs.clear(),
    "a file system of another kind": lambda parts: number(parts, SUPER, "<I", 0xEF53),
}


def climbing(parts: Parts) -> None:
    at = parts.erofs.index(b"overlay.redirect") + len("overlay.redirect")
    parts.erofs[at : at + 12] = b"/../../../et"


def entry_type(parts: Parts) -> None:
    root = struct.unpack_from("<H", parts.erofs, SUPER + 14)[0] * 32
    at = root + 64
    parts.erofs[at + 10] = 7


def cut(parts: Parts) -> None:
    del parts.erofs[-4096:]


@pytest.mark.parametrize("case", FORGED)
def test_an_image_that_our_encoder_would_not_write_is_never_mounted(
    case: str, tmp_path: Path, real_machine: None
) -> None:
    onesec = Onesec(tmp_path)
    parts = good_image(onesec)
    before = bytes(parts.erofs)
    FORGED[case](parts)
    assert bytes(parts.erofs) != before
    with canaries(tmp_path):
        parts.tag()
        assert_never_served(onesec, tmp_path)


def opened(parts: Parts) -> tuple[bytes, bytes]:
    """What would be mounted and served now: hashes of the very descriptors."""
    with open_image(parts.layout, Reference.parse("good")) as image:
        return tuple(  # type: ignore[return-value]
            hash_descriptor(fd, os.fstat(fd).st_size) for fd in (image.erofs, image.tables)
        )


def decoded(parts: Parts, kind: str) -> Path:
    return Path(parts.layout.cache_path("index"), parts.manifest.only(kind).decoded[0].hex())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def link_to_a_copy(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def in_its_place(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"byte {at} flipped": lambda path, at=at: flip(path, at) for at in (0, 1024, 1038, 1104, 1300, -1)},  # type: ignore[misc]
    "cut": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(4096)),
    "gone": lambda path: path.unlink(),
    "a link": link_to_a_copy,
    "a link to nothing": lambda path: in_its_place(path, lambda: path.symlink_to("/nowhere")),
    "a link to a device": lambda path: in_its_place(path, lambda: path.symlink_to("/dev/zero")),
    "a fifo": lambda path: in_its_place(path, lambda: os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", [EROFS, TABLES], ids=["erofs", "tables"])
@pytest.mark.parametrize("case", DAMAGE)
def test_the_accepted_copy_is_hashed_at_each_use_and_made_again_when_it_is_not_right(
    case: str, kind: str, tmp_path: Path
) -> None:
    parts = good_image(Onesec(tmp_path))
    want = tuple(parts.manifest.only(one).decoded[0] for one in (EROFS, TABLES))
    assert opened(parts) == want
    DAMAGE[case](decoded(parts, kind))
    with canaries(tmp_path):
        assert opened(parts) == want
    assert not decoded(parts, kind).is_symlink()


def test_a_copy_that_changes_after_its_hash_is_not_what_is_mounted(tmp_path: Path) -> None:
    """Replaced by its name, the descriptor that was hashed is still the one that is mounted."""
    parts = good_image(Onesec(tmp_path))
    with open_image(parts.layout, Reference.parse("good")) as image:
        path = decoded(parts, EROFS)
        path.unlink()
        path.write_bytes(b"evil")
        assert hash_descriptor(image.erofs, os.fstat(image.erofs).st_size) == parts.manifest.only(EROFS).decoded[0]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(image.erofs, b"x")


def test_a_directory_in_the_cache_is_an_error_in_words(tmp_path: Path) -> None:
    parts = good_image(Onesec(tmp_path))
    opened(parts)
    place = decoded(parts, EROFS)
    in_its_place(place, place.mkdir)
    with pytest.raises((OnesecError, OSError)):
        opened(parts)
