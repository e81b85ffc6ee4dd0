"""What a start will probably touch, for an image that nobody has profiled: pages for a first boot pack.

The program that the configuration starts, its interpreter, the libraries that the loader will bring, and for Python the
modules that are imported before the program's own work begins. Only files of the merged tree are looked at, nothing is
executed, and the same image gives the same pages. A guess that is wrong costs bytes, or reads that come late.

Measured with examples/torch, against the pages that a profile saw (76 MB): 74 % of them are guessed, 86 % of what is
guessed is used, in 65 MB. All but the code of four large libraries is among it. It takes a second of one core.

Everything in an image may be hostile: links are followed inside of the tree, sizes are bounded, and a file that is not
what its name says is left out.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import cext
from cext.errors import CorruptError, OnesecError
from imagebuilder import elf
from imagebuilder.imports import SOURCE_MAX, Import, imports
from lazyfs.bootpack import PAGE, Page
from lazyfs.index.layer import resolve
from lazyfs.index.model import HOLE, PART, Entry, Kind

BUDGET = 64 << 20
"""Bytes of pages. A guess is never sent instead of a profile, only until there is one."""

MODULES_MAX = 5000
SOURCES_MAX = 256 << 20
"""Bytes of sources that are looked through."""

LIBRARIES_MAX = 2000
COMMANDS_MAX = 32
"""Programs that start each other: wrappers, scripts and their interpreters."""

_PROGRAM_MAX = 8 << 20  # of the program itself, which is taken whole
_CODE_MAX = 1536 << 10  # code of a library that is taken whole; of a larger one its constructors
_DATA_MAX = 8 << 20  # writable bytes of one library
_TABLE_MAX = 16 << 20
_SMALL_MAX = 64 << 10  # configuration files
_HELD = 64  # chunks in memory

_OBJECT = struct.Struct("<IIQQ")
_OBJECT_CONTEXT = "onesec 2026 object v1"

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIBRARIES = (
    "/lib/{0}-linux-gnu",
    "/usr/lib/{0}-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
)
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_ALWAYS = (
    *(b"etc/ld.so.cache", b"etc/ld.so.preload", b"etc/passwd", b"etc/group", b"etc/nsswitch.conf"),
    *(b"usr/lib/locale/C.utf8/LC_CTYPE", b"usr/lib/locale/locale-archive"),
)
_WRAPPERS = ("tini", "dumb-init", "catatonit", "env", "nice", "exec", "gosu", "su-exec")
_SHELLS = ("sh", "bash", "dash", "ash")
_PYTHON = re.compile(r"python(3(?:\.\d+)?)?")
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


class Files(Protocol):
    """A merged tree, as lazyfs.index.layer has it."""

    def lookup(self, path: bytes) -> Entry | None: ...

    def names(self, path: bytes) -> Iterable[bytes]: ...


class Found(NamedTuple):
    """path: the real one, from the root."""

    path: bytes
    entry: Entry


def object_id(entry: Entry) -> bytes:
    """Of a file with content, docs/format.md section 6."""
    head = _OBJECT.pack(entry.algorithm, 0, entry.size, len(entry.parts) // PART.size)
    return cext.blake3(head + entry.parts, context=_OBJECT_CONTEXT)


class Contents:
    """Bytes of files by their chunks. chunk: verified, or None if it is not here."""

    def __init__(self, chunk: Callable[[bytes], bytes | None]) -> None:
        self._chunk = chunk
        self._held: dict[bytes, bytes] = {}
        self._parts: dict[bytes, tuple[list[int], list[bytes], list[int]]] = {}

    def read(self, entry: Entry, offset: int, size: int) -> bytes:
        """Fewer at the end of the file. Raises CorruptError for a chunk that is not here."""
        starts, ids, lengths = self._layout(entry.parts)
        end = min(offset + size, entry.size)
        pieces = []
        row = bisect_right(starts, offset) - 1
        while offset < end:
            skip = offset - starts[row]
            length = min(lengths[row] - skip, end - offset)
            data = bytes(length) if ids[row] == HOLE else self._get(ids[row])[skip : skip + length]
            pieces.append(data)
            offset += length
            row += 1
        return b"".join(pieces)

    def _layout(self, parts: bytes) -> tuple[list[int], list[bytes], list[int]]:
        found = self._parts.get(parts)
        if found is None:
            starts, ids, lengths, start = [], [], [], 0
            for length, identity in PART.iter_unpack(parts):
                starts.append(start)
                ids.append(identity)
                lengths.append(length)
                start += length
            found = self._parts[parts] = (starts, ids, lengths)
        return found

    def _get(self, identity: bytes) -> bytes:
        data = self._held.pop(identity, None)
        if data is None:
            data = self._chunk(identity)
            if data is None:
                raise CorruptError(f"chunk {identity.hex()}: not here")
            if len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
        self._held[identity] = data
        return data


class Guess:
    """The pages, in the order in which they were thought of. files: entry of each object."""

    def __init__(self, tree: Files, contents: Contents, budget: int = BUDGET) -> None:
        self._tree = tree
        self._contents = contents
        self._left = budget // PAGE
        self._directories: dict[bytes, frozenset[bytes]] = {}
        self.pages: dict[Page, None] = {}
        self.files: dict[bytes, Entry] = {}

    # ------------------------------------------------------------------ looking

    def find(self, path: bytes | str) -> Found | None:
        """A file with content, links followed inside of the tree."""
        raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
        try:
            parts = resolve(raw.split(b"/"), (b"", self._tree.lookup(b"")), self._child, _symlink)
        except OnesecError:  # a loop, or a path that is too long
            return None
        real = b"/".join(parts)
        entry = self._tree.lookup(real)
        return Found(real, entry) if entry is not None and entry.kind is Kind.FILE and entry.parts else None

    def _child(self, node: tuple[bytes, Entry | None], name: bytes) -> tuple[bytes, Entry | None] | None:
        path = node[0] + b"/" + name if node[0] else name
        entry = self._tree.lookup(path)
        return None if entry is None else (path, entry)

    def listing(self, path: bytes) -> frozenset[bytes]:
        """What stands in a directory, by its path as it is written."""
        found = self._directories.get(path)
        if found is None:
            try:
                real = b"/".join(resolve(path.split(b"/"), (b"", self._tree.lookup(b"")), self._child, _symlink))
                found = frozenset(self._tree.names(real))
            except OnesecError:
                found = frozenset()
            self._directories[path] = found
        return found

    def read(self, entry: Entry, size: int, offset: int = 0) -> bytes:
        """Empty where the content is not to be had."""
        try:
            return self._contents.read(entry, offset, size)
        except (OnesecError, OSError):
            return b""

    # ------------------------------------------------------------------ taking

    def take(self, entry: Entry, start: int = 0, end: int | None = None) -> None:
        """Pages of a file's bytes, as far as the budget goes."""
        stop = entry.size if end is None else min(end, entry.size)
        if start >= stop or self._left <= 0:
            return
        identity = object_id(entry)
        self.files.setdefault(identity, entry)
        for number in range(start // PAGE, (stop + PAGE - 1) // PAGE):
            if (identity, number) not in self.pages:
                if self._left <= 0:
                    return
                self._left -= 1
                self.pages[identity, number] = None

    def take_small(self, path: bytes) -> None:
        if (found := self.find(path)) is not None:
            self.take(found.entry, 0, _SMALL_MAX)


def _symlink(node: tuple[bytes, Entry | None]) -> bytes | None:
    entry = node[1]
    return entry.target if entry is not None and entry.kind is Kind.SYMLINK else None


def start_pages(
    tree: Files, contents: Contents, config: Mapping[str, object], *, budget: int = BUDGET
) -> tuple[list[Page], dict[bytes, Entry]]:
    """The pages, and the entry of each object that they are of. config: an OCI image config that was checked."""
    guess = Guess(tree, contents, budget)
    inner = config.get("config")
    settings = inner if isinstance(inner, Mapping) else {}
    words = [*(settings.get("Entrypoint") or ()), *(settings.get("Cmd") or ())]
    environment = dict(str(item).partition("=")[::2] for item in settings.get("Env") or ())
    machine = _MACHINES.get(str(config.get("architecture")), "x86_64")
    for path in _ALWAYS:
        guess.take_small(path)
    before = len(guess.pages)
    _Start(guess, environment, str(settings.get("WorkingDir") or "/"), machine).command([str(word) for word in words])
    return (list(guess.pages), guess.files) if len(guess.pages) > before else ([], {})


# ---------------------------------------------------------------------- programs


class _Start:
    """What one configuration starts. directory: the working one."""

    def __init__(self, guess: Guess, environment: Mapping[str, str], directory: str, machine: str) -> None:
        self._guess = guess
        self._environment = environment
        self._directory = directory
        self._loader = _Loader(guess, environment, machine)
        self._commands = 0

    def command(self, words: Sequence[str]) -> None:
        """The program of these words, and what it goes on to start as far as one can see."""
        while words and (_is_assignment(words[0]) or words[0].startswith("-")):
            words = words[1:]
        found = self._program(words[0]) if words else None
        self._commands += 1
        if found is None or self._commands > COMMANDS_MAX:
            return
        typed, program = found
        name = posixpath.basename(typed)
        head = self._guess.read(program.entry, 256)
        if head.startswith(b"#!"):
            self._script(typed, program, head, words)
            return
        self._loader.program(program)
        if name in _SHELLS:
            self._shell(words)
        elif name in _WRAPPERS:
            self.command(words[1:])
        elif _PYTHON.fullmatch(name):
            _Python(self._guess, self._loader, self._environment, self._directory, typed, program).run(words[1:])

    def _program(self, word: str) -> tuple[str, Found] | None:
        """Its path before links are followed, which says whose environment it is, and the file."""
        places = [word] if "/" in word else [f"{place}/{word}" for place in self._path() if place]
        for place in places:
            full = posixpath.normpath(posixpath.join(self._directory, place))
            found = self._guess.find(full)
            if found is not None and found.entry.mode & 0o111:
                return full, found
        return None

    def _path(self) -> list[str]:
        return (self._environment.get("PATH") or DEFAULT_PATH).split(":")

    def _script(self, typed: str, script: Found, head: bytes, words: Sequence[str]) -> None:
        line = head[2:].partition(b"\n")[0].decode("utf-8", "replace").split(None, 1)
        if not line:
            return
        given = line[1:]
        if given and given[0].startswith("-S"):  # env splits what the kernel hands over in one piece
            given = given[0][2:].split()
        self.command([line[0], *given, typed, *words[1:]])
        self._guess.take(script.entry)

    def _shell(self, words: Sequence[str]) -> None:
        """``-c`` with its commands, or a script, whose last word usually is ``exec "$@"``."""
        rest = list(words[1:])
        while rest and rest[0].startswith("-") and "c" not in rest[0]:
            rest.pop(0)
        if len(rest) > 1 and rest[0].startswith("-"):
            for part in re.split(r"[;\n]|&&|\|\|?", rest[1])[:COMMANDS_MAX]:
                try:
                    self.command(_after_exec(shlex.split(part)))
                except ValueError:
                    continue  # quotes that do not end
        elif len(rest) > 1:
            self.command(rest[1:])


def _after_exec(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["exec"] else words


def _is_assignment(word: str) -> bool:
    return re.match(r"[A-Za-z_]\w*=", word) is not None


class _Loader:
    """The dynamic loader: which libraries come with a file, each once in a process."""

    def __init__(self, guess: Guess, environment: Mapping[str, str], machine: str) -> None:
        self._guess = guess
        self._given = [part for part in environment.get("LD_LIBRARY_PATH", "").split(":") if part]
        self.machine = machine
        self._loaded: dict[bytes, bytes] = {}  # name as it is asked for -> real path
        self._taken: set[bytes] = set()
        self._defaults: list[bytes] | None = None

    def program(self, program: Found) -> None:
        self.library(program, whole=True)

    def library(self, first: Found, *, whole: bool = False) -> None:
        """A file that is opened by name, and what it needs."""
        waiting = [first]
        while waiting and len(self._taken) < LIBRARIES_MAX:
            file = waiting.pop(0)
            if file.path in self._taken:
                continue
            self._taken.add(file.path)
            found = elf.parse(self._reader(file.entry), file.entry.size)
            if found is None:
                continue
            if found.interpreter and (loader := self._guess.find(found.interpreter)) is not None:
                self._guess.take(loader.entry, 0, _CODE_MAX)
            self._take(file.entry, found, whole=whole and file is first)
            for name in found.needed:
                if (library := self._search(name, file, found)) is not None:
                    waiting.append(library)

    def _reader(self, entry: Entry) -> elf.Read:
        return lambda offset, size: self._guess.read(entry, size, offset)

    def _take(self, entry: Entry, found: elf.Elf, *, whole: bool) -> None:
        guess = self._guess
        if whole and found.end <= _PROGRAM_MAX:
            guess.take(entry, 0, found.end)
            return
        for start, end in found.tables:
            guess.take(entry, start, min(end, start + _TABLE_MAX))
        for start, end in found.data:
            guess.take(entry, start, min(end, start + _DATA_MAX))
        if sum(end - start for start, end in found.code) <= _CODE_MAX:
            for start, end in found.code:
                guess.take(entry, start, end)
        else:
            for place in found.constructors:
                guess.take(entry, place, place + PAGE)

    def _search(self, name: bytes, asking: Found, found: elf.Elf) -> Found | None:
        """As the loader does: what is loaded already, RPATH, LD_LIBRARY_PATH, RUNPATH, the system's places."""
        if name in self._loaded:
            return None
        origin = b"/" + asking.path.rpartition(b"/")[0]
        rpath = () if found.runpath else found.rpath
        places = [
            *(_expanded(part, origin) for part in rpath),
            *(part.encode() for part in self._given),
            *(_expanded(part, origin) for part in found.runpath),
            *self._system(),
        ]
        for place in [b""] if b"/" in name else places:
            if (library := self._guess.find(place + b"/" + name)) is not None:
                self._loaded[name] = library.path
                return library
        return None

    def _system(self) -> list[bytes]:
        if self._defaults is None:
            places = [part.format(self.machine).encode() for part in _LIBRARIES]
            for name in sorted(self._guess.listing(b"etc/ld.so.conf.d")):
                if name.endswith(b".conf") and (file := self._guess.find(b"etc/ld.so.conf.d/" + name)) is not None:
                    lines = self._guess.read(file.entry, _SMALL_MAX).split(b"\n")
                    places += [line.strip() for line in lines if line.strip().startswith(b"/")]
            self._defaults = list(dict.fromkeys(places))
        return self._defaults


def _expanded(part: bytes, origin: bytes) -> bytes:
    return part.replace(b"${ORIGIN}", origin).replace(b"$ORIGIN", origin)


# ---------------------------------------------------------------------- Python


class _Module(NamedTuple):
    """name: qualified. compiled: its bytecode, or a library if it has no source. package: whether it has modules."""

    name: str
    source: Found | None
    compiled: Found | None
    package: bool


class _Python:
    """An interpreter's start, and the imports of a program in the order in which they are executed."""

    def __init__(
        self,
        guess: Guess,
        loader: _Loader,
        environment: Mapping[str, str],
        directory: str,
        typed: str,
        program: Found,
    ) -> None:
        self._guess = guess
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
            for one in self._guess.listing(prefix + b"/lib")
            if re.fullmatch(rb"python3\.\d+", one)
        ]
        return max(versions, key=lambda one: int(one[2:]), default="3")

    def _find_path(self, environment: Mapping[str, str], typed: str, program: Found) -> list[bytes]:
        python = f"python{self._version}".encode()
        real, own = _prefix(program.path), _prefix(typed.encode().lstrip(b"/"))
        venv = [own] if own != real and b"pyvenv.cfg" in self._guess.listing(own) else []
        if venv:
            self._guess.take_small(own + b"/pyvenv.cfg")
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
        return [place for place in dict.fromkeys(places) if self._guess.listing(place)]

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
            names = self._guess.listing(place)
            if base in names and b"__init__.py" in self._guess.listing(place + b"/" + base):
                return self._described(name, place + b"/" + base, b"__init__", package=True)
            for end in self._library_ends:
                if base + end in names and (library := self._guess.find(place + b"/" + base + end)) is not None:
                    return _Module(name, None, library, package=False)
            if base + b".py" in names:
                return self._described(name, place, base, package=False)
        return None

    def _described(self, name: str, place: bytes, base: bytes, *, package: bool) -> _Module:
        cached = base + b"." + self._tag + b".pyc"
        compiled = None
        if cached in self._guess.listing(place + b"/__pycache__"):
            compiled = self._guess.find(place + b"/__pycache__/" + cached)
        source = self._guess.find(place + b"/" + base + b".py")
        if source is None:  # an empty __init__.py is a file without content
            entry = Entry(Kind.FILE)
            source = Found(place + b"/" + base + b".py", entry)
        return _Module(name, source, compiled, package)

    # ------------------------------------------------------------------ what runs

    def run(self, words: Sequence[str]) -> None:
        for module in STARTUP:
            self._import(Import(0, module), "")
        for place in self._path:
            for name in sorted(self._guess.listing(place)):
                if name.endswith(b".pth"):
                    self._guess.take_small(place + b"/" + name)
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
        script = self._guess.find(path)
        if script is None:
            return
        self._path[0] = script.path.rpartition(b"/")[0]
        self._guess.take(script.entry)
        self._program(self._guess.read(script.entry, SOURCE_MAX))

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
        self._guess.take(taken.entry)
        package = module.name if module.package else module.name.rpartition(".")[0]
        if module.source.entry.parts and self._sources < SOURCES_MAX:
            source = self._guess.read(module.source.entry, SOURCE_MAX)
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
