"""Messages of a client to the object server: one JSON object in one packet, with descriptors."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from lazyfs import domain
from lazyfs.errors import ObjectServerError

_MESSAGE_MAX = 64 << 10
_FD = struct.Struct("i")
_FDS_MAX = 4  # descriptors of one answer


class ServerGone(ObjectServerError):
    """The server ended before it answered."""

    def __init__(self) -> None:
        super().__init__("object server: ended before it answered", hint="its log says why")


def send(sock: socket.socket, words: dict[str, Any], fds: Sequence[int] = ()) -> None:
    try:
        socket.send_fds(sock, [json.dumps(words).encode()], list(fds))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ServerGone from error


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet. socket.recv_fds ignores its flags, and a descriptor without close-on-exec goes on to the OCI runtime,
    where it is a way to the objects of other images (the class of CVE-2024-21626).
    """
    space = socket.CMSG_SPACE(_FDS_MAX * _FD.size)
    data, ancillary, _, _ = sock.recvmsg(_MESSAGE_MAX, space, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(payload) // _FD.size * _FD.size
            fds += [fd for (fd,) in _FD.iter_unpack(payload[:whole])]
    return data, fds


def ask(sock: socket.socket, words: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
    send(sock, words, fds)
    try:
        data, received = receive(sock)
    except ConnectionResetError as error:
        raise ServerGone from error
    except TimeoutError as error:
        raise ObjectServerError(f"object server: no answer in {domain.TIMEOUT_S} s", hint="its log says why") from error
    if not data:
        raise ServerGone
    answer = json.loads(data)
    if "error" in answer:
        for fd in received:
            os.close(fd)
        raise ObjectServerError(f"object server: {answer['error']}")
    return answer, received
