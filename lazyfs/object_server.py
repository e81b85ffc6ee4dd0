"""The object server's loop: clients, their messages, and mounts that go.

Made with privileges, and without them when it is made. Messages: lazyfs/object_process.py.
"""

from __future__ import annotations

import array  # noqa: F401  socket.recv_fds imports it when it is called: too late behind the change of root
import json
import math
import os
import select
import socket
import struct
import time
from contextlib import suppress
from typing import Any

import cext
from cext.errors import OnesecError
from lazyfs import object_rights
from lazyfs.background import listen, log
from lazyfs.domain import ServerSettings
from lazyfs.object_images import Client, Images, RefusedError
from lazyfs.object_mount import make_object_mount

MESSAGE_MAX = 64 << 10
DESCRIPTORS_MAX = 240  # of one message; the kernel takes 253
FIRST_CLIENT_S = 5
_NO_ROOM_MS = 100  # until the next look for a descriptor for a client
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100


class Server:
    """Everything a server process has. Made with privileges, and without them when __init__ returns."""

    def __init__(self, directory: int, settings: ServerSettings) -> None:
        threads = max(2, min(8, 2 * (os.cpu_count() or 1)))
        mount = make_object_mount(threads, profile=settings.profile)
        self._tree = mount.tree
        proc = cext.open_tree(_AT_FDCWD, "/proc", _OPEN_TREE_CLONE | os.O_CLOEXEC)
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._hangup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listener = listen(directory, "socket")
        self._clients: dict[int, Client] = {}
        self._user = os.geteuid()
        self._profile = settings.profile
        secret = os.urandom(32)
        deadline = object_rights.deadline_below_host(settings.deadline_s)
        pins_max = object_rights.raise_descriptor_limit() // 4
        memory = object_rights.make_memory()
        place = None if settings.store is None else object_rights.prepare_store(settings.store, settings.domain)
        os.fchdir(proc)
        os.chroot(".")
        os.close(directory)
        self._store: cext.Store | None = None

        def open_store() -> int:
            self._store = None if place is None else object_rights.open_store(place)
            os.fchdir(proc)
            return -1 if self._store is None else self._store.fileno()

        cext.drop_privileges(object_rights.NOBODY, proc, open_store)
        self._server = cext.ObjectServer(
            mount.fds,
            secret=secret,
            proc=proc,
            log=2,
            hangup=self._hangup,
            deadline=deadline,
            store=self._store,
            profile=settings.profile,
            memory=memory,
        )
        self._images = Images(self._server, self._mounts, pins_max)
        self._memory = memory
        self._fuse, *clones = mount.fds
        for fd in clones:
            os.close(fd)
        self._server.start()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        log(f"started, process {os.getpid()}, {now}; reads wait {deadline:g} s at most")

    def close(self) -> None:
        """Nothing of the store is lost but what its writer could not write."""
        self._server.close()
        if self._store is not None:
            with suppress(OSError, OnesecError):
                self._store.close()

    def run(self) -> None:
        """Until there is nobody left to serve."""
        poll = select.poll()
        poll.register(self._listener.fileno(), select.POLLIN)
        poll.register(self._hangup, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)
        connected = self._poll(poll, FIRST_CLIENT_S * 1000)
        while connected and (self._clients or self._images):
            connected = self._poll(poll, self._wait_ms())
            self._images.drop_kept()

    def _wait_ms(self) -> int | None:
        """Until something has to go that nobody asks for; None: there is nothing."""
        ends = self._images.ends(serves=bool(self._clients))
        return max(0, math.ceil((min(ends) - time.monotonic()) * 1000)) if ends else None

    def _poll(self, poll: select.poll, timeout: int | None) -> bool:
        """Handles what is there. Whether the object mount still is."""
        ready = poll.poll(timeout)
        for fd, _ in ready:
            if fd == self._listener.fileno():
                self._accept(poll)
            elif fd == self._hangup:
                log("the kernel closed the connection of the object mount")
                return False
            elif fd == self._mounts:
                self._images.drop_unmounted()
            elif fd in self._clients:
                self._serve(poll, self._clients[fd])
        return True

    def _accept(self, poll: select.poll) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # no descriptor is left; the client waits in the queue
            log(f"client: {object_rights.words(error).lower()}")
            if not self._images.drop_lingering():
                select.poll().poll(_NO_ROOM_MS)  # nothing but the time passes
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, self._user):
            log(f"refused a connection of uid {uid}")
            sock.close()
            return
        self._clients[sock.fileno()] = Client(sock)
        poll.register(sock.fileno(), select.POLLIN)

    def _serve(self, poll: select.poll, client: Client) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(client.sock, MESSAGE_MAX, DESCRIPTORS_MAX)
        except OSError:
            data, fds, flags = b"", [], 0
        if not data or flags & socket.MSG_TRUNC:
            for fd in fds:
                os.close(fd)
            self._forget(poll, client)
            return
        answer: dict[str, Any] | None
        given: list[int] = []
        try:
            words = json.loads(data)
            if flags & socket.MSG_CTRUNC and words["op"] not in ("pin", "frames"):
                self._images.drop_lingering()  # for the next try
                raise RefusedError("its limit of open files is reached")
            answer = self._answer(client, words, fds)
            if answer is not None and "image" in answer:
                given = [self._tree, *self._images.shared_mount(answer["image"])]
            elif answer is not None and ("pinned" in answer or "connection" in answer):
                given = [self._fuse]
            elif answer is not None and answer.get("linked"):
                given = [self._memory]
        except Exception as error:  # whatever a message does, it ends at most its own connection
            answer = {"error": str(error) or type(error).__name__}
            client.drop_attach()
        finally:
            for fd in fds:  # what was taken was taken out
                os.close(fd)
        if answer is not None:
            try:
                socket.send_fds(client.sock, [json.dumps(answer).encode()], given)
            except OSError:
                self._forget(poll, client)

    def _forget(self, poll: select.poll, client: Client) -> None:
        poll.unregister(client.sock.fileno())
        del self._clients[client.sock.fileno()]
        client.sock.close()
        self._images.forget(client)
        if client.traces and not self._profile and not any(other.traces for other in self._clients.values()):
            self._server.record(False)
        if client.learns and not any(other.learns for other in self._clients.values()):
            self._server.learn(False)

    # -- what a client may ask; fds it takes are taken out of the list

    def _answer(self, client: Client, words: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        what = words["op"]
        if what == "attach":
            return self._images.attach(client, words, fds)
        if what == "packs":
            return self._images.packs(client, words, fds)
        if what == "link":
            if len(fds) != 1:
                raise RefusedError(f"link: got {len(fds)} descriptors, want a socket")
            return {"linked": self._server.link(fds[0])}
        if what == "share":
            return self._images.share(client, int(words["image"]), fds)
        if what == "connection":
            return {"connection": True}
        if what == "boot":
            return self._images.boot(client, int(words["image"]), str(words["pack"]), fds)
        if what == "pin":
            self._images.pin(client, int(words["image"]), fds)
            return None
        if what == "prefetch":
            self._images.prefetch(client, int(words["image"]), int(words["budget"]), float(words["wait"]), fds)
            return None
        if what == "frames":
            self._images.frames(client, words, fds)
            return None
        if what == "pushed":
            self._images.pushed(client)
            return None
        if what == "trace":
            client.traces = True
            self._server.record(True)
            return {}
        if what == "touches":
            return _hand_out(self._server.touches(), fds)
        if what == "learn":
            client.learns = True
            self._server.learn(True)
            return {}
        if what == "learned":
            return _hand_out(self._server.learned(self._images.of(client, int(words["image"]))), fds)
        if what == "keep":
            return self._images.keep(client, int(words["image"]), str(words["device"]))
        if what == "detach":
            image = int(words["image"])
            self._images.detach(image)
            for other in self._clients.values():
                other.images.discard(image)
            return {}
        if what == "end":
            return {"serves": self._images.end_linger(clients=len(self._clients))}
        if what == "statistics":
            return {
                "statistics": self._server.statistics(),
                "images": self._images.labels(),
                "process": os.getpid(),
            }
        raise RefusedError(
            f"got {what!r}, want link, attach, packs, share, boot, frames, pin, pushed, prefetch, trace, "
            "touches, learn, learned, connection, keep, detach, end or statistics"
        )


def _hand_out(data: bytes, fds: list[int]) -> dict[str, Any]:
    """What would not fit into a packet."""
    if len(fds) != 1:
        raise RefusedError(f"got {len(fds)} descriptors, want one to write to")
    view = memoryview(data)
    while view:
        view = view[os.write(fds[0], view) :]
    return {"size": len(data)}
