"""The same OCI image, seen through our mounts and unpacked by umoci and by podman.

Where the three differ, a rule says in what, for which names and why; a rule that nothing needs any more fails too.
Both tools are written in Go and share its tar reader.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from tests.support.oci import oci_layout, tar_of
from tests.support.oracle import assert_image
from tests.support.road import Command
from tests.support.trees import Seen, Snapshot, make_every_kind, snapshot
from tests.support.waiting import PATIENCE_S

TIME = 1_000_000_000
IMPLICIT = (b"implicit", b"new", b"new/deep", b"recreated")


def layer(*members: tuple[Any, ...]) -> bytes:
    """A tar of (name, kind, content, mode or target, pax headers); kinds as Python's tarfile has them, by a letter."""
    kinds = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, kind, *rest in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode, data = TIME, 0o644, b""
            if kind == "f":
                data = rest[0]
                info.size = len(data)
                info.pax_headers = rest[1] if len(rest) > 1 else {}
            else:
                info.type = kinds[kind]
                info.mode = rest[0] if rest and kind == "d" else 0o755
                info.linkname = rest[0] if kind in "lh" else ""
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


# Each entry of these is here for a rule of the image format; names say which.
BASE = layer(
    ("./usr", "d"),
    ("usr/lib", "d"),
    ("usr/lib/a", "f", b"a"),
    ("lib", "l", "usr/lib"),
    ("absolute", "l", "/usr/lib"),
    ("climbing", "l", "../../usr"),
    ("dangling", "l", "nowhere/else"),
    ("gone", "f", b"x"),
    ("dir", "d"),
    ("dir/x", "f", b"1"),
    ("dir/y", "f", b"2"),
    ("dir/sub", "d"),
    ("dir/sub/deep", "f", b"deep"),
    ("file-then-dir", "f", b"f"),
    ("dir-then-file", "d"),
    ("dir-then-file/in", "f", b"in"),
    ("dir-then-link", "d"),
    ("dir-then-link/in", "f", b"in"),
    ("link-then-dir", "l", "dir"),
    ("linked", "f", b"linked"),
    ("opaque", "d"),
    ("opaque/old", "f", b"old"),
    ("opaque/both", "f", b"old"),
    ("implicit/a/b", "f", b"x"),
    ("mode-changes", "d", 0o700),
    ("mode-changes/a", "f", b"1"),
    ("replaced", "f", b"r1"),
    ("replaced-link", "h", "replaced"),
)
SECOND = layer(
    ("lib/new", "f", b"new"),
    ("absolute/new2", "f", b"new2"),
    ("climbing/lib/new3", "f", b"3"),
    (".wh.gone", "f", b""),
    (".wh.never", "f", b""),
    ("dir/.wh.x", "f", b""),
    ("dir/z", "f", b"3"),
    ("dir/.wh.sub", "f", b""),
    ("file-then-dir", "d"),
    ("file-then-dir/in", "f", b"i"),
    ("dir-then-file", "f", b"now"),
    ("dir-then-link", "l", "usr"),
    ("link-then-dir", "d"),
    ("link-then-dir/own", "f", b"own"),
    ("hard", "h", "linked"),
    ("lib/hard2", "h", "usr/lib/a"),
    ("opaque/before", "f", b"b"),
    ("opaque/.wh..wh..opq", "f", b""),
    ("opaque/both", "f", b"new"),
    ("opaque/after", "f", b"a"),
    ("implicit/a/c", "f", b"y"),
    ("mode-changes", "d", 0o711),
    ("replaced", "f", b"r2"),
    ("new/deep/path", "f", b"n"),
)
THIRD = layer(
    (".wh.implicit", "f", b""),
    ("implicit/new", "f", b"z"),
    ("linked", "f", b"changed"),
    ("lib/.wh.new", "f", b""),
    ("dir", "d", 0o750),
    ("recreated/x", "f", b"q"),
)
HOSTILE = {
    "SCHILY.xattr.trusted.overlay.redirect": "/usr/lib/a",
    "SCHILY.xattr.trusted.overlay.metacopy": "\0",
    "SCHILY.xattr.user.overlay.redirect": "/usr/lib/a",
    "SCHILY.xattr.user.mine": "kept",
}
FOURTH = layer(("speaks", "f", b"its own content", HOSTILE), ("null", "c"))


@dataclass(frozen=True, slots=True)
class Rule:
    """A difference that is understood. why: for the reader of a failure. always: it has to be there."""

    why: str
    holds: Callable[[bytes, str, Any, Any], bool]
    always: bool = True


def _empty(found: Any) -> dict[str, bytes]:
    return {name: value for name, value in found if value}


def _without(found: Any, drop: Callable[[str], bool]) -> dict[str, bytes]:
    return {name: value for name, value in _empty(found).items() if not drop(name)}


BOTH = (
    Rule(
        "a directory that no layer has an entry for has the time of unpacking; ours is 0, so that digests stay equal",
        lambda path, field, ours, _: field == "mtime_ns" and path in IMPLICIT and ours == 0,
    ),
    Rule(
        "the root's own time is that of the last write into it: neither sets it again after the layers above",
        lambda path, field, *_: field == "mtime_ns" and path == b"",
        always=False,
    ),
    Rule(
        "Go's tar reader takes an empty PAX value for a removal: attributes with an empty value are lost",
        lambda path, field, ours, theirs: field == "xattrs" and ours != theirs and _empty(ours) == dict(theirs),
        always=False,  # podman 5 has mended it
    ),
    Rule(
        "attributes that speak to overlayfs are dropped by us wherever a layer comes in (docs/format.md, section 4)",
        lambda path, field, ours, theirs: (
            field == "xattrs"
            and path == b"speaks"
            and dict(ours) == _without(theirs, lambda name: name.startswith("user.overlay."))
        ),
    ),
)
UMOCI = BOTH
HARD = (b"hard", b"usr/lib/a", b"usr/lib/hard2", b"replaced-link")
LEFT_OUT = {b"null": "character device 0:0, which overlayfs would read as a whiteout"}
PODMAN = (
    *BOTH,
    Rule(
        "containers/storage sets times before 1970 to 1970",
        lambda path, field, ours, theirs: field == "mtime_ns" and ours < 0 and theirs == 0,
    ),
    Rule(
        "containers/storage drops POSIX ACLs",
        lambda path, field, ours, theirs: (
            field == "xattrs"
            and ours != theirs
            and _without(ours, lambda name: name.startswith("system.posix_acl")) == dict(theirs)
        ),
    ),
    Rule(
        "containers/storage gives a file the mode that a hard link to it says, as no other tar reader does",
        lambda path, field, ours, theirs: (
            field == "mode" and path in HARD and stat.S_IMODE(ours) == 0o644 and stat.S_IMODE(theirs) == 0o755
        ),
    ),
    Rule(
        "the vfs driver copies symbolic links one by one: several names of one become several",
        lambda path, field, ours, theirs: (
            field in ("links", "names")
            and path.startswith((b"symlinks/0", b"links/other"))
            and path.endswith((b"symlink", b"0"))
        ),
    ),
    Rule(
        "a directory that a layer empties, or changes through another name, keeps the time of that change",
        lambda path, field, *_: field == "mtime_ns" and path in (b"usr/lib", b"opaque"),
    ),
)


def compare(ours: Snapshot, theirs: Snapshot, rules: tuple[Rule, ...], leave_out: Mapping[bytes, str]) -> None:
    """Fails for each difference without a rule and each rule without a difference."""
    wrong, used = [], set()
    for path in sorted(ours.keys() | theirs.keys()):
        if path in leave_out:
            assert (path in ours) != (path in theirs), path
        elif path not in ours or path not in theirs:
            wrong.append(f"{path!r}: only {'ours' if path in ours else 'theirs'}")
        else:
            for field in fields(Seen):
                values = getattr(ours[path], field.name), getattr(theirs[path], field.name)
                if values[0] != values[1]:
                    rule = next((rule for rule in rules if rule.holds(path, field.name, *values)), None)
                    used.add(rule)
                    if rule is None:
                        wrong.append(f"{path!r}: {field.name}: ours {values[0]!r:.150}, theirs {values[1]!r:.150}")
    assert wrong == []
    assert [rule.why for rule in rules if rule.always and rule not in used] == []


@pytest.fixture(scope="module")
def image(real_machine: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot]:
    """An OCI layout whose lowest layer has an entry of every kind, and what our mounts show of it."""
    directory = tmp_path_factory.mktemp("unpackers")
    tree = directory / "tree"
    make_every_kind(tree, big=60, deep=20)
    (tree / "sparse/huge").unlink()  # 5 GiB that others would write out
    for fifo in tree.glob("links/other/*/fifo"):  # GNU tar archives its further names as further fifos
        fifo.unlink()
    oci_layout(directory / "oci", [tar_of(tree), BASE, SECOND, THIRD, FOURTH], {})
    onesec = Command(directory)
    done = onesec("import", f"oci:{directory / 'oci'}:t", "-t", "app")
    assert "character device 0:0, left out" in done.err
    seen = assert_image(onesec, "app", None, directory / "m")
    return directory / "oci", seen


def test_our_mounts_show_every_rule_of_the_format(image: tuple[Path, Snapshot]) -> None:
    """Without another tool as the judge, for what is easily forgotten."""
    _, seen = image
    names = {path for path in seen if not path.startswith((b"sizes", b"directories", b"names", b"modes"))}
    for gone in (b"gone", b"dir/x", b"dir/sub", b"opaque/old", b"implicit/a", b"usr/lib/new", b"dir-then-file/in"):
        assert gone not in names
    for path in (b"usr/lib/new2", b"usr/lib/new3", b"opaque/before", b"opaque/after", b"link-then-dir/own", b"dir/y"):
        assert path in names
    assert stat.S_ISDIR(seen[b"link-then-dir"].mode)
    assert stat.S_ISDIR(seen[b"file-then-dir"].mode)
    assert seen[b"dir-then-link"].target == b"usr"
    assert seen[b"usr/lib/a"].names == (b"usr/lib/a", b"usr/lib/hard2")
    assert seen[b"hard"].names == (b"hard",)  # its other name was replaced above
    assert seen[b"replaced-link"].names == (b"replaced-link",)
    assert stat.S_IMODE(seen[b"mode-changes"].mode) == 0o711
    assert stat.S_IMODE(seen[b"dir"].mode) == 0o750
    assert seen[b"speaks"].size == len(b"its own content")
    assert seen[b"speaks"].xattrs == (("user.mine", b"kept"),)
    assert b"null" not in seen


def test_umoci_unpacks_the_same(image: tuple[Path, Snapshot], tmp_path: Path) -> None:
    layout, ours = image
    compare(ours, umoci(layout, tmp_path / "bundle"), UMOCI, LEFT_OUT)


@contextmanager
def podman(layout: Path, directory: Path) -> Iterator[Path]:
    """The tree of an image in a storage of its own."""
    with tempfile.TemporaryDirectory(prefix="onesec-") as run:  # of at most 50 characters
        words = ["podman", "--root", f"{directory}/root", "--runroot", run, "--storage-driver", "vfs"]
        words += ["--events-backend", "none", "--cgroup-manager", "cgroupfs"]

        def call(*more: str) -> str:
            done = subprocess.run([*words, *more], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            assert done.returncode == 0, done.stderr
            return str(done.stdout).strip()

        name = call("pull", "-q", f"oci:{layout}:t")
        place = call("image", "mount", name)
        try:
            assert place.startswith(f"{directory}/")
            yield Path(place)
        finally:
            call("image", "umount", name)


def umoci(layout: Path, directory: Path) -> Snapshot:
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:t", directory], check=True, capture_output=True)
    return snapshot(directory / "rootfs")


@pytest.mark.skipif(shutil.which("podman") is None and not os.environ.get("CI"), reason="podman is not installed")
def test_podman_unpacks_the_same(image: tuple[Path, Snapshot], tmp_path: Path) -> None:
    layout, ours = image
    with podman(layout, tmp_path) as tree:
        compare(
            ours, snapshot(tree), PODMAN, {b"null": "character device 0:0, which overlayfs would read as a whiteout"}
        )


def test_of_two_entries_of_one_name_the_last_counts(real_machine: None, tmp_path: Path) -> None:
    """umoci agrees. podman refuses such a layer ("duplicates of file paths not supported"), docker takes the last."""
    members = [("dup", "f", b"one"), ("dup", "f", b"two!"), ("kind", "f", b"x"), ("kind", "d"), ("kind/in", "f", b"y")]
    oci_layout(tmp_path / "oci", [layer(*members)], {})
    onesec = Command(tmp_path)
    onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    seen = assert_image(onesec, "app", None, tmp_path / "m")
    assert seen[b"dup"].size == 4
    compare(seen, umoci(tmp_path / "oci", tmp_path / "u"), (BOTH[1],), {})


def test_130_layers_lie_in_their_order(real_machine: None, tmp_path: Path) -> None:
    """podman takes 16 s to copy them all 130 times; umoci is judge enough."""
    layers = []
    for number in range(130):
        members: list[tuple[Any, ...]] = [(f"own/{number}", "f", b"%d" % number), ("same", "f", b"%d" % number)]
        members.append(("turn", "d") if number % 2 else ("turn", "f", b"file"))
        if number % 3 == 2:
            members.append((f"own/.wh.{number - 1}", "f", b""))
        layers.append(layer(*members))
    oci_layout(tmp_path / "oci", layers, {})
    onesec = Command(tmp_path)
    onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    seen = assert_image(onesec, "app", None, tmp_path / "m")
    assert len(seen) == 3 + 1 + 130 - 43
    implicit = Rule("as above", lambda path, field, ours, _: field == "mtime_ns" and path == b"own" and ours == 0)
    compare(seen, umoci(tmp_path / "oci", tmp_path / "u"), (BOTH[1], implicit), {})
