from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cext.errors import OnesecError
from registry.auth import Credential
from registry.credentials import files, find
from registry.errors import BadDocumentError


def pair(text: str = "me:secret") -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


class Home:
    """A home directory with logins, and programs that its PATH finds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        self.environment = {"HOME": str(path), "PATH": f"{path}/bin:/usr/bin:/bin"}

    def write(self, name: str, document: Any) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(document if isinstance(document, str) else json.dumps(document))

    def helper(self, name: str, script: str) -> None:
        file = self.path / f"bin/docker-credential-{name}"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def find(self, host: str = "registry.example", path: str = "me/app") -> Credential | None:
        return find(self.environment, host, path)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


DOCKER = ".docker/config.json"
PODMAN = ".config/containers/auth.json"


def test_nobody_is_logged_in_on_a_fresh_machine(home: Home) -> None:
    assert home.find() is None


def test_docker_and_podman_files_are_read(home: Home) -> None:
    home.write(DOCKER, {"auths": {"registry.example": pair("docker:1")}})
    assert home.find() == Credential("docker", "1")
    home.write(PODMAN, {"auths": {"registry.example": pair("podman:2:with:colons")}})
    assert home.find() == Credential("podman", "2:with:colons")


def test_the_places_and_their_order() -> None:
    environment = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/0"}
    places = ["/run/user/0/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
    assert list(files(environment)) == places
    moved = {"XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"}
    assert list(files(moved)) == ["/c/containers/auth.json", "/d/config.json"]
    assert list(files({**environment, "REGISTRY_AUTH_FILE": "/f"})) == ["/f"]
    assert list(files({})) == []


def test_the_longest_path_wins_and_another_host_never_does(home: Home) -> None:
    auths = {
        "registry.example": pair("host:1"),
        "registry.example/me": pair("me:2"),
        "registry.example/me/app": pair("app:3"),
        "registry.example/me/ap": pair("ap:4"),
        "example": pair("other:5"),
        "registry.example:5000": pair("port:6"),
    }
    home.write(PODMAN, {"auths": auths})
    names = [("registry.example", "me/app"), ("registry.example", "me/b"), ("registry.example", "x")]
    assert [getattr(home.find(*name), "username", None) for name in names] == ["app", "me", "host"]
    found = home.find("registry.example:5000", "me/app")
    assert found is not None
    assert found.username == "port"
    assert home.find("evil.example", "me/app") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"])
def test_docker_io_has_many_names(home: Home, key: str) -> None:
    home.write(DOCKER, {"auths": {key: pair()}})
    assert home.find("docker.io", "library/debian") == Credential("me", "secret")


def test_hosts_may_be_written_as_urls(home: Home) -> None:
    home.write(DOCKER, {"auths": {"https://registry.example/v2/": pair()}})
    assert home.find() == Credential("me", "secret")


def test_tokens_are_taken_from_the_file(home: Home) -> None:
    home.write(DOCKER, {"auths": {"registry.example": {"identitytoken": "refresh", **pair("me:")}}})
    assert home.find() == Credential("me", "", "refresh")
    home.write(DOCKER, {"auths": {"registry.example": {"registrytoken": "ready"}}})
    assert home.find() == Credential("", "", "", "ready")


def test_a_helper_of_the_host_comes_before_what_is_written_down(home: Home) -> None:
    home.helper("own", 'read server; echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"from helper\\"}"')
    auths = {"registry.example": pair(), "other.example": pair()}
    home.write(DOCKER, {"credHelpers": {"registry.example": "own"}, "auths": auths})
    assert home.find() == Credential("registry.example", "from helper")
    assert home.find("other.example") == Credential("me", "secret")


def test_a_store_is_asked_for_hosts_that_are_only_marked(home: Home) -> None:
    home.helper("desktop", 'echo \'{"ServerURL":"x","Username":"<token>","Secret":"refresh"}\'')
    home.write(DOCKER, {"credsStore": "desktop", "auths": {"registry.example": {}}})
    assert home.find() == Credential("", "", "refresh")


def test_docker_io_is_asked_for_by_its_old_url(home: Home) -> None:
    home.helper("own", 'read server; echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$server\\"}"')
    home.write(DOCKER, {"credHelpers": {"docker.io": "own"}})
    assert home.find("docker.io", "library/debian") == Credential("u", "https://index.docker.io/v1/")


def test_a_helper_that_does_not_know_the_host_means_no_login(home: Home) -> None:
    home.helper("store", "echo credentials not found in native keychain; exit 1")
    home.write(DOCKER, {"credsStore": "store"})
    assert home.find() is None


def test_a_helper_that_fails_is_an_error_with_its_words(home: Home) -> None:
    home.helper("store", "echo the key ring is locked >&2; exit 3")
    home.write(DOCKER, {"credsStore": "store"})
    with pytest.raises(OnesecError, match=r"docker-credential-store: failed .*: the key ring is locked"):
        home.find()


def test_a_helper_that_is_not_installed_is_an_error(home: Home) -> None:
    home.write(DOCKER, {"credsStore": "nowhere"})
    with pytest.raises(BadDocumentError, match="docker-credential-nowhere, which is not installed"):
        home.find()


@pytest.mark.parametrize("name", ["../../bin/sh", "a/b", "", "-x", "a b", "a;b", 7, ["x"]])
def test_a_helpers_name_is_no_path(home: Home, name: object) -> None:
    home.write(DOCKER, {"credHelpers": {"registry.example": name}})
    with pytest.raises(BadDocumentError, match="not a name"):
        home.find()


@pytest.mark.parametrize("answer", ["", "{}", "[]", '{"Username":1,"Secret":"s"}', '{"Username":"a:b","Secret":"s"}'])
def test_a_helpers_answer_is_checked(home: Home, answer: str) -> None:
    home.helper("bad", f"echo '{answer}'")
    home.write(DOCKER, {"credsStore": "bad"})
    with pytest.raises(BadDocumentError):
        home.find()


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"registry.example": "x"}}',
        '{"auths": {"registry.example": {"auth": "%%%"}}}',
        '{"auths": {"registry.example": {"auth": "bm9jb2xvbg=="}}}',
        '{"auths": {"registry.example": {"auth": 7}}}',
        '{"auths": {"registry.example": {"registrytoken": "a\\r\\nb"}}}',
        '{"credHelpers": "x"}',
        " " * (1 << 20) + "{}",
    ],
)
def test_a_file_that_cannot_be_read_as_logins_is_an_error_that_names_it(home: Home, document: str) -> None:
    home.write(DOCKER, document)
    with pytest.raises(BadDocumentError, match=r"\.docker/config\.json"):
        home.find()


def test_an_empty_file_has_no_logins(home: Home) -> None:
    home.write(DOCKER, "")
    assert home.find() is None
