"""The dynamic loader, as far as one can follow it without running anything: which libraries come with a file."""

from __future__ import annotations

from collections.abc import Mapping

from imagebuilder import elf
from imagebuilder.pages import SMALL_MAX, Found, Picked
from lazyfs.bootpack import PAGE
from lazyfs.index.model import Entry

LIBRARIES_MAX = 2000
_PROGRAM_MAX = 8 << 20  # of the program itself, which is taken whole
_CODE_MAX = 1536 << 10  # code of a library that is taken whole; of a larger one its constructors
_DATA_MAX = 8 << 20  # writable bytes of one library
_TABLE_MAX = 16 << 20
_LIBRARIES = (
    "/lib/{0}-linux-gnu",
    "/usr/lib/{0}-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
)


class Loader:
    """The dynamic loader: which libraries come with a file, each once in a process."""

    def __init__(self, picked: Picked, environment: Mapping[str, str], machine: str) -> None:
        self._picked = picked
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
            if found.interpreter and (loader := self._picked.find(found.interpreter)) is not None:
                self._picked.take(loader.entry, 0, _CODE_MAX)
            self._take(file.entry, found, whole=whole and file is first)
            for name in found.needed:
                if (library := self._search(name, file, found)) is not None:
                    waiting.append(library)

    def _reader(self, entry: Entry) -> elf.Read:
        return lambda offset, size: self._picked.read(entry, size, offset)

    def _take(self, entry: Entry, found: elf.Elf, *, whole: bool) -> None:
        picked = self._picked
        if whole and found.end <= _PROGRAM_MAX:
            picked.take(entry, 0, found.end)
            return
        for start, end in found.tables:
            picked.take(entry, start, min(end, start + _TABLE_MAX))
        for start, end in found.data:
            picked.take(entry, start, min(end, start + _DATA_MAX))
        if sum(end - start for start, end in found.code) <= _CODE_MAX:
            for start, end in found.code:
                picked.take(entry, start, end)
        else:
            for place in found.constructors:
                picked.take(entry, place, place + PAGE)

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
            if (library := self._picked.find(place + b"/" + name)) is not None:
                self._loaded[name] = library.path
                return library
        return None

    def _system(self) -> list[bytes]:
        if self._defaults is None:
            places = [part.format(self.machine).encode() for part in _LIBRARIES]
            for name in sorted(self._picked.listing(b"etc/ld.so.conf.d")):
                if name.endswith(b".conf") and (file := self._picked.find(b"etc/ld.so.conf.d/" + name)) is not None:
                    lines = self._picked.read(file.entry, SMALL_MAX).split(b"\n")
                    places += [line.strip() for line in lines if line.strip().startswith(b"/")]
            self._defaults = list(dict.fromkeys(places))
        return self._defaults


def _expanded(part: bytes, origin: bytes) -> bytes:
    return part.replace(b"${ORIGIN}", origin).replace(b"$ORIGIN", origin)
