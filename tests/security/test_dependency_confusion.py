"""The first index that knows a package is the only one that is asked for it, and what it named is what is installed.

CVE-2018-20225 (pip takes the highest version of all indexes), credentials of indexes and where they go
(CVE-2020-15157 and its relatives).
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cext.errors import OnesecError
from imagebuilder.errors import BadWheelError, FetchError, SolveError
from imagebuilder.fetch import credentials_for, wheel_file
from imagebuilder.pip_settings import PipSettings
from imagebuilder.solve import PinnedWheel, Question, Target, solve
from tests.support.wheels import wheel

TARGET = Target("3.11", "x86_64-manylinux_2_36")
AUTHORIZATION = "Basic " + base64.b64encode(b"me:secret").decode()


@dataclass(slots=True)
class Index:
    """A simple index. wheels: file name -> content. password: whether one is asked for. redirect: where its files
    really are.
    """

    wheels: Mapping[str, bytes]
    password: bool = False
    redirect: str | None = None
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            index.asked.append((self.path, given))
            if index.password and given != AUTHORIZATION:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            name = self.path.rsplit("/", 1)[-1]
            if name in index.wheels:
                if index.redirect is not None:
                    self.send_response(302)
                    self.send_header("Location", f"{index.redirect}/{name}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self._answer(index.wheels[name], "application/octet-stream")
                return
            project = self.path.strip("/").rpartition("/")[2]
            links = [
                f'<a href="/files/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
                for name, data in index.wheels.items()
                if name.partition("-")[0] == project
            ]
            if links:
                self._answer("\n".join(links).encode(), "text/html")
            else:
                self.send_error(404)

        def _answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def named(name: str, version: str, text: bytes = b"VALUE = 1\n") -> dict[str, bytes]:
    return {f"{name}-{version}-py3-none-any.whl": wheel(name, version, {f"{name}.py": text})}


@pytest.fixture
def mine() -> Iterator[Index]:
    with serving(Index(named("private", "1.0") | named("both", "1.0"))) as index:
        yield index


@pytest.fixture
def public() -> Iterator[Index]:
    evil = named("private", "99.0", b"EVIL = 1\n") | named("both", "99.0", b"EVIL = 1\n") | named("other", "2.0")
    with serving(Index(evil)) as index:
        yield index


def ask(place: Path, settings: PipSettings, *words: str) -> dict[str, PinnedWheel]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment = {**clean, "UV_CACHE_DIR": str(place / "cache"), "UV_HTTP_RETRIES": "0"}
    return {one.name: one for one in solve(Question(words, TARGET, settings), environment)}


def settings(mine: Index, public: Index) -> PipSettings:
    return PipSettings(index_url=f"{public.url}/simple", extra_index_url=(f"{mine.url}/simple",))


def test_a_higher_version_elsewhere_does_not_win(mine: Index, public: Index, tmp_path: Path) -> None:
    found = ask(tmp_path, settings(mine, public), "private", "both", "other")
    assert {name: one.version for name, one in found.items()} == {"private": "1.0", "both": "1.0", "other": "2.0"}
    assert found["private"].url.startswith(mine.url)
    assert found["other"].url.startswith(public.url)


def test_an_index_is_not_even_told_the_names_that_another_one_knows(mine: Index, public: Index, tmp_path: Path) -> None:
    ask(tmp_path, settings(mine, public), "private")
    assert [path for path, _ in public.asked if "private" in path] == []


def test_a_version_that_the_first_index_does_not_have_is_not_looked_for_in_the_next(
    mine: Index, public: Index, tmp_path: Path
) -> None:
    for words in ("private==99.0", "private>=2", "both!=1.0"):
        with pytest.raises(SolveError):
            ask(tmp_path, settings(mine, public), words)


def test_a_name_spelt_otherwise_is_the_same_package(mine: Index, public: Index, tmp_path: Path) -> None:
    for name in ("Private", "PRIVATE", "pri.vate".replace(".", "")):
        assert ask(tmp_path, settings(mine, public), name)["private"].version == "1.0"


@pytest.mark.parametrize("damage", ["other content", "a byte flipped", "cut", "longer", "empty", "no wheel at all"])
def test_a_wheel_that_is_not_the_one_that_was_pinned_is_refused(
    damage: str, mine: Index, public: Index, tmp_path: Path
) -> None:
    pinned = ask(tmp_path, settings(mine, public), "private")["private"]
    (name, data), *_ = mine.wheels.items()
    mine.wheels = {
        name: {
            "other content": wheel("private", "1.0", {"private.py": b"EVIL = 1\n"}),
            "a byte flipped": data[:100] + bytes([data[100] ^ 1]) + data[101:],
            "cut": data[:-1],
            "longer": data + b"x",
            "empty": b"",
            "no wheel at all": b"<html>not here</html>",
        }[damage]
    }
    with pytest.raises(OnesecError) as caught, wheel_file(pinned, directory=str(tmp_path)):
        pytest.fail("it was opened")
    assert isinstance(caught.value, BadWheelError | FetchError)


def test_a_password_goes_to_its_own_host_and_not_where_that_redirects_to(public: Index, tmp_path: Path) -> None:
    with serving(Index(named("private", "1.0"), password=True)) as locked:
        url = locked.url.replace("http://", "http://me:secret@")
        wanted = PipSettings(index_url=f"{public.url}/simple", extra_index_url=(f"{url}/simple",))
        pinned = ask(tmp_path, wanted, "private")["private"]
        assert "secret" not in pinned.url or pinned.url.startswith(url)
        find = credentials_for([f"{url}/simple", f"{public.url}/simple"], {"NETRC": "/nowhere"})
        assert find(locked.host) == ("me", "secret")
        assert find(public.host) is None
        with wheel_file(pinned, credentials=find, directory=str(tmp_path)) as fd:
            assert os.fstat(fd).st_size == len(locked.wheels["private-1.0-py3-none-any.whl"])
        locked.redirect = f"{public.url}/files"
        public.wheels = dict(locked.wheels)
        public.asked.clear()
        with wheel_file(pinned, credentials=find, directory=str(tmp_path)):
            assert public.asked == [("/files/private-1.0-py3-none-any.whl", None)]


def test_a_wrong_password_is_an_error_that_does_not_say_it(tmp_path: Path) -> None:
    with serving(Index(named("private", "1.0"), password=True)) as locked:
        url = locked.url.replace("http://", "http://me:wrong-but-private@")
        pinned = PinnedWheel("private", "1.0", f"{url}/files/private-1.0-py3-none-any.whl", "0" * 64)
        with pytest.raises(FetchError, match="401") as caught, wheel_file(pinned, directory=str(tmp_path)):
            pytest.fail("it was opened")
        assert "wrong-but-private" not in str(caught.value)


def test_passwords_of_netrc_are_used_as_pip_does(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    find = credentials_for([], {"NETRC": str(tmp_path / "netrc")})
    assert find("127.0.0.1:1234") == ("me", "secret")
    assert find("example.com") is None
    (tmp_path / "netrc").write_text("machine machine machine\n")
    assert find("127.0.0.1:1234") is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/private-1.0-py3-none-any.whl",
        "gopher://127.0.0.1/private-1.0-py3-none-any.whl",
        "data:,private-1.0-py3-none-any.whl",
        "//127.0.0.1/private-1.0-py3-none-any.whl",
        "private-1.0-py3-none-any.whl",
        "jar:file:///private-1.0-py3-none-any.whl",
    ],
)
def test_an_address_that_is_no_address_of_an_index_is_refused(url: str) -> None:
    with pytest.raises(FetchError), wheel_file(PinnedWheel("private", "1.0", url, "0" * 64)):
        pytest.fail("it was opened")


def test_a_wheel_that_redirects_to_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    with serving(Index(named("private", "1.0"))) as index:
        (tmp_path / "private-1.0-py3-none-any.whl").write_bytes(b"a file of the host")
        index.redirect = f"file://{tmp_path}"
        url = f"{index.url}/files/private-1.0-py3-none-any.whl"
        digest = hashlib.sha256(b"a file of the host").hexdigest()
        with pytest.raises(FetchError), wheel_file(PinnedWheel("private", "1.0", url, digest), directory=str(tmp_path)):
            pytest.fail("it was opened")
