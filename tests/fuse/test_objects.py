"""The life of the object server's process: found, started once, stripped of everything, gone when nobody needs it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import cext
from cext.errors import UnsupportedError
from lazyfs import background, mount, mount_table, mount_target, object_mount, objects
from lazyfs.domain import log_tail
from lazyfs.errors import ObjectServerError
from tests.support.mounts import mount_file
from tests.support.objects import ObjectSet, make_objects
from tests.support.trees import make_erofs
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

ROOT = Path(__file__).parents[2]
LONG_S = 600.0
"""Longer than any test."""
CONTENTS = {"small": b"hello, content\n", "large": os.urandom(1 << 20)}


@dataclass
class FakeLease:
    fd: int = -1
    handed_over: bool = False

    def hand_over(self) -> None:
        self.handed_over = True


@dataclass(frozen=True, slots=True)
class FakeImage:
    tables: int
    packs: int
    lease: FakeLease
    name: str = "test"
    domain: str = "local"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("objects") / "set", CONTENTS)


@contextmanager
def opened(made: ObjectSet, lease: int = -1, domain: str = "local") -> Iterator[FakeImage]:
    with ExitStack() as stack:
        tables = os.open(made.tables, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, tables)
        packs = os.open(made.packs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, packs)
        yield FakeImage(tables, packs, FakeLease(lease), domain=domain)


@dataclass(frozen=True, slots=True)
class Place:
    """A run directory of a test, which waits at its end for the processes of it to be gone."""

    path: Path

    @contextmanager
    def attached(self, made: ObjectSet, *, domain: str = "local") -> Iterator[objects.Attachment]:
        with opened(made, domain=domain) as image, objects.attach(image, run_dir=self.path, root=self.path) as found:
            yield found

    def sockets(self) -> list[Path]:
        return list(self.path.glob("domains/*/socket"))

    def address(self) -> str:
        """Of the one socket: its own path may be too long for an address."""
        (path,) = self.sockets()
        return os.path.relpath(path)

    def processes(self) -> list[int]:
        """Servers and holders: they keep the log of the domain open."""
        logs = {str(path) for path in self.path.glob("domains/*/log")}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if (entry / "comm").read_text() == "onesec-objects\n" and os.readlink(entry / "fd/2") in logs:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return sorted(found)

    def log(self) -> str:
        return "".join(path.read_text() for path in self.path.glob("domains/*/log"))

    def is_empty(self) -> bool:
        return not self.sockets() and not self.processes()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "run")
    yield found
    eventually(found.is_empty)
    assert "Traceback" not in found.log()


def read(attachment: objects.Attachment, made: ObjectSet, name: str) -> bytes:
    fd = os.open(made.path(name), os.O_RDONLY | os.O_CLOEXEC, dir_fd=attachment.objects)
    with open(fd, "rb") as file:
        return file.read()


def test_an_image_is_served_until_its_client_lets_go(place: Place, made: ObjectSet) -> None:
    with place.attached(made) as attachment:
        for name, content in CONTENTS.items():
            assert read(attachment, made, name) == content
        assert len(place.processes()) == 2
        mount.check_objects(attachment.objects)
        assert (place.sockets()[0].stat().st_mode & 0o777) == 0o600
    eventually(place.is_empty)


def test_clients_of_a_domain_share_a_server_and_its_pages(place: Place, made: ObjectSet) -> None:
    with place.attached(made) as first:
        assert read(first, made, "large") == CONTENTS["large"]
        with place.attached(made) as second:
            before = second.statistics()
            assert read(second, made, "large") == CONTENTS["large"]
            after = second.statistics()
            assert before["process"] == after["process"] == first.statistics()["process"]
            for what in ("lookups", "reads"):
                assert before["statistics"][what] == after["statistics"][what]
            assert len(after["images"]) == 2
        with place.attached(made, domain="another") as other:
            assert other.statistics()["process"] != after["process"]


def test_many_first_clients_start_one_server(place: Place, made: ObjectSet) -> None:
    """Each in a process of its own, as commands are."""
    code = textwrap.dedent("""
        import os, sys
        from tests.fuse.test_objects import opened
        from tests.support.objects import ObjectSet
        from lazyfs import objects
        from pathlib import Path
        made = ObjectSet(Path(sys.argv[1]), Path(sys.argv[2]), {}, {}, {})
        with opened(made) as image, objects.attach(image, run_dir=sys.argv[3], root=sys.argv[3]) as found:
            print(found.statistics()["process"], flush=True)
            sys.stdin.read()
    """)
    words = [sys.executable, "-c", code, str(made.tables), str(made.packs), str(place.path)]
    children = [
        subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(5)
    ]
    try:
        answers = set()
        for child in children:
            assert child.stdout is not None
            answers.add(child.stdout.readline())
        assert len(answers) == 1
        assert "" not in answers
        assert len(place.processes()) == 2
    finally:
        for child in children:
            child.communicate()


@pytest.mark.skipif("tsan" in os.environ.get("LD_PRELOAD", ""), reason="TSan has a thread of its own from the start")
def test_a_server_has_no_privileges(place: Place, made: ObjectSet) -> None:
    with place.attached(made) as attachment:
        process = attachment.statistics()["process"]
        for task in Path(f"/proc/{process}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].split() == []
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[kind], 16) == 0
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"
        assert os.path.samefile(f"/proc/{process}/root/version", "/proc/version")
        assert os.getsid(process) != os.getsid(0)


INSIDE = """
import ctypes, errno, json, os, socket, sys
sys.path.insert(0, sys.argv[1])
import cext
from lazyfs import object_process, object_server
libc = ctypes.CDLL(None, use_errno=True)
proc = cext.open_tree(-100, "/proc", 1 | os.O_CLOEXEC)
spare = socket.socketpair()
os.fchdir(proc)
os.chroot(".")
cext.drop_privileges(65534, proc)

def attempt(call):
    try:
        call()
        return 0
    except OSError as error:
        return error.errno

def raw(name, *words):
    def call():
        if getattr(libc, name)(*words) < 0:
            raise OSError(ctypes.get_errno(), name)
    return call

os.write(1, json.dumps({
    "open": attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
    "open of proc by path": attempt(lambda: os.open("/version", os.O_RDONLY)),
    "open through proc upwards": attempt(lambda: os.open("../etc/passwd", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)),
    "open through a magic link": attempt(lambda: os.open("1/root/etc/passwd", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)),
    "open to write": attempt(lambda: os.open("self/comm", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)),
    "stat": attempt(lambda: os.stat("/version")),
    "list": attempt(lambda: os.listdir("/")),
    "exec": attempt(lambda: os.execv("/bin/true", ["true"])),
    "fork": attempt(os.fork),
    "socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    "connect": attempt(lambda: spare[0].connect("/x")),
    "bind": attempt(lambda: spare[0].bind("/x")),
    "kill": attempt(lambda: os.kill(os.getppid(), 0)),
    "unlink": attempt(lambda: os.unlink("/x")),
    "mount": attempt(raw("mount", b"a", b"/b", b"tmpfs", 0, None)),
    "ptrace": attempt(raw("ptrace", 16, os.getppid(), 0, 0)),
    "become root": attempt(lambda: os.setuid(0)),
    "executable memory": attempt(raw("mprotect", ctypes.c_void_p(0x10000), 4096, 7)),
    "new namespace": attempt(raw("unshare", 0x10000000)),
    "bpf by number": attempt(raw("syscall", 321, 0, None, 0)),
    "io_uring by number": attempt(raw("syscall", 425, 1, None)),
}).encode())
status = os.open("self/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
os.write(1, b"\\n" + os.read(status, 4096))
"""


def test_inside_the_server_nothing_can_be_opened_run_or_reached() -> None:
    done = subprocess.run([sys.executable, "-c", INSIDE, str(ROOT)], capture_output=True, check=False)
    results, _, status = done.stdout.partition(b"\n")
    found = json.loads(results)
    assert [name for name, number in found.items() if number == 0] == []
    assert {number for name, number in found.items() if not name.startswith("open through")} == {errno.EPERM}
    assert b"SigPnd" in status  # the one thing it needs


def test_a_killed_server_is_replaced_and_its_readers_get_errors(place: Place, made: ObjectSet) -> None:
    with place.attached(made) as attachment:
        assert read(attachment, made, "small") == CONTENTS["small"]
        os.kill(attachment.statistics()["process"], signal.SIGKILL)
        with pytest.raises(OSError) as caught:  # noqa: PT012
            while True:
                read(attachment, made, "large")
                time.sleep(0.01)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        with place.attached(made) as successor:
            assert read(successor, made, "large") == CONTENTS["large"]


def test_a_stale_socket_is_taken_over(place: Place, made: ObjectSet) -> None:
    with place.attached(made) as attachment:
        server = attachment.statistics()["process"]
        for process in place.processes():  # the holder too: nobody is left to tidy up
            if process != server:
                os.kill(process, signal.SIGKILL)
        os.kill(server, signal.SIGKILL)
    eventually(lambda: not place.processes())
    assert len(place.sockets()) == 1
    with place.attached(made) as successor:
        assert read(successor, made, "large") == CONTENTS["large"]


def test_a_client_that_dies_takes_its_image_with_it(place: Place, made: ObjectSet) -> None:
    with place.attached(made) as survivor:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with place.attached(made):
                    os.write(writer, b"x")
                    time.sleep(60)
            finally:
                os._exit(1)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        os.close(writer)
        assert len(survivor.statistics()["images"]) == 2
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        eventually(lambda: len(survivor.statistics()["images"]) == 1)


@pytest.fixture
def erofs(tmp_path: Path, made: ObjectSet) -> Path:
    return make_erofs(tmp_path / "meta", {f"data/{name}": (made.ids[name], len(CONTENTS[name])) for name in CONTENTS})


@contextmanager
def mounted(erofs: Path, attachment: objects.Attachment, target: Path) -> Iterator[Path]:
    target.mkdir()
    with open(erofs, "rb") as file, mount_target.target_directory(str(target)) as (_, fd):
        mount_file(file.fileno(), attachment.objects, fd, name="test")
    try:
        yield target
    finally:
        mount_table.unmount(str(target))


def test_every_user_reads_through_the_overlay(place: Place, made: ObjectSet, erofs: Path, tmp_path: Path) -> None:
    with place.attached(made) as attachment, mounted(erofs, attachment, tmp_path / "m") as root:
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_mode & 0o005 != 0o005:
                parent.chmod(parent.stat().st_mode | 0o055)
        for name, content in CONTENTS.items():
            assert (root / "data" / name).read_bytes() == content
            done = subprocess.run(
                ["cat", str(root / "data" / name)],
                user=1000,
                group=1000,
                extra_groups=[],
                capture_output=True,
                check=True,
            )
            assert done.stdout == content
        before = attachment.statistics()["statistics"]
        with mounted(erofs, attachment, tmp_path / "second") as other:
            assert (other / "data/large").read_bytes() == CONTENTS["large"]
        after = attachment.statistics()["statistics"]
        assert (after["lookups"], after["reads"]) == (before["lookups"], before["reads"])


def test_a_kept_image_is_served_until_its_mount_is_gone(
    place: Place, made: ObjectSet, erofs: Path, tmp_path: Path
) -> None:
    with opened(made) as image:
        attachment = objects.attach(image, run_dir=place.path, root=place.path)
        with attachment, mounted(erofs, attachment, tmp_path / "m") as root:
            attachment.keep(str(root))
            attachment.close()
            assert image.lease.handed_over
            time.sleep(0.2)
            assert (root / "data/large").read_bytes() == CONTENTS["large"]
            assert len(place.processes()) == 2
    eventually(place.is_empty)


def test_a_server_outlives_its_client_and_keeps_the_pages(place: Place, made: ObjectSet) -> None:
    with opened(made) as image:
        with objects.attach(image, run_dir=place.path, root=place.path, linger_s=LONG_S) as first:
            assert read(first, made, "large") == CONTENTS["large"]
            before = first.statistics()
        with objects.attach(image, run_dir=place.path, root=place.path, linger_s=0.1) as second:
            assert read(second, made, "large") == CONTENTS["large"]
            after = second.statistics()
    assert after["process"] == before["process"]
    assert after["statistics"]["reads"] == before["statistics"]["reads"] > 0
    assert len(place.processes()) == 2
    os.kill(after["process"], signal.SIGKILL)  # or it would linger


def test_a_server_outlives_its_client_as_long_as_asked_and_no_longer(place: Place, made: ObjectSet) -> None:
    linger_s = 1.0
    with opened(made) as image:
        with objects.attach(image, run_dir=place.path, root=place.path, linger_s=linger_s):
            ends = time.monotonic()  # before: the server may be faster to see it than we are to look at the clock
        with objects.attach(image, run_dir=place.path, root=place.path, linger_s=0.1):
            pass
    eventually(place.is_empty)
    assert time.monotonic() - ends >= linger_s


def test_containers_of_one_image_share_its_erofs_mount_and_others_do_not(
    place: Place, made: ObjectSet, erofs: Path
) -> None:
    def device(name: str) -> tuple[int, int]:
        with (
            opened(made) as image,
            objects.attach(image, run_dir=place.path, root=place.path, metadata=name, linger_s=LONG_S) as attachment,
            open(erofs, "rb") as file,
        ):
            metadata = attachment.metadata(file.fileno(), name="test")
            assert attachment.metadata(file.fileno(), name="test") == metadata
            return cext.device_of(metadata)

    with place.attached(made) as outer:
        one, again, other = device("one"), device("one"), device("other")
        assert one == again
        assert one != other
        server = outer.statistics()["process"]
    os.kill(server, signal.SIGKILL)  # or it would linger


def test_a_lease_is_held_by_the_server_until_it_lets_go(place: Place, made: ObjectSet, tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "lease"
    lease = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lease, fcntl.LOCK_SH)
    other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with opened(made, lease) as image, objects.attach(image, run_dir=place.path, root=place.path):
            os.close(lease)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        eventually(place.is_empty)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(other)


def test_more_packs_than_fit_one_message_arrive(place: Place, tmp_path: Path) -> None:
    contents = {f"f{n}": os.urandom(70_000) for n in range(260)}
    made = make_objects(tmp_path / "set", contents, pack_size=1)
    assert len(made.pack_names()) > 250
    with place.attached(made) as attachment:
        for name, content in contents.items():
            assert read(attachment, made, name) == content


def test_a_pack_that_is_missing_is_told_in_the_log(place: Place, tmp_path: Path) -> None:
    made = make_objects(tmp_path / "set", CONTENTS)
    for pack in made.packs.iterdir():
        pack.unlink()
    with place.attached(made) as attachment:
        with pytest.raises(OSError) as caught:
            read(attachment, made, "small")
        assert caught.value.errno == errno.EIO
        lines = log_tail("local", run_dir=place.path, root=place.path)
        assert any(made.ids["small"].hex() in line and "no such file" in line for line in lines)


def test_broken_tables_are_an_error_and_the_server_lives_on(place: Place, made: ObjectSet, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(made.tables.read_bytes()[:-4])
    with place.attached(made) as attachment:
        broken = ObjectSet(bad, made.packs, {}, {}, {})
        with pytest.raises(ObjectServerError, match="tables: got"), place.attached(broken):
            pass
        assert read(attachment, made, "small") == CONTENTS["small"]


HOSTILE = [
    b"",
    b"not json",
    b"[]",
    b"{}",
    b'{"op": "attach"}',
    b'{"op": "attach", "label": "x", "blobs": -1, "lease": false, "rows": [], "more": false}',
    b'{"op": "packs", "rows": [0], "more": false}',
    b'{"op": "detach", "image": 99}',
    b'{"op": "keep", "image": 99, "device": "x"}',
    b'{"op": "keep", "image": {}, "device": "x"}',
    b'{"op": null}',
    b"[" * 5000,
    b"x" * 70_000,
]


def test_nonsense_on_the_socket_ends_nothing_but_its_connection(
    place: Place, made: ObjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.attached(made) as attachment:
        monkeypatch.chdir(place.sockets()[0].parent)
        for message in HOSTILE:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(place.address())
                sock.send(message)
                answer = sock.recv(65536)
                assert answer == b"" or "error" in json.loads(answer), message
        assert read(attachment, made, "small") == CONTENTS["small"]


def test_another_user_is_refused(place: Place, made: ObjectSet, tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    with place.attached(made) as attachment:
        path = place.sockets()[0]
        for opened_up in (path, path.parent, path.parent.parent):  # as if its modes had been changed
            opened_up.chmod(0o777)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.chdir(path.parent)
                os.setgroups([])
                os.setgid(1000)
                os.setuid(1000)
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    sock.settimeout(PATIENCE_S)
                    sock.connect("socket")
                    status = 0 if sock.recv(10) == b"" else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        path.parent.chmod(0o700)
        assert "refused a connection of uid 1000" in place.log()
        assert read(attachment, made, "small") == CONTENTS["small"]


def test_a_domain_directory_of_somebody_else_is_refused(place: Place, made: ObjectSet) -> None:
    with place.attached(made):
        directory = place.sockets()[0].parent
    eventually(place.is_empty)
    directory.chmod(0o777)
    with pytest.raises(ObjectServerError, match="want one of our own"), place.attached(made):
        pass


def test_a_machine_without_fuse_is_told_so(place: Place, made: ObjectSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise UnsupportedError("/dev/fuse: no such file or directory", hint="load the fuse module")

    monkeypatch.setattr(object_mount, "_open_fuse", refuse)
    monkeypatch.setattr(background, "_is_large", lambda: False)  # a copy, with what is refused here
    with pytest.raises(UnsupportedError, match="/dev/fuse") as caught, place.attached(made):
        pass
    assert caught.value.hint == "load the fuse module"


def test_a_server_that_leaves_while_a_client_comes_is_replaced(place: Place, made: ObjectSet) -> None:
    """Attach and detach in a row from several sides: each finds a server or starts one, whatever the moment."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(6):
                with place.attached(made) as attachment:
                    assert read(attachment, made, "small") == CONTENTS["small"]
        except BaseException as error:
            errors.append(error)

    work()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            work()
            os._exit(len(errors))
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert errors == []
