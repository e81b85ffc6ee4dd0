"""Keeps the renewer of a domain alive, and what must outlive it: its socket, and what it was told.

A client that comes while there is no renewer waits in the queue of the socket. The keeper talks to nobody and sees
nothing secret but the origins, in a file in memory that no path leads to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lazyfs import background
from lazyfs.kept_process import KeptProcess

KEEPER = "onesec-keeper"


def start(directory: int, link: int, memory: int, cgroup: str | None = None) -> None:
    """Returns once the fetcher of a domain can be told origins. The caller holds the domain's lock."""
    log = os.open("log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        # Helpers for logins may need anything of it: AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS.
        call = background.Call(KEEPER, "fetcher", f"{__name__}:keep", surroundings=True, cgroup=cgroup)
        background.start(call, fds=(directory, link, memory), log=log)
    finally:
        os.close(log)


def keep(_: Mapping[str, Any], fds: Sequence[int], client: background.Client) -> int:
    directory, link, memory = fds
    try:
        from lazyfs import renewer

        listener = background.listen(directory, "fetch")
        origins = os.memfd_create("onesec-origins", os.MFD_CLOEXEC)

        def body() -> int:
            client.close()
            return renewer.run(listener, link, memory, origins)

        kept = KeptProcess(body, "renewer")
        kept.start()
    except BaseException as error:
        client.failed(error)
        return 1
    client.ready()
    client.heard()
    client.close()
    kept.run(link)
    listener.close()
    background.remove_socket(directory, "fetch")
    return 0
