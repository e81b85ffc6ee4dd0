"""No attribute of an image speaks to overlayfs or the kernel, and what it may set counts only in its own container.

overlayfs.rst (metacopy with untrusted directories), CVE-2023-0386 and CVE-2016-1576 (setuid through a FUSE or user
overlay), CVE-2021-3493 (capabilities through overlayfs).
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lazyfs.index.layer import decode_layer
from registry.decoded import read_decoded
from registry.layout import Layout
from registry.model import EROFS, LAYER
from registry.reference import Reference
from tests.support.command import Onesec
from tests.support.hostile import archive, assert_nothing_half_written, canaries, directory, import_tar, member

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0).decode("latin-1")

DROPPED = (
    "trusted.overlay.redirect",
    "trusted.overlay.metacopy",
    "trusted.overlay.opaque",
    "trusted.overlay.origin",
    "trusted.overlay.impure",
    "trusted.overlay.nlink",
    "trusted.overlay.overlay.redirect",
    "trusted.overlay.verity",
    "trusted.anything",
    "user.overlay.redirect",
    "user.overlay.opaque",
    "user.overlay.whiteout",
    "user.overlay.",
    "system.nfs4_acl",
    "system.data",
    "btrfs.compression",
    "security.",
    "user.",
    "nonsense",
)
KEPT = ("user.plain", "user.overlays", "security.capability")


@pytest.mark.parametrize("spelling", ["SCHILY.xattr.{}", "LIBARCHIVE.xattr.{}"])
def test_attributes_that_overlayfs_or_the_kernel_acts_on_do_not_come_in(spelling: str, tmp_path: Path) -> None:
    import base64

    def value(name: str) -> str:
        text = CAPABILITY if name == "security.capability" else "/../../../etc"
        return base64.b64encode(text.encode("latin-1")).decode() if "LIBARCHIVE" in spelling else text

    onesec = Onesec(tmp_path)
    pax = {spelling.format(name): value(name) for name in (*DROPPED, *KEPT)}
    with canaries(tmp_path):
        said = import_tar(
            onesec,
            archive(
                member("file", b"content" * 20_000, pax=pax),
                member("directory", kind=b"5", pax={k: v for k, v in pax.items() if "capability" not in k}),
            ),
        )
    assert said.status == 0, said
    layout = Layout.open(onesec.root)
    manifest = layout.resolve(Reference.parse("hostile")).manifest
    for layer in manifest.each(LAYER):
        for path, entry in decode_layer(read_decoded(layout, layer)).walk():
            names = {name.decode() for name, _ in entry.xattrs}
            assert names <= set(KEPT), (path, names)
            if path == b"file":
                assert names == set(KEPT)
    erofs = read_decoded(layout, manifest.only(EROFS))
    # one file has content: the two attributes that we give it ourselves, and none beside them
    assert erofs.count(b"overlay.redirect") == erofs.count(b"overlay.metacopy") == 1
    for word in (b"overlay.opaque", b"overlay.origin", b"overlay.whiteout", b"overlay.nlink"):
        assert word not in erofs, word


@pytest.mark.parametrize("number", [(0, 0), (0, 1 << 20), (1 << 12, 0)])
def test_a_device_that_overlayfs_reads_as_a_whiteout_does_not_come_in(number: tuple[int, int], tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)
    said = import_tar(onesec, archive(member("gone", kind=b"3", devmajor=number[0], devminor=number[1])))
    assert said.status == (0 if number == (0, 0) else 1)
    if said.status:
        assert said.error
        assert_nothing_half_written(onesec)
        return
    assert "left out" in said.err
    layout = Layout.open(onesec.root)
    for layer in layout.resolve(Reference.parse("hostile")).manifest.each(LAYER):
        assert b"gone" not in {path for path, _ in decode_layer(read_decoded(layout, layer)).walk()}


def test_what_is_mounted_on_the_host_has_neither_setuid_nor_devices(tmp_path: Path, real_machine: None) -> None:
    """CVE-2023-0386: the bits are in the image and in its containers, and mean nothing on the host."""
    onesec = Onesec(tmp_path)
    tar = archive(
        member("setuid", b"#!/bin/sh\n" * 100, mode=0o4755),
        member("capable", b"#!/bin/sh\n" * 100, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
        member("disk", kind=b"4", devmajor=254, devminor=0),
        member("null", kind=b"3", devmajor=1, devminor=3, mode=0o666),
        directory("d"),
    )
    assert import_tar(onesec, tar).status == 0
    (tmp_path / "mounted").mkdir()
    assert onesec("mount", "hostile", tmp_path / "mounted").status == 0
    try:
        rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        (options,) = [set(row[5].split(",")) for row in rows if row[4] == str(tmp_path / "mounted")]
        assert {"ro", "nosuid", "nodev"} <= options
        assert (tmp_path / "mounted/setuid").stat().st_mode & 0o7777 == 0o4755
        for name in ("disk", "null"):
            with pytest.raises(PermissionError):
                (tmp_path / "mounted" / name).read_bytes()
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mounted/d/new").touch()
    finally:
        assert onesec("umount", tmp_path / "mounted").status == 0
