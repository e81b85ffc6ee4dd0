"""The index's way: layers merged, encoded as EROFS and tables, judged, at 100,000 files."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import cext
from benchmarks.micro.conftest import QUICK, Rate
from benchmarks.micro.synthetic import Synthetic, make
from lazyfs.merge import merge

SOURCES = Path(cext.__file__).parent / "src"
KERNELS = ("erofs_decode", "erofs_encode", "hash", "layer", "layer_entry", "result", "tree")
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


@pytest.fixture(scope="session")
def alone(image: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Seconds of each round of the kernels by themselves, in a C program."""
    directory = tmp_path_factory.mktemp("index")
    program, layer = directory / "index_speed", directory / "layer"
    layer.write_bytes(image.tree)
    blake3 = sorted(Path("/usr/share/cargo/registry").glob("blake3-*/c"))[-1]
    hashes = [blake3 / f"blake3{name}.c" for name in ("", "_dispatch", "_portable")]
    vector = sorted(blake3.glob("blake3_*_x86-64_unix.S")) if os.uname().machine == "x86_64" else []
    flags = ["-O3", "-std=gnu11", "-w", f"-I{SOURCES}", f"-I{blake3}", *([] if vector else ["-DBLAKE3_USE_NEON=0"])]
    own = [SOURCES / f"os_{name}.c" for name in KERNELS]
    main = Path(__file__).parent / "index_speed.c"
    subprocess.run(["cc", *flags, main, *own, *hashes, *vector, "-o", program], check=True)
    words = [str(program), str(layer), "2" if QUICK else "15"]
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return found


@pytest.mark.parametrize(("step", "want"), [("encode", 2.0), ("check", 2.0), ("decode", None)])
def bench_kernel_alone(benchmark: Any, alone: dict[str, Any], step: str, want: float | None) -> None:
    """fs.erofs encoded; decoded, encoded again and compared; the layer index decoded and checked."""
    seconds = alone[step]
    benchmark.pedantic(lambda: None)
    rates = [alone["inodes"] / 1e6 / one for one in seconds]
    benchmark.extra_info.update(rates=rates, unit="M inodes/s", want=want)
    assert statistics.median(rates) > 0


def bench_encoding_erofs_and_tables(rate: Rate, image: Synthetic, encoded: tuple[bytes, bytes]) -> None:
    rate(lambda: cext.encode_image(image.tree, image.packs), _inodes(encoded[0]) / 1e6, "M inodes/s")


def bench_canonical_check_of_erofs_and_tables(rate: Rate, encoded: tuple[bytes, bytes]) -> None:
    rate(lambda: cext.check_image(*encoded), _inodes(encoded[0]) / 1e6, "M inodes/s")


def bench_merge_of_one_layer(rate: Rate, image: Synthetic) -> None:
    """Decodes and checks the layer index and writes the merged tree."""
    rate(lambda: merge([image.tree]), FILES / 1e6, "M files/s")


def bench_merge_of_fifty_layers_that_share_directories(rate: Rate) -> None:
    """As wheels do: fifty layers, each with its files in directories of its own below shared ones."""
    layers = [make(max(20, FILES // 50), seed=seed).tree for seed in range(50)]
    rate(lambda: merge(layers), 50 * max(20, FILES // 50) / 1e6, "M files/s")
