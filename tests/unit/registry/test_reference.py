from __future__ import annotations

import pytest

from registry.errors import BadReferenceError
from registry.reference import Reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "path", "tag"),
    [
        ("app", None, "app", "latest"),
        ("app:v2", None, "app", "v2"),
        ("me/app:v2", None, "me/app", "v2"),
        ("ghcr.io/me/app:v2", "ghcr.io", "me/app", "v2"),
        ("localhost/app", "localhost", "app", "latest"),
        ("localhost:5000/app", "localhost:5000", "app", "latest"),
        ("host:5000/a/b_c/d__e/f-g:T.1", "host:5000", "a/b_c/d__e/f-g", "T.1"),
        (f"app@sha256:{HEX}", None, "app", None),
        (f"app:v1@sha256:{HEX}", None, "app", "v1"),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest"),
    ],
)
def test_a_reference_is_taken_apart_and_put_together_again(
    text: str, host: str | None, path: str, tag: str | None
) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.path, reference.tag) == (host, path, tag)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "App",
        "app:",
        "app:-x",
        "app:" + "t" * 129,
        "a//b",
        "/app",
        "app/",
        "../app",
        "a/../b",
        "a b",
        "app\n",
        "app:v1\n",
        "a___b",
        "-a",
        "a.",
        "exa mple.com/app",
        "host:port/app",
        "x" * 256,
        "app@sha256:" + "A" * 64,
        "app@sha256:" + "a" * 63,
        "app@sha256:" + "a" * 64 + "\n",
        "app@md5:" + "a" * 32,
        "app@",
        "http://host/app",
        "é",
    ],
)
def test_what_breaks_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(BadReferenceError):
        Reference.parse(text)
