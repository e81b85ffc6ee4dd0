"""The threat model names the tests that hold it, and every test of that kind has a line in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/threat-model.md").read_text()


def test_every_test_that_is_named_is_there() -> None:
    places = [
        re.sub(r"^test_", "tests/security/test_", name) for name in re.findall(r"`((?:tests/|test_)[\w/]+)`", TEXT)
    ]
    missing = [place for place in places if not (ROOT / f"{place}.py").exists() and not (ROOT / place).is_dir()]
    assert missing == []
    assert len(places) > 15


def test_every_security_test_is_named() -> None:
    modules = {path.stem for path in (ROOT / "tests/security").glob("test_*.py")}
    assert {name for name in modules if f"`{name}`" not in TEXT} == set()


def test_links_of_the_documents_lead_somewhere() -> None:
    broken = []
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []
