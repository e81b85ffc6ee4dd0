"""Which modules a Python source imports while it is imported itself. Pure, and without a parser.

`ast` would be exact, but for the sources behind `import torch` (988 files, 19 MB) it takes 1.4 s where this takes 0.12,
it knows one version of the language, and its recursion is no place for hostile text. Statements are looked for by their
first word. Those inside of functions run later or never, and so do those under TYPE_CHECKING: a line that is indented
deeper than such a head belongs to it. A statement in a string is taken for one: it names a module that is not there, or
costs a few pages.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SOURCE_MAX = 2 << 20
STATEMENTS_MAX = 5000

# Possessive where two parts could share a text, and bounded where a bracket may never close: sources are hostile.
_LINE = re.compile(
    rb"^([ \t]*+)(?:import[ \t]+([^\n#;]+)"
    rb"|from[ \t]++(\.*+)[ \t]*+(?:(?!import\b)([\w.]++))?[ \t]*+import\b[ \t]*+(\([^)]{0,8192}+\)|[^\n#;]+)"
    rb"|((?:async[ \t]+)?def\b|if\b[^\n]*|el(?:se|if)\b|try\b|except\b|finally\b|with\b|for\b|while\b|class\b))",
    re.MULTILINE,
)
_NEVER = re.compile(
    rb"if[ \t(]+(?:(?:\w+\.)?TYPE_CHECKING\b|False\b"
    rb"|(?:sys\.platform|os\.name)[ \t]*==[ \t]*['\"](?:win|nt|darwin|java))"
)
_MAIN = re.compile(rb"if[ \t(]+__name__[ \t]*==")
_NAME = re.compile(rb"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_COMMENT = re.compile(rb"#[^\n]*")


class Import(NamedTuple):
    """level: number of leading dots. names: after `import` in `from module import names`, which may be modules too."""

    level: int
    module: str
    names: tuple[str, ...] = ()


def imports(source: bytes, *, main: bool = False) -> list[Import]:
    """In the order of the text. main: the source is a program, so what stands under ``if __name__`` runs."""
    found: list[Import] = []
    skipped = -1  # indentation of a head whose body does not run, -1: none
    for line in _LINE.finditer(source[:SOURCE_MAX]):
        space, plain, dots, module, names, head = line.groups()
        indent = len(space.expandtabs())
        if 0 <= skipped < indent:
            continue
        skipped = -1
        if head is not None:
            if head.endswith(b"def") or _NEVER.match(head) or (not main and _MAIN.match(head)):
                skipped = indent
        elif plain is not None:
            for part in plain.split(b","):
                if name := _name(part):
                    found.append(Import(0, name))
        elif names is not None:
            words = _COMMENT.sub(b"", names).strip(b"() \t\r\n\\").replace(b"\\\n", b" ").split(b",")
            found.append(
                Import(len(dots), (module or b"").decode("ascii", "ignore"), tuple(n for w in words if (n := _name(w))))
            )
        if len(found) > STATEMENTS_MAX:
            break
    return found


def _name(text: bytes) -> str:
    """The name in ``name as other``; empty for anything else, such as a star."""
    match = _NAME.match(text.strip())
    return match[0].decode("utf-8", "ignore") if match else ""
