"""A start of an image that this host has never seen: what is done while its index comes over the wire.

Only such a start imports this; neither trio nor httpx comes with it (docs/adr/0017-a-start-without-an-event-loop.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lazyfs.prefill import Ahead, BootPackFile
from lazyfs.remote import Source
from onesec.config import Config
from onesec.places import hosts, source_of
from registry import credentials
from registry.client import Client
from registry.image import OpenedImage
from registry.layout import Layout
from registry.model import Descriptor, Manifest
from registry.reference import Reference
from registry.session import Surroundings
from registry.start import Start
from registry.thin import ThinTransport

Meanwhile = Callable[[Manifest, Sequence[Source]], None]
"""Is told the image and where it is while its index comes in."""


class Brought:
    """An image that was fetched for a start. places: where the registry has the rest, for requests of our children."""

    def __init__(self, image: OpenedImage, places: tuple[Source, ...], store: Callable[[], None]) -> None:
        self.image = image
        self.places = places
        self.store = store


@contextmanager
def bringing(
    layout: Layout, reference: Reference, config: Config, meanwhile: Meanwhile, ahead: Ahead | None = None
) -> Iterator[Brought]:
    """Fetches what a start needs. It is in the layout, under its own name, only after `store`, which has to be called
    inside the block. ahead: gets the boot pack once the index is here and no longer needs the line.
    """
    known = hosts(config)
    with ThinTransport(known, os.environ) as transport:
        login = partial(credentials.find, os.environ)
        client = Client(Surroundings(transport, known, login, pace=transport.loop))
        repository = client.repository(reference)
        with Start(layout, repository, transport) as start:
            manifest = start.look_up()
            start.request()
            found = transport.loop.run(repository.known_sources())
            places = tuple(source_of(one, known) for one in found)
            meanwhile(manifest, places)
            image = start.opened(name_for(reference), lambda: _stream(layout, manifest.boot_pack, places, ahead))
            yield Brought(image, places, lambda: start.store(name_for(reference)))


def name_for(reference: Reference) -> Reference:
    """What the image is called here. One that was asked for by digest alone must not become what `latest` means."""
    if reference.tag is None and reference.digest is not None:
        return Reference.parse(f"{reference.repository}:{str(reference.digest).replace(':', '-')}")
    return reference


def _stream(layout: Layout, boot: Descriptor | None, places: Sequence[Source], ahead: Ahead | None) -> None:
    if ahead is None or boot is None or layout.has(boot):
        return
    directory = layout.open_blobs()
    try:
        ahead.stream(BootPackFile(-1, str(boot.digest), *boot.head, boot.size, None, directory), places)
    finally:
        os.close(directory)
