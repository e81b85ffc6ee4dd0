"""What an object server has: the images of its clients and mounts, and what outlives an image for the next one.

Messages: lazyfs/object_process.py. Descriptors that are taken are taken out of the list that came with the message.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cext
from cext.errors import OnesecError
from lazyfs.background import log

LINGER_MAX_S = 86400.0
PINS_MAX = 16384  # objects of one boot pack
RUNS_MAX = 48 << 20  # bytes of runs of a prefetch


class RefusedError(Exception):
    """What a client asked for cannot be had; it is told why and may go on."""


@dataclass(slots=True)
class _Image:
    """device: of the mount that keeps it, or None. lease: owned, or -1. far: packs of it are elsewhere. metadata, pack:
    name what is kept for it, its shared mount and the pins of its boot pack, or are empty.
    """

    label: str
    lease: int
    metadata: str
    linger_s: float
    far: bool
    device: str | None = None
    pack: str = ""


@dataclass(slots=True)
class _Kept:
    """What outlives an image for the next one. fds: owned. until: monotonic time at which it goes, None while an image
    uses it.
    """

    fds: list[int]
    until: float | None = None
    boot: int = 0  # the server's number for the boot pack as a source of pages
    pusher: socket.socket | None = None  # of the client that pushes the boot pack, borrowed
    pipe: int = -1  # owned; hung up when the pusher is gone, though its client may live on

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.release()

    def is_pushed(self) -> bool:
        if self.pusher is not None and self.pipe >= 0:
            poll = select.poll()
            poll.register(self.pipe, 0)
            if poll.poll(0):  # nobody can write into it
                self.release()
        return self.pusher is not None

    def release(self) -> None:
        self.pusher = None
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


@dataclass(slots=True)
class _Attach:
    """An attach whose packs are still coming. tables, lease, packs: owned, -1 where there is none."""

    label: str
    tables: int
    lease: int
    metadata: str
    linger_s: float
    origin: int
    packs: list[int]

    def close(self) -> None:
        for fd in (self.tables, self.lease, *self.packs):
            if fd >= 0:
                os.close(fd)


@dataclass(slots=True)
class Client:
    sock: socket.socket
    images: set[int] = field(default_factory=set)
    attach: _Attach | None = None
    traces: bool = False
    learns: bool = False

    def drop_attach(self) -> None:
        if self.attach is not None:
            self.attach.close()
            self.attach = None


class Images:
    """server: borrowed. mounts: /proc/self/mountinfo, owned. pins_max: descriptors for pins."""

    def __init__(self, server: cext.ObjectServer, mounts: int, pins_max: int) -> None:
        self._server = server
        self._mounts = mounts
        self._pins_max = pins_max
        self._images: dict[int, _Image] = {}
        self._kept: dict[str, _Kept] = {}  # by metadata or boot pack
        self._until = 0.0  # monotonic: before it the process stays although there is nobody to serve

    def __bool__(self) -> bool:
        """Whether there is an image, or was one a moment ago that is waited for."""
        return bool(self._images) or time.monotonic() < self._until

    def end_linger(self, *, clients: int) -> bool:
        """Nothing waits for a next image any more. Whether there is one now, or a client besides the one that asks."""
        self.drop_unmounted()
        self.drop_lingering()
        self._until = 0.0
        return bool(self._images) or clients > 1

    def labels(self) -> list[dict[str, Any]]:
        return [{"image": number, "label": image.label} for number, image in self._images.items()]

    def ends(self, *, serves: bool) -> list[float]:
        """When something has to go that nobody asks for, monotonic. serves: somebody is a client."""
        ends = [kept.until for kept in self._kept.values() if kept.until is not None]
        if not serves and not self._images:
            ends.append(self._until)
        return ends

    def shared_mount(self, number: int) -> list[int]:
        """Descriptors, borrowed."""
        kept = self._kept.get(self._images[number].metadata)
        return [] if kept is None else kept.fds

    # -- a client's messages

    def attach(self, client: Client, words: Mapping[str, Any], fds: list[int]) -> dict[str, Any] | None:
        if client.attach is not None:
            raise RefusedError("attach: got two at once")
        if len(fds) < 1 + bool(words["lease"]) or not 0 <= int(words["blobs"]) <= 1 << 20:
            raise RefusedError("attach: got no tables, or no sensible number of packs")
        tables = fds.pop(0)
        lease = fds.pop(0) if words["lease"] else -1
        linger_s = min(max(float(words.get("linger", 0)), 0), LINGER_MAX_S)
        metadata = str(words.get("metadata", ""))
        origin = int(words.get("origin", 0))
        packs = [-1] * int(words["blobs"])
        client.attach = _Attach(str(words["label"]), tables, lease, metadata, linger_s, origin, packs)
        return self.packs(client, words, fds)

    def packs(self, client: Client, words: Mapping[str, Any], fds: list[int]) -> dict[str, Any] | None:
        attach = client.attach
        if attach is None:
            raise RefusedError("packs: got no attach before")
        rows = words["rows"]
        if len(rows) != len(fds):
            raise RefusedError(f"packs: got {len(fds)} descriptors, want {len(rows)}")
        for row in rows:
            if not 0 <= row < len(attach.packs) or attach.packs[row] >= 0:
                raise RefusedError(f"packs: got row {row}, want each once below {len(attach.packs)}")
            attach.packs[row] = fds.pop(0)
        if words["more"]:
            return None
        number = self._server.add_image(attach.tables, attach.packs, label=attach.label, origin=attach.origin)
        self._images[number] = _Image(attach.label, attach.lease, attach.metadata, attach.linger_s, attach.origin != 0)
        if attach.metadata in self._kept:
            self._kept[attach.metadata].until = None
        attach.lease = -1
        attach.close()
        client.attach = None
        client.images.add(number)
        return {"image": number}

    def share(self, client: Client, number: int, fds: list[int]) -> dict[str, Any]:
        if number not in client.images or len(fds) != 1:
            raise RefusedError(f"share: got image {number}, which is not this client's, or no mount")
        metadata = self._images[number].metadata
        if metadata and metadata not in self._kept:
            self._kept[metadata] = _Kept([fds.pop()])
        return {}

    def boot(self, client: Client, number: int, pack: str, fds: list[int]) -> dict[str, Any]:
        if number not in client.images:
            raise RefusedError(f"boot: got image {number}, which is not this client's")
        self._images[number].pack = pack
        kept = self._kept.setdefault(pack, _Kept([]))
        kept.until = None
        busy = kept.is_pushed()
        if not busy:
            kept.pusher = client.sock
            kept.pipe = fds.pop() if fds else -1
        return {"pinned": bool(kept.fds), "busy": busy}

    def pin(self, client: Client, number: int, fds: list[int]) -> None:
        if number in client.images and (kept := self._kept.get(self._images[number].pack)) is not None:
            room = min(PINS_MAX - len(kept.fds), self._pins_left())
            if room < len(fds) and self.drop_lingering():
                room = min(PINS_MAX - len(kept.fds), self._pins_left())
            room = max(0, room)
            kept.fds += fds[:room]
            del fds[:room]

    def of(self, client: Client, number: int) -> int:
        """The number, if it is one of the client's images."""
        if number not in client.images:
            raise RefusedError(f"got image {number}, which is not this client's")
        return number

    def prefetch(self, client: Client, number: int, budget: int, wait_s: float, fds: Sequence[int]) -> None:
        """Nobody waits for it, so whatever is wrong with it is left out."""
        if number in client.images and len(fds) == 1 and budget > 0:
            size = min(os.fstat(fds[0]).st_size, RUNS_MAX)
            with suppress(OSError, OnesecError, ValueError):
                self._server.prefetch(number, os.pread(fds[0], size, 0), budget, wait_s)

    def frames(self, client: Client, words: Mapping[str, Any], fds: list[int]) -> None:
        """What a pusher brings answers reads. Of an image whose packs are here it need not: they are as near."""
        number = int(words["image"])
        image = self._images[number] if number in client.images else None
        kept = None if image is None or not image.far else self._kept.get(image.pack)
        if kept is None or len(fds) != 1:
            return
        try:
            made = self._server.add_boot(fds[0], int(words["head_size"]), bytes.fromhex(words["head_digest"]))
        except (OnesecError, OSError, ValueError) as error:
            log(f"boot pack {image.pack if image is not None else ''}: answers no reads: {error}")
            return
        if kept.boot:  # of a pusher that did not come to its end
            self._server.remove_boot(kept.boot)
        kept.boot = made

    def pushed(self, client: Client) -> None:
        for kept in self._kept.values():
            if kept.pusher is client.sock:
                kept.release()

    def keep(self, client: Client, number: int, device: str) -> dict[str, Any]:
        if number not in client.images:
            raise RefusedError(f"keep: got image {number}, which is not this client's")
        client.images.discard(number)
        # A mount of another mount namespace cannot be watched from here: better kept for ever than dropped in use.
        watched = device in self._devices()
        self._images[number].device = device if watched else None
        return {"watched": watched}

    def detach(self, number: int) -> None:
        if number not in self._images:
            raise RefusedError(f"detach: got image {number}, which is not there")
        image = self._images.pop(number)
        self._server.remove_image(number)
        if image.lease >= 0:
            os.close(image.lease)
        # A mount that is undone leaves nothing; a container leaves its pages to the next one.
        until = time.monotonic() + (image.linger_s if image.device is None else 0)
        self._until = max(self._until, until)
        for name in (image.metadata, image.pack):
            if name in self._kept and all(name not in (one.metadata, one.pack) for one in self._images.values()):
                self._kept[name].until = until

    def forget(self, client: Client) -> None:
        """The client is gone, with its images that no mount keeps."""
        client.drop_attach()
        self.pushed(client)
        for image in client.images:
            self.detach(image)

    # -- what goes by itself

    def drop_kept(self) -> None:
        now = time.monotonic()
        for name, kept in list(self._kept.items()):
            if kept.until is not None and kept.until <= now:
                self._close(self._kept.pop(name))

    def drop_lingering(self) -> bool:
        """Lets go of what no image uses. Whether there was anything."""
        idle = [name for name, kept in self._kept.items() if kept.until is not None]
        for name in idle:
            self._close(self._kept.pop(name))
        return bool(idle)

    def _close(self, kept: _Kept) -> None:
        if kept.boot:
            self._server.remove_boot(kept.boot)
        kept.close()

    def drop_unmounted(self) -> None:
        devices = self._devices()
        for number, image in list(self._images.items()):
            if image.device is not None and image.device not in devices:
                self.detach(number)

    def _pins_left(self) -> int:
        """Descriptors for pins: never so many that there are none for packs and clients."""
        return self._pins_max - sum(len(kept.fds) for kept in self._kept.values())

    def _devices(self) -> set[str]:
        """major:minor of everything mounted. Reading it from the start also rearms the poll."""
        os.lseek(self._mounts, 0, os.SEEK_SET)
        text = b""
        while more := os.read(self._mounts, 1 << 16):
            text += more
        return {line.split(b" ", 3)[2].decode() for line in text.splitlines()}
