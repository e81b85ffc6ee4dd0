"""Reads of an image far away that are answered out of its boot pack: what a start brought is not asked for again.

Whatever the file of the boot pack holds, a reader sees the right bytes: of the pack, or of the origin.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import cext
from cext.errors import CorruptError, LimitError
from lazyfs.bootpack import FRAME, PAGE, BootPackBytes, Page, Run, encode
from tests.support.far import Remote, remote
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import Origin
from tests.support.origin import serving as origin_serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")

_DICE = random.Random(21)
CONTENTS = {"large": _DICE.randbytes(5 * FRAME // 2 + 777), "small": b"a few bytes", "other": _DICE.randbytes(9 * PAGE)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("boot") / "set", dict(CONTENTS))


def packed(made: ObjectSet, pages: list[Page], sizes: dict[str, int] | None = None) -> BootPackBytes:
    """A boot pack of pages. sizes: what its author says of the objects."""
    names = {identity: name for name, identity in made.ids.items()}
    claimed = {**{name: len(data) for name, data in CONTENTS.items()}, **(sizes or {})}

    def read(run: Run) -> bytes:
        return CONTENTS[names[run.object]][run.offset : run.offset + run.length].ljust(run.length, b"Z")

    return encode(pages, lambda identity: claimed[names[identity]], read)


def pages_of(made: ObjectSet, *names: str) -> list[Page]:
    return [(made.ids[name], number) for name in names for number in range(-(-len(CONTENTS[name]) // PAGE))]


@dataclass(frozen=True, slots=True)
class Far:
    """An image far away with a boot pack. number: of the boot pack in the server; file: its own, to be written."""

    made: ObjectSet
    remote: Remote
    origin: Origin
    number: int
    file: Path

    @property
    def asked(self) -> int:
        return len(self.origin.asked)

    def read(self, name: str, offset: int = 0, size: int = 1 << 30) -> bytes:
        """Nothing of the object is in the page cache before."""
        with self.remote.served.opened(self.made, name) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # a read asks for no more than it says
            data = b""
            while more := os.pread(fd, min(1 << 20, size - len(data)), offset + len(data)):
                data += more
            return data

    def boot_reads(self) -> int:
        return self.remote.served.count("boot_reads")


@contextmanager
def far(made: ObjectSet, pack: BootPackBytes, path: Path, written: int | None = None) -> Iterator[Far]:
    """written: bytes of the boot pack that are in its file so far; by itself all."""
    file = path / "boot"
    file.write_bytes((pack.head + pack.frames)[:written])
    with origin_serving() as origin, remote(made, origin) as found:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            number = found.served.server.add_boot(fd, len(pack.head), cext.blake3(pack.head))
        finally:
            os.close(fd)
        yield Far(made, found, origin, number, file)


def test_what_is_in_the_boot_pack_is_not_asked_for(made: ObjectSet, tmp_path: Path) -> None:
    with far(made, packed(made, pages_of(made, "large", "small")), tmp_path) as found:
        for name in ("large", "small", "large"):
            assert found.read(name) == CONTENTS[name]
        assert found.asked == 0
        assert found.boot_reads() >= 4
        assert found.read("other") == CONTENTS["other"]
        assert found.asked > 0


def test_pages_in_any_order_and_frames_answer_any_range(made: ObjectSet, tmp_path: Path) -> None:
    dice = random.Random(3)
    pages = pages_of(made, "large", "other", "small")
    dice.shuffle(pages)
    with far(made, packed(made, pages), tmp_path) as found:
        for _ in range(60):
            name = dice.choice(["large", "other", "small"])
            offset, size = dice.randrange(len(CONTENTS[name])), dice.choice([1, PAGE, 3 * PAGE + 5, 1 << 18])
            assert found.read(name, offset, size) == CONTENTS[name][offset : offset + size]
        assert found.asked == 0


def test_a_read_that_is_partly_in_the_boot_pack_is_whole(made: ObjectSet, tmp_path: Path) -> None:
    some = [page for page in pages_of(made, "large") if page[1] % 7 != 3]
    with far(made, packed(made, some), tmp_path) as found:
        assert found.read("large", 0, 3 * PAGE) == CONTENTS["large"][: 3 * PAGE]
        assert found.asked == 0
        assert found.read("large") == CONTENTS["large"]
        assert found.asked > 0


def test_a_boot_pack_that_is_taken_away_answers_nothing_more(made: ObjectSet, tmp_path: Path) -> None:
    with far(made, packed(made, pages_of(made, "small")), tmp_path) as found:
        assert found.read("small") == CONTENTS["small"]
        found.remote.served.server.remove_boot(found.number)
        found.remote.served.server.remove_boot(found.number)
        assert found.read("small") == CONTENTS["small"]
        assert found.asked > 0


def test_a_page_that_is_next_is_waited_for_and_one_that_does_not_come_is_asked_for(
    made: ObjectSet, tmp_path: Path
) -> None:
    """How long is waited is the machine's; what is read is right either way, and all of it once the file is whole."""
    pack = packed(made, pages_of(made, "large"))
    blob = pack.head + pack.frames
    with far(made, pack, tmp_path, len(pack.head)) as found:
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(found.read("large")))
        reader.start()
        eventually(lambda: found.remote.served.count("reads") > 0)
        with open(found.file, "ab", buffering=0) as file:
            for at in range(len(pack.head), len(blob), 100_000):
                file.write(blob[at : at + 100_000])
        reader.join()
        assert read == [CONTENTS["large"]]
        answered = found.boot_reads()
        assert found.read("large") == CONTENTS["large"]
        assert found.boot_reads() > answered


def test_a_file_that_no_longer_grows_keeps_nobody_waiting(made: ObjectSet, tmp_path: Path) -> None:
    pack = packed(made, pages_of(made, "large"))
    with far(made, pack, tmp_path, len(pack.head) + 1000) as found:
        assert found.read("large") == CONTENTS["large"]
        assert found.asked > 0
        assert found.boot_reads() == 0


@pytest.mark.parametrize("where", [0, 1, -1])
def test_a_damaged_frame_costs_the_boot_pack_never_a_byte(made: ObjectSet, tmp_path: Path, where: int) -> None:
    pack = packed(made, pages_of(made, "large", "other"))
    with far(made, pack, tmp_path) as found:
        broken = bytearray(pack.head + pack.frames)
        broken[[len(pack.head), len(pack.head) + len(pack.frames) // 2, len(broken) - 1][where]] ^= 1
        found.file.write_bytes(broken)
        for name in ("large", "other", "large"):
            assert found.read(name) == CONTENTS[name]
        assert found.asked > 0
        assert "got bytes of another hash; it answers nothing from now on" in found.remote.served.log_text()


@pytest.mark.parametrize("length", [0, 100, 1_500_000])
def test_a_file_that_was_cut_short_costs_the_boot_pack_never_a_byte(
    made: ObjectSet, tmp_path: Path, length: int
) -> None:
    with far(made, packed(made, pages_of(made, "large")), tmp_path) as found:
        os.truncate(found.file, length)
        assert found.read("large") == CONTENTS["large"]
        assert found.asked > 0


def test_a_file_that_is_long_before_it_is_full_shows_no_zeros(made: ObjectSet, tmp_path: Path) -> None:
    pack = packed(made, pages_of(made, "large"))
    with far(made, pack, tmp_path, len(pack.head)) as found:
        os.truncate(found.file, len(pack.head) + len(pack.frames))
        assert found.read("large") == CONTENTS["large"]
        assert found.boot_reads() == 0


@pytest.mark.parametrize("size", [2 * PAGE, PAGE, 10, 12])
def test_runs_of_an_object_of_another_size_answer_nothing(made: ObjectSet, tmp_path: Path, size: int) -> None:
    """A hostile author's: no byte beyond the end of a file, and none that is not in the object."""
    pack = packed(made, [(made.ids["small"], number) for number in range(-(-size // PAGE))], {"small": size})
    with far(made, pack, tmp_path) as found:
        assert found.read("small") == CONTENTS["small"]
        assert found.asked > 0
        assert found.boot_reads() == 0


def test_a_page_that_two_frames_have_is_refused(made: ObjectSet, tmp_path: Path) -> None:
    """Which of them is right would depend on who comes first."""
    pages = pages_of(made, "large")
    pack = packed(made, [*pages[:300], *pages[:1]])
    with pytest.raises(CorruptError, match="got a page that is in run"), far(made, pack, tmp_path):
        pass


def test_another_head_than_the_manifest_s_is_refused(made: ObjectSet, tmp_path: Path) -> None:
    pack = packed(made, pages_of(made, "small"))
    file = tmp_path / "boot"
    with origin_serving() as origin, remote(made, origin) as found:
        add = found.served.server.add_boot
        for data, size, digest, kind in (
            (pack.head, len(pack.head), bytes(32), CorruptError),
            (pack.head[:-1], len(pack.head), cext.blake3(pack.head), CorruptError),
            (b"", 100, cext.blake3(b""), CorruptError),
            (b"nonsense", 8, cext.blake3(b"nonsense"), CorruptError),
            (pack.head, 1 << 40, cext.blake3(pack.head), LimitError),
        ):
            file.write_bytes(data)
            with open(file, "rb") as opened, pytest.raises(kind):
                add(opened.fileno(), size, digest)
        with open(file, "rb") as opened, pytest.raises(ValueError, match="want 32"):
            add(opened.fileno(), 10, b"short")


def test_a_server_takes_so_many_boot_packs_and_no_more(made: ObjectSet, tmp_path: Path) -> None:
    pack = packed(made, pages_of(made, "small"))
    with far(made, pack, tmp_path) as found, open(found.file, "rb") as file:
        words = (file.fileno(), len(pack.head), cext.blake3(pack.head))
        server = found.remote.served.server
        more = [server.add_boot(*words) for _ in range(63)]
        with pytest.raises(LimitError, match="at most 64"):
            server.add_boot(*words)
        for number in more:
            server.remove_boot(number)
        server.remove_boot(server.add_boot(*words))
        assert hashlib.sha256(found.read("small")).digest() == hashlib.sha256(CONTENTS["small"]).digest()
        assert found.asked == 0
