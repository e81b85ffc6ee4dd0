"""Which way imports may go, one door for each third-party library, and what a thin command may load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("onesec", "imagebuilder", "lazyfs", "cache", "registry", "cext")
"""Downwards only. imagebuilder may see of lazyfs only the formats."""

FORMATS = ("lazyfs.index", "lazyfs.merge", "lazyfs.bootpack", "lazyfs.bootcheck")
"""The boot pack is one too: a build writes the first, an import judges a stranger's."""

DOORS: dict[str, tuple[str, ...]] = {
    "uv": ("imagebuilder/solve.py",),
    "yaml": ("lazyfs/cdi_yaml.py",),
    "zstandard": ("registry/zstd.py",),
    "httpx": ("registry/transport.py",),
    "pyfuse3": ("lazyfs/portable.py", "lazyfs/tree.py"),
    "rich": ("onesec/cli/progress.py", "imagebuilder/progress.py"),
    "blake3": ("cext/_reference.py",),
    "benchmarks": ("onesec/cli/bench.py",),
}
"""Library -> the modules one of which imports it."""

THIN_FORBIDDEN = (
    *("trio", "httpx", "rich", "asyncio", "zstandard", "blake3", "pyfuse3", "ssl", "imagebuilder"),
    *("dataclasses", "inspect", "hashlib", "_hashlib"),
    *("yaml", "lazyfs.cdi", "lazyfs.gpu"),
)
THIN_MODULES_MAX = 140
"""Modules that `run` or `mount` may load over a bare interpreter: 20 ms. Measured: see the failure message."""


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file names in an import, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_imports_point_down_the_list() -> None:
    wrong = []
    for path in modules():
        own = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            other = name.partition(".")[0]
            if other in PACKAGES and PACKAGES.index(other) < PACKAGES.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_imagebuilder_sees_only_the_formats_of_lazyfs() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "imagebuilder").rglob("*.py"))
        for name in imports(path)
        if name.partition(".")[0] == "lazyfs" and not name.startswith(FORMATS) and name != "lazyfs"
    ]
    assert wrong == []


def test_each_library_has_one_door() -> None:
    standard = sys.stdlib_module_names
    seen: dict[str, set[str]] = {}
    for path in modules():
        for name in imports(path):
            top = name.partition(".")[0]
            if top not in standard and top not in PACKAGES:
                seen.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    wrong = [
        f"{library}: {sorted(users)}, want one of {DOORS.get(library, ())}"
        for library, users in seen.items()
        if library != "trio" and (len(users) > 1 or not users <= set(DOORS.get(library, ())))
    ]
    assert wrong == []


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(*sys.modules)",
        ],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import onesec.cli.main, onesec.cli.run, lazyfs.container, lazyfs.probe, onesec.images",
        "import onesec.cli.main, onesec.cli.mount, lazyfs.mount, lazyfs.probe, onesec.images",
        "import onesec.cli.main, onesec.cli.umount, lazyfs.mount",
        "import onesec.cli.main, onesec.cli.run, onesec.images, onesec.start, registry.thin",
    ],
    ids=["run", "mount", "umount", "start"],
)
def test_thin_commands_load_little(code: str) -> None:
    found = loaded(code) - loaded("")
    heavy = sorted(name for name in found if {name, name.partition(".")[0]} & set(THIN_FORBIDDEN))
    assert heavy == []
    assert len(found) <= THIN_MODULES_MAX, f"{len(found)} modules: {sorted(found)}"
