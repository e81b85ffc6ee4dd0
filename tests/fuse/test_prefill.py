"""A start is profiled on a mount of its own, and its pages are in the page cache before the next one asks."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import cext
from cext.errors import CorruptError, LimitError
from cext.record import replace
from lazyfs import objects, prefill, profile, pusher
from lazyfs.bootpack import PAGE, BootPackBytes, Page
from lazyfs.objects import Attachment
from lazyfs.remote import Source
from tests.fuse.test_objects import FakeImage, opened
from tests.support.objects import Content, ObjectSet, make_objects
from tests.support.origin import (
    Fault,
    Origin,
    flipped,
    reset,
    reset_midway,
    serving,
    short_body,
    status,
    whole,
    wrong_range,
)
from tests.support.waiting import PATIENCE_S, eventually

CONTENTS: dict[str, Content] = {
    "small": b"a few bytes",
    "tail": os.urandom(3 * PAGE + 123),
    "large": os.urandom(2 << 20),
    "hole": [b"x" * 5000, 4 << 20, os.urandom(5000)],
}


def content(name: str) -> bytes:
    value = CONTENTS[name]
    return value if isinstance(value, bytes) else b"".join(bytes(p) if isinstance(p, int) else p for p in value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("boot") / "set", CONTENTS)


@contextmanager
def attached(image: FakeImage, path: Path) -> Iterator[Attachment]:
    with objects.attach(image, run_dir=path, root=path) as attachment:
        yield attachment


def start_of(made: ObjectSet, attachment: Attachment) -> None:
    """A start: some pages by read(2), some by mapping, out of order."""
    with ExitStack() as stack:
        fds = {name: os.open(made.path(name), os.O_RDONLY, dir_fd=attachment.objects) for name in CONTENTS}
        for fd in fds.values():
            stack.callback(os.close, fd)
        assert os.pread(fds["large"], 10, 5 * PAGE) == content("large")[5 * PAGE :][:10]
        with mmap.mmap(fds["large"], 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[100 * PAGE] == content("large")[100 * PAGE]
            assert mapped[7 * PAGE] == content("large")[7 * PAGE]
        assert os.pread(fds["tail"], 10, 3 * PAGE) == content("tail")[3 * PAGE :][:10]
        assert os.pread(fds["small"], 100, 0) == content("small")
        assert os.pread(fds["hole"], 10, 4998) == content("hole")[4998:5008]


def profiled(made: ObjectSet, path: Path) -> tuple[list[Page], BootPackBytes]:
    with (
        opened(made) as image,
        profile.profiling(image, run_dir=str(path), root=str(path), deadline_s=10) as attachment,
    ):

        def start() -> int:
            start_of(made, attachment)
            return 0

        status, pages = profile.profile(attachment, start)
        assert status == 0
        return pages, profile.boot_pack(attachment, pages)


@contextmanager
def boot_file(pack: BootPackBytes, path: Path, frames: bytes | None = None) -> Iterator[prefill.BootPackFile]:
    blob = pack.head + (pack.frames if frames is None else frames)
    path.write_bytes(blob)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield prefill.BootPackFile(
            fd, f"sha256:{hashlib.sha256(blob).hexdigest()}", cext.blake3(pack.head), len(pack.head)
        )
    finally:
        os.close(fd)


def reads(attachment: Attachment) -> int:
    return int(attachment.statistics()["statistics"]["reads"])


def pushed(attachment: Attachment, file: prefill.BootPackFile) -> prefill.Report:
    how = attachment.boot(file.digest)
    try:
        return pusher.push(file, prefill.Target(attachment.objects, how.connection, attachment.pushing))
    finally:
        os.close(how.connection)


def test_a_profile_has_exactly_the_pages_that_were_touched_in_order(made: ObjectSet, tmp_path: Path) -> None:
    pages, _ = profiled(made, tmp_path)
    ids = made.ids
    assert pages == [
        *((ids["large"], number) for number in (5, 100, 7)),
        (ids["tail"], 3),
        (ids["small"], 0),
        *((ids["hole"], number) for number in (1,)),
    ]
    assert os.listdir(tmp_path / "profiles") == []


def test_after_a_push_the_same_start_asks_the_server_for_nothing(made: ObjectSet, tmp_path: Path) -> None:
    _, pack = profiled(made, tmp_path)
    with opened(made) as image, attached(image, tmp_path) as attachment, boot_file(pack, tmp_path / "pack") as file:
        report = pushed(attachment, file)
        assert (report.frames, report.objects, report.stored) == (1, 4, pack.total)
        start_of(made, attachment)
        assert reads(attachment) == 0
        for name in CONTENTS:  # what was not pushed is read, and every byte and every size is right
            with open(os.open(made.path(name), os.O_RDONLY, dir_fd=attachment.objects), "rb") as reader:
                assert reader.read() == content(name)
        assert reads(attachment) > 0


def test_the_pusher_is_a_process_that_says_what_it_did(made: ObjectSet, tmp_path: Path) -> None:
    _, pack = profiled(made, tmp_path)
    with opened(made) as image, attached(image, tmp_path) as attachment, boot_file(pack, tmp_path / "pack") as file:
        first = prefill.start(attachment, file)
        assert first is not None
        report = first.wait(PATIENCE_S)
        assert report is not None
        assert (report.error, report.stored, report.kept) == ("", pack.total, False)
        first.close()
        again = prefill.start(attachment, file)
        assert again is not None
        report = again.wait(PATIENCE_S)
        again.close()
        assert report is not None
        assert report.kept, "the pages are pinned, so the second start has nothing to push"
        start_of(made, attachment)
        assert reads(attachment) == 0


def test_one_start_of_several_pushes_and_the_next_when_that_one_dies(made: ObjectSet, tmp_path: Path) -> None:
    _, pack = profiled(made, tmp_path)
    with opened(made) as image, attached(image, tmp_path) as survivor, boot_file(pack, tmp_path / "pack") as file:
        with attached(image, tmp_path) as first:
            how = first.boot(file.digest)
            os.close(how.connection)
            assert not how.busy
            assert prefill.start(survivor, file) is None
        eventually(lambda: not is_busy(survivor, file.digest))
        survivor.pushing.pushed()
        again = prefill.start(survivor, file)
        assert again is not None
        report = again.wait(PATIENCE_S)
        again.close()
        assert report is not None
        assert report.stored == pack.total


def test_a_pusher_that_dies_is_followed_by_the_next_start_although_its_client_lives(
    made: ObjectSet, tmp_path: Path
) -> None:
    _, pack = profiled(made, tmp_path)
    stuck = threading.Event()

    def nowhere() -> list[Source]:
        stuck.wait(PATIENCE_S)  # in the pusher, where nobody sets it
        return []

    with opened(made) as image, attached(image, tmp_path) as first, attached(image, tmp_path) as second:
        with boot_file(pack, tmp_path / "pack") as file:
            far = prefill.BootPackFile(-1, file.digest, file.head_digest, file.head_size, 1, nowhere)
            pusher = prefill.start(first, far)
            assert pusher is not None
            assert prefill.start(second, file) is None
            os.kill(pusher.process, signal.SIGKILL)
            eventually(lambda: pusher.wait(0) is None and not is_busy(second, file.digest))
            second.pushing.pushed()
            again = prefill.start(second, file)
            assert again is not None
            report = again.wait(PATIENCE_S)
            again.close()
            pusher.stop()
        assert report is not None
        assert report.stored == pack.total


def test_a_pusher_does_not_outlive_the_server_whose_connection_it_holds(made: ObjectSet, tmp_path: Path) -> None:
    """It would wait for the answer to a look-up for ever, and with it whoever uses the mount: the kernel ends a
    connection when nobody has a descriptor of it any more.
    """
    _, pack = profiled(made, tmp_path)
    with (
        opened(made) as image,
        attached(image, tmp_path) as attachment,
        boot_file(pack, tmp_path / "pack") as file,
        prefill.Ahead() as ahead,
    ):
        ahead.fork(file)
        server = attachment.statistics()["process"]
        how = attachment.boot(file.digest, ahead.report_pipe)
        os.kill(server, signal.SIGSTOP)  # it answers no look-up
        ahead.push(attachment, how.connection, pinned=True)  # a look-up comes before any message
        os.close(how.connection)
        os.kill(server, signal.SIGKILL)
        ended = select.poll()
        ended.register(ahead.report_pipe, 0)
        assert ended.poll(PATIENCE_S * 1000), "its end of the pipe is closed"
        with pytest.raises(OSError) as caught:
            os.stat(made.path("small"), dir_fd=attachment.objects)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def is_busy(attachment: Attachment, digest: str) -> bool:
    how = attachment.boot(digest)
    os.close(how.connection)
    return how.busy


def test_a_flipped_byte_ends_the_push_and_readers_get_the_right_bytes(made: ObjectSet, tmp_path: Path) -> None:
    _, pack = profiled(made, tmp_path)
    broken = bytearray(pack.frames)
    broken[len(broken) // 2] ^= 1
    with (
        opened(made) as image,
        attached(image, tmp_path) as attachment,
        boot_file(pack, tmp_path / "pack", bytes(broken)) as file,
    ):
        with pytest.raises(CorruptError, match="frame 0: got bytes of another hash"):
            pushed(attachment, file)
        start_of(made, attachment)
        assert reads(attachment) > 0


def test_a_pack_cut_short_ends_the_push(made: ObjectSet, tmp_path: Path) -> None:
    _, pack = profiled(made, tmp_path)
    with (
        opened(made) as image,
        attached(image, tmp_path) as attachment,
        boot_file(pack, tmp_path / "pack", pack.frames[:-1]) as file,
        pytest.raises(CorruptError, match="frame 0: got"),
    ):
        pushed(attachment, file)


def test_runs_beyond_an_object_are_refused_before_a_page_is_pushed(made: ObjectSet, tmp_path: Path) -> None:
    """A hostile author gives an object of another size: the file must not grow, nor show zeros."""
    from lazyfs.bootpack import encode

    small = made.ids["small"]
    for size in (2 * PAGE, PAGE, len(content("small")) - 1, len(content("small")) + 1):
        pack = encode([(small, 0), (small, 1)], lambda _, size=size: size, lambda run: b"Z" * run.length)  # type: ignore[misc]
        with opened(made) as image, attached(image, tmp_path) as attachment, boot_file(pack, tmp_path / "pack") as file:
            with pytest.raises(CorruptError, match="boot pack: run 0"):
                pushed(attachment, file)
            with open(os.open(made.path("small"), os.O_RDONLY, dir_fd=attachment.objects), "rb") as reader:
                assert reader.read() == content("small")


def test_another_head_than_the_manifest_s_is_refused(made: ObjectSet, tmp_path: Path) -> None:
    _, pack = profiled(made, tmp_path)
    with boot_file(pack, tmp_path / "pack") as file:
        other = prefill.BootPackFile(file.fd, "test", bytes(32), file.head_size)
        with pusher.opened(other) as source, pytest.raises(CorruptError, match="head of another hash"):
            pusher.open_boot_pack(other, source)


def test_objects_that_the_image_does_not_have_are_left_out(made: ObjectSet, tmp_path: Path) -> None:
    from lazyfs.bootpack import encode

    pack = encode([(bytes(32), 0), (made.ids["small"], 0)], lambda _: 11, lambda _: b"a few bytes")
    with opened(made) as image, attached(image, tmp_path) as attachment, boot_file(pack, tmp_path / "pack") as file:
        report = pushed(attachment, file)
        assert (report.objects, report.stored) == (1, 11)


# ---------------------------------------------------------------------- from a registry


@contextmanager
def remote_file(pack: BootPackBytes, origin: Origin, directory: Path) -> Iterator[prefill.BootPackFile]:
    """The boot pack, at an origin; directory gets the blob once it is here."""
    directory.mkdir(exist_ok=True)
    blob = pack.head + pack.frames
    digest = origin.add(blob).hex()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = [Source(origin.url)]
        yield prefill.BootPackFile(
            -1, f"sha256:{digest}", cext.blake3(pack.head), len(pack.head), len(blob), lambda: place, fd
        )
    finally:
        os.close(fd)


def large_pack(made: ObjectSet, attachment: Attachment) -> BootPackBytes:
    """Over a few spans, hardly compressible."""
    pages = [(made.ids[name], number) for name in ("large", "tail") for number in range(1 + len(content(name)) // PAGE)]
    return profile.boot_pack(attachment, pages)


def test_a_boot_pack_comes_from_an_origin_and_stays(made: ObjectSet, tmp_path: Path) -> None:
    with opened(made) as image, attached(image, tmp_path) as attachment:
        pack = large_pack(made, attachment)
    with opened(made) as image, attached(image, tmp_path) as attachment, serving() as origin:
        with remote_file(pack, origin, tmp_path / "blobs") as file:
            report = pushed(attachment, file)
        assert report.stored == pack.total
        before = reads(attachment)
        for name in ("large", "tail"):
            with open(os.open(made.path(name), os.O_RDONLY, dir_fd=attachment.objects), "rb") as reader:
                assert reader.read() == content(name)
        assert reads(attachment) == before
        assert (tmp_path / "blobs" / file.digest.removeprefix("sha256:")).read_bytes() == pack.head + pack.frames
        assert len(origin.asked) >= 3


@pytest.mark.parametrize("fault", [reset, reset_midway, short_body, whole, wrong_range, status(503), flipped])
def test_a_lying_origin_costs_time_or_the_boot_pack_never_a_byte(made: ObjectSet, tmp_path: Path, fault: Fault) -> None:
    with opened(made) as image, attached(image, tmp_path) as attachment:
        pack = large_pack(made, attachment)
    with opened(made) as image, attached(image, tmp_path) as attachment, serving() as origin:
        with remote_file(pack, origin, tmp_path / "blobs") as file:
            origin.fail("fault", fault, times=2)
            try:
                assert pushed(attachment, file).stored == pack.total
            except CorruptError:
                assert fault is flipped, "only bytes of another hash end a push: the engine asks again for the rest"
                assert os.listdir(tmp_path / "blobs") == []
            assert origin.met("fault")
        for name in ("large", "tail"):
            with open(os.open(made.path(name), os.O_RDONLY, dir_fd=attachment.objects), "rb") as reader:
                assert reader.read() == content(name)


def test_a_head_longer_than_the_window_of_requests_comes_and_memory_has_a_limit(tmp_path: Path) -> None:
    blob = os.urandom(40 << 20)
    with serving() as origin:
        digest = "sha256:" + origin.add(blob).hex()
        place = [Source(origin.url)]

        def file(head: int) -> prefill.BootPackFile:
            return prefill.BootPackFile(-1, digest, cext.blake3(blob[:head]), head, len(blob), lambda: place)

        whole = file(len(blob))
        with pusher.opened(whole) as source:
            assert source.read(0, len(blob)) == blob
        with pusher.opened(whole) as source, pytest.raises(LimitError, match="got a head of"):
            pusher.open_boot_pack(replace(whole, head_size=1 << 30), source)


def test_bytes_behind_the_last_frame_are_refused(made: ObjectSet, tmp_path: Path) -> None:
    """A blob of any size would be brought here for nothing."""
    _, pack = profiled(made, tmp_path)
    longer = BootPackBytes(pack.head, pack.frames + bytes(3 << 20), pack.pages, pack.total)
    with opened(made) as image, attached(image, tmp_path) as attachment, serving() as origin:
        with (
            remote_file(longer, origin, tmp_path / "blobs") as file,
            pytest.raises(CorruptError, match="got frames to"),
        ):
            pushed(attachment, file)
        assert os.listdir(tmp_path / "blobs") == []


# ---------------------------------------------------------------------- ahead of its image


@contextmanager
def far_start(made: ObjectSet, path: Path) -> Iterator[tuple[Attachment, Origin, BootPackBytes]]:
    """An image whose boot pack of a few spans is at an origin."""
    with opened(made) as image, attached(image, path) as attachment:
        pack = large_pack(made, attachment)
    with opened(made) as image, attached(image, path) as attachment, serving() as origin:
        yield attachment, origin, pack


def test_a_boot_pack_is_fetched_before_its_image_is_served(made: ObjectSet, tmp_path: Path) -> None:
    with prefill.Ahead() as ahead, far_start(made, tmp_path) as (attachment, origin, pack):
        ahead.fork()
        with remote_file(pack, origin, tmp_path / "blobs") as file:
            assert not ahead.streams(file)
            ahead.stream(file, [Source(origin.url)])
            assert ahead.streams(file)
            spans = -(-(len(pack.head) + len(pack.frames)) // (1 << 20))
            eventually(lambda: len({one.headers["range"] for one in origin.asked}) == spans)
            pusher = prefill.start(attachment, file, ahead)
            assert pusher is not None
            assert not ahead.streams(file), "it belongs to the start now"
            report = pusher.wait(PATIENCE_S)
            pusher.close()
        assert report is not None
        assert (report.error, report.stored) == ("", pack.total)
        before = reads(attachment)
        for name in ("large", "tail"):
            with open(os.open(made.path(name), os.O_RDONLY, dir_fd=attachment.objects), "rb") as reader:
                assert reader.read() == content(name)
        assert reads(attachment) == before
        kept = tmp_path / "blobs" / file.digest.removeprefix("sha256:")
        assert kept.read_bytes() == pack.head + pack.frames


def test_another_boot_pack_than_the_one_that_comes_has_a_pusher_of_its_own(made: ObjectSet, tmp_path: Path) -> None:
    with prefill.Ahead() as ahead, far_start(made, tmp_path) as (attachment, origin, pack):
        ahead.fork()
        with remote_file(pack, origin, tmp_path / "blobs") as file:
            # From nowhere: no thread of the origin is at work while the second pusher is forked.
            ahead.stream(replace(file, digest="sha256:" + "0" * 64), [Source("http://127.0.0.1:9/{digest}")])
            pusher = prefill.start(attachment, file, ahead)
            assert pusher is not None
            report = pusher.wait(PATIENCE_S)
            pusher.close()
        assert report is not None
        assert (report.error, report.stored) == ("", pack.total)


def test_a_pusher_that_was_killed_ahead_of_its_image_costs_the_boot_pack_alone(made: ObjectSet, tmp_path: Path) -> None:
    with prefill.Ahead() as ahead, far_start(made, tmp_path) as (attachment, origin, pack):
        ahead.fork()
        with remote_file(pack, origin, tmp_path / "blobs") as file:
            ahead.stream(file, [Source(origin.url)])
            os.kill(ahead.process, signal.SIGKILL)
            ended = select.poll()
            ended.register(ahead.report_pipe, 0)
            assert ended.poll(PATIENCE_S * 1000), "its end of the pipe is closed"
            pusher = prefill.start(attachment, file, ahead)
            assert pusher is not None
            assert pusher.wait(0) is None
            assert not is_busy(attachment, file.digest), "the next start need not wait for it"
            pusher.stop()
        start_of(made, attachment)


def test_a_pusher_whose_client_goes_before_its_image_is_there_goes_too(made: ObjectSet, tmp_path: Path) -> None:
    with far_start(made, tmp_path) as (_, origin, pack), remote_file(pack, origin, tmp_path / "blobs") as file:
        ahead = prefill.Ahead()
        ahead.fork()
        ahead.stream(file, [Source(origin.url)])
        eventually(lambda: bool(origin.asked))
        ahead.let_go()
        _, status = os.waitpid(ahead.process, 0)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("fault", [reset_midway, short_body, whole, wrong_range, flipped])
def test_an_origin_that_lies_ahead_of_the_image_costs_the_boot_pack_never_a_byte(
    made: ObjectSet, tmp_path: Path, fault: Fault
) -> None:
    with prefill.Ahead() as ahead, far_start(made, tmp_path) as (attachment, origin, pack):
        ahead.fork()
        with remote_file(pack, origin, tmp_path / "blobs") as file:
            origin.fail("fault", fault, times=2)
            ahead.stream(file, [Source(origin.url)])
            eventually(lambda: bool(origin.met("fault")))
            pusher = prefill.start(attachment, file, ahead)
            assert pusher is not None
            report = pusher.wait(PATIENCE_S)
            pusher.close()
        assert report is not None
        if fault is flipped:
            assert "got" in report.error
            assert os.listdir(tmp_path / "blobs") == []
        else:
            assert (report.error, report.stored) == ("", pack.total)
        for name in ("large", "tail"):
            with open(os.open(made.path(name), os.O_RDONLY, dir_fd=attachment.objects), "rb") as reader:
                assert reader.read() == content(name)
