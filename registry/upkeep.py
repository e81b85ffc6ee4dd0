"""Looking after the layout: what gc may delete, what fsck finds and repairs, what verify proves.

gc and fsck run inside `Layout.exclusive`: no writer has blobs that nobody names yet. What a tag or a held lease reaches
stays.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cext
from cext.errors import CorruptError, MissingError
from registry import decoded, image
from registry.errors import BadBlobError, BadDocumentError
from registry.layout import Layout, is_pack, rebuild_chunk_map, remove_tree
from registry.model import EROFS, LAYER, PACK, TABLES, Descriptor, Digest, Manifest, parse_json
from registry.reference import Reference


@dataclass(frozen=True, slots=True)
class Collected:
    """blobs, bytes: deleted. kept: blobs that are needed."""

    blobs: int
    bytes: int
    kept: int


@dataclass(frozen=True, slots=True)
class Checked:
    """problems: what is wrong and stays wrong. repaired: what was. unreferenced: blobs that gc would delete. remote:
    blobs that are only at a registry.
    """

    problems: tuple[str, ...]
    repaired: tuple[str, ...]
    unreferenced: int
    blobs: int
    bytes: int
    remote: int


@dataclass(frozen=True, slots=True)
class Verified:
    """blobs: that are here. chunks: 0 unless deep. bytes: read and hashed. remote: blobs that are only at the registry,
    whose repository is `at`: nothing was proved of them.
    """

    name: str
    digest: Digest
    blobs: int
    chunks: int
    bytes: int
    remote: tuple[Descriptor, ...] = ()
    at: str | None = None


def collect(layout: Layout) -> Collected:
    """Deletes what no tag and no held lease needs. Raises, having deleted nothing, if a root can't be read."""
    with layout.exclusive():
        # A start that was killed before its image was stored may have left a server with a lease on it.
        roots = {tag.manifest.digest for tag in layout.tags()} | (layout.leased() & layout.digests())
        manifests = [layout.manifest(root) for root in roots]
        live = roots | {blob.digest for manifest in manifests for blob in manifest.blobs}
        here = layout.digests()
        dead = here - live
        _forget(layout, dead)  # first, and committed: the map must never name a pack that is gone
        size = 0
        for digest in dead:
            path = layout.blob_path(digest)
            size += os.stat(path).st_size
            os.unlink(path)
        layout.sync()
        _clean_staging(layout)
        _clean_steps(layout)
        _clean_decoded(layout, manifests)
        return Collected(len(dead), size, len(live & here))


def _forget(layout: Layout, dead: set[Digest]) -> None:
    chunks = cext.ChunkMap(layout.cache_path("chunks"))
    broken = False
    try:
        for pack in chunks.packs():
            if (digest := Digest.from_bytes(pack)) in dead:
                fd = layout.open_blob(digest)
                try:
                    chunks.remove_pack(pack, cext.pack_table(fd))
                except CorruptError:
                    broken = True
                finally:
                    os.close(fd)
    finally:
        chunks.close()
    if broken:
        rebuild_chunk_map(layout, without=dead)


def _clean_staging(layout: Layout) -> list[str]:
    """Removes what dead writers left. Returns the names."""
    gone = []
    base = f"{layout.images}/blobs"
    for name in os.listdir(base):
        if name.startswith("tmp-") and _nobody_holds(f"{base}/{name}"):
            remove_tree(f"{base}/{name}")
            gone.append(name)
    with layout.naming():  # `rm` replaces index.json without being a writer
        for directory in (layout.images, layout.cache_path("steps")):
            for name in os.listdir(directory):
                if ".tmp-" in name:
                    os.unlink(f"{directory}/{name}")
                    gone.append(name)
    for name in os.listdir(layout.cache_path("index")):
        path = f"{layout.cache_path('index')}/{name}"
        if name.startswith("tmp-") and _nobody_holds(path):
            os.unlink(path)
            gone.append(name)
    return gone


def _nobody_holds(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _clean_steps(layout: Layout) -> list[str]:
    """Removes records whose blobs are gone or that can't be read."""
    gone = []
    base = layout.cache_path("steps")
    for name in os.listdir(base):
        with open(f"{base}/{name}", "rb") as file:
            raw = file.read()
        try:
            good = all(layout.has(blob) for blob in descriptors_in(parse_json(raw, name)))
        except BadDocumentError:
            good = False
        if not good:
            os.unlink(f"{base}/{name}")
            gone.append(name)
    return gone


def _clean_decoded(layout: Layout, manifests: list[Manifest]) -> None:
    live = {blob.decoded[0].hex() for manifest in manifests for kind in (EROFS, TABLES) for blob in manifest.each(kind)}
    base = layout.cache_path("index")
    for name in os.listdir(base):
        if not name.startswith("tmp-") and name not in live:
            os.unlink(f"{base}/{name}")


def descriptors_in(value: Any) -> Iterator[Descriptor]:
    """Every descriptor anywhere in a JSON value of ours."""
    if isinstance(value, dict):
        if value.keys() >= {"mediaType", "digest", "size"}:
            yield Descriptor.from_json(value)
        else:
            for inner in value.values():
                yield from descriptors_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from descriptors_in(inner)


# ---------------------------------------------------------------------- fsck


def check_layout(layout: Layout, progress: Callable[[int], None] | None = None) -> Checked:
    """Hashes every blob and follows every tag. Repairs caches and leftovers; removes damaged packs that a registry has;
    other damaged blobs are only reported.
    """
    problems: list[str] = []
    repaired: list[str] = []
    with layout.exclusive():
        for name in _clean_staging(layout):
            repaired.append(f"{name}: left by a writer that died, removed")
        held = layout.leased()
        damaged, packs, size = _check_blobs(layout, problems, progress)
        reached: set[Digest] = set()
        try:
            roots = [(tag.name, tag.manifest.digest, tag.remote is not None) for tag in layout.tags()]
        except CorruptError as error:
            problems.append(str(error))
            roots = []
        for digest in _refetchable(layout, roots) & damaged.keys():
            os.unlink(layout.blob_path(digest))
            repaired.append(f"{damaged.pop(digest)}; removed, since a registry has it")
            packs.discard(digest)
        problems += damaged.values()
        bad = set(damaged)
        # What is in use without a name may have lost it, and with it the word of where its packs are.
        roots += [(f"image {digest} in use", digest, True) for digest in sorted(held & layout.digests())]
        remote: set[Digest] = set()
        for name, root, elsewhere in roots:
            reached |= _follow(layout, name, root, bad, problems, remote if elsewhere else None)
        for step in _clean_steps(layout):
            repaired.append(f"step {step}: its blobs are gone, forgotten")
        _check_decoded(layout, repaired)
        _check_chunk_map(layout, packs - bad, bad, repaired)
        unreferenced = len(layout.digests() - reached)
        return Checked(tuple(problems), tuple(repaired), unreferenced, len(layout.digests()), size, len(remote))


def _check_blobs(
    layout: Layout, problems: list[str], progress: Callable[[int], None] | None
) -> tuple[dict[Digest, str], set[Digest], int]:
    """(what is wrong with damaged blobs, packs, bytes read)"""
    bad: dict[Digest, str] = {}
    packs: set[Digest] = set()
    size = 0
    for digest in sorted(layout.digests()):
        fd = layout.open_blob(digest)
        try:
            length = os.fstat(fd).st_size
            if is_pack(fd):
                packs.add(digest)
        finally:
            os.close(fd)
        size += length
        try:
            layout.verify_blob(Descriptor("application/octet-stream", digest, length), progress)
        except BadBlobError as error:
            bad[digest] = str(error)
    for name in os.listdir(f"{layout.images}/blobs/sha256"):
        try:
            Digest("sha256:" + name)
        except ValueError:
            problems.append(f"blobs/sha256/{name}: not the name of a blob")
    return bad, packs, size


def _refetchable(layout: Layout, roots: Sequence[tuple[str, Digest, bool]]) -> set[Digest]:
    """Packs that every image that needs them may get from its registry."""
    found: dict[bool, set[Digest]] = {True: set(), False: set()}
    for _, root, remote in roots:
        try:
            found[remote] |= {pack.digest for pack in layout.manifest(root).each(PACK)}
        except (CorruptError, MissingError):
            continue  # reported when it is followed
    return found[True] - found[False]


def _follow(
    layout: Layout, name: str, root: Digest, bad: set[Digest], problems: list[str], remote: set[Digest] | None
) -> set[Digest]:
    """What the manifest root needs. remote: gets the packs that are not here; None: they have to be."""
    try:
        manifest = layout.manifest(root)
    except (CorruptError, MissingError) as error:
        problems.append(f"{name}: {error}")
        return {root}
    for blob in manifest.blobs:
        if remote is not None and is_remote(layout, manifest, blob):
            remote.add(blob.digest)
        elif blob.digest not in bad and not layout.has(blob):
            problems.append(f"{name}: blob {blob.digest} is missing, or not of {blob.size} bytes")
        elif blob.digest in bad:
            problems.append(f"{name}: needs the damaged blob {blob.digest}")
    return {root, *(blob.digest for blob in manifest.blobs)}


def _check_decoded(layout: Layout, repaired: list[str]) -> None:
    base = layout.cache_path("index")
    for name in os.listdir(base):
        if name.startswith("tmp-"):
            continue
        with open(f"{base}/{name}", "rb") as file:
            good = decoded.hash_descriptor(file.fileno(), os.fstat(file.fileno()).st_size).hex() == name
        if not good:
            os.unlink(f"{base}/{name}")
            repaired.append(f"cache/index/{name}: damaged, removed")


def _check_chunk_map(layout: Layout, packs: set[Digest], bad: set[Digest], repaired: list[str]) -> None:
    known: set[Digest] | None = None
    try:
        chunks = cext.ChunkMap(layout.cache_path("chunks"))
        try:
            known = {Digest.from_bytes(pack) for pack in chunks.packs()}
        finally:
            chunks.close()
    except (CorruptError, OSError) as error:
        repaired.append(f"chunk map: {error}; built again from {len(packs)} packs")
    if known is not None and known != packs:
        repaired.append(f"chunk map: knew {len(known)} packs, built again from {len(packs)}")
    if known != packs:
        rebuild_chunk_map(layout, without=bad)


# ---------------------------------------------------------------------- verify


def verify_image(
    layout: Layout, reference: Reference, *, deep: bool = False, progress: Callable[[int], None] | None = None
) -> Verified:
    """Proves an image: digests of its documents and indexes, the tables and EROFS; deep: every chunk of its packs.

    Raises at the first thing that is wrong, with the blob's name.
    """
    resolved, lease = layout.resolve_leased(reference)
    with lease:
        manifest = resolved.manifest.require_image()
        size = len(manifest.raw)
        chunks = 0
        remote: list[Descriptor] = []
        image.parse_config(layout.read(manifest.config), f"config of {resolved.name}")
        for blob in manifest.layers:
            if resolved.remote is not None and is_remote(layout, manifest, blob):
                remote.append(blob)
            elif blob.media_type != PACK:
                layout.verify_blob(blob, progress)
                size += blob.size
            elif not layout.has(blob):
                raise BadBlobError(str(blob.digest), f"missing, or not of {blob.size} bytes")
        image.decode_index(layout, manifest)
        tables = decoded.read_decoded(layout, manifest.only(TABLES))
        if image.tables_blobs(tables) != tuple(
            Descriptor(PACK, blob.digest, blob.size) for blob in manifest.each(PACK)
        ):
            raise BadDocumentError(f"manifest {manifest.digest}", "its packs are not those of its tables")
        for blob in (layer for layer in manifest.each(LAYER) if layer not in remote):
            decoded.read_decoded(layout, blob)
        if deep:
            for blob in (pack for pack in manifest.each(PACK) if pack not in remote):
                layout.verify_blob(blob, progress)
                chunks += _verify_pack(layout, blob)
                size += blob.size
        here = len(manifest.blobs) + 1 - len(remote)
        return Verified(resolved.name, manifest.digest, here, chunks, size, tuple(remote), resolved.remote)


def is_remote(layout: Layout, manifest: Manifest, blob: Descriptor) -> bool:
    """Whether a blob may be elsewhere and is: there is no file of its name. One of the wrong size is damage."""
    needed = blob == manifest.config or blob.media_type in (EROFS, TABLES)
    return not needed and not os.path.lexists(layout.blob_path(blob.digest))


def _verify_pack(layout: Layout, blob: Descriptor) -> int:
    fd = layout.open_blob(blob.digest)
    try:
        return verify_pack(fd, blob)
    finally:
        os.close(fd)


def verify_pack(fd: int, blob: Descriptor) -> int:
    """Decodes every frame of a pack file and hashes every chunk. Returns the number of chunks."""
    table = cext.parse_pack_table(cext.pack_table(fd), blob.size)
    offset = chunk = 0
    rows = zip(table.frame_clen, table.frame_ulen, table.frame_chunks, strict=True)
    for frame, (compressed, plain, count) in enumerate(rows):
        content = memoryview(cext.decompress_frame(os.pread(fd, compressed, offset), plain))
        offset += compressed
        at = 0
        for row in range(chunk, chunk + count):
            length = table.chunk_length[row]
            if cext.blake3(content[at : at + length]) != table.chunk_id[row]:
                raise BadBlobError(str(blob.digest), f"frame {frame}: chunk {row} is not what its id says")
            at += length
        chunk += count
    return chunk
