"""Ending the servers of a run directory that nobody needs any more, before their linger is over."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import ExitStack, suppress

from lazyfs.domain import connect, every_domain
from lazyfs.object_wire import ServerGone, ask

_PATIENCE_MS = 30_000


def end_lingering(run_dir: str | os.PathLike[str]) -> int:
    """Has every object server without a mount and without a client end, and waits for it and for what ends with it. How
    many still serve. Raises ObjectServerError.
    """
    return sum(_end(directory) for directory in every_domain(run_dir))


def _end(directory: int) -> bool:
    """Whether it still serves."""
    sock = connect(directory)
    if sock is None:
        return False
    with ExitStack() as stack, sock:
        server = _peer(sock)
        processes = [server, _parent(server)] if server else []
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as renewer:
            renewer.connect(f"/proc/self/fd/{directory}/fetch")
            processes.append(_peer(renewer))
        # Opened while they are there, so that no number means another process.
        ends = []
        for process in processes:
            with suppress(OSError):
                ends.append(os.pidfd_open(process))
                stack.callback(os.close, ends[-1])
        try:
            answer, _ = ask(sock, {"op": "end"})
        except ServerGone:
            answer = {"serves": False}
        if answer["serves"]:
            return True
        sock.close()
        for end in ends:
            poll = select.poll()
            poll.register(end, select.POLLIN)
            poll.poll(_PATIENCE_MS)
    return False


def _peer(sock: socket.socket) -> int:
    """The process that listens."""
    process, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(process)


def _parent(process: int) -> int:
    """0: it is gone."""
    with suppress(OSError), open(f"/proc/{process}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0
