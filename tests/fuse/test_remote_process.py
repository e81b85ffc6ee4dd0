"""The three processes together: object server, fetcher and renewer, with a registry that wants tokens."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cext.fetch import SPAN
from lazyfs import objects, remote
from tests.support import origin as faults
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import Origin
from tests.support.origin import serving as origin_serving
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

DOMAIN = "registry.example/me"
CONTENTS = {f"part-{number}": random.Random(number).randbytes(SPAN + 1000) for number in range(8)}


@dataclass
class NoLease:
    fd: int = -1

    def hand_over(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Image:
    tables: int
    packs: int
    lease: NoLease
    name: str = "far"
    domain: str = DOMAIN


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("remote") / "objects", CONTENTS, pack_size=3 << 20)


@pytest.fixture
def origin(made: ObjectSet) -> Iterator[Origin]:
    with origin_serving() as found:
        found.add_directory(made.packs)
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    eventually(lambda: not processes(tmp_path))


def processes(place: Path) -> dict[int, str]:
    """Those that have a log below the place open, by their numbers."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "fd/2").startswith(str(place)):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def fetcher_of(place: Path) -> int:
    """Waits until there is one."""
    eventually(lambda: "onesec-fetcher" in processes(place).values())
    return next(number for number, name in processes(place).items() if name == "onesec-fetcher")


@contextmanager
def attached(made: ObjectSet, place: Path, origin: remote.Origin, **options: float) -> Iterator[objects.Attachment]:
    with ExitStack() as stack:
        tables = os.open(made.tables, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, tables)
        (place / "empty").mkdir(exist_ok=True)
        packs = os.open(place / "empty", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, packs)
        image = Image(tables, packs, NoLease())
        yield stack.enter_context(
            objects.attach(image, run_dir=place / "run", root=place, origin=origin, **options)  # type: ignore[arg-type]
        )


def registry(origin: Origin, made: ObjectSet) -> remote.RegistryOrigin:
    host = f"127.0.0.1:{origin.port}"
    pack = min(made.packs.iterdir(), key=lambda path: path.stat().st_size)
    probe = (f"sha256:{pack.name}", pack.stat().st_size)
    return remote.RegistryOrigin(f"{host}/me/app", probe, {host: remote.RegistryHost(plain_http=True)})


def read(attachment: objects.Attachment, made: ObjectSet, name: str) -> bytes:
    fd = os.open(made.path(name), os.O_RDONLY | os.O_CLOEXEC, dir_fd=attachment.objects)
    with open(fd, "rb") as file:
        return file.read()


def fetched(place: Path) -> dict[str, int]:
    found = objects.fetch_statistics(DOMAIN, run_dir=place / "run", root=place)
    assert found is not None
    return found


def test_a_registry_that_wants_no_login_is_read_at_once(made: ObjectSet, origin: Origin, place: Path) -> None:
    with attached(made, place, registry(origin, made)) as attachment:
        for name, content in CONTENTS.items():
            assert read(attachment, made, name) == content
        assert fetched(place)["stale"] == 0


def test_tokens_are_renewed_before_they_end(made: ObjectSet, origin: Origin, place: Path) -> None:
    """Reads over several lifetimes, and no 401 is needed for a new token: the registry is lenient."""
    origin.lifetime, origin.grace = 1.0, 1000

    def handed_out() -> int:
        return sum(asked.path.startswith("/token") for asked in list(origin.asked))

    with attached(made, place, registry(origin, made)) as attachment:
        for number, (name, content) in enumerate(CONTENTS.items()):
            assert read(attachment, made, name) == content
            eventually(lambda number=number: handed_out() > number // 2)  # type: ignore[misc]
        assert fetched(place)["stale"] <= 1  # the first try, without a login
    assert origin.refused() == 0


def test_a_token_that_is_revoked_is_replaced_at_once(made: ObjectSet, origin: Origin, place: Path) -> None:
    origin.lifetime = 600
    with attached(made, place, registry(origin, made)) as attachment:
        for name, content in CONTENTS.items():
            origin.revoke()
            assert read(attachment, made, name) == content
        assert attachment.statistics()["statistics"]["errors"] == 0
    assert origin.refused() >= 3


def test_web_sources_are_tried_in_their_order(made: ObjectSet, origin: Origin, place: Path) -> None:
    with origin_serving() as first:
        sources = (remote.WebSource(first.url), remote.WebSource(origin.url, ("X-Key: 7",)))
        with attached(made, place, sources) as attachment:
            assert read(attachment, made, "part-0") == CONTENTS["part-0"]
        assert first.count() >= 1  # it has no blobs: 404
    assert {asked.headers["x-key"] for asked in origin.asked} == {"7"}


def test_an_origin_that_stays_away_is_an_error_that_names_it(made: ObjectSet, origin: Origin, place: Path) -> None:
    origin.fail("gone", faults.status(503), times=-1)
    sources = (remote.WebSource(origin.url),)
    with attached(made, place, sources, deadline_s=3.0) as attachment:
        with pytest.raises(OSError) as caught:
            read(attachment, made, "part-1")
        assert caught.value.errno == errno.EIO
        (log,) = (place / "run").glob("domains/*/log")
        line = next(line for line in log.read_text().splitlines() if "deadline" in line)
        assert f"far: object {made.ids['part-1'].hex()}" in line
        assert f"http://127.0.0.1:{origin.port}: got status 503" in line


def test_secrets_are_in_no_log_and_no_statistics(made: ObjectSet, origin: Origin, place: Path) -> None:
    origin.token = "right"
    sources = (remote.WebSource(origin.url + "?key=hidden", ("Authorization: Bearer secret",)),)
    with attached(made, place, sources, deadline_s=3.0) as attachment:
        with pytest.raises(OSError):
            read(attachment, made, "part-2")
        said = str(fetched(place)) + str(attachment.statistics())
        (log,) = (place / "run").glob("domains/*/log")
        said += log.read_text()
    assert "status 401" in said
    assert "secret" not in said
    assert "hidden" not in said


def test_a_message_that_makes_no_sense_ends_nothing(made: ObjectSet, origin: Origin, place: Path) -> None:
    with attached(made, place, (remote.WebSource(origin.url),)) as attachment, ExitStack() as stack:
        (path,) = (place / "run").glob("domains/*")
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        for packet in (b"", b"x", b"[]", b'{"op": 7}', b'{"op": "origin"}', b'{"op": "origin", "origin": {}}'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(f"/proc/self/fd/{directory}/fetch")  # the path itself is too long
                sock.send(packet)
                sock.settimeout(PATIENCE_S)
                sock.recv(1 << 16)
        assert read(attachment, made, "part-3") == CONTENTS["part-3"]


def test_a_fetcher_that_hangs_is_replaced(made: ObjectSet, origin: Origin, place: Path) -> None:
    with attached(made, place, (remote.WebSource(origin.url),)) as attachment:
        assert read(attachment, made, "part-0") == CONTENTS["part-0"]
        process = fetcher_of(place)
        os.kill(process, signal.SIGSTOP)
        assert read(attachment, made, "part-7") == CONTENTS["part-7"]
        assert fetcher_of(place) != process
        assert attachment.statistics()["statistics"]["errors"] == 0
