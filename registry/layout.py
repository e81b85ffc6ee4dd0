"""The embedded default registry: an OCI layout directory under the root, shared by any number of processes.

    <root>/images/{oci-layout,index.json,blobs/sha256/<hex>}    the layout; any OCI tool can read it
    <root>/images/blobs/tmp-<pid>-<random>/                     staging of one writer, locked while it lives
    <root>/cache/{index,steps,chunks,store}                     all of it can be made again
    <root>/leases/<random>                                      locked while somebody uses the image named in it
    <root>/lock                                                 see below

Write order, so that kill -9 at any point leaves a valid layout: a blob is written in a staging directory and synced;
renamed to its digest; its directory synced; only then may a document name it. The last document is index.json, replaced
in one rename.

Locks, in the order in which they are taken: `lock` shared by whoever writes blobs that no tag names yet, or goes from a
name to a lease; exclusive by gc and fsck. Then `tags.lock`, exclusive around each replacement of index.json. All are
flocks: they die with their process. A staging directory or lease whose flock is free belongs to a dead process.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import cext
from cext.errors import CorruptError
from cext.record import Record, replace
from registry.errors import BadBlobError, BadDocumentError, MissingBlobError, MissingImageError, MovedTagError
from registry.model import (
    DOCUMENT_MAX,
    DOMAIN,
    REF_NAME,
    REMOTE,
    Descriptor,
    Digest,
    Index,
    LayerRecord,
    Manifest,
    check_blob,
)
from registry.reference import Reference

if TYPE_CHECKING:
    from cext import ChunkMap

LOCAL_DOMAIN = "local"
_LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
_STEP_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_COPY = 1 << 20


class Tag(Record):
    """A name in the layout. domain: whose pages the image may share, docs/architecture.md. remote: the registry's
    repository (HOST/PATH) that has those of its packs that are not here.
    """

    name: str
    manifest: Descriptor
    domain: str
    remote: str | None = None


class Resolved(Record):
    """What a reference stands for. name: the tag that it was found under, without a digest. remote: as in Tag."""

    name: str
    manifest: Manifest
    domain: str
    remote: str | None = None


class Lease:
    """Keeps gc away from one image. Belongs to whoever holds fd; a process that gets a copy of fd shares it."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self.fd = fd

    def release(self) -> None:
        """Ends the lease, for all who share it."""
        if self.fd >= 0:
            _unlink(self._path)
            self.hand_over()

    def hand_over(self) -> None:
        """Closes our copy of fd; the lease lasts as long as anybody has another one."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Staging:
    """A directory for blobs that are being written. fd, path: the directory; the layout removes it with what is left in
    it.
    """

    def __init__(self, layout: Layout, path: str, fd: int) -> None:
        self._layout = layout
        self.path = path
        self.fd = fd

    def adopt(self, name: str, digest: Digest) -> None:
        """Makes the file `name`, complete and synced by its writer, the blob `digest`. Durable only after
        `Layout.sync`.
        """
        os.rename(name, self._layout.blob_path(digest), src_dir_fd=self.fd)

    @contextmanager
    def file(self, name: str) -> Iterator[int]:
        """A new file open for reading and writing; synced when the block ends well."""
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            yield fd
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        finally:
            os.close(fd)


class Layout:
    """root: as given to `open`. Holds no descriptors between calls, so it may be kept across a fork."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.images = f"{root}/images"
        self._blobs = f"{self.images}/blobs/sha256"

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Layout:
        """The layout under root, made if it is not there."""
        self = cls(os.path.abspath(root))
        os.makedirs(self._blobs, exist_ok=True)
        for name in ("index", "steps", "chunks", "store"):
            os.makedirs(self.cache_path(name), mode=0o700, exist_ok=True)
        os.makedirs(f"{self.root}/leases", mode=0o700, exist_ok=True)
        if not os.path.exists(f"{self.images}/index.json"):
            with self.naming():
                if not os.path.exists(f"{self.images}/index.json"):
                    self._replace(f"{self.images}/oci-layout", _LAYOUT_FILE)
                    self._replace(f"{self.images}/index.json", Index.dump(()))
        return self

    def cache_path(self, name: str) -> str:
        return f"{self.root}/cache/{name}"

    # ------------------------------------------------------------------ locks

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around everything that adds blobs, from the first until the tag (or step record) that names them: keeps gc
        away.
        """
        with self._locked("lock", fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No writer is at work. Waits for those that are."""
        with self._locked("lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Nobody is replacing index.json."""
        with self._locked("tags.lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def bringing(self, name: str, patience_s: float = 30) -> Iterator[None]:
        """Nobody else is fetching the image of this name for a start, or has been at it for so long that we do not wait
        for it: it may be stopped, or its registry stall. (One lock for many names, so that their files do not pile up.)
        """
        slot = cext.blake3(name.encode(errors="surrogateescape"))[0] % 64
        fd = os.open(f"{self.root}/bringing-{slot:02x}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = time.monotonic() + patience_s
            while not _lock_nowait(fd) and time.monotonic() < end:
                time.sleep(0.01)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        fd = os.open(f"{self.root}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ blobs

    def blob_path(self, digest: Digest) -> str:
        return f"{self._blobs}/{digest.hex}"

    def has(self, blob: Descriptor) -> bool:
        """Whether a blob of this digest and size is there. Its content is not looked at."""
        try:
            found = os.stat(self.blob_path(blob.digest), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == blob.size

    def digests(self) -> set[Digest]:
        """All blobs of the layout; names that are no digest are left out."""
        found = set()
        for name in os.listdir(self._blobs):
            try:
                found.add(Digest("sha256:" + name))
            except ValueError:
                continue
        return found

    def open_blob(self, digest: Digest) -> int:
        """A read-only descriptor; the caller closes it. The content is not verified."""
        try:
            return os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise MissingBlobError(str(digest)) from error

    def open_blobs(self) -> int:
        """The directory that holds every blob under the hex digits of its digest; the caller closes it."""
        return os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, blob: Descriptor, limit: int = DOCUMENT_MAX) -> bytes:
        """The verified bytes of a small blob."""
        if blob.size > limit:
            raise BadBlobError(str(blob.digest), f"size: got {blob.size}, want at most {limit}")
        return check_blob(self._read_digest(blob.digest, blob.size), blob)

    def _read_digest(self, digest: Digest, limit: int) -> bytes:
        fd = self.open_blob(digest)
        with open(fd, "rb", buffering=0) as file:
            return b"".join(iter(_bounded(file.read, limit + 1), b""))

    def manifest(self, digest: Digest) -> Manifest:
        raw = self._read_digest(digest, DOCUMENT_MAX)
        if Digest.of(raw[: DOCUMENT_MAX + 1]) != digest:
            raise BadBlobError(str(digest), "content is not what the digest says")
        return Manifest.parse(raw)

    def put(self, data: bytes, media_type: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Stores a small blob, durable on return."""
        descriptor = Descriptor(media_type, Digest.of(data), len(data), annotations or {})
        with self.staging() as staging:
            with staging.file("blob") as fd:
                write_all(fd, data)
            staging.adopt("blob", descriptor.digest)
        self.sync()
        return descriptor

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A private directory on the layout's file system, removed at the end with whatever was not adopted."""
        path = f"{self.images}/blobs/tmp-{os.getpid()}-{os.urandom(6).hex()}"
        os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            os.rmdir(path)
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield Staging(self, path, fd)
        finally:
            os.close(fd)  # first: to list the directory takes a descriptor, and they may be what is short
            remove_tree(path)

    def sync(self) -> None:
        """Makes every adopted name durable."""
        fd = self.open_blobs()
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def verify_blob(self, blob: Descriptor, progress: Callable[[int], None] | None = None) -> None:
        """Reads the whole blob. Raises BadBlobError or MissingBlobError. progress: gets the bytes of each step."""
        import hashlib  # with OpenSSL, 2 ms: not on the way of `run`

        hasher = hashlib.sha256()
        size = 0
        fd = self.open_blob(blob.digest)
        with open(fd, "rb", buffering=0) as file:
            buffer = memoryview(bytearray(_COPY))
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
                size += count
                if progress:
                    progress(count)
        if size != blob.size:
            raise BadBlobError(str(blob.digest), f"size: got {size}, want {blob.size}")
        if hasher.hexdigest() != blob.digest.hex:
            raise BadBlobError(str(blob.digest), f"content: got sha256:{hasher.hexdigest()}")

    # ------------------------------------------------------------------ names

    def tags(self) -> tuple[Tag, ...]:
        """All names, sorted. Entries of other tools without a name of ours are left out."""
        found = []
        for entry in self._index():
            if name := entry.annotations.get(REF_NAME):
                found.append(_tag(name, entry))
        return tuple(sorted(found, key=lambda tag: tag.name))

    def _index(self) -> tuple[Descriptor, ...]:
        try:
            with open(f"{self.images}/index.json", "rb") as file:
                raw = file.read(DOCUMENT_MAX + 1)
        except FileNotFoundError as error:
            raise BadDocumentError(f"{self.images}/index.json", "missing") from error
        return Index.parse(raw, f"{self.images}/index.json").manifests

    def tag(
        self,
        reference: Reference,
        manifest: Manifest,
        *,
        domain: str = LOCAL_DOMAIN,
        remote: str | None = None,
        instead_of: Digest | None = None,
    ) -> Tag:
        """Gives the manifest, whose blobs are all there and synced, a name; the name's old meaning is forgotten. With a
        remote, packs may be there instead. instead_of: what the name has to mean now, or MovedTagError.
        """
        name = reference.name
        annotations = {REF_NAME: name, DOMAIN: domain} | ({} if remote is None else {REMOTE: remote})
        entry = replace(manifest.descriptor, annotations=annotations)

        def with_entry(entries: tuple[Descriptor, ...]) -> list[Descriptor]:
            meant = [old.digest for old in entries if old.annotations.get(REF_NAME) == name]
            if instead_of is not None and meant != [instead_of]:
                raise MovedTagError(name, str(instead_of))
            return [*(old for old in entries if old.annotations.get(REF_NAME) != name), entry]

        self._change(with_entry)
        return _tag(name, entry)

    def untag(self, reference: Reference) -> Tag:
        """Forgets a name. Blobs stay until gc."""
        gone: list[Descriptor] = []

        def without(entries: tuple[Descriptor, ...]) -> list[Descriptor]:
            gone.extend(entry for entry in entries if entry.annotations.get(REF_NAME) == reference.name)
            return [entry for entry in entries if entry not in gone]

        self._change(without)
        if not gone:
            raise MissingImageError(reference.name)
        return _tag(reference.name, gone[0])

    def _change(self, change: Callable[[tuple[Descriptor, ...]], list[Descriptor]]) -> None:
        with self.naming():
            before = self._index()
            after = sorted(change(before), key=lambda entry: entry.annotations.get(REF_NAME, ""))
            if tuple(after) != before:
                self._replace(f"{self.images}/index.json", Index.dump(after))

    def _replace(self, path: str, data: bytes) -> None:
        temporary = f"{path}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
        directory_fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
            os.fsync(directory_fd)
        except BaseException:
            _unlink(temporary)
            raise
        finally:
            os.close(directory_fd)

    def resolve(self, reference: Reference) -> Resolved:
        """The manifest that a reference names. With a digest, the name must exist, whatever it means today."""
        if reference.digest is None:
            for tag in self.tags():
                if tag.name == reference.name:
                    return Resolved(tag.name, self.manifest(tag.manifest.digest), tag.domain, tag.remote)
            raise MissingImageError(str(reference))
        same = [tag for tag in self.tags() if tag.name.rpartition(":")[0] == reference.repository]
        if not same or not os.path.exists(self.blob_path(reference.digest)):
            raise MissingImageError(str(reference))
        tag = min(same, key=lambda tag: (tag.manifest.digest != reference.digest, tag.name))
        return Resolved(tag.name, self.manifest(reference.digest), tag.domain, tag.remote)

    # ------------------------------------------------------------------ leases

    def lease(self, digest: Digest) -> Lease:
        """Call it inside `writing`, before or together with the look at the tag, or gc may have been faster."""
        path = f"{self.root}/leases/{os.urandom(12).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            write_all(fd, str(digest).encode() + b"\n")
        except BaseException:
            _unlink(path)
            os.close(fd)
            raise
        return Lease(path, fd)

    def resolve_leased(self, reference: Reference) -> tuple[Resolved, Lease]:
        """A manifest that gc leaves alone until the lease ends."""
        with self.writing():
            resolved = self.resolve(reference)
            return resolved, self.lease(resolved.manifest.digest)

    def leased(self) -> set[Digest]:
        """What is in use now. Call it inside `exclusive`; removes the leases of the dead."""
        held = set()
        for name in os.listdir(f"{self.root}/leases"):
            path = f"{self.root}/leases/{name}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # released just now
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _unlink(path)
            except BlockingIOError:
                held.add(Digest(os.pread(fd, 100, 0).decode("ascii", "replace").strip()))
            finally:
                os.close(fd)
        return held

    # ------------------------------------------------------------------ what was built before

    def chunk_map(self) -> ChunkMap:
        """Which pack has which chunk. One per process, opened after any fork; close it. Call it inside `writing`.

        gc takes a pack out of the map before it deletes it, so only damage from outside leaves a pack in the map that
        is not there: MissingBlobError, and fsck repairs it. It is not repaired here, where others may have the map
        open.
        """
        import cext

        chunks = cext.ChunkMap(self.cache_path("chunks"))
        try:
            for pack in chunks.packs():
                if not os.path.exists(self.blob_path(Digest.from_bytes(pack))):
                    raise MissingBlobError(str(Digest.from_bytes(pack)))
        except BaseException:
            chunks.close()
            raise
        return chunks

    def recall(self, key: str) -> LayerRecord | None:
        """The layer remembered under a key, if all its blobs are still there."""
        raw = self.recall_bytes(key)
        if raw is None:
            return None
        try:
            record = LayerRecord.parse(raw, f"step {key}")
        except BadDocumentError:
            return None  # a cache: what can't be read is made again
        return record if all(self.has(blob) for blob in record.blobs) else None

    def recall_bytes(self, key: str) -> bytes | None:
        """What was remembered under a key, unjudged: the caller checks that the blobs it names are there."""
        try:
            with open(self._step_path(key), "rb") as file:
                return file.read(DOCUMENT_MAX + 1)
        except FileNotFoundError:
            return None

    def remember(self, key: str, record: LayerRecord) -> None:
        """Call it inside `writing`, with the record's blobs synced."""
        self.remember_bytes(key, record.dump())

    def remember_bytes(self, key: str, raw: bytes) -> None:
        """raw: JSON; gc and fsck forget it when a blob that any descriptor in it names is gone."""
        self._replace(self._step_path(key), raw)

    def _step_path(self, key: str) -> str:
        if not _STEP_KEY.fullmatch(key) or key.startswith("."):
            raise ValueError(f"step key {key[:100]!r}: want letters, digits, _ . : -")
        return f"{self.cache_path('steps')}/{key}"


def _tag(name: str, entry: Descriptor) -> Tag:
    return Tag(name, entry, entry.annotations.get(DOMAIN, LOCAL_DOMAIN), entry.annotations.get(REMOTE))


def is_pack(fd: int) -> bool:
    """Whether a blob ends as packs do."""
    size = os.fstat(fd).st_size
    return size >= 8 and os.pread(fd, 8, size - 8) == b"OSPACKE1"


def rebuild_chunk_map(layout: Layout, *, without: Iterable[Digest] = ()) -> None:
    """Writes the chunk map anew from the packs that are there, except for those known to be damaged.

    A table is gone with its pack, so a pack that vanished can't be taken out of the map chunk by chunk. Call it inside
    `exclusive`: nobody may have the old map open.
    """
    import cext

    path = layout.cache_path("chunks")
    remove_tree(path)
    os.mkdir(path, 0o700)
    chunks = cext.ChunkMap(path)
    try:
        for digest in sorted(layout.digests() - set(without)):
            fd = layout.open_blob(digest)
            try:
                if is_pack(fd):
                    chunks.add_pack(digest.raw, cext.pack_table(fd))
            except CorruptError:
                continue  # fsck reports it; it gives no chunks to new layers
            finally:
                os.close(fd)
    finally:
        chunks.close()


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def remove_tree(path: str) -> None:
    """Removes a directory of ours: two levels at most, made by us, so that no recursion follows a stranger's link."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            _unlink(entry.path)
    with suppress(FileNotFoundError):  # gc may have been at it too
        os.rmdir(path)


def _lock_nowait(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _bounded(read: Callable[[int], bytes], limit: int) -> Callable[[], bytes]:
    """Reads in steps, `limit` bytes in all."""
    left = limit

    def step() -> bytes:
        nonlocal left
        data = read(min(left, _COPY)) if left else b""
        left -= len(data)
        return data

    return step


def total_size(blobs: Iterable[Descriptor]) -> int:
    """Bytes of the distinct blobs."""
    return sum({blob.digest: blob.size for blob in blobs}.values())
