"""docs/reference is what its generator makes of the code as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import cast

import pytest

REFERENCE = Path(__file__).parents[2] / "docs/reference"


def made() -> dict[str, str]:
    spec = spec_from_file_location("generate_reference", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return cast(Callable[[], dict[str, str]], module.pages)()


def test_the_pages_are_those_of_this_code() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md")}
    assert found == made(), "run `make reference` and commit what it wrote"


@pytest.mark.parametrize("surroundings", [{"COLUMNS": "30", "LC_ALL": "C"}, {"COLUMNS": "200", "LANG": "C.UTF-8"}])
def test_they_are_the_same_on_every_terminal(surroundings: dict[str, str], tmp_path: Path) -> None:
    code = (REFERENCE / "generate.py").read_text(encoding="utf-8")
    (tmp_path / "docs/reference").mkdir(parents=True)
    (tmp_path / "docs/reference/generate.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(REFERENCE.parents[1]), **surroundings}
    subprocess.run([sys.executable, tmp_path / "docs/reference/generate.py"], env=environment, check=True)
    for path in (tmp_path / "docs/reference").glob("*.md"):
        assert path.read_bytes() == (REFERENCE / path.name).read_bytes(), path.name
