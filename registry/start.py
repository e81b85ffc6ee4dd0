"""An image that this host has never seen, as fast as it can be run: fetched, judged and open before the layout has it.

    with Start(layout, repository, transport) as start:
        manifest = start.look_up()              # one round trip, if nobody wants a login
        start.request()                         # its documents and index, at once
        …                                       # bytes come in meanwhile
        image = start.opened(name)              # hashed, decoded, judged
        …                                       # the container runs
        start.store(name)                       # synced, and under its name in the layout

What comes in is written to a staging directory and hashed on the way; nothing is decoded before its digest was right.
The decoded copies get their names in cache/index once the check without privileges has accepted them, as everywhere.
`store` is all that takes an fsync, which is why it is last; a start that is killed before has left nothing behind.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack

import cext
from registry.client import Repository
from registry.decoded import decode_file, decoded_file, named_decoded
from registry.image import OpenedImage, check_packs, parse_config
from registry.layout import Layout, Staging, is_pack
from registry.loop import Task
from registry.model import DOCUMENT_MAX, EROFS, PACK, TABLES, Descriptor, Digest, Manifest, check_blob
from registry.reference import Reference
from registry.thin import ThinTransport


class Start:
    """Inside the block gc waits. repository: of a client over the transport, which the block's end closes."""

    def __init__(self, layout: Layout, repository: Repository, transport: ThinTransport) -> None:
        self._layout = layout
        self._repository = repository
        self._transport = transport
        self._stack = ExitStack()
        self._staging: Staging | None = None
        self._manifest: Manifest | None = None
        self._files: dict[Digest, int] = {}  # owned by the stack
        self._staged: set[Digest] = set()
        self._tasks: dict[Digest, Task[None]] = {}

    def __enter__(self) -> Start:
        try:
            self._stack.enter_context(self._layout.writing())
            self._staging = self._stack.enter_context(self._layout.staging())
            self._stack.enter_context(self._transport)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def manifest(self) -> Manifest:
        assert self._manifest is not None  # look_up comes first
        return self._manifest

    def look_up(self) -> Manifest:
        self._manifest = self._transport.loop.run(self._repository.resolve()).require_image()
        return self._manifest

    def request(self) -> None:
        """Asks for what a mount needs, the tables first: they take longest to decode."""
        for blob in (self.manifest.only(TABLES), self.manifest.only(EROFS), self.manifest.config):
            if blob.digest in self._files:
                continue  # two of one digest are one file, and at most one of them is what it says it decodes to
            if self._layout.has(blob):
                self._layout.verify_blob(blob)
                self._files[blob.digest] = self._own(self._layout.open_blob(blob.digest))
                continue
            assert self._staging is not None
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = self._own(os.open(blob.digest.hex, flags, 0o600, dir_fd=self._staging.fd))
            self._files[blob.digest] = fd
            self._staged.add(blob.digest)
            self._tasks[blob.digest] = self._transport.loop.start(self._repository.copy_blob(blob, fd))

    def opened(self, name: Reference, came: Callable[[], None] = lambda: None) -> OpenedImage:
        """The image, ready to be mounted. came: is called once all that was requested is here, before it is judged."""
        manifest = self.manifest
        self._wait_for(manifest.config)
        config = parse_config(self._read(manifest.config), f"config of {manifest.digest}")
        tables, erofs = manifest.only(TABLES), manifest.only(EROFS)
        with ExitStack() as stack:
            decoded = {blob: stack.enter_context(decoded_file(self._layout)) for blob in (tables, erofs)}
            self._wait_for(tables)
            other = _Decoding(self._files[tables.digest], tables, decoded[tables].fd)
            stack.callback(other.join)
            self._wait_for(erofs)
            came()
            self._transport.close()  # nobody forks beside its thread any more
            decode_file(self._files[erofs.digest], erofs, decoded[erofs].fd)
            other.finish()
            cext.check_image_sandboxed(decoded[erofs].fd, decoded[tables].fd)
            check_packs(decoded[tables].fd, manifest)
            lease = self._layout.lease(manifest.digest)
            try:
                paths = {blob: named_decoded(self._layout, blob, file) for blob, file in decoded.items()}
                packs = self._layout.open_blobs()
            except BaseException:
                lease.release()
                raise
            return OpenedImage(
                name.name,
                manifest,
                self._repository.reference.domain,
                config,
                erofs=(decoded[erofs].keep(), paths[erofs]),
                tables=(decoded[tables].keep(), paths[tables]),
                packs=packs,
                lease=lease,
                remote=self._repository.reference.repository,
            )

    def store(self, name: Reference) -> None:
        """The image is in the layout from now on, durable."""
        assert self._staging is not None
        reference, manifest = self._repository.reference, self.manifest
        for digest in self._staged:
            os.fchmod(self._files[digest], 0o644)
            os.fsync(self._files[digest])
            self._staging.adopt(digest.hex, digest)
        self._staged.clear()
        self._layout.put(manifest.raw, manifest.media_type)  # syncs the names of all before it, too
        self._layout.tag(name, manifest, domain=reference.domain, remote=reference.repository)

    # ------------------------------------------------------------------

    def _own(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _wait_for(self, blob: Descriptor) -> None:
        task = self._tasks.pop(blob.digest, None)
        if task is not None:
            self._transport.loop.run(task.result())
            fd = self._files[blob.digest]
            if is_pack(fd) or any(pack.digest == blob.digest for pack in self.manifest.each(PACK)):
                from registry.adopt import judge_blob  # what builds here would trust

                judge_blob(self.manifest, blob, fd)

    def _read(self, blob: Descriptor) -> bytes:
        """The bytes of a small blob."""
        return check_blob(os.pread(self._files[blob.digest], DOCUMENT_MAX + 1, 0), blob)


class _Decoding:
    """The tables are decoded while the rest comes in."""

    def __init__(self, source: int, blob: Descriptor, target: int) -> None:
        self._error: BaseException | None = None

        def decode() -> None:
            try:
                decode_file(source, blob, target)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=decode)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def finish(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error
