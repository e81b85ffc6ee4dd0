"""Nobody unpacks: what filters of tarfile let through (CVE-2025-4517, CVE-2025-4330, CVE-2026-11940) cannot reach us.

The ban is configured for the linter, and the linter knows names only where it can follow them; so this looks too.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("onesec", "imagebuilder", "lazyfs", "cache", "registry", "cext")
MODULES = {"tarfile", "zipfile", "zipimport", "shelve", "pickle", "marshal"}
CALLS = {"extract", "extractall", "unpack_archive", "_extract_member", "extractfile", "rmtree"}
FILES = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_the_linter_bans_them() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "TID" in lint["select"]
    banned = lint["flake8-tidy-imports"]["banned-api"]
    assert {"tarfile", "zipfile", "shutil.unpack_archive"} <= banned.keys()
    exempt = [place for place, rules in lint.get("per-file-ignores", {}).items() if "TID251" in rules]
    assert exempt == ["{tests,benchmarks}/**"]


@pytest.mark.parametrize("file", FILES)
def test_no_module_of_ours_unpacks_or_deletes_trees_by_path(file: str) -> None:
    """rmtree: nothing is deleted by path."""
    wrong = []
    for node in ast.walk(ast.parse((ROOT / file).read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute) and node.attr in CALLS:
            wrong.append(f"{node.lineno}: .{node.attr}")
        wrong += [f"{node.lineno}: {name}" for name in names if name in MODULES | CALLS]  # type: ignore[attr-defined]
    assert wrong == []
