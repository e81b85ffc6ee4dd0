"""Origins as clients and renewers name them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from lazyfs import renewer
from lazyfs.fetch_process import HELD_MAX
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


@pytest.fixture
def idle_renewer() -> Iterator[renewer._Renewer]:
    """Without a fetcher, and in no loop."""
    origins = os.memfd_create("origins", os.MFD_CLOEXEC)
    with socket.socket(socket.AF_UNIX) as listener:
        it = renewer._Renewer(listener, -1, -1, origins)
        yield it
        os.close(it._woken)
    os.close(origins)


def test_a_fetcher_that_is_only_slow_gets_more_time_after_each_that_was_killed(
    idle_renewer: renewer._Renewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = idle_renewer
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, _: killed.append(process))
    patience = [it._patience_s]
    it._child = 1 << 30
    for _ in range(8):
        it._hangs_at = 0.0
        it._ping()
        patience.append(it._patience_s)
    assert killed == 8 * [it._child]
    assert patience[0] < patience[1] < patience[2]
    assert patience == sorted(patience)
    assert 60 < patience[-1] < 600
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        it._lines = ours
        theirs.sendall(8 * b'{"pong": true}\n')
        it._hear()
    assert it._patience_s == patience[0]


def test_a_fetcher_that_takes_no_more_lines_is_told_once_and_then_killed(idle_renewer: renewer._Renewer) -> None:
    it = idle_renewer
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.settimeout(0.01)
        it._lines = ours
        it._tell({"much": "x" * (4 << 20)})
        assert it._lines is None
        assert it._hangs_at <= time.monotonic()
        it._tell({"more": 1})  # not another wait


def test_a_fetcher_that_ends_no_line_is_heard_no_longer(idle_renewer: renewer._Renewer) -> None:
    it = idle_renewer
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        it._lines = ours
        for _ in range(2 * HELD_MAX >> 14):
            if it._lines is None:
                break
            theirs.sendall(b"x" * (1 << 14))
            it._hear()
        assert it._lines is None
        assert len(it._received) < 2 * HELD_MAX


def test_a_proxy_is_the_one_that_the_environment_names_for_the_scheme() -> None:
    environment = {"HTTPS_PROXY": "http://p:1", "http_proxy": "http://p:2", "NO_PROXY": "near"}
    assert proxies_for("https://a/b", environment) == {"proxy": "http://p:1", "no_proxy": "near"}
    assert proxies_for("http://a/b", environment) == {"proxy": "http://p:2", "no_proxy": "near"}
    assert proxies_for("http://a/b", {}) == {"proxy": None, "no_proxy": None}
    assert proxies_for("http://a/b", {"ALL_PROXY": "http://p:3"})["proxy"] == "http://p:3"
