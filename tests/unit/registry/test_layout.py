from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from registry.errors import BadBlobError, BadDocumentError, MissingBlobError, MissingImageError, MovedTagError
from registry.layout import Layout
from registry.model import OCI_CONFIG, Descriptor, Digest, LayerRecord, Manifest, dump_json
from registry.reference import Reference
from registry.upkeep import check_layout, collect, descriptors_in


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "root")


def store(layout: Layout, text: str) -> Manifest:
    config = layout.put(dump_json({"text": text}), OCI_CONFIG)
    raw = dump_json({"schemaVersion": 2, "config": config.to_json(), "layers": []})
    return layout.manifest(layout.put(raw, "application/vnd.oci.image.manifest.v1+json").digest)


def test_a_tag_is_found_by_name_and_by_digest(layout: Layout) -> None:
    old, new = store(layout, "old"), store(layout, "new")
    layout.tag(Reference.parse("app"), old)
    layout.tag(Reference.parse("app"), new, domain="ghcr.io/me")
    assert layout.resolve(Reference.parse("app")).manifest == new
    by_digest = layout.resolve(Reference.parse(f"app@{old.digest}"))
    assert (by_digest.manifest, by_digest.domain) == (old, "ghcr.io/me")
    with pytest.raises(MissingImageError):
        layout.resolve(Reference.parse(f"other@{old.digest}"))


def test_a_forgotten_tag_is_gone_and_forgetting_it_twice_is_an_error(layout: Layout) -> None:
    layout.tag(Reference.parse("app"), store(layout, "x"))
    layout.untag(Reference.parse("app"))
    assert layout.tags() == ()
    with pytest.raises(MissingImageError):
        layout.untag(Reference.parse("app"))


def test_a_tag_that_moved_meanwhile_is_left_alone(layout: Layout) -> None:
    old, new, mine = store(layout, "old"), store(layout, "new"), store(layout, "mine")
    name = Reference.parse("app")
    layout.tag(name, old)
    layout.tag(name, new, instead_of=old.digest)
    with pytest.raises(MovedTagError):
        layout.tag(name, mine, instead_of=old.digest)
    assert layout.resolve(name).manifest == new
    layout.untag(name)
    with pytest.raises(MovedTagError):
        layout.tag(name, mine, instead_of=new.digest)
    assert layout.tags() == ()


def test_a_start_waits_for_another_of_its_image_but_not_for_ever(layout: Layout) -> None:
    with layout.bringing("app"):
        began = time.monotonic()
        with layout.bringing("app", patience_s=0.1):
            assert time.monotonic() - began >= 0.1
    with layout.bringing("app", patience_s=60), layout.bringing("other"):
        assert time.monotonic() - began < 30


def test_staging_leaves_nothing_behind_even_when_it_fails(layout: Layout) -> None:
    with pytest.raises(ZeroDivisionError), layout.staging() as staging, staging.file("half") as fd:
        os.write(fd, bytes([1 // 0]))
    assert os.listdir(f"{layout.images}/blobs") == ["sha256"]


def test_a_blob_with_other_bytes_than_its_digest_says_is_refused(layout: Layout) -> None:
    blob = layout.put(b"good", OCI_CONFIG)
    Path(layout.blob_path(blob.digest)).write_bytes(b"evil")
    with pytest.raises(BadBlobError):
        layout.read(blob)
    with pytest.raises(BadBlobError):
        layout.verify_blob(blob)
    longer = Path(layout.blob_path(blob.digest))
    longer.write_bytes(b"good and more")
    with pytest.raises(BadBlobError):
        layout.read(blob)


def test_a_blob_that_is_a_symlink_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    digest = Digest.of(b"secret")
    os.symlink(tmp_path / "secret", layout.blob_path(digest))
    with pytest.raises(OSError):
        layout.open_blob(digest)
    assert not layout.has(Descriptor(OCI_CONFIG, digest, 6))


def test_a_missing_blob_is_named(layout: Layout) -> None:
    digest = Digest.of(b"nowhere")
    with pytest.raises(MissingBlobError, match=digest.hex):
        layout.open_blob(digest)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schemaVersion":2}', b'{"schemaVersion":2,"manifests":[{}]}'])
def test_a_broken_index_is_an_error_that_names_it(layout: Layout, content: bytes) -> None:
    Path(layout.images, "index.json").write_bytes(content)
    with pytest.raises(BadDocumentError, match=r"index\.json"):
        layout.tags()


def test_a_step_record_is_believed_only_while_its_blobs_are_there(layout: Layout) -> None:
    record = LayerRecord(layout.put(b"index", OCI_CONFIG), (layout.put(b"pack", OCI_CONFIG),))
    layout.remember("step-1", record)
    assert layout.recall("step-1") == record
    os.unlink(layout.blob_path(record.packs[0].digest))
    assert layout.recall("step-1") is None
    assert layout.recall("step-2") is None
    with pytest.raises(ValueError):
        layout.recall("../index.json")


def test_a_lease_on_an_image_that_was_never_stored_stops_nobody(layout: Layout) -> None:
    kept = store(layout, "x")
    layout.tag(Reference.parse("app"), kept)
    with layout.lease(Digest.of(b"a start that was killed")):
        collect(layout)
        assert check_layout(layout).problems == ()
    assert layout.manifest(kept.digest) == kept


def test_a_lease_lasts_until_it_is_released(layout: Layout) -> None:
    layout.tag(Reference.parse("app"), manifest := store(layout, "x"))
    _, lease = layout.resolve_leased(Reference.parse("app"))
    copy = os.dup(lease.fd)
    lease.hand_over()
    with layout.exclusive():
        assert layout.leased() == {manifest.digest}
    os.close(copy)
    with layout.exclusive():
        assert layout.leased() == set()
    assert os.listdir(f"{layout.root}/leases") == []


def _tag_many(root: str, prefix: str, count: int = 20) -> None:
    layout = Layout.open(root)
    for number in range(count):
        with layout.writing():
            layout.tag(Reference.parse(f"{prefix}{number}"), store(layout, f"{prefix}{number}"))


def test_two_processes_lose_no_tag_of_each_other(tmp_path: Path) -> None:
    context = get_context("fork")
    writers = [context.Process(target=_tag_many, args=(str(tmp_path), prefix)) for prefix in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Layout.open(tmp_path).tags()) == 40


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: needs root")
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        layout = Layout.open(tmp_path / "root")
        layout.tag(Reference.parse("app"), manifest := store(layout, "fits"))
        before = layout.digests()
        with pytest.raises(OSError) as caught:
            layout.put(os.urandom(2 << 20), OCI_CONFIG)
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(f"{layout.images}/blobs") == ["sha256"]
        assert layout.digests() == before
        assert layout.resolve(Reference.parse("app")).manifest == manifest
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_killed_writer_leaves_a_layout_whose_every_tag_resolves(tmp_path: Path) -> None:
    context = get_context("fork")
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05):
        # far more than it can write before it is killed
        writer = context.Process(target=_tag_many, args=(str(tmp_path), f"k{int(delay * 100)}-", 100_000))
        writer.start()
        writer.join(delay)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        layout = Layout.open(tmp_path)
        for tag in layout.tags():
            manifest = layout.resolve(Reference.parse(tag.name)).manifest
            layout.read(manifest.config)


def test_a_step_record_of_any_shape_names_the_blobs_it_needs() -> None:
    one, two = (Descriptor(OCI_CONFIG, Digest.of(text), 1) for text in (b"1", b"2"))
    value = {"layers": [{"index": one.to_json(), "packs": [two.to_json()]}], "words": ["x", 1]}
    assert list(descriptors_in(value)) == [one, two]


def test_a_step_that_left_bytes_finds_them_again(layout: Layout) -> None:
    layout.remember_bytes("key", b'{"layers":[]}')
    assert layout.recall_bytes("key") == b'{"layers":[]}'
    assert layout.recall_bytes("other") is None
    assert layout.recall("key") is None
