"""Whole images to and from a registry: several blobs at once, documents last, nothing sent or fetched twice.

Both may be called again after any failure and go on: what arrived is there. A push makes nothing visible before its
manifest, the last request; a pull nothing before its tag, and `registry/adopt.py` judges what comes in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import trio

from registry.adopt import judge_blob, judge_index, know_packs
from registry.client import Repository
from registry.errors import MissingBlobError, RemoteBlobsError
from registry.layout import Layout, Resolved, total_size
from registry.model import EROFS, PACK, TABLES, Descriptor, Digest, Manifest
from registry.reference import Reference
from registry.upload import Uploader

ASKED_AT_ONCE = 16
MOVED_AT_ONCE = 6  # blobs; enough to hide the pauses between them on a link of 1 Gbit/s and 2 ms
MOUNTS_MAX = 4


class Report(Protocol):
    """Who is told how far it is; `imagebuilder.progress.Progress` is one."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, size: int = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class Pushed:
    """Blobs that were sent, mounted from another repository, there before; size: bytes sent."""

    manifest: Manifest
    sent: int
    mounted: int
    known: int
    size: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """fetched, size: blobs, and their bytes. remote: packs that stay at the registry."""

    name: str
    manifest: Manifest
    domain: str
    fetched: int
    size: int
    remote: int


async def push_image(layout: Layout, image: Resolved, repository: Repository, report: Report) -> Pushed:
    """Sends what the registry lacks of an image, then its manifest under the reference's tag, or without one under its
    digest. Call it with the image leased. repository: of `Client.repository(…, push=True)`.
    """
    reference = repository.reference
    blobs = distinct(image.manifest.blobs)
    report.stage(f"asking {reference.host} what it has of {image.name}")
    lacking = await _lacking(repository, blobs)
    mounts = mountable(layout, reference)
    gone = [one for one in lacking if not layout.has(one) and one.digest not in mounts]
    if gone:
        if image.remote is None:
            raise MissingBlobError(str(gone[0].digest))
        packs = image.manifest.each(PACK)
        raise RemoteBlobsError(image.name, len(gone), len(packs), remote_of(image))
    paths = tuple(dict.fromkeys(path for one in lacking for path in mounts.get(one.digest, ())))
    uploader = Uploader(repository, layout, paths[:MOUNTS_MAX])
    report.stage(f"pushing {image.name} to {reference}", total_size(lacking))
    sent: list[Descriptor] = []

    async def send(one: Descriptor) -> None:
        if await uploader.send_blob(one, report.advance, mounts=mounts.get(one.digest, ())):
            sent.append(one)

    await each(send, sorted(lacking, key=lambda one: (-one.size, one.digest)), MOVED_AT_ONCE)
    await uploader.put_manifest(image.manifest, str(reference.digest or reference.tag))
    known = len(blobs) - len(lacking)
    return Pushed(image.manifest, len(sent), len(lacking) - len(sent), known, total_size(sent))


async def _lacking(repository: Repository, blobs: Sequence[Descriptor]) -> list[Descriptor]:
    lacking: list[Descriptor] = []

    async def ask(blob: Descriptor) -> None:
        if not await repository.has_blob(blob):
            lacking.append(blob)

    await ask(blobs[0])  # alone, so that there is one login and not sixteen
    await each(ask, blobs[1:], ASKED_AT_ONCE)
    return lacking


def mountable(layout: Layout, reference: Reference) -> Mapping[Digest, Sequence[str]]:
    """Blobs that other repositories of the same registry have, as far as the layout knows, and their paths."""
    found: dict[Digest, list[str]] = {}
    for tag in layout.tags():
        host, _, path = (tag.remote or "").partition("/")
        if host == reference.host and path != reference.path:
            for blob in layout.manifest(tag.manifest.digest).blobs:
                paths = found.setdefault(blob.digest, [])
                if path not in paths:
                    paths.append(path)
    return found


Amount = Literal["start", "index", "all"]
"""Of an image: what a mount needs and its config; that, the layer indexes and the boot pack; everything."""

_START = (EROFS, TABLES)


async def pull_image(
    layout: Layout,
    repository: Repository,
    report: Report,
    *,
    name: Reference,
    amount: Amount = "index",
    found: Callable[[Manifest], None] | None = None,
    judge: Callable[[Layout, Manifest], object] | None = None,
) -> Pulled:
    """Fetches an image, as much of it as amount says, and gives it a name. Call it inside `layout.writing()`.

    found: is told the manifest before anything else is asked for. judge: of an image that is here whole, before it has
    a name: raises if it may not have one.
    """
    reference = repository.reference
    report.stage(f"looking up {reference}")
    manifest = (await repository.resolve()).require_image()
    if found is not None:
        found(manifest)
    blobs = distinct(manifest.blobs)
    large = {one.digest for one in manifest.lazy}
    if amount == "start":
        large = {one.digest for one in manifest.layers if one.media_type not in _START}
    wanted = [one for one in blobs if (amount == "all" or one.digest not in large) and not layout.has(one)]
    report.stage(f"pulling {reference}", total_size(wanted))

    async def fetch(one: Descriptor) -> None:
        await repository.fetch_blob(layout, one, progress=report.advance, judge=partial(judge_blob, manifest, one))

    # Documents first: a pull of gigabytes should not end with the news that the image can't be mounted.
    await each(fetch, [one for one in wanted if one.digest not in large], MOVED_AT_ONCE)
    await trio.to_thread.run_sync(judge_index, layout, manifest)
    await each(fetch, [one for one in wanted if one.digest in large], MOVED_AT_ONCE)
    stored = layout.put(manifest.raw, manifest.media_type)  # syncs the names of all before it, too
    assert stored.digest == manifest.digest
    if amount == "all":
        if judge is not None:
            await trio.to_thread.run_sync(judge, layout, manifest)
        await trio.to_thread.run_sync(know_packs, layout, manifest)
    layout.tag(name, manifest, domain=reference.domain, remote=reference.repository)
    missing = [one for one in blobs if not layout.has(one)]
    return Pulled(name.name, manifest, reference.domain, len(wanted), total_size(wanted), len(missing))


def remote_of(image: Resolved) -> str:
    """The image at its registry, by digest: a tag there may have moved on."""
    return f"{image.remote}@{image.manifest.digest}"


def distinct(blobs: Iterable[Descriptor]) -> list[Descriptor]:
    return list({blob.digest: blob for blob in blobs}.values())


async def each(work: Callable[[Descriptor], Awaitable[None]], blobs: Sequence[Descriptor], at_once: int) -> None:
    """work for every blob, so many at a time; the first failure cancels the rest and is raised by itself."""
    left = iter(blobs)

    async def worker() -> None:
        for blob in left:
            await work(blob)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(min(at_once, len(blobs))):
                nursery.start_soon(worker)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one to tell the user: a Ctrl-C before all, else the first that failed."""
    flat = [first_error(one) if isinstance(one, BaseExceptionGroup) else one for one in group.exceptions]
    return next((one for one in flat if isinstance(one, KeyboardInterrupt)), flat[0])
