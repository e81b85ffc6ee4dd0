"""Chunks, frames and packs: the C code against the slow twin of docs/format.md."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cext
from cext import _reference as reference
from cext.errors import CorruptError, LimitError
from tests.support.contents import KIB, MIB, Piece, content, contents, pieces, stream, text


def inflate(frame: bytes, size: int) -> bytes:
    """zstd as Python's own package has it: another build and often another release than what cext links."""
    if not size:  # zstandard does not look further then
        return zstandard.ZstdDecompressor().decompressobj().decompress(frame)
    return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)


# ---------------------------------------------------------------------- kernels


@settings(max_examples=80, deadline=None, print_blob=True)
@given(st.lists(pieces.filter(lambda one: one[0] != "zeros"), max_size=4))
def test_cut_points_are_those_of_the_twin(made: list[Piece]) -> None:
    data = content(made)
    assert cext.cut_points(data) == reference.cut_points(data)


def test_adversarial_contents_are_what_they_claim() -> None:
    often = cext.cut_points(content([("cut often", 0, MIB)]))
    assert max(end - start for start, end in zip([0, *often], often, strict=False)) < 16 * KIB + 65
    assert cext.cut_points(content([("uncut", 0, MIB)])) == [256 * KIB, 512 * KIB, 768 * KIB, MIB]


@settings(max_examples=200, deadline=None, print_blob=True)
@given(st.binary(max_size=3000), st.sampled_from([None, "onesec 2026 object v1", "", "another context"]))
def test_hashes_are_those_of_the_twin(data: bytes, context: str | None) -> None:
    assert cext.blake3(data, context=context) == reference.blake3(data, context=context)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(pieces, st.integers(1, 9))
def test_a_frame_meets_the_format_and_comes_back(one: Piece, level: int) -> None:
    data = content([one])[: 256 * KIB]
    frame = cext.compress_frame(data, level)
    assert reference.decompress_frame(frame, len(data), inflate) == data
    assert cext.decompress_frame(frame, len(data)) == data
    assert cext.decompress_frame(reference.raw_frame(data), len(data)) == data


RAW = reference.raw_frame(stream(2, 400))
FRAMES = [cext.compress_frame(text(1, size)) for size in (1, 300, 70_000)] + [
    RAW,
    zstandard.ZstdCompressor(write_checksum=True).compress(text(1, 300)),
    zstandard.ZstdCompressor(write_content_size=False).compress(text(1, 300)),
    zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(text(3, 3000), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    ).compress(text(1, 300)),
    b"\x50\x2a\x4d\x18" + bytes(4),  # a skippable frame
    b"\x24\xb5\x2f\xfd" + bytes(40),  # zstd before its first release
]


@settings(max_examples=1500, deadline=None, print_blob=True)
@given(
    st.sampled_from(FRAMES),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=2),
    st.sampled_from([0, 1, 44, 256, 300, 400, 70_000, 262_145]),
    st.sampled_from([b"", b"\0", b"\x50\x2a\x4d\x18\0\0\0\0"]),
)
@example(FRAMES[4], [], 300, b"")
@example(FRAMES[5], [], 300, b"")
@example(FRAMES[6], [], 300, b"")
@example(FRAMES[7], [], 0, b"")
@example(FRAMES[1], [], 300, b"\0")
@example(FRAMES[0], [(5, 0)], 0, b"")
def test_a_frame_is_taken_or_refused_as_the_twin_does(
    frame: bytes, changes: list[tuple[int, int]], size: int, tail: bytes
) -> None:
    damaged = bytearray(frame)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    data = bytes(damaged) + tail
    got: bytes | None
    try:
        got = cext.decompress_frame(data, size)
    except (CorruptError, LimitError):
        got = None
    try:
        reference.check_frame(data, size)
    except reference.Broken:
        assert got is None
        return
    if data == frame or frame == RAW:
        assert got == decoded(data, size)
    elif got is not None:  # releases of libzstd differ in what they make of damaged entropy coding: ids tell
        assert len(got) == size


def decoded(data: bytes, size: int) -> bytes | None:
    try:
        return reference.decompress_frame(data, size, inflate)
    except (reference.Broken, zstandard.ZstdError):
        return None


# ---------------------------------------------------------------------- the pipeline

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A file system that need not wait for a disk."""

WAYS = ("bytes", "file", "stream", "known size")


def feed(ingest: cext.Ingest, data: bytes, way: str, seed: int, directory: Path) -> int:
    """One content, brought in one of the ways there are."""
    if way == "bytes":
        return ingest.add_bytes(data)
    if way == "file":
        path = directory / "content"
        with open(path, "wb") as file:
            for at in range(0, len(data), 64 * KIB):  # zeros become holes of the file where they can
                step = data[at : at + 64 * KIB]
                if any(step):
                    file.write(step)
                else:
                    file.seek(len(step), os.SEEK_CUR)
            file.truncate(len(data))
        with open(path, "rb") as file:
            ticket = ingest.add_file(file.fileno(), len(data))
        path.unlink()
        return ticket
    engine = ingest._engine
    ticket = engine.begin(len(data)) if way == "known size" else ingest.begin()
    at, row = 0, 0
    while at < len(data):
        most = (1, 5000, 200_000, 9 * MIB)[row % 4]
        here = data[at : at + 1 + int.from_bytes(stream(seed + row, 3), "little") % most]
        row += 1
        if any(here):
            ingest.update(here)
        else:
            ingest.zeros(len(here))
        at += len(here)
    ingest.end()
    return ticket


class Made:
    """What an ingest came to: the packs' bytes, the parts of each content, older packs."""

    def __init__(
        self,
        given: Sequence[tuple[bytes, str]],
        *,
        threads: int,
        pack_size: int,
        seed: int = 0,
        older: Sequence[bytes] = (),
    ) -> None:
        with tempfile.TemporaryDirectory(dir=MEMORY) as place:
            directory = Path(place)
            packs = directory / "packs"
            packs.mkdir()
            (directory / "map").mkdir()
            known = cext.ChunkMap(directory / "map")
            self.known: dict[bytes, bytes] = {}
            for pack in older:
                digest = reference.blake3(pack)
                table = pack[len(pack) - int.from_bytes(pack[-16:-12], "little") :]
                known.add_pack(digest, table)
                for _, _, rows in reference.parse_payload(table, len(pack)):
                    for _, identity in rows:
                        self.known.setdefault(identity, digest)
            fd = os.open(packs, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with known, cext.Ingest(fd, threads=threads, pack_size=pack_size, known=known) as ingest:
                    tickets = [feed(ingest, data, way, seed + row, directory) for row, (data, way) in enumerate(given)]
                    result = ingest.finish()
                    self.parts = [ingest.parts(ticket) for ticket in tickets]
                    self.packs = [(packs / pack.name).read_bytes() for pack in result.packs]
                    self.tables = [(pack.table, pack.size, pack.digest) for pack in result.packs]
                    self.known_packs = list(result.known_packs)
                    assert tickets == list(range(len(given)))
            finally:
                os.close(fd)


given_contents = st.lists(st.tuples(contents, st.sampled_from(WAYS)), min_size=1, max_size=6)
small_contents = st.lists(
    st.tuples(
        st.lists(st.tuples(st.just("random"), st.integers(0, 9), st.integers(0, 30_000)), max_size=2),
        st.sampled_from(WAYS),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    st.one_of(given_contents, small_contents),
    st.integers(1, 4),
    st.sampled_from([256 * KIB, 300_001, 64 * MIB]),
    st.integers(0, 1000),
)
def test_packs_are_those_of_the_twin_however_content_comes(
    made: list[tuple[list[Piece], str]], threads: int, pack_size: int, seed: int
) -> None:
    given = [(content(shape), way) for shape, way in made]
    half = reference.Ingest(cext.compress_frame)
    for one, _ in given[::3]:
        half.add(one)
    older = half.packs() if seed % 2 else []
    native = Made(given, threads=threads, pack_size=pack_size, seed=seed, older=older)
    twin = reference.Ingest(cext.compress_frame, native.known, pack_size)
    for one, _ in given:
        twin.add(one)
    assert native.parts == [(len(one), parts) for (one, _), parts in zip(given, twin.parts, strict=True)]
    assert native.known_packs == twin.known_packs
    assert native.packs == twin.packs()
    for pack, (table, size, _) in zip(native.packs, native.tables, strict=True):
        assert (pack.endswith(table), size) == (True, len(pack))


@pytest.mark.parametrize("order", range(3))
def test_the_order_of_contents_changes_packs_but_no_id(order: int) -> None:
    given = [(content([("random", row, 1 + 9000 * row)]), "bytes") for row in range(20)]
    turned = sorted(given, key=lambda one: reference.blake3(one[0] + bytes([order])))
    first, second = (Made(one, threads=2, pack_size=64 * MIB) for one in (given, turned))
    assert sorted(first.parts) == sorted(second.parts)
    assert first.packs != second.packs
    found = [reference.read_pack(pack, inflate) for pack in first.packs + second.packs]
    assert found[0] == found[1]


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.data())
def test_a_table_is_read_or_refused_as_the_twin_does(data: st.DataObject) -> None:
    frames = data.draw(
        st.lists(
            st.builds(
                lambda size, lengths: reference.Frame(
                    bytes(size), sum(lengths), tuple((one, reference.blake3(bytes([one % 256]))) for one in lengths)
                ),
                st.integers(0, 3),
                st.lists(st.sampled_from([0, 1, 1, 2, 500, 256 * KIB]), max_size=3),
            ),
            max_size=4,
        )
    )
    payload = bytearray(reference.pack_payload(frames))
    blob_size = sum(len(frame.data) for frame in frames) + 8 + len(payload) + data.draw(st.sampled_from([0, 0, 0, 1]))
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        if data.draw(st.booleans()):  # and its checksum made right again
            payload[-48:-16] = reference.blake3(bytes(payload[:-48]))
    table = bytes(payload)
    try:
        want = reference.parse_payload(table, blob_size)
    except reference.Broken:
        want = None
    try:
        found = cext.parse_pack_table(table, blob_size)
    except (CorruptError, LimitError):
        assert want is None
        return
    rows = iter(zip(found.chunk_length, found.chunk_id, strict=True))
    columns = zip(found.frame_clen, found.frame_ulen, found.frame_chunks, strict=True)
    assert [(one, two, tuple(next(rows) for _ in range(count))) for one, two, count in columns] == want
