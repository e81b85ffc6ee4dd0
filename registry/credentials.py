"""Logins that docker and podman keep: their files, and the programs that those name.

Files, first match wins: the one that REGISTRY_AUTH_FILE names, and then no other; podman's in $XDG_RUNTIME_DIR and in
~/.config; docker's. In a file a helper of the host (`credHelpers`) comes first, then what is written down (`auths`,
the longest path first), then the helper of all hosts (`credsStore`). A file that can't be read as what it should be is
an error, never "no login": the user would be told that the password is wrong.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from cext.errors import OnesecError
from registry.auth import Credential
from registry.errors import BadDocumentError
from registry.model import parse_json
from registry.origin import DOCKER_IO

_FILE_MAX = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_HELPER_SECONDS = 60  # it may ask the user to unlock a key ring
_DOCKER_KEYS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_DOCKER_SERVER = "https://index.docker.io/v1/"
_NOT_FOUND = "credentials not found in native keychain"


def find(environment: Mapping[str, str], host: str, path: str) -> Credential | None:
    """The login for a repository of a registry. Reads files and may run a helper program: it blocks."""
    for file in files(environment):
        document = _read(file)
        if document is not None and (found := _look_up(document, file, host, path, environment)) is not None:
            return found
    return None


def files(environment: Mapping[str, str]) -> Iterator[str]:
    """Where logins may be, most important first."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield named
        return
    home = environment.get("HOME", "")
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield f"{runtime}/containers/auth.json"
    if configuration := environment.get("XDG_CONFIG_HOME") or (home and f"{home}/.config"):
        yield f"{configuration}/containers/auth.json"
    if docker := environment.get("DOCKER_CONFIG") or (home and f"{home}/.docker"):
        yield f"{docker}/config.json"


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            raw = file.read(_FILE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(raw) > _FILE_MAX:
        raise BadDocumentError(path, f"got more than {_FILE_MAX} bytes")
    if not raw.strip():
        return None
    document = parse_json(raw, path)
    if not isinstance(document, dict):
        raise BadDocumentError(path, f"got {type(document).__name__}, want an object")
    return document


def _look_up(
    document: dict[str, Any], file: str, host: str, path: str, environment: Mapping[str, str]
) -> Credential | None:
    helpers = _table(document, "credHelpers", file)
    for key in _host_keys(host):
        if key in helpers:
            return _ask_helper(helpers[key], host, file, environment)
    auths = _table(document, "auths", file)
    for key in _keys(auths, host, path):
        entry = auths[key]
        if not isinstance(entry, dict):
            raise BadDocumentError(file, f"auths: {key[:100]}: want an object")
        if (found := parse_entry(entry, f"{file}: {key[:100]}")) is not None:
            return found
    if store := document.get("credsStore"):
        return _ask_helper(store, host, file, environment)
    return None


def _table(document: dict[str, Any], key: str, file: str) -> dict[str, Any]:
    found = document.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadDocumentError(file, f"{key}: got {type(found).__name__}, want an object")
    return found


def _host_keys(host: str) -> tuple[str, ...]:
    return _DOCKER_KEYS if host == DOCKER_IO else (host,)


def _keys(auths: Mapping[str, Any], host: str, path: str) -> list[str]:
    """The keys that speak of the repository: `host/a/b` before `host/a` before `host`, however they are written."""
    plain = {_plain(key): key for key in auths}
    components = path.split("/")
    wanted = []
    for count in range(len(components), -1, -1):
        wanted += ["/".join([name, *components[:count]]) for name in _host_keys(host)]
    return [plain[key] for key in wanted if key in plain]


def _plain(key: str) -> str:
    """docker writes hosts as URLs of their old API: https://index.docker.io/v1/"""
    key = re.sub(r"^https?://", "", key).rstrip("/")
    return re.sub(r"/v[12]$", "", key)


def parse_entry(entry: Mapping[str, Any], what: str) -> Credential | None:
    """One entry of `auths`. None: it is a mark that a helper has the login."""
    for key in ("auth", "username", "password", "identitytoken", "registrytoken"):
        if not isinstance(entry.get(key) or "", str):
            raise BadDocumentError(what, f"{key}: want a string")
    username, password = entry.get("username") or "", entry.get("password") or ""
    if pair := entry.get("auth"):
        try:
            text = base64.b64decode(pair, validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise BadDocumentError(what, "auth: not base64 of a name and a password") from error
        username, colon, password = text.partition(":")
        if not colon:
            raise BadDocumentError(what, "auth: not base64 of a name and a password")
    return _credential(username, password, entry.get("identitytoken") or "", entry.get("registrytoken") or "", what)


def _credential(username: str, password: str, identity: str, registry: str, what: str) -> Credential | None:
    if ":" in username:
        raise BadDocumentError(what, "user name: has a colon in it")
    if not (password or identity or registry):
        return None
    if registry and not re.fullmatch(r"[\x21-\x7e]+", registry):
        raise BadDocumentError(what, "registrytoken: not what a header can carry")
    return Credential(username, password, identity, registry)


def _ask_helper(name: Any, host: str, file: str, environment: Mapping[str, str]) -> Credential | None:
    """Runs docker-credential-NAME, as docker does: the server on its stdin, JSON on its stdout."""
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        raise BadDocumentError(file, f"credential helper {str(name)[:100]!r}: not a name")
    program = shutil.which(f"docker-credential-{name}", path=environment.get("PATH"))
    if program is None:
        raise BadDocumentError(file, f"names docker-credential-{name}, which is not installed")
    server = _DOCKER_SERVER if host == DOCKER_IO else host
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, env=dict(environment)
        )
    except subprocess.TimeoutExpired as error:
        raise OnesecError(f"docker-credential-{name}: no answer within {_HELPER_SECONDS} s") from error
    if done.returncode:
        words = (done.stdout or done.stderr).decode(errors="replace").strip()
        if _NOT_FOUND in words:
            return None
        raise OnesecError(f"docker-credential-{name}: failed for {host}: {words[:300]}")
    document = parse_json(done.stdout[: _FILE_MAX + 1], f"answer of docker-credential-{name}")
    user, secret = (document.get(key) if isinstance(document, dict) else None for key in ("Username", "Secret"))
    if not isinstance(user, str) or not isinstance(secret, str):
        raise BadDocumentError(f"answer of docker-credential-{name}", "want Username and Secret")
    if user == "<token>":
        return _credential("", "", secret, "", f"docker-credential-{name}")
    return _credential(user, secret, "", "", f"docker-credential-{name}")
