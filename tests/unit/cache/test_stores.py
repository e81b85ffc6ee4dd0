"""Stores of several trust domains under one quota. That servers use them: tests/fuse/test_chunk_store.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cext
from cache.errors import StoreError
from cache.settings import StoreSettings
from cache.stores import FLOOR_MAX, QUOTA_MAX, check_all, directory_name, prepare
from tests.suites.store import chunk

ME = os.geteuid()


@contextmanager
def opened(base: Path, domain: str, quota: int | None = 1 << 30) -> Iterator[cext.Store]:
    place = prepare(StoreSettings(str(base), quota, 0), domain, ME)
    assert place is not None
    here = os.getcwd()
    try:
        with place.open(log=-1) as store:
            yield store
    finally:
        os.chdir(here)
        os.close(place.fd)


def fill(base: Path, domain: str, *, use: int) -> int:
    """Bytes on disk. use: when it was last opened, seconds."""
    with opened(base, domain) as store:
        for seed in range(1, 21, 2):
            store.put(*chunk(seed), compress=False)
    path = base / directory_name(domain)
    os.utime(path / "lock", (use, use))
    return sum(one.stat().st_size for one in path.glob("seg-*"))


def names(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


def test_a_domain_finds_its_own_store_again_and_no_other(tmp_path: Path) -> None:
    fill(tmp_path, "one", use=1)
    with opened(tmp_path, "one") as store:
        assert store.get(chunk(1)[0]) == chunk(1)[1]
    with opened(tmp_path, "two") as store:
        assert store.get(chunk(1)[0]) is None


def test_names_of_domains_never_leave_the_directory(tmp_path: Path) -> None:
    for domain in ("../x", "/", "a/b", "", "\udcff"):
        with opened(tmp_path / "base", domain):
            pass
    assert names(tmp_path) == {"base"}
    assert all(len(name) == 32 for name in names(tmp_path / "base"))


def test_idle_stores_go_when_the_quota_is_used_up_the_oldest_first(tmp_path: Path) -> None:
    size = fill(tmp_path, "old", use=1)
    fill(tmp_path, "middle", use=2)
    fill(tmp_path, "new", use=3)
    with opened(tmp_path, "another", quota=2 * size):
        assert names(tmp_path) == {directory_name(name) for name in ("middle", "new", "another")}


def test_a_store_in_use_is_never_deleted_and_the_new_one_gets_a_share(tmp_path: Path) -> None:
    size = fill(tmp_path, "busy", use=1)
    with opened(tmp_path, "busy") as busy:
        place = prepare(StoreSettings(str(tmp_path), size, 0), "another", ME)
        assert place is not None
        os.close(place.fd)
        assert place.quota == size // 4
        assert busy.get(chunk(1)[0]) == chunk(1)[1]


def test_without_settings_a_share_of_the_file_system_is_taken(tmp_path: Path) -> None:
    place = prepare(StoreSettings(str(tmp_path)), "local", ME)
    assert place is not None
    os.close(place.fd)
    about = os.statvfs(tmp_path)
    size = about.f_blocks * about.f_frsize
    assert place.quota == min(QUOTA_MAX, size // 10)
    assert place.floor == min(FLOOR_MAX, size // 20)


def test_no_quota_makes_no_directory(tmp_path: Path) -> None:
    assert prepare(StoreSettings(str(tmp_path / "base"), 0), "local", ME) is None
    assert not (tmp_path / "base").exists()


def test_a_base_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(StoreError, match="others can enter it") as caught:
        prepare(StoreSettings(str(tmp_path)), "local", ME)
    assert caught.value.hint == f"chmod 700 {tmp_path}"


def test_a_link_in_the_place_of_a_store_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    (base / directory_name("local")).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        prepare(StoreSettings(str(base)), "local", ME)
    assert list(elsewhere.iterdir()) == []


def test_fsck_looks_at_every_store_and_at_those_in_use_not(tmp_path: Path) -> None:
    assert check_all(str(tmp_path / "none")) == ((), ())
    for domain in ("one", "two", "three"):
        fill(tmp_path, domain, use=1)
    segment = tmp_path / directory_name("one") / "seg-00000001"
    raw = bytearray(segment.read_bytes())
    raw[300] ^= 1
    segment.write_bytes(raw)
    with opened(tmp_path, "two"):
        repaired, notes = check_all(str(tmp_path))
    assert repaired == ("chunk store: 1 damaged chunks, forgotten",)
    path = tmp_path / directory_name("two")
    assert notes == (f"not checked: store {path}: in use by process {os.getpid()}",)
    assert check_all(str(tmp_path)) == ((), ())


@pytest.mark.skipif(ME != 0, reason="only root can make a store for another user")
def test_fsck_leaves_a_store_to_its_owner(tmp_path: Path) -> None:
    fill(tmp_path, "one", use=1)
    path = tmp_path / directory_name("one")
    for each in (path, *path.iterdir()):
        os.chown(each, 65534, 65534)
    (path / "data.mdb").unlink()
    repaired, notes = check_all(str(tmp_path))
    assert (len(repaired), notes) == (1, ())
    assert {each.stat().st_uid for each in path.iterdir()} == {65534}
