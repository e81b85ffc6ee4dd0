"""The object server's process: one for each trust domain, started by the first client that needs it.

    client ── background.start ──► holder (root; waits, then removes the socket) ── forks ──► server (nobody, seccomp)

The server makes the FUSE mount, attached nowhere, while it still may, gives up everything it does not need, and only
then reads its first byte from outside. What it serves comes to it as descriptors over its socket: it can open nothing
(but /proc/<pid>/status, to see whether the reader of a parked page is being killed), so a fault in it reaches no file
that its images do not consist of.

Messages are one JSON object in one packet, with descriptors. Of a client:

    link     descriptor: a fetcher's socket (lazyfs/renewer.py). The answer says whether it was taken, and has a
             descriptor of the memory for its bytes if it was
    attach   label, blobs (number of packs), lease (bool), metadata, linger, origin (the fetcher's number for where
             packs come from that have no row; 0: nowhere), rows, more; descriptors: tables, [lease], a pack for each
             row
    packs    rows, more; descriptors: a pack for each row. `more` false ends an attach: the answer has the image's
             number and a descriptor of the object mount, and the shared EROFS mount of `metadata` if there is one
    share    image; descriptor: an EROFS mount, given to each further attach of the same metadata
    boot     image, pack (name of a boot pack); descriptor: a pipe that the pusher alone writes into. The client would
             push it into the page cache. The answer has a descriptor of the FUSE connection, and says whether another
             is at it (busy) or was (pinned)
    frames   image, head_size, head_digest; descriptor: the file of its boot pack, which may still grow, in order. Reads
             of an image whose packs are elsewhere are answered from it. No answer
    pin      image; descriptors of objects, which stay in the kernel's memory with their pages. No answer
    pushed   image: the client is no longer at it. No answer
    prefetch image, budget (bytes of packs), wait (seconds until it begins); descriptor: runs of objects (48 bytes
             each) that go into the store, and then the rest of the same objects, while nobody waits for anything. No
             answer
    trace    reads are recorded until this client ends
    touches  descriptor to write to: what was read while reads were recorded
    learn    what is read is kept in mind until this client ends, a megabyte at most
    learned  image; descriptor to write to: what of its objects was read meanwhile, as runs
    keep     image, device ("major:minor" of a mount that uses it): the image stays until that mount is gone
    detach   image
    connection  the answer has a descriptor of the FUSE connection, for one more mount
    end      nothing lingers any more. The answer says whether there is still somebody to serve (serves)
    statistics

An image that is not kept ends with its client's connection. When there is no image and no client the process ends, and
with it the mount; not before the last image has been gone for as long as its attach said (`linger`, seconds), so that
the next container on this image finds its pages and inodes in memory.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cache.settings import StoreSettings
from cext.record import as_dict
from lazyfs import background
from lazyfs.domain import ServerSettings
from lazyfs.object_server import Server

NAME = "onesec-objects"


def start(directory: int, settings: ServerSettings) -> None:
    """Starts the server of a domain directory and returns when it takes connections. The caller holds the domain's
    lock. Raises what the start raised.
    """
    store = None if settings.store is None else as_dict(settings.store)
    words = {**as_dict(settings), "store": store}
    log = os.open("log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        call = background.Call(NAME, "object server", f"{__name__}:hold", words, cgroup=settings.cgroup)
        background.start(call, fds=(directory,), log=log)
    finally:
        os.close(log)


def hold(words: Mapping[str, Any], fds: Sequence[int], client: background.Client) -> int:
    store = None if words["store"] is None else StoreSettings(**words["store"])
    settings = ServerSettings(**{**words, "store": store})
    (kept,) = fds
    server = os.fork()
    if server == 0:
        _become_server(kept, client, settings)
    client.close()
    os.waitpid(server, 0)
    background.remove_socket(kept, "socket")
    return 0


def _become_server(directory: int, client: background.Client, settings: ServerSettings) -> NoReturn:
    status = 1
    try:
        server = Server(directory, settings)
    except BaseException as error:
        client.failed(error)
    else:
        try:
            client.ready()
            client.close()
            server.run()
            server.close()
            status = 0
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(status)
