"""The object server on the real kernel, as far as a reader can tell: bytes, errors, waiting, what is asked twice."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cext
from cext.errors import ClosedError, CorruptError, MissingError
from tests.support.objects import Content, ObjectSet, make_objects
from tests.support.serving import Served, serving
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

SEED = 20260101
RANDOM = random.Random(SEED)
CONTENTS: dict[str, bytes] = {
    "one": b"x",
    "small": b"hello, content\n",
    "page": RANDOM.randbytes(4096),
    "tail": RANDOM.randbytes(4096 * 3 + 2360),
    "text": b"".join(b"line %d of a text that compresses\n" % n for n in range(40_000)),
    "large": RANDOM.randbytes(3 << 20) + b"the end",
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("objects") / "set", CONTENTS)


@pytest.fixture
def served(objects: ObjectSet) -> Iterator[Served]:
    with serving(objects) as found:
        yield found


def fails(call: Callable[[], object]) -> int:
    """The errno that a call ends with; 0 if it works."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


# ---------------------------------------------------------------------- bytes


def test_every_object_reads_back(served: Served, objects: ObjectSet) -> None:
    for name, content in CONTENTS.items():
        assert served.read(objects, name) == content, name
        found = os.stat(objects.path(name), dir_fd=served.tree)
        assert found.st_size == len(content)
        assert found.st_ino == served.server.node(objects.ids[name])
        assert found.st_mode == 0o100444


def test_reads_at_any_place_give_the_bytes_of_that_place(served: Served, objects: ObjectSet) -> None:
    choice = random.Random(SEED)
    for name in ("large", "text", "tail"):
        content = CONTENTS[name]
        with served.opened(objects, name) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(40):
                offset = choice.randrange(len(content) + 100)
                size = choice.choice([1, 100, 4096, 70_000, 300_000])
                assert os.pread(fd, size, offset) == content[offset : offset + size], (SEED, name, offset, size)


def test_the_last_page_has_what_the_file_has_and_nothing_else(served: Served, objects: ObjectSet) -> None:
    content = CONTENTS["tail"]
    with served.opened(objects, "tail") as fd:
        assert os.pread(fd, 4096, 4096 * 3) == content[4096 * 3 :]
        assert os.pread(fd, 4096, len(content)) == b""
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content
        assert os.fstat(fd).st_size == len(content)


def test_holes_are_zeros_and_cost_no_bytes(tmp_path: Path) -> None:
    hole = (5 << 30) + 4096
    made = make_objects(tmp_path / "set", {"sparse": [b"a" * 5000, 3 << 20, b"b" * 100, hole], "hole": [hole]})
    with serving(made) as served:
        with served.opened(made, "sparse") as fd:
            size = 5000 + (3 << 20) + 100 + hole
            assert os.fstat(fd).st_size == size
            assert os.pread(fd, 6000, 0) == b"a" * 5000 + bytes(1000)
            assert os.pread(fd, 300, 5000 + (3 << 20) - 100) == bytes(100) + b"b" * 100 + bytes(100)
            assert os.pread(fd, 100, size - 10) == bytes(10)
        with served.opened(made, "hole") as fd:
            assert os.pread(fd, 4096, 4 << 30) == bytes(4096)
        assert served.count("pack_bytes") < 10_000


def test_chunks_named_by_sha256_are_verified_too(tmp_path: Path) -> None:
    made = make_objects(tmp_path / "set", {"a": CONTENTS["large"], "b": b"small"}, algorithm=2)
    with serving(made) as served:
        assert served.read(made, "a") == CONTENTS["large"]
        assert served.read(made, "b") == b"small"
    place = made.places["b"][0]
    flip(made.packs / place.pack, place.offset + place.size - 1)
    with serving(made) as served:
        assert served.read(made, "a") == CONTENTS["large"]
        assert fails(lambda: served.read(made, "b")) == errno.EIO


def test_many_readers_at_once_all_get_their_bytes(served: Served, objects: ObjectSet) -> None:
    wrong: list[str] = []

    def read(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(30):
            name = choice.choice(list(CONTENTS))
            with served.opened(objects, name) as fd:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                offset = choice.randrange(len(CONTENTS[name]))
                if os.pread(fd, 100_000, offset) != CONTENTS[name][offset : offset + 100_000]:
                    wrong.append(name)

    threads = [threading.Thread(target=read, args=(SEED + number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------------- what the kernel asks, and how often


def test_the_second_reader_asks_nothing(served: Served, objects: ObjectSet) -> None:
    served.read(objects, "large")
    before = served.requests()
    with served.opened(objects, "large") as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == CONTENTS["large"]
    assert served.read(objects, "large") == CONTENTS["large"]
    assert served.requests() == before


def test_open_is_asked_once_and_never_again(served: Served, objects: ObjectSet) -> None:
    served.read(objects, "small")
    before = served.count("other")
    for name in CONTENTS:
        with served.opened(objects, name):
            pass
    assert served.count("other") == before


def test_requests_are_a_mebibyte_where_sysfs_can_be_written(served: Served, objects: ObjectSet) -> None:
    major, minor = cext.device_of(served.tree)
    path = Path(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb")
    assert int(path.read_text()) >= 1024
    served.read(objects, "large")
    assert served.count("reads") <= 8


def test_names_that_are_no_objects_are_not_there(served: Served) -> None:
    hexadecimal = "0123456789abcdef" * 4
    for name in (
        "x",
        "AB",
        "abc",
        "zz",
        "ab/x",
        f"ab/{hexadecimal[:61]}",
        f"ab/{hexadecimal[:62].upper()}",
        "ab/.."[:2],
    ):
        expected = 0 if name == "ab" else errno.ENOENT
        assert fails(lambda name=name: os.stat(name, dir_fd=served.tree)) == expected, name  # type: ignore[misc]
    assert fails(lambda: os.listdir(served.tree)) == errno.EBADF  # an O_PATH descriptor
    assert fails(lambda: os.open("ab/new", os.O_CREAT | os.O_WRONLY, dir_fd=served.tree)) == errno.EROFS


def test_an_unknown_object_is_not_remembered_as_missing(objects: ObjectSet) -> None:
    with serving() as served:
        assert fails(lambda: served.read(objects, "small")) == errno.ENOENT
        assert fails(lambda: served.read(objects, "small")) == errno.ENOENT
        served.add(objects)
        assert served.read(objects, "small") == CONTENTS["small"]


def test_the_mount_is_attached_nowhere_and_allows_nothing(served: Served, objects: ObjectSet) -> None:
    device = "{}:{}".format(*cext.device_of(served.tree))
    assert device not in {line.split()[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    flags = os.fstatvfs(served.tree)
    for flag in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC, os.ST_NOATIME):
        assert flags.f_flag & flag


def test_another_user_cannot_read_the_mount_itself(served: Served, objects: ObjectSet) -> None:
    code = """
import os, sys
os.setgroups([]); os.setgid(1000); os.setuid(1000)
try:
    os.open(sys.argv[2], os.O_RDONLY, dir_fd=int(sys.argv[1]))
except OSError as error:
    os._exit(error.errno)
"""
    with served.children(code, objects.path("small"), waits=False) as (child,):
        assert child.wait(PATIENCE_S) == errno.EACCES


# ---------------------------------------------------------------------- damage


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_flipped_bit_anywhere_costs_the_chunks_of_its_frame_and_no_others(tmp_path: Path) -> None:
    choice = random.Random(SEED)
    contents = {f"f{n}": RANDOM.randbytes(choice.randrange(1, 50_000)) for n in range(30)}
    contents |= {f"t{n}": (b"%d compressible " % n) * 20_000 for n in range(4)}
    contents["big"] = RANDOM.randbytes(2 << 20)
    made = make_objects(tmp_path / "set", contents, pack_size=1 << 20)
    packs = sorted(made.packs.iterdir())
    for _ in range(25):
        path = choice.choice(packs)
        offset, bit = choice.randrange(path.stat().st_size), choice.randrange(8)
        flip(path, offset, bit)
        try:
            with serving(made) as served:
                bad = 0
                for name, content in contents.items():
                    hit = any(p.pack == path.name and p.offset <= offset < p.offset + p.size for p in made.places[name])
                    status = fails(lambda name=name: served.read(made, name))  # type: ignore[misc]
                    if status == 0:  # also where the flip was in bytes that mean nothing for the content
                        assert served.read(made, name) == content, (SEED, path.name, offset, bit, name)
                    else:
                        assert status == errno.EIO
                        assert hit, (SEED, path.name, offset, bit, name)
                        bad += 1
                assert bad == 0 or path.name in served.log_text()
        finally:
            flip(path, offset, bit)


def test_only_the_damaged_chunk_of_a_file_is_lost(tmp_path: Path) -> None:
    made = make_objects(tmp_path / "set", {"big": CONTENTS["large"]})
    places = made.places["big"]
    damaged = len(places) // 2
    flip(made.packs / places[damaged].pack, places[damaged].offset + places[damaged].size // 2)
    start = sum(place.length for place in places[:damaged])
    end = start + places[damaged].length
    with serving(made) as served, served.opened(made, "big") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, len(CONTENTS["large"]), 4096):
            touched = at < end and at + 4096 > start
            if touched:
                assert fails(lambda at=at: os.pread(fd, 4096, at)) == errno.EIO, at  # type: ignore[misc]
            else:
                assert os.pread(fd, 4096, at) == CONTENTS["large"][at : at + 4096]
        line = next(line for line in served.log_text().splitlines() if "hash differs" in line or "decompress" in line)
    for word in ("image-0", made.ids["big"].hex(), places[damaged].pack, f"at {places[damaged].offset}:"):
        assert word in line


def test_a_missing_or_short_pack_is_an_error_for_its_readers_alone(tmp_path: Path) -> None:
    contents = {f"f{n}": RANDOM.randbytes(200_000) for n in range(6)}
    made = make_objects(tmp_path / "set", contents, pack_size=300_000)
    gone, short = made.places["f0"][0].pack, made.places["f5"][0].pack
    assert gone != short
    (made.packs / gone).unlink()
    os.truncate(made.packs / short, 10)
    with serving(made) as served:
        for name, content in contents.items():
            packs = {place.pack for place in made.places[name]}
            if packs & {gone, short}:
                assert fails(lambda name=name: served.read(made, name)) == errno.EIO  # type: ignore[misc]
            else:
                assert served.read(made, name) == content
        assert f"pack {gone} at " in served.log_text()
        assert "the file ends at 10" in served.log_text()
        assert served.count("parked") == 0, "nobody waited for what cannot come"


def test_what_fails_for_ever_does_not_fill_the_log(tmp_path: Path) -> None:
    made = make_objects(tmp_path / "set", {"big": CONTENTS["large"]})
    for pack in made.packs.iterdir():
        pack.unlink()
    with serving(made) as served, served.opened(made, "big") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, 400 * 4096, 4096):
            assert fails(lambda at=at: os.pread(fd, 4096, at)) == errno.EIO  # type: ignore[misc]
        lines = served.log_text().splitlines()
        assert served.count("errors") >= 400
        assert 1 <= len(lines) <= 100


def test_one_dead_image_does_not_fail_the_reads_of_another(tmp_path: Path) -> None:
    shared = {"lib": RANDOM.randbytes(500_000)}
    first = make_objects(tmp_path / "a", shared)
    second = make_objects(tmp_path / "b", {**shared, "own": b"own"})
    for pack in first.packs.iterdir():
        pack.unlink()
    with serving(first, second) as served:
        assert served.read(first, "lib") == shared["lib"]
        assert "image-0" in served.log_text()
        served.server.remove_image(served.images[0])
        assert served.read(second, "lib") == shared["lib"]


def test_objects_of_a_removed_image_are_errors_and_come_back_with_it(objects: ObjectSet) -> None:
    with serving(objects) as served, served.opened(objects, "large") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        served.server.remove_image(served.images[0])
        assert fails(lambda: os.pread(fd, 4096, 0)) == errno.EIO
        assert "no image has it any more" in served.log_text()
        with pytest.raises(MissingError):
            served.server.remove_image(served.images[0])
        served.add(objects)
        assert os.pread(fd, 4096, 0) == CONTENTS["large"][:4096]


# ---------------------------------------------------------------------- hostile tables


def test_an_object_whose_id_is_not_the_id_of_its_parts_is_refused(tmp_path: Path, objects: ObjectSet) -> None:
    made = make_objects(tmp_path / "set", {"a": b"content of a"})
    raw = made.tables.read_bytes()
    claimed = raw.replace(made.ids["a"], objects.ids["small"])
    assert claimed != raw
    made.tables.write_bytes(claimed)
    with serving(made) as served:
        assert fails(lambda: served.read(objects, "small")) == errno.EIO
        assert "its id is not the id of its parts" in served.log_text()
        served.add(objects)
        assert served.read(objects, "small") == CONTENTS["small"]


def test_damaged_tables_are_refused_or_served_without_a_wrong_byte(tmp_path: Path) -> None:
    contents: dict[str, Content] = {
        "a": b"content of a" * 100,
        "b": RANDOM.randbytes(100_000),
        "c": [b"x" * 9000, 1 << 20, b"y"],
    }
    made = make_objects(tmp_path / "set", contents)
    raw = made.tables.read_bytes()
    choice = random.Random(SEED)
    refused = 0
    with serving() as served:
        for _ in range(300):
            damaged = bytearray(raw)
            for _ in range(choice.choice([1, 1, 3])):
                damaged[choice.randrange(len(raw))] = choice.choice([0, 1, 0x7F, 0xFF])
            made.tables.write_bytes(damaged)
            try:
                with made.opened() as (tables, _):
                    packs = [os.open(path, os.O_RDONLY) for path in made.packs.iterdir()]
                    try:
                        number = served.server.add_image(tables, packs, label="damaged")
                    finally:
                        for fd in packs:
                            os.close(fd)
            except CorruptError:
                refused += 1
                continue
            for name in ("a", "b"):
                with_status = fails(lambda name=name: served.read(made, name))  # type: ignore[misc]
                assert with_status in (0, errno.EIO, errno.ENOENT)
                if with_status == 0:
                    assert served.read(made, name) == contents[name]
            served.server.remove_image(number)
        for size in (0, 10, 63, 64, len(raw) - 1):
            made.tables.write_bytes(raw[:size])
            with open(made.tables, "rb") as file, pytest.raises((CorruptError, OSError)):
                served.server.add_image(file.fileno(), [-1], label="short")
    assert refused > 100


# ---------------------------------------------------------------------- waiting


LONG_S = 600.0
"""A deadline that passes in no test, and a time of refusal that outlasts each."""


@contextmanager
def away(tmp_path: Path, *, deadline: float) -> Iterator[tuple[Served, ObjectSet, str]]:
    """An image of which the pack of "away" is not there yet, and that pack's name; its file is."""
    contents = {"here": CONTENTS["small"] * 10_000, "away": CONTENTS["large"]}
    made = make_objects(tmp_path / "set", contents, pack_size=1 << 10)
    names = {place.pack for place in made.places["away"]}
    hidden = made.packs.parent / "hidden"
    hidden.mkdir()
    for name in names:
        (made.packs / name).rename(hidden / name)
    with serving(lazy=True, deadline=deadline, fail_fast=LONG_S) as served:
        served.add(made, lazy=True)
        for name in names:
            (hidden / name).rename(made.packs / name)
        yield served, made, made.places["away"][0].pack


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[tuple[Served, ObjectSet, str]]:
    with away(tmp_path, deadline=LONG_S) as found:
        yield found


@pytest.fixture
def brief(tmp_path: Path) -> Iterator[tuple[Served, ObjectSet, str]]:
    with away(tmp_path, deadline=0.7) as found:
        yield found


def arrive(served: Served, made: ObjectSet) -> None:
    for name in {place.pack for place in made.places["away"]}:
        served.add_pack(served.images[0], made, name)


def test_a_parked_read_gets_its_bytes_when_the_pack_comes(patient: tuple[Served, ObjectSet, str]) -> None:
    served, made, _ = patient
    results: list[bytes] = []
    reader = threading.Thread(target=lambda: results.append(served.read(made, "away")))
    reader.start()
    eventually(lambda: served.count("parked_now") > 0)
    arrive(served, made)
    reader.join()
    assert results == [CONTENTS["large"]]
    assert served.count("errors") == 0


def test_hundreds_of_parked_reads_do_not_stop_another_reader(tmp_path: Path) -> None:
    made = make_objects(tmp_path / "set", {f"away{n}": RANDOM.randbytes(5000) for n in range(300)})
    other = make_objects(tmp_path / "other", {"here": b"at hand"})
    for pack in made.packs.iterdir():
        pack.unlink()
    with serving(other) as served:
        served.add(made, lazy=True)
        for n in range(300):
            with served.opened(made, f"away{n}") as fd:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        eventually(lambda: served.count("parked_now") == 300)
        assert served.read(other, "here") == b"at hand"
        assert served.count("parked_now") == 300


def test_a_deadline_is_one_deadline_however_often_the_kernel_asks(brief: tuple[Served, ObjectSet, str]) -> None:
    served, made, pack = brief
    with served.opened(made, "away") as fd:
        started = time.monotonic()
        assert fails(lambda: os.pread(fd, 4096, 0)) == errno.EIO
        assert time.monotonic() - started > 0.6
        parked = served.count("parked")
        assert served.count("reads") > parked  # the kernel did ask again, and that was not parked
        assert fails(lambda: os.pread(fd, 4096, 0)) == errno.EIO
        assert served.count("parked") == parked
        assert f"pack {pack} at 0: did not come before the deadline" in served.log_text()
        arrive(served, made)
        assert os.pread(fd, 4096, 0) == CONTENTS["large"][:4096]


def test_a_mapped_reader_gets_one_deadline_and_sigbus(brief: tuple[Served, ObjectSet, str]) -> None:
    served, made, _ = brief
    started = time.monotonic()
    with served.children(WAIT_FOR_PAGE, made.path("away"), "mapped") as (child,):
        assert child.wait(PATIENCE_S) == -signal.SIGBUS
    assert time.monotonic() - started > 0.6
    assert served.count("reads") > served.count("parked") > 0


WAIT_FOR_PAGE = """
import mmap, os, sys
fd = os.open(sys.argv[2], os.O_RDONLY, dir_fd=int(sys.argv[1]))
if sys.argv[3] == "read":
    print("waiting", flush=True)
    os.pread(fd, 4096, 0)
else:
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # the kernel reads for the fault itself and waits for the answer, not for a page
    print("waiting", flush=True)
    mapped[0]
"""


@pytest.mark.parametrize("how", ["read", "mapped"])
@pytest.mark.parametrize("readers", [1, 3])
def test_readers_of_a_parked_page_can_be_killed(tmp_path: Path, readers: int, how: str) -> None:
    made = make_objects(tmp_path / "set", {"away": CONTENTS["page"]})
    for pack in made.packs.iterdir():
        pack.unlink()
    with serving() as served:
        served.add(made, lazy=True)
        with served.children(WAIT_FOR_PAGE, made.path("away"), how, count=readers) as children:
            eventually(lambda: served.count("parked_now") > 0)
            time.sleep(0.05)  # the other readers come too, or are killed on their way: both must do
            for child in children:
                child.kill()
            for child in children:
                assert child.wait(PATIENCE_S) == -signal.SIGKILL
        if how == "mapped":
            eventually(lambda: served.count("killed") >= 1)
        assert served.count("expired") == 0


WAIT_FOR_NAME = """
import ctypes, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
libc = ctypes.CDLL(None, use_errno=True)
print("waiting", flush=True)
fd = libc.openat(int(sys.argv[1]), sys.argv[2].encode(), os.O_RDONLY)
os._exit(0 if fd >= 0 else ctypes.get_errno())
"""


def test_a_handled_signal_does_not_break_a_parked_open(objects: ObjectSet) -> None:
    with serving() as served:
        served.server.expect_image()
        with served.children(WAIT_FOR_NAME, objects.path("small")) as (child,):
            eventually(lambda: served.count("parked_now") == 1)
            child.send_signal(signal.SIGALRM)
            eventually(lambda: served.count("interrupts") == 1)
            time.sleep(0.2)  # several looks at the process
            assert child.poll() is None
            assert served.count("parked_now") == 1
            served.add(objects, expected=True)
            assert child.wait(PATIENCE_S) == 0
        assert served.count("killed") == 0


@pytest.mark.parametrize("signalled", [True, False])
def test_who_waits_for_a_name_can_be_killed_also_after_a_handled_signal(objects: ObjectSet, signalled: bool) -> None:
    with serving() as served:
        served.server.expect_image()
        with served.children(WAIT_FOR_NAME, objects.path("small"), count=2) as children:
            eventually(lambda: served.count("parked_now") == 1)
            if signalled:
                for child in children:
                    child.send_signal(signal.SIGALRM)
                eventually(lambda: served.count("interrupts") == 1)
                time.sleep(0.1)
            for child in children:
                child.kill()
            for child in children:
                assert child.wait(PATIENCE_S) == -signal.SIGKILL
        eventually(lambda: served.count("killed") >= 1)


def test_a_lookup_waits_for_tables_that_were_announced(objects: ObjectSet) -> None:
    with serving() as served:
        served.server.expect_image()
        results: list[bytes] = []
        reader = threading.Thread(target=lambda: results.append(served.read(objects, "small")))
        reader.start()
        eventually(lambda: served.count("parked_now") == 1)
        served.add(objects, expected=True)
        reader.join()
        assert results == [CONTENTS["small"]]
        assert fails(lambda: os.stat("ab/" + "0" * 62, dir_fd=served.tree)) == errno.ENOENT


def test_a_lookup_of_tables_that_do_not_come_ends(objects: ObjectSet) -> None:
    with serving(deadline=0.4, fail_fast=LONG_S) as served:
        served.server.expect_image()
        started = time.monotonic()
        assert fails(lambda: served.read(objects, "small")) == errno.EIO
        assert time.monotonic() - started > 0.3
        assert fails(lambda: served.read(objects, "small")) == errno.EIO
        assert (served.count("parked"), served.count("expired")) == (1, 1)  # the second was refused at once


def test_a_lookup_of_tables_that_will_not_come_ends(objects: ObjectSet) -> None:
    with serving() as served:
        served.server.expect_image()
        results: list[int] = []
        reader = threading.Thread(target=lambda: results.append(fails(lambda: served.read(objects, "page"))))
        reader.start()
        eventually(lambda: served.count("parked_now") == 1)
        served.server.unexpect_image()
        reader.join()
        assert results == [errno.ENOENT]


def test_what_is_parked_when_the_server_ends_is_an_error(tmp_path: Path) -> None:
    made = make_objects(tmp_path / "set", {"away": CONTENTS["page"]})
    for pack in made.packs.iterdir():
        pack.unlink()
    results: list[int] = []
    with serving() as served:
        served.add(made, lazy=True)

        def read() -> None:
            results.append(fails(lambda: served.read(made, "away")))

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: served.count("parked_now") == 1)
    reader.join()
    assert results[0] in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)


def test_a_server_is_not_closed_beside_a_call(tmp_path: Path) -> None:
    """A page that is pushed waits in the kernel for the read that is parked on it: whoever closed the server then freed
    what that call uses.
    """
    with away(tmp_path, deadline=LONG_S) as (served, made, _):
        results: list[object] = []
        numbers: list[int] = []

        def push() -> None:
            numbers.append(threading.get_native_id())
            results.append(served.server.store_page(made.ids["away"], 0, CONTENTS["large"][:4096]))

        def sleeps() -> bool:
            return (
                bool(numbers) and Path(f"/proc/self/task/{numbers[0]}/stat").read_text().rpartition(") ")[2][0] == "D"
            )

        reader = threading.Thread(target=lambda: results.append(served.read(made, "away") == CONTENTS["large"]))
        pusher = threading.Thread(target=push)
        reader.start()
        try:
            eventually(lambda: served.count("parked_now") >= 1)
            pusher.start()
            eventually(sleeps)
            with pytest.raises(ValueError, match="beside a call"):
                served.server.close()
        finally:
            for name in {place.pack for place in made.places["away"]}:
                served.add_pack(served.images[0], made, name)
            reader.join()
            pusher.join()
        assert sorted(results, key=str) == [4096, True]


# ---------------------------------------------------------------------- pages that are pushed


def test_stored_pages_are_read_without_asking_and_never_change_the_size(served: Served, objects: ObjectSet) -> None:
    content = CONTENTS["tail"]
    identity = objects.ids["tail"]
    with pytest.raises(MissingError):
        served.server.store_page(identity, 0, content)
    with served.opened(objects, "tail") as fd:
        assert served.server.store_page(identity, 0, content + bytes(5000)) == len(content)
        assert served.server.store_page(identity, len(content), bytes(4096)) == 0
        assert served.server.store_page(identity, 1 << 62, bytes(4096)) == 0
        before = served.count("reads")
        assert os.pread(fd, 1 << 20, 0) == content
        assert os.fstat(fd).st_size == len(content)
        assert served.count("reads") == before


# ---------------------------------------------------------------------- life


def test_a_closed_server_says_so(objects: ObjectSet) -> None:
    with serving(objects) as served:
        served.server.close()
        served.server.close()
        for call in (served.server.statistics, served.server.start, served.server.expect_image):
            with pytest.raises(ClosedError):
                call()


def test_wrong_words_are_refused(objects: ObjectSet) -> None:
    with pytest.raises(ValueError, match="secret"):
        cext.ObjectServer([0], secret=b"short")
    with pytest.raises(OSError, match="Bad file"):
        cext.ObjectServer([1 << 20], secret=bytes(32))
    with pytest.raises(CorruptError):
        cext.ObjectServer([], secret=bytes(32))
    with serving() as served, objects.opened() as (tables, packs):
        with pytest.raises(CorruptError, match="packs"):
            served.server.add_image(tables, [*packs, -1], label="x")
        with pytest.raises(MissingError):
            served.server.add_pack(77, bytes(32), tables)
