"""The portable mount on the real kernel, compared with the tree that its image was made of."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import cext
from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from lazyfs import portable
from lazyfs.errors import MountError
from lazyfs.index.tables import TablesReader
from lazyfs.mount import mount_image
from lazyfs.mount_table import mount_table, unmount
from lazyfs.mount_target import target_directory
from lazyfs.objects import attach
from registry.image import open_resolved
from registry.layout import LOCAL_DOMAIN, Layout, Resolved
from registry.model import Digest, Manifest
from tests.support.trees import assert_same_tree, make_every_kind
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("real_machine")
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


@dataclass(frozen=True, slots=True)
class Built:
    """An image in a layout of its own, and what it was made of."""

    tree: Path
    layout: Layout
    manifest: Manifest


def build(tree: Path, root: Path) -> Built:
    layout = Layout.open(root)
    with layout.writing(), Workshop(layout) as workshop:
        manifest = assemble_image(layout, [layer_from_tree(workshop, str(tree))], CONFIG)
    return Built(tree, layout, manifest)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Everything that a tree can have; read only."""
    directory = tmp_path_factory.mktemp("portable")
    make_every_kind(directory / "tree", 3)
    return build(directory / "tree", directory / "root")


@pytest.fixture
def small(tmp_path: Path) -> Built:
    """Two files in packs that a test may damage."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "good").write_bytes(os.urandom(300_000))
    (tree / "bad").write_bytes(os.urandom(300_000))
    return build(tree, tmp_path / "root")


@contextmanager
def mounted(built: Built, directory: Path) -> Iterator[Path]:
    target = directory / "mount"
    target.mkdir()
    resolved = Resolved("test:image", built.manifest, LOCAL_DOMAIN)
    with open_resolved(built.layout, resolved, built.layout.lease(built.manifest.digest)) as image:
        portable.start(image, str(target), run_dir=directory / "run")
    try:
        yield target
    finally:
        unmount(str(target))
        wait_for_end(directory)


def wait_for_end(directory: Path) -> None:
    """Until no server process holds on to anything of a mount that is gone."""
    eventually(lambda: not servers(directory), f"servers of {directory} are still there")


def servers(directory: Path) -> list[int]:
    """Holder and server of a mount, in this order: processes by our name whose log is in a test's directory."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/comm") as file:
                ours = name.isdigit() and file.read().strip() == portable.NAME[:15]
            if ours and os.readlink(f"/proc/{name}/fd/2").startswith(f"{directory}/"):
                with open(f"/proc/{name}/status") as file:
                    user = next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
                found.append((user, int(name)))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError, PermissionError):
            continue
    return [name for _, name in sorted(found)]


def log_of(directory: Path) -> str:
    return (directory / "run/portable.log").read_text()


def test_every_kind_of_entry_reads_as_in_the_tree_it_came_from(kinds: Built, tmp_path: Path) -> None:
    with mounted(kinds, tmp_path) as target:
        assert_same_tree(target, kinds.tree)
        assert_same_tree(target, kinds.tree)  # and again, from caches
    assert log_of(tmp_path) == ""


def test_the_mount_says_what_it_is_and_refuses_to_be_written(kinds: Built, tmp_path: Path) -> None:
    with mounted(kinds, tmp_path) as target:
        row = [row for row in mount_table() if row.target == str(target)][-1]
        assert row.ours
        with open("/proc/self/mountinfo") as file:
            options = next(line for line in file if f" {target} " in line).split()[5].split(",")
        assert {"ro", "nosuid", "nodev"} <= set(options)
        assert (target / "modes/file-4755").stat().st_mode & stat.S_ISUID
        for path, flags in ((target / "new", os.O_CREAT | os.O_WRONLY), (target / "modes/file-0644", os.O_WRONLY)):
            with pytest.raises(OSError) as caught:
                os.open(path, flags)
            assert caught.value.errno == errno.EROFS
        found = os.statvfs(target)
        assert found.f_namemax == 255
        assert found.f_blocks * found.f_bsize >= 5 << 30
        assert found.f_files >= 700


def test_attributes_that_speak_to_overlayfs_are_not_shown(kinds: Built, tmp_path: Path) -> None:
    with mounted(kinds, tmp_path) as target:
        path = target / "attributes/file"
        assert not [name for name in os.listxattr(path) if name.startswith("trusted.")]
        with pytest.raises(OSError) as caught:
            os.getxattr(path, "trusted.overlay.redirect")
        assert caught.value.errno == errno.ENODATA


def test_reads_at_any_offset_give_the_bytes_that_stand_there(kinds: Built, tmp_path: Path) -> None:
    with mounted(kinds, tmp_path) as target:
        for name in ("sizes/noise-1048577", "sparse/middle", "sparse/exact"):
            want = (kinds.tree / name).read_bytes()
            fd = os.open(target / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for offset in (0, 1, 4095, 65535, 262143, len(want) - 1, len(want), len(want) + 1):
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    assert os.pread(fd, 70_000, offset) == want[offset : offset + 70_000], (name, offset)
            finally:
                os.close(fd)


def test_a_name_that_is_not_there_is_not_there(kinds: Built, tmp_path: Path) -> None:
    with mounted(kinds, tmp_path) as target:
        for name in ("gone", "sizes/gone", "modes/file-0644/gone"):
            assert not os.path.lexists(target / name)
        with pytest.raises(NotADirectoryError):
            os.listdir(target / "modes/file-0644")


def place_of(built: Built, name: str) -> tuple[Path, int, str, str]:
    """Pack and offset of the frame of a file's first chunk, and the ids of its object and chunk."""
    resolved = Resolved("test:image", built.manifest, LOCAL_DOMAIN)
    with open_resolved(built.layout, resolved, built.layout.lease(built.manifest.digest)) as image:
        tables = TablesReader(Path(image.tables_path).read_bytes())
    first = (built.tree / name).read_bytes()
    chunk = cext.blake3(first[: cext.cut_points(first)[0]])
    for identity in tables.ids():
        found = tables.find(identity)
        assert found is not None
        part = found.parts[0]
        if part.id == chunk and part.frame is not None:
            frame = tables.frame(part.frame)
            pack = Path(built.layout.root) / "images/blobs/sha256" / tables.blobs[frame.blob].digest.hex()
            return pack, frame.offset + frame.packed // 2, identity.hex(), chunk.hex()
    raise AssertionError(f"{name}: no object")


def test_a_flipped_byte_is_an_error_and_a_line_and_the_rest_still_reads(small: Built, tmp_path: Path) -> None:
    pack, offset, identity, chunk = place_of(small, "bad")
    with open(pack, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    with mounted(small, tmp_path) as target:
        with pytest.raises(OSError) as caught:
            (target / "bad").read_bytes()
        assert caught.value.errno == errno.EIO
        assert (target / "good").read_bytes() == (small.tree / "good").read_bytes()
    lines = log_of(tmp_path).splitlines()
    assert lines
    assert all(f"image test:image: object {identity}: chunk {chunk}: " in line for line in lines)


def test_a_pack_that_is_gone_is_an_error_and_a_line(small: Built, tmp_path: Path) -> None:
    pack, *_ = place_of(small, "bad")
    pack.unlink()
    with mounted(small, tmp_path) as target:
        assert sorted(os.listdir(target)) == ["bad", "good"]
        with pytest.raises(OSError) as caught:
            (target / "bad").read_bytes()
        assert caught.value.errno == errno.EIO
    assert f"pack {pack.name}: not there" in log_of(tmp_path)


def test_a_lease_lasts_as_long_as_the_mount(small: Built, tmp_path: Path) -> None:
    leases = Path(small.layout.root) / "leases"
    with mounted(small, tmp_path) as target:
        assert len(list(leases.iterdir())) == 1
        assert held(small.layout) == {small.manifest.digest}
        assert (target / "good").exists()
    eventually(lambda: not held(small.layout))  # a process that ends closes its descriptors one after the other


def held(layout: Layout) -> set[Digest]:
    with layout.exclusive():
        return layout.leased()


def test_the_server_has_no_privileges(small: Built, tmp_path: Path) -> None:
    with mounted(small, tmp_path) as target:
        assert (target / "good").read_bytes() == (small.tree / "good").read_bytes()
        _, server = servers(tmp_path)
        for task in Path(f"/proc/{server}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].split() == []
            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0


def test_a_server_that_was_killed_leaves_nothing(small: Built, tmp_path: Path) -> None:
    def kill_the_server() -> None:
        with mounted(small, tmp_path):
            _, server = servers(tmp_path)
            os.kill(server, signal.SIGKILL)
            wait_for_end(tmp_path)

    with pytest.raises(MountError, match="no onesec mount"):  # its holder undid the mount
        kill_the_server()


def test_when_all_were_killed_the_mount_can_be_undone(small: Built, tmp_path: Path) -> None:
    with mounted(small, tmp_path) as target:
        for process in servers(tmp_path):
            os.kill(process, signal.SIGKILL)
        wait_for_end(tmp_path)
        with pytest.raises(OSError) as caught:
            os.listdir(target)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


@pytest.mark.parametrize("which", ["holder", "server"])
def test_who_is_asked_to_end_unmounts(small: Built, tmp_path: Path, which: str) -> None:
    def end_it() -> None:
        with mounted(small, tmp_path):
            holder, server = servers(tmp_path)
            os.kill(holder if which == "holder" else server, signal.SIGTERM)
            wait_for_end(tmp_path)

    with pytest.raises(MountError, match="no onesec mount"):  # there is nothing left to undo
        end_it()
    assert not os.path.ismount(tmp_path / "mount")


def test_both_ways_to_mount_show_the_same_tree(kinds: Built, tmp_path: Path) -> None:
    """Also where the tree on disk cannot be the judge."""
    direct = tmp_path / "direct"
    direct.mkdir()
    resolved = Resolved("test:image", kinds.manifest, LOCAL_DOMAIN)
    with (
        mounted(kinds, tmp_path) as target,
        open_resolved(kinds.layout, resolved, kinds.layout.lease(kinds.manifest.digest)) as image,
        attach(image, run_dir=tmp_path / "run", root=kinds.layout.root) as attachment,
        target_directory(str(direct)) as (_, place),
    ):
        mount_image(attachment.lowers(image.erofs, name="test"), place, name="test:image")
        try:
            assert_same_tree(target, direct)
        finally:
            unmount(str(direct))


def test_what_cannot_be_mounted_is_said_by_the_client(small: Built, tmp_path: Path) -> None:
    resolved = Resolved("test:image", small.manifest, LOCAL_DOMAIN)
    with (
        open_resolved(small.layout, resolved, small.layout.lease(small.manifest.digest)) as image,
        pytest.raises(MountError, match="portable mount"),
    ):
        portable.start(image, str(tmp_path / "nowhere"), run_dir=tmp_path / "run")
    assert list((Path(small.layout.root) / "leases").iterdir()) == []
    wait_for_end(tmp_path)
