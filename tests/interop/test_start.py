"""The whole start: profiled here, pushed, and run by its name at the registry on a host that has never seen it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.model import BOOTPACK, PACK
from tests.interop.test_run_from_registry import make_host
from tests.support.command import Onesec
from tests.support.docker_registry import Server, docker_registry
from tests.support.shell import shell_image
from tests.support.waiting import PATIENCE_S, eventually

BIG = os.urandom((2 << 20) + 7)
SCRIPT = b"cat /srv/small; grep -m1 -a -c . /srv/big > /dev/null\n"
COMMAND = ("/bin/sh", "/srv/start")


@dataclass(frozen=True, slots=True)
class Made:
    """The image `name` of the registry, and the maker's host."""

    maker: Onesec
    server: Server
    name: str
    digest: str


def ran(host: Onesec, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        host.words(*words),
        env=host.surroundings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with docker_registry(tmp_path_factory.mktemp("registry") / "data", tls=True, login=True) as found:
        yield found


@pytest.fixture(scope="module")
def made(real_machine: None, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("maker")
    maker = make_host(directory / "host", server, auth=server.auth())
    image = shell_image(directory, files={"srv/big": BIG, "srv/small": b"hello\n", "srv/start": SCRIPT})
    assert maker("import", image, "-t", "app").status == 0
    done = ran(maker, "profile", "app", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"hello\n")
    digest = done.stdout.decode().splitlines()[-1]
    name = f"{server.host}/me/start:1"
    said = maker("push", "app", name)
    assert said.status == 0, said.err
    return Made(maker, server, name, digest)


@pytest.fixture
def far(made: Made, tmp_path: Path) -> Iterator[Onesec]:
    """A host that knows a login and no image."""
    host = make_host(tmp_path / "far", made.server, auth=made.server.auth())
    yield host
    eventually(lambda: not [path for path in host.run_dir.rglob("*") if path.is_socket()])


def blobs(host: Onesec, name: str) -> dict[str, list[Path]]:
    """Of an image, by media type: those that are here."""
    found: dict[str, list[Path]] = {}
    for layer in json.loads(host("inspect", name, "--json").out)["manifest"]["layers"]:
        path = host.root / "images/blobs/sha256" / layer["digest"].removeprefix("sha256:")
        found.setdefault(layer["mediaType"], []).extend([path] if path.exists() else [])
    return found


def test_profile_names_a_new_manifest_and_keeps_the_image(made: Made) -> None:
    document = json.loads(made.maker("inspect", "app", "--json").out)
    assert document["digest"] == made.digest
    assert [layer["mediaType"] for layer in document["manifest"]["layers"]].count(BOOTPACK) == 1
    assert made.maker("verify", "app", "--deep").status == 0
    assert made.maker("fsck").status == 0


def test_an_unknown_image_of_a_registry_runs_and_brings_its_boot_pack(made: Made, far: Onesec) -> None:
    done = ran(far, "run", "--timeline", "-", made.name, *COMMAND)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    assert re.search(rb"boot pack: .* (\d+) of \1 frames", done.stderr), done.stderr
    here = blobs(far, made.name)
    assert len(here[BOOTPACK]) == 1
    assert here[PACK] == []
    assert json.loads(far("inspect", made.name, "--json").out)["digest"] == made.digest
    assert far("verify", made.name).status == 0
    again = ran(far, "run", made.name, "/bin/cat", "/srv/big")
    assert again.stdout == BIG


def test_many_starts_of_an_unknown_image_at_once_bring_it_once(made: Made, far: Onesec) -> None:
    call = far.words("run", made.name, *COMMAND)
    starts = [
        subprocess.Popen(
            call, env=far.surroundings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(6)
    ]
    for start in starts:
        out, err = start.communicate(timeout=PATIENCE_S)
        assert (start.returncode, out) == (0, b"hello\n"), err
    assert len(list(far.run_dir.glob("domains/*"))) == 1
    assert far("fsck").status == 0


def test_a_timeline_says_where_the_bytes_of_a_local_start_came_from(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "timeline.html"
    done = ran(made.maker, "run", "--timeline", str(page), "app", *COMMAND)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "boot pack" in text


def test_a_broken_boot_pack_costs_a_line_in_the_timeline_and_nothing_else(made: Made, far: Onesec) -> None:
    assert far("pull", made.name).status == 0
    (pack,) = blobs(far, made.name)[BOOTPACK]
    data = bytearray(pack.read_bytes())
    data[-3] ^= 1
    pack.write_bytes(data)
    done = ran(far, "run", "--timeline", "-", made.name, *COMMAND)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    assert b"another hash" in done.stderr
    assert far("verify", made.name).status == 1


def test_a_boot_pack_with_a_broken_head_does_not_cost_the_rest_of_the_timeline(made: Made, far: Onesec) -> None:
    assert far("pull", made.name).status == 0
    (pack,) = blobs(far, made.name)[BOOTPACK]
    data = bytearray(pack.read_bytes())
    data[30] ^= 1
    pack.write_bytes(data)
    done = ran(far, "run", "--timeline", "-", made.name, *COMMAND)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    assert re.search(rb"boot pack: .*broken off: .* head of another hash", done.stderr), done.stderr
    assert b"slowest reads" in done.stderr


def test_a_second_way_to_start_is_merged(made: Made, tmp_path: Path) -> None:
    def pages(*options: str) -> int:
        done = ran(made.maker, "profile", "--json", *options, "app", "/bin/cat", "/srv/big")
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout[len(BIG) :])["pages"])

    assert made.maker("import", shell_image(tmp_path, files={"srv/big": BIG}), "-t", "other").status == 0
    both, alone = pages("--merge"), pages()
    assert both > alone > 512


def test_a_start_that_fails_leaves_the_image_as_it_was(made: Made) -> None:
    before = made.maker("images", "--json").out
    done = ran(made.maker, "profile", "app", "/bin/sh", "-c", "exit 3")
    assert done.returncode == 1
    assert done.stderr.decode().startswith("onesec: profile: the command ended with 3")
    assert made.maker("images", "--json").out == before


def test_an_image_that_came_for_a_program_that_it_lacks_stays_here(made: Made, far: Onesec) -> None:
    done = ran(far, "run", made.name, "/bin/none")
    assert done.returncode == 127, done.stderr
    assert json.loads(far("inspect", made.name, "--json").out)["digest"] == made.digest
    assert far("verify", made.name).status == 0


@pytest.mark.parametrize("name", ["me/none:1", "me/start:2", "other/start@sha256:" + "0" * 64])
def test_what_the_registry_does_not_have_is_one_line(made: Made, far: Onesec, name: str) -> None:
    done = ran(far, "run", f"{made.server.host}/{name}", "/bin/true")
    assert done.returncode == 125
    first = done.stderr.decode().splitlines()[0]
    assert first == f"onesec: {made.server.host}: has no image {name}"
    assert far("images", "--json").out.strip() == "[]"


# ---------------------------------------------------------------------- interrupted, and beside others


@pytest.fixture
def alone(real_machine: None, tmp_path: Path) -> Iterator[Onesec]:
    """A host with an image `app` of its own."""
    host = make_host(tmp_path / "alone")
    said = host("import", shell_image(tmp_path, files={"srv/small": b"hello\n"}), "-t", "app")
    assert said.status == 0, said.err
    yield host
    eventually(lambda: not [path for path in host.run_dir.rglob("*") if path.is_socket()])


def started(host: Onesec, *words: str) -> subprocess.Popen[bytes]:
    """With the container at work: it has said `go`. A script that goes on with `read x` waits until stdin is closed,
    and only what it says after that comes from `communicate`.
    """
    process = subprocess.Popen(
        host.words(*words),
        env=host.surroundings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"go\n"
    return process


def servers(host: Onesec) -> list[int]:
    logs = {str(path) for path in host.run_dir.glob("domains/*/log")}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(entry / "fd/2") in logs:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("again", [True, False])
def test_a_name_that_moved_during_a_profile_stays_where_it_is(alone: Onesec, tmp_path: Path, again: bool) -> None:
    (tmp_path / "other").mkdir()
    other = shell_image(tmp_path / "other", files={"srv/other": b"new\n"})
    with started(alone, "profile", "app", "/bin/sh", "-c", "echo go; read x; true") as process:
        assert alone("import", other, "-t", "app").status == 0 if again else alone("rm", "app").status == 0
        images = alone("images", "--json").out
        assert alone("gc").status == 0, "it need not wait for the container"
        assert process.poll() is None
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert err.startswith(b"onesec: image app:latest: no longer is sha256:"), err
    assert alone("images", "--json").out == images
    assert alone("fsck").status == 0


def test_what_a_killed_profile_leaves_goes_with_the_next(alone: Onesec) -> None:
    images = alone("images", "--json").out
    with started(alone, "profile", "app", "/bin/sh", "-c", "echo go; read x") as process:
        process.kill()
    assert alone("images", "--json").out == images
    assert os.listdir(alone.run_dir / "profiles") != []
    with started(alone, "profile", "app", "/bin/sh", "-c", "echo go; read x; true") as other:
        assert alone("profile", "app", "/bin/true").status == 0
        assert len(os.listdir(alone.run_dir / "profiles")) == 1, "that of the one that is at work"
        other.communicate(timeout=PATIENCE_S)
        assert other.returncode == 1, "its name has moved"
    assert os.listdir(alone.run_dir / "profiles") == []


def test_a_timeline_that_cannot_be_written_is_known_before_the_start(alone: Onesec) -> None:
    done = ran(alone, "run", "--timeline", "/nowhere/x.html", "app", "/bin/sh", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr == b"onesec: /nowhere/x.html: no such file or directory\n"


def test_a_container_ends_with_its_own_status_whatever_becomes_of_the_timeline(alone: Onesec) -> None:
    script = "echo go; read x; exit 7"
    words = alone.words("run", "--timeline", "-", "app", "/bin/sh", "-c", script)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=alone.surroundings, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        for server in servers(alone):
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
        _, err = process.communicate(b"\n", timeout=PATIENCE_S)
    assert process.returncode == 7
    assert err == b"onesec: --timeline: object server: ended before it answered\nhint: its log says why\n"
    assert ran(alone, "run", "app", "/bin/cat", "/srv/small").stdout == b"hello\n"


def test_a_container_of_a_caller_without_stdin_has_none_of_ours(alone: Onesec) -> None:
    script = "exec 3>&-; ls -l /proc/self/fd/0; cat"
    line = ["/bin/sh", "-c", 'exec "$@" 0<&-', "sh", *alone.words("run", "app", "/bin/sh", "-c", script)]
    done = subprocess.run(line, env=alone.surroundings, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.stdout.rstrip().endswith(b"-> /dev/null"), done


def test_a_host_with_few_descriptors_starts_slower_never_wrong(alone: Onesec, tmp_path: Path) -> None:
    """Neither the pins of a boot pack nor clients in plenty may leave the server without any."""
    (tmp_path / "many").mkdir()
    files = {f"srv/d/{number}": b"%d\n" % number * 50 for number in range(300)}
    assert alone("import", shell_image(tmp_path / "many", files=files), "-t", "many").status == 0
    assert ran(alone, "profile", "many", "/bin/sh", "-c", "cat /srv/d/*").returncode == 0
    few = ["prlimit", "--nofile=100:100", "setpriv", "--bounding-set=-sys_resource"]
    words = alone.words("run", "many", "/bin/sh", "-c", "echo go; read x; cat /srv/d/*")
    pipe = subprocess.PIPE
    with subprocess.Popen([*few, *words], env=alone.surroundings, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        (place,) = alone.run_dir.glob("domains/*/socket")
        with ExitStack() as stack:
            directory = os.open(place.parent, os.O_PATH | os.O_CLOEXEC)  # the path itself is too long for an address
            stack.callback(os.close, directory)
            for _ in range(120):
                client = stack.enter_context(
                    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                )
                client.connect(f"/proc/self/fd/{directory}/socket")
            eventually(lambda: "too many open files" in (place.parent / "log").read_text())
        # Until it has seen that they are gone it could not take what a start asks at its end, which is said.
        eventually(lambda: max(len(os.listdir(f"/proc/{server}/fd")) for server in servers(alone)) < 80)
        out, err = process.communicate(b"\n", timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, b"")
    assert sorted(out.split()) == sorted(b"".join(files.values()).split())


def test_a_container_that_is_out_of_memory_dies_before_the_server_that_others_use(alone: Onesec) -> None:
    with open("/proc/self/oom_score_adj") as file:
        ours = file.read()
    with started(alone, "run", "app", "/bin/sh", "-c", "echo go; read x; cat /proc/self/oom_score_adj") as process:
        found = {Path(f"/proc/{server}/oom_score_adj").read_text() for server in servers(alone)}
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert out.decode() == ours
    able = (
        int(re.findall(r"CapEff:\t(\w+)", Path("/proc/self/status").read_text())[0], 16) >> 24 & 1
    )  # CAP_SYS_RESOURCE
    assert found == {"-999\n" if able else ours}
