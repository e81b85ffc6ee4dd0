"""Whole answers over HTTP, against an origin that fails on purpose."""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cext.errors import ClosedError, CorruptError, LimitError, MissingError
from cext.fetch import Getter
from tests.support.origin import Exchange, Origin, serving
from tests.support.waiting import PATIENCE_S, eventually

DATA = random.Random(5).randbytes(3 << 20)
HELD_MAX = 4 << 20
ROOT = Path(__file__).parents[3]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving(DATA) as found:
        yield found


def place(origin: Origin) -> str:
    return origin.url.replace("{digest}", next(iter(origin.blobs)))


def finish(getter: Getter, number: int) -> tuple[int, str, bytes]:
    """Status, end and body."""
    body = b""
    end = time.monotonic() + PATIENCE_S
    while not getter.look(number)[1]:
        body += getter.take(number)
        getter.wait(1)
        assert time.monotonic() < end, "it did not end"
    return getter.look(number)[0], getter.look(number)[1], body + getter.take(number)


def test_an_answer_comes_whole_and_in_pieces(origin: Origin) -> None:
    with Getter() as getter:
        number = getter.start(place(origin), headers=["X-Own: 1"])
        assert finish(getter, number) == (206, "done", DATA)
        lines = getter.look(number)[3].decode().splitlines()
        assert f"Content-Range: bytes 0-{len(DATA) - 1}/{len(DATA)}" in lines
        (asked,) = origin.asked
        assert asked.headers["x-own"] == "1"
        assert asked.headers["user-agent"] == "onesec"


def test_several_are_under_way_at_once_on_kept_connections(origin: Origin) -> None:
    with Getter() as getter:
        for _ in range(2):
            numbers = [getter.start(place(origin), headers=[f"Range: bytes={at}-{at + 9}"]) for at in range(4)]
            for at, number in enumerate(numbers):
                assert finish(getter, number) == (206, "done", DATA[at : at + 10])
                getter.drop(number)


def test_bytes_come_in_while_nobody_asks(origin: Origin) -> None:
    with Getter() as getter:
        number = getter.start(place(origin))
        eventually(lambda: getter.look(number)[1] == "done")  # no wait and no take
        assert getter.take(number) == DATA
        assert getter.take(number) == b""


def test_what_nobody_takes_stops_at_a_bound(origin: Origin) -> None:
    piece, count = bytes(1 << 20), 64  # the bound, and much more than sockets hold besides
    sent: list[int] = []

    def much(exchange: Exchange) -> bool:
        exchange.answer(200, b"", length=count << 20)
        for at in range(count):
            exchange.sock.sendall(piece)
            sent.append(at)
        return True

    origin.fail("much", much)
    with Getter() as getter:
        number = getter.start(place(origin))
        eventually(lambda: len(sent) >= HELD_MAX >> 20)
        time.sleep(0.2)
        assert len(sent) < count
        status, how, body = finish(getter, number)
        assert (status, how, len(body)) == (200, "done", count << 20)


def test_a_redirect_is_an_answer_and_nothing_else(origin: Origin) -> None:
    def away(exchange: Exchange) -> bool:
        return exchange.answer(307, b"", "Location: /elsewhere")

    origin.fail("away", away)
    with Getter() as getter:
        number = getter.start(place(origin))
        assert finish(getter, number)[:2] == (307, "done")
        assert b"Location: /elsewhere\r\n" in getter.look(number)[3]
    assert len(origin.asked) == 1


@pytest.mark.parametrize(
    ("reset", "body"), [(False, b"x" * 10), (True, b"x" * 10), (False, b"")], ids=["short", "reset", "nothing"]
)
def test_an_answer_that_breaks_off_is_broken(origin: Origin, reset: bool, body: bytes) -> None:
    def stop(exchange: Exchange) -> bool:
        if body:
            exchange.answer(200, body, length=100)
        return exchange.hang_up(reset=reset)

    origin.fail("stop", stop, times=-1)
    with Getter() as getter:
        number = getter.start(place(origin))
        assert finish(getter, number)[1] == "broken"
        assert getter.look(number)[4]


def test_headers_without_end_are_refused(origin: Origin) -> None:
    origin.fail("long", lambda exchange: exchange.answer(200, b"", *(f"X-{at}: {'y' * 1000}" for at in range(90))))
    with Getter() as getter:
        assert finish(getter, getter.start(place(origin)))[1] == "headers"


def test_a_server_that_says_nothing_is_given_up(origin: Origin) -> None:
    def silent(exchange: Exchange) -> bool:
        exchange.sock.recv(1)  # until the client hangs up
        return exchange.hang_up()

    origin.fail("silent", silent, times=-1)
    with Getter(silence=0.2) as getter:
        assert finish(getter, getter.start(place(origin)))[1] == "silent"


def test_a_closed_port_refuses_and_names_the_reason() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with Getter() as getter:
            number = getter.start(f"http://127.0.0.1:{port}/")
            assert finish(getter, number)[1] == "refused"
            assert getter.look(number)[2] == 111


def test_what_does_not_speak_tls_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Getter() as getter:
        number = getter.start(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        sock, _ = listener.accept()
        with sock:
            sock.recv(1 << 14)
            sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            assert finish(getter, number)[1] == "no-tls"


def test_a_post_has_its_body_and_a_head_has_none(origin: Origin) -> None:
    with Getter() as getter:
        assert finish(getter, getter.start(place(origin), head=True))[1:] == ("done", b"")
    with Getter() as getter:
        number = getter.start(place(origin), body=b"a=b", headers=["Content-Type: application/x-www-form-urlencoded"])
        finish(getter, number)
    assert origin.asked[-1].headers["content-length"] == "3"


@pytest.mark.parametrize(
    ("url", "headers", "error"),
    [
        ("ftp://host/", [], CorruptError),
        ("http://user:word@host/", [], CorruptError),
        ("http://host/", ["X: a\r\nY: b"], CorruptError),
        ("http://host/", ["X"], CorruptError),
        ("http://host/", ["X: a"] * 17, LimitError),
        ("http://host/" + "x" * 9000, [], LimitError),
    ],
)
def test_what_no_request_may_be_is_refused(url: str, headers: list[str], error: type[Exception]) -> None:
    with Getter() as getter, pytest.raises(error):
        getter.start(url, headers=headers)


def test_a_request_that_is_forgotten_is_not_there(origin: Origin) -> None:
    with Getter() as getter:
        number = getter.start(place(origin))
        getter.drop(number)
        getter.drop(number)
        with pytest.raises(MissingError):
            getter.look(number)
    with pytest.raises(ClosedError):
        getter.look(number)
    getter.close()


def test_there_is_a_bound_for_requests_at_once() -> None:
    with socket.socket() as sock, Getter() as getter:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        for _ in range(64):
            getter.start(url)
        with pytest.raises(LimitError):
            getter.start(url)


def test_its_thread_takes_no_signals() -> None:
    tasks = Path("/proc/self/task")
    before = set(os.listdir(tasks))
    with socket.socket() as nobody, Getter() as getter:
        nobody.bind(("127.0.0.1", 0))
        # A thread that begins blocks them for a moment anyway; this one has done something.
        assert finish(getter, getter.start(f"http://127.0.0.1:{nobody.getsockname()[1]}/"))[1] == "refused"
        (ours,) = set(os.listdir(tasks)) - before
        lines = (tasks / ours / "status").read_text().splitlines()
    (blocked,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")]
    assert blocked >> (signal.SIGINT - 1) & 1
    assert blocked >> (signal.SIGTERM - 1) & 1


RESOLVER = """
#include <netdb.h>
#include <stddef.h>
#include <unistd.h>
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (name == NULL || service == NULL || hints == NULL || found == NULL)
        return EAI_FAIL;
    if (write(1, "asked\\n", 6) == 6)
        for (;;)
            pause();
    return EAI_FAIL;
}
"""

GIVEN_UP = """
import os, sys
from cext.fetch import Getter
getter = Getter(connect=1e6)
number = getter.start("http://name.example/")
assert os.read(int(sys.argv[1]), 6) == b"asked\\n"
getter.drop(number)
getter.wait(1)
getter.close()
os.write(2, b"closed")
os._exit(0)
"""


def test_what_is_given_up_does_not_wait_for_a_resolver_that_never_answers(tmp_path: Path) -> None:
    (tmp_path / "resolver.c").write_text(RESOLVER)
    library = tmp_path / "resolver.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "resolver.c"], check=True)
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as said:
        done = subprocess.run(
            [sys.executable, "-c", GIVEN_UP, str(reader)],
            env={**os.environ, "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')}:{library}".lstrip(":")},
            stdout=said,
            stderr=subprocess.PIPE,
            pass_fds=(reader,),
            timeout=PATIENCE_S,
            cwd=ROOT,
            check=False,
        )
    assert done.stderr == b"closed"


FORKS = """
import os, sys
from cext.fetch import Getter
getter = Getter()
number = getter.start(sys.argv[1])
for _ in range(20):
    child = os.fork()
    if child == 0:
        getter.close()  # does nothing, and does not hang
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
body = b""
while not getter.look(number)[1]:
    getter.wait(1)
print(len(getter.take(number)), getter.look(number)[1])
"""


def test_a_child_that_is_forked_while_bytes_come_in_can_let_go_of_it(origin: Origin) -> None:
    # Pythons from 3.12 on warn of any fork beside a thread; this one is made with all of them parked.
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, place(origin)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == (f"{len(DATA)} done\n", "")


INTERRUPTED = """
import ctypes, functools, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
raise_signal = getattr(ctypes.CDLL(None), "raise")  # Python's would act on it
os.register_at_fork(after_in_parent=functools.partial(raise_signal, signal.SIGINT))
from cext.fetch import Getter
getter = Getter()
number = getter.start(sys.argv[1])
try:
    child = os.fork()
    if child == 0:
        os._exit(0)
except KeyboardInterrupt:
    print("interrupted")
while not getter.look(number)[1]:
    getter.wait(1)
print(getter.look(number)[1])
"""


def test_an_interrupt_during_a_fork_comes_after_it_and_leaves_nothing_parked(origin: Origin) -> None:
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", INTERRUPTED, place(origin)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\ndone\n", "")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("certificate")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    words += ["2", "-subj", "/CN=own", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(place / "key.pem")]
    subprocess.run([*words, "-out", str(place / "cert.pem")], check=True, capture_output=True)
    return place / "cert.pem"


def test_a_certificate_that_nobody_signed_is_not_trusted(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    with serving(DATA, context=context) as origin, Getter() as getter:
        refused = getter.start(place(origin))
        assert finish(getter, refused)[1] == "untrusted"
        assert "self-signed certificate" in getter.look(refused)[4]
        trusting = getter.start(place(origin), authorities=certificate.read_text())
        assert finish(getter, trusting) == (206, "done", DATA)
    with serving(DATA, context=context) as origin, Getter(authorities=str(certificate)) as getter:
        assert finish(getter, getter.start(place(origin))) == (206, "done", DATA)
