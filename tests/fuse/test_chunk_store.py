"""The local store under the object server: what is read again comes from it, and its troubles stay its own."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import cext
from cache.settings import StoreSettings
from cache.stores import check_all, directory_name
from lazyfs import objects
from tests.fuse.test_objects import INSIDE, ROOT, FakeLease
from tests.support.objects import ObjectSet, make_objects
from tests.support.serving import Served, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")

BIG = random.Random(7).randbytes(3 << 20)
SMALL = {f"small-{number}": random.Random(number).randbytes(9000) for number in range(20)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("objects"), {"big": BIG, **SMALL})


def read_cold(served: Served, made: ObjectSet, name: str) -> bytes:
    """With no page in the kernel's cache."""
    with served.opened(made, name) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return served.read(made, name)


def test_what_is_read_twice_is_kept_and_read_from_the_store(tmp_path: Path, made: ObjectSet) -> None:
    with cext.Store(tmp_path) as store, serving(made, store=store) as served:
        assert read_cold(served, made, "big") == BIG
        first = served.count("keeps")
        assert read_cold(served, made, "big") == BIG
        assert served.count("keeps") > first
        store.flush()
        before = served.count("kept_bytes"), served.count("decoded_bytes")
        assert read_cold(served, made, "big") == BIG
        kept = served.count("kept_bytes") - before[0]
        decoded = served.count("decoded_bytes") - before[1]
        assert kept > 0.8 * len(BIG)  # but for the chunks that two requests share: the frame cache had those
        assert decoded < 0.2 * len(BIG)
        assert store.statistics().chunks > 0


def test_what_is_read_once_is_not_kept(tmp_path: Path, made: ObjectSet) -> None:
    with cext.Store(tmp_path) as store, serving(made, store=store, threads=1) as served:
        assert read_cold(served, made, "big") == BIG
        assert served.count("keeps") == 0


def fill(path: Path, made: ObjectSet) -> None:
    """Every chunk of the set into a store."""
    places = {place for found in made.places.values() for place in found}
    ends: dict[tuple[str, int], int] = {}  # of decoded frames
    for place in places:
        frame = place.pack, place.offset
        ends[frame] = max(ends.get(frame, 0), place.at + place.length)
    with cext.Store(path) as store:
        for place in places:
            packed = (made.packs / place.pack).read_bytes()[place.offset : place.offset + place.size]
            frame_bytes = cext.decompress_frame(packed, ends[place.pack, place.offset])
            chunk = frame_bytes[place.at : place.at + place.length]
            store.put(cext.blake3(chunk), chunk, compress=False)


def test_with_everything_in_the_store_the_packs_are_not_needed(tmp_path: Path, made: ObjectSet) -> None:
    fill(tmp_path, made)
    gone = ObjectSet(made.tables, tmp_path / "no-packs", made.ids, made.sizes, made.places)
    with cext.Store(tmp_path) as store, serving(gone, store=store) as served:
        for name, content in {"big": BIG, **SMALL}.items():
            assert served.read(gone, name) == content
        assert served.count("pack_bytes") == 0
        assert served.count("errors") == 0


def test_reads_at_any_place_come_out_of_the_store_right(tmp_path: Path, made: ObjectSet) -> None:
    fill(tmp_path, made)
    dice = random.Random(3)
    with cext.Store(tmp_path) as store, serving(made, store=store) as served, served.opened(made, "big") as fd:
        for _ in range(60):
            offset = dice.randrange(len(BIG))
            size = dice.choice([1, 100, 4096, 70_000, 300_000])
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, size, offset) == BIG[offset : offset + size]
        assert served.count("kept_bytes") > 0


def test_a_byte_that_rots_in_the_store_is_found_and_the_pack_answers(tmp_path: Path, made: ObjectSet) -> None:
    fill(tmp_path, made)
    segment = next(tmp_path.glob("seg-*"))
    with cext.Store(tmp_path) as store, serving(made, store=store) as served:
        raw = bytearray(segment.read_bytes())
        for at in range(500, len(raw), 4000):
            raw[at] ^= 0x40
        segment.write_bytes(raw)
        for name, content in {"big": BIG, **SMALL}.items():
            assert read_cold(served, made, name) == content
        assert store.statistics().damaged > 20
        assert served.count("errors") == 0


# ---------------------------------------------------------------------- the real server process


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    domain: str
    tables: int
    packs: int
    lease: FakeLease


@dataclass(frozen=True, slots=True)
class Host:
    path: Path

    @property
    def base(self) -> Path:
        return self.path / "store"

    def store(self, domain: str = "local") -> Path:
        return self.base / directory_name(domain)

    @contextmanager
    def attached(
        self, made: ObjectSet, *, domain: str = "local", quota: int | None = 64 << 20, floor: int = 1
    ) -> Iterator[objects.Attachment]:
        tables = os.open(made.tables, os.O_RDONLY | os.O_CLOEXEC)
        packs = os.open(made.packs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        image = Image("image", domain, tables, packs, FakeLease())
        try:
            with objects.attach(
                image,
                run_dir=self.path / "run",
                root=self.path,
                store=StoreSettings(str(self.base), quota, floor),
            ) as attachment:
                yield attachment
        finally:
            os.close(tables)
            os.close(packs)
        eventually(lambda: not list((self.path / "run").glob("domains/*/socket")))

    def log(self) -> str:
        return "".join(path.read_text() for path in (self.path / "run").glob("domains/*/log"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def read(attachment: objects.Attachment, made: ObjectSet, name: str) -> bytes:
    fd = os.open(made.path(name), os.O_RDONLY | os.O_CLOEXEC, dir_fd=attachment.objects)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def count(attachment: objects.Attachment, what: str) -> int:
    found = attachment.statistics()["statistics"][what]
    assert isinstance(found, int)
    return found


def test_the_server_process_keeps_what_is_read_again_also_for_its_successor(host: Host, made: ObjectSet) -> None:
    with host.attached(made) as attachment:
        for _ in range(2):
            assert read(attachment, made, "big") == BIG
        assert count(attachment, "keeps") > 0
    with host.attached(made) as attachment:
        assert read(attachment, made, "big") == BIG
        assert count(attachment, "kept_bytes") > 0.8 * len(BIG)
    store = host.store()
    assert store.stat().st_uid == 65534
    assert {path.stat().st_uid for path in store.iterdir()} == {65534}
    assert host.base.stat().st_mode & 0o077 == 0
    assert "left out" not in host.log()
    assert check_all(str(host.base)) == ((), ())


def test_what_was_read_once_by_a_server_is_kept_by_the_next(host: Host, made: ObjectSet) -> None:
    for _ in range(2):
        with host.attached(made) as attachment:
            assert read(attachment, made, "big") == BIG
            keeps = count(attachment, "keeps")
    assert keeps > 0


def test_each_trust_domain_has_a_store_of_its_own(host: Host, made: ObjectSet) -> None:
    with host.attached(made, domain="one") as attachment:
        for _ in range(2):
            read(attachment, made, "big")
    with host.attached(made, domain="two") as attachment:
        assert read(attachment, made, "big") == BIG
        assert count(attachment, "kept_bytes") == 0
    assert host.store("one") != host.store("two")
    with cext.Store(host.store("one")) as one, cext.Store(host.store("two")) as two:
        assert two.statistics().chunks < one.statistics().chunks / 2  # what two threads decoded at once, perhaps


def lock_store(host: Host) -> None:
    host.store().mkdir(parents=True)
    host.base.chmod(0o700)
    lock = host.store() / "lock"
    lock.write_text("4711        ")
    os.chown(lock, 65534, 65534)


def break_map(host: Host) -> None:
    (host.store() / "data.mdb").write_bytes(b"\xff" * 9000)


def make_map_a_directory(host: Host) -> None:
    (host.store() / "data.mdb").unlink()
    (host.store() / "data.mdb").mkdir()


def open_to_others(host: Host) -> None:
    host.base.chmod(0o755)


def a_file_in_its_place(host: Host) -> None:
    for path in host.store().iterdir():
        path.unlink()
    host.store().rmdir()
    host.store().write_text("")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (break_map, "the map is made again"),
        (make_map_a_directory, "left out"),
        (open_to_others, "others can enter it"),
        (a_file_in_its_place, "left out"),
    ],
)
def test_a_damaged_store_never_makes_a_start_fail(
    host: Host, made: ObjectSet, damage: Callable[[Host], None], line: str
) -> None:
    with host.attached(made) as attachment:
        read(attachment, made, "big")
    damage(host)
    with host.attached(made) as attachment:
        for _ in range(2):
            assert read(attachment, made, "big") == BIG
    assert host.log().count(line) == 1


def test_a_store_that_another_process_has_is_left_out_with_its_name(host: Host, made: ObjectSet) -> None:
    lock_store(host)
    fd = os.open(host.store() / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with host.attached(made) as attachment:
            assert read(attachment, made, "big") == BIG
        assert check_all(str(host.base)) == ((), (f"not checked: store {host.store()}: in use by process 4711",))
    finally:
        os.close(fd)
    assert host.log().count("chunk store: left out: store: in use by process 4711\n") == 1


def test_a_full_disk_is_one_line_and_readers_do_not_notice(host: Host, made: ObjectSet) -> None:
    with host.attached(made, floor=1 << 60) as attachment:
        for _ in range(4):
            assert read(attachment, made, "big") == BIG
        assert count(attachment, "errors") == 0
        time.sleep(0.1)
    assert host.log().count("store: full") == 1
    assert not list(host.store().glob("seg-*"))


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full_loses_new_chunks_and_takes_them_when_there_is_space(tmp_path: Path) -> None:
    chunks = {cext.blake3(data): data for data in (random.Random(n).randbytes(50_000) for n in range(100))}
    with small_disk(tmp_path / "disk", 3 << 20) as disk:
        with cext.Store(disk, segment_size=400_000) as store:
            ids = list(chunks)
            for id in ids[:30]:
                store.put(id, chunks[id], compress=False)
                store.flush()
            for id in ids[30:]:
                store.put(id, chunks[id], compress=False)
            with pytest.raises(OSError, match="No space left"):
                store.flush()
            there = [id for id in ids if store.get(id) == chunks[id]]
            assert there[:30] == ids[:30]
            assert store.statistics().lost == len(chunks) - len(there) > 0
            (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))  # not a page is left
            for number in [one.number for one in store.segments()][:2]:
                store.drop(number)
            for id in ids[:5]:
                store.put(id, chunks[id], compress=False)
            store.flush()
            assert all(store.get(id) == chunks[id] for id in ids[:5])
        with cext.Store(disk) as store:
            assert all(store.get(id) == chunks[id] for id in ids[:5])
            report = store.check()
            assert (report.damaged, report.damaged_rows) == (0, 0)


def test_no_quota_is_no_store(host: Host, made: ObjectSet) -> None:
    with host.attached(made, quota=0) as attachment:
        assert read(attachment, made, "big") == BIG
    assert not host.base.exists()


def test_idle_stores_make_room_for_a_new_domain(host: Host, made: ObjectSet) -> None:
    for domain in ("one", "two"):
        with host.attached(made, domain=domain) as attachment:
            for _ in range(2):
                read(attachment, made, "big")
    size = sum(path.stat().st_size for path in host.store("two").glob("seg-*"))
    with host.attached(made, domain="three", quota=size + 10):
        assert not host.store("one").exists()  # it was used longer ago
        assert host.store("two").exists()


def test_inside_a_server_with_a_store_only_new_files_of_the_store_can_be_made(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    (base / "neighbour").write_text("secret")
    store = base / "store"
    store.mkdir()
    (store / "there").write_text("old")
    os.chown(store, 65534, 65534)
    code = INSIDE.replace("os.fchdir(proc)", f"store = os.open({str(store)!r}, os.O_RDONLY)\nos.fchdir(proc)")
    code = code.replace("drop_privileges(65534, proc)", "drop_privileges(65534, proc, lambda: store)")
    extra = """
new = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
def make(name):
    return lambda: os.close(os.open(name, new, 0o600, dir_fd=store))
os.write(1, b"\\n" + json.dumps({
    "make": attempt(make("fresh")),
    "delete": attempt(lambda: os.unlink("fresh", dir_fd=store)),
    "make what is there": attempt(make("there")),
    "open what is there": attempt(lambda: os.open("there", os.O_RDWR | os.O_CLOEXEC, dir_fd=store)),
    "make beside": attempt(make("../fresh")),
    "make outside": attempt(make("../../../../../../../../tmp/fresh")),
    "make absolute": attempt(make("/fresh")),
    "read beside": attempt(lambda: os.open("../neighbour", os.O_RDONLY | os.O_CLOEXEC, dir_fd=store)),
    "delete beside": attempt(lambda: os.unlink("../neighbour", dir_fd=store)),
    "link": attempt(lambda: os.symlink("/etc/passwd", "link", dir_fd=store)),
    "rename": attempt(lambda: os.rename("there", "other", src_dir_fd=store, dst_dir_fd=store)),
    "directory": attempt(lambda: os.mkdir("d", dir_fd=store)),
    "remove directory": attempt(lambda: os.rmdir("d", dir_fd=store)),
}).encode())
"""
    done = subprocess.run([sys.executable, "-c", code + extra, str(ROOT)], capture_output=True, check=False)
    results, _, rest = done.stdout.partition(b"\n")
    assert [name for name, number in json.loads(results).items() if number == 0] == [], done.stderr
    found = json.loads(rest.rpartition(b"\n")[2])
    assert {name for name, number in found.items() if number == 0} == {"make", "delete"}
    assert found["make what is there"] == errno.EEXIST
    assert found["make beside"] == found["make outside"] == errno.EACCES
    assert (base / "neighbour").read_text() == "secret"
