"""Links of the documents lead to files that exist, and every command is in the guide."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from onesec.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in ROOT.rglob("*.md") if not path.relative_to(ROOT).parts[0].startswith(".")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    broken = []
    for target in _LINK.findall(path.read_text()):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        if not (path.parent / target.partition("#")[0]).exists():
            broken.append(target)
    assert broken == []


def test_every_command_is_in_a_guide() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs/guide").glob("*.md")) + (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if not re.search(rf"`?(onesec )?{name}\b", text)] == []
