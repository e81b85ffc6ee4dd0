"""Registries as the commands use them: a client made of the configuration, and a call that waits for it.

Only commands that talk to a registry import this, and only once they do: trio and httpx come with it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import trio

from lazyfs.fetch_credentials import bundle
from lazyfs.prefill import Ahead, BootPackFile
from lazyfs.remote import Source
from onesec.config import Config
from registry import credentials
from registry.client import Client, Location
from registry.layout import Layout
from registry.model import Descriptor, Manifest
from registry.origin import HostSettings, origin_of
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


def pull_for_start(reference: Reference, config: Config, ahead: Ahead | None = None) -> tuple[Source, ...]:
    """Fetches what a start needs of an image that this host has never seen, and gives it its own name here. ahead: gets
    its boot pack meanwhile.

    Where the registry has the rest, for requests of this process's children; nothing for an image without a boot pack.
    """
    layout = Layout.open(config.root)
    known = hosts(config)
    name = reference.name
    if reference.tag is None and reference.digest is not None:  # it must not become what `latest` means
        name = f"{reference.repository}:{str(reference.digest).replace(':', '-')}"

    async def work(client: Client) -> tuple[Source, ...]:
        repository = client.repository(reference)
        places: list[Source] = []

        async def locate(boot: Descriptor) -> None:
            places.extend(_source(one, known) for one in await repository.blob_sources(boot))
            if ahead is not None and not layout.has(boot):
                directory = layout.open_blobs()
                try:
                    ahead.stream(BootPackFile(-1, str(boot.digest), *boot.head, boot.size, None, directory), places)
                finally:
                    os.close(directory)

        async with trio.open_nursery() as nursery:

            def found(manifest: Manifest) -> None:
                if manifest.boot_pack is not None:
                    nursery.start_soon(locate, manifest.boot_pack)

            await pull_image(layout, repository, _Silent(), name=Reference.parse(name), amount="start", found=found)
        return tuple(places)

    with layout.writing():
        return with_client(config, work)


def _source(location: Location, known: Mapping[str, HostSettings]) -> Source:
    settings = known.get(origin_of(location.url.replace("{digest}", "0"), "registry").netloc)
    return Source(
        location.url,
        tuple(f"{name}: {value}" for name, value in location.headers.items()),
        0 if location.expires_at == math.inf else max(0.001, location.expires_at - time.monotonic()),
        bundle(settings.ca) if settings is not None and settings.ca is not None else None,
    )
