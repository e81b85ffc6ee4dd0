"""fs.erofs on the real kernel: every kind of entry is what was encoded, and content without its overlay is an error."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import cext
from cext.errors import CorruptError
from lazyfs import erofs_mount
from lazyfs.index.layer import decode_layer
from lazyfs.index.model import HOLE, PART, Entry, Kind
from lazyfs.merge import merge
from tests.support.images import encoded, pool, sample
from tests.support.layers import layer
from tests.support.trees import ACL, CAPABILITY

pytestmark = pytest.mark.usefixtures("real_machine")

TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
HUGE = (1, 2**43 - 1, 2**43 + 1, 20 << 40, 2**63 - 1)
MTIMES = ((0, 0), (-1, 999_999_999), (-4_876_543_211, 1), (19_880_899_200, 0), (1_700_000_000, 123_456_789))


def entries() -> list[tuple[bytes, Entry]]:
    files = pool().files
    most = ((b"security.capability", CAPABILITY), (b"user.large", b"v" * 60_000), (b"user.\xff", b"\0\1"))
    mode = Entry(Kind.FILE)
    return [
        *sample(),
        *(
            (b"huge/%d" % size, Entry(Kind.FILE, mode=0o644, size=size, algorithm=1, parts=PART.pack(size, HOLE)))
            for size in HUGE
        ),
        *(
            (b"times/%d" % row, Entry(Kind.FIFO, mode=0o600, mtime_sec=seconds, mtime_nsec=nanoseconds))
            for row, (seconds, nanoseconds) in enumerate(MTIMES)
        ),
        *((b"modes/%04o" % bits, replace(mode, mode=bits)) for bits in (0, 0o111, 0o1777, 0o2755, 0o4755, 0o7777)),
        *((b"owners/%d" % uid, replace(mode, uid=uid, gid=uid - uid % 2)) for uid in (1, 65535, 65536, 2**32 - 2)),
        (b"xattrs/file", replace(files[2], xattrs=most)),
        (b"xattrs/acl", replace(files[0], xattrs=((b"system.posix_acl_access", ACL),))),
        (b"xattrs/directory", Entry(Kind.DIRECTORY, mode=0o755, xattrs=((b"system.posix_acl_default", ACL),))),
        *((b"names/%c" % byte, files[0]) for byte in range(1, 256) if byte not in b"/."),
        *((b"names/.%c" % byte, files[0]) for byte in range(1, 256) if byte not in b"/."),
        *((b"targets/%d" % size, _symlink(size)) for size in (1, 59, 60, 2048, 2049, 4095)),
        *((b"links/%03d" % number, replace(files[3], mode=0o600, link_group=9)) for number in range(700)),
        *((b"many/%05d%s" % (number, b"n" * (number % 240)), files[number % 5]) for number in range(3000)),
    ]


def _symlink(size: int) -> Entry:
    return Entry(Kind.SYMLINK, mode=0o777, size=size, target=(b"../" * 1366)[:size])


@contextmanager
def mounted(erofs: bytes, directory: Path) -> Iterator[str]:
    """An EROFS mount that is attached nowhere."""
    path = directory / "fs.erofs"
    path.write_bytes(erofs)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        tree = erofs_mount.erofs(fd, name="test")
    finally:
        os.close(fd)
    try:
        yield f"/proc/self/fd/{tree}"
    finally:
        os.close(tree)


@pytest.fixture(scope="module")
def index() -> tuple[bytes, bytes, bytes]:
    return encoded(*entries())


def at(root: str, path: bytes) -> bytes:
    return os.path.join(os.fsencode(root), path, b"") if not path else os.path.join(os.fsencode(root), path)


def test_the_kernel_sees_what_was_encoded(index: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    tree, erofs, tables = index
    cext.check_image(erofs, tables)
    want = list(decode_layer(tree, merged=True).walk())
    names: dict[bytes, set[bytes]] = {b"": set()}
    groups: dict[int, set[int]] = {}
    sizes = Counter(entry.link_group for _, entry in want)
    with mounted(erofs, tmp_path) as root:
        for path, entry in want:
            found = os.lstat(at(root, path))
            assert found.st_mode == TYPES[entry.kind] | entry.mode, path
            assert (found.st_uid, found.st_gid) == (entry.uid, entry.gid), path
            assert found.st_mtime_ns == entry.mtime_sec * 10**9 + entry.mtime_nsec, path
            if entry.kind in (Kind.FILE, Kind.SYMLINK):
                assert found.st_size == entry.size, path
            if entry.kind is Kind.SYMLINK:
                assert os.readlink(at(root, path)) == entry.target, path
            if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
                assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == entry.device
            if entry.kind is Kind.DIRECTORY:
                names[path] = set()
            if path:
                names[os.path.dirname(path)].add(os.path.basename(path))
            if entry.link_group:
                groups.setdefault(entry.link_group, set()).add(found.st_ino)
                assert found.st_nlink == sizes[entry.link_group]
            xattrs = {
                os.fsencode(name): os.getxattr(at(root, path), name, follow_symlinks=False)
                for name in os.listxattr(at(root, path), follow_symlinks=False)
            }
            redirect = xattrs.pop(b"trusted.overlay.redirect", b"")
            assert len(redirect) == (66 if entry.parts else 0), path
            assert xattrs.pop(b"trusted.overlay.metacopy", None) == (b"" if entry.parts else None), path
            assert xattrs == dict(entry.xattrs), path
        for path, children in names.items():
            assert set(os.listdir(at(root, path))) == children, path
        assert len(groups) >= 2
        assert all(len(inodes) == 1 for inodes in groups.values())
        for missing in (b"gone", b"many/0000", b"many/99999", b"names/..x", b"links/0000", b"\x01", b"\xff"):
            assert not os.path.lexists(at(root, missing))
        directory = os.lstat(at(root, b""))
        top = [path for path, entry in want if path and b"/" not in path and entry.kind is Kind.DIRECTORY]
        assert directory.st_nlink == 2 + len(top)


def test_parents_lead_back(index: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    with mounted(index[1], tmp_path) as root:
        top = os.stat(f"{root}/.").st_ino
        for name in ("many", "linked/b", "files"):
            assert os.stat(f"{root}/{name}" + "/.." * (name.count("/") + 1)).st_ino == top


READ_MAPPED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
data = mmap.mmap(fd, min(os.fstat(fd).st_size, 4096), prot=mmap.PROT_READ)
print(data[0])
"""


def test_content_without_its_overlay_is_an_error_and_never_zeros(
    index: tuple[bytes, bytes, bytes], tmp_path: Path
) -> None:
    tree, erofs, _ = index
    files = [path for path, entry in decode_layer(tree, merged=True).walk() if entry.parts]
    assert len(files) > 1000
    with mounted(erofs, tmp_path) as root:
        for path in files:
            fd = os.open(at(root, path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                for offset in {0, max(0, size // 2 - 1), max(0, size - 1)}:
                    with pytest.raises(OSError, match="Input/output") as caught:
                        os.pread(fd, 1, offset)
                    assert caught.value.errno == errno.EIO
                assert os.lseek(fd, 0, os.SEEK_HOLE) == size  # no hole to skip, so no zeros to assume
            finally:
                os.close(fd)
        fd = int(root.rpartition("/")[2])
        mapped = subprocess.run(
            [sys.executable, "-c", READ_MAPPED, f"{root}/huge/{2**63 - 1}"],
            pass_fds=(fd,),
            capture_output=True,
            check=False,
        )
        assert mapped.returncode == -signal.SIGBUS
        assert mapped.stdout == b""
        with open(f"{root}/files/0", "rb") as empty:
            assert empty.read() == b""


def test_a_checker_whose_file_fails_under_it_is_an_error(index: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    """The file has a size and can be mapped, but has no page to read: the checker gets SIGBUS."""
    _, erofs, tables = index
    good = tmp_path / "tables"
    good.write_bytes(tables)
    with mounted(erofs, tmp_path) as root, open(good, "rb") as fine, open(f"{root}/files/3", "rb") as broken:
        assert os.fstat(broken.fileno()).st_size == 4 * mmap.PAGESIZE
        with pytest.raises(CorruptError, match=f"killed by signal {int(signal.SIGBUS)}"):
            cext.check_image_sandboxed(broken.fileno(), fine.fileno())
        with pytest.raises(CorruptError, match=f"killed by signal {int(signal.SIGBUS)}"):
            cext.check_image_sandboxed(fine.fileno(), broken.fileno())


def run(program: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *words], capture_output=True, check=False)


def test_the_tools_of_erofs_accept_the_image(index: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    path = tmp_path / "fs.erofs"
    path.write_bytes(index[1])
    checked = run("fsck.erofs", path)
    assert checked.returncode == 0, checked
    for words in ((), ("-S",), ("--path=/huge/1",)):
        dumped = run("dump.erofs", *words, path)
        assert dumped.returncode == 0, dumped
    shown = run("dump.erofs", path).stdout.decode()
    assert "chunked_file" in shown
    assert index[1].count(b"abcdefgh") == 1  # names of one letter
    path.write_bytes(index[1].replace(b"abcdefgh", b"bacdefgh"))  # a tool that accepts everything proves nothing
    assert run("fsck.erofs", path).returncode != 0


def test_an_empty_tree_mounts(tmp_path: Path) -> None:
    erofs, tables = cext.encode_image(merge([layer()]), [])
    cext.check_image(erofs, tables)
    with mounted(erofs, tmp_path) as root:
        assert os.listdir(root) == []
    path = tmp_path / "fs.erofs"
    assert run("fsck.erofs", path).returncode == 0


def test_an_inode_may_have_very_many_names(tmp_path: Path) -> None:
    """More than 16 bits can count."""
    entry = replace(pool().files[1], link_group=1)
    _, erofs, tables = encoded(*((b"d/%05d" % number, entry) for number in range(70_000)))
    cext.check_image(erofs, tables)
    with mounted(erofs, tmp_path) as root:
        assert os.stat(f"{root}/d/00000").st_nlink == 70_000
        assert os.stat(f"{root}/d/69999").st_ino == os.stat(f"{root}/d/00000").st_ino
