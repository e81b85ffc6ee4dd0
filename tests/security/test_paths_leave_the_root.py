"""A layer's paths lead nowhere but into its own tree: links, `..`, hard links, type changes, the entry `.`.

CVE-2021-29136 (umoci), CVE-2021-32760 (containerd), CVE-2025-11395, CVE-2026-20613, CVE-2019-10152 (podman cp),
CVE-2018-15664 (docker cp), CVE-2014-9357 (docker).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.index.layer import decode_layer
from registry.decoded import read_decoded
from registry.layout import Layout
from registry.model import LAYER
from registry.reference import Reference
from tests.support.command import Onesec
from tests.support.hostile import (
    archive,
    assert_nothing_half_written,
    assert_refused,
    canaries,
    directory,
    hard_link,
    import_tar,
    member,
    symlink,
)

REFUSED = {
    "a name that climbs": (archive(member("../../etc/passwd", b"x")), "has a '..'"),
    "a name that climbs in the middle": (archive(member("a/../../etc/passwd", b"x")), "has a '..'"),
    "a name that climbs out of a directory that is there": (
        archive(directory("a"), member("a/../../../tmp/x", b"x")),
        "has a '..'",
    ),
    "an absolute name that climbs": (archive(member("/../../etc/passwd", b"x")), "has a '..'"),
    "a pax path that climbs": (archive(member("fine", b"x", pax={"path": "../../etc/passwd"})), "has a '..'"),
    "a GNU sparse name that climbs": (
        archive(
            member(
                "fine",
                b"x",
                pax={"GNU.sparse.name": "../x", "GNU.sparse.map": "0,1", "GNU.sparse.size": "1"},
            )
        ),
        "has a '..'",
    ),
    "a hard link that climbs": (archive(hard_link("a", "../../etc/shadow")), "has a '..'"),
    "a hard link to itself": (archive(hard_link("a", "a")), "itself"),
    "a hard link to a directory": (archive(directory("a"), hard_link("b", "a")), "a directory"),
    "a hard link to the root": (archive(hard_link("a", "/")), "a directory"),
    "the root as a link, CVE-2021-29136": (archive(symlink(".", "/etc"), member("passwd", b"x")), "root is not"),
    "the root as a file": (archive(member("./", b"", kind=b"0"), member(".", b"x")), "root is not"),
    "the root as a hard link": (archive(hard_link(".", "etc/passwd")), "root is not"),
    "the root as a fifo": (archive(member(".", kind=b"6")), "root is not"),
    "a hard link through a link": (archive(symlink("a", "/etc"), hard_link("b", "a/shadow")), "nothing there"),
    "a hard link to a file of the host": (archive(hard_link("b", "/etc/shadow")), "nothing there"),
    "a whiteout of the parent": (archive(member("a/.wh...")), "hides nothing"),
    "a whiteout of the directory itself": (archive(member("a/.wh..")), "hides nothing"),
    "a whiteout of nothing": (archive(member(".wh.")), "hides nothing"),
    "a file below a whiteout": (archive(member(".wh.a/passwd", b"x")), "below a whiteout"),
    "a loop of links on the way": (
        archive(symlink("a", "b"), symlink("b", "a"), member("a/passwd", b"x")),
        "symlinks on the way",
    ),
    "a name of a NUL": (archive(member("fine", pax={"path": "a\0b"})), "NUL"),
    "a link target with a NUL": (archive(member("a", kind=b"2", pax={"linkpath": "a\0b"})), "NUL"),
    "an empty link target": (archive(symlink("a", "")), "empty"),
    "a component of 256 bytes": (archive(member("a" * 256, b"x")), "255"),
    "a path of 4097 bytes": (archive(member("/".join(["abcdefg"] * 513), b"x")), "4096"),
}

CONFINED = {
    "an absolute name": (archive(member("/etc/cron.d/x", b"x")), {b"etc/cron.d/x"}),
    "a file through an absolute link": (archive(symlink("a", "{canary}"), member("a/x", b"x")), set()),
    "a file through a link that climbs": (archive(symlink("a", "../../../../..{canary}"), member("a/x", b"x")), set()),
    "a file through links of links, CVE-2019-10152": (
        archive(symlink("a", "/b"), symlink("b", "../..{canary}"), member("a/x", b"x")),
        set(),
    ),
    "a directory that becomes a link, CVE-2021-32760": (
        archive(directory("a"), symlink("a", "{canary}/etc"), member("a/passwd", b"evil", mode=0o4755)),
        set(),
    ),
    "a link that becomes a directory": (
        archive(symlink("a", "{canary}/etc"), directory("a"), member("a/passwd", b"x")),
        {b"a/passwd"},
    ),
    "a hard link to a link": (
        archive(symlink("a", "{canary}/etc/shadow"), hard_link("b", "a"), member("b", b"x")),
        {b"b"},
    ),
    "a whiteout through a link": (archive(symlink("a", "{canary}/etc"), member("a/.wh.passwd")), set()),
    "an opaque mark through a link": (archive(symlink("a", "{canary}/etc"), member("a/.wh..wh..opq")), set()),
    "a link into /proc": (archive(symlink("a", "/proc/self/fd/3"), member("a/x", b"x")), {b"proc/self/fd/3/x"}),
    "a device of the host's disk": (archive(member("a", kind=b"4", devmajor=8, devminor=0)), {b"a"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_path_out_of_the_root_is_refused(case: str, tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)
    tar, words = REFUSED[case]
    with canaries(tmp_path):
        assert_refused(onesec, import_tar(onesec, tar), words)


def filled(tar: bytes, canary: Path) -> bytes:
    """Members are made again, since the place of the canaries is known only now."""
    return tar if b"{canary}" not in tar else replaced(tar, str(canary).encode())


def replaced(tar: bytes, path: bytes) -> bytes:
    """The archive with the placeholder in its link targets filled in and its checksums right again."""
    out = bytearray(tar)
    for at in range(0, len(out), 512):
        head = out[at : at + 512]
        target = bytes(head[157:257]).rstrip(b"\0")
        if head[257:262] == b"ustar" and b"{canary}" in target:
            target = target.replace(b"{canary}", path)
            assert len(target) <= 100, target
            out[at + 157 : at + 257] = target.ljust(100, b"\0")
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


@pytest.mark.parametrize("case", CONFINED)
def test_what_leads_out_of_the_root_ends_inside_it(case: str, tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)
    tar, present = CONFINED[case]
    with canaries(tmp_path) as canary:
        said = import_tar(onesec, filled(tar, canary))
        assert said.status == 0, said
        assert onesec.here("verify", "hostile", "--deep").status == 0
        layout = Layout.open(onesec.root)
        (layer,) = layout.resolve(Reference.parse("hostile")).manifest.each(LAYER)
        paths = {path for path, _ in decode_layer(read_decoded(layout, layer)).walk()}
        assert present <= paths
        assert not any(b".." in path.split(b"/") or path.startswith(b"/") for path in paths)
        assert onesec.here("rm", "hostile").status == 0
        assert_nothing_half_written(onesec)
