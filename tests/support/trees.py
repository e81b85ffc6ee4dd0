"""File trees for tests.

Plain images for the mount and container tests, made without our own encoder: mkfs.erofs writes the metadata, a plain
directory is the data-only lower. It is the same overlay that an object mount gets.

`make_every_kind` leaves one of everything that a file tree can have; `snapshot` and `assert_same_tree` compare trees,
however they are mounted.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import cext

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class PlainImage:
    """metadata: an EROFS file. objects: the directory that redirects lead into."""

    metadata: Path
    objects: Path


def build_tool(directory: Path) -> Path:
    """The static program of the test images."""
    path = directory / "tool"
    subprocess.run(["cc", "-static", "-O1", "-Wall", "-Werror", "-o", path, HERE / "tool.c"], check=True)
    return path


def add_file(tree: Path, objects: Path, name: str, data: bytes, mode: int = 0o644) -> None:
    """A file without data whose name for its content is an attribute, as the image index has them."""
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if data:
        digest = hashlib.sha256(data).hexdigest()
        stored = objects / digest[:2] / digest[2:]
        stored.parent.mkdir(exist_ok=True)
        stored.write_bytes(data)
        os.truncate(path, len(data))
        os.setxattr(path, "trusted.overlay.metacopy", b"")
        os.setxattr(path, "trusted.overlay.redirect", f"/{digest[:2]}/{digest[2:]}".encode())
    path.chmod(mode)


def make_image(
    directory: Path,
    tool: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
    kernel_targets: bool = True,
) -> PlainImage:
    """/bin/tool, /bin/noexec, /etc/passwd, /etc/group, /tmp, and what the caller adds. links: name -> target."""
    tree, objects, metadata = directory / "tree", directory / "objects", directory / "fs.erofs"
    tree.mkdir()
    objects.mkdir()
    tree.chmod(0o755)
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    if kernel_targets:
        for name in ("dev", "proc", "sys"):
            (tree / name).mkdir()
    add_file(tree, objects, "bin/tool", tool.read_bytes(), 0o755)
    add_file(tree, objects, "bin/noexec", b"not executable\n")
    add_file(tree, objects, "bin/nonsense", b"\x7fNOT an executable format\n", 0o755)
    add_file(tree, objects, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nwork:x:1000:1001::/home/work:/bin/sh\n")
    add_file(tree, objects, "etc/group", b"root:x:0:\nwork:x:1001:\nextra:x:2000:other,work\n")
    for name, data in (files or {}).items():
        add_file(tree, objects, name, data)
    for name, target in (links or {}).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)
    subprocess.run(["mkfs.erofs", "-Eforce-inode-extended", "--quiet", metadata, tree], check=True)
    return PlainImage(metadata, objects)


def make_erofs(directory: Path, files: Mapping[str, tuple[bytes, int]]) -> Path:
    """A metadata image alone. files: name -> id and size of its object."""
    tree, metadata = directory / "tree", directory / "fs.erofs"
    tree.mkdir(parents=True)
    tree.chmod(0o755)
    for name, (identity, size) in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
        os.setxattr(path, "trusted.overlay.metacopy", b"")
        text = identity.hex()
        os.setxattr(path, "trusted.overlay.redirect", f"/{text[:2]}/{text[2:]}".encode())
        path.chmod(0o644)
    subprocess.run(["mkfs.erofs", "-Eforce-inode-extended", "--quiet", metadata, tree], check=True)
    return metadata


# ---------------------------------------------------------------------- one of everything

KIB, MIB = 1 << 10, 1 << 20
SIZES = (0, 1, *(limit + off for limit in (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB) for off in (-1, 0, 1)))
MTIMES = (
    -1,
    0,
    1,
    -4_876_543_211,
    999_999_999,
    -2_000_000_000_000_000_001,
    4_102_444_800_000_000_007,
    1_700_000_000 * 10**9,
)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, effective
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 4, 1000, 4, 4, 2**32 - 1, 16, 6, 2**32 - 1, 32, 0, 2**32 - 1)


def make_every_kind(root: Path, seed: int = 0, *, big: int = 600, deep: int = 40) -> None:
    """A tree with every kind of entry at root, which is made. Same seed, same tree; needs root for most of it.

    big: entries of the largest directory. deep: directories below each other.
    """
    made = _EveryKind(root, random.Random(seed))
    root.mkdir()
    made.sizes()
    made.sparse()
    made.modes()
    made.names()
    made.attributes()
    made.links()
    made.directories(big, deep)
    if os.geteuid() == 0:
        made.devices()
        made.owners()
    made.times()


class _EveryKind:
    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root = root
        self.chance = chance

    def place(self, name: str | bytes) -> bytes:
        path = os.path.join(os.fsencode(self.root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def file(self, name: str | bytes, data: bytes = b"") -> bytes:
        path = self.place(name)
        with open(path, "xb") as file:
            file.write(data)
        os.chmod(path, 0o644)
        return path

    def sizes(self) -> None:
        for size in SIZES:
            noise = self.chance.randbytes(size)
            self.file(f"sizes/noise-{size}", noise)
            self.file(f"sizes/text-{size}", (b"%d: the same line again\n" % size * (size // 20 + 1))[:size])
            self.file(f"sizes/copy-{size}", noise)

    def sparse(self) -> None:
        """Holes on both sides of the 1 MiB from which the format has them."""
        for name, data, holes in (
            ("start", (3 * MIB,), 1),
            ("end", (0,), 3),
            ("middle", (0, 2 * MIB), 2),
            ("exact", (0, MIB + 4 * KIB), 2),
            ("short", (0, MIB), 2),
            ("only", (), 3),
        ):
            with open(self.place(f"sparse/{name}"), "xb") as file:
                for offset in data:
                    file.seek(offset)
                    file.write(self.chance.randbytes(4 * KIB))
                file.truncate(max([at + 4 * KIB for at in data], default=0) + (holes - 1) * MIB + 123)
        with open(self.place("sparse/huge"), "xb") as file:
            file.truncate(5 << 30)

    def modes(self) -> None:
        for mode in (0, 0o400, 0o111, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777):
            os.chmod(self.file(f"modes/file-{mode:04o}", b"%o" % mode), mode)
            path = self.place(f"modes/directory-{mode:04o}")
            os.mkdir(path)
            os.chmod(path, mode)

    def names(self) -> None:
        for name in (
            b"n" * 255,
            "ü".encode() * 127,
            b"\xff\xfe not UTF-8",
            b" ",
            b"-rf",
            b"a\nb",
            b"\\",
            b"\t\x01\x7f",
            b"#'\"$;*",
        ):
            self.file(b"names/" + name, name)
        self.file(b"names/\x80directory/" + b"\xc3" * 255, b"deeper")

    def attributes(self) -> None:
        path = self.file("attributes/file", b"with attributes")
        os.setxattr(path, "user.text", b"value")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.zeros", bytes(100))
        os.setxattr(path, os.fsdecode(b"user.\xff"), b"a name that is not UTF-8")
        os.setxattr(path, "user." + "n" * 250, b"the longest name")
        os.setxattr(self.file("attributes/large"), "user.large", self.chance.randbytes(3000))
        for name in ("one", "two", "three"):  # the same on several: candidates for sharing
            os.setxattr(self.file(f"attributes/{name}"), "user.shared", b"the same everywhere" * 10)
        acl = self.file("attributes/acl")
        os.setxattr(acl, "system.posix_acl_access", ACL)
        directory = self.place("attributes/directory")
        os.mkdir(directory)
        os.setxattr(directory, "user.directory", b"value")
        os.setxattr(directory, "system.posix_acl_default", ACL)
        if os.geteuid() == 0:
            os.setxattr(self.file("attributes/capable", b"#!/bin/true\n"), "security.capability", CAPABILITY)

    def links(self) -> None:
        """Symlinks of all lengths, and inodes with several names."""
        targets = (
            "x",
            "/",
            "/etc/passwd",
            "../sizes",
            "gone/../x",
            "loop-b",
            os.fsdecode(b"\xff"),
            "t/" * 27 + "t",
            "y" * 255,
        )
        for number, target in enumerate(targets):
            os.symlink(target, self.place(f"symlinks/{number}"))
        os.symlink("loop-a", self.place("symlinks/loop-b"))
        os.symlink("loop-b", self.place("symlinks/loop-a"))
        for length in (59, 60, 61, 1000, 4000, 4095):
            os.symlink(("long/" * 820)[:length], self.place(f"symlinks/long-{length}"))
        fifo = self.place("links/fifo")
        os.mkfifo(fifo, 0o622)
        sources = {
            "file": self.file("links/file", self.chance.randbytes(70 * KIB)),
            "empty": self.file("links/empty"),
            "fifo": fifo,
            "symlink": self.place("symlinks/0"),
        }
        for name, source in sources.items():
            for number in range(1, 4):
                os.link(source, self.place(f"links/other/{number}/{name}"), follow_symlinks=False)

    def directories(self, big: int, deep: int) -> None:
        os.mkdir(self.place("directories/empty"))
        for number in range(big):
            self.file(f"directories/big/{number:x}-{'n' * (number % 97)}", b"%d" % (number % 10) if number % 3 else b"")
        path = "directories/deep"
        for number in range(deep):
            path += f"/{number}-{'d' * (number % 17)}"
        self.file(path + "/bottom", b"reached")

    def devices(self) -> None:
        for name, kind, device in (
            ("null", stat.S_IFCHR, (1, 3)),
            ("large", stat.S_IFCHR, (4095, 1048575)),
            ("block", stat.S_IFBLK, (7, 0)),
            ("minor", stat.S_IFBLK, (0, 300)),
        ):
            os.mknod(self.place(f"devices/{name}"), kind | 0o640, os.makedev(*device))

    def owners(self) -> None:
        for uid, gid in ((0, 0), (1, 2), (1000, 1000), (65534, 65534), (65536, 70000), (4_000_000_000, 4_294_967_294)):
            os.chown(self.file(f"owners/{uid}-{gid}"), uid, gid)
        path = self.place("owners/symlink")
        os.symlink("nowhere", path)
        os.chown(path, 123, 456, follow_symlinks=False)

    def times(self) -> None:
        """Every inode gets a time of its own or one of the odd ones; directories after what is in them."""
        odd = list(MTIMES)
        paths = [os.fsencode(self.root)]
        for directory, directories, files in os.walk(os.fsencode(self.root)):
            paths += [os.path.join(directory, name) for name in (*directories, *files)]
        for path in sorted(paths, reverse=True):  # sorted: what a file system lists is in no order
            self._time(path, odd)

    def _time(self, path: bytes, odd: list[int]) -> None:
        mtime = odd.pop() if odd else self.chance.randrange(-(10**18), 4 * 10**18)
        os.utime(path, ns=(0, mtime), follow_symlinks=False)


# ---------------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader sees of a path. size: of files and symlinks. digest: of a file's content. names: all paths of its
    inode, of what is no directory.
    """

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int
    links: int
    xattrs: tuple[tuple[str, bytes], ...]
    target: bytes
    digest: str
    names: tuple[bytes, ...]


Snapshot = dict[bytes, Seen]


def snapshot(root: str | os.PathLike[str], *, keep: Callable[[str], bool] | None = None) -> Snapshot:
    """Everything below root and itself, by path from it. keep: whether an xattr counts; trusted.* never does."""
    top = os.fsencode(root)
    found: dict[bytes, os.stat_result] = {}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        full = os.path.join(top, path) if path else top
        found[path] = os.lstat(full)
        if stat.S_ISDIR(found[path].st_mode):
            listed = os.listdir(full)
            assert len(listed) == len(set(listed)), f"{path!r}: names listed twice"
            waiting += [os.path.join(path, name) for name in listed]
    names: dict[tuple[int, int], list[bytes]] = {}
    for path, info in found.items():
        names.setdefault((info.st_dev, info.st_ino), []).append(path)
    digests: dict[tuple[int, int], str] = {}
    return {path: _seen(top, path, found[path], names, digests, keep) for path in sorted(found)}


def _seen(
    top: bytes,
    path: bytes,
    info: os.stat_result,
    names: dict[tuple[int, int], list[bytes]],
    digests: dict[tuple[int, int], str],
    keep: Callable[[str], bool] | None,
) -> Seen:
    full = os.path.join(top, path) if path else top
    kind, inode = stat.S_IFMT(info.st_mode), (info.st_dev, info.st_ino)
    if kind == stat.S_IFREG and inode not in digests:
        digests[inode] = _digest(full)
    return Seen(
        info.st_mode,
        info.st_uid,
        info.st_gid,
        info.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0,
        info.st_mtime_ns,
        info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        0 if kind == stat.S_IFDIR else info.st_nlink,
        _xattrs(full, keep),
        os.readlink(full) if kind == stat.S_IFLNK else b"",
        digests.get(inode, ""),
        () if kind == stat.S_IFDIR else tuple(sorted(names[inode])),
    )


def _xattrs(path: bytes, keep: Callable[[str], bool] | None) -> tuple[tuple[str, bytes], ...]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(names)
        if not name.startswith("trusted.") and name != "security.selinux" and (keep is None or keep(name))
    )


_WHOLE = 8 * MIB


def _digest(path: bytes) -> str:
    """Of the content, read through; of a file with a huge hole, of where its data is and of that data."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > 1 << 30:  # its first and last MiB have to do
            pieces = os.pread(file.fileno(), MIB, 0) + os.pread(file.fileno(), MIB, size - MIB)
            return f"{size}:{cext.blake3(pieces).hex()}"
        digests = b"".join(cext.blake3(piece) for piece in iter(lambda: _read(file.fileno(), _WHOLE), b""))
    return cext.blake3(digests).hex()


def _read(fd: int, size: int) -> bytes:
    """size bytes, or what is left."""
    data = bytearray()
    while len(data) < size and (piece := os.read(fd, size - len(data))):
        data += piece
    return bytes(data)


def assert_same_tree(
    got: str | os.PathLike[str] | Snapshot, want: str | os.PathLike[str] | Snapshot, *, ignore: tuple[str, ...] = ()
) -> None:
    """Fails with a line for each difference. ignore: fields of Seen."""
    left = got if isinstance(got, dict) else snapshot(got)
    right = want if isinstance(want, dict) else snapshot(want)
    wrong = [f"{path!r}: not there" for path in right.keys() - left.keys()]
    wrong += [f"{path!r}: too much" for path in left.keys() - right.keys()]
    for path in left.keys() & right.keys():
        for field in fields(Seen):
            one, other = getattr(left[path], field.name), getattr(right[path], field.name)
            if one != other and field.name not in ignore:
                wrong.append(f"{path!r}: {field.name}: got {one!r:.200}, want {other!r:.200}")
    assert not wrong, f"{len(wrong)} differences:\n" + "\n".join(sorted(wrong)[:30])
