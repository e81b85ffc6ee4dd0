"""What an object server makes while it has its rights, for the time when it has none."""

from __future__ import annotations

import fcntl
import os
import resource
from contextlib import suppress

import cext
from cache.settings import StoreSettings
from cache.stores import Place, prepare
from cext.errors import OnesecError
from lazyfs.background import log

NOBODY = 65534


def make_memory() -> int:
    """What a fetcher puts bytes into, cext/src/os_link.h. Sealed: it can become neither shorter nor longer."""
    memory = os.memfd_create("onesec-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, cext.SLOTS_SIZE)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


def prepare_store(settings: StoreSettings, domain: str) -> Place | None:
    """None, and a line, if it cannot be had: a start never fails for want of a cache."""
    try:
        return prepare(settings, domain, NOBODY)
    except (OSError, OnesecError) as error:
        log(f"chunk store: left out: {words(error)}")
        return None


def words(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def open_store(place: Place) -> cext.Store | None:
    """As the user that the server is from now on: a map that a former server left is parsed without privileges."""
    try:
        return place.open(log=2)
    except (OSError, OnesecError) as error:
        log(f"chunk store: left out: {words(error)}")
        return None
    finally:
        os.close(place.fd)


def deadline_below_host(deadline: float) -> float:
    """Below the host's own limits for FUSE requests, which abort the whole connection; 0 there means none."""
    for name in ("default_request_timeout", "max_request_timeout"):
        with suppress(OSError, ValueError), open(f"/proc/sys/fs/fuse/{name}") as file:
            if limit := int(file.read()):
                deadline = min(deadline, 0.75 * limit)
    return deadline


def raise_descriptor_limit() -> int:
    """A descriptor for each pack of each image. The limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, max(hard, 1 << 20)))
        return 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
