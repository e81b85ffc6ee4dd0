"""pip's settings on this host, so that the mirrors and find-links that work for pip work for images.

Read as pip reads them: its files in its order (global, user, site, PIP_CONFIG_FILE), sections [global] and [install],
then PIP_* of the environment; the last to name an option wins.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from cext.errors import UsageError

_SECTIONS = ("global", "install")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True)
class PipSettings:
    """The options of pip that bear on which files are found. None and () are pip's defaults."""

    index_url: str | None = None
    extra_index_url: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_host: tuple[str, ...] = ()
    constraint: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    no_index: bool = False
    pre: bool = False

    def without_credentials(self) -> PipSettings:
        """For cache keys and messages."""
        return replace(
            self,
            index_url=self.index_url and hide_credentials(self.index_url),
            extra_index_url=tuple(map(hide_credentials, self.extra_index_url)),
            find_links=tuple(map(hide_credentials, self.find_links)),
            constraint=tuple(map(hide_credentials, self.constraint)),
            proxy=None,
        )


def hide_credentials(text: str) -> str:
    return _USERINFO.sub("", text)


def has_credentials(text: str) -> bool:
    return _USERINFO.search(text) is not None


def files(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The files that pip would read, weakest first."""
    chosen = environment.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return ()
    home = environment.get("HOME") or os.path.expanduser("~")
    directories = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    found = [f"{directory}/pip/pip.conf" for directory in reversed(directories) if directory]
    found.append("/etc/pip.conf")
    if not (chosen and os.path.exists(chosen)):
        found.append(f"{home}/.pip/pip.conf")
        found.append(f"{environment.get('XDG_CONFIG_HOME') or home + '/.config'}/pip/pip.conf")
    found.append(f"{sys.prefix}/pip.conf")
    if chosen:
        found.append(chosen)
    return tuple(found)


def _read_file(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # as pip does
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8") from error


def load(
    environment: Mapping[str, str],
    *,
    paths: Sequence[str] | None = None,
    read: Callable[[str], str | None] = _read_file,
) -> PipSettings:
    """The settings that hold in this environment. paths: in place of pip's own places."""
    options: dict[str, str] = {}
    for path in files(environment) if paths is None else paths:
        if (text := read(path)) is not None:
            options.update(_parse(path, text))
    for name, value in environment.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE" and value:
            options[name[4:].lower()] = value
    return _settings(options)


def _parse(path: str, text: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text, source=path)
    except configparser.Error as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    found: dict[str, str] = {}
    for section in _SECTIONS:
        if parser.has_section(section):
            found.update({name.lower().replace("-", "_"): value for name, value in parser.items(section)})
    return found


def _settings(options: Mapping[str, str]) -> PipSettings:
    values: dict[str, object] = {}
    for field in fields(PipSettings):
        text = options.get(field.name)
        if text is None:
            continue
        if field.type == "bool":
            values[field.name] = _flag(field.name, text)
        elif field.type.startswith("tuple"):
            values[field.name] = tuple(text.split())
        else:
            values[field.name] = text.strip() or None
    return PipSettings(**values)  # type: ignore[arg-type]  # types follow from the fields above


def _flag(name: str, text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise UsageError(f"pip's setting {name}: got {text!r}, want true or false")
