"""From a reference to an open image."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.remote import Source
from onesec import remote
from onesec.config import Config, load
from onesec.images import found_image
from registry.errors import MissingImageError
from registry.reference import Reference

NAME = "registry.invalid/me/app:1"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load({"ONESEC_ROOT": str(tmp_path / "root"), "ONESEC_RUN": str(tmp_path / "run")})


def test_an_image_whose_name_is_removed_before_it_is_opened_is_brought_again_but_not_for_ever(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[str] = []

    def pull(reference: Reference, *_: object) -> tuple[Source, ...]:
        brought.append(str(reference))
        return ()

    monkeypatch.setattr(remote, "pull_for_start", pull)
    with pytest.raises(MissingImageError):
        found_image(NAME, config)
    assert brought == [NAME] * 3
