"""Small programs in C beside the harness, compiled when they are first wanted.

What has to keep up with a line rate, or must cost next to nothing beside what is measured, is no Python. The compiled
program lies in the user's cache under a name that its sources and flags give it: a changed source is another file, and
a checkout stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "programs"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


class CompilerError(RuntimeError):
    """There is no compiler, or it refused a program."""


def cache_directory() -> Path:
    """Where compiled programs lie."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "onesec-bench"


def program(
    name: str, *parts: str, flags: Sequence[str] = (), directory: Path | None = None, sources: Path = SOURCES
) -> Path:
    """The path of `name`, compiled out of `<name>.c` and parts (file names; a header counts for the name only).

    Two that want it at once both compile it, and each puts a whole file there. Raises CompilerError.
    """
    files = [sources / f"{name}.c", *(sources / part for part in parts)]
    words = [*FLAGS, *flags]
    key = hashlib.sha256("\0".join(words).encode())
    for file in files:
        key.update(hashlib.sha256(file.read_bytes()).digest())
    where = directory or cache_directory()
    target = where / f"{name}-{key.hexdigest()[:16]}"
    if not target.exists():
        where.mkdir(parents=True, exist_ok=True)
        _compile([str(file) for file in files if file.suffix == ".c"], words, target)
    return target


def _compile(sources: Sequence[str], flags: Sequence[str], target: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CompilerError(f"{target.name}: got no C compiler, want cc\nhint: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = os.path.join(scratch, "made")
        done = subprocess.run(
            [compiler, "-o", made, *sources, *flags, "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"{compiler} failed"]
            raise CompilerError(f"{target.name}: {next((line for line in lines if 'error' in line), lines[0])}")
        os.rename(made, target)
