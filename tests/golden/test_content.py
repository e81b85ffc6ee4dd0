"""Cut points, ids, packs and manifests that must not change: another value here is another format.

Packs are of contents that no release of libzstd can compress, so that none has a say (docs/format.md, at the top); of
those that it can compress, everything but the compressed lengths is frozen.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

import cext
from cext import _reference as reference
from registry.model import LAYER, OCI_CONFIG, PACK, Descriptor, Digest, Manifest, manifest_bytes
from tests.support.contents import KIB, MIB, Piece, content

HERE = Path(__file__).parent

CUTS: list[tuple[list[Piece], list[int]]] = [
    ([("random", 1, 16 * KIB)], [16384]),
    ([("random", 1, 16 * KIB + 1)], [16385]),
    ([("random", 1, 500_000)], [79486, 202696, 288330, 362726, 380911, 450983, 500000]),
    ([("text", 2, 400_000)], [25820, 106542, 177307, 285136, 336354, 400000]),
    ([("pattern", 3, 300_000)], [262144, 300000]),
    ([("constant", 7, 600_000)], [262144, 524288, 600000]),
    ([("cut often", 0, 100_000)], [16448, 32896, 49344, 65792, 82240, 98688, 100000]),
    ([("uncut", 0, 600_000)], [262144, 524288, 600000]),
]

CONTENTS: list[list[Piece]] = [
    [],
    [("random", 1, 1)],
    [("random", 2, 4096)],
    *([("random", 10 + row, 1000 * row)] for row in range(1, 40)),
    [("random", 3, 64 * KIB)],
    [("random", 4, 64 * KIB + 1)],
    [("random", 5, 700_000)],
    [("random", 6, 10_000), ("zeros", 0, MIB + 5), ("random", 7, 90_000)],
    [("zeros", 0, 3 * MIB)],
    [("random", 2, 4096)],
    [("random", 5, 700_000)],
]


@pytest.mark.parametrize(("pieces", "want"), CUTS, ids=[pieces[0][0] + str(pieces[0][2]) for pieces, _ in CUTS])
def test_a_content_is_cut_here(pieces: list[Piece], want: list[int]) -> None:
    assert cext.cut_points(content(pieces)) == want


def made(directory: Path, contents: list[bytes], *, pack_size: int = 64 * MIB) -> tuple[list[bytes], list[bytes]]:
    """Packs, and the parts of each content."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with cext.Ingest(fd, pack_size=pack_size) as ingest:
            tickets = [ingest.add_bytes(one) for one in contents]
            result = ingest.finish()
            return [(directory / pack.name).read_bytes() for pack in result.packs], [
                ingest.parts(ticket)[1] for ticket in tickets
            ]
    finally:
        os.close(fd)


def dump(pack: bytes, *, independent: bool = False) -> str:
    """A pack's table for a person to read. independent: of the release of libzstd."""
    (length,) = (int.from_bytes(pack[-16:-12], "little"),)
    lines = []
    for packed, plain, rows in reference.parse_payload(pack[len(pack) - length :], len(pack)):
        lines.append(f"frame {plain}" if independent else f"frame {packed} {plain}")
        lines += [f"  {size} {identity.hex()}" for size, identity in rows]
    return "\n".join([*lines, ""])


def test_a_pack_has_these_bytes(tmp_path: Path) -> None:
    contents = [content(pieces) for pieces in CONTENTS]
    packs, parts = made(tmp_path, contents)
    assert len(packs) == 1
    assert dump(packs[0]) == (HERE / "pack.txt").read_text()
    assert cext.blake3(packs[0]).hex() == "6ec8fe2c8f5998949ff64ae5b71d4aa524aa17f036f04415ccc8d7a38f2f9a19"
    ids = b"".join(reference.object_id(len(one), its) for one, its in zip(contents, parts, strict=True) if one)
    assert cext.blake3(ids).hex() == "c5766f9f6144f6c1d7f185ad90b66dcde8a9e38fcaf784a53e7f2056594f4ad6"


def test_a_pack_of_what_cannot_be_compressed_is_every_release_s(tmp_path: Path) -> None:
    """The zstd of Python's package, which is often another release than the one that cext is linked with."""
    contents = [content(pieces) for pieces in CONTENTS]
    packs, _ = made(tmp_path, contents)
    twin = reference.Ingest(zstandard.ZstdCompressor(write_checksum=False, write_content_size=True).compress)
    for one in contents:
        twin.add(one)
    assert twin.packs() == packs


def test_packs_split_here(tmp_path: Path) -> None:
    packs, _ = made(tmp_path, [content(pieces) for pieces in CONTENTS], pack_size=300_000)
    assert [len(pack) for pack in packs] == [236081, 234444, 238372, 294459, 273773, 285500, 155795]


def test_what_can_be_compressed_has_these_frames(tmp_path: Path) -> None:
    texts: list[list[Piece]] = [[("text", row, 7000 * row)] for row in range(1, 15)]
    packs, _ = made(tmp_path, [content(pieces) for pieces in texts])
    assert (
        cext.blake3(dump(packs[0], independent=True).encode()).hex()
        == "1edb5a3157bb537a18305e20054aa5a2937f56725db12d2b119d7c7f8f3a6331"
    )


def test_a_manifest_has_these_bytes() -> None:
    def blob(media_type: str, number: int) -> Descriptor:
        return Descriptor(media_type, Digest("sha256:" + f"{number:02x}" * 32), 1000 + number)

    raw = manifest_bytes(
        config=blob(OCI_CONFIG, 1),
        erofs=blob("application/vnd.onesec.index.erofs.v1+zstd", 2),
        tables=blob("application/vnd.onesec.index.tables.v1+zstd", 3),
        layers=[blob(LAYER, 4), blob(LAYER, 5)],
        packs=[blob(PACK, 6), blob(PACK, 7)],
        size=123_456,
        files=78,
    )
    assert raw == (HERE / "manifest.json").read_bytes().rstrip(b"\n")
    assert Manifest.parse(raw).require_image().raw == raw
