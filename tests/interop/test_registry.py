"""Images through Debian's docker-registry and skopeo and back into containers, with the command as users call it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from registry.client import Client
from registry.errors import RefusedError, UnreachableError
from registry.layout import Layout
from registry.model import PACK
from registry.origin import HostSettings
from registry.reference import Reference
from registry.request import Request, Response
from registry.session import Surroundings
from registry.transport import HttpTransport
from registry.upload import Uploader
from tests.support.docker_registry import Server, docker_registry
from tests.support.oracle import assert_image
from tests.support.shell import shell_image
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
SECRET = b"moved through a registry\n"


class Host:
    """`onesec` on a host of its own: root, run directory, configuration and logins."""

    def __init__(self, directory: Path, *servers: Server, auth: str | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.root = directory / "root"
        (directory / "onesec.toml").write_text("[run]\nlinger = 0\n" + "".join(one.settings() for one in servers))
        (directory / "auth.json").write_text(auth or "{}")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ONESEC_ROOT": str(self.root),
            "ONESEC_RUN": str(directory / "run"),
            "ONESEC_CONFIG": str(directory / "onesec.toml"),
            "REGISTRY_AUTH_FILE": str(directory / "auth.json"),
        }

    def __call__(self, *words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "onesec", *map(str, words)]
        done = subprocess.run(
            call, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == status, done.stderr
        return done

    def error(self, *words: str | Path) -> str:
        """The one line that a failing call prints, without progress; a hint may follow."""
        done = self(*words, status=1)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("onesec: ")]
        return line

    def blobs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "images/blobs/sha256").iterdir()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with docker_registry(tmp_path_factory.mktemp("plain") / "registry") as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with docker_registry(tmp_path_factory.mktemp("guarded") / "registry", tls=True, login=True) as server:
        yield server


@pytest.fixture(scope="module")
def maker(real_machine: None, tmp_path_factory: pytest.TempPathFactory, plain: Server, guarded: Server) -> Host:
    """A host with the image `app`, which is on the plain registry as `me/app:1`."""
    directory = tmp_path_factory.mktemp("maker")
    host = Host(directory, plain, guarded, auth=guarded.auth())
    host("import", shell_image(directory, files={"srv/file": SECRET, "srv/big": os.urandom(3 << 20)}), "-t", "app")
    host("push", "app", f"{plain.host}/me/app:1")
    return host


def runs(host: Host, name: str) -> bool:
    return host("run", name, "/bin/cat", "/srv/file").stdout.encode() == SECRET


def skopeo(*words: str | Path) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *map(str, words)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


def test_an_image_goes_to_a_registry_and_comes_back_byte_for_byte(maker: Host, plain: Server, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", plain)
    remote = f"{plain.host}/me/app:1"
    digest = host("pull", remote, "-t", "app").stdout.splitlines()[-1]
    assert digest == maker("push", "app", remote).stdout.splitlines()[-1]
    index = host.blobs()
    assert {name: maker.blobs()[name] for name in index} == index
    verified = host("verify", "app", "--deep").stdout
    assert f"that are only at {plain.host}/me/app" in verified
    assert "0 problems" in host("fsck").stdout
    assert runs(host, "app")  # from there
    (tmp_path / "mounted").mkdir()
    refused = host("mount", "--mode", "portable", "app", tmp_path / "mounted", status=1).stderr
    assert f"hint: `onesec pull --all {plain.host}/me/app@{digest} -t app:latest` brings them" in refused
    hint = refused.partition("`onesec ")[2].partition("`")[0]
    host(*hint.split())
    assert host.blobs() == maker.blobs()
    assert runs(host, "app")
    assert_image(host, "app", assert_image(maker, "app", None, tmp_path / "m"), tmp_path / "m")
    assert "chunks" in host("verify", "app", "--deep").stdout
    host("rm", "app")
    host("gc")
    assert host.blobs() == {}


def test_a_pulled_image_has_its_own_name_and_trust_domain(maker: Host, plain: Server, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", plain)
    host("pull", f"{plain.host}/me/app:1")
    (row,) = json.loads(host("images", "--json").stdout)
    assert (row["name"], row["domain"], row["remote"]) == (
        f"{plain.host}/me/app:1",
        f"{plain.host}/me",
        f"{plain.host}/me/app",
    )


def test_tls_and_a_login(maker: Host, guarded: Server, tmp_path: Path) -> None:
    remote = f"{guarded.host}/me/app:1"
    maker("push", "app", remote)
    host = Host(tmp_path / "host", guarded, auth=guarded.auth())
    done = json.loads(host("pull", "--all", "--json", remote, "-t", "app").stdout)
    assert done["remote"] == 0
    assert host.blobs() == maker.blobs()
    assert runs(host, "app")


def test_a_wrong_password_no_login_and_a_certificate_of_a_stranger_read_as_such(
    maker: Host, guarded: Server, tmp_path: Path
) -> None:
    remote = f"{guarded.host}/me/app:1"
    wrong = Host(tmp_path / "wrong", guarded, auth=guarded.auth("guess"))
    assert "the login is not accepted: wrong user name or password" in wrong.error("pull", remote)
    nobody = Host(tmp_path / "nobody", guarded)
    assert f"{guarded.host}: wants a login for me/app" in nobody.error("pull", remote)
    stranger = Host(tmp_path / "stranger", auth=guarded.auth())
    assert "its certificate is not trusted" in stranger.error("pull", remote)
    assert "wrong user name or password" in (failed := wrong("pull", remote, status=1).stderr)
    assert "guess" not in failed


def test_what_is_not_there_reads_as_such(maker: Host, plain: Server, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", plain)
    assert host.error("pull", f"{plain.host}/me/app:9") == f"onesec: {plain.host}: has no image me/app:9"
    assert host.error("pull", f"{plain.host}/no/body") == f"onesec: {plain.host}: has no image no/body:latest"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        host_name = f"localhost:{nobody.getsockname()[1]}"
        assert host.error("pull", f"{host_name}/me/app") == f"onesec: {host_name}: unreachable: connection refused"
    assert "names no registry" in host("pull", "app", status=2).stderr
    assert "names no registry" in maker("push", "app", "elsewhere", status=2).stderr
    assert "not in the layout" in host.error("push", "nothing", f"{plain.host}/me/app:1")


def test_plain_http_is_not_spoken_without_being_asked(maker: Host, plain: Server, tmp_path: Path) -> None:
    done = Host(tmp_path / "host")("pull", f"{plain.host}/me/app:1", status=1)
    assert f"{plain.host}: does not speak TLS" in done.stderr
    assert f'plain-http = true under [registry."{plain.host}"]' in done.stderr


def test_a_push_sends_only_what_the_registry_lacks_and_mounts_the_rest(
    maker: Host, plain: Server, tmp_path: Path
) -> None:
    again = json.loads(maker("push", "--json", "app", f"{plain.host}/me/app:2").stdout)
    assert (again["sent"], again["bytes"]) == (0, 0)
    host = Host(tmp_path / "host", plain)
    host("pull", f"{plain.host}/me/app:1", "-t", "app")
    moved = json.loads(host("push", "--json", "app", f"{plain.host}/you/app:1").stdout)
    assert (moved["sent"], moved["known"]) == (0, 0)
    assert moved["mounted"] > 0
    third = Host(tmp_path / "third", plain)
    third("pull", "--all", f"{plain.host}/you/app:1", "-t", "app")
    assert third.blobs() == maker.blobs()


def test_skopeo_copies_an_image_between_registries(maker: Host, plain: Server, guarded: Server, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", guarded, auth=guarded.auth())
    login = ["--dest-tls-verify=false", "--dest-authfile", f"{tmp_path}/host/auth.json"]
    skopeo(
        "copy",
        "--src-tls-verify=false",
        *login,
        f"docker://{plain.host}/me/app:1",
        f"docker://{guarded.host}/copied/app:1",
    )
    host("pull", "--all", f"{guarded.host}/copied/app:1", "-t", "app")
    assert host.blobs() == maker.blobs()
    assert runs(host, "app")


@pytest.mark.parametrize("kind", ["dir", "oci"])
def test_skopeo_copies_an_image_to_a_directory_and_back(maker: Host, plain: Server, tmp_path: Path, kind: str) -> None:
    place = f"{kind}:{tmp_path}/{kind}" + (":app" if kind == "oci" else "")
    skopeo("copy", "--src-tls-verify=false", f"docker://{plain.host}/me/app:1", place)
    skopeo("copy", "--dest-tls-verify=false", place, f"docker://{plain.host}/through/{kind}:1")
    host = Host(tmp_path / "host", plain)
    host("pull", "--all", f"{plain.host}/through/{kind}:1", "-t", "app")
    assert host.blobs() == maker.blobs()
    assert runs(host, "app")
    beside = Host(tmp_path / "beside")
    beside("import", place, "-t", "app")
    assert beside.blobs() == maker.blobs()
    assert runs(beside, "app")


def test_skopeo_reads_the_layout_that_a_pull_made(maker: Host, plain: Server, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", plain)
    host("pull", "--all", f"{plain.host}/me/app:1", "-t", "app")
    skopeo("copy", f"oci:{host.root}/images:app:latest", f"dir:{tmp_path}/copy")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert {name: data for name, data in copied.items() if len(name) == 64}.items() <= maker.blobs().items()


def test_a_pull_that_is_killed_leaves_nothing_named_and_can_be_called_again(
    maker: Host, plain: Server, tmp_path: Path
) -> None:
    host = Host(tmp_path / "host", plain)
    remote = f"{plain.host}/me/app:1"
    for pause in (0.35, 0.45, 0.55):
        words = [sys.executable, "-m", "onesec", "pull", "--all", remote, "-t", "app"]
        pull = subprocess.Popen(
            words, env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(pause)
        pull.send_signal(signal.SIGKILL)
        pull.wait()
    fsck = host("fsck").stdout
    assert "0 problems" in fsck
    host("pull", "--all", remote, "-t", "app")
    assert host.blobs() == maker.blobs()
    assert "0 problems, 0 repaired" in host("fsck").stdout
    assert [path.name for path in (host.root / "images/blobs").iterdir()] == ["sha256"]


def test_progress_in_a_pipe_is_lines_and_stdout_ends_with_the_digest(maker: Host, plain: Server) -> None:
    done = maker("push", "app", f"{plain.host}/lines/app:1")
    lines = done.stderr.splitlines()
    assert lines[1] == f"pushing app:latest to {plain.host}/lines/app:1"
    assert "MiB/s" in lines[2]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("sha256:")


def test_build_pushes_what_it_built(maker: Host, plain: Server, tmp_path: Path) -> None:
    source = shell_image(tmp_path)
    (tmp_path / "image.py").write_text(f"from onesec import Image\nimage = Image.from_oci({source!r})\n")
    remote = f"{plain.host}/built/app:1"
    done = maker("build", tmp_path / "image.py", "-t", remote, "--push")
    digest = done.stdout.splitlines()[-1]
    host = Host(tmp_path / "host", plain)
    assert host("pull", remote).stdout.splitlines()[-1] == digest
    refused = maker("build", tmp_path / "image.py", "-t", "app", "--push", status=2)
    assert "--push: app:latest names no registry" in refused.stderr


class Unlucky:
    """A transport that finds the first PUT of a blob too large, and breaks off at one PATCH, before it or after it."""

    def __init__(self, inner: HttpTransport, patch: int, *, before: bool) -> None:
        self._inner = inner
        self._patch = patch
        self._before = before
        self.patches: list[str | None] = []
        self._puts = 0

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[Response]:
        if request.method == "PUT":
            self._puts += 1
            if self._puts == 1:
                raise RefusedError("registry", 413, "too large")
        breaks = False
        if request.method == "PATCH":
            self.patches.append(request.headers.get("content-range"))
            breaks = len(self.patches) == self._patch
        if breaks and self._before:
            raise UnreachableError("registry", "broke off", retryable=True)
        async with self._inner.send(request) as response:
            if breaks:
                raise UnreachableError("registry", "broke off", retryable=True)
            yield response


FIRST, SECOND, THIRD = "0-299999", "300000-599999", "600000-699999"


@pytest.mark.parametrize(
    ("before", "patches"),
    [
        (True, [FIRST, SECOND, SECOND, THIRD]),
        # docker-registry signs into each location how far it is, and forgets the upload when that is not so.
        (False, [FIRST, SECOND, FIRST, SECOND, THIRD]),
    ],
    ids=["a chunk that does not arrive", "an answer that does not arrive"],
)
def test_chunks_and_their_resumption_are_what_a_real_registry_understands(
    plain: Server, tmp_path: Path, before: bool, patches: list[str]
) -> None:
    layout = Layout.open(tmp_path / "root")
    data = os.urandom(700_000)
    blob = layout.put(data, PACK)
    hosts = {plain.host: HostSettings(plain_http=True)}

    async def main() -> tuple[Sequence[str | None], bytes, list[int]]:
        steps: list[int] = []
        async with HttpTransport(hosts) as inner:
            unlucky = Unlucky(inner, 2, before=before)
            client = Client(Surroundings(unlucky, hosts, lambda host, path: None))
            repository = client.repository(Reference.parse(f"{plain.host}/chunked/app"), push=True)
            assert await Uploader(repository, layout, chunk=300_000).send_blob(blob, steps.append)
            return unlucky.patches, await repository.read_range(blob, 100, 699_000), steps

    sent, read, steps = trio.run(main)
    assert sent == patches
    assert read == data[100:699_100]
    assert sum(steps) == blob.size
