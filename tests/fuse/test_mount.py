"""The kernel path's mounts on a plain data-only lower: options, undoing, records, and what each step refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import cext
from lazyfs import erofs_mount, mount, mount_records, mount_table, mount_target, unattached
from lazyfs.errors import MountError
from lazyfs.probe import KernelFeatures, probe
from tests.support.mounts import lowers_of, mount_file
from tests.support.trees import PlainImage, make_image
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, tool: Path) -> PlainImage:
    return make_image(tmp_path_factory.mktemp("image"), tool, files={"data/hello": b"hello, content\n"})


@contextmanager
def opened(image: PlainImage) -> Iterator[tuple[int, int]]:
    with ExitStack() as stack:
        fds = [
            os.open(image.metadata, os.O_RDONLY | os.O_CLOEXEC),
            os.open(image.objects, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        ]
        for fd in fds:
            stack.callback(os.close, fd)
        yield fds[0], fds[1]


@contextmanager
def mounted(image: PlainImage, target: Path) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    with opened(image) as (file, objects), mount_target.target_directory(str(target)) as (_, fd):
        mount_file(file, objects, fd, name="test")
    try:
        yield target
    finally:
        mount_table.unmount(str(target))


def attach(tree: int, target: Path) -> None:
    """Closes the tree: a mount with a descriptor of it is busy."""
    place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unattached.attach(tree, place)
    finally:
        os.close(place)
        os.close(tree)


def foreign_mount() -> int:
    return unattached.create("tmpfs", "another's", [("source", "another's")], 0)


def test_a_mounted_image_reads_through_its_redirects_and_refuses_writes(image: PlainImage, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "m") as root:
        assert (root / "data/hello").read_bytes() == b"hello, content\n"
        assert sorted(os.listdir(root)) == ["bin", "data", "dev", "etc", "proc", "sys", "tmp"]
        assert os.listxattr(root / "data/hello") == []
        with pytest.raises(OSError, match="Read-only") as caught:
            (root / "new").write_text("x")
        assert caught.value.errno == errno.EROFS
        flags = os.statvfs(root).f_flag
        assert flags & os.ST_RDONLY
        assert flags & os.ST_NOSUID
        assert flags & 4  # ST_NODEV
    assert list((tmp_path / "m").iterdir()) == []


def test_the_mount_has_the_measured_options(image: PlainImage, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "m") as root:
        (row,) = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {root} " in line]
    words = set(row.split()[-1].split(","))
    assert {"ro", "redirect_dir=on", "metacopy=on"} <= words
    assert not any(word.startswith(("upperdir", "userxattr", "xino=on", "nfs_export=on")) for word in words)
    assert "::" in row
    assert unattached.SOURCE in row.split()


def test_a_missing_object_is_an_error_never_zeros(image: PlainImage, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with mounted(PlainImage(image.metadata, empty), tmp_path / "m") as root:
        assert os.stat(root / "data/hello").st_size == 15
        with pytest.raises(OSError) as caught:
            (root / "data/hello").read_bytes()
        assert caught.value.errno in (errno.EIO, errno.ENOENT)


def test_a_target_that_is_mounted_already_or_no_directory_is_refused(image: PlainImage, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "m") as root:
        with pytest.raises(MountError, match="got a onesec mount") as caught, mount_target.target_directory(str(root)):
            pass
        assert caught.value.hint is not None
    (tmp_path / "file").touch()
    for name, words in (("file", "want a directory"), ("nope", "no such directory")):
        with pytest.raises(MountError, match=words), mount_target.target_directory(str(tmp_path / name)):
            pass


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/self", "/sys/fs", "/dev", "/etc", "/usr", "/tmp/../proc"])
def test_the_systems_own_directories_are_no_targets(path: str) -> None:
    with pytest.raises(MountError, match="got a directory of the system"), mount_target.target_directory(path):
        pass


def test_a_target_hides_neither_our_own_directories_nor_another_mount(image: PlainImage, tmp_path: Path) -> None:
    run, inner = tmp_path / "state/run", tmp_path / "outer/inner"
    for directory in (run / "mounts", inner):
        directory.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for target in (tmp_path / "state", run, run / "mounts", tmp_path / "link"):
        with pytest.raises(MountError, match="holds"), mount_target.target_directory(str(target), ours=[run]):
            pass
    with mounted(image, inner / "m"), pytest.raises(MountError, match="with a mount in it"):  # noqa: SIM117
        with mount_target.target_directory(str(tmp_path / "outer"), ours=[run]):
            pass
    with mount_target.target_directory(str(tmp_path / "outer"), ours=[run]) as (real, _):
        assert real == str(tmp_path / "outer")


def test_umount_refuses_what_is_not_ours_and_what_is_in_use(image: PlainImage, tmp_path: Path) -> None:
    for path in ("/proc", str(tmp_path), "/nowhere"):
        with pytest.raises(MountError, match="got no onesec mount"):
            mount_table.unmount(path)
    with mounted(image, tmp_path / "m") as root, open(root / "data/hello", "rb"), pytest.raises(MountError) as caught:
        mount_table.unmount(str(root))
    assert "in use" in str(caught.value)


def test_umount_leaves_what_lies_over_a_mount_of_ours(image: PlainImage, tmp_path: Path) -> None:
    """Since Linux 6.8 the mount table has mounts in the order in which they were made."""
    over = foreign_mount()
    with mounted(image, tmp_path / "m") as root:
        attach(over, root)
        try:
            with pytest.raises(MountError, match="got no onesec mount"):
                mount_table.unmount(str(root))
        finally:
            cext.umount2(str(root), 0)
        assert (root / "data/hello").read_bytes() == b"hello, content\n"


def test_umount_undoes_a_mount_of_ours_that_lies_over_a_younger_one(image: PlainImage, tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.mkdir()
    with ExitStack() as stack:
        file, objects = stack.enter_context(opened(image))
        ours = mount.overlay(lowers_of(stack, file, objects, name="test"), name="test", attributes=0)
        attach(foreign_mount(), target)
        stack.callback(cext.umount2, str(target), 0)
        attach(ours, target)
        try:
            assert mount_table.unmount(str(target)) == str(target)
        except MountError:
            cext.umount2(str(target), 0)
            raise
        assert [row.kind for row in mount_table.mount_table() if row.target == str(target)] == ["tmpfs"]


def test_umount_of_a_directory_in_a_mount_of_ours_is_refused(image: PlainImage, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "m") as root, pytest.raises(MountError, match="got no onesec mount"):
        mount_table.unmount(str(root / "data"))


def test_umount_finds_a_mount_through_a_link(image: PlainImage, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "m")
    (tmp_path / "m").mkdir()
    with opened(image) as (file, objects), mount_target.target_directory(str(tmp_path / "link")) as (real, fd):
        mount_file(file, objects, fd, name="test")
    assert mount_table.unmount(str(tmp_path / "link")) == real == str(tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"x" * 8192], ids=["empty", "noise"])
def test_what_is_no_erofs_is_refused_and_nothing_is_left(image: PlainImage, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    (tmp_path / "m").mkdir()
    with (
        opened(PlainImage(tmp_path / "bad", image.objects)) as (file, objects),
        mount_target.target_directory(str(tmp_path / "m")) as (_, fd),
        pytest.raises(MountError, match="test:"),
    ):
        mount_file(file, objects, fd, name="test")


def test_a_file_on_tmpfs_is_mounted_through_a_loop_device_that_frees_itself(image: PlainImage, tmp_path: Path) -> None:
    with ExitStack() as stack:
        fs = unattached.memory("test")
        stack.callback(os.close, fs)
        copy = os.open("fs", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fs)
        stack.callback(os.close, copy)
        os.write(copy, image.metadata.read_bytes())
        tree = erofs_mount.erofs(copy, name="test")
        try:
            device = os.fstat(tree).st_dev
            assert os.major(device) == 7
            assert Path(f"/sys/dev/block/7:{os.minor(device)}/loop").exists()
            assert os.stat("bin/tool", dir_fd=tree).st_size > 0
        finally:
            os.close(tree)
    eventually(lambda: not Path(f"/sys/dev/block/7:{os.minor(device)}/loop").exists(), "the loop device was not freed")


def test_each_step_of_a_mount_can_fail_and_leaves_nothing(
    image: PlainImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails the 1st, 2nd, … of the mount system calls until there is none to fail. The leak check does the rest.

    A failure in the question whether overlays nest costs a loop device, no more.
    """
    (tmp_path / "m").mkdir()
    calls = ("fsopen", "fsconfig", "fsmount", "move_mount")
    real = {name: getattr(cext, name) for name in calls}
    left = 0

    def failing(name: str) -> object:
        def call(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real[name](*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(cext, name, failing(name))
    tried = 0
    while True:
        tried += 1
        left = tried
        try:
            with opened(image) as (file, objects), mount_target.target_directory(str(tmp_path / "m")) as (_, fd):
                mount_file(file, objects, fd, name="test")
        except (MountError, OSError):
            assert [row for row in mount_table.mount_table() if row.target == str(tmp_path / "m")] == []
            continue
        mount_table.unmount(str(tmp_path / "m"))
        if left > 0:
            break
    assert tried > 10


def test_records_survive_and_are_pruned_when_the_mount_is_gone(image: PlainImage, tmp_path: Path) -> None:
    records = mount_records.MountRecords(tmp_path / "run")
    target = tmp_path / "m"
    record = mount_records.MountRecord("0" * 16, str(target), "app", "sha256:" + "0" * 64, "local", "kernel")
    with mounted(image, target), records.locked():
        records.add(record)
        (tmp_path / "run/mounts/broken.json").write_text("{")
        assert records.all() == [record]
        assert records.prune() == []
    with records.locked():
        assert records.prune() == [record]
        assert records.all() == []


def test_this_kernel_allows_the_kernel_path(real_machine: None) -> None:
    features = probe()
    assert features.missing() is None
    features.require()


def test_a_kernel_without_a_part_is_told_which() -> None:
    old = KernelFeatures("6.1.0", True, True, True, True, False, True)
    with pytest.raises(Exception, match=r"kernel 6\.1\.0: got no overlayfs with data-only lower directories") as caught:
        old.require()
    assert "backports" in str(getattr(caught.value, "hint", ""))
