"""Adapters of lazy loaders, without the loaders: what they would be told, and that their absence is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.macro.harness import missing
from benchmarks.macro.lazy_peers import LOADERS, Loader, Site
from benchmarks.macro.sources import Source

SOURCE = Source("torch", Path("/plain"), ("/usr/bin/python3", "-c", "import torch"))


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.name)
def test_what_is_not_installed_is_named_and_an_untried_adapter_called_one(loader: Loader, tmp_path: Path) -> None:
    reason = missing(*loader.programs, path=str(tmp_path))
    assert reason is not None
    assert reason.startswith("not installed: ")
    assert ("untried" in loader.shown) is (loader.name != "stargz")


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.name)
def test_a_daemon_gets_its_configuration_below_its_state(loader: Loader, tmp_path: Path) -> None:
    site = Site(tmp_path / "state", "10.0.0.1:5000")
    service = loader.daemon(site)
    assert service.socket == site.socket
    (written,) = site.state.iterdir()
    assert str(written) in service.argv
    assert any(str(site.socket) in word for word in (*service.argv, written.read_text()))


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.name)
def test_an_image_is_made_of_the_plain_one_and_pushed_under_its_own_name(loader: Loader) -> None:
    calls = loader.convert("host/torch-zstd:latest", "host/torch-own:latest", SOURCE)
    words = [word for call in calls for word in call]
    assert "host/torch-zstd:latest" in words
    assert calls[-1][-1] == "host/torch-own:latest" or "host/torch-own:latest" in calls[-1]
    assert loader.pull("host/torch-own:latest")[-1] == "host/torch-own:latest"


def test_stargz_is_optimized_by_the_workload() -> None:
    (stargz,) = (loader for loader in LOADERS if loader.name == "stargz")
    _, optimize, _ = stargz.convert("plain", "target", SOURCE)
    assert optimize[:3] == ["ctr-remote", "images", "optimize"]
    assert json.loads(optimize[optimize.index("--entrypoint") + 1]) == ["/usr/bin/python3"]
    assert json.loads(optimize[optimize.index("--args") + 1]) == ["-c", "import torch"]
    assert optimize[-2:] == ["plain", "target"]
