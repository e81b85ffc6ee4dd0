"""The fetch engine against an origin that fails on purpose. Each test shows that the fault was met."""

from __future__ import annotations

import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cext import fetch
from cext.errors import ClosedError, CorruptError, LimitError, MissingError
from cext.fetch import SPAN, Fetcher
from tests.support import origin as faults
from tests.support.origin import Exchange, Origin, serving
from tests.support.waiting import PATIENCE_S, eventually

DATA = random.Random(4).randbytes(3 * SPAN + 12345)
SIZE = len(DATA)
READS = 30
"""Of each thread in the mixture."""


NO_DOUBLES = 600.0
"""Seconds until a request is doubled, but where that is tested: on a busy machine any request may be late."""


@contextmanager
def fetching(*origins: Origin, **options: float) -> Iterator[Fetcher]:
    """Origin 1, with these as its sources 1, 2, …"""
    settings: dict[str, float] = {"backoff": 0.01, "backoff_max": 0.1, "hedge_floor": NO_DOUBLES, **options}
    with Fetcher(**settings) as fetcher:  # type: ignore[arg-type]
        for number, origin in enumerate(origins, 1):
            fetcher.set_source(number, origin.url)
        fetcher.set_origin(1, list(range(1, len(origins) + 1)))
        yield fetcher


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving(DATA) as found:
        yield found


def digest(origin: Origin) -> bytes:
    (name,) = origin.blobs
    return bytes.fromhex(name)


def read(fetcher: Fetcher, origin: Origin, offset: int = 0, length: int = SIZE, **options: float) -> bytes:
    return fetcher.read(1, digest(origin), SIZE, offset, length, **options)[0]  # type: ignore[arg-type]


def test_a_range_is_asked_for_in_aligned_spans(origin: Origin) -> None:
    with fetching(origin) as fetcher:
        assert read(fetcher, origin, 100, 2 * SPAN) == DATA[100 : 100 + 2 * SPAN]
    assert sorted(asked.headers["range"] for asked in origin.asked) == [
        f"bytes=100-{SPAN - 1}",
        f"bytes={SPAN}-{2 * SPAN - 1}",
        f"bytes={2 * SPAN}-{2 * SPAN + 99}",
    ]
    assert {asked.headers["accept-encoding"] for asked in origin.asked} == {"identity"}


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (SIZE - 1, 1), (0, SIZE), (SPAN - 1, 2), (SPAN, SPAN)])
def test_every_place_of_a_blob_can_be_had(origin: Origin, offset: int, length: int) -> None:
    with fetching(origin) as fetcher:
        assert read(fetcher, origin, offset, length) == DATA[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (0, SIZE + 1), (SIZE - 1, 2), (0, 0)])
def test_a_range_outside_the_blob_is_refused_here(origin: Origin, offset: int, length: int) -> None:
    with fetching(origin) as fetcher, pytest.raises(ValueError):
        read(fetcher, origin, offset, length)
    assert origin.count() == 0


def test_connections_are_used_again(origin: Origin) -> None:
    with fetching(origin) as fetcher:
        for at in range(40):
            assert read(fetcher, origin, at * 1000, 1000) == DATA[at * 1000 : at * 1000 + 1000]
        assert fetcher.statistics()["connections"] == origin.connections == 1


# ---------------------------------------------------------------------- faults

FAULTS = {
    "reset": (faults.reset, "transport"),
    "reset_midway": (faults.reset_midway, "transport"),
    "short_body": (faults.short_body, "length"),
    "short_length": (faults.short_length, "length"),
    "long_body": (faults.long_body, "length"),
    "whole": (faults.whole, "status"),
    "wrong_range": (faults.wrong_range, "range"),
    "wrong_total": (faults.wrong_total, "range"),
    "no_range": (faults.no_range, "range"),
    "encoded": (faults.encoded, "encoding"),
    "silent": (faults.silent, "timeouts"),
    "404": (faults.status(404), "status"),
    "416": (faults.status(416), "status"),
    "429": (faults.status(429), "status"),
    "500": (faults.status(500), "status"),
    "503": (faults.status(503), "status"),
    "204": (faults.status(204), "status"),
    "nowhere": (faults.status(302), "redirect"),
    "ftp": (faults.redirected("ftp://127.0.0.1/x"), "redirect"),
    "file": (faults.redirected("file:///etc/passwd"), "redirect"),
    "user": (faults.redirected("http://me:secret@127.0.0.1/x"), "redirect"),
}
STALLS = {"silent": {"stall_timeout": 0.5}}
"""And on a busy machine an answer without a fault may stall as well."""


@pytest.mark.parametrize("name", FAULTS)
def test_an_answer_with_a_fault_is_asked_for_again(origin: Origin, name: str) -> None:
    fault, counted = FAULTS[name]
    with fetching(origin, **STALLS.get(name, {})) as fetcher:
        origin.fail(name, fault, times=2)
        data, source, tries = fetcher.read(1, digest(origin), SIZE, 5000, 70000, timeout=PATIENCE_S)
        assert data == DATA[5000:75000]
        statistics = fetcher.statistics()
    assert origin.met(name) == 2
    if name not in STALLS:
        assert (source, tries) == (1, 3)
        assert statistics[counted] == 2, statistics
        assert statistics["retries"] == 2
    else:
        assert tries >= 3
        assert statistics[counted] >= 2, statistics


@pytest.mark.parametrize("name", FAULTS)
def test_a_source_with_a_fault_gives_way_to_the_next_one_at_once(origin: Origin, name: str) -> None:
    fault, _ = FAULTS[name]
    options = {"backoff": 0.01 if name in STALLS else 600, "backoff_max": 600, **STALLS.get(name, {})}
    with serving(DATA) as bad, fetching(bad, origin, **options) as fetcher:
        bad.fail(name, fault, times=-1)
        data, source, tries = fetcher.read(1, digest(origin), SIZE, 5000, 70000, timeout=PATIENCE_S)
        assert (data, source) == (DATA[5000:75000], 2)
        if name not in STALLS:
            assert (tries, bad.met(name)) == (2, 1)


def test_a_host_that_nobody_listens_on_gives_way_to_the_next_one(origin: Origin) -> None:
    with serving() as gone:
        pass
    with fetching(gone, origin) as fetcher:
        assert read(fetcher, origin) == DATA
        statistics = fetcher.statistics()
    assert statistics["transport"] >= 1
    assert statistics["sources"][1]["bytes"] == SIZE


def test_an_unwell_source_is_not_asked_for_each_range(origin: Origin) -> None:
    with serving(DATA) as bad, fetching(bad, origin, backoff=600, backoff_max=600) as fetcher:
        bad.fail("503", faults.status(503), times=-1)
        for at in range(20):
            assert read(fetcher, origin, at * 100, 100) == DATA[at * 100 : at * 100 + 100]
        assert bad.count() == 2


def test_how_long_a_server_asks_to_wait_is_honoured(origin: Origin) -> None:
    with fetching(origin) as fetcher:
        origin.fail("wait", faults.status(429, "Retry-After: 1"))
        start = time.monotonic()
        assert read(fetcher, origin, 0, 10) == DATA[:10]
        assert time.monotonic() - start >= 1
    assert origin.met("wait") == 1


def test_a_blob_that_stays_away_is_an_error_at_its_deadline_with_the_cause(origin: Origin) -> None:
    with fetching(origin) as fetcher:
        origin.fail("gone", faults.status(503), times=-1)
        start = time.monotonic()
        with pytest.raises(MissingError, match=f"deadline: http://127.0.0.1:{origin.port}: got status 503, want 206"):
            read(fetcher, origin, timeout=2)
        assert time.monotonic() - start >= 2
        assert 2 <= origin.met("gone") <= 200  # the backoff holds it back
        origin.heal()
        assert read(fetcher, origin) == DATA


def test_an_origin_without_sources_is_waited_for_and_named_as_the_cause(origin: Origin) -> None:
    with Fetcher(hedge_floor=NO_DOUBLES) as fetcher, ThreadPoolExecutor() as pool:
        with pytest.raises(MissingError, match="no source that may be asked"):
            read(fetcher, origin, timeout=0.1)
        waits = pool.submit(read, fetcher, origin)
        fetcher.set_source(1, origin.url)
        fetcher.set_origin(1, [1])
        assert waits.result(PATIENCE_S) == DATA


def test_an_origin_that_is_gone_and_comes_back_is_waited_for(origin: Origin) -> None:
    with fetching(origin) as fetcher, ThreadPoolExecutor() as pool:
        assert read(fetcher, origin, 0, 10) == DATA[:10]
        origin.vanish()
        waits = pool.submit(read, fetcher, origin)
        eventually(lambda: fetcher.statistics()["transport"] > 2)
        assert not waits.done()
        origin.heal()
        assert waits.result(PATIENCE_S) == DATA


def test_bytes_that_were_rejected_come_from_another_source_first(origin: Origin) -> None:
    with serving(DATA) as liar, fetching(liar, origin) as fetcher:
        liar.fail("flipped", faults.flipped, times=-1)
        data, source, _ = fetcher.read(1, digest(origin), SIZE, 0, 1000)
        assert data != DATA[:1000]
        data, source, _ = fetcher.read(1, digest(origin), SIZE, 0, 1000, rejected=1, avoid=source)
        assert (data, source) == (DATA[:1000], 2)
        assert origin.asked[0].headers["cache-control"] == "no-cache"
        assert fetcher.statistics()["rejected"] == 1


# ---------------------------------------------------------------------- one flight, two queues, doubles


def test_many_readers_of_a_span_are_one_request(origin: Origin) -> None:
    gate = threading.Event()
    origin.fail("held", faults.held(gate))
    with fetching(origin) as fetcher, ThreadPoolExecutor(50) as pool:
        found = [pool.submit(read, fetcher, origin, 0, SPAN) for _ in range(50)]
        eventually(lambda: fetcher.statistics()["joined"] == 49)
        gate.set()
        assert all(one.result() == DATA[:SPAN] for one in found)
        assert origin.count() == 1


def test_hundreds_of_ranges_are_outstanding_at_once(origin: Origin) -> None:
    gate = threading.Event()
    origin.fail("held", faults.held(gate), times=-1)
    with fetching(origin, flights=300) as fetcher, ThreadPoolExecutor(200) as pool:
        found = [pool.submit(read, fetcher, origin, at * 10, 10) for at in range(200)]
        eventually(lambda: origin.most_at_once >= 200)
        gate.set()
        assert [one.result() for one in found] == [DATA[at * 10 : at * 10 + 10] for at in range(200)]


def test_what_is_demanded_flies_before_what_is_prefetched(origin: Origin) -> None:
    gate = threading.Event()
    origin.fail("held", faults.held(gate))
    with fetching(origin, flights=1) as fetcher, ThreadPoolExecutor(30) as pool:
        early = [pool.submit(read, fetcher, origin, 100 * at, 100, prefetch=True) for at in range(10)]
        eventually(lambda: (fetcher.statistics()["wants"], origin.count()) == (10, 1))
        demanded = pool.submit(read, fetcher, origin, SPAN, 7)
        eventually(lambda: fetcher.statistics()["wants"] == 11)
        gate.set()
        assert demanded.result() == DATA[SPAN : SPAN + 7]
        for at, one in enumerate(early):
            assert one.result() == DATA[100 * at : 100 * at + 100]
    order = [asked.headers["range"] for asked in origin.asked]
    assert order.index(f"bytes={SPAN}-{SPAN + 6}") == 1


def test_a_prefetch_that_becomes_demanded_is_raised(origin: Origin) -> None:
    gate = threading.Event()
    origin.fail("held", faults.held(gate))
    with fetching(origin, flights=1) as fetcher, ThreadPoolExecutor(30) as pool:
        early = []
        for at in range(10):  # one after the other: the last one in the queue is known
            early.append(pool.submit(read, fetcher, origin, 100 * at, 100, prefetch=True))
            eventually(lambda at=at: fetcher.statistics()["wants"] == at + 1)  # type: ignore[misc]
        eventually(lambda: origin.count() == 1)
        raised = pool.submit(read, fetcher, origin, 900, 100)
        eventually(lambda: fetcher.statistics()["raised"] == 1)
        gate.set()
        assert raised.result() == DATA[900:1000]
        for one in early:
            one.result()
    assert [asked.headers["range"] for asked in origin.asked].index("bytes=900-999") == 1


def test_a_request_that_is_late_is_doubled_at_the_other_source(origin: Origin) -> None:
    gate = threading.Event()
    with serving(DATA) as second, fetching(origin, second, hedge_floor=0.3) as fetcher:
        for at in range(32):
            read(fetcher, origin, at * 100, 100)
        origin.fail("stuck", faults.held(gate))
        data, source, _ = fetcher.read(1, digest(origin), SIZE, 0, 50000)
        assert (data, source) == (DATA[:50000], 2)
        statistics = fetcher.statistics()
        assert statistics["hedges"] >= statistics["hedges_won"] >= 1
        assert origin.met("stuck") == 1
        gate.set()


def test_doubles_are_a_bounded_share(origin: Origin) -> None:
    with fetching(origin, hedge_floor=0.01) as fetcher, ThreadPoolExecutor(8) as pool:
        for at in range(32):
            read(fetcher, origin, at * 100, 100)
        origin.fail("late", faults.late(0.3), times=-1, where=lambda exchange: exchange.first % 1000 == 0)
        list(pool.map(lambda at: read(fetcher, origin, at * 100, 100), range(32, 200)))
        statistics = fetcher.statistics()
    assert 0 < statistics["hedges"] <= 4 + 200 / 20


def test_latencies_and_the_slowest_ranges_are_told(origin: Origin) -> None:
    origin.fail("late", faults.late(0.2), where=lambda exchange: exchange.first == 7700)
    with fetching(origin) as fetcher:
        for at in range(100):
            read(fetcher, origin, at * 100, 100)
        statistics = fetcher.statistics()
    assert 0 < statistics["p50_ns"] <= statistics["p95_ns"]
    (late,) = (one for one in statistics["slowest"] if one["offset"] == 7700)
    assert late["digest"] == digest(origin)
    assert late["seconds"] >= 0.2


# ---------------------------------------------------------------------- credentials


def test_a_source_that_says_401_is_stale_until_it_is_set_again(origin: Origin) -> None:
    origin.token = "new"
    news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with Fetcher(news=news, hedge_floor=NO_DOUBLES) as fetcher, ThreadPoolExecutor() as pool:
            fetcher.set_source(1, origin.url, headers=["Authorization: Bearer old"])
            fetcher.set_origin(1, [1])
            waits = pool.submit(read, fetcher, origin)
            eventually(lambda: fetcher.statistics()["stale"] == 1)
            assert os.eventfd_read(news) == 1
            assert fetcher.news() == [(1, 401)]
            eventually(lambda: fetcher.statistics()["active"] == 0)
            asked = origin.count()
            time.sleep(0.2)
            assert origin.count() == asked  # nobody knocks at a closed door
            fetcher.set_source(1, origin.url, headers=["Authorization: Bearer new"])
            assert waits.result(PATIENCE_S) == DATA
    finally:
        os.close(news)


def test_a_stale_source_gives_way_to_the_next_one(origin: Origin) -> None:
    with serving(DATA) as closed, fetching(closed, origin) as fetcher:
        closed.token = "secret"
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
        assert fetcher.news() == [(1, 401)]
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
        assert closed.count() == 1


def test_credentials_whose_time_has_passed_are_not_sent(origin: Origin) -> None:
    with Fetcher(hedge_floor=NO_DOUBLES) as fetcher:
        fetcher.set_source(1, origin.url, headers=["Authorization: Bearer x"], lifetime=0.01)
        fetcher.set_origin(1, [1])
        time.sleep(0.02)
        with pytest.raises(MissingError):
            read(fetcher, origin, timeout=0.1)
        assert fetcher.news() == [(1, 0)]
        assert origin.count() == 0


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_without_credentials_to_another_host(origin: Origin, code: int) -> None:
    origin.token = "secret"
    with serving(DATA) as store, Fetcher(hedge_floor=NO_DOUBLES) as fetcher:
        fetcher.set_source(1, origin.url, headers=["Authorization: Bearer secret"])
        fetcher.set_origin(1, [1])
        origin.fail("redirected", faults.redirected(store.url.replace("{digest}", "{name}"), code), times=-1)
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
        assert "authorization" in origin.asked[0].headers
        assert "authorization" not in store.asked[0].headers
        read(fetcher, origin, 5000, 1000)
        assert origin.met("redirected") == origin.count() == 1  # where it led is remembered
        assert store.count() == 2


def test_a_redirect_within_the_host_keeps_credentials(origin: Origin) -> None:
    origin.token = "secret"
    origin.fail("redirected", faults.redirected("/elsewhere/{name}"))
    with Fetcher(hedge_floor=NO_DOUBLES) as fetcher:
        fetcher.set_source(1, origin.url, headers=["Authorization: Bearer secret"])
        fetcher.set_origin(1, [1])
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
    assert origin.asked[1].path.startswith("/elsewhere/")
    assert origin.asked[1].headers["authorization"] == "Bearer secret"


def test_credentials_dropped_on_the_way_do_not_come_back(origin: Origin) -> None:
    with serving(DATA) as other, Fetcher(backoff=0.01, hedge_floor=NO_DOUBLES) as fetcher:
        fetcher.set_source(1, origin.url, headers=["Authorization: Bearer secret"])
        fetcher.set_origin(1, [1])
        origin.fail("there", faults.redirected(other.url.replace("{digest}", "{name}")))
        other.fail("back", faults.redirected(f"http://127.0.0.1:{origin.port}/back/{{name}}"))
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
    assert origin.met("there") == other.met("back") == 1
    assert origin.asked[-1].path.startswith("/back/")
    assert "authorization" not in origin.asked[-1].headers


def test_redirects_in_a_circle_end(origin: Origin) -> None:
    origin.fail("circle", faults.redirected("/blobs/{name}"), times=12)
    with fetching(origin) as fetcher:
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
        assert fetcher.statistics()["redirect"] == 2
    assert origin.met("circle") == 12


def test_a_signed_place_that_has_expired_is_asked_for_anew(origin: Origin) -> None:
    with fetching(origin) as fetcher:
        origin.fail("signed", faults.signed(origin, 900), times=-1, where=lambda e: e.path.startswith("/blobs/"))
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
        origin.ahead = 1000
        assert read(fetcher, origin, 5000, 1000) == DATA[5000:6000]
        assert origin.met("signed") == 2
        assert fetcher.statistics()["stale"] == 0


def test_a_redirect_to_a_place_already_expired_is_retried_not_called_stale(origin: Origin) -> None:
    with fetching(origin) as fetcher:
        origin.fail("expired", faults.signed(origin, -1), times=3, where=lambda e: e.path.startswith("/blobs/"))
        assert read(fetcher, origin, 0, 1000) == DATA[:1000]
        assert fetcher.news() == []
        assert fetcher.statistics()["status"] == 3
    assert origin.met("expired") == 3


@pytest.mark.parametrize(
    ("url", "location", "to", "same"),
    [
        ("http://a/x", "/y", "http://a/y", True),
        ("http://a/x", "http://a:80/y", "http://a:80/y", True),
        ("http://a/x", "http://a:81/y", "http://a:81/y", False),
        ("http://a/x", "//b/y", "http://b/y", False),
        ("http://a/x", "https://a/y", "https://a/y", False),
        ("https://A/x", "https://a/y#z", "https://a/y", True),
        ("https://a/x/y", "../z?q=1", "https://a/z?q=1", True),
    ],
)
def test_where_a_redirect_leads(url: str, location: str, to: str, same: bool) -> None:
    assert fetch.redirect(url, location) == (to, same)


@pytest.mark.parametrize(
    "location",
    [
        "http://a/",
        "ftp://a/",
        "file:///etc/passwd",
        "gopher://a/",
        "https://u@a/",
        "https://u:p@a/",
        "https://",
        "\x01",
    ],
)
def test_where_a_redirect_from_https_may_not_lead(location: str) -> None:
    with pytest.raises(CorruptError):
        fetch.redirect("https://a/x", location)


def test_a_redirect_too_long_is_refused() -> None:
    with pytest.raises(LimitError):
        fetch.redirect("https://a/x", "https://a/" + "x" * 9000)


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        (b"bytes 0-9/10", (0, 9, 10)),
        (b"Bytes 5-5/6", (5, 5, 6)),
        (b"bytes 0-9/*", None),
        (b"bytes */10", None),
        (b"bytes 0-10/10", None),
        (b"bytes 5-4/10", None),
        (b"bytes 0-9/10,", None),
        (b"bytes  0-9/10", None),
        (b"bytes=0-9/10", None),
        (b"bytes -1-9/10", None),
        (b"bytes 0-9/99999999999999999999", None),
        (b"", None),
    ],
)
def test_a_content_range_is_exact_or_nothing(value: bytes, meaning: tuple[int, int, int] | None) -> None:
    assert fetch.content_range(value) == meaning


def test_retry_after_is_seconds_or_a_date() -> None:
    assert fetch.retry_after(b"17") == 17
    assert fetch.retry_after(b"Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert fetch.retry_after(b"soon") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 <= fetch.retry_after(later.encode()) <= 100


@pytest.mark.parametrize("header", ["no colon", ": x", "A: b\r\nC: d", "A: b\nC: d", "A B: c", "A: \x7f", "A: ü"])
def test_a_header_that_could_be_two_is_refused(header: str) -> None:
    with Fetcher(hedge_floor=NO_DOUBLES) as fetcher, pytest.raises(CorruptError):
        fetcher.set_source(1, "http://a/{digest}", headers=[header])


@pytest.mark.parametrize("url", ["", "a", "ftp://a/", "file:///x", "http://u:p@a/", "http://", "javascript:x"])
def test_a_source_that_is_no_web_address_is_refused(url: str) -> None:
    with Fetcher(hedge_floor=NO_DOUBLES) as fetcher, pytest.raises(CorruptError):
        fetcher.set_source(1, url)


# ---------------------------------------------------------------------- TLS, life


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    words += ["2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = path.with_name("key.pem")
    subprocess.run([*words, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True)
    return path


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


def test_https_is_read_from_a_host_whose_certificate_is_trusted(certificate: Path) -> None:
    with (
        serving(DATA, context=server_context(certificate)) as origin,
        Fetcher(authorities=str(certificate), hedge_floor=NO_DOUBLES) as fetcher,
    ):
        fetcher.set_source(1, origin.url)
        fetcher.set_origin(1, [1])
        assert read(fetcher, origin) == DATA


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with serving(DATA, context=server_context(certificate)) as origin, fetching(origin) as fetcher:
        with pytest.raises(MissingError, match=r"(?i)certificate|ssl"):
            read(fetcher, origin, timeout=2)
        assert origin.count() == 0


def test_https_does_not_become_http(certificate: Path, origin: Origin) -> None:
    with (
        serving(DATA, context=server_context(certificate)) as safe,
        Fetcher(authorities=str(certificate), hedge_floor=NO_DOUBLES) as fetcher,
    ):
        fetcher.set_source(1, safe.url)
        fetcher.set_origin(1, [1])
        safe.fail("down", faults.redirected(origin.url.replace("{digest}", "{name}")), times=-1)
        with pytest.raises(MissingError, match="got http after https"):
            read(fetcher, safe, timeout=2)
        assert safe.met("down") >= 1
    assert origin.count() == 0


NGINX = """
daemon off; worker_processes 1; user root; pid {here}/pid; error_log {here}/error;
events {{ worker_connections 64; }}
http {{
    log_format short "$server_protocol $status"; access_log {here}/log short;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        root {here};
    }}
}}
"""


@contextmanager
def nginx(here: Path, certificate: Path) -> Iterator[int]:
    """The port of one that serves the directory by HTTP/2."""
    if shutil.which("nginx") is None:
        if os.environ.get("CI") or os.environ.get("ONESEC_REQUIRE_ALL"):
            pytest.fail("this machine lacks nginx")
        pytest.skip("this machine lacks nginx")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        key = certificate.with_name("key.pem")
        (here / "conf").write_text(NGINX.format(here=here, port=port, certificate=certificate, key=key))
        server = subprocess.Popen(
            ["nginx", "-p", here, "-c", here / "conf", "-e", here / "error"],
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env={**os.environ, "NGINX": f"{listener.fileno()};"},  # inherited: no other process can take the port
        )
        try:
            yield port
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def test_http_2_has_many_requests_on_one_connection(certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    with nginx(tmp_path, certificate) as port, Fetcher(authorities=str(certificate), hedge_floor=NO_DOUBLES) as fetcher:
        fetcher.set_source(1, f"https://127.0.0.1:{port}/blob")
        fetcher.set_origin(1, [1])
        with ThreadPoolExecutor(16) as pool:  # again and again: handles are used more than once
            places = [at * 10007 % (SIZE - 90000) for at in range(200)]
            found = pool.map(lambda at: fetcher.read(1, bytes(32), SIZE, at, 90000)[0], places)
            assert all(data == DATA[at : at + 90000] for at, data in zip(places, found, strict=True))
        statistics = fetcher.statistics()
    assert statistics["connections"] == 1
    assert statistics["retries"] == 0
    assert set((tmp_path / "log").read_text().splitlines()) == {"HTTP/2.0 206"}


def test_no_proxy_is_taken_from_the_environment(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with fetching(origin) as fetcher:
        assert read(fetcher, origin, 0, 10, timeout=PATIENCE_S) == DATA[:10]


def test_a_proxy_that_is_named_is_used_but_for_the_hosts_that_are_not(origin: Origin) -> None:
    proxy = f"http://127.0.0.1:{origin.port}"
    with Fetcher(hedge_floor=NO_DOUBLES) as fetcher:
        fetcher.set_source(1, "http://far.invalid/blobs/{digest}", proxy=proxy, no_proxy="near.invalid")
        fetcher.set_source(2, "http://near.invalid/blobs/{digest}", proxy=proxy, no_proxy="near.invalid")
        fetcher.set_origin(1, [1])
        assert read(fetcher, origin, 0, 10) == DATA[:10]
        assert origin.asked[0].path.startswith("http://far.invalid/blobs/")
        fetcher.set_origin(1, [2])
        with pytest.raises(MissingError):
            read(fetcher, origin, 0, 10, timeout=0.3)
        assert origin.count() == 1


def test_closing_ends_what_waits(origin: Origin) -> None:
    origin.fail("gone", faults.status(503), times=-1)
    fetcher = Fetcher()
    fetcher.set_source(1, origin.url)
    fetcher.set_origin(1, [1])
    with ThreadPoolExecutor() as pool:
        waits = [pool.submit(read, fetcher, origin, 0, 10) for _ in range(5)]
        eventually(lambda: origin.met("gone") >= 1)
        fetcher.close()
        for one in waits:
            with pytest.raises(ClosedError):
                one.result(PATIENCE_S)
    with pytest.raises(ClosedError):
        read(fetcher, origin, 0, 10)
    fetcher.close()


def test_many_threads_read_while_everything_fails_and_changes(origin: Origin) -> None:
    """The mixture: each answer is one of many faults, sources are replaced all the time, and every byte is right."""
    kinds = [fault for name, (fault, _) in FAULTS.items() if name != "silent"]
    dice = random.Random(7)
    lock = threading.Lock()

    def sometimes(exchange: Exchange) -> bool:
        with lock:
            fault = dice.choice(kinds) if dice.random() < 0.4 else None
        return fault is not None and fault(exchange)

    origin.fail("mixed", sometimes, times=-1)
    with (
        serving(DATA) as second,
        fetching(origin, second, backoff=0.002, backoff_max=0.01, hedge_floor=0.02) as fetcher,
    ):
        second.fail("mixed", sometimes, times=-1)

        def reader(seed: int) -> None:
            own = random.Random(seed)
            for _ in range(READS):
                offset = own.randrange(SIZE - 1)
                length = own.randrange(1, min(SIZE - offset, 200000) + 1)
                assert read(fetcher, origin, offset, length, timeout=PATIENCE_S) == DATA[offset : offset + length]

        with ThreadPoolExecutor(8) as pool:
            readers = [pool.submit(reader, seed) for seed in range(8)]
            while not all(one.done() for one in readers):
                fetcher.set_source(dice.choice([1, 2]), dice.choice([origin, second]).url)
                fetcher.set_origin(1, dice.choice([[1, 2], [2, 1]]))
                time.sleep(0.01)
            for one in readers:
                one.result()
    assert origin.met("mixed") + second.met("mixed") >= 8 * READS
