from __future__ import annotations

import pytest

from cext.errors import UnsupportedError
from imagebuilder import debian
from imagebuilder.debian import Mirrors

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
# inside
Components: main
 contrib
Signed-By: /k.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://other.example/apt
Suites: nodistro
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/k.gpg] http://old.example/debian bullseye main contrib # here
deb http://old.example/debian-security bullseye/updates main
deb-src http://src.example/debian bullseye main
"""


def test_mirrors_are_found_in_both_formats_and_only_debians_count() -> None:
    assert debian.mirrors(debian.parse_deb822(DEB822)) == Mirrors(
        ("http://mirror.example/debian",), ("http://mirror.example/debian-security",)
    )
    assert debian.mirrors(debian.parse_one_line(ONE_LINE)) == Mirrors(
        ("http://old.example/debian",), ("http://old.example/debian-security",)
    )


def test_a_host_that_names_no_debian_mirror_is_told_so() -> None:
    entries = debian.parse_one_line("deb http://other.example/ubuntu noble main\n")
    with pytest.raises(UnsupportedError, match="names no Debian mirror"):
        debian.mirrors(entries)


def test_the_suite_is_the_images_on_the_hosts_mirror() -> None:
    text = debian.sources(debian.release_for("3.13"), Mirrors(("http://m/d",), ("http://m/s",)), "/k.gpg")
    assert text.splitlines() == [
        "deb [signed-by=/k.gpg] http://m/d trixie main",
        "deb [signed-by=/k.gpg] http://m/d trixie-updates main",
        "deb [signed-by=/k.gpg] http://m/s trixie-security main",
    ]


def test_mirrors_and_proxies_are_not_on_the_command_line() -> None:
    words = debian.command(debian.release_for("3.11"), ("git",), "/tmp/x y")
    assert "--include=ca-certificates,git,python3" in words
    assert not any("http" in word for word in words)
    assert words[-3:] == ["bookworm", "-", "/tmp/x y/mirrors.list"]
