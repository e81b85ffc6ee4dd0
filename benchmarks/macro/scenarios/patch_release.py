"""The next release of a large library, when the one before is known: bytes that a push has to send."""

from __future__ import annotations

from pathlib import Path

from benchmarks.macro import sources
from benchmarks.macro.figures import Figure, at_most, figure
from benchmarks.macro.scenario import Outcome, Place, Scenario, blobs

LIBRARY = "nvidia-cublas-cu12"
RELEASES = ("12.9.1.4", "12.9.2.10", "12.9.3.13")
IMAGE = """
from onesec import Image

image = Image.debian_slim(python_version="3.11")
"""


def run(place: Place) -> Outcome:
    if place.quick:
        return _quick(place)
    root = place.path("patch-root")
    place.remove(root.name)
    known = _build(place, root, "base", IMAGE)
    whole = 0
    found: list[Figure] = []
    pushed: dict[str, int] = {}
    for before, release in zip(("", *RELEASES), RELEASES, strict=False):
        packs = _build(place, root, "app", f'{IMAGE.rstrip()}.pip_install("{LIBRARY}=={release}")\n')
        pushed[release] = sum(size for digest, size in packs.items() if digest not in known)
        known |= packs
        whole = whole or pushed[release]
        if before:
            name = f"{LIBRARY} {before} to {release}"
            found.append(
                figure(
                    name, [100 * pushed[release] / whole], "%", reference="the first release, whole", want=at_most(30)
                )
            )
    place.remove(root.name)
    return Outcome(found, conditions={"pushed_bytes": pushed})


def _build(place: Place, root: Path, reference: str, text: str) -> dict[str, int]:
    """Builds an image file. Returns digests and sizes of the image's packs."""
    file = place.path(f"patch-{reference}.py")
    file.write_text(text)
    place.call(place.onesec("build", file, "-t", reference, root=root))
    return _packs(place, reference, root)


def _quick(place: Place) -> Outcome:
    """A tree, and the same tree with bytes put in near the start of its one file."""
    root, tree = place.path("patch-root"), place.path("patch-tree")
    place.remove(root.name, tree.name)
    tree.mkdir()
    data = sources.text(4 << 20, 3)
    (tree / "library").write_bytes(data)
    sources.ingest(place, tree, "old", root=root)
    (tree / "library").write_bytes(data[:100_000] + b"a change" + data[100_000:])
    sources.ingest(place, tree, "new", root=root)
    old, new = _packs(place, "old", root), _packs(place, "new", root)
    pushed = sum(size for digest, size in new.items() if digest not in old)
    return Outcome(
        [
            figure(
                "a few bytes put in", [100 * pushed / sum(old.values())], "%", reference="the whole", want=at_most(30)
            )
        ],
        conditions={"pushed_bytes": pushed, "whole_bytes": sum(old.values())},
    )


def _packs(place: Place, reference: str, root: Path) -> dict[str, int]:
    found = blobs(place.manifest(reference, root=root), "pack")
    return {str(blob["digest"]): int(str(blob["size"])) for blob in found}


SCENARIO = Scenario("patch-release", "bytes pushed for the next release of a CUDA library", run)
