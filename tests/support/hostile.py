"""Inputs that mean harm, and what has to come of them."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.command import Onesec, Said
from tests.support.oci import oci_layout
from tests.support.trees import snapshot

Pax = Mapping[str, str]


def member(
    name: str, data: bytes = b"", *, kind: bytes = b"0", link: str = "", pax: Pax | None = None, **fields: int
) -> bytes:
    """One member of a tar with whatever is said, sensible or not."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    info.mode = 0o755 if kind == b"5" else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    info.pax_headers = dict(pax or {})
    head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % 512)


def directory(name: str) -> bytes:
    return member(name, kind=b"5")


def symlink(name: str, target: str) -> bytes:
    return member(name, kind=b"2", link=target)


def hard_link(name: str, target: str) -> bytes:
    return member(name, kind=b"1", link=target)


def archive(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def packed(tar: bytes) -> bytes:
    return gzip.compress(tar, mtime=0)


@contextmanager
def canaries(directory: Path) -> Iterator[Path]:
    """A tree outside every root that has to be the same afterwards, content, modes, times and all."""
    place = directory / "canary"
    (place / "etc").mkdir(parents=True)
    (place / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (place / "etc/shadow").write_text("secret\n")
    (place / "etc/shadow").chmod(0o600)
    (place / "empty").touch()
    (place / "secrets").mkdir()
    (place / "secrets/empty").touch()
    before = snapshot(place)
    yield place
    assert snapshot(place) == before


def import_tar(onesec: Onesec, tar: bytes, **more: object) -> Said:
    """What `import` says of an image with this one layer."""
    oci_layout(onesec.directory / "hostile", tar, {}, **more)  # type: ignore[arg-type]
    return onesec.here("import", f"oci:{onesec.directory / 'hostile'}:t", "-t", "hostile")


def assert_refused(onesec: Onesec, said: Said, words: str = "") -> None:
    """One line, status 1, and nothing half-written."""
    assert (said.status, said.out) == (1, ""), said
    assert words in said.error
    assert len(said.error) < 1000
    assert_nothing_half_written(onesec)


def assert_nothing_half_written(onesec: Onesec) -> None:
    """The layout is whole, and names nothing new."""
    images = onesec.root / "images"
    if images.exists():
        assert [path.name for path in (images / "blobs").iterdir()] == ["sha256"]
        assert [path for path in images.iterdir() if "tmp" in path.name] == []
        assert [path for path in (onesec.root / "cache/index").iterdir() if "tmp" in path.name] == []
        assert list((onesec.root / "leases").iterdir()) == []
    fsck = onesec.here("fsck", "--json")
    assert fsck.status == 0, fsck
    assert '"repaired": []' in fsck.out, fsck.out
    assert "hostile" not in onesec.here("images").out
