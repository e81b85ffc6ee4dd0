"""From a reference to an image that is served: the wiring of the layout and the object server.

`run` and `mount` come through here, so nothing slow is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cache.settings import StoreSettings
from cext.record import Record
from lazyfs.mount import Lowers
from lazyfs.object_mount import FAR_READ_AHEAD_KB, READ_AHEAD_KB, set_read_ahead
from lazyfs.objects import Attachment, Prepared, attach, prepared, sources
from lazyfs.prefill import Ahead, BootPackFile, Prefill, start
from onesec.config import Config
from registry.errors import MissingImageError
from registry.image import OpenedImage, open_image, require_packs
from registry.layout import Layout
from registry.model import PACK, Manifest
from registry.reference import Reference

if TYPE_CHECKING:
    from lazyfs.remote import Origin, Source


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
        run = served.config.run
        prefill = start(served.attachment, pack, ahead, prefetch=run.prefetch, wait_s=run.prefetch_after_s)
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
    """An open image and nothing else. The caller closes it. whole: RemoteBlobsError if one of its packs is not here."""
    with found_image(reference, config) as found:
        try:
            found.store()
            if whole:
                require_packs(Layout.open(config.root), found.image)
        except BaseException:
            found.image.close()
            raise
        return found.image


class Found(Record):
    """An open image, the caller's. places: where its blobs are, as far as that is known. store: an image that came just
    now is in the layout only once this was called; inside the block, and any number of times.
    """

    image: OpenedImage
    places: tuple[Source, ...] = ()
    store: Callable[[], None] = lambda: None


@contextmanager
def found_image(
    reference: str, config: Config, ahead: Ahead | None = None, mark: Callable[[str], None] = lambda name: None
) -> Iterator[Found]:
    """Opens and verifies an image; one of a registry that this host has never seen is fetched, as much of it as a start
    needs. ahead: of a start: gets its boot pack meanwhile, and servers are started while the index comes in. mark: is
    told when the manifest is here.
    """
    layout = Layout.open(config.root)
    name = Reference.parse(reference)
    try:
        image = open_image(layout, name)
    except MissingImageError:
        if name.host is None:
            raise
    else:
        yield Found(image)
        return
    with ExitStack() as stack:
        stack.enter_context(layout.bringing(str(name)))
        try:
            image = open_image(layout, name)  # another start was faster
        except MissingImageError:
            pass
        else:
            stack.close()
            yield Found(image)
            return
        if ahead is not None:
            ahead.fork()
        from onesec.start import bringing  # libcurl, which an image that is known need not wait for

        servers = stack.enter_context(ExitStack())

        def meanwhile(manifest: Manifest, places: Sequence[Source]) -> None:
            mark("manifest")
            if ahead is None:
                return
            origin = _origin(manifest, name.repository, config)
            servers.enter_context(prepare(name.domain, origin, places, config))

        brought = stack.enter_context(bringing(layout, name, config, meanwhile, ahead))
        stored = False

        def store() -> None:
            nonlocal stored
            if not stored:
                stored = True
                try:
                    brought.store()
                finally:
                    stack.close()  # also on a full disk: gc, which helps, waits for whoever is at it

        yield Found(brought.image, brought.places, store)


def origin_of(image: OpenedImage, config: Config) -> Origin | None:
    """Where packs come from that are not here; None if all are, or there is no such place."""
    if image.remote is None:
        return None
    return _origin(image.manifest, image.remote, config)


def _origin(manifest: Manifest, remote: str, config: Config) -> Origin | None:
    layout = Layout.open(config.root)
    missing = [pack for pack in manifest.each(PACK) if not layout.has(pack)]
    boot = manifest.boot_pack
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
    return RegistryOrigin(remote, (str(probe.digest), probe.size), hosts)


@contextmanager
def served_image(reference: str, config: Config) -> Iterator[ServedImage]:
    """Opens, verifies and attaches an image; detaches at the end unless it was kept."""
    with opened_image(reference, config) as image, serve(image, config) as served:
        yield served


def prepare(domain: str, origin: Origin | None, places: Sequence[Source], config: Config) -> Prepared:
    """The servers of a domain, started for an image that is still on its way."""
    return prepared(
        domain,
        run_dir=config.run_dir,
        root=config.root,
        deadline_s=config.run.deadline_s,
        store=_store(config),
        origin=origin,
        known=places,
        cgroup=config.run.cgroup,
    )


def _store(config: Config) -> StoreSettings:
    return StoreSettings(f"{config.root}/cache/store", config.store.quota, config.store.floor)


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
        store=_store(config),
        origin=origin_of(image, config),
        known=places,
        cgroup=config.run.cgroup,
    ) as attachment:
        set_read_ahead(attachment.objects, FAR_READ_AHEAD_KB if attachment.origin else READ_AHEAD_KB)
        yield ServedImage(image, attachment, config, tuple(places))
