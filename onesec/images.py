"""From a reference to an image that is served: the wiring of the layout and the object server.

`run` and `mount` come through here, so nothing slow is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cache.settings import StoreSettings
from cext.record import Record
from lazyfs.mount import Lowers
from lazyfs.object_mount import FAR_READ_AHEAD_KB, READ_AHEAD_KB, set_read_ahead
from lazyfs.objects import Attachment, attach, sources
from lazyfs.prefill import Ahead, BootPackFile, Prefill, start
from onesec.config import Config
from registry.errors import MissingImageError
from registry.image import OpenedImage, open_image, require_packs
from registry.layout import Layout
from registry.model import PACK
from registry.reference import Reference

if TYPE_CHECKING:
    from lazyfs.remote import Origin, Source


_TRIES = 3
"""To bring and open an image: somebody may remove its name in between."""


class ServedImage(Record):
    """An image whose objects are answered for."""

    image: OpenedImage
    attachment: Attachment
    config: Config
    places: tuple[Source, ...] = ()

    @property
    def objects(self) -> int:
        """The root of the domain's object mount, borrowed from the attachment."""
        return self.attachment.objects

    @property
    def lowers(self) -> Lowers:
        """The image's mounts, borrowed from the attachment."""
        return self.attachment.lowers(self.image.erofs, name=self.image.name)

    def locate(self) -> Sequence[Source]:
        """Where the image's blobs can be read from. May be called by a child, and takes its time."""
        if self.places:
            return self.places
        domain = self.image.domain
        return sources(self.attachment.origin, domain, run_dir=self.config.run_dir, root=self.config.root)

    def keep(self, target: str) -> None:
        """A mount outlives this process: the server goes on with the image until what is mounted on target is gone."""
        self.attachment.keep(target)


@contextmanager
def boot_pack_file(
    image: OpenedImage, locate: Callable[[], Sequence[Source]] | None = None
) -> Iterator[BootPackFile | None]:
    """The image's boot pack, or None if it has none. locate: says where it is if it is not here; None: nowhere."""
    pack = image.manifest.boot_pack
    if pack is None:
        yield None
        return
    try:
        fd = os.open(pack.digest.hex, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=image.packs)
    except FileNotFoundError:
        place = BootPackFile(-1, str(pack.digest), *pack.head, pack.size, locate, image.packs)
        yield None if locate is None else place
        return
    try:
        yield BootPackFile(fd, str(pack.digest), *pack.head)
    finally:
        os.close(fd)


@contextmanager
def prefilled(served: ServedImage, ahead: Ahead | None = None) -> Iterator[Prefill | None]:
    """Has the image's boot pack, if it has one, pushed into the page cache while the block runs. ahead: by that one, if
    it streams it already.

    A pusher that is still at work at its end goes on if the pages have a future, that is if the server lingers.
    """
    with boot_pack_file(served.image, served.locate if served.attachment.origin else None) as pack:
        if pack is None:
            yield None
            return
        prefill = start(served.attachment, pack, ahead, prefetch=served.config.run.prefetch)
        try:
            yield prefill
        finally:
            if prefill is None:
                pass
            elif served.config.run.linger_s > 0:
                prefill.close()
            else:
                prefill.stop()


def opened_image(reference: str, config: Config, *, whole: bool = False) -> OpenedImage:
    """found_image without its places. whole: RemoteBlobsError if one of its packs is not here."""
    image, _ = found_image(reference, config)
    try:
        if whole:
            require_packs(Layout.open(config.root), image)
    except BaseException:
        image.close()
        raise
    return image


def found_image(reference: str, config: Config, ahead: Ahead | None = None) -> tuple[OpenedImage, tuple[Source, ...]]:
    """Opens and verifies an image; one of a registry that this host has never seen is looked up there first, and then
    it is known where the rest of it is. The caller closes it. ahead: gets its boot pack meanwhile.
    """
    layout = Layout.open(config.root)
    name = Reference.parse(reference)
    try:
        return open_image(layout, name), ()
    except MissingImageError:
        if name.host is None:
            raise
    with layout.bringing(str(name)):
        places: tuple[Source, ...] = ()
        for _ in range(_TRIES):
            with suppress(MissingImageError):
                return open_image(layout, name), places  # at once, if another start was faster
            if ahead is not None:
                ahead.fork()
            from onesec.remote import pull_for_start  # trio and httpx, which an image that is known need not wait for

            places = pull_for_start(name, config, ahead)
        return open_image(layout, name), places


def origin_of(image: OpenedImage, config: Config) -> Origin | None:
    """Where packs come from that are not here; None if all are, or there is no such place."""
    if image.remote is None:
        return None
    layout = Layout.open(config.root)
    missing = [pack for pack in image.manifest.each(PACK) if not layout.has(pack)]
    boot = image.manifest.boot_pack
    if boot is not None and not layout.has(boot):
        missing.append(boot)
    if not missing:
        return None
    from lazyfs.remote import RegistryHost, RegistryOrigin

    hosts = {
        name: RegistryHost(one.plain_http, None if one.ca is None else str(one.ca), one.mirrors, one.realms)
        for name, one in config.registries.items()
    }
    probe = min(missing, key=lambda pack: pack.size)
    return RegistryOrigin(image.remote, (str(probe.digest), probe.size), hosts)


@contextmanager
def served_image(reference: str, config: Config) -> Iterator[ServedImage]:
    """Opens, verifies and attaches an image; detaches at the end unless it was kept."""
    with opened_image(reference, config) as image, serve(image, config) as served:
        yield served


@contextmanager
def serve(image: OpenedImage, config: Config, places: Sequence[Source] = ()) -> Iterator[ServedImage]:
    """Attaches an image that is open. places: where its blobs are, as far as the caller knows."""
    with attach(
        image,
        run_dir=config.run_dir,
        root=config.root,
        metadata=image.metadata_name,
        linger_s=config.run.linger_s,
        deadline_s=config.run.deadline_s,
        store=StoreSettings(f"{config.root}/cache/store", config.store.quota, config.store.floor),
        origin=origin_of(image, config),
        known=places,
        cgroup=config.run.cgroup,
    ) as attachment:
        set_read_ahead(attachment.objects, FAR_READ_AHEAD_KB if attachment.origin else READ_AHEAD_KB)
        yield ServedImage(image, attachment, config, tuple(places))
