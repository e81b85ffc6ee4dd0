"""`onesec mount` in both modes: which one is taken, what is said, who may use it, and what is left."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cext
from lazyfs.mount_table import mount_table
from tests.fuse.test_portable import servers
from tests.support.command import ROOT
from tests.support.oci import oci_layout, tar_of
from tests.support.oracle import assert_image, mounted
from tests.support.road import Command
from tests.support.trees import assert_same_tree, make_every_kind, snapshot
from tests.support.waiting import PATIENCE_S, eventually

NOBODY = 65534


@pytest.fixture
def onesec(real_machine: None, tmp_path: Path) -> Iterator[Command]:
    """With an image `app` of two files."""
    command = Command(tmp_path)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content\n")
    (tree / "noise").write_bytes(os.urandom(300_000))
    oci_layout(tmp_path / "oci", tar_of(tree), {})
    command("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
    (tmp_path / "m").mkdir()
    yield command
    eventually(lambda: servers(tmp_path) == [])


def kind(target: Path) -> str | None:
    rows = [row for row in mount_table() if row.target == str(target)]
    return rows[-1].kind if rows else None


def left(directory: Path) -> list[str]:
    return os.listdir(directory / "run/mounts")


def without(capability: str, words: list[str | Path], onesec: Command) -> subprocess.CompletedProcess[str]:
    """A call by a root that lacks a capability, as in a container."""
    drop = ["setpriv", "--bounding-set", f"-{capability}", "--inh-caps", f"-{capability}"]
    call = [*drop, sys.executable, "-m", "onesec", *map(str, words)]
    return subprocess.run(call, env=onesec.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_kernel_mounts_where_it_can_and_nothing_is_said(onesec: Command, tmp_path: Path) -> None:
    done = onesec("mount", "app", tmp_path / "m")
    try:
        assert (done.out, done.err) == ("", "")
        assert kind(tmp_path / "m") == "overlay"
        (record,) = left(tmp_path)
        assert json.loads((tmp_path / "run/mounts" / record).read_text())["mode"] == "kernel"
    finally:
        onesec("umount", tmp_path / "m")
    assert left(tmp_path) == []


def test_a_portable_mount_is_a_server_of_its_own_that_ends_with_it(onesec: Command, tmp_path: Path) -> None:
    with mounted(onesec, "app", tmp_path / "m", "portable") as target:
        assert kind(target) == "fuse.onesec"
        assert (target / "noise").read_bytes() == (tmp_path / "tree/noise").read_bytes()
        for process in servers(tmp_path):
            assert os.getsid(process) not in (process, os.getsid(0))  # no terminal, and none to be had
        (record,) = left(tmp_path)
        assert json.loads((tmp_path / "run/mounts" / record).read_text())["mode"] == "portable"
        done = onesec("mount", "app", target, status=1)
        assert "got a onesec mount, want a plain directory" in done.err
    assert kind(tmp_path / "m") is None
    assert left(tmp_path) == []
    eventually(lambda: servers(tmp_path) == [])
    onesec("gc")
    assert os.listdir(onesec.root / "leases") == []


def test_a_mount_whose_server_was_killed_is_undone_like_any_other(onesec: Command, tmp_path: Path) -> None:
    onesec("mount", "--mode", "portable", "app", tmp_path / "m")
    for process in servers(tmp_path):
        os.kill(process, signal.SIGKILL)
    eventually(lambda: servers(tmp_path) == [])
    onesec("umount", tmp_path / "m")
    assert kind(tmp_path / "m") is None
    assert left(tmp_path) == []
    onesec("gc")
    assert os.listdir(onesec.root / "leases") == []
    with mounted(onesec, "app", tmp_path / "m", "portable") as target:
        assert (target / "file").read_bytes() == b"content\n"


def test_a_mount_in_use_stays(onesec: Command, tmp_path: Path) -> None:
    with mounted(onesec, "app", tmp_path / "m", "portable") as target, open(target / "file", "rb") as file:
        done = onesec("umount", target, status=1)
        assert done.err.startswith(f"onesec: {target}: in use\nhint: ")
        assert file.read() == b"content\n"


def test_gc_leaves_alone_what_a_portable_mount_shows(onesec: Command, tmp_path: Path) -> None:
    with mounted(onesec, "app", tmp_path / "m", "portable") as target:
        onesec("rm", "app")
        onesec("gc")
        assert (target / "noise").read_bytes() == (tmp_path / "tree/noise").read_bytes()
    eventually(lambda: servers(tmp_path) == [])
    onesec("gc")
    assert os.listdir(onesec.root / "images/blobs/sha256") == []


def test_without_the_right_to_mount_the_call_says_what_is_missing_and_which_way_it_goes(
    onesec: Command, tmp_path: Path
) -> None:
    done = without("sys_admin", ["mount", "--mode", "kernel", "app", tmp_path / "m"], onesec)
    assert done.returncode == 1
    assert done.stderr == "onesec: kernel mounts: got no right to mount (CAP_SYS_ADMIN)\nhint: run it as root\n"
    # The fallback has that right neither: root's mounts are made by the server itself.
    done = without("sys_admin", ["mount", "app", tmp_path / "m"], onesec)
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0] == (
        "onesec: portable mount, slower than a kernel mount: kernel mounts: got no right to mount (CAP_SYS_ADMIN)"
    )
    assert f"{tmp_path / 'm'}: portable mount: " in said[1]
    assert kind(tmp_path / "m") is None
    assert left(tmp_path) == []


def test_a_root_on_tmpfs_is_mounted_by_the_kernel_through_a_loop_device(onesec: Command, tmp_path: Path) -> None:
    """EROFS cannot be mounted from a file of a tmpfs."""
    shm = tmp_path / "shm"
    shm.mkdir()
    cext.mount("none", shm, "tmpfs", 0, "mode=700")
    try:
        inner = Command(shm)
        inner("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app")
        assert_image(inner, "app", tmp_path / "tree", tmp_path / "m")
        with mounted(inner, "app", tmp_path / "m", "kernel"):
            backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
            assert any("cache/index/" in name for name in backing)
        eventually(lambda: unmounted(shm))
        shm.rmdir()
    finally:
        if shm.exists():
            cext.umount2(shm, 2)


def unmounted(target: Path) -> bool:
    """Whether nobody was using it any more: the object server ends a moment after its last mount."""
    try:
        cext.umount2(target, 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


OLD_KERNEL = """
import sys
from lazyfs import probe
real = probe.probe
probe.probe = lambda: probe.KernelFeatures("6.1.0-9-amd64", True, True, True, True, False, True)
from onesec.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_an_old_kernel_gets_a_portable_mount_and_one_line(onesec: Command, tmp_path: Path) -> None:
    def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-c", OLD_KERNEL, *map(str, words)]
        return subprocess.run(
            call, env=onesec.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    done = call("mount", "--mode", "kernel", "app", tmp_path / "m")
    assert done.returncode == 1
    assert done.stderr.startswith("onesec: kernel 6.1.0-9-amd64: got no overlayfs with data-only lower directories")
    assert kind(tmp_path / "m") is None
    done = call("mount", "app", tmp_path / "m")
    assert done.returncode == 0
    try:
        (line,) = done.stderr.splitlines()
        assert line.startswith("onesec: portable mount, slower than a kernel mount: kernel 6.1.0-9-amd64: got no ")
        assert kind(tmp_path / "m") == "fuse.onesec"
    finally:
        onesec("umount", tmp_path / "m")


def test_a_mount_that_fails_leaves_nothing(onesec: Command, tmp_path: Path) -> None:
    for mode in ("kernel", "portable"):
        onesec("mount", "--mode", mode, "nothing", tmp_path / "m", status=1)
        done = onesec("mount", "--mode", mode, "app", tmp_path / "nowhere", status=1)
        assert "no such directory" in done.err
    done = onesec("mount", "--mode", "fast", "app", tmp_path / "m", status=2)
    assert "invalid choice" in done.err
    assert kind(tmp_path / "m") is None
    assert left(tmp_path) == []
    assert servers(tmp_path) == []


@pytest.mark.parametrize("mode", ["kernel", "portable"])
def test_an_interrupted_mount_leaves_nothing(onesec: Command, tmp_path: Path, mode: str) -> None:
    """Whenever the interrupt comes: until the call has ended, or the mount stands and the call has said so."""
    statuses = []
    for delay in [number * 0.025 for number in range(12)]:
        call = [sys.executable, "-m", "onesec", "mount", "--mode", mode, "app", str(tmp_path / "m")]
        child = subprocess.Popen(call, env=onesec.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        statuses.append(child.wait(timeout=PATIENCE_S))
        if statuses[-1] == 0:
            assert kind(tmp_path / "m") is not None
            onesec("umount", tmp_path / "m")
        eventually(lambda: servers(tmp_path) == [])
        assert kind(tmp_path / "m") is None
        assert not (tmp_path / "run/mounts").exists() or left(tmp_path) == []
    assert any(statuses)  # it was interrupted at all


WATCHED = """
import sys
from onesec.cli.main import main
status = main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
raise SystemExit(status)
"""


def test_neither_way_to_mount_loads_the_portable_server_into_the_client(onesec: Command, tmp_path: Path) -> None:
    with mounted(onesec, "app", tmp_path / "m", "kernel"):
        pass  # the first mount of an image decodes its index
    for mode in ("kernel", "portable"):
        words = [sys.executable, "-c", WATCHED, "mount", "--mode", mode, "app", str(tmp_path / "m")]
        done = subprocess.run(
            words, env=onesec.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        onesec("umount", tmp_path / "m")
        heavy = {"trio", "pyfuse3", "asyncio", "httpx", "zstandard", "blake3"} & set(done.stdout.split())
        assert heavy == set(), mode


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that other users can enter. Not below pytest's own, which each run of pytest closes at its start."""
    with tempfile.TemporaryDirectory(prefix="onesec-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def kinds(real_machine: None) -> Iterator[Path]:
    """A directory with a tree of every kind and its OCI layout, readable by everybody."""
    with open_directory() as directory:
        make_every_kind(directory / "tree")
        for fifo in (directory / "tree").glob("links/other/*/fifo"):  # GNU tar archives its names as several fifos
            fifo.unlink()
        oci_layout(directory / "oci", tar_of(directory / "tree"), {})
        for path in (directory / "oci", *(directory / "oci").rglob("*")):
            path.chmod(path.stat().st_mode | 0o055)
        yield directory


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of a user without privileges."""
    with open_directory() as directory:
        found = directory / "home"
        (found / "m").mkdir(parents=True)
        for path in (found, found / "m"):
            os.chown(path, NOBODY, NOBODY)
        yield found


def as_nobody(home: Path, *calls: list[str]) -> list[dict[str, object]]:
    environment = {name: value for name, value in os.environ.items() if name != "ONESEC_CONFIG"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "ONESEC_ROOT": str(home / ".local/share/onesec"),
        "ONESEC_RUN": str(home / "run"),
    }
    words = [sys.executable, "-m", "tests.support.unprivileged", str(NOBODY), json.dumps(calls)]
    done = subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_user_without_privileges_imports_mounts_reads_and_unmounts(home: Path, kinds: Path) -> None:
    target, seen = str(home / "m"), str(home / "seen")
    answers = as_nobody(
        home,
        ["import", f"oci:{kinds / 'oci'}:t", "-t", "app"],
        ["mount", "app", target],
        ["snapshot", target, seen],
        ["mount", "app", target],
        ["umount", target],
        ["umount", target],
        ["mount", "--mode", "kernel", "app", target],
        ["run", "app", "/bin/true"],
        ["mount", "--mode", "portable", "app", target],
        ["kill server", target],
        ["mount", "--mode", "portable", "app", target],
        ["umount", target],
    )
    assert [answer["status"] for answer in answers] == [0, 0, 0, 1, 0, 1, 1, 125, 0, 0, 0, 0]
    said = [str(answer["stderr"]) for answer in answers]
    missing = "kernel mounts: got no right to mount (CAP_SYS_ADMIN)"
    assert said[1] == f"onesec: portable mount, slower than a kernel mount: {missing}\n"
    assert "want a plain directory" in said[3]
    assert "got no onesec mount" in said[5]
    assert said[6] == said[7] == f"onesec: {missing}\nhint: run it as root\n"
    with open(seen, "rb") as file:
        assert_same_tree(pickle.load(file), snapshot(kinds / "tree"))
    eventually(lambda: servers(home) == [])
    assert os.listdir(home / "run/mounts") == []


def test_a_user_is_told_about_a_directory_that_is_not_theirs(home: Path, kinds: Path) -> None:
    other = home.parent / "other"
    other.mkdir(mode=0o755)
    answers = as_nobody(
        home,
        ["import", f"oci:{kinds / 'oci'}:t", "-t", "app"],
        ["mount", "--mode", "portable", "app", str(other)],
        ["--run-dir", str(other / "run"), "mount", "app", str(home / "m")],
    )
    assert [answer["status"] for answer in answers] == [0, 1, 1]
    assert "hint: is the directory yours to mount on?" in str(answers[1]["stderr"])
    assert answers[2]["stderr"] == (
        f"onesec: {other}/run: permission denied\nhint: --run-dir or ONESEC_RUN names another directory\n"
    )
    eventually(lambda: servers(home) == [])
