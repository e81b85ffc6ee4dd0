"""Debian's docker-registry as a server of its own on loopback: plain, or with TLS and one login. Ended by its pid."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_S, eventually

USER, PASSWORD = "me", "secret"
_HTPASSWD = "me:$2b$04$6vpLBYDf1fTzUOhSNJJORez01wav/9kCP0Zt4tEFU264UphVKiahO\n"  # bcrypt, the only kind that it takes
_CONFIG = """
version: 0.1
log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}
http:
  addr: 127.0.0.1:0
  secret: for tests
{tls}
{auth}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """host: as in a reference. ca: what a client has to trust; None: plain http. login: whether it wants one."""

    host: str
    ca: Path | None
    login: bool

    def settings(self) -> str:
        """Its part of onesec.toml."""
        how = "plain-http = true" if self.ca is None else f'ca = "{self.ca}"'
        return f'[registry."{self.host}"]\n{how}\n'

    def auth(self, password: str = PASSWORD) -> str:
        """An auth.json with its login."""
        pair = base64.b64encode(f"{USER}:{password}".encode()).decode()
        return json.dumps({"auths": {self.host: {"auth": pair}}})


def require() -> None:
    """Skips where docker-registry or openssl is missing; in CI that is a failure."""
    missing = [name for name in ("docker-registry", "openssl", "skopeo") if shutil.which(name) is None]
    if missing and (os.environ.get("CI") or os.environ.get("ONESEC_REQUIRE_ALL")):
        pytest.fail(f"this machine lacks {', '.join(missing)}")
    if missing:
        pytest.skip(f"this machine lacks {', '.join(missing)}")


@contextmanager
def docker_registry(directory: Path, *, tls: bool = False, login: bool = False) -> Iterator[Server]:
    """Runs one with its data, certificates and log under directory."""
    require()
    directory.mkdir(parents=True)
    ca = _certificates(directory) if tls else None
    (directory / "htpasswd").write_text(_HTPASSWD)
    config = _CONFIG.format(
        data=directory / "data",
        tls=f"  tls: {{certificate: {directory}/server.pem, key: {directory}/server.key}}" if tls else "",
        auth=f"auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}" if login else "",
    )
    (directory / "config.yml").write_text(config)
    with open(directory / "log", "wb") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", str(directory / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        port = _port(server, directory / "log")
        yield Server(f"localhost:{port}", ca, login)
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    """The one that the kernel gave it, from its log: one chosen here could be another's by then."""
    eventually(
        lambda: server.poll() is not None or "listening on" in log.read_text(), "docker-registry does not listen"
    )
    found = re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text())
    assert found is not None, f"docker-registry did not start: {log.read_text()}"
    return int(found[1])


def _certificates(directory: Path) -> Path:
    """A CA, and a server certificate of it for localhost."""
    subject = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    ca, key, pem = f"{directory}/ca.pem", f"{directory}/ca.key", f"{directory}/server.pem"
    curve = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    usage = "keyUsage=critical,keyCertSign,cRLSign"  # Python 3.13 is strict about it
    _openssl("req", *curve, "-keyout", key, "-out", ca, "-subj", "/CN=onesec test CA", "-addext", usage)
    _openssl(
        *("req", *curve, "-keyout", f"{directory}/server.key", "-out", pem, "-subj", "/CN=localhost"),
        *("-addext", subject, "-addext", "basicConstraints=critical,CA:FALSE", "-CA", ca, "-CAkey", key),
    )
    return Path(ca)


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
