from __future__ import annotations

import pytest

from cext.errors import UsageError
from imagebuilder import pip_settings
from imagebuilder.pip_settings import PipSettings
from imagebuilder.solve import Question, Target, command, flags, surroundings

FILES = {
    "/etc/pip.conf": "[global]\nindex-url = https://a/simple\nfind-links =\n    /one\n    /two\n"
    "[install]\nno-index = yes\n",
    "/home/u/.config/pip/pip.conf": "[global]\nindex_url = https://b/simple\n[list]\nindex-url = https://never/\n",
}


def load(environment: dict[str, str]) -> PipSettings:
    return pip_settings.load({"HOME": "/home/u", **environment}, read=FILES.get)


def test_files_are_read_in_pips_order_and_the_last_wins() -> None:
    assert load({}) == PipSettings(index_url="https://b/simple", find_links=("/one", "/two"), no_index=True)


def test_the_environment_wins_over_files() -> None:
    found = load({"PIP_INDEX_URL": "https://c/simple", "PIP_FIND_LINKS": "/three /four", "PIP_NO_INDEX": "0"})
    assert found == PipSettings(index_url="https://c/simple", find_links=("/three", "/four"))


def test_a_null_config_file_switches_all_files_off() -> None:
    assert load({"PIP_CONFIG_FILE": "/dev/null"}) == PipSettings()


def test_a_flag_that_is_no_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="no_index: got 'perhaps'"):
        load({"PIP_NO_INDEX": "perhaps"})


def test_a_broken_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"/etc/pip\.conf"):
        pip_settings.load({}, paths=["/etc/pip.conf"], read=lambda _: "index-url = x\n")


def test_settings_become_flags_of_uv() -> None:
    settings = PipSettings("https://i", ("https://e",), ("/l",), ("h",), ("c.txt",), "/ca.pem", no_index=True, pre=True)
    assert flags(settings, {}) == [
        "--default-index", "https://i", "--extra-index-url", "https://e", "--find-links", "/l",
        "--allow-insecure-host", "h", "--constraints", "c.txt", "--cert", "/ca.pem", "--no-index",
        "--prerelease", "allow",
    ]  # fmt: skip


def test_what_the_user_told_uv_wins() -> None:
    settings = PipSettings(index_url="https://i", extra_index_url=("https://e",))
    assert flags(settings, {"UV_DEFAULT_INDEX": "x", "UV_INDEX": "y"}) == []


def test_only_wheels_and_only_the_first_index_count() -> None:
    words = command("uv", Question(("a",), Target("3.11", "x86_64-manylinux_2_36"), PipSettings()), {})
    assert words[words.index("--only-binary") + 1] == ":all:"
    assert words[words.index("--index-strategy") + 1] == "first-index"


def test_a_proxy_reaches_uv_by_its_environment() -> None:
    found = surroundings(PipSettings(proxy="http://p:1"), {"HOME": "/h"})
    assert found["HTTPS_PROXY"] == "http://p:1"
    assert found["HOME"] == "/h"
