"""From a reference to an open image."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cext.record import replace
from onesec import start
from onesec.config import Config, RegistrySettings, load
from onesec.images import found_image
from registry.errors import MissingImageError, NotThereError
from registry.layout import Layout
from tests.support.fake_registry import FakeRegistry


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load({"ONESEC_ROOT": str(tmp_path / "root"), "ONESEC_RUN": str(tmp_path / "run")})


def test_a_name_without_a_registry_is_looked_for_here_alone(config: Config) -> None:
    with pytest.raises(MissingImageError), found_image("app", config):
        pass


def test_an_image_that_its_registry_does_not_have_leaves_nothing(config: Config) -> None:
    with FakeRegistry() as registry:
        known = replace(config, registries={registry.host: RegistrySettings(plain_http=True)})
        name = f"{registry.host}/me/app:1"
        with pytest.raises(NotThereError, match="has no image me/app:1"), found_image(name, known):
            pass
    left = sorted(path.name for path in (Path(config.root) / "images").rglob("*") if path.is_file())
    assert left == ["index.json", "oci-layout"]
    assert list((Path(config.root) / "images/blobs").iterdir()) == [Path(config.root) / "images/blobs/sha256"]


def test_an_image_that_cannot_be_stored_does_not_keep_gc_out_for_as_long_as_its_container_runs(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brought:
        image, places = None, ()

        def store(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    under_way: list[bool] = []

    @contextmanager
    def bringing(*_: Any) -> Iterator[Brought]:
        under_way.append(True)
        with Layout.open(config.root).writing():
            yield Brought()
        under_way.pop()

    monkeypatch.setattr(start, "bringing", bringing)
    with found_image("far.example/me/app:1", config) as found:
        assert under_way == [True]
        with pytest.raises(OSError, match="No space left"):
            found.store()
        assert under_way == []
        found.store()  # told once
