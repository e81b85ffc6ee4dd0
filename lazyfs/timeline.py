"""Where the time and the bytes of a start went, as a plain record that a page or a table is drawn from.

All times are seconds since the process of ``onesec run`` began. Reads come from the object server, which records them
while somebody asks for it; the boot pack's part comes from the pusher.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cext
from cext.errors import OnesecError
from cext.record import replace
from lazyfs.index.erofs import ErofsReader
from lazyfs.objects import Attachment
from lazyfs.prefill import BootPackFile, Report
from lazyfs.pusher import open_boot_pack, opened

READS_MAX = 2000
"""Kept of a start, the slowest."""

SOURCES = ("memory", "store", "pack", "network")
_TOUCH = struct.Struct("<32sQIIQQ")


class Timeline:
    """Phases follow each other: a mark ends one and names it."""

    def __init__(self) -> None:
        self._origin = process_began()
        self._last = self._origin
        self._phases: list[dict[str, Any]] = []

    def mark(self, name: str) -> None:
        """The phase that was going on ends now, and was this."""
        now = time.monotonic()
        self._phases.append({"name": name, "start": self._last - self._origin, "end": now - self._origin})
        self._last = now

    def record(
        self,
        attachment: Attachment,
        *,
        image: str,
        digest: str,
        command: list[str],
        status: int,
        erofs: int,
        boot: BootPackFile | None,
        report: Report | None,
    ) -> dict[str, Any]:
        """The whole story. erofs: the image's fs.erofs, for names. report: of the pusher, None while it works."""
        reads, counts = self._reads(attachment.touches(), erofs)
        counts["boot pack"] = 0 if report is None else report.stored
        return {
            "image": image,
            "digest": digest,
            "command": command,
            "status": status,
            "seconds": self._last - self._origin,
            "phases": self._phases,
            "boot": None if boot is None else self._boot(boot, report, attachment.objects),
            "reads": reads[0],
            "read_count": reads[1],
            "lookup_count": int(attachment.statistics()["statistics"]["lookups"]),
            "bytes": counts,
        }

    def _reads(self, touches: bytes, erofs: int) -> tuple[tuple[list[dict[str, Any]], int], dict[str, int]]:
        counts = dict.fromkeys(SOURCES, 0)
        rows = [row for row in _TOUCH.iter_unpack(touches) if row[5] / 1e9 >= self._origin]
        for _, _, size, source, *_ in rows:
            counts[SOURCES[source]] += size
        slowest = sorted(rows, key=lambda row: row[4] - row[5])[:READS_MAX]
        names = _names(erofs, {row[0] for row in slowest})
        reads = [
            {
                "t": began / 1e9 - self._origin,
                "seconds": (ended - began) / 1e9,
                "bytes": size,
                "offset": offset,
                "object": identity.hex(),
                "path": names.get(identity, ""),
                "source": SOURCES[source],
            }
            for identity, offset, size, source, began, ended in sorted(slowest, key=lambda row: row[4])
        ]
        return (reads, len(rows)), counts

    def _boot(self, boot: BootPackFile, report: Report | None, objects: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            **dict.fromkeys(("all_frames", "packed", "frames", "objects", "bytes"), 0),
            "start": 0.0,
            "end": 0.0,
            "kept": False,
            "share": None,
            "error": "",
            "progress": [],
        }
        try:
            with _here(boot) as local, opened(local) as source:
                pack = open_boot_pack(local, source)
        except FileNotFoundError:  # it did not come whole, and is not worth waiting for now
            found["packed"] = boot.size
            if report is None:
                return found
            return {**found, **self._pushed(report), "all_frames": report.all_frames}
        except (OnesecError, OSError) as error:
            return {**found, "error": str(error)}
        found["all_frames"] = len(pack.frames)
        found["packed"] = boot.head_size + sum(size for size, _ in pack.frames)
        if report is None:
            return found
        return {**found, **self._pushed(report), "share": _share(pack, objects)}

    def _pushed(self, report: Report) -> dict[str, Any]:
        return {
            "frames": report.frames,
            "objects": report.objects,
            "bytes": report.stored,
            "start": report.started - self._origin,
            "end": report.ended - self._origin,
            "kept": report.kept,
            "error": report.error,
            "progress": [(when - self._origin, stored) for when, stored in report.progress],
        }


@contextmanager
def _here(boot: BootPackFile) -> Iterator[BootPackFile]:
    """The boot pack as a local file: one that came over the network has been kept. Raises FileNotFoundError."""
    if boot.fd >= 0:
        yield boot
        return
    name = boot.digest.removeprefix("sha256:")
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=boot.directory)
    try:
        yield replace(boot, fd=fd)
    finally:
        os.close(fd)


def process_began() -> float:
    """When this process began, on the clock of time.monotonic(); to the kernel's tick of 10 ms."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return ticks - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())


def _names(erofs: int, wanted: set[bytes]) -> dict[bytes, str]:
    """A path of each object."""
    names: dict[bytes, str] = {}
    if not wanted:
        return names
    with mmap.mmap(erofs, 0, prot=mmap.PROT_READ) as content:
        reader = ErofsReader(content)
        for path, inode in reader.walk():
            identity = reader.object(inode)
            if identity in wanted and identity not in names:
                names[identity] = os.fsdecode(path)
                if len(names) == len(wanted):
                    break
    return names


def _share(pack: cext.BootPack, objects: int) -> float | None:
    """Of the pushed bytes, those that are in the page cache now. None where the kernel cannot say."""
    ids, there = pack.objects, 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a descriptor for each object; we are about to end
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fds: dict[int, int] = {}
    try:
        for row, offset, length in pack.runs:
            if row not in fds:
                name = ids[row].hex()
                try:
                    fds[row] = os.open(f"{name[:2]}/{name[2:]}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=objects)
                except OSError:
                    fds[row] = -1
            if fds[row] >= 0:
                found = cext.cached(fds[row], offset, length)
                if found is None:
                    return None
                there += min(found, length)
    finally:
        for fd in fds.values():
            if fd >= 0:
                os.close(fd)
    return there / pack.total if pack.total else None
