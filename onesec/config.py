"""Where things live, from file, environment and flags, in one frozen value.

Strongest first: a flag, the environment (ONESEC_ROOT, ONESEC_RUN), the file (``/etc/onesec/onesec.toml``, or the one
that ONESEC_CONFIG names), the default. Unknown keys are refused: a setting with a typo must not be a setting ignored.

    root = "/var/lib/onesec"
    run-dir = "/run/onesec"

    [run]
    runtime = "crun"            # program name or path; without it: crun, else runc
    scratch = "disk"            # where what a container writes goes: "disk" (under root) or "memory" (a tmpfs)
    seccomp = "/path.json"      # without it: containers-common's profile, else our own
    linger = 600                # seconds that the pages of a container stay served after it, for the next one; 0: none
    cdi = ["/etc/cdi", "/var/run/cdi"]  # where devices are described, for --gpus and --device; the last one wins
    prefetch = "256MiB"         # of packs, fetched after a start for the local store when nobody waits; "0": nothing
    prefetch-after = 10         # seconds after the boot pack is here until that begins: a start needs the line
    cgroup = "/sys/fs/cgroup/x" # where the servers live that outlast a command; without it: in that of the first
    learn = true                # what a start reads is read ahead of the next one of the same command
    deadline = 120              # seconds that a read waits for bytes that do not come, until it fails; of new servers

    [store]                     # chunks that are read again and again, under root/cache/store
    quota = "20GiB"             # all stores together; without it: a tenth of the file system, at most 20GiB; "0": none
    floor = "5GiB"              # what stays free; without it: a twentieth of the file system, at most 5GiB

    [registry."localhost:5000"]
    plain-http = true
    ca = "/path/ca.pem"
    mirrors = ["mirror.example"]        # asked first when an image is read
    realms = ["login.example"]          # further hosts that may be given the password for a token
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NoReturn, cast

from cext.errors import UsageError
from cext.record import EMPTY, Record

DEFAULT_ROOT = "/var/lib/onesec"
DEFAULT_RUN_DIR = "/run/onesec"
DEFAULT_FILE = "/etc/onesec/onesec.toml"
LINGER_S = 600.0
DEADLINE_S = 120.0
PREFETCH = 256 << 20
PREFETCH_AFTER_S = 10.0
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")

_UNITS = {"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}

Scratch = Literal["disk", "memory"]


class RegistrySettings(Record):
    """How one registry host is reached."""

    plain_http: bool = False
    ca: Path | None = None
    mirrors: tuple[str, ...] = ()
    realms: tuple[str, ...] = ()


class RunSettings(Record):
    """How containers are run."""

    runtime: str | None = None
    scratch: Scratch = "disk"
    seccomp: Path | None = None
    linger_s: float = LINGER_S
    deadline_s: float = DEADLINE_S
    cdi: tuple[str, ...] = CDI_DIRECTORIES
    prefetch: int = PREFETCH
    prefetch_after_s: float = PREFETCH_AFTER_S
    cgroup: str | None = None
    learn: bool = True


class StoreLimits(Record):
    """Bytes; None: a share of the file system (cache/stores.py)."""

    quota: int | None = None
    floor: int | None = None


class Config(Record):
    """Everything a command has to know about the machine it works on. Paths are absolute."""

    root: Path
    run_dir: Path
    json: bool = False
    run: RunSettings = RunSettings()
    store: StoreLimits = StoreLimits()
    registries: Mapping[str, RegistrySettings] = EMPTY


def load(
    environment: Mapping[str, str], *, root: str | None = None, run_dir: str | None = None, json: bool = False
) -> Config:
    """The configuration for one command: flags as given, the rest from environment and file."""
    named = environment.get("ONESEC_CONFIG")
    table = _read(named or DEFAULT_FILE, required=named is not None)
    source = named or DEFAULT_FILE
    reader = _Table(source, "", table)
    file_root = reader.text("root")
    file_run_dir = reader.text("run-dir")
    run = _run_settings(reader.table("run"))
    store = _store_limits(reader.table("store"))
    registries = {name: _registry_settings(part) for name, part in reader.table("registry").tables()}
    reader.finish()
    return Config(
        root=_absolute(root or environment.get("ONESEC_ROOT") or file_root or DEFAULT_ROOT),
        run_dir=_absolute(run_dir or environment.get("ONESEC_RUN") or file_run_dir or DEFAULT_RUN_DIR),
        json=json,
        run=run,
        store=store,
        registries=registries,
    )


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def _read(path: str, *, required: bool) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            import tomllib  # 5 ms that only hosts with a file pay

            try:
                return tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UsageError(f"{path}: not valid TOML: {error}") from error
            except RecursionError as error:  # of Pythons whose parser has no bound of its own
                raise UsageError(f"{path}: not valid TOML: nested too deep") from error
    except FileNotFoundError:
        if required:
            raise UsageError(f"{path}: no such file (named by ONESEC_CONFIG)") from None
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error


def _run_settings(table: _Table) -> RunSettings:
    scratch = table.text("scratch") or "disk"
    if scratch not in ("disk", "memory"):
        table.refuse("scratch", "disk or memory", scratch)
    seccomp = table.text("seccomp")
    runtime = table.text("runtime")
    linger_s = table.seconds("linger", LINGER_S)
    deadline_s = table.seconds("deadline", DEADLINE_S)
    if not deadline_s:
        table.refuse("deadline", "more than 0 seconds", 0)
    cdi = table.texts("cdi") or CDI_DIRECTORIES
    if not all(os.path.isabs(directory) for directory in cdi):
        table.refuse("cdi", "absolute paths", list(cdi))
    prefetch = table.size("prefetch")
    after_s = table.seconds("prefetch-after", PREFETCH_AFTER_S)
    learn = table.flag("learn", True)
    cgroup = table.text("cgroup")
    if cgroup is not None and not os.path.isabs(cgroup):
        table.refuse("cgroup", "an absolute path", cgroup)
    table.finish()
    profile = None if seccomp is None else _absolute(seccomp)
    prefetch = PREFETCH if prefetch is None else prefetch
    return RunSettings(
        runtime, cast(Scratch, scratch), profile, linger_s, deadline_s, cdi, prefetch, after_s, cgroup, learn
    )


def _store_limits(table: _Table) -> StoreLimits:
    limits = StoreLimits(table.size("quota"), table.size("floor"))
    table.finish()
    return limits


def _registry_settings(table: _Table) -> RegistrySettings:
    ca = table.text("ca")
    settings = RegistrySettings(
        plain_http=table.flag("plain-http"),
        ca=None if ca is None else _absolute(ca),
        mirrors=table.texts("mirrors"),
        realms=table.texts("realms"),
    )
    table.finish()
    return settings


class _Table:
    """One TOML table: typed reads, then ``finish`` refuses what nobody read."""

    def __init__(self, source: str, name: str, values: dict[str, object]) -> None:
        self._source = source
        self._name = name
        self._values = dict(values)

    def text(self, key: str) -> str | None:
        value = self._values.pop(key, None)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "a string", value)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._values.pop(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false", value)
        return value

    def seconds(self, key: str, default: float) -> float:
        value = self._values.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400:
            self.refuse(key, "seconds, 0 to 86400", value)
        return float(value)

    def size(self, key: str) -> int | None:
        """Bytes, from a number with a unit."""
        text = self.text(key)
        if text is None:
            return None
        digits = text.rstrip("BKMGTi ")
        unit = text[len(digits) :].strip()
        if not digits.isascii() or not digits.isdigit() or unit not in _UNITS or len(digits) > 9:
            self.refuse(key, "a size like 20GiB", text)
        return int(digits) << _UNITS[unit]

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._values.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(key, "a list of strings", value)
        return tuple(cast("list[str]", value))

    def table(self, key: str) -> _Table:
        value = self._values.pop(key, {})
        if not isinstance(value, dict):
            self.refuse(key, "a table", value)
        return _Table(self._source, self._path(key), cast("dict[str, object]", value))

    def tables(self) -> list[tuple[str, _Table]]:
        return [(key, self.table(key)) for key in list(self._values)]

    def finish(self) -> None:
        for key in self._values:
            raise UsageError(f"{self._source}: {self._path(key)}: no such setting")

    def refuse(self, key: str, wanted: str, value: object) -> NoReturn:
        raise UsageError(f"{self._source}: {self._path(key)}: got {repr(value)[:200]}, want {wanted}")

    def _path(self, key: str) -> str:
        return (f"{self._name}.{key}" if self._name else key)[:200]
