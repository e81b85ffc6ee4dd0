"""Bytes that a host needs before it can mount: the two index blobs, compressed, over the content of the image."""

from __future__ import annotations

from benchmarks.macro import sources
from benchmarks.macro.figures import Figure, at_most, figure
from benchmarks.macro.scenario import Outcome, Place, Scenario, blobs

FILES = 100_000


def run(place: Place) -> Outcome:
    if place.quick:
        source = sources.torch(place)
        figures, conditions = _of_image(place, source.reference, "a tiny image", None)
    else:
        figures, conditions = _of_image(place, sources.cuda(place), "CUDA torch", 0.15)
    more, more_conditions = _of_synthetic(place, 2_000 if place.quick else FILES)
    return Outcome([*figures, *more], conditions={**conditions, **more_conditions})


def _of_image(place: Place, reference: str, name: str, want: float | None) -> tuple[list[Figure], dict[str, object]]:
    inspected = place.manifest(reference)
    sizes = {kind: sum(int(str(blob["size"])) for blob in blobs(inspected, kind)) for kind in _KINDS}
    manifest = inspected["manifest"]
    assert isinstance(manifest, dict)
    content = int(manifest["annotations"]["vnd.onesec.size"])
    index = sizes["index.erofs"] + sizes["index.tables"]
    wire = index + sizes["pack"] + sizes["layer"]
    return [
        figure(
            f"index of {name}",
            [100 * index / content],
            "%",
            reference="content of the image",
            want=None if want is None else at_most(want),
        ),
        figure(f"index of {name}, of what is pushed", [100 * index / wire], "%", reference="all blobs of the image"),
    ], {name: {"content_bytes": content, "files": manifest["annotations"]["vnd.onesec.files"], **sizes}}


_KINDS = ("index.erofs", "index.tables", "layer", "pack")


def _of_synthetic(place: Place, files: int) -> tuple[list[Figure], dict[str, object]]:
    root, reference = place.path("index-size-root"), "many"
    place.remove(root.name)
    content = int(place.call(place.program("synthetic", root, str(files), reference)))
    inspected = place.manifest(reference, root=root)
    place.remove(root.name)
    sizes = {kind: sum(int(str(blob["size"])) for blob in blobs(inspected, kind)) for kind in _KINDS[:2]}
    found = figure(
        f"index of {files:,} files in {content / 1e9:.1f} GB",
        [100 * sum(sizes.values()) / content],
        "%",
        reference="content of the image",
        want=at_most(0.3),
    )
    return [found], {"synthetic": {"content_bytes": content, "files": files, **sizes}}


SCENARIO = Scenario("index-size", "bytes of the index on the wire, over the image", run)
