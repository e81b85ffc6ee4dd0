"""Where an image's Python is and what wheels fit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cext.errors import UsageError
from imagebuilder import debian
from imagebuilder.solve import Target
from imagebuilder.wheel import Places

_VERSIONED = re.compile(rb"python(3\.[0-9]{1,2})")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC_MAX = 40  # the newest manylinux that uv knows by name
_GLIBC_OLD = (2, 28)  # of an image that does not say


@dataclass(frozen=True, slots=True)
class Python:
    """version: such as "3.11"."""

    version: str
    places: Places
    target: Target


def of_debian(release: debian.Release, architecture: str) -> Python:
    return _python(release.python, "usr/bin", "dist-packages", architecture, release.glibc)


def of_tree(names: Callable[[bytes], Iterable[bytes]], architecture: str) -> Python:
    """Of any image. names: what stands in a directory of it, nothing where there is none. The first of PATH counts."""
    for where in ("usr/local/bin", "usr/bin"):
        found = sorted(match[1].decode() for name in names(where.encode()) if (match := _VERSIONED.fullmatch(name)))
        if len(found) > 1:
            raise UsageError(f"pip_install: the image has several Pythons in /{where}: {', '.join(found)}")
        if found:
            own = "site-packages" if where == "usr/local/bin" else "dist-packages"
            return _python(found[0], where, own, architecture, _GLIBC_OLD)
    raise UsageError("pip_install: the image has no python3 in /usr/local/bin or /usr/bin")


def _python(version: str, where: str, own: str, architecture: str, glibc: tuple[int, int]) -> Python:
    machine = _MACHINES.get(architecture)
    if machine is None:
        raise UsageError(f"pip_install: got an image for {architecture}, want one for {' or '.join(_MACHINES)}")
    return Python(
        version,
        Places(
            python=f"/{where}/python{version}",
            packages=f"usr/local/lib/python{version}/{own}",
            scripts="usr/local/bin",
            data="usr/local",
            headers=f"usr/local/include/python{version}",
        ),
        Target(version, f"{machine}-manylinux_{glibc[0]}_{min(glibc[1], _GLIBC_MAX)}"),
    )
