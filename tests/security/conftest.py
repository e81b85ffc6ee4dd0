"""Where inputs are refused before anything is mounted, tests write to memory: hundreds of layouts, each synced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.rootfs import remove_tree

IN_MEMORY = {
    "test_paths_leave_the_root",
    "test_digests",
    "test_unbounded_input",
    "test_claimed_identity",
    "test_foreign_erofs",
}
MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if request.module.__name__.rpartition(".")[2] not in IN_MEMORY or not os.access(MEMORY, os.W_OK):
        yield tmp_path_factory.mktemp(request.node.name[:30].replace("/", "_"))
        return
    path = tempfile.mkdtemp(prefix="onesec-test-", dir=MEMORY)
    try:
        yield Path(path)
    finally:
        fd = os.open(MEMORY, os.O_RDONLY | os.O_DIRECTORY)
        try:
            remove_tree(fd, os.path.basename(path))
        finally:
            os.close(fd)
