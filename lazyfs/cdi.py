"""Container Device Interface: what the host's administrator says a container needs to use a device.

Specs are JSON or YAML files in /etc/cdi and /var/run/cdi (CDI 0.3.0 to 1.1.0). They are trusted as root's files are,
since they name hooks that run as root; but they are made by programs, so they are read strictly: unknown versions,
unknown fields, fields that the stated version does not have, and names outside the grammar are refused. A file that
cannot be used makes its own devices unknown and no others.

`parse` turns bytes into values and `catalogue` says which device wins; only `load` reads.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from cext.errors import CorruptError, LimitError
from cext.record import Record
from lazyfs.errors import ContainerError

SPEC_MAX = 4 << 20  # bytes of one file; eight GPUs with all their partitions take some 200 kB
SPECS_MAX = 1000  # files of one directory
LIST_MAX = 4096  # entries of any list
TEXT_MAX = 4096
VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
"""Released versions, oldest first; fields have the place in it that they came with."""

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
NO_PERMISSIONS = "none"

_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_CLASS = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_VENDOR_MAX, _CLASS_MAX, _DEVICE_MAX = 253, 63, 253

T = TypeVar("T")


class Name(Record):
    """vendor.com/class=device."""

    kind: str
    device: str

    def __str__(self) -> str:
        return f"{self.kind}={self.device}"


class DeviceNode(Record):
    """path: in the container. host: where its numbers come from if they are not given. permissions: of cgroups."""

    path: str
    host: str
    type: str = ""
    major: int = 0
    minor: int = 0
    mode: int | None = None
    permissions: str = "rwm"
    uid: int | None = None
    gid: int | None = None


class Mount(Record):
    source: str
    destination: str
    type: str = ""
    options: tuple[str, ...] = ()


class Hook(Record):
    stage: str
    path: str
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    timeout: int | None = None


class Edits(Record):
    """What changes in a container. groups: further ones of its process. network: interfaces of the host that it wants.
    ignored: names of fields that nobody acts on.
    """

    environment: tuple[tuple[str, str], ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    groups: tuple[int, ...] = ()
    network: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class Spec(Record):
    """One file. rank: of its directory; the higher one wins."""

    path: str
    rank: int
    kind: str
    devices: Mapping[str, Edits]
    edits: Edits


class Catalogue(Record):
    """devices: the spec that describes each. contested: two files of one directory describe it, so none does.
    broken: why a file is not used.
    """

    devices: Mapping[str, Spec]
    contested: Mapping[str, tuple[str, str]]
    broken: Mapping[str, str]


def parse_name(text: str) -> Name:
    """A qualified device name. Raises ContainerError."""
    kind, equals, device = text.partition("=")
    vendor, slash, name = kind.partition("/")
    if not (equals and slash and _fits(_VENDOR, vendor, _VENDOR_MAX) and _fits(_CLASS, name, _CLASS_MAX)):
        raise ContainerError(f"device: got {text}, want a name like vendor.com/class=device")
    if not _fits(_DEVICE, device, _DEVICE_MAX):
        raise ContainerError(f"device: got {text}, want letters, digits and _ . : - after the =")
    return Name(kind, device)


def _fits(pattern: re.Pattern[str], text: str, most: int) -> bool:
    return len(text) <= most and pattern.fullmatch(text) is not None


# ---------------------------------------------------------------------- files


def load(directories: Sequence[str]) -> Catalogue:
    """The specs of these directories; those that are missing have none."""
    specs: list[Spec] = []
    broken: dict[str, str] = {}
    for rank, directory in enumerate(directories):
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith((".json", ".yaml")))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if len(names) > SPECS_MAX:
            raise ContainerError(f"{directory}: got {len(names)} specs, want at most {SPECS_MAX}")
        for name in names:
            path = f"{directory}/{name}"
            try:
                specs.append(parse(_read(path), path, rank))
            except (CorruptError, LimitError) as error:
                broken[path] = str(error)
            except OSError as error:
                broken[path] = f"{path}: {os.strerror(error.errno or 0).lower()}"
    return catalogue(specs, broken)


def _read(path: str) -> bytes:
    """Links are followed, as vendors use them; what is no regular file is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CorruptError(f"{path}: got no regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(SPEC_MAX + 1)
    finally:
        os.close(fd)


def catalogue(specs: Sequence[Spec], broken: Mapping[str, str]) -> Catalogue:
    """A later directory wins over an earlier one; two files of the same one cancel each other."""
    devices: dict[str, Spec] = {}
    contested: dict[str, tuple[str, str]] = {}
    for spec in sorted(specs, key=lambda spec: spec.rank):
        for device in spec.devices:
            name = f"{spec.kind}={device}"
            other = devices.get(name)
            if other is not None and other.rank == spec.rank:
                contested[name] = (other.path, spec.path)
            elif other is not None:
                contested.pop(name, None)
            devices[name] = spec
    return Catalogue({name: spec for name, spec in devices.items() if name not in contested}, contested, dict(broken))


# ---------------------------------------------------------------------- one spec


def parse(data: bytes, path: str, rank: int = 0) -> Spec:
    """Raises CorruptError or LimitError, which name the file and the field."""
    if len(data) > SPEC_MAX:
        raise LimitError(f"{path}: got over {SPEC_MAX} bytes")
    return _Reader(path, rank, _document(data, path)).spec()


def _document(data: bytes, path: str) -> object:
    try:
        if path.endswith(".yaml"):
            from lazyfs import cdi_yaml

            return cdi_yaml.document(data)
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        kind = "YAML" if path.endswith(".yaml") else "JSON"
        raise CorruptError(f"{path}: got no valid {kind}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


class _Reader:
    """Reads one document and remembers the youngest field it met."""

    def __init__(self, path: str, rank: int, document: object) -> None:
        self._path = path
        self._rank = rank
        self._document = document
        self._since = 0  # place in VERSIONS of the youngest field so far
        self._youngest = ""

    def spec(self) -> Spec:
        table = _Object(self, "", self._document)
        version = table.text("cdiVersion", required=True).removeprefix("v")
        if version not in VERSIONS:
            self.refuse("cdiVersion", version, f"one of {VERSIONS[0]} to {VERSIONS[-1]} that was released")
        kind = table.text("kind", required=True)
        vendor, _, name = kind.partition("/")
        if not _fits(_VENDOR, vendor, _VENDOR_MAX) or not _fits(_CLASS, name, _CLASS_MAX):
            self.refuse("kind", kind, "vendor.com/class")
        if "." in name:
            self.needs("0.6.0", "kind with a dot in its class")
        self._annotations(table)
        edits = self._edits(table)
        devices: dict[str, Edits] = {}
        for device in table.objects("devices"):
            name = device.text("name", required=True)
            if not _fits(_DEVICE, name, _DEVICE_MAX):
                self.refuse(device.path("name"), name, "letters, digits and _ . : -")
            if name[0].isdigit():
                self.needs("0.5.0", "device name that begins with a digit")
            if name in devices:
                self.refuse(device.path("name"), name, "each name once")
            self._annotations(device)
            devices[name] = self._edits(device)
            device.finish()
        if not devices:
            self.refuse("devices", "none", "at least one")
        table.finish()
        if VERSIONS.index(version) < self._since:
            self.refuse("cdiVersion", version, f"at least {VERSIONS[self._since]}, for {self._youngest}")
        return Spec(self._path, self._rank, kind, devices, edits)

    def needs(self, version: str, field: str) -> None:
        if VERSIONS.index(version) > self._since:
            self._since, self._youngest = VERSIONS.index(version), field

    def refuse(self, field: str, got: object, want: str) -> NoReturn:
        shown = str(got)
        raise CorruptError(f"{self._path}: {field}: got {shown[:80]}, want {want}")

    def _annotations(self, table: _Object) -> None:
        """They say nothing to us."""
        if (found := table.table("annotations")) is not None:
            self.needs("0.6.0", "annotations")
            found.all_texts()

    def _edits(self, parent: _Object) -> Edits:
        table = parent.table("containerEdits")
        if table is None:
            return Edits()
        ignored: list[str] = []
        if (cache := table.table("intelRdt")) is not None:
            self.needs("0.7.0", "intelRdt")
            self._intel(cache)
            ignored.append("intelRdt")
        edits = Edits(
            tuple(self._variable(table, text) for text in table.texts("env")),
            tuple(self._node(node) for node in table.objects("deviceNodes")),
            tuple(self._mount(mount) for mount in table.objects("mounts")),
            tuple(self._hook(hook) for hook in table.objects("hooks")),
            self._groups(table),
            tuple(self._interface(device) for device in table.objects("netDevices")),
            tuple(ignored),
        )
        table.finish()
        return edits

    def _interface(self, table: _Object) -> str:
        self.needs("1.1.0", "netDevices")
        name = table.text("hostInterfaceName", required=True)
        table.text("name", required=True)
        table.finish()
        return name

    def _variable(self, table: _Object, text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not name or not equals:
            self.refuse(table.path("env"), text, "NAME=VALUE")
        return name, value

    def _groups(self, table: _Object) -> tuple[int, ...]:
        """The specification's text and its definition differ in the name."""
        found = (*table.numbers("additionalGids"), *table.numbers("additionalGIDs"))
        if found:
            self.needs("0.7.0", "additionalGids")
        return tuple(group for group in found if group)

    def _intel(self, table: _Object) -> None:
        for name in ("closID", "l3CacheSchema", "memBwSchema"):
            table.text(name)
        if table.texts("schemata"):
            self.needs("1.1.0", "schemata")
        for name in ("enableCMT", "enableMBM", "enableMonitoring"):
            table.flag(name)
        table.finish()

    def _node(self, table: _Object) -> DeviceNode:
        path = table.absolute("path", required=True)
        host = table.absolute("hostPath")
        if host:
            self.needs("0.5.0", "hostPath of a device node")
        kind = table.text("type")
        if kind not in ("", "b", "c", "u", "p"):
            self.refuse(table.path("type"), kind, "b, c, u or p")
        permissions = table.text("permissions") or "rwm"
        if permissions != NO_PERMISSIONS and permissions.strip("rwm"):
            self.refuse(table.path("permissions"), permissions, "some of r, w and m")
        node = DeviceNode(
            path,
            host or path,
            kind,
            table.number("major", 0, (1 << 32) - 1) or 0,
            table.number("minor", 0, (1 << 32) - 1) or 0,
            table.number("fileMode", 0, 0xFFFFFFFF),
            "" if permissions == NO_PERMISSIONS else "".join(letter for letter in "rwm" if letter in permissions),
            table.number("uid", 0, 0xFFFFFFFE),
            table.number("gid", 0, 0xFFFFFFFE),
        )
        table.finish()
        return node

    def _mount(self, table: _Object) -> Mount:
        kind = table.text("type")
        if kind:
            self.needs("0.4.0", "type of a mount")
        if kind not in ("", "none", "bind", "tmpfs"):
            self.refuse(table.path("type"), kind, "bind or tmpfs")
        options = table.texts("options")
        for option in options:
            if not option or "," in option:
                self.refuse(table.path("options"), option, "one option in each entry")
        bound = kind != "tmpfs"
        source = table.absolute("hostPath", required=True) if bound else table.text("hostPath", required=True)
        mount = Mount(source, table.absolute("containerPath", required=True), "" if bound else kind, options)
        table.finish()
        return mount

    def _hook(self, table: _Object) -> Hook:
        stage = table.text("hookName", required=True)
        if stage not in HOOKS:
            self.refuse(table.path("hookName"), stage, f"one of {', '.join(HOOKS)}")
        hook = Hook(
            stage,
            table.absolute("path", required=True),
            table.texts("args"),
            tuple(f"{name}={value}" for name, value in (self._variable(table, text) for text in table.texts("env"))),
            table.number("timeout", 1, 86400),
        )
        table.finish()
        return hook


class _Object:
    """One object of the document: typed reads, then ``finish`` refuses what nobody read."""

    def __init__(self, reader: _Reader, place: str, value: object) -> None:
        self._reader = reader
        self._place = place
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            reader.refuse(place or "document", type(value).__name__, "an object")
        self._values: dict[str, object] = dict(value)

    def path(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def _take(self, key: str, kind: type[T], want: str) -> T | None:
        value = self._values.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._reader.refuse(self.path(key), repr(value), want)
        return value

    def text(self, key: str, *, required: bool = False) -> str:
        value = self._take(key, str, "a string")
        if required and not value:
            self._reader.refuse(self.path(key), "nothing", "a string")
        return self._checked(key, value or "")

    def _checked(self, key: str, value: str) -> str:
        if "\0" in value:
            self._reader.refuse(self.path(key), repr(value), "a string without NUL")
        if len(value) > TEXT_MAX:
            self._reader.refuse(self.path(key), f"{len(value)} characters", f"at most {TEXT_MAX}")
        return value

    def absolute(self, key: str, *, required: bool = False) -> str:
        """A path from the root without ``..``."""
        value = self.text(key, required=required)
        if value and (not value.startswith("/") or ".." in value.split("/")):
            self._reader.refuse(self.path(key), value, "an absolute path without ..")
        return value

    def flag(self, key: str) -> bool:
        return self._take(key, bool, "true or false") or False

    def number(self, key: str, least: int, most: int) -> int | None:
        value = self._take(key, int, "a number")
        if value is not None and not least <= value <= most:
            self._reader.refuse(self.path(key), value, f"{least} to {most}")
        return value

    def _list(self, key: str) -> list[object]:
        found: list[object] = self._take(key, list, "a list") or []
        if len(found) > LIST_MAX:
            self._reader.refuse(self.path(key), f"{len(found)} entries", f"at most {LIST_MAX}")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        found = self._list(key)
        for value in found:
            if not isinstance(value, str):
                self._reader.refuse(self.path(key), repr(value), "strings")
            self._checked(key, value)
        return tuple(value for value in found if isinstance(value, str))

    def numbers(self, key: str) -> tuple[int, ...]:
        """Of groups."""
        found = self._list(key)
        for value in found:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0xFFFFFFFE:
                self._reader.refuse(self.path(key), repr(value), "numbers of 32 bits")
        return tuple(value for value in found if isinstance(value, int))

    def table(self, key: str) -> _Object | None:
        value = self._take(key, dict, "an object")
        return None if value is None else _Object(self._reader, self.path(key), value)

    def objects(self, key: str) -> list[_Object]:
        return [
            _Object(self._reader, f"{self.path(key)}[{number}]", value) for number, value in enumerate(self._list(key))
        ]

    def all_texts(self) -> None:
        for key in list(self._values):
            self.text(key)

    def finish(self) -> None:
        for key in self._values:
            self._reader.refuse(self.path(key), "this field", "none of that name")
