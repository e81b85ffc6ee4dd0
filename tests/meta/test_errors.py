"""The drawing at the top of each errors.py is the truth about its classes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from cext.errors import OnesecError

ROOT = Path(__file__).parents[2]
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*/errors.py"))
_ROW = re.compile(r"^(?P<lead>(?:│   |    )*)(?P<branch>├── |└── )?(?P<name>[A-Z]\w*Error)\b")


def drawn(text: str) -> set[tuple[str, str]]:
    """(class, parent) for each row of the drawing below its root."""
    pairs = set()
    above: list[str] = []
    for line in text.splitlines():
        if (row := _ROW.match(line)) is None or (row["branch"] is None and above):
            continue
        depth = 0 if row["branch"] is None else len(row["lead"]) // 4 + 1
        del above[depth:]
        if depth:
            assert len(above) == depth, f"{line}: hangs nowhere"
            pairs.add((row["name"], above[-1]))
        above.append(row["name"])
    return pairs


@pytest.mark.parametrize("file", FILES)
def test_the_drawing_has_every_class_and_its_parent(file: str) -> None:
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert module.__doc__ is not None
    classes = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, OnesecError) and value.__module__ == module.__name__
    }
    real = {(one.__name__, base.__name__) for one in classes for base in one.__bases__ if issubclass(base, OnesecError)}
    missing, extra = real - drawn(module.__doc__), {pair for pair in drawn(module.__doc__) if pair not in real}
    # a class of another package may stand in a drawing as the parent that connects it
    extra = {pair for pair in extra if hasattr(module, pair[0]) and getattr(module, pair[0]) in classes}
    assert (missing, extra) == (set(), set())
