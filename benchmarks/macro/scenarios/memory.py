"""Peak memory while 5 GB in 100,000 files become an image: from a tree, and from an archive that is imported.

The bytes are random: nothing is known, nothing compresses, everything goes all the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

from benchmarks.macro.figures import at_most, figure
from benchmarks.macro.harness import Contender, nothing, rounds, walls
from benchmarks.macro.programs.ingest import CONFIG
from benchmarks.macro.scenario import Outcome, Place, Scenario

LIMIT_MB = 300


def run(place: Place) -> Outcome:
    files, size = (200, 4_000_000) if place.quick else (100_000, 5_000_000_000)
    tree, archive, root = place.path("memory-tree"), place.path("memory-oci"), place.path("memory-root")
    try:
        _make(tree, files, size)
        _archive(tree, archive)
        calls = {
            "tree to image": place.program("ingest", root, tree, "large"),
            "import of an OCI archive": place.onesec("import", f"oci:{archive}:large", "-t", "large", root=root),
        }
        results = rounds(
            [Contender(name, call, lambda: place.remove(root.name), nothing) for name, call in calls.items()],
            1,
            resources=True,
        )
    finally:
        place.remove(tree.name, archive.name, root.name)
    return Outcome(
        [
            *(
                figure(f"{name}, peak memory", [one.peak_memory / 1e6 for one in ones], "MB", want=at_most(LIMIT_MB))
                for name, ones in results.items()
            ),
            *(
                figure(f"{name}, rate", [size / wall / 1e6 for wall in walls(results, name)], "MB/s")
                for name in results
            ),
        ],
        results,
        {"files": files, "bytes": size},
    )


def _make(tree: Path, files: int, size: int) -> None:
    """Sizes as in a package directory: half of the files are small."""
    chance = random.Random(1)
    average = size // files
    for number in range(files):
        if number % 100 == 0:
            directory = tree / f"part{number // 10_000}" / f"module{number // 100}"
            directory.mkdir(parents=True)
        length = chance.randrange(1, average // 4) if number % 2 else chance.randrange(1, 4 * average - average // 4)
        (directory / f"file{number}.py").write_bytes(os.urandom(length))


def _archive(tree: Path, layout: Path) -> None:
    """An OCI layout with one image `large` of one plain tar layer."""
    directory = layout / "blobs/sha256"
    directory.mkdir(parents=True)
    with open(layout / "layer", "wb") as file:
        subprocess.run(["tar", "--numeric-owner", "-C", str(tree), "-cf", "-", "."], stdout=file, check=True)
    with open(layout / "layer", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = (layout / "layer").stat().st_size
    (layout / "layer").rename(directory / digest)
    config = {**json.loads(CONFIG), "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _put(directory, json.dumps(config).encode(), "config.v1+json"),
        "layers": [{"mediaType": f"{_TYPE}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}],
    }
    listed = {
        **_put(directory, json.dumps(manifest).encode(), "manifest.v1+json"),
        "annotations": {"org.opencontainers.image.ref.name": "large"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


_TYPE = "application/vnd.oci.image"


def _put(directory: Path, data: bytes, kind: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (directory / digest).write_bytes(data)
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


SCENARIO = Scenario("memory", "peak memory of making a 5 GB image", run)
