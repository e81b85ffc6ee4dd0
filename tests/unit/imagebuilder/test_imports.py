from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from imagebuilder.imports import STATEMENTS_MAX, Import, imports


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("import a", [Import(0, "a")]),
        ("import a.b.c as d, e  # f", [Import(0, "a.b.c"), Import(0, "e")]),
        ("from a import b, c as d", [Import(0, "a", ("b", "c"))]),
        ("from a import *", [Import(0, "a")]),
        ("from . import b", [Import(1, "", ("b",))]),
        ("from .. import b", [Import(2, "", ("b",))]),
        ("from .a import b", [Import(1, "a", ("b",))]),
        ("from ...a.b import c", [Import(3, "a.b", ("c",))]),
        ("from.a import(b)", []),  # nobody writes it
        ("from a import (\n    b,  # the first, import x\n    c as d,\n)\n", [Import(0, "a", ("b", "c"))]),
        ("from a import b, \\\n    c", [Import(0, "a", ("b",))]),
        ("from importlib import x", [Import(0, "importlib", ("x",))]),
        ("import ä", []),  # nobody's module
        ("try:\n    import a\nexcept ImportError:\n    import b\n", [Import(0, "a"), Import(0, "b")]),
        (
            "class A:\n    import a\n    def f(self):\n        import b\n    import c\n",
            [Import(0, "a"), Import(0, "c")],
        ),
        ("def f():\n    import a\nimport b", [Import(0, "b")]),
        ("async def f():\n    if x:\n        import a\nimport b", [Import(0, "b")]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", [Import(0, "b")]),
        ("if typing.TYPE_CHECKING:\n    from a import (\n  b)\nimport c", [Import(0, "c")]),
        ("if sys.platform == 'win32':\n    import a\nelif x:\n    import b", [Import(0, "b")]),
        ("if x:\n\timport a\nif y:\n    import b", [Import(0, "a"), Import(0, "b")]),
        ("importlib.import_module('a')\nfrom_x = 1\nimports = 2", []),
        ("", []),
    ],
)
def test_statements_that_run_at_import_are_found(source: str, want: list[Import]) -> None:
    assert imports(source.encode()) == want


def test_what_stands_under_main_runs_in_a_program_only() -> None:
    source = b"import a\nif __name__ == '__main__':\n    import b\n"
    assert imports(source) == [Import(0, "a")]
    assert imports(source, main=True) == [Import(0, "a"), Import(0, "b")]


def by_parser(body: list[ast.stmt]) -> list[Import]:
    found = []
    for node in body:
        if isinstance(node, ast.Import):
            found += [Import(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names if alias.name != "*")
            found.append(Import(node.level, node.module or "", names))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found += by_parser(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "handlers", "orelse", "finalbody"):
                found += by_parser(getattr(node, part, []))
    return found


def test_our_own_sources_have_the_imports_that_a_parser_finds() -> None:
    root = Path(__file__).parents[3]
    files = [
        path for name in ("onesec", "lazyfs", "registry", "imagebuilder", "cext") for path in (root / name).glob("*.py")
    ]
    assert len(files) > 50
    for path in files:
        source = path.read_bytes()
        if path.name != "wheel.py":  # which has a program in a string
            assert imports(source, main=True) == by_parser(ast.parse(source).body), path


@pytest.mark.parametrize(
    "source",
    [
        b"from " + b"." * 2_000_000,
        b"from x import (\n" * 120_000,
        b"from " + b" " * 2_000_000,
        b" " * 2_000_000 + b"x",
        (b"from " + b" " * 1000 + b"\n") * 2000,
        (b"\t" * 1000 + b"x\n") * 2000,
        b"import a," * 200_000,
        b"from a import (" + b"b," * 900_000 + b")",
        b"def " * 500_000,
        b"if " * 500_000,
        b"\xff" * 2_000_000,
    ],
    ids=range(11),
)
def test_hostile_sources_end_soon(source: bytes) -> None:
    began = time.process_time()
    assert len(imports(source)) <= STATEMENTS_MAX + 200_000
    assert time.process_time() - began < 5
