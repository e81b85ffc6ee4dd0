"""One large file whose chunks are on the host, read from start to end with an empty page cache.

Program code and libraries, which zstd brings to about a third: out of packs, and out of the local store, which keeps
raw what was read again. Random bytes, which a pack keeps raw. Each against the same file on the disk's own file system;
every byte of ours is verified on the way.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from mmap import mmap
from pathlib import Path

from benchmarks.macro import cold, sources
from benchmarks.macro.figures import Figure, at_least, figure, ratios
from benchmarks.macro.harness import Contender, Measurement, require_same, rounds, walls
from benchmarks.macro.scenario import Outcome, Place, Scenario

SIZE = 1 << 30
QUICK_SIZE = 8 << 20
REFERENCE = "seqread"


def run(place: Place) -> Outcome:
    size = QUICK_SIZE if place.quick else SIZE
    tree = _tree(place, size)
    sources.ingest(place, tree, REFERENCE)
    packs = place.packs(REFERENCE)
    cold.drop()
    first, second = _direct(tree / "code"), _direct(tree / "code")
    with ExitStack() as stack:
        packed = stack.enter_context(place.mounted_without_store(REFERENCE))
        kept = stack.enter_context(place.mounted(REFERENCE))
        _read_into_store(place, kept / "code")
        segments = sorted((place.root / "cache/store").rglob("seg-*"))  # its map stays mapped, and is no content

        def prepare(path: Path) -> dict[str, int]:
            cold.drop()
            return cold.require([tree / "code", tree / "random", *packs, *segments, path])

        contenders = [
            Contender(name, place.program("read", path), lambda path=path: prepare(path), clock="own")  # type: ignore[misc]
            for name, path in (
                ("ext4 code", tree / "code"),
                ("zstd packs", packed / "code"),
                ("raw store", kept / "code"),
                ("ext4 random", tree / "random"),
                ("raw packs", packed / "random"),
            )
        ]
        results = rounds(contenders, place.rounds)
        stored = sum(path.stat().st_size for path in segments)
    for group in (("ext4 code", "zstd packs", "raw store"), ("ext4 random", "raw packs")):
        require_same({name: results[name] for name in group}, "sha256")
    pack_bytes = sum(path.stat().st_size for path in packs)
    return Outcome(
        _figures(results, size),
        results,
        {
            "file_bytes": size,
            "pack_bytes": pack_bytes,
            "store_bytes": stored,
            "pages_before_each_read": results["zstd packs"][0].prepared,
            "pages_after_a_read": results["zstd packs"][0].said()["resident_pages"],
            "disk_direct_first_GBps": round(size / first / 1e9, 2),
            "disk_direct_again_GBps": round(size / second / 1e9, 2),
        },
        [_about_the_disk(size / first / 1e9, size / second / 1e9)],
    )


def _figures(results: dict[str, list[Measurement]], size: int) -> list[Figure]:
    rates = {name: [size / wall / 1e9 for wall in walls(results, name)] for name in results}

    def over_ext4(name: str, reference: str) -> list[float]:
        return [1 / one for one in ratios(walls(results, name), walls(results, reference))]

    raw, packs, zstd = "raw store", "raw packs", "zstd packs"
    return [
        figure(
            "kept raw in the store, rate over ext4 cold",
            over_ext4(raw, "ext4 code"),
            "x",
            reference="ext4 code",
            want=at_least(0.8),
        ),
        figure(
            "kept raw in packs, rate over ext4 cold",
            over_ext4(packs, "ext4 random"),
            "x",
            reference="ext4 random",
            want=at_least(0.8),
        ),
        figure("kept as zstd, rate", rates[zstd], "GB/s", want=at_least(1.2)),
        figure("kept as zstd, rate over ext4 cold", over_ext4(zstd, "ext4 code"), "x", reference="ext4 code"),
        figure("kept raw in the store, rate", rates[raw], "GB/s"),
        figure("kept raw in packs, rate", rates[packs], "GB/s"),
        figure("ext4 cold, rate", rates["ext4 code"] + rates["ext4 random"], "GB/s"),
    ]


def _read_into_store(place: Place, path: Path) -> None:
    """The store keeps what is decoded a second time, as far as its writer keeps up: so it is read some times."""
    for _ in range(2 if place.quick else 4):
        cold.drop()
        place.call(place.program("read", path))


def _tree(place: Place, size: int) -> Path:
    tree = place.path("seqread")
    if tree.is_dir() and all((tree / name).stat().st_size == size for name in ("code", "random")):
        return tree
    tree.mkdir(parents=True, exist_ok=True)
    with open(tree / "random", "wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(os.urandom(1 << 20))
    with open(tree / "code", "wb") as file:
        if place.quick:
            file.write(sources.text(size, 2))
        else:
            _concatenate(sources.torch(place).plain, file.fileno(), size)
    return tree


def _concatenate(tree: Path, target: int, size: int) -> None:
    """The files of a tree behind each other, in path order, the last one cut; what lacks is random."""
    left = size
    for path in sorted(cold.files([tree])):
        with open(path, "rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                left -= os.write(target, block)
    while left:
        left -= os.write(target, os.urandom(min(left, 1 << 20)))


def _direct(path: Path) -> float:
    """Seconds of one read around the page cache."""
    with mmap(-1, 4 << 20) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            started = time.perf_counter()
            while os.readv(fd, [buffer]):
                pass
            return time.perf_counter() - started
        finally:
            os.close(fd)


def _about_the_disk(first: float, second: float) -> str:
    seen = f"read around the page cache, the disk gave {first:.2f} GB/s the first time and {second:.2f} the second"
    if second > 1.3 * first:
        return f"{seen}: something below caches, and the measured reads came out of that cache, not off the disk"
    return f"{seen}: what was written shortly before may lie in a cache below us; cold means this machine's page cache"


SCENARIO = Scenario("seqread", "a 1 GiB local file, page cache cold, against ext4", run)
