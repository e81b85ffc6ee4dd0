"""Images for the mount and container tests, made without our own encoder: mkfs.erofs writes the metadata, a plain
directory is the data-only lower. It is the same overlay that an object mount gets.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
