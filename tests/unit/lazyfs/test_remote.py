"""Origins as clients and renewers name them."""

from __future__ import annotations

from lazyfs import renewer
from lazyfs.remote import Origin, RegistryHost, RegistryOrigin, WebSource, number_of, words_of
from registry.proxies import proxies_for

PROBE = ("sha256:" + "0" * 64, 7)


def test_the_same_origin_has_the_same_number_whoever_names_it() -> None:
    hosts = {"b": RegistryHost(), "a": RegistryHost(plain_http=True, mirrors=("m",))}
    turned = dict(reversed(hosts.items()))
    first = number_of(words_of(RegistryOrigin("h/me/app", PROBE, hosts)))
    assert first == number_of(words_of(RegistryOrigin("h/me/app", PROBE, turned)))
    assert 0 < first < 1 << 31


def test_origins_that_differ_in_anything_have_other_numbers() -> None:
    origins: list[Origin] = [
        RegistryOrigin("h/me/app", PROBE),
        RegistryOrigin("h/me/other", PROBE),
        RegistryOrigin("h/me/app", PROBE, {"h": RegistryHost()}),
        RegistryOrigin("h/me/app", PROBE, {"h": RegistryHost(ca="/x")}),
        (WebSource("http://h/{digest}"),),
        (WebSource("http://h/{digest}", ("X: 1",)),),
        (WebSource("http://h/{digest}"), WebSource("http://i/{digest}")),
        (WebSource("http://i/{digest}"), WebSource("http://h/{digest}")),
    ]
    assert len({number_of(words_of(origin)) for origin in origins}) == len(origins)


def test_headers_are_not_shown() -> None:
    assert "secret" not in repr(WebSource("http://h/", ("Authorization: Bearer secret",)))


def test_pauses_grow_and_have_an_end_however_long_a_registry_is_away() -> None:
    pauses = [renewer._pause(failures) for failures in (0, 1, 2, 10, 5000)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1
    assert pauses[-1] < 60


def test_a_proxy_is_the_one_that_the_environment_names_for_the_scheme() -> None:
    environment = {"HTTPS_PROXY": "http://p:1", "http_proxy": "http://p:2", "NO_PROXY": "near"}
    assert proxies_for("https://a/b", environment) == {"proxy": "http://p:1", "no_proxy": "near"}
    assert proxies_for("http://a/b", environment) == {"proxy": "http://p:2", "no_proxy": "near"}
    assert proxies_for("http://a/b", {}) == {"proxy": None, "no_proxy": None}
    assert proxies_for("http://a/b", {"ALL_PROXY": "http://p:3"})["proxy"] == "http://p:3"
