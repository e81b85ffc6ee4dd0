"""A start leaves in the local store what the next one needs: with its pages gone, and the registry too, it runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.interop.test_run_from_registry import Far, make_host
from tests.support.docker_registry import docker_registry
from tests.support.shell import shell_image
from tests.support.waiting import eventually

WORDS = ("/bin/cat", "/srv/hello")


def host(directory: Path, settings: str) -> Far:
    """With a store, and a server that lingers."""
    onesec = make_host(directory)
    (directory / "onesec.toml").write_text(settings)
    return Far(onesec, "")


@pytest.mark.usefixtures("real_machine")
def test_a_start_without_pages_needs_no_network(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as server:
        settings = server.settings() + "[run]\nlinger = 600\ndeadline = 300\nprefetch-after = 0\n"
        maker = host(tmp_path / "maker", settings).onesec
        image = shell_image(tmp_path, files={"srv/hello": b"hello\n" * 3000, "srv/other": os.urandom(1 << 20)})
        name = f"{server.host}/me/app:1"
        for words in (["import", image, "-t", "app"], ["profile", "app", *WORDS], ["push", "app", name]):
            said = maker(*words)
            assert said.status == 0, said.err
        end_servers(Far(maker, ""))
        far = Far(host(tmp_path / "far", settings).onesec, f"{server.host}/me")
        assert far.onesec("run", name, *WORDS).out == "hello\n" * 3000
        eventually(lambda: far.statistics()["prefetched_chunks"] > 0)
        eventually(lambda: far.statistics()["prefetching"] == 0)
        end_servers(far)
    said = far.onesec("run", name, *WORDS)
    assert (said.status, said.out) == (0, "hello\n" * 3000), said.err + far.log()
    assert far.statistics()["fetched_bytes"] == 0
    end_servers(far)


def end_servers(far: Far) -> None:
    """With SIGKILL: what was prefetched is on disk."""
    for process in far.processes("onesec-objects"):
        os.kill(process, signal.SIGKILL)
    eventually(lambda: not any(far.processes(f"onesec-{name}") for name in ("objects", "renewer", "fetcher")))
