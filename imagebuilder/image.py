"""The image DSL: frozen values that compose. Nothing here touches the disk, the network or a clock.

    image = (
        Image.debian_slim(python_version="3.11")
        .pip_install("torch==2.13.0", "numpy")
        .copy_local("app.py", "/app/app.py")
        .workdir("/app")
        .cmd("python3", "app.py")
    )

Each method returns a new Image. Relative host paths are relative to the image file. A wrong argument raises UsageError
at the call, and the message names the line of the image file that made it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

from cext.errors import UsageError

_PYTHON = re.compile(r"3\.[0-9]{1,2}")
_DEBIAN_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_HERE = os.path.dirname(__file__)


@dataclass(frozen=True, slots=True)
class CallSite:
    """The line of the user's file that asked for something. Never part of a cache key."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class OciBase:
    """source: what `onesec import` takes."""

    source: str


@dataclass(frozen=True, slots=True)
class DebianBase:
    """packages: sorted, beyond those that Python itself needs."""

    python_version: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PipInstall:
    """requirements: as in a requirements file, in the order given."""

    requirements: tuple[str, ...]
    requirements_file: str | None = None
    index_url: str | None = None
    extra_index_url: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    pre: bool = False


@dataclass(frozen=True, slots=True)
class CopyLocal:
    """source: host path. target: absolute path of the file, or of the directory whose content source's becomes; a
    target that ends in a slash takes a file under its own name. ignore: patterns of fnmatch, of a name or of a path
    from source.
    """

    source: str
    target: str
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """commands: each for `/bin/sh -ec`, in order, in one layer. secrets: ids of files under /run/secrets."""

    commands: tuple[str, ...]
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Configure:
    """A change of the image's configuration; None leaves a field as it was. env: added to what there is."""

    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None


Base = OciBase | DebianBase
Action = PipInstall | CopyLocal | Run | Configure


@dataclass(frozen=True, slots=True)
class Operation:
    action: Action
    where: CallSite = field(compare=False)


@dataclass(frozen=True, slots=True)
class Image:
    """A recipe. Two equal images make the same bytes. Begin with `from_oci` or `debian_slim`."""

    base: Base
    where: CallSite = field(compare=False)
    operations: tuple[Operation, ...] = ()

    # ------------------------------------------------------------------ where an image begins

    @classmethod
    def from_oci(cls, source: str) -> Image:
        """Any image that `onesec import` takes: `oci:DIR:TAG`, `docker://HOST/NAME:TAG`, `docker-archive:FILE`, …"""
        where = _call_site()
        return cls(OciBase(_text(source, "from_oci: source", where)), where)

    @classmethod
    def debian_slim(cls, python_version: str = "3.11", *, packages: Iterable[str] = ()) -> Image:
        """A minimal Debian of the release whose own Python is python_version, with python3 and ca-certificates.

        packages: more Debian packages.
        """
        where = _call_site()
        what = "debian_slim: python_version"
        if not _PYTHON.fullmatch(_text(python_version, what, where)):
            _refuse(what, python_version, "a string like '3.11'", where)
        names = _texts(packages, "debian_slim: packages", where)
        for name in names:
            if not _DEBIAN_PACKAGE.fullmatch(name):
                _refuse("debian_slim: packages", name, "names of Debian packages", where)
        return cls(DebianBase(python_version, tuple(sorted(set(names)))), where)

    # ------------------------------------------------------------------ what is put in

    def pip_install(
        self,
        *requirements: str,
        requirements_file: str | os.PathLike[str] | None = None,
        index_url: str | None = None,
        extra_index_url: str | Iterable[str] = (),
        find_links: str | Iterable[str] = (),
        pre: bool = False,
    ) -> Image:
        """Python packages, from wheels only: nothing of theirs is executed. pip's settings on the host count.

        What names no version is solved once and then remembered, until what is written here changes or a build is
        called with `--no-cache` (ADR 9).

        index_url, extra_index_url, find_links: as pip's options; they take the place of its settings.
        """
        where = _call_site()
        words = _texts(requirements, "pip_install: requirements", where)
        if not words and requirements_file is None:
            _refuse("pip_install", "nothing", "requirements or requirements_file", where)
        for word in words:
            if word.lstrip().startswith("-") or not word.strip() or "\n" in word:
                _refuse("pip_install: requirements", word, "requirements such as 'numpy>=2'; options have names", where)
        if not isinstance(pre, bool):
            _refuse("pip_install: pre", pre, "True or False", where)
        action = PipInstall(
            words,
            None if requirements_file is None else _path(requirements_file, "pip_install: requirements_file", where),
            None if index_url is None else _text(index_url, "pip_install: index_url", where),
            _one_or_more(extra_index_url, "pip_install: extra_index_url", where),
            _one_or_more(find_links, "pip_install: find_links", where),
            pre,
        )
        return self._with(action, where)

    def copy_local(self, source: str | os.PathLike[str], target: str, *, ignore: str | Iterable[str] = ()) -> Image:
        """A file or directory of the host, owned by root. Modes become 0644 or 0755, times a constant."""
        where = _call_site()
        path = _path(source, "copy_local: source", where)
        _text(target, "copy_local: target", where)
        if not target.startswith("/") or ".." in target.split("/"):
            _refuse("copy_local: target", target, "an absolute path without '..'", where)
        return self._with(CopyLocal(path, target, _one_or_more(ignore, "copy_local: ignore", where)), where)

    def run(self, *commands: str, secrets: str | Iterable[str] = ()) -> Image:
        """Shell commands in a container on what the image is so far; what they change is the layer.

        On `debian_slim`, apt uses the host's mirrors; its lists do not stay, so update and install in one call.
        secrets: ids given to `onesec build --secret`; each is a file /run/secrets/ID while the commands run.
        """
        where = _call_site()
        words = _texts(commands, "run: commands", where)
        if not words:
            _refuse("run", "nothing", "commands", where)
        names = _one_or_more(secrets, "run: secrets", where)
        for name in names:
            if not SECRET_NAME.fullmatch(name):
                _refuse("run: secrets", name, "ids of letters, digits, _ . -", where)
        return self._with(Run(words, tuple(sorted(set(names)))), where)

    # ------------------------------------------------------------------ how it starts

    def env(self, variables: Mapping[str, str] | None = None, /, **more: str) -> Image:
        """Environment variables, added to what the image has, for later `run` steps and for the container."""
        where = _call_site()
        if variables is not None and not isinstance(variables, Mapping):
            _refuse("env", variables, "a mapping or keywords", where)
        merged = {**(variables or {}), **more}
        for name, value in merged.items():
            if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
                _refuse("env", name, "a variable's name", where)
            if not isinstance(value, str) or "\0" in value:
                _refuse(f"env: {name}", value, "a string", where)
        return self._with(Configure(env=tuple(sorted(merged.items()))), where)

    def workdir(self, path: str) -> Image:
        """Where later `run` steps and the container begin."""
        where = _call_site()
        if not _text(path, "workdir", where).startswith("/"):
            _refuse("workdir", path, "an absolute path", where)
        return self._with(Configure(workdir=path), where)

    def user(self, user: str) -> Image:
        """NAME, UID, NAME:GROUP or UID:GID, for later `run` steps and for the container."""
        where = _call_site()
        return self._with(Configure(user=_text(user, "user", where)), where)

    def entrypoint(self, *words: str) -> Image:
        """As in a Dockerfile, this forgets the command that the base image brought."""
        where = _call_site()
        return self._with(Configure(entrypoint=_texts(words, "entrypoint", where), cmd=()), where)

    def cmd(self, *words: str) -> Image:
        """What the container runs when a call names nothing else, or the words that the entrypoint gets."""
        where = _call_site()
        return self._with(Configure(cmd=_texts(words, "cmd", where)), where)

    def _with(self, action: Action, where: CallSite) -> Image:
        return replace(self, operations=(*self.operations, Operation(action, where)))


# ---------------------------------------------------------------------- arguments


def _call_site() -> CallSite:
    """The nearest caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == _HERE:
        frame = frame.f_back
    return CallSite(frame.f_code.co_filename, frame.f_lineno)


def _refuse(what: str, got: object, want: str, where: CallSite) -> NoReturn:
    raise UsageError(f"{where}: {what}: got {got if got == 'nothing' else repr(got)}, want {want}")


def _text(value: object, what: str, where: CallSite) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        _refuse(what, value, "a string that is not empty", where)
    return value


def _texts(values: Iterable[str], what: str, where: CallSite) -> tuple[str, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        _refuse(what, values, "a list of strings", where)
    return tuple(_text(value, what, where) for value in values)


def _one_or_more(values: str | Iterable[str], what: str, where: CallSite) -> tuple[str, ...]:
    return (_text(values, what, where),) if isinstance(values, str) else _texts(values, what, where)


def _path(value: str | os.PathLike[str], what: str, where: CallSite) -> str:
    """Made absolute, as seen from the image file."""
    if not isinstance(value, str | os.PathLike):
        _refuse(what, value, "a path", where)
    text = _text(os.fspath(value), what, where)
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(where.file)), text))
