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
from registry import credentials
from registry.client import Client
from registry.layout import Layout
from registry.origin import HostSettings
from registry.reference import Reference
from registry.session import Surroundings
from registry.transfer import first_error, pull_image
from registry.transport import HttpTransport

T = TypeVar("T")


def hosts(config: Config) -> dict[str, HostSettings]:
    """The registries of the configuration."""
    return {
        name: HostSettings(one.plain_http, None if one.ca is None else str(one.ca), one.mirrors, one.realms)
        for name, one in config.registries.items()
    }


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


class _Silent:
    """A start has its own way to say where the time went."""

    def stage(self, name: str, total: int | None = None) -> None: ...
    def advance(self, size: int = 0) -> None: ...


def pull_for_start(reference: Reference, config: Config) -> None:
    """Fetches what a start needs of an image that this host has never seen, and gives it its own name here."""
    layout = Layout.open(config.root)
    name = reference.name
    if reference.tag is None and reference.digest is not None:  # it must not become what `latest` means
        name = f"{reference.repository}:{str(reference.digest).replace(':', '-')}"
    with layout.writing():
        with_client(
            config,
            lambda client: pull_image(
                layout, client.repository(reference), _Silent(), name=Reference.parse(name), amount="start"
            ),
        )
