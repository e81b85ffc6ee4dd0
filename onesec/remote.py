"""Registries as the commands use them: a client made of the configuration, and a call that waits for it.

Only commands that talk to a registry import this, and only once they do: trio and httpx come with it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from onesec.config import Config
from onesec.places import hosts
from registry import credentials
from registry.client import Client
from registry.session import Surroundings
from registry.transfer import first_error
from registry.transport import HttpTransport

T = TypeVar("T")


def with_client(config: Config, work: Callable[[Client], Awaitable[T]]) -> T:
    """Runs work with a client that ends with it. Ctrl-C cancels it."""

    async def main() -> T:
        known = hosts(config)
        async with HttpTransport(known) as transport:
            return await work(Client(Surroundings(transport, known, partial(credentials.find, os.environ))))

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
