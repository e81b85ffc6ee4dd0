"""Which pack has a chunk: the map that a build asks, and what becomes of it when its file rots."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import cext
from cext.errors import ClosedError, CorruptError
from tests.support import seeds

ROOT = Path(__file__).parents[3]


def chunk_ids(*numbers: int) -> list[bytes]:
    return [cext.blake3(b"chunk %d" % number) for number in numbers]


def pack(*numbers: int) -> tuple[bytes, bytes]:
    """Digest and table (docs/format.md section 3) of a pack with these chunks, one frame each."""
    ids = chunk_ids(*numbers)
    count = len(ids)
    head = b"OSPACK01" + struct.pack("<II", count, count)
    columns = struct.pack(f"<{count}I", *[100] * count) + struct.pack(f"<{count}I", *[200] * count)
    columns += struct.pack(f"<{count}I", *[1] * count) + struct.pack(f"<{count}I", *[200] * count) + b"".join(ids)
    return cext.blake3(b"pack %r" % (numbers,)), head + columns


@pytest.fixture
def packs(tmp_path: Path) -> dict[str, tuple[bytes, bytes]]:
    """Real packs, by the numbers in their names: "123" has the chunks 1, 2, 3."""
    made = {}
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in ("123", "345", "6", "12"):
            with cext.Ingest(fd) as ingest:
                for digit in name:
                    ingest.add_bytes(b"chunk %d" % int(digit))
                (done,) = ingest.finish().packs
                made[name] = done.digest, done.table
                os.unlink(tmp_path / done.name)
    finally:
        os.close(fd)
    return made


Packs = dict[str, tuple[bytes, bytes]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "map"
    path.mkdir()
    return path


def found(chunks: cext.ChunkMap, packs: Packs, *numbers: int) -> list[str | None]:
    names = {digest: name for name, (digest, _) in packs.items()}
    return [None if (got := chunks.lookup(id)) is None else names[got] for id in chunk_ids(*numbers)]


def test_each_chunk_leads_to_the_first_pack_that_has_it(place: Path, packs: Packs) -> None:
    with cext.ChunkMap(place) as chunks:
        assert chunks.add_pack(*packs["123"])
        assert chunks.add_pack(*packs["345"])
        assert not chunks.add_pack(*packs["123"])
        assert found(chunks, packs, 1, 2, 3, 4, 5, 6) == ["123", "123", "123", "345", "345", None]
        assert chunks.packs() == {packs["123"][0], packs["345"][0]}
    with cext.ChunkMap(place) as chunks:
        assert found(chunks, packs, 1, 4, 6) == ["123", "345", None]


def test_a_removed_pack_is_never_named_again(place: Path, packs: Packs) -> None:
    with cext.ChunkMap(place) as chunks:
        for name in ("123", "345", "12"):
            chunks.add_pack(*packs[name])
        assert chunks.remove_pack(*packs["123"])
        assert not chunks.remove_pack(*packs["123"])
        assert found(chunks, packs, 1, 2, 3, 4) == [None, None, None, "345"]  # of what it had first, nothing is left
        assert chunks.packs() == {packs["345"][0], packs["12"][0]}
        chunks.add_pack(*packs["123"])
        assert found(chunks, packs, 1, 2, 3) == ["123", "123", "123"]


def test_words_that_are_no_table_or_digest_are_refused(place: Path, packs: Packs) -> None:
    digest, table = packs["123"]
    with cext.ChunkMap(place) as chunks:
        for bad in (b"", table[:-1], table[1:], bytes(len(table))):
            with pytest.raises(CorruptError):
                chunks.add_pack(digest, bad)
        with pytest.raises(CorruptError, match="got 31 bytes, want 32"):
            chunks.add_pack(digest[:31], table)
        with pytest.raises(CorruptError, match="got 33 bytes, want 32"):
            chunks.lookup(digest + b"x")
        assert chunks.packs() == set()


def test_a_map_grows_beyond_its_first_size(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    fd = os.open(work, os.O_RDONLY)
    try:
        with cext.ChunkMap(place, map_size=1 << 16) as chunks, cext.Ingest(fd) as ingest:
            for number in range(3000):
                ingest.add_bytes(b"chunk %d" % number)
            (done,) = ingest.finish().packs
            chunks.add_pack(done.digest, done.table)
            assert all(chunks.lookup(id) == done.digest for id in chunk_ids(*range(3000)))
            assert chunks.statistics().map_size > 1 << 16
    finally:
        os.close(fd)


OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
import cext
with cext.ChunkMap(sys.argv[2]) as chunks:
    for line in sys.stdin:
        digest, table = map(bytes.fromhex, line.split())
        chunks.add_pack(digest, table)
        print("added", flush=True)
"""


def test_another_process_sees_and_adds(place: Path, packs: Packs) -> None:
    with cext.ChunkMap(place) as chunks:
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(ROOT), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            for name in ("123", "345"):
                digest, table = packs[name]
                other.stdin.write(f"{digest.hex()} {table.hex()}\n")
                other.stdin.flush()
                assert other.stdout.readline() == "added\n"
                assert found(chunks, packs, int(name[2])) == [name]
            chunks.add_pack(*packs["6"])
        finally:
            other.communicate()
        assert found(chunks, packs, 1, 5, 6) == ["123", "345", "6"]


def test_two_maps_of_one_process_on_one_directory_are_one(place: Path, packs: Packs) -> None:
    with cext.ChunkMap(place) as one:
        with cext.ChunkMap(place) as two:
            two.add_pack(*packs["123"])
        assert found(one, packs, 1) == ["123"]


def test_a_closed_map_and_a_map_from_before_a_fork_are_refused(place: Path) -> None:
    chunks = cext.ChunkMap(place)
    child = os.fork()
    if child == 0:
        try:
            chunks.lookup(bytes(32))
        except ClosedError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    chunks.close()
    chunks.close()
    with pytest.raises(ClosedError):
        chunks.lookup(bytes(32))


def test_what_is_no_map_of_ours_is_refused(place: Path) -> None:
    (place / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(CorruptError):
        cext.ChunkMap(place)
    (place / "data.mdb").unlink()
    cext.Store(place).close()
    with pytest.raises(CorruptError, match="holds something else"):
        cext.ChunkMap(place)


def open_and_ask(place: Path, packs: Packs, numbers: Sequence[int]) -> list[str | None] | None:
    """None: the damage was found when it was opened."""
    try:
        with cext.ChunkMap(place) as chunks:
            return found(chunks, packs, *numbers)
    except CorruptError:
        return None


def test_rot_of_any_kind_never_leads_to_a_wrong_pack(place: Path, packs: Packs) -> None:
    numbers = (1, 2, 3, 4, 5, 6)
    with cext.ChunkMap(place) as chunks:
        for name in ("123", "345", "6"):
            chunks.add_pack(*packs[name])
        right = found(chunks, packs, *numbers)
    whole = (place / "data.mdb").read_bytes()
    seed = seeds.draw()
    dice = random.Random(seed)
    noticed = 0
    for _ in range(400):
        raw = bytearray(whole)
        match dice.randrange(4):
            case 0:
                raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
            case 1:
                at = dice.randrange(len(raw))
                raw[at : at + 64] = bytes(len(raw[at : at + 64]))
            case 2:
                one, two = (dice.randrange(len(raw) // 4096) * 4096 for _ in range(2))
                raw[one : one + 4096], raw[two : two + 4096] = raw[two : two + 4096], raw[one : one + 4096]
            case 3:
                del raw[dice.randrange(len(raw)) :]
        (place / "data.mdb").write_bytes(raw)
        answer = open_and_ask(place, packs, numbers)
        if answer != right:
            noticed += 1
        if answer is not None:
            assert all(got in (want, None) for got, want in zip(answer, right, strict=True))
    assert noticed > 50


FORGER = """
import ctypes, sys
lmdb = ctypes.CDLL("liblmdb.so.0")
for name in ("mdb_env_create", "mdb_env_open", "mdb_txn_begin", "mdb_dbi_open", "mdb_put", "mdb_txn_commit"):
    getattr(lmdb, name).restype = ctypes.c_int
class Value(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("data", ctypes.c_char_p)]
def check(code):
    assert code == 0, code
environment, transaction, table = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint()
check(lmdb.mdb_env_create(ctypes.byref(environment)))
check(lmdb.mdb_env_set_maxdbs(environment, 8))
check(lmdb.mdb_env_set_mapsize(environment, ctypes.c_size_t(64 << 20)))
check(lmdb.mdb_env_open(environment, sys.argv[1].encode(), 0, 0o600))
check(lmdb.mdb_txn_begin(environment, None, 0, ctypes.byref(transaction)))
check(lmdb.mdb_dbi_open(transaction, sys.argv[2].encode(), 0x40000, ctypes.byref(table)))
key, value = Value(32, b"k" * 32), Value(1 << 20, b"v" * (1 << 20))
check(lmdb.mdb_put(transaction, table, ctypes.byref(key), ctypes.byref(value), 0))
check(lmdb.mdb_txn_commit(transaction))
"""


def test_a_value_that_no_row_of_ours_has_is_refused_unread(place: Path) -> None:
    """A forged map may be sparse and of any size, and so may its values be."""
    cext.ChunkMap(place).close()
    subprocess.run([sys.executable, "-c", FORGER, str(place), "forged"], check=True)
    with pytest.raises(CorruptError, match="got a value of 1048576 bytes"):
        cext.ChunkMap(place)
