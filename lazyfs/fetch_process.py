"""The fetcher of a trust domain: reads packs from other hosts, as nobody. Its renewer (lazyfs/renewer.py) forks it."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

import cext
from cext.errors import OnesecError
from lazyfs import background

FETCHER = "onesec-fetcher"
_NOBODY = 65534
_ENGINE_S = 5.0
HELD_MAX = 4 << 20  # bytes of a line that has no end so far


def become_fetcher(lines: int, link: int, memory: int) -> NoReturn:
    status = 1
    try:
        fds = background.keep_only((lines, link, memory), 2)
        os.environ.clear()  # it has the proxies from its renewer
        cext.set_process_name(FETCHER)
        from cext.fetch import Fetcher  # loads libcurl while it may

        socket.getaddrinfo("localhost", 80)  # and what names are looked up with
        cext.keep_to_network(_NOBODY)
        news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        fetcher = Fetcher(log=2, news=news)
        threading.Thread(target=_serve_link, args=(fetcher, fds[1], fds[2]), daemon=True).start()
        _take_lines(fetcher, fds[0], news)
        status = 0
    except Exception as error:
        background.log(f"fetcher: {error or type(error).__name__}")
    finally:
        os._exit(status)


def _serve_link(fetcher: Any, link: int, memory: int) -> None:
    try:
        fetcher.serve(link, memory)
    except Exception as error:
        background.log(f"fetcher: {error}")
    os._exit(0)


def _take_lines(fetcher: Any, fd: int, news: int) -> None:
    """Until the renewer is gone."""
    sock = socket.socket(fileno=fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(news, select.POLLIN)
    received = b""
    while True:
        for ready, _ in poll.poll():
            if ready == news:
                os.eventfd_read(news)
                sock.sendall(json.dumps({"news": fetcher.news()}).encode() + b"\n")
                continue
            data = sock.recv(1 << 16)
            if not data or len(received) > HELD_MAX:
                return
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                _take_line(fetcher, json.loads(line), sock)


def _take_line(fetcher: Any, words: Mapping[str, Any], sock: socket.socket) -> None:
    if "statistics" in words:
        found = fetcher.statistics()
        for one in found["slowest"]:
            one["digest"] = one["digest"].hex()
        sock.sendall(json.dumps({"statistics": found}).encode() + b"\n")
    elif "ping" in words:
        if not fetcher.ping(_ENGINE_S):
            raise OnesecError(f"its engine does not come round in {_ENGINE_S:g} s")
        sock.sendall(json.dumps({"pong": True}).encode() + b"\n")
    elif "origin" in words:
        fetcher.set_origin(words["origin"], words["sources"])
    else:
        try:
            fetcher.set_source(
                words["source"],
                words["url"],
                headers=words["headers"],
                lifetime=words["lifetime"],
                authorities=words["authorities"],
                proxy=words["proxy"],
                no_proxy=words["no_proxy"],
            )
        except OnesecError as error:
            background.log(f"fetcher: {error}")
