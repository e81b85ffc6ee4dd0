"""The transport of a start: what its failures read like. What it does with answers: test_client.py, on both roads."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cext.errors import UsageError
from registry.errors import RegistryError, UnreachableError
from registry.origin import HostSettings
from registry.request import Request
from registry.thin import ThinTransport
from tests.support.fake_registry import FakeRegistry


def get(transport: ThinTransport, url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    async def work() -> tuple[int, bytes]:
        async with transport.send(Request("GET", url, headers or {})) as answer:
            return answer.status, b"".join([piece async for piece in answer.pieces()])

    return transport.loop.run(work())


def answering(talk: Callable[[socket.socket], None]) -> tuple[str, threading.Thread]:
    """A server for one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            sock, _ = listener.accept()
            with sock:
                talk(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"127.0.0.1:{listener.getsockname()[1]}", thread


def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    with socket.socket() as sock, ThinTransport({}, {}) as transport:
        sock.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"{host}: unreachable: connection refused") as caught:
            get(transport, f"http://{host}/")
    assert caught.value.retryable


def test_a_server_that_hangs_up_broke_off() -> None:
    host, thread = answering(lambda sock: None)
    with ThinTransport({}, {}) as transport, pytest.raises(UnreachableError, match="broke off: ") as caught:
        get(transport, f"http://{host}/")
    thread.join()
    assert caught.value.retryable


def test_a_server_that_says_nothing_does_not_answer_in_time() -> None:
    def wait(sock: socket.socket) -> None:
        while sock.recv(1 << 16):
            pass

    host, thread = answering(wait)
    with ThinTransport({}, {}, silence=0.2) as transport, pytest.raises(UnreachableError, match="did not answer"):
        get(transport, f"http://{host}/")
    thread.join()


def test_plain_http_where_tls_is_wanted_has_a_hint() -> None:
    def plain(sock: socket.socket) -> None:
        sock.recv(1 << 14)
        sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    host, thread = answering(plain)
    with ThinTransport({}, {}) as transport, pytest.raises(UnreachableError, match="does not speak TLS") as caught:
        get(transport, f"https://{host}/")
    thread.join()
    assert caught.value.hint == f'if plain http is meant: plain-http = true under [registry."{host}"] in onesec.toml'


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("certificate")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    words += ["2", "-subj", "/CN=own", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(place / "key.pem")]
    subprocess.run([*words, "-out", str(place / "cert.pem")], check=True, capture_output=True)
    return place / "cert.pem"


def test_a_certificate_is_trusted_where_its_ca_is_named(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def talk(sock: socket.socket) -> None:
        try:
            with context.wrap_socket(sock, server_side=True) as secure:
                secure.recv(1 << 14)
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except OSError:
            pass  # it did not trust us

    host, thread = answering(talk)
    with ThinTransport({host: HostSettings(ca=str(certificate))}, {}) as transport:
        assert get(transport, f"https://{host}/") == (200, b"ok")
    thread.join()
    host, thread = answering(talk)
    untrusted = pytest.raises(UnreachableError, match="its certificate is not trusted: self-signed cert")
    with ThinTransport({}, {}) as transport, untrusted as caught:
        get(transport, f"https://{host}/")
    thread.join()
    assert "name its CA" in str(caught.value.hint)


def test_a_ca_that_is_no_certificate_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        refused = pytest.raises(UsageError, match=f"ca {path}: not a file of PEM certificates")
        with ThinTransport({"r.invalid": HostSettings(ca=str(path))}, {}) as transport, refused:
            get(transport, "https://r.invalid/")


def test_a_header_that_would_be_two_is_never_sent() -> None:
    with FakeRegistry() as registry, ThinTransport({}, {}) as transport:
        with pytest.raises(RegistryError, match="request failed"):
            get(transport, f"http://{registry.host}/v2/", {"authorization": "Basic x\r\nHost: other"})
        assert registry.requests == []


@pytest.mark.parametrize("control", ["\x0b", "\x0c", "\x1c", "\x85"])
def test_a_control_character_in_a_header_begins_no_other(control: str) -> None:
    """Who can put words into one header of an answer, a tag for example, must not get another by it."""

    def talk(sock: socket.socket) -> None:
        sock.recv(1 << 14)
        sock.sendall(f"HTTP/1.1 200 OK{control}X-A: b\r\nX-B: c{control}X-C: d\r\n\r\n".encode("latin-1"))

    async def work(transport: ThinTransport, url: str) -> tuple[str | None, ...]:
        async with transport.send(Request("GET", url)) as answer:
            return tuple(answer.header(name) for name in ("x-a", "x-b", "x-c"))

    host, thread = answering(talk)
    with ThinTransport({}, {}) as transport:
        found = transport.loop.run(work(transport, f"http://{host}/"))
    thread.join()
    assert found == (None, f"c{control}X-C: d", None)


def test_an_empty_ssl_cert_file_names_none(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def talk(sock: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(sock, server_side=True):
            pass

    host, thread = answering(talk)
    untrusted = pytest.raises(UnreachableError, match="its certificate is not trusted")
    with ThinTransport({}, {"SSL_CERT_FILE": ""}) as transport, untrusted:
        get(transport, f"https://{host}/")
    thread.join()


def test_a_proxy_of_the_environment_is_asked() -> None:
    with FakeRegistry() as proxy, ThinTransport({}, {"http_proxy": f"http://{proxy.host}"}) as transport:
        status, _ = get(transport, "http://registry.invalid/v2/me/app/manifests/latest")
        assert status == 404
        assert proxy.requests[0].path == "http://registry.invalid/v2/me/app/manifests/latest"
