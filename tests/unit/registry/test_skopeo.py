from __future__ import annotations

from pathlib import Path

import pytest

from cext.errors import UnsupportedError
from registry.errors import SkopeoError
from registry.skopeo import copy_to_directory


def test_a_source_that_skopeo_cannot_read_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SkopeoError, match="nowhere"):
        copy_to_directory(f"docker-archive:{tmp_path}/nowhere.tar", str(tmp_path))


def test_without_skopeo_the_user_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError) as caught:
        copy_to_directory("docker://example.com/a", str(tmp_path))
    assert caught.value.hint == "apt install skopeo"
