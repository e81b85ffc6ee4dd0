"""``python docs/reference/generate.py``: writes the pages beside it from the code; they cannot be wrong about it.

    command.md          from the parsers of onesec/cli
    python.md           from the public names of onesec, their signatures and docstrings
    configuration.md    from the example in onesec/config.py and the records that it is read into
    errors.md           from the drawings at the top of each errors.py

`make reference` calls it, and tests/meta/test_reference.py fails where a page differs. What argparse and inspect lay
out themselves changes with the terminal and with the version of Python, so nothing here asks them to.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import onesec  # noqa: E402
from cext.errors import OnesecError  # noqa: E402
from onesec import config  # noqa: E402
from onesec.cli import main as frame  # noqa: E402

NOTE = "<!-- Made by docs/reference/generate.py: `make reference`. Changes belong into the code. -->\n"
PACKAGES = ("cext", "cache", "registry", "imagebuilder", "lazyfs")


def pages() -> dict[str, str]:
    """File name -> text."""
    made = {"command.md": command, "python.md": python, "configuration.md": configuration, "errors.md": errors}
    return {name: NOTE + "\n" + "\n".join(page()).rstrip() + "\n" for name, page in made.items()}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{cell(text)}`"


# ---------------------------------------------------------------------- the command


def command() -> Iterator[str]:
    yield "# The command\n"
    yield "`onesec [OPTIONS] COMMAND …`. The options of all commands stand before the command or after it.\n"
    shared = argparse.ArgumentParser(add_help=False)
    frame._add_globals(shared)
    yield from table(("option", "meaning"), (option(action) for action in shared._actions))
    yield "## Exit status\n"
    yield from table(("status", "meaning"), statuses())
    common = {action.dest for action in shared._actions} | {"help"}
    for name, summary in frame.COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"onesec {name}")
        module = frame._command(name)
        module.add_arguments(parser)
        own = [action for action in parser._actions if action.dest not in common]
        options = [action for action in own if action.option_strings]
        words = [action for action in own if not action.option_strings]
        yield f"## onesec {name}\n"
        yield f"{summary[0].upper()}{summary[1:]}.\n"
        yield code(" ".join(["onesec", name, *(["[OPTIONS]"] if options else []), *map(word, words)])) + "\n"
        yield from table(("argument", "meaning"), ((code(shown(action)), meaning(action)) for action in words))
        yield from table(("option", "meaning"), (option(action) for action in options))


def statuses() -> Iterator[tuple[str, str]]:
    yield str(frame.EXIT_DONE), "done"
    yield str(frame.EXIT_FAILED), "it failed; one line on stderr says why"
    yield str(frame.EXIT_USAGE), "the words of the call, or the configuration file, are wrong"
    yield str(frame.EXIT_INTERRUPTED), "interrupted"
    yield str(frame.EXIT_BROKEN_PIPE), "whoever read the output has gone"
    for name in frame.COMMANDS:
        own: int | None = getattr(frame._command(name), "EXIT_FAILED", None)
        if own is not None:
            yield f"{own} of `{name}`", "onesec failed; 126: the command cannot be executed, 127: there is none"
            yield f"others of `{name}`", "the container's own"


def shown(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar or action.dest.upper()
    return name if isinstance(name, str) else " ".join(name)


def word(action: argparse.Action) -> str:
    """A positional argument, as in a call."""
    name = shown(action)
    forms = {"?": f"[{name}]", "*": f"[{name}…]", "+": f"{name}…", argparse.REMAINDER: f"[{name}…]"}
    return forms.get(str(action.nargs), name)


def option(action: argparse.Action) -> tuple[str, str]:
    value = "" if action.nargs == 0 else " " + shown(action)
    names = ", ".join(code(name + value) for name in action.option_strings)
    again = ["may be given again"] if isinstance(action, argparse._AppendAction) else []
    return names, "; ".join(filter(None, [meaning(action), *again]))


def meaning(action: argparse.Action) -> str:
    facts = {key: value for key, value in vars(action).items() if value is not argparse.SUPPRESS}
    return cell((action.help or "") % facts)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Nothing for no rows."""
    found = list(rows)
    if found:
        yield "| " + " | ".join(head) + " |"
        yield "|---" * len(head) + "|"
        yield from ("| " + " | ".join(row) + " |" for row in found)
        yield ""


# ---------------------------------------------------------------------- Python


def python() -> Iterator[str]:
    yield "# The Python interface\n"
    yield "What `onesec` exports. Everything else is internal.\n"
    for name in onesec._EXPORTS:
        exported = getattr(onesec, name)
        yield f"## onesec.{name}\n"
        yield (inspect.getdoc(exported) or "") + "\n"
        if not inspect.isclass(exported):
            yield f"```python\n{name}{signature(exported, 0)}\n```\n"
            continue
        for method, value in vars(exported).items():
            bound = isinstance(value, classmethod)
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            skipped = 0 if isinstance(value, staticmethod) else 1
            prefix = f"{name}." if bound or not skipped else "."
            yield f"### {method}\n"
            yield f"```python\n{prefix}{method}{signature(function, skipped)}\n```\n"
            if about := inspect.getdoc(function):
                yield about + "\n"


def signature(function: Callable[..., object], skipped: int) -> str:
    """As it is written; inspect's own text puts quotes around annotations, or not."""
    parts: list[str] = []
    kinds = inspect.Parameter
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    for at, one in enumerate(parameters):
        if one.kind is kinds.KEYWORD_ONLY and all(
            before.kind not in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL) for before in parameters[:at]
        ):
            parts.append("*")
        stars = "*" if one.kind is kinds.VAR_POSITIONAL else "**" if one.kind is kinds.VAR_KEYWORD else ""
        kind = "" if one.annotation is kinds.empty else f": {one.annotation}"
        default = "" if one.default is kinds.empty else f" = {one.default!r}" if kind else f"={one.default!r}"
        parts.append(f"{stars}{one.name}{kind}{default}")
        after = parameters[at + 1].kind if at + 1 < len(parameters) else None
        if one.kind is kinds.POSITIONAL_ONLY and after is not kinds.POSITIONAL_ONLY:
            parts.append("/")
    result = function.__annotations__.get("return")
    tail = "" if result is None else f" -> {result}"
    line = f"({', '.join(parts)}){tail}"
    return line if len(line) < 80 else "(\n    " + ",\n    ".join(parts) + f",\n){tail}"


# ---------------------------------------------------------------------- the file


def configuration() -> Iterator[str]:
    yield "# onesec.toml\n"
    about, _, example = (config.__doc__ or "").partition("\n    root = ")
    yield inspect.cleandoc(about.partition("\n")[2]) + "\n"
    yield "```toml\n" + inspect.cleandoc("\n    root = " + example) + "\n```\n"
    for heading, settings in tables():
        yield f"## {heading}\n"
        yield from table(("key", "default"), iter(settings))


def tables() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each table of the example with its keys and defaults. Raises where example and records differ."""
    records: dict[str, Any] = {
        "run": config.RunSettings,
        "store": config.StoreLimits,
        "registry": config.RegistrySettings,
    }
    keys: dict[str, list[str]] = {}
    name = ""
    for line in (config.__doc__ or "").splitlines():
        if header := re.fullmatch(r"    \[(\w+)(?:\..*)?\]\s*(?:#.*)?", line):
            name = header[1]
        elif found := re.match(r"    ([a-z][a-z-]*) = ", line):
            keys.setdefault(name, []).append(found[1])
    top = {"root": config.DEFAULT_ROOT, "run-dir": config.DEFAULT_RUN_DIR}
    if sorted(keys.pop("")) != sorted(top) or set(keys) != set(records):
        raise AssertionError(f"onesec/config.py: got {sorted(keys)} in the example, want {sorted(records)}")
    yield "At the top", [(code(key), code(value)) for key, value in top.items()]
    for name, record in records.items():
        fields = {field.removesuffix("_s").replace("_", "-"): field for field in record._fields}
        if sorted(keys[name]) != sorted(fields):
            raise AssertionError(f"onesec/config.py: got {sorted(keys[name])} in [{name}], want {sorted(fields)}")
        heading = f'[{name}."HOST:PORT"]' if name == "registry" else f"[{name}]"
        yield heading, [(code(key), default(record._defaults[fields[key]])) for key in keys[name]]


def default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, tuple):
        return code(str(list(value)).replace("'", '"'))
    return code(f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value))


# ---------------------------------------------------------------------- errors


def errors() -> Iterator[str]:
    yield "# Errors\n"
    yield inspect.cleandoc(OnesecError.__doc__ or "") + "\n"
    for package in PACKAGES:
        module = importlib.import_module(f"{package}.errors")
        about, _, drawing = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
        yield f"## {package}\n"
        yield about + "\n"
        yield f"```text\n{drawing}\n```\n"
        classes = [value for value in vars(module).values() if is_own_error(value, module.__name__)]
        yield from table(
            ("error", "what it says"),
            (
                (code(one.__name__), cell(one.__doc__ or ""))
                for one in classes
                if "__doc__" in vars(one) and one.__doc__
            ),
        )


def is_own_error(value: object, module: str) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, OnesecError)
        and value is not OnesecError
        and value.__module__ == module
    )


if __name__ == "__main__":
    for name, text in pages().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
