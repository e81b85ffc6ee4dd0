"""What ``mount`` did in one run directory, for people: <run-dir>/mounts/<id>.json. The mount table is the truth."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from cext.record import Record, as_dict
from lazyfs.errors import MountError
from lazyfs.mount_table import mount_table

Mode = Literal["kernel", "portable"]


class MountRecord(Record):
    """What ``mount`` did, for people. target is a real path."""

    id: str
    target: str
    name: str
    digest: str
    domain: str
    mode: Mode


class MountRecords:
    """The records of one run directory. All changes happen under one flock, which dies with its process."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self._path = f"{os.fspath(run_dir)}/mounts"
        try:
            os.makedirs(self._path, 0o700, exist_ok=True)
        except PermissionError as error:
            raise MountError(
                f"{os.fspath(run_dir)}: permission denied", hint="--run-dir or ONESEC_RUN names another directory"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def add(self, record: MountRecord) -> None:
        path = f"{self._path}/{record.id}.json"
        fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(as_dict(record), file)
        os.rename(f"{path}.tmp", path)

    def remove(self, record: MountRecord) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._path}/{record.id}.json")

    def all(self) -> list[MountRecord]:
        """Every readable record. A broken one counts for nothing: the mount table is the truth."""
        records = []
        for name in sorted(os.listdir(self._path)):
            if name.endswith(".json"):
                with suppress(OSError, ValueError, TypeError), open(f"{self._path}/{name}", "rb") as file:
                    records.append(MountRecord(**json.load(file)))
        return records

    def prune(self) -> list[MountRecord]:
        """Drops and returns the records whose mount is gone (somebody called umount(8)). Call it inside ``locked``."""
        targets = {row.target for row in mount_table() if row.ours}
        stale = [record for record in self.all() if record.target not in targets]
        for record in stale:
            self.remove(record)
        return stale
