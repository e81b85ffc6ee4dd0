"""The start of a Python program: where its interpreter looks for modules, and which ones it will import, in order."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from imagebuilder.imports import SOURCE_MAX, Import, imports
from imagebuilder.libraries import Loader
from imagebuilder.pages import Found, Picked
from lazyfs.index.model import Entry, Kind

MODULES_MAX = 5000
SOURCES_MAX = 256 << 20
"""Bytes of sources that are looked through."""

_STARTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:application, as servers take it

STARTUP = (
    *("encodings", "encodings.aliases", "encodings.utf_8", "codecs", "io", "abc", "site", "os", "stat", "posixpath"),
    *("genericpath", "_collections_abc", "_sitebuiltins", "sitecustomize", "usercustomize"),
)
FROZEN = frozenset(
    (
        *("abc", "codecs", "io", "_collections_abc", "_sitebuiltins", "genericpath", "ntpath", "posixpath", "os"),
        *("site", "stat", "importlib", "importlib.util", "importlib.machinery", "runpy", "zipimport"),
    )
)
"""In the interpreter itself since 3.11."""


class _Module(NamedTuple):
    """name: qualified. compiled: its bytecode, or a library if it has no source. package: whether it has modules."""

    name: str
    source: Found | None
    compiled: Found | None
    package: bool


class Python:
    """An interpreter's start, and the imports of a program in the order in which they are executed."""

    def __init__(
        self,
        picked: Picked,
        loader: Loader,
        environment: Mapping[str, str],
        directory: str,
        typed: str,
        program: Found,
    ) -> None:
        self._picked = picked
        self._loader = loader
        self._directory = directory
        self._version = self._find_version(program)
        self._frozen = [int(part) for part in self._version.split(".")] >= [3, 11]
        self._sources = 0  # bytes looked through
        self._stdlib = b""
        self._path = self._find_path(environment, typed, program)
        self._tag = f"cpython-{self._version.replace('.', '')}".encode()
        self._library_ends = (f".{self._tag.decode()}-{loader.machine}-linux-gnu.so".encode(), b".abi3.so", b".so")
        self._met: set[str] = set()
        self._known: dict[str, _Module | None] = {}

    # ------------------------------------------------------------------ where modules are

    def _find_version(self, program: Found) -> str:
        name = program.path.rpartition(b"/")[2]
        match = re.search(rb"3\.\d+", name)
        if match is not None:
            return match[0].decode()
        versions = [
            one.decode()[6:]
            for prefix in (_prefix(program.path), b"usr", b"usr/local")
            for one in self._picked.listing(prefix + b"/lib")
            if re.fullmatch(rb"python3\.\d+", one)
        ]
        return max(versions, key=lambda one: int(one[2:]), default="3")

    def _find_path(self, environment: Mapping[str, str], typed: str, program: Found) -> list[bytes]:
        python = f"python{self._version}".encode()
        real, own = _prefix(program.path), _prefix(typed.encode().lstrip(b"/"))
        venv = [own] if own != real and b"pyvenv.cfg" in self._picked.listing(own) else []
        if venv:
            self._picked.take_small(own + b"/pyvenv.cfg")
        prefixes = [*venv, real, *([b"usr/local"] if real == b"usr" else [])]
        self._stdlib = real + b"/lib/" + python
        given = [part.encode().lstrip(b"/") for part in environment.get("PYTHONPATH", "").split(":") if part]
        places = [*given, self._stdlib, self._stdlib + b"/lib-dynload"]
        for prefix in prefixes:
            places += [
                prefix + b"/lib/" + python + b"/site-packages",
                prefix + b"/local/lib/" + python + b"/dist-packages",
            ]
            places += [prefix + b"/lib/" + python + b"/dist-packages", prefix + b"/lib/python3/dist-packages"]
        return [place for place in dict.fromkeys(places) if self._picked.listing(place)]

    def _find(self, name: str) -> _Module | None:
        if name not in self._known:
            self._known[name] = self._look(name)
        return self._known[name]

    def _look(self, name: str) -> _Module | None:
        parent, _, last = name.rpartition(".")
        if parent:
            above = self._find(parent)
            if above is None or not above.package:
                return None
            anchor = above.source or above.compiled
            if anchor is None:
                return None
            places = [anchor.path.rpartition(b"/")[0]]
        else:
            places = self._path
        base = last.encode()
        for place in places:
            names = self._picked.listing(place)
            if base in names and b"__init__.py" in self._picked.listing(place + b"/" + base):
                return self._described(name, place + b"/" + base, b"__init__", package=True)
            for end in self._library_ends:
                if base + end in names and (library := self._picked.find(place + b"/" + base + end)) is not None:
                    return _Module(name, None, library, package=False)
            if base + b".py" in names:
                return self._described(name, place, base, package=False)
        return None

    def _described(self, name: str, place: bytes, base: bytes, *, package: bool) -> _Module:
        cached = base + b"." + self._tag + b".pyc"
        compiled = None
        if cached in self._picked.listing(place + b"/__pycache__"):
            compiled = self._picked.find(place + b"/__pycache__/" + cached)
        source = self._picked.find(place + b"/" + base + b".py")
        if source is None:  # an empty __init__.py is a file without content
            entry = Entry(Kind.FILE)
            source = Found(place + b"/" + base + b".py", entry)
        return _Module(name, source, compiled, package)

    # ------------------------------------------------------------------ what runs

    def run(self, words: Sequence[str]) -> None:
        for module in STARTUP:
            self._import(Import(0, module), "")
        for place in self._path:
            for name in sorted(self._picked.listing(place)):
                if name.endswith(b".pth"):
                    self._picked.take_small(place + b"/" + name)
        rest = list(words)
        while rest and rest[0].startswith("-") and len(rest[0]) > 1:
            option = rest.pop(0)
            if option in ("-W", "-X") and rest:
                rest.pop(0)
            elif option in ("-c", "-m"):
                break
        else:
            option = ""
        if not rest:
            return
        self._path.insert(0, self._directory.strip("/").encode())
        if option == "-c":
            self._program(rest[0].encode("utf-8", "surrogateescape").replace(b";", b"\n"))
        elif option == "-m":
            for module in ("runpy", rest[0], f"{rest[0]}.__main__"):
                self._import(Import(0, module), "", main=True)
        else:
            self._file(rest[0])
        self._path.append(self._directory.strip("/").encode())  # servers do so
        for word in rest[1:]:
            if _STARTED.fullmatch(word):
                self._import(Import(0, word.partition(":")[0]), "")

    def _file(self, word: str) -> None:
        path = posixpath.normpath(posixpath.join(self._directory, word))
        script = self._picked.find(path)
        if script is None:
            return
        self._path[0] = script.path.rpartition(b"/")[0]
        self._picked.take(script.entry)
        self._program(self._picked.read(script.entry, SOURCE_MAX))

    def _program(self, source: bytes) -> None:
        for statement in imports(source, main=True):
            self._import(statement, "")

    def _import(self, first: Import, package: str, *, main: bool = False) -> None:
        """One statement and all that follows from it, depth first as the interpreter goes."""
        waiting: list[tuple[Iterator[str], bool]] = [(self._modules(first, package), main)]
        while waiting:
            names, as_main = waiting[-1]
            name = next(names, None)
            if name is None:
                waiting.pop()
                continue
            if name in self._met or len(self._met) >= MODULES_MAX:
                continue
            self._met.add(name)
            if self._frozen and name in FROZEN:
                continue
            module = self._find(name)
            if module is not None:
                waiting.append((self._loaded(module, as_main), False))

    def _loaded(self, module: _Module, main: bool) -> Iterator[str]:
        """Takes a module's pages; the modules that it imports."""
        if module.source is None:
            if module.compiled is not None:
                self._loader.library(module.compiled)
            return
        taken = module.compiled or module.source
        if not taken.entry.parts:
            return
        self._picked.take(taken.entry)
        package = module.name if module.package else module.name.rpartition(".")[0]
        if module.source.entry.parts and self._sources < SOURCES_MAX:
            source = self._picked.read(module.source.entry, SOURCE_MAX)
            self._sources += len(source)
            for statement in imports(source, main=main):
                yield from self._modules(statement, package)

    def _modules(self, statement: Import, package: str) -> Iterator[str]:
        """Qualified names of modules that one statement may load, outer packages first."""
        name = statement.module
        if statement.level:
            parts = package.split(".") if package else []
            kept = parts[: len(parts) - (statement.level - 1)]
            if not kept:
                return
            name = ".".join([*kept, name]) if name else ".".join(kept)
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            yield ".".join(parts[:count])
        module = self._find(name) if statement.names else None
        if module is not None and module.package:
            for one in statement.names:
                yield f"{name}.{one}"


def _prefix(program: bytes) -> bytes:
    """usr of usr/bin/python3.11."""
    return posixpath.dirname(posixpath.dirname(program))
