"""Kept figures as Markdown tables, for docs/benchmarks.md:

    python -m benchmarks.macro.tables [RESULTS]

A scenario's own figures are a row each; those that several contenders have are one table, with the spread behind each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.macro.figures import readable
from benchmarks.macro.report import Document, spread, subjects
from benchmarks.macro.runner import kept

_RESULTS = Path(__file__).parents[1] / "results"


def markdown(documents: Iterable[Document]) -> str:
    return "\n".join(_section(document) for document in documents)


def _section(document: Document) -> str:
    figures: Sequence[Document] = document["figures"]
    machine = document["machine"]
    lines = [f"### {document['scenario']}", "", f"{document['summary']}; {document['rounds']} rounds, load "
             f"{machine.get('load', '?')}, commit {machine['commit']}", ""]  # fmt: skip
    alone = [one for one in figures if not one.get("subject")]
    if alone:
        lines += ["| figure | wanted | seen | lowest – highest |", "|---|--:|--:|--:|", *map(_row, alone), ""]
    cells, rows, columns = subjects(figures)
    if cells:
        lines += [_line(["contender", *columns]), _line(["---", *["--:"] * len(columns)])]
        lines += [_line([row, *(_cell(cells.get((row, column))) for column in columns)]) for row in rows]
        lines.append("")
    lines += [f"- {name}: left out, {reason}" for name, reason in document["missing"].items()]
    return "\n".join(lines)


def _row(one: Document) -> str:
    return _line([one["name"], _wanted(one), _seen(one), spread(one) if one["samples"] > 1 else ""])


def _cell(one: Document | None) -> str:
    if one is None:
        return ""
    wanted = f", wanted {_wanted(one)}" if one["want"] else ""
    return f"{_seen(one)} ({spread(one)}{wanted})"


def _seen(one: Document) -> str:
    """Bold where it was missed."""
    text = f"{readable(one['value'])} {one['unit']}"
    return f"**{text}**" if one["met"] is False else text


def _wanted(one: Document) -> str:
    if one["want"] is None:
        return "-"
    return f"{'≤' if one['want']['relation'] == '<=' else '≥'} {readable(one['want']['value'])}"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(markdown(kept(Path(sys.argv[1]) if len(sys.argv) > 1 else _RESULTS)))
