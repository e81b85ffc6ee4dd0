"""The index's way: layers merged, encoded as EROFS and tables, judged, at 100,000 files."""

from __future__ import annotations

import struct

import pytest

import cext
from benchmarks.micro.conftest import QUICK, Rate
from benchmarks.micro.synthetic import Synthetic, make
from lazyfs.merge import merge

FILES = 2_000 if QUICK else 100_000


@pytest.fixture(scope="session")
def image() -> Synthetic:
    return make(FILES)


@pytest.fixture(scope="session")
def encoded(image: Synthetic) -> tuple[bytes, bytes]:
    return cext.encode_image(image.tree, image.packs)


def _inodes(erofs: bytes) -> int:
    found: int = struct.unpack_from("<Q", erofs, 1024 + 16)[0]
    return found


def bench_encoding_erofs_and_tables(rate: Rate, image: Synthetic, encoded: tuple[bytes, bytes]) -> None:
    rate(lambda: cext.encode_image(image.tree, image.packs), _inodes(encoded[0]) / 1e6, "M inodes/s", want=2.0)


def bench_canonical_check_of_erofs_and_tables(rate: Rate, encoded: tuple[bytes, bytes]) -> None:
    rate(lambda: cext.check_image(*encoded), _inodes(encoded[0]) / 1e6, "M inodes/s", want=2.0)


def bench_merge_of_one_layer(rate: Rate, image: Synthetic) -> None:
    """Decodes and checks the layer index and writes the merged tree."""
    rate(lambda: merge([image.tree]), FILES / 1e6, "M files/s")


def bench_merge_of_fifty_layers_that_share_directories(rate: Rate) -> None:
    """As wheels do: fifty layers, each with its files in directories of its own below shared ones."""
    layers = [make(max(20, FILES // 50), seed=seed).tree for seed in range(50)]
    rate(lambda: merge(layers), 50 * max(20, FILES // 50) / 1e6, "M files/s")
