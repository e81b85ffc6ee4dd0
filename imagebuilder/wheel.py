"""A wheel as the files that pip would leave, without running anything.

Everything is judged before the first byte is given out: the archive (imagebuilder/zip.py), that one .dist-info is there
and is the wheel's own, that RECORD names exactly the files in the archive, each with a hash, and that no two files end
at one path. A content that breaks its RECORD hash raises while it is read.
"""

from __future__ import annotations

import base64
import calendar
import configparser
import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from imagebuilder.errors import BadWheelError
from imagebuilder.zip import Member, Zip

_FILE = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.+!]+)(-[0-9][^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_ENTRY = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)\s*:\s*(?P<object>[^\W\d]\w*(\.[^\W\d]\w*)*)\s*(\[.*\])?")
_SCRIPT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+ -]*")
_HASHES = ("sha256", "sha384", "sha512")
_UNHASHED = ("RECORD", "RECORD.jws", "RECORD.p7s")  # PEP 427: no row, or a row without a hash
_DOCUMENT_MAX = 64 << 20  # bytes of RECORD, WHEEL or entry_points.txt
_INSTALLER = b"onesec\n"
TIME_MIN = 315532800  # 1980-01-01, the first that zip can say

# The text pip writes, so that what looks at such scripts finds what it knows.
_WRAPPER = """#!{python}
# -*- coding: utf-8 -*-
import re
import sys
from {module} import {first}
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit({object}())
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where an image's Python keeps things: paths from the root, without leading slash; python: absolute."""

    python: str
    packages: str
    scripts: str
    data: str
    headers: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of the layer. mtime: seconds. content: a member of the archive, or bytes that we wrote."""

    path: str
    executable: bool
    mtime: int
    size: int
    content: Member | bytes


class Wheel:
    """fd: of the wheel, borrowed; its digest was checked by the caller. filename: what it is called."""

    def __init__(self, fd: int, filename: str) -> None:
        self._label = filename
        self._zip = Zip(fd, filename)
        try:
            match = _FILE.fullmatch(filename)
            if match is None:
                raise BadWheelError(filename, "not the name of a wheel")
            self._info = self._find_info(match["name"], match["version"])
            self._hashes = self._read_record()
            self._check_version()
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ what it says about itself

    def _find_info(self, name: str, version: str) -> str:
        found = {top for member in self._zip.members if (top := member.split("/")[0]).endswith(".dist-info")}
        if len(found) != 1:
            raise BadWheelError(self._label, f"got {len(found)} .dist-info directories, want 1")
        (info,) = found
        own, _, own_version = info.removesuffix(".dist-info").partition("-")
        if _normal(own) != _normal(name) or _normal(own_version) != _normal(version):
            raise BadWheelError(self._label, f"its .dist-info is that of {info[:200]!r}")
        return info

    def _document(self, name: str) -> str | None:
        member = self._zip.members.get(f"{self._info}/{name}")
        if member is None:
            return None
        if member.size > _DOCUMENT_MAX:
            raise BadWheelError(self._label, f"{name}: got {member.size} bytes, want at most {_DOCUMENT_MAX}")
        try:
            return b"".join(self._zip.read(member)).decode()
        except UnicodeDecodeError as error:
            raise BadWheelError(self._label, f"{name}: not UTF-8") from error

    def _check_version(self) -> None:
        text = self._document("WHEEL")
        version = re.search(r"^Wheel-Version:\s*(\S+)\s*$", text or "", re.MULTILINE)
        if version is None or version[1].split(".")[0] != "1":
            raise BadWheelError(self._label, f"Wheel-Version: got {version and version[1]!r}, want 1.x")

    def _read_record(self) -> Mapping[str, tuple[str, bytes]]:
        """(algorithm, digest) of each file with a hash."""
        text = self._document("RECORD")
        if text is None:
            raise BadWheelError(self._label, "no RECORD")
        hashes: dict[str, tuple[str, bytes]] = {}
        seen: set[str] = set()
        unhashed = {f"{self._info}/{name}" for name in _UNHASHED}
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error as error:
            raise BadWheelError(self._label, f"RECORD: {error}") from error
        for row in rows:
            if len(row) != 3:
                raise BadWheelError(self._label, f"RECORD: got a row of {len(row)} fields, want 3")
            name, digest, size = row
            member = self._zip.members.get(name)
            if name in seen or member is None:
                reason = "occurs twice" if name in seen else "is not in the archive"
                raise BadWheelError(self._label, f"RECORD: {name[:200]!r} {reason}")
            seen.add(name)
            if size and (not size.isascii() or not size.isdigit() or int(size[:20]) != member.size):
                raise BadWheelError(self._label, f"RECORD: {name[:200]!r}: got size {size[:20]}, want {member.size}")
            if name not in unhashed:
                hashes[name] = self._digest(name, digest)
        if missing := self._zip.members.keys() - seen - unhashed:
            raise BadWheelError(self._label, f"RECORD: does not name {min(missing)!r}")
        return hashes

    def _digest(self, name: str, text: str) -> tuple[str, bytes]:
        algorithm, _, encoded = text.partition("=")
        try:
            if algorithm == "sha256" and re.fullmatch("[0-9a-f]{64}", encoded):
                return algorithm, bytes.fromhex(encoded)  # against PEP 427, but there are such wheels
            digest = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except ValueError:
            digest = b""
        if algorithm not in _HASHES or len(digest) != hashlib.new(algorithm).digest_size:
            raise BadWheelError(self._label, f"RECORD: {name[:200]!r}: got {text[:100]!r}, want a sha256 or longer")
        return algorithm, digest

    # ------------------------------------------------------------------ what it becomes

    def place(self, places: Places) -> tuple[Placed, ...]:
        """The files of the layer, sorted by path. INSTALLER, RECORD and scripts are as an installer leaves them."""
        found: dict[str, Placed] = {}

        def put(placed: Placed) -> None:
            if placed.path in found:
                raise BadWheelError(self._label, f"two files become {placed.path!r}")
            found[placed.path] = placed

        data = self._info.removesuffix(".dist-info") + ".data"
        for name, member in self._zip.members.items():
            top, _, rest = name.partition("/")
            own = name.removeprefix(f"{self._info}/")
            if top == data:
                put(self._place_data(rest, member, places))
            elif own not in ("RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED", "direct_url.json"):
                put(_of_member(f"{places.packages}/{name}", member))
        for placed in self._scripts(places):
            put(placed)
        info = f"{places.packages}/{self._info}"
        put(_written(f"{info}/INSTALLER", _INSTALLER))
        self._check_tree(found)
        record = self._record(found, places, f"{info}/RECORD")
        put(_written(f"{info}/RECORD", record))
        return tuple(found[path] for path in sorted(found))

    def _place_data(self, rest: str, member: Member, places: Places) -> Placed:
        kind, _, path = rest.partition("/")
        roots = {
            "purelib": places.packages,
            "platlib": places.packages,
            "data": places.data,
            "scripts": places.scripts,
            "headers": f"{places.headers}/{self._info.partition('-')[0]}",
        }
        if kind not in roots or not path:
            raise BadWheelError(self._label, f"{member.name!r}: no such part of .data")
        if kind != "scripts":
            return _of_member(f"{roots[kind]}/{path}", member)
        head = next(self._zip.read(member), b"")
        if not head.startswith(b"#!python"):
            placed = _of_member(f"{places.scripts}/{path}", member)
            return Placed(placed.path, True, placed.mtime, placed.size, member)
        if member.size > _DOCUMENT_MAX:
            raise BadWheelError(self._label, f"{member.name!r}: a script of {member.size} bytes")
        _, _, body = b"".join(self.read(member)).partition(b"\n")
        text = b"#!" + places.python.encode() + b"\n" + body
        return Placed(f"{places.scripts}/{path}", True, _seconds(member), len(text), text)

    def _scripts(self, places: Places) -> Iterator[Placed]:
        text = self._document("entry_points.txt")
        if text is None:
            return
        parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # names are case-sensitive
        try:
            parser.read_string(text)
        except configparser.Error as error:
            raise BadWheelError(self._label, f"entry_points.txt: {' '.join(str(error).split())}") from error
        for section in ("console_scripts", "gui_scripts"):
            for name, value in parser.items(section) if parser.has_section(section) else ():
                match = _ENTRY.fullmatch(value.strip())
                if match is None or not _SCRIPT.fullmatch(name) or name in (".", ".."):
                    raise BadWheelError(self._label, f"entry_points.txt: {name[:100]!r} = {value[:100]!r} is no script")
                first = match["object"].split(".")[0]
                script = _WRAPPER.format(
                    python=places.python, module=match["module"], first=first, object=match["object"]
                )
                yield _written(f"{places.scripts}/{name}", script.encode(), executable=True)

    def _check_tree(self, found: Mapping[str, Placed]) -> None:
        for path in found:
            at = path.find("/")
            while at >= 0:
                if path[:at] in found:
                    raise BadWheelError(self._label, f"{path[:at]!r} becomes both a file and a directory")
                at = path.find("/", at + 1)

    def _record(self, found: Mapping[str, Placed], places: Places, own: str) -> bytes:
        """RECORD as an installer leaves it: paths from the packages' directory, hashes of what was written."""
        rows = []
        for path in sorted(found):
            placed = found[path]
            if isinstance(placed.content, bytes):
                algorithm, digest = "sha256", hashlib.sha256(placed.content).digest()
            else:
                algorithm, digest = self._hashes[placed.content.name]
            encoded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            rows.append((_relative(path, places.packages), f"{algorithm}={encoded}", str(placed.size)))
        rows.append((_relative(own, places.packages), "", ""))
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(sorted(rows))
        return text.getvalue().encode()

    def read(self, content: Member | bytes) -> Iterator[bytes]:
        """The bytes of a placed file in steps of at most 1 MiB; a wrong hash raises before the last one is given."""
        if isinstance(content, bytes):
            yield content
            return
        known = self._hashes.get(content.name)
        hasher = hashlib.new(known[0]) if known else None
        held = b""
        for step in self._zip.read(content):
            if hasher:
                hasher.update(step)
            if held:
                yield held
            held = step
        if known and hasher and hasher.digest() != known[1]:
            raise BadWheelError(self._label, f"{content.name!r}: content is not what RECORD says")
        if held:
            yield held


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _seconds(member: Member) -> int:
    return max(calendar.timegm((*member.date, 0, 0, 0)), TIME_MIN)


def _of_member(path: str, member: Member) -> Placed:
    return Placed(path, member.executable, _seconds(member), member.size, member)


def _written(path: str, data: bytes, *, executable: bool = False) -> Placed:
    return Placed(path, executable, TIME_MIN, len(data), data)


def _relative(path: str, start: str) -> str:
    parts, base = path.split("/"), start.split("/")
    common = 0
    while common < min(len(parts), len(base)) and parts[common] == base[common]:
        common += 1
    return "/".join([".."] * (len(base) - common) + parts[common:])
