"""What the kernel has to do for the kernel path to be right, tried on the running kernel with mounts as we make them.

Claimed here:

- a redirect leads into the data-only lower and nowhere else, whatever it says
- a wrong overlay over an image (no overlay, `userxattr`, no `metacopy`, an ordinary lower) is an error, never zeros
- programs run through the overlay although the object mount is noexec, and for users who may not enter it
- a chmod of a file copies no content; what is opened to be written is copied whole
- a hard link stays one when its mode changes (`index=on`), and inode numbers stay below 2^63 (`xino=off`)
- one overlay inside a container works, on disk and in memory, and it is the last level
- an O_PATH descriptor of an object keeps its pages in memory when caches are dropped
- one FUSE connection can have several mounts, which are one file system
- a mount with a reader that waits is busy, and a lazy unmount leaves the reader its answer
- attributes that speak to overlayfs are shown to nobody, and what a container sets under their names is its own

Others claim, where the server is tested: exact tails and stores, many parked reads, one deadline a page range, waiters
that can be killed, who may enter the object mount; where mounts are tested: the loop device on tmpfs, EIO of a raw
EROFS mount.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

import cext
from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from lazyfs import erofs_mount, mount, mount_table, mount_target, objects, unattached
from lazyfs.errors import MountError
from lazyfs.object_mount import mount_fuse
from registry.image import open_resolved
from registry.layout import LOCAL_DOMAIN, Layout, Resolved
from registry.model import Manifest
from tests.support.objects import ObjectSet, make_objects
from tests.support.serving import Served, serving
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

T = TypeVar("T")
MIB = 1 << 20
LARGE = os.urandom(3 * MIB)


@dataclass(frozen=True, slots=True)
class Made:
    """An image: files `large`, `linked` and `also linked`, and the static program `tool`; its objects."""

    metadata: Path
    objects: ObjectSet


def metadata(directory: Path, files: dict[str, tuple[bytes, int]], change: Callable[[Path], None]) -> Path:
    """An EROFS image of files whose redirects and sizes are given, as the caller's change leaves them."""
    tree = directory / "tree"
    tree.mkdir(parents=True)
    tree.chmod(0o755)
    for name, (redirect, size) in files.items():
        (tree / name).touch()
        os.truncate(tree / name, size)
        os.setxattr(tree / name, "trusted.overlay.metacopy", b"")
        os.setxattr(tree / name, "trusted.overlay.redirect", redirect)
        (tree / name).chmod(0o755)
    change(tree)
    subprocess.run(["mkfs.erofs", "-Eforce-inode-extended", "--quiet", directory / "fs", tree], check=True)
    return directory / "fs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tool: Path) -> Made:
    directory = tmp_path_factory.mktemp("facts")
    contents = {"large": LARGE, "tool": tool.read_bytes(), "linked": b"two names\n"}
    objects = make_objects(directory / "set", contents)
    files = {name: (f"/{objects.path(name)}".encode(), len(content)) for name, content in contents.items()}
    return Made(
        metadata(directory / "meta", files, lambda tree: os.link(tree / "linked", tree / "also linked")), objects
    )


@pytest.fixture
def served(made: Made) -> Iterator[Served]:
    with serving(made.objects) as found:
        yield found


@contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def overlaid(image: Path, served: Served, scratch: Path | None = None) -> Iterator[str]:
    """The path of an overlay that is attached nowhere, as containers (with a scratch directory) and mounts have it."""
    with ExitStack() as stack:
        file = stack.enter_context(open(image, "rb"))
        below = stack.enter_context(closing(erofs_mount.erofs(file.fileno(), name="test")))
        upper = None
        if scratch is not None:
            for name in ("upper", "work"):
                (scratch / name).mkdir(parents=True)
            upper = stack.enter_context(closing(os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))

        def fresh() -> tuple[int, int]:
            return erofs_mount.erofs(file.fileno(), name="test"), mount_fuse(served.connection)

        lowers = mount.Lowers(below, served.tree, fresh)
        tree = stack.enter_context(closing(mount.overlay(lowers, name="test", scratch=upper, attributes=0)))
        yield f"/proc/self/fd/{tree}"


def attempt(call: Callable[[], T]) -> T | int:
    """What it gives, or the errno."""
    try:
        return call()
    except OSError as error:
        return error.errno or -1


# ---------------------------------------------------------------------- redirects


def test_a_redirect_leads_into_the_objects_or_nowhere(made: Made, served: Served, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"of the host")
    good = f"/{made.objects.path('linked')}".encode()
    redirects = {
        "good": good,
        "parent": b"/../" + os.fsencode(canary),
        "parents": b"/" + b"../" * 40 + os.fsencode(canary).lstrip(b"/"),
        "inner": good[:4] + b"../" + good[1:],
        "dot": b"/./" + good[1:],
        "relative": good[1:],
        "relative up": b"../" + good[1:],
        "host": os.fsencode(canary),
        "deep": good + b"/x",
        "slash": good + b"/",
        "root": b"/",
        "directory": good[:3],
        "missing": b"/00/" + b"0" * 62,
    }
    image = metadata(tmp_path / "meta", {name: (value, 11) for name, value in redirects.items()}, lambda _: None)
    refused = (errno.EIO, errno.EINVAL, errno.EXDEV, errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    with overlaid(image, served) as root:
        for name in redirects:
            found = attempt(lambda name=name: Path(root, name).read_bytes())  # type: ignore[misc]
            # Another spelling of an object's own name is harmless: it is that object. Nothing else may be read.
            assert found in refused or found == b"two names\n", name
        assert Path(root, "good").read_bytes() == b"two names\n"


# ---------------------------------------------------------------------- never zeros

OVERLAYS: dict[str, list[tuple[str, str | None]]] = {
    "userxattr": [("userxattr", None)],
    "no metacopy": [("metacopy", "off"), ("redirect_dir", "on")],
    "redirects not followed": [("metacopy", "off"), ("redirect_dir", "nofollow")],
    "redirects without metacopy": [("redirect_dir", "on")],
    "nothing": [],
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Manifest]:
    """An image of our own encoder: mkfs.erofs leaves holes where content is elsewhere, and those read as zeros."""
    directory = tmp_path_factory.mktemp("encoded")
    (directory / "tree").mkdir()
    (directory / "tree/large").write_bytes(LARGE)
    layout = Layout.open(directory / "root")
    with layout.writing(), Workshop(layout) as workshop:
        layer = layer_from_tree(workshop, str(directory / "tree"))
        return layout, assemble_image(layout, [layer], b'{"architecture":"amd64","os":"linux"}')


@pytest.mark.parametrize("how", OVERLAYS)
@pytest.mark.parametrize("separator", ["::", ":"])
def test_a_wrong_overlay_is_an_error_and_never_zeros(
    encoded: tuple[Layout, Manifest], tmp_path: Path, how: str, separator: str
) -> None:
    """Refused as a mount, as an open or as a read."""
    layout, manifest = encoded
    resolved = Resolved("test:image", manifest, LOCAL_DOMAIN)
    with (
        open_resolved(layout, resolved, layout.lease(manifest.digest)) as image,
        objects.attach(image, run_dir=tmp_path / "run", root=layout.root) as attachment,
    ):
        lowers = attachment.lowers(image.erofs, name="test")

        def opened(options: list[tuple[str, str | None]]) -> int:
            with closing(cext.fsopen("overlay", 1)) as context:
                for key, value in [*options, ("ro", None)]:
                    cext.fsconfig(context, 0 if value is None else 1, key, value, 0)
                cext.fsconfig(context, 6, None, None, 0)
                with closing(cext.fsmount(context, 1, 0)) as tree:
                    return os.open("large", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree)

        below = f"/proc/self/fd/{lowers.metadata}", f"/proc/self/fd/{lowers.objects}"
        right: list[tuple[str, str | None]] = [("metacopy", "on"), ("redirect_dir", "on")]
        with closing(opened([("lowerdir", "::".join(below)), *right])) as fd:
            assert os.pread(fd, 4096, MIB) == LARGE[MIB : MIB + 4096]
        try:
            fd = opened([("lowerdir", separator.join(below)), *OVERLAYS[how]])
        except OSError:
            return
        with closing(fd):
            found = attempt(lambda: os.pread(fd, 4096, 2 * MIB))
            assert found == errno.EIO or found == LARGE[2 * MIB : 2 * MIB + 4096]  # right although it was not meant


# ---------------------------------------------------------------------- what containers do


def test_programs_run_through_the_overlay_for_users_who_may_not_enter_the_objects(made: Made, served: Served) -> None:
    assert os.fstatvfs(served.tree).f_flag & os.ST_NOEXEC
    with overlaid(made.metadata, served) as root:
        tree = int(root.rpartition("/")[2])
        for user in (0, 1000):
            done = subprocess.run(
                [f"{root}/tool", "words", "it runs"],
                user=user,
                group=user,
                extra_groups=[],
                pass_fds=[tree, served.tree],
                capture_output=True,
                check=False,
            )
            assert (done.returncode, done.stdout) == (0, b"it runs\n"), done.stderr
        direct = [f"/proc/self/fd/{served.tree}/{made.objects.path('tool')}"]
        with pytest.raises(PermissionError):  # noexec holds for root too
            subprocess.run(direct, pass_fds=[served.tree], check=False)


def test_a_chmod_copies_no_content_and_an_open_to_write_copies_all(made: Made, served: Served, tmp_path: Path) -> None:
    with overlaid(made.metadata, served, tmp_path / "scratch") as root:
        path = Path(root, "large")
        os.chmod(path, 0o600)
        os.chown(path, 5, 6)
        os.utime(path, ns=(1, 2))
        assert (served.count("reads"), path.stat().st_size) == (0, len(LARGE))
        copied = tmp_path / "scratch/upper/large"
        assert copied.stat().st_blocks * 512 < 65536
        assert os.getxattr(copied, "trusted.overlay.metacopy") is not None
        assert path.read_bytes() == LARGE
        with open(path, "ab") as file:
            file.write(b"more")
        assert copied.stat().st_blocks * 512 >= len(LARGE)
        assert path.read_bytes() == LARGE + b"more"


def test_a_changed_hard_link_stays_one_and_numbers_stay_small(made: Made, served: Served, tmp_path: Path) -> None:
    with overlaid(made.metadata, served, tmp_path / "scratch") as root:
        one, two = Path(root, "linked"), Path(root, "also linked")
        assert one.stat().st_ino == two.stat().st_ino
        one.chmod(0o600)
        assert (one.stat().st_ino, one.stat().st_nlink) == (two.stat().st_ino, 2)
        assert stat.S_IMODE(two.stat().st_mode) == 0o600
        one.write_bytes(b"changed\n")
        assert two.read_bytes() == b"changed\n"
        for name in os.listdir(root):
            assert os.stat(f"{root}/{name}").st_ino < 1 << 63
        os.mkdir(f"{root}/new")
        assert os.stat(f"{root}/new").st_ino < 1 << 63


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_one_overlay_inside_a_container_is_possible_and_no_second(
    made: Made, served: Served, tmp_path: Path, where: str
) -> None:
    """The container's own root is one level; the lower of its overlay is a directory of that root."""

    def nested(lower: str, scratch: Path) -> int:
        with ExitStack() as stack:
            if where == "memory":
                base = stack.enter_context(closing(unattached.memory("test")))
            else:
                scratch.mkdir()
                base = stack.enter_context(closing(os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
            for name in ("upper", "work"):
                os.mkdir(name, dir_fd=base)
            context = stack.enter_context(closing(cext.fsopen("overlay", 1)))
            options = {
                "source": "nested",
                "lowerdir": lower,
                "upperdir": f"/proc/self/fd/{base}/upper",
                "workdir": f"/proc/self/fd/{base}/work",
            }
            for key, value in options.items():
                cext.fsconfig(context, 1, key, value, 0)
            cext.fsconfig(context, 6, None, None, 0)
            return cext.fsmount(context, 1, 0)

    with overlaid(made.metadata, served, tmp_path / "scratch") as root:
        with closing(nested(root, tmp_path / "inner")) as inner:
            inside = Path(f"/proc/self/fd/{inner}")
            assert (inside / "large").read_bytes() == LARGE
            (inside / "linked").write_bytes(b"mine\n")
            assert Path(root, "linked").read_bytes() == b"two names\n"
            assert attempt(lambda: nested(str(inside), tmp_path / "deeper")) == errno.EINVAL
        with pytest.raises(MountError), overlaid(made.metadata, served, Path(root, "upper of another")):
            pass  # our overlay cannot be an upper


def test_attributes_for_overlayfs_are_nobodys_to_see_and_a_containers_are_its_own(
    made: Made, served: Served, tmp_path: Path
) -> None:
    with overlaid(made.metadata, served, tmp_path / "scratch") as root:
        for name in ("large", "linked"):
            assert os.listxattr(f"{root}/{name}") == []
            assert attempt(lambda name=name: os.getxattr(f"{root}/{name}", "trusted.overlay.redirect")) == errno.ENODATA  # type: ignore[misc]
        elsewhere = f"/{made.objects.path('large')}".encode()
        os.setxattr(f"{root}/linked", "trusted.overlay.redirect", elsewhere)
        assert os.getxattr(f"{root}/linked", "trusted.overlay.redirect") == elsewhere
        assert Path(root, "linked").read_bytes() == b"two names\n"
        upper = tmp_path / "scratch/upper/linked"
        assert os.getxattr(upper, "trusted.overlay.overlay.redirect") == elsewhere  # escaped: it acts for nobody


# ---------------------------------------------------------------------- pages, connections


def cached(fd: int) -> int:
    """Pages of a file that are in memory, by cachestat(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    everything = (ctypes.c_uint64 * 2)(0, 0)
    found = (ctypes.c_uint64 * 5)()
    if libc.syscall(451, fd, everything, found, 0) != 0:
        if ctypes.get_errno() == errno.ENOSYS:
            pytest.skip("this kernel has no cachestat(2), Linux 6.5: nothing to count pages with")
        raise OSError(ctypes.get_errno(), "cachestat")
    return int(found[0])


def drop_caches() -> None:
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")  # dentries and inodes: what takes a FUSE file's pages with it


def test_a_descriptor_without_access_keeps_an_objects_pages(made: Made, served: Served) -> None:
    path = made.objects.path("large")

    def pages() -> int:
        with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=served.tree)) as fd:
            return cached(fd)

    whole = -(-len(LARGE) // 4096)

    def after_drops() -> int:
        for _ in range(5):  # one alone may find the inode in use
            drop_caches()
            if (left := pages()) == 0:
                break
        return left

    # The kernel may take pages whenever it needs memory, and others may drop them: most of them, in one try of three.
    with closing(os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=served.tree)):
        for _ in range(3):
            assert served.read(made.objects, "large") == LARGE
            if (kept := after_drops()) > whole // 2:
                break
        assert kept > whole // 2
    assert after_drops() == 0, "without it they stay too: then the pins are for nothing"


def test_one_connection_has_as_many_mounts_as_it_is_asked_for(made: Made) -> None:
    with serving(made.objects) as served, closing(mount_fuse(served.connection)) as again:
        assert cext.device_of(again) == cext.device_of(served.tree)
        assert served.read(made.objects, "large") == LARGE
        before = served.count("reads")
        fd = os.open(made.objects.path("large"), os.O_RDONLY | os.O_CLOEXEC, dir_fd=again)
        with open(fd, "rb") as file:
            assert file.read() == LARGE
        assert served.count("reads") == before  # the same inodes, the same pages


def test_a_mount_with_a_waiting_reader_is_busy_and_a_lazy_unmount_harms_nobody(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.mkdir()
    results: list[bytes] = []
    packs = list(made.objects.pack_names())
    away = tmp_path / "away"
    away.mkdir()
    for pack in packs:
        (made.objects.packs / pack).rename(away / pack)
    try:
        with serving() as served:
            image = served.add(made.objects, lazy=True)
            with (
                open(made.metadata, "rb") as file,
                closing(erofs_mount.erofs(file.fileno(), name="test")) as below,
                mount_target.target_directory(str(target)) as (_, place),
            ):
                mount.mount_image(mount.Lowers(below, served.tree), place, name="test")
            reader = threading.Thread(target=lambda: results.append((target / "large").read_bytes()))
            reader.start()
            eventually(lambda: served.count("parked_now") > 0)
            with pytest.raises(MountError, match="in use"):
                mount_table.unmount(str(target))
            cext.umount2(str(target), 2)  # MNT_DETACH
            for pack in packs:
                (away / pack).rename(made.objects.packs / pack)
                served.add_pack(image, made.objects, pack)
            reader.join(PATIENCE_S)
    finally:
        for pack in packs:
            if (away / pack).exists():
                (away / pack).rename(made.objects.packs / pack)
    assert results == [LARGE]
