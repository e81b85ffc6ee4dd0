"""From a reference to an open image."""

from __future__ import annotations

from pathlib import Path

import pytest

from cext.record import replace
from onesec.config import Config, RegistrySettings, load
from onesec.images import found_image
from registry.errors import MissingImageError, NotThereError
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
