"""What kernels do that this one does not: lower directories have to be attached, or a file counts as a level.

The ways around are taken here by force, and lead to the same mounts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cext.errors import UnsupportedError
from lazyfs import erofs_mount, mount, mount_table, mount_target, objects, unattached
from lazyfs.errors import MountError
from tests.fuse.test_objects import CONTENTS, Place, opened
from tests.support.command import Onesec
from tests.support.objects import ObjectSet, make_objects
from tests.support.oracle import assert_image
from tests.support.shell import shell_image
from tests.support.trees import make_erofs
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("objects") / "set", CONTENTS)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "run")
    yield found
    eventually(found.is_empty)


@pytest.fixture
def erofs(tmp_path: Path, made: ObjectSet) -> Path:
    return make_erofs(tmp_path / "meta", {f"data/{name}": (made.ids[name], len(CONTENTS[name])) for name in CONTENTS})


@contextmanager
def lowers(place: Place, made: ObjectSet, erofs: Path) -> Iterator[mount.Lowers]:
    with (
        opened(made) as image,
        objects.attach(image, run_dir=place.path, root=place.path) as attachment,
        open(erofs, "rb") as file,
    ):
        yield attachment.lowers(file.fileno(), name="test")


@contextmanager
def overlaid(found: mount.Lowers, *, scratch: int | None = None, detached: bool = False) -> Iterator[int]:
    tree = mount.overlay(found, name="test", scratch=scratch, attributes=0, detached=detached)
    try:
        yield tree
    finally:
        os.close(tree)


def check(tree: int) -> None:
    for name, content in CONTENTS.items():
        with open(os.open(f"data/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree), "rb") as file:
            assert file.read() == content


def test_attached_lower_directories_give_the_same_read_only_mount(
    place: Place, made: ObjectSet, erofs: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    before = Path("/proc/self/mountinfo").read_text()
    with lowers(place, made, erofs) as found:
        for _ in range(3):  # nothing of the server's is used up
            with overlaid(found) as tree:
                assert Path("/proc/self/mountinfo").read_text() == before  # what was attached was attached elsewhere
                check(tree)
                with pytest.raises(OSError, match="Read-only"):
                    os.mkdir("new", dir_fd=tree)
        with overlaid(found) as tree, mount_target.target_directory(str(tmp_path / "m")) as (_, target):
            unattached.attach(tree, target)
        assert (tmp_path / "m/data/large").read_bytes() == CONTENTS["large"]
        mount_table.unmount(str(tmp_path / "m"))
        with overlaid(found, detached=True) as tree:
            check(tree)


@pytest.mark.parametrize("where", ["disk", "disk, odd name", "memory"])
def test_attached_lower_directories_take_a_scratch_layer_too(
    place: Place, made: ObjectSet, erofs: Path, tmp_path: Path, where: str
) -> None:
    with ExitStack() as stack:
        if where == "memory":
            scratch = unattached.memory("test")
        else:
            directory = tmp_path / ("scratch" if where == "disk" else "a:b,c\\d\n")
            directory.mkdir()
            scratch = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, scratch)
        for name in ("upper", "work"):
            os.mkdir(name, dir_fd=scratch)
        with lowers(place, made, erofs) as found, overlaid(found, scratch=scratch) as tree:
            os.chmod("data/small", 0o600, dir_fd=tree)
            os.mkdir("new", dir_fd=tree)
            check(tree)
            written = os.open("upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
            stack.callback(os.close, written)
            assert sorted(os.listdir(written)) == ["data", "new"]


def test_lower_directories_that_cannot_be_had_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    def fresh() -> tuple[int, int]:
        return unattached.memory("test"), os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    with pytest.raises(
        MountError, match="test: overlay: invalid argument"
    ):  # a directory is no mount that could be attached
        mount.overlay(mount.Lowers(-1, -1, fresh), name="test", attributes=0, detached=False)


def test_a_refusal_without_another_way_is_the_kernels_own(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file, pytest.raises(MountError, match="test: overlay: "):
        mount.overlay(mount.Lowers(file.fileno(), file.fileno()), name="test", attributes=0)


def test_where_a_file_counts_as_a_level_the_metadata_comes_through_a_loop_device(erofs: Path) -> None:
    with open(erofs, "rb") as file:
        asked: list[Callable[[], int]] = []

        def nests(tree: int, fresh: Callable[[], int]) -> bool:
            assert erofs_mount.is_erofs(tree)
            asked.append(fresh)
            return False

        tree = erofs_mount.erofs(file.fileno(), name="test", nests=nests)
        try:
            assert os.major(os.fstat(tree).st_dev) == 7
        finally:
            os.close(tree)
        assert len(asked) == 1


def test_without_loop_devices_the_file_stays_mounted(erofs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(file: int, name: str) -> int:
        raise UnsupportedError("no loop devices")

    monkeypatch.setattr(erofs_mount, "loop_device", missing)
    with open(erofs, "rb") as file:
        tree = erofs_mount.erofs(file.fileno(), name="test", nests=lambda *_: False)
        try:
            assert erofs_mount.is_erofs(tree)
            assert os.major(os.fstat(tree).st_dev) != 7
        finally:
            os.close(tree)


@pytest.mark.parametrize("way", ["detached", "attached"])
def test_levels_are_counted_by_making_them(erofs: Path, way: str) -> None:
    """A plain mount leaves room for two overlays on it, an overlay for one more only."""
    with ExitStack() as stack:

        def owned(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def ask(tree: Callable[[], int]) -> bool:
            if way == "detached":
                return erofs_mount.two_levels(stack, owned(tree()), unattached.memory("test"), unattached.detached_path)
            return unattached.in_private_namespace(
                lambda place: erofs_mount.two_levels(stack, owned(tree()), unattached.memory("test"), place)
            )

        def overlay() -> int:
            lower = mount.Lowers(owned(unattached.memory("test")), owned(unattached.memory("test")))
            return mount.overlay(lower, name="test", attributes=0)

        assert ask(lambda: unattached.memory("test"))
        assert not ask(overlay)


COMMAND = """
import sys
from lazyfs import mount
mount.overlay.__kwdefaults__["detached"] = False
from onesec.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_the_whole_command_works_with_attached_lower_directories(tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)

    def call(*words: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *map(str, words)],
            env=onesec.surroundings,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("import", shell_image(tmp_path, files={"srv/file": b"content\n"}), "-t", "app")
    assert call("run", "app", "/bin/sh", "-c", "rm /srv/file; ls /srv; echo new > /srv/new; cat /srv/new") == "new\n"
    assert_image(call, "app", tmp_path / "shell-tree", tmp_path / "m")
    (tmp_path / "image.py").write_text(
        "from onesec import Image\n"
        f"image = Image.from_oci('oci:{tmp_path / 'shell'}:t')\n"
        "image = image.run('ls /srv > /srv/list', 'cat /srv/file > /srv/copy && rm /srv/list')\n"
    )
    call("build", tmp_path / "image.py", "-t", "built")
    seen = assert_image(call, "built", None, tmp_path / "m")
    assert seen[b"srv/copy"].digest == seen[b"srv/file"].digest
    assert b"srv/list" not in seen
