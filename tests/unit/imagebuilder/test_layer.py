"""Trees on disk become layers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cext.errors import LimitError
from imagebuilder.layer import Workshop
from imagebuilder.trees import layer_from_tree
from lazyfs.index.layer import open_tree
from lazyfs.merge import merge
from registry.decoded import read_decoded
from registry.layout import Layout


def nested(root: Path, depth: int) -> None:
    """Directories below each other; made step by step, since a path of them is too long for one call."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """A place for trees that shutil.rmtree, hence pytest, fails to remove: it calls itself for each level."""
    yield tmp_path
    subprocess.run(["rm", "-rf", "--", str(tmp_path)], check=True)


def test_a_deep_tree_becomes_a_layer_and_a_deeper_one_is_refused_in_words(deep_path: Path) -> None:
    for name, depth in (("deep", 240), ("deeper", 1200)):
        (deep_path / name).mkdir()
        nested(deep_path / name, depth)
    layout = Layout.open(deep_path / "root")
    with Workshop(layout) as workshop:
        record = layer_from_tree(workshop, str(deep_path / "deep"))
        tree = open_tree(merge([read_decoded(layout, record.index)]))
        assert tree.lookup(b"/".join([b"d"] * 240)) is not None
        with pytest.raises(LimitError, match="deeper than"):
            layer_from_tree(workshop, str(deep_path / "deeper"))
