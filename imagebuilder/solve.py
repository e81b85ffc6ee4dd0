"""Requirements to pinned wheels: uv resolves on the host, for the Python and platform of the image.

Only wheels count, so nothing of a package is executed. uv leaves one wheel for each package, with its SHA-256; whoever
fetches it checks that. The first index that knows a package is the only one asked for it (CVE-2018-20225), extra
indexes before the default one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from cext.errors import UnsupportedError
from imagebuilder.errors import SolveError
from imagebuilder.pip_settings import PipSettings, has_credentials, hide_credentials

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(r"[A-Za-z0-9_.+!]+(-[A-Za-z0-9_.+!]+){4,5}\.whl")
_OUTPUT = "pylock.onesec.toml"
_WORDS_MAX = 600

# pip's option -> uv's; variables of uv that say the same and are the user's own word to uv, so they win
_LISTS = {
    "extra_index_url": ("--extra-index-url", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
    "find_links": ("--find-links", ("UV_FIND_LINKS",)),
    "trusted_host": ("--allow-insecure-host", ("UV_INSECURE_HOST",)),
    "constraint": ("--constraints", ("UV_CONSTRAINT",)),
}


@dataclass(frozen=True, slots=True)
class Target:
    """What wheels have to fit. python: such as "3.11". platform: as uv's --python-platform names it."""

    python: str
    platform: str


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """sha256: hex. size: as the index says, None where it does not."""

    name: str
    version: str
    url: str
    sha256: str
    size: int | None = None

    @property
    def filename(self) -> str:
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])


@dataclass(frozen=True, slots=True)
class Question:
    """What uv is asked. The fields of PipInstall, with the text of the requirements file."""

    requirements: tuple[str, ...]
    target: Target
    settings: PipSettings


def find_uv() -> str:
    try:
        from uv import find_uv_bin

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise UnsupportedError("pip_install needs uv, which is not installed", hint="pip install uv")
    return found


def flags(settings: PipSettings, environment: Mapping[str, str]) -> list[str]:
    """pip's settings in the words of uv, but for what `surroundings` says. Pure."""
    words: list[str] = []
    if settings.index_url and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environment.keys():
        words += [] if has_credentials(settings.index_url) else ["--default-index", settings.index_url]
    for field, (flag, variables) in _LISTS.items():
        values: Sequence[str] = getattr(settings, field)
        if not set(variables) & environment.keys() and not any(map(has_credentials, values)):
            for value in values:
                words += [flag, value]
    if settings.cert and "SSL_CERT_FILE" not in environment:
        words += ["--cert", settings.cert]
    if settings.no_index:
        words.append("--no-index")
    if settings.pre:
        words += ["--prerelease", "allow"]
    return words


def surroundings(settings: PipSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment uv runs in: ours, with what pip's settings say about proxies and client certificates, and with
    what has credentials in it: everybody on the host can read the words of a call.
    """
    more = {}
    if settings.index_url and has_credentials(settings.index_url):
        more["UV_DEFAULT_INDEX"] = settings.index_url
    for field, (_, variables) in _LISTS.items():
        values: Sequence[str] = getattr(settings, field)
        if any(map(has_credentials, values)):
            more[variables[-1]] = ("," if field == "find_links" else " ").join(values)
    more = {name: value for name, value in more.items() if name not in environment}
    if settings.proxy:
        more |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), settings.proxy)
    if settings.client_cert:
        more["SSL_CLIENT_CERT"] = settings.client_cert
    return {**environment, **more, "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def command(uv: str, question: Question, environment: Mapping[str, str]) -> list[str]:
    """Pure. Reads requirements from stdin, writes _OUTPUT in the working directory."""
    target = question.target
    return [
        uv, "pip", "compile", "-", "--format", "pylock.toml", "--output-file", _OUTPUT, "--no-header",
        "--python-version", target.python, "--python-platform", target.platform, "--only-binary", ":all:",
        "--no-python-downloads", "--index-strategy", "first-index", "--quiet", *flags(question.settings, environment),
    ]  # fmt: skip


def solve(question: Question, environment: Mapping[str, str]) -> tuple[PinnedWheel, ...]:
    """Asks uv; blocks. Sorted by name. Raises SolveError with uv's own words, UnsupportedError without uv."""
    uv = find_uv()
    # an empty directory: no project's uv.toml or pyproject.toml has a say, the user's and the system's have
    with tempfile.TemporaryDirectory(prefix="onesec-solve-") as directory:
        done = subprocess.run(
            command(uv, question, environment),
            cwd=directory,
            env=surroundings(question.settings, environment),
            input="\n".join(question.requirements).encode() + b"\n",
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SolveError(*_explain(done.stderr.decode(errors="replace"), question))
        with open(f"{directory}/{_OUTPUT}", "rb") as file:
            return parse_lock(file.read())


def _explain(words: str, question: Question) -> tuple[str, str]:
    text = hide_credentials(" ".join(words.replace("╰─▶", ":").replace("×", "").replace("│", "").split()))
    text = text[:_WORDS_MAX] + ("…" if len(text) > _WORDS_MAX else "")
    hint = f"wheels for Python {question.target.python} on {question.target.platform} are looked for, and only wheels"
    return text or "uv failed without a word", hint


def parse_lock(raw: bytes) -> tuple[PinnedWheel, ...]:
    """The wheels of a pylock.toml (PEP 751) that uv wrote for one platform."""
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SolveError(f"uv's answer is not TOML: {error}") from error
    if document.get("lock-version") != "1.0":
        raise SolveError(f"uv's answer: lock-version: got {document.get('lock-version')!r}, want 1.0")
    return tuple(sorted(map(_pinned, document.get("packages", [])), key=lambda wheel: wheel.name))


def _pinned(package: Mapping[str, Any]) -> PinnedWheel:
    name, version = str(package.get("name")), str(package.get("version"))
    wheels: Sequence[Mapping[str, Any]] = package.get("wheels", [])
    if archive := package.get("archive"):  # a requirement by URL
        wheels = [archive]
    if len(wheels) != 1:
        raise SolveError(f"{name} {version}: got {len(wheels)} wheels, want 1", hint="source packages are not built")
    (wheel,) = wheels
    url = wheel.get("url") or "file://" + os.path.abspath(str(wheel.get("path")))
    digest = str(wheel.get("hashes", {}).get("sha256", ""))
    if not _SHA256.fullmatch(digest):
        raise SolveError(f"{name} {version}: {hide_credentials(url)}: no SHA-256 is known")
    pinned = PinnedWheel(name, version, url, digest, wheel.get("size"))
    if not _WHEEL.fullmatch(pinned.filename):
        raise SolveError(
            f"{name} {version}: {pinned.filename[:200]!r} is no wheel", hint="source packages are not built"
        )
    return pinned
