from __future__ import annotations

from datetime import UTC, datetime

import pytest

from registry.errors import BadAnswerError
from registry.origin import (
    HostSettings,
    Origin,
    api_url,
    is_public,
    origin_of,
    redirected,
    signed_until,
    site_of,
)

PLAIN = {"plain.example:5000": HostSettings(plain_http=True)}
BLOB = "https://registry.example/v2/a/blobs/x"


def test_https_is_spoken_unless_the_host_is_configured() -> None:
    assert api_url("registry.example", PLAIN) == "https://registry.example"
    assert api_url("localhost:5000", PLAIN) == "https://localhost:5000"
    assert api_url("plain.example:5000", PLAIN) == "http://plain.example:5000"
    assert api_url("docker.io", PLAIN) == "https://registry-1.docker.io"


def test_an_origin_is_printed_as_it_is_configured() -> None:
    assert origin_of("https://Registry.Example:443/x", "who") == Origin("https", "registry.example", 443)
    assert str(origin_of("http://[::1]:80/", "who")) == "http://[::1]"
    assert origin_of("http://a.example:5000/", "who").netloc == "a.example:5000"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/v2/b", "https://registry.example/v2/b"),
        ("https://cdn.example/x?sig=%2Fa#part", "https://cdn.example/x?sig=%2Fa"),
        ("//cdn.example/x", "https://cdn.example/x"),
        ("http://plain.example:5000/x", "http://plain.example:5000/x"),
    ],
)
def test_a_redirect_may_be_relative_and_leaves_its_fragment_behind(location: str, target: str) -> None:
    assert redirected(BLOB, location, PLAIN, "registry.example") == target


@pytest.mark.parametrize(
    "location",
    [
        "http://registry.example/x",
        "http://plain.example/x",
        "http://127.0.0.1/x",
        "file:///etc/passwd",
        "unix:/run/docker.sock",
        "javascript:alert(1)",
        "https://me:secret@cdn.example/x",
        "https://cdn.example:port/x",
        "https://cdn.example/\r\nX: y",
        "https://cdn.example/ä",
        "https://cdn example/",
        "",
        "https://cdn.example/" + "x" * 9000,
        "https://[fe80::1%eth0]/",
    ],
)
def test_a_redirect_to_anything_but_https_is_refused(location: str) -> None:
    with pytest.raises(BadAnswerError):
        redirected(BLOB, location, PLAIN, "registry.example")


@pytest.mark.parametrize("name", ["example.com", "a.b.c.org", "8.8.8.8", "2606:4700::1111"])
def test_public_names(name: str) -> None:
    assert is_public(name)


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "host",
        "a.local",
        "x.localhost",
        "metadata.google.internal",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "127.1.2.3",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:10.0.0.1",
        "127.1",
        "0x7f.0.0.1",
    ],
)
def test_names_and_addresses_of_the_local_network_are_not_public(name: str) -> None:
    assert not is_public(name)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("registry-1.docker.io", "docker.io"),
        ("auth.docker.io", "docker.io"),
        ("gitlab.com", "gitlab.com"),
        ("a.b.co.uk", "b.co.uk"),
        ("co.uk", "co.uk"),
        ("one.azurecr.io", "one.azurecr.io"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_the_site_of_a_name(name: str, site: str) -> None:
    assert site_of(name) == site


@pytest.mark.parametrize(
    ("query", "until"),
    [
        ("X-Amz-Date=20260102T030405Z&X-Amz-Expires=1200", datetime(2026, 1, 2, 3, 24, 5, tzinfo=UTC)),
        ("X-Goog-Date=20260102T030405Z&X-Goog-Expires=60", datetime(2026, 1, 2, 3, 5, 5, tzinfo=UTC)),
        ("se=2026-01-02T03%3A04%3A05Z&sig=x", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("Expires=1767322800&Signature=x", datetime(2026, 1, 2, 3, 0, tzinfo=UTC)),
        ("verify=1&expiry=1767322800", datetime(2026, 1, 2, 3, 0, tzinfo=UTC)),
    ],
)
def test_signed_urls_say_until_when_they_are_good(query: str, until: datetime) -> None:
    assert signed_until(f"https://cdn.example/x?{query}") == until.timestamp()


@pytest.mark.parametrize(
    "query",
    ["", "X-Amz-Date=yesterday&X-Amz-Expires=60", "se=never&sig=x", "Expires=-1", "exp=1e9", "exp=" + "9" * 30, "a=b"],
)
def test_other_urls_do_not(query: str) -> None:
    assert signed_until(f"https://cdn.example/x?{query}") is None
